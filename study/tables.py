"""
What finished runs say: tables, figures and verdicts on the paper's claims.

    python study.py                                 adds runs/ to results/ and draws everything that it allows
    python study.py --runs=runs --out=nano.png      a table and a picture of these runs alone

results/  results.csv          a row for each ended run, with the command that runs it again
          curves.jsonl, effective_lr.csv    what figures need besides; rows of runs that are gone stay
          rules.json         if there: what bench.py --only=rules measured, for the league
          table.md, league.md, claims.md, *.png     made from those, with or without runs
"""
import csv
import functools
import io
import json
import shlex
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

import claims
import config
import figures
from config import UserError, option
from figures import COLORS, MARKS, plots

@dataclass
class Options:
    runs: str = option("runs", None, "folder of runs")
    match: str = option("*", None, "pattern of the names of the runs to take")
    results: str = option("results", None, "folder of what is kept of them")
    setting: str = option("study", None, "name of the config that claims and figures are about")
    out: str = option("", None, "only this picture, of these runs")

# ---------------------------------------------------------------------------------------------------------
# Run folders

def read_runs(folder, pattern):
    """A list of {name, start, config, metrics, status} of all runs in a folder, in the order of their names.
    start: the first line of the metrics."""
    runs = []
    for path in sorted(Path(folder).glob(f"{pattern}/metrics.jsonl")):
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            status = json.loads((path.parent / "status.json").read_text())
            runs.append(dict(name=path.parent.name, start=rows[0], config=rows[0]["config"],
                             metrics=rows[1:], status=status))
        except (OSError, ValueError, KeyError, IndexError):
            print(f"note: {path.parent} is left out: it cannot be read")
    return runs

def name_of(run):
    """What a line of table and picture is about: the optimizer, and what makes it a variant."""
    c = run["config"]
    hybrid = f" on {c['adaptive']}, {c['rest']} at {c['rest_lr']:g} elsewhere" if c["adaptive"] else ""
    others = ("rows", "untrained", "freeze_steps", "updating")
    variant = "".join(f", {key} {c[key]}" for key in others if c[key])
    return c["optimizer"] + hybrid + variant

def mean(runs):
    return np.mean([run["status"]["loss"] for run in runs])

def by_name_and_lr(runs):
    """{name: {lr: finished runs, one for each seed}}, best name first, rising lr."""
    found = {}
    for run in runs:
        found.setdefault(name_of(run), {}).setdefault(run["config"]["lr"], []).append(run)
    found = {name: dict(sorted(lrs.items())) for name, lrs in found.items()}
    return dict(sorted(found.items(), key=lambda item: min(map(mean, item[1].values()))))

def smooth_training_loss(run, width=5):
    """(steps, mean training loss of `width` logged steps around each)."""
    rows = [row for row in run["metrics"] if row["kind"] == "train"]
    steps, losses = np.array([row["step"] for row in rows]), np.array([row["loss"] for row in rows])
    width = min(width, len(losses))
    return steps[width - 1:], np.convolve(losses, np.ones(width) / width, "valid")

# ---------------------------------------------------------------------------------------------------------
# What is kept of them: a row, a thinned loss curve, and quantiles of effective lrs

COLUMNS = ("run", "config", "setting", "optimizer", "lr", "seed", "changed", "beta1", "beta2", "eps",
           "weight_decay", "warmup", "batch", "context", "steps", "rest_lr", "hidden", "status", "loss",
           "bits_per_byte", "device", "precision", "threads", "tokens_per_second", "torch", "command")
QUANTILES = ("q0", "q5", "q25", "q50", "q75", "q95", "q100")
POINTS = 40    # of a curve

@functools.cache
def usual(config_file, optimizer, rest):
    """({option: value} of a config that is run as it is, the options of the model's shape, those that are not
    compared: named in columns of their own, without effect on the result, or chosen by the machine)."""
    import train    # not at the top: it draws its runs with this file
    plain = [f"--config={config_file}", f"--optimizer={optimizer}"]
    own = train.read_options(plain)[0].rest    # some rules bring one along
    options, hyper, _ = train.read_options([*plain, *([f"--rest={rest}"] if rest else [])])
    shape = [field.name for field in fields(train.Config) if field.metadata["table"] == "model"]
    ignored = train.FREE | {"device", "precision", "attention", "loss_chunk", "compile"}
    ignored |= {"config", "optimizer", "lr", "seed"}
    return asdict(options) | hyper | dict(rest=own), shape, ignored

