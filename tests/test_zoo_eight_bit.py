"""What is special about the rules of zoo/eight_bit.py."""
import numpy as np
import pytest
import torch

import optim
import zoo
from rule_cases import built, gradients, normal, run, weights
from zoo import Optimizer
from zoo.eight_bit import LINEAR, SIGNED, UNSIGNED, decoded, encode
from zoo.table import bytes_per_weight, state_bytes


def through_codes(x, values):
    """What is left of the numbers x, in blocks of 8, after they have been codes."""
    codes = torch.zeros(x.shape, dtype=torch.int8 if values is LINEAR else torch.uint8)
    scale = x.new_zeros(x.numel() // 8, 1)
    encode(codes, x, scale, values)
    return decoded(codes, scale, values)


def test_the_maps_are_those_of_bitsandbytes():
    """The ends of create_dynamic_map of bitsandbytes 0.50.2, and how many values each power of ten has."""
    assert len(SIGNED) == len(UNSIGNED) == 256 and (SIGNED.diff() > 0).all() and (UNSIGNED.diff() > 0).all()
    assert SIGNED[[0, 126, 127, 128, 254, 255]].tolist() == pytest.approx(
        [-0.99296875, -5.5e-7, 0, 5.5e-7, 0.99296875, 1])
    assert UNSIGNED[[0, 1, 2, 254, 255]].tolist() == pytest.approx([0, 3.25e-7, 7.75e-7, 0.996484375, 1])
    for values, count in ((SIGNED, 1), (UNSIGNED, 2)):
        for power in range(-6, 1):
            assert ((values > 10.0 ** (power - 1)) & (values < 10.0**power)).sum() == count
            count *= 2


@pytest.mark.parametrize("values, most", [(SIGNED, 0.0071), (UNSIGNED, 0.0036), (LINEAR, 0.5 / 127)])
def test_the_error_is_at_most_half_the_distance_to_the_next_value(values, most):
    """As a fraction of the largest number of the block, which is kept exactly."""
    x = normal(50, 8) * torch.logspace(-9, 9, 50, dtype=torch.float64)[:, None]
    x = x.abs() if values is UNSIGNED else x
    if values is SIGNED:    # it has 1, but not -1
        x[torch.arange(50), x.abs().argmax(1)] = x.abs().amax(1)
    error, largest = (through_codes(x, values) - x).abs(), x.abs().amax(1, keepdim=True)
    assert 0.9 * most < (error / largest).max() < most
    assert torch.allclose(error[x.abs() == largest] / largest.flatten(), torch.zeros(50).double(), atol=1e-15)
    if values is not LINEAR:    # no value is nearer
        every = values[:, None, None] * largest
        assert torch.allclose(error, (every - x).abs().amin(0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("values", [SIGNED, UNSIGNED, LINEAR])
def test_a_block_of_zeros_stays_zero(values):
    assert not through_codes(torch.zeros(2, 8).double(), values).any()


@pytest.mark.parametrize("name, other, more", [
    ("adamw_8bit", "adamw", dict(eps=1e-8)), ("muon_8bit", "muon", {})])
def test_without_codes_it_is_the_rule_in_32_bits(name, other, more):
    """No tensor here divides into blocks of 5. In blocks of 4 the steps differ a little."""
    ends = []
    for rule, hyper in ((name, dict(block_size=5)), (other, more), (name, dict(block_size=4))):
        w = weights()["mlp_up"]
        start = w.detach().clone()
        run(Optimizer([w], rule, lr=0.1, **hyper), dict(mlp_up=w), gradients(9))
        ends.append(w.detach() - start)
    assert torch.equal(ends[0], ends[1])
    assert 1e-6 < (ends[2] - ends[1]).norm() / ends[1].norm() < 0.05


def test_8_bit_muon_is_its_formula():
    """A restatement in numpy: one block, no code of this project but that of the orthogonal matrix."""
    w = torch.zeros(4, 6, dtype=torch.float64)
    optimizer = Optimizer([w], "muon_8bit", lr=1.0, block_size=24)
    m, end = np.zeros((4, 6)), np.zeros((4, 6))
    for t in range(6):
        w.grad = normal(4, 6, seed=t)
        optimizer.step()
        g, scale = w.grad.numpy(), np.abs(m).max() / 127 or 1.0
        m = 0.95 * np.round(m / scale) * scale + 0.05 * g
        end -= zoo.orthogonal.orthogonal(torch.tensor(0.95 * m + 0.05 * g)[None])[0].numpy()
    assert np.allclose(w.numpy(), end, rtol=0, atol=1e-12)


def test_the_codes_do_not_depend_on_the_size_of_the_gradients():
    """So a running mean has the codes of a running sum."""
    states = []
    for size in (1.0, 1e-12):
        w = torch.zeros(4, 6, dtype=torch.float64)
        optimizer = Optimizer([w], "muon_8bit", lr=1.0, block_size=8)
        for t in range(5):
            w.grad = size * normal(4, 6, seed=t)
            optimizer.step()
        states.append(optimizer.state[w]["m"])
    assert states[0].dtype == torch.int8 and torch.equal(*states)


def test_the_table_counts_bytes():
    assert bytes_per_weight(zoo.RULES["adamw_8bit"]) == 2 + 2 * 4 / 256
    assert bytes_per_weight(zoo.RULES["muon_8bit"]) == 1 + 4 / 2048
    w = torch.zeros(64, 64)
    optimizer = Optimizer([w], "adamw_8bit", lr=0.1)
    w.grad = torch.ones(64, 64)
    optimizer.step()
    tensors = [x for x in optimizer.state[w].values() if torch.is_tensor(x)]
    assert sum(x.numel() * x.element_size() for x in tensors) == state_bytes(
        optimizer, optimizer.param_groups[0]) == 2 * 64 * 64 + 2 * 4 * 16


def test_the_optimizer_of_optim_py_keeps_whole_numbers():
    """A rule of your own may do the same without the zoo."""
    def count(w, blocks):
        return w.new_zeros(w.shape, dtype=torch.int16)

    def rule(g, seen: count):
        seen += 1
        return g / seen
    w = torch.zeros(3, dtype=torch.bfloat16)
    optimizer = optim.Optimizer([w], rule, lr=1.0)
    for _ in range(2):
        w.grad = torch.ones_like(w)
        optimizer.step()
    again = optim.Optimizer([w], rule, lr=1.0)
    again.load_state_dict(optimizer.state_dict())
    assert w.tolist() == [-1.5] * 3
    assert again.state[w]["seen"].dtype == torch.int16 and again.state[w]["seen"].tolist() == [2] * 3


def test_roles_that_the_authors_keep_in_32_bits():
    w = weights()
    optimizer = built("adamw_8bit", w)
    run(optimizer, w, gradients(1))
    found = {role: optimizer.state[p]["m"].dtype for role, p in w.items()}
    assert {role for role, dtype in found.items() if dtype == torch.uint8} == {"qkv", "mlp_up", "head"}
