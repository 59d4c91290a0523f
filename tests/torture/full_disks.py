"""
B3. Full disks: a run that cannot write ends with one line, and goes on exactly once there is space.
"""
import re
import subprocess
from unittest import mock

from folders import differences, read_json
from seams import WRITERS
from tools import call, error_line, fill, options, run, small_disk
from trainer import runs


def full_disks_break_nothing(folder):
    """A full disk breaks nothing: at the first, second and third checkpoint, and in every other file.

    The run must end with exit code 4 and one line that names the file, and must leave no temporary file.
    Earlier checkpoints stay whole. With more space, the resumed run must equal an undisturbed one.
    """
    more = ["--width=128", "--steps=6", "--save_every=2", "--eval_every=0"]
    run(folder, "whole", *more)
    size = (folder / "whole/step-00000006.pt").stat().st_size
    lines = [fill_at_a_checkpoint(folder, more, size, number) for number in (1, 2, 3)]
    more = ["--steps=60", "--save_every=0", "--eval_every=0"]
    run(folder, "small", *more)
    for file in WRITERS:
        fill_at_a_file(folder, more, 2 * size, file)
    return f"3 checkpoints, 4 other files; {lines[0][-60:]}"


def fill_at_a_checkpoint(folder, more, size, number):
    """The disk is full when checkpoint `number` of `size` bytes is written. Returns the error line."""
    with small_disk(int(2.5 * size)) as disk:    # without a filler, the third does not fit
        if number < 3:
            fill(disk, leave=int((number - 0.5) * size))
        code, _, err = call(options(disk, "a", *more))
        line = error_line(err, f"step-{2 * number:08d}.pt: could not be written: No space left on device")
        numbers = re.findall(r"([\d,]+) (?:bytes needed|free)", line)
        needed, free = (int(each.replace(",", "")) for each in numbers)
        assert code == 4 and needed >= 0.99 * size > free, (code, line)
        assert not list((disk / "a").glob(".*.tmp"))
        for step in range(2, 2 * number, 2):
            runs.load_checkpoint(disk / f"a/step-{step:08d}.pt")
        assert read_json(disk / "a/status.json")["status"] == "failed"

        (disk / "filler").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", f"remount,size={5 * size}", str(disk)], check=True)
        run(disk, "a", *more, "--resume")
        assert not differences(folder / "whole", disk / "a")
    return line


def fill_at_a_file(folder, more, size, file):
    """The disk of `size` bytes becomes full just before one of the files in WRITERS is written."""
    owner, name, wanted_call = WRITERS[file]
    write, calls = getattr(owner, name), []
    with small_disk(size) as disk:

        def fill_and_write(*arguments, **named):
            calls.append(name)
            if len(calls) == wanted_call:
                fill(disk)
            return write(*arguments, **named)

        with mock.patch.object(owner, name, fill_and_write):
            code, _, err = call(options(disk, "a", *more))
        line = error_line(err, f"a/{file}: could not be written: No space left on device")
        assert code == 4 and "bytes needed" in line, line
        assert not list((disk / "a").glob(".*.tmp"))
        (disk / "filler").unlink()
        run(disk, "a", *more, "--resume")
        assert not differences(folder / "small", disk / "a")
