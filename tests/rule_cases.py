"""Small weights and gradients for every role. Every rule, variant and modifier is a case. The tests of rules
share them."""
import torch

import optim
import zoo

SHAPES = dict(embed=(12, 4), qkv=(12, 4), mlp_up=(4, 6), norm=(4,), head=(12, 4))
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
ZOO_CASES = {name: (name, dict(rest_lr=0.5) if rule.rest else {}) for name, rule in ZOO_RULES.items()} | {
    f"adamw+{name}": ("adamw", dict(modify=name)) for name in zoo.MODIFIERS} | {
    "muon+cautious+cautious_decay": ("muon", dict(modify="cautious+cautious_decay", rest_lr=0.5))}
CASES = PAPER_CASES | ZOO_CASES


def weights(dtype=torch.float64, seed: int = 0) -> dict:
    """{role: a tensor of that role}."""
    draw = torch.Generator().manual_seed(seed)
    return {role: torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
            for role, shape in SHAPES.items()}


def gradients(steps: int = 6, seed: int = 1, dtype=torch.float64) -> list:
    """Gradients of another size for each weight, so that every block has its own second moment."""
    draw = torch.Generator().manual_seed(seed)
    size = {role: torch.rand(shape, generator=draw, dtype=torch.float64) for role, shape in SHAPES.items()}
    return [{role: (torch.randn(shape, generator=draw, dtype=torch.float64) * size[role]).to(dtype)
             for role, shape in SHAPES.items()} for _ in range(steps)]


def zeros() -> dict:
    """Gradients of zero."""
    return {role: torch.zeros(shape) for role, shape in SHAPES.items()}


def built(case: str, w: dict, lr: float = 0.1, **more) -> zoo.Optimizer:
    """The optimizer of a case for these weights."""
    name, options = CASES[case]
    return zoo.make(name, [(role, w[role], role) for role in w], lr=lr, **options | more)


def run(optimizer: zoo.Optimizer, w: dict, grads: list) -> None:
    """One step for each of the gradients."""
    for g in grads:
        for role in w:
            w[role].grad = g[role].to(w[role].dtype, copy=True)
        optimizer.sampled = {p: p.grad.flip(0) for p in w.values()}    # only Sophia asks for them
        optimizer.step()


def groups_of(optimizer: zoo.Optimizer) -> dict:
    """{role: its group}."""
    return {role: group for group in optimizer.param_groups for role in group["roles"]}


def measuring_steps(optimizer: zoo.Optimizer) -> int:
    """How many first steps only measure."""
    return optimizer.measuring_steps(optimizer.param_groups[0])


def moves_by_itself(optimizer: zoo.Optimizer, role: str, case: str) -> bool:
    """Whether the case's main rule, at its lr, moves the role; in a hybrid the other rule may."""
    return groups_of(optimizer)[role]["rule"].partition("+")[0] != CASES[case][1].get("rest", zoo.find(
        CASES[case][0]).rest)
