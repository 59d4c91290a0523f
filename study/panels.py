"""
How a figure is drawn: one or more panels, each with the losses of several optimizers over one hyperparameter.

study/figures.py says which panels there are, and this file draws them.
"""
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from study.evidence import Losses
from study.thresholds import GAIN

# the colours of Okabe and Ito, which can be told apart by the colour-blind, and another mark for each
COLORS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999", "#B8A900")
MARKS = "os^Dv<>P*"
HOLLOW = {"mfc": "white", "mew": 1.4}    # a mark with a white inside
DIVERGED = {"marker": "x", "ls": "", "ms": 7, "mew": 2}
OFF_SCALE = {"marker": r"$\uparrow$", "ls": "", "ms": 9}
SEEDS_BAR = {"lw": 6, "alpha": 0.35}
LOSS = "final validation loss, nats per token"

Style = dict[str, Any]    # what matplotlib's plot takes: color, marker, ls, ...


class Curve(NamedTuple):
    """Losses over a hyperparameter: {value: final losses, one for each seed}."""
    label: str
    style: Style
    points: dict[float, Losses]


class Line(NamedTuple):
    """A level baseline, which is drawn dashed at the mean of its losses."""
    label: str
    style: Style
    losses: Losses


@dataclass
class Panel:
    """What one panel of a figure shows.

    Attributes:
        title, xlabel: its texts.
        curves: the losses over a hyperparameter. Curves that are too short are not drawn.
        missing: the command of the sweep that supplies its runs.
        lines: baselines.
        log: whether x is logarithmic. Otherwise the values stand side by side at equal distances.
        shift: whether each curve's x is divided by the x of its lowest loss.
        usual: an x. If it is given, the panel shows by how much losses differ from the loss at this x.
        top: how far above the lowest loss the panel reaches at most, in nats. By default it reaches beyond
            the best loss of each curve.
        legend: whether the panel has a legend of its own, below it.
    """
    title: str
    xlabel: str
    curves: list[Curve]
    missing: str
    lines: list[Line] = field(default_factory=list)
    log: bool = True
    shift: bool = False
    usual: float | None = None
    top: float | None = None
    legend: bool = False


@dataclass
class Scaled:
    """A panel of which everything can be drawn, with its curves' mean losses and the range it needs."""
    panel: Panel
    means: list[dict[float, float]]
    lowest: float
    highest: float


def plots():
    """Returns matplotlib.pyplot, set up to write files. It is imported only here, because that takes long."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    return plt


def relative_to(usual: float, points: dict[float, Losses]) -> dict[float, Losses]:
    """Subtracts the mean loss at the usual x from all losses. Returns {} if there is no such finite loss."""
    base = np.mean(points.get(usual, np.inf))
    if not np.isfinite(base):
        return {}
    return {x: np.array(losses) - base for x, losses in points.items()}


def scaled(panel: Panel) -> Scaled:
    """Returns the panel with curves and lines that can be drawn, and the range of losses that they need."""
    curves = [curve._replace(points=relative_to(panel.usual, curve.points))
              if panel.usual is not None and curve.points else curve for curve in panel.curves]
    curves = [curve for curve in curves if curve.points]
    lines = [line for line in panel.lines if line.losses]
    means = [{x: np.mean(losses) for x, losses in curve.points.items()} for curve in curves]

    to_show = [[loss for loss in of_curve.values() if np.isfinite(loss)] or [0] for of_curve in means]
    to_show += [[np.mean(line.losses)] for line in lines]
    if panel.usual is not None:
        to_show.append([-GAIN, GAIN])
    lowest = min(map(min, to_show))
    if panel.top is None:
        highest = max(map(min, to_show)) + 0.6
    else:
        highest = min(lowest + panel.top, max(map(max, to_show)))
    kept = replace(panel, curves=curves, lines=lines)
    return Scaled(kept, means, lowest, highest)


# ---------------------------------------------------------------------------------------------------------
# One panel


def draw_panel(axes, scaled_panel: Scaled, lowest: float, highest: float, edge: float) -> None:
    """Draws the means over seeds, with a bar from the lowest to the highest seed.

    Losses above `highest` appear as arrows in a grey strip, labelled with their value. The strip reaches up
    to `edge`, which is the upper limit of y.
    """
    panel, all_means = scaled_panel.panel, scaled_panel.means
    height = highest - lowest
    values = sorted({x for means in all_means for x in means})
    if any(loss > highest for means in all_means for loss in means.values()):
        axes.axhspan(highest, edge, color="0.93", zorder=-1)
    for number, (curve, means) in enumerate(zip(panel.curves, all_means)):
        place = places(panel, means, values)
        draw_means(axes, curve, means, place, highest)
        for x, losses in curve.points.items():
            if means[x] <= highest:
                axes.vlines(place[x], min(losses), max(losses), color=curve.style["color"], **SEEDS_BAR)
            else:
                side = "left" if x == min(means) else "right"
                y = edge - (0.03 + 0.04 * number) * height    # curves are side by side in the strip
                draw_off_scale(axes, place[x], y, means[x], curve.style["color"], side)
    for label, style, losses in panel.lines:
        axes.axhline(np.mean(losses), color=style["color"], ls="--", lw=1.4, label=label, zorder=0)
        axes.axhspan(min(losses), max(losses), color=style["color"], alpha=0.12, lw=0, zorder=-1)
    if panel.usual is not None:
        axes.axhspan(-GAIN, GAIN, color="0.85", zorder=0, label=f"+-{GAIN}")
    axes.set(title=panel.title, xlabel=panel.xlabel, ylim=(lowest - 0.07 * height, edge))
    if panel.log:
        axes.set_xscale("log")
    else:
        axes.set_xticks(range(len(values)), [f"{x:g}" for x in values])
    if panel.legend:
        axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))    # below the panel


def places(panel: Panel, means: dict[float, float], values: list[float]) -> dict[float, float]:
    """Returns {x: where it is on the axis}. values: all x of the panel, in their order."""
    if panel.shift:
        best = min(means, key=means.get)
        return {x: x / best for x in means}
    if panel.log:
        return {x: x for x in means}
    return {x: values.index(x) for x in means}


def draw_means(axes, curve: Curve, means: dict[float, float], place: dict[float, float],
               highest: float) -> None:
    """Draws one curve's means. Its line runs into the grey strip, but not along it."""
    xs, ys = [], []
    before_is_seen = True
    for x, mean in means.items():
        is_seen = mean <= highest
        if not is_seen and not before_is_seen:
            xs.append(np.nan)
            ys.append(np.nan)
        xs.append(place[x])
        ys.append(mean if is_seen else highest)
        before_is_seen = is_seen
    marked = [i for i, y in enumerate(ys) if y in means.values()]
    axes.plot(xs, ys, **{"ms": 6, "lw": 1.6, "label": curve.label, "markevery": marked} | curve.style)


