"""
What the rows of the results say: loss curves, best values, widths, and the spread over seeds.

The class Study answers the questions that claims and figures ask. When the rows are too few for an answer,
it raises NotEnough with the command of the sweep that supplies the missing runs.
"""
import math
import shlex
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from study.thresholds import COUNTS, NEAR, PARITY, USABLE

SIZES = ("150m", "300m", "600m", "1.2b")    # the paper's sizes, which are names of configs
SEEDS = "seed=0,1,2"

Row = dict[str, Any]
Losses = list[float]


class NotEnough(Exception):
    """Runs are missing. The message is the command of the sweep that supplies them."""


class Best(NamedTuple):
    """The best value of a hyperparameter, and the final losses there, one for each seed."""
    value: float | None
    losses: Losses


class Width(NamedTuple):
    """How wide the range of useful learning rates is.

    Attributes:
        decades: the width. If it is not complete, the range is at least that wide.
        complete: whether the loss rises above the limit on both sides of the best value.
        seeds: the number of seeds from which the width is measured.
    """
    decades: float
    complete: bool
    seeds: int


def parts_of(setting: str) -> tuple[str, dict[str, str]]:
    """Returns the config of a setting, and {option: value} of what the setting changes."""
    config, *assignments = shlex.split(setting)
    return config, dict(assignment.split("=", 1) for assignment in assignments)


