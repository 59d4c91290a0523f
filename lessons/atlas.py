"""
The atlas: a page for each update rule in docs/rules/, and docs/atlas.html, which compares up to four of them.

    python -m lessons atlas           trains all rules on all toys, half a minute each, and writes everything
    python -m lessons atlas --keep    keeps the runs of docs/atlas.html; it trains only new and changed rules
    python -m lessons atlas --keep --anew=badam,muon    trains these, too, because what they call has changed

docs/atlas.html holds the runs, and all pictures are made of them. What the pages say comes from the rules'
docstrings and code, from the study's results, and from lessons/atlas.toml.
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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import optim
import zoo
import zoo.__main__
from lessons import pictures, toys
from study.audition_plan import lr_text
from study.figures import NAMES
from study.league import places_of, words_of
from study.tables import as_table, read_study
from trainer.errors import UserError
from trainer.measure import blank_figure
from trainer.options import load, option
from trainer.runs import whole_file
from trainer.settings import defaults
from zoo.table import STAR, bytes_per_weight, read_docstring

ROOT = Path(__file__).parent.parent
TEMPLATES, WORDS = ROOT / "lessons/templates", ROOT / "lessons/atlas.toml"
HTML, PAGES = ROOT / "docs/atlas.html", ROOT / "docs/rules"

NO_LABELS = "It does not run on the toys, because they have no labels that a model could draw."
# the panels of the picture on a rule's page, as (toy, number)
SHOWN = (("ravine", 0), ("ravine", 1), ("zipf", 0), ("layers", 1), ("spike", 0), ("matrix", 0), ("valley", 1))


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
    """The path of two weights over lines of equal loss. Of a long path it keeps every second step."""
    variant, every = toys.TOYS[toy].variants[number], toys.TOYS[toy].steps // 40
    x, y = torch.meshgrid(torch.linspace(*window, 36), torch.linspace(*window, 36), indexing="xy")
    drawn = blank_figure(1, 1).subplots().contour(x, y, surface(variant, x, y), levels=(0.1, 1, 10))
    contours = [packed(line.T) for lines in drawn.allsegs for line in lines if len(line)]
    return Panel(f"{toy}, {variant}", "first weight", "second weight", "", window, window, None,
                 lambda records: [list(zip(*records[number]["path"][::every]))], contours)


def ranks_panel(number: int) -> Panel:
    """Mean losses of classes of similar rank. A run that diverged has none."""
    variant = toys.TOYS["zipf"].variants[number]
    ranks = packed(pictures.means_by_rank([0] * int(variant.partition(" ")[0].replace(",", "")))[0])

    def lines(records):
        losses = records[number].get("by_rank")
        return [pictures.means_by_rank(losses)[1]] if losses else []

    return Panel(f"zipf, {variant}", "rank of the class", "loss of the class", "x", (1, ranks[-1]), (-0.3, 8),
                 ranks, lines)


def steps_panel(title: str, ylabel: str, ylim: tuple[float, float], steps: list[int], log: str,
                lines: Callable[[list[dict]], list]) -> Panel:
    """Lines over the steps. lines: as Panel's, with a value for every step; some steps are kept."""
    return Panel(title, "step", ylabel, log, (0, steps[-1]), ylim, steps, lambda records: [
        [line[step] for step in steps if step < len(line)] for line in lines(records)])


