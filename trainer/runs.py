"""
The folder of a run, and how nothing in it is lost: every file is written beside its place and moved
there whole, every checkpoint carries its own sha256, and a lock keeps a second process out.

runs/NAME/  config.json     the options in force
            metrics.jsonl   a line per measurement: kind (config, train, val) and step, each pair once
            status.json     running, done, diverged, interrupted or failed
                            ("running" and no lock: it was killed)
            step-00000500.pt, ...   checkpoints;  loss.png   the loss curve
"""
import atexit
import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
from pathlib import Path

import torch
from tqdm import tqdm

from trainer.errors import UserError, one_line

# ---------------------------------------------------------------------------------------------------------
# Files that are whole or absent

class Whole(io.BufferedWriter):
    """A file that hashes and counts what is written. That the disk is full is told at the end, when it is
    known how much was to be written (and torch.save would hide it)."""
    def __init__(self, path):
        super().__init__(io.FileIO(path, "w"))
        self.sha256, self.bytes, self.full = hashlib.sha256(), 0, None

    def write(self, data):
        self.sha256.update(data)
        self.bytes += memoryview(data).nbytes
        if not self.full:
            try:
                return super().write(data)
            except OSError as error:
                self.full = error.errno, error.strerror
        return memoryview(data).nbytes

def not_written(path, error, needed):
    free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
    return UserError(f"{path}: could not be written: {error.strerror} "
                     f"({needed:,} bytes needed, {free:,} free)", 4)

@contextlib.contextmanager
def whole_file(path):
    """A file to write to, which appears at path only when it is complete and on the disk."""
    path, file = Path(path), None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with Whole(temporary) as file:
            yield file
            if file.full:
                raise OSError(*file.full)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise not_written(path, error, file.bytes if file else 0) from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)    # the new name must survive a power cut, too
    finally:
        os.close(folder)

def write_json(path, content):
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())

def lock(path):
    """Takes the lock file at path for as long as the returned object lives. Returns None if another
    process has it."""
    file = open(path, "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except BlockingIOError:
        return file.close()
    except OSError:
        file.close()
        return lock_by_name(Path(f"{path}.holder"))

def lock_by_name(path):
    """For file systems without flock: a file that only one process can create.
    It outlives a killed process."""
    print(f"note: no file locks here, using {path}; if a run was killed on another machine, delete that file")
    me = f"{socket.gethostname()} {os.getpid()}"
    try:
        with open(path, "x") as file:
            file.write(me)
    except FileExistsError:
        host, _, pid = path.read_text().partition(" ")
        if host != socket.gethostname() or Path(f"/proc/{pid}").exists():
            return None
        path.write_text(me)
    atexit.register(path.unlink, missing_ok=True)
    return path

# ---------------------------------------------------------------------------------------------------------
# Checkpoints

TRAILER = re.compile(rb"\nsha256 ([0-9a-f]{64})\n")
TRAILER_BYTES = 73

def save_checkpoint(path, content):
    """torch.save, then a line with the sha256 of it: torch.load can still read the file,
    and bit rot is noticed."""
    with whole_file(path) as file:
        torch.save(content, file)
        file.write(b"\nsha256 " + file.sha256.hexdigest().encode() + b"\n")

def load_checkpoint(path):
    """The content of a checkpoint, as maps of the file: nothing is in memory twice. Raises UserError if it
    is not, bit for bit, what was saved."""
    sha256, path = hashlib.sha256(), Path(path)
    try:
        with open(path, "rb") as file:
            left = path.stat().st_size - TRAILER_BYTES
            while left > 0 and (block := file.read(min(left, 2**24))):
                sha256.update(block)
                left -= len(block)
            trailer = TRAILER.fullmatch(file.read())
        if not trailer or trailer[1].decode() != sha256.hexdigest():
            raise UserError(f"{path}: is damaged or no checkpoint (sha256 differs)")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UserError:
        raise
    except Exception as error:    # whole, but foreign: torch.load has many ways to say so
        reason = one_line(str(error).splitlines()[0], 100)
        raise UserError(f"{path}: is no checkpoint of this program: {reason}") from None

# ---------------------------------------------------------------------------------------------------------
# The folder

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+-]{0,199}")

