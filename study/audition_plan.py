"""
Which runs an audition makes, and what they say. This file neither trains nor reads files, so that tests can
play whole auditions with made-up losses.

An audition tunes the learning rates of a candidate and of a reference in the same way, compares pairs of runs
that share their seed, and then trains the reference for other lengths, which gives the speedup.

A learning rate is a whole number here, its place on the grid: it is 10**(place / 4). A step of the grid is a
quarter of a decade, which is a factor of 1.78.
"""
import math
import shlex
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from study.evidence import usable_decades
from study.thresholds import PARITY, USABLE
from study.verdict import Look, LossesByLr, Speedup, Verdict, best_lr, judge, looks, mean_and_sd, speedup

TUNING_SEED = 0    # the seed that chooses learning rates. It does not vote, because the choice favours it
CONTENDS = 0.1    # nats: a neighbour that is this close to the best at the tuning seed may be the best
PER_DECADE = 4    # learning rates of the grid
COARSE = 2    # steps of the grid in the first search, before it is refined: half a decade
OF_A_LOOK = ("look", "seeds", "machines", "votes", "later", "verdict")    # what judge_pairs() sets
REACH = 12    # steps of the grid that the search for the best learning rate goes away from the usual one


# ---------------------------------------------------------------------------------------------------------
# The two sides, and their runs


class Side(NamedTuple):
    """The candidate or the reference.

    Attributes:
        words: the rule and the options that the user chose, as "muon modify=cautious".
        optimizer: the rule as results.csv names it.
        changed: the options that differ from the usual ones, as pairs.
        usual: the usual peak learning rate, rounded to half a decade.
    """
    words: str
    optimizer: str
    changed: frozenset[tuple[str, Any]]
    usual: int

    @property
    def name(self) -> str:
        """The words, without the folder of a user's file."""
        rule, *options = self.words.split()
        return " ".join([rule.rpartition("/")[2], *options])


def options_of(words: str) -> list[str]:
    """Returns the words of a side as options of train.py: ["--optimizer=muon", "--modify=cautious"]."""
    optimizer, *others = words.split()
    return [f"--{word}" for word in (f"optimizer={optimizer}", *others)]


class Run(NamedTuple):
    """A run of one side."""
    optimizer: str
    changed: frozenset[tuple[str, Any]]
    steps: int
    lr: int
    seed: int


Losses = dict[Run, float]    # final validation losses in nats per token; infinite if the run diverged


def place_of(lr: float, step: int = 1) -> int:
    """Returns the place on the grid that is nearest to a learning rate, a multiple of `step`."""
    return step * round(PER_DECADE / step * math.log10(lr))


def lr_at(place: int) -> float:
    """Returns the learning rate at a place on the grid."""
    return 10**(place / PER_DECADE)


def lr_text(place: int) -> str:
    """Returns the learning rate at a place as the sweeps write it, such as "3.16e-3" or "0.316"."""
    text = f"{('1', '1.78', '3.16', '5.62')[place % PER_DECADE]}e{place // PER_DECADE}"
    return text if place < -PER_DECADE else f"{float(text):g}"


def run_of(row: dict[str, Any], config_name: str) -> Run | None:
    """Returns the run of a row of results.csv, or None if it is of another task or another grid."""
    name, *assigned = shlex.split(row["setting"])
    is_of_task = name == config_name and all(word.startswith("steps=") for word in assigned)
    if not is_of_task or not row["lr"]:
        return None
    lr = place_of(row["lr"])
    if abs(row["lr"] / lr_at(lr) - 1) > 0.01:
        return None
    return Run(row["optimizer"], frozenset(row["changed"].items()), int(row["steps"]), lr, int(row["seed"]))


def losses_of(rows: list[dict[str, Any]], config_name: str) -> Losses:
    """Returns the losses of rows. Of two rows of the same run, the later one counts."""
    return {run: row["loss"] for row in rows if (run := run_of(row, config_name))}