@functools.cache
def panels() -> dict[str, list[Panel]]:
    """Returns {toy: its panels}."""
    seconds = list(range(0, 61, 2))
    around_spike = sorted({*range(0, 401, 5), *range(toys.SPIKE - 1, toys.SPIKE + 5)})

    def errors(layer, title):
        return steps_panel(title, "error / error at the start", (1e-5, 3), seconds, "y",
                           lambda records: [[both[layer] for both in records[0]["path"]]])

    def singular_values(number, shape):
        return steps_panel(f"{shape}: largest, middle, least", "singular value", (0, 1.75), seconds, "",
                           lambda records: [[all[i] for all in records[number]["path"]] for i in (0, 8, -1)])

    def distances(records):
        return [[math.sqrt(loss) for loss in records[1]["losses"]]]

    def times_farther(records):
        losses = zip(*(record["losses"] for record in records))
        return [[math.sqrt(with_spike / max(calm, 1e-30)) for calm, with_spike in losses]]

    return {
        "ravine": [path_panel("ravine", i, toys.ravine_loss, (-0.75, 1.15)) for i in range(2)],
        "zipf": [ranks_panel(i) for i in range(2)],
        "layers": [errors(0, "first layer"), errors(1, "second layer: gradients / 1,000")],
        "spike": [steps_panel("with a spike at step 100", "distance from the minimum", (1e-3, 1e3),
                              around_spike, "y", distances),
                  steps_panel("with / without the spike", "times farther", (0.5, 1e4), around_spike, "y",
                              times_farther)],
        "matrix": [singular_values(i, shape) for i, shape in enumerate(toys.TOYS["matrix"].variants)],
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


def all_runs(known: dict[str, dict]) -> dict[str, dict]:
    """Returns {"toy rule": runs_on() of them}, of all rules that can train on toys.

    Args:
        known: runs that need not be made again.
    """
    found = {}
    for toy, kind in toys.TOYS.items():
        for rule in zoo.RULES:
            key = f"{toy} {rule}"
            with contextlib.suppress(UserError):    # sophia, which needs labels
                toys.build(rule, kind.make(kind.variants[0], 0), 1.0, kind.steps)
                found[key] = known.get(key) or runs_on(toy, rule)
        print(f"trained on {toy}", flush=True)
    return found


# ---------------------------------------------------------------------------------------------------------
# What there is to say about a rule

def source_of(function: Callable) -> str:
    """Returns the code of a function without its docstring."""
    source = textwrap.dedent(inspect.getsource(function))
    lines, first = source.splitlines(), ast.parse(source).body[0].body[0]
    if isinstance(first, ast.Expr):
        del lines[first.lineno - 1:first.end_lineno]
    return "\n".join(lines)


def line_of(name: str, rule: zoo.ZooRule) -> str:
    """Returns the rule's line of the table RULES in its file, as an assignment."""
    tree = ast.parse(inspect.getsource(sys.modules[rule.function.__module__]))
    table = next(node.value for node in tree.body if ast.unparse(node).startswith("RULES = "))
    line = next(value for key, value in zip(table.keys, table.values) if key.value == name)
    return "\n    ".join(textwrap.wrap(f'RULES["{name}"] = {ast.unparse(line)}'.replace("'", '"'), 100))


def called_by(rule: zoo.ZooRule) -> list[Callable]:
    """Returns the functions of optim.py and zoo/ that a rule needs: its refresh, its sums, what makes its
    state, and what these and the rule call."""
    found = [rule.function, *filter(None, [rule.refresh, rule.sums])]
    for function in found:    # the list grows while it is read
        nodes = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function))))
        called = [function.__globals__.get(node.id) for node in nodes if isinstance(node, ast.Name)]
        found += dict.fromkeys(one for one in called if inspect.isfunction(one) and one not in found)
    return found[1:]


def parts_of(doc: str) -> tuple[str, dict[str, str]]:
    """Returns (formula, {"Remembers": text, ...}) of a rule's docstring."""
    formula, rest = re.split(r"\n\n(?=Remembers )", doc.split("\n    ", 1)[1], maxsplit=1)
    parts = re.findall(r"^(\w+) +(.+(?:\n .*)*)", rest, re.M)
    return re.sub("^    ", "", formula, flags=re.M), {key: re.sub(r"\s+", " ", text) for key, text in parts}


@functools.cache
def study_results() -> dict[str, dict]:
    """Returns {rule: {"curve": rows [lr, mean loss, standard deviation, seeds], "best": the row of the
    league, "place": its place there, "difference": the one to AdamW with its interval, "verdict": text}}. A
    run that diverged has the loss None. A rule that the league lacks has only a curve, which may be empty."""
    def row_of(lr: float, losses: list[float]) -> list:
        numbers = np.mean(losses), np.std(losses, ddof=1) if len(losses) > 1 else np.nan
        return [lr, *(round(float(x), 3) if np.isfinite(x) else None for x in numbers), len(losses)]

    study, found = read_study(ROOT / "study/results", "study", ROOT / "study/auditions"), {}
    for name in zoo.RULES:
        curve = [row_of(lr, losses) for lr, losses in study.curve(name).items()]
        found[name] = dict(curve=curve, best=None, place=None, difference="", verdict="")
    for number, place in enumerate(places_of(study, zoo.RULES), 1):
        best, (difference, verdict) = row_of(float(lr_text(place.lr)), place.losses), words_of(place)
        curve = [best if row[0] == best[0] else row for row in found[place.name]["curve"]]
        found[place.name] = dict(curve=curve, best=best, place=number, difference=difference, verdict=verdict)
    return found


