"""What is special about the rules of zoo/kronecker.py."""
import pytest
import torch

from rule_cases import built, gradients, run, weights
from zoo import Optimizer
from zoo.kronecker import shampoo_roots


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stepped(rule, grads, blocks=1, **more):
    """What the steps with these gradients take from a tensor of zeros."""
    w = torch.zeros_like(grads[0])
    optimizer = Optimizer([dict(params=[w], blocks=[blocks])], rule, lr=1.0, **more)
    for g in grads:
        w.grad = g.clone()
        optimizer.step()
    return -w


def test_shampoos_first_step_has_equal_singular_values():
    """(g g')^(-1/4) g (g' g)^(-1/4) is U V', whatever the size of g."""
    g = normal(5, 5)
    u, _, vh = torch.linalg.svd(g)
    for size in (1.0, 1e3):
        assert torch.allclose(stepped("shampoo", [size * g], eps=1e-12), u @ vh, atol=1e-6)


def test_shampoo_of_a_vector_is_adagrad_of_the_whole_matrix():
    grads = [normal(4, seed=seed) for seed in range(3)]
    past, u = torch.zeros(4, 4).double(), 0.0
    for g in grads:
        past += g[:, None] * g
        values, vectors = torch.linalg.eigh(past + 1e-3 * torch.eye(4))
        u = u + vectors @ (vectors.T @ g / values.sqrt())
    assert torch.allclose(stepped("shampoo", grads, eps=1e-3, refresh_steps=1), u, rtol=1e-10)


def test_shampoos_roots_are_those_of_the_last_refresh():
    """Between two refreshes u is linear in g. A refresh counts the gradient of its own step."""
    w = torch.zeros(3, 3, dtype=torch.float64)
    optimizer = Optimizer([w], "shampoo", lr=1.0, refresh_steps=2)
    roots = []
    for t in range(1, 5):
        w.grad = normal(3, 3, seed=t)
        optimizer.step()
        state = optimizer.state[w]
        roots.append(state["pl"].clone())
        if t % 2:    # the rule has added the newest gradient by now
            pl, pr, nothing = torch.zeros_like(roots[0]), torch.zeros_like(roots[0]), torch.zeros(3, 3)
            shampoo_roots(state["gl"], state["gr"], pl, pr, nothing.double(), 1, eps=1e-6)
            assert torch.allclose(pl, state["pl"], rtol=1e-9)
    assert torch.equal(roots[0], roots[1]) and torch.equal(roots[2], roots[3])
    assert not torch.allclose(roots[1], roots[2])


@pytest.mark.parametrize("name", ["shampoo", "kl_soap"])
def test_blocks_are_matrices_of_their_own(name):
    grads = [normal(12, 4, seed=seed) for seed in range(4)]
    apart = torch.cat([stepped(name, list(parts)) for parts in zip(*(g.chunk(3) for g in grads))])
    assert torch.allclose(stepped(name, grads, blocks=3), apart, rtol=1e-10)
    assert not torch.allclose(stepped(name, grads), apart, rtol=0.1)


def test_kl_soap_divides_each_matrix_by_the_other():
    """After two steps, from the formulas."""
    first, second, b2 = normal(4, 6), normal(4, 6, seed=1), 0.98
    w = torch.zeros(4, 6, dtype=torch.float64)
    optimizer = Optimizer([w], "kl_soap", lr=1.0)
    for g in (first, second):
        w.grad = g.clone()
        optimizer.step()
    state = {name: x[0] for name, x in optimizer.state[w].items() if torch.is_tensor(x) and x.dim() == 3}
    gl = (1 - b2) * (b2 * first @ first.T / 6 + second @ second.T / 0.1 / 6)    # the basis is complete
    gr = (1 - b2) * (b2 * first.T @ first / 4 + second.T @ second / 0.1 / 4)
    assert torch.allclose(state["gl"], gl) and torch.allclose(state["gr"], gr)
    turned = (state["ql"].T @ second @ state["qr"]).square() / 0.1
    assert torch.allclose(state["dl"], b2 * 0.1 + (1 - b2) * turned.mean(1, keepdim=True))
    assert torch.allclose(state["dr"], b2 * 0.1 + (1 - b2) * turned.mean(0, keepdim=True))


def test_kl_soaps_eigenvalues_stay_within_their_limits():
    """With tiny gradients they would fall towards 0. For sides below 10 the limit is 1/100."""
    w = weights()
    optimizer = built("kl_soap", w)
    run(optimizer, w, [{role: 1e-9 * g for role, g in grads.items()} for grads in gradients(200)])
    for values in (optimizer.state[w["mlp_up"]][name] for name in ("dl", "dr")):
        assert torch.allclose(values, torch.full_like(values, 0.01), rtol=1e-6)
