"""
What the checks share: runs in this process, made-up secrets, and small file systems.

Importing this file puts the program on Python's path and made-up secrets into the environment. No output of
the program may hold one of these secrets: no_secret() asserts that for every output that a check reads.
"""
import contextlib
import io
import os
import random
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SECRETS = {"WANDB_API_KEY": "canary-wandb-5d1f", "HF_TOKEN": "canary-hub-77aa",
           "AWS_SECRET_ACCESS_KEY": "canary-cloud-91bc",
           "https_proxy": "http://user:canary-proxy-e3@127.0.0.1:9"}
os.environ.update(SECRETS, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")

import prepare_c4
import train
from conftest import TINY, documents

WORK = Path(tempfile.gettempdir(), f"torture-{secrets.token_hex(6)}")    # prepare_work() makes it
DATA = WORK / "data"              # token shards with a vocabulary of 300
CONFIG = WORK / "tiny.toml"       # a tiny model that trains on them
DRAW = random.Random()            # the source of all random moments; seeded anew before every check
MOUNTED = []                      # folders on which a small file system is mounted
METRICS = WORK / "metrics"        # copies of metrics.jsonl after kills and signals, which C4 reads


class Skip(Exception):
    """This machine cannot do what the check needs."""


def prepare_work():
    """Makes the folder WORK with the data and the configuration of the tiny model."""
    WORK.mkdir(mode=0o700)
    METRICS.mkdir()
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
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program.main(argv)
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


def keep_metrics(path):
    """Copies a metrics.jsonl to METRICS. Checks run in different processes, so a file tells C4 of it."""
    (METRICS / f"{secrets.token_hex(6)}.jsonl").write_bytes(path.read_bytes())


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
