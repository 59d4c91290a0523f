"""
The league: every optimizer against AdamW, judged as an audition judges, but from the runs at hand.
"""
import math
from typing import NamedTuple

import numpy as np

from optim import Rule
from study.audition_plan import (
    COARSE,
    TUNING_SEED,
    Audition,
    Findings,
    Losses,
    Run,
    Side,
    Tuning,
    losses_of,
    lr_text,
)
from study.evidence import Study
from study.tables import as_table, sd
from study.verdict import Look, Verdict, best_lr, judge, level_of_many, time_to_loss
from zoo.table import bytes_per_weight

REFERENCE = "adamw"
MOST = 100    # pairs that anyone may want to run
COLUMNS = ("optimizer", "peak lr", "final validation loss", "sd", "n", "difference to AdamW, pairs",
           "verdict", "speedup", "time to AdamW's loss", "ms of its step",
           "bytes of state per weight of a matrix")

LEGEND = """# The league

Each rule is at the learning rate that is best in its pairs, or else at seed 0. The loss is a mean over all
n seeds, with seed 0. The difference to AdamW leaves seed 0 out, because it chose the learning rates. The
difference is a mean over pairs of runs with the same seed, with its interval and the number of pairs. It
gives the rules their order. Two pairs decide only if they nearly agree.

* **better, worse, same, cannot tell**: as in an audition, at a level that allows for the number of rules.
  {level}[Auditions](../../docs/audition.md#many-rules-against-one-reference) says what this level promises.
* **cannot tell: about 1 more pair**: one more pair would decide, if mean and spread stayed what they are.
  Two pairs say too little about the spread for this.
* **cannot tell: a neighbouring learning rate may be better**: that neighbour has no pairs yet.
* **speedup**: AdamW needs this many times as many steps for the loss. The interval is the difference's.
* **time to AdamW's loss**: relative to AdamW's own time, with the times of a step on two threads.
* **bytes of state**: for each weight of a matrix. An audition has them for each weight of the model.

[The study](../README.md#the-league) says how the runs were made.

"""


class Times(NamedTuple):
    """What bench.py measured: the mean milliseconds of each rule's step, and those of the forward and
    backward passes of a training step (None if they were not measured)."""
    of_step: dict[str, float]
    rest: float | None


class Place(NamedTuple):
    """A rule in the league.

    Attributes:
        name: the rule.
        steps: the steps of its runs.
        lr: its best learning rate: in the pairs, if it has any, or else at the tuning seed.
        losses: the final losses at this learning rate, one for each seed.
        found: what an audition would know from the runs at hand.
    """
    name: str
    steps: int
    lr: int
    losses: list[float]
    found: Findings


def side(name: str) -> Side:
    """Returns a rule of this project with its usual options."""
    return Side(name, name, frozenset(), 0)


def run(name: str, steps: int, lr: int, seed: int) -> Run:
    """Returns a run of a rule of this project with its usual options."""
    return Run(name, frozenset(), steps, lr, seed)


def known_tuning(name: str, steps: int, losses: Losses) -> Tuning | None:
    """Returns what the runs at hand say of a rule's learning rates, or None if there are none, if all
    diverged, or if the best one is at the edge of the grid."""
    tried = {one.lr: loss for one, loss in losses.items() if one == run(name, steps, one.lr, TUNING_SEED)}
    best = min(tried, key=tried.get, default=None)
    if best is None or math.isinf(tried[best]) or best in (min(tried), max(tried)):
        return None
    return Tuning(tried, best, True)


def findings(name: str, steps: int, losses: Losses) -> Findings | None:
    """Returns what an audition of a rule would know from the runs at hand; None if a learning rate is not
    bracketed. Neighbours of the best learning rate of which runs are missing are left out."""
    tunings = [known_tuning(one, steps, losses) for one in (name, REFERENCE)]
    if None in tunings:
        return None
    found = Findings(side(name), side(REFERENCE), tuple(tunings))
    seeds = [seed for seed in sorted({one.seed for one in losses} - {TUNING_SEED})
             if all(run(one, steps, tuning.best, seed) in losses
                    for one, tuning in zip((name, REFERENCE), tunings))]
    votes = []
    for one, tuning in zip((name, REFERENCE), tunings):
        runs = {lr: [run(one, steps, lr, seed) for seed in seeds] for lr in tuning.contenders()}
        votes.append({lr: [losses[vote] for vote in of_lr] for lr, of_lr in runs.items()
                      if all(vote in losses for vote in of_lr)})
    found.seeds, found.votes = seeds, tuple(votes)
    return found


