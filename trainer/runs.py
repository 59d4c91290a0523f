"""
The folder of a run. Nothing in it is lost when a run is killed or a disk is full. metrics.jsonl grows by
whole lines. Every other file is written under another name and moved into its place when it is complete.
Every checkpoint carries its own sha256, and a lock keeps a second process out.

runs/NAME/  config.json     the options in force
            metrics.jsonl   a line for each measurement: its kind (config, train or val), its step and its
                            numbers; each pair of kind and step appears once
            status.json     running, done, diverged, interrupted or failed
                            (a run that is "running" but has no lock was killed)
            step-00000500.pt, ...   checkpoints
            loss.png        the loss curve
"""
import atexit
import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import torch
from tqdm import tqdm

from trainer.errors import UserError, one_line


# ---------------------------------------------------------------------------------------------------------
# Files that are complete or absent

class HashingFile(io.BufferedWriter):
    """A binary file that hashes and counts what is written to it.

    If the disk is full, write() pretends to succeed and records the error. So the number of bytes that were
    needed is known at the end, and torch.save cannot hide the error behind one of its own.

    sha256: the hash of everything that was written.
    bytes: the count of everything that was written.
    disk_error: (errno, message) of the first write that failed, or None.
    """
    def __init__(self, path: Path):
        super().__init__(io.FileIO(path, "w"))
        self.sha256, self.bytes, self.disk_error = hashlib.sha256(), 0, None

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += memoryview(data).nbytes
        if not self.disk_error:
            try:
                return super().write(data)
            except OSError as error:
                self.disk_error = error.errno, error.strerror
        return memoryview(data).nbytes


def not_written(path: Path, error: OSError, needed: int) -> UserError:
    """Returns the error to raise for a file that could not be written.

    Args:
        path: the file.
        error: why it could not be written.
        needed: the size of the file in bytes.
    """
    free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
    return UserError(f"{path}: could not be written: {error.strerror} "
                     f"({needed:,} bytes needed, {free:,} free)", 4)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[HashingFile]:
    """Opens a binary file for writing that appears at its path only when it is complete and on the disk.

    Args:
        path: where the file is to appear. A file that is there already is replaced.
    Yields: the file to write to.
    Raises: UserError if the file cannot be written; then nothing is left of it.
    """
    path, file = Path(path), None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with HashingFile(temporary) as file:
            yield file
            if file.disk_error:
                raise OSError(*file.disk_error)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise not_written(path, error, file.bytes if file else 0) from None
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, because a new name must survive a power failure,
    too. Some network disks refuse this for folders. A note says so once, and the work goes on."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise UserError(f"{folder}: could not be written to the disk: {error.strerror}", 4) from None
        note_once("note: this disk cannot sync folders, so a power failure may take away the newest files")
    finally:
        os.close(descriptor)


@functools.cache
def note_once(text: str) -> None:
    """Prints a note above the progress bar, but each note only once in a process."""
    tqdm.write(text)


def write_json(path: str | Path, content: dict) -> None:
    """Writes a JSON file that is complete or absent. Raises UserError if it cannot be written."""
    with whole_file(path) as file:
        file.write(to_json(content, indent=1))


def to_json(content: dict, indent: int | None = None) -> bytes:
    """Returns a JSON object and the end of its line. JSON has neither NaN nor infinity, so null takes their
    place."""
    finite = json.loads(json.dumps(content), parse_constant=lambda word: None)
    return (json.dumps(finite, indent=indent, allow_nan=False) + "\n").encode()


def lock(path: str | Path, waits: bool = False) -> TextIO | Path | None:
    """Takes a lock file.

    Args:
        path: the lock file, which is created if it does not exist.
        waits: whether to wait while another process has the lock.
    Returns: an object that holds the lock for as long as it lives, or None if another process has the lock.
    """
    held = try_lock(path)
    if waits and held is None:
        print(f"note: another process is at work in {Path(path).parent}; waiting for it", flush=True)
        while (held := try_lock(path)) is None:
            time.sleep(1)
    return held


def unlock(held_lock: TextIO | Path) -> None:
    """Gives back what lock() returned. Without this, the lock would last as long as anything refers to the
    object, such as a frame that an exception inside of some library keeps alive."""
    if isinstance(held_lock, Path):
        held_lock.unlink(missing_ok=True)
        atexit.unregister(held_lock.unlink)    # by then, another process may have the lock
    else:
        held_lock.close()


