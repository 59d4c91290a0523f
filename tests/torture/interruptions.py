"""
C. Interruptions: signals save and end a run, and a sweep and its logs come through kills.
"""
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from unittest import mock

import torch

import processes
from folders import checkpoints, differences, read_json, snapshot, step_of
from processes import TWO_RANKS, all_gone, process_ids, start_train, start_with_fault, two_at_a_time, wait
from tiny_runs import rewound
from tools import CONFIG, DRAW, METRICS, ROOT, call, error_line, keep_metrics, options, run
from trainer import runs, script

SIGNALS = script.ENDING


# ---------------------------------------------------------------------------------------------------------
# C1. Signals

# With these options a signal often comes in the middle of a validation or of a write.
BUSY = ["--width=64", "--steps=3000", "--eval_every=2", "--eval_windows=50", "--log_every=1",
        "--final_windows=55"]


def signals_save_and_end(folder):
    """20 signals and 5 pairs of signals save and end a run, in steps, validations and writes.

    Each must end the run within 10 seconds with exit code 75, a checkpoint of the last step, and the status
    "interrupted". The weights and losses must be those of a run that no signal disturbed until then.
    """
    draws = [random.Random(DRAW.random()) for _ in range(2)]
    seconds = two_at_a_time(lambda k: signal_again_and_again(folder, f"lane{k}", 12 + k, draws[k]), range(2))
    for k in range(2):
        compare_with_undisturbed(folder, folder / f"lane{k}")
    return f"25 of 25 saved and left within {max(map(max, seconds)):.1f} s, same bits as without"


def signal_again_and_again(folder, name, times, draw):
    """Starts one run again and again and ends it with signals: every fifth time with two, 0.05 s apart.

    Returns a list of the seconds from the first signal to the end of the process.
    """
    place, took, newest = folder / name, [], 0
    for k in range(times):
        process = start_train(*options(folder, name, *BUSY, "--save_every=3", "--resume"))
        # A resume may begin with the validation of its checkpoint. Signals save only after the first step.
        next_validation = newest + 2 - newest % 2
        assert process.wait_for(f"step {next_validation}: validation loss"), process.text()
        time.sleep(draw.uniform(0, 0.5))
        begun = time.monotonic()
        os.kill(process.pid, SIGNALS[k % len(SIGNALS)])
        if k % 5 == 4:
            time.sleep(0.05)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, SIGNALS[(k + 1) % len(SIGNALS)])
        assert process.end(10) == 75, process.text()
        took.append(time.monotonic() - begun)
        status = read_json(place / "status.json")
        newest = max(map(step_of, checkpoints(place)))
        assert status["status"] == "interrupted" and status["step"] == newest, (status, newest)
        error_line(process.text(), f"interrupted at step {newest}")
        keep_metrics(place / "metrics.jsonl")
    return took


def compare_with_undisturbed(folder, place):
    """Compares an interrupted run in `place` with folder/whole, which one signal ends at the same step."""
    last_step = read_json(place / "status.json")["step"]
    newest = runs.load_checkpoint(place / f"step-{last_step:08d}.pt")
    if not (folder / f"whole/step-{last_step:08d}.pt").exists():
        stop_at(folder, "whole", ["--save_every=1", "--keep=9999", *BUSY], last_step)
    whole = runs.load_checkpoint(folder / f"whole/step-{last_step:08d}.pt")
    assert all(torch.equal(newest["model"][k], whole["model"][k]) for k in whole["model"])
    losses, whole_losses = logged_losses(place), logged_losses(folder / "whole")
    assert losses and losses == whole_losses[:len(losses)]


def stop_at(folder, name, more, step):
    """Starts a run afresh in this process, which sends itself a signal at a step."""
    log = runs.Run.log

    def log_and_signal(self, kind, now, **numbers):
        log(self, kind, now, **numbers)
        if kind == "train" and now == step:
            os.kill(os.getpid(), signal.SIGTERM)

    shutil.rmtree(folder / name, ignore_errors=True)
    with mock.patch.object(runs.Run, "log", log_and_signal):
        code, _, err = call(options(folder, name, *more))
    assert code == 75, err


def logged_losses(place):
    """Returns (kind, step, loss) of every row of metrics.jsonl that has a loss."""
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return [(row["kind"], row["step"], row["loss"]) for row in rows if "loss" in row]


# ---------------------------------------------------------------------------------------------------------
# C2. Signals to ranks

def two_ranks_stop_together(folder):
    """Two ranks stop together at a signal to torchrun, to rank 1 alone, and to rank 0 alone.

    Both must leave within 30 seconds, and the newest checkpoint must be whole and of the step in status.json.
    """
    took = two_at_a_time(lambda receiver: signal_a_rank(folder / str(receiver), receiver), ["torchrun", 1, 0])
    return f"3 of 3 stopped as one, within {max(took):.1f} s"


