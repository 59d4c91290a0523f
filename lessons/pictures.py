"""
Draws the records of lessons/toys.py. The colours and marks of rules are those of the study.
"""
import textwrap
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from lessons import toys
from study.figures import NAMES, style_of
from study.panels import DIVERGED, HOLLOW
from trainer.measure import blank_figure
from trainer.runs import whole_file

TUNING = """All learning rates: half decades around the rule's usual one, and on until the best has \
two worse ones on each side.
The large marks are what the other panels show. A cross is a loss beyond the scale. Seed {}."""
DASHED = ("turned", "256 classes", "calm")    # variants


def label_of(rule: str) -> str:
    name, plus, modifiers = rule.partition("+")
    return NAMES.get(name, name) + plus + modifiers


def look_of(rule: str) -> dict:
    """Returns the style of a rule. With modifiers its marks are hollow."""
    name, plus, _ = rule.partition("+")
    return style_of(name) | (HOLLOW if plus else {})


def dash_of(variant: str) -> dict:
    """Returns how lines of a variant are drawn where both variants of a toy are in one panel."""
    return {"ls": "--" if variant in DASHED else "-"}


# ---------------------------------------------------------------------------------------------------------
# Panels: each function draws some records into axes

def draw_curves(records: list[dict], axes) -> None:
    """Final losses over the learning rate. A cross at the top is a loss beyond the scale."""
    top = 3 * max(record["losses"][0] for record in records)
    for record in records:
        look = look_of(record["rule"])
        lrs, losses = np.array(list(record["curve"])), np.array(list(record["curve"].values()))
        seen = losses < top
        axes.plot(lrs, losses.clip(max=top), lw=1.6, ms=4, **look | dash_of(record["variant"]))
        axes.plot(lrs[~seen], losses[~seen].clip(max=top), color=look["color"], **DIVERGED)
        axes.plot(record["lr"], min(record["loss"], top), ms=11, ls="", **look)
    axes.set(xscale="log", yscale="log", xlabel="peak lr", ylabel="final loss",
             title="all learning rates")


def draw_paths(surface: Callable, window: tuple, records: list[dict], axes) -> None:
    """The paths of two weights over the contours of the loss, from the circle."""
    x, y = torch.meshgrid(torch.linspace(*window, 200), torch.linspace(*window, 200), indexing="xy")
    loss = surface(records[0]["variant"], x, y)
    axes.contour(x, y, loss, levels=np.logspace(-2, 2, 13), colors="0.8", linewidths=0.8)
    for record in records:
        axes.plot(*zip(*record["path"]), lw=1.4, ms=4, markevery=2, alpha=0.9, **look_of(record["rule"]))
    axes.plot(*records[0]["path"][0], "o", color="0.3", ms=12, mfc="none", mew=2)
    axes.set(xlim=window, ylim=window, xlabel="first weight", ylabel="second weight",
             title=records[0]["variant"])


def means_by_rank(losses: list[float]) -> tuple[np.ndarray, list[float]]:
    """Returns (ranks, mean losses) of classes of similar rank. losses: of each class, by rank."""
    edges = np.unique(np.geomspace(1, len(losses) + 1, 24).astype(int))
    means = [np.mean(losses[low - 1:high - 1]) for low, high in zip(edges, edges[1:])]
    return np.sqrt(edges[:-1] * (edges[1:] - 1)), means


def draw_ranks(records: list[dict], axes) -> None:
    """Mean losses of classes of similar rank."""
    for record in records:
        losses = record.get("by_rank", [np.nan])    # a run that diverged has none
        axes.plot(*means_by_rank(losses), lw=1.8, ms=5, **look_of(record["rule"]))
    axes.set(xscale="log", xlabel="rank of the class", ylabel="loss of the class", ylim=(-0.3, 6),
             title=records[0]["variant"])


def draw_errors(layer: int, title: str, records: list[dict], axes) -> None:
    """The error of one layer over the steps."""
    for record in records:
        axes.plot([errors[layer] for errors in record["path"]], lw=1.8, ms=5, markevery=8,
                  **look_of(record["rule"]))
    axes.set(yscale="log", xlabel="step", ylabel="error / error at the start", title=title, ylim=(None, 3))


