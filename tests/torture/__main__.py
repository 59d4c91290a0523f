"""
Reliability checks: 30 promises of the program, put to the test with kills, full disks, broken files and lost
ranks.

    python tests/torture                                  all; about six minutes on two cores
    python tests/torture --only=B1,E1 --seed=7 --out=reliability.json

Two checks run at a time, each in a process that patches and counts for itself. They print a table. The exit
code is 1 if a critical check fails, else 0. A check that this machine cannot do, for want of root or tmpfs,
is reported as skipped. The same seed gives the same random moments.
Faults come from outside the program: signals, small file systems, and patches around its functions.
"""
import argparse
import inspect
import json
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import tools  # first, since it puts the program on the path

# isort: split
import torch

import checkpoints
import command_lines
import divergence
import exactness
import full_disks
import interruptions
import processes
import ranks
import security
import shards
from trainer.cores import usable_cores
from trainer.errors import one_line

LANES = min(2, usable_cores())    # how many checks run at a time


@dataclass
class Check:
    """One promise and how it is tested.

    Attributes:
        function: is called with an empty folder and returns a text about what it measured. It raises
            AssertionError if the promise is broken and tools.Skip if this machine cannot do the check. The
            first line of its docstring is shown in the table.
        critical: whether a failure makes the whole command fail.
        after: the checks whose files this one reads.
        alone: whether no other check may run meanwhile.
    """
    function: Callable[[Path], str]
    critical: bool = True
    after: tuple[str, ...] = ()
    alone: bool = False


CHECKS = {
    "A1": Check(exactness.looking_changes_nothing),
    "A2": Check(exactness.resumes_are_exact),
    "A3": Check(exactness.losses_are_noticed, critical=False),
    "A4": Check(exactness.every_step_can_be_resumed),
    "A5": Check(exactness.changed_settings_are_refused),
    "B1": Check(checkpoints.kills_lose_nothing),
    "B2": Check(checkpoints.writes_survive_a_power_cut),
    "B3": Check(full_disks.full_disks_break_nothing),
    "B4": Check(checkpoints.damaged_checkpoints_are_skipped),
    "B5": Check(checkpoints.newest_checkpoints_are_kept),
    "B6": Check(checkpoints.one_process_per_folder),
    "C1": Check(interruptions.signals_save_and_end),
    "C2": Check(interruptions.two_ranks_stop_together),
    "C3": Check(interruptions.killed_sweep_ends_the_same),
    "C4": Check(interruptions.logs_stay_whole, after=("B1", "C1", "C3")),
    "D1": Check(shards.broken_shards_are_refused),
    "D2": Check(shards.wrong_ids_are_refused),
    "D3": Check(shards.preparation_survives_faults),
    "E1": Check(divergence.nonfinite_steps_reach_no_weight),
    "E2": Check(divergence.both_ranks_stop_at_nan),
    "E3": Check(divergence.divergence_is_a_result),
    "E4": Check(divergence.last_step_is_checked),
    "F1": Check(ranks.ranks_change_no_bit),
    "F2": Check(ranks.ranks_hold_the_same_bits, after=("F1",)),
    "F3": Check(ranks.number_of_ranks_may_change),
    "F4": Check(ranks.lost_ranks_end_the_run),
    "F5": Check(ranks.failed_saves_end_both_ranks),
    "F6": Check(ranks.different_ranks_do_not_start),
    "G1": Check(command_lines.command_lines_are_read_or_refused),
    "G2": Check(security.nothing_is_executed),
    "G3": Check(security.names_stay_inside),
    "G4": Check(security.nothing_leaks, alone=True),
}


def parse(argv):
    """Returns the options of this command."""
    parser = argparse.ArgumentParser(prog="python tests/torture", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="checks, joined by commas; default: all")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6),
                        help="the source of all random moments; default: a new one")
    parser.add_argument("--out", default="", help="JSON file to write")
    parser.add_argument("--no_compile", action="store_true", help="leave out the compiled resumes of A2")
    given = parser.parse_args(argv)
    given.only = [name for name in given.only.split(",") if name] or list(CHECKS)
    if unknown := set(given.only) - CHECKS.keys():
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    return given


