"""
The page of an audition: its verdict in words, one picture, and all numbers for programs.
"""
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from study.audition_plan import CONTENDS, TUNING_SEED, Findings, Tuning, lr_at, lr_text, options_of
from study.panels import COLORS, DPI, LOSS
from study.tables import COLUMNS, as_table, read_csv, write_csv
from study.thresholds import USABLE
from study.verdict import ERROR, Verdict, best_lr, looks, time_to_loss
from trainer.machine import versions
from trainer.measure import blank_figure
from trainer.options import ROOT
from trainer.runs import to_json, whole_file

METHOD = Path(__file__).parent / "audition_method.md"
STILL_RUNNING = "still running"    # what write() takes for `stopped` if more runs will follow


def decimals(value: float) -> str:
    """Returns a number with three decimals; "diverged" if it is infinite."""
    return f"{value:.3f}" if math.isfinite(value) else "diverged"


def spread(losses: Sequence[float]) -> str:
    """Returns "4.694 ± .021", mean and standard deviation of losses."""
    if not all(map(math.isfinite, losses)):
        return f"{sum(map(math.isinf, losses))} of {len(losses)} diverged"
    return f"{np.mean(losses):.3f} ± {np.std(losses, ddof=1):.3f}"


@dataclass
class Speed:
    """What a step of each optimizer takes, measured in turns in one process.

    Attributes:
        candidate, reference: mean milliseconds of a step of the optimizer.
        rest: milliseconds of the forward and backward passes of a training step.
        bytes: (the candidate's, the reference's) bytes of state per weight of the model.
    """
    candidate: float
    reference: float
    rest: float
    bytes: tuple[float, float]


def measure_speed(found: Findings, config: str, threads: int) -> Speed | None:
    """Measures a step of both optimizers with bench.py. Returns None if that fails, after a note."""
    print("measuring what a step takes", flush=True)
    texts = []
    for side, tuning in zip((found.candidate, found.reference), found.tunings):
        texts.append(shlex.join([f"--config={config}", f"--lr={lr_text(tuning.best)}",
                                 *options_of(side.words)]))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "step.json")
        done = subprocess.run([sys.executable, str(ROOT / "bench.py"), "--only=step", f"--options={texts[0]}",
                               f"--against={texts[1]}", f"--threads={threads}", f"--out={out}"],
                              capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["bench.py gives no reason"])[-1]
            print(f"note: the speed is not measured: {reason}")
            return None
        rows = {row["what"]: row for row in json.loads(out.read_text())["step"]}
    ours, theirs, rest = rows["optimizer"], rows["against"], rows["forward and backward"]
    return Speed(ours["mean, ms"], theirs["mean, ms"], rest["ms"],
                 (ours["state, bytes per weight"], theirs["state, bytes per weight"]))


# ---------------------------------------------------------------------------------------------------------
# The verdict in words


def word_of(found: Findings) -> str:
    """Returns the verdict: "better", "same", "worse", "cannot tell", "not bracketed" or "not finished"."""
    if found.tunings and not found.is_bracketed:
        return "not bracketed"
    return found.verdict.word if found.verdict else "not finished"


def sentence_of(found: Findings) -> str:
    """Returns the verdict as a sentence or two."""
    ours, theirs = (f"`{side.name}`" for side in (found.candidate, found.reference))
    word = word_of(found)
    if word == "not bracketed":
        sides = [name for name, tuning in zip((ours, theirs), found.tunings) if not tuning.bracketed]
        return (f"The search did not find a learning rate of {' and '.join(sides)} with a worse neighbour on "
                "both sides, so nothing can be said.")
    if word == "not finished":
        return "The audition is not finished."
    verdict = found.verdict
    if verdict.interval is None:
        return f"{verdict.reason[0].upper()}{verdict.reason[1:]}."
    mean, low, high, _, n, _ = verdict.interval
    difference = f"{abs(mean):.3f} nats {'lower' if mean < 0 else 'higher'} than that of {theirs}"
    text = (f"The final loss of {ours} is {difference}, the mean over {n} pairs of runs. The interval is "
            f"{low:+.3f} to {high:+.3f}. In at most {100 * ERROR:g} of 100 auditions, the last interval "
            "misses the true difference.")
    for name, tuning, votes in zip((ours, theirs), found.tunings, found.votes):
        if (gain := tuning.gain_at_untrained(votes)) > 0:
            text += (f" A learning rate of {name} that may be better by up to {gain:.3f} nats lacks pairs. "
                     "The interval allows for that, but the mean does not.")
    if word == "cannot tell":
        text += " " + outlook_of(found)
    return text


