"""
What the checks share: runs in this process and in others, comparisons of runs, and small file systems.

Importing this file puts the program on Python's path and made-up secrets into the environment. No output of
the program may hold one of these secrets: no_secret() asserts that for every output that a check reads.
"""
import contextlib
import io
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SECRETS = {"WANDB_API_KEY": "canary-wandb-5d1f", "HF_TOKEN": "canary-hub-77aa",
           "AWS_SECRET_ACCESS_KEY": "canary-cloud-91bc",
           "https_proxy": "http://user:canary-proxy-e3@127.0.0.1:9"}
os.environ.update(SECRETS, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")

import torch    # noqa: E402

import prepare_c4    # noqa: E402
import train    # noqa: E402
from conftest import TINY, documents, wait_for    # noqa: E402
from tiny_runs import final    # noqa: E402

WORK = Path(tempfile.gettempdir(), f"torture-{secrets.token_hex(6)}")    # prepare_work() makes it
DATA = WORK / "data"              # token shards with a vocabulary of 300
CONFIG = WORK / "tiny.toml"       # a tiny model that trains on them
DRAW = random.Random()            # the source of all random moments; seeded anew before every check
STARTED = []                      # every Process of the current check
MOUNTED = []                      # folders on which a small file system is mounted
METRICS = []                      # contents of metrics.jsonl after kills and signals, which C4 reads

# Two ranks with one micro-batch each: the n-th read of training data belongs to step n.
TWO_RANKS = ["--batch=8", "--micro_batch=4", "--steps=100000", "--save_every=5", "--eval_every=0",
             "--timeout=20"]


class Skip(Exception):
    """This machine cannot do what the check needs."""


def prepare_work():
    """Makes the folder WORK with the data and the configuration of the tiny model."""
    WORK.mkdir(mode=0o700)
    with mock.patch.object(prepare_c4, "sotu", documents), contextlib.redirect_stdout(io.StringIO()):
        assert prepare_c4.main(["--vocab=300", f"--out={DATA}"]) == 0
    CONFIG.write_text(TINY.format(data=DATA))


# ---------------------------------------------------------------------------------------------------------
# Runs in this process

def options(folder, name, *more):
    """Returns the command line of a run of the tiny model in folder/name.

    An option in `more` replaces the usual value of the same option.
    """
    usual = [f"--config={CONFIG}", f"--runs={folder}", f"--name={name}", "--compile=false",
             "--sample_tokens=0", "--threads=1", "--device=cpu"]
    return list({option.split("=")[0]: option for option in [*usual, *more]}.values())


def call(argv, program=train):
    """Runs a command line in this process. Returns (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = program.main(argv)
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in zip(numbers, handlers):
                    signal.signal(number, handler)
    return code, no_secret(out.getvalue()), no_secret(err.getvalue())


def no_secret(text):
    """Returns the text, after asserting that it holds no secret."""
    assert not [name for name, secret in SECRETS.items() if secret in text], "a secret was printed"
    return text


def run(folder, name, *more):
    """Runs the tiny model and asserts that the run ends well. Returns its stdout."""
    code, out, err = call(options(folder, name, *more))
    assert code == 0, err
    return out


def refused(argv, words, code=2, program=train):
    """Asserts that a command line ends with this exit code and one error line that holds the words.

    Returns that line.
    """
    real_code, _, err = call(argv, program)
    assert real_code == code, (argv, real_code, err)
    return error_line(err, words)


# A line of a traceback that stands in the program. torchrun prints a traceback of its own, which is fine.
OUR_TRACEBACK = re.compile(r'File "(.*/)?(train|model|optim|prepare_c4|sample|bench|(trainer|zoo|study)/\w+)'
                           r'\.py", line')


def error_line(text, words=""):
    """Asserts that a text holds exactly one error line, which is short, printable and holds the words,
    and no traceback from the program. Returns that line."""
    lines = re.findall(r"(?:train|prepare_c4)\.py: error: .*", text)
    assert len(lines) == 1 and not OUR_TRACEBACK.search(text), text
    assert len(lines[0]) <= 310 and lines[0].isprintable() and words in lines[0], (words, lines[0])
    return lines[0]


# ---------------------------------------------------------------------------------------------------------
# Comparisons

def differences(folder, other, metrics=True):
    """Compares two finished runs bit for bit.

    Args:
        folder, other: the folders of the two runs.
        metrics: whether to compare the rows of metrics.jsonl, too.

    Returns:
        The names of the weights, state entries and files that differ; an empty list if none does.
    """
    contents, rows = [], []
    for run_folder in (folder, other):
        weights, states, all_rows = final(run_folder)
        content = dict(weights)
        for i, state in states.items():
            content |= {(i, key): torch.as_tensor(value) for key, value in state.items()}
        contents.append(content)
        rows.append([row for row in all_rows if row["kind"] == "train" or row["step"]])
    first, second = contents
    if first.keys() != second.keys():
        return ["keys"]
    different = [key for key in first if first[key].dtype != second[key].dtype
                 or not torch.equal(first[key], second[key])]
    if metrics and rows[0] != rows[1]:
        different.append("metrics")
    return different


def snapshot(folder):
    """Returns {path: (modification time, content)} of everything below a folder."""
    return {path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
            for path in sorted(Path(folder).rglob("*"))}


def read_json(path):
    """Returns the content of a JSON file."""
    return json.loads(Path(path).read_text())


def step_of(checkpoint):
    """Returns the step in the name of a checkpoint's file."""
    return int(Path(checkpoint).stem.removeprefix("step-"))


def checkpoints(folder):
    """Returns the paths of the checkpoints in a run's folder, oldest first."""
    return sorted(Path(folder).glob("step-*.pt"))


# ---------------------------------------------------------------------------------------------------------
# Runs in other processes

class Process:
    """A command in a process group of its own. A thread collects its output line by line.

    Args:
        command: the program and its arguments.
        cwd: the folder in which it starts.
        env: environment variables to add.
    """
    def __init__(self, command, cwd=ROOT, env=None):
        self.process = subprocess.Popen(list(map(str, command)), cwd=cwd, text=True, errors="replace",
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        start_new_session=True, env=os.environ | (env or {}))
        STARTED.append(self)
        self.lines, self.pid = [], self.process.pid
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        """Collects the output. It runs in a thread of its own."""
        for line in self.process.stdout:
            self.lines.append(line)

    def text(self):
        """Returns the output so far, stdout and stderr together."""
        return no_secret("".join(list(self.lines)))

    def wait_for(self, words, seconds=60):
        """Waits until the output holds the words or the process ends. Returns whether the words came."""
        wait(lambda: words in self.text() or self.process.poll() is not None, seconds, lambda:
             f"{words!r} did not come: {self.text()[-2000:]}")
        return words in self.text()

    def end(self, seconds):
        """Waits for the end of the process, which must come within some seconds. Returns the exit code."""
        wait(lambda: self.process.poll() is not None, seconds,
             lambda: f"still there after {seconds} s: {self.text()[-2000:]}")
        self.reader.join(5)
        return self.process.returncode

    def end_well(self, seconds):
        """Waits for the end of the process, which must come within some seconds with exit code 0."""
        assert self.end(seconds) == 0, self.text()[-3000:]

    def kill(self):
        """Kills the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join(5)

    def group_is_gone(self):
        """Returns whether no process of the group is left."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        return False


def wait(true, seconds, message):
    """Waits until true() holds, for at most some seconds. message: a text, or a function that makes it."""
    assert wait_for(true, seconds), message() if callable(message) else message


def start_train(*argv):
    """Starts train.py with a command line."""
    return Process([sys.executable, "train.py", *argv])


def start_with_fault(fault, folder, commands, ranks=0):
    """Starts faults.py, which runs command lines one after another with a fault in them.

    Args:
        fault: one of the names that faults.py lists.
        folder: a folder for what faults.py reads and writes.
        commands: a list of command lines.
        ranks: the number of processes that torchrun starts; 0 starts one process without torchrun.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "commands.json").write_text(json.dumps(commands))
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"] if ranks else []
    return Process([sys.executable, *torchrun, Path(__file__).with_name("faults.py"), fault, folder])


def process_ids(folder, ranks=2):
    """Waits until all ranks of start_with_fault() have started. Returns their process ids."""
    files = [folder / f"pid-{rank}" for rank in range(ranks)]
    wait(lambda: all(file.exists() and file.read_text() for file in files), 60, "the ranks did not start")
    return [int(file.read_text()) for file in files]


def all_gone(process, ids, seconds):
    """Waits until a process has ended, and asserts that its group and the processes `ids` are gone, too.

    Returns the seconds that this took.
    """
    begun = time.monotonic()
    process.end(seconds)
    wait(process.group_is_gone, 5, "processes are left behind")
    for process_id in ids:
        assert not Path(f"/proc/{process_id}").exists(), f"process {process_id} is left behind"
    return time.monotonic() - begun


def two_at_a_time(work, cases):
    """Returns [work(case) for each case], with two cases at work at any time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, cases))


# ---------------------------------------------------------------------------------------------------------
# Small file systems

@contextlib.contextmanager
def small_disk(size):
    """Gives a folder on a file system of `size` bytes. Raises Skip where that needs root or tmpfs."""
    folder = Path(tempfile.mkdtemp(dir=WORK))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        raise Skip("needs root and tmpfs")
    MOUNTED.append(folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
        MOUNTED.remove(folder)


def fill(folder, leave=0):
    """Takes the free space of a small disk, except for `leave` bytes, with a file named filler."""
    with contextlib.suppress(OSError), open(folder / "filler", "ab", buffering=0) as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - leave)))
