"""
Measurements during a run, and the picture of what it did.
"""
import contextlib
import math
import os
import sys
from collections.abc import Sized
from dataclasses import asdict
from typing import BinaryIO

import numpy as np
import torch

import zoo
from optim import factored
from trainer.settings import FREE, Settings, defaults

QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


def evaluate(model: torch.nn.Module, tokens, count: int, machine, autocast, *, micro_batch: int,
             z_loss: float, stop: Sized = ()) -> float | None:
    """Returns the mean cross-entropy in nats per token over `count` windows that are spread over a split.

    Args:
        model: it is called with token ids of shape (B, T), the targets and z_loss, as in training. So the
            code that training has compiled serves here too.
        tokens: the split, a trainer.data.Tokens.
        count: the number of windows.
        machine: the ranks of this trainer.machine.Machine share the windows.
        autocast: the context in which the model computes.
        micro_batch: windows at a time on each rank.
        stop: the signals that have arrived. After a signal on any rank, all ranks return None."""
    windows = np.arange(count) * len(tokens) // count
    windows = windows[machine.rank::machine.world]
    total = 0.0
    for i in range(0, len(windows), micro_batch):
        if stop:
            break
        ids = torch.from_numpy(tokens[windows[i:i + micro_batch]]).to(machine.device)
        is_whole = len(ids) == micro_batch    # torch would have to compile anew for another size
        eager = contextlib.nullcontext() if is_whole else torch.compiler.set_stance("force_eager")
        with autocast, eager:
            _, loss, _ = model(ids[:, :-1], ids[:, 1:], z_loss)
        total += loss.item() * len(ids)
    total, stopped = machine.sum(total, len(stop))
    return None if stopped else total / count


def validation_losses(training, count: int) -> dict | None:
    """Returns {"loss": the validation loss} in nats per token. If the optimizer has averages of the weights,
    there is also "average_loss", the loss of these. After a signal on any rank, all ranks return None.

    Args:
        training: the Training of train.py.
        count: the number of windows."""
    def loss():
        return evaluate(training.model, training.val_set, count, training.machine, training.autocast,
                        micro_batch=training.micro_batch, z_loss=training.config.z_loss, stop=training.stop)
    losses = dict(loss=loss())
    if training.optimizer.has_averages() and losses["loss"] is not None:
        with training.optimizer.averages():
            losses["average_loss"] = loss()
    return None if None in losses.values() else losses


def effective_lr(optimizer: zoo.Optimizer) -> list:
    """What Fig. 7 of the paper shows: the lr that each block really has, lr / (sqrt(v_hat) + eps).

    Returns a list of {name, role, values}, one for each parameter that has moved and has a second moment.
    values: 1-D, fp32, in weight per gradient, one for each block (of adamw, adafactor: for each weight). A
        block whose v is 0 is left out: it has never had a gradient, such as a token that no text has."""
    rows = []
    for group, i, p in optimizer.each_parameter():
        if (v := second_moment(optimizer, group, p)) is not None and v.any():
            values = (group["lr"] / (v[v != 0].sqrt() + group.get("eps", 0.0))).float()
            rows.append(dict(name=group["names"][i], role=group["roles"][i], values=values))
    return rows


def second_moment(optimizer: zoo.Optimizer, group: dict, p: torch.Tensor) -> torch.Tensor | None:
    """Returns v_hat of a parameter of a group. It has the shape of the rule's state, but a v that the rule
    keeps as two factors has the shape of the weight. Returns None if the rule has no second moment, or if the
    parameter has not moved yet."""
    rule, state = optimizer.rules[group["rule"]], optimizer.state.get(p)
    if not state or not rule.second_moment:
        return None
    v, *c = [state[name] for name in rule.second_moment]    # v, or the factors r and c of v
    return (factored(v, *c) if c else v) / (1 - group["beta2"] ** state["t"] if rule.corrected else 1)


def gradient_over_root(g: torch.Tensor, v: torch.Tensor, eps: float) -> float:
    """Returns rms(g / sqrt(v)), which is about 1 while gradients are as large as before. The v includes g.

    Source: Wortsman et al. (2023), arXiv 2304.13013, where it rises 1 to 8 steps before the loss does.

    Args:
        g: the gradient of a tensor.
        v: as second_moment() returns it. If it is a vector, each of its numbers is for one block of g."""
    if v.dim() == 1:
        g, v = g.reshape(len(v), -1), v[:, None]
    root = v.sqrt().clamp_min(max(eps, torch.finfo(v.dtype).tiny))    # where nothing ever came, it is 0 / 0
    return (g / root).square().mean().sqrt().item()


