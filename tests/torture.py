"""
What a run promises, put to the test: 30 checks with kills, full disks, broken files, lost ranks.

    python tests/torture.py                        all, about a quarter of an hour on two cores
    python tests/torture.py --only=B1,E1 --seed=7 --out=reliability.json

Prints a table and ends with 1 if a critical check fails. What this machine cannot do (no root, no tmpfs)
is skipped, and said to be. Faults come from here: signals, small file systems, patches around train.main.
"""
import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SECRETS = {"WANDB_API_KEY": "canary-wandb-5d1f", "HF_TOKEN": "canary-hub-77aa",
           "AWS_SECRET_ACCESS_KEY": "canary-cloud-91bc",
           "https_proxy": "http://user:canary-proxy-e3@127.0.0.1:9"}
os.environ.update(SECRETS, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")

import numpy as np    # noqa: E402
import torch    # noqa: E402

import config    # noqa: E402
from trainer import data    # noqa: E402
from trainer import machine    # noqa: E402
import optim    # noqa: E402
import prepare_c4    # noqa: E402
from trainer import runs    # noqa: E402
import train    # noqa: E402
from conftest import TINY, documents, wait_for    # noqa: E402
from model import Decoder    # noqa: E402
from test_data import BROKEN    # noqa: E402
from test_train import VARIANTS, final, rewound    # noqa: E402

class Skip(Exception):
    """This machine cannot do that."""

# ---------------------------------------------------------------------------------------------------------
# Runs, in this process and in others

WORK = None        # a folder for everything
DRAW = None        # the source of all random moments
STARTED = []       # processes
MOUNTED = []       # small file systems
METRICS = []       # metrics.jsonl of the runs that were killed, for C4

def options(folder, name, *more):
    """A command line of the tiny model. A later option takes the place of an earlier one."""
    usual = [f"--config={WORK / 'tiny.toml'}", f"--runs={folder}", f"--run={name}", "--compile=false",
             "--sample_tokens=0", "--threads=1", "--device=cpu"]
    return list({option.split("=")[0]: option for option in [*usual, *more]}.values())

def call(argv, program=train):
    """(exit code, stdout, stderr) of a command line, run in this process."""
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
    assert not [name for name, secret in SECRETS.items() if secret in text], "a secret was printed"
    return text

def run(folder, name, *more):
    """A run that must end well."""
    code, out, err = call(options(folder, name, *more))
    assert code == 0, err
    return out

def refused(argv, words, code=2, program=train):
    """A command line must end with one line that holds the words."""
    got, _, err = call(argv, program)
    assert got == code, (argv, got, err)
    return one_line(err, words)

OURS = re.compile(r'File ".*/(train|runs|data|config|machine|optim|model|prepare_c4)\.py", line')

def one_line(err, words=""):
    lines = re.findall(r"(?:train|prepare_c4)\.py: error: .*", err)
    assert len(lines) == 1 and not OURS.search(err), err    # torchrun shows a traceback of its own
    assert len(lines[0]) <= 310 and lines[0].isprintable() and words in lines[0], (words, lines[0])
    return lines[0]

def same(a, b, metrics=True):
    """What differs between two finished runs: names of tensors, numbers, rows."""
    (weights, state, rows), (weights2, state2, rows2) = final(a), final(b)
    flat = [dict(w) | {(i, k): torch.as_tensor(v) for i, entry in s.items() for k, v in entry.items()}
            for w, s in ((weights, state), (weights2, state2))]
    if flat[0].keys() != flat[1].keys():
        return ["keys"]
    different = [k for k in flat[0] if flat[0][k].dtype != flat[1][k].dtype
                 or not torch.equal(flat[0][k], flat[1][k])]
    rows, rows2 = ([row for row in r if row["kind"] == "train" or row["step"]] for r in (rows, rows2))
    return different + (["metrics"] if metrics and rows != rows2 else [])

def tree(folder):
    return {path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
            for path in sorted(Path(folder).rglob("*"))}

class Process:
    """A command in a process group of its own, its output collected line by line."""
    def __init__(self, command, cwd=ROOT, env=None):
        self.process = subprocess.Popen(list(map(str, command)), cwd=cwd, text=True, errors="replace",
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        start_new_session=True, env=os.environ | (env or {}))
        STARTED.append(self)
        self.lines, self.pid = [], self.process.pid
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def text(self):
        return no_secret("".join(list(self.lines)))

    def wait_for(self, words, seconds=60):
        wait(lambda: words in self.text() or self.process.poll() is not None, seconds, lambda:
             f"{words!r} did not come: {self.text()[-2000:]}")
        return words in self.text()

    def end(self, seconds):
        """The exit code, within some seconds."""
        wait(lambda: self.process.poll() is not None, seconds,
             lambda: f"still there after {seconds} s: {self.text()[-2000:]}")
        self.reader.join(5)
        return self.process.returncode

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join(5)

    def group_is_gone(self):
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

def wait(true, seconds, message):
    assert wait_for(true, seconds), message() if callable(message) else message

def trainer(*argv):
    return Process([sys.executable, "train.py", *argv])

def inside(fault, folder, commands, ranks=0):
    """Command lines run one after another by this file in another process, or in ranks of torchrun,
    with a fault in them."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "commands.json").write_text(json.dumps(commands))
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"] if ranks else []
    return Process([sys.executable, *launcher, Path(__file__), "--inside", fault, folder])

def two_at_a_time(work, cases):
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, cases))

@contextlib.contextmanager
def small_disk(size):
    """A folder on a file system of some bytes."""
    folder = Path(tempfile.mkdtemp(dir=WORK))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        raise Skip("needs root and tmpfs")
    MOUNTED.append(folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)])
        MOUNTED.remove(folder)

def fill(folder, leave=0):
    """Takes the free space of a file system, but for some bytes."""
    with contextlib.suppress(OSError), open(folder / "filler", "ab", buffering=0) as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - leave)))

# ---------------------------------------------------------------------------------------------------------
# In the other processes: the command lines of commands.json, with a fault in one rank

def in_another_process(fault, folder):
    import torch.distributed as dist
    folder, rank = Path(folder), int(os.environ.get("RANK", 0))
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    commands = json.loads((folder / "commands.json").read_text())
    if len(commands) > 1 and "RANK" in os.environ:    # one group: torchrun's store cannot make a second
        dist.init_process_group("gloo")
        dist.init_process_group = dist.destroy_process_group = lambda *arguments, **named: None
    kind, _, victim = fault.partition("@")
    here = not victim or int(victim) == rank
    items, losses, save, step = (data.Tokens.__getitem__, Decoder.losses, runs.save_checkpoint,
                                 optim.Optimizer.step)
    reads, makers = [], []

    def broken_read(self, windows):
        reads.append(list(map(int, windows)))
        if kind == "raise" and len(reads) == 9:
            raise ValueError("boom")
        return items(self, windows)

    def broken_losses(self, x, targets, z_loss):
        objective, loss, z = losses(self, x, targets, z_loss)
        if kind == "nan-loss" and len(reads) == 9:
            return objective * float("nan"), loss * float("nan"), z
        if kind == "nan-gradient" and len(reads) == 9:
            x.register_hook(lambda gradient: gradient * float("nan"))
        return objective, loss, z

    def broken_save(path, content):
        if kind in ("slow-save", "raise-in-save"):
            Path(path).with_name(f".{Path(path).name}.1.tmp").write_bytes(b"half")
            (folder / "saving").write_text("")
            if kind == "raise-in-save":
                raise ValueError("boom")
            time.sleep(1.5)
        if kind == "full":
            raise runs.not_written(Path(path), OSError(28, "No space left on device"), 1000)
        if kind == "denied":
            raise PermissionError(13, "Permission denied", str(path))
        if kind == "folder":
            Path(path).mkdir(parents=True, exist_ok=True)
        save(path, content)

    def recording_step(self, closure=None, **sampled):
        makers[:] = [self]
        gradients = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        record.append(gradients)
        if kind == "drift" and len(record) == 9:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] += 1
        return step(self, closure, **sampled)

    record = []
    if here:
        data.Tokens.__getitem__, Decoder.losses = broken_read, broken_losses
        runs.save_checkpoint = broken_save
    if kind in ("record", "drift") and (here or kind == "record"):
        optim.Optimizer.step = recording_step
    if kind == "documents":
        prepare_c4.sotu = lambda: documents(6000)
        prepare_c4.SHARD_TOKENS, prepare_c4.BATCH = 10_000, 20_000
        return prepare_c4.main(commands[0])
    for i, command in enumerate(commands):
        record.clear(), reads.clear()
        code = train.main(command)
        if kind == "record":
            tensors = [p for group in makers[0].param_groups for p in group["params"]]
            tensors += [x for s in makers[0].state.values() for x in s.values() if torch.is_tensor(x)]
            sha256 = hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()
            torch.save(dict(gradients=record[:5], sha256=sha256, reads=list(reads)),
                       folder / f"{i}-{rank}.pt")
        if code:
            return code
    return 0

def recorded(folder, i, rank):
    return torch.load(folder / f"{i}-{rank}.pt", weights_only=True)

# ---------------------------------------------------------------------------------------------------------
# A. Exact resumes

def A1(folder):
    """looking changes nothing: intervals of logging, validating, saving"""
    for name, more in dict(a=[], b=[], c=["--eval_every=3", "--log_every=10"], d=["--eval_every=7"],
                           e=["--eval_every=0", "--save_every=10"], f=["--log_blocks", "--keep=9"]).items():
        run(folder, name, "--steps=30", *more)
        assert not same(folder / "a", folder / name, metrics=False), name
    return "6 of 6 runs equal"

def A2(folder):
    """a resume in a new process gives the same bits: every rule and option, fp32 and bf16"""
    cases = [(f"{name},{precision}", [*more, f"--precision={precision}"])
             for name, more in VARIANTS.items() for precision in ("fp32", "bf16")]
    commands = []
    for name, more in cases:
        more = [*more, "--steps=30", "--save_every=13", "--keep=9"]
        run(folder, f"whole,{name}", *more)
        rewound(folder / f"whole,{name}", folder / f"again,{name}", 13)
        commands.append(options(folder, f"again,{name}", *more, "--resume"))
    process = inside("none", folder, commands)
    assert process.end(300) == 0, process.text()[-2000:]
    assert process.text().count("resumed from") == len(cases)
    def compiled(name):
        usual = [f"--optimizer={name}", "--steps=8", "--save_every=5", "--keep=9", "--compile=true"]
        for run_name, more in ((f"whole,{name},compiled", []), (f"again,{name},compiled", ["--resume"])):
            if more:
                rewound(folder / f"whole,{name},compiled", folder / run_name, 5)
            process = inside("none", folder / run_name[:5] / name, [options(folder, run_name, *usual, *more)])
            assert process.end(200) == 0, process.text()[-2000:]
        return f"{name},compiled"
    names = [name for name, _ in cases]
    if compiler() and "--no_compile" not in sys.argv:
        names += two_at_a_time(compiled, optim.names())
    for name in names:
        different = same(folder / f"whole,{name}", folder / f"again,{name}")
        assert not different, (name, different)
    return f"{len(cases)} of {len(cases)} equal, and {len(names) - len(cases)} compiled"

def compiler():
    with contextlib.redirect_stdout(io.StringIO()):
        return train.compiler_works()

def A3(folder):
    """the comparison of A2 notices what a resume could lose"""
    noticed = 0
    def shifted(order, first, count):
        return order_call(order, first + 8, count)
    order_call, schedule = data.Order.__call__, optim.schedule
    def edit(change):
        def apply(path):
            content = torch.load(path, weights_only=True)
            for state in content["optimizer"]["state"].values():
                change(state)
            runs.save_checkpoint(path, content)
        return apply
    def no_state(state):
        for k in state:
            state[k] = 0 if k == "t" else torch.zeros_like(state[k])
    def rounded(state):
        for k in state:
            state[k] = state[k].bfloat16().float() if torch.is_tensor(state[k]) else state[k]
    mutations = dict(no_state=edit(no_state), rounded=edit(rounded),
                     step_0=edit(lambda state: state.update(t=0)), shifted=None, schedule=None)
    for name in VARIANTS:
        more = [*VARIANTS[name], "--steps=20", "--save_every=13", "--keep=9", "--precision=fp32"]
        run(folder, name, *more)
        counts = any("t" in optim.asks_for(optim.rules()[group["rule"]]) for group in
                     runs.load_checkpoint(folder / f"{name}/step-00000013.pt")["optimizer"]["param_groups"])
        for mutation, change in mutations.items():
            if mutation == "step_0" and not counts:
                continue
            copy = rewound(folder / name, folder / f"{name},{mutation}", 13)
            if change:
                change(copy / "step-00000013.pt")
            with contextlib.ExitStack() as stack:
                if mutation == "shifted":
                    stack.enter_context(mock.patch.object(data.Order, "__call__", shifted))
                if mutation == "schedule":
                    stack.enter_context(mock.patch.object(optim, "schedule", lambda t, *rest:
                                                          schedule(max(1, t - 13), *rest)))
                run(folder, copy.name, *more, "--resume")
            weights, weights2 = final(folder / name)[0], final(copy)[0]
            assert any(not torch.equal(weights[k], weights2[k]) for k in weights), (name, mutation)
            noticed += 1
    return f"{noticed} of {noticed} mutations noticed"

def A4(folder):
    """a resume after each of 12 steps, and of a finished run"""
    more = ["--save_every=1", "--keep=99"]
    run(folder, "a", *more)
    for step in range(1, 13):
        rewound(folder / "a", folder / f"at{step}", step)
        run(folder, f"at{step}", *more, "--resume")
        assert not same(folder / "a", folder / f"at{step}"), step
    before = tree(folder / "a")
    assert "already complete" in run(folder, "a", *more, "--resume") and tree(folder / "a") == before
    return "12 of 12 equal; a finished run is left alone"

def A5(folder):
    """changed settings and data are refused by name"""
    run(folder, "a", "--keep=9", "--optimizer=adamw")
    precision = json.loads((folder / "a/config.json").read_text())["precision"]
    other = "bf16" if precision == "fp32" else "fp32"
    changes = {"--layers=3": "2", "--optimizer=lion": "adamw", "--lr=0.5": "0.01", "--seed=1": "0",
               "--batch=4": "8", f"--precision={other}": precision, "--beta2=0.5": "0.95", "--clip=2": "1.0",
               "--stop_loss=9": "0.0", "--init_from=x": "", "--attention=sdpa": "plain", "--steps=13": "12",
               "--vocab_size=301": "300"}
    rewound(folder / "a", folder / "b", 10)
    before = tree(folder / "b")
    for change, old in changes.items():
        line = refused(options(folder, "b", change, "--resume"), change.split("=")[0])
        assert "was started with " + old in line or "--vocab" in line, line
    shutil.copytree(WORK / "data", folder / "data")
    shard = folder / "data/train-00000.bin"
    ids = np.fromfile(shard, "<u2", offset=data.HEADER_BYTES).astype(np.int64)
    ids[100] = (ids[100] + 1) % 256
    shard.write_bytes(shard.read_bytes()[:data.HEADER_BYTES] + ids.astype("<u2").tobytes())
    refused(options(folder, "b", f"--data={folder / 'data'}", "--verify_data", "--resume"), str(shard))
    header, body = data.shard_bytes(ids, 300)    # as if prepared again from another text of the same size
    shard.write_bytes(header + bytes(body))
    meta = json.loads((folder / "data/meta.json").read_text())
    meta["splits"]["train"]["shards"][0]["sha256"] = hashlib.sha256(body).hexdigest()
    (folder / "data/meta.json").write_text(json.dumps(meta))
    refused(options(folder, "b", f"--data={folder / 'data'}", "--resume"), "holds other tokens")
    changed = {k: v for k, v in tree(folder / "b").items() if before.get(k) != v}
    assert all(path.name == "lock" for path in changed), changed
    out = run(folder, "b", "--threads=2", "--log_every=2", "--eval_every=4", "--save_every=3", "--resume")
    assert out.count("note: threads was 1 and is 2: not bit for bit the same") == 1
    os.unlink(folder / "a/config.json")    # the checkpoint itself remembers
    rewound(folder / "a", folder / "c", 10)
    refused(options(folder, "c", "--lr=0.5", "--resume"), "--lr=0.5: this run was started with 0.01")
    return f"{len(changes) + 3} of {len(changes) + 3} refused; a warning for threads"

# ---------------------------------------------------------------------------------------------------------
# B. Checkpoints

BIG = ["--width=256", "--heads=4", "--batch=4", "--eval_every=0"]    # a checkpoint of 22 MB

def B1(folder):
    """50 kills at random moments, in and between writes of 22 MB checkpoints"""
    inside_a_write, kills, waits = [], [], [random.Random(DRAW.random()) for _ in range(2)]
    run(folder, "whole", *BIG, "--steps=400", "--save_every=0")
    def lane(number):
        place, saved = folder / f"lane{number}", 0
        for k in range(25):
            process = trainer(*options(folder, place.name, *BIG, "--steps=400", "--save_every=1", "--resume"))
            assert process.wait_for("saved "), process.text()
            time.sleep(waits[number].uniform(0, 0.6))
            process.kill()
            text = process.text()
            resumed = [int(step) for step in re.findall(r"resumed from .*step-(\d+)\.pt", text)]
            assert (resumed[0] if resumed else 0) >= saved, (resumed, saved)
            assert len(resumed) == (k > 0) and "skipped" not in text, text
            saved = max(int(step) for step in re.findall(r"saved .*step-(\d+)\.pt", text))
            kills.append(saved)
            inside_a_write.append(len(list(place.glob(".*.pt.*.tmp"))))
            assert inside_a_write[-1] <= 1, "the resume before left a temporary file"
        size = max(path.stat().st_size for path in place.glob("step-*.pt"))
        assert size >= 20e6, size
        METRICS.append((place / "metrics.jsonl").read_text())
        process = trainer(*options(folder, place.name, *BIG, "--steps=400", "--save_every=0", "--resume"))
        assert process.end(120) == 0, process.text()
        assert not list(place.glob(".*.tmp")) and not same(folder / "whole", place)
        METRICS.append((place / "metrics.jsonl").read_text())
    two_at_a_time(lane, range(2))
    assert sum(inside_a_write) >= 8, f"only {sum(inside_a_write)} kills hit a write"
    return f"{len(kills)} of 50 resumed, {sum(inside_a_write)} kills in a write"

def B2(folder):
    """the order that survives a power cut: write, fsync, replace, fsync of the folder, said, then deleted"""
    calls = []
    def spy(owner, name, label):
        real = getattr(owner, name)
        def call(*arguments, **named):
            calls.append((label, str(arguments[0]) if label != "fsync" else os.readlink(
                f"/proc/self/fd/{arguments[0]}")))
            return real(*arguments, **named)
        return mock.patch.object(owner, name, call)
    with spy(os, "fsync", "fsync"), spy(os, "replace", "replace"), spy(runs.tqdm, "write", "said"), \
            spy(Path, "unlink", "unlink"), spy(runs.torch, "save", "write"):
        run(folder, "a", "--steps=4", "--save_every=1", "--eval_every=0")
    begin = calls.index(("said", f"saved {folder / 'a/step-00000003.pt'}"))
    seen = [(label, Path(path).name) for label, path in calls[begin - 5:begin + 2]]
    temporary = seen[2][1]
    assert temporary.startswith(".step-00000003.pt."), seen
    assert seen == [("fsync", "metrics.jsonl"), ("write", seen[1][1]), ("fsync", temporary),
                    ("replace", temporary), ("fsync", "a"), ("said", "step-00000003.pt"),
                    ("unlink", "step-00000001.pt")], seen
    return " ".join(label for label, _ in seen)

def B3(folder):
    """a full disk at the first, second and third checkpoint, and in every other file"""
    more = ["--width=128", "--steps=6", "--save_every=2", "--eval_every=0"]
    run(folder, "whole", *more)
    size = (folder / "whole/step-00000006.pt").stat().st_size
    lines = []
    for nth in (1, 2, 3):
        with small_disk(int(2.5 * size)) as disk:
            if nth < 3:
                fill(disk, leave=int((nth - 0.5) * size))
            code, _, err = call(options(disk, "a", *more))
            line = one_line(err, f"step-{2 * nth:08d}.pt: could not be written: No space left on device")
            numbers = re.findall(r"([\d,]+) (?:bytes needed|free)", line)
            needed, free = (int(number.replace(",", "")) for number in numbers)
            assert code == 4 and needed >= 0.99 * size > free, (code, line)
            assert not list((disk / "a").glob(".*.tmp"))
            for step in range(2, 2 * nth, 2):
                runs.load_checkpoint(disk / f"a/step-{step:08d}.pt")
            assert json.loads((disk / "a/status.json").read_text())["status"] == "failed"
            (disk / "filler").unlink(missing_ok=True)
            subprocess.run(["mount", "-o", f"remount,size={5 * size}", str(disk)], check=True)
            run(disk, "a", *more, "--resume")
            assert not same(folder / "whole", disk / "a")
            lines.append(line)
    small = ["--steps=60", "--save_every=0", "--eval_every=0"]
    run(folder, "small", *small)
    def full_at(owner, name, count):
        real, calls = getattr(owner, name), []
        def call(*arguments, **named):
            calls.append(1)
            if len(calls) == count:
                fill(disk)
            return real(*arguments, **named)
        return mock.patch.object(owner, name, call)
    for owner, name, count, file in (
            (runs.Run, "log", 3, "metrics.jsonl"), (runs.Run, "status", 1, "status.json"),
            (train, "write_json", 1, "config.json"), (train.study, "draw_run", 1, "loss.png")):
        with small_disk(2 * size) as disk:
            with full_at(owner, name, count):
                code, _, err = call(options(disk, "a", *small))
            line = one_line(err, f"a/{file}: could not be written: No space left on device")
            assert code == 4 and "bytes needed" in line, line
            assert not list((disk / "a").glob(".*.tmp"))
            (disk / "filler").unlink()
            run(disk, "a", *small, "--resume")
            assert not same(folder / "small", disk / "a")
    return f"3 checkpoints, 4 other files; {lines[0][-60:]}"

def B4(folder):
    """truncated, flipped, foreign checkpoints are noticed, skipped and named"""
    run(folder, "a", "--keep=9")
    newest, noticed = folder / "a/step-00000012.pt", 0
    rewound(folder / "a", folder / "b", 12)
    path = folder / "b/step-00000012.pt"
    content = newest.read_bytes()
    cuts = [0, 1, 30, 64, len(content) // 2, len(content) - 1, len(content) - runs.TRAILER_BYTES] + \
        [DRAW.randrange(len(content)) for _ in range(13)]
    flips = [DRAW.randrange(8 * len(content)) for _ in range(200)]
    def flipped(bit):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("data.pkl", b"x")
    foreign = zipped.getvalue()
    signed = foreign + b"\nsha256 " + hashlib.sha256(foreign).hexdigest().encode() + b"\n"
    held = runs.Run(folder, "b", resume=True)
    for bad in [*(content[:cut] for cut in cuts), *map(flipped, flips), b"", foreign, signed, None]:
        if bad is None:
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(bad)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            step, _ = held.newest()
        assert step == 10 and f"skipped {path}" in out.getvalue(), out.getvalue()
        if noticed % 40 == 0 or bad in (b"", foreign, signed, None):
            refused(options(folder, "new", f"--init_from={path}"), str(path))
            assert not (folder / "new").exists()
        noticed += 1
    path.rmdir()
    path.write_bytes(flipped(flips[0]))
    del held
    out = run(folder, "b", "--keep=9", "--resume")
    assert f"skipped {path}" in out and not same(folder / "a", folder / "b")
    rewound(folder / "a", folder / "c", 12)
    for each in (folder / "c").glob("step-*.pt"):
        each.write_bytes(each.read_bytes()[:-1])
    before = tree(folder / "c")
    refused(options(folder, "c", "--resume"), "none of its")
    refused(options(folder, "c"), "in use")
    changed = {k.name for k, v in tree(folder / "c").items() if before.get(k) != v} - {"lock"}
    assert changed <= {"status.json"}, changed
    return f"{noticed} of {noticed} noticed"

def B5(folder):
    """the newest k checkpoints are kept, never fewer than one at any moment"""
    for keep in (2, 3):
        fewest, over, place = [99], threading.Event(), folder / f"keep{keep}"
        def watch():
            while not over.is_set():
                count = len(list(place.glob("step-*.pt")))
                if count or fewest[0] < 99:
                    fewest[0] = min(fewest[0], count)
                time.sleep(0.0005)
        watcher = threading.Thread(target=watch)
        watcher.start()
        run(folder, place.name, f"--keep={keep}", "--steps=8", "--save_every=1", "--eval_every=0")
        over.set()
        watcher.join()
        assert fewest[0] >= 1
        assert [int(path.stem[5:]) for path in sorted(place.glob("*.pt"))] == list(range(9 - keep, 9))
    for keep in (1, 0, -1):
        refused(options(folder, "none", f"--keep={keep}"), f"--keep={keep}: must be at least 2")
    unlink = Path.unlink
    def stuck(path, *arguments, **named):
        if path.name == "step-00000002.pt":
            raise PermissionError(1, "Operation not permitted", str(path))
        return unlink(path, *arguments, **named)
    with mock.patch.object(Path, "unlink", stuck):
        out = run(folder, "stuck", "--steps=8", "--save_every=1", "--eval_every=0")
    assert "note: " in out and "step-00000002.pt could not be deleted" in out
    return "2 and 3 kept; 1, 0, -1 refused; what cannot be deleted is named"

def B6(folder):
    """one process per folder; a used folder is refused; the lock of a killed process is free"""
    long = ["--steps=100000", "--save_every=50", "--eval_every=0"]
    run(folder, "done")
    before = tree(folder / "done")
    refused(options(folder, "done"), "in use")
    assert tree(folder / "done") == before
    first = trainer(*options(folder, "a", *long))
    assert first.wait_for("saved ")
    def went_on(*arguments):
        raise AssertionError("a second process went on in the folder of the first")
    with mock.patch.object(runs.Run, "rewind", went_on):
        for more in ([], ["--resume"], ["--overwrite"]):
            refused(options(folder, "a", *long, *more), "another process" if more else "in use")
    refused(options(folder, "new", "--vocab_size=299"), "has 300")
    assert not (folder / "new").exists()
    mark = len(first.lines)
    wait(lambda: len(first.lines) > mark, 60, "the first process stands still")
    first.kill()
    second = trainer(*options(folder, "a", *long, "--resume"))
    assert second.wait_for("resumed from")
    second.kill()
    return "5 of 5 refused, the first went on, the lock was free after its kill"

# ---------------------------------------------------------------------------------------------------------
# C. Signals, sweeps, logs

def C1(folder):
    """20 signals and 5 pairs of signals at random moments, in steps, validations and writes"""
    more = ["--width=64", "--steps=3000", "--eval_every=2", "--eval_windows=50", "--save_every=3",
            "--log_every=1", "--final_windows=55"]
    numbers, longest = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), []
    waits = [random.Random(DRAW.random()) for _ in range(2)]
    def lane(number):
        place = folder / f"lane{number}"
        for k in range(12 + number):
            process = trainer(*options(folder, place.name, *more, "--resume"))
            assert process.wait_for("validation loss"), process.text()
            time.sleep(waits[number].uniform(0, 0.5))
            begun = time.monotonic()
            os.kill(process.pid, numbers[k % 3])
            if k % 5 == 4:
                time.sleep(0.05)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, numbers[(k + 1) % 3])
            assert process.end(10) == 75, process.text()
            longest.append(time.monotonic() - begun)
            status = json.loads((place / "status.json").read_text())
            newest = max(int(path.stem[5:]) for path in place.glob("step-*.pt"))
            assert status["status"] == "interrupted" and status["step"] == newest, (status, newest)
            one_line(process.text(), f"interrupted at step {newest}")
            METRICS.append((place / "metrics.jsonl").read_text())
        return place
    for place in two_at_a_time(lane, range(2)):
        rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        done = json.loads((place / "status.json").read_text())["step"]
        newest = runs.load_checkpoint(place / f"step-{done:08d}.pt")
        if not (folder / "whole").exists() or not (folder / f"whole/step-{done:08d}.pt").exists():
            whole = ["--save_every=1", "--keep=9999", *[o for o in more if "save_every" not in o]]
            stop_at(folder, "whole", whole, done)
        reference = runs.load_checkpoint(folder / f"whole/step-{done:08d}.pt")
        assert all(torch.equal(newest["model"][k], reference["model"][k]) for k in reference["model"])
        def losses(rows):
            return [(row["kind"], row["step"], row["loss"]) for row in rows if "loss" in row]
        theirs = [json.loads(line) for line in (folder / "whole/metrics.jsonl").read_text().splitlines()]
        mine = losses(rows)
        assert mine and mine == losses(theirs)[:len(mine)]
    return f"25 of 25 saved and left within {max(longest):.1f} s, same bits as without"

def stop_at(folder, name, more, step):
    """A run that a signal ends at a step."""
    log = runs.Run.log
    def logged(self, kind, now, **numbers):
        log(self, kind, now, **numbers)
        if kind == "train" and now == step:
            os.kill(os.getpid(), signal.SIGTERM)
    shutil.rmtree(folder / name, ignore_errors=True)
    with mock.patch.object(runs.Run, "log", logged):
        code, _, err = call(options(folder, name, *more))
    assert code == 75, err

RANKED = ["--batch=8", "--micro_batch=4", "--steps=100000", "--save_every=5", "--eval_every=0",
          "--timeout=20"]

def pids(folder, ranks=2):
    files = [folder / f"pid-{rank}" for rank in range(ranks)]
    wait(lambda: all(file.exists() and file.read_text() for file in files), 60, "the ranks did not start")
    return [int(file.read_text()) for file in files]

def all_gone(process, numbers, seconds):
    begun = time.monotonic()
    process.end(seconds)
    wait(process.group_is_gone, 5, "processes are left behind")
    for number in numbers:
        assert not Path(f"/proc/{number}").exists(), f"process {number} is left behind"
    return time.monotonic() - begun

def C2(folder):
    """two ranks, a signal to torchrun, to rank 1 alone, to rank 0 alone"""
    def case(who):
        place = folder / str(who)
        process = inside("none", place, [options(place, "a", *RANKED)], ranks=2)
        assert process.wait_for("saved "), process.text()
        numbers = pids(place)
        os.kill(process.pid if who == "torchrun" else numbers[who], signal.SIGTERM)
        seconds = all_gone(process, numbers, 30)
        status = json.loads((place / "a/status.json").read_text())
        newest = sorted((place / "a").glob("step-*.pt"))[-1]
        assert status["status"] == "interrupted" and int(newest.stem[5:]) == status["step"], process.text()
        runs.load_checkpoint(newest)
        return seconds
    took = two_at_a_time(case, ["torchrun", 1, 0])
    return f"3 of 3 stopped as one, within {max(took):.1f} s"

def C3(folder):
    """a sweep of 6 runs, one diverges, killed 10 times, ends with the same table"""
    for path in [ROOT / "sweep.sh", *ROOT.glob("*.py")]:
        shutil.copy(path, folder / path.name)
    shutil.copytree(ROOT / "zoo", folder / "zoo")
    command = ["bash", "sweep.sh", "grid", WORK / "tiny.toml", "optimizer=sgd,adamw,signum", "lr=1e-3,1e12",
               "--", "--compile=false", "--threads=1", "--save_every=2", "--device=cpu", "--precision=auto",
               "--z_loss=0"]
    environment = dict(PYTHON=sys.executable)
    def table():
        rows = []
        for path in sorted((folder / "runs").glob("*/status.json")):
            status = json.loads(path.read_text())
            rows.append((path.parent.name, status["status"], status["step"], status.get("loss")))
        return json.dumps(rows)
    whole = Process(command, folder, environment)
    assert whole.end(120) == 0, whole.text()
    expected = table()
    assert expected.count('"diverged"') >= 1 and expected.count('"done"') >= 3, expected
    shutil.rmtree(folder / "runs")
    for k in range(10):
        process = Process(command, folder, environment)
        process.wait_for(": starting", 30)
        time.sleep(DRAW.uniform(0.5, 8.0))
        process.kill()
        wait(process.group_is_gone, 10, "the sweep's child is left behind")
    ended = {path.parent: tree(path.parent) for path in (folder / "runs").glob("*/status.json")
             if json.loads(path.read_text())["status"] in ("done", "diverged")}
    assert ended, "no run had ended when the sweep was killed"
    last = Process(command, folder, environment)
    assert last.end(180) == 0, last.text()
    assert table() == expected, (table(), expected)
    assert last.text().count("already") == len(ended)
    assert all(tree(path) == files for path, files in ended.items())
    for path in (folder / "runs").glob("*/metrics.jsonl"):
        METRICS.append(path.read_text())
    fails = Process([*command[:4], "init_from=nowhere.pt", *command[6:]], folder, environment)
    assert fails.end(60) == 1 and "failed: tiny,init_from=nowhere.pt" in fails.text(), fails.text()
    return f"the same 6 rows after 10 kills; {len(ended)} ended runs untouched; a failed one listed"

def C4(folder):
    """metrics.jsonl after kills: whole lines, each kind and step once"""
    run(folder, "a", "--keep=9")
    rewound(folder / "a", folder / "b", 10)
    with open(folder / "b/metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 13, "lo')
    run(folder, "b", "--resume", "--keep=9")
    assert not same(folder / "a", folder / "b")
    texts, rows = [*METRICS, (folder / "b/metrics.jsonl").read_text()], 0
    for text in texts:
        whole, torn = text[:text.rfind("\n") + 1], text[text.rfind("\n") + 1:]
        lines = [json.loads(line) for line in whole.splitlines()]
        keys = [(line["kind"], line["step"]) for line in lines]
        steps = [step for kind, step in keys if kind == "train"]
        assert len(set(keys)) == len(keys) and steps == sorted(steps), keys
        rows += len(lines)
    return f"{len(texts)} logs, {rows} lines"

# ---------------------------------------------------------------------------------------------------------
# D. Data

def D1(folder):
    """broken shards are refused at the start, in one line with file and reason"""
    for i, (change, words) in enumerate(BROKEN.values()):
        place = folder / f"data{i}"
        shutil.copytree(WORK / "data", place)
        path = place / "train-00000.bin"
        change(path, path.read_bytes())
        line = refused(options(folder, "a", f"--data={place}"), words)
        assert str(path) in line and not (folder / "a").exists()
    refused(options(folder, "a", "--context=100000"), "lower --context")
    count = len(BROKEN) + 1
    if os.getuid() == 0:    # root may read everything: so as another user
        path = folder / "data0/val-00000.bin"
        for parent in (WORK, folder, path.parent):
            parent.chmod(0o755)
        path.chmod(0)
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                os.setuid(65534)
                with contextlib.suppress(config.UserError):
                    data.open_shard(path, {}, 300)
                    os._exit(1)
                code = 0
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0, "a shard that may not be read"
        count += 1
    return f"{count} of {count} refused"

def D2(folder):
    """ids outside the vocabulary, vocabularies that do not agree"""
    for value in (300, 65535):
        place = folder / str(value)
        shutil.copytree(WORK / "data", place)
        path = place / "train-00000.bin"
        content = bytearray(path.read_bytes())
        middle = data.HEADER_BYTES + 2 * 5000
        content[middle:middle + 2] = value.to_bytes(2, "little")
        path.write_bytes(content)
        line = refused(options(folder, f"a{value}", f"--data={place}", "--steps=400", "--eval_every=0"),
                       f"train-00000.bin: token 5000 is {value}")
        status = json.loads((folder / f"a{value}/status.json").read_text())
        assert status["status"] == "failed" and status["message"] in line
    refused(options(folder, "b", "--vocab_size=299"), "--vocab_size=299")
    refused(options(folder, "b", "--vocab_size=301"), "--vocab_size=301")
    place = folder / "mixed"
    shutil.copytree(WORK / "data", place)
    BROKEN["other vocabulary"][0](place / "val-00000.bin", (place / "val-00000.bin").read_bytes())
    refused(options(folder, "b", f"--data={place}"), "vocabulary of 299")
    assert not (folder / "b").exists()
    return "5 of 5"

def D3(folder):
    """preparation: 10 kills, a full disk, a source that ends early, ids that do not fit, two at once"""
    def command(place):
        return ["--vocab=400", f"--out={place}"]
    begun = time.monotonic()
    whole = inside("documents", folder / "w", [command(folder / "whole")])
    assert whole.end(120) == 0, whole.text()
    seconds, partial = time.monotonic() - begun, 0
    for k in range(10):
        process = inside("documents", folder / f"k{k}", [command(folder / "killed")])
        wait((folder / f"k{k}/pid-0").exists, 60, "it did not start")
        time.sleep(DRAW.uniform(0, max(0.5, seconds - 2)))
        process.kill()
        assert not (folder / "killed/meta.json").exists() or tree_hash(folder / "killed") == \
            tree_hash(folder / "whole")
        for path in (folder / "killed").glob("*.bin"):
            assert path.read_bytes() == (folder / "whole" / path.name).read_bytes()
            partial += 1
        if (folder / "killed/meta.json").exists():
            shutil.rmtree(folder / "killed")
    last = inside("documents", folder / "last", [command(folder / "killed")])
    assert last.wait_for("", 1) and pids(folder / "last", 1)
    wait((folder / "killed/lock").exists, 60, "no lock")
    wait(lambda: runs.lock(folder / "killed/lock") is None, 60, "the lock is not taken")
    refused(command(folder / "killed"), "another process", 4, prepare_c4)
    assert last.end(120) == 0 and tree_hash(folder / "killed") == tree_hash(folder / "whole"), last.text()
    with mock.patch.object(prepare_c4, "sotu", lambda: documents(600)), small_disk(120_000) as disk:
        line = refused(["--vocab=300", f"--out={disk / 'd'}"], "No space left on device", 4, prepare_c4)
        assert "bytes needed" in line and not list((disk / "d").glob("train-*.bin"))
        assert not (disk / "d/meta.json").exists() and not list((disk / "d").glob(".*.tmp"))
    read = Path.read_bytes
    def cut(path):
        return read(path)[:-1] if path.suffix == ".txt" else read(path)
    with mock.patch.object(Path, "read_bytes", cut):
        refused(command(folder / "early"), "another sha256", 4, prepare_c4)
    assert not list((folder / "early").glob("*.bin"))
    (folder / "wide").mkdir()
    for value in (65536, 70000, -1):
        try:
            entry = dict(tokens=0, bytes=0, documents=0, shards=[])
            prepare_c4.write_split(folder / "wide", "train", entry, [(["a"], (1, 0, 1))],
                                   lambda texts: [np.array([value])], 65536, 0, False, lambda: None)
            raise AssertionError("an id was wrapped")
        except config.UserError:
            assert not list((folder / "wide").iterdir())
    assert partial, "no kill came between two shards"
    return f"10 kills, {partial} shards, all whole and equal"

def tree_hash(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != "lock"}

# ---------------------------------------------------------------------------------------------------------
# E. What is not finite

def E1(folder):
    """NaN and infinity in one gradient or the loss, at step 7: every rule, before the update"""
    losses, make, count = Decoder.losses, optim.make, 0
    for name, variant in VARIANTS.items():
        for clip in ("1", "0"):
            usual = [*variant, f"--clip={clip}", "--save_every=6", "--final_windows=5", "--eval_every=0",
                     "--steps=8"]
            if clip == "0":    # else SGD ends by itself
                usual += ["--lr=1e-3"] + ["--rest_lr=1e-3"] * ("--rest" in str(variant))
            clean = f"{name},{clip}"
            run(folder, clean, *usual)
            good = runs.load_checkpoint(folder / clean / "step-00000006.pt")
            for value in (float("nan"), float("inf"), -float("inf")):
                for where in ("loss", "gradient"):
                    calls, made = [], []
                    def broken(self, x, targets, z_loss):
                        calls.append(self)
                        objective, loss, z = losses(self, x, targets, z_loss)
                        if len(calls) == 7 and where == "loss":
                            return objective + value, loss + value, z
                        if len(calls) == 7:
                            def one(gradient):
                                gradient = gradient.clone()
                                gradient.view(-1)[5] = value
                                return gradient
                            self.head.weight.register_hook(one)
                        return objective, loss, z
                    def making(*arguments, **named):
                        made.append(make(*arguments, **named))
                        return made[0]
                    case = f"{name},{clip},{value},{where}"
                    with mock.patch.object(Decoder, "losses", broken), \
                            mock.patch.object(optim, "make", making), \
                            mock.patch.object(train.study, "draw_run", lambda *arguments: None):
                        line = refused(options(folder, case, *usual), "step 7: the ", 3)
                    assert ("the loss" if where == "loss" else "the gradient norm") in line, line
                    assert where == "loss" or "head.weight" in line, line
                    weights, state = calls[0].state_dict(), made[0].state_dict()["state"]
                    assert all(torch.equal(weights[k], v) for k, v in good["model"].items()), case
                    for i, entry in good["optimizer"]["state"].items():
                        assert all(torch.equal(torch.as_tensor(state[i][k]), torch.as_tensor(v))
                                   for k, v in entry.items()), case
                    newest = sorted((folder / case).glob("*.pt"))[-1]
                    assert newest.name == "step-00000006.pt"
                    assert json.loads((folder / case / "status.json").read_text())["status"] == "diverged"
                    shutil.rmtree(folder / case)
                    count += 1
    return f"{count} of {count} stopped before the update"

def E2(folder):
    """NaN on rank 1 alone: both ranks stop at the same step"""
    def case(fault):
        place = folder / fault
        process = inside(f"{fault}@1", place, [options(place, "a", *RANKED)], ranks=2)
        numbers = pids(place)
        process.wait_for("train.py: error")
        seconds = all_gone(process, numbers, 20)
        line = one_line(process.text(), "step 9: the ")
        assert ("on rank 1" in line) == (fault == "nan-loss"), line
        status = json.loads((place / "a/status.json").read_text())
        assert status["status"] == "diverged" and status["step"] == 9
        assert sorted((place / "a").glob("*.pt"))[-1].name == "step-00000005.pt"
        return seconds
    took = two_at_a_time(case, ["nan-loss", "nan-gradient"])
    return f"2 of 2, gone after {max(took):.1f} s"

def E3(folder):
    """a learning rate of 1e3 with --stop_loss: a result, with its last loss, and not tried again"""
    for name in optim.names():
        more = [f"--optimizer={name}", "--lr=1e3", "--stop_loss=30", "--steps=40"]
        line = refused(options(folder, name, *more), "step ", 3)
        status = json.loads((folder / name / "status.json").read_text())
        assert status["status"] == "diverged" and 0 < status["loss"] <= 30 and status["step"] < 40, line
        before = tree(folder / name)
        refused(options(folder, name, *more, "--resume"), "diverged at step", 3)
        assert tree(folder / name) == before
    return f"{len(optim.names())} of {len(optim.names())}"

# ---------------------------------------------------------------------------------------------------------
# F. Ranks

def F1(folder):
    """2 ranks x 1 micro-batch and 1 process x 2: the same gradients, weights and state"""
    cases = [(name, precision) for name in VARIANTS for precision in ("fp32", "bf16")]
    def commands(place, micro):
        return [options(place, f"{name},{precision}", *VARIANTS[name], f"--precision={precision}",
                        "--steps=20", f"--micro_batch={micro}", "--save_every=0", "--eval_every=0",
                        "--final_windows=5")
                for name, precision in cases]
    def start(ranks):
        place = folder / f"ranks{ranks}"
        finer = options(place, "finer", "--precision=fp32", "--steps=1", "--micro_batch=2", "--eval_every=0")
        process = inside("record", place, [*commands(place, 4), finer], ranks=ranks)
        assert process.end(400) == 0, process.text()[-3000:]
        return place
    one, two = two_at_a_time(start, (0, 2))
    for i, case in enumerate(cases):
        a, b = recorded(one, i, 0), recorded(two, i, 0)
        assert len(a["gradients"]) == 5
        for gradients, gradients2 in zip(a["gradients"], b["gradients"], strict=True):
            assert all(map(torch.equal, gradients, gradients2)), case
        assert a["sha256"] == b["sha256"], case
    a, b = (torch.cat([g.flatten() for g in recorded(place, len(cases), 0)["gradients"][0]])
            for place in (one, two))
    difference = ((a - b).norm() / a.norm()).item()
    assert difference <= 1e-6
    F1.place = two
    return f"{len(cases)} of {len(cases)} equal; 1 x 4 and 2 x 2 differ by {difference:.1e}"

def F2(folder):
    """both ranks hold the same bits after 20 steps; the trainer notices where they do not"""
    place = getattr(F1, "place", None)
    if not place:
        F1(folder)
        place = F1.place
    count = len(list(place.glob("*-1.pt")))
    for i in range(count):
        assert recorded(place, i, 0)["sha256"] == recorded(place, i, 1)["sha256"], i
    drift = folder / "drift"
    process = inside("drift@1", drift, [options(drift, "a", *RANKED)], ranks=2)
    process.end(60)
    one_line(process.text(), "step 10: the ranks no longer hold the same weights and state")
    assert [p.name for p in (drift / "a").glob("*.pt")] == ["step-00000005.pt"]
    return f"{count} of {count} equal; a drift was noticed at the next checkpoint"

def F3(folder):
    """1 rank, then 2, then 1, and 2, 1, 2: the same samples and bits; 3 ranks for a batch of 8"""
    usual = ["--batch=8", "--micro_batch=4", "--steps=15", "--keep=9", "--save_every=5", "--eval_every=0"]
    run(folder, "whole", *usual)
    def chain(worlds):
        name = "".join(map(str, worlds))
        source, reads = folder / "whole", {}
        for k, world in enumerate(worlds):
            place = folder / f"{name},{k}"
            if k:
                shutil.copytree(previous / "a", place / "a")
                for path in (place / "a").glob("step-*.pt"):
                    if int(path.stem[5:]) > 5 * k:
                        path.unlink()
                runs.write_json(place / "a/status.json", dict(status="running"))
            command = options(place, "a", *usual, *(["--resume"] if k else []))
            process = inside("record", place, [command], ranks=world if world > 1 else 0)
            assert process.end(60) == 0, process.text()[-2000:]
            assert not k or "not bit for bit" not in process.text(), process.text()
            lists = [recorded(place, 0, rank)["reads"] for rank in range(world)]
            for step in range(5 * k + 1, 5 * k + 6):
                at = (step - 5 * k - 1) * (2 // world)
                reads[step] = sum((mine[at + j] for mine in lists for j in range(2 // world)), [])
            previous = place
        order = data.Order(len(data.Tokens(WORK / "data", "train", 16)), 0)
        assert all(reads[step] == order(8 * (step - 1), 8) for step in range(1, 16)), name
        weights, state, _ = final(previous / "a")
        weights2, state2, _ = final(source)
        assert all(torch.equal(weights[k], weights2[k]) for k in weights), name
        assert all(torch.equal(torch.as_tensor(state[i][k]), torch.as_tensor(state2[i][k]))
                   for i in state for k in state[i]), name
    two_at_a_time(chain, [(1, 2, 1), (2, 1, 2)])
    three = inside("none", folder / "three", [options(folder / "three", "a", *usual)], ranks=3)
    three.end(60)
    one_line(three.text(), "--batch=8: must divide among 3 ranks; try 6 or 9")
    assert not (folder / "three/a").exists()
    return "2 of 2 chains with the same samples and bits; 3 ranks refused"

def F4(folder):
    """a rank is killed, fails or hangs, in a step or a save: all leave, one line names rank and cause"""
    def case(what):
        (action, rank), moment = what[:2], what[2]
        place = folder / f"{action}{rank},{moment}"
        fault = {"step": "raise@1" if action == "raise" else "none",
                 "save": "raise-in-save@0" if action == "raise" else "slow-save@0"}[moment]
        process = inside(fault, place, [options(place, "a", *RANKED)], ranks=2)
        numbers = pids(place)
        if moment == "step" and action != "raise":
            assert process.wait_for("saved "), process.text()
        if moment == "save":
            wait((place / "saving").exists, 60, "no save")
        if action in ("kill", "stop"):
            os.kill(numbers[rank], signal.SIGKILL if action == "kill" else signal.SIGSTOP)
        else:
            process.wait_for("train.py: error")
        seconds = all_gone(process, numbers, 60 if action == "stop" else 30)
        lines = re.findall(r"train\.py: error: .*", process.text())
        cause = "ValueError: boom" if action == "raise" else f"no answer from rank {rank}"
        assert process.process.returncode and lines, process.text()
        assert all(f"rank {rank}" in line and cause in line for line in lines), lines
        for path in (place / "a").glob("step-*.pt"):
            runs.load_checkpoint(path)
        if moment == "step" and action != "raise":
            assert list((place / "a").glob("step-*.pt"))
        return action, seconds
    stops = [("stop", 1, "step"), ("stop", 1, "save")]
    others = [(action, rank, moment) for moment in ("step", "save")
              for action, rank in (("kill", 1), ("kill", 0), ("raise", 1 if moment == "step" else 0))]
    with ThreadPoolExecutor(4) as pool:    # those that are stopped only wait
        slow = [pool.submit(case, what) for what in stops]
        took = two_at_a_time(case, others)
        took += [each.result() for each in slow]
    longest = {action: max(s for a, s in took if a == action) for action in ("kill", "raise", "stop")}
    return "8 of 8; gone after " + ", ".join(f"{s:.0f} s ({a})" for a, s in longest.items())

def F5(folder):
    """rank 0 alone fails while it saves: both end in time with the same code"""
    def case(what):
        fault, words = what
        place = folder / fault
        process = inside(f"{fault}@0", place, [options(place, "a", *RANKED)], ranks=2)
        numbers = pids(place)
        process.wait_for("train.py: error")
        seconds = all_gone(process, numbers, 30)
        lines = re.findall(r"train\.py: error: .*", process.text())
        codes = set(re.findall(r"exitcode *: *(-?\d+)", process.text()))
        assert lines and all("rank 0: " in line and words in line for line in lines), process.text()
        assert codes - {"-15"} == {"4"}, codes    # torchrun's signal may come while Python already ends
        assert not OURS.search(process.text()), process.text()
        assert json.loads((place / "a/status.json").read_text())["status"] == "failed"
        return seconds
    took = two_at_a_time(case, [("full", "No space left"), ("denied", "Permission denied"),
                                ("folder", "directory")])
    return f"3 of 3, gone after {max(took):.1f} s"

# ---------------------------------------------------------------------------------------------------------
# G. Options and security

class Accepted(BaseException):
    """A run came as far as its folder."""

def accepted(argv):
    """None if a command line is refused, in one line; the options if it comes as far as the run's folder."""
    kept = []
    def read(*arguments):
        kept[:] = real(*arguments)
        return tuple(kept)
    def stop(*arguments):
        raise Accepted
    real = train.read_options
    with mock.patch.object(train, "read_options", read), mock.patch.object(train, "Run", stop):
        try:
            code, out, err = call(argv)
        except Accepted:
            return vars(kept[0]) | kept[1], ""
        except SystemExit as left:
            assert left.code == 0 and "--help" in argv or "-h" in argv
            return None, "help"
    assert code in (2, 4), (argv, code, err)
    return None, one_line(err)

ODD = ["", "nan", "inf", "-inf", "1e309", "-1", "0", "0x10", "1_000", "1,5", "True", "yes", "1" * 400, "'",
       '"', "\x07", "\x1b[2J", "\u202e", "🙂", "1e3", "1.0", " 5", "5 ", "+5", "--", "None", "true",
       "false", "3", "0.5", "٣", "{}",
       "$(touch x)", "../x", "head", "lion", "99999999999999999999", "1e-400", "-0", "-0.0", "٠.٥"]

def oracle(field, text):
    """What a text should be as a value of an option; None: refused."""
    limits = field.metadata
    number = re.fullmatch(r"\s*[+-]?\d{1,30}\s*" if field.type is int else
                          r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", text, re.A)
    if field.type is bool:
        return dict(true=True, false=False).get(text)
    if field.type is str:
        return text if not limits["choices"] or text in limits["choices"] else None
    if not number or len(text) >= 40 or not text.isascii():
        return None
    value = field.type(text)
    if value in (float("inf"), -float("inf")) or field.type is int and abs(value) >= 2**53:
        return None
    low, high = limits["low"], limits["high"]
    return value if (low is None or value >= low) and (high is None or value <= high) else None

def G1(folder):
    """500 made-up command lines and files: one line that names the key, or the value that an oracle gives"""
    fields, before, took, refusals = train.Config.__dataclass_fields__, tree(folder), 0, 0
    given = ("config", "runs", "resume", "run", "init_from", "compile", "device", "data", "prepare", "plan",
             "verify_data", "overwrite")
    names = [name for name in fields if name not in given]
    for case in range(350):
        name = DRAW.choice(names)
        kind = case % 7
        text = DRAW.choice(ODD)
        usual = options(folder, "x", "--steps=3")
        if kind == 0:    # a typo
            at = DRAW.randrange(len(name))
            wrong = name[:at] + DRAW.choice("qj".replace(name[at], "")) + name[at + 1:]
            argv, key = [*usual, f"--{wrong}=1"], wrong
        elif kind == 1:
            argv, key = [*usual, f"--{name}", "3", f"--{name}=3"], name
        elif kind == 2:
            argv, key = [*usual, f"--{name}"], name
        elif kind == 3:
            argv, key = [*usual, DRAW.choice(["--", "-", "-x", "stray", "=", "--=1", "-run=5", "🙂"])], ""
        else:
            argv = [o for o in usual if not o.startswith(f"--{name}=")]
            argv, key = argv + ([f"--{name}={text}"] if kind < 6 else [f"--{name}", text]), name
        values, line = accepted(argv)
        if kind == 0:
            assert values is None and f"--{wrong}: no such option" in line, (argv, line)
            assert "did you mean" in line or len(name) < 5, (argv, line)
        if kind in (1, 3):
            assert values is None, argv
        if kind >= 4 and not (kind == 6 and text.startswith("-")):
            expected = oracle(fields[name], text)
            if values is None:
                combined = expected is not None    # fine by itself, so it must not fit the others
                assert key in line or combined, (argv, line)
            else:
                wished = values[name]
                assert expected is not None and (wished == expected or expected in (0, "auto") or
                                                 name == "micro_batch"), (argv, wished, expected)
        took, refusals = took + 1, refusals + (values is None)
    text = TINY.format(data=WORK / "data")
    for case in range(150):
        lines, content = text.splitlines(), text.encode()
        kind, at = case % 15, DRAW.randrange(len(text))
        key = DRAW.choice([line.split(" = ")[0] for line in lines if " = " in line and "data" not in line])
        changed = {
            0: content[:at], 1: content[:at] + bytes([DRAW.randrange(256)]) + content[at + 1:],
            2: b"\xef\xbb\xbf" + content, 3: content.replace(b"\n", b"\r\n"),
            4: content + f"{key} = 1\n{key} = 2\n".encode(),
            5: content.replace(f"{key} = ".encode(), b"x = ", 1),
            6: content.replace(f"{key} = ".encode(), f"{key} = '".encode()).replace(b"\n\n[lr", b"'\n\n[lr"),
            7: content + b"[deep]\na = " + b"[" * DRAW.randrange(1, 3000), 8: content + b"# " + b"x" * 10**6,
            9: DRAW.randbytes(300), 10: content + b"\xff\xfe", 11: content + b"[train.x]\ny = 1\n",
            12: content + DRAW.choice([b"[expect]\nadamw = 5\n", b"[hyper]\nadamw = 5\n",
                                       b"[expect]\nx = {}\n",
                                       b"[hyper.adamw]\nbeta1 = 'x'\n", b"[hyper.adamw]\nbeta1 = true\n",
                                       b"[expect]\nadamw = {loss = 'x', tolerance = 1}\n",
                                       b"[hyper.nix]\na = 1\n", b"[rest_lr]\nadamw = [1]\n",
                                       b"[expect]\nadamw = {loss = 1}\n"]),
            13: re.sub(rb"(\w+) = 1e-2", DRAW.choice([rb"\1 = 1979-05-27", rb"\1 = -1", rb"\1 = nan",
                                                      rb"\1 = {}", rb"\1 = 0x10"]), content),
            14: b"import os; os.system('touch x')\n" + content}[kind]
        path = folder.parent / "fuzz.toml"
        path.write_bytes(changed)
        values, line = accepted(options(folder, "x", f"--config={path}"))
        assert values or line.startswith("train.py: error: "), line
        if kind in (2, 4, 5, 7, 9, 10, 11, 12, 14):
            assert values is None, (kind, changed[-300:])
        if kind in (3, 8):
            assert values, line
        took, refusals = took + 1, refusals + (values is None)
    for argv, words in ((["--heads=3"], "--heads=3"), (["--batch=8", "--micro_batch=3"], "--micro_batch=3"),
                        (["--warmup=1.5"], "--warmup=1.5"), (["--width=999999999"], "--width"),
                        (["--batch=4503599627370496"], "--batch"),
                        (["--timeout=9007199254740991"], "--timeout"),
                        (["--layers=99999999"], "--layers"), (["--runs=/proc/x"], "/proc/x")):
        values, line = accepted(options(folder, "x", *argv)) if "--runs" not in argv[0] else \
            (None, one_line(call(options(folder, "x", *argv))[2]))
        assert values is None and words in line, (argv, line)
    assert tree(folder) == before, "something was written"
    return f"{took} cases, {refusals} refused, 0 tracebacks"

def G2(folder):
    """nothing in a config, a checkpoint or the data is ever run"""
    import ast
    canary = folder / "canary"
    code = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    for text in (code, f"x = !!python/object/apply:os.system ['touch {canary}']",
                 f'[train]\noptimizer = "{code}"', f"[train]\nsteps = {code}"):
        (folder / "c.toml").write_text(text)
        assert accepted(options(folder, "x", f"--config={folder / 'c.toml'}"))[0] is None
    refused(options(folder, code), "--run")
    for option in ("optimizer", "lr", "rows", "steps"):
        assert accepted(options(folder, "x", f"--{option}={code}"))[0] is None
    bomb = b"cbuiltins\nexec\n(S" + repr(code).encode() + b"\ntR."    # a pickle that runs it
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("archive/data.pkl", bomb)
        file.writestr("archive/version", "3\n")
    for content in (bomb, zipped.getvalue()):
        path = folder / "bomb.pt"
        path.write_bytes(content + b"\nsha256 " + hashlib.sha256(content).hexdigest().encode() + b"\n")
        refused(options(folder, "x", f"--init_from={path}"), str(path))
    shutil.copytree(WORK / "data", folder / "data")
    for name in ("meta.pkl", "meta.json"):
        (folder / "data" / name).write_bytes(bomb)
    refused(options(folder, "x", f"--data={folder / 'data'}"), "meta.json")
    assert not canary.exists() and not (folder / "x").exists()
    loads = 0
    for path in ROOT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                assert not {"pickle", "marshal", "shelve", "yaml", "dill"} & names, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert called not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), path
                assert keywords.get("shell") != "True" and keywords.get("weights_only") != "False", path
                if called == "torch.load":
                    loads += 1
                    assert keywords["weights_only"] == "True", path
    assert tuple(map(int, torch.__version__.split("+")[0].split("."))) >= (2, 10)
    content = runs.load_checkpoint(sorted(made(folder).glob("*.pt"))[-1])
    def plain(x):
        if isinstance(x, dict):
            return all(type(k) in (str, int) and plain(v) for k, v in x.items())
        kinds = (str, int, float, bool, type(None), torch.Tensor)
        return all(map(plain, x)) if type(x) is list else type(x) in kinds
    assert plain({k: dict(v) if k == "model" else v for k, v in content.items()})
    return f"11 canaries silent; {loads} torch.load; only plain things in a checkpoint"

def made(folder):
    run(folder, "made")
    return folder / "made"

def G3(folder):
    """names of runs stay inside the folder of runs"""
    inner = folder / "runs"
    inner.mkdir()
    (folder / "elsewhere").mkdir()
    (inner / "link").symlink_to(folder / "elsewhere")
    (inner / "dangling").symlink_to(folder / "nowhere")
    before = tree(folder)
    names = ["../../x", "/tmp/x", "a/b", "x" * 300, "-x", "a\nb", ".", "..", ".hidden", "a\0b", "a b", "é",
             "link", "dangling", "~"]
    for name in names:
        line = refused(options(inner, name), "run")
        assert "--run" in line
    (folder.parent / "named.toml").write_text("run = '../x'\n[train]\nruns = '..'\n")
    refused(options(inner, "x", f"--config={folder.parent / 'named.toml'}"), "run")
    assert tree(folder) == before
    return f"{len(names) + 1} of {len(names) + 1} refused, nothing written"

def G4(folder):
    """no secret in any output or file, no network, no socket"""
    leaks, files = 0, 0
    personal = [os.uname().nodename, str(Path.home()) + "/"] if len(os.uname().nodename) > 4 else \
        [str(Path.home()) + "/"]    # a short name may come by chance
    for path in WORK.rglob("*"):
        if path.is_file() and path.stat().st_size < 3e7:
            content, files = path.read_bytes(), files + 1
            leaks += any(secret.encode() in content for secret in SECRETS.values())
    content = sorted(made(folder).glob("*.pt"))[-1].read_bytes()
    assert not leaks and not [word for word in personal if word.encode() in content]
    script = ("import sys; opened = []\n"
              "sys.addaudithook(lambda event, _: event.startswith('socket.') and opened.append(event))\n"
              "import train; code = train.main(sys.argv[1:])\n"
              "import os; links = [os.readlink('/proc/self/fd/' + f) for f in os.listdir('/proc/self/fd') "
              "if os.path.exists('/proc/self/fd/' + f)]\n"
              "print('sockets', opened, [x for x in links if x.startswith('socket')]); sys.exit(code)")
    prefix = ["unshare", "-n"] if not os.getuid() and shutil.which("unshare") else []
    for more in (["--steps=5", "--save_every=3"], ["--steps=5", "--resume"]):
        process = Process([*prefix, sys.executable, "-c", script, *options(folder, "alone", *more)])
        assert process.end(60) == 0 and "sockets [] []" in process.text(), process.text()[-1500:]
        if "--resume" not in more:
            rewound(folder / "alone", folder / "copy", 3)
            shutil.rmtree(folder / "alone")
            (folder / "copy").rename(folder / "alone")
    if not prefix:
        raise Skip("no unshare here; all else passed")
    return f"0 leaks in {files} files; trains and resumes without a network, 0 sockets"

# ---------------------------------------------------------------------------------------------------------

ALL = [A1, A2, A3, A4, A5, B1, B2, B3, B4, B5, B6, C1, C2, C3, C4, D1, D2, D3, E1, E2, E3, F1, F2, F3, F4, F5,
       G1, G2, G3, G4]
NOT_CRITICAL = {"A3", "B5", "C4", "D3", "E3", "G4"}

def main():
    global WORK, DRAW
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="checks, joined by commas; default: all")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--out", default="", help="JSON file to write")
    parser.add_argument("--no_compile", action="store_true", help="leave out the compiled resumes of A2")
    given = parser.parse_args()
    wanted = [name for name in given.only.split(",") if name]
    if unknown := set(wanted) - {check.__name__ for check in ALL}:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    WORK = Path(tempfile.mkdtemp(prefix="torture-"))
    with mock.patch.object(prepare_c4, "sotu", documents), contextlib.redirect_stdout(io.StringIO()):
        assert prepare_c4.main(["--vocab=300", f"--out={WORK / 'data'}"]) == 0
    (WORK / "tiny.toml").write_text(TINY.format(data=WORK / "data"))
    print(f"seed {given.seed}\n{'id':4} {'what':104} result   seconds  measured", flush=True)
    rows = []
    try:
        for check in ALL:
            name = check.__name__
            if wanted and name not in wanted:
                continue
            DRAW, begun, folder = random.Random(f"{given.seed} {name}"), time.monotonic(), WORK / name
            folder.mkdir()
            passed, trace = True, ""
            try:
                measured = check(folder)
            except Skip as skip:
                passed, measured = None, str(skip)
            except Exception as error:
                passed, measured, trace = False, f"{type(error).__name__}: {error}", traceback.format_exc()
            seconds = round(time.monotonic() - begun, 1)
            rows.append(dict(id=name, what=check.__doc__, critical=name not in NOT_CRITICAL, passed=passed,
                             measured=measured, seconds=seconds))
            word = {True: "passed", False: "FAILED", None: "skipped"}[passed]
            print(f"{name:4} {check.__doc__:104} {word:8} {seconds:7.1f}  {config.one_line(measured, 300)}",
                  flush=True)
            if trace:
                print(trace, file=sys.stderr, flush=True)
            for process in STARTED:
                if process.process.poll() is None or not process.group_is_gone():
                    process.kill()
            STARTED.clear()
            if passed and name != "F1":
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        for process in STARTED:
            process.kill()
        for folder in MOUNTED:
            subprocess.run(["umount", "-l", str(folder)])
        shutil.rmtree(WORK, ignore_errors=True)
    count = {word: sum(row["passed"] is word for row in rows) for word in (True, False, None)}
    print(f"{count[True]} passed, {count[False]} failed, {count[None]} skipped, of {len(rows)}, "
          f"in {sum(row['seconds'] for row in rows) / 60:.1f} minutes")
    if given.out:
        Path(given.out).write_text(json.dumps(dict(seed=given.seed, checks=rows), indent=1) + "\n")
    return int(any(row["passed"] is False and row["critical"] for row in rows))

if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        machine.leave(in_another_process(*sys.argv[2:4]))
    sys.exit(main())
