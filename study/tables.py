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
import sys
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from study.evidence import Losses, Study
from trainer.errors import UserError, one_line
from trainer.options import ROOT, read_toml
from trainer.runs import to_json, whole_file
from trainer.settings import FREE, Settings, defaults
from zoo import RULES

# ---------------------------------------------------------------------------------------------------------
# The folders of runs


@dataclass
class RecordedRun:
    """What the folder of a run holds.

    Attributes:
        path: the folder.
        config: all options in force, as {option: value}.
        start: the first line of metrics.jsonl, which has the machine and the versions.
        metrics: the other lines of metrics.jsonl.
        status: the content of status.json.
    """
    path: Path
    config: dict[str, Any]
    start: dict[str, Any]
    metrics: list[dict[str, Any]]
    status: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the run, which is that of its folder."""
        return self.path.name

    @property
    def final_loss(self) -> float:
        """The final validation loss of a run that is done, in nats per token. If the run keeps an average of
        its weights, this is the loss of the average, because the average is what the run is for."""
        return self.status.get("average_loss", self.status["loss"])

    def training_rows(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics that are about training steps."""
        return [row for row in self.metrics if row["kind"] == "train"]


def read_run(path: Path) -> RecordedRun:
    """Returns the run in a folder.

    Raises:
        UserError: a file is missing, or holds something else than a run writes into it.
    """
    try:
        start, *metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        status = json.loads((path / "status.json").read_text())
        run = RecordedRun(path, start["config"], start, metrics, status)
        variant_of(run)    # raises an error if an option is missing, or if the config file cannot be read
        return run
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError("it cannot be read") from None


def read_runs(folders: str, pattern: str) -> list[RecordedRun]:
    """Returns the runs in one folder or in several, whose names match a pattern, by folder and name. Prints
    which runs it leaves out.

    Args:
        folders: the paths of the folders, joined by commas.
        pattern: what the name of a run must match, such as "nano*".
    """
    runs = []
    for folder in folders.split(","):
        if not Path(folder).is_dir():
            print(f"note: {folder!r}: there is no such folder of runs", file=sys.stderr)
        for path in sorted(Path(folder).glob("*/metrics.jsonl")):
            if not fnmatchcase(path.parent.name, pattern):
                continue
            try:
                runs.append(read_run(path.parent))
            except UserError as error:
                print(f"note: {path.parent} is left out: {error}", file=sys.stderr)
    return runs


def mean_loss(runs: list[RecordedRun]) -> float:
    """Returns the mean of the runs' final validation losses, in nats per token."""
    return np.mean([run.final_loss for run in runs])


def by_name_and_lr(runs: list[RecordedRun]) -> dict[str, dict[float, list[RecordedRun]]]:
    """Groups finished runs. Of runs that differ in nothing, it takes the first and prints which others it
    leaves out. The machine chooses the precision, so a variant's name has it only if it differs among runs.

    Returns:
        {variant: {learning rate: runs, one for each seed}}, the best variant first and learning rates rising.
    """
    precisions: dict[str, set[str]] = {}
    for run in runs:
        precisions.setdefault(variant_of(run), set()).add(run.config["precision"])
    found: dict[str, dict[float, dict[int, RecordedRun]]] = {}
    for run in runs:
        name = variant_of(run)
        if len(precisions[name]) > 1:
            name = f"{name} precision={run.config['precision']}"
        of_seed = found.setdefault(name, {}).setdefault(run.config["lr"], {})
        first = of_seed.setdefault(run.config["seed"], run)
        if first is not run:
            print(f"note: {run.path} is not counted: it has the settings and the seed of {first.path}")
    groups = {name: {lr: list(of_seed.values()) for lr, of_seed in sorted(lrs.items())}
              for name, lrs in found.items()}
    return dict(sorted(groups.items(), key=lambda item: min(map(mean_loss, item[1].values()))))


# ---------------------------------------------------------------------------------------------------------
# What differs between runs

