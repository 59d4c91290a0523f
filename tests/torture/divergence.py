"""
E. Divergence: a step that is not finite reaches no weight, and a run that diverges has a result.
"""
import itertools
import re
import shutil
from unittest import mock

import torch

from folders import checkpoints, read_json, snapshot
from model import Decoder
from processes import TWO_RANKS, all_gone, process_ids, start_with_fault, two_at_a_time
from seams import catch_optimizers, core_names, no_picture
from tiny_runs import VARIANTS
from tools import error_line, options, refused, run
from trainer import runs


def nonfinite_steps_reach_no_weight(folder):
    """Every rule stops before the update if step 7 has NaN or infinity in a gradient or in the loss.

    The error line must name the loss, or the gradient norm and the first broken tensor. Weights and optimizer
    state in memory must still be, bit for bit, those of the checkpoint of step 6.
    """
    count = 0
    broken_values, places = (float("nan"), float("inf"), -float("inf")), ("loss", "gradient")
    for (name, variant), clip in itertools.product(VARIANTS.items(), ("1", "0")):
        usual = [*variant, f"--clip={clip}", "--save_every=6", "--final_windows=5", "--eval_every=0",
                 "--steps=8"]
        if clip == "0":    # without clipping, SGD would diverge before step 7 at its usual learning rate
            usual += ["--lr=1e-3"] + ["--rest_lr=1e-3"] * ("--rest" in str(variant))
        run(folder, f"{name},{clip}", *usual)
        step_6 = runs.load_checkpoint(folder / f"{name},{clip}" / "step-00000006.pt")
        for value, where in itertools.product(broken_values, places):
            break_step_7(folder, f"{name},{clip},{value},{where}", usual, value, where, step_6)
            count += 1
    return f"{count} of {count} stopped before the update"


def break_step_7(folder, name, usual, value, where, step_6):
    """Runs the tiny model with a value that is not finite in step 7, and looks at what is left.

    Args:
        folder, name, usual: where and how the model runs.
        value: the value that takes the place of a finite one.
        where: "loss", or "gradient" for one number of the gradient of head.weight.
        step_6: the checkpoint of step 6 of a run without the fault.
    """
    losses, models, optimizers = Decoder.losses, [], []

    def one_broken_number(gradient):
        gradient = gradient.clone()
        gradient.view(-1)[5] = value
        return gradient

    def broken_losses(self, x, targets, z_loss):
        models.append(self)
        objective, loss, z = losses(self, x, targets, z_loss)
        if len(models) == 7 and where == "loss":
            return objective + value, loss + value, z
        if len(models) == 7:
            self.head.weight.register_hook(one_broken_number)
        return objective, loss, z

    with mock.patch.object(Decoder, "losses", broken_losses), catch_optimizers(optimizers), no_picture():
        line = refused(options(folder, name, *usual), "step 7: the ", 3)
    assert ("the loss" if where == "loss" else "the gradient norm") in line, line
    assert where == "loss" or "head.weight" in line, line
    weights, states = models[0].state_dict(), optimizers[0].state_dict()["state"]
    assert all(torch.equal(weights[k], v) for k, v in step_6["model"].items()), name
    for i, state in step_6["optimizer"]["state"].items():
        assert all(torch.equal(torch.as_tensor(states[i][k]), torch.as_tensor(v))
                   for k, v in state.items()), name
    assert checkpoints(folder / name)[-1].name == "step-00000006.pt"
    assert read_json(folder / name / "status.json")["status"] == "diverged"
    shutil.rmtree(folder / name)


def both_ranks_stop_at_nan(folder):
    """Both ranks stop at the same step if rank 1 alone has a NaN.

    In the loss, the line must name rank 1. In a gradient it names none, since the ranks share the mean of
    their gradients. The newest checkpoint stays that of step 5.
    """
    took = two_at_a_time(lambda fault: break_rank_1(folder / fault, fault), ["nan-loss", "nan-gradient"])
    return f"2 of 2, gone after {max(took):.1f} s"


def break_rank_1(place, fault):
    """Runs two ranks with a fault on rank 1 in step 9. Returns the seconds until both have left."""
    process = start_with_fault(f"{fault}@1", place, [options(place, "a", *TWO_RANKS)], ranks=2)
    ids = process_ids(place)
    process.wait_for("train.py: error")
    seconds = all_gone(process, ids, 20)
    line = error_line(process.text(), "step 9: the ")
    assert ("on rank 1" in line) == (fault == "nan-loss"), line
    status = read_json(place / "a/status.json")
    assert status["status"] == "diverged" and status["step"] == 9
    assert checkpoints(place / "a")[-1].name == "step-00000005.pt"
    return seconds


def divergence_is_a_result(folder):
    """A learning rate of 1e3 with --stop_loss gives a result, with its last loss, and is not tried again.

    The last loss in status.json must be below --stop_loss. A resume is refused with the same exit code and
    changes nothing.
    """
    names = core_names()
    for name in names:
        more = [f"--optimizer={name}", "--lr=1e3", "--stop_loss=30", "--steps=40"]
        line = refused(options(folder, name, *more), "step ", 3)
        status = read_json(folder / name / "status.json")
        assert status["status"] == "diverged" and 0 < status["loss"] <= 30 and status["step"] < 40, line
        before = snapshot(folder / name)
        refused(options(folder, name, *more, "--resume"), "diverged at step", 3)
        assert snapshot(folder / name) == before
    return f"{len(names)} of {len(names)}"


def last_step_is_checked(folder):
    """Weights that the only step of a run breaks are noticed: no checkpoint, no result, no NaN as JSON.

    The learning rate of 1e300 is infinite in fp32. At 1e25 the weights stay finite, but the loss does not, at
    the latest after three steps.
    """
    names = core_names()
    for name in names:
        for lr, steps, words in (("1e300", 1, "step 1: the weights are not finite (first tensor: "),
                                 ("1e25", 3, "not finite")):
            place = f"{name},{lr}"
            refused(options(folder, place, f"--optimizer={name}", f"--lr={lr}", f"--steps={steps}",
                            "--save_every=0", "--log_blocks"), words, 3)
            assert lr == "1e25" or not checkpoints(folder / place)
            for path in (folder / place / "status.json", folder / place / "metrics.jsonl"):
                assert not re.search("NaN|Infinity", path.read_text()), path
            assert read_json(folder / place / "status.json")["status"] == "diverged"
    return f"{2 * len(names)} of {2 * len(names)}"
