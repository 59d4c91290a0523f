"""The rules of zoo/, against numbers of the code that their authors or others published."""
import copy
import inspect
import itertools
import json
import re
import runpy
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import optim
import rule_cases
import train
import zoo
from golden_cases import CASES, LOOSER, deviation
from model import Decoder
from optim import scalar
from rule_cases import ZOO_RULES, built, gradients, groups_of, normal, run, weights
from tiny_runs import assert_refused
from tiny_runs import run as run_tiny
from trainer import data, runs, settings
from trainer.measure import effective_lr
from zoo import Optimizer, orthogonal
from zoo.frozen import FROZEN
from zoo.rule import WrongRule, ZooRule, copy_of_weight, update_to
from zoo.table import bytes_per_weight, read_docstring

ROOT = Path(__file__).parents[1]
RULES, MODIFIERS = ZOO_RULES, zoo.MODIFIERS
ALL_RULES = zoo.RULES | {"adalayer_frozen": FROZEN} | {
    f"adamw+{name}": zoo.modified("adamw", name) for name in MODIFIERS}


def test_all_rules_and_modifiers_have_golden_numbers():
    """Those of optim.py are in test_golden.py, and those of 8-bit Muon in test_zoo_eight_bit.py. No code of
    Lion-K's authors exists for these three functions, so tests restate them."""
    elsewhere = {*optim.RULES, "muon_8bit", "lion_l2", "lion_group", "lion_huber"}
    assert {meta["rule"] for meta in CASES.values()} | elsewhere == {*zoo.RULES}
    assert {meta["modify"] for meta in CASES.values()} >= {*MODIFIERS}


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_golden(case, device):
    """In float64, after 3 and after 25 steps, on all weights."""
    assert deviation(case, device=device) <= LOOSER.get(case, 1e-12)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.compiled