SHAPE = [field.name for field in fields(Settings) if field.metadata["table"] == "model"]
# Options that do not make a run another variant: those with a column of their own, those without effect on
# the result, and those that the machine decides; "run" is what --name was called in older runs. The final
# loss depends on final_windows, although a resumed run may change it.
NOT_COMPARED = FREE - {"final_windows"} | {"config", "optimizer", "lr", "seed", "device", "precision",
                                           "attention", "loss_chunk", "compile", "run", "sha256_of_optimizer",
                                           "defaults_of_optimizer", "defaults_of_rest"}
CONFIGS = ROOT / "configs"


@functools.cache
def usual(config_file: str, optimizer: str, rest: str) -> dict[str, Any]:
    """Returns {option: value} of a run of this config, optimizer and rest in which nothing else is chosen.

    A config of another machine is read from configs/, if it has the same name there. Then all values in which
    the two differ count as chosen. "rest" itself has the value that it has without choice: some rules bring a
    rest of their own along.
    """
    shipped = CONFIGS / Path(config_file).name
    if not Path(config_file).exists() and shipped.exists():
        config_file = str(shipped)
    train = read_toml(config_file).get("train", {})
    own_rest = train.get("rest", "") if isinstance(train, dict) else ""
    if str(own_rest).endswith(".py"):    # to find its defaults would run the file
        return defaults(config_file, optimizer, rest=rest) | {"rest": own_rest}
    chosen = {"rest": rest} if rest else {}
    return defaults(config_file, optimizer, **chosen) | {"rest": defaults(config_file, optimizer)["rest"]}


