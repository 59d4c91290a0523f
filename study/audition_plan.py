"""
Which runs an audition makes, and what they say. This file neither trains nor reads files, so that tests can
play whole auditions with made-up losses.

An audition tunes the learning rates of a candidate and of a reference in the same way, compares pairs of runs
that share their seed, and then trains the reference for other lengths, which gives the speedup.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from study.evidence import usable_end
from study.thresholds import PARITY, USABLE
from study.verdict import Look, LossesByLr, Speedup, Verdict, judge, looks, speedup, stable

TUNING_SEED = 0    # the seed that chooses learning rates. It does not vote, because the choice favours it
CONTENDS = 0.1    # nats: a neighbour that is this close to the best at the tuning seed may be the best
REACH = 6    # half decades that the search for the best learning rate goes away from the usual one


# ---------------------------------------------------------------------------------------------------------
# The two sides, and their runs


class Side(NamedTuple):
    """The candidate or the reference.

    Attributes:
        words: the rule and the options that the user chose, as "muon modify=cautious".
        optimizer: the rule as results.csv names it.
        changed: the options that differ from the usual ones, as pairs.
        usual: the usual peak learning rate, in half decades: 10**(usual / 2).
    """
    words: str
    optimizer: str
    changed: frozenset[tuple[str, Any]]
    usual: int


class Run(NamedTuple):
    """A run of one side. lr is in half decades."""
    optimizer: str
    changed: frozenset[tuple[str, Any]]
    steps: int
    lr: int
    seed: int


Losses = dict[Run, float]    # final validation losses in nats per token; infinite if the run diverged


def half_decades(lr: float) -> int:
    """Returns 2 log10(lr), rounded."""
    return round(2 * math.log10(lr))


def lr_text(lr: int) -> str:
    """Returns a learning rate in half decades as the sweeps write it, such as "3.16e-3" or "0.316"."""
    text = f"{'3.16' if lr % 2 else '1'}e{lr // 2}"
    return text if lr < -2 else f"{float(text):g}"


def run_of(row: dict[str, Any], config_name: str) -> Run | None:
    """Returns the run of a row of results.csv, or None if it is of another task or another grid."""
    name, *assigned = row["setting"].split()
    is_of_task = name == config_name and all(word.startswith("steps=") for word in assigned)
    if not is_of_task or not row["lr"]:
        return None
    lr = half_decades(row["lr"])
    if abs(row["lr"] / 10**(lr / 2) - 1) > 0.01:
        return None
    return Run(row["optimizer"], frozenset(row["changed"].items()), int(row["steps"]), lr, int(row["seed"]))


def losses_of(rows: list[dict[str, Any]], config_name: str) -> Losses:
    """Returns the losses of rows. Of two rows of the same run, the later one counts."""
    return {run: row["loss"] for row in rows if (run := run_of(row, config_name))}


# ---------------------------------------------------------------------------------------------------------
# What the runs say, and which runs come next


@dataclass
class Tuning:
    """The search for a side's best learning rate at one length.

    Attributes:
        losses: {learning rate in half decades: final loss} at the tuning seed.
        best: the learning rate with the lowest loss, or None.
        bracketed: whether both neighbours of the best were tried.
        wanted: the learning rates to try next.
    """
    losses: dict[int, float]
    best: int | None = None
    bracketed: bool = False
    wanted: list[int] = field(default_factory=list)

    def contenders(self) -> list[int]:
        """Returns the learning rates that may be the best: the chosen one, then those of its neighbours that
        are within CONTENDS. If others are as good, the basin is flat, and it matters little which one is
        taken."""
        neighbours = [lr for lr in (self.best - 1, self.best + 1)
                      if self.losses[lr] <= self.losses[self.best] + CONTENDS]
        return [self.best, *neighbours]

    def width(self) -> tuple[float, bool]:
        """Returns how many decades of learning rates are within USABLE of the best, and whether the losses
        at both ends are higher, so that the width is complete."""
        means = {10**(lr / 2): loss for lr, loss in self.losses.items()}
        best = 10**(self.best / 2)
        limit = means[best] + USABLE
        low, low_found = usable_end(means, sorted((lr for lr in means if lr <= best), reverse=True), limit)
        high, high_found = usable_end(means, sorted(lr for lr in means if lr >= best), limit)
        return math.log10(high / low), low_found and high_found


def tune(side: Side, steps: int, losses: Losses, start: int) -> Tuning:
    """Looks for the best learning rate: `start` and its two neighbours first, and then on from the best one
    until both of its neighbours were tried."""
    tried = {run.lr: loss for run, loss in losses.items()
             if run == Run(side.optimizer, side.changed, steps, run.lr, TUNING_SEED)}
    if missing := [lr for lr in (start - 1, start, start + 1) if lr not in tried]:
        return Tuning(tried, wanted=missing)
    best = min(tried, key=tried.get)
    if math.isinf(tried[best]):    # all diverged, so only a lower one can be better
        lower = min(tried) - 1
        return Tuning(tried, wanted=[lower] if abs(lower - start) <= REACH else [])
    missing = [lr for lr in (best - 1, best + 1) if lr not in tried]
    near = [lr for lr in missing if abs(lr - start) <= REACH]
    return Tuning(tried, best, not missing, near)


@dataclass
class Findings:
    """What the runs say so far.

    Attributes:
        candidate, reference: the sides, with the hyperparameters that were tuned.
        tunings: (the candidate's Tuning, the reference's).
        choices: what --tune tried: (the words of a side, its final loss) in the order of trial.
        sides: all sides of which runs may be wanted.
        seeds: the seeds of the pairs.
        votes: ({learning rate: the candidate's final losses, one for each seed}, the same of the reference).
        look: the last look.
        verdict: what that look says, or None.
        lengths: {seed: {steps: final loss}} of the reference.
        length_tunings: {steps: Tuning} of the reference at other lengths.
        stage: what the wanted runs are for.
        wanted: the runs to make next; none if all is known.
    """
    candidate: Side
    reference: Side
    tunings: tuple[Tuning, Tuning] | None = None
    choices: list[tuple[str, float]] = field(default_factory=list)
    sides: list[Side] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    votes: tuple[LossesByLr, LossesByLr] = ({}, {})
    look: Look | None = None
    verdict: Verdict | None = None
    lengths: dict[int, dict[int, float]] = field(default_factory=dict)
    length_tunings: dict[int, Tuning] = field(default_factory=dict)
    stage: str = "learning rates"
    wanted: list[Run] = field(default_factory=list)

    @property
    def pairs(self) -> tuple[list[float], list[float]]:
        """The final losses of both sides at their chosen learning rates, one for each seed."""
        return tuple(next(iter((stable(losses) or losses).values()), []) for losses in self.votes)

    @property
    def is_bracketed(self) -> bool:
        """Whether both best learning rates are known and have worse neighbours on both sides."""
        return bool(self.tunings) and all(tuning.bracketed for tuning in self.tunings)

    def speedup(self, steps: int) -> Speedup | None:
        """Returns how many steps the reference needs for the candidate's loss, relative to `steps`, or None
        if the lengths that this needs are not known."""
        if not self.lengths or self.wanted:
            return None
        candidate = dict(zip(self.seeds, self.pairs[0]))
        return speedup({seed: candidate[seed] for seed in self.lengths}, self.lengths, steps)


@dataclass(frozen=True)
class Audition:
    """What is compared, and how.

    Attributes:
        candidate, reference: the two sides.
        steps: the length of a run.
        first: the pairs of the first look.
        margin: the nats within which both are the same.
        tune: (hyperparameter, values) to tune besides the learning rate.
        with_option: a function (side, "beta1=0.8") that returns the side with this option. A side that does
            not have the hyperparameter is returned as it is.
    """
    candidate: Side
    reference: Side
    steps: int
    first: int = 3
    margin: float = PARITY
    tune: tuple[tuple[str, tuple[str, ...]], ...] = ()
    with_option: Callable[[Side, str], Side] | None = None

    def assess(self, losses: Losses, here: Losses) -> Findings:
        """Returns what is known, and which runs come next.

        Args:
            losses: all known losses. Tuning and other lengths use them.
            here: the losses of runs whose bits this machine would repeat. Only these make pairs.
        """
        found = Findings(self.candidate, self.reference, sides=[self.candidate, self.reference])
        sides, tunings = [], []
        for side in (self.candidate, self.reference):
            side, tuning = self.tuned(side, losses, found)
            sides.append(side)
            tunings.append(tuning)
        found.candidate, found.reference = sides
        if found.wanted:
            found.wanted = list(dict.fromkeys(found.wanted))    # both sides may want the same run
            return found
        found.tunings = tuple(tunings)
        if not found.is_bracketed:
            return found
        found.stage = "pairs"
        self.compare(found, here)
        if not found.wanted:
            found.stage = "other lengths of the reference"
            self.measure_lengths(found, losses)
        if not found.wanted:
            found.stage = "the ends of the usable learning rates"
            self.measure_widths(found)
        return found

    def used(self, found: Findings) -> set[Run]:
        """Returns the runs that the findings come from."""
        sides, tunings = (found.candidate, found.reference), found.tunings or ()
        used = {Run(side.optimizer, side.changed, self.steps, lr, TUNING_SEED)
                for side, tuning in zip(sides, tunings) for lr in tuning.losses}
        used |= {Run(side.optimizer, side.changed, self.steps, lr, seed)
                 for side, votes in zip(sides, found.votes) for lr in votes for seed in found.seeds}
        for steps, tuning in found.length_tunings.items():
            run = Run(found.reference.optimizer, found.reference.changed, steps, TUNING_SEED, TUNING_SEED)
            used |= {run._replace(lr=lr) for lr in tuning.losses}
            used |= {run._replace(lr=tuning.best, seed=seed) for seed in found.lengths}
        return used

    def tuned(self, side: Side, losses: Losses, found: Findings) -> tuple[Side, Tuning]:
        """Tunes one side: its learning rate, then each hyperparameter of --tune at that learning rate, and
        then the learning rate again if a hyperparameter has changed."""
        tuning = self.tuned_lr(side, self.steps, losses, side.usual, found)
        for name, values in self.tune:
            if tuning.best is None or tuning.wanted:
                break
            others = [self.with_option(side, f"{name}={value}") for value in values]
            sides = list(dict.fromkeys([side, *others]))
            found.sides += sides
            runs = [Run(one.optimizer, one.changed, self.steps, tuning.best, TUNING_SEED) for one in sides]
            if missing := [run for run in runs if run not in losses]:
                found.wanted += missing
                break
            found.choices += [(one.words, losses[run]) for one, run in zip(sides, runs)]
            chosen = sides[int(np.argmin([losses[run] for run in runs]))]
            if chosen != side:
                side, tuning = chosen, self.tuned_lr(chosen, self.steps, losses, tuning.best, found)
        return side, tuning

    def tuned_lr(self, side: Side, steps: int, losses: Losses, start: int, found: Findings) -> Tuning:
        """Tunes a learning rate, and adds the runs that it needs to found.wanted."""
        tuning = tune(side, steps, losses, start)
        found.wanted += [Run(side.optimizer, side.changed, steps, lr, TUNING_SEED) for lr in tuning.wanted]
        return tuning

    def compare(self, found: Findings, here: Losses) -> None:
        """Looks at more and more pairs until the difference is decided."""
        for look in looks(self.first):
            seeds = list(range(TUNING_SEED + 1, TUNING_SEED + 1 + look.seeds))
            runs = [{lr: [Run(side.optimizer, side.changed, self.steps, lr, seed) for seed in seeds]
                     for lr in tuning.contenders()}
                    for side, tuning in zip((found.candidate, found.reference), found.tunings)]
            needed = [run for of_side in runs for of_lr in of_side.values() for run in of_lr]
            if missing := [run for run in dict.fromkeys(needed) if run not in here]:
                found.wanted = missing
                return
            found.look, found.seeds = look, seeds
            found.votes = tuple({lr: [here[run] for run in of_lr] for lr, of_lr in of_side.items()}
                                for of_side in runs)
            found.verdict = judge(*found.votes, look.level, self.margin)
            if found.verdict.word != "cannot tell":
                return

    def measure_widths(self, found: Findings) -> None:
        """Goes on with both searches until the losses at both ends are no longer usable."""
        for side, tuning in zip((found.candidate, found.reference), found.tunings):
            worst = tuning.losses[tuning.best] + USABLE
            for direction in (-1, 1):
                lr = tuning.best + direction
                while tuning.losses.get(lr, math.inf) <= worst:
                    lr += direction
                run = Run(side.optimizer, side.changed, self.steps, lr, TUNING_SEED)
                if lr not in tuning.losses and abs(lr - tuning.best) <= REACH and run not in found.wanted:
                    found.wanted.append(run)

    def measure_lengths(self, found: Findings, losses: Losses) -> None:
        """Finds the reference's losses at those other lengths that the speedup needs: twice and four times as
        many steps as long as some seed of the candidate has a lower loss, and half as many if some seed of
        the candidate has a higher loss."""
        seeds = found.seeds[:self.first]
        ours = dict(zip(seeds, found.pairs[0]))
        found.lengths = {seed: {self.steps: loss} for seed, loss in zip(seeds, found.pairs[1])}
        if not all(map(math.isfinite, (*ours.values(), *found.pairs[1]))):
            return
        for steps in (2 * self.steps, 4 * self.steps, self.steps // 2):
            if steps > self.steps:    # a length that was not needed makes all longer ones unnecessary
                is_needed = any(ours[seed] < found.lengths[seed].get(steps // 2, -math.inf) for seed in seeds)
            else:
                is_needed = any(ours[seed] > found.lengths[seed][self.steps] for seed in seeds)
            if not is_needed:
                continue
            tuning = self.tuned_lr(found.reference, steps, losses, found.tunings[1].best, found)
            found.length_tunings[steps] = tuning
            if tuning.best is None or found.wanted:
                return
            runs = {seed: Run(found.reference.optimizer, found.reference.changed, steps, tuning.best, seed)
                    for seed in seeds}
            if missing := [run for run in runs.values() if run not in losses]:
                found.wanted = missing
                return
            for seed, run in runs.items():
                found.lengths[seed][steps] = losses[run]
