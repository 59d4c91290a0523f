"""
The rules of other papers, in the form of optim.py, and what only they need.

    RULES                 {name: ZooRule}: the rules of optim.py and of all files here
    MODIFIERS, SHAPES     changes of a line or two that go with most rules; schedules
    AVERAGES              averages of the weights, which go with most rules
    Optimizer             the class of optim.py, for rules that ask for more
    make                  the optimizer of a model, with hybrids, frozen ratios and modifiers

A new rule is a function and a line in the table of its file. A new file is a line in TABLES.
"""
import contextlib
import copy
import difflib
import functools
import inspect
import itertools
import math
import os
import re
import warnings

import torch

import optim
from optim import ROLES
from zoo import (
    adaptive,
    averages,
    classics,
    compressed,
    curvature,
    distance,
    eight_bit,
    factored,
    files,
    kronecker,
    lowrank,
    modifiers,
    momentum,
    more_modifiers,
    orthogonal,
    relatives,
    schedule_free,
    signs,
    spectral,
    subspace,
)
from zoo.averages import AVERAGES    # noqa: F401, part of what the package offers
from zoo.frozen import FROZEN
from zoo.rule import ModifiedRule, WrongRule, ZooRule, keyword_names, parameter_names
from zoo.schedules import SHAPES, schedule, steps_before_fall    # noqa: F401, part of what zoo offers

# Rules appear everywhere in the order of these tables.
TABLES = (
    adaptive.RULES,
    factored.RULES,
    lowrank.RULES,
    orthogonal.RULES,
    curvature.RULES,
    signs.RULES,
    momentum.RULES,
    compressed.RULES,
    subspace.RULES,
    kronecker.RULES,
    spectral.RULES,
    classics.RULES,
    relatives.RULES,
    schedule_free.RULES,
    distance.RULES,
    eight_bit.RULES,
)
ROLE_SETS = {role: (role,) for role in ROLES} | {"matrix": ("attn_out", "mlp_up", "mlp_down")}

# ---- All rules ------------------------------------------------------------------------------------------

def joined(tables) -> dict:
    """One table of many. Raises ValueError if two rules have the same name."""
    rules = {}
    for table in tables:
        if twice := rules.keys() & table.keys():
            raise ValueError(f"{min(twice)}: there is another rule of that name; rename one")
        rules |= table
    return rules

def as_zoo_rule(rule: optim.Rule) -> ZooRule:
    """A rule of optim.py with what a line of the zoo says besides."""
    return ZooRule(rule.function, lr_factor=rule.lr_factor, rows=rule.rows,
                   second_moment=" ".join(rule.second_moment), corrected=rule.corrected,
                   elementwise=rule.elementwise,
                   bounds={name: limits for name, limits in rule.bounds.items() if name in rule.hyper})

RULES = joined([{name: as_zoo_rule(rule) for name, rule in optim.RULES.items()}, *TABLES])
MODIFIERS = joined([modifiers.MODIFIERS, more_modifiers.MODIFIERS])

def rule_of(rule) -> ZooRule:
    """The ZooRule of a name, a function or a rule of optim.py: that of the table, or a new one."""
    if isinstance(rule, str):
        return find(rule)
    if not isinstance(rule, optim.Rule) and not inspect.isfunction(rule):
        raise ValueError(f"{rule!r} is no rule; give a name, a function or a Rule, and hyperparameters as "
                         "arguments of their own")
    return zoo_rule_of(rule)

@functools.cache    # so that each function has one rule; names are not cached, because RULES may change
def zoo_rule_of(rule) -> ZooRule:
    if isinstance(rule, optim.Rule):
        return rule if isinstance(rule, ZooRule) else as_zoo_rule(rule)
    known = [one for one in (*RULES.values(), FROZEN) if one.function is rule]
    return known[0] if known else ZooRule(rule)

@functools.cache
def rule_in_file(path: str, sha256: str) -> ZooRule:
    """The rule of a Python file with this hash, or "" if there is no such file. The rule has the name of the
    file. Raises ValueError as files.the_rule_in()."""
    rule = copy.copy(rule_of(files.the_rule_in(path)))
    rule.name, rule.sha256 = os.path.basename(path), sha256
    return rule

