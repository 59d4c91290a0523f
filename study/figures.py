"""
The figures of the study, each drawn as far as the results at hand allow. A panel is a dict:

    title, xlabel
    curves     [(label, style, {x: losses, one for each seed})]
    lines      [(label, style, losses)]: baselines, level
    missing    the sweep that supplies the panel
    log        whether x is logarithmic; else its values stand side by side
    shift      x is divided by that of the lowest loss
    usual      losses are drawn as what they differ from that at this x
    top        how far above the lowest loss the panel reaches at most; default: above the best of each curve
    legend     whether the panel has one of its own
"""
import numpy as np

import claims

# Okabe and Ito's colours, which the colour-blind tell apart, and a mark of its own for each
COLORS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999", "#B8A900")
MARKS = "os^Dv<>P*"
NAMES = dict(adamw="Adam", adafactor="Adafactor", lion="Lion", signum="Signum", sgd="SGD",
             adalayer_star="Adalayer*", adalayer="Adalayer", adasgd="AdaSGD", sgd_ema="SGD, averaged")
KINDS = dict(optim="the paper's", adaptive="Adam's relatives", factored="shared second moments",
             lowrank="low rank", orthogonal="matrices as matrices", curvature="curvature")
STYLE = {name: dict(color=COLORS[i], marker=MARKS[i]) for i, name in enumerate(NAMES)}
SIX = (*claims.FIVE, "adalayer_star")
HOLLOW = dict(mfc="white", mew=1.4)
LOST, BEYOND = dict(marker="x", ls="", ms=7, mew=2), dict(marker=r"$\uparrow$", ls="", ms=9)
LOSS = "final validation loss, nats per token"

def plots():
    import matplotlib
    matplotlib.use("Agg")    # files only, no screen
    import matplotlib.pyplot as plt
    return plt

def prepared(panel):
    """(curves as (label, style, curve, {x: mean}), lines as (label, style, losses), lowest, highest y)."""
    curves, ends = [], []
    for label, style, curve in panel["curves"]:
        if "usual" in panel and curve:
            base = np.mean(curve.get(panel["usual"], np.inf))
            curve = {x: np.array(losses) - base for x, losses in curve.items()} if np.isfinite(base) else {}
        if curve:
            curves.append((label, style, curve, {x: np.mean(losses) for x, losses in curve.items()}))
            ends.append([y for y in curves[-1][3].values() if np.isfinite(y)] or [0])
    lines = [line for line in panel.get("lines", ()) if line[2]]
    ends += [[np.mean(losses)] for *_, losses in lines]
    ends += [[-claims.GAIN, claims.GAIN]] if "usual" in panel else []
    lowest = min(map(min, ends))
    if "top" in panel:
        return curves, lines, lowest, min(lowest + panel["top"], max(map(max, ends)))
    return curves, lines, lowest, max(map(min, ends)) + 0.6

