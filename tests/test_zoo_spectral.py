"""What is special about each rule of zoo/spectral.py, and about the modifier blockwise_lr."""
import pytest
import torch

from rule_cases import normal
from zoo import RULES, Optimizer, modified, spectral
from zoo.orthogonal import orthogonal


def update(name, *gradients, blocks=1, **hyper):
    """The update that a rule returns for the last of these gradients."""
    w = torch.zeros_like(gradients[0])
    optimizer = Optimizer([dict(params=[w], blocks=[blocks])], RULES[name], lr=1.0, **hyper)
    for g in gradients:
        w.zero_()
        w.grad = g.clone()
        optimizer.step()
    return -w


def decreasing(rows, columns, least):
    """A matrix whose singular values fall evenly, in their logarithm, from 1 to `least`."""
    u, _, v = torch.linalg.svd(normal(rows, columns), full_matrices=False)
    size = min(rows, columns)
    return u @ torch.diag(torch.logspace(0, least, size, dtype=torch.float64)) @ v


# ---------------------------------------------------------------------------------------------------------
# Muon with another input, another polynomial or another scale

@pytest.mark.parametrize("name", ["adamuon", "auon", "polar_express", "root", "cosmos"])
def test_the_fused_projection_is_three_matrices(name):
    first, second = normal(12, 4), normal(12, 4, seed=1)
    apart = torch.cat([update(name, *parts) for parts in zip(first.chunk(3), second.chunk(3))])
    assert torch.allclose(update(name, first, second, blocks=3), apart, atol=1e-12)
    assert not torch.allclose(update(name, first, second), apart, atol=1e-3)


def test_adamuon_sees_only_the_signs_and_moves_as_far_as_adamw():
    g, h = normal(24, 30), normal(24, 30, seed=1)
    other_sizes = (x.exp() * x.sign() for x in (g, h))
    assert torch.allclose(update("adamuon", g, h, beta1=0.0), update("adamuon", *other_sizes, beta1=0.0))
    assert not torch.allclose(update("adamuon", g, h), update("adamuon", g, 9 * h), atol=0.01)
    assert torch.allclose(update("adamuon", g).abs(), torch.full_like(g, 0.2), rtol=1e-3)
    rms = update("adamuon", g, h, blocks=3).reshape(3, -1).square().mean(1).sqrt()
    assert torch.allclose(rms, torch.full((3,), 0.2).double(), rtol=1e-6)


@pytest.mark.parametrize("shape, factor", [((90, 40), 1.5), ((40, 90), 1.0)])
def test_auon_is_the_gradient_scaled_to_a_fixed_length(shape, factor):
    g = normal(*shape)
    u = update("auon", 1e-3 * g)
    assert torch.allclose(u, factor * g / g.norm(), rtol=5e-4)
    assert not torch.allclose(u, factor * g / g.norm(), rtol=1e-5)    # the cosine is 1 only nearly
    tiny = update("auon", torch.eye(2, dtype=torch.float64))    # here the cosine counts
    x = torch.tensor([0.5**0.5, 0.0], dtype=torch.float64)
    assert tiny[0, 0].item() == pytest.approx((x[0] / x.cosh().square().mean().sqrt()).item())


def test_polar_express_converges_and_muon_does_not():
    x = decreasing(40, 60, -2)    # the least singular value is some thousandths of the norm
    values = {k: torch.linalg.svdvals(update("polar_express", x, iterations=k)) for k in (5, 8)}
    assert 0.84 < values[5].min() and values[5].max() < 1.13 and values[5].std() > 0.01
    assert torch.allclose(values[8], torch.ones(40).double(), atol=1e-9)
    assert torch.linalg.svdvals(orthogonal(x, 8)).std() > 0.05


