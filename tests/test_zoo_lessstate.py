"""What is special about the rules of zoo/compressed.py and zoo/subspace.py."""
import pytest
import torch

from rule_cases import built, gradients, run, weights
from zoo import Optimizer, compressed


def ends(case, steps=8, **more):
    """The weights after some steps of a case."""
    w = weights()
    run(built(case, w, **more), w, gradients(steps))
    return w


def steps(optimizer, w, grads):
    """One step of a single tensor for each gradient."""
    for g in grads:
        w.grad = g.to(w, copy=True)
        optimizer.step()


def draws(shape, count, seed=0):
    """Gradients, normally distributed, in float64."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(count)]


# ---------------------------------------------------------------------------------------------------------
# SlimAdam

def test_slim_adam_is_adalayer_along_the_side_of_each_role():
    slim, rows, adam = ends("slim_adam"), ends("adalayer", rows="embed+head"), ends("adamw")
    assert all(torch.allclose(slim[role], rows[role], rtol=0, atol=1e-12) for role in ("embed", "head"))
    assert torch.allclose(slim["norm"], adam["norm"], rtol=0, atol=1e-12)
    turned = weights()["mlp_up"].detach().T.contiguous()
    steps(Optimizer([dict(params=[turned], blocks=[len(turned)])], "adalayer", lr=0.1), turned,
          [g["mlp_up"].T.contiguous() for g in gradients(8)])
    assert torch.allclose(slim["mlp_up"], turned.T, rtol=0, atol=1e-12)


def test_slim_adams_fused_projection_is_two_by_rows_and_one_by_columns():
    slim, w = ends("slim_adam")["qkv"], weights()["qkv"].detach()
    for i, role in ((0, "head"), (1, "head"), (2, "mlp_up")):    # roles with the sides of q, k and v
        part = w.chunk(3)[i].clone()
        optimizer = Optimizer([dict(params=[part], roles=[role])], "slim_adam", lr=0.1)
        steps(optimizer, part, [g["qkv"].chunk(3)[i] for g in gradients(8)])
        assert torch.allclose(slim.chunk(3)[i], part, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------
# AdaLomo

def test_adalomo_moves_a_tensor_in_proportion_to_its_size():
    """Twice the weights take twice the steps, whatever the lr. Weights below 0.001 count as 0.001."""
    moved = []
    for size in (1.0, 2.0, 1e-6, 1e-7):
        start = size * draws((6, 4), 1, seed=1)[0]
        w = start.clone()
        optimizer = Optimizer([w], "adalomo", lr=0.1)
        for t, g in enumerate(draws((6, 4), 5)):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + t)
            steps(optimizer, w, [g])
        moved.append(w - start)
    assert torch.allclose(2 * moved[0], moved[1], rtol=1e-12)
    assert torch.allclose(moved[2], moved[3], rtol=1e-9) and moved[2].abs().max() < 1e-3


@pytest.mark.parametrize("kind", ["coupled", "independent"])
def test_adalomo_multiplies_the_decay_by_the_size(kind):
    """By hand, under a schedule, with gradients of zero."""
    w = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    optimizer = Optimizer([w], "adalomo", lr=0.1, weight_decay=0.5, weight_decay_kind=kind)
    expected = w.clone()
    for lr in (0.1, 0.05, 0.0):
        optimizer.param_groups[0]["lr"] = lr
        steps(optimizer, w, [torch.zeros_like(w)])
        rate = lr if kind == "coupled" else lr / 0.1
        expected *= 1 - 0.5 * rate * expected.square().mean().sqrt()
        assert torch.allclose(w, expected, rtol=1e-14)


# ---------------------------------------------------------------------------------------------------------
# SMMF

def test_the_squarest_matrix():
    assert [compressed.squarest(size) for size in (1, 7, 12, 36, 60, 768 * 50304)] == [
        (1, 1), (7, 1), (4, 3), (6, 6), (10, 6), (6288, 6144)]


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4, 4), (33, 7)])
def test_signs_are_packed_without_loss(shape):
    x = draws(shape, 1)[0].float()
    signs = compressed.packed(x > 0, x)
    assert signs.shape == (-(-x.numel() // 16),)
    assert torch.equal(compressed.unpacked(signs, x), torch.where(x > 0, 1.0, -1.0))


def test_smmf_is_exact_if_sizes_are_a_product_of_rows_and_columns():
    """Then nothing is lost, and the rule is Adam with betas that change and no correction."""
    w = torch.zeros(6, 4, dtype=torch.float64)
    rows, columns, signs = draws(6, 1)[0].exp(), draws(4, 1)[0].exp(), draws((6, 4), 1)[0].sign()
    optimizer, m, v = Optimizer([w], "smmf", lr=1.0, growth=0.9), 0.0, 0.0
    for t in range(1, 7):
        g = (1 + t % 3) * signs * torch.outer(rows, columns)
        b1, b2 = 0.9 * 0.9 ** (t - 1), 1 - t**-0.8
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        before = w.clone()
        steps(optimizer, w, [g])
        assert torch.allclose(before - w, m / (v.sqrt() + 1e-8), rtol=1e-12)
