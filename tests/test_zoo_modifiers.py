"""What is special about the modifiers of zoo/more_modifiers.py, beside their golden numbers."""
import math

import numpy as np
import pytest
import torch

import zoo
from golden_cases import FOLDER, golden_steps, golden_weights, share_off
from rule_cases import gradients, run, weights
from zoo import Optimizer
from zoo.more_modifiers import norms_of_rows
from zoo.orthogonal import matrices, orthogonal
from zoo.rule import ModifiedRule, ZooRule

OWN_FILE = np.load(FOLDER / "modifiers.npz")


def trained(rule, grads, w=None, lr=0.1, roles=True, decays=None, **hyper):
    """{role: weights} after one step for each of the gradients. lr: a number, or one for each step.

    decays: the weight decay and its kind, as a dict."""
    w = weights() if w is None else w
    lrs = [lr] * len(grads) if isinstance(lr, float) else lr
    groups = [dict(params=[(role, p)], roles=[role]) for role, p in w.items()]
    optimizer = Optimizer(groups if roles else w.items(), rule, lr=max(lrs), **decays or {}, **hyper)
    for now, g in zip(lrs, grads):
        for group in optimizer.param_groups:
            group["lr"] = now
        run(optimizer, w, [g])
    return {role: p.detach() for role, p in w.items()}


def assert_close(a, b, tolerance=1e-12):
    assert a.keys() == b.keys()
    for role in a:
        assert torch.allclose(a[role], b[role], rtol=0, atol=tolerance), role


def test_names_of_modifiers_and_rules_differ():
    """Tables and tests tell them apart by their names."""
    assert not zoo.MODIFIERS.keys() & zoo.RULES.keys()


# ---------------------------------------------------------------------------------------------------------
# Changes of the gradient

def test_agc_leaves_no_row_above_its_share():
    """Rows that were below it, and the output head, stay as they are."""
    w = weights()
    g = {role: x * torch.logspace(-4, 2, len(x), dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 1))
         for role, x in gradients(1)[0].items()}
    for role in w:
        clipped = zoo.MODIFIERS["agc"].function(g[role], w[role].detach(), role, agc_clip=0.01, agc_eps=1e-3)
        if role == "head":
            assert torch.equal(clipped, g[role])
            continue
        ratio = norms_of_rows(clipped) / norms_of_rows(w[role].detach())
        was_below = norms_of_rows(g[role]) <= 0.01 * norms_of_rows(w[role].detach())
        assert ratio.max().item() == pytest.approx(0.01) or was_below.all()
        stays = (clipped == g[role]).all(-1)
        assert torch.equal(stays, was_below.reshape(stays.shape))
        assert was_below.dim() == 0 or 0 < was_below.sum() < len(was_below)


def test_agc_lets_weights_of_zero_move():
    w = torch.zeros(2, 3, dtype=torch.float64)
    g = torch.ones_like(w)
    clipped = zoo.MODIFIERS["agc"].function(g, w, None, agc_clip=0.01, agc_eps=1e-3)
    assert torch.allclose(clipped, g * 1e-5 / math.sqrt(3), rtol=1e-12)


def test_centralize_keeps_the_sums_of_rows_under_sgd():
    """It does not under Adam, and vectors are not changed."""
    start, plain, sgd, adam = weights(), *(trained(zoo.modified(rule, modify), gradients(), lr=0.01)
                                           for rule, modify in (("sgd", ""), ("sgd", "centralize"),
                                                                ("adamw", "centralize")))
    for role in start:
        if role == "norm":
            assert torch.equal(sgd[role], plain[role])
            continue
        sums = start[role].detach().sum(1)
        assert torch.allclose(sgd[role].sum(1), sums, rtol=0, atol=1e-13)
        assert not torch.allclose(adam[role].sum(1), sums, rtol=0, atol=1e-3)
        assert not torch.equal(sgd[role], start[role])


