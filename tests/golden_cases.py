"""The numbers of published code for the rules of zoo/, and the steps that are compared with them.
golden/zoo/README.md says where each number comes from."""
import copy
import inspect
import json
from pathlib import Path

import numpy as np
import torch

import zoo
from zoo import Optimizer
from zoo.rule import ModifiedRule

FOLDER = Path(__file__).parent / "golden/zoo"
GOLDEN = dict(np.load(FOLDER / "rules.npz"))    # also the weights and gradients of all
GOLDEN_OF = {case: numbers for path in sorted(FOLDER.glob("*.npz"))
             for numbers in [dict(np.load(path))] for case in json.loads(bytes(numbers["meta"]))}
CASES = {case: json.loads(bytes(numbers["meta"]))[case] for case, numbers in GOLDEN_OF.items()}

# Where a reference is less exact than float64. AdEMAMix's adds 1e-8 to its betas before it takes their
# logarithm, which changes 1 - beta3 by 1e-4 of it; AdaGC's sums the norm, and heavyball all, in float32.
# Shampoo's first roots are of matrices that are nearly singular. Where a decay is 1e-5 a step here
# (stable_decay_small, prodigy_decay), 1 - decay knows it to 1e-11.
LOOSER = dict(ademamix=1e-5, ademamix_decay=1e-5, ademamix_small=1e-5, adagc=1e-7, adagc_decay=1e-7,
              cautious_wd_decay=1e-5, shampoo=1e-10, shampoo_decay=1e-10, stable_decay_small=1e-11,
              prodigy_decay=1e-10)


def golden_weights(names, dtype=torch.float64, device="cpu") -> dict:
    """{name: the weights before the first step}. The names are among tall, wide, square and vector."""
    return {name: torch.tensor(GOLDEN[f"w0/{name}"]).to(device, dtype) for name in names}


def golden_steps(w: dict, optimizer, scale: float = 1.0, lrs=None):
    """Takes 25 steps with the gradients of the file times scale, and yields the number of each step after it.
    lrs: a learning rate for each step, if they differ."""
    for t in range(1, 26):
        optimizer.sampled = {}
        for name, p in w.items():
            grads = torch.tensor(GOLDEN[f"grad/{name}"]).to(p.device, p.dtype) * scale
            p.grad, optimizer.sampled[p] = grads[t - 1], grads[(t + 5) % 25]
        if lrs is not None:
            optimizer.param_groups[0]["lr"] = float(lrs[t - 1])
        optimizer.step()
        yield t


def share_off(x: torch.Tensor, want: np.ndarray, name: str) -> float:
    """The largest difference of a tensor from the file, as a share of the largest distance that it moved."""
    off = abs(x.double().cpu().numpy() - want).max()
    assert np.isfinite(off)    # a comparison with NaN would pass as often as it fails
    return off / abs(want - GOLDEN[f"w0/{name}"].astype(float)).max()


def golden_case(case: str, dtype=torch.float64, device="cpu") -> tuple:
    """(tensors by name, optimizer) of a case of the files."""
    meta = CASES[case]
    w = golden_weights(meta["names"], dtype, device)
    roles = [meta["roles"].get(name) for name in w]
    layer_of = {name: "blocks.0." for name in w if "layers" in meta["hyper"] and name != "tall"}
    named = [(layer_of.get(name, "") + name, p) for name, p in w.items()]
    group = dict(params=named, blocks=[3 if role == "qkv" else 1 for role in roles], roles=roles)
    rule = copy.copy(zoo.RULES[meta["rule"]])
    usual, base = rule.refresh, case.removesuffix("_decay").removesuffix("_small")

    def copied(p, index, t):    # the projections are the file's
        p[0] = torch.tensor(GOLDEN[f"{base}/p/{t}/{list(w)[index - 1]}"])

    def first_bases(s, gl, gr, ql, qr, t, blocks, index):    # arbitrary where one gradient leaves zeros
        name = list(w)[index - 1]
        if t > 2 or not ql.numel():
            given = dict(s=s, gl=gl, gr=gr, ql=ql, qr=qr, t=t, blocks=blocks)
            usual(**{key: given[key] for key in inspect.signature(usual).parameters})
        else:
            for key, basis in (("ql", ql), ("qr", qr)):
                basis[0] = torch.tensor(GOLDEN_OF[case][f"{case}/{key}/{name}"])
    if meta["rule"].startswith("apollo"):
        rule.refresh = copied
    elif meta["rule"] in ("soap", "kl_soap"):
        rule.refresh = first_bases
    if meta["modify"]:
        rule = ModifiedRule(rule, [zoo.MODIFIERS[meta["modify"]]])
    return w, Optimizer([group], rule, lr=meta["lr"], weight_decay=meta["weight_decay"], **meta["hyper"])


def deviation(case: str, device="cpu") -> float:
    """The largest share_off() of all tensors of a case after 3 and after 25 steps."""
    w, optimizer = golden_case(case, device=device)
    found = [share_off(p, GOLDEN_OF[case][f"{case}/{t}/{name}"], name)
             for t in golden_steps(w, optimizer, CASES[case]["scale"]) for name, p in w.items()
             if f"{case}/{t}/{name}" in GOLDEN_OF[case]]
    return max(found)    # of an empty list, this is an error
