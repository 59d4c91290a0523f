"""
The paper's claims. Each is a generator over the results: its docstring states the claim, and it yields one
(bool, text) for each comparison that the claim rests on.

A claim holds if all of its comparisons are true. The thresholds are in study/thresholds.py, and the questions
that a claim may ask of the results in study/evidence.py. `python -m study` judges all claims.
"""
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from study.evidence import (
    Losses,
    NotEnough,
    Study,
    compare,
    margin,
    parts_of,
    require_complete,
    show,
    show_all,
    show_widths,
    swapped_pairs,
)
from study.tables import as_table
from study.thresholds import (
    ALIKE,
    COUNTS,
    GAIN,
    MOST,
    NARROW,
    ORDERS,
    RESOLVED,
    SMALLER,
    STEP,
    THRESHOLDS,
)

FOUR = ("adamw", "adafactor", "lion", "signum")
FIVE = (*FOUR, "sgd")
MATRICES = ("matrix", "qkv")    # in effective_lr.csv, where matrix is attn_out, mlp_up and mlp_down together
BETA1S = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)

Comparisons = Iterator[tuple[bool, str]]

# ---------------------------------------------------------------------------------------------------------
# Five optimizers and their hyperparameters


def parity(study: Study) -> Comparisons:
    """At each size the best losses of Adam, Adafactor, Lion and Signum are comparable. SGD's is clearly
    worse."""
    for setting in (study.base, *study.larger()):
        best = {name: study.best("lr", name, setting=setting).losses for name in FIVE}
        means = {name: np.mean(losses) for name, losses in best.items()}
        four = [means[name] for name in FOUR]
        most = margin(study.sd(setting, *best.values()))
        yield (max(four) - min(four) <= most,
               f"{setting}: the four are within {most:.3f} of each other: {show_all(best)}")
        yield (means["sgd"] - max(four) > most,
               f"{setting}: SGD is more than {most:.3f} above the worst of them")


def lr_stability(study: Study) -> Comparisons:
    """The range of useful learning rates is about as wide for Adam, Adafactor, Lion and Signum. SGD's is
    narrower."""
    widths = {}
    for name in FIVE:
        widths[name] = study.width("lr", name)
        require_complete(widths[name], study.command("lr", more=f"optimizer={name}"))
    four = [widths[name].decades for name in FOUR]
    yield (max(four) - min(four) <= STEP,
           f"the widths of the four, in decades, are within {STEP} of each other: {show_widths(widths)}")
    yield (widths["sgd"].decades < min(four) - RESOLVED,
           f"SGD's range is narrower than the narrowest of them by more than {RESOLVED}")


def lr_scale(study: Study) -> Comparisons:
    """The best learning rate is about the same for Adam and Adafactor. Lion and Signum share one, too, which
    is 10 times smaller. SGD's is 300 times Adam's. Adam's does not rise with the model's size."""
    best = {name: study.best("lr", name).value for name in FIVE}
    numbers = ", ".join(f"{name} {lr:g}" for name, lr in best.items())
    for one, other, factor in (("adamw", "adafactor", 1), ("lion", "signum", 1), ("adamw", "signum", 10),
                               ("sgd", "adamw", 300)):
        off = abs(math.log10(best[one] / best[other] / factor))
        yield off <= STEP + 0.01, f"{one} = {factor} x {other} within a step of the grid: {numbers}"
    if not study.larger():
        raise NotEnough(study.variant_command("larger", "optimizer=adamw"))
    for setting in study.larger():
        lr = study.best("lr", "adamw", setting=setting).value
        yield lr <= best["adamw"] * 1.01, f"{setting}: Adam's best lr {lr:g} is at most {best['adamw']:g}"


