"""What is special about the rules of zoo/signs.py and zoo/momentum.py, and about the first Adafactor."""
import numpy as np
import pytest
import torch

import zoo
from zoo import properties
from rule_cases import built, normal
from zoo import Optimizer

RULES = zoo.RULES


def steps_of(rule, grads, start=None, lr=0.1, lrs=(), **hyper):
    """The weights of one tensor after each of the gradients, from `start` or from zeros.
    lrs: the lr of each step, if it is not the peak `lr`."""
    w = torch.zeros_like(grads[0]) if start is None else start.clone()
    optimizer, seen = Optimizer([w], RULES[rule], lr=lr, **hyper), []
    for t, g in enumerate(grads):
        w.grad = g.clone()
        optimizer.param_groups[0]["lr"] = lrs[t] if lrs else lr
        optimizer.step()
        seen.append(w.clone())
    return seen


def test_ano_takes_direction_and_length_from_different_places():
    """Its step has the sign of the mean, and is in proportion to the newest gradient."""
    one = torch.ones(3, dtype=torch.float64)
    newest = torch.tensor([-0.5, 0.25, 0.0], dtype=torch.float64)
    before, after = steps_of("ano", [one] * 9 + [newest])[-2:]
    step = before - after
    assert step[0] > 0 and step[2] == 0    # the mean is positive, also where the newest gradient is not
    assert (step[0] / step[1]).item() == pytest.approx(2, rel=0.02)    # s differs by 0.01 (0.25 - 0.06)


@pytest.mark.parametrize("name, hyper", [("ano", dict(beta2=0.3)), ("anolog", dict(beta2=0.3))])
def test_a_short_memory_leaves_no_root_of_a_negative_number(name, hyper):
    assert all(w.isfinite().all() for w in steps_of(name, list(normal(30, 50)), **hyper))


def test_anos_steps_are_as_long_as_the_docstring_says():
    words = "The root mean square of this is 1.2 lr where gradients are noise"
    assert words in " ".join(RULES["ano"].function.__doc__.split())
    before, after = steps_of("ano", list(1e-3 * normal(400, 2000)), lr=1.0)[-2:]
    assert (after - before).square().mean().sqrt().item() == pytest.approx(1.17, abs=0.05)


def test_anologs_momentum_grows_with_the_logarithm_of_time():
    """A gradient of 0 leaves b1(t) of the momentum. It is negative in the first two steps."""
    for t, b1 in ((1, -0.4427), (2, -0.4427), (100, 0.7829), (268337, 0.92)):
        m, s = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        RULES["anolog"].function(torch.zeros(1).double(), m, s, torch.tensor(t).double(), eps=1e-16)
        assert m.item() == pytest.approx(b1, abs=1e-4)


# The rules of Lion-K, restated with numpy: the gradient of K, for a matrix and for a vector.
GRADIENT_OF_K = {
    "lion_l2": lambda x: x / np.sqrt((x**2).sum()),
    "lion_group": lambda x: x / np.sqrt((x**2).sum(axis=1 if x.ndim > 1 else None, keepdims=True)),
    "lion_huber": lambda x: np.where(abs(x) > 0.5, np.sign(x), x / 0.5),
}


@pytest.mark.parametrize("name", GRADIENT_OF_K)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (7,)])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lion_k_is_the_rule_of_the_paper(name, shape, decay):
    """w <- w - lr (grad K(b1 m + (1 - b1) g) + decay w);  m <- b2 m + (1 - b2) g, with an lr that falls."""
    grads, w, m = normal(20, *shape), normal(*shape, seed=1), np.zeros(shape)
    lrs, start = [0.1 * (1 - t / 25) for t in range(20)], w.clone()
    hyper = dict(beta1=0.8, beta2=0.9) | (dict(corner=0.5) if name == "lion_huber" else {})
    ours, w = steps_of(name, list(grads), start, lrs=lrs, weight_decay=decay, **hyper), w.numpy()
    for g, lr, mine in zip(grads.numpy(), lrs, ours):
        w = w - lr * (GRADIENT_OF_K[name](0.8 * m + 0.2 * g) + decay * w)
        m = 0.9 * m + 0.1 * g
        assert abs(mine.numpy() - w).max() < 1e-12


def test_lion_k_is_lion_where_its_norms_are_absolute_values():
    """The norm of a single number, of a row of one number, and Huber's loss without a middle."""
    for name, shape, hyper in (("lion_l2", (1,), {}), ("lion_group", (6, 1), {}),
                               ("lion_huber", (6, 4), dict(corner=0.0))):
        grads = list(normal(12, *shape))
        lion = steps_of("lion", grads)[-1]
        assert torch.allclose(steps_of(name, grads, **hyper)[-1], lion, rtol=0, atol=1e-12) and lion.any()


