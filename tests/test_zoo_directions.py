"""What is special about the rules of zoo/signs.py and zoo/momentum.py, and about the first Adafactor."""
import numpy as np
import pytest
import torch

import zoo
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


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
    hyper = dict(beta1=0.8, beta2=0.9) | (dict(width=0.5) if name == "lion_huber" else {})
    ours, w = steps_of(name, list(grads), start, lrs=lrs, weight_decay=decay, **hyper), w.numpy()
    for g, lr, mine in zip(grads.numpy(), lrs, ours):
        w = w - lr * (GRADIENT_OF_K[name](0.8 * m + 0.2 * g) + decay * w)
        m = 0.9 * m + 0.1 * g
        assert abs(mine.numpy() - w).max() < 1e-12


def test_lion_k_is_lion_where_its_norms_are_absolute_values():
    """The norm of a single number, of a row of one number, and Huber's loss without a middle."""
    for name, shape, hyper in (("lion_l2", (1,), {}), ("lion_group", (6, 1), {}),
                               ("lion_huber", (6, 4), dict(width=0.0))):
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