def find(name: str) -> ZooRule:
    """The rule of that name, or of the file NAME.py. Raises ValueError with the nearest name."""
    if name.endswith(".py"):
        return rule_in_file(name, files.sha256(name) if os.path.isfile(name) else "")
    rule, _, modify = name.partition("+")
    if modify and rule in RULES:
        raise ValueError(f"{name!r} is no optimizer; give {rule} as the optimizer and modify={modify}")
    if name not in RULES:
        near = ([name.lower()] if name.lower() in RULES else
                difflib.get_close_matches(name.lower(), optim.RULES, 1) or
                difflib.get_close_matches(name.lower(), RULES, 1, 0))
        raise ValueError(f"{name!r} is no optimizer; did you mean {near[0]}? "
                         f"There are {', '.join(optim.RULES)}, those of zoo/, and FILE.py")
    return RULES[name]

def find_modifiers(text: str) -> list:
    """The modifiers of "cautious+cautious_decay", in order. Raises ValueError that names the option."""
    names = text.split("+")
    if not set(names) <= set(MODIFIERS):
        raise ValueError(f"modify={text!r}: must be one or more of {', '.join(MODIFIERS)}, joined by +")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"modify={text!r}: names {twice[0]} twice")
    return [MODIFIERS[name] for name in names]

def modified(rule: str | ZooRule, modify: str = "") -> ZooRule:
    """A rule, or the rule of that name, changed by modifiers such as "cautious+cautious_decay"."""
    return modified_rule(rule_of(rule), modify) if modify else rule_of(rule)

@functools.cache
def modified_rule(rule: ZooRule, modify: str) -> ZooRule:
    return ModifiedRule(rule, find_modifiers(modify))

# ---- Many small matrices at once ------------------------------------------------------------------------
# A rule of matrices works on as many as it has blocks. So matrices of one kind can stand below each other in
# one tensor, and one product serves them all. At width 512, a step of Muon in bf16 takes 0.41 of the time
# of fp32 with one matrix at a time. In bf16 with one matrix at a time it takes 0.76.

