"""The rules of zoo/relatives.py and zoo/distance.py: what is special about each of them."""
import json

import numpy as np
import pytest
import torch

import zoo
from golden_cases import FOLDER, LOOSER, golden_steps, golden_weights, share_off
from rule_cases import built, gradients, normal, run, weights
from zoo import Optimizer, relatives

NUMBERS = np.load(FOLDER / "relatives.npz")
CASES = {case: meta for case, meta in json.loads(bytes(NUMBERS["meta"])).items()
         if not case.endswith(("_decay", "_small"))}


@pytest.mark.parametrize("case", CASES)
def test_golden_under_a_schedule(case):
    """As test_golden, with decay, and with an lr that rises and falls. CoRe has no schedule of its own, so
    its reference takes whole steps, of which the schedule leaves a part."""
    meta = CASES[case]
    w = golden_weights(meta["names"])
    group = dict(params=list(w.items()), roles=[meta["roles"].get(name) for name in w])
    optimizer = Optimizer([group], meta["rule"], lr=meta["lr"], weight_decay=0.1, **meta["hyper"])
    for t in golden_steps(w, optimizer, lrs=meta["lr"] * NUMBERS["scheduled/lr"]):
        for name, p in w.items() if t in (3, 25) else ():
            allowed = LOOSER.get(f"{case}_decay", 1e-12)
            assert share_off(p, NUMBERS[f"scheduled/{case}/{t}/{name}"], name) <= allowed


def ends(case, steps=8, grads=None, **more):
    w = weights()
    run(built(case, w, **more), w, grads or gradients(steps))
    return w


def same(a, b, roles=None):
    return all(torch.allclose(a[role], b[role], rtol=0, atol=1e-12) for role in roles or a)


@pytest.mark.parametrize("one, other", [
    (("adamod", dict(beta3=0.0, eps=0.0)), ("adamw", dict(beta2=0.999, eps=0.0))),
    (("adamp", dict(delta=0.0)), ("adamw", dict(beta2=0.999, eps=1e-8))),
    (("adamomentum", dict(beta1=0.0, eps=0.0)), ("adamw", dict(beta1=0.0, beta2=0.999, eps=0.0))),
    (("innaprop", dict(viscous=1.0, newton=1.0)), ("adamw", dict(beta1=0.0, beta2=0.99, eps=1e-8))),
    (("coupled_adam", {}), ("adamw", dict(eps=1e-8))),
    (("induced_rms", dict(xi=0.0)), ("adamw", dict(beta2=0.99, eps=1e-8))),
    (("induced_sgd", dict(xi=0.0)), ("sgd_ema", {})),
    (("adabound", dict(gamma=0.0, eps=0.0)), ("adamw", dict(beta2=0.999, eps=0.0)))],
    ids=lambda pair: pair[0])
def test_a_rule_that_is_adam(one, other):
    """With a number that takes away what is new. Coupled Adam is Adam but for embedding and head."""
    a, b = (ends(name, **more) for name, more in (one, other))
    roles = ["qkv", "mlp_up", "norm"] if one[0] == "coupled_adam" else list(a)
    assert same(a, b, roles)
    assert not same(ends(one[0]), ends("adamw", beta2=0.999, eps=1e-8), roles=["head"])


def stepped(name, w, grads, **more):
    """[the change of a weight in each step]. w: the weight, which moves."""
    optimizer, moves = Optimizer([w], name, **more), []
    for g in grads:
        before, w.grad = w.clone(), g
        optimizer.step()
        moves.append(w - before)
    return moves


def rms(x):
    return x.square().mean().sqrt().item()


def test_stable_adamw_holds_a_spike_to_a_tenth():
    """As the docstring says: r is at most 1 / sqrt(1 - b2). The decay of that step is a tenth, too."""
    assert "r is at most 1 / sqrt(1 - b2), which is 10" in " ".join(relatives.stable_adamw.__doc__.split())
    g = torch.full((3, 4), 1e-3).double()
    for decay in (0.0, 0.5):
        moves = stepped("stable_adamw", torch.ones(3, 4).double(), [g] * 600 + [g * 1e5], lr=1e-6,
                        weight_decay=decay, eps=1e-12)
        assert moves[-2].mean().item() == pytest.approx(-1e-6 * (1 + decay), rel=2e-3)
        assert moves[-1].mean().item() == pytest.approx(-1e-7 * (1 + decay), rel=2e-3)


