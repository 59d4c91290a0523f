"""Seven properties that every rule, variant and modifier of the paper and of the zoo must have."""
import io

import pytest
import torch

import optim
import zoo
from rule_cases import (CASES, PAPER_CASES, ZOO_RULES, built, gradients, groups_of, measuring_steps,
                        moves_by_itself, run, weights, zeros)
from zoo.frozen import FROZEN


@pytest.mark.parametrize("case", CASES)
def test_zero_gradient_moves_nothing(case):
    w, start = weights(), weights()
    run(built(case, w), w, [zeros()] * 4)
    assert all(torch.equal(w[role], start[role]) for role in w)


@pytest.mark.parametrize("kind", ["independent", "coupled"])
@pytest.mark.parametrize("case", [case for case in CASES if "trust_ratio" not in case])    # it rescales
def test_zero_gradient_with_decay_multiplies(case, kind):
    w, start = weights(), weights()
    optimizer = built(case, w, weight_decay=0.3, weight_decay_kind=kind)
    groups, expected = groups_of(optimizer), {role: 1.0 for role in w}
    for t, scale in enumerate((1.0, 0.5, 0.25, 0.0), 1):
        for group in optimizer.param_groups:
            group["lr"] = group["lr_peak"] * scale
        run(optimizer, w, [zeros()])
        for role, group in groups.items():
            if t > optimizer.measuring_steps(group):    # a step that only measures does not decay
                expected[role] *= 1 - 0.3 * (scale if kind == "independent" else group["lr"])
    for role in w:
        assert torch.allclose(w[role], start[role] * expected[role], rtol=1e-14, atol=0), role
        assert (expected[role] == 1.0) == (role not in groups)    # only the untrained keep their size


@pytest.mark.parametrize("case", CASES)
def test_doubling_the_lr_doubles_the_first_step(case):
    moved = []
    for factor in (1, 2):
        w, start = weights(), weights()
        optimizer = built(case, w, lr=0.1 * factor)
        run(optimizer, w, gradients()[:measuring_steps(optimizer) + 1])
        moved.append({role: w[role] - start[role] for role in w})
    for role in groups_of(optimizer):
        factor = 2 if moves_by_itself(optimizer, role, case) else 1    # the other rule's lr stayed
        assert torch.allclose(moved[1][role], factor * moved[0][role], rtol=1e-12, atol=1e-15), role


@pytest.mark.parametrize("case", [case for case in CASES if "muon+cautious" not in case])
def test_the_first_step_moves(case):
    """The first step that does not only measure. Cautious leaves out weights where Muon disagrees with g."""
    w, start = weights(), weights()
    optimizer = built(case, w)
    trained, measuring = groups_of(optimizer), measuring_steps(optimizer)
    run(optimizer, w, gradients()[:measuring])
    assert all(torch.equal(w[role], start[role]) for role in w)
    run(optimizer, w, gradients()[measuring:measuring + 1])
    for role in w:
        assert (w[role] != start[role]).all() if role in trained else torch.equal(w[role], start[role]), role


@pytest.mark.parametrize("case", CASES)
def test_momentum_matters(case):
    ends = []
    for beta1 in (0.9, 0.0):
        w = weights()
        name, options = CASES[case]
        rest = dict(rest_beta1=beta1) if options.get("rest") or zoo.find(name).rest else {}
        optimizer = built(case, w, beta1=beta1, **rest)
        run(optimizer, w, gradients())
        ends.append(w)
    for role in w:
        assert torch.equal(ends[0][role], ends[1][role]) == (role not in groups_of(optimizer)), role


@pytest.mark.parametrize("name, key", [
    *((name, key) for name, rule in optim.RULES.items() for key in rule.hyper),
    *(("frozen", key) for key in FROZEN.hyper)])
def test_every_hyperparameter_of_the_papers_rules_matters(name, key):
    rule = FROZEN if name == "frozen" else zoo.RULES[name]
    default = rule.hyper[key]
    other = {bool: lambda: not default, int: lambda: 2, float: lambda: 0.5}[type(default)]()
    base = dict(freeze_steps=1, updating=key == "beta2") if rule is FROZEN else {}
    ends = []
    for value in (base.get(key, default), other):
        w = weights()
        run(zoo.Optimizer(w.values(), rule, lr=0.1, **base | {key: value}), w, gradients())
        ends.append(w["head"])
    assert not torch.equal(*ends)


@pytest.mark.parametrize("case, key", [
    *((name, key) for name, rule in ZOO_RULES.items() for key in rule.hyper),
    *((f"adamw+{name}", key) for name, modifier in zoo.MODIFIERS.items() for key in modifier.hyper)])
def test_every_hyperparameter_of_the_zoo_matters(case, key):
    base = dict(adagc_warmup_steps=4) if "adagc" in case else {}
    name, options = CASES[case]
    default = zoo.modified(name, options.get("modify", "")).hyper[key]
    ends = []
    for value in ({}, {key: 2 if type(default) is int else 0.5}):
        w = weights()
        run(built(case, w, **base | value), w, gradients(12))
        ends.append(w)
    assert not all(torch.equal(ends[0][role], ends[1][role]) for role in w)


@pytest.mark.parametrize("case", CASES)
def test_a_groups_own_lr_is_honoured(case):
    for i in range(len(built(case, weights()).param_groups)):
        w, start = weights(), weights()
        optimizer = built(case, w)
        optimizer.param_groups[i]["lr"] = 0.0
        run(optimizer, w, gradients())
        for role, group in groups_of(optimizer).items():
            assert torch.equal(w[role], start[role]) == (group is optimizer.param_groups[i]), role


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_save_and_load_resumes_bit_for_bit(case, dtype):
    more = dict(refresh_steps=2) if zoo.find(CASES[case][0]).refresh else {}
    grads, w = gradients(dtype=dtype), weights(dtype)
    optimizer = built(case, w, weight_decay=0.1, **more)
    run(optimizer, w, grads[:3])
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), {role: p.detach() for role, p in w.items()}), file)
    file.seek(0)
    state, values = torch.load(file, weights_only=True)
    again = {role: value.clone().requires_grad_() for role, value in values.items()}
    resumed = built(case, again, weight_decay=0.1, **more)
    resumed.load_state_dict(state)
    run(optimizer, w, grads[3:])
    run(resumed, again, grads[3:])
    assert all(torch.equal(w[role], again[role]) for role in w)
    for p, q in zip(w.values(), again.values()):
        for key, value in optimizer.state[p].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(resumed.state[q][key]))
            if torch.is_tensor(value):    # fp32 beside bf16 weights: torch's own loader would cast
                assert value.dtype == resumed.state[q][key].dtype == torch.float32


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in PAPER_CASES] +
                         ["lion", "frozen", "hybrid_adasgd", "norms_untrained"])
def test_compiled_is_eager_to_rounding_and_compiles_once(case):
    """In float32, over 12 steps of a schedule: within 2e-5 of the largest distance moved."""
    a, b, start = (weights(torch.float32) for _ in range(3))
    optimizer, eager = built(case, a, compile=True, lr=0.01), built(case, b, lr=0.01)
    optim.compiled.cache_clear()
    torch._dynamo.utils.counters.clear()
    for t, g in enumerate(gradients(12, dtype=torch.float32), 1):
        for one, w in ((optimizer, a), (eager, b)):
            for group in one.param_groups:
                group["lr"] = group["lr_peak"] * zoo.schedule(t, 12)
            run(one, w, [g])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == optim.compiled.cache_info().currsize > 0
    for role in a:
        assert (a[role] - b[role]).abs().max() <= 2e-5 * (b[role] - start[role]).abs().max(), role