def test_scions_embedding_compiles_at_the_size_of_a_model(device):
    """A mean over rows of what has just been changed in place does not, in torch 2.13; small ones do."""
    w, b = torch.ones(384, 128, device=device), torch.ones(384, 128, device=device)
    for p, compile in ((w, True), (b, False)):
        optimizer = Optimizer([dict(params=[p], roles=["embed"])], RULES["scion"], lr=0.01, compile=compile)
        p.grad = torch.linspace(-1, 1, p.numel(), device=device).reshape(p.shape)
        optimizer.step()
    assert torch.allclose(w, b, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------
# What the rules have to do with one another, and what each promises

def ends(case, steps=8, **more):
    w = weights()
    run(built(case, w, **more), w, gradients(steps))
    return w


@pytest.mark.parametrize("a, b", [
    (("ademamix", dict(alpha=0.0, beta2=0.95, eps=1e-8)), ("adamw", dict(eps=1e-8))),
    (("adam_mini", {}), ("adalayer", dict(rows="embed+matrix+head"))),
    (("sophia", dict(rho=0.0, beta1=0.9)), ("signum", {})),
    (("adamw+adagc", dict(adagc_start=1e9)), ("adamw", {}))], ids=lambda pair: pair[0])
def test_a_rule_that_is_another(a, b):
    """Adam-mini is Adalayer with a block for each row, but for q, k, v; the others, by a number that is 0."""
    a, b = (ends(name, **more) for name, more in (a, b))
    assert all(torch.allclose(a[role], b[role], rtol=0, atol=1e-12) for role in a if role != "qkv")


def test_mars_without_gamma_is_adam_of_clipped_tensors():
    small = [{role: g * 1e-3 for role, g in grads.items()} for grads in gradients()]    # norms below 1
    a, b = weights(), weights()
    run(built("mars", a, gamma=0.0, rest_lr=0.1), a, small)
    run(built("adamw", b, beta1=0.95, beta2=0.99, eps=1e-8), b, small)
    assert all(torch.allclose(a[role], b[role], rtol=0, atol=1e-12) for role in a if role != "norm")


def test_adam_minis_heads_are_blocks_of_adalayer():
    """q and k of 4 x 4 with two heads of 2 x 4 each; v, whose rows are blocks."""
    a, b, c = weights(), weights(), weights()
    run(built("adam_mini", a, heads=2), a, gradients())
    for w, blocks in ((b, 6), (c, 12)):
        run(Optimizer([dict(params=[w["qkv"]], blocks=[blocks])], optim.adalayer, lr=0.1),
            dict(qkv=w["qkv"]), gradients())
    assert torch.allclose(a["qkv"][:8], b["qkv"][:8], rtol=0, atol=1e-12)
    assert torch.allclose(a["qkv"][8:], c["qkv"][8:], rtol=0, atol=1e-12)


def update(rule, g, role=None, blocks=1, **hyper):
    """What a rule's first step takes from a tensor, for lr 1."""
    w = torch.zeros_like(g)
    w.grad = g.clone()
    group = dict(params=[w], blocks=[blocks], roles=[role])
    optimizer = Optimizer([group], rule, lr=1.0, **hyper)
    optimizer.sampled = {w: g}
    optimizer.step()
    return -w


@pytest.mark.parametrize("shape", [(40, 20), (20, 40), (30, 30)])
def test_muon_makes_all_singular_values_about_one(shape):
    g = normal(*shape)
    g = g @ torch.diag(torch.logspace(0, -1, shape[1], dtype=torch.float64))
    values = torch.linalg.svdvals(update(RULES["muon"], g)) / max(1, shape[0] / shape[1]) ** 0.5
    assert 0.3 < values.min() and values.max() < 1.3 and values.median() > 0.65
    assert torch.allclose(update(RULES["muon"], g), update(RULES["muon"], 1e-3 * g), atol=1e-3)
    rows = update(RULES["normuon"], g).norm(dim=1)    # NorMuon's rows are all alike
    assert torch.allclose(rows, rows.mean().expand_as(rows), rtol=1e-9)


def test_the_fused_projection_is_three_matrices():
    g = normal(12, 4)
    for name in ("muon", "normuon", "scion"):
        apart = torch.cat([update(RULES[name], part) for part in g.chunk(3)])
        assert torch.allclose(update(RULES[name], g, "qkv", blocks=3), apart, atol=1e-12), name


def test_scion_moves_by_its_radii():
    g = normal(6, 4)
    radii = dict(radius=2.0, radius_embed=3.0, radius_head=5.0, radius_norm=7.0)
    embed, head = (update(RULES["scion"], g, role, **radii) for role in ("embed", "head"))
    assert torch.allclose(embed.square().mean(1).sqrt(), torch.full((6,), 3.0).double())
    assert torch.allclose(head.abs(), torch.full((6, 4), 5.0 / 4).double())
    assert update(RULES["scion"], g[0], "norm", **radii).square().mean().sqrt().item() == pytest.approx(7.0)
    matrix = torch.linalg.svdvals(update(RULES["scion"], g, "matrix", **radii)) / (2 * (6 / 4) ** 0.5)
    assert 0.3 < matrix.min() and matrix.max() < 1.3


@pytest.mark.slow
def test_soap_turns_into_eigenvectors():
    """At t = 2 they are exact; the refreshes after that come nearer to them with each step."""
    w = {"matrix": torch.zeros(6, 6, dtype=torch.float64)}
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    optimizer = Optimizer(w.values(), RULES["soap"], lr=0.1, refresh_steps=1)

    def off_diagonal(mean, basis):
        turned = basis.mT @ mean @ basis
        return ((turned - turned.diagonal(dim1=1, dim2=2).diag_embed()).norm() / turned.norm()).item()
    for t in range(1, 400):
        if t == 2:
            first = optimizer.state[w["matrix"]]["gl"].clone()
        w["matrix"].grad = mix @ torch.randn(6, 6, generator=draw, dtype=torch.float64)
        optimizer.step()
        state = optimizer.state[w["matrix"]]
        if t == 2:
            assert off_diagonal(first, state["ql"]) < 1e-12
    assert off_diagonal(state["gl"], state["ql"]) < 0.15
    basis = state["ql"][0]
    assert torch.allclose(basis @ basis.T, torch.eye(6, dtype=torch.float64), atol=1e-12)


def test_kl_soap_begins_with_eigenvectors_of_its_two_matrices():
    """Those of what the first step has measured, the one with the largest eigenvalue first."""
    w = torch.zeros(4, 4, dtype=torch.float64)
    optimizer = Optimizer([w], "kl_soap", lr=0.1)
    draw = torch.Generator().manual_seed(0)
    w.grad = torch.randn(4, 4, generator=draw, dtype=torch.float64)
    optimizer.step()
    measured = {name: x.clone() for name, x in optimizer.state[w].items() if name in ("gl", "gr")}
    optimizer.step()
    for mean, basis in zip(("gl", "gr"), ("ql", "qr")):
        turned = optimizer.state[w][basis].mT @ measured[mean] @ optimizer.state[w][basis]
        values = turned.diagonal(dim1=1, dim2=2)
        assert (turned - values.diag_embed()).norm() < 1e-12 * turned.norm()
        assert (values.diff() < 0).all()


def test_a_bias_of_q_k_and_v_is_one_vector():
    """Blocks of whole matrices do not apply to it, and neither do Adam-mini's heads."""
    draw = torch.Generator().manual_seed(0)
    for name in ("adam_mini", "slim_adam", "muon", "soap", "dion", "apollo", "shampoo", "kron", "adalayer"):
        w = [torch.ones(12, 4), torch.ones(12)]
        optimizer = Optimizer([dict(params=w, roles=["qkv", "qkv"], blocks=[3, 3])], name, lr=0.1)
        for _ in range(2):
            for p in w:
                p.grad = torch.randn(p.shape, generator=draw)
            optimizer.step()
        assert all((p != 1).all() and p.isfinite().all() for p in w), name


def test_groups_with_one_distance_need_one_lr():
    groups = [dict(params=[torch.ones(2)], lr=lr) for lr in (1.0, 0.1)]
    with pytest.raises(ValueError, match="prodigy has one distance for all its weights, .* they have 0.1, 1"):
        Optimizer(groups, "prodigy", lr=1.0)


def test_the_start_of_nag_gs_is_not_rounded_to_the_weights():
    """bf16 has no 0.7; the nearest number is 0.69921875."""
    state = [(optimizer := Optimizer([torch.ones(2, dtype=dtype)], "nag_gs", lr=0.1, gamma0=0.7)).start(
        optimizer.param_groups[0], 0)["gamma"] for dtype in (torch.bfloat16, torch.float32)]
    assert torch.equal(*state)


def test_apollos_directions_depend_on_seed_tensor_and_time_alone():
    def directions(**more):
        w = weights()
        optimizer = built("apollo", w, refresh_steps=2, **more)
        seen = []
        for g in gradients(4):
            run(optimizer, w, [g])
            seen += [optimizer.state[w[role]]["p"].clone() for role in ("qkv", "mlp_up")]
        return seen
    a, b, c = directions(), directions(), directions(seed=1)
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert not any(torch.equal(x, y) for x, y in zip(a, c))
    assert torch.equal(a[0], a[2]) and not torch.equal(a[0], a[4])    # drawn anew at t = 3
    assert not torch.equal(a[0][0], a[1][0])


def test_cautious_never_moves_against_the_gradient():
    w, start = weights(), weights()
    grads = gradients(9)
    optimizer = built("adamw+cautious", w)
    run(optimizer, w, grads[:8])
    before = {role: p.detach().clone() for role, p in w.items()}
    run(optimizer, w, grads[8:])
    for role in w:
        moved = before[role] - w[role].detach()
        assert (moved * grads[8][role] >= 0).all() and (moved == 0).any() and (w[role] != start[role]).any()


def test_a_trust_ratio_moves_a_tensor_by_lr_times_its_size():
    for kind, strength in (("coupled", 0.0), ("coupled", 0.3), ("independent", 0.3)):
        w, start = weights(), weights()
        run(built("adamw+trust_ratio", w, weight_decay=strength, weight_decay_kind=kind), w, gradients(1))
        for role in w:
            assert ((w[role] - start[role]).norm() / start[role].norm()).item() == pytest.approx(0.1)


@pytest.mark.parametrize("warmup", [1, 2])    # a warmup of 1 step would have no usual norm to begin with
def test_adagc_holds_a_spike_to_its_growth(warmup):
    g = torch.ones(4, dtype=torch.float64)
    w = torch.zeros_like(g)
    optimizer = Optimizer([w], zoo.modified("sgd", "adagc"), lr=1.0, beta1=0.0, adagc_warmup_steps=warmup)
    for scale, moved in ((0.4, 0.4), (0.4, 0.4), (100.0, 1.05 * 0.4), (0.1, 0.1)):
        before, w.grad = w.clone(), g * scale
        optimizer.step()
        assert torch.allclose(before - w, g * moved, rtol=2e-2)


@pytest.mark.parametrize("rule, name, growth, hyper", [
    (RULES["apollo"], "last", 1.01, {}), (RULES["apollo_mini"], "last", 1.01, {}),
    (zoo.modified("sgd", "adagc"), "adagc_norm", 1.001, dict(adagc_warmup_steps=3))])
def test_a_gradient_of_zeros_freezes_a_tensor_as_published(rule, name, growth, hyper):
    """As the docstrings say: a norm falls to 0, and from then on grows by 1 % or by 0.1 % a step."""
    w, norms = torch.zeros(4, 4, dtype=torch.float64), []
    optimizer = Optimizer([w], rule, lr=1.0, **hyper)
    for t in range(1, 401):
        w.grad = torch.eye(4, dtype=torch.float64) * (t != 2)
        optimizer.step()
        norms.append(optimizer.state[w][name].item())
    assert norms[0] > 0.9 and norms[1] == 0 and max(norms[1:]) < 1e-4
    assert norms[-1] / norms[-2] == pytest.approx(growth, abs=3e-4)


@pytest.mark.parametrize("name, noisy, hyper, lengths, words", [
    ("came", True, dict(beta2=0.999, beta3=0.9999), {1: 11.1, 100: 2.5, 1000: 0.8},
     "step 100 is still 2.5 times lr and step 1,000 is 0.8"),
    ("came", True, {}, {1: 1.57}, "the first step is 1.6 times as long as Adam's"),
    ("adabelief", False, {}, {300: 9.0, 1000: 20.0},
     "nine times as far after 300 equal gradients, and twenty times after 1,000"),
    ("ademamix", False, dict(beta3=0.99), {1000: 9.0}, "1 + alpha times as far")])
def test_steps_are_as_long_as_the_docstrings_say(name, noisy, hyper, lengths, words):
    """In units of lr, root mean square. The gradients are noise, or they are all the same."""
    assert words in " ".join(RULES[name].function.__doc__.split())
    w, draw = torch.zeros(48, 32), torch.Generator().manual_seed(0)
    optimizer, steady = Optimizer([w], RULES[name], lr=1.0, **hyper), torch.randn(48, 32, generator=draw)
    for t in range(1, max(lengths) + 1):
        before, w.grad = w.clone(), 1e-3 * (torch.randn(48, 32, generator=draw) if noisy else steady)
        optimizer.step()
        if t in lengths:
            assert (w - before).square().mean().sqrt().item() == pytest.approx(lengths[t], rel=0.04)


def test_a_trust_ratio_has_the_last_word_on_the_decay():
    """It takes off what the decay does to the weights, so no other modifier may change that after it."""
    def stepped(modify):
        w = torch.tensor([1.0, 1.0], dtype=torch.float64)
        optimizer = Optimizer([w], zoo.modified("sgd", modify), lr=0.1, beta1=0.0, weight_decay=1.0)
        w.grad = torch.tensor([-30.0, 30.0], dtype=torch.float64)
        optimizer.step()
        return w
    w, d = torch.ones(2).double(), torch.tensor([0.0, 1.0]).double()    # the first is not decayed
    u = torch.tensor([-30.0, 30.0]).double() + d
    expected = w - 0.1 * w.norm() / u.norm() * u
    for modify in ("trust_ratio+cautious_decay", "cautious_decay+trust_ratio"):
        assert torch.allclose(stepped(modify), expected, atol=1e-12)
    assert torch.equal(stepped("trust_ratio+cautious"), stepped("cautious+trust_ratio"))


def test_laprop_keeps_the_lr_of_each_gradient():
    """As the authors' code does: under a schedule a step is the mean of normalised gradients, weighted by
    the lr that each had."""
    w, lrs = torch.zeros(5, dtype=torch.float64), (0.1, 0.5, 0.2, 0.0)
    draw, b1, b2 = torch.Generator().manual_seed(0), 0.9, 0.95
    optimizer = Optimizer([w], RULES["laprop"], lr=0.1)
    v, m, rate = 0.0, 0.0, 0.0
    for t, lr in enumerate(lrs, 1):
        g = torch.randn(5, generator=draw, dtype=torch.float64)
        before, w.grad, optimizer.param_groups[0]["lr"] = w.clone(), g, lr
        optimizer.step()
        v = b2 * v + (1 - b2) * g**2
        m = b1 * m + (1 - b1) * lr * g / (v / (1 - b2**t)).sqrt()
        rate = b1 * rate + (1 - b1) * lr
        assert torch.allclose(before - w, lr * m / rate, atol=1e-12)


def test_the_state_of_other_modifiers_is_refused():
    one, other = (Optimizer([torch.ones(2)], zoo.modified("adamw", modify), lr=0.1)
                  for modify in ("", "adagc"))
    for a, b, words in ((one, other, "the state is of adamw.adagc, not of adamw"),
                        (other, one, "the state is of adamw, not of adamw.adagc")):
        with pytest.raises(ValueError, match=words):
            a.load_state_dict(b.state_dict())
        assert a.param_groups[0]["rule"] != b.param_groups[0]["rule"]


def test_the_state_of_an_earlier_version_with_modifiers_is_loaded():
    """There the names of the modifiers stood apart from that of the rule."""
    w = [torch.ones(2), torch.ones(2)]
    one, other = (Optimizer([p], zoo.modified("adamw", "cautious+adagc"), lr=0.1) for p in w)
    w[0].grad = torch.ones(2)
    one.step()
    state = one.state_dict()
    state["param_groups"][0] |= dict(rule="adamw", modify=["cautious", "adagc"])
    other.load_state_dict(state)
    assert torch.equal(other.state[w[1]]["m"], one.state[w[0]]["m"])
    assert other.param_groups[0]["rule"] == "adamw+cautious+adagc"


def test_a_line_of_the_table_may_change(monkeypatch):
    """As in a notebook whose cell runs again."""
    for rule in (lambda g: 2 * g, lambda g: 3 * g):
        monkeypatch.setitem(zoo.RULES, "mine", ZooRule(rule))
        assert zoo.modified("mine") is zoo.rule_of("mine") is zoo.RULES["mine"]
        assert zoo.modified("mine", "cautious").name == zoo.modified(zoo.RULES["mine"], "cautious").name
        assert zoo.modified("mine", "cautious") is zoo.modified(zoo.RULES["mine"], "cautious")


def test_a_rule_of_the_users_own_keeps_its_line_of_the_table():
    def stubborn(g, v, *, beta2=0.95, pace=1.0, eps=0.0):
        v += g.square()
        return pace * g
    rule = optim.Rule(stubborn, second_moment="v", corrected=False, bounds=dict(pace=(1, 3)))
    w = torch.ones(2)
    optimizer = Optimizer([w], rule, lr=1.0)
    w.grad = torch.full((2,), 2.0)
    optimizer.step()
    assert effective_lr(optimizer)[0]["values"].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="pace=4.0: must be of type float and in .1, 3."):
        Optimizer([w], rule, lr=1.0, pace=4.0)


