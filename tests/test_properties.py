"""The properties that every rule, variant and modifier of the paper and of the zoo must have."""
import functools
import warnings

import pytest
import torch

import optim
import zoo
from zoo import properties
from rule_cases import (CASES, NEEDS, OTHER_VALUES, PAPER_CASES, ZOO_RULES, built, cases_with, gradients,
                        moves_by_itself, run, weights)
from study.audition import optimizer_of_rule
from zoo.frozen import FROZEN
from zoo.rule import ZooRule


# Torch 2.13 cannot compile these for a CPU. A later version may.
SUMS_OF_ROWS = ("lion_group", "adamw+agc", "adamw+centralize", "adamw+norm_loss")


def builder(case):
    """What a property needs: a function that builds the optimizer of a case for some weights."""
    return functools.partial(built, case)


@pytest.mark.parametrize("case", cases_with("zero gradient"))
def test_zero_gradient_moves_nothing(case):
    assert properties.zero_gradient_moves_nothing(builder(case)) == ""


@pytest.mark.parametrize("kind", ["independent", "coupled"])
@pytest.mark.parametrize("case", cases_with("weight decay"))
def test_zero_gradient_with_decay_multiplies(case, kind):
    assert properties.decay_multiplies(builder(case), kind) == ""


@pytest.mark.parametrize("case", cases_with("learning rate"))
def test_doubling_the_lr_doubles_the_first_step(case):
    of_this_rule = functools.partial(moves_by_itself, case=case)
    assert properties.doubling_the_lr_doubles_the_first_step(builder(case), of_this_rule) == ""


@pytest.mark.parametrize("case", cases_with("newest gradient"))
def test_the_first_step_moves(case):
    assert properties.first_step_moves(builder(case)) == ""


@pytest.mark.parametrize("case", cases_with("downhill"))
def test_the_first_step_goes_downhill(case):
    assert properties.first_step_goes_downhill(builder(case)) == ""


def uphill(g, m, *, beta1=0.9):
    m.lerp_(g, 1 - beta1)
    return -m


def late(g, m, t, factor: optim.scalar, *, beta1=0.9, power=2.0, refresh_steps=20):
    """Has a hyperparameter of at least 1, another that acts seldom, and eight steps that only measure."""
    m.lerp_(g, 1 - beta1)
    return torch.where(t > 8, factor * m.sign() * m.abs() ** (1 / power), 0.0)


def double(factor):
    factor.add_(1)


def test_a_new_rule_is_judged_by_all_properties():
    def first_fault(rule):
        build = functools.partial(optimizer_of_rule, rule)
        faults = ((name, check(build, rule)) for name, check in properties.PROPERTIES.items())
        return next(((name, fault) for name, fault in faults if fault), None)

    assert first_fault(ZooRule(uphill))[0] == "downhill"
    bounds = dict(power=(1, 9), refresh_steps=(1, 9999))
    assert first_fault(ZooRule(late, measures=8, refresh=double, bounds=bounds)) is None


@pytest.mark.parametrize("case", cases_with("momentum"))
def test_momentum_matters(case):
    name, options = CASES[case]
    rest = dict(rest_beta1=0.0) if options.get("rest") or zoo.find(name).rest else {}
    assert properties.momentum_matters(builder(case), **rest) == ""


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
    assert torch.stack(ends).isfinite().all() and not torch.equal(*ends)


@pytest.mark.parametrize("case, key", [
    *((name, key) for name, rule in ZOO_RULES.items() for key in rule.hyper),
    *((f"adamw+{name}", key) for name, modifier in zoo.MODIFIERS.items() for key in modifier.hyper)])
def test_every_hyperparameter_of_the_zoo_matters(case, key):
    name, options = CASES[case]
    rule = zoo.modified(name, options.get("modify", ""))
    default, (low, _) = rule.hyper[key], rule.bounds.get(key, (0, None))
    usual = 2 if type(default) is int else 0.25 if default == 0.5 else low + 0.5
    value = OTHER_VALUES.get(key, usual)
    assert properties.hyperparameter_matters(builder(case), key, value, **NEEDS.get(case, {})) == ""


@pytest.mark.parametrize("case", CASES)
def test_a_groups_own_lr_is_honoured(case):
    assert properties.own_lr_is_honoured(builder(case)) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_save_and_load_resumes_bit_for_bit(case, dtype):
    more = dict(refresh_steps=2) if zoo.find(CASES[case][0]).refresh else {}
    assert properties.resume_is_exact(functools.partial(built, case, **more), dtype) == ""


@pytest.mark.gpu
@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.parametrize("case", [
    *(case for case in CASES if case not in PAPER_CASES),
    "lion", "frozen", "hybrid_adasgd", "norms_untrained"])
def test_compiled_is_eager_to_rounding_and_compiles_once(case, device):
    optim.compiled.cache_clear()
    torch._dynamo.utils.counters.clear()
    zoo.NOT_COMPILED.clear()
    with warnings.catch_warnings():
        if case not in SUMS_OF_ROWS:
            warnings.simplefilter("error")
        assert properties.compiled_is_eager(builder(case), device) == ""
    if not zoo.NOT_COMPILED:
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert graphs == optim.compiled.cache_info().currsize > 0


def test_compiled_code_that_gives_nan_is_a_fault(monkeypatch):
    def gives_nan(function, inputs, hyper, weights_of_kind, *rest):
        for p in weights_of_kind:
            p.fill_(float("nan"))
    monkeypatch.setattr(zoo.Optimizer, "compiled", staticmethod(lambda *key: gives_nan))
    assert properties.compiled_is_eager(builder("signum")).startswith("compiled, embed ends nan away from ")


def test_a_rule_that_cannot_be_compiled_runs_eagerly(monkeypatch):
    """Torch's compiler fails here. It is tried once, and the result is right."""
    def fails(*arguments):
        calls.append(arguments)
        raise torch._inductor.exc.InductorError(KeyError("buf8"), None)

    calls = []
    monkeypatch.setattr(optim, "compiled", lambda *key: fails)
    monkeypatch.setattr(zoo, "NOT_COMPILED", {})
    weights_of = [weights(), weights()]
    for w, compile in zip(weights_of, (True, False)):
        roles = [(role, p, role) for role, p in w.items()]
        optimizer = zoo.make("lion_group", roles, lr=0.1, compile=compile)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(optimizer, w, gradients())
        assert len(calls) == 1 and len(caught) == compile
        assert not compile or "lion_group: torch.compile fails (KeyError: 'buf8')" in str(caught[0].message)
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights_of)))