def draw_panel(axes, panel, curves, lines, lowest, highest, edge):
    """Means over seeds, with a bar from the lowest to the highest. In the grey above, up to the edge: what is
    beyond, with its loss."""
    log, height = panel.get("log", True), highest - lowest
    places = sorted({x for *_, mean in curves for x in mean})
    if any(y > highest for *_, mean in curves for y in mean.values()):
        axes.axhspan(highest, edge, color="0.93", zorder=-1)
    for i, (label, style, curve, mean) in enumerate(curves):
        best = min(mean, key=mean.get)
        at = {x: x / best if panel.get("shift") else x if log else places.index(x) for x in mean}
        seen = [y <= highest for y in mean.values()]
        xs, ys = [], []
        for k, x in enumerate(mean):    # a line into the edge, none along it
            if k and not seen[k] and not seen[k - 1]:
                xs.append(np.nan), ys.append(np.nan)
            xs.append(at[x]), ys.append(mean[x] if seen[k] else highest)
        marked = [k for k, y in enumerate(ys) if y in mean.values()]
        axes.plot(xs, ys, **dict(ms=6, lw=1.6, label=label, markevery=marked) | style)
        for x, losses in curve.items():
            if mean[x] <= highest:
                axes.vlines(at[x], min(losses), max(losses), color=style["color"], lw=6, alpha=0.35)
            else:
                mark, y = BEYOND if np.isfinite(mean[x]) else LOST, edge - (0.03 + 0.04 * i) * height
                axes.plot(at[x], y, **mark | dict(color=style["color"]))
                if np.isfinite(mean[x]):
                    side, where = (5, "left") if x == min(mean) else (-5, "right")
                    axes.annotate(f"{mean[x]:.1f}", (at[x], y), (side, 0), textcoords="offset points",
                                  size=7, color=style["color"], ha=where, va="center")
    for label, style, losses in lines:
        axes.axhline(np.mean(losses), color=style["color"], ls="--", lw=1.4, label=label, zorder=0)
        axes.axhspan(min(losses), max(losses), color=style["color"], alpha=0.12, lw=0, zorder=-1)
    if "usual" in panel:
        axes.axhspan(-claims.GAIN, claims.GAIN, color="0.85", zorder=0, label=f"+-{claims.GAIN}")
    axes.set(title=panel["title"], xlabel=panel["xlabel"], ylim=(lowest - 0.07 * height, edge))
    if log:
        axes.set_xscale("log")
    else:
        axes.set_xticks(range(len(places)), [f"{x:g}" for x in places])
    if panel.get("legend"):
        axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))    # hides nothing

def finish(figure, panels, path, more={}):
    """One legend for all panels that have none, with more marks {label: style}, and the file."""
    found = {}
    for axes in panels:
        axes.grid(alpha=0.3)
        if not axes.get_legend():
            found |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    from matplotlib.lines import Line2D
    found |= {label: Line2D([], [], color="0.3", **style) for label, style in more.items()}
    columns = int(figure.get_figwidth() / (0.7 + 0.078 * max(map(len, found))))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, fontsize=9)
    figure.savefig(path, dpi=130)
    plots().close(figure)