def test_a_basis_beyond_ten_thousand_is_left_out():
    with torch.device("meta"):
        optimizer = Optimizer([torch.empty(50304, 768)], RULES["soap"], lr=0.1)
    state = optimizer.start(optimizer.param_groups[0], 0)
    assert state["gl"].shape == (1, 0, 0) and state["gr"].shape == (1, 768, 768)


def test_effective_lr_is_of_the_second_moment_that_the_table_names():
    """The line of a rule names a second moment if the rule divides by it as Adam does. Then effective_lr is
    that of its step, where nothing but the mean gradient is multiplied by it."""
    every = ("embed", "qkv", "mlp_up", "norm", "head")
    of_adam = dict(mars=every, adam_mini=("qkv", "mlp_up", "norm", "head"), amsgrad=every, adamomentum=every,
                   adamp=("embed", "qkv", "mlp_up", "norm"), stable_adamw=("embed", "norm"),
                   coupled_adam=("qkv", "mlp_up", "norm"))
    for name, rule in RULES.items():
        w = weights()
        optimizer = Optimizer([dict(params=list(w.items()), roles=list(w))], rule, lr=0.1)
        run(optimizer, w, gradients(3))
        start = {role: p.detach().clone() for role, p in w.items()}
        run(optimizer, w, gradients(4)[3:])
        rows = {row["name"]: row for row in effective_lr(optimizer)}
        assert bool(rows) == bool(rule.second_moment), name
        assert set(rule.second_moment) <= set(rule.state)
        assert not rule.second_moment or "beta2" in rule.hyper
        for role in of_adam.get(name, ()):
            m_hat = optimizer.state[w[role]]["m"] / (1 - optimizer.param_groups[0]["beta1"] ** 4)
            values = rows[role]["values"].double()
            step = (values[:, None] * m_hat.reshape(len(values), -1)).view_as(m_hat)    # block by block
            assert torch.allclose(step, start[role] - w[role], atol=1e-6), (name, role)


@pytest.mark.parametrize("name", RULES)
def test_any_shape(name):
    """A convolution, a vector and a single number, as of a model it has never seen; no role known."""
    w = [torch.ones(shape) for shape in ((4, 1, 3, 3), (8, 144), (8,), ())]
    optimizer = Optimizer(w, RULES[name], lr=0.01)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        for p in w:
            p.grad = torch.randn(p.shape, generator=draw)
        optimizer.sampled = {p: p.grad for p in w}
        optimizer.step()
    assert all(p.isfinite().all() and (p != 1).any() for p in w)


def values_to_try(rule):
    """Pairs (hyperparameter, value): values at and near the limits of what the rule accepts."""
    for name, usual in rule.hyper.items():
        low, high = rule.bounds.get(name, (0, None))
        between = [1 / 3, 0.6, 2 / 3, 0.999] if high == 1 else []
        yield from ((name, type(usual)(value)) for value in (low, *between))


