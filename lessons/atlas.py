"""
The atlas: a page for each update rule in docs/rules/, and docs/atlas.html, which compares up to four of them.

    python -m lessons atlas           trains all rules on all toys, in ten minutes, and writes everything
    python -m lessons atlas --keep    keeps the runs of docs/atlas.html; enough after a change of words or code

docs/atlas.html holds the runs, and all pages are made of them. What the pages say comes from the docstrings
and the code of the rules, from the study's results, and from lessons/atlas.toml.
"""
import ast
import contextlib
import difflib
import functools
import inspect
import io
import json
import math
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import zoo
import zoo.__main__
from lessons import pictures, toys
from study.figures import NAMES
from study.tables import as_table, read_study
from trainer.errors import UserError
from trainer.measure import blank_figure
from trainer.options import load, option
from trainer.runs import whole_file
from trainer.settings import defaults
from zoo.table import STAR, bytes_per_weight, read_docstring

ROOT = Path(__file__).parent.parent
TEMPLATE, WORDS = Path(__file__).parent / "atlas.template.html", Path(__file__).parent / "atlas.toml"
HTML, PAGES = ROOT / "docs/atlas.html", ROOT / "docs/rules"

# The tree of descent. A rule's parent is the rule from which one gets to it with the fewest changes.
TREE = {
    "sgd": None,
    "sgd_ema": "sgd",
    "signum": "sgd_ema", "lion": "signum", "sophia": "signum",
    "adamw": "sgd_ema",
    "adafactor": "adamw", "came": "adafactor",
    "adalayer": "adamw", "adalayer_star": "adalayer", "adam_mini": "adalayer", "adasgd": "adalayer",
    "laprop": "adamw", "adopt": "adamw", "radam": "adamw", "adabelief": "adamw", "ademamix": "adamw",
    "mars": "adamw",
    "apollo": "adamw", "apollo_mini": "apollo",
    "soap": "adamw",
    "muon": "sgd_ema", "normuon": "muon", "scion": "muon",
}


# ---------------------------------------------------------------------------------------------------------
# Runs, as few numbers as a picture needs

class Panel(NamedTuple):
    """One picture of a toy, for one learning rate of each rule.

    Attributes:
        title, xlabel, ylabel: its texts.
        log: its logarithmic axes: "", "x", "y" or "xy".
        xlim, ylim: its window.
        x: the x of all lines, or None if each line has its own.
        lines: a function of the records of all variants. It returns lines: lists of y, or pairs (x, y).
        contours: lines of equal loss, as pairs (x, y).
    """
    title: str
    xlabel: str
    ylabel: str
    log: str
    xlim: tuple[float, float]
    ylim: tuple[float, float]
    x: list[float] | None
    lines: Callable[[list[dict]], list]
    contours: list = []