def test_adamw_with_mars_g_is_the_rule_mars():
    """Also with a decay and an lr that changes; the gradients are above and below the norm 1."""
    grads = [{role: x * 10.0 ** (t % 3 - 1) for role, x in g.items()} for t, g in enumerate(gradients(9))]
    lrs = [0.1 * 0.8**t for t in range(9)]
    for decays in ({}, dict(weight_decay=0.3)):
        ours = trained(zoo.modified("adamw", "mars_g"), grads, lr=lrs, decays=decays,
                       beta1=0.95, beta2=0.99, eps=1e-8)
        assert_close(ours, trained("mars", grads, lr=lrs, decays=decays))


def mars_shampoo(g, m, *, beta1=0.95):
    """Muon without Nesterov's step. It adds up what muon averages, which only matters beside the 1e-7 that
    orthogonal() adds to a norm."""
    m.lerp_(g, 1 - beta1)
    o = orthogonal(matrices(m / (1 - beta1), 1))
    return max(1, o.shape[1] / o.shape[2]) ** 0.5 * o.reshape(g.shape)


def matrix_of_mars_m(g, m, *, beta1=0.95):
    m.lerp_(g, 1 - beta1)
    return 0.2 * max(g.shape) ** 0.5 * orthogonal(matrices(m, 1)).reshape(g.shape)


@pytest.mark.parametrize("suffix, decay, scale", [("", 0.0, 1.0), ("_decay", 0.1, 1.0),
                                                  ("_small", 0.0, 1e-4)])
@pytest.mark.parametrize("case, function", [("mars_shampoo", mars_shampoo), ("mars_m", matrix_of_mars_m)])
def test_mars_g_gives_the_other_forms_of_mars(case, function, suffix, decay, scale):
    """MARS-Shampoo and MARS-M are the modifier on a heavy-ball Muon. MARS-Lion is a golden case of signum."""
    w = golden_weights(("tall", "wide", "square"))
    rule = ModifiedRule(ZooRule(function), zoo.find_modifiers("mars_g"))
    optimizer = Optimizer(w.items(), rule, lr=0.01, weight_decay=decay)
    for t in golden_steps(w, optimizer, scale):
        for name, p in w.items() if t in (3, 25) else ():
            assert share_off(p, OWN_FILE[f"{case}{suffix}/{t}/{name}"], name) <= 1e-12, (t, name)


def test_mars_without_gamma_only_clips():
    small = [{role: x * 1e-3 for role, x in g.items()} for g in gradients()]
    assert_close(trained(zoo.modified("adamw", "mars_g"), small, mars_g_gamma=0.0), trained("adamw", small))


def test_positive_negative_without_mix_is_two_means_in_turn():
    """Restated in plain sums: odd and even steps have means of their own."""
    grads = gradients(7)
    ours = trained(zoo.modified("sgd", "positive_negative"), grads, beta1=0.0, positive_negative_mix=0.0)
    for role, w in weights().items():
        w, means = w.detach().clone(), [0.0, 0.0]
        for t, g in enumerate(grads):
            means[t % 2] = 0.81 * means[t % 2] + 0.19 * g[role]
            w -= 0.1 * means[t % 2]
        assert torch.allclose(ours[role], w, rtol=0, atol=1e-12), role


# ---------------------------------------------------------------------------------------------------------
# Changes of the update

def test_cautious_lion_is_cautious_for_large_tensors():
    draw = torch.Generator().manual_seed(0)
    u, g = torch.randn(2, 300, 300, generator=draw, dtype=torch.float64)
    a, b = (zoo.MODIFIERS[name].function(u, g) for name in ("cautious", "cautious_lion"))
    assert torch.allclose(a, b, rtol=1e-4) and not torch.allclose(a, b, rtol=1e-6)
    u, g = torch.tensor([1.0, 1.0]), torch.tensor([3.0, -3.0])    # one of two weights remains
    a, b = (zoo.MODIFIERS[name].function(u, g) for name in ("cautious", "cautious_lion"))
    assert a.tolist() == [2, 0] and b.tolist() == [1, 0]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_mgup_enlarges_a_share(share):
    draw = torch.Generator().manual_seed(0)
    u, g = torch.randn(2, 10, 10, generator=draw, dtype=torch.float64)
    changed = zoo.MODIFIERS["mgup"].function(u, g, mgup_share=share, mgup_up=2.0, mgup_down=0.1) / u
    up = torch.isclose(changed, torch.tensor(2.0).double(), rtol=1e-14)
    assert up.sum() == round(100 * share)
    assert torch.allclose(changed[~up], torch.tensor(0.1).double(), rtol=1e-14)
    assert (u * g)[up].min() > (u * g)[~up].max()


