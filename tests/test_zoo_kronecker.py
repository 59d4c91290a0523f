"""What is special about the rules of zoo/kronecker.py."""
import pytest
import torch

from rule_cases import built, gradients, normal, run, weights
from zoo import Optimizer
from zoo.kronecker import lesson_at, lower_norm, shampoo_roots


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


def test_kron_makes_the_gradients_white():
    """The gradients have one direction that is 300 times as large as the others. Steps are similar in all."""
    scale = torch.tensor([300.0, 1, 1, 1]).double()
    w = torch.zeros(4, 4, dtype=torch.float64)
    optimizer = Optimizer([w], "kron", lr=1.0, beta1=0.0, most_rms=1e9)
    moments = torch.zeros(4).double()
    for t in range(700):
        before, w.grad = w.clone(), scale[:, None] * normal(4, 4, seed=t)
        optimizer.step()
        moments += (w - before).square().mean(1) * (t >= 400) / 300
    assert ((0.3 < moments) & (moments < 1.5)).all()


def test_krons_steps_are_at_most_as_long_as_said():
    u = stepped("kron", [1e6 * normal(5, 3)])
    assert u.square().mean().sqrt().item() == pytest.approx(1.1)


def test_kron_learns_in_the_steps_of_its_authors_schedule():
    """kron_torch 0.3.3 updates Q in these many of so many steps, with its default schedule."""
    found = [max(map(lesson_at, range(1, steps + 1))) for steps in (500, 1000, 2000, 4000, 8000)]
    assert found == [500, 750, 1076, 1258, 1375]
    assert [lesson_at(t) for t in (500, 501, 502, 503)] == [500, 501, 0, 502]


def test_krons_random_numbers_depend_on_seed_and_tensor():
    g = normal(4, 4)
    u = stepped("kron", [g, g])
    assert torch.equal(u, stepped("kron", [g, g])) and not torch.equal(u, stepped("kron", [g, g], seed=1))
    a, b = (torch.zeros(4, 4, dtype=torch.float64) for _ in range(2))
    optimizer = Optimizer([a, b], "kron", lr=1.0)
    a.grad, b.grad = g.clone(), g.clone()
    optimizer.step()
    assert not torch.equal(a, b)


def test_kron_balances_its_matrices_and_nothing_else_changes():
    """One run reaches step 101 with matrices that are out of balance; the other is two steps behind. Both
    learn in every second step, and this does not miss the lesson."""
    ends = []
    for first in (100, 98):
        w = torch.zeros(4, 3, dtype=torch.float64)
        optimizer = Optimizer([w], "kron", lr=1.0, precond_lr=0.0, refresh_steps=2)
        state = optimizer.state[w] = optimizer.start(optimizer.param_groups[0], 0)
        state["t"] = first
        state["ql"].mul_(8)
        state["m"].copy_(1e-3 * normal(4, 3))
        w.grad = torch.zeros_like(w)
        optimizer.step()
        ends.append((w * (1 - 0.9 ** (first + 1)), state["ql"].abs().max(), state["qr"].abs().max()))
    assert torch.allclose(ends[0][0], ends[1][0], rtol=1e-12)
    assert ends[1][1] == 8 and ends[1][2] == 1
    assert ends[0][1].item() == pytest.approx(8**0.5) and ends[0][2].item() == pytest.approx(8**0.5)


def test_krons_bound_of_the_norm_is_near_it():
    x = torch.stack([a @ a.T for a in (normal(6, 6), 1e-20 * normal(6, 6, seed=1), torch.zeros(6, 6))])
    bound, exact = lower_norm(x).flatten(), torch.linalg.matrix_norm(x, 2)
    assert (bound[:2] <= exact[:2] * (1 + 1e-12)).all() and (bound[:2] > 0.8 * exact[:2]).all()
    assert 0 < bound[2] < 1e-300


def test_a_side_beyond_8192_has_a_diagonal():
    with torch.device("meta"):
        optimizer = Optimizer([torch.empty(50304, 768), torch.empty(768)], "kron", lr=0.1)
    states = [optimizer.start(optimizer.param_groups[0], i) for i in (0, 1)]
    assert [tuple(state[name].shape) for state in states for name in ("ql", "qr")] == [
        (1, 50304), (1, 768, 768), (1, 0), (1, 768)]
