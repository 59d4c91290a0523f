"""tests/gpu.sh without a GPU: all of it in small, and its arithmetic and its handling of failures by hand."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gpu
from conftest import ROOT
from trainer.settings import Settings, read

# As nanoGPT does, it reads the size of the vocabulary from a pickle and the tokens from a file of uint16.
NANOGPT = """
import array, os, pickle, sys
options = dict(word.removeprefix("--").split("=") for word in sys.argv[1:])
folder = options["dataset"]
assert pickle.load(open(folder + "/meta.pkl", "rb")) == {"vocab_size": 300}
tokens = array.array("H", open(folder + "/train.bin", "rb").read())
assert len(tokens) == 20_000 and max(tokens) == 299
assert options["n_embd"] == options["block_size"] == "16" and options["compile"] == "False"
for i in range(61):
    print(f"iter {i}: loss 5.7038, time 4.00ms, mfu -100.00%")
"""


@pytest.mark.slow
@pytest.mark.compiled
def test_all_of_it_in_small(tmp_path):
    """The script itself, with all parts; and a program in the place of nanoGPT's."""
    (tmp_path / "train.py").write_text(NANOGPT)
    out = tmp_path / "gpu.json"
    command = ["bash", ROOT / "tests/gpu.sh", "--device=cpu", f"--nanogpt={tmp_path}", f"--out={out}"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | dict(PYTHON=sys.executable), text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())
    parts = results["parts"]
    assert list(parts) == [*gpu.CHECKS, *gpu.MEASUREMENTS] and results["machine"]["device"].startswith("cpu")
    assert "all 9 parts passed" in done.stdout and results["machine"]["nvidia_smi"]
    assert all(parts[name]["passed"] > 0 for name in ("golden", "compiled", "zoo", "runs"))
    assert parts["150m"]["n"] == 25 and len(parts["150m"]["losses"]) == 30
    assert parts["150m"]["of the peak"] > 0
    assert all(parts[name]["--plan, bytes"] > 300_000 for name in ("150m", "memory"))
    assert {row.get("step of") for row in parts["optimizer"]["rows"]} >= {"fused", "adamw", "signum", "lion"}
    assert set(parts["nanogpt"]["tokens/s of nanoGPT"]) == {2 * 16 / 0.004}
    assert len(parts["nanogpt"]["tokens/s"]) == 8
    log = out.with_suffix(".log").read_text()
    assert [line for line in log.splitlines() if line[4:] in parts] == [f"--- {name}" for name in parts]


# ---------------------------------------------------------------------------------------------------------
# Arithmetic

def test_the_share_of_the_peak():
    """A token costs 6 FLOP per weight of a matrix, and 12 D T of attention per layer."""
    config = Settings(width=8, layers=2, heads=2, context=16, vocab_size=100, padded_vocab=128,
                      loss_chunk=512, attention="sdpa")
    flops = 6 * (2 * 12 * 8 * 8 + 128 * 8) + 12 * 2 * 8 * 16
    assert gpu.share_of_peak(1000, config, 2000 * flops) == 0.5


def test_what_a_gpu_would_train():
    """The options are valid, and the plan of 150m is that of docs/many_gpus.md: 17 GB."""
    words = [*gpu.Options().sizes("150m", "--compile=false"), "--optimizer=adamw"]
    config = read(words)[0]
    assert (config.device, config.precision, config.batch, config.compile) == ("cuda", "bf16", 256, False)
    assert round(gpu.memory.predicted(words) / 1e9) == 17
    config = read(gpu.Options().sizes("nano", "--context=512", "--batch=8"))[0]
    assert (config.width, config.context, config.batch, config.compile) == (128, 512, 8, True)


@pytest.mark.parametrize("predicted, measured, compiled, is_right", [
    (100, 110, False, True), (100, 91, False, True), (100, 112, False, False), (100, 90, False, False),
    (100, 110, True, True), (100, 50, True, True), (100, 111, True, False)])
def test_the_comparison_with_the_plan(predicted, measured, compiled, is_right):
    """Eager code needs what --plan says, within 10 %. Compiled code may need less."""
    how = "compiled" if compiled else "eager"
    line = f"--plan predicts {predicted} bytes, and {how} code needs {measured}"
    assert gpu.against_plan(predicted, measured, compiled) == ([] if is_right else [line])


def test_a_step_is_not_faster_than_its_bytes():
    rows = [{"step of": "fused", "to the floor": ""}, {"step of": "signum", "to the floor": "0.85"},
            {"step of": "lion", "to the floor": "0.42"}, {"rule": "adamw"}]
    assert gpu.below_the_floor(rows) == ["lion: takes 0.42 of the time that its bytes need"]