@pytest.mark.parametrize("name", ALL_RULES)
def test_every_allowed_value_keeps_the_weights_finite(name):
    """With the first gradient of zeros, too, for a rule whose first step only measures."""
    rule = ALL_RULES[name]
    first_sizes = (1.0, 0.0) if rule.measures else (1.0,)
    for (hyper, value), first in itertools.product(values_to_try(rule), first_sizes):
        w = [torch.ones(3, 4), torch.ones(4)]
        optimizer = Optimizer(w, rule, lr=0.01, **{hyper: value})
        draw = torch.Generator().manual_seed(0)
        for t in range(4):
            for p in w:
                p.grad = torch.randn(p.shape, generator=draw) * (first if t == 0 else 1.0)
            optimizer.sampled = {p: p.grad for p in w}
            optimizer.step()
        assert all(p.isfinite().all() for p in w), (hyper, value, first)


@pytest.mark.parametrize("name", ALL_RULES)
def test_tensors_of_no_weights_change_nothing(name):
    """Other tensors move as they do without them. A state with such tensors can be loaded."""
    def stepped(*empty):
        w = [torch.ones(3, 4), torch.ones(4), *(torch.ones(shape) for shape in empty)]
        optimizer, draw = Optimizer(w, ALL_RULES[name], lr=0.01), torch.Generator().manual_seed(0)
        for _ in range(3):
            for p in w:
                p.grad = torch.randn(p.shape, generator=draw)
            optimizer.sampled = {p: p.grad for p in w}
            optimizer.step()
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert not any(optimizer.state.get(p) for p in w[2:])
        return w[:2]
    for a, b in zip(stepped(), stepped((0,), (3, 0), (0, 4), (2, 0, 3))):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", rule_cases.CASES)
def test_bf16_weights_are_rounded_only_at_the_end_of_a_step(case):
    """From the same weights and gradients, a step gives the same state and, rounded, the same weights."""
    low, high = weights(torch.bfloat16), weights(torch.bfloat16)
    high = {role: p.detach().float().requires_grad_() for role, p in high.items()}
    optimizers = [built(case, w, weight_decay=0.1) for w in (low, high)]
    for g in gradients(4, dtype=torch.bfloat16):
        for optimizer, w in zip(optimizers, (low, high)):
            run(optimizer, w, [g])
        for role, p in low.items():
            assert torch.equal(p, high[role].bfloat16()), role
            a, b = (optimizer.state[w[role]] for optimizer, w in zip(optimizers, (low, high)))
            assert all(torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a), role
            with torch.no_grad():
                high[role].copy_(p)


# ---------------------------------------------------------------------------------------------------------
# The form: what a stranger's next rule may say

def test_a_strangers_rule():
    """A start that wants a hyperparameter, a refresh outside the graph, a role, a measuring step."""
    def table(w, blocks, *, size):
        return w.new_zeros(blocks, size)

    def rule(g, seen: table, role, t, *, size=3, refresh_steps=2):
        return (t > 1) * g * (2 if role == "head" else 1)

    calls = []

    def look(seen, g, w, t, index, role, *, size):
        calls.append((t, index, role))
        seen += size
    rule = ZooRule(rule, measures=1, refresh=look)
    w = dict(a=torch.ones(2), b=torch.ones(2))
    optimizer = Optimizer([dict(params=list(w.items()), roles=["head", "norm"])], rule, lr=0.1, size=4,
                          weight_decay=0.5)
    for t in range(1, 5):
        for p in w.values():
            p.grad = torch.ones(2)
        optimizer.step()
        assert t > 1 or all(torch.equal(p, torch.ones(2)) for p in w.values())    # neither moved nor decayed
    assert calls == [(2, 1, "head"), (2, 2, "norm"), (4, 1, "head"), (4, 2, "norm")]
    assert optimizer.state[w["a"]]["seen"].tolist() == [[8.0] * 4]
    assert w["a"][0] < w["b"][0]


def test_make_takes_a_function():
    def halves(g):
        return g / 2
    w = weights()
    optimizer = zoo.make(halves, [(role, w[role], role) for role in w], lr=0.1, untrained="norm")
    moved = {role: w[role].detach() - 0.05 * g for role, g in gradients(1)[0].items()}
    run(optimizer, w, gradients(1))
    assert all(torch.allclose(w[role], moved[role], rtol=1e-14) for role in w if role != "norm")


def test_a_rule_may_ask_for_the_peak_lr_the_decay_and_the_layer():
    """Layers are numbered from the embedding, 0, without a gap. What belongs to no layer comes at the end."""
    def rule(g, w, lr, lr_peak, decay, layer):
        new = w - layer * (lr / lr_peak) * g
        return update_to(new, w, decay, lr)
    roles = {"embed.weight": "embed", "blocks.0.qkv.weight": "qkv", "blocks.11.norm.weight": "norm",
             "norm.weight": "norm"}
    w = {name: torch.full((2,), 8.0) for name in roles}
    optimizer = Optimizer([dict(params=list(w.items()), roles=list(roles.values()))], rule, lr=0.5,
                          weight_decay=0.5)
    optimizer.param_groups[0]["lr"] = 0.25    # as a schedule does: half of the peak
    for p in w.values():
        p.grad = torch.ones(2)
    optimizer.step()
    assert [p[0].item() for p in w.values()] == [8, 7.5, 7, 6.5]
    for p in w.values():
        p.grad = torch.zeros(2)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert [p[0].item() for p in w.values()] == [8, 7.5, 7, 6.5]    # and nothing divides by an lr of 0


def test_a_state_may_start_as_a_copy_of_the_weight():
    def rule(g, start: copy_of_weight):
        return start.mul_(g).clone()
    w = torch.tensor([1.0, 2.0])
    optimizer = Optimizer([w], rule, lr=0.5)
    w.grad = torch.ones(2)
    optimizer.step()
    assert w.tolist() == [0.5, 1.0] and optimizer.state[w]["start"].tolist() == [1, 2]


def test_two_rules_of_one_name():
    """A table does not take the name of another table's rule without a word."""
    with pytest.raises(ValueError, match="signum: there is another rule of that name; rename one"):
        zoo.joined([optim.RULES, dict(signum=RULES["laprop"])])


@pytest.mark.parametrize("line, words", [
    (dict(refresh=lambda s: None), "has a refresh, so it needs the hyperparameter refresh_steps"),
    (dict(bounds=dict(beta9=(0, 1))), "has no hyperparameter beta9"),
    (dict(second_moment="v9"), "second_moment names v9, which is no state of it"),
    (dict(from_run=("seed",)), "has no hyperparameter seed")])
def test_a_line_of_a_table_is_checked(line, words):
    with pytest.raises(ValueError, match=words):
        ZooRule(optim.signum, **line)


def test_more_that_a_rule_must_not_say():
    def rest_is_an_option(g, *, rest_scale=0.1):
        return rest_scale * g

    def no_beta2(g, v, *, decay2=0.9):
        return g

    def wrong_state(g, v: lambda w: w.new_zeros(2)):
        return g
    with pytest.raises(ValueError, match="rest_scale would be an option of --rest"):
        ZooRule(rest_is_an_option)
    with pytest.raises(ValueError, match="no_beta2: has no beta2, so its second_moment needs "):
        ZooRule(no_beta2, second_moment="v")
    with pytest.raises(ValueError, match="wrong_state, on a tensor of shape .2, 2.: TypeError"):
        Optimizer([torch.ones(2, 2)], wrong_state, lr=0.1)