def text(value):
    """As an option is written."""
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")

def row_of(run):
    """A run's row of results.csv, as strings."""
    c, status = run["config"], run["status"]
    own, shape, ignored = usual(c["config"], c["optimizer"], c["rest"])
    changed = {key: text(value) for key, value in c.items() if key not in ignored and value != own.get(key)}
    setting = {key: changed.pop(key) for key in shape if key in changed}
    if Path(c["data"]).name != Path(own["data"]).name:
        setting["data"] = c["data"]
    if "steps" in changed and c["steps"] * c["batch"] != own["steps"] * own["batch"]:
        setting["steps"] = changed.pop("steps")
    options = dict(config=c["config"], optimizer=c["optimizer"], lr=text(c["lr"])) | setting | changed
    changed.pop("steps", None)    # as the batch has it
    options |= dict(seed=c["seed"], **({"log_blocks": "true"} if c["log_blocks"] else {}), run=run["name"],
                    sample_tokens=0)
    done = status["status"] == "done"
    speeds = [line["tokens_per_second"] for line in run["metrics"] if line["kind"] == "train"]
    return {name: text(c.get(name)) if c.get(name) is not None else "" for name in COLUMNS} | dict(
        run=run["name"], **{key: text(run["start"][key]) for key in ("hidden", "device", "threads", "torch")},
        config=c["config"] if not Path(c["config"]).is_absolute() else Path(c["config"]).name,
        setting=" ".join([Path(c["config"]).stem, *(f"{key}={value}" for key, value in setting.items())]),
        changed=" ".join(f"{key}={value}" for key, value in sorted(changed.items())),
        status=status["status"], loss=f"{status['loss']:.5f}" if done else "",
        bits_per_byte=f"{status['bits_per_byte']:.5f}" if done else "",
        tokens_per_second=f"{np.median(speeds):.0f}" if speeds else "",
        command="python train.py " + " ".join(f"--{k}={shlex.quote(text(v))}" for k, v in options.items()))

def curve_of(run):
    """Mean training losses of up to POINTS stretches of a run, each at the stretch's end."""
    rows = [row for row in run["metrics"] if row["kind"] == "train"]
    parts = [part for part in np.array_split(np.arange(len(rows)), min(POINTS, len(rows)) or 1) if len(part)]
    return dict(run=run["name"], step=[rows[part[-1]]["step"] for part in parts],
                loss=[round(float(np.mean([rows[i]["loss"] for i in part])), 4) for part in parts])

def effective_of(run):
    """Rows of effective_lr.csv: quantiles for each role at up to POINTS steps."""
    rows = [row for row in run["metrics"] if row.get("effective_lr")]
    chosen = [rows[i] for i in sorted(set(np.linspace(0, len(rows) - 1, min(POINTS, len(rows))).astype(int)))]
    return [dict(run=run["name"], step=str(row["step"]), role=role) |
            {name: f"{value:.4g}" for name, value in zip(QUANTILES, values)}
            for row in chosen for role, values in row["effective_lr"].items()]

def read_csv(path):
    return list(csv.DictReader(path.open(newline=""))) if path.exists() else []

def read_curves(folder):
    """{run: {run, step, loss}}."""
    path = folder / "curves.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {curve["run"]: curve for curve in map(json.loads, lines)}

def write_csv(path, columns, rows):
    from runs import whole_file    # not at the top: it needs torch
    with whole_file(path) as file:
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file.write(out.getvalue().encode())

def merge(runs, folder):
    """Adds runs to the files in a folder: a run replaces what is there under its name, all else stays."""
    from runs import whole_file
    folder.mkdir(parents=True, exist_ok=True)
    rows = {row["run"]: row for row in read_csv(folder / "results.csv")}
    effective = {}
    for row in read_csv(folder / "effective_lr.csv"):
        effective.setdefault(row["run"], []).append(row)
    curves = read_curves(folder)
    for run in runs:
        name = run["name"]
        if name.isdigit():
            print(f"note: {name} is left out: a number names another run on another machine; give --run")
            continue
        if run["status"]["status"] not in ("done", "diverged"):
            print(f"note: {name} is {run['status']['status']}, so not in the results yet")
            continue
        try:
            rows[name] = row_of(run)
        except UserError as error:
            print(f"note: {name} is left out: {error}")
            continue
        curves[name], effective[name] = curve_of(run), effective_of(run)
    write_csv(folder / "results.csv", COLUMNS, [rows[name] for name in sorted(rows)])
    write_csv(folder / "effective_lr.csv", ("run", "step", "role", *QUANTILES),
              [row for name in sorted(effective) for row in effective[name]])
    with whole_file(folder / "curves.jsonl") as file:
        file.write("".join(json.dumps(curves[name]) + "\n" for name in sorted(curves)).encode())