def stabilizers(study: Study) -> Comparisons:
    """QK-norm and z-loss widen the range of useful learning rates of all five optimizers. Without them the
    ranking is the same."""
    if not study.unstabilized():
        raise NotEnough(study.variant_command("unstabilized"))
    without = study.unstabilized()[0]
    for name in FIVE:
        usual = study.width("lr", name)
        plain = study.width("lr", name, setting=without)
        wider = usual.decades - plain.decades > RESOLVED
        unsure, setting = (plain, without) if wider else (usual, study.base)
        require_complete(unsure, study.command("lr", setting, f"optimizer={name}"))
        yield (wider, f"{name}'s range is wider with them: {usual.decades:.2f} decades n {usual.seeds}, "
                      f"without them {plain.decades:.2f} n {plain.seeds}")
    swapped = swapped_pairs(study, FIVE, study.base, without)
    yield not swapped, f"pairs that change places: {', '.join(swapped) or 'none'}"


def longer_training(study: Study) -> Comparisons:
    """Training four times longer lowers the loss and widens the range of useful learning rates. The ranking
    is the same."""
    sequences = study.largest(study.base, "steps", "batch")
    fourfold = [setting for setting in study.longer()
                if study.largest(setting, "steps", "batch") == 4 * sequences]
    if not fourfold:
        raise NotEnough(study.variant_command("longer"))
    longer = fourfold[0]
    widths = {setting: [study.width("lr", name, setting=setting) for name in FIVE]
              for setting in (study.base, longer)}
    for name in FIVE:
        before = study.best("lr", name).losses
        after = study.best("lr", name, setting=longer).losses
        yield (np.mean(before) - np.mean(after) > COUNTS * study.sd(None, before, after),
               f"{name}: {show('after longer training', after)} is lower than {show('before', before)}")
    short, long = (np.mean([width.decades for width in of_setting]) for of_setting in widths.values())
    is_wider = long - short > RESOLVED
    unsure = study.base if is_wider else longer    # a width that is only a lower bound could turn the answer
    for name, width in zip(FIVE, widths[unsure]):
        require_complete(width, study.command("lr", unsure, f"optimizer={name}"))
    yield is_wider, f"the range is wider by {long - short:.2f} decades on average over the five"
    swapped = swapped_pairs(study, FIVE, study.base, longer)
    yield not swapped, f"pairs that change places: {', '.join(swapped) or 'none'}"


def momentum(study: Study) -> Comparisons:
    """With beta1 from 0.8 to 0.98, Adam, Adafactor, Lion and Signum are alike. At low beta1 Adam and
    Adafactor beat Lion and Signum. At high beta1 Lion is best. SGD is sensitive to beta1, and best near
    0.98."""
    curves = {name: study.curve(name, "beta1", paired=True) for name in FIVE}
    for name, curve in curves.items():
        if not set(BETA1S) <= set(curve):
            raise NotEnough(study.command("momentum", more=f"optimizer={name}"))
    means = {name: {beta1: np.mean(curve[beta1]) for beta1 in BETA1S} for name, curve in curves.items()}
    best = {name: min(losses.values()) for name, losses in means.items()}
    sd = study.sd()
    most = margin(sd)

    apart = {beta1: np.ptp([means[name][beta1] - best[name] for name in FOUR])
             for beta1 in (0.8, 0.9, 0.95, 0.98)}
    numbers = ", ".join(f"{beta1:g}: {difference:.3f}" for beta1, difference in apart.items())
    yield (max(apart.values()) <= most,
           f"at each beta1 the four are equally far above their own best, within {most:.3f}; "
           f"they differ by {numbers}")

    low = {name: (means[name][0] + means[name][0.5]) / 2 for name in FOUR}
    gap = (low["lion"] + low["signum"] - low["adamw"] - low["adafactor"]) / 2
    yield gap > most, f"at beta1 0 and 0.5, Adam and Adafactor are lower than Lion and Signum by {gap:.3f}"

    high = {name: means[name][0.99] for name in FOUR}
    second = min(high[name] for name in FOUR if name != "lion")
    numbers = show_all({name: curves[name][0.99] for name in FOUR})
    yield (second - high["lion"] > COUNTS * sd,
           f"at beta1 0.99, Lion is the lowest by more than {COUNTS * sd:.3f}: {numbers}")

    change = {name: max(losses.values()) - best[name] for name, losses in means.items()}
    numbers = ", ".join(f"{name} {difference:.3f}" for name, difference in change.items())
    yield (change["sgd"] - max(change[name] for name in FOUR) > most,
           f"over all beta1, SGD's loss changes most: {numbers}")

    best_of_sgd = min(means["sgd"], key=means["sgd"].get)
    yield best_of_sgd in (0.95, 0.98, 0.99), f"SGD is best at {best_of_sgd:g}, within a step of 0.98"


