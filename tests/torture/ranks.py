"""
F. Ranks: their number changes no bit, and a lost or failing rank ends all of them.
"""
import json
import os
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import torch

from faults import recorded
from folders import checkpoints, read_json, step_of
from processes import TWO_RANKS, all_gone, process_ids, start_with_fault, two_at_a_time, wait
from tiny_runs import VARIANTS, final
from tools import DATA, OUR_TRACEBACK, WORK, call, error_line, options, run
import prepare_c4
from conftest import documents
from trainer import data, runs

CASES = [(name, precision) for name in VARIANTS for precision in ("fp32", "bf16")]
TWO_RANK_RECORDS = WORK / "two-rank-records"    # a folder in which F1 leaves what two ranks recorded, for F2


# ---------------------------------------------------------------------------------------------------------
# F1, F2, F3, F6. The same bits

def ranks_change_no_bit(folder):
    """2 ranks x 1 micro-batch and 1 process x 2 give the same gradients, weights and state.

    Every variant runs 20 steps both ways, in fp32 and in bf16. The first five gradients and the final weights
    and state must be equal bit for bit. With micro-batches of 2, one process adds four gradients and each of
    two ranks adds two. That is another order, so the first gradient may differ by 1e-6 of its norm.
    """
    one, two = two_at_a_time(lambda ranks: record_all_cases(folder / f"ranks{ranks}", ranks), (0, 2))
    for i, case in enumerate(CASES):
        a, b = recorded(one, i, 0), recorded(two, i, 0)
        assert len(a["gradients"]) == 5
        for gradients, gradients2 in zip(a["gradients"], b["gradients"], strict=True):
            assert all(map(torch.equal, gradients, gradients2)), case
        assert a["sha256"] == b["sha256"], case
    a, b = (torch.cat([g.flatten() for g in recorded(place, len(CASES), 0)["gradients"][0]])
            for place in (one, two))
    difference = ((a - b).norm() / a.norm()).item()
    assert difference <= 1e-6
    two.rename(TWO_RANK_RECORDS)
    return f"{len(CASES)} of {len(CASES)} equal; 1 x 4 and 2 x 2 differ by {difference:.1e}"


def record_all_cases(place, ranks):
    """Runs all CASES with micro-batches of 4, and a step with micro-batches of 2. Returns the folder `place`,
    in which faults.recorded() finds what each run has computed."""
    commands = [options(place, f"{name},{precision}", *VARIANTS[name], f"--precision={precision}",
                        "--steps=20", "--micro_batch=4", "--save_every=0", "--eval_every=0",
                        "--final_windows=5")
                for name, precision in CASES]
    finer = options(place, "finer", "--precision=fp32", "--steps=1", "--micro_batch=2", "--eval_every=0")
    start_with_fault("record", place, [*commands, finer], ranks=ranks).end_well(400)
    return place


def ranks_hold_the_same_bits(folder):
    """Both ranks hold the same bits after 20 steps, and the trainer notices where they do not.

    This compares the two ranks of F1. Then one weight of rank 1 drifts in step 9: the run must end at the
    next checkpoint, in step 10, and must not save it.
    """
    if not TWO_RANK_RECORDS.exists():
        ranks_change_no_bit(folder)
    count = len(list(TWO_RANK_RECORDS.glob("*-1.pt")))
    for i in range(count):
        assert recorded(TWO_RANK_RECORDS, i, 0)["sha256"] == recorded(TWO_RANK_RECORDS, i, 1)["sha256"], i
    drift = folder / "drift"
    process = start_with_fault("drift@1", drift, [options(drift, "a", *TWO_RANKS)], ranks=2)
    process.end(60)
    error_line(process.text(), "step 10: the ranks no longer hold the same weights and state")
    assert [p.name for p in checkpoints(drift / "a")] == ["step-00000005.pt"]
    return f"{count} of {count} equal; a drift was noticed at the next checkpoint"


