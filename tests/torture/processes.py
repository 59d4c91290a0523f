"""
Runs in other processes: how a check starts them, waits for them and sees that nothing of them is left.
"""
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from conftest import wait_for
from tools import ROOT, no_secret

STARTED = []    # every Process of the current check

# Two ranks with one micro-batch each: the n-th read of training data belongs to step n.
TWO_RANKS = ["--batch=8", "--micro_batch=4", "--steps=100000", "--save_every=5", "--eval_every=0",
             "--timeout=20"]


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