def path_panel(toy: str, number: int, surface: Callable, window: tuple[float, float]) -> Panel:
    """The path of two weights over lines of equal loss."""
    variant = toys.TOYS[toy].variants[number]
    x, y = torch.meshgrid(torch.linspace(*window, 60), torch.linspace(*window, 60), indexing="xy")
    drawn = blank_figure(1, 1).subplots().contour(x, y, surface(variant, x, y), levels=np.logspace(-2, 2, 9))
    contours = [packed(line.T) for lines in drawn.allsegs for line in lines if len(line)]
    return Panel(f"{toy}, {variant}", "first weight", "second weight", "", window, window, None,
                 lambda records: [list(zip(*records[number]["path"][::len(records[number]["path"]) // 40 or 1]))],
                 contours)


def ranks_panel(number: int) -> Panel:
    variant = toys.TOYS["zipf"].variants[number]
    classes = int(variant.partition(" ")[0].replace(",", ""))
    return Panel(f"zipf, {variant}", "rank of the class", "loss of the class", "x", (1, classes), (-0.3, 8),
                 packed(pictures.means_by_rank([0] * classes)[0]),
                 lambda records: [pictures.means_by_rank(records[number]["by_rank"])[1]]
                 if "by_rank" in records[number] else [])


EVERY_SECOND = list(range(0, 61, 2))
AROUND_SPIKE = sorted({*range(0, 401, 5), *range(toys.SPIKE - 1, toys.SPIKE + 5)})


def at(steps: list[int], values: list) -> list:
    """Returns the values at some steps, as far as the run went."""
    return [values[step] for step in steps if step < len(values)]


def layer_panel(number: int, title: str) -> Panel:
    return Panel(title, "step", "error / error at the start", "y", (0, 60), (1e-5, 3), EVERY_SECOND,
                 lambda records: [[errors[number] for errors in at(EVERY_SECOND, records[0]["path"])]])


def matrix_panel(number: int) -> Panel:
    return Panel(f"{toys.TOYS['matrix'].variants[number]} matrix: largest, middle, least singular value", "step",
                 "singular value", "", (0, 60), (0, 1.75), EVERY_SECOND, lambda records: [
                     [values[i] for values in at(EVERY_SECOND, records[number]["path"])] for i in (0, 8, -1)])


def distances(records: list[dict]) -> list:
    return [[math.sqrt(loss) for loss in at(AROUND_SPIKE, records[1]["losses"])]]


def times_farther(records: list[dict]) -> list:
    calm, spike = (at(AROUND_SPIKE, record["losses"]) for record in records)
    return [[math.sqrt(b / max(a, 1e-30)) for a, b in zip(calm, spike)]]


@functools.cache
def panels() -> dict[str, list[Panel]]:
    """Returns {toy: its panels}."""
    return {
        "ravine": [path_panel("ravine", i, toys.ravine_loss, (-0.75, 1.15)) for i in range(2)],
        "zipf": [ranks_panel(i) for i in range(2)],
        "layers": [layer_panel(0, "first layer"), layer_panel(1, "second layer: gradients / 1,000")],
        "spike": [Panel("spike", "step", "distance from the minimum", "y", (0, 400), (1e-3, 1e3), AROUND_SPIKE,
                        distances),
                  Panel("how many times farther than without the spike", "step", "times farther", "y",
                        (0, 400), (0.5, 1e4), AROUND_SPIKE, times_farther)],
        "matrix": [matrix_panel(i) for i in range(3)],
        "valley": [path_panel("valley", i, toys.valley_loss, (-1.5, 2.0)) for i in range(2)],
    }


POSITIONS = (-2, -1, 0, 1, 2)    # of the slider, in half decades from the best learning rate


def packed(values: object) -> object:
    """Returns nested numbers with three digits. What is not finite becomes None."""
    if isinstance(values, (list, tuple, np.ndarray)):
        return [packed(value) for value in values]
    return float(f"{values:.3g}") if math.isfinite(values) else None


def runs_on(toy: str, rule: str) -> dict:
    """Trains a rule on all variants of a toy at all learning rates that the rule for all toys asks for.

    Returns:
        {"curves": for each variant [[lr, final loss], ...], "best": for each variant the best lr, "panels":
        for each position of the slider the lines of each panel}.
    """
    kind, runs, best = toys.TOYS[toy], [], []
    for variant in kind.variants:
        def run(lr):
            return toys.train(rule, kind.make(variant, 0), lr, kind.steps)

        if kind.follow and runs:
            runs.append({lr: run(lr) for lr in runs[0]})
            best.append(best[0])
        else:
            runs.append(toys.search(run, toys.USUAL * zoo.RULES[rule].lr_factor))
            best.append(min(runs[-1], key=lambda lr: runs[-1][lr]["loss"]))
    shown = [[some[toys.half_decade(round(2 * math.log10(lr)) + k)] for some, lr in zip(runs, best)]
             for k in POSITIONS]
    return {"curves": packed([[(lr, some[lr]["loss"]) for lr in some] for some in runs]), "best": best,
            "panels": packed([[panel.lines(records) for panel in panels()[toy]] for records in shown])}


def all_runs() -> dict[str, dict]:
    """Returns {"toy rule": runs_on() of them}, of all rules that can train on toys."""
    found = {}
    for toy, kind in toys.TOYS.items():
        for rule in zoo.RULES:
            with contextlib.suppress(UserError):    # sophia, which needs labels
                toys.build(rule, kind.make(kind.variants[0], 0), 1.0, kind.steps)
                found[f"{toy} {rule}"] = runs_on(toy, rule)
        print(f"trained on {toy}", flush=True)
    return found


# ---------------------------------------------------------------------------------------------------------
# What there is to say about a rule

def source_of(function: Callable) -> str:
    """Returns the code of a function without its docstring."""
    source = textwrap.dedent(inspect.getsource(function))
    lines, body = source.splitlines(), ast.parse(source).body[0].body
    if isinstance(body[0], ast.Expr):
        del lines[body[0].lineno - 1:body[0].end_lineno]
    return "\n".join(lines)


def line_of(name: str, rule: zoo.ZooRule) -> str:
    """Returns the rule's line of the table RULES in its file, as an assignment."""
    tree = ast.parse(inspect.getsource(sys.modules[rule.function.__module__]))
    table = next(node.value for node in tree.body if ast.unparse(node).startswith("RULES = "))
    line = next(value for key, value in zip(table.keys, table.values) if key.value == name)
    return "\n    ".join(textwrap.wrap(f'RULES["{name}"] = {ast.unparse(line)}'.replace("'", '"'), 100))


def called_by(rule: zoo.ZooRule) -> list[Callable]:
    """Returns the functions of optim.py and zoo/ that a rule needs: its refresh, what makes its state, and
    what these and the rule call."""
    found = [rule.function, *filter(None, [rule.refresh])]
    for function in found:    # the list grows while it is read
        names = [node.id for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function))))
                 if isinstance(node, ast.Name)]
        for called in (function.__globals__.get(name) for name in names):
            if inspect.isfunction(called) and called not in found and called.__module__ != "torch":
                found.append(called)
    return found[1:]


