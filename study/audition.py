"""
Is an optimizer better than another one, by how much, and how sure is that?

    python -m study audition muon                            a rule of this project against tuned AdamW
    python -m study audition ../mine.py                      a rule in a file of your own
    python -m study audition adamw modify=cautious           any options of train.py that change the optimizer
    python -m study audition lion --against="signum beta1=0.95"       another reference
    python -m study audition muon --print                    only prints what is to be run

It tests the rule's properties, tunes both learning rates in the same way, trains pairs of runs that share
their seed until the difference is decided, and writes a page, a picture and all numbers to auditions/.
Runs that the results already have are used. The same command can be started again at any time: it goes on
where it was interrupted. docs/audition.md explains the method.
"""
import functools
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import optim
import zoo
from model import Decoder
from study.audition_page import STILL_RUNNING, Report, sentence_of, word_of
from study.audition_plan import (
    COARSE,
    Audition,
    Findings,
    Run,
    Side,
    known_spread,
    lr_text,
    options_of,
    place_of,
    run_of,
)
from study.tables import changed_options, number, optimizer_of, parsed, read_runs, row_of, rows_below, text
from study.thresholds import PARITY
from study.verdict import looks, visible
from trainer import script
from trainer.build import decoder_shape
from trainer.cores import usable_cores
from trainer.errors import UserError, one_line
from trainer.machine import Machine, compiler_works, provide_cache
from trainer.measure import sizes_of
from trainer.options import ROOT, option
from trainer.settings import Settings, kept, read
from zoo import properties

# What belongs to the optimizer, besides the hyperparameters of its rule. All else is the task, which is the
# same for both sides: a larger batch, for one, would be more data.
OF_THE_OPTIMIZER = {"modify", "average", "lr_of", "schedule", "cooldown", "cooldown_beta2", "warmup",
                    "warmup_from", "floor", "clip", "weight_decay", "weight_decay_of", "weight_decay_kind",
                    "rows", "adaptive", "rest", "rest_lr", "untrained", "freeze_steps", "updating"}
RUNS = "runs"    # sweep.sh writes new runs into this folder
PAGE_SECONDS = 60    # for the last page with its times of a step, measured on two cores of a server
RESULTS = "study/results,study/auditions,auditions"    # what ships, and what auditions wrote here


@dataclass(frozen=True)
class Options:
    """The options of `python -m study audition`."""
    against: str = option("adamw", None, "the reference: a rule, and options of train.py as key=value")
    config: str = option("configs/study.toml", None, "TOML file with the model, the data and the length")
    seeds: int = option(3, None, "pairs of runs before the first look at the difference", low=2, high=100)
    hours: float = option(1.0, None, "no runs begin that would end later than so many hours from now", low=0)
    margin: float = option(PARITY, None, "two optimizers are the same within so many nats", low=0)
    tune: str = option("", None, "other hyperparameters to tune, one after another, for both, such as "
                                 "'beta1:0.8,0.9,0.95 eps:1e-8,1e-6'")
    jobs: int = option(0, None, "runs at a time; 0: one for each GPU or else core, 8 at most",
                       low=0, high=1024)
    runs: str = option("runs", None, "folders of earlier runs, joined by commas; new runs are in runs/")
    results: str = option(RESULTS, None, "folders with rows of earlier runs, joined by commas")
    out: str = option("", None, "folder for the page; default: one in auditions/, named after the audition")
    anyway: bool = option(False, None, "train a rule that lacks a property, too")
    print: bool = option(False, None, "only print the commands of the next runs, to run them elsewhere")


# ---------------------------------------------------------------------------------------------------------
# From options to sides, and from rows to runs


def side_of(words: str, config: str) -> Side:
    """Returns the side that some words describe.

    Args:
        words: a rule, then options as key=value.
        config: the TOML file.
    Raises: UserError if an option is unknown, or changes something else than the optimizer.
    """
    _, *options = words.split()
    for word in options:
        if word.partition("=")[0] in ("lr", "seed", "steps", "config", "optimizer"):
            raise UserError(f"{word}: the audition chooses this itself; leave it out")
    settings, hyper, _ = read([config, *options_of(words)])
    for word in options:
        if word.partition("=")[0] not in OF_THE_OPTIMIZER | hyper.keys():
            raise UserError(f"{word}: is no option of the optimizer; for another task give another --config")
    in_force = kept(settings, hyper)
    changed = changed_options(in_force)[1]
    pairs = frozenset((name, number(value)) for name, value in changed.items())
    return Side(words, optimizer_of(in_force), pairs, place_of(settings.lr, COARSE))