def draw(path, panels, across=3, ylabel=LOSS, share=True):
    """A figure of the panels for which there are runs. Returns the sweeps that the others, and the curves
    that are too short to be drawn, miss."""
    ready, missing = [], []
    for panel in panels:
        curves = [one for one in panel["curves"] if len(one[2]) > 1 + ("usual" in panel)]
        if len(curves) < len(panel["curves"]):
            missing.append(panel["missing"])
        if curves:
            ready.append(panel | dict(curves=curves))
    if ready:
        across = min(across, len(ready))
        down = -(-len(ready) // across)
        figure, grid = plots().subplots(down, across, figsize=(max(5 * across, 7.5), 4.1 * down + 0.6),
                                        layout="constrained", squeeze=False)
        made = [prepared(panel) for panel in ready]
        low, high = min(lowest for *_, lowest, _ in made), max(highest for *_, highest in made)
        most, marks = max(len(curves) for curves, *_ in made), {}
        for axes, panel, (curves, lines, *own) in zip(grid.flat, ready, made):
            a, b = (low, high) if share else own
            losses = [y for *_, mean in curves for y in mean.values()]
            marks |= {"a seed diverged": LOST} if np.inf in losses else {}
            marks |= {"off the scale": BEYOND} if any(b < y < np.inf for y in losses) else {}
            draw_panel(axes, panel, curves, lines, a, b, b + (0.04 + 0.04 * most) * (b - a))
        for axes in grid.flat[len(ready):]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel(ylabel)
        marks["seeds, lowest to highest"] = dict(lw=6, alpha=0.35)
        finish(figure, grid.flat[:len(ready)], path, marks)
    else:
        path.unlink(missing_ok=True)    # an earlier one would be of other results
    return missing

# ---------------------------------------------------------------------------------------------------------
# The figures, in the order of the paper's

def all_figures(study, curves, rules, folder):
    """Draws everything. curves: {run: {step, loss}}; rules: {name: function} of all optimizers. Returns
    {file: sweeps that would complete it}."""
    base, missing = study.base, {}
    def curve(name, along="lr", setting=None, label=None, style=(), **fixed):
        style = STYLE.get(name, {}) | dict(style)
        return label or NAMES[name], style, study.curve(name, along, setting, **fixed)
    def line(name, label=None):
        return label or f"{NAMES[name]} at its best", STYLE[name], study.lowest(name)[1]
    lines = [line("sgd_ema", "that SGD everywhere, at its best"), line("adalayer_star"), line("adamw")]

    # Figs. 1-3: the learning rate, as is and shifted
    known = [base, *study.larger(), *study.longer(), *study.plainer()]
    others = [study.variant(kind) for kind in ("larger", "longer", "plainer") if not getattr(study, kind)()]
    for name, shift in (("lr.png", False), ("lr_shifted.png", True)):
        xlabel = "peak learning rate / the best one" if shift else "peak learning rate"
        missing[name] = others + draw(folder / name, [
            dict(title=setting, xlabel=xlabel, shift=shift, missing=study.command("lr", setting),
                 curves=[curve(one, setting=setting) for one in SIX]) for setting in known], across=2)

    # Figs. 4 and 6: momentum, alone and tied to beta2
    settings = [base, *study.plainer(), *study.larger()]
    def over_beta1(title, setting, names, top):
        return dict(title=title, xlabel="beta1", log=False, top=top,
                    curves=[curve(one, "beta1", setting) for one in names],
                    missing=study.command("momentum", setting))
    five = [name for name in SIX if name != "sgd"]
    missing["momentum.png"] = draw(folder / "momentum.png", [
        *(over_beta1(setting, setting, five, 1.3) for setting in settings),
        over_beta1(f"{base}, with SGD", base, SIX, 3.5)], share=False)
    missing["tied.png"] = draw(folder / "tied.png", [
        dict(title=setting, xlabel="beta1", log=False, top=1.3, missing=study.command("tied", setting),
             curves=[curve("adamw", "tied", setting, "Adam, beta2 = beta1", dict(ls="--", zorder=3) | HOLLOW),
                     curve("adamw", "beta1", setting, "Adam, beta2 = 0.95"),
                     curve("signum", "beta1", setting)])
        for setting in settings])

    # Fig. 5: the other hyperparameters, one at a time
    plain = study.plain("adamw")
    def other(key, title, usual, without=(), **fixed):
        return dict(title=title, xlabel=key, log=False, usual=usual, top=0.4, missing=study.command(title),
                    curves=[curve(one, key, paired=True, **fixed) for one in SIX if one not in without])
    usual = {key: plain[0][key] if plain else 0 for key in ("weight_decay", "warmup", "batch", "beta2")}
    missing["others.png"] = draw(folder / "others.png", [
        other("weight_decay", "weight_decay", usual["weight_decay"]),
        other("warmup", "warmup", usual["warmup"]),
        other("batch", "batch_size", usual["batch"]),
        other("beta2", "beta2", usual["beta2"], ("signum", "sgd")),
        other("eps", "eps", 1e-15, ("lion", "signum", "sgd"), beta2=0.98)],
        ylabel="loss beyond that at the usual value")

    # Fig. 7
    missing["effective_lr.png"] = draw_effective(study, folder / "effective_lr.png")

    # Figs. 8, 11-14: hybrids
    def hybrid(sweep, title, main, lines=lines, **fixed):
        return dict(title=title, xlabel="peak learning rate of the rest, SGD", missing=study.command(sweep),
                    lines=lines, curves=[curve(main, "rest_lr", label=f"{NAMES[main]} there, SGD elsewhere",
                                               rest="sgd_ema", **fixed)])
    star = "adalayer_star"
    missing["hybrids.png"] = draw(folder / "hybrids.png", [
        hybrid("hybrid_last", "Adalayer* on the last layer", star, adaptive="head"),
        hybrid("hybrid_last_norm", "Adalayer* on last layer and norms", star, adaptive="head+norm"),
        hybrid("hybrid_reverse", "Adalayer* on the matrices alone", star, adaptive="qkv+matrix"),
        hybrid("norms_untrained", "Adalayer* on the last layer, norms untrained", star, adaptive="head",
               untrained="norm"),
        hybrid("hybrid_adafactor", "Adafactor on last layer and norms", "adafactor",
               [lines[0], line("adafactor")], adaptive="head+norm")])

    # Figs. 9, 17-19: frozen ratios
    def frozen(title, updating, sweep="frozen", **more):
        return dict(title=title, xlabel="peak learning rate", missing=study.command(sweep), lines=lines[2:],
                    top=1.3,
                    curves=[curve(star, label="Adalayer*, ratios frozen", style=HOLLOW | dict(ls="-."),
                                  freeze_steps="*", updating=updating, **more)])
    panels = [frozen("frozen but for last layer and norms", "head+norm"), frozen("all frozen", "none"),
              frozen("frozen but for the last layer", "head"), frozen("frozen but for the norms", "norm"),
              frozen("frozen but for last layer, norms untrained", "head", untrained="norm")]
    for panel in panels:    # the baseline is no reason to draw a panel
        if panel["curves"][0][2]:
            panel["curves"].append(curve(star))
    if panels[-1]["curves"][0][2]:
        panels[-1]["curves"].append(curve(star, label="Adalayer*, norms untrained", untrained="norm",
                                          style=dict(marker="|", ms=10, ls=":")))
    missing["frozen.png"] = draw(folder / "frozen.png", panels)

    # Figs. 10, 15, 16, and the open question: who shares a second moment
    rows = [("adasgd", "AdaSGD: all weights", "adasgd", {}, {}),
            ("adalayer", "Adalayer: a tensor", "adalayer", {}, {}),
            ("adalayer", "Adalayer*: and a row of the head", star, {}, {}),
            ("adalayer", "and a row of the embedding", "adalayer", dict(rows="head+embed"),
             HOLLOW | dict(ls="--")),
            ("granularity", "a row everywhere", "adalayer", dict(rows="embed+qkv+matrix+head"),
             HOLLOW | dict(ls=":", marker="p")),
            ("lr", "Adam: a weight", "adamw", {}, {})]
    drawn = [curve(name, label=label, style=style, **fixed) for _, label, name, fixed, style in rows]
    sgd = [curve("sgd", label="SGD: none")]
    missing["adalayer.png"] = draw(folder / "adalayer.png", [
        dict(title="as is", xlabel="peak learning rate", curves=drawn[1:], lines=[line("sgd")],
             missing=study.command("granularity")),
        dict(title="shifted", xlabel="peak learning rate / the best one", shift=True, curves=sgd + drawn,
             missing=study.command("granularity"))], across=2) + [
        study.command(sweep) for (sweep, *_), (*_, found) in zip(rows, drawn) if not found]
    missing["adasgd.png"] = draw(folder / "adasgd.png", [
        dict(title="AdaSGD alone", xlabel="peak learning rate", lines=lines, missing=study.command("adasgd"),
             curves=[curve("adasgd", label="AdaSGD, beta1 0.9"),
                     curve("adasgd", label="AdaSGD, beta1 0.98", style=dict(ls="--") | HOLLOW, beta1=0.98)]),
        dict(title="with Adalayer* on last layer and norms", xlabel="peak learning rate of the rest, AdaSGD",
             missing=study.command("adasgd"), lines=lines,
             curves=[curve(star, "rest_lr", label="Adalayer* there, AdaSGD elsewhere", adaptive="head+norm",
                           rest="adasgd")])], across=2)
    missing["curves.png"] = draw_curves(study, curves, folder / "curves.png")

    # Fig. 20: Sophia; and the league of all rules
    missing["sophia.png"] = draw(folder / "sophia.png", [
        dict(title=base, xlabel="peak learning rate", lines=[line("signum")], missing=study.command("sophia"),
             curves=[curve("sophia", label="Sophia", style=STYLE["adasgd"])])])
    kinds = {}
    for name, rule in rules.items():
        kinds.setdefault(rule.__module__.removeprefix("zoo."), []).append(name)
    missing["league.png"] = draw(folder / "league.png", [
        dict(title=KINDS.get(kind, kind), xlabel="peak learning rate", missing=study.command("league"),
             top=1.2, legend=True, lines=[line("adamw")], curves=[
                 (NAMES.get(name, name), dict(color=COLORS[(i + 1) % 9], marker=MARKS[(i + 1) % 9]) |
                  STYLE.get(name, {}), study.curve(name)) for i, name in enumerate(names)])
        for kind, names in kinds.items()])
    return {name: sorted(set(sweeps)) for name, sweeps in missing.items() if sweeps}

def draw_effective(study, path):
    """Fig. 7: quantiles of effective lrs over training. Bands: mean over seeds; lines: the seeds' medians."""
    runs = {row["run"] for row in study.plain("adalayer_star") if np.isfinite(row["loss"])}
    rows = [row for row in study.effective if row["run"] in runs]
    if not rows:
        return [study.command("effective_lr")]
    figure, panels = plots().subplots(1, 3, figsize=(14, 4.8), layout="constrained", sharey=True)
    roles = (("last layer, a row each", (("head", 4),)), ("matrices", (("matrix", 1), ("qkv", 3))),
             ("norms", (("norm", 5),)))
    words = dict(head="rows of the last layer", matrix="attention output, MLP", qkv="q, k, v", norm="norms")
    for axes, (title, shown) in zip(panels, roles):
        for role, color in shown:
            steps = sorted({row["step"] for row in rows if row["role"] == role})
            def across_seeds(q):
                return [np.exp(np.mean([np.log(row[q]) for row in rows
                                        if row["role"] == role and row["step"] == step])) for step in steps]
            for low, high, alpha in (("q0", "q100", 0.15), ("q5", "q95", 0.25), ("q25", "q75", 0.4)):
                axes.fill_between(steps, across_seeds(low), across_seeds(high), lw=0, color=COLORS[color],
                                  alpha=alpha)
            for i, run in enumerate(sorted({row["run"] for row in rows})):
                mine = [(row["step"], row["q50"]) for row in rows
                        if row["run"] == run and row["role"] == role]
                axes.plot(*zip(*mine), color=COLORS[color], lw=1.2, ls="--" if role == "qkv" else "-",
                          label=words[role] if i == 0 else None)
        axes.set(title=title, xlabel="step", yscale="log")
    panels[0].set_ylabel("effective learning rate, weight per gradient")
    for label, alpha in (("all", 0.15), ("quantiles .05 to .95", 0.3), (".25 to .75", 0.6)):
        panels[0].fill_between([], [], color="0.3", alpha=alpha, label=label, lw=0)
    finish(figure, panels, path)
    return []

def draw_curves(study, curves, path):
    """Training losses at the best learning rate of each optimizer."""
    figure, axes, missing = None, None, []
    for name in (*SIX, "adalayer", "adasgd"):
        rows = [row for row in study.plain(name) if row["run"] in curves]
        lr, final = study.lowest(name)
        mine = [curves[row["run"]] for row in rows if row["lr"] == lr]
        mine = [one for one in mine if one["step"] == mine[0]["step"]]
        if not mine:
            missing.append(study.command("lr" if name in SIX else name))
            continue
        if not figure:
            figure, axes = plots().subplots(figsize=(8, 5.4), layout="constrained")
        losses, style = np.array([one["loss"] for one in mine]), STYLE[name]
        axes.plot(mine[0]["step"], losses.mean(0), **style, lw=1.6, ms=5, markevery=0.1,
                  label=f"{np.mean(final):.2f}  {NAMES[name]}, lr {lr:g}")
        axes.fill_between(mine[0]["step"], losses.min(0), losses.max(0), color=style["color"], alpha=0.3,
                          lw=0)
    if figure:
        axes.set(xlabel="step", ylabel="training loss, nats per token",
                 title=f"{study.base}: at the best learning rate, with its final validation loss")
        finish(figure, [axes], path)
    return missing
