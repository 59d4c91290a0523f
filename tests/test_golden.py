"""The numbers of the authors' own code: nineteen optimizers step by step, two models with every gradient."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from model import Decoder

pytestmark = pytest.mark.gpu
GOLDEN = Path(__file__).parent / "golden"
PAPER = np.load(GOLDEN / "paper.npz")
CASES = json.loads(bytes(PAPER["meta"]))
ROLES = dict(embed="embed", qkv="qkv", attn_out="attn_out", attn_norm="norm", q_norm="norm", mlp_up="mlp_up",
             mlp_down="mlp_down", final_norm="norm", head="head")
SETS = dict(last="head", norm="norm", last_norm="head+norm", all_frozen="none",
            last_norm_updating="head+norm", last_updating="head", norm_updating="norm")


def made(case, roles, compile):
    """Our name and options for a case of the file."""
    meta = CASES[case]
    hyper = dict(meta["hyper"])
    options = {k: hyper.pop(k) for k in ("weight_decay",) if k in hyper}
    rows = "+".join(role for role in ("head", "embed") if hyper.pop(f"{role}_rows", False))
    name = case.removesuffix("_decay")
    if case.startswith("sgd_rest__"):
        name = "adafactor" if "adafactor" in case else "adalayer_star"
        options |= dict(adaptive=SETS[hyper.pop("adaptive").replace("+", "_")], rest="sgd_ema",
                        rest_lr=meta["peak_lr"], rest_beta1=hyper["beta1"])
    elif case.startswith("frozen__"):
        name = "adalayer_star"
        options |= dict(updating=SETS[hyper.pop("updating")])
    elif rows:
        name = "adalayer"
        options |= dict(rows=rows)
    if hyper.pop("train_norms", True) is False:
        options |= dict(untrained="norm")
    return zoo.make(name, roles, lr=meta["adaptive_lr"] or meta["peak_lr"], compile=compile, **options,
                     **hyper)


COMPILED = pytest.param(True, marks=[pytest.mark.compiled, pytest.mark.slow])


@pytest.mark.parametrize("compile", [False, COMPILED])
@pytest.mark.parametrize("case", CASES)
def test_optimizer(case, compile, device):
    w = {name: torch.tensor(PAPER[f"w0/{name}"], device=device).requires_grad_() for name in ROLES}
    optimizer = made(case, [(name, w[name], ROLES[name]) for name in ROLES], compile)
    peaks = [group["lr"] for group in optimizer.param_groups]
    seen = []
    for step, multiplier in enumerate(CASES[case]["lr_multiplier"], 1):
        for group, peak in zip(optimizer.param_groups, peaks):
            group["lr"] = peak * multiplier
        for name in ROLES:
            w[name].grad = torch.tensor(PAPER[f"grad/{name}"][step - 1], device=device)
        optimizer.step()
        if step not in CASES[case]["snapshots"]:
            continue
        for name in ROLES:
            want, start = PAPER[f"{case}/{step}/{name}"].astype(float), PAPER[f"w0/{name}"].astype(float)
            allowed = 1e-5 * abs(want - start).max() + 5e-7 * abs(want).max()
            off = abs(w[name].detach().double().cpu().numpy() - want).max()
            assert off <= allowed, f"{case}, step {step}, {name}: off by {off:.2e}, allowed {allowed:.2e}"
            seen.append((step, name))
    assert len(seen) == len(CASES[case]["snapshots"]) * len(ROLES)


@pytest.mark.parametrize("file", ["model_qknorm.npz", "model_plain.npz"])
def test_model(file, device):
    data = np.load(GOLDEN / file)
    meta = json.loads(bytes(data["meta"]))
    model = Decoder(width=meta["width"], layers=meta["depth"], heads=meta["heads"], context=meta["seq_len"],
                    vocab_size=meta["vocab"], padded_vocab=meta["padded_vocab"], qk_norm=meta["qk_norm"])
    ours = dict(model.named_parameters())
    theirs = {name: f"w/{name.replace('blocks.', 'layer').removesuffix('.weight')}" for name in ours}
    assert sorted(theirs.values()) == sorted(key for key in data.files if key.startswith("w/"))
    with torch.no_grad():
        for name, p in ours.items():
            p.copy_(torch.tensor(data[theirs[name]]))
    model.to(device)    # in place, so that `ours` holds its parameters still
    tokens = torch.tensor(data["tokens"], device=device)

    def near(got, key):
        got, want = got.detach().double().cpu(), torch.tensor(data[key]).double()
        off = ((got - want).norm() / want.norm()).item()
        assert off <= 1e-5, f"{file}, {key}: relative difference {off:.1e}"

    near(model(tokens), "logits")
    objective, loss, z_loss = model(tokens[:, :-1], tokens[:, 1:], z_loss=meta["z_loss"])
    near(loss, "loss")
    near(z_loss, "z_loss")
    objective.backward()
    for name, p in ours.items():
        near(p.grad, theirs[name].replace("w/", "grad/"))
