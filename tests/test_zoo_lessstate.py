"""What is special about the rules of zoo/compressed.py and zoo/subspace.py."""

import numpy as np
import pytest
import torch

from golden_cases import FOLDER, golden_steps, golden_weights, share_off
from model import Decoder
from rule_cases import built, gradients, run, weights
from tiny_runs import run as run_tiny
from trainer import runs
from zoo import Optimizer, compressed
from zoo import __main__ as zoo_by_hand

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


# ---------------------------------------------------------------------------------------------------------
# BAdam

def model_of(layers, dtype=torch.float32):
    """(roles, tensors by name) of a model: an embedding, two tensors in each layer, a norm and a head."""
    roles = {"embed.weight": "embed", "norm.weight": "norm", "head.weight": "head"}
    for i in range(layers):
        roles |= {f"blocks.{i}.qkv.weight": "qkv", f"blocks.{i}.norm.weight": "norm"}
    draw = torch.Generator().manual_seed(0)
    return roles, {name: torch.randn(6, 4, generator=draw, dtype=dtype) for name in roles}


@pytest.mark.parametrize("kind", ["coupled", "independent"])
def test_badam_trains_one_layer_at_a_time_in_order(kind):
    """All other weights stay the same to the bit, also under decay, and their state is 0."""
    roles, w = model_of(2)
    group = dict(params=list(w.items()), roles=list(roles.values()))
    optimizer = Optimizer([group], "badam", lr=0.01, layers=2, switch_steps=3, weight_decay=0.1,
                          weight_decay_kind=kind)
    order = [["embed.weight"], ["blocks.0.qkv.weight", "blocks.0.norm.weight"],
             ["blocks.1.qkv.weight", "blocks.1.norm.weight"], ["head.weight", "norm.weight"]]
    for t in range(24):
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + t % 5)
        before = {name: p.clone() for name, p in w.items()}
        for p in w.values():
            p.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(t))
        optimizer.step()
        assert {name for name in w if not torch.equal(w[name], before[name])} == set(order[t // 3 % 4])
        assert {name for name in w if optimizer.state[w[name]]["m"].any()} == set(order[t // 3 % 4])


@pytest.mark.parametrize("names, want", [
    ("embed.weight h.0.up h.2.up h.10.up head.weight", [0, 1, 2, 3, 4]),    # 2 is before 10
    ("0.weight 0.bias 2.weight 2.bias", [1, 1, 2, 2])])    # of a torch.nn.Sequential
def test_badam_finds_the_layers_in_names_of_other_models(names, want):
    optimizer = Optimizer([(name, torch.ones(2)) for name in names.split()], "badam", lr=0.01, layers=3)
    assert [int(layer) for layer in optimizer.layers().values()] == want


@pytest.mark.parametrize("params, layers, found", [
    ([torch.ones(2), torch.ones(2)], 1, 0), ([(f"h.{i}.up", torch.ones(2)) for i in range(4)], 2, 4)])
def test_badam_refuses_names_that_do_not_show_its_layers(params, layers, found):
    optimizer = Optimizer(params, "badam", lr=0.01, layers=layers)
    for _, _, p in optimizer.each_parameter():
        p.grad = torch.ones(2)
    with pytest.raises(ValueError, match=f"layers={layers}: the names of the tensors show {found} layers"):
        optimizer.step()
    assert all(torch.equal(p, torch.ones(2)) for _, _, p in optimizer.each_parameter())


def test_badam_is_adam_that_starts_anew():
    grads, w, b = draws((6, 4), 7), *(torch.ones(6, 4, dtype=torch.float64) for _ in range(2))
    steps(Optimizer([w], "badam", lr=0.1, switch_steps=4, weight_decay=0.2), w, grads)
    for part in (grads[:4], grads[4:]):
        steps(Optimizer([b], "adamw", lr=0.1, beta2=0.999, eps=1e-8, weight_decay=0.2), b, part)
    assert torch.allclose(w, b, rtol=0, atol=1e-12)


def test_badam_in_a_run_moves_the_embedding_first_and_knows_the_number_of_layers(tiny, tmp_path):
    """The second block is the first layer. Its state, and that of no other, is left at the end."""
    more = ["--optimizer=badam", "--switch_steps=2", "--steps=3", "--eval_every=0"]
    assert run_tiny(tiny, tmp_path, "a", *more) == 0
    saved = runs.load_checkpoint(tmp_path / "a/step-00000003.pt")
    [group] = saved["optimizer"]["param_groups"]
    assert group["layers"] == saved["shape"]["layers"]
    start = Decoder(**saved["shape"], seed=0).state_dict()
    moved = {name for name in start if not torch.equal(start[name], saved["model"][name])}
    layer = {name for name in start if name.startswith("blocks.0.")}
    assert moved == {"embed.weight"} | layer
    states = saved["optimizer"]["state"]
    assert {name for i, name in enumerate(group["names"]) if states[i]["m"].any()} == layer


def test_badam_by_hand_moves_all_weights(capsys):
    assert zoo_by_hand.main(["badam", "--steps=1"]) == 0
    line = [line for line in capsys.readouterr().out.splitlines() if line.startswith("        u ")][-1]
    assert line.split()[1:] == ["1.000000", "-1.000000", "1.000000", "1.000000", "|", "1.000000"]


# ---------------------------------------------------------------------------------------------------------
# Directions of a matrix

@pytest.mark.parametrize("name", ["adam_sn", "adam_snsm", "conda", "osd"])
def test_a_transposed_matrix_moves_as_the_matrix(name):
    grads, w = draws((7, 4), 9), torch.ones(7, 4, dtype=torch.float64)
    turned, more = w.T.clone(), dict(refresh_steps=4) if name != "adam_sn" else {}
    steps(Optimizer([w], name, lr=0.1, **more), w, grads)
    steps(Optimizer([turned], name, lr=0.1, **more), turned, [g.T for g in grads])
    assert (w != 1).all() and torch.allclose(w.T, turned, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["adam_snsm", "conda", "osd"])
def test_the_fused_projection_is_three_matrices(name):
    grads, w = draws((12, 4), 5), torch.ones(12, 4, dtype=torch.float64)
    parts = [x.clone() for x in w.chunk(3)]
    steps(Optimizer([dict(params=[w], blocks=[3])], name, lr=0.1, refresh_steps=3), w, grads)
    for i, part in enumerate(parts):
        steps(Optimizer([part], name, lr=0.1, refresh_steps=3), part, [g.chunk(3)[i] for g in grads])
    assert torch.allclose(w, torch.cat(parts), rtol=0, atol=1e-12)


def test_adam_sn_is_adalayer_with_rows_and_a_longer_lr():
    """A sum over 4 columns is 4 times a mean, so an lr of twice the size moves the weights alike."""
    grads, a, b = draws((6, 4), 8), *(torch.ones(6, 4, dtype=torch.float64) for _ in range(2))
    steps(Optimizer([a], "adam_sn", lr=0.2, beta2=0.95, eps=1e-15), a, grads)
    steps(Optimizer([dict(params=[b], blocks=[6])], "adalayer", lr=0.1), b, grads)
    assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_adam_snsm_in_all_directions_is_adam_sn_that_forgets_its_momentum():
    grads, a = draws((6, 4), 8), torch.ones(6, 4, dtype=torch.float64)
    optimizer = Optimizer([a], "adam_snsm", lr=0.1, rank=1.0, refresh_steps=5)
    b = a.clone()
    other = Optimizer([b], "adam_sn", lr=0.1)
    steps(optimizer, a, grads[:5])
    steps(other, b, grads[:5])
    assert torch.allclose(a, b, rtol=0, atol=1e-12)
    other.state[b]["m"].zero_()
    steps(optimizer, a, grads[5:])
    steps(other, b, grads[5:])
    assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_adam_snsm_follows_the_gradient_outside_of_its_directions():
    """Of g, one direction of four goes into m."""
    g = draws((6, 4), 1)[0]
    w = torch.zeros(6, 4, dtype=torch.float64)
    optimizer = Optimizer([w], "adam_snsm", lr=1.0, beta1=0.5)
    steps(optimizer, w, [g])
    inside = torch.linalg.svd(g)[2][:1]
    inside = g @ inside.T @ inside
    expected = (0.5 * inside + (g - inside)) / 0.5 / g.norm(dim=1, keepdim=True)
    assert torch.allclose(-w, expected, rtol=1e-4)    # eps


def test_conda_turns_with_the_short_side():
    """In another basis of the short side the steps are the same, turned. Those of Adam are not."""
    grads, turn = draws((7, 4), 9), torch.linalg.qr(draws((4, 4), 1, seed=2)[0]).Q
    for name, same in (("conda", True), ("adamw", False)):
        a, b = (torch.zeros(7, 4, dtype=torch.float64) for _ in range(2))
        more = dict(refresh_steps=4) if name == "conda" else {}
        steps(Optimizer([a], name, lr=0.1, **more), a, grads)
        steps(Optimizer([b], name, lr=0.1, **more), b, [g @ turn for g in grads])
        assert torch.allclose(a @ turn, b, rtol=0, atol=1e-9) == same


def test_condas_basis_is_that_of_the_new_momentum():
    """It diagonalises m'm at a refresh, and stays as it is until the next."""
    w = torch.zeros(7, 4, dtype=torch.float64)
    optimizer, seen = Optimizer([w], "conda", lr=0.1, refresh_steps=3), []
    for t, g in enumerate(draws((7, 4), 6), 1):
        steps(optimizer, w, [g])
        q, m = optimizer.state[w]["q"][0], optimizer.state[w]["m"]
        turned = q.T @ m.T @ m @ q
        assert torch.allclose(turned, turned.diagonal().diag(), atol=1e-12) == (t in (1, 4))
        seen.append(q.clone())
    assert all(torch.equal(seen[a], seen[b]) for a, b in ((0, 1), (1, 2), (3, 4), (4, 5)))


def test_osd_turns_its_directions_at_the_rate_of_the_schedule():
    """As the authors' code does: in steps of lr / lr_peak / refresh_steps. Here lr falls to 0."""
    w, numbers = golden_weights(("tall", "wide", "square")), np.load(FOLDER / "lessstate.npz")
    optimizer = Optimizer(w.items(), "osd", lr=0.01, rank=0.4, refresh_steps=20)
    assert list(golden_steps(w, optimizer, lrs=[0.01 * (1 - t / 25) for t in range(25)]))[-1] == 25
    assert all(share_off(p, numbers[f"osd_falling/25/{name}"], name) <= 1e-12 for name, p in w.items())


def test_a_step_of_osd_stays_within_its_directions():
    w = torch.zeros(8, 8, dtype=torch.float64)
    optimizer = Optimizer([w], "osd", lr=1.0)
    for g in draws((8, 8), 5):
        p, before = optimizer.state[w].get("p", torch.zeros(1))[0].clone(), w.clone()
        steps(optimizer, w, [g])
        assert torch.linalg.matrix_rank(w - before) == 2
        if p.any():    # the directions before this step, which turn only after it
            assert torch.linalg.matrix_rank(torch.cat((w - before, p.T))) == 2
            assert not torch.equal(p, optimizer.state[w]["p"][0])