def parts_of(doc: str) -> tuple[str, dict[str, str]]:
    """Returns (formula, {"Remembers": text, ...}) of a rule's docstring."""
    formula, rest = re.split(r"\n\n(?=Remembers )", doc.split("\n    ", 1)[1], maxsplit=1)
    parts = re.findall(r"^(\w+) +(.+(?:\n .*)*)", rest, re.M)
    return re.sub("^    ", "", formula, flags=re.M), {key: re.sub(r"\s+", " ", text) for key, text in parts}


@functools.cache
def study_results() -> dict[str, dict]:
    """Returns {rule: {"curve": [lr, mean loss, spread, n] by lr, "best": that of the best lr, "place": its
    place among all rules}}."""
    study, found = read_study(ROOT / "study/results", "study"), {}
    for name in zoo.RULES:
        curve = [[lr, round(float(np.mean(losses)), 3),
                  round(float(np.std(losses, ddof=1)), 3) if len(losses) > 1 else None, len(losses)]
                 for lr, losses in study.curve(name).items()]
        best_lr = study.lowest(name).value
        found[name] = dict(curve=packed_curve(curve), best=next(row for row in curve if row[0] == best_lr))
    order = sorted(found, key=lambda name: found[name]["best"][1])
    return {name: found[name] | dict(place=order.index(name) + 1) for name in found}


def packed_curve(curve: list) -> list:
    """A run that diverged has an infinite loss, for which JSON has no number."""
    return [[value if value is None or math.isfinite(value) else None for value in row] for row in curve]