def gain(study: Study, optimizer: str, option: str, usual: float) -> float:
    """Returns by how many nats the best value of an option is below the usual value."""
    fixed = {"beta2": 0.98} if option == "eps" else {}    # the sweep of eps is at this beta2
    curve = study.curve(optimizer, option, paired=True, **fixed)
    if len(curve) < 3 or usual not in curve:
        raise NotEnough(study.command(option, more=f"optimizer={optimizer}"))
    return np.mean(curve[usual]) - min(map(np.mean, curve.values()))


def other_hyperparameters(study: Study) -> Comparisons:
    """Weight decay, warmup, beta2 and eps gain little. Only SGD gains from weight decay or warmup. A larger
    batch, with the same tokens and learning rate, makes all optimizers worse."""
    most = margin(study.sd(), GAIN)
    without = {"beta2": ("signum",), "eps": ("lion", "signum")}    # optimizers that do not have the option
    for option, usual in (("weight_decay", 0), ("warmup", 0.1), ("beta2", 0.95), ("eps", 1e-15)):
        names = [name for name in FOUR if name not in without.get(option, ())]
        gains = {name: gain(study, name, option, usual) for name in names}
        numbers = ", ".join(f"{name} {nats:.3f}" for name, nats in gains.items())
        yield max(gains.values()) <= most, f"{option} gains at most {most:.3f}: {numbers}"

    gains = {"weight_decay": gain(study, "sgd", "weight_decay", 0),
             "warmup": gain(study, "sgd", "warmup", 0.1)}
    numbers = ", ".join(f"{option} {nats:.3f}" for option, nats in gains.items())
    yield max(gains.values()) > most, f"for SGD one of them gains more: {numbers}"

    for name in FIVE:
        curve = study.curve(name, "batch", paired=True)
        batch = next((row["batch"] for row in study.unchanged(name)), 0)    # the usual one
        if len(curve) < 4 or not {batch, 4 * batch} <= curve.keys():
            raise NotEnough(study.command("batch_size", more=f"optimizer={name}"))
        usual, fourfold = curve[batch], curve[4 * batch]
        yield (np.mean(fourfold) - np.mean(usual) > COUNTS * study.sd(),
               f"{name}: {show('four times the batch', fourfold)} is above {show('the usual', usual)}")


def signum_is_tied_adam(study: Study) -> Comparisons:
    """Adam with beta1 = beta2 has the same loss as Signum at every beta1. With beta2 0.95, Adam's loss
    depends less on beta1 than Signum's does."""
    tied = study.curve("adamw", "tied", paired=True)
    usual = study.curve("adamw", "beta1", paired=True)
    signum = study.curve("signum", "beta1", paired=True)
    if min(len(tied.keys() & signum.keys()), len(usual.keys() & signum.keys())) < 7:
        raise NotEnough(study.command("tied"))
    most = margin(study.sd())

    apart = {beta1: abs(np.mean(tied[beta1]) - np.mean(signum[beta1])) for beta1 in signum if beta1 in tied}
    numbers = ", ".join(f"{beta1:g}: {difference:.3f}" for beta1, difference in apart.items())
    yield max(apart.values()) <= most, f"at each beta1 they differ by at most {most:.3f}: {numbers}"

    change_of_adam = np.ptp([np.mean(losses) for losses in usual.values()])
    change_of_signum = np.ptp([np.mean(losses) for losses in signum.values()])
    yield (change_of_signum - change_of_adam > most,
           f"over all beta1, Adam's loss changes less than Signum's: adamw {change_of_adam:.3f}, "
           f"signum {change_of_signum:.3f}")


# ---------------------------------------------------------------------------------------------------------
# Adalayer


