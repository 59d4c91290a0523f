"""Tests of the study: rows outlive their runs, and verdicts and figures follow from the rows."""
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import matplotlib.image
from matplotlib.figure import Figure
import numpy as np
import pytest
import torch

from conftest import ROOT
from study import __main__ as command
from study import claims, evidence, figures, league, panels, tables, thresholds
from study.verdict import Interval, Verdict
from tiny_runs import final, run
from trainer import measure, script, settings
from zoo import RULES

PLAIN, LARGER, LONGER = "study qk_norm=false z_loss=0", "study width=128 heads=4", "study steps=4000"


class World:
    """Rows of results.csv with known mean losses, for which every claim holds.

    Each combination of options has three seeds, whose standard deviation is 0.005.

    Args:
        changed: {attribute: value}, to make a claim false. A dict changes some entries of the attribute.
    """
    best = dict(adamw=4.40, adafactor=4.41, lion=4.42, signum=4.415, sgd=6.0, adalayer_star=4.45,
                adalayer=4.8, adasgd=5.8, sophia=4.42, sgd_ema=5.95)
    lr = dict(lion=1e-3, signum=1e-3, sophia=1e-3, sgd=3.16, sgd_ema=10.0)    # the best lr; 1e-2 for others
    # loss = best + curved * decades^2, where curved is 0.4 for others
    curved = dict(sgd=2.0, sgd_ema=2.0, adalayer=0.8, adasgd=2.0)
    plain, long = dict(sgd=4.0, other=0.6), dict(sgd=1.5, other=0.25)
    longer_gain, low_beta1, high_beta1, sgd_beta1 = 0.2, 0.2, 0.02, 1.0
    tied, gain, sgd_gain, batch = 0.0, 0.0, 0.2, 0.1
    variants = dict(hybrid_last=(5.0, 2.0), hybrid_last_norm=(4.44, 0.4), hybrid_reverse=(5.2, 2.0),
                    hybrid_adafactor=(4.42, 0.4), norms_untrained=(4.9, 0.8), untrained=(4.6, 0.4),
                    embed=(4.455, 0.4), everywhere=(4.42, 0.4), both=(4.45, 0.4))
    frozen = {"head+norm": (4.45, 0.4), "none": (5.2, 2.0), "head": (4.455, 2.0), "norm": (4.455, 2.0)}
    head, norm = 1000.0, 0.1

    def __init__(self, **changed):
        for name, value in changed.items():
            old = getattr(self, name)
            setattr(self, name, old | value if isinstance(old, dict) else value)
        self.rows, self.effective = [], []
        self.make()

    def row(self, sweep, optimizer, loss, lr=None, setting="study", rest_lr="", changed="", **columns):
        """Adds three seeds around a mean loss. sweep: the sweep to which the rows belong, for `write`."""
        lr = lr or self.lr.get(optimizer, 1e-2)
        for seed, off in enumerate((-0.005, 0, 0.005)):
            name = f"{setting},{optimizer},{changed},{lr:g},{rest_lr},{seed}".replace(" ", ",")
            finite = loss < 9
            self.rows.append(dict(
                run=name, config="configs/study.toml", setting=setting, optimizer=optimizer, lr=f"{lr:.3g}",
                seed=str(seed), changed=changed, beta1="0.98" if optimizer == "sgd" else "0.9", beta2="0.95",
                eps="1e-15", weight_decay="0", warmup="0.1", batch="32", context="128", rest_lr=str(rest_lr),
                steps="4000" if setting == LONGER else "1000",
                hidden="800000" if setting == LARGER else "200000",
                status="done" if finite else "diverged", loss=f"{loss + off:.5f}" if finite else "",
                bits_per_byte="1.5" if finite else "", device="cpu", precision="bf16", threads="1",
                tokens_per_second="50000", torch="2.13", command="x", sweep=sweep) |
                {key: str(value) for key, value in columns.items()})

    def along_lr(self, sweep, optimizer, best, curved, setting="study", changed="", rest=0):
        """Adds nine learning rates, of which the highest diverges. rest: the best rest_lr, if that varies."""
        middle = rest or self.lr.get(optimizer, 1e-2)
        for i in range(-4, 5):
            x = float(f"{middle * 10**(i / 2):.3g}")
            loss = best + curved * (i / 2)**2 + 99 * (i == 4)
            self.row(sweep, optimizer, loss, None if rest else x, setting, x if rest else "", changed)

    def make(self):
        for name in ("adamw", "adafactor", "lion", "signum", "sgd", "adalayer_star"):
            self.learning_rates(name)
            self.momentum(name)
            self.other_hyperparameters(name)
        self.variants_of_adalayer()
        self.effective_lrs()

    def learning_rates(self, name):
        best, curved = self.best[name], self.curved.get(name, 0.4)
        self.along_lr("lr", name, best, curved)
        self.along_lr("larger", name, best - 0.3, curved, LARGER)
        curved = self.long.get(name, self.long["other"])
        self.along_lr("longer", name, best - self.longer_gain, curved, LONGER)
        curved = self.plain.get(name, self.plain["other"])
        self.along_lr("plain", name, best + 0.1, curved, PLAIN)

    def momentum(self, name):
        low = self.low_beta1 if name in ("lion", "signum") else 0.05
        high = self.high_beta1 if name == "lion" else 0.1
        for beta in ("0", "0.5", "0.8", "0.9", "0.95", "0.98", "0.99"):
            b = float(beta)
            rise = abs(b - 0.98) * self.sgd_beta1 if name == "sgd" else low * (b < 0.8) + high * (b == 0.99)
            loss = self.best[name] + rise
            changed = "" if beta == ("0.98" if name == "sgd" else "0.9") else f"beta1={beta}"
            self.row("momentum", name, loss, changed=changed, beta1=beta)
            if name == "signum" and beta != "0.95":
                changed = f"{changed} beta2={beta}".strip()
                self.row("tied", "adamw", loss + self.tied, changed=changed, beta1=beta, beta2=beta)

    def other_hyperparameters(self, name):
        """Three values of each or more. Only the last value of warmup is better than the usual one."""
        usual = dict(weight_decay="0", warmup="0.1", beta2="0.95", batch="32")
        for key, values in (("weight_decay", ("0", "0.001", "0.1")), ("warmup", ("0.02", "0.1", "0.8")),
                            ("beta2", ("0.8", "0.95", "0.99")), ("batch", ("16", "32", "64", "128")),
                            ("eps", ("1e-15", "1e-12", "1e-05"))):
            for i, value in enumerate(values):
                loss = self.best[name]
                if key == "warmup" and i == 2:
                    loss -= self.sgd_gain if name == "sgd" else self.gain
                if key == "batch":
                    loss += (i - 1) * self.batch
                changed = "" if value == usual.get(key) else f"{key}={value}"
                if key == "eps":
                    changed = f"beta2=0.98 eps={value}" if i else "beta2=0.98"
                more = dict(steps=32000 // int(value)) if key == "batch" else {}
                self.row(key, name, loss, changed=changed, **{key: value}, **more)

    def variants_of_adalayer(self):
        for name in ("adalayer", "adasgd", "sophia", "sgd_ema"):
            self.along_lr(name, name, self.best[name], self.curved.get(name, 0.4))
        self.along_lr("adalayer", "adalayer", *self.variants["embed"], changed="rows=head+embed")
        self.along_lr("granularity", "adalayer", *self.variants["everywhere"],
                      changed="rows=embed+qkv+matrix+head")
        star, rest = "adalayer_star", "rest=sgd_ema"
        for sweep, roles in (("hybrid_last", "head"), ("hybrid_last_norm", "head+norm"),
                             ("hybrid_reverse", "qkv+matrix")):
            self.along_lr(sweep, star, *self.variants[sweep], changed=f"adaptive={roles} {rest}", rest=10)
        self.along_lr("hybrid_adafactor", "adafactor", *self.variants["hybrid_adafactor"], rest=10,
                      changed=f"adaptive=head+norm {rest}")
        self.along_lr("norms_untrained", star, *self.variants["norms_untrained"], rest=10,
                      changed=f"adaptive=head {rest} untrained=norm")
        self.along_lr("norms_untrained", star, *self.variants["untrained"], changed="untrained=norm")
        self.along_lr("adasgd", star, *self.variants["both"], rest=1e-2,
                      changed="adaptive=head+norm rest=adasgd")
        self.along_lr("adasgd", "adasgd", 5.8, 2.0, changed="beta1=0.98")
        for updating, (best, curved) in self.frozen.items():
            self.along_lr("frozen", star, best, curved, changed=f"freeze_steps=100 updating={updating}")
        self.along_lr("frozen", star, 4.7, 0.4, changed="freeze_steps=100 untrained=norm updating=head")

    def effective_lrs(self):
        """Quantiles of Adalayer*'s runs at the best learning rate."""
        names = {row["run"] for row in self.rows if row["optimizer"] == "adalayer_star"
                 and row["setting"] == "study" and not row["changed"] and row["lr"] == "0.01"}
        spans = (("head", 100, self.head), ("matrix", 3, 2), ("attn_out", 3, 2), ("qkv", 4, 2),
                 ("embed", 50, 1), ("norm", self.norm, 3))    # role, median, factor
        for name, step, (role, median, factor) in itertools.product(sorted(names), (1, 500, 1000), spans):
            values = [median * factor**power for power in (-1, -0.5, -0.2, 0, 0.2, 0.5, 1)]
            self.effective.append(dict(run=name, step=str(step), role=role) |
                                  {q: f"{x:.4g}" for q, x in zip(tables.QUANTILES, values)})

    def write(self, folder, without=()):
        """Writes the files of a results folder, without the rows of some sweeps. Returns them as a Study."""
        folder.mkdir(exist_ok=True)
        rows = {row["run"]: {k: v for k, v in row.items() if k != "sweep"} for row in reversed(self.rows)
                if row["sweep"] not in without}
        tables.write_csv(folder / "results.csv", tables.COLUMNS, [rows[name] for name in sorted(rows)])
        kept = [] if "effective_lr" in without else self.effective
        tables.write_csv(folder / "effective_lr.csv", tables.EFFECTIVE_COLUMNS, kept)
        curves = [dict(run=name, step=[10, 500, 1000], loss=[9.0, 6.0, float(row["loss"] or 9)])
                  for name, row in sorted(rows.items())]
        (folder / "curves.jsonl").write_text("".join(json.dumps(curve) + "\n" for curve in curves))
        return tables.read_study(folder, "study")


@pytest.fixture(scope="module")
def truth():
    return World()


# for each claim: what makes it false, the sweep without which it is open, and what is then asked for
CASES = {
    "parity": (dict(best=dict(signum=4.6)), "lr", "lr configs/study.toml"),
    "lr_stability": (dict(curved=dict(sgd=0.4)), "lr", "lr configs/study.toml"),
    "lr_scale": (dict(lr=dict(sgd=0.1)), "larger", "width="),
    "stabilizers": (dict(plain=dict(other=0.4)), "plain", "qk_norm=false z_loss=0"),
    "longer_training": (dict(longer_gain=0.0), "longer", "steps=4000"),
    "momentum": (dict(high_beta1=0.3), "momentum", "momentum"),
    "other_hyperparameters": (dict(gain=0.1), "batch", "batch_size"),
    "signum_is_tied_adam": (dict(tied=0.2), "tied", "tied"),
    "adalayer": (dict(variants=dict(embed=(4.6, 0.4))), "adalayer", "adalayer"),
    "effective_lrs": (dict(head=3.0), "effective_lr", "effective_lr"),
    "last_layer_adaptive": (dict(variants=dict(hybrid_last=(5.0, 0.4))), "hybrid_last", "hybrid_last"),
    "last_layer_and_norms_adaptive": (dict(variants=dict(hybrid_last_norm=(4.6, 0.4))),
                                      "hybrid_last_norm", "hybrid_last_norm"),
    "reverse_hybrid": (dict(variants=dict(hybrid_reverse=(4.45, 2.0))), "hybrid_reverse", "hybrid_reverse"),
    "norms_untrained": (dict(variants=dict(norms_untrained=(4.4, 0.8))), "norms_untrained",
                        "norms_untrained"),
    "frozen_ratios": (dict(frozen={"none": (4.45, 2.0)}), "frozen", "frozen"),
    "adasgd": (dict(best=dict(adasgd=6.1)), "adasgd", "adasgd"),
    "adafactor_hybrid": (dict(variants=dict(hybrid_adafactor=(4.3, 0.4))), "hybrid_adafactor",
                         "hybrid_adafactor"),
    "sophia": (dict(best=dict(sophia=4.3)), "sophia", "sophia"),
}


def test_every_claim_is_tested():
    assert list(CASES) == [claim.__name__ for claim in claims.CLAIMS]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_claim_holds_fails_and_is_open(name, truth, tmp_path):
    claim = getattr(claims, name)
    different, sweep, asked = CASES[name]
    verdict, lines = claims.judge(claim, truth.write(tmp_path / "a"))
    assert verdict == "holds" and all(line.startswith("yes: ") for line in lines), lines
    verdict, lines = claims.judge(claim, World(**different).write(tmp_path / "b"))
    assert verdict == "does not hold here", lines
    verdict, lines = claims.judge(claim, truth.write(tmp_path / "c", without=[sweep]))
    assert verdict == "not enough runs" and lines[-1].startswith("missing: ./sweep.sh "), lines
    assert asked in lines[-1] and "configs/study.toml" in lines[-1] and "seed=0,1,2" in lines[-1]


def test_one_false_comparison_decides_whatever_else_is_missing(tmp_path):
    different, sweep, asked = CASES["lr_scale"]
    verdict, lines = claims.judge(claims.lr_scale, World(**different).write(tmp_path / "a", without=[sweep]))
    assert verdict == "does not hold here", lines
    assert any(line.startswith("no: sgd = 300 x adamw") for line in lines), lines
    assert lines[-1].startswith("missing: ./sweep.sh ") and asked in lines[-1], lines


def test_numbers_behind_a_verdict(truth, tmp_path):
    """Widths, best learning rates and spreads are as computed by hand."""
    study = truth.write(tmp_path / "a")
    assert study.best("lr", "adamw").value == 0.01
    assert np.mean(study.best("lr", "adamw").losses) == pytest.approx(4.4)
    # the loss is 0.1 above the best at half a decade and 0.4 at one decade: 0.2 is a third of the way between
    assert study.width("lr", "adamw") == (pytest.approx(2 * (0.5 + 0.5 / 3), abs=2e-3), True, 3)
    assert study.width("lr", "sgd").decades == pytest.approx(2 * 0.5 * 0.2 / 0.5, abs=2e-3)
    assert study.sd(None, [1.0, 1.2], [2.0, 2.2]) == pytest.approx(0.02**0.5)
    # a group of one seed says nothing, so the spread is that of all that was repeated
    assert study.sd(None, [1.0], [2.0, 2.2]) == pytest.approx(0.005)
    assert evidence.margin(0.005) == thresholds.PARITY and evidence.margin(0.05) == 0.1
    assert sorted(study.curve("adamw", "tied")) == [0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99]


def test_differences_between_seeds_do_not_change_a_width(tmp_path, truth):
    """If some points have one seed and others three, the width is that of the one, and the best loss that of
    the three."""
    study = truth.write(tmp_path / "a")
    study.rows = [row for row in study.rows
                  if row["optimizer"] != "adamw" or row["lr"] == 0.01 or row["seed"] == 0]
    for row in study.rows:
        if row["optimizer"] == "adamw" and row["lr"] == 0.01 and row["seed"] > 0:
            row["loss"] -= 0.1
    assert study.width("lr", "adamw") == (pytest.approx(2 * (0.5 + 0.5 / 3), abs=2e-3), True, 1)
    assert np.mean(study.best("lr", "adamw").losses) == pytest.approx(4.4 - 0.2 / 3)
    assert [len(losses) for losses in study.curve("adamw", paired=True).values()] == [1] * 9
    assert len(study.curve("adamw")[0.01]) == 3


def test_the_best_is_chosen_by_the_seeds_that_all_values_have(tmp_path, truth):
    """Two unlucky seeds that only the best value has do not change the choice. A diverged seed there does."""
    study = truth.write(tmp_path / "a")
    study.rows = [row for row in study.rows
                  if row["optimizer"] != "adamw" or row["lr"] == 0.01 or row["seed"] == 0]
    more = [row for row in study.rows
            if row["optimizer"] == "adamw" and row["lr"] == 0.01 and row["seed"] > 0]
    for row in more:
        row["loss"] += 0.3    # the mean of the three is then above 4.5, which the neighbours have
    lr, losses = study.lowest("adamw")
    assert lr == study.best("lr", "adamw").value == 0.01 and np.mean(losses) == pytest.approx(4.4 + 0.2)
    more[0]["loss"] = np.inf
    assert study.lowest("adamw").value in (0.00316, 0.0316)
    assert study.lowest("adamw", setting="none") == (None, [])


def test_a_run_under_two_names_counts_once(tmp_path, truth):
    twice = World()
    for row in list(twice.rows):
        twice.rows.append(row | dict(run="again," + row["run"]))
    one, two = truth.write(tmp_path / "a"), twice.write(tmp_path / "b")
    assert len(two.rows) == 2 * len(one.rows) and two.curve("adamw") == one.curve("adamw")
    assert two.sd() == one.sd() and tables.table(two) == tables.table(one)


def test_the_best_must_not_be_at_the_edge(tmp_path, truth):
    study = truth.write(tmp_path / "a")
    study.rows = [row for row in study.rows if row["lr"] <= 0.01]
    with pytest.raises(evidence.NotEnough, match="lr=0.0316 seed=0,1,2"):
        study.best("lr", "adamw")


def picture(path):
    """Returns the height, the width, and the fraction of pixels that are not white."""
    pixels = matplotlib.image.imread(path)[..., :3]
    return *pixels.shape[:2], float((pixels.min(2) < 0.95).mean())


FIGURES = ("lr", "lr_shifted", "momentum", "tied", "others", "effective_lr", "hybrids", "frozen", "adalayer",
           "adasgd", "curves", "sophia", "league_lr", "league")


@pytest.mark.slow
def test_everything_is_redrawn_from_the_results_alone(truth, tmp_path, capsys):
    """Without any run there are verdicts, and figures that are not blank. The files from which they are made
    do not change. Only momentum at the other settings and the league's other rules are missing."""
    truth.write(tmp_path / "r")
    (tmp_path / "r/rules.json").write_text('{"rules": [{"step of": "adamw", "mean, ms": 2.34}]}')
    before = {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()}
    wanted = dict(setting="study", optimizer="adamw", changed="", lr="0.01")
    row = next(row for row in tables.read_csv(tmp_path / "r/results.csv") if wanted.items() <= row.items())
    (tmp_path / "auditions/x").mkdir(parents=True)
    tables.write_csv(tmp_path / "auditions/x/results.csv", tables.COLUMNS, [row | dict(seed="7", loss="4.4")])
    assert command.main([f"--runs={tmp_path / 'none'}", f"--results={tmp_path / 'r'}",
                         f"--auditions={tmp_path / 'auditions'}"]) == 0
    out = capsys.readouterr().out
    assert {p.stem for p in (tmp_path / "r").glob("*.png")} == set(FIGURES)
    for name in FIGURES:
        height, width, ink = picture(tmp_path / f"r/{name}.png")
        assert min(height, width) > 400 and ink > 0.015, (name, height, width, ink)
    table = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    header, verdicts = table[0], [cells[2:] for cells in table if cells[0].isdigit()]
    assert header[1:] == ["study, 1,000 steps", "study, 4,000 steps", "150m, not run"]
    at_base, longer, at_150m = (list(column) for column in zip(*verdicts))
    assert at_base == ["holds"] * len(claims.CLAIMS) and at_150m == ["not enough runs"] * len(claims.CLAIMS)
    assert longer[:2] == ["holds"] * 2    # these two need learning rates alone, which the longer runs have
    assert longer.count("not enough runs") == 16 and "**study, 1,000 steps: holds**\n\n- yes: study: " in out
    asked = [line.split() for line in out.splitlines() if line.startswith("  ./sweep.sh")]
    asked.remove(["./sweep.sh", "league", "configs/study.toml", "seed=0,1,2"])
    assert len(asked) == 4 and all(words[1] in ("momentum", "tied") and "=" in words[3] for words in asked)
    assert {name: (tmp_path / "r" / name).read_bytes() for name in before} == before
    table = (tmp_path / "r/table.md").read_text()
    assert "| study | adamw |  | 0.01 | 4.400 | 0.005 | 3 | 1.500 |" in table
    assert "| study | adamw |  | 1 | 3 diverged |  | 3 |  |" in table
    text = (tmp_path / "r/league.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows[0] == "| adamw | 1e-2 | 4.400 | 0.004 | 4 |  | the reference |  |  | 2.3 | 8.00 |"
    assert rows[-1].startswith("| sgd | 3.16 | 6.000 |") and len(rows) == 10


@pytest.mark.slow
def test_what_is_missing_is_said(truth, tmp_path, capsys):
    truth.write(tmp_path / "r", without=["momentum", "frozen", "larger"])
    assert command.main([f"--runs={tmp_path / 'none'}", f"--results={tmp_path / 'r'}"]) == 0
    out = capsys.readouterr().out
    assert "frozen.png: drawn with\n  ./sweep.sh frozen configs/study.toml seed=0,1,2\n" in out
    assert "lr.png: more with\n  ./sweep.sh lr configs/study.toml width=" in out
    assert not (tmp_path / "r/frozen.png").exists() and (tmp_path / "r/lr.png").exists()


def test_a_longer_base_has_variants_of_its_own():
    sizes = {"study": (500, 200), "study width=128": (500, 800), "study steps=2000": (2000, 200),
             "study steps=8000": (8000, 200), "study steps=2000 width=128": (2000, 800),
             "study qk_norm=false steps=2000 z_loss=0": (2000, 200)}
    rows = [dict(setting=setting, steps=steps, hidden=hidden, batch=32, changed={}, optimizer="adamw")
            for setting, (steps, hidden) in sizes.items()]
    short = evidence.Study(rows, [], "study")
    assert [one.base for one in short.other_bases()] == ["study steps=2000", "study steps=8000", "150m"]
    assert short.larger() == ["study width=128"] and short.unstabilized() == []
    assert short.variant_command("longer") == "./sweep.sh lr configs/study.toml steps=2000 seed=0,1,2"
    longer = evidence.Study(rows, [], "study steps=2000")
    assert longer.longer() == ["study steps=8000"] and longer.larger() == ["study steps=2000 width=128"]
    assert longer.unstabilized() == ["study qk_norm=false steps=2000 z_loss=0"]
    assert longer.variant_command("longer", "optimizer=sgd") == (
        "./sweep.sh lr configs/study.toml steps=8000 optimizer=sgd seed=0,1,2")
    other = rows + [rows[0] | dict(setting="study qk_norm=false z_loss=0.001")]    # it has a z-loss
    assert evidence.Study(other, [], "study").unstabilized() == []
    of_paper = short.other_bases()[-1]    # without a row that says how long four times longer is
    assert of_paper.variant_command("longer") == "./sweep.sh lr configs/150m-long.toml seed=0,1,2"


def parabola(optimizer, setting, steps, half_decades, curvature, best=4.5):
    """Rows of two seeds for each learning rate. Losses rise with the square of the distance from 1e-2."""
    return [dict(optimizer=optimizer, setting=setting, steps=steps, batch=32, hidden=1, changed={}, seed=seed,
                 lr=10 ** (k / 2), loss=best + curvature * (k / 2 + 2)**2 + 0.01 * seed)
            for k in half_decades for seed in (0, 1)]


@pytest.mark.parametrize("half_decades, is_known", [((-5, -4, -3, -2), False), (range(-9, 2), True)])
def test_a_width_that_is_only_a_lower_bound_decides_nothing(half_decades, is_known):
    """The longer runs have a flat curve, of which only 1.5 decades may be known, beside 1.5 of the others."""
    rows = []
    for name in claims.FIVE:
        rows += parabola(name, "study", 500, range(-8, 1), 0.35)
        rows += parabola(name, "study steps=2000", 2000, half_decades, 0.05, best=4.0)
    of_claim = claims.longer_training(evidence.Study(rows, [], "study"))
    found = [next(of_claim) for _ in claims.FIVE]
    assert all(is_lower for is_lower, _ in found)
    if is_known:
        assert next(of_claim)[0]
        return
    with pytest.raises(evidence.NotEnough, match="sweep.sh lr configs/study.toml steps=2000 optimizer=adamw"):
        next(of_claim)


def test_a_best_rate_of_the_rest_at_the_edge_is_not_judged():
    rows = [dict(setting="study", optimizer="adalayer_star", lr=0.01, seed=0, loss=1 / lr, rest_lr=lr,
                 changed=dict(adaptive="head", rest="sgd_ema", rest_lr=lr)) for lr in (0.1, 1.0, 10.0, 100.0)]
    study = evidence.Study(rows, [], "study")
    with pytest.raises(evidence.NotEnough, match="rest_lr=316 seed=0,1,2    .the best is at the edge"):
        study.best("hybrid_last", "adalayer_star", "rest_lr", adaptive="head", rest="sgd_ema")


@pytest.mark.parametrize("batch, steps, setting, changed", [
    (32, 500, {}, {}), (16, 1000, {}, {"batch": "16"}), (32, 2000, {"steps": "2000"}, {}),
    (16, 4000, {"steps": "2000"}, {"batch": "16"}), (128, 500, {}, {"batch": "128", "steps": "500"})])
def test_a_setting_is_a_number_of_tokens(batch, steps, setting, changed):
    """So the runs of another batch with as many tokens are of the same setting, at each length."""
    of_run = settings.defaults(ROOT / "configs/study.toml", "adamw") | dict(batch=batch, steps=steps)
    assert tables.changed_options(of_run) == (setting, changed)


@pytest.mark.parametrize("rules", [["adamw"] * 27, ["adamw"] * 20 + ["lion"] * 20])
def test_no_two_variants_look_the_same(rules):
    looks = [tuple(sorted(style.items())) for style in figures.styles_of(rules)]
    assert len(set(looks)) == len(rules)


def test_no_runs_and_no_results(tmp_path, capsys):
    assert command.main([f"--runs={tmp_path / 'a'}", f"--results={tmp_path / 'b'}"]) == 2
    assert "hold no runs and no results" in capsys.readouterr().err and not (tmp_path / "b").exists()
    before = (ROOT / "study/results/table.md").stat().st_mtime_ns
    assert command.main([f"--runs={tmp_path}", "--match=none*"]) == 2
    assert "--match=none*: " in capsys.readouterr().err
    assert (ROOT / "study/results/table.md").stat().st_mtime_ns == before


@pytest.mark.slow
def test_results_outlive_their_runs(tiny, tmp_path, capsys):
    """A real run's row has its numbers, its setting, and the command that repeats it. It stays when the run's
    folder is gone, and another run of that name replaces it."""
    runs, results = tmp_path / "runs", tmp_path / "results"
    more = ["--beta1=0.8", "--weight_decay=0.01", "--optimizer=adalayer_star", "--log_blocks=true",
            "--lr=0.01"]
    assert run(tiny, runs, "a", *more, "--seed=1") == 0
    assert run(tiny, runs, "b", "--optimizer=sgd", "--lr=1e12", "--z_loss=0", "--steps=6", "--batch=16") == 3
    shutil.copytree(runs / "a", runs / "7")
    merge = [f"--runs={runs}", f"--results={results}", "--setting=tiny", "--match=*"]
    assert command.main(merge) == 0
    assert f"note: {runs / '7'} is left out" in capsys.readouterr().out
    rows = {row["run"]: row for row in tables.read_csv(results / "results.csv")}
    status = json.loads((runs / "a/status.json").read_text())
    assert list(rows) == ["a", "b"] and rows["a"]["loss"] == f"{status['loss']:.5f}"
    assert (rows["a"]["setting"], rows["a"]["changed"]) == ("tiny", "beta1=0.8 weight_decay=0.01")
    assert (rows["b"]["setting"], rows["b"]["changed"]) == ("tiny z_loss=0", "batch=16")    # as many tokens
    assert (rows["b"]["status"], rows["b"]["loss"], rows["b"]["lr"]) == ("diverged", "", "1000000000000")
    for name in "ab":    # the command repeats the same run
        argv = shlex.split(rows[name]["command"])
        assert argv[:2] == ["python", "train.py"]
        argv = [a if "--config" not in a else f"--config={tiny}" for a in argv[2:]]
        now, hyper, _ = settings.read(argv)
        then = json.loads((runs / name / "config.json").read_text())
        same = set(then) - settings.FREE - {"device", "precision", "attention", "loss_chunk", "compile"}
        assert all((asdict(now) | hyper)[key] == then[key] for key in same) and now.name == name
        assert now.log_blocks == then["log_blocks"]
    effective = [row for row in tables.read_csv(results / "effective_lr.csv") if row["role"] == "head"]
    last = json.loads((runs / "a/metrics.jsonl").read_text().splitlines()[-2])["effective_lr"]["head"]
    assert effective[-1]["step"] == "12" and float(effective[-1]["q50"]) == pytest.approx(last[3], rel=1e-3)
    curve = tables.read_curves(results)["a"]
    assert curve["step"][-1] == 12 and len(curve["step"]) == 12

    files = ("results.csv", "curves.jsonl", "effective_lr.csv")
    before = [(results / name).read_bytes() for name in files]
    shutil.rmtree(runs)
    assert command.main(merge) == 0 and [(results / name).read_bytes() for name in files] == before
    assert run(tiny, runs, "a", *more, "--seed=2") == 0
    assert command.main(merge) == 0
    rows = {row["run"]: row for row in tables.read_csv(results / "results.csv")}
    assert list(rows) == ["a", "b"] and rows["a"]["seed"] == "2"
    assert len(tables.read_csv(results / "effective_lr.csv")) == len(effective) * 8    # 7 roles, and matrix


@pytest.mark.slow
def test_what_runs_say_together(tiny, tmp_path, capsys):
    """A picture of runs comes with the mean and the spread over seeds. Diverged and broken runs are named."""
    losses = []
    for seed in (0, 1):
        assert run(tiny, tmp_path, f"s{seed}", "--optimizer=signum", f"--seed={seed}", "--steps=2") == 0
        losses.append(json.loads((tmp_path / f"s{seed}/status.json").read_text())["loss"])
    assert run(tiny, tmp_path, "d", "--optimizer=sgd", "--lr=1e12", "--z_loss=0") == 3
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/metrics.jsonl").write_text("{")
    capsys.readouterr()
    assert command.main([f"--runs={tmp_path}", f"--out={tmp_path / 'out.png'}"]) == 0
    out, err = capsys.readouterr()
    mean, spread = sum(losses) / 2, abs(losses[0] - losses[1]) / 2**0.5
    assert f"| signum steps=2 | 0.001 | {mean:.3f} | {spread:.3f} | 2 |" in out
    assert "| sgd z_loss=0 | 1e+12 | diverged, seed 0 |  |  |" in out and "broken is left out" in err
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    assert command.main([f"--runs={tmp_path}", "--match=nothing", f"--out={tmp_path / 'none.png'}"]) == 2
    assert "holds no finished run" in capsys.readouterr().err


@pytest.mark.parametrize("optimizer, rest, changed", (
    ("muon", "", ""), ("muon", "sgd_ema", "rest=sgd_ema"), ("adalayer_star", "adamw", "rest=adamw"),
    ("adamw", "", "")))
def test_a_rules_own_rest_is_no_change(optimizer, rest, changed):
    """Muon leaves other roles to AdamW by its own choice, so a run that does so belongs to the league."""
    options = tables.usual("configs/study.toml", optimizer, rest)
    run = tables.RecordedRun(Path("it"), options | dict(lr=1e-2, rest=rest or options["rest"]), metrics=[],
                             status=dict(status="diverged"),
                             start=dict(hidden=1, device="cpu", threads=1, torch="2"))
    row = tables.row_of(run)
    assert row["changed"] == changed and ("--rest=" in row["command"]) == bool(changed)


def test_the_result_of_a_run_with_averages_is_that_of_the_average():
    options = tables.usual("configs/study.toml", "schedule_free_adamw", "")
    run = tables.RecordedRun(Path("it"), options | dict(lr=1e-2), metrics=[],
                             status=dict(status="done", loss=4.0, average_loss=3.0, bits_per_byte=1.6),
                             start=dict(hidden=1, device="cpu", threads=1, torch="2"))
    row = tables.row_of(run)
    assert (row["loss"], row["bits_per_byte"]) == ("3.00000", "1.20000") and tables.mean_loss([run]) == 3
    run.status.pop("average_loss")
    assert tables.row_of(run)["loss"] == "4.00000"


# ---------------------------------------------------------------------------------------------------------
# Folders of runs that were written by hand


def record(path, loss=5.0, logged=(1, 10, 20), status="done", data="abcdef0123", **changed):
    """Writes the folder of a run of configs/study.toml. Its training loss at a step is 9 - step / 10."""
    options = tables.usual("configs/study.toml", changed.get("optimizer", "adamw"), changed.get("rest", ""))
    config = options | changed | dict(name=path.name, runs=str(path.parent))
    lines = [dict(kind="config", step=0, config=config, data=data, hidden=7, device="cpu", threads=1,
                  torch="2")]
    lines += [dict(kind="train", step=step, loss=9 - step / 10, lr=step / 1000, norm=2.0, tokens_per_second=9)
              for step in logged]
    lines.append(dict(kind="val", step=20, loss=loss, windows=9, final=True, bits_per_byte=1.5))
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "status.json").write_text(json.dumps(dict(status=status, step=20, loss=loss, bits_per_byte=1.5)))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, in their order. They are kept and not written."""
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
    return kept


def picture_of(tmp_path, capsys, *more):
    """The rows of the table that goes with a picture, without its header; and the notes."""
    assert command.main([f"--runs={tmp_path}", f"--out={tmp_path / 'x.png'}", *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    return ([line for line in lines if line.startswith("| ")][2:],
            [line.replace(str(tmp_path), "runs") for line in lines if line.startswith("note: ")])


def test_rows_differ_by_whatever_differs(tmp_path, capsys, drawn):
    """Only runs that differ in nothing but the seed are seeds of one row, and one seed counts once."""
    for i, changed in enumerate((dict(), dict(beta1=0.5), dict(modify="cautious"), dict(batch=64),
                                 dict(batch=64, steps=250), dict(weight_decay=0.1), dict(schedule="linear"),
                                 dict(layers=2), dict(final_windows=32), dict(init_from="x.pt"),
                                 dict(lr=1.0), dict(optimizer="lion"))):
        record(tmp_path / f"a{i:02d}", 4 + i / 100, **changed)
    record(tmp_path / "b", 3.8, seed=1)
    record(tmp_path / "c", 9.0, seed=1, threads=2)
    rows, notes = picture_of(tmp_path, capsys)
    assert rows == ["| adamw | 0.01 | 3.900 | 0.141 | 2 |",
                    "| adamw | 1 | 4.100 |  | 1 |",
                    "| adamw beta1=0.5 | 0.01 | 4.010 |  | 1 |",
                    "| adamw modify=cautious | 0.01 | 4.020 |  | 1 |",
                    "| adamw batch=64 steps=500 | 0.01 | 4.030 |  | 1 |",
                    "| adamw batch=64 | 0.01 | 4.040 |  | 1 |",
                    "| adamw weight_decay=0.1 | 0.01 | 4.050 |  | 1 |",
                    "| adamw schedule=linear | 0.01 | 4.060 |  | 1 |",
                    "| adamw layers=2 | 0.01 | 4.070 |  | 1 |",
                    "| adamw final_windows=32 | 0.01 | 4.080 |  | 1 |",
                    "| adamw init_from=x.pt | 0.01 | 4.090 |  | 1 |",
                    "| lion | 0.00316 | 4.110 |  | 1 |"]
    assert notes == ["note: runs/c is not counted: it has the settings and the seed of runs/b"]
    record(tmp_path / "d", 3.9, seed=1, precision="bf16")
    assert picture_of(tmp_path, capsys)[0][:3] == ["| adamw precision=fp32 | 0.01 | 3.900 | 0.141 | 2 |",
                                                   "| adamw precision=fp32 | 1 | 4.100 |  | 1 |",
                                                   "| adamw precision=bf16 | 0.01 | 3.900 |  | 1 |"]


def test_a_picture_of_a_single_learning_rate(tmp_path, capsys, drawn):
    """It has one label on the axis, and its highest mark lies within the panel."""
    for name, loss in (("adamw", 4.0), ("lion", 5.0), ("signum", 4.5)):
        record(tmp_path / name, loss, optimizer=name, lr=0.01)
    picture_of(tmp_path, capsys)
    left = drawn[0].axes[0]
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["0.01"]
    assert len(left.get_xticklabels(minor=True)) == 0
    assert left.get_ylim()[0] < 4.0 and left.get_ylim()[1] == pytest.approx(5.1)


def test_losses_of_other_data_do_not_compare(tmp_path, capsys):
    record(tmp_path / "a")
    record(tmp_path / "b", data="0123456789")
    assert command.main([f"--runs={tmp_path}", f"--out={tmp_path / 'x.png'}"]) == 2
    said = "takes runs of several configs or data, which do not compare: study on sotu_bpe8192 (01234567); "
    assert said in capsys.readouterr().err


def test_two_runs_are_laid_over_each_other(tmp_path, capsys, drawn):
    """The command prints the settings that differ, and draws losses, learning rates and norms of both."""
    record(tmp_path / "ann/a", 4.5)
    record(tmp_path / "ben/b", 4.25, optimizer="lion", lr=1e-3, beta1=0.8)
    record(tmp_path / "ben/c", status="running")
    folders = f"--runs={tmp_path / 'ann'},{tmp_path / 'ben'}"
    out = f"--out={tmp_path / 'x.png'}"
    assert command.main(["a", "b", folders, out]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "|  | a | b |", "| --- | --- | --- |", "| optimizer | adamw | lion |", "| lr | 0.01 | 0.001 |",
        "| beta1 | 0.9 | 0.8 |", "| eps | 1e-15 |  |",
        "| status | done | done |", "| final validation loss | 4.5000 | 4.2500 |",
        f"wrote {tmp_path / 'x.png'}"]
    loss, lr, norm = drawn[0].axes
    labels = ["a training", "a validation", "b training", "b validation"]
    assert [line.get_label() for line in loss.lines] == labels
    assert [list(line.get_ydata()) for line in loss.lines] == [[8.9, 8, 7], [4.5], [8.9, 8, 7], [4.25]]
    assert [line.get_color() for line in lr.lines] == [loss.lines[0].get_color(), loss.lines[2].get_color()]

    assert command.main(["a", "c", folders, out]) == 0
    assert "| status | done | running |\n| final validation loss | 4.5000 |  |" in capsys.readouterr().out
    assert command.main([str(tmp_path / "ann/a"), "a", folders, out]) == 0
    assert "| no setting differs |  |  |" in capsys.readouterr().out
    record(tmp_path / "ben/a")
    for names, said in ((["a"], "a: give the names of two runs or more"),
                        (["b", "d"], "d: no such run in --runs="),
                        (["a", "b"], "a: is in several folders; name one of")):
        assert command.main([*names, folders, out]) == 2
        assert f"study: error: {said}" in capsys.readouterr().err


def test_a_look_inside_runs(tiny, tmp_path, capsys, drawn):
    """Real runs of three steps. The panels hold what was logged, and looking has not changed a bit."""
    look = "--log_blocks"
    for name, more in dict(plain=[], adam=[look], sig=[look, "--optimizer=signum"]).items():
        assert run(tiny, tmp_path, name, "--steps=3", "--eval_every=0", *more) == 0
    (weights, state, rows), (weights2, state2, _) = final(tmp_path / "adam"), final(tmp_path / "plain")
    assert all(torch.equal(weights[k], weights2[k]) for k in weights)
    assert all(torch.equal(state[i][k], state2[i][k]) for i in state for k in ("m", "v"))

    options = [f"--runs={tmp_path}", f"--out={tmp_path / 'x.png'}"]
    capsys.readouterr()
    assert command.main(["look", "adam", "sig", *options]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'x.png'}\n"
    panels = drawn[-1].axes
    assert len(panels) == 9 * 2 and [axes.get_title() for axes in panels[:2]] == ["adam", "sig"]
    expected = []
    for row in (row for row in rows if row["kind"] == "train"):
        block = row["blocks"]["head.weight"]
        expected.append([block["update"] / block["weight"], block["weight"], block["grad"],
                         row["effective_lr"]["head"][3], row["largest_u"]["head"], block["grad_over_root_v"],
                         *block["snr"].values()])
    heads = [next(line for line in axes.lines if line.get_label() == "head") for axes in panels[::2]]
    assert all(list(head.get_xdata()) == [1, 2, 3] for head in heads)
    assert list(zip(*(head.get_ydata() for head in heads))) == [pytest.approx(row) for row in expected]
    assert panels[12].get_xlabel() == "step (no values for norm)"    # a vector has no rows
    says = [axes.texts[0].get_text().split("\n")[1] for axes in panels[1::2] if axes.texts]
    assert says == ["logs a second moment v."] * 2 + ["logs a v for each weight."] * 3
    for names, said in ((["plain"], "plain: does not hold what its steps did to each role; train it (again)"),
                        ([], "look: give the name of a run"), (["d"], "d: no such run in --runs=")):
        assert command.main(["look", *names, *options]) == 2
        assert f"study: error: {said}" in capsys.readouterr().err


def test_the_picture_of_a_run(drawn, tmp_path):
    """It shows the losses, the learning rate and the gradient norm, also of a run that logged one step."""
    for logged in ((1, 10, 20), (20,)):
        record(tmp_path / str(len(logged)), logged=logged)
        measure.draw_run(tables.read_run(tmp_path / str(len(logged))).metrics, None, "title")
        loss, lr, norm = drawn.pop().axes
        assert loss.get_title() == "title" and norm.get_xlabel() == "step"
        assert [list(line.get_xdata()) for line in loss.lines] == [list(logged), [20]]
        assert list(lr.lines[0].get_ydata()) == [step / 1000 for step in logged]
        assert list(norm.lines[0].get_ydata()) == [2.0] * len(logged)
        assert (lr.get_ylabel(), norm.get_ylabel()) == ("learning rate", "gradient norm")
        assert len(logged) > 1 or all(axes.lines[0].get_marker() == "o" for axes in (loss, lr, norm))


@pytest.mark.slow
def test_a_backend_that_is_not_installed_does_not_matter():
    """Programs that a notebook starts inherit a backend that is not in their environment."""
    code = ("import os; from trainer.measure import blank_figure; "
            "blank_figure(1, 1); print(os.environ['MPLBACKEND'])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True,
                          env=os.environ | dict(MPLBACKEND="module://not_here"))
    assert done.stdout == "module://not_here\n", done.stderr


@pytest.mark.parametrize("logged", ((1, 2), (20,), (), tuple(range(1, 31))))
def test_a_short_run_is_in_the_picture(tmp_path, capsys, drawn, logged):
    """The right panel shows what was logged. Seeds may have logged other steps than the first one."""
    record(tmp_path / "a", 6.5, logged=logged)
    record(tmp_path / "b", 6.5, logged=logged[1:], seed=1)
    picture_of(tmp_path, capsys)
    line, = drawn[0].axes[1].lines
    bottom, top = drawn[0].axes[1].get_ylim()
    expected = [8.9, 8.8] if len(logged) == 2 else [9 - (step - 2) / 10 for step in logged[4:]]
    assert len(line.get_xdata()) == (26 if len(logged) == 30 else len(logged))
    if len(logged) == 30:
        assert line.get_ydata()[1:] == pytest.approx(expected[1:])
    assert all(bottom < loss < top for loss in line.get_ydata())
    assert line.get_marker() == "o" and (not logged or line.get_markevery() >= 1)


def test_variants_of_one_rule_can_be_told_apart(tmp_path, capsys, drawn):
    """Rules have the colours of the study. Variants of a rule have its colour and other marks, unless there
    is only one rule."""
    for i, beta1 in enumerate((0.9, 0.8, 0.5)):
        record(tmp_path / f"adamw{i}", 4 + i / 10, beta1=beta1)
    record(tmp_path / "sgd", 8.0, optimizer="sgd", lr=1.0)
    picture_of(tmp_path, capsys)
    picture_of(tmp_path, capsys, "--match=adamw*")
    several, one = ([(line.get_color(), line.get_marker(), line.get_linestyle())
                     for line in figure.axes[1].lines] for figure in drawn)
    black, red = figures.style_of("adamw")["color"], figures.style_of("sgd")["color"]
    assert [color for color, _, _ in several] == [black, black, black, red] and len(set(several)) == 4
    assert len({color for color, _, _ in one}) == 3
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["4.00  adamw, lr 0.01", "4.10  adamw beta1=0.8, lr 0.01",
                      "4.20  adamw beta1=0.5, lr 0.01", "8.00  sgd, lr 1 (above)", "losses above the scale"]
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["8.0"]


@pytest.mark.parametrize("out, said", (("nowhere/x.png", "there is no folder"), ("x", "must end with .png"),
                                       ("x.gif", "must end with .png, .pdf or .svg")))
def test_a_picture_that_cannot_be_written(tmp_path, capsys, out, said):
    record(tmp_path / "a")
    assert command.main([f"--runs={tmp_path}", f"--out={tmp_path / out}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"study: error: --out={tmp_path / out}: {said}") and error.count("\n") == 1


def test_results_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    record(tmp_path / "runs/study,optimizer=adamw")
    (tmp_path / "file").touch()
    argv = ["study", f"--runs={tmp_path / 'runs'}", f"--results={tmp_path / 'file'}"]
    monkeypatch.setattr(sys, "argv", argv)
    with script.surroundings_restored(), pytest.raises(SystemExit) as ended:
        script.run("study", command.main)
    assert ended.value.code == 4
    assert capsys.readouterr().err == f"study: error: {tmp_path / 'file'}: File exists\n"


def test_reading_runs_executes_no_file_that_their_config_names(tmp_path):
    (tmp_path / "rule.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    config = tmp_path / "theirs.toml"
    shipped = Path("configs/study.toml").read_text()
    config.write_text(shipped.replace("[train]", f'[train]\nrest = "{tmp_path}/rule.py"'))
    record(tmp_path / "runs/a", config=str(config), lr=0.5)
    run, = tables.read_runs(str(tmp_path / "runs"), "*")
    assert tables.row_of(run)["optimizer"] == "adamw" and not (tmp_path / "canary").exists()


def test_match_does_not_go_with_names_of_runs(capsys):
    assert command.main(["a", "b", "--match=class,*"]) == 2
    assert capsys.readouterr().err.startswith("study: error: --match: chooses among all runs")


def test_only_runs_of_sweeps_enter_the_results(tmp_path, capsys, monkeypatch):
    """Other runs enter on request. The first of two runs of one name enters."""
    runs, results = tmp_path / "ann", tmp_path / "results"
    sweeps = ["study,optimizer=adamw,lr=1e-2,seed=0", "study,optimizer=adamw,beta1=0.5",
              "study,qk_norm=false,z_loss=0", "study,batch=16,steps=1000", "study,steps=2000"]
    record(runs / sweeps[0])
    record(runs / sweeps[1], beta1=0.5)
    record(runs / sweeps[2], qk_norm=False, z_loss=0.0)
    record(runs / sweeps[3], batch=16, steps=1000)
    record(runs / sweeps[4], steps=2000)
    record(runs / "mine")
    record(runs / "study,optimizer=adamw,steps=20", steps=20)      # a try
    record(runs / "study,width=8,heads=2", width=8)                # a toy
    record(runs / "study,optimizer=adamw,seed=1", beta1=0.7)       # its name does not say what it is
    record(runs / "other,optimizer=adamw")
    record(tmp_path / "ben" / sweeps[0], 9.0)
    monkeypatch.setattr(command, "all_figures", lambda *_: {})
    monkeypatch.setattr(command, "report", lambda *_: "")
    options = [f"--runs={runs},{tmp_path / 'ben'},{tmp_path / 'none'}", f"--results={results}"]
    assert command.main(options) == 0
    out, err = (text.replace(str(tmp_path), "") for text in capsys.readouterr())
    rows = {row["run"]: row for row in tables.read_csv(results / "results.csv")}
    assert sorted(rows) == sorted(sweeps) == sorted(tables.read_curves(results))
    assert rows[sweeps[0]]["loss"] == "5.00000"
    assert rows[sweeps[3]]["changed"] == "batch=16" and "--batch=16 " in rows[sweeps[3]]["command"]
    assert "--steps=1000 " in rows[sweeps[3]]["command"]
    assert "note: '/none': there is no such folder of runs\n" in err
    assert f"note: /ben/{sweeps[0]} is left out: /ann/{sweeps[0]} has its name\n" in out
    assert ("note: 5 runs are left out, because they are of no sweep of study; --match=PATTERN adds runs by "
            "name: mine other,optimizer=adamw study,optimizer=adamw,seed=1 study,optimizer=adamw,steps=20 "
            "study,width=8,heads=2\n") in out
    assert command.main([*options, "--match=mine"]) == 0
    assert sorted(row["run"] for row in tables.read_csv(results / "results.csv")) == ["mine", *sorted(sweeps)]


# ---------------------------------------------------------------------------------------------------------
# The figures of the project's own results

RESULTS, AUDITIONS = ROOT / "study/results", ROOT / "study/auditions"


def own_places():
    """The league of the project's own results."""
    return league.places_of(tables.read_study(RESULTS, "study", AUDITIONS), RULES)


@pytest.fixture(scope="module")
def own_figures(tmp_path_factory):
    """The figures of the project's own results, as {name of the file: figure}."""
    kept, study, places = [], tables.read_study(RESULTS, "study"), own_places()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
        folder = tmp_path_factory.mktemp("figures")
        figures.all_figures(study, tables.read_curves(RESULTS), RULES, places, folder)
    assert len(kept) == len(FIGURES)
    return dict(zip(FIGURES, kept))


def legends_of(figure):
    """All legends of a figure, which has one, and may have one in each panel."""
    return [legend for legend in (*figure.legends, *(axes.get_legend() for axes in figure.axes)) if legend]


def test_a_rule_has_one_colour(own_figures):
    """Each curve of a rule has its colour in all panels of all figures. The paper's rules share no colour."""
    assert len({figures.style_of(rule)["color"] for rule in figures.NAMES}) == 9
    styles = [figures.style_of(rule) for rule in RULES]
    assert len({(style["color"], style["marker"]) for style in styles}) == len(RULES)
    rules = {figures.NAMES.get(rule, rule): rule for rule in RULES} | {"Sophia": "sophia"}
    seen = set()
    for name, figure in own_figures.items():
        if name in ("effective_lr", "curves"):    # roles; labels that begin with the loss
            continue
        for line in (line for axes in figure.axes for line in axes.lines):
            rule = rules.get(re.split(r" \(| at |:|,| everywhere", line.get_label())[0])
            if rule:
                seen.add(rule)
                assert line.get_color() == figures.style_of(rule)["color"], (name, line.get_label())
    study = tables.read_study(ROOT / "study/results", "study")
    assert seen == {rule for rule in RULES if len(study.curve(rule)) > 1}    # the others have no runs yet


def test_hidden_curves_are_said_in_the_legend(own_figures):
    legends = legends_of(own_figures["league_lr"])
    labels = {text.get_text() for legend in legends for text in legend.get_texts()}
    assert {"SGD (above)", "muon (under normuon)", "Adam (under Adafactor)"} <= labels
    assert "losses above the scale" in labels
    assert not {"SGD", "muon"} & labels


@pytest.mark.slow
def test_numbers_above_the_scale_do_not_overlap(own_figures):
    figure = own_figures["league_lr"]
    figure.draw_without_rendering()
    assert [len(axes.texts) for axes in figure.axes] == [11, 3, 0, 0, 0, 0]
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
        assert all(axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max) for box in boxes)


def test_the_league_is_drawn_as_it_is_judged(own_figures):
    """The rules stand in the order of their differences, and each bar has the ends of its interval."""
    verdicts = {place.name: place.found.verdict for place in own_places() if place.found.verdict}
    names, bars = [], {}
    for axes in own_figures["league"].axes:
        labels = [label.get_text() for label in axes.get_yticklabels()]
        for container in axes.containers:
            (low, y), (high, _) = container.lines[2][0].get_segments()[0]
            bars[labels[int(y)]] = container.get_label(), low, high
        names += labels
    beyond = [name for name in names if name not in bars]
    assert sorted(verdicts, key=lambda name: verdicts[name].interval.mean) == names
    assert beyond == [name for name in names if verdicts[name].interval.mean > figures.SHOWN[1]]
    assert beyond and len(bars) > 20
    for name, (word, low, high) in bars.items():
        verdict = verdicts[name]
        assert word == verdict.word
        assert (low, high) == pytest.approx((verdict.interval.low, verdict.interval.high), abs=1e-9)
    texts = [text.get_text() for axes in own_figures["league"].axes for text in axes.texts]
    assert texts == [f"{verdicts[name].interval.mean:+.2f}" for name in beyond]


def test_differences_beyond_the_picture_are_written_at_its_edges():
    axes = measure.blank_figure(4, 4).subplots()
    verdicts = [(f"{mean:+}", Verdict("better", "", Interval(mean, mean - 0.1, mean + 0.1, 0.01, 3, 0.05)))
                for mean in (-0.6, -0.3, 0.8)]
    figures.draw_differences(axes, verdicts)
    at_edges = [(text.get_text(), text.get_ha()) for text in axes.texts]
    assert at_edges == [("-0.60", "left"), ("+0.80", "right")]
    assert len(axes.containers) == 1


def test_every_file_of_rules_has_a_title():
    assert {rule.function.__module__.removeprefix("zoo.") for rule in RULES.values()} <= set(figures.KINDS)


def test_figures_can_be_read_at_half_their_width(own_figures):
    """Titles and labels are words, not options. The smallest letters have ten pixels at half the width."""
    for name, figure in own_figures.items():
        texts = [text for legend in legends_of(figure) for text in legend.get_texts()]
        for axes in figure.axes:
            texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            texts += [*axes.get_xticklabels(), *axes.get_yticklabels()]
        words = [text.get_text() for text in texts]
        assert [word for word in words if re.search("_[a-z]*=|=false|that SGD", word)] == [], name
        sizes = {text.get_size() * panels.DPI / 72 / 2 for text in texts if text.get_text()}
        assert min(sizes) > 10, name
        assert figure.get_figwidth() * panels.DPI < 1700, name
    titles = [axes.get_title() for axes in own_figures["lr"].axes]
    assert titles == ["with QK-norm and z-loss", "2,000 steps", "without QK-norm and z-loss", ""]


@pytest.mark.parametrize("name", ["lr", "lr_shifted", "hybrids", "league_lr"])
def test_panels_with_the_same_learning_rates_have_one_range_of_them(own_figures, name):
    drawn = [axes for axes in own_figures[name].axes if axes.get_title()]
    assert len(drawn) > 2 and len({(axes.get_xlabel(), axes.get_xlim()) for axes in drawn}) == 1
    low, high = drawn[0].get_xlim()
    places = [line.get_xdata() for axes in drawn for line in axes.get_lines() if len(line.get_xdata()) > 2]
    assert low < min(map(np.nanmin, places)) and max(map(np.nanmax, places)) < high    # a gap is NaN


@pytest.mark.parametrize("setting, title", (
    ("study", "with QK-norm and z-loss"), ("study qk_norm=false z_loss=0", "without QK-norm and z-loss"),
    ("study width=128 heads=4", "width 128, heads 4"), ("study steps=2000", "2,000 steps"),
    ("150m", "the setting of 150m.toml")))
def test_settings_in_words(setting, title, truth, tmp_path):
    assert figures.title_of(setting, truth.write(tmp_path / "a")) == title