def grid_lines(runs: list[Run], words: dict[tuple, str], usual_steps: int) -> list[str]:
    """Returns lines for `sweep.sh list` that have these runs: a line for all seeds of one learning rate.

    Args:
        runs: the runs.
        words: {(optimizer, changed): the words of the side}.
        usual_steps: the steps of the config, which need not be named.
    """
    seeds: dict[Run, list[str]] = {}
    for run in runs:
        seeds.setdefault(run._replace(seed=0), []).append(str(run.seed))
    lines = []
    for run, of_run in seeds.items():
        optimizer, *options = words[run.optimizer, run.changed].split()
        steps = [f"steps={run.steps}"] if run.steps != usual_steps else []
        lines.append(" ".join([f"optimizer={optimizer}", f"lr={lr_text(run.lr)}",
                               f"seed={','.join(of_run)}", *options, *steps]))
    return lines


# ---------------------------------------------------------------------------------------------------------
# The properties of a rule


def rule_of_side(side: Side, config: str) -> tuple[zoo.ZooRule, bool]:
    """Returns a side's rule with its modifiers, and whether it comes from a file of the user's."""
    settings, _, _ = read([config, *options_of(side.words)])
    try:
        rule = zoo.modified(settings.optimizer, settings.modify)
    except ValueError as error:
        raise UserError(f"{side.words}: {error}") from None
    return rule, settings.optimizer.endswith(".py")


def optimizer_of_rule(rule: zoo.ZooRule, w: dict[str, torch.Tensor], lr: float = 0.1,
                      **more) -> zoo.Optimizer:
    """Returns an optimizer that applies a rule to those of the weights {role: weight} that it is for."""
    roles = zoo.role_set("roles", rule.roles) if rule.roles else w.keys()
    triples = [(role, w[role], role) for role in w if role in roles]
    return optim.make(rule, triples, lr=lr, optimizer=zoo.Optimizer, **more)


def check_that_it_steps(rule: zoo.ZooRule, words: str) -> None:
    """Raises UserError, with the line of the user's file if there is one, if a rule cannot take two steps."""
    try:
        w = properties.weights()
        properties.run(optimizer_of_rule(rule, w), w, properties.gradients()[:2])
    except Exception as error:
        where, source = zoo.files.where_it_failed(error, words)
        raise UserError(one_line(f"{words}: {where}{type(source).__name__}: {source}", 300)) from error


def faults_of(rule: zoo.ZooRule, is_new: bool) -> list[str]:
    """Returns a line for each property that a rule lacks.

    What the project's own rules and modifiers lack as published does not count. Their hyperparameters are not
    tried, because some of them matter only with values of their own, which the tests know.
    """
    name, *modifiers = rule.name.split("+")
    cases = {f"adamw+{modifier}" for modifier in modifiers} | (set() if is_new else {name})
    skipped = {lacks for lacks, case, _ in properties.EXEMPT if case in cases}
    if {"cautious", "cautious_lion"} & {*modifiers}:    # they hold weights where rule and gradient disagree
        skipped.add("newest gradient")
    if modifiers or not is_new:
        skipped.add("hyperparameters")
    build = functools.partial(optimizer_of_rule, rule)
    checks = {name: check for name, check in properties.PROPERTIES.items() if name not in skipped}
    named = {name: fault_of(check, build, rule) for name, check in checks.items()}
    faults = [f"{name}: {fault}" for name, fault in named.items() if fault]
    if not faults and compiler_works():
        fault = fault_of(lambda build, rule: properties.compiled_is_eager(build), build, rule)
        faults = [f"compiled: {fault}"] if fault else []
    return faults


def fault_of(check: Callable[..., str], build: Callable[..., zoo.Optimizer], rule: zoo.ZooRule) -> str:
    """Returns "" if a rule has a property, or else a line. A user's rule may fail in any way."""
    try:
        return check(build, rule)
    except Exception as error:
        return one_line(f"{type(error).__name__}: {error}", 300)


