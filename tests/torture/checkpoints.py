"""
B. Checkpoints: no kill, full disk or damaged file takes away what a run has saved.
"""
import contextlib
import hashlib
import io
import os
import random
import re
import threading
import time
import zipfile
from pathlib import Path
from unittest import mock

from folders import checkpoints, differences, snapshot, step_of
from processes import start_train, two_at_a_time, wait
from tiny_runs import rewound
from tools import DRAW, keep_metrics, options, refused, run
from trainer import runs

# ---------------------------------------------------------------------------------------------------------
# B1. Kills

BIG = ["--width=256", "--heads=4", "--batch=4", "--eval_every=0", "--steps=400"]    # a checkpoint of 22 MB


def kills_lose_nothing(folder):
    """50 kills at random moments, in and between writes of 22 MB checkpoints, lose nothing that was saved.

    Two runs save after every step and are killed 25 times each. Every resume must start at the last
    checkpoint that was announced, or a later one, and must clear temporary files away. At the end, both runs
    must equal a run that nothing has disturbed.
    """
    run(folder, "whole", *BIG, "--save_every=0")
    draws = [random.Random(DRAW.random()) for _ in range(2)]
    in_a_write = two_at_a_time(lambda k: kill_25_times(folder, folder / f"lane{k}", draws[k]), range(2))
    kills_in_a_write = sum(map(sum, in_a_write))
    assert kills_in_a_write >= 8, f"only {kills_in_a_write} kills hit a write"
    return f"{sum(map(len, in_a_write))} of 50 resumed, {kills_in_a_write} kills in a write"


def kill_25_times(folder, place, draw):
    """Starts one run again and again, kills it at moments from `draw`, and at last lets it end.

    Returns the number of temporary files after each kill: 1 if it came in the middle of a write, else 0.
    """
    saved, in_a_write = 0, []
    for k in range(25):
        process = start_train(*options(folder, place.name, *BIG, "--save_every=1", "--resume"))
        assert process.wait_for("saved "), process.text()
        time.sleep(draw.uniform(0, 0.6))
        process.kill()
        text = process.text()
        resumed = [int(step) for step in re.findall(r"resumed from .*step-(\d+)\.pt", text)]
        assert (resumed[0] if resumed else 0) >= saved, (resumed, saved)
        assert len(resumed) == (k > 0) and "skipped" not in text, text
        saved = max(int(step) for step in re.findall(r"saved .*step-(\d+)\.pt", text))
        in_a_write.append(len(list(place.glob(".*.pt.*.tmp"))))
        assert in_a_write[-1] <= 1, "the resume before left a temporary file"
    size = max(path.stat().st_size for path in checkpoints(place))
    assert size >= 20e6, size
    keep_metrics(place / "metrics.jsonl")
    process = start_train(*options(folder, place.name, *BIG, "--save_every=0", "--resume"))
    process.end_well(120)
    assert not list(place.glob(".*.tmp")) and not differences(folder / "whole", place)
    keep_metrics(place / "metrics.jsonl")
    return in_a_write


# ---------------------------------------------------------------------------------------------------------
# B2. Power cuts

def writes_survive_a_power_cut(folder):
    """A checkpoint is written in the order that survives a power cut.

    Spies record the calls. They must come in exactly this order: fsync of the measurements that led to the
    checkpoint, write of a temporary file, its fsync, its move into place, fsync of the folder, the line that
    announces the checkpoint, and only then the deletion of an old one.
    """
    calls = []

    def spy(owner, name, label):
        real = getattr(owner, name)

        def recorded(*arguments, **named):
            path = arguments[0]
            if label == "fsync":    # it is given an open file
                path = os.readlink(f"/proc/self/fd/{path}")
            calls.append((label, str(path)))
            return real(*arguments, **named)

        return mock.patch.object(owner, name, recorded)

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


# ---------------------------------------------------------------------------------------------------------
# B4. Damage