def signal_a_rank(place, receiver):
    """Sends a signal to torchrun or to the rank `receiver`. Returns the seconds until all have left."""
    process = start_with_fault("none", place, [options(place, "a", *TWO_RANKS)], ranks=2)
    assert process.wait_for("saved "), process.text()
    ids = process_ids(place)
    os.kill(process.pid if receiver == "torchrun" else ids[receiver], signal.SIGTERM)
    seconds = all_gone(process, ids, 30)
    status = read_json(place / "a/status.json")
    newest = checkpoints(place / "a")[-1]
    assert status["status"] == "interrupted" and step_of(newest) == status["step"], process.text()
    runs.load_checkpoint(newest)
    return seconds


# ---------------------------------------------------------------------------------------------------------
# C3. Sweeps

def killed_sweep_ends_the_same(folder):
    """A sweep of 6 runs, of which one diverges, is killed 10 times and ends with the same table.

    Runs that had ended when the sweep was killed must not be touched again. A run that fails is listed, and
    the sweep then ends with exit code 1.
    """
    for path in [ROOT / "sweep.sh", *ROOT.glob("*.py")]:
        shutil.copy(path, folder / path.name)
    for package in ("trainer", "zoo"):
        shutil.copytree(ROOT / package, folder / package)
    after_dashes = ["--", "--compile=false", "--threads=1", "--save_every=2", "--device=cpu",
                    "--precision=auto", "--z_loss=0"]
    grid = ["bash", "sweep.sh", "grid", CONFIG]
    command = [*grid, "optimizer=sgd,adamw,signum", "lr=1e-3,1e12", *after_dashes]
    environment = {"PYTHON": sys.executable}

    begun = time.monotonic()
    whole = processes.Process(command, folder, environment)
    whole.end_well(120)
    latest_kill = max(8.0, 2 * (time.monotonic() - begun) / 6)    # twice the time of one run, if that is slow
    expected = sweep_table(folder)
    assert expected.count('"diverged"') >= 1 and expected.count('"done"') >= 3, expected
    shutil.rmtree(folder / "runs")
    for _ in range(10):
        process = processes.Process(command, folder, environment)
        process.wait_for(": starting", 30)
        time.sleep(DRAW.uniform(0.5, latest_kill))
        process.kill()
        wait(process.group_is_gone, 10, "the sweep's child is left behind")

    ended = {path.parent: snapshot(path.parent) for path in (folder / "runs").glob("*/status.json")
             if read_json(path)["status"] in ("done", "diverged")}
    assert ended, "no run had ended when the sweep was killed"
    last = processes.Process(command, folder, environment)
    last.end_well(180)
    assert sweep_table(folder) == expected, (sweep_table(folder), expected)
    assert last.text().count("already") == len(ended)
    assert all(snapshot(path) == files for path, files in ended.items())
    for path in (folder / "runs").glob("*/metrics.jsonl"):
        keep_metrics(path)

    fails = processes.Process([*grid, "init_from=nowhere.pt", *after_dashes], folder, environment)
    assert fails.end(60) == 1 and "failed: tiny,init_from=nowhere.pt" in fails.text(), fails.text()
    return f"the same 6 rows after 10 kills; {len(ended)} ended runs untouched; a failed one listed"


def sweep_table(folder):
    """Returns name, status, last step and loss of every run of a sweep, as JSON."""
    rows = []
    for path in sorted((folder / "runs").glob("*/status.json")):
        status = read_json(path)
        rows.append((path.parent.name, status["status"], status["step"], status.get("loss")))
    return json.dumps(rows)


# ---------------------------------------------------------------------------------------------------------
# C4. Logs

def logs_stay_whole(folder):
    """After kills, metrics.jsonl has whole lines, each kind and step once, and steps in order.

    This reads the logs of all runs that B1, C1 and C3 interrupted, of which only the last line may be torn. A
    resume after a torn line must leave the same log as a run that nothing interrupted.
    """
    run(folder, "a", "--keep=9")
    rewound(folder / "a", folder / "b", 10)
    with open(folder / "b/metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 13, "lo')
    run(folder, "b", "--resume", "--keep=9")
    assert not differences(folder / "a", folder / "b")
    texts, row_count = [path.read_text() for path in (*METRICS.iterdir(), folder / "b/metrics.jsonl")], 0
    for text in texts:
        whole_lines = text[:text.rfind("\n") + 1].splitlines()
        rows = [json.loads(line) for line in whole_lines]
        keys = [(row["kind"], row["step"]) for row in rows]
        steps = [step for kind, step in keys if kind == "train"]
        assert len(set(keys)) == len(keys) and steps == sorted(steps), keys
        row_count += len(rows)
    return f"{len(texts)} logs, {row_count} lines"