def number_of_ranks_may_change(folder):
    """The number of ranks may change from resume to resume: samples and bits stay the same.

    One chain of resumes has 1, 2 and 1 ranks, the other 2, 1 and 2. Each part of a chain runs 5 of 15 steps.
    Every step must read the windows that the order gives. The final weights and state must be those of one
    process that ran all steps, and no note may say "not bit for bit". Three ranks must be refused, since they
    cannot share a batch of 8.
    """
    usual = ["--batch=8", "--micro_batch=4", "--steps=15", "--keep=9", "--save_every=5", "--eval_every=0"]
    run(folder, "whole", *usual)
    two_at_a_time(lambda worlds: run_chain(folder, usual, worlds), [(1, 2, 1), (2, 1, 2)])
    three = start_with_fault("none", folder / "three", [options(folder / "three", "a", *usual)], ranks=3)
    three.end(60)
    error_line(three.text(), "--batch=8: must divide among 3 ranks; try 6 or 9")
    assert not (folder / "three/a").exists()
    return "2 of 2 chains with the same samples and bits; 3 ranks refused"


def run_chain(folder, usual, worlds):
    """Runs 5 steps with each number of ranks in `worlds`, and compares the end with folder/whole."""
    name, reads, previous = "".join(map(str, worlds)), {}, None
    for k, world in enumerate(worlds):
        place = folder / f"{name},{k}"
        if previous:
            copy_up_to(previous / "a", place / "a", 5 * k)
        command = options(place, "a", *usual, *(["--resume"] if previous else []))
        process = start_with_fault("record", place, [command], ranks=world if world > 1 else 0)
        process.end_well(60)
        assert not previous or "not bit for bit" not in process.text(), process.text()
        reads_by_rank = [recorded(place, 0, rank)["reads"] for rank in range(world)]
        reads_per_step = 2 // world    # of each rank: two micro-batches of 4 make a batch of 8
        for step in range(5 * k + 1, 5 * k + 6):
            first = (step - 5 * k - 1) * reads_per_step
            reads[step] = [window for own_reads in reads_by_rank
                           for read in own_reads[first:first + reads_per_step] for window in read]
        previous = place
    order = data.Order(len(data.Tokens(DATA, "train", 16)), 0)
    assert all(reads[step] == order(8 * (step - 1), 8) for step in range(1, 16)), name
    weights, states, _ = final(previous / "a")
    whole_weights, whole_states, _ = final(folder / "whole")
    assert all(torch.equal(weights[k], whole_weights[k]) for k in weights), name
    assert all(torch.equal(torch.as_tensor(states[i][k]), torch.as_tensor(whole_states[i][k]))
               for i in states for k in states[i]), name


def copy_up_to(source, target, step):
    """Copies a run's folder as a kill just after the checkpoint of a step would have left it."""
    shutil.copytree(source, target)
    for path in checkpoints(target):
        if step_of(path) > step:
            path.unlink()
    runs.write_json(target / "status.json", dict(status="running"))


def different_ranks_do_not_start(folder):
    """If rank 1 has another option or other data than rank 0, no rank starts, and one line names the option.

    The same data may be in another folder on each machine.
    """
    shutil.copytree(DATA, folder / "copied")
    with mock.patch.object(prepare_c4, "sotu", lambda: documents(seed=1)):
        code, _, err = call(["--vocab=300", f"--out={folder / 'other'}"], prepare_c4)
    assert code == 0, err
    cases = {"--seed=1": "--seed: is 1 on rank 1 and 0 on rank 0", "--batch=4": "--batch: is 4 on rank 1",
             "--width=32": "--width: is 32 on rank 1", "--optimizer=lion": "--optimizer: is lion on rank 1",
             "--eval_every=3": "--eval_every: is 3 on rank 1", "--resume": "--resume: is True on rank 1",
             f"--data={folder / 'other'}": "--data: rank 1 has", f"--data={folder / 'copied'}": ""}
    two_at_a_time(lambda i: start_with_another_option(folder / f"{i}", *list(cases.items())[i]),
                  range(len(cases)))
    return f"{len(cases) - 1} of {len(cases) - 1} refused, a copy of the data allowed"


def start_with_another_option(place, option, words):
    """Starts two ranks, of which rank 1 has one option more. words: of the error line, or "" if they run."""
    place.mkdir()
    (place / "options.json").write_text(json.dumps([option]))
    process = start_with_fault("options@1", place, [options(place, "a")], ranks=2)
    if not words:
        process.end_well(60)
        return
    assert process.end(60), process.text()
    error_line(process.text(), words)
    assert not (place / "a").exists()


