"""The folder of a run and the failures that it must survive: a quick part of what tests/torture does."""
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
import zoo
from conftest import ROOT
from tiny_runs import assert_same_run, rewound, run
from trainer import machine, measure, restore, runs
from trainer.errors import UserError


def error_line(capsys):
    """The one line that a failed run says."""
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if "train.py: error: " in line]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


# ---------------------------------------------------------------------------------------------------------
# Files

@pytest.mark.slow
@pytest.mark.parametrize("owner, function, room, name", [
    (runs, "save_checkpoint", 50_000, "step-00000005.pt"), (runs.Run, "status", 5, "status.json"),
    (train, "draw_run", 1000, "loss.png"), (runs.Run, "log", 20, "metrics.jsonl"),
    (runs.Run, "write_config", 20, "config.json")])
def test_a_full_disk_is_one_line_and_loses_nothing(tiny, tmp_path, capsys, monkeypatch, owner, function,
                                                   room, name):
    """From some call on, no file may grow beyond some bytes."""
    assert run(tiny, tmp_path, "a", "--keep=9") == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    real = getattr(owner, function)

    def limited(*arguments, **named):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        return real(*arguments, **named)

    capsys.readouterr()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(owner, function, limited)
            assert run(tiny, tmp_path, "b", "--keep=9") == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    line = error_line(capsys)
    assert f"b/{name}: could not be written: File too large (" in line and " free)" in line
    if name.startswith("step"):
        needed = int(line.split("(")[1].split(" ")[0].replace(",", ""))
        assert needed == pytest.approx((tmp_path / "a" / name).stat().st_size, rel=0.01)
        assert json.loads((tmp_path / "b/status.json").read_text())["status"] == "failed"
    assert not list((tmp_path / "b").glob(".*.tmp"))
    assert run(tiny, tmp_path, "b", "--keep=9", "--resume") == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_the_order_survives_a_power_cut(tmp_path, monkeypatch):
    calls = []

    def spy(owner, name):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *arguments: (calls.append(name), real(*arguments))[1])

    for owner, name in ((os, "fsync"), (os, "replace"), (runs.tqdm, "write"), (Path, "unlink")):
        spy(owner, name)
    folder = runs.Run(tmp_path, "a")
    for step in (1, 2, 3):
        calls.clear()
        folder.save(step, dict(x=torch.zeros(3)), keep=2)
    assert calls == ["fsync", "replace", "fsync", "write", "unlink"]


def test_every_damage_is_noticed(tmp_path, capsys):
    folder = runs.Run(tmp_path, "a")
    for step in (1, 2):
        folder.save(step, dict(step=step, x=torch.randn(100)), keep=2)
    path = tmp_path / "a/step-00000002.pt"
    content = path.read_bytes()
    flips = [content[:i] + bytes([content[i] ^ 4]) + content[i + 1:] for i in range(0, len(content), 97)]
    for bad in [*flips, b"", content[:-1], content[:-73], content + b"\n", b"PK" + bytes(200)]:
        path.write_bytes(bad)
        step, found = folder.newest()
        assert step == found["step"] == 1 and f"skipped {path}" in capsys.readouterr().out
    path.write_bytes(content)
    assert folder.newest()[0] == 2


def test_a_pickle_that_does_something_is_refused(tmp_path):
    bomb = b"cbuiltins\nexec\n(S'open(\"" + str(tmp_path / "canary").encode() + b"\", \"w\")'\ntR."
    sha256 = runs.hashlib.sha256(bomb).hexdigest().encode()
    (tmp_path / "x.pt").write_bytes(bomb + b"\nsha256 " + sha256 + b"\n")
    with pytest.raises(UserError, match="no checkpoint of this program"):
        runs.load_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_an_error_without_a_text_is_named_by_its_type(tmp_path, monkeypatch):
    runs.Run(tmp_path, "a").save(1, dict(step=1), keep=2)

    def fail(*arguments, **options):
        raise EOFError
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(UserError, match="is no checkpoint of this program: EOFError"):
        runs.load_checkpoint(tmp_path / "a/step-00000001.pt")
    assert restore.reason_of(KeyError()) == "KeyError"