def test_mgup_treats_ties_alike():
    u, g = torch.ones(6, dtype=torch.float64), torch.tensor([3.0, 0, 0, 0, 0, -1]).double()
    changed = zoo.MODIFIERS["mgup"].function(u, g, mgup_share=0.5, mgup_up=2.0, mgup_down=0.1)
    assert changed.tolist() == [2, 2, 2, 2, 2, 0.1]
    one = zoo.MODIFIERS["mgup"].function(u[:1], g[:1], mgup_share=0.5, mgup_up=2.0, mgup_down=0.1)
    assert one.tolist() == [2]


def test_update_floor_lifts_each_of_q_k_v_by_itself():
    """Embedding, head and vectors stay as they are."""
    w = torch.ones(6, 4, dtype=torch.float64)
    u = torch.cat([torch.full((2, 4), x, dtype=torch.float64) for x in (0.01, 0.3, 0.5)])
    floor = zoo.MODIFIERS["update_floor"].function
    lifted = floor(u, w, 3, "qkv", update_floor_ratio=0.35)
    assert torch.allclose(lifted[::2, 0], torch.tensor([0.35, 0.35, 0.5]).double(), rtol=1e-14)
    whole = floor(u, w, 1, None, update_floor_ratio=0.35)
    assert (whole.norm() / w.norm()).item() == pytest.approx(max(0.35, (u.norm() / w.norm()).item()))
    for role in ("embed", "head"):
        assert floor(u, w, 1, role, update_floor_ratio=9.0) is u
    assert torch.equal(floor(u[0], w[0], 1, "norm", update_floor_ratio=9.0), u[0])


@pytest.mark.parametrize("decays", [{}, dict(weight_decay=0.5), dict(weight_decay=0.5,
                                                                    weight_decay_kind="independent")])
def test_hyperball_keeps_norms_and_turns_by_lr(decays):
    """Each of q, k, v by itself. A decay has no effect, alone or with cautious_decay. The embedding and
    vectors move as without the modifier."""
    rule = zoo.modified("adamw", "hyperball")
    w = weights()
    blocks = {role: 3 if role == "qkv" else 1 for role in w}
    groups = [dict(params=[(role, p)], roles=[role], blocks=[blocks[role]]) for role, p in w.items()]
    optimizer, start = Optimizer(groups, rule, lr=0.01, **decays), weights()
    before = {}
    for g in gradients(20):
        before = {role: p.detach().clone() for role, p in w.items()}
        run(optimizer, w, [g])
    plain = trained("adamw", gradients(20), lr=0.01, decays=decays)
    for role in w:
        if role in ("embed", "norm"):
            assert torch.allclose(w[role], plain[role], rtol=0, atol=1e-12)
            continue
        for new, old, first in zip(*(x[role].detach().chunk(blocks[role]) for x in (w, before, start))):
            assert new.norm().item() == pytest.approx(first.norm().item(), rel=1e-12)
            angle = math.acos(((new * old).sum() / new.norm() / old.norm()).item())
            assert angle < 0.01001 and angle > 0.005
    without = trained(rule, gradients(20), lr=0.01)
    both = trained(zoo.modified("adamw", "hyperball+cautious_decay"), gradients(20), lr=0.01, decays=decays)
    assert_close({role: both[role] for role in ("mlp_up", "head")},
                 {role: without[role] for role in ("mlp_up", "head")})