def batches_of_matrices(members, most=2**22):
    """Yields lists of members that are of one kind and have at most 4 million weights together."""
    kinds = {}
    for member in members:
        kinds.setdefault(member[0], []).append(member)
    for same in kinds.values():
        p = same[0][1]
        is_plain = p.dim() == 2 and type(p) in (torch.Tensor, torch.nn.Parameter)
        size = max(1, most // p.numel()) if is_plain else 1
        for i in range(0, len(same), size):
            yield same[i:i + size]

def stacked(members):
    """Makes one member of many: their tensors stand below each other, and it has the blocks of all."""
    kinds, weights, grads, states = zip(*members)
    state = dict(states[0])
    for name in state:
        if torch.is_tensor(state[name]) and state[name].dim():
            state[name] = torch.cat([one[name] for one in states])
    state["blocks"] *= len(members)
    return (kinds[0], len(members)), torch.cat(weights), torch.cat(grads), state

def unstack(together, members):
    """Gives each of the members of stacked() its part of the new weights and of the new state."""
    _, weights, _, state = together
    for i, (_, p, _, own) in enumerate(members):
        for whole, part in [(weights, p), *((state[name], own[name]) for name in own)]:
            if torch.is_tensor(part) and part.dim() and whole is not part:
                part.copy_(whole[i * len(part):(i + 1) * len(part)])

# ---- The class ------------------------------------------------------------------------------------------

def check_sharding(group) -> None:
    """Raises ValueError if FSDP2 splits the rows of a tensor among devices, but its blocks do not divide."""
    for name, p, blocks in zip(group["names"], group["params"], group["blocks"]):
        placements = enumerate(getattr(p, "placements", ()))
        devices = math.prod(p.device_mesh.size(i) for i, placement in placements if placement.is_shard())
        if blocks > 1 and blocks % devices:
            raise ValueError(f"{name}: {blocks} blocks do not divide among the {devices} devices of FSDP2; "
                             "leave blocks out, or take another number of devices")

def check_blocks(group, rule) -> None:
    """Raises ValueError if a rule would ignore blocks, or if it treats each as a matrix, but a block is not
    made of whole rows. A rule that asks for the role, as Adam-mini does, has blocks of its own."""
    for name, p, blocks in zip(group["names"], group["params"], group["blocks"]):
        if blocks > 1 and not (rule.has_blocks or "role" in rule.inputs):
            raise ValueError(f"{name}: blocks={blocks}, but {rule.name} has no blocks; leave them out")
        if "blocks" in rule.inputs and p.dim() > 1 and len(p) % blocks:
            raise ValueError(f"{name}: the {len(p)} rows do not divide into {blocks} matrices")

def check_one_lr(groups, rule) -> None:
    """Raises ValueError if groups with one distance, as those of Prodigy, have several learning rates."""
    rates = {group["lr_peak"] for group in groups if group["rule"] == rule.name}
    if rule.has_one_lr and len(rates) > 1:
        raise ValueError(f"lr: {rule.name} has one distance for all its weights, so all its groups need the "
                         f"same lr; here they have {', '.join(f'{rate:g}' for rate in sorted(rates))}")

def check_decay(group, rule) -> None:
    """Raises ValueError if a modifier would take a rule's own weight decay for a part of its update."""
    if group["weight_decay"] and rule.not_with_decay:
        name, modifier = rule.name.partition("+")[0], rule.not_with_decay[0]
        raise ValueError(f"modify={modifier}: would take the weight decay of {name}, which its update holds, "
                         f"for a part of the step; give a weight decay of 0, or leave {modifier} out")

TRIED = set()    # functions of rules that need no trial in this process any more
NOT_COMPILED = {}    # {rule: the error of torch's compiler}, of rules that it does not take

def compiled_if_possible(apply, kind, elementwise):
    """Does what optim.compiled() does, if torch's compiler takes the rule. Otherwise the rule runs eagerly,
    after a warning. On a CPU, the compiler of torch 2.13 fails for many rules that sum over rows and then
    change a state (PyTorch's bug 196570). It also takes no rule that has an `if` on the value of a tensor."""
    compiled, rule = optim.compiled(apply, kind, elementwise), kind[0]

    def run(*arguments):
        if rule in NOT_COMPILED:
            return apply(*arguments)
        try:
            return compiled(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:    # nothing has moved yet
            NOT_COMPILED[rule] = error
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"{rule.name}: torch.compile fails ({reason}), so this rule runs eagerly. Its "
                          "steps are slower, and their result is the same", stacklevel=2)
            return apply(*arguments)
    return run

class Optimizer(optim.Optimizer):
    """The class of optim.py for rules that ask for more: see ZooRule. Its arguments are the same, and there
    is one more:

    average    the name of an average of zoo/averages.py, which is kept beside the weights. See averages().
               Its hyperparameters may be given, too

    If wants_sampled() says so, set `sampled` before the next step: {tensor: gradient of the loss on labels
    that are drawn from the model}.
    """
    rule_of, compiled = staticmethod(rule_of), staticmethod(compiled_if_possible)
    sampled: dict | None = None
    norm = None    # of the gradients of all groups in this step, if a rule asks for it
    sums = {}    # {name of a rule: its sums over all tensors in this step}, for rules that ask for them
    shows_averages = False    # whether the model holds averages of the weights now
    layer_of = {}    # the number of each tensor's layer, if a rule asks for it

    def __init__(self, params, rule, *, average="", **more):
        self.average, self.averaging = None, {}    # the average, and its entries in all groups
        if average:
            self.average = averages.find(average)
            own = {name: more.pop(name) for name in self.average.hyper if name in more}
            self.averaging = dict(average=average) | self.average.checked(own)
        super().__init__(params, rule, **more)
        if average:
            self.register_step_post_hook(averages.update)

    def constants(self, group, i):
        known = dict(blocks=group["blocks"][i], role=group["roles"][i])
        return {name: known[name] for name in self.rules[group["rule"]].inputs if name in known}

    def index(self, group, i) -> int:
        """The number of parameter i of a group among all of the optimizer, from 1."""
        before = itertools.takewhile(lambda other: other is not group, self.param_groups)
        return 1 + i + sum(len(other["params"]) for other in before)

    def start(self, group, i, device=None):
        if not group["params"][i].numel():
            return {}    # some rules cannot even make the state of no weights
        known = self.averaging | group | dict(role=group["roles"][i], index=self.index(group, i))
        starts = self.rules[group["rule"]].state | (self.average.state if self.average else {})
        for name, make_state in starts.items():
            if make_state and (keys := keyword_names(make_state)):
                starts[name] = functools.partial(make_state, **{key: known[key] for key in keys})
        state = super().start(group, i, device, starts)
        return state | dict(average_from=self.measuring_steps(group)) if self.average else state

    def add_param_group(self, param_group):
        count, rules = len(self.param_groups), dict(self.rules)
        try:
            super().add_param_group(param_group)
            self.check_newest_group()
        except ValueError:    # nothing remains of a group that was refused
            del self.param_groups[count:]
            self.rules = rules
            raise

    def check_newest_group(self):
        """Completes the group that was added last. Raises ValueError if its rule does not fit its tensors."""
        check_sharding(self.param_groups[-1])
        rule = self.rules[self.param_groups[-1]["rule"]]
        if self.average and rule.evaluated:
            raise ValueError(f"average={self.averaging['average']}: {rule.name} has an average of its own")
        self.param_groups[-1] |= self.averaging
        if rule.blocks_are_matrices:    # a vector has none
            blocks = zip(self.param_groups[-1]["params"], self.param_groups[-1]["blocks"])
            self.param_groups[-1]["blocks"] = [count if p.dim() > 1 else 1 for p, count in blocks]
        check_blocks(self.param_groups[-1], rule)
        check_one_lr(self.param_groups, rule)
        check_decay(self.param_groups[-1], rule)
        super().decay(self.param_groups[-1], 1)    # raises ValueError if it is below 0
        if rule.function not in TRIED and not rule.refresh:    # a refresh comes before the first update
            self.try_out(rule)
        TRIED.add(rule.function)

    def try_out(self, rule):
        """Calls a rule once, with a matrix and with a vector. WrongRule says what is wrong with it."""
        if "g" not in rule.inputs:
            raise WrongRule(f"{rule.name}: needs a parameter named g, the gradient, before the *")
        for shape in ((2, 2), (2,)):
            where = f"{rule.name}, on a tensor of shape {shape}:"
            try:
                w, g, given = self.inputs_of_trial(rule, shape)
                u = rule.function(*(given[name] for name in rule.inputs), **rule.hyper)
            except Exception as error:
                raise WrongRule(f"{where} {type(error).__name__}: {error}") from error
            if not torch.is_tensor(u) or u.shape != w.shape:
                what = f"shape {tuple(u.shape)}" if torch.is_tensor(u) else f"type {type(u).__name__}"
                raise WrongRule(f"{where} returns a value of {what}; return the update, with the shape of g")
            if not (w.equal(given["w"]) and g.equal(given["g"])):
                raise WrongRule(f"{where} changes w or g; only return the update, and apply() changes w")
            if not u.isfinite().all():
                raise WrongRule(f"{where} its first update is not finite: {u.tolist()}")
        _, _, given = self.inputs_of_trial(rule, (2, 2))
        if rule.stacks and any(given[name].dim() == 0 for name in rule.state):
            raise WrongRule(f"{rule.name}: stacks needs state with rows; it has a state of one number")
        before = {name: given[name].clone() for name in rule.state}
        for t in (1, 2):    # ADOPT, for one, has no momentum before its second step
            given["t"] = torch.tensor(t, dtype=torch.float64)
            given["g"] = given["g"].flip(0) * t    # not in line with the first: a clip may make those equal
            rule.function(*(given[name] for name in rule.inputs), **rule.hyper)
        idle = [name for name, x in before.items() if x.numel() and x.equal(given[name])]
        if idle := [name for name in idle if name not in rule.rarely_changes]:
            warnings.warn(f"{rule.name}: two steps have left its state {idle[0]} as it was; change it in "
                          "place, as m.lerp_() does; hyperparameters go after a *", stacklevel=2)

    def inputs_of_trial(self, rule, shape) -> tuple:
        """A weight, a gradient, and all that a rule may ask for in its first step, by name."""
        w, g = torch.ones(shape), torch.arange(1.0, 1 + math.prod(shape)).view(shape)
        group = rule.hyper | dict(params=[w], blocks=[1], roles=[None], rule=rule.name, lr_peak=1.0)
        one = torch.ones((), dtype=torch.float64)
        given = self.start(group, 0) | self.constants(group, 0)
        given |= dict(g=g.clone(), w=w.clone(), t=one, lr=one, decay=one, lr_peak=one, layer=one,
                      g2=g.square().mean(), norm=g.norm())
        if rule.sums:
            known = rule.hyper | given
            given["sums"] = rule.sums(**{name: known[name] for name in parameter_names(rule.sums)})
        return w, g, given

    def measuring_steps(self, group) -> int:
        """How many first steps of a group only measure: they neither move nor decay a weight."""
        measures = self.rules[group["rule"]].measures
        return group[measures] if isinstance(measures, str) else measures

    def decay(self, group, t):
        return 1.0 if t <= self.measuring_steps(group) else super().decay(group, t)

    def refresh_before(self, group, t):
        """The function that refreshes the state of a group before step t, or None."""
        refresh, moved = self.rules[group["rule"]].refresh, t - 1 - self.measuring_steps(group)
        return refresh if refresh and moved >= 0 and moved % group["refresh_steps"] == 0 else None

    def wants_sampled(self) -> bool:
        """Whether the next step needs gradients of the loss on labels that are drawn from the model."""
        for group in self.param_groups:
            refresh = self.rules[group["rule"]].refresh
            if refresh and "gs" in parameter_names(refresh):
                steps = [self.state.get(p, {}).get("t", 0) + 1 for p in group["params"] if p.numel()]
                if any(self.refresh_before(group, t) for t in steps):
                    return True
        return False

    def check_gradients(self):
        super().check_gradients()
        if self.shows_averages:
            raise RuntimeError("step() inside `with averages()` would be lost; step after it")
        if not self.wants_sampled():
            self.sampled = None    # what a step of only some tensors has left
        elif not self.sampled:
            raise RuntimeError("this step needs gradients on sampled labels; see wants_sampled(). Set "
                               "`sampled` on this optimizer, not on a wrapper of it, such as Accelerate's")
        if any("layer" in rule.inputs for rule in self.rules.values()):
            self.layer_of = self.layers()
        if any("norm" in rule.inputs for rule in self.rules.values()):
            gradients = [p.grad.to(torch.promote_types(p.dtype, torch.float32))
                         for _, _, p in self.each_parameter() if p.grad is not None]
            self.norm = torch.nn.utils.get_total_norm(gradients)
        self.sums = {rule.name: self.sum_up(rule) for rule in self.rules.values() if rule.sums}

    def sum_up(self, rule):
        """The sum over all tensors of a rule of what its function `sums` returns."""
        names, parts = parameter_names(rule.sums), []
        for group, i, p in self.each_parameter():
            if group["rule"] == rule.name and p.grad is not None and p.numel():
                state = self.state[p] = self.state[p] or self.start(group, i)
                given = group | state | dict(g=p.grad.to(torch.promote_types(p.dtype, torch.float32)), w=p)
                parts.append(rule.sums(**{name: given[name] for name in names}))
        return sum(parts)

    def update(self, group, t, members):
        if refresh := self.refresh_before(group, t):
            self.refresh_state(refresh, group, t)
        rule = self.rules[group["rule"]]
        if self.average:    # a rule does not see the state of the average
            members = [(kind, p, g, {name: x for name, x in state.items() if name in rule.inputs})
                       for kind, p, g, state in members]
        if "norm" in rule.inputs:
            members = [(*member, state | dict(norm=self.norm)) for *member, state in members]
        if rule.sums:
            members = [(*member, state | dict(sums=self.sums[rule.name])) for *member, state in members]
        if "lr_peak" in rule.inputs:
            lr_peak = torch.tensor(group["lr_peak"], dtype=torch.float64)
            members = [(*member, state | dict(lr_peak=lr_peak)) for *member, state in members]
        if "layer" in rule.inputs:
            members = [(kind, p, g, state | dict(layer=self.layer_of[p])) for kind, p, g, state in members]
        if not rule.stacks:
            return super().update(group, t, members)
        for same in batches_of_matrices(members):
            together = stacked(same) if len(same) > 1 else same[0]
            super().update(group, t, [together])
            unstack(together, same)

    def layers(self) -> dict:
        """{tensor: the number of its layer}. The tensors of a layer have the same number in their names, such
        as "blocks.3.qkv.weight". Layers count from 1 in the order of these numbers. The embedding is layer 0.
        Without roles, so is each tensor before the first layer. All others, such as the head, belong to one
        more layer at the end. ValueError: the names show no layers, or more than a rule was told."""
        found = {p: re.search(r"(?:^|\.)(\d+)\.", group["names"][i]) for group, i, p in self.each_parameter()}
        numbers = sorted({int(number[1]) for number in found.values() if number})
        for told in (group.get("layers", 0) for group in self.param_groups):
            if told and not 1 <= len(numbers) <= told:
                raise ValueError(f"layers={told}: the names of the tensors show {len(numbers)} layers, as "
                                 '"blocks.3.weight" shows one; give model.named_parameters() as params')
        layers, number = {}, 0
        for group, i, p in self.each_parameter():
            if found[p]:
                layers[p] = number = 1 + numbers.index(int(found[p][1]))
            else:
                is_first = group["roles"][i] == "embed" or group["roles"][i] is None and number == 0
                layers[p] = 0 if is_first else len(numbers) + 1
        return {p: torch.tensor(number) for p, number in layers.items()}

    def refresh_state(self, refresh, group, t):
        """Calls refresh for each parameter of a group that is at step t, with what its parameters name."""
        names = parameter_names(refresh)
        for i, p in enumerate(group["params"]):
            if p.grad is None or self.state.get(p, {}).get("t") != t:    # a tensor of no weights has no state
                continue
            gradient = p.grad.to(torch.promote_types(p.dtype, torch.float32)).contiguous()
            given = group | self.state[p] | dict(g=gradient, w=p, t=t, index=self.index(group, i),
                                                 role=group["roles"][i], blocks=group["blocks"][i])
            if "gs" in names:
                given["gs"] = self.sampled.pop(p).to(gradient.dtype).contiguous()
            refresh(**{name: given[name] for name in names})

    def has_averages(self) -> bool:
        """Whether averages() puts other weights into the model."""
        return bool(self.average or any(rule.evaluated for rule in self.rules.values()))

    @contextlib.contextmanager
    @torch.no_grad()
    def averages(self):
        """Puts the averages of the weights into the model for as long as a `with` lasts. Such averages come
        from `average`, or from a rule that has some of its own, such as Schedule-Free. Afterwards the weights
        are, bit for bit, what they were."""
        kept, self.shows_averages = {}, True
        try:
            for group, _, p in self.each_parameter():
                part = self.average or self.rules[group["rule"]]
                other = averages.for_evaluation(part, group, p.detach(), self.state.get(p))
                if other is not None:
                    kept[p] = p.detach().clone()
                    p.copy_(other)
            yield
        finally:
            self.shows_averages = False
            for p, weights in kept.items():
                p.copy_(weights)

    def load_state_dict(self, state_dict):
        """As in optim.py. Checkpoints of earlier versions name the modifiers apart from the rule. If a
        checkpoint has another average or none, the average begins anew."""
        groups = []
        for group in state_dict["param_groups"]:
            names = [group.get("rule", "another optimizer"), *group.get("modify", [])]
            groups.append(group | dict(rule="+".join(names)))
        super().load_state_dict(averages.with_own_average(self, state_dict | dict(param_groups=groups)))

# ---- The optimizer of a model ---------------------------------------------------------------------------

def role_set(option: str, text: str) -> set:
    """{"head", "norm"} for "head+norm". Raises ValueError that names the option."""
    names = text.split("+")
    if not set(names) <= set(ROLE_SETS):
        raise ValueError(f"{option}={text!r}: must be one or more of {', '.join(ROLE_SETS)}, joined by +")
    return {role for name in names for role in ROLE_SETS[name]}

def make(rule, roles, *, lr, rows=None, adaptive=None, rest=None, rest_lr=None, untrained=None,
         freeze_steps=None, updating=None, modify=None, average="", of_role={}, weight_decay=0.0,
         weight_decay_kind="independent", compile=False, **hyper) -> Optimizer:
    """An Optimizer for a model. It treats each parameter by its role.

    rule       a name of RULES, a function or a Rule
    roles      triples (name, parameter, role), as model.roles() gives them
    lr         the peak learning rate, in the unit that the rule's docstring states
    rows       roles in which each row is a block, such as "head+embed"; "head" makes Adalayer Adalayer*
    adaptive, rest, rest_lr    a hybrid: the rule trains the roles `adaptive` at lr, and the rule named `rest`
               trains all other roles at rest_lr. A rule that is for some roles only (Muon) is always a hybrid
    untrained  roles that stay as they are. Their gradients still count in the norm that is clipped
    freeze_steps, updating     frozen ratios, for adalayer and adalayer_star: so many first steps measure
               second moments without moving. Later steps hold them, except in the roles `updating` ("none")
    modify     modifiers for all trained roles, such as "cautious+cautious_decay"
    average    the average of the weights that is kept beside them, such as "ema"
    of_role    {set of roles: settings of its own}, such as {"head": {"lr": 0.5, "beta1": 0.95}}. lr is a
               multiple of the peak; weight_decay and hyperparameters are values
    **hyper    hyperparameters of the rule, of modifiers and of the average, and with rest_ before the name
               those of the rule `rest`
    Raises ValueError that names the option for what does not fit together.
    """
    roles, unmodified, rule = optim.triples(roles), rule_of(rule), modified(rule, modify or "")
    if rule.roles:
        if rest_lr is None:
            raise ValueError(f"rest_lr: {unmodified.name} is for {rule.roles}; give the lr of "
                             f"{rest or rule.rest}, which trains the others")
        adaptive, rest = adaptive or rule.roles, rest or rule.rest
    given = [key for key, value in dict(adaptive=adaptive, rest=rest, rest_lr=rest_lr).items()
             if value is not None]
    check_variant(unmodified, given, rows, freeze_steps, updating)
    check_roles(roles, rows=rows, adaptive=adaptive, untrained=untrained, updating=updating,
                of_role="+".join(of_role) or None)
    of_average = averages.find(average).hyper if average else {}
    averaging = dict(average=average) | {key: hyper.pop(key) for key in of_average if key in hyper}
    of_rest = {key.removeprefix("rest_"): value for key, value in hyper.items() if key.startswith("rest_")}
    own = {key: value for key, value in hyper.items() if not key.startswith("rest_")}
    main = dict(rule=rule, lr=lr) | rule.checked(own)
    if given:
        other = modified(rest, modify or "")
        of_modifiers = {key: value for key, value in own.items() if key not in unmodified.hyper}
        try:
            other = dict(rule=other, lr=rest_lr) | other.checked(of_rest | of_modifiers)
        except ValueError as error:    # the values of the modifiers were checked above
            raise ValueError(f"rest_{error}") from None
    elif of_rest:
        raise ValueError(f"rest_{next(iter(of_rest))}: there is no other rule; give adaptive, rest, rest_lr")
    if freeze_steps is not None:
        rule_of_ratios = modified(FROZEN, modify or "")
        own = own | dict(freeze_steps=freeze_steps)
        main = dict(rule=rule_of_ratios, lr=lr) | rule_of_ratios.checked(own)

    by_rows = role_set("rows", rows) if rows is not None else ()
    if freeze_steps is not None and rows is None:
        by_rows = rule.rows    # the rule of ratios takes the place of Adalayer*
    by_main = role_set("adaptive", adaptive) if given else set(ROLES)
    by_none = role_set("untrained", untrained) if untrained is not None else set()
    still_measuring = role_set("updating", updating) if updating not in (None, "none") else set()
    by_role = {}
    for role in ROLES:
        by_role[role] = None if role in by_none else dict(main if role in by_main else other)
        if freeze_steps is not None and role not in by_none:
            by_role[role]["updating"] = role in still_measuring
    for text, settings in of_role.items():
        for role in role_set("of_role", text):
            set_role(role, by_role[role], settings)
    present = {role for _, _, role in roles}
    if given and adaptive != rule.roles and present <= by_main:
        raise ValueError(f"adaptive={adaptive!r}: names all roles, so rest trains nothing; leave both out")
    check_untrained(present, by_main, by_none, rows=by_rows if rows else (), updating=still_measuring)
    return optim.make(rule, roles, lr=lr, rows=by_rows, by_role=by_role,
                      weight_decay=weight_decay, weight_decay_kind=weight_decay_kind, compile=compile,
                      optimizer=functools.partial(Optimizer, **averaging))

def check_roles(roles, **options) -> None:
    """Raises ValueError for an option that names a role that no parameter has.
    options: {option: set of roles such as "head+norm", or None}."""
    present = {role for _, _, role in roles}
    for option, text in options.items():
        for name in text.split("+") if text not in (None, "none") else ():
            if name in ROLE_SETS and not present & set(ROLE_SETS[name]):
                raise ValueError(f"{option}={text!r}: no parameter has the role {name}")

def check_untrained(present, by_main, by_none, **options) -> None:
    """Raises ValueError if nothing is left for a rule to train, or if an option names an untrained role.

    present    the roles of the model
    by_main    the roles that the main rule trains; without a hybrid these are all
    by_none    the roles that stay as they are
    options    {option: the roles that it names}"""
    if present <= by_none:
        raise ValueError("untrained: leaves nothing to train")
    for part, roles in dict(adaptive=present & by_main, rest=present - by_main).items():
        if roles and roles <= by_none:
            raise ValueError(f"untrained: leaves nothing for {part} to train")
    for option, roles in options.items():
        if useless := by_none.intersection(roles):
            raise ValueError(f"{option}: names {min(useless)}, which is untrained")

def check_variant(rule, given, rows, freeze_steps, updating) -> None:
    """Raises ValueError for options of hybrids, rows and frozen ratios that do not fit together.
    given: which of adaptive, rest and rest_lr are given."""
    if len(given) not in (0, 3):
        raise ValueError(f"{given[0]}: adaptive, rest and rest_lr make a hybrid; give all three or none")
    if (freeze_steps is None) != (updating is None):
        raise ValueError("freeze_steps, updating: give both (updating may be none) or neither")
    if freeze_steps is not None and (rule.function is not optim.adalayer or given):
        raise ValueError("freeze_steps: is for adalayer and adalayer_star, and not for hybrids")
    if rows is not None and not set(rule.rows) <= role_set("rows", rows):
        raise ValueError(f"rows={rows!r}: must include head for adalayer_star; for other rows take adalayer")

def set_role(role, settings, own) -> None:
    """Gives a role settings of its own: lr as a multiple of the peak, all else as a value."""
    if settings is None:
        raise ValueError(f"{next(iter(own))}_of: {role} is untrained, so it has no settings of its own")
    rule = settings["rule"]
    if "g2" in rule.inputs or rule.has_one_lr:
        shared = "distance" if rule.has_one_lr else "second moment"
        raise ValueError(f"{next(iter(own))}_of: {rule.name} has one {shared} for all its weights, "
                         "so no role can have settings of its own")
    for name, value in own.items():
        if name == "lr":
            settings["lr"] *= value
        elif name == "weight_decay":
            settings["weight_decay"] = value
        elif name in rule.hyper:
            try:
                settings |= {name: rule.checked({name: value})[name]}
            except ValueError as error:
                raise ValueError(f"{name}_of: {role}: {error}") from None
        else:
            raise ValueError(f"{name}_of: {rule.name}, the rule of {role}, has no {name}; "
                             f"it takes lr, weight_decay, {', '.join(rule.hyper)}")