@functools.cache
def all_words() -> dict[str, dict]:
    """Returns {rule: its lines of lessons/atlas.toml}, in the order of zoo.RULES. Raises UserError if a rule
    has none, or if its parent is no rule."""
    words = tomllib.loads(WORDS.read_text())
    for name in zoo.RULES:
        if name not in words:
            raise UserError(f"{name}: add it to lessons/atlas.toml")
        if words[name]["parent"] not in ("", *zoo.RULES):
            raise UserError(f"lessons/atlas.toml: the parent of {name} is no rule")
    return {name: words[name] for name in zoo.RULES}


def parent_of(name: str) -> str:
    """Returns the parent of a rule in the tree of changes. The first rule has none, so it is empty."""
    return all_words()[name]["parent"]


@functools.cache
def facts_of(name: str) -> dict:
    """Returns what there is to say without training. Raises UserError if somebody must add words."""
    rule = zoo.RULES[name]
    idea = STAR if name == "adalayer_star" else read_docstring(rule.function)[0]
    formula, parts = parts_of(inspect.getdoc(rule.function))
    source, label = parts.pop("Source"), NAMES.get(name) or re.match(r"[\w-]+", idea)[0]
    return dict(label=label[0].upper() + label[1:], idea=idea, formula=formula, parts=parts,
                code=f"{source_of(rule.function)}\n\n{line_of(name, rule)}", source=source,
                file=Path(inspect.getfile(rule.function)).relative_to(ROOT).as_posix(),
                bytes=round(bytes_per_weight(rule), 2), study=study_results()[name],
                lr=defaults(str(ROOT / "configs/nano.toml"), name)["lr"]) | all_words()[name]


# ---------------------------------------------------------------------------------------------------------
# Pages

def fill(template: str, **values: object) -> str:
    return (TEMPLATES / template).read_text().format(**values)


def link(name: str) -> str:
    return f"[{facts_of(name)['label']}]({name}.md)"


def bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"* {text}" for text in texts)


def loss_text(row: list) -> str:
    """Returns "4.694 ± 0.021 (n = 3)" of a row of study_results()."""
    _, mean, spread, seeds = row
    return "diverged" if mean is None else f"{mean:.3f}{f' ± {spread:.3f}' if spread else ''} (n = {seeds})"


def pencil_steps(name: str) -> str:
    """Returns what `python -m zoo NAME` prints below the docstring."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        zoo.__main__.main([name])
    return printed.getvalue().partition("A matrix of 2 x 2")[2].partition("\n")[2].strip("\n")


def page_of(name: str, runs: dict[str, dict]) -> str:
    """Returns the page of a rule in Markdown."""
    facts, parent, study = facts_of(name), parent_of(name), facts_of(name)["study"]
    children = [link(child) for child in zoo.RULES if parent_of(child) == name]
    relatives = [f"Its parent is {link(parent)}." if parent else "It has no parent."]
    if len(children) == 1:
        relatives.append(f"Its child is {children[0]}.")
    elif children:
        relatives.append(f"Its children are {', '.join(children[:-1])} and {children[-1]}.")
    called = "\n\n".join(inspect.getsource(function).rstrip() for function in called_by(zoo.RULES[name]))
    changes = ""
    if parent:
        lines = [facts_of(one)["code"].splitlines() for one in (parent, name)]
        diff = "\n".join([*difflib.unified_diff(*lines, lineterm="", n=99)][3:])
        changes = f"\n## What differs from {facts_of(parent)['label']}\n\n```diff\n{diff}\n```\n"
    if called:
        called = f"\n<details><summary>What it calls</summary>\n\n```python\n{called}\n```\n\n</details>\n"
    values = facts | dict(
        name=name, relatives=" ".join(relatives), called=called, changes=changes, steps=pencil_steps(name),
        whose_lr=whose_lr(name), verified=verified(name),
        details=bullets(f"**{key}** {text}" for key, text in facts["parts"].items()),
        toys=toys_on_page(name, runs), traps=bullets(facts["traps"]),
        study=in_the_study(name, **study), time=facts.get("time", "about a minute"))
    return fill("rule.md", **values)


@functools.cache
def tuned_at_nano() -> dict[str, float]:
    """Returns {rule: peak lr} of the rules that configs/nano.toml names."""
    return tomllib.loads((ROOT / "configs/nano.toml").read_text())["lr"]


def whose_lr(name: str) -> str:
    """Returns where a rule's usual peak lr comes from, as a clause."""
    if name in tuned_at_nano():
        return "which is the best of three to five that were tried"
    factor = zoo.RULES[name].lr_factor
    if factor == 1:
        return "which is AdamW's, and was not tuned"
    shown = f"{factor:,.0f}" if factor >= 100 else f"{factor:.3g}"
    return f"which is AdamW's times {shown}, and was not tuned"