def usual_of(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what usual() does, for the options of a run. A rule in a file of the user's is not run here:
    the options hold its defaults, and who looks at somebody's runs need not trust their code."""
    def shipped(name: str, stand_in: str) -> str:
        return stand_in if name.endswith(".py") else name

    optimizer, rest = shipped(config["optimizer"], "adamw"), shipped(config["rest"], "")
    found = usual(config["config"], optimizer, rest)
    if optimizer != config["optimizer"]:
        found = {name: value for name, value in found.items()
                 if name.removesuffix("_of") not in RULES["adamw"].hyper}
    return found | config.get("defaults_of_optimizer", {}) | config.get("defaults_of_rest", {})


def text(value: object) -> str:
    """Returns a value as it is written on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def changed_options(config: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Finds the options of a run that differ from the usual ones.

    Returns:
        The options that change the setting (the model's shape, the data, the number of tokens), and all
        others by name, both as {option: text}. Steps that change with the batch, so that the number of tokens
        stays the same, are in neither.
    """
    usual_options = usual_of(config)
    changed = {option: text(value) for option, value in sorted(config.items())
               if option not in NOT_COMPARED and value != usual_options.get(option)}
    setting = {option: changed.pop(option) for option in SHAPE if option in changed}
    if Path(config["data"]).name != Path(usual_options["data"]).name:
        setting["data"] = config["data"]
    steps = changed.pop("steps", None)
    sequences = config["steps"] * config["batch"]
    if sequences != usual_options["steps"] * usual_options["batch"]:
        if steps:    # as many as the usual batch needs for these tokens
            setting["steps"] = f"{sequences / usual_options['batch']:.9g}"
        else:    # another batch alone, which changes the number of tokens
            changed["steps"] = text(config["steps"])
    return setting, changed


def assignments(options: dict[str, str]) -> str:
    """Returns {option: value} as "option=value option=value". Quotes are around a value with blanks."""
    return " ".join(f"{option}={shlex.quote(str(value)) if ' ' in str(value) else value}"
                    for option, value in options.items())


def setting_of(run: RecordedRun) -> str:
    """Returns the setting of a run as Study describes it, such as "study qk_norm=false z_loss=0"."""
    config = Path(run.config["config"]).stem.replace(" ", "_")
    return f"{config} {assignments(changed_options(run.config)[0])}".strip()


def optimizer_of(config: dict[str, Any]) -> str:
    """Returns the name of a run's optimizer. A rule in a file of the user's has the file's name and the
    beginning of its hash, such as "mine.py@3f2a91c0", because two versions are two rules."""
    name, sha256 = config["optimizer"], config.get("sha256_of_optimizer")
    return f"{Path(name).name}@{sha256[:8]}" if sha256 else name


def variant_of(run: RecordedRun) -> str:
    """Returns the optimizer of a run, with all options that differ from the usual ones, except its learning
    rate and seed."""
    setting, changed = changed_options(run.config)
    return f"{optimizer_of(run.config)} {assignments(setting | changed)}".strip()


def differences(runs: list[RecordedRun]) -> list[tuple[str, ...]]:
    """Returns (option, its value in each run) of all options that differ between runs, then the same of what
    the runs say of their machines. A run that does not have an option has "" there. Of a rule in a file, the
    hash says which version it was."""
    def without(options: dict[str, Any], *names: str) -> dict[str, Any]:
        return {name: value[:8] if name.startswith("sha256_of_") else value for name, value in options.items()
                if name not in names and not name.startswith("defaults_of_")}

    configs = [without(run.config, "name", "runs", "run", "resume", "overwrite", "plan") for run in runs]
    machines = [without(run.start, "kind", "step", "config", "data", *run.config) for run in runs]
    rows = []
    for values_of in (configs, machines):
        for key in dict.fromkeys(key for values in values_of for key in values):
            texts = tuple(text(values.get(key, "")) for values in values_of)
            if len(set(texts)) > 1:
                rows.append((key, *texts))
    return rows


# ---------------------------------------------------------------------------------------------------------
# What is kept of a run: a row of results.csv, a thinned loss curve, and quantiles of effective learning rates

COLUMNS = ("run", "config", "setting", "optimizer", "lr", "seed", "changed", "beta1", "beta2", "eps",
           "weight_decay", "warmup", "batch", "context", "steps", "rest_lr", "hidden", "status", "loss",
           "bits_per_byte", "device", "precision", "threads", "tokens_per_second", "torch", "command")
QUANTILES = ("q0", "q5", "q25", "q50", "q75", "q95", "q100")
EFFECTIVE_COLUMNS = ("run", "step", "role", *QUANTILES)
POINTS = 40    # of a thinned curve


def row_of(run: RecordedRun) -> dict[str, str]:
    """Returns a run's row of results.csv."""
    config, status = run.config, run.status
    config_file = Path(config["config"])
    speeds = [row["tokens_per_second"] for row in run.training_rows()]
    is_done = status["status"] == "done"
    bits_per_byte = status["bits_per_byte"] * run.final_loss / status["loss"] if is_done else None
    row = {column: "" if config.get(column) is None else text(config[column]) for column in COLUMNS}
    row |= {column: text(run.start[column]) for column in ("hidden", "device", "threads", "torch")}
    return row | {
        "run": run.name,
        "optimizer": optimizer_of(config),
        "config": config_file.name if config_file.is_absolute() else config["config"],
        "setting": setting_of(run),
        "changed": assignments(changed_options(config)[1]),
        "status": status["status"],
        "loss": f"{run.final_loss:.5f}" if is_done else "",
        "bits_per_byte": f"{bits_per_byte:.5f}" if is_done else "",
        "tokens_per_second": f"{np.median(speeds):.0f}" if speeds else "",
        "command": command_of(run)}


def command_of(run: RecordedRun) -> str:
    """Returns the command that runs a run again."""
    config = run.config
    setting, changed = changed_options(config)
    options = {"config": config["config"], "optimizer": config["optimizer"], "lr": text(config["lr"]),
               **setting, **changed, "seed": text(config["seed"])}
    if config["steps"] != usual(config["config"], config["optimizer"], config["rest"])["steps"]:
        options["steps"] = text(config["steps"])
    if config["log_blocks"]:
        options["log_blocks"] = "true"
    options |= {"name": run.name, "sample_tokens": "0"}
    words = [f"--{option}={shlex.quote(value)}" for option, value in options.items()
             if not option.startswith(("sha256_of_", "defaults_of_"))]
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


def rows_below(folder: Path) -> list[dict[str, str]]:
    """Returns the rows of all files results.csv in a folder and in the folders within it."""
    return [row for path in sorted(folder.glob("**/results.csv")) for row in read_csv(path)]


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
    """Returns why a run cannot be kept in the results, or "" if it can."""
    if run.name.isdigit():
        return "is left out: another machine gives this number to another run; give runs a --name"
    if run.status["status"] not in ("done", "diverged"):
        return f"is {run.status['status']}, so it is not in the results yet"
    return ""


def says_what_it_is(run: RecordedRun) -> bool:
    """Returns whether the name of a run has its config and all options that differ from the usual ones, as
    sweep.sh gives names."""
    config, *named = run.name.split(",")
    setting, changed = changed_options(run.config)
    options = {assignment.partition("=")[0] for assignment in named}
    is_complete = options >= setting.keys() | changed.keys()
    return bool(named) and config == Path(run.config["config"]).stem and is_complete


def merge(runs: list[RecordedRun], folder: Path, base: str = "") -> None:
    """Adds runs to the files in a folder. A run replaces what is there under its name, and all else stays.

    Args:
        folder: the results folder.
        base: if it is given, only runs of the study's sweeps are added. They are named as sweep.sh names
            them, and their setting is `base` or one of those beside it that the claims are about.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = {row["run"]: row for row in read_csv(folder / "results.csv")}
    curves = read_curves(folder)
    effective: dict[str, list[dict[str, str]]] = {}
    for row in read_csv(folder / "effective_lr.csv"):
        effective.setdefault(row["run"], []).append(row)

    new: dict[str, RecordedRun] = {}
    for run in runs:
        if reason := reason_to_skip(run):
            print(f"note: {run.path} {reason}")
        elif new.setdefault(run.name, run) is not run:
            print(f"note: {run.path} is left out: {new[run.name].path} has its name")
    rows_of_new = {name: row_of(run) for name, run in new.items()}
    if base:
        settings = Study(list(map(parsed, (rows | rows_of_new).values())), [], base).settings_of_claims()
        of_sweeps = {name for name, run in new.items()
                     if says_what_it_is(run) and rows_of_new[name]["setting"] in settings}
        if others := sorted(new.keys() - of_sweeps):
            print(one_line(f"note: {len(others)} runs are left out, because they are of no sweep of {base}; "
                           f"--match=PATTERN adds runs by name: {' '.join(others)}"))
        new = {name: new[name] for name in of_sweeps}
    for name, run in new.items():
        rows[name], curves[name], effective[name] = rows_of_new[name], curve_of(run), effective_of(run)

    write_csv(folder / "results.csv", COLUMNS, [rows[name] for name in sorted(rows)])
    write_csv(folder / "effective_lr.csv", EFFECTIVE_COLUMNS,
              [row for name in sorted(effective) for row in effective[name]])
    with whole_file(folder / "curves.jsonl") as file:
        file.write(b"".join(to_json(curves[name]) for name in sorted(curves)))


def number(value: str) -> float | str | None:
    """Returns a text as a number if it is one, and "" as None."""
    try:
        return float(value)
    except ValueError:
        return value or None


WORDS = ("run", "config", "setting", "optimizer", "changed", "status", "device", "precision", "torch",
         "command")    # the columns that hold no numbers


def parsed(texts: dict[str, str]) -> dict[str, Any]:
    """Returns a row of results.csv as Study takes it: with numbers, with {option: value} of what is changed,
    and with an infinite loss if the run diverged."""
    row = {column: value if column in WORDS else number(value) for column, value in texts.items()}
    pairs = (assignment.partition("=") for assignment in shlex.split(texts["changed"]))
    loss = np.inf if row["status"] == "diverged" else row["loss"]
    return row | {"changed": {option: number(value) for option, _, value in pairs}, "loss": loss}


def read_study(folder: Path, base: str, auditions: Path | None = None) -> Study:
    """Returns the content of the files in a folder.

    Args:
        folder: the results folder.
        base: the setting that the claims are about.
        auditions: a folder with rows of auditions, which the league counts as well.
    """
    of_auditions = rows_below(auditions) if auditions else []
    rows = list(map(parsed, read_csv(folder / "results.csv") + of_auditions))
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
