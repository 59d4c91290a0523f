"""The rules of zoo/classics.py and the modifier l2: against torch's optimizers, and what each promises."""
import math

import pytest
import torch

import zoo
from rule_cases import built, gradients, run, weights
from zoo import Optimizer

RULES = zoo.classics.RULES


@pytest.fixture
def doubles():
    """torch's optimizers then keep their own numbers in float64, too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def stepped(optimizer, w, grads, rates):
    """Returns w after one step for each of the gradients, each with its own lr."""
    for g, lr in zip(grads, rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        w.grad = g.clone()
        optimizer.step()
    return w.detach()


def hard_gradients():
    """Gradients of many sizes, which rise and fall, with zeros in between, and one large gradient."""
    draw = torch.Generator().manual_seed(0)
    grads = [torch.randn(6, 4, generator=draw, dtype=torch.float64) ** 3 / (1 + t % 7) for t in range(60)]
    for t in (0, 5, 6, 30):
        grads[t][0] = 0.0
    grads[20] *= 100
    return grads


RATES = [0.01 * (1.0 - t / 70) for t in range(60)]


@pytest.mark.parametrize("name, hyper, theirs, settings", [
    ("nesterov", dict(beta1=0.9), "SGD", dict(momentum=0.9, nesterov=True)),
    ("adagrad", {}, "Adagrad", {}),
    ("rmsprop", {}, "RMSprop", {}),
    ("rmsprop_centered", {}, "RMSprop", dict(centered=True)),
    ("adadelta", {}, "Adadelta", {}),
    ("adamax", {}, "Adamax", {}),
    ("amsgrad", dict(beta2=0.8), "AdamW", dict(betas=(0.9, 0.8), amsgrad=True)),
    ("nadam", {}, "NAdam", dict(decoupled_weight_decay=True)),
    ("adamw+l2", dict(beta2=0.999, eps=1e-8, l2_strength=0.1), "Adam", dict(weight_decay=0.1))])
def test_steps_under_a_schedule_are_those_of_torch(name, hyper, theirs, settings, doubles):
    """After 60 steps with another lr in each, on gradients of many sizes. AdamW and NAdam decay, too."""
    decays = theirs in ("AdamW", "NAdam")
    w, v = torch.linspace(-1, 1, 24).reshape(6, 4), torch.linspace(-1, 1, 24).reshape(6, 4)
    rule, _, modify = name.partition("+")
    ours = Optimizer([w], zoo.modified(rule, modify), lr=0.01, weight_decay=0.1 * decays, **hyper)
    settings = settings | (dict(weight_decay=0.1) if decays else {})
    other = getattr(torch.optim, theirs)([v], lr=0.01, foreach=False, **settings)
    start = w.clone()
    a, b = (stepped(one, p, hard_gradients(), RATES) for one, p in ((ours, w), (other, v)))
    assert torch.allclose(a, b, rtol=0, atol=1e-12) and (a != start).any()


def test_rprop_is_torchs_and_its_schedule_scales_all_steps():
    """torch's lr is only that of the first step. Ours is the unit of all step sizes."""
    grads, w = hard_gradients()[:40], [torch.zeros(6, 4, dtype=torch.float64) for _ in range(3)]
    one, scheduled = (Optimizer([p], "rprop", lr=0.01) for p in w[:2])
    theirs = torch.optim.Rprop([w[2]], lr=0.01, foreach=False)
    for t, g in enumerate(grads):
        before = [p.clone() for p in w]
        scheduled.param_groups[0]["lr"] = 0.01 * (1 - t / 50)
        for optimizer, p in zip((one, scheduled, theirs), w):
            p.grad = g.clone()
            optimizer.step()
        moved = [p - old for p, old in zip(w, before)]
        assert torch.allclose(moved[0], moved[2], rtol=0, atol=1e-15)
        assert torch.allclose(moved[1], moved[0] * (1 - t / 50), rtol=0, atol=1e-15)


def test_rprop_sees_the_signs_of_tiny_gradients():
    """In float32, the product of two of them is 0."""
    w = torch.zeros(2)
    optimizer = Optimizer([w], "rprop", lr=1.0)
    stepped(optimizer, w, [torch.tensor([1e-30, -1e-30])] * 3, [1.0] * 3)
    assert torch.allclose(w, torch.tensor([-1.0, 1.0]) * (1 + 1.2 + 1.44))


# ---------------------------------------------------------------------------------------------------------
# What the rules have to do with one another

@pytest.mark.parametrize("a, b", [
    (("sign_sgd", {}), ("signum", dict(beta1=0.0))),
    (("nesterov", dict(beta1=0.0)), ("sgd", dict(beta1=0.0))),
    (("adagrad", dict(eps=0.0)), ("rprop", dict(smallest=1.0, largest=1.0))),
    (("rmsprop", dict(beta2=0.0, eps=0.0)), ("sign_sgd", {})),
    (("adamax", dict(beta1=0.0, beta2=0.0, eps=0.0)), ("sign_sgd", {}))], ids=lambda pair: pair[0])