def test_metrics_hold_each_measurement_once(tiny, tmp_path):
    """After a kill between a validation and the next checkpoint, and with a last line torn in two."""
    assert run(tiny, tmp_path, "a", "--keep=9") == 0
    for step in (5, 10):
        copy = rewound(tmp_path / "a", tmp_path / f"b{step}", step)
        with open(copy / "metrics.jsonl", "a") as file:
            file.write('{"kind": "train", "st')
        assert run(tiny, tmp_path, copy.name, "--keep=9", "--resume") == 0
        assert_same_run(tmp_path / "a", copy)


# ---------------------------------------------------------------------------------------------------------
# Signals and divergence

@pytest.mark.slow
@pytest.mark.parametrize("moment", ["step", "validation", "save", "final"])
def test_a_signal_at_any_moment_is_exact(tiny, tmp_path, capsys, monkeypatch, moment):
    """Also in a validation, which the resumed run does again, and twice at once."""
    more = ["--keep=9", "--micro_batch=2"]
    assert run(tiny, tmp_path, "a", *more) == 0
    log, save, evaluate, calls = runs.Run.log, runs.Run.save, measure.evaluate, []

    def signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    def logged(self, kind, step, **numbers):
        log(self, kind, step, **numbers)
        if moment == "step" and (kind, step) == ("train", 7):
            signals()

    def saved(self, step, *rest):
        if moment == "save" and step == 5:
            signals()
        save(self, step, *rest)

    def evaluated(*arguments, **named):
        calls.append(1)
        if moment == "validation" and len(calls) == 2 or moment == "final" and len(calls) == 3:
            signals()
        return evaluate(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "log", logged)
        patch.setattr(runs.Run, "save", saved)
        patch.setattr(measure, "evaluate", evaluated)
        capsys.readouterr()
        assert run(tiny, tmp_path, "b", *more) == 75
    expected = dict(step=8, validation=10, save=5, final=12)[moment]
    assert f"interrupted at step {expected}" in error_line(capsys)
    assert json.loads((tmp_path / "b/status.json").read_text()) == \
        dict(status="interrupted", step=expected, steps=12)
    assert (tmp_path / f"b/step-{expected:08d}.pt").exists()
    assert run(tiny, tmp_path, "b", *more, "--resume") == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_a_signal_in_the_first_step_leaves_at_once(tiny, tmp_path, capsys, monkeypatch):
    """It may compile for a minute, and a Ctrl-C reaches the compiler, too."""
    assert run(tiny, tmp_path, "a", "--keep=9") == 0
    rewound(tmp_path / "a", tmp_path / "b", 5)
    with monkeypatch.context() as patch:
        patch.setattr(zoo.Optimizer, "step", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        capsys.readouterr()
        assert run(tiny, tmp_path, "b", "--keep=9", "--resume") == 75
    assert "interrupted" in error_line(capsys)
    status = json.loads((tmp_path / "b/status.json").read_text())
    assert status == dict(status="interrupted", step=5, steps=12)
    assert run(tiny, tmp_path, "b", "--keep=9", "--resume") == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_stop_loss(tiny, tmp_path, capsys):
    """A loss above it is a result: diverged, with the last loss below, and not tried again."""
    assert run(tiny, tmp_path, "a", "--lr=1e3", "--stop_loss=30") == 3
    assert "above --stop_loss=30" in error_line(capsys)
    status = json.loads((tmp_path / "a/status.json").read_text())
    assert status["status"] == "diverged" and status["loss"] < 30
    assert run(tiny, tmp_path, "a", "--lr=1e3", "--stop_loss=30", "--resume") == 3
    assert run(tiny, tmp_path, "b", "--stop_loss=30") == 0


# ---------------------------------------------------------------------------------------------------------
# Refusals

def test_a_refused_run_leaves_nothing(tiny, tmp_path, capsys):
    for more in (["--init_from=nowhere.pt"], ["--vocab_size=299"], ["--batch=7", "--micro_batch=3"]):
        assert run(tiny, tmp_path / "runs", "new", *more) == 2
        error_line(capsys)
        assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_refused_resume_changes_nothing(tiny, tmp_path, capsys):
    """The checkpoint itself remembers the settings, if config.json is lost; "auto" is what was chosen."""
    assert run(tiny, tmp_path, "a", "--keep=9") == 0
    copy = rewound(tmp_path / "a", tmp_path / "b", 10)
    (copy / "config.json").unlink()
    before = {path: path.read_bytes() for path in copy.iterdir()}
    assert run(tiny, tmp_path, "b", "--lr=0.5", "--resume") == 2
    assert "--lr=0.5: this run was started with 0.01" in error_line(capsys)
    assert before == {path: path.read_bytes() for path in copy.iterdir()}
    copy = rewound(tmp_path / "a", tmp_path / "c", 10)
    assert run(tiny, tmp_path, "c", "--resume", "--device=auto", "--precision=auto", "--attention=auto") == 0
    for i, text in enumerate(("[]", "{}", '{"steps": "many"}', '{"steps": -1}', "{")):
        copy = rewound(tmp_path / "a", tmp_path / f"d{i}", 10)
        (copy / "config.json").write_text(text)
        capsys.readouterr()
        code = run(tiny, tmp_path, copy.name, "--resume")
        assert code == 0 if text == "{}" else (code == 2 and error_line(capsys))


# ---------------------------------------------------------------------------------------------------------
# Ranks

LOST = """
import os, sys, time
sys.path[:0] = sys.argv[1:3]
import train
from trainer import data, runs
rank, how, reads = int(os.environ["RANK"]), sys.argv[3], []
read, save = data.Tokens.__getitem__, runs.save_checkpoint
def broken(self, windows):
    reads.append(1)
    if rank == 1 and len(reads) == 7:
        if how == "killed":
            os.kill(os.getpid(), 9)
        raise ValueError("boom")
    return read(self, windows)
def full(path, content):
    raise runs.not_written(path, OSError(28, "No space left on device"), 1000)
if how == "full":
    runs.save_checkpoint = full
else:
    data.Tokens.__getitem__ = broken
sys.exit(train.main(sys.argv[4:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how, words", [("killed", "no answer from rank 1"), ("full", "rank 0: "),
                                        ("raises", "rank 1: ValueError: boom")])
def test_a_lost_rank_ends_all_with_its_cause(tiny, tmp_path, how, words):
    (tmp_path / "lost.py").write_text(LOST)
    options = [f"--config={tiny}", f"--runs={tmp_path}", "--name=a", "--compile=false", "--threads=1",
               "--micro_batch=4", "--save_every=5", "--eval_every=0", "--steps=1000", "--device=cpu"]
    begun = time.monotonic()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run([*torchrun, tmp_path / "lost.py", ROOT, ROOT / "tests", how, *options], text=True,
                          timeout=120, capture_output=True)
    lines = [line for line in done.stderr.splitlines() if "train.py: error: " in line]
    assert lines and all(words in line for line in lines), done.stderr
    if how == "full":
        assert all("step-00000005.pt: could not be written" in line for line in lines)
    assert time.monotonic() - begun < 60 and done.returncode
    assert json.loads((tmp_path / "a/status.json").read_text())["status"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("rank, text", [({}, "said and late"), ({"RANK": "0"}, "said")])
def test_leaving(rank, text):
    """A rank has said all and leaves without the interpreter's own way out, in which Gloo's threads abort."""
    code = ("import atexit; from trainer import script; atexit.register(print, ' and late', end='');"
            "print('said', end=''); script.leave(3)")
    environment = {key: value for key, value in os.environ.items() if key != "RANK"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env=environment | rank)
    assert (done.returncode, done.stdout) == (3, text)


def test_reasons():
    assert machine.reason(KeyboardInterrupt()).code == 75
    assert machine.reason(PermissionError(13, "Permission denied", "/x")).code == 4
    assert str(machine.reason(PermissionError(13, "Permission denied", "/x"))) == "/x: Permission denied"
    assert machine.reason(MemoryError()).code == 4 and machine.reason(KeyError("x")).code == 1
    error = UserError("x", 3)
    assert machine.reason(error) is error
