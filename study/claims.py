"""
The paper's claims, each a small function over the rows of results.csv that says what it compares. Whoever
disputes a verdict finds the thresholds and their reasons below; they were fixed before the first result.

    python study.py        judges them all
"""
import math

import numpy as np

# ---------------------------------------------------------------------------------------------------------
# Thresholds

THRESHOLDS = (
    ("PARITY", 0.03, "nats: 'comparable' has no number in the paper; 0.02 is the most that any of its other "
                     "hyperparameters gains, and 3.07 against 3.10 is a difference to its reviewers"),
    ("COUNTS", 2.0, "standard deviations over seeds: less may be luck; for means of three seeds it is 2.4 "
                    "standard errors of a difference"),
    ("GAIN", 0.02, "nats: the most that any hyperparameter but lr and momentum gains, says the paper"),
    ("USABLE", 0.2, "nats above the best loss, up to which a learning rate can be used: seven times PARITY, "
                    "and far from divergence"),
    ("STEP", 0.5, "decades, the grid of learning rates: two optima or two widths closer than that are one"),
    ("RESOLVED", 0.1, "decades: a width is read off between points of the grid, and noise moves it so much"),
    ("NARROW", 0.25, "decades: unstable is what is narrower than the reference by more; half a step of the "
                     "grid, and beyond what RESOLVED does to two widths"),
    ("NEAR", 0.5, "nats above the best loss, up to which settings tell how much seeds differ; beyond it runs "
                  "are unstable"),
    ("ORDERS", 100, "between the quantiles .05 and .95: 'several orders of magnitude' are two at least"),
    ("ALIKE", 10, "between the quantiles .05 and .95: 'remarkably similar' is within one order of magnitude"),
    ("SMALLER", 3.16, "'much smaller': by a step of the grid of learning rates"),
    ("MOST", 0.5, "'most of the gap' is half of it"),
)
(PARITY, COUNTS, GAIN, USABLE, STEP, RESOLVED, NARROW, NEAR, ORDERS, ALIKE,
 SMALLER, MOST) = (value for _, value, _ in THRESHOLDS)

FOUR = ("adamw", "adafactor", "lion", "signum")
FIVE = (*FOUR, "sgd")
SIZES = ("150m", "300m", "600m", "1.2b")
SEEDS = "seed=0,1,2"
HEAD, HEAD_NORM = (dict(adaptive=roles, rest="sgd_ema") for roles in ("head", "head+norm"))

# ---------------------------------------------------------------------------------------------------------
# What the rows say

class NotEnough(Exception):
    """Runs are missing; the message is the sweep that supplies them."""