def known_spread(reference: Side, steps: int, by_machine: dict[Hashable, Losses]) -> tuple[float, int]:
    """Returns the standard deviation of the differences of pairs that may be expected, in nats, and its
    degrees of freedom, which are 0 if no run tells. The pairs are runs of the reference at one learning rate
    and any others that are within USABLE of them: other optimizers, or other learning rates."""
    squares, freedom = 0.0, 0
    for losses in by_machine.values():
        runs: dict[tuple, dict[int, float]] = {}
        for run, loss in losses.items():
            if run.steps == steps and run.seed != TUNING_SEED:
                runs.setdefault((run.optimizer, run.changed, run.lr), {})[run.seed] = loss
        of_reference = [by_seed for key, by_seed in runs.items() if key[:2] == reference[1:3]]
        ours = max(of_reference, key=len, default={})
        for theirs in runs.values():
            differences = [theirs[seed] - ours[seed] for seed in theirs.keys() & ours.keys()]
            if theirs is ours or len(differences) < 2 or not np.isfinite(differences).all():
                continue
            mean, sd = mean_and_sd(differences)
            if abs(mean) <= USABLE:
                squares += (len(differences) - 1) * sd**2
                freedom += len(differences) - 1
    return math.sqrt(squares / max(freedom, 1)), freedom


# ---------------------------------------------------------------------------------------------------------
# What the runs say, and which runs come next


@dataclass
class Tuning:
    """The search for a side's best learning rate at one length.

    Attributes:
        losses: {learning rate: final loss} at the tuning seed.
        best: the learning rate with the lowest loss, or None.
        bracketed: whether a lower and a higher learning rate than the best were tried.
        wanted: the learning rates to try next.
        likely: those that may be tried after these.
    """
    losses: dict[int, float]
    best: int | None = None
    bracketed: bool = False
    wanted: list[int] = field(default_factory=list)
    likely: list[int] = field(default_factory=list)

    def neighbours(self, lr: int) -> tuple[int, int]:
        """Returns the next lower and the next higher learning rate that were tried."""
        return max(one for one in self.losses if one < lr), min(one for one in self.losses if one > lr)

    def contenders(self) -> list[int]:
        """Returns the learning rates that may be the best: that of the tuning seed, then those of its
        neighbours that are within CONTENDS. If others are as good, the basin is flat, and it matters little
        which one is taken."""
        limit = self.losses[self.best] + CONTENDS
        return [self.best, *(lr for lr in self.neighbours(self.best) if self.losses[lr] <= limit)]

    def gain_at_untrained(self, votes: LossesByLr) -> float:
        """Returns by how many nats the loss may be lower at a contender that lacks pairs than at the chosen
        learning rate. At the tuning seed the contender's loss was higher by d. One seed is off by less than
        CONTENDS. So the contender's true loss is lower by less than CONTENDS - d."""
        return max((self.losses[self.best] + CONTENDS - self.losses[lr] for lr in self.contenders()
                    if lr not in votes), default=0.0)

    def gain_between(self, votes: LossesByLr) -> float:
        """Returns by how many nats the loss may be lower between the learning rates that were tried than at
        the best one of the pairs: that of a parabola through this one and its neighbours. If it has only one
        neighbour, the parabola goes through the one that the tuning seed chose.

        Args:
            votes: {learning rate: the final losses of the pairs}. A neighbour that is not among them is taken
                to be as far above the middle one as at the tuning seed.
        """
        middle = best_lr(votes)
        if middle in (min(self.losses), max(self.losses)):
            middle = self.best
        lower, higher = self.neighbours(middle)
        places = [lower, middle, higher]
        losses = [np.mean(votes[lr]) if lr in votes else
                  np.mean(votes[middle]) + self.losses[lr] - self.losses[middle] for lr in places]
        if not np.isfinite(losses).all():
            return 0.0
        a, b, c = np.polyfit(np.array(places) - middle, losses, 2)
        is_between = a > 0 and lower < middle - b / (2 * a) < higher
        lowest = float(c - b * b / (4 * a))
        return max(0.0, float(np.mean(votes[best_lr(votes)])) - lowest) if is_between else 0.0

    def width(self) -> tuple[float, bool]:
        """Returns how many decades of learning rates are within USABLE of the best, and whether the losses
        at both ends are higher, so that the width is complete."""
        return usable_decades({lr_at(lr): loss for lr, loss in self.losses.items()}, lr_at(self.best))