@functools.cache
def facts_of(name: str) -> dict:
    """Returns all that is known of a rule without training it. Raises UserError if somebody must say more."""
    rule, words = zoo.RULES[name], tomllib.loads(WORDS.read_text())
    if name not in TREE or name not in words:
        raise UserError(f"{name}: put its parent into TREE in lessons/atlas.py, and its traps and when to take it "
                        "into lessons/atlas.toml")
    idea = STAR if name == "adalayer_star" else read_docstring(rule.function)[0]
    formula, parts = parts_of(inspect.getdoc(rule.function))
    source = parts.pop("Source")
    label = NAMES.get(name) or re.match(r"[\w-]+", idea)[0]
    return dict(label=label[0].upper() + label[1:], parent=TREE[name], idea=idea, formula=formula,
                code=f"{source_of(rule.function)}\n\n{line_of(name, rule)}", parts=parts, source=source,
                file=Path(inspect.getfile(rule.function)).relative_to(ROOT).as_posix(),
                bytes=round(bytes_per_weight(rule), 2),
                lr=defaults(str(ROOT / "configs/nano.toml"), name)["lr"], study=study_results()[name],
                **words[name])


def pencil_steps(name: str) -> str:
    """Returns what `python -m zoo NAME` prints below the docstring."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        zoo.__main__.main([name])
    return printed.getvalue().partition("A matrix of 2 x 2")[2].partition("\n")[2].strip("\n")


def loss_text(row: list) -> str:
    """Returns "4.694 ± 0.021 (n = 3)" of a row of study_results()."""
    return f"{row[1]:.3f} ± {row[2]:.3f} (n = {row[3]})" if row[2] is not None else f"{row[1]:.3f} (n = 1)"


# ---------------------------------------------------------------------------------------------------------
# Pages

def link(name: str) -> str:
    return f"[{facts_of(name)['label']}]({name}.md)"


def block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```\n"


def page_of(name: str, runs: dict[str, dict]) -> str:
    """Returns the page of a rule in Markdown."""
    facts = facts_of(name)
    parent, study, parts = facts["parent"], facts["study"], facts["parts"]
    children = [child for child in zoo.RULES if TREE[child] == name]
    relatives = [f"Its parent is {link(parent)}."] if parent else ["It has no parent."]
    relatives += [f"Its children are {', '.join(map(link, children))}."] * bool(children)
    called = "\n\n".join(inspect.getsource(function).rstrip() for function in called_by(zoo.RULES[name]))
    text = [f"# {facts['label']}\n", f"{facts['idea']}\n",
            f"Its name on the command line is `{name}`. {' '.join(relatives)} [All rules](README.md)\n",
            "## Formula\n", block("text", facts["formula"]),
            f"## Code\n\nThis is from [{facts['file']}](../../{facts['file']}), without the docstring.\n",
            block("python", facts["code"])]
    if called:
        text += ["<details><summary>What it calls</summary>\n", block("python", called), "</details>\n"]
    if parent:
        lines = [facts_of(one)["code"].splitlines() for one in (parent, name)]
        changes = [line for line in difflib.unified_diff(*lines, lineterm="", n=99)][3:]
        text += [f"## What differs from {facts_of(parent)['label']}\n", block("diff", "\n".join(changes))]
    text += ["## Three steps with a pencil\n",
             f"`python -m zoo {name}` prints these steps of a matrix of 2 x 2, row by row, and of a single "
             "weight.\n", block("text", pencil_steps(name)),
             "## Memory and learning rate\n",
             f"* The state takes {facts['bytes']:.2f} bytes per weight of a hidden matrix of 1,024 x 1,024.",
             *(f"* **{key}** {value}" for key, value in parts.items()),
             f"* The usual peak lr in [configs/nano.toml](../../configs/nano.toml) is {facts['lr']:.3g}.\n",
             *toys_on_page(name, runs),
             f"## In the study\n\nIts place is {study['place']} of {len(zoo.RULES)}, with a final loss of "
             f"{loss_text(study['best'])} at lr {study['best'][0]:g}. Behind ± stands the standard deviation over "
             "n seeds. The [study](../../study/README.md) is about a small model and 500 steps.\n",
             as_table(("lr", "final loss"), [(f"{row[0]:g}", "diverged" if row[1] is None else loss_text(row))
                                             for row in study["curve"]]),
             "## Traps\n", *(f"* {trap}" for trap in facts["traps"]),
             f"\n## When to take it\n\n{facts['when']}\n", f"## Source\n\n{facts['source']}"]
    return "\n".join(text) + "\n"


def toys_on_page(name: str, runs: dict[str, dict]) -> list[str]:
    """Returns the part of a page that shows a rule on the toys."""
    rows = [(toy, variant, f"{lr:g}", f"{dict(curve)[lr]:.3g}") for toy, kind in toys.TOYS.items()
            if (one := runs.get(f"{toy} {name}"))
            for variant, lr, curve in zip(kind.variants, one["best"], one["curves"])]
    if not rows:
        return ["## On the toys\n", "The toys have no labels that a model could draw, so the rule cannot train on "
                f"them.\n\n![Loss in the study]({name}.svg)\n"]
    return [f"## On the toys\n\n![Paths and curves on the toys, and the loss in the study]({name}.svg)\n",
            "Each line is at the best learning rate of a grid of half decades. Grey is the parent. "
            f"`python -m lessons ravine {name}` draws such a picture with all learning rates.\n",
            as_table(("toy", "problem", "best lr", "final loss"), rows)]


def readme() -> str:
    """Returns docs/rules/README.md: the tree of descent and the list of all rules."""
    def branch(name, depth=0):
        yield f"{'  ' * depth}* {link(name)}"
        for child in (child for child in TREE if TREE[child] == name):
            yield from branch(child, depth + 1)

    rows = [(link(name), facts["idea"], f"{facts['bytes']:.2f}", f"{facts['lr']:.3g}",
             loss_text(facts["study"]["best"])) for name, facts in ((name, facts_of(name)) for name in zoo.RULES)]
    return "\n".join([
        "# All update rules\n", "Each rule has a page with its formula, its code, what differs from its parent, three "
        "steps with a pencil, pictures, and traps. [atlas.html](../atlas.html) compares up to four rules. Open that "
        "file in a browser; it needs no network. `python -m lessons atlas` writes all of this.\n",
        "## The tree of descent\n", "A rule's parent is the rule from which one gets to it with the fewest changes.\n",
        *branch("sgd"), "\n## The list\n", "The usual lr is that of [configs/nano.toml](../../configs/nano.toml). The "
        "loss is that of the [study](../../study/README.md), at the best learning rate: mean ± standard deviation over "
        "n seeds.\n",
        as_table(("rule", "idea", "bytes of state per weight", "usual lr", "loss in the study"), rows)])


SHOWN = (("ravine", 0), ("ravine", 1), ("zipf", 0), ("layers", 1), ("spike", 0), ("matrix", 0), ("valley", 1))


def picture_of(name: str, runs: dict[str, dict]) -> bytes:
    """Draws a rule and its parent on the toys, and the study's losses. Returns an SVG."""
    import matplotlib
    shown = [(toy, i) for toy, i in SHOWN if f"{toy} {name}" in runs]
    pair = [(TREE[name], dict(color="0.6", lw=1.2, ls="--")),
            (name, dict(color=pictures.look_of(name)["color"], lw=1.6))]
    rows = -(-(len(shown) + 1) // 4)
    figure = blank_figure(12 if shown else 5, 2.9 * rows + 0.4)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "atlas", "font.size": 9}):
        grid = figure.subplots(rows, 4 if shown else 1, squeeze=False).flat
        for (toy, i), axes in zip(shown, grid):
            draw_panel(axes, panels()[toy][i], [(runs[f"{toy} {one}"]["panels"][2][i], look) for one, look in pair
                                                if f"{toy} {one}" in runs])
        for one, look in pair[0 if TREE[name] else 1:]:
            curve = facts_of(one)["study"]["curve"]
            lr, loss, spread, _ = zip(*[[np.nan if x is None else x for x in row] for row in curve])
            grid[len(shown)].errorbar(lr, loss, np.nan_to_num(spread), marker=".", label=facts_of(one)["label"],
                                      capsize=3, **look)
        grid[len(shown)].set(xscale="log", title="the study", xlabel="peak learning rate", ylabel="final loss")
        grid[len(shown)].legend()
        for axes in grid[:len(shown) + 1]:
            axes.minorticks_off()
            axes.title.set_size(9)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return re.sub(rb"(\d\.\d)\d+", rb"\1", drawn.getvalue())    # a tenth of a point is enough


