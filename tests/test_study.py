"""The study: runs to rows that outlive them, rows to verdicts, and a figure for everything."""
import json
import shlex
import shutil
from dataclasses import asdict

import matplotlib.image
import numpy as np
import pytest

import claims
import study
import train
from test_train import run

PLAIN, LARGER, LONGER = "study qk_norm=false z_loss=0", "study width=128 heads=4", "study steps=4000"


class World:
    """Rows of results.csv with known means: every claim holds, unless a number is changed. Three seeds, whose
    standard deviation is 0.005."""
    best = dict(adamw=4.40, adafactor=4.41, lion=4.42, signum=4.415, sgd=6.0, adalayer_star=4.45,
                adalayer=4.8, adasgd=5.8, sophia=4.42, sgd_ema=5.95)
    lr = dict(lion=1e-3, signum=1e-3, sophia=1e-3, sgd=3.0, sgd_ema=10.0)
    # loss = best + curved * decades^2, 0.4 for others
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
        middle = rest or self.lr.get(optimizer, 1e-2)
        for i in range(-4, 5):
            x = float(f"{middle * 10**(i / 2):.3g}")
            loss = best + curved * (i / 2)**2 + 99 * (i == 4)    # the highest diverges
            self.row(sweep, optimizer, loss, None if rest else x, setting, x if rest else "", changed)

    def make(self):
        for name in ("adamw", "adafactor", "lion", "signum", "sgd", "adalayer_star"):
            best, curved = self.best[name], self.curved.get(name, 0.4)
            self.along_lr("lr", name, best, curved)
            self.along_lr("larger", name, best - 0.3, curved, LARGER)
            for sweep, base, curved, setting in (
                    ("longer", best - self.longer_gain, self.long, LONGER),
                    ("plain", best + 0.1, self.plain, PLAIN)):
                self.along_lr(sweep, name, base, curved.get(name, curved["other"]), setting)
            sgd, usual = name == "sgd", "0.98" if name == "sgd" else "0.9"
            for beta in ("0", "0.5", "0.8", "0.9", "0.95", "0.98", "0.99"):
                b = float(beta)
                low = self.low_beta1 if name in ("lion", "signum") else 0.05
                rise = low * (b < 0.8) + (b == 0.99) * (self.high_beta1 if name == "lion" else 0.1)
                rise = abs(b - 0.98) * self.sgd_beta1 if sgd else rise
                changed = "" if beta == usual else f"beta1={beta}"
                self.row("momentum", name, best + rise, changed=changed, beta1=beta)
                if name == "signum" and beta != "0.95":
                    changed = f"{changed} beta2={beta}".strip()
                    self.row("tied", "adamw", best + rise + self.tied, changed=changed, beta1=beta,
                             beta2=beta)
            for key, values in (("weight_decay", ("0", "0.001", "0.1")), ("warmup", ("0.02", "0.1", "0.8")),
                                ("beta2", ("0.8", "0.95", "0.99")), ("batch", ("16", "32", "64", "128")),
                                ("eps", ("1e-15", "1e-12", "1e-05"))):
                for i, value in enumerate(values):
                    off = i == 2 and key == "warmup"
                    loss = best - off * (self.sgd_gain if sgd else self.gain)
                    loss += (i - 1) * self.batch * (key == "batch")
                    usual = dict(weight_decay="0", warmup="0.1", beta2="0.95", batch="32").get(key)
                    changed = "" if value == usual else f"{key}={value}"
                    if key == "eps":
                        changed = f"beta2=0.98 eps={value}" if i else "beta2=0.98"
                    more = dict(steps=32000 // int(value)) if key == "batch" else {}
                    self.row(key, name, loss, changed=changed, **{key: value}, **more)
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
        names = [row["run"] for row in self.rows if row["optimizer"] == star and row["setting"] == "study"
                 and not row["changed"] and row["lr"] == "0.01"]
        for name in sorted(set(names)):
            for step in (1, 500, 1000):
                for role, middle, factor in (("head", 100, self.head), ("matrix", 3, 2), ("qkv", 4, 2),
                                             ("embed", 50, 1), ("norm", self.norm, 3)):
                    values = [middle * factor**power for power in (-1, -0.5, -0.2, 0, 0.2, 0.5, 1)]
                    self.effective.append(dict(run=name, step=str(step), role=role) |
                                          {q: f"{x:.4g}" for q, x in zip(study.QUANTILES, values)})

    def write(self, folder, without=()):
        """The files of a results folder, without the rows of some sweeps."""
        folder.mkdir(exist_ok=True)
        rows = {row["run"]: {k: v for k, v in row.items() if k != "sweep"} for row in reversed(self.rows)
                if row["sweep"] not in without}
        study.write_csv(folder / "results.csv", study.COLUMNS, [rows[name] for name in sorted(rows)])
        kept = [] if "effective_lr" in without else self.effective
        study.write_csv(folder / "effective_lr.csv", ("run", "step", "role", *study.QUANTILES), kept)
        curves = [dict(run=name, step=[10, 500, 1000], loss=[9.0, 6.0, float(row["loss"] or 9)])
                  for name, row in sorted(rows.items())]
        (folder / "curves.jsonl").write_text("".join(json.dumps(curve) + "\n" for curve in curves))
        return study.read_table(folder, "study")


@pytest.fixture(scope="module")
def truth():
    return World()


# what makes each claim false; the sweep without which it is open, and what its answer asks for
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


def test_a_part_that_fails_decides_whatever_else_is_missing(tmp_path):
    different, sweep, asked = CASES["lr_scale"]
    verdict, lines = claims.judge(claims.lr_scale, World(**different).write(tmp_path / "a", without=[sweep]))
    assert verdict == "does not hold here", lines
    assert any(line.startswith("no: sgd = 300 x adamw") for line in lines), lines
    assert lines[-1].startswith("missing: ./sweep.sh ") and asked in lines[-1], lines


def test_numbers_behind_a_verdict(truth, tmp_path):
    """Widths, best rates and spreads by hand."""
    s = truth.write(tmp_path / "a")
    assert s.best("lr", "adamw")[0] == 0.01 and np.mean(s.best("lr", "adamw")[1]) == pytest.approx(4.4)
    # 0.1 above the best at half a decade, 0.4 at one: 0.2 is a third of the way between
    assert s.width("lr", "adamw") == (pytest.approx(2 * (0.5 + 0.5 / 3), abs=2e-3), True, 3)
    assert s.width("lr", "sgd")[0] == pytest.approx(2 * 0.5 * 0.2 / 0.5, abs=2e-3)
    assert s.sd(None, [1.0, 1.2], [2.0, 2.2]) == pytest.approx(0.02**0.5)
    assert s.sd(None, [1.0], [2.0, 2.2]) == pytest.approx(0.005)    # one seed: the spread of what is repeated
    assert claims.margin(0.005) == claims.PARITY and claims.margin(0.05) == 0.1
    assert sorted(s.curve("adamw", "tied")) == [0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99]


def test_a_width_is_not_one_of_seeds(tmp_path, truth):
    """Where some points have one seed and others three, only that seed counts; the best loss is of three."""
    s = truth.write(tmp_path / "a")
    s.rows = [row for row in s.rows if row["optimizer"] != "adamw" or row["lr"] == 0.01 or row["seed"] == 0]
    for row in s.rows:
        if row["optimizer"] == "adamw" and row["lr"] == 0.01 and row["seed"] > 0:
            row["loss"] -= 0.1
    assert s.width("lr", "adamw") == (pytest.approx(2 * (0.5 + 0.5 / 3), abs=2e-3), True, 1)
    assert np.mean(s.best("lr", "adamw")[1]) == pytest.approx(4.4 - 0.2 / 3)
    assert [len(x) for x in s.curve("adamw", paired=True).values()] == [1] * 9
    assert len(s.curve("adamw")[0.01]) == 3


def test_the_best_is_chosen_by_the_seeds_that_all_have(tmp_path, truth):
    """Two unlucky seeds at the best value alone do not move it; one that diverged there does."""
    s = truth.write(tmp_path / "a")
    s.rows = [row for row in s.rows if row["optimizer"] != "adamw" or row["lr"] == 0.01 or row["seed"] == 0]
    more = [row for row in s.rows if row["optimizer"] == "adamw" and row["lr"] == 0.01 and row["seed"] > 0]
    for row in more:
        row["loss"] += 0.3    # the mean of three is above 4.5, the neighbours'
    x, losses = s.lowest("adamw")
    assert x == s.best("lr", "adamw")[0] == 0.01 and np.mean(losses) == pytest.approx(4.4 + 0.2)
    more[0]["loss"] = np.inf
    assert s.lowest("adamw")[0] in (0.00316, 0.0316)
    assert s.lowest("adamw", setting="none") == (None, [])


def test_a_run_under_two_names_counts_once(tmp_path, truth):
    twice = World()
    for row in list(twice.rows):
        twice.rows.append(row | dict(run="again," + row["run"]))
    one, two = truth.write(tmp_path / "a"), twice.write(tmp_path / "b")
    assert len(two.rows) == 2 * len(one.rows) and two.curve("adamw") == one.curve("adamw")
    assert two.sd() == one.sd() and study.table(two) == study.table(one)


def test_the_best_must_not_be_at_the_edge(tmp_path, truth):
    s = truth.write(tmp_path / "a")
    s.rows = [row for row in s.rows if row["lr"] <= 0.01]
    with pytest.raises(claims.NotEnough, match="lr=0.0316 seed=0,1,2"):
        s.best("lr", "adamw")


def picture(path):
    """Height, width, and the part of the pixels that are not white."""
    pixels = matplotlib.image.imread(path)[..., :3]
    return *pixels.shape[:2], float((pixels.min(2) < 0.95).mean())


FIGURES = ("lr", "lr_shifted", "momentum", "tied", "others", "effective_lr", "hybrids", "frozen", "adalayer",
           "adasgd", "curves", "sophia", "league")


def test_everything_is_redrawn_from_the_results_alone(truth, tmp_path, capsys):
    """Figures that are not blank, and verdicts; the three files stay as they were. Missing are momentum at
    the other settings, and the zoo."""
    truth.write(tmp_path / "r")
    (tmp_path / "r/rules.json").write_text('{"rules": [{"step of": "adamw", "mean, ms": 2.34}]}')
    before = {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()}
    assert study.main([f"--runs={tmp_path / 'none'}", f"--results={tmp_path / 'r'}"]) == 0
    out = capsys.readouterr().out
    assert {p.stem for p in (tmp_path / "r").glob("*.png")} == set(FIGURES)
    for name in FIGURES:
        height, width, ink = picture(tmp_path / f"r/{name}.png")
        assert min(height, width) > 400 and ink > 0.015, (name, height, width, ink)
    assert out.count("| holds |") == len(claims.CLAIMS) and "missing" not in out
    asked = [line.split() for line in out.splitlines() if line.startswith("  ./sweep.sh")]
    asked.remove(["./sweep.sh", "league", "configs/study.toml", "seed=0,1,2"])
    assert len(asked) == 4 and all(words[1] in ("momentum", "tied") and "=" in words[3] for words in asked)
    assert {name: (tmp_path / "r" / name).read_bytes() for name in before} == before
    table = (tmp_path / "r/table.md").read_text()
    assert "| study | adamw |  | 0.01 | 4.400 | 0.005 | 3 | 1.500 |" in table
    assert "| study | adamw |  | 1 | 3 diverged |  | 3 |  |" in table
    rows = (tmp_path / "r/league.md").read_text().splitlines()[2:]
    assert rows[0] == "| adamw | 0.01 | 4.400 | 0.005 | 3 | 2.3 | 8.00 |"
    assert rows[-1].startswith("| sgd | 3 | 6.000 |") and len(rows) == 10


def test_what_is_missing_is_said(truth, tmp_path, capsys):
    truth.write(tmp_path / "r", without=["momentum", "frozen", "larger"])
    assert study.main([f"--runs={tmp_path / 'none'}", f"--results={tmp_path / 'r'}"]) == 0
    out = capsys.readouterr().out
    assert "frozen.png: drawn with\n  ./sweep.sh frozen configs/study.toml seed=0,1,2\n" in out
    assert "lr.png: more with\n  ./sweep.sh lr configs/study.toml width=" in out
    assert not (tmp_path / "r/frozen.png").exists() and (tmp_path / "r/lr.png").exists()


def test_no_runs_and_no_results(tmp_path, capsys):
    assert study.main([f"--runs={tmp_path / 'a'}", f"--results={tmp_path / 'b'}"]) == 2
    assert "hold no runs and no results" in capsys.readouterr().err and not (tmp_path / "b").exists()


def test_results_outlive_their_runs(tiny, tmp_path, capsys):
    """A real run's row: its numbers, its setting, the command that repeats it. Gone runs stay, reruns
    replace."""
    runs, results = tmp_path / "runs", tmp_path / "results"
    more = ["--beta1=0.8", "--weight_decay=0.01", "--optimizer=adalayer_star", "--log_blocks=true",
            "--lr=0.01"]
    assert run(tiny, runs, "a", *more, "--seed=1") == 0
    assert run(tiny, runs, "b", "--optimizer=sgd", "--lr=1e12", "--z_loss=0", "--steps=6", "--batch=16") == 3
    shutil.copytree(runs / "a", runs / "7")
    merge = [f"--runs={runs}", f"--results={results}", "--setting=tiny"]
    assert study.main(merge) == 0
    assert "note: 7 is left out" in capsys.readouterr().out
    rows = {row["run"]: row for row in study.read_csv(results / "results.csv")}
    status = json.loads((runs / "a/status.json").read_text())
    assert list(rows) == ["a", "b"] and rows["a"]["loss"] == f"{status['loss']:.5f}"
    assert (rows["a"]["setting"], rows["a"]["changed"]) == ("tiny", "beta1=0.8 weight_decay=0.01")
    assert (rows["b"]["setting"], rows["b"]["changed"]) == ("tiny z_loss=0", "batch=16")    # as many tokens
    assert (rows["b"]["status"], rows["b"]["loss"], rows["b"]["lr"]) == ("diverged", "", "1000000000000")
    for name in "ab":    # the command names the same run
        argv = shlex.split(rows[name]["command"])
        assert argv[:2] == ["python", "train.py"]
        argv = [a if "--config" not in a else f"--config={tiny}" for a in argv[2:]]
        now, hyper, _ = train.read_options(argv)
        then = json.loads((runs / name / "config.json").read_text())
        same = set(then) - train.FREE - {"device", "precision", "attention", "loss_chunk", "compile"}
        assert all((asdict(now) | hyper)[key] == then[key] for key in same) and now.run == name
        assert now.log_blocks == then["log_blocks"]
    effective = [row for row in study.read_csv(results / "effective_lr.csv") if row["role"] == "head"]
    last = json.loads((runs / "a/metrics.jsonl").read_text().splitlines()[-2])["effective_lr"]["head"]
    assert effective[-1]["step"] == "12" and float(effective[-1]["q50"]) == pytest.approx(last[3], rel=1e-3)
    curve = study.read_curves(results)["a"]
    assert curve["step"][-1] == 12 and len(curve["step"]) == 12

    files = ("results.csv", "curves.jsonl", "effective_lr.csv")
    before = [(results / name).read_bytes() for name in files]
    shutil.rmtree(runs)
    assert study.main(merge) == 0 and [(results / name).read_bytes() for name in files] == before
    assert run(tiny, runs, "a", *more, "--seed=2") == 0
    assert study.main(merge) == 0
    rows = {row["run"]: row for row in study.read_csv(results / "results.csv")}
    assert list(rows) == ["a", "b"] and rows["a"]["seed"] == "2"
    assert len([row for row in study.read_csv(results / "effective_lr.csv")]) == len(effective) * 5


@pytest.mark.parametrize("optimizer, rest, changed", (
    ("muon", "", ""), ("muon", "sgd_ema", "rest=sgd_ema"), ("adalayer_star", "adamw", "rest=adamw"),
    ("adamw", "", "")))
def test_a_rules_own_rest_is_no_change(optimizer, rest, changed):
    """Muon's other roles go to AdamW by its own choice: such a run belongs to the league."""
    options = study.usual("configs/study.toml", optimizer, rest)[0]
    run = dict(config=options | dict(lr=1e-2, rest=rest or options["rest"]), name="it", metrics=[],
               status=dict(status="diverged"), start=dict(hidden=1, device="cpu", threads=1, torch="2"))
    row = study.row_of(run)
    assert row["changed"] == changed and ("--rest=" in row["command"]) == bool(changed)