def growth_with_gradients(rule: zoo.ZooRule) -> float:
    """Returns how many times as far six steps go if all gradients are a thousand times as large: 1 for a rule
    that does not depend on their scale, and 1,000 for one that is in proportion to it."""
    distances = []
    for scale in (1.0, 1000.0):
        w, start = properties.weights(), properties.weights()
        optimizer = optimizer_of_rule(rule, w, lr=1e-3)
        gradients = [{role: scale * g for role, g in of_step.items()}
                     for of_step in properties.gradients(6 + properties.measuring_steps(optimizer))]
        properties.run(optimizer, w, gradients)
        distances.append(math.sqrt(sum((w[role] - start[role]).square().sum().item() for role in w)))
    return distances[1] / distances[0]


# ---------------------------------------------------------------------------------------------------------
# Known runs, and new ones


class Kind(NamedTuple):
    """A kind of machine, as far as results depend on it. The fields are columns of results.csv."""
    device: str
    precision: str
    threads: str
    torch: str


def this_machine(settings: Settings, jobs: int) -> Kind:
    """Returns the kind of this machine, if `jobs` runs share its cores."""
    machine = Machine(replace(settings, threads=max(1, usable_cores() // jobs)))
    complete, _, _ = machine.complete(settings)
    return Kind(machine.name(), complete.precision, str(machine.threads), str(torch.__version__))


def known_rows(options: Options, settings: Settings, here: Kind) -> dict[Kind, dict[Run, dict[str, str]]]:
    """Returns {kind of machine: {ended run of the task: its row of results.csv}}, this machine first. Of
    several rows of a run on one kind of machine, the last one counts. Runs of another model or batch do not
    count, even if their config has the same name."""
    stem = Path(options.config).stem
    with torch.device("meta"):    # without memory
        hidden = sizes_of(Decoder(**decoder_shape(settings)))["hidden"]
    task = dict(batch=text(settings.batch), context=text(settings.context), hidden=text(hidden))
    rows = []
    for folder in options.results.split(","):
        place = Path(folder) if Path(folder).is_dir() else ROOT / folder    # what ships, from any folder
        if not place.is_dir() and folder not in RESULTS.split(","):
            raise UserError(f"--results={folder}: there is no such folder")
        rows += rows_below(place)
    folders = [name for name in dict.fromkeys((*options.runs.split(","), RUNS)) if Path(name).is_dir()]
    runs = read_runs(",".join(folders), f"{stem},*") if folders else []
    rows += [row_of(run) for run in runs if run.status["status"] in ("done", "diverged")]
    by_machine: dict[Kind, dict[Run, dict[str, str]]] = {here: {}}
    for row in rows:
        is_of_task = all(row[name] == value for name, value in task.items())
        if is_of_task and (run := run_of(parsed(row), stem)):
            by_machine.setdefault(Kind(*(row[name] for name in Kind._fields)), {})[run] = row
    return by_machine


def with_first_ahead(by_machine: dict[Kind, dict[Run, Any]]) -> dict[Run, Any]:
    """Returns {run: what the first kind of machine that has the run says of it}."""
    merged: dict[Run, Any] = {}
    for of_kind in by_machine.values():
        merged = of_kind | merged
    return merged


def usual_seconds_per_step(settings: Settings, rows_here: list[dict[str, str]], jobs: int) -> float | None:
    """Returns how long a step takes on this machine, `jobs` runs at a time, or None if nothing says it."""
    speeds = [float(row["tokens_per_second"]) for row in rows_here if row["tokens_per_second"]]
    speed = float(np.median(speeds)) if speeds else (settings.throughput or 0) / jobs
    return settings.batch * settings.context / speed if speed else None


def steps_in_turn(runs: list[Run], jobs: int) -> int:
    """Returns how many steps follow each other if `jobs` runs are trained at a time: those of the longest run
    of each round."""
    longest_first = sorted((run.steps for run in runs), reverse=True)
    return sum(longest_first[::jobs])


def in_words(count: int, seconds: float | None) -> tuple[str, str]:
    """Returns a number of runs and their time in words: ("3 runs", "about 10 minutes")."""
    about = "an unknown time" if seconds is None else f"about {seconds / 60:.0f} minutes"
    return f"{count} run{'s' if count > 1 else ''}", about


def train(lines: list[str], config: str, jobs: int, *more: str) -> int:
    """Trains the runs of some grids with sweep.sh, and returns its exit code. A signal to this process is a
    signal to sweep.sh, which then saves all runs and ends.

    Args:
        lines: the grids, one a line.
        config: the TOML file.
        jobs: runs at a time.
        more: options of sweep.sh.
    """
    command = ["bash", os.path.relpath(ROOT / "sweep.sh"), "list", config, f"--jobs={jobs}", *more]
    python = {"PYTHON": sys.executable}
    if "--print" in more:    # a command for elsewhere says only `python`, so that must be this one here
        python = {"PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"}
    sweep = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=os.environ | python)
    with script.surroundings_restored():
        script.on_signals(lambda *_: sweep.terminate())
        sweep.communicate("\n".join(lines))
    return sweep.returncode


# ---------------------------------------------------------------------------------------------------------
# The command


def read_tune(asked: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Returns (("beta1", ("0.8", "0.9")), ...) of "beta1:0.8,0.9 ...". Raises UserError."""
    found = []
    for part in asked.split():
        name, colon, values = part.partition(":")
        if not colon or not all(values.split(",")):
            raise UserError(f"--tune={part!r}: give NAME:VALUE,VALUE")
        found.append((name, tuple(values.split(","))))
    return tuple(found)


def check_tune(tune: tuple[tuple[str, tuple[str, ...]], ...], sides: list[Side], config: str) -> None:
    """Checks the values that --tune tries. Raises UserError, before anything is trained."""
    for name, values in tune:
        tried = [with_option(config, side, f"{name}={value}") for side in sides for value in values]
        for side in tried:
            rule, _ = rule_of_side(side, config)
            hyper = read([config, *options_of(side.words)])[1]
            try:
                rule.checked({key: value for key, value in hyper.items() if key in rule.hyper})
            except ValueError as error:
                raise UserError(f"--tune: {error}") from None


def with_option(config: str, side: Side, assignment: str) -> Side:
    """Returns a side with one more option, such as "beta1=0.8". A side whose rule does not have this
    hyperparameter is returned as it is."""
    name = assignment.partition("=")[0]
    rule, _ = rule_of_side(side, config)
    others = [word for word in side.words.split() if not word.startswith(f"{name}=")]
    return side_of(" ".join([*others, assignment]), config) if name in rule.hyper else side


def audition(words: list[str], options: Options) -> int:
    """Runs an audition from its properties to its page. Returns the exit code."""
    deadline = time.monotonic() + 3600 * options.hours - PAGE_SECONDS
    if blank := [word for word in words if len(word.split()) != 1]:
        raise UserError(f"{blank[0]!r}: holds a blank, which an audition cannot use; rename file or folder")
    if not options.against.split():
        raise UserError("--against: give a rule, such as adamw")
    settings, _, _ = read([options.config])
    sides = [side_of(side, options.config) for side in (" ".join(words), options.against)]
    hyper = {name for side in sides for name in rule_of_side(side, options.config)[0].hyper}
    tune = read_tune(options.tune)
    if unknown := [name for name, _ in tune if name not in hyper]:
        raise UserError(f"--tune={unknown[0]}: neither side has this hyperparameter")
    check_tune(tune, sides, options.config)
    plan = Audition(*sides, settings.steps, options.seeds, options.margin, tune,
                    functools.partial(with_option, options.config))
    provide_cache(compiles=True)
    jobs = options.jobs or min(8, torch.cuda.device_count() or usable_cores())
    here = this_machine(settings, jobs)
    rule, is_new = rule_of_side(sides[0], options.config)
    check_that_it_steps(rule, words[0])
    faults = faults_of(rule, is_new)
    for fault in faults:
        print(f"it lacks a property: {fault}", file=sys.stderr if options.print else sys.stdout)
    report = Report(
        folder=Path(options.out or Path("auditions") / folder_name(words, options)),
        command=shlex.join(["python", "-m", "study", "audition", *words, *chosen(options)]),
        config=options.config, steps=settings.steps, margin=options.margin, first=options.seeds,
        machine=here._asdict(), code=Path(words[0]).read_text() if is_new else "", faults=faults,
        growth=math.nan if faults else growth_with_gradients(rule))
    if faults and not options.anyway and options.print:
        return 0
    if faults and not options.anyway:
        report.write(Findings(*sides), [])
        print(f"So it is not trained; --anyway trains it nonetheless. The page is {report.folder}/verdict.md")
        return 0
    return train_until_known(plan, options, settings, here, jobs, report, deadline)


def folder_name(words: list[str], options: Options) -> str:
    """Returns the name of the usual folder of a page. Auditions with other questions have other folders."""
    def questions(of: Options) -> dict[str, str]:
        return dict(against=of.against, config=Path(of.config).stem, tune=of.tune)

    usual = questions(Options())
    unusual = [f"{name}={value}" for name, value in questions(options).items() if value != usual[name]]
    parts = " ".join([Path(words[0]).stem, *words[1:], *unusual]).split()
    return "_".join(part.removesuffix(".py").replace("/", "-") for part in parts)


def chosen(options: Options) -> list[str]:
    """Returns the options that differ from their defaults, as words of a command line."""
    differ = {field.name: getattr(options, field.name) for field in fields(Options)
              if getattr(options, field.name) != field.default}
    return [f"--{name}={text(value)}" for name, value in differ.items()]


def power_of(plan: Audition, by_machine: dict[Kind, dict[Run, float]]) -> str:
    """Returns which difference the audition is likely to find. This is said before it trains."""
    name = plan.reference.name
    sd, freedom = known_spread(plan.reference, plan.steps, by_machine)
    if not freedom:
        return f"power: unknown, because no pairs with {name} are known yet"
    first, *_, last = looks(plan.first)
    return (f"power: in 3 of 4 auditions, {first.seeds} pairs find a difference of {visible(sd, *first):.3f} "
            f"nats, and {last.seeds} pairs one of {visible(sd, *last):.3f}. This is so if the best learning "
            f"rates are certain and pairs spread as known pairs with {name} do (sd {sd:.3f} nats, {freedom} "
            "degrees of freedom).")


def train_until_known(plan: Audition, options: Options, settings: Settings, here: Kind, jobs: int,
                      report: Report, deadline: float) -> int:
    """Trains what is missing until all is known or the deadline (of time.monotonic()) would be missed, and
    writes the page. Returns the exit code."""
    out = sys.stderr if options.print else sys.stdout
    stopped = power = ""
    seconds_per_step = None
    last_wanted: list[Run] = []
    while True:
        by_machine = known_rows(options, settings, here)
        losses = {kind: {run: parsed(row)["loss"] for run, row in rows.items()}
                  for kind, rows in by_machine.items()}
        if not power:
            power = power_of(plan, losses)
            print(power, file=out)
        found = plan.assess(with_first_ahead(losses), losses)
        rows = with_first_ahead(by_machine)
        if last_wanted and not rows.keys() & set(last_wanted):
            raise UserError(f"{plan.candidate.words}: none of the last runs is one that was wanted. Has the "
                            "file of a rule changed since the audition began? Then give the command again")
        used = [by_machine[kind][run] if kind else rows[run]
                for run, kind in plan.used(found).items() if run in rows]
        if not found.wanted:
            break
        words = {(side.optimizer, side.changed): side.words for side in found.sides}
        wanted = found.wanted_by(1 if options.print else jobs)
        lines = grid_lines(wanted, words, settings.steps)
        seconds_per_step = seconds_per_step or usual_seconds_per_step(
            settings, list(by_machine[here].values()), jobs)
        steps = steps_in_turn(wanted, jobs)
        seconds = seconds_per_step and steps * seconds_per_step
        runs, about = in_words(len(wanted), seconds)
        began = time.monotonic()
        if not options.print and began + (seconds or 0) > deadline:
            stopped = (f"the next {runs} ({found.stage}) would take {about}, which is more than --hours="
                       f"{options.hours:g} leaves. Give the same command again to go on")
            break
        print(f"{found.stage}: {runs}, {about}, {jobs} at a time", file=out)
        if options.print:
            return train(lines, options.config, jobs, "--print")
        if found.verdict:
            print(f"so far: {word_of(found)}. {sentence_of(found)}")
        report.write(found, used, STILL_RUNNING, measure=False)
        if code := train(lines, options.config, jobs):
            return code
        last_wanted = wanted
        # The same machine may be half as fast on another day, so this audition's own runs tell its speed.
        seconds_per_step = (time.monotonic() - began) / steps
    if options.print:
        print("nothing is missing; without --print the audition writes its page", file=out)
        return 0
    report.write(found, used, stopped)
    print(f"{word_of(found)}. {sentence_of(found)}" + (f" It stopped early: {stopped}." if stopped else ""))
    print(f"The page is {report.folder}/verdict.md")
    return 0