class Study:
    """The rows of a results folder, and the setting that the claims are about.

    A setting is the name of a config, followed by those options that change its model, its data or its number
    of tokens, for example "study qk_norm=false z_loss=0".

    Args:
        rows: the rows of results.csv with numbers as floats; `changed` is {option: value}, and the loss of a
            diverged run is infinite.
        effective: the rows of effective_lr.csv, with the quantiles as floats.
        base: the setting that the claims are about.
    """
    def __init__(self, rows: list[Row], effective: list[Row], base: str):
        self.rows, self.effective, self.base = rows, effective, base
        self.settings = sorted({row["setting"] for row in rows}, key=lambda name: (name != base, name))

    # --- settings beside the base

    def variants(self, options: set[str], configs: Iterable[str] = ()) -> list[str]:
        """Returns the settings of these configs, then those that differ from the base in some of these
        options and in no others."""
        found = [setting for setting in self.settings if setting in configs]
        base_config, base_options = parts_of(self.base)
        for setting in self.settings:
            config, chosen = parts_of(setting)
            differ = {option for option in base_options | chosen
                      if base_options.get(option) != chosen.get(option)}
            if config == base_config and differ and differ <= options:
                found.append(setting)
        return found

    def largest(self, setting: str, *columns: str) -> float:
        """Returns the largest product of these columns in any row of a setting."""
        products = (math.prod(row[column] for column in columns)
                    for row in self.rows if row["setting"] == setting)
        return max(products, default=0)

    def larger(self) -> list[str]:
        """Returns the settings whose model has more weights than the base's, outside embedding and head."""
        weights = self.largest(self.base, "hidden")
        return [setting for setting in self.variants({"width", "layers", "heads"}, SIZES)
                if self.largest(setting, "hidden") > weights]

    def longer(self) -> list[str]:
        """Returns the settings that train on more tokens than the base."""
        sequences = self.largest(self.base, "steps", "batch")
        return [setting for setting in self.variants({"steps"}, [f"{self.base}-long"])
                if self.largest(setting, "steps", "batch") > sequences]

    def unstabilized(self) -> list[str]:
        """Returns the settings that have neither QK-norm nor z-loss."""
        lacking = {"qk_norm": "false", "z_loss": "0"}.items()
        return [setting for setting in self.variants({"qk_norm", "z_loss"})
                if lacking <= parts_of(setting)[1].items()]

    def other_bases(self) -> list["Study"]:
        """Returns the same rows with claims about other settings: longer trainings of the same config, the
        shortest first, and the paper's smallest model, for which there may be no rows."""
        config, _ = parts_of(self.base)
        longer = [setting for setting in self.longer() if parts_of(setting)[0] == config]
        longer.sort(key=lambda setting: self.largest(setting, "steps", "batch"))
        bases = dict.fromkeys([*longer, SIZES[0]])
        return [Study(self.rows, self.effective, base) for base in bases if base != self.base]

    def settings_of_claims(self) -> list[str]:
        """Returns the base and the settings beside it that claims and figures are about."""
        return [self.base, *self.larger(), *self.longer(), *self.unstabilized()]

    # --- losses

    def unchanged(self, optimizer: str) -> list[Row]:
        """Returns the rows of an optimizer that differ from the base in learning rate and seed alone."""
        return [row for row in self.rows if row["setting"] == self.base and not row["changed"]
                and row["optimizer"] == optimizer]

    def curve(self, optimizer: str, along: str = "lr", setting: str | None = None, paired: bool = False,
              **fixed: Any) -> dict[float, Losses]:
        """Returns the final losses of an optimizer over the values of one hyperparameter.

        Only runs that differ from their setting in `along` and in the options of `fixed` alone are taken.
        If they have several learning rates and `along` is not the learning rate, the curve is at the learning
        rate with the most points.

        Args:
            optimizer: the name of the optimizer.
            along: the column of results.csv that varies; "tied" is beta1 where beta2 has the same value.
            setting: the setting of the runs; the default is the base.
            paired: take only those seeds that all points have, if there are any. Then differences between
                the seeds do not change the curve's shape.
            fixed: {option: value} of options that all runs of the curve have; "*" is any value.

        Returns:
            {value: losses, one for each seed}, by rising value.
        """
        by_lr: dict[float, dict[float, dict[float, float]]] = {}
        for row in self.rows:
            if not self._belongs(row, optimizer, along, setting or self.base, fixed):
                continue
            points = by_lr.setdefault(row["lr"] if along != "lr" else 0, {})
            losses = points.setdefault(row["beta1" if along == "tied" else along], {})
            losses.setdefault(row["seed"], row["loss"])    # the same run under two names counts once

        def rank(points: dict[float, dict[float, float]]) -> tuple[int, float]:
            return len(points), -min(np.mean(list(losses.values())) for losses in points.values())

        points = max(by_lr.values(), key=rank, default={})
        common = set.intersection(*map(set, points.values())) if paired and points else set()
        return {value: [losses[seed] for seed in sorted(common or losses)]
                for value, losses in sorted(points.items())}

    @staticmethod
    def _belongs(row: Row, optimizer: str, along: str, setting: str, fixed: dict[str, Any]) -> bool:
        """Whether a row is a point of the curve that `curve` describes."""
        if row["setting"] != setting or row["optimizer"] != optimizer:
            return False
        if along == "tied" and row["beta1"] != row["beta2"]:
            return False
        varies = {"beta1", "beta2"} if along == "tied" else {along}
        changed = {option: value for option, value in row["changed"].items() if option not in varies}
        return changed.keys() == fixed.keys() and all(
            wanted in ("*", changed[option]) for option, wanted in fixed.items())

    def lowest(self, optimizer: str, along: str = "lr", setting: str | None = None, **fixed: Any) -> Best:
        """Returns the value of a curve with the lowest mean loss, and all losses there.

        The mean is over the seeds that all values have. Values at which a seed diverged are not considered.
        If no value is left, the result is (None, []). The arguments are those of curve().
        """
        curve = self.curve(optimizer, along, setting, **fixed)
        paired = self.curve(optimizer, along, setting, paired=True, **fixed)
        finite = [value for value, losses in curve.items() if np.isfinite(losses).all()]
        value = min(finite, key=lambda value: np.mean(paired[value]), default=None)
        return Best(value, curve.get(value, []))

    def best(self, sweep: str, optimizer: str, along: str = "lr", setting: str | None = None,
             **fixed: Any) -> Best:
        """Returns what lowest() does, if there are enough runs.

        Args:
            sweep: the sweep that supplies missing runs; the other arguments are those of curve().

        Raises:
            NotEnough: the curve has fewer than four points, or no finite one, or its best learning rate, or
                that of the rest, is at its edge.
        """
        curve = self.curve(optimizer, along, setting, **fixed)
        value, losses = self.lowest(optimizer, along, setting, **fixed)
        more = f"optimizer={optimizer}" if sweep in ("lr", "league") else ""
        if len(curve) < 4 or not losses:
            raise NotEnough(self.command(sweep, setting, more))
        if along in ("lr", "rest_lr") and value in (min(curve), max(curve)):
            half_decades = round(2 * math.log10(value)) + (-1 if value == min(curve) else 1)
            more = f"{more} {along}={10**(half_decades / 2):.3g}"
            raise NotEnough(self.command(sweep, setting, more) + "    (the best is at the edge)")
        return Best(value, losses)

    def width(self, sweep: str, optimizer: str, along: str = "lr", setting: str | None = None,
              **fixed: Any) -> Width:
        """Returns the width of the range of learning rates whose loss is at most USABLE above the best.

        The ends of the range are interpolated between points. The arguments and the errors are those of
        best().
        """
        self.best(sweep, optimizer, along, setting, **fixed)    # raises NotEnough
        curve = self.curve(optimizer, along, setting, paired=True, **fixed)
        means = {value: float(np.mean(losses)) for value, losses in curve.items()}
        decades, is_complete = usable_decades(means, min(means, key=means.get))
        return Width(decades, is_complete, min(map(len, curve.values())))

    def sd(self, setting: str | None = None, *groups: Losses) -> float:
        """Returns the standard deviation over seeds, in nats.

        It is pooled over the groups if each has two seeds or more. Otherwise it is pooled over all that was
        repeated in the setting and is within NEAR of the lowest mean.

        Args:
            setting: the setting whose repeated runs are used if the groups are too small; default: the base.
            groups: losses of runs that differ in the seed alone. A group with a diverged run is ignored.

        Raises:
            NotEnough: nothing was repeated.
        """
        groups = [group for group in groups if np.isfinite(group).all()]
        if not groups or min(map(len, groups)) < 2:
            groups = self._repeated(setting or self.base)
        if not groups:
            raise NotEnough(self.command("lr", setting) + "    (the spread over seeds is unknown)")
        squares = sum(np.var(group, ddof=1) * (len(group) - 1) for group in groups)
        return float(np.sqrt(squares / sum(len(group) - 1 for group in groups)))

    def _repeated(self, setting: str) -> list[Losses]:
        """Returns the losses of all that has two seeds or more in a setting and is near its best."""
        by_values: dict[tuple, dict[float, float]] = {}
        for row in self.rows:
            if row["setting"] == setting:
                values = (row["optimizer"], row["lr"], *sorted(row["changed"].items()))
                by_values.setdefault(values, {}).setdefault(row["seed"], row["loss"])
        groups = [list(losses.values()) for losses in by_values.values()]
        lowest = min(map(np.mean, groups), default=0)
        return [group for group in groups if len(group) > 1 and np.mean(group) < lowest + NEAR]

    def sgd_everywhere(self) -> Losses:
        """Returns the losses of the SGD that trains the rest in hybrids, if it trains everything, at its best
        learning rate."""
        return self.best("league", "sgd_ema").losses

    # --- commands that supply missing runs

    def command(self, sweep: str, setting: str | None = None, more: str = "") -> str:
        """Returns the command that supplies the runs of a sweep, with more options if any are given."""
        config, *changed = (setting or self.base).split()
        return " ".join(["./sweep.sh", sweep, f"configs/{config}.toml", *changed, *more.split(), SEEDS])

    def variant_command(self, kind: str, more: str = "") -> str:
        """Returns the command of the sweep over learning rates of a variant of the base. kind: "larger",
        "longer" or "unstabilized"."""
        if kind == "larger" and self.base in SIZES[:-1]:
            return self.command("lr", SIZES[SIZES.index(self.base) + 1], more)
        if kind == "longer" and self.base == SIZES[0]:
            return self.command("lr", f"{self.base}-long", more)    # the paper's longer training has a config
        config, options = parts_of(self.base)
        steps = [row["steps"] for row in self.rows if row["setting"] == self.base and not row["changed"]]
        options |= {"larger": {"width": "128", "heads": "4"},
                    "longer": {"steps": f"{4 * steps[0] if steps else 4000:g}"},
                    "unstabilized": {"qk_norm": "false", "z_loss": "0"}}[kind]
        words = [f"{option}={value}" for option, value in options.items()]
        return self.command("lr", " ".join([config, *words]), more)


