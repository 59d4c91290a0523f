"""
How a figure is drawn: one or more panels, each with the losses of several optimizers over one hyperparameter.

study/figures.py says which panels there are, and this file draws them.
"""
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from study.evidence import Losses
from study.thresholds import GAIN
from trainer.measure import blank_figure
from trainer.runs import whole_file

# inches and dots: a picture that is shown at half its width still has letters of ten pixels
WIDTH, HEIGHT, DPI = 3.7, 3.0, 190
SMALL, USUAL, LARGE = 8, 9, 10    # sizes of letters, in points
# the colours of Okabe and Ito, which can be told apart by the colour-blind, and a mark for each; then others
COLORS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999", "#B8A900")
MORE_COLORS = ("#332288", "#CC6677", "#117733", "#8C564B", "#44AA99", "#AA4499", "#7A7A00", "#557799",
               "#882255")
MARKS = "os^Dv<>P*"
HOLLOW = {"mfc": "white", "mew": 1.2}    # a mark with a white inside
DIVERGED = {"marker": r"$\times$", "ls": "", "ms": 7}
ABOVE = {"color": "0.93", "lw": 9}
SEEDS_BAR = {"lw": 5, "alpha": 0.35}
LOSS = "final loss, nats per token"

Style = dict[str, Any]    # what matplotlib's plot takes: color, marker, ls, ...


class Curve(NamedTuple):
    """Losses over a hyperparameter: {value: final losses, one for each seed}."""
    label: str
    style: Style
    points: dict[float, Losses]


class Line(NamedTuple):
    """A level baseline, which is drawn dashed at the mean of its losses, without marks."""
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
        fewest: with fewer curves than this, the panel is not drawn.
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
    fewest: int = 1


@dataclass
class Scaled:
    """A panel of which everything can be drawn, with its curves' mean losses and the range it needs."""
    panel: Panel
    means: list[dict[float, float]]
    lowest: float
    highest: float


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
        of_all = max(map(max, to_show))
        highest = min(lowest + panel.top, of_all + 0.1 * (of_all - lowest))    # room for the whole mark
    kept = replace(panel, curves=curves, lines=lines)
    return Scaled(kept, means, lowest, max(highest, lowest + 0.1))    # also if all losses are equal


# ---------------------------------------------------------------------------------------------------------
# One panel


def label_axes(axes, title: str, xlabel: str, ylabel: str = "") -> None:
    """Gives axes their texts, in the sizes of all figures."""
    axes.set_title(title, size=LARGE)
    axes.set_xlabel(xlabel, size=USUAL)
    axes.set_ylabel(ylabel, size=USUAL)
    axes.tick_params(labelsize=SMALL)


def draw_panel(axes, scaled_panel: Scaled, lowest: float, highest: float) -> list["Above"]:
    """Draws the means over seeds, with a bar from the lowest to the highest seed. Returns the losses above
    `highest`, which side_by_side() and write_above() show as numbers."""
    panel, all_means = scaled_panel.panel, scaled_panel.means
    values = sorted({x for means in all_means for x in means})
    label_axes(axes, panel.title, panel.xlabel)
    axes.set_ylim(lowest, highest)
    axes.margins(x=0.08)    # so that a number above the last value fits
    if panel.log:
        axes.set_xscale("log")
        if len(values) == 1 and not panel.shift:
            axes.set_xlim(values[0] / 3, values[0] * 3)    # matplotlib finds no limits on its own
            axes.set_xticks(values, [f"{values[0]:g}"])
            axes.minorticks_off()    # their labels would cover each other
    else:
        axes.set_xticks(range(len(values)), [f"{x:g}" for x in values])
    above = []
    for i, (curve, means) in enumerate(zip(panel.curves, all_means)):
        place = places(panel, means, values)
        covering = [other.label for other, of_other in zip(panel.curves[i + 1:], all_means[i + 1:])
                    if not panel.shift and covers(of_other, means, highest, 0.018 * (highest - lowest))]
        label = f"{curve.label} (under {covering[0]})" if covering else curve.label
        draw_means(axes, curve._replace(label=label), means, place, highest)
        for x, losses in curve.points.items():
            if means[x] <= highest:
                axes.vlines(place[x], min(losses), max(losses), color=curve.style["color"], **SEEDS_BAR)
            else:
                above.append(Above(place[x], means[x], curve.style["color"]))
    for label, style, losses in panel.lines:
        axes.axhline(np.mean(losses), color=style["color"], ls="--", lw=1.2, zorder=0,
                     label=with_note(label, np.mean(losses), highest))
        axes.axhspan(min(losses), max(losses), color=style["color"], alpha=0.12, lw=0, zorder=-1)
    if panel.usual is not None:
        axes.axhspan(-GAIN, GAIN, color="0.85", zorder=0, label=f"at most {GAIN} from it")
    if panel.legend:    # below the panel
        labels = axes.get_legend_handles_labels()[1]
        axes.legend(fontsize=SMALL, ncols=columns_of(labels, 0.85 * WIDTH), loc="upper center",
                    bbox_to_anchor=(0.45, -0.21), columnspacing=1, handlelength=2)
    return above


