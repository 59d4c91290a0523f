"""
The figures of the study. They follow the order of the paper's figures.

all_figures() draws them out of the results, each as far as there are runs for it, and draw_study() draws one
picture of run folders alone.
"""
import math
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from optim import Rule
from study.claims import FIVE
from study.evidence import Study
from study.league import REFERENCE, Place
from study.panels import (
    COLORS,
    HEIGHT,
    HOLLOW,
    LOSS,
    MARKS,
    MORE_COLORS,
    SMALL,
    USUAL,
    WIDTH,
    Curve,
    Line,
    Panel,
    Style,
    draw,
    draw_panel,
    finish,
    label_axes,
    marks_of,
    rows_of,
    scaled,
    side_by_side,
    write_above,
)
from study.tables import RecordedRun, mean_loss
from study.verdict import Verdict
from trainer.measure import blank_figure
from zoo import RULES

NAMES = {"adamw": "Adam", "adafactor": "Adafactor", "lion": "Lion", "signum": "Signum", "sgd": "SGD",
         "adalayer_star": "Adalayer*", "adalayer": "Adalayer", "adasgd": "AdaSGD", "sgd_ema": "averaged SGD"}
SIX = (*FIVE, "adalayer_star")
STAR = "adalayer_star"
PEAK_LR, SHIFTED_LR = "peak learning rate", "peak learning rate / the best one"
# the league's panels and their titles, by the file that defines a rule
KINDS = {"optim": "the paper's rules", "adaptive": "Adam's relatives", "curvature": "curvature",
         "factored": "shared second moments", "lowrank": "low rank", "orthogonal": "matrices as matrices",
         "signs": "signs", "momentum": "momentum", "compressed": "less state", "subspace": "subspaces",
         "kronecker": "two preconditioners", "spectral": "more orthogonal steps", "classics": "classics",
         "relatives": "more relatives of Adam", "schedule_free": "schedule-free",
         "distance": "a learned distance", "eight_bit": "8 bits"}
# the colour and the mark of each verdict of the league
VERDICTS = {"better": (COLORS[3], "o"), "same": (COLORS[1], "s"), "cannot tell": (COLORS[7], "D"),
            "worse": (COLORS[4], "v")}
SHOWN = (-0.45, 0.7)    # nats: the differences that the league's picture has room for

# {run: {"step": steps, "loss": mean training losses}}
TrainingCurves = dict[str, dict[str, Any]]


def all_figures(study: Study, training_curves: TrainingCurves, rules: dict[str, Rule],
                places: list[Place], folder: Path) -> dict[str, list[str]]:
    """Draws all figures into a folder.

    Args:
        study: the results.
        training_curves: the training losses of runs.
        rules: all update rules by name, for the league.
        places: the league.
        folder: where the files go.

    Returns:
        {name of a file: the commands of the sweeps that would complete it}, of the incomplete ones.
    """
    figures: dict[str, Callable[[Path], list[str]]] = {
        "lr.png": partial(draw_learning_rates, study, shift=False),
        "lr_shifted.png": partial(draw_learning_rates, study, shift=True),
        "momentum.png": partial(draw_momentum, study),
        "tied.png": partial(draw_tied, study),
        "others.png": partial(draw_other_hyperparameters, study),
        "effective_lr.png": partial(draw_effective_lrs, study),
        "hybrids.png": partial(draw_hybrids, study),
        "frozen.png": partial(draw_frozen, study),
        "adalayer.png": partial(draw_adalayer, study),
        "adasgd.png": partial(draw_adasgd, study),
        "curves.png": partial(draw_training_curves, study, training_curves),
        "sophia.png": partial(draw_sophia, study),
        "league_lr.png": partial(draw_league_lrs, study, rules),
        "league.png": partial(draw_league, places, study.command("league")),
    }
    missing = {name: draw_figure(folder / name) for name, draw_figure in figures.items()}
    return {name: sorted(set(sweeps)) for name, sweeps in missing.items() if sweeps}


# ---------------------------------------------------------------------------------------------------------
# What panels are made of