def tune(side: Side, steps: int, losses: Losses, start: int, finest: int = 1) -> Tuning:
    """Looks for the best learning rate. It tries `start`, rounded to half a decade, and its two neighbours,
    half a decade away. It goes on from the best one until both of its neighbours were tried. Then it tries
    those that are a quarter of a decade away from the best one, unless `finest` is COARSE."""
    tried = {run.lr: loss for run, loss in losses.items()
             if run == Run(side.optimizer, side.changed, steps, run.lr, TUNING_SEED)}
    start = COARSE * round(start / COARSE)
    if missing := [lr for lr in (start - COARSE, start, start + COARSE) if lr not in tried]:
        return Tuning(tried, wanted=missing, likely=[start - 1, start + 1] if finest == 1 else [])
    coarse = {lr: loss for lr, loss in tried.items() if lr % COARSE == 0}
    best = min(coarse, key=coarse.get)
    if math.isinf(coarse[best]):    # all diverged, so only a lower one can be better
        lower = min(coarse) - COARSE
        return Tuning(tried, wanted=[lower] if abs(lower - start) <= REACH else [])
    missing = [lr for lr in (best - COARSE, best + COARSE) if lr not in tried]
    if not missing:
        best = min(tried, key=tried.get)
        missing = [lr for lr in (best - 1, best + 1) if lr not in tried and finest == 1]
    near = [lr for lr in missing if abs(lr - start) <= REACH]
    return Tuning(tried, best, not missing, near)