@pytest.mark.parametrize("name", ["hyperball", "update_floor"])
def test_a_matrix_whose_rows_are_blocks_is_one_matrix(name):
    """As in Adalayer with rows, where a row has a second moment of its own."""
    draw = torch.Generator().manual_seed(0)
    w, u = torch.randn(2, 4, 5, generator=draw, dtype=torch.float64)
    one, line = torch.ones((), dtype=torch.float64), zoo.MODIFIERS[name]
    given = dict(u=u, w=w, decay=one, lr=0.1 * one)

    def changed(blocks, role=None):
        values = given | dict(blocks=blocks, role=role)
        return line.function(*(values[key] for key in line.inputs), **{key: 2.0 for key in line.hyper})
    assert torch.equal(changed(4), changed(1)) and not torch.allclose(changed(2), changed(1))
    w, u = torch.randn(2, 6, 5, generator=draw, dtype=torch.float64)
    given |= dict(u=u, w=w)
    assert torch.equal(changed(6, "qkv"), changed(3)) and not torch.allclose(changed(6), changed(3))


def test_a_modifier_that_asks_for_blocks_leaves_those_of_the_rule_alone():
    """update_floor leaves a vector as it is, and Adalayer keeps a second moment for each of its numbers."""
    for modify in ("", "update_floor"):
        norm = ("norm", torch.ones(4), "norm")
        optimizer = zoo.make("adalayer", [norm], lr=0.1, rows="norm", modify=modify or None)
        assert optimizer.param_groups[0]["blocks"] == [4]


def test_hyperball_leaves_a_matrix_of_zeros():
    w = dict(matrix=torch.zeros(3, 3, dtype=torch.float64))
    ends = trained(zoo.modified("adamw", "hyperball"), [dict(matrix=torch.ones(3, 3))] * 3, w=w)
    assert not ends["matrix"].any()


@pytest.mark.parametrize("modify", ["lookahead", "trust_ratio+lookahead", "lookahead+trust_ratio",
                                    "norm_loss+lookahead", "cautious_decay+lookahead"])
def test_lookahead_in_plain_steps(modify):
    """The rule with the other modifiers makes five steps, and then the weights go back half of the way. Its
    place in the list of modifiers does not matter."""
    grads, lrs = gradients(12), [0.1 * 0.9**t for t in range(12)]
    decays = dict(weight_decay=0.3)
    ours = trained(zoo.modified("adamw", modify), grads, lr=lrs, decays=decays)
    others = "+".join(name for name in modify.split("+") if name != "lookahead")
    w = weights()
    groups = [dict(params=[(role, p)], roles=[role]) for role, p in w.items()]
    optimizer = Optimizer(groups, zoo.modified("adamw", others), lr=0.1, **decays)
    slow = {role: p.detach().clone() for role, p in w.items()}
    for t, g in enumerate(grads, 1):
        for group in optimizer.param_groups:
            group["lr"] = lrs[t - 1]
        run(optimizer, w, [g])
        for role in w if t % 5 == 0 else ():
            slow[role] = (slow[role] + w[role].detach()) / 2
            w[role].detach().copy_(slow[role])
    assert_close(ours, {role: p.detach() for role, p in w.items()})


def test_lookahead_with_alpha_1_or_every_step():
    adamw, signum = (zoo.modified(rule, "lookahead") for rule in ("adamw", "signum"))
    grads = gradients(7)
    assert_close(trained(adamw, grads, lookahead_alpha=1.0), trained("adamw", grads))
    assert_close(trained(signum, grads, lookahead_steps=1, lookahead_alpha=0.25),
                 trained("signum", grads, lr=0.025))


@pytest.mark.parametrize("name", [name for name, rule in zoo.RULES.items()
                                  if "decay" in rule.inputs and not rule.evaluated])
