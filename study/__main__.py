"""
From finished runs to tables, figures and verdicts on the paper's claims.

    python -m study                                adds the study's runs to study/results/ and draws all of it
    python -m study --match='nano*' --out=x.png    prints a table and draws a picture of these runs alone
    python -m study 0001 0002                      prints what differs between runs, and draws them together
    python -m study --runs=ann,ben --out=x.png     takes the runs of several folders
    python -m study look 0001 0002                 draws what the steps of runs did, side by side
    python -m study audition RULE                  finds out whether an optimizer is better than AdamW
    python FOLDER/study                            the same from another folder; FOLDER is this project's

Without --out and without --match, only runs of sweeps enter the results: those that sweep.sh names, at the
study's setting or at a variant of it. --match=PATTERN takes the runs of these names, whatever they are.

study/results/  results.csv          a row for each ended run, with the command that runs it again
                curves.jsonl, effective_lr.csv    what figures need beside the rows
                rules.json           what bench.py --only=rules measured, for the league; optional
                table.md, league.md, claims.md, *.png    made from these files alone, with or without runs

The rows of runs whose folders are gone stay in the results.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))    # `python FOLDER/study` works from any other folder

from trainer import script

if __name__ == "__main__":
    script.begin("study")

import itertools
import json
from dataclasses import dataclass

from study import audition
from study.claims import report
from study.figures import all_figures, draw_study
from study.league import Times, league, places_of
from study.look import draw_look
from study.tables import (
    RecordedRun,
    as_table,
    by_name_and_lr,
    differences,
    mean_loss,
    merge,
    read_curves,
    read_run,
    read_runs,
    read_study,
    sd,
    table,
    variant_of,
)
from trainer.errors import UserError, nearest, one_line
from trainer.measure import draw_runs
from trainer.options import load, option
from trainer.runs import whole_file
from trainer.settings import TABLES
from zoo import RULES


@dataclass
class Options:
    """The options of `python -m study`."""
    runs: str = option("runs", None, "folder of runs; or several, joined by commas")
    match: str = option("", None, "pattern of the names of the runs to take; default: all, of which only "
                                  "those of the study's sweeps enter the results")
    results: str = option("study/results", None, "folder that keeps the results of the runs")
    auditions: str = option("study/auditions", None, "folder with rows of auditions, for the league alone")
    setting: str = option("study", None, "name of the config that claims and figures are about")
    out: str = option("", None, "draw only this picture, and leave the results alone; default for runs "
                                "that are named: overlay.png or look.png")


def everything(runs: list[RecordedRun], options: Options) -> None:
    """Adds runs to the results folder, and makes tables, figures and verdicts of all that is in it.

    Raises:
        UserError: there are no runs and no results, or no run has the name that was asked for.
    """
    folder = Path(options.results)
    if not runs and not (folder / "results.csv").exists():
        raise UserError(f"--runs={options.runs}, --results={folder}: hold no runs and no results")
    have_runs = any(Path(name).is_dir() for name in options.runs.split(","))    # rows outlive their folders
    if options.match and have_runs and not runs:
        raise UserError(f"--match={options.match}: --runs={options.runs} holds no run of that name")
    merge(runs, folder, base="" if options.match else options.setting)
    study = read_study(folder, options.setting)
    (folder / "table.md").write_text(table(study))
    places = places_of(read_study(folder, options.setting, Path(options.auditions)), RULES)
    (folder / "league.md").write_text(league(places, RULES, read_times(folder / "rules.json")))
    missing = all_figures(study, read_curves(folder), RULES, places, folder)
    verdicts = report([study, *study.other_bases()])
    (folder / "claims.md").write_text(verdicts)
    print(verdicts)
    for name, sweeps in missing.items():
        more = "more" if (folder / name).exists() else "drawn"
        print(f"{name}: {more} with\n  " + "\n  ".join(sweeps))
    files = "results.csv, table.md, league.md, claims.md, *.png"
    print(f"{len(study.rows)} runs; everything is in {folder}: {files}")


def read_times(path: Path) -> Times:
    """Returns what bench.py --only=rules measured; nothing if there is no file."""
    rows = json.loads(path.read_text())["rules"] if path.exists() else []
    of_step = {row["step of"]: row["mean, ms"] for row in rows}
    return Times(of_step, of_step.pop("forward and backward", None))


def one_picture(runs: list[RecordedRun], options: Options) -> None:
    """Prints a table and draws a picture of these runs alone.

    Raises:
        UserError: none of the runs is finished, or their losses do not compare.
    """
    finished = [run for run in runs if run.status["status"] == "done"]
    if not finished:
        raise UserError(f"--runs={options.runs}: holds no finished run that matches {options.match or '*'}")
    sources = sorted({f"{Path(run.config['config']).stem} on {Path(run.config['data']).name} "
                      f"({run.start['data']:.8})" for run in finished})
    if len(sources) > 1:
        raise UserError(f"--match={options.match or '*'}: takes runs of several configs or data, which "
                        f"do not compare: {'; '.join(sources)}")
    runs_of = by_name_and_lr(finished)
    rows: list[tuple] = []
    for name, lrs in runs_of.items():
        for lr, group in lrs.items():
            losses = [run.final_loss for run in group]
            rows.append((name, f"{lr:g}", f"{mean_loss(group):.3f}", sd(losses), len(group)))
    for run in runs:
        if run.status["status"] != "done":
            what_happened = f"{run.status['status']}, seed {run.config['seed']}"
            rows.append((variant_of(run), f"{run.config['lr']:g}", what_happened, "", ""))
    print(as_table(("optimizer", "peak lr", "final validation loss", "sd", "n"), rows), end="")
    draw_study(runs_of, Path(options.out))
    print(f"wrote {options.out}")


def overlay(names: list[str], options: Options) -> None:
    """Prints what differs between two runs or more, and draws them into one picture.

    Raises:
        UserError: there is no such run, or it is not the only one of its name.
    """
    if len(names) < 2:
        raise UserError(f"{names[0]}: give the names of two runs or more; or give options, as --key=value")
    names, runs = find_runs(names, options.runs)
    rows = differences(runs) or [("no setting differs", *[""] * len(runs))]
    rows.append(("status", *(run.status["status"] for run in runs)))
    rows.append(("final validation loss", *(
        f"{run.final_loss:.4f}" if run.status["status"] == "done" else "" for run in runs)))
    print(as_table(("", *names), rows), end="")
    out = Path(options.out or "overlay.png")
    with whole_file(out) as file:
        draw_runs({name: run.metrics for name, run in zip(names, runs)}, file, "", out.suffix[1:])
    print(f"wrote {out}")


def look(names: list[str], options: Options) -> None:
    """Draws what the steps of runs did, from what --log_blocks logged.

    Raises:
        UserError: there is no such run, or it did not log this.
    """
    if not names:
        raise UserError("look: give the name of a run, or the names of several to see them side by side")
    out = Path(options.out or "look.png")
    draw_look(dict(zip(*find_runs(names, options.runs))), out)
    print(f"wrote {out}")


def find_runs(names: list[str], folders: str) -> tuple[list[str], list[RecordedRun]]:
    """Returns what to call runs, and the runs. If two have the same name, all are called by their paths."""
    runs = [find_run(name, folders) for name in names]
    are_unique = len({run.name for run in runs}) == len(runs)
    return [run.name if are_unique else str(run.path) for run in runs], runs


def find_run(name: str, folders: str) -> RecordedRun:
    """Returns the run of a name in these folders, or the run whose folder has this path.

    Raises:
        UserError: there is none, or several folders have one.
    """
    places = [Path(folder) / name for folder in folders.split(",")] + [Path(name)]
    found = [path for path in dict.fromkeys(places) if (path / "metrics.jsonl").exists()]
    if len(found) > 1:
        raise UserError(f"{name}: is in several folders; name one of {', '.join(map(str, found))}")
    if not found:
        known = [path.name for folder in folders.split(",") for path in Path(folder).glob("*")]
        raise UserError(f"{name}: no such run in --runs={folders}{nearest(name, known)}")
    try:
        return read_run(found[0])
    except UserError as error:
        raise UserError(f"{found[0]}: {error}") from None


def read_options(argv: list[str]) -> tuple[list[str], Options]:
    """Returns the names of runs, which stand first on the command line, and the options.

    Raises:
        UserError: an option is wrong, or no picture can be written to --out.
    """
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    options = load(Options, argv[len(names):], __doc__, program="python -m study")[0]
    if names and options.match:
        raise UserError("--match: chooses among all runs, so leave it out beside names of runs")
    out = Path(options.out or "overlay.png")
    if out.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out={out}: must end with .png, .pdf or .svg")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}")
    return names, options


def run_audition(argv: list[str]) -> int:
    """Runs an audition. The words before the options are a rule and its options. Returns the exit code.

    Raises:
        UserError: an option is wrong.
    """
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    options = audition_options(argv[len(words):])
    if not words:
        raise UserError("audition: give a rule, such as muon or mine.py")
    return audition.audition(words, options)


def audition_options(argv: list[str]) -> audition.Options:
    """Returns the options of an audition. Raises UserError if one is wrong."""
    return load(audition.Options, argv, audition.__doc__,
                program="python -m study audition RULE [key=value ...]",
                extra_tables=("model", "data", "train", *TABLES))[0]


def main(argv: list[str]) -> int:
    """Runs the command. Returns its exit code: 0, or 2 if an option or a file is wrong.

    Raises:
        OSError: a file cannot be written.
    """
    try:
        if argv[:1] == ["audition"]:
            return run_audition(argv[1:])
        names, options = read_options(argv)
        if names[:1] == ["look"]:    # a run of this name can be named by its path
            look(names[1:], options)
        elif names:
            overlay(names, options)
        elif options.out:
            one_picture(read_runs(options.runs, options.match or "*"), options)
        else:
            everything(read_runs(options.runs, options.match or "*"), options)
    except UserError as error:
        print(f"study: error: {one_line(error)}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    script.run("study", main)