def test_the_bounds_of_adabound_end_at_sgd():
    """With bounds that have closed, it is SGD with the lr final_lr, whatever the peak lr. The lr of the
    schedule still scales it."""
    for lr in (1e-3, 1e-1):
        w, grads = torch.zeros(5).double(), list(normal(6, 5))
        moves = stepped("adabound", w, grads, lr=lr, gamma=1e12, final_lr=0.3, beta1=0.5)
        mean = 0.0
        for g, moved in zip(grads, moves):
            mean = 0.5 * mean + 0.5 * g
            assert torch.allclose(moved, -0.3 * mean, rtol=1e-9)
    optimizer = Optimizer([w], "adabound", lr=0.2, gamma=1e12, final_lr=0.3, beta1=0.0)
    optimizer.param_groups[0]["lr"] = 0.05
    before, w.grad = w.clone(), grads[0]
    optimizer.step()
    assert torch.allclose(w - before, -0.3 / 4 * grads[0], rtol=1e-9)


def test_amsbound_without_bounds_is_torchs_amsgrad():
    w, other = torch.ones(5).double(), torch.ones(5).double()
    theirs = torch.optim.AdamW([other], lr=0.1, eps=0.0, amsgrad=True, weight_decay=0.1)
    ours = Optimizer([w], "amsbound", lr=0.1, eps=0.0, gamma=0.0, weight_decay=0.1)
    for t, g in enumerate(normal(30, 5)):
        for optimizer, p in ((ours, w), (theirs, other)):
            p.grad = g * (50 if t == 9 else 1)
            optimizer.step()
    assert torch.allclose(w, other, rtol=0, atol=1e-12)
    assert (ours.state[w]["highest"] > ours.state[w]["v"]).any()


def test_adamod_never_goes_farther_than_adam():
    grads = list(normal(40, 7))
    capped, adam = (stepped(name, torch.zeros(7).double(), grads, lr=0.1, **more) for name, more in (
        ("adamod", dict(beta3=0.9, eps=0.0)), ("adamw", dict(beta2=0.999, eps=0.0))))
    assert all((a.abs() <= b.abs() * (1 + 1e-12)).all() for a, b in zip(capped, adam))
    assert torch.allclose(capped[0], adam[0] / 10, rtol=1e-12)
    assert any((a != b).any() and torch.isclose(a, b, rtol=1e-12).any() for a, b in zip(capped, adam))


@pytest.mark.parametrize("name", ["adamp", "sgdp"])
def test_a_projected_step_is_at_right_angles_to_each_row(name):
    """If the gradient is. Then the decay is wd_ratio of the usual one. A vector loses nothing."""
    w, g, odd = normal(6, 4), normal(6, 4, seed=1), normal(6, 4, seed=2)
    g = g - w * (g * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True)
    usual = 10 if name == "sgdp" else 1    # sgdp divides by 1 - beta1
    start = w.clone()
    moved, = stepped(name, w, [g], lr=0.01, weight_decay=0.5, wd_ratio=0.2, eps=1e-12)
    away = moved + 0.01 * 0.5 * 0.2 * usual * start
    assert (away * start).sum(1).abs().max() < 1e-12 < away.abs().min()
    moved, = stepped(name, start.clone(), [odd], lr=0.01, weight_decay=0.5, wd_ratio=0.2)
    plain, = stepped(name, start.clone(), [odd], lr=0.01, delta=0.0)
    assert torch.allclose(moved, plain - 0.01 * 0.5 * usual * start, rtol=0, atol=1e-12)
    moved, = stepped(name, start[0].clone(), [g[0]], lr=0.01, delta=8.0)
    plain, = stepped(name, start[0].clone(), [g[0]], lr=0.01, delta=0.0)
    assert torch.equal(moved, plain)


def test_adamp_asks_the_rows_first_and_then_the_whole():
    """A gradient that turns each row of two, and one that makes one row longer and the other shorter."""
    w = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).double()
    for g, rows, whole in (([[0.0, 1, 0], [0, 0, 1]], [0, 0], 0), ([[1.0, 1, 0], [-1, 1, 0]], [-1, 1], 0),
                           ([[1.0, 1, 0], [1, 1, 0]], [-1, -1], -2)):
        moved, = stepped("adamp", w.clone(), [torch.tensor(g).double()], lr=1.0)
        assert torch.allclose((moved * w).sum(1), torch.tensor(rows).double(), atol=1e-6)
        assert (moved * w).sum().item() == pytest.approx(whole, abs=1e-6)


