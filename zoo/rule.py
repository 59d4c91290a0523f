"""
A line of a table in the zoo. It may say more than a line of the table in optim.py.
"""
import functools
import inspect
import math

import torch

from optim import Rule, per_block

BELOW_ONE, AT_LEAST_ONE = (0, 1), (1, math.inf)    # bounds of hyperparameters: (at least, below)

def copy_of_weight(w, blocks):
    """Makes state that starts as a copy of the weight."""
    return w.clone()

def update_to(new, w, decay, lr):
    """Returns the update u with which the optimizer arrives at the weight `new`: decay w - lr u = new."""
    return (decay * w.to(new.dtype) - new) / lr.clamp_min(1e-30)

def taken_by_decay(w, decay, lr):
    """Returns d, what the decay takes from the weight, in units of lr: decay w = w - lr d."""
    return (1 - decay) / lr.clamp_min(1e-30) * w.to(torch.promote_types(w.dtype, torch.float32))

def decayed_by(share, u, w, decay, lr):
    """Returns the update with which the weight loses only a share of what the decay would take from it."""
    return u - (1 - share) * taken_by_decay(w, decay, lr)

class WrongRule(ValueError):
    """A function that does not do what a rule must do."""

class ZooRule(Rule):
    """A rule that may ask for more than the rules of optim.py. It may ask for these values:

    blocks    the number of blocks of the tensor. The fused q, k, v are three blocks
    role      the role of the tensor, or None if nobody has named it
    norm      the norm of the gradient of all groups
    decay     the factor that multiplies the weight after the rule. A rule that wants another decay, or that
              computes the new weight, puts the difference into u: see update_to
    lr_peak   the largest lr of the run, so that lr / lr_peak is what the schedule leaves of it
    layer     the number of the tensor's layer: 0 for the embedding, then 1, 2, ... for the layers of the
              model, and one more for all that follows them
    sums      the sums over all tensors of the rule of what its function `sums` returns

    A function that makes state may have keyword-only parameters. Such a parameter gets the hyperparameter of
    the same name, or the role of the tensor, its index (its number in the optimizer, from 1), or lr_peak.

    roles      roles that the rule is for, such as "qkv+matrix". Another rule trains all other roles
    rest       the name of that other rule
    measures   how many first steps only measure, or the name of the hyperparameter that gives this number. In
               these steps the rule returns 0, and no weight decays
    refresh    a function that updates state in place, outside the compiled code. It runs before the first
               step that moves, and then every refresh_steps, which is a hyperparameter of the rule. It gets
               what its parameters name: state, g, w, t, index (the number of the tensor in the optimizer),
               blocks, role, hyperparameters, and gs, the gradient of the loss on labels that are drawn from
               the model
    sums       a function that returns what to sum over all tensors, as a tensor of numbers. It runs before
               each step, outside the compiled code, and gets what its parameters name: g, w, state, lr and
               hyperparameters
    stacks     whether matrices of one kind are computed together, one below the other, with the blocks of all
    from_run   hyperparameters that take the value of the trainer's option of the same name, such as steps
    schedule   the schedule that the rule is made for. A run has it unless it asks for another one
    rarely_changes   states that may stay as they are for many steps, such as what a switch sets
    evaluated  a function that returns other weights, with which the model is to be evaluated. It gets what
               its parameters name: w, t, state and hyperparameters. See Optimizer.averages()
    The rest is as Rule takes it. Raises a ValueError if the line names a hyperparameter that the rule does
    not have."""
    given = (*Rule.given, "norm", "blocks", "role", "decay", "lr_peak", "layer", "sums")
    changes_decay, not_with_decay = False, ()    # see ModifiedRule

    def __init__(self, function, *, roles="", rest="", measures=0, refresh=None, sums=None, from_run=(),
                 stacks=False, evaluated=None, rarely_changes=(), schedule="cosine", **line):
        try:
            super().__init__(function, **line)
        except ValueError as error:
            raise WrongRule(str(error)) from None
        except NameError as error:    # from an annotation that is a text
            raise WrongRule(f"{function.__name__}: an annotation cannot be read: {error}") from None
        self.roles, self.rest, self.measures, self.evaluated = roles, rest, measures, evaluated
        self.refresh, self.sums, self.from_run, self.stacks = refresh, sums, from_run, stacks
        self.has_one_lr = sums is not None and "lr" in parameter_names(sums)    # the same in all groups
        self.rarely_changes, self.schedule = rarely_changes, schedule
        self.blocks_are_matrices = "blocks" in self.inputs
        if stacks and not self.blocks_are_matrices:
            raise WrongRule(f"{self.name}: stacks needs the input blocks, the number of matrices in a stack")
        self.has_blocks = self.takes_rows = per_block in self.state.values() or self.blocks_are_matrices
        for p in inspect.signature(function).parameters.values():
            if p.name in self.hyper and p.name in (*self.given, "weight_decay"):
                raise WrongRule(f"{self.name}: {p.name} is an input; put it before the *, with no default")
            if p.name in self.hyper and p.default is p.empty:
                raise WrongRule(f"{self.name}: the hyperparameter {p.name} needs a default")
            if p.name in self.hyper and type(p.default) not in (float, int, bool):
                raise WrongRule(f"{self.name}: the default of {p.name} must be a number, True or False")
            make_state = self.state.get(p.name)
            if isinstance(make_state, type) or not callable(make_state or len):
                raise WrongRule(f"{self.name}: the annotation of {p.name} must be a function such as "
                                "per_row; leave it out if the state has the shape of the weight")
            if p.name in self.hyper and p.name.startswith("rest_"):
                raise WrongRule(f"{self.name}: {p.name} would be an option of --rest; give it another name")
            if p.name in self.inputs and p.name in ("beta1", "beta2", "eps"):
                raise WrongRule(f"{self.name}: {p.name} is a hyperparameter; put a * before it")
        if refresh and "refresh_steps" not in self.hyper:
            raise ValueError(f"{self.name}: has a refresh, so it needs the hyperparameter refresh_steps")
        if missing := [name for name in self.second_moment if name not in self.state]:
            raise WrongRule(f"{self.name}: second_moment names {missing[0]}, which is no state of it")
        if self.second_moment and self.corrected and "beta2" not in self.hyper:
            raise WrongRule(f"{self.name}: has no beta2, so its second_moment needs corrected=False")
        if missing := [name for name in (*from_run, *line.get("bounds", ())) if name not in self.hyper]:
            raise ValueError(f"{self.name}: has no hyperparameter {missing[0]}")