def columns_of(labels: Iterable[str], width: float) -> int:
    """Returns how many columns a legend with these labels has on a width in inches."""
    longest = max(map(len, labels))
    return max(1, int(width / (0.5 + 0.6 * SMALL / 72 * longest)))


class Above(NamedTuple):
    """A loss above the scale, at x."""
    x: float
    loss: float
    color: str


class Number(NamedTuple):
    """A loss above the scale, written as a number at x in one of the rows of the strip above it."""
    x: float
    text: str
    color: str
    row: int


def side_by_side(axes, above: list[Above]) -> list[Number]:
    """Gives each loss above the scale the lowest row in which it covers no other number. All that determines
    the range of x must be drawn before."""
    numbers: list[Number] = []
    ends: list[float] = []    # where the last number of each row ends, as a fraction of the panel's width
    for x, loss, color in sorted(above):
        text = f"{loss:.1f}" if np.isfinite(loss) else r"$\times$"
        in_panel = axes.transAxes.inverted().transform(axes.transData.transform((x, 1)))[0]
        half = 0.5 * (len(f"{min(loss, 99):.1f}") + 0.8) * 0.6 * SMALL / (0.85 * WIDTH * 72)
        row = next((row for row, end in enumerate(ends) if end <= in_panel - half), len(ends))
        ends[row:row + 1] = [in_panel + half]
        numbers.append(Number(x, text, color, row))
    return numbers


def rows_of(numbers: list[Number]) -> int:
    """Returns how many rows the numbers of a panel take."""
    return len({number.row for number in numbers})


def write_above(axes, numbers: list[Number], lowest: float, highest: float, rows: int) -> None:
    """Sets the limits of y, with a grey strip above `highest` for rows of numbers, and writes the numbers."""
    row_height = 0.09 * (highest - lowest)
    edge = highest + row_height * (rows + 0.6 * bool(rows))
    axes.set_ylim(lowest - 0.07 * (highest - lowest), edge)
    if numbers:
        axes.axhspan(highest, edge, color=ABOVE["color"], zorder=-1)
    for x, text, color, row in numbers:
        y = highest + row_height * (row + 0.7)
        axes.text(x, y, text, size=SMALL, color=color, ha="center", va="center")


def with_note(label: str, lowest: float, highest: float) -> str:
    """Returns the label of a curve or line, with a note if all of it is above the scale."""
    return f"{label} (above)" if lowest > highest else label


def covers(above: dict[float, float], below: dict[float, float], highest: float, width: float) -> bool:
    """Returns whether a curve hides the one below it. At least four of five means up to `highest` of that one
    are then within a width of it."""
    visible = {x for x, loss in below.items() if loss <= highest}
    hidden = sum(abs(above.get(x, np.inf) - below[x]) <= width for x in visible)
    return bool(visible) and hidden >= 0.8 * len(visible)


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
    label = with_note(curve.label, min(means.values()), highest)
    axes.plot(xs, ys, **{"ms": 5, "lw": 1.4, "label": label, "markevery": marked} | curve.style)


# ---------------------------------------------------------------------------------------------------------
# A figure