class Study:
    """The rows of results.csv and of effective_lr.csv, and the setting that the claims are about: the name of
    a config. Its variants are settings with options after that name."""
    def __init__(self, rows, effective, base):
        self.rows, self.effective, self.base = rows, effective, base
        self.settings = sorted({row["setting"] for row in rows}, key=lambda name: (name != base, name))

    def variants(self, *options, configs=()):
        """The settings that are the base but for some of these options, and those of these configs."""
        found = [s for s in self.settings if s in configs]
        for setting in self.settings:
            name, *changed = setting.split()
            if name == self.base and changed and {text.partition("=")[0] for text in changed} <= set(options):
                found.append(setting)
        return found

    def most(self, setting, *columns):
        """The largest product of these columns."""
        mine = [row for row in self.rows if row["setting"] == setting]
        return max((math.prod(row[name] for name in columns) for row in mine), default=0)

    def plain(self, optimizer):
        """The runs of an optimizer that differ from the base in their learning rate and seed alone."""
        return [row for row in self.rows if row["setting"] == self.base and not row["changed"]
                and row["optimizer"] == optimizer]

    def larger(self):
        return [s for s in self.variants("width", "layers", "heads", configs=SIZES)
                if self.most(s, "hidden") > self.most(self.base, "hidden")]

    def longer(self):
        return [s for s in self.variants("steps", configs=(f"{self.base}-long",))
                if self.most(s, "steps", "batch") > self.most(self.base, "steps", "batch")]

    def plainer(self):
        """Without QK-norm and z-loss."""
        return [s for s in self.variants("qk_norm", "z_loss") if "qk_norm" in s and "z_loss" in s]

    def curve(self, optimizer, along="lr", setting=None, paired=False, **fixed):
        """{value of `along`: losses, one for each seed}, of runs that differ from their config in `along` and
        `fixed` alone ("*": any value). Away from the lr sweep, at the lr of most points. paired: of the seeds
        alone that all points have, if there are any, so that the shape is not one of seeds."""
        found = {}
        for row in self.rows:
            free = {"beta1", "beta2"} if along == "tied" else {along}
            others = {key: value for key, value in row["changed"].items() if key not in free}
            if (row["setting"] != (setting or self.base) or row["optimizer"] != optimizer
                    or others.keys() != fixed.keys()
                    or any(value not in ("*", others[key]) for key, value in fixed.items())
                    or along == "tied" and row["beta1"] != row["beta2"]):
                continue
            x = row["beta1" if along == "tied" else along]
            at = found.setdefault(row["lr"] if along != "lr" else 0, {})
            at.setdefault(x, {}).setdefault(row["seed"], row["loss"])    # a run under two names counts once
        def rank(points):
            return len(points), -min(np.mean(list(seeds.values())) for seeds in points.values())
        points = max(found.values(), key=rank, default={})
        common = set.intersection(*map(set, points.values())) if paired and points else ()
        return {x: [seeds[k] for k in sorted(common or seeds)] for x, seeds in sorted(points.items())}

    def lowest(self, *which, **fixed):
        """(value of a curve with the lowest mean loss, all its losses): chosen by the seeds that all values
        have, among values at which none diverged; (None, []) if there is no such."""
        curve, paired = self.curve(*which, **fixed), self.curve(*which, paired=True, **fixed)
        finite = [x for x, losses in curve.items() if np.isfinite(losses).all()]
        x = min(finite, key=lambda x: np.mean(paired[x]), default=None)
        return x, curve.get(x, [])

    def command(self, sweep, setting=None, more=""):
        """The command that supplies the runs of a sweep."""
        config, *changed = (setting or self.base).split()
        return " ".join(["./sweep.sh", sweep, f"configs/{config}.toml", *changed, *more.split(), SEEDS])

    def variant(self, kind, more=""):
        """The command that supplies the lr sweep of a larger, longer or plainer variant of the base."""
        if kind == "larger" and self.base in SIZES[:-1]:
            return self.command("lr", SIZES[SIZES.index(self.base) + 1], more)
        own = [row["steps"] for row in self.rows if row["setting"] == self.base and not row["changed"]]
        options = dict(larger="width=128 heads=4", longer=f"steps={4 * own[0] if own else 4000:g}",
                       plainer="qk_norm=false z_loss=0")
        return self.command("lr", more=f"{more} {options[kind]}")

    def sd(self, setting=None, *groups):
        """Standard deviation over seeds, pooled over the groups if each has two seeds, else over all that was
        repeated near the best."""
        groups = [group for group in groups if np.isfinite(group).all()]
        if not groups or min(map(len, groups)) < 2:
            repeated = {}
            for row in self.rows:
                if row["setting"] == (setting or self.base):
                    key = (row["optimizer"], row["lr"], *sorted(row["changed"].items()))
                    repeated.setdefault(key, {}).setdefault(row["seed"], row["loss"])
            groups = [list(seeds.values()) for seeds in repeated.values()]
            lowest = min((np.mean(group) for group in groups), default=0)
            groups = [group for group in groups if len(group) > 1 and np.mean(group) < lowest + NEAR]
        if not groups:
            raise NotEnough(self.command("lr", setting) + "    (the spread over seeds is unknown)")
        squares = sum(np.var(group, ddof=1) * (len(group) - 1) for group in groups)
        return float(np.sqrt(squares / sum(len(group) - 1 for group in groups)))

    def best(self, sweep, optimizer, along="lr", setting=None, **fixed):
        """What lowest gives, if there are runs enough to say so."""
        curve = self.curve(optimizer, along, setting, **fixed)
        x, losses = self.lowest(optimizer, along, setting, **fixed)
        more = f"optimizer={optimizer}" if sweep in ("lr", "league") else ""
        if len(curve) < 4 or not losses:
            raise NotEnough(self.command(sweep, setting, more))
        if along == "lr" and x in (min(curve), max(curve)):
            further = 10**((round(2 * math.log10(x)) + (-1 if x == min(curve) else 1)) / 2)
            more = f"{more} lr={further:.3g}"
            raise NotEnough(self.command(sweep, setting, more) + "    (the best is at the edge)")
        return x, losses

    def width(self, sweep, optimizer, along="lr", setting=None, **fixed):
        """(decades of learning rate in which the loss is at most USABLE above its best, read off between
        points; whether both ends were reached, else it is at least that wide; how many seeds that is of)."""
        self.best(sweep, optimizer, along, setting, **fixed)    # are there enough runs?
        curve = self.curve(optimizer, along, setting, paired=True, **fixed)
        x = min(curve, key=lambda x: np.mean(curve[x]))
        limit, total, reached = np.mean(curve[x]) + USABLE, 0.0, True
        for side in (-1, 1):
            points = sorted((point for point in curve if (point - x) * side >= 0), reverse=side < 0)
            here = x
            for a, b in zip(points, points[1:]):
                low, high = np.mean(curve[a]), np.mean(curve[b])
                if high > limit:    # a diverged run, infinite, ends it at the point before
                    here = a * (b / a)**((limit - low) / (high - low))
                    break
                here = b
            else:
                reached = False
            total += abs(math.log10(here / x))
        return total, reached, min(map(len, curve.values()))

    def sgd_everywhere(self):
        """The losses of what trains the rest in hybrids, at its best lr, if it trains all."""
        return self.best("league", "sgd_ema")[1]