def usable_decades(means: dict[float, float], best: float) -> tuple[float, bool]:
    """Returns how many decades of values are within USABLE of the best one, and whether the losses at both
    ends are higher, so that the width is complete.

    Args:
        means: {value: mean loss}.
        best: the value with the lowest loss.
    """
    limit = means[best] + USABLE
    low, low_found = usable_end(means, sorted((x for x in means if x <= best), reverse=True), limit)
    high, high_found = usable_end(means, sorted(x for x in means if x >= best), limit)
    return math.log10(high / low), low_found and high_found


def require_complete(width: Width, command: str, along: str = "lr") -> None:
    """Raises NotEnough if a width is only a lower bound. command: the sweep that gave the width.
    along: the hyperparameter of which values further out are missing."""
    if not width.complete:
        raise NotEnough(f"{command}    (with {along}= further out)")


def usable_end(means: dict[float, float], values: list[float], limit: float) -> tuple[float, bool]:
    """Finds the end of the usable range on one side of the best value.

    Args:
        means: {value: mean loss}.
        values: the values from the best one outwards.
        limit: the highest usable loss.

    Returns:
        The value at which the loss reaches the limit, interpolated between two points, and True. If no point
        is above the limit, the outermost value and False.
    """
    for inner, outer in zip(values, values[1:]):
        if means[outer] > limit:    # an infinite loss, of a diverged run, gives the inner value
            fraction = (limit - means[inner]) / (means[outer] - means[inner])
            return inner * (outer / inner)**fraction, True
    return values[-1], False