def draw_off_scale(axes, x: float, y: float, loss: float, color: str, side: str) -> None:
    """Draws the mark of a loss above the scale at (x, y). Its value stands to the left or right of x, unless
    it is infinite.

    side: how the text is aligned; "left" puts it to the right of the mark.
    """
    if not np.isfinite(loss):
        axes.plot(x, y, **DIVERGED, color=color)
        return
    axes.plot(x, y, **OFF_SCALE, color=color)
    offset = 5 if side == "left" else -5    # points
    axes.annotate(f"{loss:.1f}", (x, y), (offset, 0), textcoords="offset points", size=7, color=color,
                  ha=side, va="center")


# ---------------------------------------------------------------------------------------------------------
# A figure


def draw(path: Path, panels: list[Panel], across: int = 3, ylabel: str = LOSS,
         share: bool = True) -> list[str]:
    """Draws a figure of those panels that have curves. If none has, an earlier figure is deleted.

    Args:
        path: the file to write.
        panels: all panels of the figure.
        across: how many panels stand side by side.
        ylabel: the text beside each row of panels.
        share: whether all panels have the same range of losses.

    Returns:
        The commands of the sweeps that would supply the panels and curves that are not drawn.
    """
    ready, missing = [], []
    for panel in panels:
        needed = 2 if panel.usual is None else 3
        curves = [curve for curve in panel.curves if len(curve.points) >= needed]
        if len(curves) < len(panel.curves):
            missing.append(panel.missing)
        if curves:
            ready.append(scaled(replace(panel, curves=curves)))
    if ready:
        draw_figure(path, ready, min(across, len(ready)), ylabel, share)
    else:
        path.unlink(missing_ok=True)    # it would show other results
    return missing


def draw_figure(path: Path, ready: list[Scaled], across: int, ylabel: str, share: bool) -> None:
    """Draws panels, all of which have curves, into one file. The arguments are those of draw()."""
    down = -(-len(ready) // across)
    figure, grid = plots().subplots(down, across, figsize=(max(5 * across, 7.5), 4.1 * down + 0.6),
                                    layout="constrained", squeeze=False)
    low_of_all = min(one.lowest for one in ready)
    high_of_all = max(one.highest for one in ready)
    most_curves = max(len(one.means) for one in ready)
    marks: dict[str, Style] = {}
    for axes, one in zip(grid.flat, ready):
        low, high = (low_of_all, high_of_all) if share else (one.lowest, one.highest)
        losses = [loss for means in one.means for loss in means.values()]
        if np.inf in losses:
            marks["a seed diverged"] = DIVERGED
        if any(high < loss < np.inf for loss in losses):
            marks["off the scale"] = OFF_SCALE
        draw_panel(axes, one, low, high, high + (0.04 + 0.04 * most_curves) * (high - low))
    for axes in grid.flat[len(ready):]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    marks["seeds, lowest to highest"] = SEEDS_BAR
    finish(figure, grid.flat[:len(ready)], path, marks)


def finish(figure, all_axes, path: Path, marks: dict[str, Style] | None = None) -> None:
    """Adds grids and one legend for all axes that have none, writes the file and closes the figure.

    marks: {label: style} of further entries of the legend.
    """
    handles = {}
    for axes in all_axes:
        axes.grid(alpha=0.3)
        if not axes.get_legend():
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    mark = plots().Line2D
    handles |= {label: mark([], [], color="0.3", **style) for label, style in (marks or {}).items()}
    columns = int(figure.get_figwidth() / (0.7 + 0.078 * max(map(len, handles))))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=9)
    figure.savefig(path, dpi=130)
    plots().close(figure)