# --- comparisons

def margin(sd, least=PARITY):
    """Differences up to this do not count."""
    return max(least, COUNTS * sd)

def against(study, name, losses, other, others, least=PARITY):
    """(by how much losses lie above others, what that must exceed to count, both in words)."""
    above, m = float(np.mean(losses) - np.mean(others)), margin(study.sd(None, losses, others), least)
    return above, m, f"{show(name, losses)}, {show(other, others)}: {above:+.3f}, counts beyond {m:.3f}"

def widths(found):
    """{name: decades} of {name: what Study.width gave}, and them in words."""
    return ({name: x for name, (x, *_) in found.items()},
            ", ".join(f"{name} {x:.2f} n {n}" for name, (x, _, n) in found.items()))

def show(name, losses):
    """The numbers of one setting: mean, standard deviation, number of seeds."""
    spread = f" sd {np.std(losses, ddof=1):.3f}" if len(losses) > 1 and np.isfinite(losses).all() else ""
    return f"{name} {np.mean(losses):.3f}{spread} n {len(losses)}"

def same_order(study, one, other):
    """No two of the five optimizers that differ beyond the margin at one setting change places at the other.
    Returns (whether, the pairs that do)."""
    best = {s: {name: study.best("lr", name, setting=s)[1] for name in FIVE} for s in (one, other)}
    def below(setting, a, b):
        low, high = best[setting][a], best[setting][b]
        return np.mean(high) - np.mean(low) > margin(study.sd(setting, low, high))
    swapped = [f"{a} and {b}" for a in FIVE for b in FIVE if below(one, a, b) and below(other, b, a)]
    return not swapped, ", ".join(swapped) or "none"

# ---------------------------------------------------------------------------------------------------------
# The claims. Each yields (whether, what was compared, with its numbers) and holds if all of them are so.

def parity(study):
    """At each size the best losses of Adam, Adafactor, Lion and Signum are comparable; SGD is clearly
    worse."""
    for setting in (study.base, *study.larger()):
        best = {name: study.best("lr", name, setting=setting)[1] for name in FIVE}
        means = {name: np.mean(losses) for name, losses in best.items()}
        four, m = [means[name] for name in FOUR], margin(study.sd(setting, *best.values()))
        numbers = ", ".join(show(name, losses) for name, losses in best.items())
        yield max(four) - min(four) <= m, f"{setting}: the four within {m:.3f} of each other: {numbers}"
        yield means["sgd"] - max(four) > m, f"{setting}: SGD more than {m:.3f} above the worst of them"

