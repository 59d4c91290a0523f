"""
A look inside runs: what each step did to each role, from what train.py logs with --log_blocks.
"""
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from study.panels import COLORS, DPI, LARGE, MARKS, SMALL, USUAL, WIDTH
from study.tables import RecordedRun
from trainer.errors import UserError
from trainer.measure import blank_figure
from trainer.runs import whole_file
from zoo import ROLES

HEIGHT = 2.6    # of a panel with its texts, in inches
NO_V = "No rule of this run\nlogs a second moment v."
Values = Callable[[dict[str, Any]], dict[str, tuple]]    # line of metrics.jsonl -> {role: low, middle, high}


class Quantity(NamedTuple):
    """What one panel shows.

    Attributes:
        name: its title.
        definition: one sentence that says what it is.
        values: takes a line of metrics.jsonl, and returns {role: (low, middle, high)}.
        why_not: what the panel says if there is nothing to draw.
        usual: where a dashed line is drawn.
    """
    name: str
    definition: str
    values: Values
    why_not: str = ""
    usual: float | None = None


def by_role(value: Callable[[dict[str, Any]], float | None]) -> Values:
    """Returns a function that gives the lowest, the median and the highest value of the tensors of each role.

    Args:
        value: takes what a line has of one tensor. It returns None if there is no such value.
    """
    def values(row: dict[str, Any]) -> dict[str, tuple]:
        found: dict[str, list[float]] = {}
        for block in row["blocks"].values():
            if (x := value(block)) is not None:
                found.setdefault(block["role"], []).append(x)
        return {role: tuple(np.quantile(x, (0, 0.5, 1))) for role, x in found.items()}
    return values


def update_over_weight(block: dict[str, Any]) -> float | None:
    """Returns update / weight of a tensor, or None if one is 0 or not finite."""
    return block["update"] / block["weight"] if block["update"] and block["weight"] else None


def snr(axis: str, share: str) -> Quantity:
    """Returns the signal-to-noise ratio of v along an axis."""
    definition = (f"mean(v)² / variance(v) within {share}; above 1, one number may stand for all of these "
                  "v (SlimAdam: Kalra et al. 2025, arXiv 2503.01843).")
    return Quantity(f"signal-to-noise ratio of v, by {axis}", definition,
                    by_role(lambda block: block.get("snr", {}).get(axis)),
                    "No rule of this run\nlogs a v for each weight.", 1)


QUANTITIES = (
    Quantity("update / weight",
             "The rms of what a step changed in a tensor, divided by the rms of the tensor.",
             by_role(update_over_weight)),
    Quantity("rms of the weights",
             "The root of the mean square of a tensor's weights, after the step.",
             by_role(lambda block: block["weight"])),
    Quantity("rms of the gradient",
             "The root of the mean square of a tensor's gradient, after clipping.",
             by_role(lambda block: block["grad"])),
    Quantity("effective learning rate",
             "lr / (√v + eps) of each weight, or of each block that shares a v: the median over a role, "
             "and a band from 5% to 95%.",
             lambda row: {role: (q[1], q[3], q[5]) for role, q in row["effective_lr"].items()}, NO_V),
    Quantity("largest |u|",
             "The largest |u| of all weights of a role, where a step moves a weight by lr |u|, decay apart.",
             lambda row: {role: (u, u, u) for role, u in row["largest_u"].items()},
             "A modifier gives each weight its own decay,\nso the step cannot be told from it."),
    Quantity("rms(g / √v)",
             "The rms of a tensor's gradient g / √v, with g in v already; it rises above 1 if v lags "
             "behind, and the loss may jump soon after (Wortsman et al. 2023, arXiv 2304.13013).",
             by_role(lambda block: block.get("grad_over_root_v")), NO_V, 1),
    snr("row", "each row of a matrix, averaged over the rows"),
    snr("column", "each column of a matrix, averaged over the columns"),
    snr("tensor", "a tensor, where q, k and v count as three"),
)