def draw(path: Path, panels: list[Panel], across: int = 2, ylabel: str = LOSS,
         share: bool = True) -> list[str]:
    """Draws a figure of those panels that have enough curves. If none has, an earlier figure is deleted.

    Args:
        path: the file to write.
        panels: all panels of the figure.
        across: how many panels stand side by side.
        ylabel: the text beside each row of panels; the final loss is that of validation.
        share: whether all panels have the same range of losses, and of x where they have the same x.

    Returns:
        The commands of the sweeps that would supply the panels and curves that are not drawn.
    """
    ready, missing = [], []
    for panel in panels:
        needed = 2 if panel.usual is None else 3
        curves = [curve for curve in panel.curves if len(curve.points) >= needed]
        if len(curves) < len(panel.curves):
            missing.append(panel.missing)
        if len(curves) >= panel.fewest:
            ready.append(scaled(replace(panel, curves=curves)))
    if ready:
        draw_figure(path, ready, min(across, len(ready)), ylabel, share)
    else:
        path.unlink(missing_ok=True)    # it would show other results
    return missing


def draw_figure(path: Path, ready: list[Scaled], across: int, ylabel: str, share: bool) -> None:
    """Draws panels, all of which have curves, into one file. The arguments are those of draw()."""
    down = -(-len(ready) // across)
    height = HEIGHT + 0.5 * any(one.panel.legend for one in ready)
    figure = blank_figure(max(across, 1.4) * WIDTH, height * down + 0.8)
    grid = figure.subplots(down, across, squeeze=False)
    low_of_all = min(one.lowest for one in ready)
    high_of_all = max(one.highest for one in ready)
    ranges = [(low_of_all, high_of_all) if share else (one.lowest, one.highest) for one in ready]
    if share:
        share_x(grid.flat, [one.panel for one in ready])
    above = [draw_panel(axes, one, *limits) for axes, one, limits in zip(grid.flat, ready, ranges)]
    numbers = list(map(side_by_side, grid.flat, above))
    rows = list(map(rows_of, numbers))
    for axes, of_panel, limits, own_rows in zip(grid.flat, numbers, ranges, rows):
        write_above(axes, of_panel, *limits, max(rows) if share else own_rows)
    for axes in grid.flat[len(ready):]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel, size=USUAL)
    finish(figure, grid.flat[:len(ready)], path, marks_of(numbers) | {"seeds, lowest to highest": SEEDS_BAR})


def share_x(all_axes, panels: list[Panel]) -> None:
    """Gives the panels that have the same logarithmic x one range of it. So places can be compared."""
    first_axes = {}
    for axes, panel in zip(all_axes, panels):
        if not panel.log or len({x for curve in panel.curves for x in curve.points}) < 2:
            continue
        if panel.xlabel in first_axes:
            axes.sharex(first_axes[panel.xlabel])
        first_axes.setdefault(panel.xlabel, axes)


def marks_of(numbers: list[list[Number]]) -> dict[str, Style]:
    """Returns {label: style} of the legend's entries that explain the numbers of all panels."""
    texts = {number.text for of_panel in numbers for number in of_panel}
    marks = {"a seed diverged": DIVERGED} if r"$\times$" in texts else {}
    return marks | ({"losses above the scale": ABOVE} if texts else {})


def finish(figure, all_axes, path: Path, marks: dict[str, Style] | None = None) -> None:
    """Adds grids and one legend for all axes that have none, and writes the file.

    marks: {label: style} of further entries of the legend.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.lines import Line2D    # here, because blank_figure() imports matplotlib first
    handles = {}
    for axes in all_axes:
        axes.grid(alpha=0.3)
        if not axes.get_legend():
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    noted = {label.partition(" (")[0] for label in handles if " (" in label}
    handles = {label: handle for label, handle in handles.items() if label not in noted}    # once is enough
    handles |= {label: Line2D([], [], **{"color": "0.3"} | style) for label, style in (marks or {}).items()}
    columns = columns_of(handles, figure.get_figwidth())
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=SMALL)
    with whole_file(path) as file:
        figure.savefig(file, dpi=DPI, format=path.suffix[1:])
