"""
From the folders of runs to the files of a results folder, and from those files to tables.

    results.csv         a row for each ended run, with the command that runs it again
    curves.jsonl        a thinned training-loss curve for each run
    effective_lr.csv    quantiles of effective learning rates, of the runs that logged them

The rows outlive the folders of their runs. A run that is run again under its name replaces its rows.
"""
import csv
import functools
import io
import json
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from optim import Rule
from study.evidence import Losses, Study
from trainer.errors import UserError
from trainer.runs import whole_file
from trainer.settings import FREE, Settings, defaults
from zoo.table import bytes_per_weight

# ---------------------------------------------------------------------------------------------------------
# The folders of runs


@dataclass
class RecordedRun:
    """What the folder of a run holds.

    Attributes:
        name: the name of the folder.
        config: all options in force, as {option: value}.
        start: the first line of metrics.jsonl, which has the machine and the versions.
        metrics: the other lines of metrics.jsonl.
        status: the content of status.json.
    """
    name: str
    config: dict[str, Any]
    start: dict[str, Any]
    metrics: list[dict[str, Any]]
    status: dict[str, Any]

    def training_rows(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics that are about training steps."""
        return [row for row in self.metrics if row["kind"] == "train"]


def read_runs(folder: str | Path, pattern: str) -> list[RecordedRun]:
    """Returns the runs in a folder whose names match a pattern, by name. Says which it cannot read."""
    runs = []
    for path in sorted(Path(folder).glob(f"{pattern}/metrics.jsonl")):
        try:
            start, *metrics = [json.loads(line) for line in path.read_text().splitlines()]
            status = json.loads((path.parent / "status.json").read_text())
            runs.append(RecordedRun(path.parent.name, start["config"], start, metrics, status))
        except (OSError, ValueError, KeyError, TypeError):
            print(f"note: {path.parent} is left out: it cannot be read")
    return runs


def variant_of(run: RecordedRun) -> str:
    """Returns the optimizer of a run, with the options that make it a variant."""
    config = run.config
    hybrid = ""
    if config["adaptive"]:
        hybrid = f" on {config['adaptive']}, {config['rest']} at {config['rest_lr']:g} elsewhere"
    options = ["modify", "rows", "untrained", "freeze_steps", "updating"]
    options += [option for option in config if option.endswith("_of")]    # values by role
    changed = "".join(f", {option} {config[option]}" for option in options if config.get(option))
    return config["optimizer"] + hybrid + changed


def mean_loss(runs: list[RecordedRun]) -> float:
    """Returns the mean of the runs' final validation losses, in nats per token."""
    return np.mean([run.status["loss"] for run in runs])


def by_name_and_lr(runs: list[RecordedRun]) -> dict[str, dict[float, list[RecordedRun]]]:
    """Groups finished runs.

    Returns:
        {variant: {learning rate: runs, one for each seed}}, the best variant first and learning rates rising.
    """
    found: dict[str, dict[float, list[RecordedRun]]] = {}
    for run in runs:
        found.setdefault(variant_of(run), {}).setdefault(run.config["lr"], []).append(run)
    found = {name: dict(sorted(lrs.items())) for name, lrs in found.items()}
    return dict(sorted(found.items(), key=lambda item: min(map(mean_loss, item[1].values()))))


# ---------------------------------------------------------------------------------------------------------
# What is kept of a run: a row of results.csv, a thinned loss curve, and quantiles of effective learning rates

COLUMNS = ("run", "config", "setting", "optimizer", "lr", "seed", "changed", "beta1", "beta2", "eps",
           "weight_decay", "warmup", "batch", "context", "steps", "rest_lr", "hidden", "status", "loss",
           "bits_per_byte", "device", "precision", "threads", "tokens_per_second", "torch", "command")
QUANTILES = ("q0", "q5", "q25", "q50", "q75", "q95", "q100")
EFFECTIVE_COLUMNS = ("run", "step", "role", *QUANTILES)
POINTS = 40    # of a thinned curve
SHAPE = [field.name for field in fields(Settings) if field.metadata["table"] == "model"]
# options that do not make a run another variant: those with a column of their own, those without effect on
# the result, and those that the machine decides; "run" is what --name was called in older runs
NOT_COMPARED = FREE | {"config", "optimizer", "lr", "seed", "device", "precision", "attention", "loss_chunk",
                       "compile", "run"}


@functools.cache
def usual(config_file: str, optimizer: str, rest: str) -> dict[str, Any]:
    """Returns {option: value} of a run of this config, optimizer and rest in which nothing else is chosen.

    "rest" itself has the value that it has without choice: some rules bring a rest of their own along.
    """
    chosen = {"rest": rest} if rest else {}
    return defaults(config_file, optimizer, **chosen) | {"rest": defaults(config_file, optimizer)["rest"]}


def text(value: object) -> str:
    """Returns a value as it is written on a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


def changed_options(config: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Finds the options of a run that differ from the usual ones.

    Returns:
        The options that change the setting (the model's shape, the data, the number of tokens), and all
        others, both as {option: text}. Steps that change with the batch, so that the tokens stay the same,
        are among the others.
    """
    usual_options = usual(config["config"], config["optimizer"], config["rest"])
    others = {option: text(value) for option, value in config.items()
              if option not in NOT_COMPARED and value != usual_options.get(option)}
    setting = {option: others.pop(option) for option in SHAPE if option in others}
    if Path(config["data"]).name != Path(usual_options["data"]).name:
        setting["data"] = config["data"]
    same_tokens = config["steps"] * config["batch"] == usual_options["steps"] * usual_options["batch"]
    if "steps" in others and not same_tokens:
        setting["steps"] = others.pop("steps")
    return setting, others


def row_of(run: RecordedRun) -> dict[str, str]:
    """Returns a run's row of results.csv.

    Raises:
        UserError: the run's config file cannot be read.
    """
    config, status = run.config, run.status
    setting, others = changed_options(config)
    changed = {option: value for option, value in sorted(others.items()) if option != "steps"}
    config_file = Path(config["config"])
    speeds = [row["tokens_per_second"] for row in run.training_rows()]
    is_done = status["status"] == "done"
    row = {column: "" if config.get(column) is None else text(config[column]) for column in COLUMNS}
    row |= {column: text(run.start[column]) for column in ("hidden", "device", "threads", "torch")}
    return row | {
        "run": run.name,
        "config": config_file.name if config_file.is_absolute() else config["config"],
        "setting": " ".join([config_file.stem, *(f"{option}={value}" for option, value in setting.items())]),
        "changed": " ".join(f"{option}={value}" for option, value in changed.items()),
        "status": status["status"],
        "loss": f"{status['loss']:.5f}" if is_done else "",
        "bits_per_byte": f"{status['bits_per_byte']:.5f}" if is_done else "",
        "tokens_per_second": f"{np.median(speeds):.0f}" if speeds else "",
        "command": command_of(run, setting | others)}


def command_of(run: RecordedRun, changed: dict[str, str]) -> str:
    """Returns the command that runs a run again. changed: its options that differ from the usual ones."""
    config = run.config
    options = {"config": config["config"], "optimizer": config["optimizer"], "lr": text(config["lr"]),
               **changed, "seed": text(config["seed"])}
    if config["log_blocks"]:
        options["log_blocks"] = "true"
    options |= {"name": run.name, "sample_tokens": "0"}
    words = [f"--{option}={shlex.quote(value)}" for option, value in options.items()]
    return " ".join(["python train.py", *words])


def curve_of(run: RecordedRun) -> dict[str, Any]:
    """Returns a line of curves.jsonl: the mean training loss of up to POINTS stretches of a run, each at the
    last step of the stretch."""
    rows = run.training_rows()
    stretches = np.array_split(np.arange(len(rows)), min(POINTS, len(rows))) if rows else []
    return {"run": run.name,
            "step": [rows[stretch[-1]]["step"] for stretch in stretches],
            "loss": [round(float(np.mean([rows[i]["loss"] for i in stretch])), 4) for stretch in stretches]}


def effective_of(run: RecordedRun) -> list[dict[str, str]]:
    """Returns rows of effective_lr.csv: the quantiles for each role, at up to POINTS steps of a run."""
    logged = [row for row in run.metrics if row.get("effective_lr")]
    chosen = sorted(set(np.linspace(0, len(logged) - 1, min(POINTS, len(logged))).astype(int)))
    return [{"run": run.name, "step": str(logged[i]["step"]), "role": role}
            | {quantile: f"{value:.4g}" for quantile, value in zip(QUANTILES, values)}
            for i in chosen for role, values in logged[i]["effective_lr"].items()]


# ---------------------------------------------------------------------------------------------------------
# The files of a results folder


def read_csv(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file as {column: text}; none if there is no such file."""
    return list(csv.DictReader(path.open(newline=""))) if path.exists() else []


def write_csv(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]) -> None:
    """Writes rows to a CSV file with a header, as a whole or not at all."""
    content = io.StringIO()
    writer = csv.DictWriter(content, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with whole_file(path) as file:
        file.write(content.getvalue().encode())


def read_curves(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the content of curves.jsonl as {run: {"run": run, "step": steps, "loss": losses}}."""
    path = folder / "curves.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {curve["run"]: curve for curve in map(json.loads, lines)}


def reason_to_skip(run: RecordedRun) -> str:
    """Returns why a run does not belong into the results, or "" if it does."""
    if run.name.isdigit():
        return "is left out: another machine gives this number to another run; give runs a --name"
    if run.status["status"] not in ("done", "diverged"):
        return f"is {run.status['status']}, so it is not in the results yet"
    return ""


def merge(runs: list[RecordedRun], folder: Path) -> None:
    """Adds runs to the files in a folder. A run replaces what is there under its name, and all else stays."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {row["run"]: row for row in read_csv(folder / "results.csv")}
    curves = read_curves(folder)
    effective: dict[str, list[dict[str, str]]] = {}
    for row in read_csv(folder / "effective_lr.csv"):
        effective.setdefault(row["run"], []).append(row)

    for run in runs:
        if reason := reason_to_skip(run):
            print(f"note: {run.name} {reason}")
            continue
        try:
            rows[run.name] = row_of(run)
        except UserError as error:
            print(f"note: {run.name} is left out: {error}")
            continue
        curves[run.name], effective[run.name] = curve_of(run), effective_of(run)

    write_csv(folder / "results.csv", COLUMNS, [rows[name] for name in sorted(rows)])
    write_csv(folder / "effective_lr.csv", EFFECTIVE_COLUMNS,
              [row for name in sorted(effective) for row in effective[name]])
    with whole_file(folder / "curves.jsonl") as file:
        file.write("".join(json.dumps(curves[name]) + "\n" for name in sorted(curves)).encode())


def number(value: str) -> float | str | None:
    """Returns a text as a number if it is one, and "" as None."""
    try:
        return float(value)
    except ValueError:
        return value or None


def read_study(folder: Path, base: str) -> Study:
    """Returns the content of the files in a folder.

    Args:
        folder: the results folder.
        base: the setting that the claims are about.
    """
    words = ("run", "config", "setting", "optimizer", "changed", "status", "device", "precision", "torch",
             "command")
    rows: list[dict[str, Any]] = []
    for texts in read_csv(folder / "results.csv"):
        row = {column: value if column in words else number(value) for column, value in texts.items()}
        assignments = (assignment.partition("=") for assignment in texts["changed"].split())
        row["changed"] = {option: number(value) for option, _, value in assignments}
        row["loss"] = np.inf if row["status"] == "diverged" else row["loss"]
        rows.append(row)
    effective = [{column: value if column in ("run", "role") else float(value)
                  for column, value in texts.items()}
                 for texts in read_csv(folder / "effective_lr.csv")]
    return Study(rows, effective, base)


# ---------------------------------------------------------------------------------------------------------
# Tables, as markdown


def sd(losses: Losses) -> str:
    """Returns the standard deviation of losses over seeds; "" if there is one seed."""
    return f"{np.std(losses, ddof=1):.3f}" if len(losses) > 1 else ""


def as_table(columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """Returns a markdown table."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join("| " + " | ".join(map(str, cells)) + " |\n" for cells in lines)


def table(study: Study) -> str:
    """Returns all results: mean, standard deviation and number of seeds for each combination of options."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in study.rows:
        changed = " ".join(f"{option}={value:g}" if isinstance(value, float) else f"{option}={value}"
                           for option, value in row["changed"].items())
        groups.setdefault((row["setting"], row["optimizer"], changed, row["lr"]), []).append(row)
    rows = []
    for (setting, optimizer, changed, lr), group in sorted(groups.items()):
        by_seed = {row["seed"]: row for row in reversed(group)}    # the same run under two names counts once
        finite = [row for row in by_seed.values() if np.isfinite(row["loss"])]
        losses = [row["loss"] for row in finite]
        diverged = len(by_seed) - len(finite)
        mean = [f"{np.mean(losses):.3f}"] if losses else []
        lost = [f"{diverged} diverged"] if diverged else []
        bits = f"{np.mean([row['bits_per_byte'] for row in finite]):.3f}" if finite else ""
        rows.append((setting, optimizer, changed, f"{lr:g}", ", ".join(mean + lost), sd(losses), len(by_seed),
                     bits))
    return as_table(("setting", "optimizer", "changed", "peak lr", "final validation loss", "sd", "n",
                     "bits per byte"), rows)


def league(study: Study, rules: dict[str, Rule], milliseconds: dict[str, str]) -> str:
    """Returns every rule at its best learning rate, the best rule first.

    Args:
        study: the results. Rules with fewer than four learning rates are left out.
        rules: the update rules by name.
        milliseconds: {name: mean time of the rule's step}. One benchmark measures it for all rules, because
            the runs come from several machines.
    """
    rows = []
    for name, rule in rules.items():
        curve, (lr, losses) = study.curve(name), study.lowest(name)
        if len(curve) < 4 or not losses:
            continue
        edge = ", the edge of the grid" if lr in (min(curve), max(curve)) else ""
        cells = (name, f"{lr:g}{edge}", f"{np.mean(losses):.3f}", sd(losses), len(losses),
                 milliseconds.get(name, ""), f"{bytes_per_weight(rule):.2f}")
        rows.append((np.mean(losses), cells))
    rows = [cells for _, cells in sorted(rows)]
    return as_table(("optimizer", "peak lr", "final validation loss", "sd", "n", "ms of its step",
                     "bytes of state per weight of a matrix"), rows)
