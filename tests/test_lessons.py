"""Lessons: each toy shows its finding at three seeds, with a margin, and the command draws and explains."""
import itertools
import math
import re

import matplotlib.image
import pytest

import zoo
from conftest import ROOT
from lessons import __main__ as command
from lessons import toys
from trainer import options, settings

SEEDS = (0, 1, 2)


def means(toy, rule, lr, variant):
    """{column or "loss": geometric mean over the seeds} of runs of a toy at one learning rate."""
    toy, rows = toys.TOYS[toy], []
    for seed in SEEDS:
        own = toys.train(rule, toy.make(variant, seed), lr, toy.steps) | dict(lr=lr)
        first = toys.train(rule, toy.make(toy.variants[0], seed), lr, toy.steps) if toy.follow else own
        rows.append(toy.cells(own, first) | dict(loss=own["loss"]))
    return {key: math.exp(sum(math.log(row[key]) for row in rows) / len(rows)) for key in rows[0]}


# ---------------------------------------------------------------------------------------------------------
# The findings. Behind each line stands what was measured.

@pytest.mark.slow
def test_ravine():
    """Rules that scale each weight win along the axes and lose turned. All others turn with the ravine."""
    straight, turned = toys.TOYS["ravine"].variants
    rules = ["sgd_ema", "adamw", "signum"]
    records = [record for seed in SEEDS for record in toys.play("ravine", rules, seed=seed)]

    def best(rule, variant):
        losses = [one["loss"] for one in records if (one["rule"], one["variant"]) == (rule, variant)]
        return math.prod(losses)**(1 / len(SEEDS))

    sgd = best("sgd_ema", straight)    # 0.057
    assert best("adamw", straight) < sgd / 8    # 0.0019
    assert best("signum", straight) < sgd / 1.4    # 0.026
    assert best("adamw", turned) > 2 * sgd    # 0.18
    assert best("signum", turned) > 4 * sgd    # 0.51
    for rule, lr in (("sgd_ema", 0.03), ("adalayer", 1.0), ("muon", 0.3), ("soap", 0.3)):
        losses = [toys.train(rule, toys.ravine(variant, 0), lr, 40)["loss"] for variant in (straight, turned)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.slow
def test_zipf():
    """Rules with one step size for all classes learn rare ones late, if there are many classes."""
    many, few = toys.TOYS["zipf"].variants
    found = {rule: means("zipf", rule, lr, many) for rule, lr in (
        ("sgd_ema", 100.0), ("adalayer", 0.1), ("signum", 0.0316), ("adamw", 0.1), ("adalayer_star", 0.1))}
    rare = {rule: one["rare"] for rule, one in found.items()}
    assert rare["sgd_ema"] > 1.5 * rare["adalayer"]
    assert all(rare["adalayer"] > 1.5 * rare[rule] for rule in ("signum", "adamw", "adalayer_star"))
    assert max(one["frequent"] for one in found.values()) < 0.05
    assert means("zipf", "sgd_ema", 31.6, few)["loss"] < 0.03    # 0.01


def test_layers():
    """One step size for all layers learns only the first. One for each tensor learns both, as Adam does."""
    found = {rule: means("layers", rule, lr, "both layers") for rule, lr in (
        ("sgd_ema", 10.0), ("adasgd", 0.0316), ("adalayer", 0.1), ("adamw", 0.316))}
    assert all(one["error of layer 1"] < 0.005 for one in found.values())
    assert all(found[rule]["error of layer 2"] > 0.9 for rule in ("sgd_ema", "adasgd"))    # 0.96, 0.99
    assert all(found[rule]["error of layer 2"] < 0.005 for rule in ("adalayer", "adamw"))    # 0.0007, 0.0014


@pytest.mark.slow
def test_spike():
    """SGD jumps farthest. Adam jumps least and remembers longest. A clipped Adam does not notice."""
    found = [means("spike", rule, 0.0316, "spike") for rule in ("signum", "lion", "adamw")]
    signum, lion, adam = (one["jump"] for one in found)    # 6.6, 10, 3.4
    assert 1.5 * adam < signum and 1.2 * signum < lion
    signum, lion, adam = (one["memory"] for one in found)    # 68, 130, 246
    assert 1.5 * signum < lion and 1.5 * lion < adam
    assert means("spike", "sgd_ema", 0.0316, "spike")["jump"] > 100    # 177
    calm, spike = (toys.train("adamw+adagc", toys.spike(name, 0), 0.0316, 400) for name in ("calm", "spike"))
    assert toys.jump_and_memory(spike, calm) == {"jump": pytest.approx(1, abs=1e-3), "memory": 0}


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_matrix(shape):
    """Muon learns all directions of the input, and other rules only those that vary enough."""
    wide = shape == "wide"
    muon = means("matrix", "muon", 0.1 if shape == "tall" else 0.316, shape)
    others = [means("matrix", rule, lr, shape) for rule, lr in (
        ("sgd_ema", 10.0), ("adamw", 0.1 if wide else 0.316), ("signum", 0.01 if wide else 0.0316))]
    assert muon["least singular value"] > 0.85    # 0.96, 0.98, 0.91
    assert all(one["loss"] > 2 * muon["loss"] for one in others)
    if shape != "tall":
        assert all(one["least singular value"] < 0.5 for one in others)    # 0.18 ... 0.37


def test_valley():
    """A sign always moves a weight by lr. Adam moves it by much less, as its gradients cancel."""
    assert means("valley", "signum", 0.1, "noisy")["step / lr"] == pytest.approx(1)
    assert means("valley", "adamw", 0.316, "noisy")["step / lr"] < 0.3    # 0.15


# ---------------------------------------------------------------------------------------------------------
# Training and learning rates

@pytest.mark.parametrize("best", [-9, -2, 0, 3, 11])
def test_search_brackets_the_best(best):
    tried = toys.search(lambda lr: dict(loss=abs(2 * math.log10(lr) - best)), usual=1.0)
    assert min(tried, key=lambda lr: tried[lr]["loss"]) == toys.half_decade(best)
    exponents = [round(2 * math.log10(lr)) for lr in tried]
    assert exponents == list(range(min(-2, best - 2), max(2, best + 2) + 1))


def test_search_goes_below_what_diverges():
    tried = toys.search(lambda lr: dict(loss=math.inf if lr > 0.01 else 1 / lr), usual=1.0)
    assert list(tried) == [1e-3, 3.16e-3, 0.01, 0.0316, 0.1, 0.316, 1.0, 3.16, 10.0]


def test_a_run_may_diverge_before_the_spike():
    runs = [toys.train("sgd_ema", toys.spike(name, 0), 1000.0, 400) for name in ("calm", "spike")]
    assert all(run["loss"] == math.inf and len(run["losses"]) < toys.SPIKE for run in runs)
    assert math.isnan(toys.jump_and_memory(runs[1], runs[0])["jump"])


@pytest.mark.slow
def test_records_are_plain_and_repeatable():
    """The same seed gives the same numbers. A given learning rate sets the path, and leaves the curve."""
    first, again = (toys.play("ravine", ["adamw"]) for _ in range(2))
    given = toys.play("ravine", ["adamw"], [1.0])
    assert first == again
    for record, other in zip(first, given):
        assert record["curve"] == other["curve"] and other["lr"] == 1.0 and other["path"] != record["path"]
        assert min(record["curve"].values()) == record["loss"] == record["curve"][record["lr"]]
    assert toys.play("ravine", ["adamw"], seed=1)[0]["curve"] != first[0]["curve"]


@pytest.mark.parametrize("rule", sorted(zoo.RULES.keys() - {"sophia"}))
def test_every_rule_of_the_zoo_trains(rule):
    """All but Sophia, which asks for labels. Until its second roots, Shampoo overshoots in directions that
    the first gradient hardly has, as its docstring says. So its lr is smaller in these ten steps."""
    lr = (1e-5 if rule == "shampoo" else 1e-3) * toys.find(rule).lr_factor
    for make in (toys.matrix, toys.layers):
        run = toys.train(rule, make("wide", 0), lr, 10)
        assert run["path"][-1] != run["path"][0] and len(run["losses"]) == 11, rule


# ---------------------------------------------------------------------------------------------------------
# The classroom's settings

def test_class_promises_the_order_of_nano():
    """No pair of optimizers that differ in nano.toml stands in the other order in class.toml, and most pairs
    differ there, too."""
    nano, small = ({name: promise["loss"] for name, promise in options.read_toml(str(path))["expect"].items()}
                   for path in (ROOT / "configs/nano.toml", ROOT / "configs/class.toml"))
    pairs = [(first, second) for first, second in itertools.permutations(nano, 2)
             if nano[second] - nano[first] > 0.015]    # lion and adalayer differ by 0.01
    assert all(small[first] <= small[second] for first, second in pairs)
    clear = [(first, second) for first, second in pairs if small[second] - small[first] > 0.08]
    assert len(pairs) == 34 and len(clear) == 31


def test_the_page_of_promises_has_the_promises_of_the_configs():
    page = (ROOT / "docs/promises.md").read_text()
    shown = sorted(re.findall(r"^\| `(\w+)` .* \| (\S+ ± \S+) \|$", page, re.M))
    tables = [options.read_toml(str(ROOT / f"configs/{name}.toml"))["expect"] for name in ("nano", "class")]
    assert shown == sorted((name, f"{promise['loss']:.2f} ± {promise['tolerance']:.2f}")
                           for table in tables for name, promise in table.items())


def test_class_does_not_compile():
    """The file says so, and the command line may say otherwise."""
    for words, compiles in ([], False), (["--compile"], True):
        config, _, _ = settings.read([str(ROOT / "configs/class.toml"), *words])
        assert config.compile == compiles and config.lr == 3.16e-2


# ---------------------------------------------------------------------------------------------------------
# The command

@pytest.mark.slow
@pytest.mark.parametrize("lesson", ["ravine adamw,muon --projector", "layers adamw+cautious --lr=1",
                                    "matrix signum", "valley lion", "step adalayer_star,soap"])
def test_command_draws(lesson, tmp_path, capsys):
    words = lesson.split()
    assert command.main([*words, f"--out={tmp_path / 'a.png'}"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"wrote {tmp_path / 'a.png'}"
    shown = {line.split(" | ")[0].lstrip("| ") for line in out[2:-1]} - {"(mean gradient)"}
    assert shown == set(words[1].split(","))
    height, width, _ = matplotlib.image.imread(tmp_path / "a.png").shape
    assert width >= 1560 and height > 600


@pytest.mark.slow
@pytest.mark.parametrize("toy", ["zipf", "valley"])
def test_a_run_that_diverges_has_a_row_without_cells(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(toys, "SAMPLES", 8)    # for speed
    assert command.main([toy, "sgd_ema", "--lr=1e9", f"--out={tmp_path / 'a.png'}"]) == 0
    assert f"| sgd_ema | {toys.TOYS[toy].variants[0]} | 1e+09 | inf |" in capsys.readouterr().out


@pytest.mark.parametrize("words, message", [
    ("ravin adamw", "'ravin': no such lesson; there are ravine, zipf, layers, spike, matrix, valley, step, "),
    ("ravine adam", "'adam' is no optimizer; did you mean adamw?"),
    ("ravine adamw+caut", "modify='caut': must be one or more of cautious"),
    ("ravine sophia", "sophia: needs labels that the model draws itself, which toys do not have"),
    ("ravine adamw --lr=0", "--lr=0: must be one number above 0, or one for each of the 1 rules"),
    ("ravine adamw --lr=1,2", "--lr=1,2: must be one number above 0, or one for each of the 1 rules"),
    ("step adamw --lr=1", "--lr: an update does not depend on it; leave it out"),
    ("ravine adamw --out=a.jpeg", "--out=a.jpeg: must end with .png, .pdf or .svg"),
    ("ravine adamw --out=nowhere/a.png", "--out=nowhere/a.png: there is no folder nowhere"),
    ("ravine adamw --speed=1", "--speed: no such option"),
])
def test_wrong_input_gets_one_line(words, message, capsys):
    assert command.main(words.split()) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"lessons: error: {message}") and err.count("\n") == 1


def test_help_names_all_toys(capsys):
    assert command.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"    {name:8s} {toy.idea}\n" in out for name, toy in toys.TOYS.items())