# ---------------------------------------------------------------------------------------------------------
# Comparisons


class Comparison(NamedTuple):
    """Two groups of losses compared.

    Attributes:
        above: by how many nats the mean of the first group is above the mean of the second one.
        margin: what the difference must exceed to count, in nats.
        text: both groups, the difference and the margin in words.
    """
    above: float
    margin: float
    text: str

    @property
    def is_above(self) -> bool:
        """Whether the first group is above the second one by more than the margin."""
        return self.above > self.margin

    @property
    def is_below(self) -> bool:
        """Whether the first group is below the second one by more than the margin."""
        return self.above < -self.margin

    @property
    def is_equal(self) -> bool:
        """Whether the groups differ by the margin at most."""
        return abs(self.above) <= self.margin


def margin(sd: float, least: float = PARITY) -> float:
    """Returns the largest difference that does not count: COUNTS standard deviations, at least `least`."""
    return max(least, COUNTS * sd)


def show(name: str, losses: Losses) -> str:
    """Returns a name with the mean of its losses, their standard deviation and the number of seeds."""
    spread = f" sd {np.std(losses, ddof=1):.3f}" if len(losses) > 1 and np.isfinite(losses).all() else ""
    return f"{name} {np.mean(losses):.3f}{spread} n {len(losses)}"


def show_all(losses_of: dict[str, Losses]) -> str:
    """Returns the numbers of several settings in words, as show() gives them."""
    return ", ".join(show(name, losses) for name, losses in losses_of.items())


def show_widths(widths: dict[str, Width]) -> str:
    """Returns the widths of several settings in words, with the number of seeds of each."""
    return ", ".join(f"{name} {width.decades:.2f} n {width.seeds}" for name, width in widths.items())


def compare(study: Study, name: str, losses: Losses, other: str, others: Losses,
            least: float = PARITY) -> Comparison:
    """Compares two groups of losses. Differences up to `least` nats never count."""
    above = float(np.mean(losses) - np.mean(others))
    least_that_counts = margin(study.sd(None, losses, others), least)
    text = (f"{show(name, losses)}, {show(other, others)}; "
            f"the difference is {above:+.3f}, and differences beyond {least_that_counts:.3f} count")
    return Comparison(above, least_that_counts, text)


def swapped_pairs(study: Study, optimizers: Iterable[str], one: str, other: str) -> list[str]:
    """Returns the pairs of optimizers that have one order at one setting and the reverse at another one.
    Only differences beyond the margin count as an order."""
    names = tuple(optimizers)
    best = {setting: {name: study.best("lr", name, setting=setting).losses for name in names}
            for setting in (one, other)}

    def below(setting: str, a: str, b: str) -> bool:
        low, high = best[setting][a], best[setting][b]
        return np.mean(high) - np.mean(low) > margin(study.sd(setting, low, high))

    return [f"{a} and {b}" for a in names for b in names if below(one, a, b) and below(other, b, a)]