def style_of(rule: str) -> Style:
    """Returns the colour and the mark that a rule has in all figures. No other rule has the colour of one of
    the paper's rules."""
    if rule in NAMES:
        i = list(NAMES).index(rule)
        return {"color": COLORS[i], "marker": MARKS[i]}
    others = [name for name in RULES if name not in NAMES]
    i = others.index(rule) if rule in others else sum(map(ord, rule))    # a rule in a file of the user's
    return {"color": MORE_COLORS[i % 9], "marker": MARKS[(i + i // 9) % 9]}


def title_of(setting: str, study: Study) -> str:
    """Returns a setting in words. The base is named after what the variants beside it lack."""
    words = {"qk_norm=false": "QK-norm", "z_loss=0": "z-loss"}
    name, *options = shlex.split(setting)
    if setting == study.base:
        return "with QK-norm and z-loss" if study.unstabilized() else f"the setting of {name}.toml"
    lacking = " and ".join(words[option] for option in options if option in words)
    others = [re.sub(r"^steps (\d+)$", lambda steps: f"{int(steps[1]):,} steps", option.replace("=", " "))
              for option in options if option not in words]
    return ", ".join([*([f"without {lacking}"] if lacking else []), *others]) or f"the setting of {name}.toml"


def curve_of(study: Study, optimizer: str, along: str = "lr", setting: str | None = None,
             label: str | None = None, style: Style | None = None, **options: Any) -> Curve:
    """Returns an optimizer's curve in the optimizer's style.

    Args:
        label: the label; the default is the optimizer's name.
        style: changes of the optimizer's style.

    The other arguments are those of Study.curve.
    """
    return Curve(label or NAMES.get(optimizer, optimizer), style_of(optimizer) | (style or {}),
                 study.curve(optimizer, along, setting, **options))


def line_of(study: Study, optimizer: str, where: str = "") -> Line:
    """Returns a baseline: an optimizer at its best learning rate."""
    return Line(f"{NAMES[optimizer]}{where} at its best", style_of(optimizer), study.lowest(optimizer).losses)


def baselines(study: Study) -> list[Line]:
    """Returns the baselines of hybrids: the SGD that trains their rest, Adalayer* and Adam."""
    return [line_of(study, name, " everywhere") for name in ("sgd_ema", STAR, "adamw")]


# ---------------------------------------------------------------------------------------------------------
# Figs. 1 to 3: the learning rate, as it is or divided by the best one


def draw_learning_rates(study: Study, path: Path, shift: bool) -> list[str]:
    """Losses over the learning rate, in a panel for each setting."""
    xlabel = SHIFTED_LR if shift else PEAK_LR
    panels = [Panel(title_of(setting, study), xlabel, shift=shift, missing=study.command("lr", setting),
                    curves=[curve_of(study, name, setting=setting) for name in SIX], fewest=2)
              for setting in study.settings_of_claims()]
    absent = [kind for kind in ("larger", "longer", "unstabilized") if not getattr(study, kind)()]
    return [study.variant_command(kind) for kind in absent] + draw(path, panels)


# ---------------------------------------------------------------------------------------------------------
# Figs. 4 and 6: momentum, alone and with the same beta2


def draw_momentum(study: Study, path: Path) -> list[str]:
    """Losses over beta1. SGD, whose losses are far above the others, has a panel of its own."""
    def panel(title: str, setting: str, names: tuple[str, ...], top: float) -> Panel:
        return Panel(f"{title}, {title_of(setting, study)}", "momentum (beta1)", log=False, top=top,
                     missing=study.command("momentum", setting),
                     curves=[curve_of(study, name, "beta1", setting) for name in names])

    without_sgd = tuple(name for name in SIX if name != "sgd")
    settings = [study.base, *study.unstabilized(), *study.larger()]
    panels = [panel("all but SGD", setting, without_sgd, 1.3) for setting in settings]
    panels.append(panel("all", study.base, SIX, 3.5))
    return draw(path, panels, share=False)


def draw_tied(study: Study, path: Path) -> list[str]:
    """Signum beside Adam with beta2 = beta1."""
    tied_style = {"ls": "--", "zorder": 3} | HOLLOW

    def panel(setting: str) -> Panel:
        curves = [curve_of(study, "adamw", "tied", setting, "Adam, beta2 = beta1", tied_style),
                  curve_of(study, "adamw", "beta1", setting, "Adam, beta2 = 0.95"),
                  curve_of(study, "signum", "beta1", setting)]
        return Panel(title_of(setting, study), "momentum (beta1)", log=False, top=1.3,
                     missing=study.command("tied", setting), curves=curves)

    return draw(path, [panel(setting) for setting in (study.base, *study.unstabilized(), *study.larger())])


# ---------------------------------------------------------------------------------------------------------
# Fig. 5: the other hyperparameters, one at a time


TITLES = {"weight_decay": "weight decay", "warmup": "warmup, a fraction of the steps",
          "batch": "batch size, with as many tokens", "beta2": "memory of squares (beta2)",
          "eps": "eps, at beta2 0.98"}


def draw_other_hyperparameters(study: Study, path: Path) -> list[str]:
    """By how much losses differ from the loss at the usual value."""
    rows_of_adam = study.unchanged("adamw")

    def usual(option: str) -> float:
        return rows_of_adam[0][option] if rows_of_adam else 0

    def panel(option: str, sweep: str, usual: float, without: tuple[str, ...] = (), **fixed: float) -> Panel:
        return Panel(TITLES[option], option, log=False, usual=usual, top=0.4, missing=study.command(sweep),
                     curves=[curve_of(study, name, option, paired=True, **fixed)
                             for name in SIX if name not in without])

    panels = [panel("weight_decay", "weight_decay", usual("weight_decay")),
              panel("warmup", "warmup", usual("warmup")),
              panel("batch", "batch_size", usual("batch")),
              panel("beta2", "beta2", usual("beta2"), without=("signum", "sgd")),
              panel("eps", "eps", 1e-15, without=("lion", "signum", "sgd"), beta2=0.98)]
    return draw(path, panels, ylabel="loss minus the loss at the usual value")


# ---------------------------------------------------------------------------------------------------------
# Fig. 7: effective learning rates

EFFECTIVE_PANELS = {"each row of the last layer": {"head": 4},    # {title: {role: colour}}
                    "matrices": {"matrix": 1, "qkv": 3},
                    "norms": {"norm": 5}}
EFFECTIVE_LABELS = {"head": "rows of the last layer", "matrix": "attention output, MLP", "qkv": "q, k, v",
                    "norm": "norms"}


def draw_effective_lrs(study: Study, path: Path) -> list[str]:
    """Quantiles of Adalayer*'s effective learning rates over training, in a panel for each kind of role."""
    runs = {row["run"] for row in study.unchanged(STAR) if np.isfinite(row["loss"])}
    rows = [row for row in study.effective if row["run"] in runs]
    if not rows:
        path.unlink(missing_ok=True)    # it would show other results
        return [study.command("effective_lr")]
    figure = blank_figure(2.2 * WIDTH, HEIGHT + 0.6)
    all_axes = figure.subplots(1, 3, sharey=True)
    for axes, (title, colors) in zip(all_axes, EFFECTIVE_PANELS.items()):
        for role, color in colors.items():
            draw_quantiles(axes, [row for row in rows if row["role"] == role], role, COLORS[color])
        axes.set(yscale="log")
        label_axes(axes, title, "step")
    all_axes[0].set_ylabel("effective lr, weight per gradient", size=USUAL)
    for label, alpha in (("all values", 0.15), ("quantiles .05 to .95", 0.3), ("quantiles .25 to .75", 0.6)):
        all_axes[0].fill_between([], [], color="0.3", alpha=alpha, label=label, lw=0)    # for the legend
    finish(figure, all_axes, path)
    return []


def draw_quantiles(axes, rows: list[dict], role: str, color: str) -> None:
    """Draws the effective learning rates of one role. The bands are geometric means over seeds, and each line
    is the median of one seed."""
    steps = sorted({row["step"] for row in rows})

    def across_seeds(quantile: str) -> list[float]:
        return [np.exp(np.mean([np.log(row[quantile]) for row in rows if row["step"] == step]))
                for step in steps]

    for low, high, alpha in (("q0", "q100", 0.15), ("q5", "q95", 0.25), ("q25", "q75", 0.4)):
        axes.fill_between(steps, across_seeds(low), across_seeds(high), lw=0, color=color, alpha=alpha)
    label = EFFECTIVE_LABELS[role]
    for run in sorted({row["run"] for row in rows}):
        medians = [(row["step"], row["q50"]) for row in rows if row["run"] == run]
        axes.plot(*zip(*medians), color=color, lw=1.2, ls="--" if role == "qkv" else "-", label=label)
        label = None    # one entry in the legend


# ---------------------------------------------------------------------------------------------------------
# Figs. 8 and 11 to 14: hybrids


def draw_hybrids(study: Study, path: Path) -> list[str]:
    """Losses over the learning rate of the SGD that trains the rest."""
    def panel(sweep: str, title: str, optimizer: str, lines: list[Line], **options: str) -> Panel:
        label = f"{NAMES[optimizer]}, with averaged SGD elsewhere"
        curve = curve_of(study, optimizer, "rest_lr", label=label, rest="sgd_ema", **options)
        return Panel(title, "peak learning rate of averaged SGD", [curve], study.command(sweep), lines)

    lines = baselines(study)
    lines_of_adafactor = [lines[0], line_of(study, "adafactor", " everywhere")]
    panels = [
        panel("hybrid_last", "Adalayer* on the last layer", STAR, lines, adaptive="head"),
        panel("hybrid_last_norm", "Adalayer* on last layer and norms", STAR, lines, adaptive="head+norm"),
        panel("hybrid_reverse", "Adalayer* on the matrices alone", STAR, lines, adaptive="qkv+matrix"),
        panel("norms_untrained", "Adalayer* on last layer, norms untrained", STAR, lines, adaptive="head",
              untrained="norm"),
        panel("hybrid_adafactor", "Adafactor on last layer and norms", "adafactor", lines_of_adafactor,
              adaptive="head+norm")]
    return draw(path, panels)


# ---------------------------------------------------------------------------------------------------------
# Figs. 9 and 17 to 19: frozen ratios


def draw_frozen(study: Study, path: Path) -> list[str]:
    """Losses over the learning rate if ratios are frozen, beside Adalayer* itself."""
    def panel(title: str, updating: str, **options: str) -> Panel:
        frozen = curve_of(study, STAR, label="Adalayer*, ratios frozen", style=HOLLOW | {"ls": "-."},
                          freeze_steps="*", updating=updating, **options)
        references = [curve_of(study, STAR)]
        if "untrained" in options:
            references.append(curve_of(study, STAR, label="Adalayer*, norms untrained",
                                       style={"marker": "|", "ms": 10, "ls": ":"}, untrained="norm"))
        curves = [frozen, *references] if len(frozen.points) > 1 else [frozen]    # never references alone
        return Panel(title, PEAK_LR, curves, study.command("frozen"), baselines(study)[2:], top=1.3)

    return draw(path, [panel("frozen but for last layer and norms", "head+norm"),
                       panel("all frozen", "none"),
                       panel("frozen but for the last layer", "head"),
                       panel("frozen but for the norms", "norm"),
                       panel("frozen but for last layer, norms untrained", "head", untrained="norm")])


# ---------------------------------------------------------------------------------------------------------
# Figs. 10, 15 and 16: Adalayer and AdaSGD. Which weights share a second moment?


def draw_adalayer(study: Study, path: Path) -> list[str]:
    """Losses over the learning rate, from one second moment for all weights to one for each weight."""
    curves = {
        "adasgd": curve_of(study, "adasgd", label="AdaSGD: one v for all weights"),
        "adalayer": curve_of(study, "adalayer", label="Adalayer: one v per tensor"),
        "star": curve_of(study, STAR, label="Adalayer*: also one per row of the head"),
        "embedding": curve_of(study, "adalayer", label="also one per row of the embedding",
                              style=HOLLOW | {"ls": "--"}, rows="head+embed"),
        "rows": curve_of(study, "adalayer", label="one v per row everywhere",
                         style=HOLLOW | {"ls": ":", "marker": "p"}, rows="embed+qkv+matrix+head"),
        "adam": curve_of(study, "adamw", label="Adam: one v per weight"),
    }
    sgd = curve_of(study, "sgd", label="SGD: no v")
    sweeps = {"sgd": "lr", "adasgd": "adasgd", "adalayer": "adalayer", "star": "adalayer",
              "embedding": "adalayer", "rows": "granularity", "adam": "lr"}
    missing = study.command("granularity")
    panels = [Panel("learning rates as they are", PEAK_LR, list(curves.values())[1:], missing,
                    [line_of(study, "sgd")]),
              Panel("relative to each one's best", SHIFTED_LR, [sgd, *curves.values()], missing, shift=True)]
    return draw(path, panels) + [
        study.command(sweeps[kind]) for kind, curve in {"sgd": sgd, **curves}.items() if not curve.points]


def draw_adasgd(study: Study, path: Path) -> list[str]:
    """Losses of AdaSGD alone, and of AdaSGD as the rest beside Adalayer*."""
    alone = [curve_of(study, "adasgd", label="AdaSGD, beta1 0.9"),
             curve_of(study, "adasgd", label="AdaSGD, beta1 0.98", style={"ls": "--"} | HOLLOW, beta1=0.98)]
    hybrid = curve_of(study, STAR, "rest_lr", label="Adalayer*, with AdaSGD elsewhere", adaptive="head+norm",
                      rest="adasgd")
    missing, lines = study.command("adasgd"), baselines(study)
    return draw(path, [
        Panel("AdaSGD alone", PEAK_LR, alone, missing, lines),
        Panel("with Adalayer* on last layer and norms", "peak learning rate of AdaSGD", [hybrid],
              missing, lines)])


def draw_training_curves(study: Study, training_curves: TrainingCurves, path: Path) -> list[str]:
    """Training losses over the steps at each optimizer's best learning rate. Bands are ranges over seeds."""
    missing = []
    curves = {}
    for name in (*SIX, "adalayer", "adasgd"):
        best_lr = study.lowest(name).value
        of_seeds = [training_curves[row["run"]] for row in study.unchanged(name)
                    if row["run"] in training_curves and row["lr"] == best_lr]
        if of_seeds:
            curves[name] = [curve for curve in of_seeds if curve["step"] == of_seeds[0]["step"]]
        else:
            missing.append(study.command("lr" if name in SIX else name))
    if not curves:
        path.unlink(missing_ok=True)
        return missing
    figure = blank_figure(1.8 * WIDTH, 1.5 * HEIGHT)
    axes = figure.subplots()
    for name, of_seeds in curves.items():
        steps, losses = of_seeds[0]["step"], np.array([curve["loss"] for curve in of_seeds])
        best_lr, final_losses = study.lowest(name)
        style = style_of(name)
        axes.plot(steps, losses.mean(0), **style, lw=1.4, ms=4, markevery=0.1,
                  label=f"{np.mean(final_losses):.2f}  {NAMES[name]}, lr {best_lr:g}")
        axes.fill_between(steps, losses.min(0), losses.max(0), color=style["color"], alpha=0.3, lw=0)
    label_axes(axes, "at the best learning rate, with the final validation loss", "step",
               "training loss, nats per token")
    finish(figure, [axes], path)
    return missing


# ---------------------------------------------------------------------------------------------------------
# Fig. 20: Sophia; and the league of all rules


def draw_sophia(study: Study, path: Path) -> list[str]:
    """Sophia's losses over the learning rate, with Signum as the baseline."""
    curve = curve_of(study, "sophia", label="Sophia")
    return draw(path, [Panel("Sophia beside Signum", PEAK_LR, [curve], study.command("sophia"),
                             [line_of(study, "signum")])])


def draw_league_lrs(study: Study, rules: dict[str, Rule], path: Path) -> list[str]:
    """The losses of all rules over the learning rate, in a panel for each file of rules."""
    names_of: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name, rule in rules.items():
        names_of.setdefault(rule.function.__module__.removeprefix("zoo."), []).append(name)
    panels = []
    for kind, names in names_of.items():
        curves = [curve_of(study, name) for name in names]
        panels.append(Panel(KINDS.get(kind, kind), PEAK_LR, curves, study.command("league"),
                            [line_of(study, "adamw")], top=1.2, legend=True))
    return draw(path, panels)


def draw_league(places: list[Place], missing: str, path: Path) -> list[str]:
    """The differences to AdamW of all rules that have a verdict, each with its interval, in the order of the
    places.

    missing: the command of the sweep that supplies the league's runs.
    """
    verdicts = [(place.name, place.found.verdict) for place in places
                if place.found.verdict and place.found.verdict.interval]
    if not verdicts:
        path.unlink(missing_ok=True)    # it would show other results
        return [missing]
    across = min(2, len(verdicts))
    half = math.ceil(len(verdicts) / across)
    figure = blank_figure(2 * WIDTH, 1.5 + 0.17 * half)
    all_axes = figure.subplots(1, across, squeeze=False)[0]
    for axes, start in zip(all_axes, (0, half)):
        draw_differences(axes, verdicts[start:start + half])
    finish(figure, all_axes, path)
    return []


def draw_differences(axes, verdicts: list[tuple[str, Verdict]]) -> None:
    """Draws the differences of some rules from the top down, each with its interval. A difference beyond
    SHOWN is written as a number.

    verdicts: (name of a rule, its verdict), the best rule first.
    """
    for y, (_, verdict) in enumerate(verdicts):
        mean, low, high, *_ = verdict.interval
        color, marker = VERDICTS[verdict.word]
        if not SHOWN[0] < mean < SHOWN[1]:
            x, side = (SHOWN[0] + 0.01, "left") if mean < 0 else (SHOWN[1] - 0.01, "right")
            axes.text(x, y, f"{mean:+.2f}", size=SMALL, color=color, ha=side, va="center")
            continue
        axes.errorbar(mean, y, xerr=[[mean - low], [high - mean]], color=color, fmt=marker, ms=5, lw=1.4,
                      label=verdict.word)
    axes.axvline(0, color="black", ls="--", lw=1.2, label=f"{REFERENCE} at its best")
    axes.set_xlim(*SHOWN)
    axes.set_ylim(len(verdicts) - 0.5, -0.5)
    axes.set_yticks(range(len(verdicts)), [name for name, _ in verdicts])
    label_axes(axes, "", f"difference to {REFERENCE}, nats per token")


# ---------------------------------------------------------------------------------------------------------
# A picture of run folders


def smooth_training_loss(run: RecordedRun) -> tuple[list[int], np.ndarray]:
    """Returns steps, and at each the mean training loss of the last five logged steps. A run of fewer than 20
    logged steps is not smoothed."""
    rows = run.training_rows()
    steps = [row["step"] for row in rows]
    losses = np.array([row["loss"] for row in rows])
    width = 5 if len(rows) >= 20 else 1
    return steps[width - 1:], np.convolve(losses, np.ones(width) / width, "valid") if rows else losses


def styles_of(rules: list[str]) -> list[Style]:
    """Returns a style for each of several variants. Variants of one rule have its colour and differ in marks
    and lines. If all are of one rule, they differ in colour, too.

    rules: the rule of each variant.
    """
    styles = []
    for i, rule in enumerate(rules):
        before = rules[:i].count(rule)
        if len(set(rules)) == 1:
            styles.append({"color": COLORS[i % 9], "marker": MARKS[(i + i // 9) % 9]})
        elif before:
            look = {"marker": MARKS[(MARKS.index(style_of(rule)["marker"]) + before) % 9],
                    "ls": ("--", ":", "-.")[(before + before // 9) % 3 - 1]}
            styles.append(style_of(rule) | HOLLOW | look)
        else:
            styles.append(style_of(rule))
    return styles


def draw_study(runs_of: dict[str, dict[float, list[RecordedRun]]], path: Path) -> None:
    """Draws final losses over learning rates, and training losses at the best learning rate.

    Args:
        runs_of: {name: {learning rate: its runs, one for each seed}}, as by_name_and_lr() returns it.
        path: the file to write.

    Raises:
        UserError: the file cannot be written.
    """
    figure = blank_figure(2 * WIDTH, 1.3 * HEIGHT)
    left, right = figure.subplots(1, 2)
    all_lrs = list(runs_of.values())
    rules = [next(iter(lrs.values()))[0].config["optimizer"] for lrs in all_lrs]
    curves = []
    for (name, lrs), style in zip(runs_of.items(), styles_of(rules)):
        best_lr = min(lrs, key=lambda lr: mean_loss(lrs[lr]))
        curves.append(Curve(f"{mean_loss(lrs[best_lr]):.2f}  {name}, lr {best_lr:g}", style,
                            {lr: [run.final_loss for run in runs] for lr, runs in lrs.items()}))
        of_seeds = [smooth_training_loss(run) for run in lrs[best_lr]]
        steps = of_seeds[0][0]
        losses = [np.interp(steps, *of_seed) for of_seed in of_seeds if len(steps) and len(of_seed[0])]
        right.plot(steps, np.mean(losses, axis=0) if losses else [], lw=1.4, ms=4,
                   markevery=max(1, len(steps) // 8), **style)
    one = scaled(Panel("final loss at every learning rate", PEAK_LR, curves, missing="", top=2.4))
    numbers = side_by_side(left, draw_panel(left, one, one.lowest, one.highest))
    write_above(left, numbers, one.lowest, one.highest, rows_of(numbers))
    left.set_ylabel(LOSS, size=USUAL)
    lowest_training = min((min(line.get_ydata(), default=np.inf) for line in right.lines))
    right.set_ylim(min(one.lowest, lowest_training) - 0.1, one.lowest + 3.4)
    label_axes(right, "training at the best one", "step", "training loss, nats per token")
    finish(figure, [left, right], path, marks_of([numbers]))
