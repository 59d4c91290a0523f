"""
The update rules of "Deconstructing What Makes a Good Optimizer for Language Models" (Zhao, Morwani,
Brandfonbrener, Vyas, Kakade, arXiv 2407.07972): one function each, and one class that applies them.

    u = rule(gradient, state, hyperparameters)       all that the optimizers differ in
    w <- decay * w - lr * u                          all that they share: one line, in apply()

Read the rules from top to bottom. Each changes a line or two of one above it, and that diff is the lesson.

    python optim.py signum                           three steps on two weights, to be checked with a pencil
    Optimizer(model.parameters(), signum, lr=3e-4)   one rule in any training loop
    make("adalayer_star", model.roles(), lr=3e-3)    the paper's variants, by the role of each parameter

The rules of others are in zoo/, in the same form; python train.py --optimizer=list shows all.
"""
import difflib
import importlib
import inspect
import math
import sys
from collections import defaultdict
from pathlib import Path

import torch

# ---------------------------------------------------------------------------------------------------------
# How to read a rule: its signature is the whole specification.
#   positional    g: the gradient. m, v, r, c: state, which the rule updates in place; it starts as zeros
#                 like the weight, in fp32, or as its annotation says. A rule may also ask for t (the step,
#                 from 1), g2 (the mean of g^2 over all weights of the group), w (the weight) and lr.
#                 v is for a mean of g^2 by beta2 that the rule divides by as Adam does (v, or r and c):
#                 effective_lr() reads it so. Another second moment has another name, such as s.
#   keyword-only  hyperparameters, with their defaults.
#   returns       u, the direction to move against. A rule never touches the weight, the lr or the decay.

def per_block(w, blocks):
    """One number for each block, a set of weights that share a second moment. Shape (blocks,)."""
    return w.new_zeros(blocks)

def per_row(w, blocks):
    """One number for each row of a matrix, shape (rows, 1). A vector keeps a single number, shape ()."""
    return w.new_zeros((len(w),) + (1,) * (w.dim() - 1) if w.dim() > 1 else ())

def per_column(w, blocks):
    """One number for each column of a matrix, shape (1, columns). A vector keeps one number, shape ()."""
    return w.new_zeros((1, *w.shape[1:]) if w.dim() > 1 else ())

def scalar(w, blocks):
    """One number for each parameter tensor, shape ()."""
    return w.new_zeros(())

def power(beta, t):
    """beta^t. As an exp it is computed once; compiled code computes beta**t anew for every 16 weights, and
    Adam took 1.6 times as long."""
    return torch.exp(t * (math.log(beta) if beta else -math.inf))

def hat(x, beta, t):
    """x / (1 - beta^t): a running mean that began at 0, corrected for that."""
    return x * (1 / (1 - power(beta, t)))

