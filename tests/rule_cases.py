"""Every rule, variant and modifier is a case. The tests of rules share them, and also share the small weights
and gradients of zoo/properties.py."""
import torch

import optim
import zoo
from zoo.properties import (EXEMPT, SHAPES, gradients, groups_of, measuring_steps, run,    # noqa: F401
                            weights, zeros)

HYBRID = dict(rest="sgd_ema", rest_lr=0.5)
PAPER_CASES = {    # name of a case: (optimizer, options)
    **{name: (name, {}) for name in optim.RULES},
    "rows_everywhere": ("adalayer", dict(rows="embed+qkv+matrix+norm+head")),
    "rows_head_embed": ("adalayer", dict(rows="head+embed")),
    "hybrid_head": ("adalayer_star", dict(adaptive="head", **HYBRID)),
    "hybrid_head_norm": ("adalayer_star", dict(adaptive="norm+head", **HYBRID)),
    "hybrid_adafactor": ("adafactor", dict(adaptive="head+norm", **HYBRID)),
    "hybrid_reverse": ("adalayer_star", dict(adaptive="qkv+matrix", **HYBRID)),
    "hybrid_adasgd": ("adalayer_star", dict(adaptive="head+norm", rest="adasgd", rest_lr=0.5)),
    "hybrid_norms_untrained": ("adalayer_star", dict(adaptive="head", untrained="norm", **HYBRID)),
    "norms_untrained": ("adamw", dict(untrained="norm")),
    "frozen": ("adalayer_star", dict(freeze_steps=2, updating="head+norm")),
    "frozen_all": ("adalayer", dict(freeze_steps=2, updating="none")),
    "frozen_norms_untrained": ("adalayer_star", dict(freeze_steps=2, updating="head", untrained="norm")),
}
ZOO_RULES = {name: rule for name, rule in zoo.RULES.items() if name not in optim.RULES}
OPTIONS = {    # blocks that divide the small tensors; layers that all have a turn in 6 steps
    "adamw_8bit": dict(block_size=4, rest_lr=0.5), "muon_8bit": dict(block_size=4, rest_lr=0.5),
    "badam": dict(layers=1, switch_steps=2)}
ZOO_CASES = {name: (name, OPTIONS.get(name, dict(rest_lr=0.5) if rule.rest else {}))
             for name, rule in ZOO_RULES.items()} | {
    f"adamw+{name}": ("adamw", dict(modify=name)) for name in zoo.MODIFIERS} | {
    "muon+cautious+cautious_decay": ("muon", dict(modify="cautious+cautious_decay", rest_lr=0.5))}
CASES = PAPER_CASES | ZOO_CASES

# What a case needs so that each of its hyperparameters matters, and values that matter where 0.5 does not.
NEEDS = {"adamw+adagc": dict(adagc_warmup_steps=4), "adamw+stable_decay": dict(weight_decay=0.1),
         "prodigy": dict(lr=10.0),    # otherwise d stays at d0
         **{name: dict(weight_decay=0.1, delta=8.0) for name in ("adamp", "sgdp")}}
OTHER_VALUES = dict(agc_eps=5.0, mgup_share=0.25, lookahead_alpha=0.25, fading=0.99, switch_steps=3,
                    smallest=2.0)    # the root mean square of the weights is about 1


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normally distributed numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cases_with(which: str) -> list:
    """The cases that have a property."""
    exempt = {case for name, case, reason in EXEMPT if name == which}
    assert exempt <= set(CASES)
    return [case for case in CASES if case not in exempt]


def built(case: str, w: dict, lr: float = 0.1, **more) -> zoo.Optimizer:
    """The optimizer of a case for these weights."""
    name, options = CASES[case]
    named = {role: role for role in w}
    if "layers" in options:    # then the names show which tensors are in a layer
        named |= {role: f"blocks.0.{role}" for role in w if role not in ("embed", "norm", "head")}
    return zoo.make(name, [(named[role], w[role], role) for role in w], lr=lr, **options | more)


def moves_by_itself(optimizer: zoo.Optimizer, role: str, case: str) -> bool:
    """Whether the case's main rule, at its lr, moves the role; in a hybrid the other rule may."""
    return groups_of(optimizer)[role]["rule"].partition("+")[0] != CASES[case][1].get("rest", zoo.find(
        CASES[case][0]).rest)