class Run:
    """A run's folder, locked. name "": a fresh number. Raises UserError if the name is in use,
    unless told what to do."""
    def __init__(self, runs, name, resume=False, overwrite=False):
        runs = Path(runs)
        if name and not NAME.fullmatch(name):
            raise UserError(f"--run={name!r}: use up to 200 letters, digits and _ . , = + -, "
                            "beginning with no dot or sign")
        self.saved = None
        runs.mkdir(parents=True, exist_ok=True)
        numbers = (int(p.name) for p in runs.iterdir() if re.fullmatch("[0-9]{4,9}", p.name))
        number = 1 + max(numbers, default=0)
        while not name:
            with contextlib.suppress(FileExistsError):
                (runs / f"{number:04d}").mkdir()
                name = f"{number:04d}"
            number += 1
        self.folder, self.metrics = runs / name, runs / name / "metrics.jsonl"
        if self.folder.is_symlink() or self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--run={name}: {self.folder} is not a folder of its own; choose another name")
        self.folder.mkdir(exist_ok=True)
        used = any(p.name not in ("lock", "lock.holder") for p in self.folder.iterdir())
        if used and not resume and not overwrite:
            raise UserError(f"--run={name}: {self.folder} is in use; "
                            "give --resume to go on, --overwrite to start again")
        self.held = lock(self.folder / "lock")
        if self.held is None:
            raise UserError(f"--run={name}: another process is at work in {self.folder}")
        for path in list(self.folder.iterdir()):
            if path.name.endswith(".tmp") or overwrite and path.name not in ("lock", "lock.holder"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def status(self, status, **more):
        write_json(self.folder / "status.json", dict(status=status, **more))

    def read_status(self):
        with contextlib.suppress(OSError, ValueError):
            status = json.loads((self.folder / "status.json").read_text())
            return status if isinstance(status, dict) else {}
        return {}

    def log(self, kind, step, **numbers):
        """Appends a line to metrics.jsonl."""
        line = (json.dumps(dict(kind=kind, step=step, **numbers)) + "\n").encode()
        try:
            with open(self.metrics, "ab") as file:
                file.write(line)
        except OSError as error:
            raise not_written(self.metrics, error, len(line)) from None

    def read_metrics(self, up_to=math.inf):
        """The lines of metrics.jsonl up to a step. A last line that a crash tore is left out."""
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        rows = []
        for line in lines:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return [row for row in rows if row["step"] <= up_to]

    def rewind(self, step):
        """Forgets what was measured after a step, and its validation: both will be measured again."""
        rows = [row for row in self.read_metrics(step) if row["step"] < step or row["kind"] == "train"]
        with whole_file(self.metrics) as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())

    def checkpoints(self):
        """The checkpoints' paths, newest first."""
        return sorted(self.folder.glob("step-????????.pt"), reverse=True)

    def save(self, step, content, keep):
        """Saves a checkpoint, says so, and only then deletes all but the newest `keep`."""
        if step == self.saved:
            return
        path = self.folder / f"step-{step:08d}.pt"
        if self.metrics.exists():
            with open(self.metrics, "rb") as file:
                os.fsync(file.fileno())    # a checkpoint must not outlive what led to it
        save_checkpoint(path, content)
        self.saved = step
        tqdm.write(f"saved {path}")
        for old in self.checkpoints()[keep:]:
            try:
                old.unlink()
            except OSError as error:
                tqdm.write(f"note: {old} could not be deleted: {error.strerror}")

    def newest(self):
        """(step, content) of the newest checkpoint that is whole; (0, None) if there is none at all."""
        paths = self.checkpoints()
        for path in paths:
            try:
                return int(path.stem.removeprefix("step-")), load_checkpoint(path)
            except UserError as error:
                print(f"note: skipped {error}")
        if paths:
            raise UserError(f"{self.folder}: none of its {len(paths)} checkpoints can be read; "
                            "--overwrite starts again")
        return 0, None