def verified(name: str) -> str:
    """Returns with which code a rule agrees, as a sentence."""
    if name in optim.RULES:
        page, is_published = "../paper.md", name != "adasgd"
    else:
        page = "../../tests/golden/zoo/README.md"
        is_published = f"| {name} |" in (PAGES / page).read_text()
    if is_published:
        return f"It agrees with published code step by step. [This page]({page}) names the code."
    return ("It was not compared with published code. The [tests](../../tests) compare it with a second, "
            "independent version in float64.")


def in_the_study(name: str, curve: list[list], best: list | None, place: int | None, difference: str,
                 verdict: str) -> str:
    """Returns the part of a page that shows a rule's place in the study. The arguments are a row of
    study_results()."""
    if not best:
        return fill("no_study.md", name=name, slow=all_words()[name].get("slow", ""))
    table = as_table(("lr", "final loss"), [(f"{row[0]:g}", loss_text(row)) for row in curve]).rstrip()
    count = sum(one["best"] is not None for one in study_results().values())
    against = ""
    if difference:
        interval, pairs = difference.rsplit(", ", 1)
        against = f"\n\nIts difference to AdamW is {interval} in {pairs} pairs of runs: **{verdict}**."
    return fill("study.md", place=place, count=count, best_lr=best[0], loss=loss_text(best), against=against,
                curve=table)


def toys_on_page(name: str, runs: dict[str, dict]) -> str:
    """Returns the part of a page that shows a rule on the toys."""
    rows = [(toy, variant, f"{lr:g}", f"{dict(curve)[lr]:.3g}") for toy, kind in toys.TOYS.items()
            if (one := runs.get(f"{toy} {name}"))
            for variant, lr, curve in zip(kind.variants, one["best"], one["curves"])]
    if not rows:
        return f"{NO_LABELS}\n\n![Loss in the study]({name}.svg)\n"
    grey = " Grey is the parent." if parent_of(name) else ""
    table = as_table(("toy", "problem", "best lr", "final loss"), rows)
    and_study = ", and the loss in the study" if facts_of(name)["study"]["best"] else ""
    return fill("toys.md", name=name, grey=grey, and_study=and_study, table=table)


def list_of_rules() -> str:
    """Returns docs/rules/README.md: the tree of changes and the list of all rules."""
    def branch(name, depth):
        below = [branch(child, depth + 1) for child in zoo.RULES if parent_of(child) == name]
        return "\n".join([f"{'  ' * depth}* {link(name)}", *below])

    rows = []
    for name in zoo.RULES:
        facts = facts_of(name)
        best = facts["study"]["best"]
        rows.append((link(name), f"`{name}`", facts["idea"], f"{facts['bytes']:.2f}", f"{facts['lr']:.3g}",
                     loss_text(best) if best else "not run"))
    columns = ("rule", "--optimizer=", "idea", "bytes of state per weight", "usual lr", "loss in the league")
    text = fill("rules.md", tree=branch("sgd", 0), table=as_table(columns, rows).rstrip())
    text = re.sub(rf"`({'|'.join(zoo.RULES)})`(?=.*\|$)", r"[`\1`](\1.md)", text, flags=re.M)
    return re.sub(rf"`({'|'.join(zoo.MODIFIERS)})`(?=.*\|$)", r"[`\1`](modifiers.md#\1)", text, flags=re.M)


