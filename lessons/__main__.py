"""
Lessons: pictures of what update rules do with the tables behind them, and a grader.

    python -m lessons ravine                           trains on a toy and draws it, in seconds
    python -m lessons zipf signum,adamw,adalayer       these rules, also those of zoo/
    python -m lessons spike adamw,adamw+adagc          a rule with a modifier
    python -m lessons ravine adamw --lr=1              the path at another learning rate
    python -m lessons step signum,adamw,muon           one update of a matrix by each rule
    python -m lessons workers                          three workers that send each other few bits
    python -m lessons check FILE ...                   judges an exercise, or a new update rule of your own
    python -m lessons atlas                            writes docs/rules/ and docs/atlas.html, for all rules
    python FOLDER/lessons ravine                       from another folder; FOLDER is this project's
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))    # `python FOLDER/lessons` works from any other folder

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from lessons import atlas, check, pictures, toys, workers
from study.tables import as_table
from trainer.errors import UserError, one_line
from trainer.options import load, option


@dataclass
class Options:
    """The options of a picture."""
    lr: str = option("", None, "learning rate to look at: one for all rules, or as many as there are rules, "
                               "separated by commas; default: the best of each")
    out: str = option("", None, "the picture's file; default: the lesson's name and .png")
    seed: int = option(0, None, "of the problem and of its noise", low=0)
    projector: bool = option(False, None, "draw with large type")


def read(command: str, usual_rules: str, argv: list[str]) -> tuple[list[str], Options]:
    """Returns (rules, options). Raises UserError for a rule or a file that cannot be."""
    torch.set_num_threads(1)    # the problems are so small that a second thread only waits
    names = argv.pop(0) if argv and not argv[0].startswith("-") else usual_rules
    options = load(Options, argv, __doc__, program=f"python -m lessons {command}")[0]
    options.out = options.out or f"{command}.png"
    path = Path(options.out)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out={path}: must end with .png, .pdf or .svg")
    if not path.parent.is_dir():
        raise UserError(f"--out={path}: there is no folder {path.parent}")
    rules = list(dict.fromkeys(names.split(",")))
    for rule in rules:
        toys.find(rule)
    return rules, options


def read_lrs(text: str, rules: list[str]) -> list[float] | None:
    """Returns a learning rate for each rule, or None if the text is empty. Raises UserError."""
    if not text:
        return None
    try:
        lrs = [float(part) for part in text.split(",")]
    except ValueError:
        lrs = []
    if len(lrs) not in (1, len(rules)) or not all(0 < lr < float("inf") for lr in lrs):
        raise UserError(f"--lr={text}: must be one number above 0, or one for each of the {len(rules)} rules")
    return lrs * len(rules) if len(lrs) == 1 else lrs


def show(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def show_toy(name: str, argv: list[str]) -> None:
    """Trains on a toy. Prints the table and draws the picture."""
    rules, options = read(name, toys.TOYS[name].rules, argv)
    records = toys.play(name, rules, read_lrs(options.lr, rules), options.seed)
    rows = [dict(optimizer=record["rule"], problem=record["variant"], lr=record["lr"], loss=record["loss"])
            | record["cells"] for record in records]
    finish(options, rows, partial(pictures.draw, name, records, options.out, options.seed, options.projector))


def show_step(argv: list[str]) -> None:
    """Draws one update of a matrix by each rule."""
    rules, options = read("step", "sgd_ema,signum,adamw,adafactor,muon", argv)
    if options.lr:
        raise UserError("--lr: an update does not depend on it; leave it out")
    records = toys.one_step(rules, options.seed)
    rows = [dict(optimizer=record["rule"] or "(mean gradient)") | record["cells"] for record in records]
    finish(options, rows, partial(pictures.draw_step, records, options.out, options.projector))


def finish(options: Options, rows: list[dict], draw: Callable[[], None]) -> None:
    columns = tuple(dict.fromkeys(column for row in rows for column in row))
    print(as_table(columns, [tuple(show(row.get(column, "")) for column in columns) for row in rows]), end="")
    draw()
    print(f"wrote {options.out}")


# {name: function of the other words, which returns the exit code if that is not 0}
COMMANDS = {name: partial(show_toy, name) for name in toys.TOYS} | {
    "step": show_step, "workers": workers.main, "check": check.main, "atlas": atlas.main}


def main(argv: list[str]) -> int:
    """Runs a command line. Returns 0, 2 if an option or a file is wrong, or 4 if nothing can be written."""
    if not argv or argv[0] in ("-h", "--help"):
        ideas = "\n".join(f"    {name:8s} {one.idea}" for name, one in toys.TOYS.items())
        print(f"{__doc__.strip()}\n\nThe toys:\n{ideas}\n\n`python -m lessons TOY --help` lists the options.")
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"{argv[0]!r}: no such lesson; there are {', '.join(COMMANDS)}")
        return COMMANDS[argv[0]](argv[1:]) or 0
    except UserError as error:
        print(f"lessons: error: {one_line(error)}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