def test_lion_k_moves_by_lr_in_its_norm_and_leaves_zeros_alone():
    g = normal(4, 6)
    g[1] = 0
    once, rows = steps_of("lion_l2", [g])[0], steps_of("lion_group", [g])[0].norm(dim=1)
    assert once.norm().item() == pytest.approx(0.1)
    assert torch.allclose(rows, torch.tensor([0.1, 0, 0.1, 0.1]).double())


def test_sgd_sai_scales_each_tensor_once():
    """The ratio is that of the first gradient, whatever comes later. From then on the rule is sgd_ema, but
    its mean starts at the first gradient."""
    grads = normal(6, 5, 8) * torch.tensor([1.0, 9, 1, 1, 9, 1])[:, None, None]
    ratio = grads[0].norm() / grads[0].std()
    w, m = torch.zeros(5, 8, dtype=torch.float64), grads[0]
    for t, (g, ours) in enumerate(zip(grads, steps_of("sgd_sai", list(grads), eps=0.0))):
        m = g if t == 0 else 0.9 * m + 0.1 * g
        w = w - 0.1 * ratio * m
        assert torch.allclose(ours, w, rtol=1e-12)
    assert ratio.item() == pytest.approx(40**0.5, rel=0.05)    # as for any gradient that is noise


def test_a_first_gradient_of_zeros_freezes_sgd_sai_as_published():
    grads = [torch.zeros(3, 3, dtype=torch.float64), *normal(4, 3, 3)]
    assert not steps_of("sgd_sai", grads)[-1].any() and steps_of("sgd_sai", grads[1:])[-1].all()


def test_nag_gs_moves_as_far_as_the_docstring_says():
    """A steady gradient moves a weight by g lr / (mu (2 + lr)) a step, once gamma has come to mu. gamma does
    not depend on gradients, and a weight decay shrinks v as it shrinks w."""
    g = torch.tensor([0.5, -2.0], dtype=torch.float64)
    for lr, mu in ((0.3, 0.8), (2.0, 0.1)):
        seen = steps_of("nag_gs", [g] * 400, lr=lr, mu=mu)
        assert torch.allclose(seen[-2] - seen[-1], g * lr / (mu * (2 + lr)), rtol=1e-6)
    w = torch.ones(3, dtype=torch.float64)
    optimizer = Optimizer([w], RULES["nag_gs"], lr=0.5, mu=0.2, gamma0=1.0, weight_decay=0.3)
    for expected in (1.1 / 1.5, (1.1 / 1.5 + 0.1) / 1.5):
        w.grad = torch.zeros(3).double()
        optimizer.step()
        assert optimizer.state[w]["gamma"].item() == pytest.approx(expected)
    assert torch.equal(w, optimizer.state[w]["v"]) and w[0].item() == pytest.approx(0.85**2)


def test_nag_gs_stands_still_at_an_lr_of_zero():
    g = torch.ones(2, dtype=torch.float64)
    a, b, c = steps_of("nag_gs", [g] * 3, lr=0.5, lrs=[0.5, 0.0, 0.5], gamma0=0.0)
    assert torch.equal(a, b) and not torch.equal(b, c)


def test_gravitys_first_velocities_depend_on_seed_and_tensor_alone():
    """Also in float32, and for a tensor that is in a second group; alpha over the peak lr is their size."""
    def first(dtype=torch.float64, lr=0.5, **hyper):
        w = [torch.zeros(40, 50, dtype=dtype) for _ in range(3)]
        optimizer = Optimizer([dict(params=w[:2]), dict(params=w[2:])], RULES["gravity"], lr=lr, **hyper)
        return [optimizer.start(group, i)["v"] for group, i, _ in optimizer.each_parameter()]
    a, b, other, single, faster = first(), first(), first(seed=1), first(torch.bfloat16), first(lr=1.0)
    for i in range(3):
        assert torch.equal(a[i], b[i]) and torch.equal(a[i].float(), single[i])
        assert not torch.equal(a[i], other[i]) and not torch.equal(a[i], a[i - 1])
        assert torch.equal(a[i], 2 * faster[i])
        assert a[i].std().item() == pytest.approx(0.01 / 0.5, rel=0.05)


def test_gravity_moves_by_itself_as_far_as_the_docstring_says():
    nothing = [torch.zeros(60, 50, dtype=torch.float64)] * 400
    seen = steps_of("gravity", nothing, lr=0.5, alpha=0.04)
    assert seen[0].std().item() == pytest.approx(0.63 * 0.04, rel=0.05)
    assert seen[-1].std().item() == pytest.approx(2.83 * 0.04, rel=0.05)