def draw_panel(axes, panel: Panel, lines_and_looks: list[tuple[list, dict]]) -> None:
    for x, y in panel.contours:
        axes.plot(x, y, color="0.85", lw=0.7)
    for lines, look in lines_and_looks:
        for line in lines:
            x, y = line if panel.x is None else (panel.x[:len(line)], line)
            axes.plot(*(np.array(values, dtype=float) for values in (x, y)), **look)    # None becomes nan
    scales = {f"{axis}scale": "log" for axis in panel.log}
    axes.set(xlim=panel.xlim, ylim=panel.ylim, title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel,
             **scales)


# ---------------------------------------------------------------------------------------------------------
# The comparison, one file for a browser

def html_of(runs: dict[str, dict]) -> str:
    """Returns docs/atlas.html: the template with all data, one rule or run in a line."""
    seen = ("title", "xlabel", "ylabel", "log", "xlim", "ylim", "x", "contours")
    about_toys = {name: dict(
        idea=kind.idea, variants=kind.variants,
        top=packed(3 * kind.make(kind.variants[0], 0).measure().item()),    # of the picture of final losses
        panels=[{key: getattr(panel, key) for key in seen} for panel in panels()[name]])
        for name, kind in toys.TOYS.items()}
    data = dict(toys=about_toys, rules={name: facts_of(name) for name in TREE}, runs=runs)
    tables = [f'"{table}": {{\n' + ",\n".join(f'"{key}": {json.dumps(value, separators=(",", ":"))}'
                                            for key, value in rows.items()) + "\n}" for table, rows in data.items()]
    text = "{" + ",\n".join(tables) + "}"
    return TEMPLATE.read_text().replace("DATA", text.replace("</", "<\\/"), 1)