def test_sgdp_without_projection_is_torchs_nesterov():
    w, other = normal(4, 3), normal(4, 3)
    theirs = torch.optim.SGD([other], lr=0.1, momentum=0.9, nesterov=True)
    ours = Optimizer([w], "sgdp", lr=0.1, delta=0.0)
    for g in normal(8, 4, 3):
        for optimizer, p in ((ours, w), (theirs, other)):
            p.grad = g
            optimizer.step()
    assert torch.allclose(w, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name, noisy, scale, hyper, lengths, words", [
    ("adamod", False, 1e-3, {}, {1: 0.001}, "the first step is 0.001 of adam's"),
    ("exadam", False, 1.0, {}, {1: 15.9}, "by 16 times lr in the first step if its gradient is near 1"),
    ("exadam", False, 1e-3, {}, {1: 10.4, 100: 3.26}, "by 3.3 times lr in step 100, and by twice lr"),
    ("exadam", True, 1e-3, {}, {100: 8.9 * 0.232, 300: 8.4 * 0.226}, "noise moves it 8 to 9 times as far"),
    ("fadam", False, 1e-3, {}, {1: 0.1, 100: 1.0}, "the first step is a tenth of adam's"),
    ("innaprop", False, 1e-3, {}, {1: 0.9, 300: 10.0}, "it moves the weight by lr / viscous"),
    ("adamomentum", True, 1e-3, {}, {1: 9.98, 10: 1.83, 300: 1.0}, "10 times lr, and the tenth is 2 times"),
    ("adamw", True, 1e-3, dict(beta2=0.999), {300: 0.226}, "noisy weights make smaller steps")])
def test_steps_are_as_long_as_the_docstrings_say(name, noisy, scale, hyper, lengths, words):
    """In units of lr, root mean square. The gradients are noise, or they are all the same."""
    assert words in " ".join(zoo.RULES[name].function.__doc__.split()).lower()
    grads = [scale * normal(48, 32, seed=t if noisy else 0) for t in range(max(lengths))]
    moves = stepped(name, torch.zeros(48, 32).double(), grads, lr=1.0, **hyper)
    for t, length in lengths.items():
        assert rms(moves[t - 1]) == pytest.approx(length, rel=0.05)


def test_fadam_holds_each_tensor_to_an_rms():
    grads = [normal(4, 3) * 2.0**t for t in range(30)]    # without the clip, the last step has an rms of 4
    moves = stepped("fadam", torch.zeros(4, 3).double(), grads, lr=1.0, clip_rms=0.5)
    assert 0.4 < rms(moves[-1]) < 0.5
    assert torch.allclose(moves[-1] / rms(moves[-1]), -normal(4, 3).sign())


def test_fadams_decay_is_strongest_where_gradients_are_small():
    w = torch.ones(2).double()
    g = torch.tensor([1.0, 10.0]).double()
    with_decay, = stepped("fadam", w.clone(), [g], lr=0.1, weight_decay=0.5)
    without, = stepped("fadam", w.clone(), [g], lr=0.1)
    lost = without - with_decay
    assert lost[0].item() == pytest.approx(10 * lost[1].item(), rel=1e-6)
    assert lost[0].item() == pytest.approx(0.1 * 0.5, rel=1e-6)


def test_innaprop_is_not_troubled_by_an_lr_of_newton():
    """There the authors' code divides by 0. The step is the same on both sides of it."""
    grads = list(normal(5, 4))
    below, at, above = (torch.stack(stepped("innaprop", torch.ones(4).double(), grads, lr=lr)) / lr
                        for lr in (0.9 - 1e-6, 0.9, 0.9 + 1e-6))
    assert torch.allclose(at, (below + above) / 2, atol=1e-9)


def test_cores_lengths_grow_and_shrink_with_the_sign():
    """By 1.2 and by 0.7375, from the peak lr, within the bounds. More lr does not help."""
    up, down = torch.ones(1).double(), -40 * torch.ones(1).double()
    optimizer = Optimizer([w := torch.zeros(1).double()], "core", lr=1e-4)
    seen = []
    for g in [up, up, up, down, down]:
        w.grad = g
        optimizer.step()
        seen.append(optimizer.state[w]["s"].item() / 1e-4)
    assert seen == pytest.approx([1, 1.2, 1.44, 1.44 * 0.7375, 1.44 * 0.7375 * 1.2])
    for lr in (1e-3, 1e-1):
        moved = stepped("core", torch.zeros(1).double(), [up], lr=lr)
        assert moved[0].item() == pytest.approx(-1e-3)