# ---------------------------------------------------------------------------------------------------------
# F4, F5. Lost and failing ranks

def lost_ranks_end_the_run(folder):
    """If a rank is killed, fails or hangs, all ranks leave, and each error line names it and the cause.

    This happens in a step and in a save. All processes must be gone within 30 seconds, or within 60 if a rank
    hangs. No checkpoint may be damaged.
    """
    hangs = [("stop", 1, "step"), ("stop", 1, "save")]
    others = [(action, rank, moment) for moment in ("step", "save")
              for action, rank in (("kill", 1), ("kill", 0), ("raise", 1 if moment == "step" else 0))]

    def lose(case):
        return case[0], lose_a_rank(folder, *case)

    with ThreadPoolExecutor(4) as pool:    # those that hang only wait
        slow = [pool.submit(lose, case) for case in hangs]
        took = two_at_a_time(lose, others)
        took += [each.result() for each in slow]
    longest = {action: max(s for a, s in took if a == action) for action in ("kill", "raise", "stop")}
    return "8 of 8; gone after " + ", ".join(f"{s:.0f} s ({a})" for a, s in longest.items())


def lose_a_rank(folder, action, rank, moment):
    """Runs two ranks and loses one of them.

    Args:
        action: "kill" (SIGKILL), "stop" (SIGSTOP, so that the rank hangs) or "raise" (an exception).
        rank: the rank that is lost.
        moment: "step" or "save".

    Returns:
        The seconds until all processes were gone.
    """
    place = folder / f"{action}{rank},{moment}"
    if moment == "step":
        fault = "raise@1" if action == "raise" else "none"
    else:
        fault = "raise-in-save@0" if action == "raise" else "slow-save@0"
    process = start_with_fault(fault, place, [options(place, "a", *TWO_RANKS)], ranks=2)
    ids = process_ids(place)
    if moment == "step" and action != "raise":
        assert process.wait_for("saved "), process.text()
    if moment == "save":
        wait((place / "saving").exists, 60, "no save")
    if action in ("kill", "stop"):
        os.kill(ids[rank], signal.SIGKILL if action == "kill" else signal.SIGSTOP)
    else:
        process.wait_for("train.py: error")
    seconds = all_gone(process, ids, 60 if action == "stop" else 30)

    lines = re.findall(r"train\.py: error: .*", process.text())
    cause = "ValueError: boom" if action == "raise" else f"no answer from rank {rank}"
    assert process.process.returncode and lines, process.text()
    assert all(f"rank {rank}" in line and cause in line for line in lines), lines
    for path in checkpoints(place / "a"):
        runs.load_checkpoint(path)
    if moment == "step" and action != "raise":
        assert checkpoints(place / "a")
    return seconds


def failed_saves_end_both_ranks(folder):
    """If rank 0 alone fails while it saves, both ranks end in time with the same code.

    The disk is full, may not be written to, or has a folder in the checkpoint's place. Every error line must
    name rank 0 and the cause, no traceback of the program may appear, and the status must be "failed".
    """
    took = two_at_a_time(lambda case: fail_a_save(folder / case[0], *case), [
        ("full", "No space left"), ("denied", "Permission denied"), ("folder", "directory")])
    return f"3 of 3, gone after {max(took):.1f} s"


def fail_a_save(place, fault, words):
    """Runs two ranks, of which rank 0 cannot save. Returns the seconds until both were gone."""
    process = start_with_fault(f"{fault}@0", place, [options(place, "a", *TWO_RANKS)], ranks=2)
    ids = process_ids(place)
    process.wait_for("train.py: error")
    seconds = all_gone(process, ids, 30)
    lines = re.findall(r"train\.py: error: .*", process.text())
    codes = set(re.findall(r"exitcode *: *(-?\d+)", process.text()))
    assert lines and all("rank 0: " in line and words in line for line in lines), process.text()
    assert codes - {"-15"} == {"4"}, codes    # torchrun's signal may come while Python already ends
    assert not OUR_TRACEBACK.search(process.text()), process.text()
    assert read_json(place / "a/status.json")["status"] == "failed"
    return seconds