def signal_to_noise(v: torch.Tensor, blocks: int = 1) -> dict:
    """Returns how well a single number could stand for all the v of a row, of a column, and of the tensor.

    It is mean(v)^2 / variance(v) within each row (each column, each block), averaged over the rows (columns,
    blocks). A row in which all v are 0 does not count. A vector has neither rows nor columns.
    Source: SlimAdam (Kalra et al., 2025), arXiv 2503.01843. It averages v where the ratio is above 1.

    Args:
        v: one number for each weight.
        blocks: how many blocks the tensor has, such as 3 for the fused q, k, v.
    Returns: {"row", "column", "tensor"}, or {"tensor"} for a vector."""
    axes_of = (dict(row=(2,), column=(1,)) if v.dim() > 1 else {}) | dict(tensor=(1, 2))
    v, ratios = v.reshape(blocks, len(v) // blocks, -1), {}
    for name, axes in axes_of.items():
        mean = v.mean(axes, keepdim=True)
        # to divide by the mean first prevents underflow: a v of 1e-25 has a variance of 1e-50
        variance = (v / mean).var(axes, correction=0, keepdim=True)
        ratios[name] = variance[mean > 0].reciprocal().mean().item()
    return ratios


def bits_per_byte(loss: float, tokens) -> float:
    """Returns a loss, which is in nats per token of a split, in bits per byte of its text."""
    return loss / math.log(2) / tokens.bytes_per_token


def look_into(optimizer: zoo.Optimizer, before: dict) -> dict:
    """Returns what the last step did.

    Args:
        before: {parameter: the weights before that step}.
    Returns: a dict for metrics.jsonl.
        effective_lr: {role or set of roles: quantiles of the effective lr}.
        largest_u: {role or set of roles: largest |u|}. It leaves out a role if a modifier gives each weight
            its own decay.
        blocks: {parameter: {role, update, weight, grad}}. The last three are root mean squares. If its rule
            has a second moment, there is also grad_over_root_v, and if that has a number for each weight,
            snr. See gradient_over_root() and signal_to_noise()."""
    effective, largest, blocks = {}, {}, {}
    for row in effective_lr(optimizer):
        for label in labels_of(row["role"]):
            effective.setdefault(label, []).append(row["values"])
    for label, values in effective.items():
        values = torch.cat(values).sort().values    # torch.quantile accepts at most 16 million values
        effective[label] = [values[round(q * (len(values) - 1))].item() for q in QUANTILES]
    for group, i, p in optimizer.each_parameter():
        weight, old = p.detach(), before[p]
        tensors = dict(update=weight - old, weight=weight, grad=p.grad)
        block = {key: x.square().mean().sqrt().item() for key, x in tensors.items()}
        block["role"] = role = group["roles"][i]
        if (v := second_moment(optimizer, group, p)) is not None:
            block["grad_over_root_v"] = gradient_over_root(p.grad, v, group.get("eps", 0.0))
            if v.dim() and v.shape == p.shape:
                block["snr"] = signal_to_noise(v, blocks=3 if role == "qkv" else 1)
        blocks[group["names"][i]] = block
        if optimizer.rules[group["rule"]].changes_decay:
            continue
        decayed = optimizer.decay(group, optimizer.state[p]["t"]) * old
        moved = (decayed - weight).abs().max().item()    # lr |u|
        for label in labels_of(role):
            u = moved / group["lr"] if group["lr"] else 0.0
            largest[label] = max(largest.get(label, 0.0), u)
    return dict(effective_lr=effective, largest_u=largest, blocks=blocks)


def labels_of(role: str) -> list:
    """Returns the role and the sets of roles that it belongs to, such as ["mlp_up", "matrix"]."""
    return [label for label, roles in zoo.ROLE_SETS.items() if role in roles]


def broken_gradient(parameters: dict) -> str | None:
    """Returns the name of the first parameter whose gradient is not finite, or None."""
    return next((name for name, p in parameters.items() if not p.grad.isfinite().all()), None)


def broken_weight(parameters: dict) -> str | None:
    """Returns the name of the first parameter that is not finite, or None."""
    return next((name for name, p in parameters.items() if not p.isfinite().all()), None)


def likely_cause(name: str, optimizer: zoo.Optimizer) -> str:
    """Returns "; ..." that may explain weights that are not finite, or "". name: the rule, or its file."""
    if any(group.get("eps") == 0 for group in optimizer.param_groups):
        return "; with an eps of 0, a gradient of 0 gives 0 / 0"
    return f"; `python -m lessons check {name}` looks for faults in the rule" if name.endswith(".py") else ""


def sizes_of(model: torch.nn.Module) -> dict:
    """The number of weights of a Decoder, and of those outside embedding and head."""
    sizes = [(role, p.numel()) for _, p, role in model.roles()]
    return dict(weights=sum(size for _, size in sizes),
                hidden=sum(size for role, size in sizes if role not in ("embed", "head")))


def checksum(model: torch.nn.Module, optimizer: zoo.Optimizer) -> int:
    """Returns a number that depends on every bit of weights and state. A float64 holds it exactly."""
    state = [x for entry in optimizer.state.values() for x in entry.values() if torch.is_tensor(x)]
    bytes_of_all = [x.detach().flatten().view(torch.uint8) for x in [*model.parameters(), *state]]
    return sum(int(x.sum(dtype=torch.int64)) * (i + 1) for i, x in enumerate(bytes_of_all)) % 2**53


def unpromised(settings: Settings, hyper: dict) -> list[str]:
    """Returns the names of the options in force for which the config file promises no loss: those that differ
    from the file's own. It reads the file, so call it at the start: later, somebody may have edited it."""
    usual = defaults(settings.config, settings.optimizer)
    tolerated = FREE - {"data", "final_windows"}
    tolerated |= {"seed", "device", "precision", "attention", "loss_chunk", "compile"}
    in_force = asdict(settings) | hyper
    return [name for name in in_force if name not in tolerated and in_force[name] != usual.get(name)]


def promise(optimizer: str, changed: list[str], tables: dict, loss: float) -> str:
    """Returns a line that compares the loss with the loss that the file's table [expect] promises.

    Args:
        optimizer: the name of the rule.
        changed: the options for which nothing is promised; see unpromised().
        tables: those of the config file.
        loss: the final validation loss, in nats per token."""
    entry = tables.get("expect", {}).get(optimizer)
    if not entry or changed:
        return f"no loss is promised for these settings{' (' + ', '.join(changed) + ')' if entry else ''}"
    verdict = "as promised" if abs(loss - entry["loss"]) <= entry["tolerance"] else "NOT AS PROMISED"
    return f"promised for these settings: {entry['loss']} +- {entry['tolerance']} nats per token: {verdict}"


def draw_run(rows: list, file: BinaryIO, title: str) -> None:
    """Draws one run over its steps as a PNG.

    Args:
        rows: the lines of its metrics.jsonl.
        file: the file that receives the picture.
        title: the title of the picture."""
    draw_runs({"": rows}, file, title)


def draw_runs(rows_of: dict[str, list], file: BinaryIO, title: str, format: str = "png") -> None:
    """Draws the losses, learning rates and gradient norms of runs over their steps, one below the other.

    Args:
        rows_of: {name of a run: the lines of its metrics.jsonl}.
        file, title: as in draw_run.
        format: what the file is to hold, such as png or pdf."""
    figure = blank_figure(7, 7.5)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
    loss, lr, norm = panels
    for i, (name, rows) in enumerate(rows_of.items()):
        color = f"C{i % 10}"
        curves = ((loss, "train", "loss", dict(alpha=0.45, label=f"{name} training".strip())),
                  (loss, "val", "loss", dict(marker="o", label=f"{name} validation".strip())),
                  (loss, "val", "average_loss", dict(marker="s", ls=":", label=f"{name} averages".strip())),
                  (lr, "train", "lr", {}),
                  (norm, "train", "norm", {}))
        for axes, kind, key, style in curves:
            of_kind = [row for row in rows if row["kind"] == kind and key in row]
            if key == "average_loss" and not of_kind:    # most runs keep no averages
                continue
            mark = {} if len(of_kind) > 2 else dict(marker="o")    # a line through one point cannot be seen
            axes.plot([row["step"] for row in of_kind], [row[key] for row in of_kind],
                      color=color, lw=1, ms=4, **mark | style)
    loss.set(ylabel="loss, nats per token", title=title)
    loss.legend()
    lr.set(ylabel="learning rate")
    norm.set(ylabel="gradient norm", xlabel="step", yscale="log")
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120, format=format)


def blank_figure(width: float, height: float):
    """Returns an empty matplotlib Figure. It needs neither a screen nor a backend.

    matplotlib is imported only here, because that takes half a second. The import fails if MPLBACKEND names a
    backend that is not installed, as in a program that a notebook starts. So the variable is hidden from it.

    Args:
        width, height: the size in inches."""
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    import matplotlib
    from matplotlib.figure import Figure
    if backend is not None:
        os.environ["MPLBACKEND"] = backend
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend    # for the notebook itself, where it is installed
    return Figure(figsize=(width, height), layout="constrained")