def lr_stability(study):
    """Loss against lr / best lr is about as wide for Adam, Adafactor, Lion and Signum; SGD's is
    narrower."""
    found = {}
    for name in FIVE:
        found[name] = study.width("lr", name)
        if not found[name][1]:
            raise NotEnough(study.command("lr", more=f"optimizer={name}") + "    (with lr= further out)")
    wide, numbers = widths(found)
    four = [wide[name] for name in FOUR]
    yield max(four) - min(four) <= STEP, f"widths of the four, in decades, within {STEP}: {numbers}"
    yield (wide["sgd"] < min(four) - RESOLVED,
           f"SGD's narrower than the narrowest of them by more than {RESOLVED}")

def lr_scale(study):
    """The best lr is about the same for Adam and Adafactor, and for Lion and Signum, 10 times smaller;
    SGD's is 300 times Adam's. Adam's does not rise with size."""
    best = {name: study.best("lr", name)[0] for name in FIVE}
    numbers = ", ".join(f"{name} {x:g}" for name, x in best.items())
    for a, b, factor in (("adamw", "adafactor", 1), ("lion", "signum", 1), ("adamw", "signum", 10),
                         ("sgd", "adamw", 300)):
        off = abs(math.log10(best[a] / best[b] / factor))
        yield off <= STEP + 0.01, f"{a} = {factor} x {b} within a step of the grid: {numbers}"
    if not study.larger():
        raise NotEnough(study.variant("larger", "optimizer=adamw"))
    for setting in study.larger():
        lr = study.best("lr", "adamw", setting=setting)[0]
        yield lr <= best["adamw"] * 1.01, f"{setting}: Adam's best lr {lr:g} is at most {best['adamw']:g}"

def stabilizers(study):
    """QK-norm and z-loss widen the usable range of lr for all; without them the ranking is the same."""
    if not study.plainer():
        raise NotEnough(study.variant("plainer"))
    without = study.plainer()[0]
    for name in FIVE:
        wide, _, n = study.width("lr", name)
        narrow, reached, k = study.width("lr", name, setting=without)
        if not reached and wide - narrow > RESOLVED:
            raise NotEnough(study.command("lr", without, f"optimizer={name}") + "    (with lr= further out)")
        yield (wide - narrow > RESOLVED,
               f"{name}: {wide:.2f} decades with n {n}, {narrow:.2f} without n {k}")
    same, swapped = same_order(study, study.base, without)
    yield same, f"pairs that change places: {swapped}"

def longer_training(study):
    """Training four times longer lowers the loss and widens the basin; the ranking is the same."""
    if not study.longer():
        raise NotEnough(study.variant("longer"))
    long, wider = study.longer()[-1], []
    for name in FIVE:
        before, after = study.best("lr", name)[1], study.best("lr", name, setting=long)[1]
        sd = study.sd(None, before, after)
        yield (np.mean(before) - np.mean(after) > COUNTS * sd,
               f"{name}: {show('lower', after)} than {show('before', before)}")
        wider.append(study.width("lr", name, setting=long)[0] - study.width("lr", name)[0])
    yield np.mean(wider) > RESOLVED, f"wider by {np.mean(wider):.2f} decades on average over the five"
    same, swapped = same_order(study, study.base, long)
    yield same, f"pairs that change places: {swapped}"

