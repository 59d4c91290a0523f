"""
The statistics of a comparison of two optimizers. docs/audition.md explains them and says what they assume.

Two runs of the same seed start from the same weights and read the data in the same order, so they are a pair.
A difference is the loss of the candidate minus the loss of the reference, in nats. A run that diverged has an
infinite loss.
"""
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from study.thresholds import PARITY

ERROR = 0.05    # how often, at most, two equal optimizers may be called different
POWER = 0.8     # visible() aims at this fraction of all auditions. With few pairs it is 0.71 to 0.78
LOOKS = ((0, 1 / 2), (2, 1 / 4), (5, 1 / 8), (9, 1 / 8))    # (more seeds than at first, share of ERROR)


class Look(NamedTuple):
    """A look at the results, after which the audition may stop.

    Attributes:
        seeds: the number of pairs.
        level: how often this look alone may be wrong. The levels of all looks add up to ERROR, so it does
            not matter that each look is another chance to be wrong.
    """
    seeds: int
    level: float


def looks(first: int) -> list[Look]:
    """Returns all looks of an audition whose first look is at `first` pairs, 2 or more."""
    return [Look(first + more, share * ERROR) for more, share in LOOKS]


# ---------------------------------------------------------------------------------------------------------
# Student's t


def t_within(t: float, freedom: int) -> float:
    """Returns the probability that a variable with Student's t distribution lies between -t and t.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.

    Args:
        t: 0 or more.
        freedom: the degrees of freedom, 1 or more.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    term = cosine if freedom % 2 else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + freedom % 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if freedom % 2:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


@functools.cache
def t_quantile(level: float, freedom: int) -> float:
    """Returns the t that a variable with Student's t distribution exceeds in size with this probability."""
    low, high = 0.0, 1.0
    while 1 - t_within(high, freedom) > level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if 1 - t_within(middle, freedom) < level else (middle, high)
    return high


# ---------------------------------------------------------------------------------------------------------
# The difference, and what to call it


class Interval(NamedTuple):
    """A mean with its interval.

    Attributes:
        mean, low, high: the mean of the values, and the ends of the interval for it.
        sd: the standard deviation of the values, with n - 1 in the denominator.
        n: the number of values.
        level: how often such an interval may miss the truth.
    """
    mean: float
    low: float
    high: float
    sd: float
    n: int
    level: float


def mean_and_sd(values: list[float]) -> tuple[float, float]:
    """Returns the mean and the standard deviation of two values or more, with n - 1 in the denominator. For
    so few values this is 20 times as fast as numpy, and simulations call it often."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean)**2 for value in values) / (len(values) - 1))


def interval(values: list[float], level: float) -> Interval:
    """Returns the mean of two values or more with its Student's t interval."""
    n = len(values)
    mean, sd = mean_and_sd(values)
    half = half_width(sd, n, level)
    return Interval(mean, mean - half, mean + half, sd, n, level)


class Verdict(NamedTuple):
    """What to call a difference.

    Attributes:
        word: "better", "same", "worse" or "cannot tell".
        reason: a clause that says why.
        interval: the mean difference at the best learning rates, with the interval of bounds(), or None if
            a side diverged at all of its learning rates.
        enough: if the word is "cannot tell", the pairs of the first later look that would tell if mean and
            spread stayed what they are; 0 if no later look would.
    """
    word: str
    reason: str
    interval: Interval | None
    enough: int = 0


LossesByLr = dict[int, list[float]]    # final losses, one for each seed, by learning rate


def bounds(candidate: LossesByLr, reference: LossesByLr, level: float,
           gains: tuple[float, float] = (0.0, 0.0)) -> Interval:
    """Returns the interval for the difference between the candidate at its truly best learning rate and the
    reference at its own.

    Each side has several learning rates that may be the best, and one that is the best in these pairs. The
    candidate's true loss is at most its loss at its best one. The reference's true loss is its loss at one of
    its own. So the difference is at most the largest of the differences between the candidate's best one and
    any of the reference's. For the lower end the two sides change places. The truly best learning rate may
    also lie between two that were tried. The same pairs choose the best one and measure it, so no proof says
    that `level` is kept. Simulations say how often a verdict is wrong: see docs/audition.md.

    Args:
        candidate, reference: the losses at the learning rates that may be the best.
        level: how often an interval of fixed learning rates may miss the truth.
        gains: by how many nats the loss of (the candidate, the reference) may be lower between two learning
            rates.
    """
    ours, theirs = candidate[best_lr(candidate)], reference[best_lr(reference)]
    found = interval(differences(ours, theirs), level)
    high = max(interval(differences(ours, losses), level).high for losses in reference.values())
    low = min(interval(differences(losses, theirs), level).low for losses in candidate.values())
    return found._replace(low=low - gains[0], high=high + gains[1])