def outlook_of(found: Findings) -> str:
    """Returns which later look would decide, as a sentence."""
    unchanged = "if mean and spread stayed what they are"
    if found.verdict.enough:
        return f"{found.verdict.enough} pairs would be enough for another verdict, {unchanged}."
    if found.has_untrained:
        return "Pairs at this learning rate would tell more."
    if not found.later:
        return "This was the last look."
    return f"Even {found.later[-1].seeds} pairs, which are the most, would not be enough, {unchanged}."


# ---------------------------------------------------------------------------------------------------------
# The page


@dataclass
class Report:
    """Writes what an audition found.

    Attributes:
        folder: where page, picture and numbers go.
        command: the command of the audition.
        config: the TOML file.
        steps: the steps of a run.
        margin: the nats within which two optimizers are the same.
        first: the pairs of the first look.
        machine: {column of results.csv: value} of this machine.
        code: the text of the candidate's file, or "" for a rule of this project.
        faults: the properties that the candidate lacks.
        growth: how many times as far its steps go if gradients are a thousand times as large.
    """
    folder: Path
    command: str
    config: str
    steps: int
    margin: float
    first: int
    machine: dict[str, Any]
    code: str
    faults: list[str]
    growth: float

    def write(self, found: Findings, rows: list[dict[str, str]], stopped: str = "",
              measure: bool = True) -> None:
        """Writes verdict.md, verdict.png, verdict.json and results.csv. Rows that results.csv has already are
        kept, because an earlier page may have needed runs that this one does not, and no other file may have
        them.

        Args:
            found: what the runs say.
            rows: the rows of all runs that were used.
            stopped: why the audition ended before all was known, or "".
            measure: measure what a step takes, which needs half a minute.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = sorted(rows, key=lambda row: row["run"])
        commands = [row["command"] for row in rows]
        identity = ("run", *self.machine)
        kept = {tuple(row[name] for name in identity): row
                for row in (*read_csv(self.folder / "results.csv"), *rows)}
        if kept:
            write_csv(self.folder / "results.csv", COLUMNS, sorted(kept.values(), key=lambda row: row["run"]))
        speed = None
        if found.verdict and measure:
            speed = measure_speed(found, self.config, self.machine["threads"])
        if found.tunings and found.is_bracketed:
            draw(found, self.steps, self.margin, self.folder / "verdict.png")
        with whole_file(self.folder / "verdict.json") as file:
            file.write(to_json(self.numbers(found, speed, commands, stopped)))
        with whole_file(self.folder / "verdict.md") as file:
            file.write(self.page(found, speed, rows, stopped).encode())

    def numbers(self, found: Findings, speed: Speed | None, commands: list[str],
                stopped: str) -> dict[str, Any]:
        """Returns all numbers of the page, as verdict.json has them."""
        speedup, interval = found.speedup(self.steps), found.verdict and found.verdict.interval
        sides = []
        for i, side in enumerate((found.candidate, found.reference)):
            tuning = found.tunings[i] if found.tunings else Tuning({})
            sides.append(dict(
                words=side.words, rule=side.optimizer,
                lr_at_tuning_seed=None if tuning.best is None else lr_at(tuning.best),
                lr_in_pairs=lr_at(best_lr(found.votes[i])) if found.verdict else None,
                bracketed=tuning.bracketed,
                loss_by_lr={lr_text(lr): finite(loss) for lr, loss in sorted(tuning.losses.items())},
                loss_by_seed=dict(zip(map(str, found.seeds), map(finite, found.pairs[i]))),
                decades_usable=round(tuning.width()[0], 3) if tuning.best is not None else None,
                gain_at_other_lrs=round(found.gains[i], 5) if found.verdict else None,
                step_ms=(speed.candidate, speed.reference)[i] if speed else None,
                bytes_per_weight=speed.bytes[i] if speed else None))
        return dict(
            verdict=self.word(found),
            candidate=sides[0], reference=sides[1],
            difference=dict(interval._asdict()) if interval else None,
            enough_pairs=found.verdict.enough if found.verdict else None, margin=self.margin,
            speedup={name: finite(value) for name, value in speedup._asdict().items()} if speedup else None,
            time_to_reference_loss=self.time(found, speed),
            reference_lengths={str(seed): {str(steps): finite(loss) for steps, loss in of_seed.items()}
                               for seed, of_seed in found.lengths.items()},
            steps=self.steps, config=self.config, faults=self.faults, stopped=stopped, command=self.command,
            machine=self.machine | versions(), runs=commands,
            machines_of_pairs={str(seed): dict(zip(self.machine, kind))
                               for seed, kind in found.machines.items()})

    def word(self, found: Findings) -> str:
        """Returns the verdict, or that the rule was not trained for want of a property."""
        return word_of(found) if not self.faults or found.sides else "lacks a property"

    def time(self, found: Findings, speed: Speed | None) -> float | None:
        """Returns the candidate's time to the reference's loss, as time_to_loss() does, if it is known."""
        time = speed and time_to_loss(found.speedup(self.steps), speed.candidate, speed.reference, speed.rest)
        return time and round(time, 3)

    def page(self, found: Findings, speed: Speed | None, rows: list[dict[str, str]], stopped: str) -> str:
        """Returns the page as Markdown."""
        ours, theirs = (f"`{side.name}`" for side in (found.candidate, found.reference))
        word = self.word(found).replace("lacks", "it lacks")
        parts = [f"# Is {ours} better than {theirs}? {word[0].upper()}{word[1:]}",
                 self.sentences(found, stopped)]
        if found.verdict:
            third = ".\nRight: losses of the reference at other lengths" if found.has_other_lengths else ""
            parts += [self.answers(found, speed),
                      f"![Losses over learning rates, then differences of pairs{third}](verdict.png)"]
        if found.tunings:
            parts += [self.method(found, rows)]
        parts += [self.properties()]
        if found.tunings:
            parts += [tables_of(found)]
        if self.code:
            parts += [f"## The rule\n\n```python\n{self.code.strip()}\n```"]
        parts += [self.runs(found, [row["command"] for row in rows])]
        return "\n\n".join(parts) + "\n"

    def sentences(self, found: Findings, stopped: str) -> str:
        """Returns what stands below the title."""
        if self.faults and not found.sides:
            return "The rule lacks a property that every optimizer must have, so it was not trained."
        if stopped == STILL_RUNNING:
            return f"The audition is {stopped}. {sentence_of(found) if found.verdict else ''}".strip()
        return sentence_of(found) + (f" The audition stopped early: {stopped}." if stopped else "")

    def answers(self, found: Findings, speed: Speed | None) -> str:
        """Returns the table of answers."""
        ours, theirs = (f"`{side.name}`" for side in (found.candidate, found.reference))
        rows = [("final validation loss, nats per token, mean ± sd", *map(spread, found.pairs)),
                ("best peak learning rate in the pairs", *(lr_text(best_lr(votes)) for votes in found.votes)),
                (f"decades of learning rates within {USABLE:g} nats of the best",
                 *map(width_of, found.tunings))]
        if found.verdict.interval:
            mean, low, high, *_ = found.verdict.interval
            rows.insert(1, (f"difference to {theirs}", f"{mean:+.3f} ({low:+.3f} to {high:+.3f})", ""))
            rows.insert(3, ("nats by which the loss may be lower at a learning rate that lacks pairs",
                            *(f"{gain:.3f}" for gain in found.gains)))
        if speedup := found.speedup_text(self.steps):
            rows.append((f"times as many steps that {theirs} needs for this loss", speedup, "1"))
        if speed:
            steps = speed.candidate, speed.reference
            threads = f"{self.machine['threads']} thread{'s' if int(self.machine['threads']) > 1 else ''}"
            rows += [(f"milliseconds of the optimizer's step, {threads}", *(f"{step:.2f}" for step in steps)),
                     (f"milliseconds of the rest of a training step, {threads}", *[f"{speed.rest:.0f}"] * 2),
                     ("bytes of state per weight of the model", *(f"{count:.2f}" for count in speed.bytes))]
        if (time := self.time(found, speed)) is not None:
            rows.append((f"time to the loss of {theirs}, relative to its own", f"{time:.2f}", "1"))
        return as_table(("", ours, theirs), rows).strip()

    def method(self, found: Findings, rows: list[dict[str, str]]) -> str:
        """Returns how the verdict was made. If the rules do not train all weights, it says how the rest was
        trained."""
        counts = [str(look.seeds) for look in looks(self.first)]
        return METHOD.read_text().rstrip().format(
            config=self.config, steps=self.steps, tuning_seed=TUNING_SEED, contends=CONTENDS,
            number_of_looks=len(counts), looks=", ".join(counts), error=100 * ERROR,
            first_error=100 * looks(self.first)[0].level, margin=self.margin,
            rest=rest_of(found, rows), link=self.link("docs/audition.md"))

    def link(self, path: str) -> str:
        """Returns the path of a file of the project, seen from the page."""
        return os.path.relpath(ROOT / path, self.folder)

    def properties(self) -> str:
        """Returns the section on the rule's properties."""
        held = "It has all properties that were tested."
        lines = "".join(f"\n* {fault}" for fault in self.faults)
        far = "just as far" if abs(self.growth - 1) < 0.01 else f"{self.growth:.3g} times as far"
        text = f"## Properties of the rule\n\n{lines.strip() or held}"
        if math.isnan(self.growth):
            return text
        return (f"{text}\n\nSix steps go {far} if all gradients are 1,000 times as large. AdamW's go just as "
                "far.")

    def runs(self, found: Findings, commands: list[str]) -> str:
        """Returns the section on runs and machines."""
        seeds: dict[tuple[str, ...], list[str]] = {}
        for seed, kind in found.machines.items():
            seeds.setdefault(kind, []).append(str(seed))
        kinds = as_table(("seeds of pairs", *self.machine),
                         [(", ".join(of_kind), *kind) for kind, of_kind in seeds.items()])
        used = (f"{len(commands)} runs were used. The losses of two kinds of machines differ a little, so\n"
                "both runs of a pair are of one kind.\n"
                + (f"\n{kinds}\n" if seeds else "") +
                "[results.csv](results.csv) has a row and the command of each run, so that others can pool\n"
                "them. [verdict.json](verdict.json) has all numbers.\n")
        return (f"## Runs\n\n{used if commands else ''}"
                f"This command made the page:\n\n```bash\n{self.command}\n```")