def draw_look(runs: dict[str, RecordedRun], path: Path) -> None:
    """Draws every quantity over the steps, one panel for each run, side by side on one scale.

    Args:
        runs: {name: run}.

    Raises:
        UserError: a run has not logged what its steps did.
    """
    rows_of = {name: logged(name, run) for name, run in runs.items()}
    across = max(1, 3 // len(runs))    # how many quantities stand side by side
    down, width = -(-len(QUANTITIES) // across), WIDTH * across * len(runs)
    figure = blank_figure(width, HEIGHT * down + 1)
    heads = [f"{name}: {run.config['optimizer']}, lr {run.config['lr']:g}" for name, run in runs.items()]
    heads.append("Line and band: the median tensor of a role, and the range of its tensors")
    figure.suptitle("\n".join(textwrap.fill(head, int(14 * width)) for head in heads), size=USUAL)
    captions = [textwrap.wrap(quantity.definition, int(16 * width / across)) for quantity in QUANTITIES]
    parts = figure.subfigures(down, across, squeeze=False).flat
    for part, quantity, caption in zip(parts, QUANTITIES, captions):
        part.suptitle(quantity.name, size=LARGE)
        caption += [""] * (max(map(len, captions)) - len(caption))    # then all panels are of one height
        part.supxlabel("\n".join(caption), size=SMALL)
        panels = part.subplots(1, len(runs), sharey=True, squeeze=False)[0]
        for axes, (name, rows) in zip(panels, rows_of.items()):
            draw_quantity(axes, quantity, rows)
            if len(runs) > 1:
                axes.set_title(textwrap.fill(name, 45), size=USUAL)
        scale(panels[0])
    handles = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    roles = [role for role in ROLES if role in handles]
    figure.legend([handles[role] for role in roles], roles, fontsize=USUAL, loc="outside lower center",
                  ncols=7 if width > 6 else 4)
    with whole_file(path) as file:
        figure.savefig(file, dpi=DPI, format=path.suffix[1:])


def logged(name: str, run: RecordedRun) -> list[dict[str, Any]]:
    """Returns the lines of a run that say what a step did. Raises UserError if there are none."""
    rows = [row for row in run.metrics if row["kind"] == "train" and "blocks" in row]
    if not rows or any("role" not in block for row in rows for block in row["blocks"].values()):
        raise UserError(f"{name}: does not hold what its steps did to each role; train it (again) with "
                        "--log_blocks")
    return rows


def draw_quantity(axes, quantity: Quantity, rows: list[dict[str, Any]]) -> None:
    """Draws one quantity of one run, with a line and a band for each role. It names the roles without one."""
    steps = [row["step"] for row in rows]
    values = [quantity.values(row) for row in rows]
    drawn = [role for role in ROLES if any(role in of_step for of_step in values)]
    for role in drawn:
        color, mark = COLORS[ROLES.index(role)], MARKS[ROLES.index(role)]
        ranges = np.array([of_step.get(role, (None,) * 3) for of_step in values], dtype=float)
        low, middle, high = np.where(ranges > 0, ranges, np.nan).T    # the scale is logarithmic
        axes.plot(steps, middle, color=color, marker=mark, ms=4, lw=1.3, label=role,
                  markevery=(len(steps) // 24, max(1, len(steps) // 6)))
        axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
    there = {block["role"] for block in rows[0]["blocks"].values()}
    absent = [role for role in ROLES if role in there and role not in drawn]
    without = f" (no values for {', '.join(absent)})" if drawn and absent else ""
    axes.set_xlabel(f"step{without}", size=SMALL)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(labelsize=SMALL, which="both")
    axes.grid(alpha=0.3)
    if not drawn:
        axes.text(0.5, 0.5, quantity.why_not, size=USUAL, ha="center", va="center",
                  transform=axes.transAxes)
        axes.set_xlim(0, steps[-1])
    elif quantity.usual:
        axes.axhline(quantity.usual, color="0.4", ls="--", lw=1, zorder=0)


def scale(axes) -> None:
    """Makes the scale of y logarithmic, over a factor of four or more. A short one has plain numbers."""
    from matplotlib.ticker import LogLocator    # here, because blank_figure() imports matplotlib first
    if not any(other.get_lines() for other in axes.get_shared_y_axes().get_siblings(axes)):
        axes.set_yticks([])
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    room = max(1, 2 / (high / low)**0.5)
    axes.set_ylim(low / room, high * room)
    if high < 100 * low:
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