def momentum(study):
    """With beta1 from 0.8 to 0.98 the four are alike. At low beta1 Adam and Adafactor beat Lion and Signum,
    at high beta1 Lion is best. SGD is sensitive, and best near 0.98."""
    needed = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
    curves = {name: study.curve(name, "beta1", paired=True) for name in FIVE}
    for name, curve in curves.items():
        if not set(needed) <= set(curve):
            raise NotEnough(study.command("momentum", more=f"optimizer={name}"))
    sd = study.sd()
    at = {name: {b: np.mean(curve[b]) for b in needed} for name, curve in curves.items()}
    own = {name: min(losses.values()) for name, losses in at.items()}
    apart = {b: np.ptp([at[name][b] - own[name] for name in FOUR]) for b in (0.8, 0.9, 0.95, 0.98)}
    numbers = ", ".join(f"{b:g}: {x:.3f}" for b, x in apart.items())
    yield (max(apart.values()) <= margin(sd),
           f"each of the four as much above its own best, within {margin(sd):.3f}; apart by {numbers}")
    low = {name: (at[name][0] + at[name][0.5]) / 2 for name in FOUR}
    gap = (low["lion"] + low["signum"] - low["adamw"] - low["adafactor"]) / 2
    yield gap > margin(sd), f"beta1 0 and 0.5: Adam and Adafactor lower than Lion and Signum by {gap:.3f}"
    high = {name: at[name][0.99] for name in FOUR}
    numbers = ", ".join(show(name, curves[name][0.99]) for name in FOUR)
    second = min(high[name] for name in FOUR if name != "lion")
    yield (second - high["lion"] > COUNTS * sd,
           f"beta1 0.99: Lion lowest by more than {COUNTS * sd:.3f}: {numbers}")
    range_of = {name: max(losses.values()) - own[name] for name, losses in at.items()}
    numbers = ", ".join(f"{name} {x:.3f}" for name, x in range_of.items())
    yield (range_of["sgd"] - max(range_of[name] for name in FOUR) > margin(sd),
           f"over all beta1 SGD's loss changes most: {numbers}")
    top = min(at["sgd"], key=at["sgd"].get)
    yield top in (0.95, 0.98, 0.99), f"SGD is best at {top:g}, within a step of 0.98"

def other_hyperparameters(study):
    """Weight decay, warmup, beta2 and eps gain little, except for SGD in weight decay and warmup. At larger
    batches, for the same tokens and lr, all get worse."""
    sd, fixed = study.sd(), dict(eps=dict(beta2=0.98))
    def gain(name, key, usual):
        curve = study.curve(name, key, paired=True, **fixed.get(key, {}))
        if len(curve) < 3 or usual not in curve:
            raise NotEnough(study.command(key, more=f"optimizer={name}"))
        return np.mean(curve[usual]) - min(map(np.mean, curve.values()))
    for key, usual in (("weight_decay", 0), ("warmup", 0.1), ("beta2", 0.95), ("eps", 1e-15)):
        without = dict(beta2=("signum",), eps=("lion", "signum"))
        names = [name for name in FOUR if name not in without.get(key, ())]
        gains = {name: gain(name, key, usual) for name in names}
        numbers = ", ".join(f"{name} {x:.3f}" for name, x in gains.items())
        yield (max(gains.values()) <= margin(sd, GAIN),
               f"{key} gains at most {margin(sd, GAIN):.3f}: {numbers}")
    gains = {key: gain("sgd", key, usual) for key, usual in (("weight_decay", 0), ("warmup", 0.1))}
    numbers = ", ".join(f"{key} {x:.3f}" for key, x in gains.items())
    yield max(gains.values()) > margin(sd, GAIN), f"for SGD one of them gains more: {numbers}"
    for name in FIVE:
        curve = study.curve(name, "batch", paired=True)
        if len(curve) < 4:
            raise NotEnough(study.command("batch_size", more=f"optimizer={name}"))
        small, large = list(curve.values())[-3], list(curve.values())[-1]    # factors 1 and 4
        yield (np.mean(large) - np.mean(small) > COUNTS * sd,
               f"{name}: {show('four times the batch', large)} above {show('the usual', small)}")

def signum_is_tied_adam(study):
    """Adam with beta1 = beta2 is as Signum, over all of beta1; beta2 0.95 makes Adam flatter in beta1 than
    Signum."""
    tied, fixed, signum = (study.curve(*which, paired=True) for which in
                           (("adamw", "tied"), ("adamw", "beta1"), ("signum", "beta1")))
    if min(len(curve.keys() & signum.keys()) for curve in (tied, fixed)) < 7:
        raise NotEnough(study.command("tied"))
    sd = study.sd()
    apart = {b: abs(np.mean(tied[b]) - np.mean(signum[b])) for b in signum if b in tied}
    numbers = ", ".join(f"{b:g}: {x:.3f}" for b, x in apart.items())
    yield max(apart.values()) <= margin(sd), f"at each beta1 apart by at most {margin(sd):.3f}: {numbers}"
    flat, steep = (np.ptp([np.mean(losses) for losses in curve.values()]) for curve in (fixed, signum))
    yield (steep - flat > margin(sd),
           f"over all beta1 Adam's loss changes by {flat:.3f}, Signum's by {steep:.3f}")