def rest_of(found: Findings, rows: list[dict[str, str]]) -> str:
    """Returns which learning rate trained the weights that a side's rule is not for, as paragraphs."""
    text = ""
    for side in dict.fromkeys((found.candidate, found.reference)):
        rates = {row["rest_lr"] for row in rows if row["optimizer"] == side.optimizer} - {""}
        if rates:
            text += (f"`{side.name}` trains only a part of the weights. Another rule trained the rest, at a "
                     f"peak\nlearning rate of {' or '.join(sorted(rates))}, which was not tuned here.\n\n")
    return text


def finite(value: float) -> float | None:
    """Returns a number for JSON, which has no infinite ones."""
    return value if math.isfinite(value) else None


def width_of(tuning: Tuning) -> str:
    """Returns the width of the usable range in words."""
    decades, is_complete = tuning.width()
    return f"{decades:.1f}" if is_complete else f"at least {decades:.1f}"


def tables_of(found: Findings) -> str:
    """Returns the tables of all losses."""
    names = [f"`{side.name}`" for side in (found.candidate, found.reference)]
    lrs = sorted(set().union(*(tuning.losses for tuning in found.tunings)))
    def cells(lr: int) -> list[str]:
        return [decimals(tuning.losses[lr]) if lr in tuning.losses else "" for tuning in found.tunings]

    text = f"## All losses\n\nFinal validation losses at seed {TUNING_SEED}, in nats per token:\n\n"
    text += as_table(("peak learning rate", *names), [(lr_text(lr), *cells(lr)) for lr in lrs])
    if found.choices:
        text += "\nOther hyperparameters, at the best learning rate and the same seed:\n\n" + as_table(
            ("tried", "final loss"), [(f"`{words}`", decimals(loss)) for words, loss in found.choices])
    if found.verdict:
        columns = {f"{name}, lr {lr_text(lr)}": of_lr for name, votes in zip(names, found.votes)
                   for lr, of_lr in votes.items()}
        text += ("\nFinal validation losses of the pairs, at each learning rate that was trained in pairs. "
                 "The difference is\nthat between the best ones:\n\n") + as_table(
            ("seed", *columns, "difference"),
            [(seed, *(decimals(of_lr[i]) for of_lr in columns.values()), decimals(ours - theirs))
             for i, (seed, ours, theirs) in enumerate(zip(found.seeds, *found.pairs))])
    if found.length_tunings and not found.wanted:
        steps = sorted(next(iter(found.lengths.values())))
        lrs = {count: lr_text(tuning.best) for count, tuning in found.length_tunings.items()}
        text += f"\nFinal validation losses of {names[1]}, tuned at each length:\n\n" + as_table(
            ("seed", *(f"{count} steps" + (f", lr {lrs[count]}" if count in lrs else "") for count in steps)),
            [(seed, *(decimals(of_seed[count]) for count in steps))
             for seed, of_seed in found.lengths.items()])
    return text.strip()