class Modifier(ZooRule):
    """A function that changes an input of a rule or its result.

    changes   the name of the value that it changes and returns: "g", the gradient, before the rule; "u", the
              update, or "decay", the factor that multiplies the weights, after the rule
    last      its place among those after the rule, where a larger number comes later: 0 for most, 1 for what
              adds a pull on the weights, 2 for what must see the whole step, 3 for what sees the new weight
    whole     whether it looks at the step as a whole, with the decay. Only such a modifier fits a rule that
              puts a decay of its own into u
    alone     whether it gives the weights their final norm. Then no other modifier fits that has a `last`
              of 2 or more, or that only scales
    scales    whether all that it does is to scale the updates of matrices
    The names of its state and of its hyperparameters begin with its own name, so that they differ from all
    names of the rule."""
    given = (*ZooRule.given, "u")

    def __init__(self, function, *, changes, last=0, whole=False, alone=False, scales=False, **line):
        super().__init__(function, **line)
        self.changes, self.last, self.whole, self.alone, self.scales = changes, last, whole, alone, scales

class ModifiedRule(ZooRule):
    """A rule together with its modifiers. The result is a rule too: one function that returns u.

    A modifier that changes the decay gives each weight its own decay, d. But the optimizer multiplies all
    weights by the same decay. So the difference goes into u:

        decay w - lr u' = d w - lr u    with    u' = u + (decay - d) w / lr

    Raises a ValueError if a modifier would not reach all that the rule does."""

    def __init__(self, rule, modifiers):
        before = [part for part in modifiers if part.changes == "g"]
        after = sorted((part for part in modifiers if part.changes != "g"), key=lambda part: part.last)
        see_unchanged = [part.name for part in (rule, *after) if sees_gradient_elsewhere(part)]
        see_unchanged += [part.name for part in before[1:] if "norm" in part.inputs]
        if before and see_unchanged:
            raise ValueError(f"modify={before[0].name}: changes the gradient, but {see_unchanged[0]} also "
                             "looks at gradients that are not yet changed; leave one of them out")
        set_sizes = [part for part in after if part.last >= 2 or part.scales]
        if len(set_sizes) > 1 and any(part.alone for part in set_sizes):
            raise ValueError(f"modify={set_sizes[0].name}+{set_sizes[1].name}: one would undo what the other "
                             "does; leave one of them out")
        if after and rule.evaluated:
            raise ValueError(f"modify={after[0].name}: changes the step, but {rule.name} keeps an average "
                             "that knows only its own steps; leave one of them out")
        self.__dict__ |= rule.__dict__
        # A rule that asks for the decay puts a decay of its own into u. These would take it for a step.
        self.not_with_decay = [part.name for part in after if "decay" in rule.inputs and not part.whole]
        self.parts = [*((part, part.changes) for part in before), (rule, "u"),
                      *((part, part.changes) for part in after)]
        self.name = "+".join(part.name for part in [rule, *modifiers])
        self.changes_decay = any(part.changes == "decay" for part in modifiers)
        self.state, self.hyper, self.bounds = {}, {}, {}
        names = ["w", "lr", "decay"] if self.changes_decay else []
        for part, _ in self.parts:
            self.state |= part.state
            self.hyper |= part.hyper
            self.bounds |= part.bounds
            names += part.inputs
        self.inputs = tuple(dict.fromkeys(name for name in names if name != "u"))
        self.has_blocks = any(part.has_blocks for part, _ in self.parts)    # takes_rows is the rule's own
        self.elementwise = all(part.elementwise for part, _ in self.parts)
        self.stacks = False    # a modifier may look at the tensor as a whole
        self.function = functools.partial(apply_parts, self.inputs, self.parts, self.changes_decay)

def sees_gradient_elsewhere(rule) -> bool:
    """Whether a rule uses gradients outside of its function: in g2, in its sums or in its refresh. gs counts,
    too, because a modifier of g does not change it."""
    functions = [function for function in (rule.sums, rule.refresh) if function]
    names = {name for function in functions for name in parameter_names(function)}
    return "g2" in rule.inputs or not names.isdisjoint({"g", "gs"})

def apply_parts(inputs, parts, changes_decay, *tensors, **hyper):
    """Returns the update of a rule and its modifiers.

    parts: pairs (part, result). A part is a rule or a modifier. result is the name of what it changes."""
    given = dict(zip(inputs, tensors))
    decay = given.get("decay")
    for part, result in parts:
        own = {name: hyper[name] for name in part.hyper}
        given[result] = part.function(*(given[name] for name in part.inputs), **own)
    u = given["u"]
    if changes_decay:
        u = u + (decay - given["decay"]) / given["lr"].clamp_min(1e-30) * given["w"].to(u.dtype)
    return u

@functools.cache
def parameter_names(function) -> tuple:
    """Returns the names of a function's parameters. Each signature is read only once."""
    return tuple(inspect.signature(function).parameters)

@functools.cache
def keyword_names(function) -> tuple:
    """Returns the names of a function's keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