def page_of_modifiers() -> str:
    """Returns docs/rules/modifiers.md: docstring and code of each modifier, average and schedule."""
    def sections(functions: dict[str, Callable]) -> str:
        return "\n\n".join(f"### {name}\n\n```text\n{inspect.getdoc(function)}\n```\n\n"
                           f"```python\n{source_of(function)}\n```" for name, function in functions.items())

    modifiers = {name: modifier.function for name, modifier in zoo.MODIFIERS.items()}
    averages = {name: average.function for name, average in zoo.AVERAGES.items()}
    return fill("modifiers.md", modifiers=sections(modifiers), averages=sections(averages),
                schedules=sections(zoo.SHAPES))


def picture_of(name: str, runs: dict[str, dict]) -> bytes:
    """Draws a rule and its parent on the toys, and the study's losses. Returns an SVG."""
    shown = [(toy, i) for toy, i in SHOWN if f"{toy} {name}" in runs]
    looks = {parent_of(name): dict(color="0.6", lw=1.2, ls="--")} if parent_of(name) else {}
    looks[name] = dict(color=pictures.look_of(name)["color"])
    figure = blank_figure(12 if shown else 4, 6 if shown else 3.2)
    import matplotlib    # here, because blank_figure() imports it first
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "atlas", "font.size": 10,
                                "font.sans-serif": ["DejaVu Sans"], "path.simplify_threshold": 1.0}):
        *grid, last = figure.subplots(2 if shown else 1, 4 if shown else 1, squeeze=False).flat
        for (toy, i), axes in zip(shown, grid):
            draw_panel(axes, panels()[toy][i], [(runs[f"{toy} {one}"]["panels"][2][i], look)
                                                for one, look in looks.items() if f"{toy} {one}" in runs])
        draw_study(last, looks)
        for axes in (*grid, last):
            axes.minorticks_off()
            axes.title.set_size(10)
        for axis in (axis for axes in (*grid, last) for axis in (axes.xaxis, axes.yaxis)):
            if axis.get_scale() == "linear":
                axis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return smaller(drawn.getvalue().decode()).encode()


def draw_study(axes, looks: dict[str, dict]) -> None:
    """Draws the final losses in the study against the learning rate. looks: {rule: arguments of its line}."""
    for one, look in looks.items():
        if curve := facts_of(one)["study"]["curve"]:
            lr, loss, spread, _ = np.array(curve, dtype=float).T
            axes.errorbar(lr, loss, np.nan_to_num(spread), marker=".", label=facts_of(one)["label"], **look)
    axes.set(xscale="log", title="the study", xlabel="peak learning rate", ylabel="final loss")
    if axes.lines:
        axes.legend()