@dataclass
class Findings:
    """What the runs say so far.

    Attributes:
        candidate, reference: the sides, with the hyperparameters that were tuned.
        tunings: (the candidate's Tuning, the reference's).
        choices: what --tune tried: (the name of a side, its final loss) in the order of trial.
        tuned_by: the runs that all tuning used, also of sides that --tune has not chosen.
        sides: all sides of which runs may be wanted.
        seeds: the seeds of the pairs.
        machines: {seed: the kind of machine that trained both runs of its pair}.
        votes: ({learning rate: the candidate's final losses, one for each seed}, the same of the reference).
        look: the last look.
        later: the looks that may follow.
        verdict: what the last look says, or None.
        lengths: {seed: {steps: final loss}} of the reference.
        length_tunings: {steps: Tuning} of the reference at other lengths.
        stage: what the wanted runs are for.
        wanted: the runs to make next; none if all is known.
        likely: runs that may be wanted after these. They are for cores that would be idle.
    """
    candidate: Side
    reference: Side
    tunings: tuple[Tuning, Tuning] | None = None
    choices: list[tuple[str, float]] = field(default_factory=list)
    tuned_by: list[Run] = field(default_factory=list)
    sides: list[Side] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    machines: dict[int, Hashable] = field(default_factory=dict)
    votes: tuple[LossesByLr, LossesByLr] = ({}, {})
    look: Look | None = None
    later: list[Look] = field(default_factory=list)
    verdict: Verdict | None = None
    lengths: dict[int, dict[int, float]] = field(default_factory=dict)
    length_tunings: dict[int, Tuning] = field(default_factory=dict)
    stage: str = "learning rates"
    wanted: list[Run] = field(default_factory=list)
    likely: list[Run] = field(default_factory=list)

    def wanted_by(self, jobs: int) -> list[Run]:
        """Returns the runs to make next and, if `jobs` runs at a time leave cores idle at the end, as many
        likely ones as fill them."""
        likely = [run for run in self.likely if run not in self.wanted]
        return self.wanted + likely[:-len(self.wanted) % jobs]

    @property
    def pairs(self) -> tuple[list[float], list[float]]:
        """The final losses of both sides at their best learning rates, one for each seed."""
        return tuple(losses[best_lr(losses)] if losses else [] for losses in self.votes)

    @property
    def gains(self) -> tuple[float, float]:
        """By how many nats the loss of (the candidate, the reference) may be lower at learning rates that
        lack pairs."""
        return tuple(tuning.gain_between(votes) + tuning.gain_at_untrained(votes)
                     for tuning, votes in zip(self.tunings, self.votes))

    @property
    def is_undecided(self) -> bool:
        """Whether the runs that were wanted are known and leave open which side is better."""
        return not self.wanted and self.verdict is not None and self.verdict.word == "cannot tell"

    @property
    def has_untrained(self) -> bool:
        """Whether the pairs lack a learning rate that may be the best."""
        return any(tuning.gain_at_untrained(votes) > 0 for tuning, votes in zip(self.tunings, self.votes))

    @property
    def is_bracketed(self) -> bool:
        """Whether both best learning rates are known and have worse neighbours on both sides."""
        return bool(self.tunings) and all(tuning.bracketed for tuning in self.tunings)

    @property
    def has_other_lengths(self) -> bool:
        """Whether the reference has losses at other lengths than the candidate's."""
        return any(len(of_seed) > 1 for of_seed in self.lengths.values())

    def speedup(self, steps: int) -> Speedup | None:
        """Returns how many steps the reference needs for the candidate's loss, relative to `steps`, or None
        if the lengths that this needs are not known."""
        if not self.lengths or self.wanted or not self.verdict.interval:
            return None
        return speedup(self.mean_lengths, self.verdict.interval, steps)

    def speedup_text(self, steps: int) -> str:
        """Returns the speedup with its interval, as "1.48 (1.37 to 1.59)", or "" if it is not known. An end
        outside of the lengths is "below 0.50" or "above 2.00"."""
        found = self.speedup(steps)
        if found is None:
            return ""
        ratios = [length / steps for length in sorted(self.mean_lengths)]
        outside = {0.0: f"below {ratios[0]:.2f}", math.inf: f"above {ratios[-1]:.2f}"}
        value, low, high = (outside.get(ratio, f"{ratio:.2f}") for ratio in found[:3])
        return f"{value} ({low} to {high})"

    @property
    def mean_lengths(self) -> dict[int, float]:
        """{steps: the reference's final loss, the mean over the seeds}, without lengths at which a run
        diverged."""
        of_seeds = list(self.lengths.values())
        means = {steps: float(np.mean([of_seed[steps] for of_seed in of_seeds])) for steps in of_seeds[0]}
        return {steps: mean for steps, mean in means.items() if math.isfinite(mean)}


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
        finest: the step of the grid at which the search for a learning rate ends: 1 or COARSE.
    """
    candidate: Side
    reference: Side
    steps: int
    first: int = 3
    margin: float = PARITY
    tune: tuple[tuple[str, tuple[str, ...]], ...] = ()
    with_option: Callable[[Side, str], Side] | None = None
    finest: int = 1

    def assess(self, losses: Losses, by_machine: dict[Hashable, Losses]) -> Findings:
        """Returns what is known, and which runs come next.

        Args:
            losses: all known losses. Tuning and other lengths use them.
            by_machine: {kind of machine: the losses of its runs}, this machine first. A pair needs runs of
                one kind.
        """
        found = Findings(self.candidate, self.reference, sides=[self.candidate, self.reference])
        sides, tunings = [], []
        for side in (self.candidate, self.reference):
            side, tuning = self.tuned(side, losses, found)
            sides.append(side)
            tunings.append(tuning)
        found.candidate, found.reference = sides
        if found.wanted:
            seeds, known_here = self.seeds_of(looks(self.first)[0]), next(iter(by_machine.values()))
            if tunings[1].bracketed:    # its pairs are needed in any case, and a core may be idle
                runs = self.runs_of(found.reference, tunings[1].best, seeds)
                found.wanted += [run for run in runs if run not in known_here]
            if tunings[0].best is not None:    # the learning rate that is the best so far may stay it
                runs = self.runs_of(found.candidate, tunings[0].best, seeds)
                found.likely += [run for run in runs if run not in known_here]
            found.wanted = list(dict.fromkeys(found.wanted))    # both sides may want the same run
            return found
        found.tunings = tuple(tunings)
        if not found.is_bracketed:
            return found
        found.stage = "pairs"
        self.compare(found, by_machine)
        if not found.wanted:
            found.stage = "other lengths of the reference, and the ends of the usable learning rates"
            self.measure_lengths(found, losses)
            self.measure_widths(found)
        return found

    def seeds_of(self, look: Look) -> list[int]:
        """Returns the seeds of the pairs of a look."""
        return list(range(TUNING_SEED + 1, TUNING_SEED + 1 + look.seeds))

    def runs_of(self, side: Side, lr: int, seeds: list[int]) -> list[Run]:
        """Returns the runs of a side at a learning rate, one for each seed."""
        return [Run(side.optimizer, side.changed, self.steps, lr, seed) for seed in seeds]

    def used(self, found: Findings) -> dict[Run, Hashable]:
        """Returns {run that the findings come from: the kind of machine that trained it if it is of a pair;
        otherwise None}."""
        used = set(found.tuned_by)
        for steps, tuning in found.length_tunings.items():
            run = Run(found.reference.optimizer, found.reference.changed, steps, TUNING_SEED, TUNING_SEED)
            used |= {run._replace(lr=lr) for lr in tuning.losses}
            used |= {run._replace(lr=tuning.best, seed=seed) for seed in found.lengths}
        sides = (found.candidate, found.reference)
        pairs = {run: found.machines[run.seed] for side, votes in zip(sides, found.votes)
                 for lr in votes for run in self.runs_of(side, lr, found.seeds)}
        return dict.fromkeys(used) | pairs

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
            found.choices += [(one.name, losses[run]) for one, run in zip(sides, runs)]
            found.tuned_by += runs
            chosen = sides[int(np.argmin([losses[run] for run in runs]))]
            if chosen != side:
                side, tuning = chosen, self.tuned_lr(chosen, self.steps, losses, tuning.best, found)
        return side, tuning

    def tuned_lr(self, side: Side, steps: int, losses: Losses, start: int, found: Findings) -> Tuning:
        """Tunes a learning rate, and adds the runs that it needs to found.wanted."""
        tuning = tune(side, steps, losses, start, self.finest)
        found.tuned_by += [Run(side.optimizer, side.changed, steps, lr, TUNING_SEED) for lr in tuning.losses]
        found.wanted += [Run(side.optimizer, side.changed, steps, lr, TUNING_SEED) for lr in tuning.wanted]
        likely = [Run(side.optimizer, side.changed, steps, lr, TUNING_SEED) for lr in tuning.likely]
        found.likely += [run for run in likely if run not in losses]
        return tuning

    def compare(self, found: Findings, by_machine: dict[Hashable, Losses]) -> None:
        """Looks at more and more pairs until the difference is decided. Each look begins with the learning
        rates that the tuning seed chose, and with the contenders whose runs are known. If these do not
        decide, the contenders of the side with the higher loss come next, because they may overturn the
        difference, and then those of the other side. Until all runs of a look are known or it has decided,
        the findings are those of the look before. A contender without pairs would make the interval wider."""
        contenders = [tuning.contenders() for tuning in found.tunings]
        chosen = [lrs[:1] for lrs in contenders]
        known = set().union(*by_machine.values())
        for look in looks(self.first):
            look_before = {name: getattr(found, name) for name in OF_A_LOOK}
            ours = self.known_lrs(found.candidate, contenders[0], look, known)
            theirs = self.known_lrs(found.reference, contenders[1], look, known)
            for lrs in ([ours, theirs], [chosen[0], theirs], [ours, chosen[1]], chosen):
                found.wanted = self.judge_pairs(found, by_machine, look, lrs)
                if not found.wanted:
                    break
            if found.is_undecided:
                is_worse = sum(found.pairs[0]) > sum(found.pairs[1])
                lrs = [contenders[0], lrs[1]] if is_worse else [lrs[0], contenders[1]]
                found.wanted = self.judge_pairs(found, by_machine, look, lrs)
            if found.is_undecided:
                found.wanted = self.judge_pairs(found, by_machine, look, contenders)
            if not found.is_undecided:
                break
        if not found.wanted:    # the verdict is decided, so no neighbour can change it
            return
        if look_before["verdict"]:
            vars(found).update(look_before)
        found.likely = [run for side, lrs in zip((found.candidate, found.reference), contenders) for lr in lrs
                        for run in self.runs_of(side, lr, self.seeds_of(look)) if run not in known]

    def known_lrs(self, side: Side, lrs: list[int], look: Look, known: set[Run]) -> list[int]:
        """Returns the first learning rate and those of the others whose pairs were trained."""
        others = [lr for lr in lrs[1:] if known.issuperset(self.runs_of(side, lr, self.seeds_of(look)))]
        return [lrs[0], *others]

    def judge_pairs(self, found: Findings, by_machine: dict[Hashable, Losses], look: Look,
                    lrs: list[list[int]]) -> list[Run]:
        """Judges the pairs of some learning rates of each side. If runs of them are missing, it changes
        nothing and returns these. The runs of a seed are those of this machine or, if some are missing, of
        the first kind of machine that has all of them."""
        here = next(iter(by_machine))
        seeds = self.seeds_of(look)
        runs = [{lr: self.runs_of(side, lr, seeds) for lr in lrs_of_side}
                for side, lrs_of_side in zip((found.candidate, found.reference), lrs)]
        needed = list(dict.fromkeys(run for of_side in runs for of_lr in of_side.values() for run in of_lr))
        machines = {seed: next((machine for machine, losses in by_machine.items()
                                if all(run in losses for run in needed if run.seed == seed)), here)
                    for seed in seeds}
        known = {run: by_machine[machines[run.seed]].get(run) for run in needed}
        if missing := [run for run in needed if known[run] is None]:
            return missing
        found.look, found.seeds, found.machines = look, seeds, machines
        found.later = [one for one in looks(self.first) if one.seeds > look.seeds]
        found.votes = tuple({lr: [known[run] for run in of_lr] for lr, of_lr in of_side.items()}
                            for of_side in runs)
        verdict = judge(*found.votes, look.level, self.margin, found.gains, found.later)
        if found.has_untrained and not verdict.interval:    # the others need not diverge
            verdict = verdict._replace(word="cannot tell")
        found.verdict = verdict
        return []

    def measure_widths(self, found: Findings) -> None:
        """Goes on with both searches until the losses at both ends are no longer useful."""
        for side, tuning in zip((found.candidate, found.reference), found.tunings):
            worst = tuning.losses[tuning.best] + USABLE
            for direction in (-1, 1):
                lr = tuning.best + direction
                lr += direction * (lr % COARSE)    # from here on, half decades
                while tuning.losses.get(lr, math.inf) <= worst:
                    lr += COARSE * direction
                run = Run(side.optimizer, side.changed, self.steps, lr, TUNING_SEED)
                if lr not in tuning.losses and abs(lr - tuning.best) <= REACH and run not in found.wanted:
                    found.wanted.append(run)

    def measure_lengths(self, found: Findings, losses: Losses) -> None:
        """Finds the reference's losses at other lengths, for the speedup. Lengths whose runs are known are
        taken as they are. Runs are wanted for half as many steps, and for twice and four times as many as
        long as the candidate's mean loss is below the reference's."""
        seeds = found.seeds[:self.first]
        found.lengths = {seed: {self.steps: loss} for seed, loss in zip(seeds, found.pairs[1])}
        if not found.verdict.interval:
            return
        loss = found.mean_lengths[self.steps] + found.verdict.interval.mean
        for steps in (self.steps // 2, 2 * self.steps, 4 * self.steps):
            is_short = steps < self.steps    # it shows how the curve bends, and is cheap
            is_needed = is_short or loss < found.mean_lengths.get(steps // 2, -math.inf)
            missing = self.measure_length(found, steps, losses)
            if missing and is_needed:
                found.wanted = missing
                return

    def measure_length(self, found: Findings, steps: int, losses: Losses) -> list[Run]:
        """Adds the reference's losses at another length, at the best learning rate of that length. If runs of
        them are missing, it adds nothing and returns these."""
        reference = found.reference
        tuning = tune(reference, steps, losses, found.tunings[1].best, self.finest)
        if tuning.best is None or tuning.wanted:
            return [Run(*reference[1:3], steps, lr, TUNING_SEED) for lr in tuning.wanted]
        runs = {seed: Run(*reference[1:3], steps, tuning.best, seed) for seed in found.lengths}
        if missing := [run for run in runs.values() if run not in losses]:
            return missing
        found.length_tunings[steps] = tuning
        for seed, run in runs.items():
            found.lengths[seed][steps] = losses[run]
        return []