def adalayer(study: Study) -> Comparisons:
    """Plain Adalayer lies between SGD and Adam in loss and in stability. A second moment for each row of the
    head recovers most of the gap to Adam. One for each row of the embedding as well changes nothing
    notable."""
    sources = {"sgd": ("lr", "sgd"), "adalayer": ("adalayer", "adalayer"),
               "star": ("adalayer", "adalayer_star"), "adam": ("lr", "adamw")}
    best = {name: study.best(*source).losses for name, source in sources.items()}
    embed = study.best("adalayer", "adalayer", rows="head+embed").losses
    mean = {name: np.mean(losses) for name, losses in best.items()}
    least = margin(study.sd(None, *best.values()))
    yield (mean["adam"] + least < mean["adalayer"] < mean["sgd"] - least,
           f"Adalayer's loss is between theirs by more than {least:.3f}: {show_all(best)}")

    widths = {name: study.width(*source) for name, source in sources.items()}
    for name in ("sgd", "adalayer", "adam"):
        sweep, optimizer = sources[name]
        require_complete(widths[name], study.command(sweep, more=f"optimizer={optimizer}"))
    decades = {name: width.decades for name, width in widths.items()}
    yield (decades["sgd"] - RESOLVED <= decades["adalayer"] <= decades["adam"] + RESOLVED,
           f"Adalayer's width, in decades, is between theirs: {show_widths(widths)}")

    recovered = (mean["adalayer"] - mean["star"]) / (mean["adalayer"] - mean["adam"])
    yield (recovered >= MOST and mean["adalayer"] > mean["star"],
           f"Adalayer* recovers {recovered:.0%} of the gap to Adam")

    most = margin(study.sd(None, best["star"], embed))
    yield (abs(np.mean(embed) - mean["star"]) <= most,
           f"rows of the embedding change the loss by at most {most:.3f}: {show('embed', embed)}, "
           f"{show('star', best['star'])}")


