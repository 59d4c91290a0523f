"""Every rule, variant and modifier is a case. The tests of rules share them, and also share the small weights
and gradients of lessons/properties.py."""
import optim
import zoo
from lessons.properties import (SHAPES, gradients, groups_of, measuring_steps, run, weights,    # noqa: F401
                                zeros)

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
OPTIONS = {    # blocks that divide the small tensors; two blocks of layers, and one that holds no tensor
    "adamw_8bit": dict(block_size=4, rest_lr=0.5), "muon_8bit": dict(block_size=4, rest_lr=0.5),
    "badam": dict(layers=1, switch_steps=3)}
ZOO_CASES = {name: (name, OPTIONS.get(name, dict(rest_lr=0.5) if rule.rest else {}))
             for name, rule in ZOO_RULES.items()} | {
    f"adamw+{name}": ("adamw", dict(modify=name)) for name in zoo.MODIFIERS} | {
    "muon+cautious+cautious_decay": ("muon", dict(modify="cautious+cautious_decay", rest_lr=0.5))}
CASES = PAPER_CASES | ZOO_CASES

# Cases that lack a property, as published, with the reason. The docstring of the rule says so, too.
EXEMPT = [
    ("the_first_step_moves", "muon+cautious+cautious_decay",
     "cautious leaves out weights where Muon disagrees with g"),
    ("the_first_step_moves", "badam", "it moves one block of layers at a time"),
    ("zero_gradient_moves_nothing", "adamw+norm_loss", "it pulls weights to the norm 1 without any gradient"),
    ("zero_gradient_with_decay_multiplies", "adamw+trust_ratio", "it rescales the decay, too"),
    ("zero_gradient_with_decay_multiplies", "adamw+norm_loss", "it pulls weights to the norm 1"),
    ("zero_gradient_with_decay_multiplies", "adamw+hyperball", "it takes the decay back, so the norm stays"),
    ("zero_gradient_with_decay_multiplies", "adamw+stable_decay", "it divides the decay by the gradients"),
    ("zero_gradient_with_decay_multiplies", "badam", "only the block that moves decays"),
    ("zero_gradient_with_decay_multiplies", "adalomo", "it multiplies the decay by the size of the tensor"),
    ("doubling_the_lr_doubles_the_first_step", "adamw+hyperball", "its step ends on a sphere"),
    ("momentum_matters", "anolog", "it has no beta1: its momentum follows from t"),
    ("momentum_matters", "adalomo", "it has no momentum"),
    ("momentum_matters", "shampoo", "Algorithm 1 has no momentum"),
    ("zero_gradient_moves_nothing", "adamw+l2", "it adds the weight to the gradient"),
    ("zero_gradient_with_decay_multiplies", "adamw+l2", "it adds the weight to the gradient"),
    ("zero_gradient_with_decay_multiplies", "adan", "it divides weights by 1 + lr weight_decay"),
    ("momentum_matters", "adagrad", "it has no momentum"),
    ("momentum_matters", "rmsprop", "it has no momentum"),
    ("momentum_matters", "rmsprop_centered", "it has no momentum"),
    ("momentum_matters", "adadelta", "it has no momentum"),
    ("momentum_matters", "rprop", "it has no momentum"),
    ("momentum_matters", "sign_sgd", "it has no momentum"),
    ("doubling_the_lr_doubles_the_first_step", "adabound",
     "a larger lr does not move the bounds around final_lr"),
    ("doubling_the_lr_doubles_the_first_step", "amsbound",
     "a larger lr does not move the bounds around final_lr"),
    ("zero_gradient_with_decay_multiplies", "adamp",
     "a gradient of 0 has no part along the weights, so it takes wd_ratio of the decay"),
    ("zero_gradient_with_decay_multiplies", "sgdp",
     "the same, and its decay is 1 / (1 - beta1) times as strong"),
    ("zero_gradient_with_decay_multiplies", "fadam",
     "the decay acts on the weights divided by the root of v"),
    ("zero_gradient_with_decay_multiplies", "innaprop",
     "psi does not decay, so a part of each decay comes back"),
    ("momentum_matters", "innaprop", "it has no beta1: its momentum follows from lr, viscous and newton"),
    ("zero_gradient_with_decay_multiplies", "core", "a weight decays in proportion to its step"),
    ("doubling_the_lr_doubles_the_first_step", "core",
     "the peak lr is only the first length of a step, which has bounds of its own"),
    ("zero_gradient_moves_nothing", "gravity", "its velocities start at random numbers"),
    ("zero_gradient_with_decay_multiplies", "gravity", "its velocities start at random numbers"),
    ("doubling_the_lr_doubles_the_first_step", "gravity",
     "its velocities start at random numbers divided by the lr"),
    ("doubling_the_lr_doubles_the_first_step", "nag_gs",
     "its first step is in proportion to the square of lr"),
    ("momentum_matters", "nag_gs", "it has no beta1: mu and gamma0 take its place"),
    ("momentum_matters", "adafactor_original", "it has no momentum"),
    ("zero_gradient_with_decay_multiplies", "lars", "the decay goes through its momentum, with the gradient"),
    ("zero_gradient_with_decay_multiplies", "adamw+blockwise_lr", "it multiplies the decay, too"),
    ("zero_gradient_with_decay_multiplies", "schedule_free_adamw",
     "as published, the decay acts on z, and the weight follows z"),
    ("zero_gradient_with_decay_multiplies", "schedule_free_sgd",
     "as published, the decay acts on z, and the weight follows z"),
    ("momentum_matters", "schedule_free_adamw",
     "it needs a beta1 above 0: with 0 nothing would remember the mean"),
    ("momentum_matters", "schedule_free_sgd",
     "it needs a beta1 above 0: with 0 nothing would remember the mean"),
]

# What a case needs so that each of its hyperparameters matters, and values that matter where 0.5 does not.
NEEDS = {"adamw+adagc": dict(adagc_warmup_steps=4), "adamw+stable_decay": dict(weight_decay=0.1),
         **{name: dict(weight_decay=0.1, delta=8.0) for name in ("adamp", "sgdp")}}
OTHER_VALUES = dict(agc_eps=5.0, mgup_share=0.25, lookahead_alpha=0.25,
                    smallest=2.0)    # the root mean square of the weights is about 1


def cases_with(which: str) -> list:
    """The cases that have a property."""
    exempt = {case for name, case, reason in EXEMPT if name == which}
    assert exempt <= set(CASES)
    return [case for case in CASES if case not in exempt]


def built(case: str, w: dict, lr: float = 0.1, **more) -> zoo.Optimizer:
    """The optimizer of a case for these weights."""
    name, options = CASES[case]
    return zoo.make(name, [(role, w[role], role) for role in w], lr=lr, **options | more)


def moves_by_itself(optimizer: zoo.Optimizer, role: str, case: str) -> bool:
    """Whether the case's main rule, at its lr, moves the role; in a hybrid the other rule may."""
    return groups_of(optimizer)[role]["rule"].partition("+")[0] != CASES[case][1].get("rest", zoo.find(
        CASES[case][0]).rest)