def best_lr(losses: LossesByLr) -> int:
    """Returns the learning rate with the lowest mean loss, if possible one at which no run diverged."""
    return min(stable(losses) or losses, key=lambda lr: sum(losses[lr]))


def differences(ours: list[float], theirs: list[float]) -> list[float]:
    """Returns the differences of pairs."""
    return [one - other for one, other in zip(ours, theirs)]


def stable(losses: LossesByLr) -> LossesByLr:
    """Returns the learning rates at which no run diverged."""
    return {lr: of_lr for lr, of_lr in losses.items() if not any(map(math.isinf, of_lr))}


def judge(candidate: LossesByLr, reference: LossesByLr, level: float, margin: float = PARITY,
          gains: tuple[float, float] = (0.0, 0.0), later: Sequence[Look] = ()) -> Verdict:
    """Compares two optimizers.

    Args:
        candidate, reference: the learning rates that may be the best, each with the losses of the same two
            seeds or more.
        level: how often the verdict may be wrong.
        margin: two optimizers whose losses differ by at most this are the same, in nats.
        gains: those of bounds().
        later: the looks that may follow.
    """
    ours, theirs = stable(candidate), stable(reference)
    if not ours or not theirs:
        return judge_divergence(candidate, reference, level)
    found = bounds(ours, theirs, level, gains)
    if -margin <= found.low and found.high <= margin:
        return Verdict("same", f"the whole interval lies within {margin:g} nats of 0", found)
    if found.high < 0:
        return Verdict("better", "the whole interval lies below 0", found)
    if found.low > 0:
        return Verdict("worse", "the whole interval lies above 0", found)
    reason = f"the interval holds 0, and it reaches further than {margin:g} nats from 0"
    return Verdict("cannot tell", reason, found, pairs_to_decide(found, margin, later))


def judge_divergence(candidate: LossesByLr, reference: LossesByLr, level: float) -> Verdict:
    """Compares how many runs of each side diverged, at the learning rate where the fewest did. This is for
    two optimizers of which one at least diverged at all of its learning rates. The arguments are those of
    judge()."""
    ours, theirs = (min(sum(map(math.isinf, losses)) for losses in side.values())
                    for side in (candidate, reference))
    n = len(candidate[best_lr(candidate)])
    reason = f"{ours} of {n} runs of the candidate diverged, and {theirs} of {n} runs of the reference"
    if chance_of_counts(ours, theirs, n) > level:
        return Verdict("cannot tell", f"{reason}, which may be chance", None)
    return Verdict("worse" if ours > theirs else "better", reason, None)


def chance_of_counts(ours: int, theirs: int, n: int) -> float:
    """Returns how often two numbers of runs differ by chance as much as these, of n runs each.

    Source: the exact test of Fisher, "Statistical Methods for Research Workers", fifth edition, 1934."""
    both, larger = ours + theirs, max(ours, theirs)
    ways = sum(math.comb(n, k) * math.comb(n, both - k) for k in range(larger, min(n, both) + 1))
    return min(1.0, 2 * ways / math.comb(2 * n, both))


def half_width(sd: float, n: int, level: float) -> float:
    """Returns half of the width of the interval for the mean of n values, in nats."""
    return t_quantile(level, n - 1) * sd / math.sqrt(n)


def pairs_to_decide(found: Interval, margin: float, later: Sequence[Look]) -> int:
    """Returns the pairs of the first later look that would decide, if mean and sd stayed what they are: its
    interval leaves out 0, or lies within the margin. What the interval has besides the spread of its values
    stays, too. If no later look would decide, it returns 0."""
    half = half_width(found.sd, found.n, found.level)
    below, above = found.mean - half - found.low, found.high - found.mean - half
    for look in later:
        half = half_width(found.sd, look.seeds, look.level)
        low, high = found.mean - half - below, found.mean + half + above
        if low > 0 or high < 0 or (-margin <= low and high <= margin):
            return look.seeds
    return 0


