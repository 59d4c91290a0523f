"""
A. Exactness: neither looking at a run nor interrupting it changes a bit of what it computes.
"""
import contextlib
import functools
import hashlib
import io
import json
import shutil
from unittest import mock

import numpy as np
import torch

from folders import differences, read_json, snapshot
from processes import start_with_fault, two_at_a_time
from seams import compiler_works, core_names, counts_steps, no_picture, schedule_late_by
from tiny_runs import VARIANTS, final, rewound
from tools import DATA, options, refused, run
from trainer import data, runs

COMPILED = True    # whether A2 also resumes compiled runs; --no_compile sets this to False


@no_picture()
def looking_changes_nothing(folder):
    """Looking changes nothing: other intervals of logging, validating and saving give the same bits.

    Six runs of 30 steps differ in how often they log, validate and save. All must end with the same weights
    and the same optimizer state.
    """
    for name, more in dict(a=[], b=[], c=["--eval_every=3", "--log_every=10"], d=["--eval_every=7"],
                           e=["--eval_every=0", "--save_every=10"], f=["--log_blocks", "--keep=9"]).items():
        run(folder, name, "--steps=30", *more)
        assert not differences(folder / "a", folder / name, metrics=False), name
    return "6 of 6 runs equal"


@no_picture()
def resumes_are_exact(folder):
    """A resume in a new process gives the same bits, for every rule and option, in fp32 and in bf16.

    Every variant runs 30 steps. A copy of its folder goes back to the checkpoint of step 13 and is resumed in
    another process. Weights, optimizer state and logged numbers must be the same. The core rules do so
    once more as compiled code, if this machine has a compiler.
    """
    cases = {f"{name},{precision}": [*more, f"--precision={precision}", "--steps=30", "--save_every=13",
                                     "--keep=9"]
             for name, more in VARIANTS.items() for precision in ("fp32", "bf16")}
    commands = []
    for name, more in cases.items():
        run(folder, f"whole,{name}", *more)
        rewound(folder / f"whole,{name}", folder / f"again,{name}", 13)
        commands.append(options(folder, f"again,{name}", *more, "--resume"))
    process = start_with_fault("none", folder, commands)
    process.end_well(300)
    assert process.text().count("resumed from") == len(cases)
    names = list(cases)
    if COMPILED and compiler_is_here():
        names += two_at_a_time(functools.partial(resume_compiled, folder), core_names())
    for name in names:
        different = differences(folder / f"whole,{name}", folder / f"again,{name}")
        assert not different, (name, different)
    return f"{len(cases)} of {len(cases)} equal, and {len(names) - len(cases)} compiled"


def compiler_is_here():
    """Whether torch.compile works on this machine. What the program prints about it is left out."""
    with contextlib.redirect_stdout(io.StringIO()):
        return compiler_works()


def resume_compiled(folder, optimizer):
    """Runs an optimizer as compiled code, and resumes it from step 5 of 8, each in a process of its own.

    Returns the part of the two names that they share.
    """
    usual = [f"--optimizer={optimizer}", "--steps=8", "--save_every=5", "--keep=9", "--compile=true"]
    name = f"{optimizer},compiled"
    whole, again = f"whole,{name}", f"again,{name}"
    start_with_fault("none", folder / "whole" / optimizer, [options(folder, whole, *usual)]).end_well(200)
    rewound(folder / whole, folder / again, 5)
    start_with_fault("none", folder / "again" / optimizer,
                     [options(folder, again, *usual, "--resume")]).end_well(200)
    return name


# ---------------------------------------------------------------------------------------------------------
# What a resume could lose

def clear_state(state):
    """Sets all entries of a parameter's state to zero, except for the step count."""
    for key in state:
        state[key] = 0 if key == "t" else torch.zeros_like(state[key])


def round_state(state):
    """Rounds all tensors of a parameter's state to bfloat16."""
    for key in state:
        if torch.is_tensor(state[key]):
            state[key] = state[key].bfloat16().float()


def clear_step_count(state):
    """Sets the step count of a parameter's state to zero."""
    state.update(t=0)


def shift_order():
    """Patches the order of the data: it answers as if training had begun 8 sequences later."""
    order = data.Order.__call__

    def shifted(self, first, count):
        return order(self, first + 8, count)

    return mock.patch.object(data.Order, "__call__", shifted)


STATE_LOSSES = dict(no_state=clear_state, rounded=round_state, step_0=clear_step_count)
PROGRAM_LOSSES = dict(shifted=shift_order, schedule=functools.partial(schedule_late_by, 13))


