"""The bench's arithmetic, and its parts on a tiny model."""
import json

import pytest
import torch

import bench
import optim
import zoo
from model import Decoder
from zoo.frozen import FROZEN


def test_bytes_that_a_rule_must_move():
    """A step reads and writes the weight and the momentum, and it reads the gradient. Adam's step also reads
    and writes v. A step reads the gradient again if a mean of it comes first."""
    rules = optim.RULES | {"adalayer_frozen": FROZEN}
    assert {name: bench.floor_bytes(rule) for name, rule in rules.items()} == dict(
        sgd=20, sgd_ema=20, signum=20, lion=20, adamw=28, adafactor=24, adalayer=24, adasgd=24,
        adalayer_star=24, adalayer_frozen=24)


def test_flops_of_a_token():
    model = Decoder(width=8, layers=2, heads=2, context=16, vocab_size=100, padded_vocab=128)
    matrices = 2 * (3 * 8 * 8 + 8 * 8 + 2 * 8 * 32) + 128 * 8
    assert bench.flops_per_token(model, 2) == 6 * matrices + 12 * 2 * 8 * 16


def test_ratios_are_of_neighbours():
    text, middle = bench.ratio([2, 4, 60], [1, 2, 10])
    assert middle == 2 and text == "2.00 (2.00-4.00)"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sophia"])    # sophia also wants gradients on sampled labels
def test_a_training_step_in_parts(tiny, tmp_path, capsys, optimizer):
    out = tmp_path / "bench.json"
    options = f"--config={tiny} --compile=false --optimizer={optimizer}"
    assert bench.main(["--only=train", f"--options={options}", "--rounds=3", "--threads=1",
                       f"--out={out}"]) == 0
    row, = json.loads(out.read_text())["train"]
    assert row["tokens/s"] > 0 and row["precision"] in ("bf16", "fp32")
    parts = ("data", "forward", "backward", "clip", "optimizer", "logging")
    assert all(row[f"{part}, ms"] >= 0 for part in parts)
    assert "| tokens/s |" in capsys.readouterr().out


@pytest.mark.slow
def test_wrong_use_is_one_line(tiny, capsys):
    assert bench.main(["--only=nothing"]) == 2
    assert bench.main(["--only=train", "--options=--heads=3"]) == 2
    assert bench.main(["--only=train", "--scaling"]) == 2
    assert bench.main(["--only=train", "--options=--threads=1"]) == 2
    two_models = [f"--options=--config={tiny} --width=16", f"--against=--config={tiny} --width=32"]
    assert bench.main(["--only=step", "--device=cpu", *two_models]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert errors[-1] == ("bench.py: error: --against: has another model than --options; give both the same "
                          "options of it")
    assert len(errors) == 5 and all(line.startswith("bench.py: error: --") for line in errors)


@pytest.mark.slow
def test_every_rule_has_its_turn(monkeypatch):
    torch.manual_seed(0)
    model = Decoder(width=8, layers=1, heads=2, context=16, vocab_size=100)
    weights = list(model.parameters())
    for w in weights:
        w.grad = torch.randn_like(w)
    make = zoo.make
    monkeypatch.setattr(bench, "with_gradients", lambda *_: (model, weights))
    monkeypatch.setattr(zoo, "make", lambda *a, **more: make(*a, **more | dict(compile=False)))
    rows = {row["step of"]: row for row in bench.bench_rules(bench.Options(rounds=3), torch.device("cpu"))}
    assert list(rows) == ["fused", *zoo.RULES, *(f"adamw, {name}" for name in zoo.MODIFIERS)]
    assert list(zoo.RULES)[:len(optim.RULES)] == list(optim.RULES)
    assert all(row["ms"] > 0 and row["to fused AdamW"] for row in rows.values())
    state = "state, bytes per weight"
    assert rows["fused"][state] == rows["adamw"][state] == 8 and rows["ademamix"][state] == 12


@pytest.mark.slow
def test_a_profile_adds_up(tiny, tmp_path):
    out = tmp_path / "bench.json"
    assert bench.main(["--only=profile", f"--options=--config={tiny} --compile=false", "--rounds=3",
                       "--threads=1", f"--out={out}"]) == 0
    rows = json.loads(out.read_text())["profile"]
    assert [row["what"] for row in rows] == ["products with weights", "attention's products", "compiled code",
                                             "all other"]
    assert rows[0]["ms"] > 0 and rows[1]["ms"] > 0 and rows[2]["ms"] == 0    # nothing is compiled
    assert abs(sum(int(row["of the step"].rstrip("%")) for row in rows) - 100) <= 2
    assert rows[0]["of the matmul peak"].endswith("%")


@pytest.mark.slow
def test_scaling_changes_one_thing_at_a_time(monkeypatch, tmp_path):
    asked = []

    def again(*arguments):
        assert "--device=cpu" in arguments
        asked.append(dict(word.split("=") for word in arguments[1].removeprefix("--options=").split()))
        return [{"tokens/s": 1000, "quartiles": "900-1100", "peak memory, MB": 500}], 1.0

    monkeypatch.setattr(bench, "again", again)
    options = ["--threads=1", "--device=cpu", "--rounds=3", f"--out={tmp_path}/scaling.json"]
    assert bench.main(["--scaling", *options]) == 0
    rows = json.loads((tmp_path / "scaling.json").read_text())["scaling"]
    base = {"--width": "128", "--layers": "4", "--context": "128", "--micro_batch": "32"}
    for row, options in zip(rows, asked, strict=True):
        assert {k: options[k] for k in base} == base | {f"--{row['axis']}": str(row["value"])}
        assert options["--batch"] == options["--micro_batch"]
        assert int(options["--heads"]) == max(1, int(options["--width"]) // 64)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
