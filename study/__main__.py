"""
From finished runs to tables, figures and verdicts on the paper's claims.

    python -m study                                 adds runs/ to study/results/ and draws all that it allows
    python -m study --runs=runs --out=nano.png      prints a table and draws a picture of these runs alone

study/results/  results.csv          a row for each ended run, with the command that runs it again
                curves.jsonl, effective_lr.csv    what figures need beside the rows
                rules.json           what bench.py --only=rules measured, for the league; optional
                table.md, league.md, claims.md, *.png    made from these files alone, with or without runs

The rows of runs whose folders are gone stay in the results.
"""
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from study.claims import report
from study.figures import all_figures, draw_study
from study.tables import (
    RecordedRun,
    as_table,
    by_name_and_lr,
    league,
    mean_loss,
    merge,
    read_curves,
    read_runs,
    read_study,
    sd,
    table,
    text,
    variant_of,
)
from trainer.errors import UserError, one_line
from trainer.options import load, option
from zoo import RULES


@dataclass
class Options:
    """The options of `python -m study`."""
    runs: str = option("runs", None, "folder of runs")
    match: str = option("*", None, "pattern of the names of the runs to take")
    results: str = option("study/results", None, "folder of what is kept of them")
    setting: str = option("study", None, "name of the config that claims and figures are about")
    out: str = option("", None, "only this picture, of these runs")


def everything(runs: list[RecordedRun], options: Options) -> None:
    """Adds runs to the results folder, and makes tables, figures and verdicts of all that is in it.

    Raises:
        UserError: there are no runs and no results.
    """
    folder = Path(options.results)
    if not runs and not (folder / "results.csv").exists():
        raise UserError(f"--runs={options.runs}, --results={folder}: hold no runs and no results")
    merge(runs, folder)
    study = read_study(folder, options.setting)
    (folder / "table.md").write_text(table(study))
    (folder / "league.md").write_text(league(study, RULES, read_milliseconds(folder / "rules.json")))
    missing = all_figures(study, read_curves(folder), RULES, folder)
    verdicts = report(study)
    (folder / "claims.md").write_text(verdicts)
    print(verdicts)
    for name, sweeps in missing.items():
        more = "more" if (folder / name).exists() else "drawn"
        print(f"{name}: {more} with\n  " + "\n  ".join(sweeps))
    print(f"{len(study.rows)} runs; everything is in {folder}: results.csv, table.md, claims.md, *.png")


def read_milliseconds(path: Path) -> dict[str, str]:
    """Returns {rule: mean milliseconds of its step}, as bench.py measured them; {} if there is no file."""
    rows = json.loads(path.read_text())["rules"] if path.exists() else []
    return {row["step of"]: f"{row['mean, ms']:.1f}" for row in rows}


def one_picture(runs: list[RecordedRun], options: Options) -> None:
    """Prints a table and draws a picture of these runs alone.

    Raises:
        UserError: none of the runs is finished, or they are of several settings.
    """
    finished = [run for run in runs if run.status["status"] == "done"]
    if not finished:
        raise UserError(f"--runs={options.runs}: holds no finished run that matches {options.match}")
    settings = {" ".join(f"{name}={text(run.config[name])}" for name in ("config", "width", "steps"))
                for run in finished}
    if len(settings) > 1:
        raise UserError(f"--match={options.match}: takes runs of several settings, too many for one picture: "
                        f"{'; '.join(sorted(settings))}")
    runs_of = by_name_and_lr(finished)
    rows: list[tuple] = []
    for name, lrs in runs_of.items():
        for lr, group in lrs.items():
            losses = [run.status["loss"] for run in group]
            rows.append((name, f"{lr:g}", f"{mean_loss(group):.3f}", sd(losses), len(group)))
    for run in runs:
        if run.status["status"] != "done":
            what_happened = f"{run.status['status']}, seed {run.config['seed']}"
            rows.append((variant_of(run), f"{run.config['lr']:g}", what_happened, "", ""))
    print(as_table(("optimizer", "peak lr", "final validation loss", "sd", "n"), rows), end="")
    draw_study(runs_of, options.out)
    print(f"wrote {options.out}")


def main(argv: list[str]) -> int:
    """Runs the command. Returns its exit code: 0, or 2 if an option or a file is wrong."""
    try:
        options = load(Options, argv, __doc__)[0]
        runs = read_runs(options.runs, options.match)
        if options.out:
            one_picture(runs, options)
        else:
            everything(runs, options)
    except UserError as error:
        print(f"study: error: {one_line(error)}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