def test_every_beta_and_every_count_of_steps_has_its_bounds():
    """Bounds stand in the tables. A table that forgets one would let a run divide by 1 - 1."""
    for rule in [*zoo.RULES.values(), *MODIFIERS.values()]:
        for name in rule.hyper:
            if "beta" in name:
                assert rule.bounds[name][0] >= 0 and rule.bounds[name][1] == 1, (rule.name, name)
            if name.endswith("_steps"):
                assert rule.bounds[name][0] == 1, (rule.name, name)


def test_rules_for_some_roles_bring_the_rule_of_the_others():
    optimizer = built("muon", weights(), rest_lr=0.01, lr=0.02)
    found = {role: (group["rule"], group["lr"]) for role, group in groups_of(optimizer).items()}
    assert found == dict(embed=("adamw", 0.01), head=("adamw", 0.01), norm=("adamw", 0.01),
                         qkv=("muon", 0.02), mlp_up=("muon", 0.02))
    other = built("muon", weights(), adaptive="matrix", rest="lion", rest_beta2=0.5)
    assert {role for role, group in groups_of(other).items() if group["rule"] == "lion"} == {
        "embed", "qkv", "norm", "head"}


@pytest.mark.parametrize("call, words", [
    (lambda w: built("muon", w, rest_lr=None), r"rest_lr: muon is for qkv\+matrix; give the lr of adamw"),
    (lambda w: zoo.make("moun", [], lr=1.0), "did you mean muon"),
    (lambda w: built("adamw", w, modify="cautius"),
     "modify='cautius': must be one or more of cautious, cautious_decay"),
    (lambda w: built("adamw", w, adagc_beta=0.5), "adagc_beta: is not a hyperparameter of adamw"),
    (lambda w: built("soap", w, refresh_steps=0), "refresh_steps=0: must be of type int and in .1, inf."),
    (lambda w: built("muon", w, rows="head"), "rows: adamw, the rule of head, has no blocks")])
def test_wrong_use(call, words):
    with pytest.raises(ValueError, match=words):
        call(weights())


def test_sophia_says_when_it_wants_sampled_gradients():
    w = torch.ones(2)
    optimizer = Optimizer([w], RULES["sophia"], lr=0.1, refresh_steps=3)
    wanted = []
    for t in range(1, 8):
        w.grad = torch.ones(2)
        if wanted and optimizer.wants_sampled():
            with pytest.raises(RuntimeError, match="needs gradients on sampled labels"):
                optimizer.step()
            assert optimizer.state[w]["t"] == t - 1    # and nothing has moved
        wanted.append(optimizer.wants_sampled())
        optimizer.sampled = {w: torch.ones(2)} if wanted[-1] else None
        optimizer.step()
    assert wanted == [True, False, False, True, False, False, True]
    assert not Optimizer([w], optim.signum, lr=0.1).wants_sampled()


@pytest.mark.parametrize("name", [*RULES, *MODIFIERS])
def test_a_function_explains_itself(name):
    line, rule = (RULES | MODIFIERS)[name], name in RULES
    function = line.function
    doc = inspect.getdoc(function)
    for word in ("Remembers", "Moves", "lr ", "Defaults", "For ", "Source", "Typical") if rule else (
            "Remembers", "For ", "Source"):
        assert word in doc, word
    if rule:    # what the docstring calls typical is what the trainer begins with
        typical = float(re.search(r"Typical ([\d.e-]+\d)", doc)[1])
        assert typical == pytest.approx(3e-3 * line.lr_factor, rel=0.12)
    else:
        own = {*line.state, *line.hyper}
        assert all(name.startswith(function.__name__) for name in own)


@pytest.mark.parametrize("name", ["adafactor", "came", "adamw"])
def test_blocks_that_a_rule_would_ignore_are_refused(name):
    with pytest.raises(ValueError, match=f"parameter 0 of shape .6, 4.: blocks=3, but {name} has no blocks"):
        Optimizer([dict(params=[torch.ones(6, 4)], blocks=[3])], name, lr=0.1)


def test_matrices_are_stacked_in_batches_of_a_few_weights():
    """No matrix is left out, and only those of one kind stand together."""
    members = [("q", torch.ones(6, 4)), ("k", torch.ones(6, 4))] + [("q", torch.ones(6, 4))] * 4
    batches = [[kind for kind, _ in batch] for batch in zoo.batches_of_matrices(members, most=50)]
    assert batches == [["q", "q"], ["q", "q"], ["q"], ["k"]]


@pytest.mark.parametrize("role", ["mlp_up", "qkv", "embed"])
@pytest.mark.parametrize("name", [name for name, rule in zoo.RULES.items() if rule.stacks])
def test_matrices_of_one_kind_are_computed_together_and_move_as_if_alone(name, role):
    draw = torch.Generator().manual_seed(0)
    together = [torch.randn(6, 4, generator=draw, dtype=torch.float64) for _ in range(5)]
    alone = [w.clone() for w in together]
    group = dict(blocks=[3 if role == "qkv" else 1], roles=[role])
    own = {key: 4 for key in zoo.RULES[name].hyper if key == "block_size"}    # otherwise there are no codes
    five = dict(params=together, blocks=group["blocks"] * 5, roles=[role] * 5)
    one = Optimizer([five], name, lr=0.1, **own)
    each = [Optimizer([dict(params=[w], **group)], name, lr=0.1, **own) for w in alone]
    for _ in range(4):
        for w, other in zip(together, alone):
            w.grad = torch.randn(6, 4, generator=draw, dtype=torch.float64)
            other.grad = w.grad.clone()
        for optimizer in (one, *each):
            optimizer.step()
    for w, other, optimizer in zip(together, alone, each):
        assert torch.allclose(w, other, rtol=1e-12, atol=1e-12)
        for key, x in optimizer.state[other].items():
            assert torch.allclose(torch.as_tensor(one.state[w][key]), torch.as_tensor(x), rtol=1e-12)
        assert not own or one.state[w]["m"].dtype == torch.int8


def test_orthogonal_in_bf16_is_near_that_in_fp64(monkeypatch):
    """Where bf16 is fast, x in fp32 is multiplied in bf16. No singular value changes by more than 0.05."""
    monkeypatch.setattr(orthogonal, "FAST_BF16", {"cpu"})
    draw = torch.Generator().manual_seed(0)
    for shape in ((64, 64), (64, 128), (128, 64)):
        x = torch.randn(3, *shape, generator=draw, dtype=torch.float64)
        exact = torch.linalg.svdvals(orthogonal.orthogonal(x))
        rough = torch.linalg.svdvals(orthogonal.orthogonal(x.float()).double())
        assert 1e-5 < (rough - exact).abs().max() < 0.05
        assert (rough - exact).abs().median() < 0.01