def smaller(svg: str) -> str:
    """Shortens an SVG of matplotlib by half. It keeps a tenth of a point, names each style once, and says
    which version drew it."""
    version = re.search(r"Matplotlib v[\d.]+\d", svg)[0]
    svg = re.sub(r"<!DOCTYPE.*?>|<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r' id="[a-z]\w*_\d+"| transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r"(\d\.\d)\d+(?=[^<]*>)", r"\1", svg)
    svg = re.sub(r'\s*\n\s*(?=[LCQz"])', "", re.sub(r"\n\s+", "\n", svg))
    numbers = {style: i for i, style in enumerate(dict.fromkeys(re.findall(r'style="([^"]*)"', svg)))}
    svg = re.sub(r'style="([^"]*)"', lambda match: f'class="s{numbers[match[1]]}"', svg)
    classes = "".join(f".s{i}{{{style}}}" for style, i in numbers.items())
    return svg.replace("</style>", f"{classes}</style>\n<!--{version}-->", 1)


def draw_panel(axes, panel: Panel, lines_and_looks: list[tuple[list, dict]]) -> None:
    for x, y in panel.contours:
        axes.plot(x, y, color="0.85", lw=0.7)
    for lines, look in lines_and_looks:
        for line in lines:
            x, y = line if panel.x is None else (panel.x[:len(line)], line)
            axes.plot(*(np.array(values, dtype=float) for values in (x, y)), **look)    # None becomes nan
    axes.set(xlim=panel.xlim, ylim=panel.ylim, title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel,
             **{f"{axis}scale": "log" for axis in panel.log})


# ---------------------------------------------------------------------------------------------------------
# The comparison, and all files

def html_of(runs: dict[str, dict]) -> str:
    """Returns docs/atlas.html: the template with all data, a rule or a run in each line."""
    def about(name, kind):
        start = kind.make(kind.variants[0], 0).measure().item()
        return dict(idea=kind.idea, variants=kind.variants, top=packed(3 * start),    # of the final losses
                    panels=[panel._replace(lines=None)._asdict() for panel in panels()[name]])

    tables = dict(toys={name: about(name, kind) for name, kind in toys.TOYS.items()},
                  rules={name: facts_of(name) for name in zoo.RULES}, runs=runs)
    texts = []
    for table, rows in tables.items():
        lines = [f"{json.dumps(key)}: {json.dumps(row, separators=(',', ':'))}" for key, row in rows.items()]
        texts.append(f'"{table}": {{\n' + ",\n".join(lines) + "\n}")
    data = "{" + ",\n".join(texts).replace("</", "<\\/") + "}"
    return (TEMPLATES / "atlas.html").read_text().replace("NO_LABELS", NO_LABELS).replace("DATA", data, 1)


def read_runs(anew: Iterable[str] = ()) -> dict[str, dict]:
    """Returns the runs that docs/atlas.html holds, of rules with the code of today. Raises UserError if it
    holds none.

    Args:
        anew: rules whose runs are left out.
    """
    try:
        text = re.search(r'<script id="data"[^>]*>(.*?)</script>', HTML.read_text(), re.S)[1]
        page = json.loads(text)
        runs, code = page["runs"], {name: facts["code"] for name, facts in page["rules"].items()}
    except (OSError, TypeError, ValueError, KeyError):
        raise UserError(f"{HTML}: holds no runs; leave out --keep") from None
    kept = {name for name in zoo.RULES.keys() - set(anew) if code.get(name) == facts_of(name)["code"]}
    return {key: run for key, run in runs.items() if key.split()[1] in kept}


def texts_of(runs: dict[str, dict]) -> dict[Path, str]:
    """Returns {file: its text} of all files except the pictures."""
    return {PAGES / "README.md": list_of_rules(), PAGES / "modifiers.md": page_of_modifiers(),
            HTML: html_of(runs)} | {
        PAGES / f"{name}.md": page_of(name, runs) for name in zoo.RULES}


@dataclass
class Options:
    """The options of the atlas."""
    keep: bool = option(False, None, "keep the runs of docs/atlas.html, and train only what it lacks")
    anew: str = option("", None, "rules, joined by commas, that --keep trains anew")


def main(argv: list[str]) -> None:
    """Writes the pages, their pictures and docs/atlas.html."""
    torch.set_num_threads(1)    # the problems are so small that a second thread only waits
    options = load(Options, argv, __doc__, program="python -m lessons atlas")[0]
    anew = options.anew.split(",") if options.anew else []
    if anew and not options.keep:
        raise UserError("--anew: goes with --keep, because without it all rules are trained anew")
    for name in anew:
        if name not in zoo.RULES:
            raise UserError(f"--anew={name}: there is no such rule; --optimizer=list lists them")
    runs = all_runs(read_runs(anew) if options.keep else {})
    files = {path: text.encode() for path, text in texts_of(runs).items()}
    files |= {PAGES / f"{name}.svg": picture_of(name, runs) for name in zoo.RULES}
    PAGES.mkdir(exist_ok=True)
    for path, content in files.items():
        with whole_file(path) as file:
            file.write(content)
    print(f"wrote {len(files)} files: {HTML.relative_to(ROOT)} and those in {PAGES.relative_to(ROOT)}")