def adalayer(study):
    """Plain Adalayer lies between SGD and Adam in loss and stability. A v for each row of the head recovers
    most of the gap; one for each row of the embedding, too, does nothing notable."""
    kinds = dict(sgd=("lr", "sgd"), adalayer=("adalayer", "adalayer"), star=("adalayer", "adalayer_star"),
                 adam=("lr", "adamw"))
    best = {kind: study.best(*what)[1] for kind, what in kinds.items()}
    embed = study.best("adalayer", "adalayer", rows="head+embed")[1]
    mean = {kind: np.mean(losses) for kind, losses in best.items()}
    m = margin(study.sd(None, *best.values()))
    numbers = ", ".join(show(kind, losses) for kind, losses in best.items())
    yield (mean["adam"] + m < mean["adalayer"] < mean["sgd"] - m,
           f"between them by more than {m:.3f}: {numbers}")
    wide, numbers = widths({kind: study.width(*what) for kind, what in kinds.items()})
    yield (wide["sgd"] - RESOLVED <= wide["adalayer"] <= wide["adam"] + RESOLVED,
           f"width in decades between them: {numbers}")
    part = (mean["adalayer"] - mean["star"]) / (mean["adalayer"] - mean["adam"])
    yield (part >= MOST and mean["adalayer"] > mean["star"],
           f"Adalayer* recovers {part:.0%} of the gap to Adam")
    m = margin(study.sd(None, best["star"], embed))
    yield (abs(np.mean(embed) - mean["star"]) <= m,
           f"with rows of the embedding within {m:.3f}: {show('embed', embed)}, {show('star', best['star'])}")