@pytest.mark.parametrize("name", ["muon", "normuon", "scion", "soap"])
def test_experts_are_matrices_of_their_own(name):
    """A tensor (E, rows, columns) with E blocks moves as E tensors do, in stacks of any layout."""
    start = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(3, 5, 4)
    stack, apart = start.clone(), [x.clone() for x in start]
    together = Optimizer([dict(params=[stack], blocks=[3])], name, lr=0.1)
    separate = Optimizer(apart, name, lr=0.1)
    draw = torch.Generator().manual_seed(0)
    for _ in range(4):
        stack.grad = torch.randn(3, 5, 4, generator=draw, dtype=torch.float64)
        for x, g in zip(apart, stack.grad):
            x.grad = g.clone()
        together.step(), separate.step()
    assert torch.allclose(stack, torch.stack(apart), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(stack, start, atol=0.01)


@pytest.mark.parametrize("name", ["muon", "normuon", "scion", "soap", "apollo"])
def test_blocks_that_are_not_whole_rows_are_refused(name):
    """Otherwise a block would begin in the middle of an expert."""
    with pytest.raises(ValueError, match="experts: the 3 rows do not divide into 2 matrices"):
        Optimizer([dict(params=[("experts", torch.ones(3, 6, 4))], blocks=[2])], name, lr=0.1)


# ---------------------------------------------------------------------------------------------------------
# A rule that is wrong is refused before it trains

def forgotten_star(g, m, beta1=0.9):
    return m.lerp_(g, 1 - beta1)

def state_named_beta1(g, m, beta1):
    return m.lerp_(g, 1 - beta1)

def no_default(g, m, *, beta1):
    return m.lerp_(g, 1 - beta1)

def lr_of_its_own(g, m, *, lr=0.1):
    return lr * m.add_(g)

def grad_for_g(grad, m):
    return m.add_(grad)

def no_return(g, m):
    m.add_(g)

def other_shape(g, m):
    return g.sum()

def row_only(g, m):
    return g[:1]

def changes_w(g, w):
    w.sub_(0.1 * g)
    return g

def changes_g(g, m):
    return g.mul_(2)

def typo(g, m):
    return mm.add_(g)  # noqa: F821

def no_number(g, m):
    return g / m

def annotated_with_a_type(g, m: torch.Tensor):
    return m.add_(g)

def default_of_text(g, m, *, mode="mean"):
    return m.add_(g)

def name_of_its_own(g, m):
    m = 0.9 * m + 0.1 * g
    return m


@pytest.mark.parametrize("rule, line", [
    (forgotten_star, "forgotten_star: beta1 is a hyperparameter; put a * before it"),
    (state_named_beta1, "state_named_beta1: beta1 is a hyperparameter; put a * before it"),
    (no_default, "no_default: the hyperparameter beta1 needs a default"),
    (lr_of_its_own, "lr_of_its_own: lr is an input; put it before the *, with no default"),
    (grad_for_g, "grad_for_g: needs a parameter named g, the gradient, before the *"),
    (no_return, "no_return, on a tensor of shape (2, 2): returns a value of type NoneType; "
                "return the update, with the shape of g"),
    (other_shape, "other_shape, on a tensor of shape (2, 2): returns a value of shape (); return the update, "
                  "with the shape of g"),
    (row_only, "row_only, on a tensor of shape (2, 2): returns a value of shape (1, 2); return the update, "
               "with the shape of g"),
    (changes_w, "changes_w, on a tensor of shape (2, 2): changes w or g; only return the update, and apply() "
                "changes w"),
    (changes_g, "changes_g, on a tensor of shape (2, 2): changes w or g; only return the update, and apply() "
                "changes w"),
    (typo, "typo, on a tensor of shape (2, 2): NameError: name 'mm' is not defined"),
    (no_number, "no_number, on a tensor of shape (2, 2): its first update is not finite: "
                "[[inf, inf], [inf, inf]]"),
    (annotated_with_a_type, "annotated_with_a_type: the annotation of m must be a function such as per_row; "
                            "leave it out if the state has the shape of the weight"),
    (default_of_text, "default_of_text: the default of mode must be a number, True or False")])
def test_a_wrong_rule_is_one_line(rule, line):
    w = torch.ones(2)
    with pytest.raises(ValueError) as caught:
        Optimizer([w], rule, lr=0.1)
    assert str(caught.value) == line and w.tolist() == [1, 1]


def test_a_state_that_never_changes_is_named(monkeypatch):
    """It may be a state that the rule forgets to change, or a hyperparameter without a star."""
    monkeypatch.setattr(zoo, "TRIED", set())
    with pytest.warns(UserWarning) as caught:
        Optimizer([torch.ones(2)], name_of_its_own, lr=0.1)
    assert [str(one.message) for one in caught] == [
        "name_of_its_own: two steps have left its state m as it was; change it in place, as m.lerp_() does; "
        "hyperparameters go after a *"]


SEE_GRADIENTS_ELSEWHERE = ("adasgd", "adam_snsm", "conda", "osd", "shampoo", "kron", "dion", "cosmos",
                           "sophia", "prodigy", "induced_sgd", "induced_rms", "adam_cm")
HAVE_AN_AVERAGE = ("schedule_free_adamw", "schedule_free_sgd")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("modify", ["", *MODIFIERS])
@pytest.mark.parametrize("name", [*zoo.RULES, "adalayer_frozen"])
def test_every_rule_changes_its_state_within_two_steps(name, modify, monkeypatch):
    monkeypatch.setattr(zoo, "TRIED", set())
    changes = MODIFIERS[modify].changes if modify else ""
    if name in (SEE_GRADIENTS_ELSEWHERE if changes == "g" else HAVE_AN_AVERAGE if changes else ()):
        with pytest.raises(ValueError, match=f"modify={modify}: changes .* but {name} "):
            zoo.modified(name, modify)
        return
    rule = zoo.modified(FROZEN if name == "adalayer_frozen" else name, modify)
    Optimizer([torch.ones(4, 4)], rule, lr=0.1, **{key: 1 for key in rule.hyper if key == "freeze_steps"})


def test_a_wrong_rule_ends_the_run_before_its_first_step(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(zoo.RULES, "typo", ZooRule(typo))
    assert run_tiny(tiny, tmp_path, "wrong", "--optimizer=typo", "--lr=1") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(
        "train.py: error: --optimizer=typo: typo, on a tensor of shape (2, 2): NameError: name 'mm' is not ")


@pytest.mark.parametrize("name", optim.RULES)
def test_readmes_table_agrees_with_docstring_configs_and_study(name):
    """What is usual for a rule's lr, its bytes of state, and the loss that the study found."""
    [row] = [row for row in table_rows("README.md") if row[0] == f"`{name}`"]
    _, _, state, lrs, _, loss = row
    of_150m, of_nano = map(float, lrs.split(", "))
    assert of_150m == float(read_docstring(zoo.RULES[name].function)[2])
    assert of_150m == pytest.approx(3e-3 * zoo.RULES[name].lr_factor, rel=0.12)
    large, small = (tomllib.loads((ROOT / "configs" / config).read_text())["lr"]
                    for config in ("150m.toml", "nano.toml"))
    assert of_150m == pytest.approx(large.get(name, of_150m), rel=0.06)    # 3e-3 stands for 3.16e-3
    assert of_nano == small[name]
    assert int(state) == round(bytes_per_weight(zoo.RULES[name]))
    found = [row[4:7] for row in table_rows("study/results/table.md")
             if row[:3] == ["study", name, ""] and row[6] == "3"]
    mean, deviation, _ = min(found)
    assert loss == f"{mean} ± {deviation.removeprefix('0')}"


def table_rows(page):
    """The rows of all tables of a page, each a list of cells."""
    return [[cell.strip() for cell in line.strip("|").split("|")]
            for line in (ROOT / page).read_text().splitlines() if line.startswith("|")]


def test_the_table_has_all(capsys):
    assert train.main(["--optimizer=list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 110
    for name in [*zoo.RULES, *MODIFIERS, *zoo.SHAPES]:
        assert any(line.split()[:1] == [name] for line in lines), name
    assert next(line for line in lines if line.startswith("soap ")).split()[1:3] == ["24.00", "3e-3"]
    text = " ".join(lines)
    for identifier in ("2409.03137", "2412.05270", "2411.16085", "2305.14342"):
        assert identifier in text


# ---------------------------------------------------------------------------------------------------------
# In other trainers: docs/elsewhere.md

def run_page(folder, *headings):
    """Runs the first Python block of the page and those of sections. Returns what they define, by name."""
    page = (ROOT / "docs/elsewhere.md").read_text()
    sections = [page, *(page.partition(f"\n## {heading}\n")[2] for heading in headings)]
    script = folder / "elsewhere.py"
    script.write_text("\n".join(text.partition("```python\n")[2].partition("```")[0] for text in sections))
    return runpy.run_path(str(script))


@pytest.mark.parametrize("heading, package", [
    ("A plain loop", "torch"), ("Accelerate", "accelerate"), ("Lightning", "lightning")])
def test_another_trainer_gives_the_same_weights(heading, package, tmp_path, monkeypatch):
    """Those of the plain loop, to the bit, after four steps of signum with a schedule."""
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    start, plain, end = ([p.detach() for p in run_page(tmp_path, *headings)["model"].parameters()]
                         for headings in ([], ["A plain loop"], [heading]))
    assert all(torch.equal(a, b) for a, b in zip(plain, end))
    moved = max((a - b).abs().max().item() for a, b in zip(start, end))
    assert moved == pytest.approx(sum(3e-4 * (1 + np.cos(np.pi * t / 4)) / 2 for t in range(4)), rel=1e-3)


def test_a_rule_for_matrices_in_a_model_of_ones_own(tmp_path):
    """Muon gives the matrix (16, 8) eight singular values of about one size, and AdamW moves a bias by lr."""
    page = run_page(tmp_path, "A rule for matrices")
    layer = page["model"][0]
    matrix, bias = (p.detach().clone() for p in layer.parameters())
    page["model"](page["x"]).square().sum().backward()
    page["optimizer"].step()
    singular = torch.linalg.svdvals(layer.weight.detach() - (1 - 0.02 * 0.1) * matrix)
    assert len(singular) == 8 and singular.max() < 2 * singular.min()
    moved = layer.bias.detach() - (1 - 3e-3 * 0.1) * bias
    assert torch.allclose(moved.abs(), torch.full((16,), 3e-3), rtol=1e-3)


def test_the_trainer_of_hugging_face(tmp_path, monkeypatch):
    """A run that is resumed ends as one that is not."""
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    names = run_page(tmp_path, "The Trainer of Hugging Face")
    trainer, end = names["trainer"], [p.detach().clone() for p in names["gpt"].parameters()]
    assert trainer.state.global_step == 4 and (tmp_path / "out/checkpoint-2/optimizer.pt").exists()
    trainer.train(resume_from_checkpoint="out/checkpoint-2")
    assert all(torch.equal(a, b) for a, b in zip(end, names["gpt"].parameters()))


def test_sophia_behind_a_wrapper_says_what_to_do():
    """Accelerate's wrapper takes `sampled` for an attribute of its own."""
    accelerate = pytest.importorskip("accelerate")
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = accelerate.Accelerator(cpu=True).prepare(Optimizer([w], "sophia", lr=0.1, rho=0.0))
    w.grad = torch.ones(2)
    optimizer.sampled = {w: torch.ones(2)}
    with pytest.raises(RuntimeError, match="Set `sampled` on this optimizer, not on a wrapper of it"):
        optimizer.step()
    optimizer.optimizer.sampled = {w: torch.ones(2)}
    optimizer.step()
    assert torch.allclose(w, torch.full((2,), 0.9))


@pytest.mark.parametrize("name", [name for name in ALL_RULES if name != "adalayer_frozen"])
def test_every_rule_works_with_the_tensors_of_fsdp2(name, devices):
    """Their steps and states are those of plain tensors."""
    mesh, draw = devices(1), torch.Generator().manual_seed(0)
    plain = torch.ones(6, 4)
    split = torch.nn.Parameter(distribute_tensor(plain, mesh, [Shard(0)]))
    own = {key: 4 for key in ALL_RULES[name].hyper if key == "block_size"}    # otherwise there are no codes
    optimizers = [Optimizer([w], ALL_RULES[name], lr=0.01, **own) for w in (plain, split)]
    for _ in range(6):
        plain.grad = torch.randn(6, 4, generator=draw)
        split.grad = distribute_tensor(plain.grad, mesh, [Shard(0)])
        for optimizer, w in zip(optimizers, (plain, split)):
            optimizer.sampled = {w: w.grad}
            optimizer.step()
    assert (plain != 1).any() and torch.allclose(split.full_tensor(), plain, rtol=0, atol=1e-6)
    ours, theirs = (optimizer.state[w] for optimizer, w in zip(optimizers, (plain, split)))
    assert theirs.keys() == ours.keys() != set()
    for key, x in theirs.items():
        x = x.full_tensor() if isinstance(x, DTensor) else torch.as_tensor(x)
        assert x.dtype == torch.as_tensor(ours[key]).dtype
        assert torch.allclose(x, torch.as_tensor(ours[key]), rtol=0, atol=1e-6), key
    assert not own or theirs["m"].dtype in (torch.uint8, torch.int8)


def test_a_group_that_is_refused_is_not_kept():
    """Nor is its rule, so that a mended function of the same name is welcome."""
    def mine(g):
        return -g if mended else g / 0
    optimizer = Optimizer([torch.ones(3, 2)], "muon", lr=0.1)
    with pytest.raises(ValueError, match="do not divide into 2 matrices"):
        optimizer.add_param_group(dict(params=[torch.ones(3, 4)], blocks=[2]))
    mended = False
    with pytest.raises(ValueError, match="mine, on a tensor of shape .*: its first update is not finite"):
        optimizer.add_param_group(dict(params=[torch.ones(3, 4)], rule=mine))
    assert len(optimizer.param_groups) == 1 and list(optimizer.rules) == ["muon"]
    mended, again = True, types.FunctionType(mine.__code__, globals(), "mine", None, mine.__closure__)
    optimizer.add_param_group(dict(params=[torch.ones(3, 4)], rule=again))
    assert list(optimizer.rules) == ["muon", "mine"]


def test_a_rule_that_cannot_be_stacked_is_refused():
    def no_blocks(g, m):
        return m.add_(g)

    def counts(g, n: scalar, blocks):
        return g + n.add_(1)
    with pytest.raises(WrongRule, match="no_blocks: stacks needs the input blocks"):
        ZooRule(no_blocks, stacks=True)
    with pytest.raises(WrongRule, match="counts: stacks needs state with rows"):
        Optimizer([torch.ones(3, 2)], ZooRule(counts, stacks=True), lr=0.1)


def test_a_file_with_a_rule_is_read_anew_when_it_changes(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def mine(g):\n    return g\n")
    first = zoo.find(str(path))
    assert zoo.find(str(path)) is first
    path.write_text("def mine(g):\n    return 2 * g\n")
    second = zoo.find(str(path))
    assert (first.function(3.0), second.function(3.0)) == (3.0, 6.0) and first.sha256 != second.sha256


def test_blocks_that_fsdp2_would_split_are_refused(devices):
    w = distribute_tensor(torch.ones(12, 4), devices(2), [Shard(0)])
    Optimizer([dict(params=[w], blocks=[12])], "adalayer", lr=0.1)
    with pytest.raises(ValueError, match="qkv: 3 blocks do not divide among the 2 devices of FSDP2"):
        Optimizer([dict(params=[("qkv", w)], blocks=[3])], "adalayer", lr=0.1)


# ---------------------------------------------------------------------------------------------------------
# Schedules

@pytest.mark.parametrize("kind, quarters", dict(    # what is left after 1/4, 1/2, 3/4
    linear=(0.75, 0.5, 0.25), cosine=(0.854, 0.5, 0.146), sqrt=(0.5, 0.293, 0.134),
    square=(0.938, 0.75, 0.438), mirror=(0.646, 0.5, 0.354), lowered=(0.525, 0.35, 0.175),
    rex=(0.857, 0.667, 0.4), constant=(1, 1, 1)).items())
def test_shapes(kind, quarters):
    for cooldown, shift in ((1.0, 0), (0.2, 800)):    # over the whole run, or WSD: over its last fifth
        steps = [shift + round(1000 * cooldown * part) for part in (0.25, 0.5, 0.75)]
        found = [zoo.schedule(t, 1000, zoo.SHAPES[kind], warmup=0, floor=0, cooldown=cooldown)
                 for t in steps]
        assert found == pytest.approx(quarters, abs=6e-4)
        if shift:
            assert zoo.schedule(790, 1000, zoo.SHAPES[kind], warmup=0.1, floor=0, cooldown=cooldown) == 1
    last = zoo.schedule(1000, 1000, zoo.SHAPES[kind], floor=0.2)
    assert last == pytest.approx(1 if kind == "constant" else 0.2)


def test_exponential_falls_by_the_same_fraction():
    found = [zoo.schedule(t, 40, zoo.SHAPES["exponential"], warmup=0, floor=0.01) for t in (10, 20, 30, 40)]
    assert found == pytest.approx([0.01**0.25, 0.1, 0.01**0.75, 0.01])


# ---------------------------------------------------------------------------------------------------------
# In the trainer

def test_sophias_curvature_is_of_the_models_own_labels(tiny, tmp_path):
    """h after the first step, by hand: labels drawn window by window, plain cross-entropy, clipped; the same
    through any micro-batches."""
    more = ["--optimizer=sophia", "--precision=fp32", "--steps=1", "--clip=0.5"]
    assert run_tiny(tiny, tmp_path, "a", *more) == 0
    assert run_tiny(tiny, tmp_path, "b", *more, "--micro_batch=2") == 0
    checkpoint = runs.load_checkpoint(tmp_path / "a/step-00000001.pt")
    model = Decoder(**checkpoint["shape"], seed=0)
    windows = data.Tokens(tiny.parent / "data", "train", 16)
    ids = torch.tensor(windows[data.Order(len(windows), 0)(0, 8)])
    probabilities = model(ids[:, :-1]).softmax(-1).detach()
    labels = torch.empty(8, 16, dtype=torch.int64)
    for i in range(8):
        uniform = np.random.default_rng([0, i]).random(16)
        for t in range(16):
            sums = probabilities[i, t].double().cumsum(0).tolist()
            labels[i, t] = next(label for label, total in enumerate(sums) if total >= uniform[t])
    torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), labels.flatten()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    for name in "ab":
        state = runs.load_checkpoint(tmp_path / f"{name}/step-00000001.pt")["optimizer"]["state"]
        for i, p in enumerate(model.parameters()):
            off = (state[i]["h"] - 0.01 * p.grad.square()).norm() / (0.01 * p.grad.square()).norm()
            assert off < 1e-4, (name, i)


def test_sampled_gradients_that_are_not_finite_stop_before_the_update(tiny, tmp_path, capsys, monkeypatch):
    forward, calls = Decoder.losses, []

    def broken(self, x, targets, z_loss):
        calls.append(1)
        if len(calls) == 4:    # two passes at step 1, one at step 2; this is the sampled one of step 3
            x.register_hook(lambda grad: grad * float("inf"))
        return forward(self, x, targets, z_loss)
    monkeypatch.setattr(Decoder, "losses", broken)
    more = ["--optimizer=sophia", "--refresh_steps=2", "--eval_every=0", "--save_every=2"]
    assert run_tiny(tiny, tmp_path, "a", *more) == 3
    message = "step 3: the gradient norm is not finite (first tensor: embed.weight)"
    assert message in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "a").glob("*.pt")] == ["step-00000002.pt"]


@pytest.mark.slow
def test_drawn_labels_follow_the_prediction():
    model = Decoder(width=16, layers=1, heads=2, context=8, vocab_size=5, padded_vocab=6, loss_chunk=3)
    with torch.no_grad():
        model.head.weight.mul_(3)
    tokens = torch.tensor([[1, 2, 3, 4]])
    uniform = (torch.arange(2000) + 0.5) / 2000    # evenly, so that shares are exact
    labels = torch.cat([model.sample_labels(tokens, u.expand(1, 4)) for u in uniform])
    shares = torch.stack([(labels == id).float().mean(0) for id in range(6)], 1)
    assert torch.allclose(shares, model(tokens)[0].softmax(-1), atol=1e-3)


@pytest.mark.parametrize("name", zoo.RULES)
def test_the_trainer_takes_every_rule_by_its_name(name):
    """No hyperparameter has the name of another option, and from_run names options that there are."""
    options = settings.defaults("configs/nano.toml", name)
    assert options["lr"] > 0 and all(key in options for key in zoo.RULES[name].hyper)


@pytest.mark.slow
def test_options_that_are_hyperparameters_reach_the_rule(tiny, tmp_path):
    """steps, heads, seed, batch and context are the run's; everything else is a flag of its own."""
    for name, more, wanted in (("ademamix", [], dict(steps=12, alpha=3.0)), ("adam_mini", [], dict(heads=2)),
                               ("apollo", ["--seed=5"], dict(seed=5, rest=None)),
                               ("sophia", ["--steps=1"], dict(batch=8, context=16))):
        more += ["--alpha=3"] if name == "ademamix" else []
        assert run_tiny(tiny, tmp_path, name, f"--optimizer={name}", *more) == 0
        checkpoint = runs.load_checkpoint(sorted((tmp_path / name).glob("step-*.pt"))[-1])
        groups = checkpoint["optimizer"]["param_groups"]
        group = next(group for group in groups if group["rule"] == name)
        assert all(group[key] == value for key, value in wanted.items() if value is not None)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert name != "apollo" or (config["adaptive"], config["rest"], config["rest_lr"]) == (
            "qkv+matrix", "adamw", 1e-2)


@pytest.mark.parametrize("arguments, words", [
    (["--optimizer=kron", "--modify=agc"], "--modify=agc: changes the gradient, but kron also looks at"),
    (["--modify=agc+stable_decay"], "--modify=agc: changes the gradient, but stable_decay also looks at"),
    (["--modify=l2+adagc"], "--modify=l2: changes the gradient, but adagc also looks at"),
    (["--modify=hyperball+lookahead"], "--modify=hyperball+lookahead: one would undo what the other"),
    (["--modify=update_floor+hyperball"], "--modify=update_floor+hyperball: one would undo what the other"),
    (["--modify=hyperball", "--rows=head"], "--rows: adamw+hyperball, the rule of head, has no blocks"),
    (["--optimizer=sophia", "--modify=centralize"], "--modify=centralize: changes the gradient, but sophia"),
    (["--modify=blockwise_lr+hyperball"], "--modify=blockwise_lr+hyperball: one would undo what the"),
    (["--optimizer=muon", "--modify=bold"], "--modify='bold': must be one or more of cautious"),
    (["--optimizer=muon", "--beta2=0.5"], "the chosen optimizer takes beta1"),
    (["--optimizer=adamw", "--modify=adagc", "--adagc_beta=2"], "adagc_beta=2.0"),
    (["--schedule=exponential", "--floor=0"], "--floor=0: must be above 0 and below 1"),
    (["--schedule=wsd"], "--schedule='wsd': must be one of cosine"),
    (["--cooldown=1.5"], "--cooldown=1.5: must be at most 1")])
def test_bad_options(tiny, tmp_path, capsys, arguments, words):
    assert_refused(tiny, tmp_path, capsys, arguments, words)