def test_a_rule_that_is_another(a, b):
    """By a number that is 0. Adagrad and Rprop are alike only in the first step."""
    steps = 1 if a[0] == "adagrad" else 8
    ends = [weights(), weights()]
    for w, (name, hyper) in zip(ends, (a, b)):
        run(built(name, w, **hyper), w, gradients(steps))
    assert all(torch.allclose(ends[0][role], ends[1][role], rtol=0, atol=1e-12) for role in ends[0])


def test_amsgrad_is_adam_until_gradients_become_smaller():
    """Then its steps are shorter."""
    hyper, growing = dict(beta2=0.9, eps=1e-8), [torch.full((3,), 1.0 + t).double() for t in range(10)]
    falling = [g * 0.01 for g in growing]
    moved = {}
    for name in ("amsgrad", "adamw"):
        w = torch.zeros(3, dtype=torch.float64)
        optimizer = Optimizer([w], name, lr=0.1, **hyper)
        first = stepped(optimizer, w, growing, [0.1] * 10).clone()
        moved[name] = first, stepped(optimizer, w, falling, [0.1] * 10) - first
    assert torch.allclose(moved["amsgrad"][0], moved["adamw"][0], rtol=0, atol=1e-12)
    assert (moved["amsgrad"][1].abs() < 0.9 * moved["adamw"][1].abs()).all()