@no_picture()
def losses_are_noticed(folder):
    """The comparison of A2 notices everything that a resume could lose.

    Each resume from step 13 loses one thing: the state, its precision, its step count, its place in the data
    or its place in the schedule. The weights after 20 steps must differ from those of the uninterrupted run.
    """
    noticed = 0
    for name, variant in VARIANTS.items():
        more = [*variant, "--steps=20", "--save_every=13", "--keep=9", "--precision=fp32"]
        run(folder, name, *more)
        groups = runs.load_checkpoint(folder / f"{name}/step-00000013.pt")["optimizer"]["param_groups"]
        uses_step_count = any(counts_steps(group["rule"]) for group in groups)
        for loss in [*STATE_LOSSES, *PROGRAM_LOSSES]:
            if loss == "step_0" and not uses_step_count:
                continue
            copy = rewound(folder / name, folder / f"{name},{loss}", 13)
            if loss in STATE_LOSSES:
                edit_states(copy / "step-00000013.pt", STATE_LOSSES[loss])
            with PROGRAM_LOSSES.get(loss, contextlib.nullcontext)():
                run(folder, copy.name, *more, "--resume")
            weights, weights_after_loss = final(folder / name)[0], final(copy)[0]
            assert any(not torch.equal(weights[k], weights_after_loss[k]) for k in weights), (name, loss)
            noticed += 1
    return f"{noticed} of {noticed} losses noticed"


def edit_states(path, change):
    """Changes the optimizer state in a checkpoint, one parameter at a time."""
    content = torch.load(path, weights_only=True)
    for state in content["optimizer"]["state"].values():
        change(state)
    runs.save_checkpoint(path, content)


# ---------------------------------------------------------------------------------------------------------
# Where a resume starts, and with which settings

@no_picture()
def every_step_can_be_resumed(folder):
    """A resume after each of 12 steps gives the same bits, and a finished run is left alone.

    The run saves after every step. Twelve copies go back to one step each and are resumed.
    """
    more = ["--save_every=1", "--keep=99"]
    run(folder, "a", *more)
    for step in range(1, 13):
        rewound(folder / "a", folder / f"at{step}", step)
        run(folder, f"at{step}", *more, "--resume")
        assert not differences(folder / "a", folder / f"at{step}"), step
    before = snapshot(folder / "a")
    assert "already complete" in run(folder, "a", *more, "--resume") and snapshot(folder / "a") == before
    return "12 of 12 equal; a finished run is left alone"


def changed_settings_are_refused(folder):
    """A resume with other settings or other data is refused, and the message names what differs.

    Only settings that cannot change the result may differ. A refused resume writes nothing. Another number of
    threads is allowed with a note, since it may change bits. The checkpoint itself knows the settings, too.
    """
    run(folder, "a", "--keep=9", "--optimizer=adamw")
    precision = read_json(folder / "a/config.json")["precision"]
    other = "bf16" if precision == "fp32" else "fp32"
    changes = {"--layers=3": "2", "--optimizer=lion": "adamw", "--lr=0.5": "0.01", "--seed=1": "0",
               "--batch=4": "8", f"--precision={other}": precision, "--beta2=0.5": "0.95", "--clip=2": "1.0",
               "--stop_loss=9": "0.0", "--init_from=x": "", "--attention=sdpa": "plain", "--steps=13": "12",
               "--vocab_size=301": "300"}
    rewound(folder / "a", folder / "b", 10)
    before = snapshot(folder / "b")
    for change, old in changes.items():
        line = refused(options(folder, "b", change, "--resume"), change.split("=")[0])
        assert "was started with " + old in line or "--vocab" in line, line

    other_data = f"--data={folder / 'data'}"
    shutil.copytree(DATA, folder / "data")
    shard = folder / "data/train-00000.bin"
    ids = np.fromfile(shard, "<u2", offset=data.HEADER_BYTES).astype(np.int64)
    ids[100] = (ids[100] + 1) % 256
    shard.write_bytes(shard.read_bytes()[:data.HEADER_BYTES] + ids.astype("<u2").tobytes())
    refused(options(folder, "b", other_data, "--verify_data", "--resume"), str(shard))
    header, body = data.shard_bytes(ids, 300)    # as if prepared again from another text of the same size
    shard.write_bytes(header + bytes(body))
    meta = read_json(folder / "data/meta.json")
    meta["splits"]["train"]["shards"][0]["sha256"] = hashlib.sha256(body).hexdigest()
    (folder / "data/meta.json").write_text(json.dumps(meta))
    refused(options(folder, "b", other_data, "--resume"), "holds other tokens")

    changed = {path: file for path, file in snapshot(folder / "b").items() if before.get(path) != file}
    assert all(path.name == "lock" for path in changed), changed
    out = run(folder, "b", "--threads=2", "--log_every=2", "--eval_every=4", "--save_every=3", "--resume")
    assert out.count("note: threads was 1 and is 2: not bit for bit the same") == 1

    (folder / "a/config.json").unlink()    # the settings are still in the checkpoint
    rewound(folder / "a", folder / "c", 10)
    refused(options(folder, "c", "--lr=0.5", "--resume"), "--lr=0.5: this run was started with 0.01")
    return f"{len(changes) + 3} of {len(changes) + 3} refused; a warning for threads"
