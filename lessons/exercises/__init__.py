"""
The exercises: each file has a task, a blank and a hint. This table says which rule of the project is right.
"""
from typing import NamedTuple

import torch

import optim
import zoo
from zoo.properties import SHAPES


class Exercise(NamedTuple):
    """What a student's function is compared with.

    reference   the name of the project's rule
    roles       the tensors that the function is for
    settings    settings of the reference, if they differ from its own
    clips       whether the reference gets gradients that are clipped to a norm of `clip`
    others      other values for hyperparameters that the reference does not have
    too_small   what it means if the first step is 1 - beta1 of what it should be
    hyper       the hyperparameters of the function, if they are not those of the reference
    """
    reference: str
    roles: tuple = tuple(SHAPES)
    settings: dict = {}
    clips: bool = False
    others: dict = {}
    too_small: str = "the mean m is not corrected for its start at 0"
    hyper: tuple = ()


EXERCISES = {
    "momentum": Exercise("sgd", settings=dict(beta1=0.9),
                         too_small="m takes 1 - beta1 of the newest gradient, and should take all of it"),
    "signum": Exercise("signum", too_small="the sign must be taken last, of the mean"),
    "lion": Exercise("lion", too_small="the sign must be taken last, of the mean"),
    "adam": Exercise("adamw"),
    "adafactor": Exercise("adafactor", roles=("embed", "mlp_up")),
    "adalayer": Exercise("adalayer"),
    "adalayer_star": Exercise("adalayer_star", roles=("head",)),
    "decoupled": Exercise("adamw", hyper=("wd",)),
    "muon": Exercise("muon", roles=("embed", "mlp_up")),
    "clipping": Exercise("adamw", clips=True, others=dict(clip=3.0), hyper=("clip",)),
}


class Judged(zoo.Optimizer):
    """Leaves the first look at a rule to the grader: some exercises are for matrices only."""
    def try_out(self, rule):
        pass


class Clipped(Judged):
    """Clips the gradients before any rule sees them, as the trainer does."""
    clip = 1.0    # the largest norm

    def check_gradients(self):
        super().check_gradients()
        torch.nn.utils.clip_grad_norm_([p for _, _, p in self.each_parameter()], self.clip)


class Subject(NamedTuple):
    """What is judged: a rule, the exercise that it solves or None, and the class that applies it."""
    rule: zoo.ZooRule
    exercise: Exercise | None = None
    optimizer: type = zoo.Optimizer

    def build(self, w: dict, lr: float = 0.1, **options):
        """The optimizer of this rule for {role: weight}. The head has a group and an lr of its own."""
        if self.exercise and "wd" in self.rule.hyper:    # the rule decays by itself
            options = dict(wd=0.0) | options
            options["wd"] = options.pop("weight_decay", options["wd"])
            options.pop("weight_decay_kind", None)
        return build(self.rule, self.roles(), self.optimizer, w, lr, **options)

    def reference(self, w: dict, lr: float = 0.1, **options):
        """The optimizer that does what the exercise asks for."""
        rule, kind = zoo.RULES[self.exercise.reference], Clipped if self.exercise.clips else Judged
        clip = options.pop("clip", Clipped.clip)
        optimizer = build(rule, self.roles(), kind, w, lr, **self.exercise.settings | options)
        optimizer.clip = clip
        return optimizer

    def roles(self) -> tuple:
        if self.exercise:
            return self.exercise.roles
        return tuple(zoo.role_set("roles", self.rule.roles)) if self.rule.roles else tuple(SHAPES)


def build(rule, roles, optimizer, w, lr, **options):
    triples = [(role, w[role], role) for role in w if role in roles]
    return optim.make(rule, triples, lr=lr, by_role={"head": dict(lr=5 * lr)}, optimizer=optimizer, **options)