def try_lock(path: str | Path) -> TextIO | Path | None:
    """Takes a lock file at once. Returns None if another process has the lock."""
    file = open(path, "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        file.close()
        return lock_by_name(Path(f"{path}.holder"))


def lock_by_name(path: Path) -> Path | None:
    """Takes a lock on a file system without flock, by creating a file that only one process can create.
    The file stays behind if the process is killed.

    Args:
        path: the file, which names its owner.
    Returns: the path, or None if another process has the lock.
    """
    note_once(f"note: no file locks here, using {path}; if a run was killed on another machine, delete that "
              "file")
    try:
        with open(path, "x") as file:
            file.write(identity(os.getpid()))
    except FileExistsError:
        try:
            owner = path.read_text()
        except FileNotFoundError:    # its owner has just given it back; whoever waits asks again
            return None
        host, _, process = owner.partition(" ")
        if host != socket.gethostname() or owner == identity(process.partition(" ")[0]):
            return None
        path.write_text(identity(os.getpid()))    # its owner was killed on this machine
    atexit.register(path.unlink, missing_ok=True)
    return path


def identity(process: int | str) -> str:
    """Returns the host, the id of a process and the time at which this process began. Without that time, the
    first process of a restarted container would look like its predecessor, because both have the id 1."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
        begun = status.rpartition(")")[2].split()[19]    # in ticks of the kernel's clock
    except OSError:
        # Elsewhere than on Linux a process cannot be asked for, so each counts as alive.
        begun = "ended" if Path("/proc/self").exists() else "?"
    return f"{socket.gethostname()} {process} {begun}"


# ---------------------------------------------------------------------------------------------------------
# Checkpoints

TRAILER = re.compile(rb"\nsha256 ([0-9a-f]{64})\n")
TRAILER_BYTES = 73


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """Returns the path of a run's checkpoint of a step."""
    return Path(folder, f"step-{step:08d}.pt")


def step_of(path: Path) -> int:
    """Returns the step of a checkpoint, from its path."""
    return int(path.stem.removeprefix("step-"))


def checkpoints_of(folder: str | Path) -> list[Path]:
    """Returns the paths of a run's checkpoints, newest first."""
    return sorted(Path(folder).glob(f"step-{8 * '[0-9]'}.pt"), reverse=True)


def save_checkpoint(path: str | Path, content: dict) -> None:
    """Saves a checkpoint: what torch.save writes, then a line with the sha256 of it. torch.load can read such
    a file as it is, and load_checkpoint notices every damage to it.

    Args:
        path: where the file is to appear.
        content: tensors, numbers, strings, and lists and dicts of them.
    Raises: UserError if the file cannot be written.
    """
    with whole_file(path) as file:
        torch.save(content, file)
        file.write(b"\nsha256 " + file.sha256.hexdigest().encode() + b"\n")


def load_checkpoint(path: str | Path) -> dict:
    """Loads a checkpoint. Its tensors are maps of the file, so they take no memory before they are used.

    Args:
        path: the file.
    Returns: the content, with tensors on the CPU.
    Raises: UserError if the file is not bit for bit what was saved.
    """
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
    except Exception as error:    # an undamaged file of another program, for which torch.load has many errors
        reason = one_line((str(error).splitlines() or [type(error).__name__])[0], 100)
        raise UserError(f"{path}: is no checkpoint of this program: {reason}") from None


# ---------------------------------------------------------------------------------------------------------
# The folder

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:=+@-]{0,199}")
LOCK_FILES = {"lock", "lock.holder"}
UNFINISHED = re.compile(r"\..+\.[0-9]+\.tmp")    # a file of whole_file() in a process that was killed
OF_A_RUN = {"config.json", "metrics.jsonl", "status.json", "output.txt"}    # a run's folder has one of them