def test_speeds_are_of_the_steps_after_compiling():
    rows = [dict(kind="config", step=0), dict(kind="train", step=5, tokens_per_second=3),
            dict(kind="train", step=10, tokens_per_second=70), dict(kind="val", step=10)]
    assert gpu.tokens_per_second(rows, 5) == [70]
    output = ("number of parameters: 0.80M\nstep 0: train loss 4.3, val loss 4.3\n"
              "iter 0: loss 4.2, time 900.00ms, mfu -100.00%\niter 1: loss 4.1, time 20.00ms, mfu 1.00%\n")
    assert gpu.nanogpt_speeds(output, tokens=100, skip=1) == [5000]


# ---------------------------------------------------------------------------------------------------------
# Failures

def test_every_test_of_the_check_takes_the_device(request):
    """Of the tests that pytest runs now. A test that ignores the device would prove nothing about it."""
    marked = [item for item in request.session.items if item.get_closest_marker("gpu")]
    assert [item.name for item in marked if "device" not in item.fixturenames] == []


def test_what_became_of_tests():
    """A test that is skipped has not checked anything, so it counts as failed."""
    outcomes = gpu.Outcomes()
    crash = SimpleNamespace(reprcrash="tests/test_x.py:7: AssertionError: off\nby 1")
    for nodeid, when, outcome, longrepr in (
            ("a", "setup", "passed", None), ("a", "call", "passed", None), ("a", "teardown", "passed", None),
            ("b", "setup", "passed", None), ("b", "call", "failed", crash),
            ("c", "setup", "skipped", ("tests/test_x.py", 9, "Skipped: no compiler"))):
        outcomes.pytest_runtest_logreport(SimpleNamespace(
            nodeid=nodeid, when=when, passed=outcome == "passed", longrepr=longrepr))
    assert outcomes.passed == 1
    assert outcomes.failed == [r"b: tests/test_x.py:7: AssertionError: off\nby 1",
                               "c: ('tests/test_x.py', 9, 'Skipped: no compiler')"]


def test_a_part_that_raises_says_where(tmp_path, monkeypatch):
    def broken(options):
        raise RuntimeError("the GPU is gone")

    out = tmp_path / "golden.json"
    for part, failed in ((broken, ['RuntimeError in broken, `raise RuntimeError("the GPU is gone")`: '
                                   "the GPU is gone"]),
                         (lambda options: dict(failed=[]), [])):
        monkeypatch.setitem(gpu.PARTS, "golden", part)
        assert gpu.main(["--only=golden", f"--out={out}"]) == bool(failed)
        assert json.loads(out.read_text())["failed"] == failed


@pytest.mark.parametrize("program, begun, failed", [
    ("exit 7", 0, []),
    ("exec sleep 60", -1000, ["was stopped 180 seconds after the start"])])
def test_a_part_without_a_result(tmp_path, program, begun, failed):
    """It ended in the middle, or it hung until its time was over."""
    process = subprocess.Popen(["bash", "-c", program])
    result = gpu.finish("golden", process, tmp_path, time.monotonic() + begun)
    assert process.returncode not in (0, None)
    assert result["failed"] == [*failed, f"ended with exit code {process.returncode} and left no result"]


def test_a_part_that_fails_hides_no_other(tmp_path, monkeypatch, capsys):
    def start(name, options, folder):
        failed = {"zoo": ["lion is off"], "memory": ["too much"]}.get(name, [])
        Path(folder, f"{name}.json").write_text(json.dumps(dict(failed=failed, what="done")))
        Path(folder, f"{name}.log").write_text("said")
        return subprocess.Popen(["true"])

    monkeypatch.setattr(gpu, "start", start)
    out = tmp_path / "out.json"
    assert gpu.main(["--device=cpu", f"--out={out}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [
        ["golden", "passed"], ["compiled", "passed"], ["zoo", "FAILED"], ["-", "lion"], ["runs", "passed"],
        ["resume", "passed"], ["150m", "passed"], ["memory", "FAILED"], ["-", "too"],
        ["optimizer", "passed"], ["nanogpt", "left"], ["failed:", "zoo,"], ["the", "numbers"]]
    assert json.loads(out.read_text())["parts"]["memory"]["failed"] == ["too much"]


def test_without_a_gpu_a_checkout_or_a_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpu.main([f"--out={tmp_path}/gpu.json"]) == 4
    assert gpu.main(["--device=cpu", f"--nanogpt={tmp_path}"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "tests/gpu.sh: error: --device=cuda: this machine has none; give --device=cpu",
        f"tests/gpu.sh: error: --nanogpt={tmp_path}: has no train.py; give a checkout of nanoGPT"]
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'Traceback'; echo \"No module named 'torch'\"; exit 1\n")
    bare.chmod(0o755)
    done = subprocess.run(["bash", ROOT / "tests/gpu.sh"], env=os.environ | dict(PYTHON=str(bare)),
                          text=True, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (4, "", (
        f"tests/gpu.sh: error: {bare}: No module named 'torch'; install what requirements.txt names\n"))