def damaged_checkpoints_are_skipped(folder):
    """Truncated, flipped and foreign checkpoints are noticed, skipped and named.

    The newest checkpoint is cut at 20 places, has one bit flipped at 200 places, or is replaced by other
    files or by a folder. Each time the run must go back to the checkpoint before and name the bad one, and
    --init_from must refuse the bad one. Where no checkpoint is whole, the resume is refused and changes
    nothing.
    """
    run(folder, "a", "--keep=9")
    content = (folder / "a/step-00000012.pt").read_bytes()
    rewound(folder / "a", folder / "b", 12)
    path = folder / "b/step-00000012.pt"
    cuts = [0, 1, 30, 64, len(content) // 2, len(content) - 1, len(content) - runs.TRAILER_BYTES] + \
        [DRAW.randrange(len(content)) for _ in range(13)]
    flips = [DRAW.randrange(8 * len(content)) for _ in range(200)]
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("data.pkl", b"x")
    foreign = zipped.getvalue()
    signed = foreign + b"\nsha256 " + hashlib.sha256(foreign).hexdigest().encode() + b"\n"

    noticed = 0
    held = runs.Run(folder, "b", resume=True)
    for bad in [*(content[:cut] for cut in cuts), *(with_flipped_bit(content, bit) for bit in flips),
                b"", foreign, signed, None]:    # None stands for a folder
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
    path.write_bytes(with_flipped_bit(content, flips[0]))
    del held    # and with it the lock
    out = run(folder, "b", "--keep=9", "--resume")
    assert f"skipped {path}" in out and not differences(folder / "a", folder / "b")

    rewound(folder / "a", folder / "c", 12)
    for each in checkpoints(folder / "c"):
        each.write_bytes(each.read_bytes()[:-1])
    before = snapshot(folder / "c")
    refused(options(folder, "c", "--resume"), "none of its")
    refused(options(folder, "c"), "already holds files")
    changed = {k.name for k, v in snapshot(folder / "c").items() if before.get(k) != v} - {"lock"}
    assert changed <= {"status.json"}, changed
    return f"{noticed} of {noticed} noticed"


def with_flipped_bit(content, bit):
    """Returns a copy of some bytes in which one bit is flipped."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# ---------------------------------------------------------------------------------------------------------
# B5. How many are kept

def newest_checkpoints_are_kept(folder):
    """The newest 2 or 3 checkpoints are kept, and at least one exists at any moment.

    A thread counts the checkpoints all the time. --keep below 2 is refused. An old checkpoint that cannot be
    deleted is named in a note, and the run goes on.
    """
    keep_newest(folder, 2)
    keep_newest(folder, 3)
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


def keep_newest(folder, keep):
    """Runs 8 steps with --keep, and counts the checkpoints from the first one on until the end."""
    place, counts, over = folder / f"keep{keep}", [], threading.Event()

    def watch():
        while not over.is_set():
            count = len(list(place.glob("step-*.pt")))
            if count or counts:
                counts.append(count)
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run(folder, place.name, f"--keep={keep}", "--steps=8", "--save_every=1", "--eval_every=0")
    finally:
        over.set()
        watcher.join()
    assert min(counts, default=99) >= 1
    assert [step_of(path) for path in checkpoints(place)] == list(range(9 - keep, 9))


# ---------------------------------------------------------------------------------------------------------
# B6. Locks

def one_process_per_folder(folder):
    """A folder that is used or locked is refused, and the lock of a killed process is free.

    A second process must leave the folder of the first as it is, whatever options it has, and the first must
    go on. A run that is refused for another reason makes no folder.
    """
    endless = ["--steps=100000", "--save_every=50", "--eval_every=0"]
    run(folder, "done")
    before = snapshot(folder / "done")
    refused(options(folder, "done"), "already holds files")
    assert snapshot(folder / "done") == before
    first = start_train(*options(folder, "a", *endless))
    assert first.wait_for("saved ")

    def went_on(*arguments):
        raise AssertionError("a second process went on in the folder of the first")

    with mock.patch.object(runs.Run, "rewind", went_on):
        for more in ([], ["--resume"], ["--overwrite"]):
            words = "another process" if more else "already holds files"
            refused(options(folder, "a", *endless, *more), words)
    refused(options(folder, "new", "--vocab_size=299"), "has 300")
    assert not (folder / "new").exists()
    mark = len(first.lines)
    wait(lambda: len(first.lines) > mark, 60, "the first process stands still")
    first.kill()
    second = start_train(*options(folder, "a", *endless, "--resume"))
    assert second.wait_for("resumed from")
    second.kill()
    return "5 of 5 refused, the first went on, the lock was free after its kill"