def test_adan_of_a_steady_gradient_is_adam():
    """Its change is 0 then."""
    ends = []
    for name, hyper in (("adan", {}), ("adamw", dict(beta1=0.98, beta2=0.99, eps=1e-8))):
        w = torch.ones(4, dtype=torch.float64)
        optimizer = Optimizer([w], name, lr=0.1, **hyper)
        ends.append(stepped(optimizer, w, [torch.tensor([1.0, -2.0, 0.5, 3.0]).double()] * 9, [0.1] * 9))
    assert torch.allclose(*ends, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind, rates", [("coupled", 0.05), ("independent", 0.5)])
def test_adan_divides_where_others_multiply(kind, rates):
    """By 1 + weight_decay times lr, or times what the schedule leaves of lr. It does so after the step."""
    w, free = torch.full((3,), 2.0).double(), torch.full((3,), 2.0).double()
    for p, strength in ((w, 0.3), (free, 0.0)):
        optimizer = Optimizer([p], "adan", lr=0.1, weight_decay=strength, weight_decay_kind=kind)
        stepped(optimizer, p, [torch.ones(3).double()], [0.05])
    assert torch.allclose(w, free / (1 + 0.3 * rates), rtol=0, atol=1e-12)
    assert torch.allclose(free, torch.full((3,), 1.95).double(), atol=1e-8)


def test_nadam_at_the_end_of_its_schedule_has_the_momentum_beta1():
    """A momentum_decay that is large makes it so from the first step."""
    w, draw, b1, b2 = torch.zeros(5).double(), torch.Generator().manual_seed(0), 0.9, 0.999
    optimizer = Optimizer([w], "nadam", lr=0.1, momentum_decay=1e6)
    m = v = 0.0
    for t in range(1, 6):
        g = torch.randn(5, generator=draw, dtype=torch.float64)
        before = w.clone()
        stepped(optimizer, w, [g], [0.1])
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        ahead = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        assert torch.allclose(before - w, 0.1 * ahead / ((v / (1 - b2**t)).sqrt() + 1e-8), atol=1e-12)


def test_nadams_momentum_rises_as_its_docstring_says():
    """From 0.45 to 0.8 in 9,000 steps. From 0, seen becomes 1 - mu."""
    for t, mu in ((1, 0.45), (9000, 0.8)):
        g, m, v, seen = torch.ones(1), torch.zeros(1), torch.zeros(1), torch.zeros(())
        RULES["nadam"].function(g, m, v, seen, torch.tensor(t).double())
        assert 1 - seen.item() == pytest.approx(mu, abs=0.005)


def test_yogis_second_moment_changes_by_a_square_at_most():
    """It starts at `v_start`, also for bf16 weights, and then rises and falls by (1 - b2) g^2."""
    w = torch.zeros(2, dtype=torch.bfloat16)
    optimizer = Optimizer([w], "yogi", lr=0.1, beta2=0.9, v_start=3e-3)
    assert optimizer.start(optimizer.param_groups[0], 0)["v"].tolist() == pytest.approx([3e-3] * 2, rel=1e-6)
    seen = [3e-3]
    for g in (2.0, 2.0, 0.5, 0.5, 0.0):
        w.grad = torch.full((2,), g, dtype=torch.bfloat16)
        optimizer.step()
        seen.append(optimizer.state[w]["v"][0].item())
    changes = [b - a for a, b in zip(seen, seen[1:])]
    assert changes == pytest.approx([0.4, 0.4, -0.025, -0.025, 0.0], abs=1e-6)


# ---------------------------------------------------------------------------------------------------------
# How long steps are

@pytest.mark.parametrize("name, noisy, lengths, words", [
    ("nesterov", False, {1: 1.98, 1000: 50.0}, "moves it by lr g / (1 - b1) a step"),
    ("adagrad", False, {1: 1.0, 100: 0.1}, "by about lr / sqrt(t) in step t"),
    ("rmsprop", True, {1: 10.0, 1000: 1.0}, "which is 10 times"),
    ("rmsprop_centered", False, {1000: 150.0}, "after 1,000 equal gradients, a step is 150 times lr"),
    ("adadelta", False, {1: 0.00316}, "which is 0.003 lr"),
    ("adamax", False, {1: 1.0, 100: 1.0}, "if its gradients are all the same")])
def test_steps_are_as_long_as_the_docstrings_say(name, noisy, lengths, words):
    """In units of lr, root mean square. The gradients are noise of size 1, or they are all 1."""
    assert words in " ".join(RULES[name].function.__doc__.split())
    w, draw = torch.zeros(40, 50, dtype=torch.float64), torch.Generator().manual_seed(0)
    optimizer = Optimizer([w], name, lr=1.0)
    for t in range(1, max(lengths) + 1):
        before = w.clone()
        w.grad = torch.randn(40, 50, generator=draw).double() if noisy else torch.ones(40, 50).double()
        optimizer.step()
        if t in lengths:
            assert (w - before).square().mean().sqrt().item() == pytest.approx(lengths[t], rel=0.04)


def test_rprops_step_sizes_shrink_on_noise():
    """Most of them are the smallest after a hundred steps. On a steady gradient they are the largest."""
    w, draw = torch.zeros(50, 40), torch.Generator().manual_seed(0)
    optimizer = Optimizer([w], "rprop", lr=1.0)
    for t in range(1, 101):
        w.grad = torch.randn(50, 40, generator=draw)
        w.grad[0] = 1.0
        optimizer.step()
        size = optimizer.state[w]["size"]
        if t == 54:    # on average, a step takes 0.17 off the logarithm of a step size
            assert size[1:].log().mean().item() == pytest.approx(math.log(1e-4), abs=1.5)
    assert (size[0] == 5000).all() and size[1:].median().item() < 3e-4


def test_adamax_never_moves_a_weight_farther_than_by_lr_but_for_its_correction():
    w, draw = torch.zeros(30, dtype=torch.float64), torch.Generator().manual_seed(0)
    optimizer = Optimizer([w], "adamax", lr=1.0, beta2=1 - 1e-9)
    longest = 0.0
    for _ in range(50):
        before, w.grad = w.clone(), torch.randn(30, generator=draw).double() ** 3
        optimizer.step()
        assert w.isfinite().all()
        longest = max(longest, (w - before).abs().max().item())
    assert 0.9 < longest <= 1


def test_centred_rmsprop_is_finite_where_the_variance_rounds_to_less_than_0():
    """Without the bound at 0, the root would be NaN."""
    g = torch.rand(4096, generator=torch.Generator().manual_seed(0)) + 0.5
    w = torch.zeros(4096)
    optimizer = Optimizer([w], "rmsprop_centered", lr=1e-9, beta2=0.5)
    stepped(optimizer, w, [g] * 40, [1e-9] * 40)
    state = optimizer.state[w]
    assert (state["v"] < state["m"].square()).any() and w.isfinite().all()


# ---------------------------------------------------------------------------------------------------------
# L2 against decoupled weight decay

def test_l2_is_weight_decay_for_sgd_and_not_for_adam():
    def end(rule, modify, **settings):
        w = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4)
        return stepped(Optimizer([w], zoo.modified(rule, modify), lr=0.01, **settings), w, hard_gradients(),
                       RATES)
    for rule, hyper, same in (("sgd", dict(beta1=0.0), True), ("adamw", {}, False)):
        l2 = end(rule, "l2", l2_strength=0.3, **hyper)
        decay, neither = end(rule, "", weight_decay=0.3, **hyper), end(rule, "", **hyper)
        assert torch.allclose(l2, decay, rtol=0, atol=1e-12) == same
        assert not torch.allclose(l2, neither, atol=1e-4) and not torch.allclose(decay, neither, atol=1e-4)


def test_l2_moves_weights_that_have_no_gradient():
    """With Adam by lr, however small they are, and with SGD in proportion to their size."""
    for rule, hyper, wanted in (("adamw", {}, [0.9, 0.01 - 0.1]), ("sgd", dict(beta1=0.0), [0.95, 0.0095])):
        w = torch.tensor([1.0, 0.01], dtype=torch.float64)
        optimizer = Optimizer([w], zoo.modified(rule, "l2"), lr=0.1, l2_strength=0.5, **hyper)
        stepped(optimizer, w, [torch.zeros(2).double()], [0.1])
        assert w.tolist() == pytest.approx(wanted, abs=1e-9)
