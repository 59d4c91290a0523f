"""What is special about each rule of zoo/spectral.py."""
import pytest
import torch

from zoo import RULES, Optimizer, spectral
from zoo.orthogonal import orthogonal


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
    u, _, v = torch.linalg.svd(noise(rows, columns), full_matrices=False)
    size = min(rows, columns)
    return u @ torch.diag(torch.logspace(0, least, size, dtype=torch.float64)) @ v


# ---------------------------------------------------------------------------------------------------------
# Muon with another input, another polynomial or another scale

@pytest.mark.parametrize("name", ["adamuon", "auon", "polar_express", "root"])
def test_the_fused_projection_is_three_matrices(name):
    first, second = noise(12, 4), noise(12, 4, seed=1)
    apart = torch.cat([update(name, *parts) for parts in zip(first.chunk(3), second.chunk(3))])
    assert torch.allclose(update(name, first, second, blocks=3), apart, atol=1e-12)
    assert not torch.allclose(update(name, first, second), apart, atol=1e-3)


def test_adamuon_sees_only_the_signs_and_moves_as_far_as_adamw():
    g, h = noise(24, 30), noise(24, 30, seed=1)
    other_sizes = (x.exp() * x.sign() for x in (g, h))
    assert torch.allclose(update("adamuon", g, h, beta1=0.0), update("adamuon", *other_sizes, beta1=0.0))
    assert not torch.allclose(update("adamuon", g, h), update("adamuon", g, 9 * h), atol=0.01)
    assert torch.allclose(update("adamuon", g).abs(), torch.full_like(g, 0.2), rtol=1e-3)
    rms = update("adamuon", g, h, blocks=3).reshape(3, -1).square().mean(1).sqrt()
    assert torch.allclose(rms, torch.full((3,), 0.2).double(), rtol=1e-6)


@pytest.mark.parametrize("shape, factor", [((90, 40), 1.5), ((40, 90), 1.0)])
def test_auon_is_the_gradient_scaled_to_a_fixed_length(shape, factor):
    g = noise(*shape)
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
    g = noise(*shape)
    scale = 0.2 * max(shape) ** 0.5
    whole = spectral.root(g, torch.zeros_like(g), 1, kept=1.0)    # nothing is clipped
    assert torch.allclose(whole, scale * orthogonal(g), atol=1e-6)
    edge = torch.quantile(g.abs(), 0.9)
    assert torch.allclose(update("root", g), scale * orthogonal(g.clamp(-edge, edge)), atol=1e-6)
    monkeypatch.setitem(spectral.ROOT, (4, 6), spectral.ROOT[2048, 8192])    # for a shape of the table
    own = scale * orthogonal(g.clamp(-edge, edge), polynomials=(spectral.ROOT[2048, 8192],))
    assert torch.allclose(update("root", g), own, atol=1e-6)


def test_an_outlier_turns_muon_and_not_root():
    g = noise(30, 30)
    spiked = g.clone()
    spiked[3, 5] = 1000.0
    def change(name):
        u = update(name, g)
        return ((update(name, spiked) - u).norm() / u.norm()).item()
    assert change("root") < 0.1 and change("muon") > 0.4


@pytest.mark.parametrize("numbers", [1, 2, 10, 11, 101])
@pytest.mark.parametrize("part", [0.0, 0.37, 0.9, 1.0])
def test_the_quantile_is_that_of_torch(numbers, part):
    x = noise(3, numbers)
    assert torch.allclose(spectral.quantile(x, part), torch.quantile(x, part, dim=1), rtol=1e-12)