def effective_lrs(study):
    """Under Adalayer* the effective lrs of the head's rows span orders of magnitude, those of the matrices
    are nearly equal, and the norms' are far smaller."""
    names = {row["run"] for row in study.plain("adalayer_star") if np.isfinite(row["loss"])}
    quantiles = {}
    for name in sorted(names & {row["run"] for row in study.effective}):
        mine = [row for row in study.effective if row["run"] == name]
        steps = sorted({row["step"] for row in mine})
        for row in mine:
            if row["step"] == steps[len(steps) // 2]:    # half way
                quantiles.setdefault(row["role"], []).append([row[f"q{q}"] for q in (5, 50, 95)])
    if not {"head", "matrix", "qkv", "norm"} <= quantiles.keys():
        raise NotEnough(study.command("effective_lr"))
    low, middle, high = ({role: float(np.exp(np.mean(np.log([x[i] for x in seeds]))))
                          for role, seeds in quantiles.items()} for i in range(3))
    def span(role):
        return f"{role} {low[role]:.2g} to {high[role]:.2g}"
    n = len(quantiles["head"])
    yield (high["head"] >= ORDERS * low["head"],
           f"head spans a factor of {ORDERS}, half way: {span('head')}, n {n}")
    matrices = min(low["matrix"], low["qkv"]), max(high["matrix"], high["qkv"])
    yield matrices[1] <= ALIKE * matrices[0], f"matrices within {ALIKE}: {span('matrix')}, {span('qkv')}"
    yield (middle["norm"] * SMALLER <= min(middle["matrix"], middle["qkv"]),
           f"medians: norms {middle['norm']:.2g} smaller than matrices {middle['matrix']:.2g}, q, k, v "
           f"{middle['qkv']:.2g} by {SMALLER:.2g}")

# --- hybrids and frozen ratios, against Adalayer* everywhere and the SGD of the rest everywhere

def stable(study, sweep, optimizer, along, reference="adalayer_star", **fixed):
    """(whether a variant is as wide in its lr as the reference is, less NARROW; the two widths)."""
    wanted, _, k = study.width("lr", reference)
    wide, reached, n = study.width(sweep, optimizer, along, **fixed)
    if not reached and wide < wanted - NARROW:
        raise NotEnough(study.command(sweep) + f"    (with {along}= further out)")
    return wide >= wanted - NARROW, f"{wide:.2f} decades n {n}, {reference} {wanted:.2f} n {k}"

def stable_line(found):
    return found[0], f"as wide as Adalayer* within {NARROW}: {found[1]}"

def unstable_line(found):
    return not found[0], f"narrower than Adalayer* by more than {NARROW}: {found[1]}"

def last_layer_adaptive(study):
    """Adalayer* on the last layer and SGD elsewhere beats SGD everywhere, but is unstable."""
    losses = study.best("hybrid_last", "adalayer_star", "rest_lr", **HEAD)[1]
    above, m, numbers = against(study, "hybrid", losses, "sgd_ema", study.sgd_everywhere())
    yield above < -m, f"below: {numbers}"
    yield unstable_line(stable(study, "hybrid_last", "adalayer_star", "rest_lr", **HEAD))

def last_layer_and_norms_adaptive(study):
    """Adalayer* on the last layer and the norms and SGD elsewhere matches or beats Adalayer*, and is
    stable."""
    losses = study.best("hybrid_last_norm", "adalayer_star", "rest_lr", **HEAD_NORM)[1]
    star = study.best("lr", "adalayer_star")[1]
    above, m, numbers = against(study, "hybrid", losses, "adalayer_star", star)
    yield above <= m, f"not above: {numbers}"
    yield stable_line(stable(study, "hybrid_last_norm", "adalayer_star", "rest_lr", **HEAD_NORM))

def reverse_hybrid(study):
    """Adalayer* on the matrices alone, SGD on the rest, recovers neither Adalayer*'s best loss nor its
    stability."""
    fixed = dict(adaptive="qkv+matrix", rest="sgd_ema")
    losses = study.best("hybrid_reverse", "adalayer_star", "rest_lr", **fixed)[1]
    star = study.best("lr", "adalayer_star")[1]
    above, m, numbers = against(study, "hybrid", losses, "adalayer_star", star)
    yield above > m, f"above: {numbers}"
    yield unstable_line(stable(study, "hybrid_reverse", "adalayer_star", "rest_lr", **fixed))

def norms_untrained(study):
    """With the last layer alone adaptive and the norms not trained at all: better than SGD, more stable
    than with norms trained by SGD, and worse than with adaptive norms. Adalayer* is worse, too, if its
    norms are not trained."""
    losses = study.best("norms_untrained", "adalayer_star", "rest_lr", **HEAD, untrained="norm")[1]
    star = study.best("lr", "adalayer_star")[1]
    trained = study.best("hybrid_last_norm", "adalayer_star", "rest_lr", **HEAD_NORM)[1]
    above, m, numbers = against(study, "norms untrained", losses, "sgd_ema", study.sgd_everywhere())
    yield above < -m, f"below: {numbers}"
    above, m, numbers = against(study, "norms untrained", losses, "norms adaptive", trained)
    yield above > m, f"above: {numbers}"
    wide, _, n = study.width("norms_untrained", "adalayer_star", "rest_lr", **HEAD, untrained="norm")
    other, reached, k = study.width("hybrid_last", "adalayer_star", "rest_lr", **HEAD)
    if not reached and wide > other + RESOLVED:
        raise NotEnough(study.command("hybrid_last") + "    (with rest_lr= further out)")
    yield (wide > other + RESOLVED,
           f"width {wide:.2f} decades n {n}, with norms trained by SGD {other:.2f} n {k}")
    without = study.best("norms_untrained", "adalayer_star", untrained="norm")[1]
    above, m, numbers = against(study, "untrained", without, "trained", star)
    yield above > m, f"Adalayer*, above: {numbers}"

def frozen_ratios(study):
    """With frozen ratios, but for the last layer and the norms, Adalayer* is as good and as stable.
    Freezing all fails; freezing all but one of the two reaches the best loss, but is unstable."""
    star = study.best("lr", "adalayer_star")[1]
    for updating in ("head+norm", "none", "head", "norm"):
        fixed = dict(freeze_steps="*", updating=updating)
        losses = study.best("frozen", "adalayer_star", **fixed)[1]
        wide, numbers = stable(study, "frozen", "adalayer_star", "lr", **fixed)
        above, m, difference = against(study, "best", losses, "adalayer_star", star)
        fails = updating == "none"
        yield (above > m) == fails, f"updating {updating}, {'above' if fails else 'not above'}: {difference}"
        yield (wide == (updating == "head+norm"),
               f"updating {updating}, {'as wide' if updating == 'head+norm' else 'narrower'}: {numbers}")

def adasgd(study):
    """AdaSGD alone is slightly better than SGD, and unstable. With Adalayer* on last layer and norms it
    equals Adalayer*; a gap to Adam remains."""
    alone = study.best("adasgd", "adasgd")[1]
    above, m, numbers = against(study, "adasgd", alone, "sgd_ema", study.sgd_everywhere(), 0)
    yield above < -m, f"below: {numbers}"
    yield unstable_line(stable(study, "adasgd", "adasgd", "lr"))
    both = study.best("adasgd", "adalayer_star", "rest_lr", adaptive="head+norm", rest="adasgd")[1]
    star, adam = (study.best("lr", name)[1] for name in ("adalayer_star", "adamw"))
    above, m, numbers = against(study, "hybrid", both, "adalayer_star", star)
    yield abs(above) <= m, f"equal: {numbers}"
    above, m, numbers = against(study, "hybrid", both, "adamw", adam, 0)
    yield above > m, f"above: {numbers}"

def adafactor_hybrid(study):
    """Adafactor on last layer and norms and SGD elsewhere is comparable to Adafactor, and not better at its
    best."""
    losses = study.best("hybrid_adafactor", "adafactor", "rest_lr", **HEAD_NORM)[1]
    whole = study.best("lr", "adafactor")[1]
    above, m, numbers = against(study, "hybrid", losses, "adafactor", whole)
    yield above <= m, f"not above: {numbers}"
    above, m, numbers = against(study, "hybrid", losses, "adafactor", whole, 0)
    yield above >= -m, f"not below: {numbers}"

def sophia(study):
    """Sophia is no better than Signum."""
    losses, signum = study.best("sophia", "sophia")[1], study.best("lr", "signum")[1]
    above, m, numbers = against(study, "sophia", losses, "signum", signum, 0)
    yield above >= -m, f"not below: {numbers}"

CLAIMS = (parity, lr_stability, lr_scale, stabilizers, longer_training, momentum, other_hyperparameters,
          signum_is_tied_adam, adalayer, effective_lrs, last_layer_adaptive, last_layer_and_norms_adaptive,
          reverse_hybrid, norms_untrained, frozen_ratios, adasgd, adafactor_hybrid, sophia)

HOLDS, FAILS, OPEN = "holds", "does not hold here", "not enough runs"

def judge(claim, study):
    """(verdict, a line for each comparison or the sweep that is missing). A claim with a part that does not
    hold does not hold, whatever else is missing."""
    lines, verdict = [], HOLDS
    try:
        for true, line in claim(study):
            lines.append(f"{'yes' if true else 'no'}: {line}")
            verdict = verdict if true else FAILS
    except NotEnough as missing:
        return FAILS if verdict == FAILS else OPEN, [*lines, f"missing: {missing}"]
    return verdict, lines

def report(study):
    """All claims as markdown: a table of verdicts, then the numbers behind each."""
    found = [(i, claim, *judge(claim, study)) for i, claim in enumerate(CLAIMS, 1)]
    text = [f"# The paper's claims at {study.base}", "", "| | claim | verdict |", "| --- | --- | --- |"]
    text += [f"| {i} | {' '.join(claim.__doc__.split())} | {verdict} |" for i, claim, verdict, _ in found]
    text += ["", "Losses are nats per token: mean, standard deviation over seeds (sd), seeds (n). Widths, "
             "and losses along a hyperparameter, are of the seeds that all their points have.", "",
             "| threshold | | unit and reason |", "| --- | --- | --- |"]
    text += [f"| {name} | {value:g} | {why} |" for name, value, why in THRESHOLDS]
    text.append("")
    for i, claim, verdict, lines in found:
        text += [f"## {i}. {claim.__name__.replace('_', ' ')}: {verdict}", "",
                 " ".join(claim.__doc__.split()), "", *(f"- {line}" for line in lines), ""]
    return "\n".join(text)