def places_of(study: Study, rules: dict[str, Rule]) -> list[Place]:
    """Returns all rules whose best learning rate is bracketed, by their difference to AdamW. The level of the
    verdicts allows for the number of rules. A rule with fewer than two pairs has no verdict."""
    steps = int(study.unchanged(REFERENCE)[0]["steps"]) if study.unchanged(REFERENCE) else 0
    losses = losses_of([row for row in study.rows if row["setting"].split()[0] == study.base], study.base)
    known = {name: found for name in rules if (found := findings(name, steps, losses))}
    judged = [found for name, found in known.items() if name != REFERENCE and len(found.seeds) > 1]

    gains = [found.gains for found in judged]

    def verdicts_at(level: float) -> list[Verdict]:
        return [judge(*found.votes, level, gains=of_found,
                      later=[Look(n, level) for n in range(len(found.seeds) + 1, MOST + 1)])
                for found, of_found in zip(judged, gains)]

    def called_different(level: float) -> int:
        return sum(verdict.word in ("better", "worse") for verdict in verdicts_at(level))

    level = level_of_many(len(judged), called_different) if judged else math.nan
    for found, verdict in zip(judged, verdicts_at(level)):
        found.verdict = verdict
        plan = Audition(found.candidate, found.reference, steps, finest=COARSE)
        plan.measure_lengths(found, losses)
    ranked = []
    for name, found in known.items():
        lr = best_lr(found.votes[0]) if found.seeds else found.tunings[0].best
        all_losses = [loss for one, loss in losses.items() if one == run(name, steps, lr, one.seed)]
        ranked.append(Place(name, steps, lr, all_losses, found))
    of_reference = [np.mean(place.losses) for place in ranked if place.name == REFERENCE]

    def difference(place: Place) -> float:    # of pairs: means over other seeds may have another order
        if place.found.verdict and place.found.verdict.interval:
            return place.found.verdict.interval.mean
        return np.mean(place.losses) - of_reference[0]

    return sorted(ranked, key=difference)


def league(places: list[Place], rules: dict[str, Rule], times: Times) -> str:
    """Returns the league as a table, with a legend.

    Args:
        places: what places_of() returns.
        rules: the update rules by name.
        times: what bench.py measured.
    """
    rows = []
    for place in places:
        step = times.of_step.get(place.name)
        rows.append((place.name, lr_text(place.lr), f"{np.mean(place.losses):.3f}",
                     sd(place.losses), len(place.losses), *words_of(place), *speed_of(place, times),
                     "" if step is None else f"{step:.1f}", f"{bytes_per_weight(rules[place.name]):.2f}"))
    return LEGEND.format(level=level_in_words(places)) + as_table(COLUMNS, rows)


def level_in_words(places: list[Place]) -> str:
    """Returns a sentence about the level of all verdicts, or "" if no rule has a verdict."""
    verdicts = [place.found.verdict for place in places if place.found.verdict]
    levels = {verdict.interval.level for verdict in verdicts if verdict.interval}
    different = sum(verdict.word in ("better", "worse") for verdict in verdicts)
    if not levels:
        return ""
    return (f"Here it is {100 * max(levels):.2f} %, because {different} of {len(verdicts)} rules are called\n"
            "  different. ")


def words_of(place: Place) -> tuple[str, str]:
    """Returns the difference to AdamW with its interval, and the verdict."""
    if place.found.verdict is None:
        return "", "the reference" if place.name == REFERENCE else ""
    word, _, interval, enough = place.found.verdict
    if interval is None:
        return "", word
    need = ""
    if word == "cannot tell" and interval.n > 2:
        otherwise = (": a neighbouring learning rate may be better" if place.found.has_untrained else
                     f": more than {MOST} pairs would be needed")
        more = enough and enough - interval.n
        need = f": about {more} more pair{'s' * (more > 1)}" if enough else otherwise
    text = f"{interval.mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f}), {interval.n}"
    return text, f"{word}{need}"


def speed_of(place: Place, times: Times) -> tuple[str, str]:
    """Returns the speedup, and the time to AdamW's loss relative to AdamW's own. Texts are "" if runs or
    measurements are missing."""
    speedup = place.found.speedup(place.steps)
    if speedup is None or place.name == REFERENCE:
        return "", ""
    text = place.found.speedup_text(place.steps)
    ours, theirs = (times.of_step.get(name) for name in (place.name, REFERENCE))
    if None in (times.rest, ours, theirs):
        return text, ""
    time = time_to_loss(speedup, ours, theirs, times.rest)
    return text, "" if time is None else f"{time:.2f}"