def perform(name, seed):
    """Does one check. Returns a row for the JSON file, and the traceback of what failed."""
    check, folder = CHECKS[name], tools.WORK / name
    what = inspect.getdoc(check.function).splitlines()[0].removesuffix(".")
    tools.DRAW.seed(f"{seed} {name}")    # a check draws the same alone and among others
    folder.mkdir()
    begun, passed, trace = time.monotonic(), True, ""
    try:
        measured = check.function(folder)
    except tools.Skip as skip:
        passed, measured = None, str(skip)
    except Exception as error:
        passed, measured, trace = False, f"{type(error).__name__}: {error}", traceback.format_exc()
    finally:
        clean_up()
    if passed:
        shutil.rmtree(folder, ignore_errors=True)
    return dict(id=name, what=what, critical=check.critical, passed=passed, measured=measured,
                seconds=round(time.monotonic() - begun, 1)), trace


def clean_up():
    """Ends the processes and the small file systems that a check has left, also if it was interrupted."""
    for process in processes.STARTED:
        if process.process.poll() is None or not process.group_is_gone():
            process.kill()
    processes.STARTED.clear()
    for folder in tools.MOUNTED:
        subprocess.run(["umount", "-l", str(folder)], check=False)
    tools.MOUNTED.clear()


def next_check(waiting, running):
    """Returns the name of the first waiting check that may start beside the running ones, or None."""
    if len(running) == LANES or any(CHECKS[name].alone for name in running):
        return None
    for name in waiting:
        missing = {*waiting, *running}.intersection(CHECKS[name].after)
        if not missing and not (CHECKS[name].alone and running):
            return name
    return None


def perform_all(names, seed):
    """Does the checks in LANES processes. Prints their lines in the order of the names, and returns the rows
    in this order."""
    waiting, running, rows, ended = list(names), {}, [], {}
    with ProcessPoolExecutor(LANES, get_context("fork")) as pool:
        while waiting or running:
            while name := next_check(waiting, running):
                waiting.remove(name)
                running[name] = pool.submit(perform, name, seed)
            wait(running.values(), return_when=FIRST_COMPLETED)
            ended |= {name: running.pop(name) for name in [*running] if running[name].done()}
            while len(rows) < len(names) and names[len(rows)] in ended:
                rows.append(print_line(*ended[names[len(rows)]].result()))
    return rows


def print_line(row, trace):
    """Prints the line of a check in the table, and what failed. Returns the row."""
    word = {True: "passed", False: "FAILED", None: "skipped"}[row["passed"]]
    print(f"{row['id']:4} {row['what']:104} {word:8} {row['seconds']:7.1f}  {one_line(row['measured'], 300)}",
          flush=True)
    if trace:
        print(trace, file=sys.stderr, flush=True)
    return row


def main(argv):
    """Runs the chosen checks. Returns the exit code."""
    given = parse(argv)
    exactness.COMPILED = not given.no_compile
    torch.set_num_threads(1)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)    # behind nohup, C1's runs would rightly ignore it
    begun = time.monotonic()
    try:
        tools.prepare_work()
        print(f"seed {given.seed}\n{'id':4} {'what':104} result   seconds  measured", flush=True)
        rows = perform_all([name for name in CHECKS if name in given.only], given.seed)
    finally:
        shutil.rmtree(tools.WORK, ignore_errors=True)

    count = {outcome: sum(row["passed"] is outcome for row in rows) for outcome in (True, False, None)}
    print(f"{count[True]} passed, {count[False]} failed, {count[None]} skipped, of {len(rows)}, "
          f"in {(time.monotonic() - begun) / 60:.1f} minutes")
    if given.out:
        Path(given.out).write_text(json.dumps(dict(seed=given.seed, checks=rows), indent=1) + "\n")
    return int(any(row["passed"] is False and row["critical"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