def test_the_last_polynomial_serves_for_all_further_steps():
    """A diagonal matrix shows what the polynomials do to each singular value."""
    s = torch.tensor([0.9, 0.5, 0.02], dtype=torch.float64)
    first, last = (2.0, -1.5, 0.4), (1.9, -1.2, 0.3)
    expected = s / (1.1 * s.norm() + 1e-7)
    for a, b, c in (first, last, last):
        expected = a * expected + b * expected**3 + c * expected**5
    got = orthogonal(torch.diag(s), 3, (first, last), margin=1.1)
    assert torch.allclose(got, torch.diag(expected), rtol=1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_root_is_muon_of_clipped_momentum(shape, monkeypatch):
    g = normal(*shape)
    scale = 0.2 * max(shape) ** 0.5
    whole = spectral.root(g, torch.zeros_like(g), 1, kept=1.0)    # nothing is clipped
    assert torch.allclose(whole, scale * orthogonal(g), atol=1e-6)
    edge = torch.quantile(g.abs(), 0.9)
    assert torch.allclose(update("root", g), scale * orthogonal(g.clamp(-edge, edge)), atol=1e-6)
    monkeypatch.setitem(spectral.ROOT, (4, 6), spectral.ROOT[2048, 8192])    # for a shape of the table
    own = scale * orthogonal(g.clamp(-edge, edge), polynomials=(spectral.ROOT[2048, 8192],))
    assert torch.allclose(update("root", g), own, atol=1e-6)


def test_an_outlier_turns_muon_and_not_root():
    g = normal(30, 30)
    spiked = g.clone()
    spiked[3, 5] = 1000.0
    def change(name):
        u = update(name, g)
        return ((update(name, spiked) - u).norm() / u.norm()).item()
    assert change("root") < 0.1 and change("muon") > 0.4


@pytest.mark.parametrize("numbers", [1, 2, 10, 11, 101])
@pytest.mark.parametrize("part", [0.0, 0.37, 0.9, 1.0])
def test_the_quantile_is_that_of_torch(numbers, part):
    x = normal(3, numbers)
    assert torch.allclose(spectral.quantile(x, part), torch.quantile(x, part, dim=1), rtol=1e-12)


# ---------------------------------------------------------------------------------------------------------
# The largest directions of the matrix

def trained(name, gradients, **options):
    """(weights, state) after these gradients, from weights of 0."""
    w = torch.zeros_like(gradients[0])
    optimizer = Optimizer([w], RULES[name], lr=1.0, **options)
    for g in gradients:
        w.grad = g.clone()
        optimizer.step()
    return w, optimizer.state[w]


@pytest.mark.parametrize("rank, number", [(1.0, 8), (0.5, 4), (0.3, 3), (0.0, 1)])
def test_dion_makes_the_largest_directions_orthogonal(rank, number):
    g = decreasing(12, 8, -1)
    values = torch.linalg.svdvals(update("dion", *[g] * 60, rank=rank)) / (12 / 8) ** 0.5
    assert torch.allclose(values[:number], torch.ones(number).double(), atol=0.02)
    assert not (values[number:] > 1e-6).any()


def test_dion_keeps_what_its_step_leaves_out():
    """Of the momentum, the step's own directions decay by beta1. The others stay as they are."""
    g, beta1 = normal(12, 8), 0.7
    _, state = trained("dion", [g], rank=0.4, beta1=beta1)
    p, m = state["p"][0].double(), state["m"].double()
    inside, outside = p @ p.T, torch.eye(12, dtype=torch.float64) - p @ p.T
    assert torch.allclose(inside @ m, beta1 * inside @ g, atol=1e-5)
    assert torch.allclose(outside @ m, outside @ g, atol=1e-5) and (outside @ g).norm() > 1


def test_dion_treats_a_wide_matrix_as_the_transpose_of_a_tall_one():
    gs = [normal(12, 5, seed=i) for i in range(3)]
    tall, wide = update("dion", *gs, rank=0.6), update("dion", *(g.T for g in gs), rank=0.6)
    assert torch.allclose(wide * 12 / 5, tall.T, atol=1e-6)


def test_dion_begins_anew_after_gradients_of_zero():
    g, zero = normal(6, 4), torch.zeros(6, 4, dtype=torch.float64)
    assert not update("dion", zero).any()
    assert torch.allclose(update("dion", zero, g), update("dion", g), atol=1e-6)


def test_dions_first_directions_depend_on_the_seed():
    a, b = (update("dion", normal(12, 8), rank=0.3, seed=seed) for seed in (0, 1))
    assert (a - b).norm() > 0.1 * a.norm()


def test_cosmos_finds_the_largest_directions_and_their_mean_squares():
    g = decreasing(10, 16, -1)
    _, state = trained("cosmos", [g] * 40, rank=3)
    _, values, directions = torch.linalg.svd(g)
    q, s = state["q"][0].double(), state["s"][0].double()
    assert torch.allclose(q @ q.T, directions[:3].T @ directions[:3], atol=1e-5)
    assert torch.allclose(torch.linalg.eigvalsh(s).flip(0), (1 - 0.95**40) * values[:3] ** 2, rtol=1e-4)


def test_cosmos_follows_directions_that_turn():
    """A mean over many gradients, along directions that begin at one gradient, nears that of all."""
    basis = torch.linalg.qr(normal(16, 16)).Q
    sizes = torch.tensor([9.0, 8.0, 7.0] + [0.5] * 13, dtype=torch.float64)
    gradients = [normal(20, 16, seed=i) * sizes @ basis.T for i in range(30)]
    _, state = trained("cosmos", gradients, rank=3)
    q = state["q"][0].double()
    assert (basis[:, :3].T @ q).norm() ** 2 == pytest.approx(3, abs=0.05)


def test_cosmos_is_of_fixed_size_and_gamma_is_the_part_across():
    gs = [normal(24, 10, seed=i) for i in range(3)]
    rms = update("cosmos", *gs, blocks=3, rank=4, ratio=0.3).reshape(3, -1).square().mean(1).sqrt()
    assert torch.allclose(rms, torch.full((3,), 0.3).double(), rtol=1e-6)
    q = trained("cosmos", gs, rank=4)[1]["q"][0].double()
    parts = {}
    for gamma in (0.0, 0.2, 0.4):
        u = update("cosmos", *gs, rank=4, gamma=gamma)
        parts[gamma] = (u - u @ q @ q.T).norm() / (u @ q).norm()
    assert parts[0.0] < 1e-5 < parts[0.2] and parts[0.4] / parts[0.2] == pytest.approx(2, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------
# A step as long as the tensor is large

@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_lars_moves_a_tensor_by_a_fixed_part_of_its_size(scale):
    w = normal(6, 4)
    start, w.grad = w.clone(), scale * normal(6, 4, seed=1)
    Optimizer([w], RULES["lars"], lr=3.0, trust=0.002).step()
    assert ((w - start).norm() / start.norm()).item() == pytest.approx(3 * 0.002, rel=1e-4)


@pytest.mark.parametrize("kind", ["coupled", "independent"])
def test_lars_keeps_its_decay_under_a_schedule(kind):
    """The class takes decay off in each step, and the rule puts it back. What remains is lr times m."""
    w, lrs = normal(6, 4), (2.0, 1.0, 0.0, 0.5)
    optimizer = Optimizer([w], RULES["lars"], lr=2.0, weight_decay=0.1, weight_decay_kind=kind)
    expected, m = w.clone(), torch.zeros_like(w)
    for i, lr in enumerate(lrs):
        w.grad = normal(6, 4, seed=i + 1)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        weight_decay = (0.1 if kind == "coupled" else 0.05) * (lr > 0)    # at lr 0 the factor decay is 1
        g = w.grad + weight_decay * expected
        k = 1e-3 * expected.norm() / (w.grad.norm() + weight_decay * expected.norm() + 1e-8)
        m = 0.9 * m + k * g
        expected = expected - lr * m
        assert torch.allclose(w, expected, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------------------------------------------
# A learning rate for each kind of tensor

@pytest.mark.parametrize("role, multiples", [
    ("norm", [1]), ("head", [1]), ("attn_out", [4]), ("mlp_up", [6]), ("mlp_down", [6]), ("embed", [10]),
    ("qkv", [8, 8, 4]), (None, [1])])
def test_blockwise_lr_is_a_group_with_an_lr_of_its_own(role, multiples):
    """Under a schedule and with a decay, which takes part in the lr of a group."""
    w = normal(6, 4)
    parts = [x.clone() for x in w.chunk(len(multiples))]
    groups = [dict(params=[x], lr=0.01 * k) for x, k in zip(parts, multiples)]
    other = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.3)
    own = Optimizer([dict(params=[w], roles=[role])], modified("adamw", "blockwise_lr"), lr=0.01, eps=1e-8,
                    weight_decay=0.3)
    for t, lr in enumerate((0.01, 0.004, 0.0, 0.007)):
        w.grad = normal(6, 4, seed=t + 1)
        for x, g, group, k in zip(parts, w.grad.chunk(len(parts)), other.param_groups, multiples):
            x.grad, group["lr"] = g.clone(), lr * k
        own.param_groups[0]["lr"] = lr
        own.step(), other.step()
        assert torch.allclose(w, torch.cat(parts), rtol=1e-12, atol=1e-13)


def test_blockwise_lr_comes_after_a_trust_ratio():
    """The other way round, the trust ratio would undo it."""
    ends = []
    for modify in ("trust_ratio", "trust_ratio+blockwise_lr", "blockwise_lr+trust_ratio"):
        w = normal(6, 4)
        start, w.grad = w.clone(), normal(6, 4, seed=1)
        Optimizer([dict(params=[w], roles=["embed"])], modified("adamw", modify), lr=0.001).step()
        ends.append(w - start)
    assert torch.allclose(ends[1], 10 * ends[0], rtol=1e-12)
    assert torch.allclose(ends[2], ends[0], rtol=1e-12)
