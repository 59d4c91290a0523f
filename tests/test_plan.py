"""The plan of a run: what autograd really keeps, the paper's numbers, hours of grids.
tests/memory.py compares the sum with a real 150m."""
import os
import re
import subprocess
import sys

import pytest
import torch

import optim
import train
import zoo
from conftest import ROOT
from model import Decoder
from trainer import plan, settings
from trainer.build import decoder_shape


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "plain"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_activations_are_what_autograd_keeps(precision, attention, qk_norm):
    """Counted storage by storage, without the weights; to the byte."""
    B, T, V = 2, 24, 512
    config = settings.Settings(width=64, layers=3, heads=4, context=T, precision=precision,
                               attention=attention, qk_norm=qk_norm, vocab_size=V, batch=B, steps=7,
                               loss_chunk=16)
    model = Decoder(**decoder_shape(config))
    storages = {}

    def keep(x):
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    tokens = torch.zeros(B, T, dtype=torch.int64), torch.zeros(B, T, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), \
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model(*tokens, 1e-4)
    for p in model.parameters():
        storages.pop(p.untyped_storage().data_ptr(), None)
    e = plan.estimate(config, model, zoo.make("adamw", model.roles(), lr=1.0), B, 1)
    assert sum(s.nbytes() for s in storages.values()) == e["memory"]["activations"]


@pytest.fixture
def plan_of(capsys):
    def made(*argv):
        """The plan as printed, as one line, and its numbers."""
        assert train.main(["--plan", *argv]) == 0
        text = " ".join(capsys.readouterr().out.split())
        return text, lambda name: int(re.search(name + r" ([0-9,]+)", text)[1].replace(",", ""))
    return made


def test_the_plan_of_the_papers_smallest_model(plan_of):
    """Weights, tokens, FLOPs and bytes by hand."""
    text, number = plan_of(f"--config={ROOT}/configs/150m.toml", "--optimizer=adamw")
    D, L, V, T = 1024, 12, 32128, 512
    assert "151,045,120 outside embedding and head" in text
    sizes = dict(embed=V * D, qkv=3 * D * D * L, attn_out=D * D * L, mlp_up=4 * D * D * L,
                 mlp_down=4 * D * D * L, norm=(4 * L + 1) * D, head=V * D)
    assert {role: number(role) for role in optim.ROLES} == sizes
    assert "tokens 3,276,800,000 in 25,000 steps of 131,072: 21.7 per weight" in text
    flops = 3_276_800_000 * (6 * (216_843_264 - V * D) + 6 * L * D * T)
    assert f"compute {flops:.3g} FLOP" in text
    assert number("weights") == 216_843_264
    assert number("gradients") == 4 * 216_843_264 and number("state") == 8 * 216_843_264
    assert number("logits") == 4096 * V * 20 + 2 * V * D
    assert "data 6,553,600,000 bytes" in text and f"checkpoints 3 x {3 * 867_373_056:,}" in text
    assert "time 3.03 hours at 300,000 tokens/s" in text


def test_a_plan_knows_the_optimizer_and_touches_nothing(tiny, tmp_path, plan_of):
    """State by the rule's signature; one micro-batch; no data needed, no folder made."""
    common = [f"--config={tiny}", "--data=nowhere", f"--runs={tmp_path / 'runs'}"]
    small = {name: plan_of(*common, f"--optimizer={name}")[1]("state")
             for name in ("adamw", "signum", "adafactor")}
    model = Decoder(width=16, layers=2, heads=2, context=16, vocab_size=300)
    weights = sum(p.numel() for p in model.parameters())
    assert small["adamw"] == 2 * small["signum"] == 8 * weights and small["signum"] < small["adafactor"]
    assert not (tmp_path / "runs").exists()
    text, number = plan_of(*common)
    assert "time unknown; give --throughput" in text
    one, two, four = (plan_of(*common, "--batch=8", f"--micro_batch={m}")[1] for m in (8, 4, 2))
    assert two("gradients") == one("gradients")
    one, two, four = (number("activations") for number in (one, two, four))
    assert one - two == 2 * (two - four) > 0


def test_missing_data_are_named_before_the_hours(tmp_path, capsys):
    (tmp_path / "x.toml").write_text('[data]\ndata = "nowhere/x"\nprepare = "--vocab=300"\n')
    command = f"python train.py --config={tmp_path}/x.toml --throughput=1"
    assert plan.main([command, f"{command} --seed=1"]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == [
        "# first: python prepare_c4.py --vocab=300 --out=nowhere/x"]


@pytest.mark.slow
def test_hours_of_a_grid(tmp_path):
    """--print: commands that run as they stand, and the hours of all of them."""
    def sweep(*arguments):
        return subprocess.run(["bash", "sweep.sh", "grid", "configs/150m.toml", *arguments], cwd=ROOT,
                              text=True, capture_output=True, env=os.environ | dict(PYTHON=sys.executable))

    done = sweep("optimizer=adamw,lion", "lr=1e-3,1e-4", "--print", "--", "--seed=1")
    assert done.returncode == 0, done.stderr
    *commands, last = done.stdout.splitlines()
    first = "# first: python prepare_c4.py --dataset=c4 --tokenizer=t5 --tokens=3.3e9 --val_tokens=16.5e6"
    if commands[-1] == f"{first} --out=data/c4_t5":    # unless the data are there
        commands.pop()
    hours = 4 * 3_276_800_000 / 300_000 / 3600
    assert last == f"# 4 runs, {hours:.4g} hours at the stated throughput"
    seen = set()
    for command in commands:
        python, script, *options = command.split()
        config = settings.read([*options, f"--runs={tmp_path}"])[0]    # runs of this name may be in runs/
        assert (python, script) == (sys.executable, "train.py") and config.resume and config.seed == 1
        seen.add((config.optimizer, config.lr, config.name))
    assert seen == {(o, float(lr), f"150m,optimizer={o},lr={lr}") for o in ("adamw", "lion")
                    for lr in ("1e-3", "1e-4")}
    assert not (ROOT / "runs/150m,optimizer=adamw,lr=1e-3").exists()
    done = sweep("heads=3", "--print")
    assert done.returncode == 2 and "Trace" not in done.stderr
    assert "trainer.plan: error: --heads=3" in done.stderr