def effective_quantiles(study: Study) -> dict[str, list[list[float]]]:
    """Returns {role: the quantiles .05, .5 and .95 of its effective lrs for each seed} of Adalayer*'s runs,
    half way through training."""
    runs = {row["run"] for row in study.unchanged("adalayer_star") if np.isfinite(row["loss"])}
    quantiles: dict[str, list[list[float]]] = {}
    for run in sorted(runs & {row["run"] for row in study.effective}):
        rows = [row for row in study.effective if row["run"] == run]
        steps = sorted({row["step"] for row in rows})
        half_way = steps[len(steps) // 2]
        for row in rows:
            if row["step"] == half_way:
                quantiles.setdefault(row["role"], []).append([row["q5"], row["q50"], row["q95"]])
    return quantiles


def effective_lrs(study: Study) -> Comparisons:
    """Under Adalayer* the effective learning rates of the head's rows span orders of magnitude. Those of the
    matrices are nearly equal, and those of the norms far smaller."""
    quantiles = effective_quantiles(study)
    if not {"head", "norm", *MATRICES} <= quantiles.keys():
        raise NotEnough(study.command("effective_lr"))
    seed_means = {role: np.exp(np.mean(np.log(seeds), axis=0)) for role, seeds in quantiles.items()}
    low, middle, high = ({role: float(means[i]) for role, means in seed_means.items()} for i in range(3))
    span = {role: f"{role} {low[role]:.2g} to {high[role]:.2g}" for role in quantiles}

    yield (high["head"] >= ORDERS * low["head"],
           f"half way through training, the head's rows span a factor of at least {ORDERS}: {span['head']}, "
           f"n {len(quantiles['head'])}")
    lowest, highest = min(low[role] for role in MATRICES), max(high[role] for role in MATRICES)
    yield (highest <= ALIKE * lowest,
           f"the matrices are within a factor of {ALIKE}: {', '.join(span[role] for role in MATRICES)}")
    medians = ", ".join(f"{role} {middle[role]:.2g}" for role in ("norm", *MATRICES))
    yield (middle["norm"] * SMALLER <= min(middle[role] for role in MATRICES),
           f"medians: {medians}; the norms' is smaller by a factor of {SMALLER:.2g}")


# ---------------------------------------------------------------------------------------------------------
# Hybrids and frozen ratios. They are compared with Adalayer* everywhere and with sgd_ema everywhere. sgd_ema
# is the SGD that trains the rest in hybrids.


def stable(study: Study, sweep: str, optimizer: str, along: str, **fixed: Any) -> tuple[bool, str]:
    """Compares the width of a variant with Adalayer*'s. The arguments are those of Study.width.

    Returns:
        Whether the variant is not narrower by more than NARROW, and both widths in words.

    Raises:
        NotEnough: a width that is only a lower bound could turn the answer.
    """
    star = study.width("lr", "adalayer_star")
    variant = study.width(sweep, optimizer, along, **fixed)
    is_stable = variant.decades >= star.decades - NARROW
    if is_stable:
        require_complete(star, study.command("lr", more="optimizer=adalayer_star"))
    else:
        require_complete(variant, study.command(sweep), along)
    return is_stable, (f"{variant.decades:.2f} decades n {variant.seeds}, "
                       f"adalayer_star {star.decades:.2f} n {star.seeds}")


def as_wide(comparison: tuple[bool, str]) -> tuple[bool, str]:
    """The line of a claim that a variant is stable, out of what stable() returns."""
    is_stable, text = comparison
    return is_stable, f"its range is as wide as Adalayer*'s within {NARROW}: {text}"


def narrower(comparison: tuple[bool, str]) -> tuple[bool, str]:
    """The line of a claim that a variant is unstable, out of what stable() returns."""
    is_stable, text = comparison
    return not is_stable, f"its range is narrower than Adalayer*'s by more than {NARROW}: {text}"


def hybrid(adaptive: str) -> dict[str, str]:
    """The options of a hybrid that leaves all roles but these to SGD."""
    return {"adaptive": adaptive, "rest": "sgd_ema"}


def star_everywhere(study: Study) -> Losses:
    """The losses of Adalayer* at its best learning rate."""
    return study.best("lr", "adalayer_star").losses


def last_layer_adaptive(study: Study) -> Comparisons:
    """Adalayer* on the last layer with SGD elsewhere beats SGD everywhere, but is unstable."""
    losses = study.best("hybrid_last", "adalayer_star", "rest_lr", **hybrid("head")).losses
    difference = compare(study, "hybrid", losses, "sgd_ema", study.sgd_everywhere())
    yield difference.is_below, f"its loss is below SGD's: {difference.text}"
    yield narrower(stable(study, "hybrid_last", "adalayer_star", "rest_lr", **hybrid("head")))


def last_layer_and_norms_adaptive(study: Study) -> Comparisons:
    """Adalayer* on the last layer and the norms with SGD elsewhere matches or beats Adalayer*, and is
    stable."""
    losses = study.best("hybrid_last_norm", "adalayer_star", "rest_lr", **hybrid("head+norm")).losses
    difference = compare(study, "hybrid", losses, "adalayer_star", star_everywhere(study))
    yield not difference.is_above, f"its loss is as low as Adalayer*'s: {difference.text}"
    yield as_wide(stable(study, "hybrid_last_norm", "adalayer_star", "rest_lr", **hybrid("head+norm")))


def reverse_hybrid(study: Study) -> Comparisons:
    """Adalayer* on the matrices alone with SGD elsewhere recovers neither the best loss nor the stability of
    Adalayer*."""
    losses = study.best("hybrid_reverse", "adalayer_star", "rest_lr", **hybrid("qkv+matrix")).losses
    difference = compare(study, "hybrid", losses, "adalayer_star", star_everywhere(study))
    yield difference.is_above, f"its loss is above Adalayer*'s: {difference.text}"
    yield narrower(stable(study, "hybrid_reverse", "adalayer_star", "rest_lr", **hybrid("qkv+matrix")))


def norms_untrained(study: Study) -> Comparisons:
    """With Adalayer* on the last layer, SGD elsewhere and norms that are not trained at all, the loss is
    better than with SGD everywhere and worse than with adaptive norms, and training is more stable than with
    norms that SGD trains. Adalayer* is worse, too, if its norms are not trained."""
    options = hybrid("head") | {"untrained": "norm"}
    untrained = study.best("norms_untrained", "adalayer_star", "rest_lr", **options).losses
    star = star_everywhere(study)
    adaptive = study.best("hybrid_last_norm", "adalayer_star", "rest_lr", **hybrid("head+norm")).losses
    difference = compare(study, "norms untrained", untrained, "sgd_ema", study.sgd_everywhere())
    yield difference.is_below, f"its loss is below SGD's: {difference.text}"
    difference = compare(study, "norms untrained", untrained, "norms adaptive", adaptive)
    yield difference.is_above, f"its loss is above that with adaptive norms: {difference.text}"

    width = study.width("norms_untrained", "adalayer_star", "rest_lr", **options)
    trained = study.width("hybrid_last", "adalayer_star", "rest_lr", **hybrid("head"))
    wider = width.decades > trained.decades + RESOLVED
    unsure, sweep = (trained, "hybrid_last") if wider else (width, "norms_untrained")
    require_complete(unsure, study.command(sweep), "rest_lr")
    yield (wider, f"its range is wider: {width.decades:.2f} decades n {width.seeds}, with norms trained by "
                  f"SGD {trained.decades:.2f} n {trained.seeds}")

    without = study.best("norms_untrained", "adalayer_star", untrained="norm").losses
    difference = compare(study, "untrained", without, "trained", star)
    yield (difference.is_above,
           f"the loss of Adalayer* with untrained norms is above Adalayer*'s: {difference.text}")


def frozen_ratios(study: Study) -> Comparisons:
    """If all ratios are frozen except those of the last layer and the norms, Adalayer* is as good and as
    stable. If all ratios are frozen, it fails. If all are frozen except those of the last layer alone, or of
    the norms alone, it reaches the best loss, but is unstable."""
    star = star_everywhere(study)
    for updating in ("head+norm", "none", "head", "norm"):
        options = {"freeze_steps": "*", "updating": updating}
        losses = study.best("frozen", "adalayer_star", **options).losses
        is_stable, widths = stable(study, "frozen", "adalayer_star", "lr", **options)
        difference = compare(study, "best", losses, "adalayer_star", star)
        should_fail, should_be_stable = updating == "none", updating == "head+norm"
        relation = "above" if should_fail else "as low as"
        width_word = "as wide as" if should_be_stable else "narrower than"
        yield (difference.is_above == should_fail,
               f"with updating={updating}, its loss is {relation} Adalayer*'s: {difference.text}")
        yield (is_stable == should_be_stable,
               f"with updating={updating}, its range is {width_word} Adalayer*'s: {widths}")


def adasgd(study: Study) -> Comparisons:
    """AdaSGD alone is slightly better than SGD, and unstable. With Adalayer* on the last layer and the norms
    it equals Adalayer*, but a gap to Adam remains."""
    alone = study.best("adasgd", "adasgd").losses
    difference = compare(study, "adasgd", alone, "sgd_ema", study.sgd_everywhere(), least=0)
    yield difference.is_below, f"AdaSGD's loss is below SGD's: {difference.text}"
    yield narrower(stable(study, "adasgd", "adasgd", "lr"))

    options = {"adaptive": "head+norm", "rest": "adasgd"}
    losses = study.best("adasgd", "adalayer_star", "rest_lr", **options).losses
    star, adam = star_everywhere(study), study.best("lr", "adamw").losses
    difference = compare(study, "hybrid", losses, "adalayer_star", star)
    yield difference.is_equal, f"the hybrid's loss equals Adalayer*'s: {difference.text}"
    difference = compare(study, "hybrid", losses, "adamw", adam, least=0)
    yield difference.is_above, f"the hybrid's loss is above Adam's: {difference.text}"


def adafactor_hybrid(study: Study) -> Comparisons:
    """Adafactor on the last layer and the norms with SGD elsewhere is comparable to Adafactor, and its best
    loss is not better."""
    losses = study.best("hybrid_adafactor", "adafactor", "rest_lr", **hybrid("head+norm")).losses
    everywhere = study.best("lr", "adafactor").losses
    difference = compare(study, "hybrid", losses, "adafactor", everywhere)
    yield not difference.is_above, f"its loss is as low as Adafactor's: {difference.text}"
    difference = compare(study, "hybrid", losses, "adafactor", everywhere, least=0)
    yield not difference.is_below, f"its loss is as high as Adafactor's, or higher: {difference.text}"


def sophia(study: Study) -> Comparisons:
    """Sophia is no better than Signum."""
    losses, signum = study.best("sophia", "sophia").losses, study.best("lr", "signum").losses
    difference = compare(study, "sophia", losses, "signum", signum, least=0)
    yield not difference.is_below, f"its loss is as high as Signum's, or higher: {difference.text}"


CLAIMS: tuple[Callable[[Study], Comparisons], ...] = (
    parity, lr_stability, lr_scale, stabilizers, longer_training, momentum, other_hyperparameters,
    signum_is_tied_adam, adalayer, effective_lrs, last_layer_adaptive, last_layer_and_norms_adaptive,
    reverse_hybrid, norms_untrained, frozen_ratios, adasgd, adafactor_hybrid, sophia)

# ---------------------------------------------------------------------------------------------------------
# Verdicts

HOLDS, FAILS, OPEN = "holds", "does not hold here", "not enough runs"


def judge(claim: Callable[[Study], Comparisons], study: Study) -> tuple[str, list[str]]:
    """Judges one claim.

    Returns:
        The verdict, and a line for each comparison. If runs are missing, the last line is the sweep that
        supplies them. A claim of which one comparison is false fails, even if others still lack runs.
    """
    lines = []
    verdict = HOLDS
    try:
        for is_true, text in claim(study):
            lines.append(f"{'yes' if is_true else 'no'}: {text}")
            if not is_true:
                verdict = FAILS
    except NotEnough as missing:
        lines.append(f"missing: {missing}")
        if verdict == HOLDS:
            verdict = OPEN
    return verdict, lines


def statement(claim: Callable[[Study], Comparisons]) -> str:
    """The claim in words, which is its docstring, in one line."""
    return " ".join((claim.__doc__ or claim.__name__).split())    # python -OO leaves out docstrings


def name_of(study: Study) -> str:
    """Returns the setting that the claims are about and its steps in words, such as "study, 500 steps"."""
    steps = [row["steps"] for row in study.rows if row["setting"] == study.base and not row["changed"]]
    return f"{parts_of(study.base)[0]}, {f'{steps[0]:,.0f} steps' if steps else 'not run'}"


def report(studies: list[Study]) -> str:
    """Returns all claims as markdown: a table of verdicts with a column for each study, the thresholds, then
    the numbers behind each verdict.

    Args:
        studies: the settings at which the claims are judged, each by its own runs.
    """
    names = [name_of(study) for study in studies]
    judged = [(claim, [judge(claim, study) for study in studies]) for claim in CLAIMS]
    rows = [(number, statement(claim), *(verdict for verdict, _ in judgements))
            for number, (claim, judgements) in enumerate(judged, 1)]
    lines = ["# The paper's claims", "", as_table(("", "claim", *names), rows)]
    lines += ["Losses are nats per token: the mean, the standard deviation over seeds (sd) and the "
              "number of seeds (n). Widths, and losses along a hyperparameter, use only the seeds that all "
              "their points have. Each column is judged by its own runs alone. Where runs are missing, the "
              "command that makes them stands below.", "",
              "| threshold | | unit and reason |", "| --- | --- | --- |"]
    lines += [f"| {name} | {value:g} | {reason} |" for name, value, reason in THRESHOLDS]
    lines.append("")
    for number, (claim, judgements) in enumerate(judged, 1):
        lines += [f"## {number}. {claim.__name__.replace('_', ' ')}", "", statement(claim), ""]
        for name, (verdict, comparisons) in zip(names, judgements):
            lines += [f"**{name}: {verdict}**", "", *(f"- {comparison}" for comparison in comparisons), ""]
    return "\n".join(lines)