def test_gravity_without_random_velocities_has_the_properties_of_a_rule():
    def build(w, **options):
        return built("gravity", w, alpha=0.0, **options)
    assert properties.zero_gradient_moves_nothing(build) == ""
    assert properties.doubling_the_lr_doubles_the_first_step(build) == ""
    assert all(properties.decay_multiplies(build, kind) == "" for kind in ("independent", "coupled"))


def test_gravity_holds_large_gradients_back():
    """Small gradients pass, and the bend is the same for the whole tensor: it depends on the largest."""
    g = torch.tensor([1e-4, 0.5, 2.0, 8.0], dtype=torch.float64)
    z = -steps_of("gravity", [g], lr=1.0, alpha=0.0)[0] * 3 / 1.1    # 1 - b(1) = 1.1 / 3
    assert torch.allclose(z, g / (1 + (8 * g) ** 2), rtol=1e-12) and z[3] < z[2] < z[1]


def test_swats_switches_each_tensor_by_itself_and_keeps_the_schedule():
    """A steady gradient needs the same lr in each step, so the tensor switches after the second. Then the
    steps are rate m times the lr of now, where m starts anew. Noise does not switch."""
    w = dict(steady=torch.zeros(4, dtype=torch.float64), noise=torch.zeros(400, dtype=torch.float64))
    optimizer = Optimizer(w.values(), RULES["swats"], lr=0.1)
    g, noise, m = torch.tensor([1.0, 2, 3, 4]).double(), normal(12, 400), 0.0
    for t in range(12):
        before = w["steady"].clone()
        optimizer.param_groups[0]["lr"] = lr = 0.1 * (1 - t / 12)
        w["steady"].grad, w["noise"].grad = (g.clone() if t < 6 else -g), noise[t]
        optimizer.step()
        rate = optimizer.state[w["steady"]]["rate"].item()
        if t >= 2:
            m = 0.9 * m + 0.1 * w["steady"].grad
            assert torch.allclose(before - w["steady"], lr * rate * m, rtol=1e-12)
            assert rate == pytest.approx(4 / 10)    # u is 1 everywhere: |u|^2 / (u . g)
        else:
            assert torch.allclose(before - w["steady"], torch.full((4,), lr).double(), rtol=1e-6)
    assert optimizer.state[w["noise"]]["rate"] == 0


def test_swats_without_a_switch_is_adam():
    grads = list(normal(12, 6, 4))
    adam = steps_of("adamw", grads, beta2=0.999, eps=0.0)[-1]
    assert torch.allclose(steps_of("swats", grads, eps=0.0)[-1], adam, rtol=0, atol=1e-12)


def test_adafactor_original_moves_by_a_fraction_of_the_tensor_and_less_with_time():
    """A steady gradient: a step is lr times the rms of the tensor, and 1 / sqrt(t) times it where that is
    less. A tensor of zeros counts as one of size 1e-3."""
    g = normal(6, 1) @ normal(1, 8, seed=1)    # of rank one, so that rows and columns say everything
    start = normal(6, 8, seed=2)
    seen = [start, *steps_of("adafactor_original", [g] * 40, start, lr=0.25)]
    for t, (before, after) in enumerate(zip(seen, seen[1:]), 1):
        expected = before.square().mean().sqrt().item() * min(0.25, t**-0.5)
        assert (after - before).square().mean().sqrt().item() == pytest.approx(expected, rel=1e-9)
    zeros = steps_of("adafactor_original", [g], lr=0.25)[0]
    assert zeros.square().mean().sqrt().item() == pytest.approx(0.25e-3)


def test_adafactor_original_clips_a_step_that_is_too_long():
    """After quiet gradients, one that is 30 times as large would move the tensor farther."""
    g = normal(6, 8)
    grads, start = [g] * 20 + [30 * g], normal(6, 8, seed=2)
    for clip, same in ((1.0, True), (100.0, False)):
        before, after = steps_of("adafactor_original", grads, start, lr=0.01, clip_rms=clip)[-2:]
        size = before.square().mean().sqrt() * 0.01
        assert ((after - before).square().mean().sqrt() <= size * (1 + 1e-9)).item() is same


def test_small_gradients_do_not_reach_a_bound_of_the_original_adafactor():
    """In float32, too: a gradient of 1e-9 moves a tensor as one of 1 does."""
    g, start = normal(6, 8).float(), normal(6, 8, seed=2).float()
    once, small = (steps_of("adafactor_original", [scale * g] * 3, start)[-1] for scale in (1.0, 1e-9))
    assert torch.allclose(once, small, rtol=1e-4, atol=1e-6)