def mean_to(x, s):
    """The mean of x over the axes in which the state s keeps a single number. Shape of s."""
    if x.dim() > 1 and s.shape[:1] == (1,) and len(x) % 16 == 0:    # compiled, means down long columns
        x = x.unflatten(0, (-1, 16)).mean(1)    # are slow: by 16 rows 2.3 times as fast
    return x.sum_to_size(s.shape) / (x.numel() // s.numel())

def mean_of_blocks(x, v):
    """The mean of x over each block, shape (blocks,). Row by row first: in one long sum each addition waits
    for the one before, and a step of Adalayer takes 1.1 times as long."""
    row = min([x.numel() // len(v), *x.shape[-1:]])
    return x.reshape(len(v), -1, row).mean(2).mean(1)

# ---------------------------------------------------------------------------------------------------------
# Without a second moment: the step follows the gradient's size (SGD) or ignores it (Signum, Lion).

def sgd(g, m, *, beta1=0.98):
    """Heavy-ball SGD: follow the sum of past gradients.

        m <- b1 m + g
        u  = m

    Remembers  m, the decaying sum of gradients: 4 bytes per weight.
    Moves      in proportion to the gradient; if that is steady, by lr * g / (1 - b1) = 50 lr g a step.
    lr         in weight per gradient: one number must suit the scale of the loss and of every layer,
               which is SGD's trouble. About 300x AdamW's; typical 1.0.
    Defaults   beta1 0.98: best of 0 ... 0.99 in the paper, and only SGD is so sensitive to it.
    Source     Polyak (1964), "Some methods of speeding up the convergence of iteration methods".
    """
    m.mul_(beta1).add_(g)
    return m

def sgd_ema(g, m, t, *, beta1=0.9):
    """SGD with averaged momentum: follow the mean of past gradients. The paper's hybrids train with it
    whatever is not adaptive.

        m <- b1 m + (1 - b1) g
        u  = m_hat                            m_hat = m / (1 - b1^t)

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      in proportion to the gradient; if that is steady, by lr * g a step.
    lr         in weight per gradient: 1 / (1 - b1) times heavy-ball's for the same step. Typical 10.
    Defaults   beta1 0.9, as for every rule in the paper's section 3. m_hat undoes the start at m = 0.
    Source     Zhao et al. (2024), arXiv 2407.07972, section 3.
    """
    m.lerp_(g, 1 - beta1)
    return hat(m, beta1, t)

def signum(g, m, *, beta1=0.9):
    """Signum: every weight moves by the same distance, in the direction of its mean gradient.

        m <- b1 m + (1 - b1) g
        u  = sign(m)

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      every weight by exactly lr (by nothing where m is 0).
    lr         in weight: the distance of a step. About a tenth of AdamW's; typical 3e-4.
    Defaults   beta1 0.9: within 0.8 ... 0.98 it hardly matters; lower is a little worse.
    Source     Bernstein, Wang, Azizzadenesheli, Anandkumar (2018), arXiv 1802.04434.
    """
    m.lerp_(g, 1 - beta1)
    return m.sign()

def lion(g, m, *, beta1=0.9, beta2=0.95):
    """Lion: Signum whose step weighs the newest gradient by 1 - b1 and whose memory weighs it by 1 - b2.

        u  = sign(b1 m + (1 - b1) g)
        m <- b2 m + (1 - b2) g

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      every weight by exactly lr (by nothing where the sign is of 0).
    lr         in weight: the distance of a step. About a tenth of AdamW's; typical 3e-4.
    Defaults   beta1 0.9, beta2 0.95 as in the paper (Lion's authors: 0.9, 0.99). With b1 = b2 it is Signum.
    Source     Chen et al. (2023), arXiv 2302.06675.
    """
    u = m.lerp(g, 1 - beta1).sign()
    m.lerp_(g, 1 - beta2)
    return u

# ---------------------------------------------------------------------------------------------------------
# With a second moment v, the running mean of g^2. Adam's step is Signum's, times |m_hat| / sqrt(v_hat): how
# sure the mean gradient is. The rules below are one algorithm; they differ in how many weights share a v.

def adamw(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """Adam: the mean gradient over its root mean square, for each weight by itself.

        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        u  = m_hat / (sqrt(v_hat) + eps)      m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)

    Remembers  m and v, the running means of g and g^2: 8 bytes per weight.
    Moves      each weight by about lr where its gradients agree, by less where they cancel.
    lr         in weight: the distance of a step if the gradients agree. Typical 3e-3.
    Defaults   beta1 0.9, beta2 0.95 as in the paper. eps 1e-15 (Wortsman et al. 2023, arXiv 2309.14322):
               it prevents 0/0 and slows no weight.
    Source     Kingma, Ba (2014), arXiv 1412.6980; its decay Loshchilov, Hutter (2017), arXiv 1711.05101.
    """
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)

def adafactor(g, m, r: per_row, c: per_column, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """Adafactor as the paper has it: Adam whose v is rebuilt from the mean of each row and each column.

        m <- b1 m + (1 - b1) g
        r <- b2 r + (1 - b2) mean of g^2 over each row
        c <- b2 c + (1 - b2) mean of g^2 over each column
        v  = (r / mean(r)) c
        u  = m_hat / (sqrt(v_hat) + eps)      m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)

    Remembers  m, 4 bytes per weight; r and c, a number per row and column. A vector keeps one number, as
               in the authors' code.
    Moves      as Adam where its row and column tell the size of a weight's g^2.
    lr         in weight: the distance of a step if the gradients agree. Typical 3e-3.
    Defaults   as Adam's. Left out, as in the paper: update clipping, relative steps, growing beta2.
    Source     Shazeer, Stern (2018), arXiv 1804.04235; with momentum Zhai et al. (2021), arXiv 2106.04560.
    """
    m.lerp_(g, 1 - beta1)
    r.lerp_(mean_to(g.square(), r), 1 - beta2)
    c.lerp_(mean_to(g.square(), c), 1 - beta2)
    v = factored(r, c)
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)

def factored(r, c):
    """(r / mean(r)) c: in this order nothing underflows, and the guard keeps 0/0 out where
    all gradients are 0."""
    return r / r.mean().clamp_min(torch.finfo(r.dtype).tiny) * c

def adalayer(g, m, v: per_block, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """Adalayer: Adam with one v for a whole block of weights. A block is a parameter tensor (the fused
    q, k, v are three); if each row of the output head is a block, rows="head", this is Adalayer*.

        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) mean of g^2 over the block
        u  = m_hat / (sqrt(v_hat) + eps)      m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)

    Remembers  m, 4 bytes per weight; one v per block.
    Moves      a block by about lr (root mean square), its weights in proportion to their mean gradients:
               SGD inside a block, Adam between blocks.
    lr         in weight: the rms distance of a block in a step if its gradients agree. Typical 3e-3.
    Defaults   as Adam's.
    Source     Zhao et al. (2024), arXiv 2407.07972, Algorithm 1. Near Adam-mini, Zhang et al. (2024),
               arXiv 2406.16793.
    """
    m.lerp_(g, 1 - beta1)
    v.lerp_(mean_of_blocks(g.square(), v), 1 - beta2)
    u = hat(m, beta1, t).reshape(len(v), -1) / (hat(v, beta2, t).sqrt() + eps)[:, None]
    return u.reshape(g.shape)

def adasgd(g, m, v: scalar, t, g2, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """AdaSGD: Adam with one v for all weights together, which is SGD whose lr is free of the loss's scale.

        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) mean of g^2 over all weights of the group
        u  = m_hat / (sqrt(v_hat) + eps)      m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)

    Remembers  m, 4 bytes per weight; one v.
    Moves      all weights together by about lr (root mean square), each in proportion to its mean gradient.
    lr         in weight: the rms distance of all weights in a step if the gradients agree. Typical 3e-3.
    Defaults   as Adam's.
    Source     Wang, Wiens (2020), arXiv 2006.16541; this form Zhao et al. (2024), arXiv 2407.07972, app. E.
    """
    m.lerp_(g, 1 - beta1)
    v.lerp_(g2, 1 - beta2)
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)

def adalayer_frozen(g, m, v: per_block, t, *, beta1=0.9, beta2=0.95, eps=1e-15, freeze_steps=1000,
                    updating=False):
    """Adalayer with frozen ratios: measure each block's v for a while without moving, then hold it.

        m <- b1 m + (1 - b1) g
        v <- v + (mean of g^2 over the block - v) / (t + 1)    while t <= freeze_steps
        v <- b2 v + (1 - b2) mean of g^2 over the block        afterwards, if updating
        u  = m_hat / (sqrt(v) + eps)                           m_hat = m / (1 - b1^t)
        u  = 0                                                 while t <= freeze_steps

    Remembers  m, 4 bytes per weight; one v per block.
    Moves      as SGD with an lr for each block, measured once.
    lr         in weight, as Adalayer's. Typical 3e-3.
    Defaults   as Adalayer's; 1000 measuring steps as in the paper. v starts at 0 and is not corrected for
               it, so after n steps it is n / (n + 1) of their mean, as in the authors' code.
    Source     Zhao et al. (2024), arXiv 2407.07972, section 3.3.
    """
    m.lerp_(g, 1 - beta1)
    pace = torch.where(t > freeze_steps, (1 - beta2) * updating, 1 / (t + 1)).to(v)
    v += pace * (mean_of_blocks(g.square(), v) - v)
    u = hat(m, beta1, t).reshape(len(v), -1) / (v.sqrt() + eps)[:, None]
    return u.reshape(g.shape) * (t > freeze_steps)

# ---------------------------------------------------------------------------------------------------------
# Reading a signature

# what a rule may ask for besides its own state; the last line is for zoo/, see Optimizer
RESERVED = ("g", "w", "lr", "t", "g2",
            "u", "decay", "norm", "blocks", "role")

def rules():
    """{name: function} of the rules in this file: every function whose first parameter is g."""
    return {name: f for name, f in globals().items()
            if inspect.isfunction(f) and next(iter(inspect.signature(f).parameters), None) == "g"}

def zoo():
    """{name: function} of the rules in zoo/*.py, found as those above."""
    found, core = {}, rules()
    for path in sorted(Path(__file__).parent.glob("zoo/*.py")):
        if path.stem == "modifiers":    # some of which begin with g, too
            continue
        for name, f in functions_in(path.stem, "g").items():
            if name in core or name in found:
                raise ValueError(f"zoo/{path.name}: {name}: there is another rule of that name; rename one")
            found[name] = f
    return found

def modifiers():
    """{name: function} of zoo/modifiers.py: what changes a rule; see Optimizer."""
    return functions_in("modifiers", "g", "u", "decay")

def shapes():
    """{name: function} of zoo/schedules.py: what an lr may do after the warmup."""
    return functions_in("schedules", "p")

def functions_in(stem, *first):
    """{name: function} of the functions of a file of zoo/ whose first parameter is one of these."""
    module = importlib.import_module(f"zoo.{stem}")
    own = {name: f for name, f in vars(module).items()
           if inspect.isfunction(f) and f.__module__ == module.__name__}
    return {name: f for name, f in own.items() if next(iter(inspect.signature(f).parameters), None) in first}

def asks_for(rule):
    """The positional parameters of a rule, in order."""
    return [p.name for p in inspect.signature(rule).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

def state_of(*rules):
    """{name: start} of a rule's state. start(weight, number of blocks) makes it;
    None: zeros like the weight."""
    return {p.name: None if p.annotation is p.empty else p.annotation
            for rule in rules for p in inspect.signature(rule, eval_str=True).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in RESERVED}

def hyper_of(*rules):
    """{name: default} of a rule's hyperparameters."""
    return {p.name: p.default for rule in rules for p in inspect.signature(rule).parameters.values()
            if p.kind is p.KEYWORD_ONLY}

def checked(rule, hyper, modify=()):
    """All hyperparameters of a rule and its modifiers: those in hyper, else the defaults.
    Raises ValueError for a bad one, by name."""
    known = hyper_of(rule, *modify)
    for name, value in hyper.items():
        if name not in known:
            raise ValueError(f"{name}: is no hyperparameter of {rule.__name__}, "
                             f"which takes {', '.join(known)}")
        kind = type(known[name])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{name}={value!r}: must be of type {kind.__name__}")
        if kind not in (bool, int, float):
            raise ValueError(f"{name}={value!r}: a hyperparameter must be a number or a bool")
        if kind is not bool and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value}: must be a finite number, 0 or more")
        if name.split("_")[-1].startswith("beta") and value >= 1:
            raise ValueError(f"{name}={value}: must be in [0, 1)")
        if name.endswith("_steps") and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    return known | hyper

# ---------------------------------------------------------------------------------------------------------
# Applying a rule

def apply(parts, weights, grads, states, shared):
    """One step of one rule on a list of weights: the only place that changes one. parts: what is made, by
    which function, with which hyperparameters; a rule makes u. shared: t, lr, decay and whatever else all
    weights have in common, as 0-d tensors, so that a schedule does not make the compiler start again."""
    for w, g, state in zip(weights, grads, states):
        given = shared | state | dict(g=g, w=w)
        for made, function, hyper in parts:
            given[made] = function(*(given[name] for name in asks_for(function)), **hyper)
        u = given["u"]
        w.copy_(given["decay"] * w.to(u.dtype) - given["lr"] * u)

def sum_of_squares(grads):
    return sum(g.square().sum(-1).sum() for g in grads)    # as in mean_of_blocks

def alike(members, asked, most=8):
    """Splits a list of (weight, gradient, what is given to the rule) by the shape, the blocks and, if it is
    asked for, the role of the weight, and that evenly into parts of at most 8: each part of a kind runs the
    same compiled code. A call costs 35 us, so code for one tensor is slow where tensors are small; code for
    all 67 tensors of a model with 8 layers took three times as long to compile. Yields kind, weights,
    gradients, and of what is given what is asked for."""
    kinds = defaultdict(list)
    for w, g, given in members:
        kind = (w.shape, w.dtype, w.device, given["blocks"], given["role"] if "role" in asked else None)
        kinds[kind].append((w, g, {name: value for name, value in given.items() if name in asked}))
    for kind, same in kinds.items():
        size = -(-len(same) // -(-len(same) // most))
        for i in range(0, len(same), size):
            yield (*kind, len(same[i:i + size])), *zip(*same[i:i + size])

class Optimizer(torch.optim.Optimizer):
    """Applies an update rule; in all else a torch optimizer (groups, closures, schedulers, scalers).

    params             as torch takes them: tensors, (name, tensor) pairs, or groups. A group may set its own
                       rule, lr, weight_decay, weight_decay_kind and hyperparameters, and blocks: a list of
                       how many blocks each of its tensors has
    rule               a function such as those above
    lr                 peak learning rate, in the unit that the rule's docstring states
    weight_decay_kind  "coupled": a step multiplies weights by 1 - lr * weight_decay, as in torch;
                       "independent": by 1 - weight_decay * lr / lr_peak, as in the paper, where lr_peak
                       is the lr that the group had when it was added
    strict             raise if a gradient is missing; otherwise that parameter is skipped, as torch does
    compile            compile rule, decay and apply together (a step that skips parameters runs without)
    modify             functions that change what goes into the rule or comes out of it, see below
    **hyper            the rule's hyperparameters, and the modifiers'

    State is plain numbers and fp32 tensors (fp64 for fp64 weights), made at a parameter's first step.

    What the rules of zoo/ need besides, each of it said by a signature or an attribute of the function:
    blocks, role       may be asked for, as t may: the number of blocks of the tensor (the fused q, k, v are
                       three) and its role (None where nobody said); norm, too: of the gradient of all groups
    a start's keywords a state whose size depends on more than the weight's shape:
                       def factors(w, blocks, *, rank) is given the hyperparameter rank, or the role
    rule.measures = 1  the first so many steps only measure: the rule returns 0, and nothing decays
    rule.refresh = f   f(state, g, w, t, index, blocks, role, hyperparameters; what it asks for, by name)
                       updates state in place, outside the compiled graph, before the first step that moves
                       and every refresh_steps (a hyperparameter of the rule) from there. index: of the
                       tensor. If f asks for gs, the gradient of the loss on labels sampled from the model,
                       wants_sampled() tells before a step that step(sampled={tensor: gradient}) must give it
    rule.roles, .rest  for make: the roles that the rule is for, and the name of the rule of all others
    rule.lr_of_adamw   its usual lr in AdamW's, with which the trainer begins (without: 1)
    a modifier         is a function, too: its first parameter, g, u or decay, is what it makes anew, before
                       the rule if it is g, else after it; one that asks for the decay comes last. The names
                       of its state and of its hyperparameters begin with its own, so that they meet none of
                       the rule's
    """
    def __init__(self, params, rule, *, lr, weight_decay=0.0, weight_decay_kind="coupled", strict=False,
                 compile=False, modify=(), **hyper):
        self.rule, self.hyper, self.rules = rule, checked(rule, hyper, modify), {}
        self.modify, self.compile, self.graphs = tuple(modify), compile, {}
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, weight_decay_kind=weight_decay_kind,
                                      strict=strict))

    def __getstate__(self):    # for deepcopy, of which torch's own keeps only three attributes
        own = ("rule", "hyper", "rules", "modify", "compile", "graphs")
        return super().__getstate__() | {k: getattr(self, k) for k in own}

    def add_param_group(self, param_group):
        group = self.defaults | param_group
        params = group["params"]
        params = group["params"] = [params] if torch.is_tensor(params) else list(params)
        rule, modify = group.setdefault("rule", self.rule), group.setdefault("modify", self.modify)
        group.setdefault("lr_peak", group["lr"])
        group.setdefault("blocks", [1] * len(params))
        own = {"params", "param_names", "roles", "blocks", "rule", "modify", "lr_peak", *self.defaults}
        group |= checked(rule, (self.hyper if rule is self.rule else {}) |
                         {k: v for k, v in group.items() if k not in own}, modify)
        for key in ("lr", "weight_decay"):
            if type(group[key]) not in (int, float) or not (math.isfinite(group[key]) and group[key] >= 0):
                raise ValueError(f"{key}={group[key]!r}: must be a plain number, 0 or more")
        if (kind := group["weight_decay_kind"]) not in ("coupled", "independent"):
            raise ValueError(f"weight_decay_kind={kind!r}: must be coupled or independent")
        group["rule"], group["modify"] = rule.__name__, [f.__name__ for f in modify]
        for f in (rule, *modify):
            if self.rules.setdefault(f.__name__, f) is not f:
                raise ValueError(f"{f.__name__}: the name of two different rules; rename one")
        tensors = [p[1] if isinstance(p, tuple) else p for p in params]
        for i, (p, blocks) in enumerate(zip(tensors, group["blocks"], strict=True)):
            if any(p is q for q in tensors[:i]):
                raise ValueError(f"parameter {i} of shape {tuple(p.shape)}: given twice in one group")
            if p.numel() % blocks:
                raise ValueError(f"parameter {i}: {p.numel()} weights do not divide into {blocks} blocks")
        super().add_param_group(group)

    @staticmethod
    def name(group, i):
        """What a message calls parameter i of a group."""
        shape = tuple(group["params"][i].shape)
        return group["param_names"][i] if "param_names" in group else f"parameter {i} of shape {shape}"

    def parts(self, group):
        """What a step of a group makes, in this order, by which functions."""
        changes = [(asks_for(f)[0], f) for f in (self.rules[name] for name in group.get("modify", ()))]
        changes.sort(key=lambda change: "decay" in asks_for(change[1])[1:])    # what it gets must be final
        return [*((made, f) for made, f in changes if made == "g"), ("u", self.rules[group["rule"]]),
                *((made, f) for made, f in changes if made != "g")]

    def start(self, group, i, device=None):
        """The state of parameter i of a group before its first step."""
        p = group["params"][i].to(device)
        dtype = torch.promote_types(p.dtype, torch.float32)
        known = group | dict(role=group["roles"][i] if "roles" in group else None)

        def made(begin):
            if begin is None:
                return torch.zeros_like(p)
            return begin(p, group["blocks"][i], **{key: known[key] for key in hyper_of(begin)})
        return {"t": 0} | {name: made(begin).detach().to(dtype)
                           for name, begin in state_of(*(f for _, f in self.parts(group))).items()}

    def state_bytes(self, group):
        """Bytes of state that the parameters of a group have after their first step."""
        return sum(s.numel() * s.element_size() for i in range(len(group["params"]))
                   for s in self.start(group, i, "meta").values() if torch.is_tensor(s))

    def still(self, group):
        """In how many first steps a group only measures."""
        return getattr(self.rules[group["rule"]], "measures", group.get("freeze_steps", 0))

    def decay(self, group, t):
        """What step t multiplies the weights of a group by."""
        if t <= self.still(group):
            return 1.0
        if group["weight_decay_kind"] == "coupled":
            return 1 - group["lr"] * group["weight_decay"]
        return 1 - group["weight_decay"] * group["lr"] / group["lr_peak"] if group["lr_peak"] else 1.0

    def graph(self, function, *kind):
        """A function, to be compiled for one kind of tensors."""
        key = (function.__name__, *kind)
        if key not in self.graphs:
            self.graphs[key] = torch.compile(function, fullgraph=True, dynamic=False, isolate_recompiles=True)
        return self.graphs[key]

    def refresh_at(self, group, t):
        """The function that refreshes a group's state before step t, or None."""
        refresh, moved = getattr(self.rules[group["rule"]], "refresh", None), t - 1 - self.still(group)
        return refresh if refresh and moved >= 0 and moved % group["refresh_steps"] == 0 else None

    def wants_sampled(self):
        """Whether the next step needs gradients of the loss on labels sampled from the model."""
        refreshed = [group for group in self.param_groups if hasattr(self.rules[group["rule"]], "refresh")]
        return any("gs" in asks_for(refresh) for group in refreshed for p in group["params"]
                   if (refresh := self.refresh_at(group, self.state.get(p, {}).get("t", 0) + 1)))

    @torch.no_grad()
    def step(self, closure=None, sampled=None):
        """Updates all parameters. closure computes the loss and the gradients anew; its loss is returned.
        sampled: {tensor: gradient} if wants_sampled()."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:    # look at every gradient before anything moves
            for i, p in enumerate(group["params"]):
                if p.grad is None and group["strict"]:
                    raise RuntimeError(f"{self.name(group, i)}: has no gradient; is it used in the loss?")
                if p.grad is not None and p.grad.layout is not torch.strided:
                    raise RuntimeError(f"{self.name(group, i)}: has a sparse gradient; give sparse=False")
        if not sampled and self.wants_sampled():
            raise RuntimeError("this step needs gradients on sampled labels; see wants_sampled()")
        index, norm, all_parts = 0, None, [self.parts(group) for group in self.param_groups]
        if any("norm" in asks_for(f) for parts in all_parts for _, f in parts):
            norm = torch.nn.utils.get_total_norm([p.grad for group in self.param_groups
                                                  for p in group["params"] if p.grad is not None])
        for group, parts in zip(self.param_groups, all_parts):
            parts = [(made, f, {name: group[name] for name in hyper_of(f)}) for made, f in parts]
            asked = {name for _, f, _ in parts for name in asks_for(f)} - {"t"}
            which = tuple((f.__name__, *hyper.values()) for _, f, hyper in parts)
            at = defaultdict(list)         # parameters by their own step: usually all at the same
            for i, p in enumerate(group["params"]):
                index += 1
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state = self.state[p] = self.start(group, i)
                    state["t"] += 1
                    g = p.grad.to(torch.promote_types(p.dtype, torch.float32))
                    given = state | dict(blocks=group["blocks"][i], index=index,
                                         role=group["roles"][i] if "roles" in group else None)
                    at[state["t"]].append((p, g, given))
            for t, members in at.items():
                if refresh := self.refresh_at(group, t):
                    for p, g, given in members:
                        given = group | given | dict(g=g, w=p)
                        if "gs" in asks_for(refresh):
                            given["gs"] = sampled[p].to(g.dtype)
                        refresh(**{name: given[name] for name in inspect.signature(refresh).parameters})
                numbers = torch.tensor([t, group["lr"], self.decay(group, t)], dtype=torch.float64).unbind()
                shared, alikes = dict(zip(("t", "lr", "decay"), numbers)), list(alike(members, asked))
                whole = self.compile and len(members) == len(group["params"])
                graph = self.graph if whole else lambda function, *kind: function
                if "g2" in asked:
                    squares = [graph(sum_of_squares, *kind)(grads) for kind, _, grads, _ in alikes]
                    shared["g2"] = sum(squares) / sum(g.numel() for _, g, _ in members)
                if "norm" in asked:
                    shared["norm"] = norm
                for kind, weights, grads, states in alikes:
                    graph(apply, which, *kind)(parts, weights, grads, states, shared)
        return loss

    def load_state_dict(self, state_dict):
        """Restores what state_dict() gave, in the saved dtypes
        (torch's own would cast state to the weight's)."""
        for group, saved in zip(self.param_groups, state_dict["param_groups"]):
            theirs = saved.get("rule", "another optimizer")
            if group["rule"] != theirs:
                raise ValueError(f"the state is of {theirs}, not of {group['rule']}")
            if group["modify"] != saved.get("modify", []):
                raise ValueError(f"the state is of {theirs} modified by {saved.get('modify', [])}, "
                                 f"not by {group['modify']}")
        super().load_state_dict(state_dict)
        ids = iter([i for saved in state_dict["param_groups"] for i in saved["params"]])
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                saved = state_dict["state"].get(next(ids))
                if saved is None:
                    continue
                fresh = self.start(group, i)
                theirs, ours = ({k: getattr(v, "shape", None) for k, v in s.items()} for s in (saved, fresh))
                if theirs != ours:
                    raise ValueError(f"{self.name(group, i)}: the state holds {theirs}, not {ours}")
                self.state[p] = {k: v.to(p.device, copy=True) if torch.is_tensor(v) else v
                                 for k, v in saved.items()}

# ---------------------------------------------------------------------------------------------------------
# What the optimizer does, seen from outside

def effective_lr(optimizer):
    """The lr that each block really has, lr / (sqrt(v_hat) + eps): the paper's central figure (Fig. 7).

    Returns a list of {name, role, values}, one for each parameter that has moved and whose rule keeps a
    second moment v, or r and c, and divides by it as Adam does. values: 1-D, fp32, an entry per block (adamw,
    adafactor: per weight), weight per gradient.
    """
    rows = []
    for group in optimizer.param_groups:
        for i, p in enumerate(group["params"]):
            state = optimizer.state[p]
            if not ("v" in state or {"r", "c"} <= set(state)):
                continue
            v = state["v"] if "v" in state else factored(state["r"], state["c"])
            if "freeze_steps" not in group:    # frozen ratios are not corrected for their start
                v = v / (1 - group["beta2"] ** state["t"])
            role = group["roles"][i] if "roles" in group else None
            rows.append(dict(name=optimizer.name(group, i), role=role,
                             values=(group["lr"] / (v.sqrt() + group["eps"])).flatten().float()))
    return rows

# ---------------------------------------------------------------------------------------------------------
# The paper's variants: which rule, with which blocks, on which role

ROLES = ("embed", "qkv", "matrix", "norm", "head")

# The best peak lr as a multiple of AdamW's in the paper, at 150m: where to begin if nobody has tuned.
LR_OF_ADAMW = dict(adamw=1, adafactor=1, adalayer=1, adalayer_star=1, adasgd=1, lion=0.1, signum=0.1, sgd=300,
                   sgd_ema=3000)

def names():
    """The paper's optimizers, which make() knows by name, as it knows those of zoo()."""
    return [name for name in rules() if name != "adalayer_frozen"] + ["adalayer_star"]

def find(name):
    """The rule behind an optimizer's name. Raises ValueError with the nearest name."""
    if name not in (known := [*names(), *zoo()]):
        near = (difflib.get_close_matches(str(name), names(), 1) or
                difflib.get_close_matches(str(name), known, 1, 0))
        raise ValueError(f"{name!r} is no optimizer; did you mean {near[0]}? There are {', '.join(names())}, "
                         "and those of zoo/")
    return (rules() | zoo())["adalayer" if name == "adalayer_star" else name]

def find_modifiers(text):
    """The functions behind "cautious+cautious_decay", in order. Raises ValueError, naming the option."""
    known = modifiers()
    if not set(text.split("+")) <= set(known):
        raise ValueError(f"modify={text!r}: must be one or more of {', '.join(known)}, joined by +")
    return [known[name] for name in text.split("+")]

def role_set(option, text):
    """{"head", "norm"} for "head+norm". Raises ValueError, naming the option."""
    roles = set(text.split("+"))
    if not roles <= set(ROLES):
        raise ValueError(f"{option}={text!r}: must be one or more of {', '.join(ROLES)}, joined by +")
    return roles

def make(name, roles, *, lr, weight_decay=0.0, weight_decay_kind="independent", compile=False, rows=None,
         adaptive=None, rest=None, rest_lr=None, untrained=None, freeze_steps=None, updating=None,
         modify=None, **hyper):
    """An Optimizer for a model, which treats each parameter by its role.

    name       sgd, sgd_ema, signum, lion, adamw, adafactor, adalayer, adalayer_star, adasgd; or one of zoo()
    roles      triples (name, parameter, role), as model.roles() gives them; a role is one of ROLES
    lr         peak learning rate, in the unit that the rule's docstring states
    rows       roles in which each row is a block; rows="head" makes Adalayer Adalayer*
    adaptive, rest, rest_lr    a hybrid: these roles by the main rule at lr, the others by rest at rest_lr; a
               rule that is for some roles only (muon) is one, and brings its adaptive and rest
    untrained  roles that stay as they are (their gradients still count in the norm that is clipped)
    freeze_steps, updating     frozen ratios, for adalayer and adalayer_star: measure second moments for so
               many steps without moving, then hold them, but for the roles in updating ("none": for all)
    modify     modifiers of zoo/modifiers.py for all trained roles, such as "cautious+cautious_decay"
    **hyper    hyperparameters of the main rule; of the other rule with rest_ before the name; of modifiers
    Raises ValueError for what does not fit together, naming the option.
    """
    rule, star = find(name), name == "adalayer_star"
    if hasattr(rule, "roles"):
        if rest_lr is None:
            raise ValueError(f"rest_lr: {name} is for {rule.roles}; give the lr of {rest or rule.rest}, "
                             "which trains the others")
        adaptive, rest = adaptive or rule.roles, rest or rule.rest
    given = [k for k, v in dict(adaptive=adaptive, rest=rest, rest_lr=rest_lr).items() if v is not None]
    if len(given) not in (0, 3):
        raise ValueError(f"{given[0]}: adaptive, rest and rest_lr make a hybrid; give all three or none")
    if (freeze_steps is None) != (updating is None):
        raise ValueError("freeze_steps, updating: give both (updating may be none) or neither")
    if freeze_steps is not None and (rule is not adalayer or given):
        raise ValueError("freeze_steps: is for adalayer and adalayer_star, and not for hybrids")
    if freeze_steps is not None and freeze_steps < 1:
        raise ValueError(f"freeze_steps={freeze_steps}: must be at least 1")
    by_rows = role_set("rows", rows) if rows is not None else {"head"} if star else set()
    if star and "head" not in by_rows:
        raise ValueError(f"rows={rows!r}: must include head for adalayer_star; for other rows take adalayer")
    by_main = role_set("adaptive", adaptive) if given else set(ROLES)
    by_none = role_set("untrained", untrained) if untrained is not None else set()
    measured = role_set("updating", updating) if updating not in (None, "none") else set()

    modify = find_modifiers(modify) if modify is not None else []
    rest_hyper = {k.removeprefix("rest_"): v for k, v in hyper.items() if k.startswith("rest_")}
    hyper = {k: v for k, v in hyper.items() if not k.startswith("rest_")}
    main, other = dict(rule=rule, lr=lr, **checked(rule, hyper, modify)), None
    if given:
        shared = {k: v for k, v in hyper.items() if k in hyper_of(*modify)}
        other = dict(rule=find(rest), lr=rest_lr, **checked(find(rest), rest_hyper | shared, modify))
    elif rest_hyper:
        raise ValueError(f"rest_{next(iter(rest_hyper))}: there is no other rule; "
                         "give adaptive, rest, rest_lr")
    if freeze_steps is not None:
        main |= dict(rule=adalayer_frozen, freeze_steps=freeze_steps)

    groups, known = {}, {}    # a group for each rule, and for updating or not
    for label, p, role in roles:
        if role not in ROLES:
            raise ValueError(f"{label}: has the unknown role {role!r}; there are {', '.join(ROLES)}")
        if id(p) in known:
            raise ValueError(f"{label}: is {known[id(p)]}, which has a role already")
        known[id(p)] = label
        if role in by_none:
            continue
        settings = main if role in by_main else other
        takes = {*state_of(settings["rule"]).values(), *asks_for(settings["rule"])}
        has_blocks = bool(takes & {per_block, "blocks"})
        if rows is not None and role in by_rows and not has_blocks:
            raise ValueError(f"rows={rows!r}: {settings['rule'].__name__}, the rule of {role}, has no blocks")
        frozen = {} if freeze_steps is None else dict(updating=role in measured)
        group = groups.setdefault((settings is main, *frozen.values()),
                                  settings | frozen | dict(params=[], roles=[], blocks=[]))
        group["params"].append((label, p))
        group["roles"].append(role)
        blocks = len(p) if role in by_rows else 3 if role == "qkv" else 1
        group["blocks"].append(blocks if has_blocks else 1)
    if not groups:
        raise ValueError("untrained: leaves nothing to train")
    return Optimizer(list(groups.values()), main["rule"], lr=lr, weight_decay=weight_decay,
                     weight_decay_kind=weight_decay_kind, strict=True, compile=compile, modify=modify)

# ---------------------------------------------------------------------------------------------------------
# Schedules

def schedule(t, steps, kind="cosine", warmup=0.1, warmup_from=0.1, floor=0.1, cooldown=1.0):
    """The fraction of the peak lr at step t = 1 ... steps: in the first warmup * steps it rises in
    a line from warmup_from to 1, then it falls to floor as a cosine or a line, stays (constant), or takes
    a shape of zoo/schedules.py. The defaults are the paper's. With cooldown below 1 it stays at 1, to fall
    only in the last cooldown * steps."""
    rise = round(warmup * steps)
    if t < rise:
        return warmup_from + (1 - warmup_from) * t / rise
    fall = max(rise, steps - round(cooldown * steps))
    if kind == "constant" or t <= fall:
        return 1.0
    done = (t - fall) / (steps - fall)
    if kind in ("cosine", "linear"):
        left = 1 - done if kind == "linear" else (1 + math.cos(math.pi * done)) / 2
    else:
        left = shapes()[kind](done, floor)
    return floor + (1 - floor) * left

# ---------------------------------------------------------------------------------------------------------
# python optim.py NAME: the rule at work on a row of two weights, small enough for a pencil

def by_hand(name):
    """Prints a rule's docstring and three of its steps."""
    rule = rules().get(name) or find(name)
    w = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    optimizer = Optimizer([w], rule, lr=0.1, **({"freeze_steps": 1} if rule is adalayer_frozen else {}))
    group = optimizer.param_groups[0]
    hyper = ", ".join(f"{k} {group[k]}" for k in hyper_of(rule))
    print(f"{inspect.getdoc(rule)}\n\none row of two weights, lr 0.1, {hyper}\n")

    def show(label, x):
        print(f"{label:8s} " + " ".join(f"{value:10.6f}" for value in x.flatten().tolist()))

    show("       w", w)
    for t, g in enumerate(([1.0, -0.5], [0.5, 0.5], [-1.0, 0.25]), 1):
        before, w.grad = w.clone(), torch.tensor([g], dtype=torch.float64)
        optimizer.step(sampled={w: w.grad})    # as if the labels drawn were those of the data
        show(f"step {t} g", w.grad)
        for key in state_of(rule):
            show(f"       {key}", optimizer.state[w][key])
        show("       u", (before - w) / 0.1)
        show("       w", w)

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"{__doc__.strip()}\n\npython optim.py NAME, one of {', '.join(names())}")
    try:
        by_hand(sys.argv[1])
    except ValueError as error:
        sys.exit(f"optim.py: error: {error}")