def number(value):
    """A number, if the text is one."""
    try:
        return float(value)
    except ValueError:
        return value or None

def read_table(folder, base):
    """A claims.Study of the files in a folder: numbers as numbers, a diverged run's loss infinite."""
    words = ("run", "config", "setting", "optimizer", "changed", "status", "device", "precision", "torch",
             "command")
    rows = [{key: value if key in words else number(value) for key, value in row.items()}
            for row in read_csv(folder / "results.csv")]
    for row in rows:
        row["changed"] = {key: number(value) for key, _, value in
                          (pair.partition("=") for pair in row["changed"].split())}
        row["loss"] = np.inf if row["status"] == "diverged" else row["loss"]
    effective = [{key: value if key in ("run", "role") else float(value) for key, value in row.items()}
                 for row in read_csv(folder / "effective_lr.csv")]
    return claims.Study(rows, effective, base)

def sd(losses):
    """Standard deviation over seeds, for a table."""
    return f"{np.std(losses, ddof=1):.3f}" if len(losses) > 1 else ""

def table(study):
    """All results as markdown: mean, standard deviation and number of seeds of every setting."""
    groups = {}
    for row in study.rows:
        variant = " ".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                           for key, value in row["changed"].items())
        groups.setdefault((row["setting"], row["optimizer"], variant, row["lr"]), []).append(row)
    lines = ["| setting | optimizer | changed | peak lr | final validation loss | sd | n | bits per byte |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for (setting, optimizer, variant, lr), rows in sorted(groups.items()):
        seeds = {row["seed"]: row for row in reversed(rows)}    # the same run under two names counts once
        losses = [row["loss"] for row in seeds.values() if np.isfinite(row["loss"])]
        bits = [row["bits_per_byte"] for row in seeds.values() if np.isfinite(row["loss"])]
        lost = len(seeds) - len(losses)
        loss = f"{np.mean(losses):.3f}" if losses else ""
        loss += f"{', ' if losses else ''}{lost} diverged" if lost else ""
        lines.append(f"| {setting} | {optimizer} | {variant} | {lr:g} | {loss} | "
                     f"{sd(losses)} | {len(seeds)} | "
                     f"{f'{np.mean(bits):.3f}' if bits else ''} |")
    return "\n".join(lines) + "\n"

def league(study, rules, ms):
    """Every optimizer at its best learning rate, best first, as markdown. rules: {name: function};
    ms: {name: mean milliseconds of its step}, measured by one bench, since runs are of several machines."""
    from zoo.table import bytes_per_weight    # not at the top: it needs torch
    found = []
    for name in rules:
        curve, (lr, losses) = study.curve(name), study.lowest(name)
        if len(curve) >= 4 and losses:
            found.append((np.mean(losses), name, lr, curve))
    lines = ["| optimizer | peak lr | final validation loss | sd | n | ms of its step | "
             "bytes of state per weight of a matrix |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for loss, name, lr, curve in sorted(found):
        edge = ", the edge of the grid" if lr in (min(curve), max(curve)) else ""
        lines.append(f"| {name} | {lr:g}{edge} | {loss:.3f} | {sd(curve[lr])} | {len(curve[lr])} | "
                     f"{ms.get(name, '')} | {bytes_per_weight(rules[name]):.2f} |")
    return "\n".join(lines) + "\n"

# ---------------------------------------------------------------------------------------------------------
# Pictures

def draw_study(found, path):
    """Left: final loss against lr, mean and range over seeds. Right: the loss curves at the best lr."""
    plt = plots()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    lowest = min(mean(runs) for lrs in found.values() for runs in lrs.values())
    for i, (name, lrs) in enumerate(found.items()):
        style = dict(color=COLORS[i % len(COLORS)], lw=1.6)
        losses = [[run["status"]["loss"] for run in runs] for runs in lrs.values()]
        left.plot(list(lrs), [np.mean(x) for x in losses], MARKS[i % len(MARKS)] + "-", ms=6, **style)
        left.vlines(list(lrs), [min(x) for x in losses], [max(x) for x in losses],
                    **style | dict(lw=4, alpha=0.5))
        lr = min(lrs, key=lambda lr: mean(lrs[lr]))
        curves = [smooth_training_loss(run) for run in lrs[lr]]
        right.plot(curves[0][0], np.mean([losses for _, losses in curves], axis=0), "-",
                   marker=MARKS[i % len(MARKS)], markevery=0.12, ms=5, **style,
                   label=f"{mean(lrs[lr]):.2f}  {name}, lr {lr:g}")
    left.set(xscale="log", xlabel="peak learning rate", ylabel="final validation loss, nats per token",
             ylim=(lowest - 0.1, lowest + 2.4), title="every learning rate")
    right.set(xlabel="step", ylabel="training loss, nats per token", ylim=(lowest - 0.1, lowest + 3.4),
              title="at the best one")
    right.legend(title="final validation loss", fontsize=8, title_fontsize=8)
    for panel in (left, right):
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)

def draw_run(rows, path, title):
    """The picture of one run's loss curve, out of the lines of its metrics."""
    plt = plots()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    styles = dict(train=dict(color="0.6", lw=1, label="training"),
                  val=dict(color=COLORS[1], marker="o", label="validation"))
    for kind, style in styles.items():
        points = [(row["step"], row["loss"]) for row in rows if row["kind"] == kind]
        axes.plot([x for x, _ in points], [y for _, y in points], **style)
    axes.set(xlabel="step", ylabel="loss, nats per token", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)

# ---------------------------------------------------------------------------------------------------------

def one_picture(runs, options):
    """A table and a picture of these runs alone."""
    ended = [run for run in runs if run["status"]["status"] == "done"]
    if not ended:
        raise UserError(f"--runs={options.runs}: holds no finished run that matches {options.match}")
    settings = {" ".join(f"{key}={text(run['config'][key])}" for key in ("config", "width", "steps"))
                for run in ended}
    if len(settings) > 1:
        raise UserError(f"--match={options.match}: takes runs of several settings, too many for one picture: "
                        f"{'; '.join(sorted(settings))}")
    found = by_name_and_lr(ended)
    print("| optimizer | peak lr | final validation loss | sd | n |\n| --- | --- | --- | --- | --- |")
    for name, lrs in found.items():
        for lr, group in lrs.items():
            losses = [run["status"]["loss"] for run in group]
            print(f"| {name} | {lr:g} | {mean(group):.3f} | {sd(losses)} | {len(group)} |")
    for run in runs:
        if run["status"]["status"] != "done":
            c = run["config"]
            print(f"| {name_of(run)} | {c['lr']:g} | {run['status']['status']}, seed {c['seed']} | | |")
    draw_study(found, options.out)
    print(f"wrote {options.out}")

def everything(runs, options):
    """Adds runs to the results, and makes tables, figures and verdicts of all that is there."""
    import optim    # not at the top: it needs torch
    folder = Path(options.results)
    if not runs and not (folder / "results.csv").exists():
        raise UserError(f"--runs={options.runs}, --results={folder}: hold no runs and no results")
    merge(runs, folder)
    study = read_table(folder, options.setting)
    (folder / "table.md").write_text(table(study))
    curves = read_curves(folder)
    rules = {name: optim.find(name) for name in (*optim.names(), *optim.zoo())}
    bench = folder / "rules.json"    # by bench.py
    rows = json.loads(bench.read_text())["rules"] if bench.exists() else []
    ms = {row["step of"]: f"{row['mean, ms']:.1f}" for row in rows}
    (folder / "league.md").write_text(league(study, rules, ms))
    missing = figures.all_figures(study, curves, rules, folder)
    report = claims.report(study)
    (folder / "claims.md").write_text(report)
    print(report)
    for name, sweeps in missing.items():
        print(f"{name}: {'more' if (folder / name).exists() else 'drawn'} with\n  " + "\n  ".join(sweeps))
    print(f"{len(study.rows)} runs; everything is in {folder}: results.csv, table.md, claims.md, *.png")

def main(argv):
    try:
        options = config.load(Options, argv, __doc__)[0]
        runs = read_runs(options.runs, options.match)
        (one_picture if options.out else everything)(runs, options)
    except UserError as error:
        print(f"study.py: error: {config.one_line(error)}", file=sys.stderr)
        return error.code
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