def visible(sd: float, n: int, level: float) -> float:
    """Returns the difference, in nats, that n pairs find in about three of four auditions. The aim is POWER,
    but the formula is that of many pairs.

    Args:
        sd: the standard deviation of the differences.
        n: the number of pairs.
        level: how often the verdict may be wrong.
    """
    return half_width(sd, n, level) + half_width(sd, n, 2 * (1 - POWER))


def level_of_many(candidates: int, called_different: Callable[[float], int]) -> float:
    """Returns the level at which many candidates may be judged against one reference: ERROR * k / candidates,
    for the largest k such that at least k of them are called different at this level, or for k = 1.

    Of the candidates that are called different, a fraction of at most ERROR is expected to be called so
    wrongly. If all are equal to the reference, then at most this fraction of leagues calls any of them
    different.

    Source: Benjamini and Hochberg, "Controlling the false discovery rate", J. R. Stat. Soc. B 57, 1995. Their
    p value of a candidate is the lowest level at which it is called different.

    Args:
        candidates: their number, 1 or more.
        called_different: a function that returns how many of them are called different at a level.
    """
    for k in range(candidates, 1, -1):
        if called_different(ERROR * k / candidates) >= k:
            return ERROR * k / candidates
    return ERROR / candidates


# ---------------------------------------------------------------------------------------------------------
# Speedup


class Speedup(NamedTuple):
    """How many steps the reference needs for the candidate's loss, divided by the candidate's steps.

    Attributes:
        value, low, high: the speedup and its interval. Any of them that lies outside of the lengths at which
            the reference was trained is 0 or infinite.
        n: the number of pairs.
    """
    value: float
    low: float
    high: float
    n: int


def steps_for_loss(lengths: dict[int, float], loss: float) -> float:
    """Returns after how many steps the reference has a loss. Between two lengths, the loss is a power law
    a + b / steps^c through both and a third length.

    Args:
        lengths: {steps: final loss} of runs of the reference, each with its whole schedule. Each length is
            twice the one before.
        loss: the loss to reach.
    Returns: the number of steps; infinite if no length reaches the loss, and 0 if the shortest is below it.
    """
    steps = sorted(lengths)
    if loss > lengths[steps[0]]:
        return 0.0
    for shorter, longer in zip(steps, steps[1:]):
        above, below = lengths[shorter], lengths[longer]
        if below <= loss <= above and below < above:
            fraction, ratio = (above - loss) / (above - below), ratio_of_gains(lengths, shorter)
            if ratio != 1:    # a part u of a doubling gains 1 - ratio^u, and the whole 1 - ratio
                fraction = math.log(1 - fraction * (1 - ratio)) / math.log(ratio)
            return shorter * (longer / shorter)**fraction
    return math.inf if loss < lengths[steps[-1]] else float(steps[-1])


def ratio_of_gains(lengths: dict[int, float], shorter: int) -> float:
    """Returns how much less a doubling of the steps gains than the doubling before it, with the doubling that
    begins at `shorter` and the one before it or, at the first length, after it. It is 1, which makes a
    straight line over log(steps), if there is no third length or if a doubling gains nothing."""
    steps = sorted(lengths)
    first = max(0, steps.index(shorter) - 1)
    losses = [lengths[count] for count in steps[first:first + 3]]
    gains = [loss - next_loss for loss, next_loss in zip(losses, losses[1:])]
    return gains[1] / gains[0] if len(gains) == 2 and min(gains) > 0 else 1.0


def speedup(lengths: dict[int, float], difference: Interval, steps: int) -> Speedup:
    """Turns a difference in loss into a ratio of lengths. So the interval of the speedup holds 1 if and only
    if that of the difference holds 0.

    Args:
        lengths: {steps: mean final loss of the reference}.
        difference: the candidate's loss minus the reference's, both after `steps` steps.
        steps: the candidate's steps.
    """
    ratios = [steps_for_loss(lengths, lengths[steps] + nats) / steps
              for nats in (difference.mean, difference.high, difference.low)]
    return Speedup(*ratios, difference.n)


def time_to_loss(speedup: Speedup | None, candidate: float, reference: float, rest: float) -> float | None:
    """Returns the candidate's time to the reference's loss, relative to the reference's own time. To be as
    good needs 1 / speedup of the steps, and a step has its own length. None if the speedup is not known.

    Args:
        speedup: what speedup() returned, or None.
        candidate, reference: milliseconds of a step of each optimizer.
        rest: milliseconds of the forward and backward passes of a training step.
    """
    if speedup is None or not 0 < speedup.value < math.inf:
        return None
    return (rest + candidate) / (rest + reference) / speedup.value