def test_cores_lengths_rise_on_noise():
    """As the docstring says."""
    assert "s rises to 0.8 of `largest` on average" in " ".join(relatives.core.__doc__.split())
    w = torch.zeros(48, 32).double()
    optimizer = Optimizer([w], "core", lr=1e-5)
    for t in range(300):
        w.grad = normal(48, 32, seed=t)
        optimizer.step()
    assert optimizer.state[w]["s"].mean().item() == pytest.approx(0.8e-3, rel=0.05)


def test_core_decays_a_weight_as_far_as_it_moves():
    w, g = torch.ones(3).double(), torch.tensor([0.0, 1.0, 1.0]).double()
    moved, = stepped("core", w.clone(), [g], lr=1e-4, weight_decay=0.5)
    assert torch.allclose(moved, -1.5 * 1e-4 * g, rtol=1e-6)


def test_coupled_adam_has_one_rate_for_all_tokens():
    for role, shape in (("embed", (1, 4)), ("head", (1, 4)), ("mlp_up", (6, 4)), (None, (6, 4))):
        w, g = torch.zeros(6, 4).double(), normal(6, 4)
        optimizer = Optimizer([dict(params=[w], roles=[role])], "coupled_adam", lr=1.0, eps=0.0)
        w.grad = g
        optimizer.step()
        rate = -w / g
        assert optimizer.state[w]["v"].shape == shape
        assert torch.allclose(rate, rate[:1].expand_as(rate)) == (shape[0] == 1)
        mean = g.square().mean(0) if shape[0] == 1 else g.square()
        assert torch.allclose(rate, 1 / mean.sqrt().expand_as(rate))


# ---------------------------------------------------------------------------------------------------------
# Prodigy

PRODIGY = dict(lr=10.0, d_coef=3.0)    # with random gradients d would stay at d0


def test_all_tensors_of_prodigy_share_one_distance():
    """In whatever groups they are. A hybrid sums over the tensors of its own rule alone."""
    one, many, hybrid = weights(), weights(), weights()
    optimizers = [Optimizer(one.values(), "prodigy", **PRODIGY),
                  Optimizer([dict(params=[p]) for p in many.values()], "prodigy", **PRODIGY),
                  built("prodigy", hybrid, adaptive="head", rest="sgd_ema", rest_lr=0.1, **PRODIGY)]
    alone = weights()["head"]
    optimizers.append(Optimizer([alone], "prodigy", **PRODIGY))
    for optimizer, w in zip(optimizers, (one, many, hybrid, dict(head=alone))):
        run(optimizer, w, gradients(8))
    assert same(one, many) and torch.equal(hybrid["head"], alone)
    distances = {optimizers[0].state[p]["d"].item() for p in one.values()}
    assert len(distances) == 1 and distances.pop() > 2e-6


@pytest.mark.compiled
def test_compiled_prodigy_finds_the_same_distance():
    ends, distances = [], []
    for compile in (False, True):
        w = weights(torch.float32)
        optimizer = built("prodigy", w, compile=compile, **PRODIGY)
        run(optimizer, w, gradients(8, dtype=torch.float32))
        starts = weights(torch.float32).values()
        ends.append(torch.cat([(p - start).detach().flatten() for p, start in zip(w.values(), starts)]))
        distances.append(optimizer.state[w["head"]]["d"].item())
    assert distances[0] > 2e-6 and distances[1] == pytest.approx(distances[0], rel=1e-2)
    assert (ends[1] - ends[0]).norm() < 1e-2 * ends[0].norm()


def test_prodigys_distance_does_not_depend_on_the_scale_of_the_loss():
    ends = []
    for scale in (1.0, 2.0**-10):
        w = weights()
        optimizer = Optimizer(w.values(), "prodigy", eps=0.0, **PRODIGY)
        run(optimizer, w, [{role: g * scale for role, g in grads.items()} for grads in gradients(8)])
        ends.append(w)
    assert same(*ends)


def test_prodigy_finds_the_distance():
    """Of a ravine whose lowest point is at a distance of 3 in each weight."""
    w = torch.zeros(20, dtype=torch.float64)
    optimizer = Optimizer([w], "prodigy", lr=1.0)
    for _ in range(300):
        w.grad = torch.linspace(0.1, 1, 20, dtype=torch.float64) * (w - 3)
        optimizer.step()
    assert 0.3 < optimizer.state[w]["d"] < 3 and (w - 3).abs().max() < 0.1


def test_prodigy_has_no_settings_by_role():
    with pytest.raises(ValueError, match="lr_of: prodigy has one distance for all its weights"):
        built("prodigy", weights(), of_role={"head": {"lr": 0.5}})