class Run:
    """The folder of a run, locked for this process.

    Args:
        runs: the folder of all runs, which is created if it does not exist.
        name: the name of the run; "" for the next free number.
        resume: whether the run may exist already, to be continued.
        overwrite: whether to delete what is in the folder.
    Raises: UserError if the name is not allowed, or if the folder holds files and neither `resume` nor
        `overwrite` is given, or if another process has the lock.

    folder: the path of the folder.
    metrics: the path of metrics.jsonl.
    """
    def __init__(self, runs: str | Path, name: str, resume: bool = False, overwrite: bool = False):
        runs = Path(runs)
        if name and not NAME.fullmatch(name):
            raise UserError(f"--name={name!r}: use up to 200 letters, digits and _ . , : = + @ -, "
                            "and begin with a letter, a digit or _")
        self.saved_step = None    # step of the newest checkpoint of this process
        self.damaged: set[Path] = set()    # checkpoints that newest() could not load
        runs.mkdir(parents=True, exist_ok=True)
        name = name or make_numbered_folder(runs)
        self.folder, self.metrics = runs / name, runs / name / "metrics.jsonl"
        if self.folder.is_symlink() or self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--name={name}: {self.folder} is not a folder of its own; choose another name")
        self.folder.mkdir(exist_ok=True)
        names = {path.name for path in self.folder.iterdir()} - LOCK_FILES
        of_a_run = names & OF_A_RUN or any(UNFINISHED.fullmatch(name) for name in names)
        if names and overwrite and not of_a_run:
            raise UserError(f"--overwrite: {self.folder} holds files, but no run; choose another --name")
        if names and not resume and not overwrite:
            raise UserError(f"--name={name}: {self.folder} already holds files; give --resume to go on, "
                            "--overwrite to start again, or another --name")
        self.held_lock = lock(self.folder / "lock")
        if self.held_lock is None:
            raise UserError(f"--name={name}: another process is at work in {self.folder}")
        for path in list(self.folder.iterdir()):
            if UNFINISHED.fullmatch(path.name) or overwrite and path.name not in LOCK_FILES:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def status(self, status: str, **more) -> None:
        """Writes status.json.

        Args:
            status: running, done, diverged, interrupted or failed.
            more: further entries, such as step.
        Raises: UserError if the file cannot be written.
        """
        write_json(self.folder / "status.json", dict(status=status, **more))

    def record_end(self, code: int, message: str, by_signal: bool) -> None:
        """Writes into status.json how an error has ended the run, unless the run has written its end itself.

        Args:
            code: the exit code. A run that diverged (3) or saved everything (75) has written its end.
            message: the line that says what went wrong.
            by_signal: whether a signal ended the run before its first step was done.
        """
        with contextlib.suppress(UserError, OSError):    # the disk may be full
            before = self.read_status()
            if by_signal and before.get("status") != "done":
                self.status(**before | dict(status="interrupted"))
            elif code not in (3, 75) and before.get("status") not in ("done", "diverged", "interrupted"):
                self.status("failed", message=message)

    def has_ended(self, steps: int) -> bool:
        """Returns whether the run diverged, or has done all its steps. There may be more steps now than when
        it was done."""
        status = self.read_status()
        is_done = status.get("status") == "done" and status.get("steps", steps) == steps
        return is_done or status.get("status") == "diverged"

    def show_ended(self) -> None:
        """Says how the run has ended. Raises UserError if it diverged."""
        status = self.read_status()
        if status["status"] == "diverged":
            raise UserError(f"{self.folder}: diverged at step {status['step']}; "
                            "--overwrite starts it again", 3)
        print(f"{self.folder}: already complete, final validation loss {status['loss']:.4f}")

    def release(self) -> None:
        """Gives the lock back."""
        unlock(self.held_lock)

    def write_config(self, in_force: dict) -> None:
        """Writes config.json. Raises UserError if it cannot be written."""
        write_json(self.folder / "config.json", in_force)

    def draw(self, draw_run: Callable, title: str) -> None:
        """Draws loss.png. Prints a note if it cannot be drawn, and raises UserError if it cannot be written.

        Args:
            draw_run: a function of (lines of metrics.jsonl, file, title) that draws.
            title: what follows the name of the run in the title.
        """
        path, rows, picture = self.folder / "loss.png", self.read_metrics(), io.BytesIO()
        try:
            draw_run(rows, picture, f"{self.folder.name}{title}")
        except Exception as error:    # matplotlib can fail in many ways, and the run is worth more
            tqdm.write(f"note: {path}: could not be drawn: {type(error).__name__}: {one_line(error, 150)}")
            return
        with whole_file(path) as file:
            file.write(picture.getbuffer())

    def read_status(self) -> dict:
        """Returns the content of status.json, or {} if there is none that can be read."""
        with contextlib.suppress(OSError, ValueError):
            status = json.loads((self.folder / "status.json").read_text())
            return status if isinstance(status, dict) else {}
        return {}

    def log(self, kind: str, step: int, **numbers) -> None:
        """Appends a line to metrics.jsonl.

        Args:
            kind: config, train or val.
            step: the step after which this was measured.
            numbers: what was measured.
        Raises: UserError if the line cannot be written.
        """
        line = to_json(dict(kind=kind, step=step, **numbers))
        try:
            with open(self.metrics, "ab") as file:
                file.write(line)
        except OSError as error:
            raise not_written(self.metrics, error, len(line)) from None

    def read_metrics(self, up_to: float = math.inf) -> list[dict]:
        """Returns the lines of metrics.jsonl up to and including a step. A line that was not completely
        written before a crash is left out."""
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        rows = []
        for line in lines:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return [row for row in rows if row["step"] <= up_to]

    def rewind(self, step: int, in_force: dict, validates: bool) -> None:
        """Deletes from metrics.jsonl what a run that resumes from a step measures again: all after this step,
        and its validation if `validates`. A final validation goes, too, because more steps follow. The line
        of the settings gets those in force."""
        rows = [row for row in self.read_metrics(step) if row["step"] < step or row["kind"] == "train"
                or row["kind"] == "val" and not validates and not row.get("final")]
        rows = [row | dict(config=in_force) if row["kind"] == "config" else row for row in rows]
        with whole_file(self.metrics) as file:
            file.write(b"".join(map(to_json, rows)))

    def save(self, step: int, content: dict, keep: int) -> None:
        """Saves a checkpoint and says so. Only then does it delete older checkpoints.

        Args:
            step: the number of steps that were trained. A step that is already saved is not saved again.
            content: see save_checkpoint.
            keep: how many undamaged checkpoints to keep, this one included.
        Raises: UserError if the checkpoint cannot be written.
        """
        if step == self.saved_step:
            return
        path = checkpoint_path(self.folder, step)
        if self.metrics.exists():
            with open(self.metrics, "rb") as file:
                os.fsync(file.fileno())    # a checkpoint must not survive the measurements that led to it
        save_checkpoint(path, content)
        self.saved_step = step
        self.damaged.discard(path)
        tqdm.write(f"saved {path}")
        undamaged = [saved for saved in checkpoints_of(self.folder) if saved not in self.damaged]
        for old in undamaged[keep:]:
            try:
                old.unlink()
            except OSError as error:
                tqdm.write(f"note: {old} could not be deleted: {error.strerror}")

    def newest(self) -> tuple[int, dict | None]:
        """Loads the newest checkpoint that is undamaged, and prints a note for each damaged one.

        Returns: (its step, its content), or (0, None) if there is no checkpoint at all.
        Raises: UserError if there are checkpoints and all are damaged.
        """
        paths = checkpoints_of(self.folder)
        for path in paths:
            try:
                return step_of(path), load_checkpoint(path)
            except UserError as error:
                self.damaged.add(path)
                print(f"note: skipped {error}")
        if paths:
            raise UserError(f"{self.folder}: none of its {len(paths)} checkpoints can be read; "
                            "--overwrite starts again")
        return 0, None


class SilentRun:
    """Takes the place of Run on all ranks but the first. Its methods do nothing."""
    def __getattr__(self, name: str) -> Callable:
        if not hasattr(Run, name):
            raise AttributeError(name)
        return lambda *_, **__: None

    def newest(self) -> tuple[int, None]:
        """Returns (0, None)."""
        return 0, None


def make_numbered_folder(runs: Path) -> str:
    """Creates the folder with the next free number in `runs`. Returns its name, such as "0001"."""
    numbers = [int(path.name) for path in runs.iterdir() if re.fullmatch("[0-9]{4,9}", path.name)]
    number = 1 + max(numbers, default=0)
    while True:
        name = f"{number:04d}"
        try:
            (runs / name).mkdir()
            return name
        except FileExistsError:    # another process has just taken this number
            number += 1