def test_trust_ratio_sees_a_decay_that_the_rule_puts_into_u(name):
    """Then the length of the whole step is lr times that of the weights. A tensor that does not move has a
    ratio of 1, such as those of the layers at which BAdam is not."""
    start = {role: p.detach() for role, p in weights().items()}
    w = trained(zoo.modified(name, "trust_ratio"), gradients(1), lr=0.01, decays=dict(weight_decay=3.0))
    ratios = [((w[role] - p).norm() / p.norm()).item() for role, p in start.items()]
    assert {round(ratio, 9) for ratio in ratios if ratio} == {0.01}


def test_norm_loss_with_gradients():
    """Restated: the decay, then the pull of Ranger21 on what the decay has left, then the step."""
    grads, lrs, factor = gradients(9), [0.1 * 0.9**t for t in range(9)], 0.2
    ours = trained(zoo.modified("signum", "norm_loss"), grads, lr=lrs, decays=dict(weight_decay=0.3),
                   norm_loss_factor=factor, beta1=0.0)
    for role, w in weights().items():
        w = w.detach().clone()
        for lr, g in zip(lrs, grads):
            w *= 1 - 0.3 * lr
            w *= 1 - 2 * lr * factor * (1 - 1 / norms_of_rows(w))
            w -= lr * g[role].sign()
        assert torch.allclose(ours[role], w, rtol=0, atol=1e-12), role


def test_norm_loss_ends_at_norm_1():
    still = [{role: torch.zeros_like(p) for role, p in weights().items()}] * 300
    ends = trained(zoo.modified("sgd", "norm_loss"), still, norm_loss_factor=0.5)
    for role, w in ends.items():
        assert torch.allclose(norms_of_rows(w), torch.ones((), dtype=w.dtype), rtol=1e-6), role


def test_cautious_muon_is_muon_where_all_agree():
    """As in the first step. Its mask is not that of the modifier, which leaves weights where they are."""
    g = {role: x for role, x in gradients(1)[0].items() if role in ("qkv", "mlp_up")}

    def ends(rule, steps):
        return trained(rule, steps, w={role: weights()[role] for role in g})
    assert_close(ends("cautious_muon", [g] * 3), ends("muon", [g] * 3), 1e-6)    # k is 1, but for its scale
    turned = [g] * 3 + [{role: -30 * x * (x > 0) for role, x in g.items()}]
    a, b = (ends(rule, turned)["mlp_up"] for rule in ("cautious_muon", "muon"))
    assert not torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("name", ["cautious_muon", "mars_m"])
def test_fused_q_k_v_and_experts_are_matrices_of_their_own(name):
    draw = torch.Generator().manual_seed(0)
    for shape in ((6, 4), (3, 2, 4)):
        whole = torch.randn(shape, generator=draw, dtype=torch.float64)
        parts = [x.reshape(2, 4).clone() for x in whole.chunk(3)]
        together = Optimizer([dict(params=[whole], blocks=[3])], name, lr=0.1)
        apart = Optimizer(parts, name, lr=0.1)
        for _ in range(4):
            whole.grad = torch.randn(shape, generator=draw, dtype=torch.float64)
            for x, g in zip(parts, whole.grad.chunk(3)):
                x.grad = g.reshape(2, 4).clone()
            together.step(), apart.step()
        assert torch.allclose(whole.reshape(6, 4), torch.cat(parts), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------
# Changes of the decay

def test_stable_decay_does_not_see_the_scale_of_the_gradient():
    """AdamW's weights are the same for gradients of another scale, if the decay is scaled alike."""
    rule = zoo.modified("adamw", "stable_decay")
    grads = gradients(9)
    small = [{role: 1e-3 * x for role, x in g.items()} for g in grads]
    ends = [trained(rule, g, roles=False, decays=dict(weight_decay=decay), eps=1e-30)
            for g, decay in ((grads, 0.1), (small, 1e-4), (small, 0.1))]
    assert_close(ends[0], ends[1], 1e-11)
    assert not torch.allclose(ends[0]["embed"], ends[2]["embed"], atol=1e-2)


def test_stable_decay_is_no_decay_without_decay():
    assert_close(trained(zoo.modified("adamw", "stable_decay"), gradients(), roles=False),
                 trained("adamw", gradients()))