def read_runs() -> dict[str, dict]:
    """Returns the runs that docs/atlas.html holds. Raises UserError if it lacks those of a rule."""
    try:
        text = re.search(r'<script id="data"[^>]*>(.*?)</script>', HTML.read_text(), re.S)[1]
        return json.loads(text)["runs"]
    except (OSError, TypeError, ValueError, KeyError):
        raise UserError(f"{HTML}: holds no runs; leave out --keep") from None


def texts_of(runs: dict[str, dict]) -> dict[Path, str]:
    """Returns {file: its text} of all that the atlas has in words: the pages and docs/atlas.html."""
    return {PAGES / "README.md": readme(), HTML: html_of(runs)} | {
        PAGES / f"{name}.md": page_of(name, runs) for name in zoo.RULES}


@dataclass
class Options:
    """The options of the atlas."""
    keep: bool = option(False, None, "keep the runs of docs/atlas.html; enough after a change of words or code")


def main(argv: list[str]) -> None:
    """Writes the pages, their pictures and docs/atlas.html."""
    torch.set_num_threads(1)    # the problems are so small that a second thread only waits
    runs = read_runs() if load(Options, argv, __doc__)[0].keep else all_runs()
    PAGES.mkdir(exist_ok=True)
    files = {path: text.encode() for path, text in texts_of(runs).items()}
    files |= {PAGES / f"{name}.svg": picture_of(name, runs) for name in zoo.RULES}
    for path, content in files.items():
        with whole_file(path) as file:
            file.write(content)
    print(f"wrote {len(files)} files: {HTML.relative_to(ROOT)} and those in {PAGES.relative_to(ROOT)}")