def draw_distances(records: list[dict], axes) -> None:
    """Distances from the minimum over the steps."""
    for record in records:
        line = dict(alpha=0.6, lw=1, marker="") if record["variant"] == "calm" else dict(lw=1.8)
        axes.plot(np.sqrt(record["losses"]), ms=5, markevery=40,
                  **look_of(record["rule"]) | dash_of(record["variant"]) | line)
    axes.axvline(toys.SPIKE, color="0.7", lw=5, alpha=0.5, zorder=0)
    axes.set(yscale="log", xlabel="step", ylabel="distance from the minimum",
             title="with and without the spike")


def draw_singular_values(records: list[dict], axes) -> None:
    """All singular values of one rule's matrix over the steps."""
    record = records[0]
    axes.plot(record["path"], color=look_of(record["rule"])["color"], lw=0.9, alpha=0.6)
    axes.axhline(1, color="0.3", lw=1, ls="--")
    axes.set(xlabel="step", ylabel="singular values", ylim=(0, 1.75), yticks=(0, 0.5, 1, 1.5),
             title=f"{label_of(record['rule'])}, {record['variant']}")


# ---------------------------------------------------------------------------------------------------------
# Pictures

def panels_of(name: str, records: list[dict]) -> list[list[tuple]]:
    """Returns the rows of a toy's picture. Each panel is a pair (function that draws, its records)."""
    variants = [[record for record in records if record["variant"] == variant]
                for variant in toys.TOYS[name].variants]
    if name == "matrix":
        return [[*((draw_singular_values, [record]) for record in some), (draw_curves, some)]
                for some in variants]
    panels = {
        "ravine": [(partial(draw_paths, toys.ravine_loss, (-0.75, 1.15)), some) for some in variants],
        "zipf": [(draw_ranks, some) for some in variants],
        "layers": [(partial(draw_errors, 0, "first layer"), records),
                   (partial(draw_errors, 1, "second: gradients / 1,000"), records)],
        "spike": [(draw_distances, records)],
        "valley": [(partial(draw_paths, toys.valley_loss, (-1.5, 2.0)), some) for some in variants],
    }
    return [[*panels[name], (draw_curves, records)]]


def draw(name: str, records: list[dict], path: str, seed: int = 0, projector: bool = False) -> None:
    """Draws a toy's picture into a file. projector: with large type. Raises UserError."""
    rows, toy = panels_of(name, records), toys.TOYS[name]
    lines = {label_of(record["rule"]): look_of(record["rule"]) | {"ms": 8} for record in records}
    if len(toy.variants) == 2:
        lines |= {variant: {"color": "0.3"} | dash_of(variant) for variant in toy.variants}
    figure = blank_figure(max(12, 2.7 * len(rows[0])), 2.4 + max(2.8 * len(rows), 4))
    with type_of(projector):
        grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for axes, (draw_panel, some) in zip(grid.flat, sum(rows, [])):
            draw_panel(some, axes)
            axes.grid(alpha=0.3)
        handles = [grid[0, 0].plot([], [], label=label, **look)[0] for label, look in lines.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=4 if projector else 7,
                      title=TUNING.format(seed), title_fontsize="small")
        figure.suptitle(textwrap.fill(toy.idea, 68 if projector else 100))
        save(figure, path)


def draw_step(records: list[dict], path: str, projector: bool = False) -> None:
    """Draws the matrix of each record as a heat map, and its singular values below. Raises UserError."""
    figure = blank_figure(max(12, 2.4 * len(records)), 5.4)
    with type_of(projector):
        grid = figure.subplots(2, len(records), sharey="row", squeeze=False)
        for record, above, below in zip(records, *grid):
            u, values = np.array(record["update"]), np.array(record["singular_values"])
            above.imshow(u, cmap="PuOr", vmin=-abs(u).max(), vmax=abs(u).max(), aspect="auto")
            above.set(title=label_of(record["rule"]) or "mean gradient", xticks=[], yticks=[])
            below.bar(range(1, len(values) + 1), values / values[0], color="0.3")
            below.set(xlabel="singular value", ylim=(0, 1.05))
        grid[1, 0].set_ylabel("size / largest")
        figure.suptitle("One update by each rule, after the same 20 noisy gradients of a matrix of rank 4")
        save(figure, path)


def type_of(projector: bool):
    """Returns a context in which matplotlib writes in this size."""
    import matplotlib    # here, because blank_figure() imports it first
    return matplotlib.rc_context({"font.size": 17 if projector else 12, "axes.titlesize": "medium"})


def save(figure, path: str) -> None:
    with whole_file(path) as file:
        figure.savefig(file, dpi=130, format=path.rpartition(".")[2])