# ---------------------------------------------------------------------------------------------------------
# The picture


def draw(found: Findings, steps: int, margin: float, path: Path) -> None:
    """Draws losses over learning rates, the differences of the pairs with their interval, and the candidate's
    loss beside the reference's losses at other lengths, if these are known."""
    figure = blank_figure(9, 3.4)
    rates, pairs, *lengths = figure.subplots(1, 3 if found.has_other_lengths else 2)
    names = [side.name for side in (found.candidate, found.reference)]
    for name, tuning, color, mark in zip(names, found.tunings, (COLORS[4], COLORS[1]), "os"):
        known = {lr: loss for lr, loss in sorted(tuning.losses.items()) if math.isfinite(loss)}
        rates.plot(list(map(lr_at, known)), list(known.values()), color=color, marker=mark, label=name)
    lowest = min(tuning.losses[tuning.best] for tuning in found.tunings)
    rates.set(xscale="log", xlabel=f"peak learning rate (seed {TUNING_SEED})", ylabel=LOSS,
              ylim=(lowest - 0.1, lowest + 1.5))
    rates.legend(fontsize=8)
    pairs.axhspan(-margin, margin, color="0.9", label=f"within {margin:g} nats: the same")
    pairs.axhline(0, color="0.5", lw=1)
    if found.verdict and found.verdict.interval:
        draw_pairs(pairs, found.seeds, found.pairs, found.verdict)
    pairs.set(xlabel="seed", ylabel=f"loss of {names[0]} - {names[1]}")
    pairs.legend(fontsize=8)
    if found.has_other_lengths:
        draw_lengths(*lengths, found, names, steps)
    for axes in (rates, pairs, *lengths):
        axes.grid(alpha=0.3)
    with whole_file(path) as file:
        figure.savefig(file, dpi=DPI, format="png", metadata={"Software": None})


def draw_lengths(axes, found: Findings, names: list[str], steps: int) -> None:
    """Draws the reference's losses at other lengths, a line for each seed, and the candidate's own losses."""
    for i, of_seed in enumerate(found.lengths.values()):
        counts = sorted(of_seed)
        axes.plot(counts, [of_seed[count] for count in counts], color=COLORS[1], marker="s", lw=1, alpha=0.7,
                  label=names[1] if i == 0 else None)
        axes.plot(steps, found.pairs[0][i], "o", color=COLORS[4], label=names[0] if i == 0 else None)
    axes.set(xscale="log", xlabel="steps of a run", ylabel=LOSS)
    axes.legend(fontsize=8)
    counts = sorted(set().union(*found.lengths.values()))
    axes.set_xticks(counts, counts)
    axes.minorticks_off()


def draw_pairs(axes, seeds: list[int], pairs: tuple[list[float], list[float]], verdict: Verdict) -> None:
    """Draws the differences of the pairs, and their interval beside them."""
    axes.plot(seeds, np.subtract(*pairs), "o", color="black", label="a pair")
    mean, low, high, *_ = verdict.interval
    place = max(seeds) + 1
    axes.errorbar([place], [mean], [[mean - low], [high - mean]], fmt="D", color=COLORS[4], capsize=4,
                  label="mean and interval")
    axes.set_xticks([*seeds, place], [*map(str, seeds), "all"])
