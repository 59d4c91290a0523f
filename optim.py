"""
The update rules of "Deconstructing What Makes a Good Optimizer for Language Models" (Zhao, Morwani,
Brandfonbrener, Vyas, Kakade, arXiv 2407.07972). Each rule is one function, and one class applies them all.
The file needs only torch, so you can copy it into a project of your own.

    u = rule(gradient, state, hyperparameters)       The optimizers differ only in this line.
    w <- decay * w - lr * u                          They all share this line, in apply(). decay 1: no decay.

Read the rules from top to bottom. Most differ by a line or two from a rule above. Look for these lines.
    python optim.py signum                           prints three steps, to check with a pencil (needs zoo/)
    Optimizer(model.parameters(), signum, lr=3e-4)   applies one rule in any training loop
    make("adalayer_star", model.roles(), lr=3e-3)    sets lr and blocks by the role of each parameter
"""
import difflib
import functools
import inspect
import math
import numbers
import runpy

import torch

# ---- How to read a rule ---------------------------------------------------------------------------------
# Positional parameters are what the rule gets. g is the gradient. A rule may also ask for t (the step, from
# 1), w (the weight), lr, and g2 (the mean of g^2 over all weights of the group). Any other name is state. The
# rule updates it in place. State is fp32, starts at 0 and has the weight's shape. An annotation, such as one
# of the next four functions, gives it another shape. Keyword-only parameters are hyperparameters.
# The rule returns u, and the step is -lr * u. The rule itself never touches the weight, the lr or the decay.

def per_block(w, blocks):    # one number for each block: (blocks,). A block is a set of weights of a tensor
    return w.new_zeros(blocks)

def per_row(w, blocks):    # one number for each row of a matrix: (rows, 1); a single number for a vector: ()
    return w.new_zeros((len(w),) + (1,) * (w.dim() - 1) if w.dim() > 1 else ())

def per_column(w, blocks):    # one number for each column of a matrix: (1, columns); one for a vector: ()
    return w.new_zeros((1, *w.shape[1:]) if w.dim() > 1 else ())

def scalar(w, blocks):    # one number for each parameter tensor: ()
    return w.new_zeros(())

# ---- Rules without a second moment: steps in proportion to the gradient, or all of one size -------------

def sgd(g, m, *, beta1=0.98):
    """Heavy-ball SGD follows the sum of past gradients, because a single gradient is mostly noise.
        m <- b1 m + g
        u  = m

    Remembers  m, the decaying sum of gradients: 4 bytes per weight.
    Moves      each weight in proportion to its gradient: a steady g moves it by lr g / (1 - b1) a step.
    lr         is in weight per unit of gradient, so no one value fits all layers or all models. Typical 1.0.
    Defaults   beta1 0.98 is the best of 0 ... 0.99 in the paper. Only SGD is so sensitive to it.
    Source     Polyak (1964), "Some methods of speeding up the convergence of iteration methods"."""
    m.mul_(beta1).add_(g)
    return m

def sgd_ema(g, m, t, *, beta1=0.9):
    """SGD with averaged momentum follows the mean of past gradients. The paper uses it in its hybrids.
        m <- b1 m + (1 - b1) g
        u  = m_hat                            m_hat = m / (1 - b1^t)

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      each weight in proportion to its gradient. A steady g moves it by lr g a step.
    lr         is in weight per unit of gradient: at equal beta1, 1 / (1 - b1) times sgd's. Typical 10.
    Defaults   beta1 0.9, as for every rule in the paper's section 3. m_hat corrects for the start at m = 0.
    Source     Zhao et al. (2024), arXiv 2407.07972, section 3."""
    m.lerp_(g, 1 - beta1)
    return hat(m, beta1, t)

def signum(g, m, *, beta1=0.9):
    """Signum takes only the sign of the mean gradient, because its size says little about how far to go.
        m <- b1 m + (1 - b1) g
        u  = sign(m)

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      every weight by exactly lr, and not at all where m is 0.
    lr         is how far each weight moves in a step. It is about a tenth of AdamW's. Typical 3e-4.
    Defaults   beta1 0.9 as in the paper, where 0.8 to 0.98 are alike. In the study's short runs, 0.8 is best.
    Source     Bernstein, Wang, Azizzadenesheli, Anandkumar (2018), arXiv 1802.04434."""
    m.lerp_(g, 1 - beta1)
    return m.sign()

def lion(g, m, *, beta1=0.9, beta2=0.95):
    """Lion is Signum with two betas. The newest gradient counts 1 - b1 in the step and 1 - b2 in the memory.
        u  = sign(b1 m + (1 - b1) g)
        m <- b2 m + (1 - b2) g

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      every weight by exactly lr, and not at all where b1 m + (1 - b1) g is 0.
    lr         is how far each weight moves in a step. It is about a tenth of AdamW's. Typical 3e-4.
    Defaults   beta1 0.9, beta2 0.95 as in the paper. Lion's authors use 0.9, 0.99. With b1 = b2 it is Signum.
    Source     Chen et al. (2023), arXiv 2302.06675."""
    u = m.lerp(g, 1 - beta1).sign()
    m.lerp_(g, 1 - beta2)
    return u

# ---- Rules with a second moment v, the running mean of g^2 ----------------------------------------------
# Adam's step is Signum's times |m_hat| / sqrt(v_hat). This ratio is 1 if the gradients agree, and near 0 if
# they cancel. These rules differ only in how they keep v: one for each weight, or one that many share.

def adamw(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """Adam divides the mean of g by the root of the mean of g^2, so that noisy weights make smaller steps.
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        u  = m_hat / (sqrt(v_hat) + eps)      m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)

    Remembers  m and v, the running means of g and g^2: 8 bytes per weight.
    Moves      each weight by about lr where its gradients agree, and by less where they cancel.
    lr         is how far each weight moves in a step if its gradients agree. Typical 3e-3.
    Defaults   beta1 0.9, beta2 0.95 as in the paper. eps 1e-15 prevents 0/0 and slows no weight (2309.14322).
    Source     Kingma, Ba (2014), arXiv 1412.6980. The decay in apply() is from arXiv 1711.05101."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)

def adafactor(g, m, r: per_row, c: per_column, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """Adafactor, as the paper has it, is Adam whose v is rebuilt from means over rows and columns.
        m <- b1 m + (1 - b1) g
        r <- b2 r + (1 - b2) mean of g^2 over each row
        c <- b2 c + (1 - b2) mean of g^2 over each column
        v  = (r / mean(r)) c
        u  = m_hat / (sqrt(v_hat) + eps)      m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)

    Remembers  m, 4 bytes per weight, and one number per row and per column. All of a vector shares one v.
    Moves      a weight as Adam does, if the means of its row and its column give nearly Adam's v.
    lr         is how far each weight moves in a step if its gradients agree. Typical 3e-3.
    Defaults   Adam's. As in the paper there is no update clipping, no relative step and no growing beta2.
    Source     Shazeer, Stern (2018), arXiv 1804.04235; with momentum Zhai et al. (2021), arXiv 2106.04560."""
    m.lerp_(g, 1 - beta1)
    r.lerp_(mean_to(g.square(), r), 1 - beta2)
    c.lerp_(mean_to(g.square(), c), 1 - beta2)
    v = factored(r, c)
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)

def adalayer(g, m, v: per_block, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """Adalayer is Adam with one v for a whole block: a tensor, or the q, k or v part of a fused qkv tensor.
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) mean of g^2 over the block
        u  = m_hat / (sqrt(v_hat) + eps)      m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)

    Remembers  m, 4 bytes per weight, and one v per block.
    Moves      the weights of a block by about lr (root mean square), each in proportion to its m_hat.
    lr         is how far (root mean square) a block moves in a step if its gradients agree. Typical 3e-3.
    Defaults   Adam's. If each row of the output head is a block of its own, this is Adalayer*.
    Source     Zhao et al. (2024), arXiv 2407.07972, Algorithm 1. Adam-mini (arXiv 2406.16793) is similar."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(mean_of_blocks(g.square(), v), 1 - beta2)
    u = hat(m, beta1, t).reshape(len(v), -1) / (hat(v, beta2, t).sqrt() + eps)[:, None]
    return u.reshape(g.shape)

def adasgd(g, m, v: scalar, t, g2, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """AdaSGD is Adam with one v for all weights together: SGD whose lr does not depend on the loss's scale.
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) mean of g^2 over all weights of the group
        u  = m_hat / (sqrt(v_hat) + eps)      m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)

    Remembers  m, 4 bytes per weight, and one v, which is the same for all tensors of the group.
    Moves      all weights together by about lr (root mean square), each in proportion to its mean gradient.
    lr         is how far (root mean square) all weights move in a step if gradients agree. Typical 3e-3.
    Defaults   Adam's.
    Source     Wang, Wiens (2020), arXiv 2006.16541; this form: arXiv 2407.07972, app. E."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g2, 1 - beta2)
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)

# ---- What the rules call --------------------------------------------------------------------------------

def hat(x, beta, t):    # x / (1 - beta^t) corrects a running mean for its start at 0
    return x * (1 / (1 - power(beta, t)))

def power(beta, t):    # beta^t. Compiled Adam would compute beta**t for every 16 weights: 1.6 times slower
    return torch.exp(t * (math.log(beta) if beta else -math.inf))

def factored(r, c):    # (r / mean(r)) c. To divide first prevents underflow. clamp_min prevents 0/0
    return r / r.mean().clamp_min(torch.finfo(r.dtype).tiny) * c

def mean_to(x, s):    # the mean of x in the shape of s: over every axis where s has length 1
    if x.dim() > 1 and s.shape[:1] == (1,) and len(x) % 16 == 0:    # for speed only: to average 16 rows first
        x = x.unflatten(0, (-1, 16)).mean(1)                        # makes compiled means 2.3 times as fast
    return x.sum_to_size(s.shape) / (x.numel() // s.numel())

def mean_of_blocks(x, v):    # the mean of x over each block. To average each row first is 1.1 times as fast
    row = math.gcd(x.numel() // len(v), *x.shape[-1:])    # of a row, what lies in one block
    return x.reshape(len(v), -1, row).mean(2).mean(1)

class Rule:
    """A rule's function, whose signature is read here, once, and what else must be known about it.

    lr_factor      the usual peak lr for the paper's 150m model, divided by 3.16e-3, which is AdamW's
    rows           roles in which each row is a block, such as ("head",). Only make() reads this
    second_moment  the name of the state whose root the rule divides by: "v", or "r c" if v is factored
    corrected      whether the rule corrects that state for its start at 0, as v_hat does
    bounds         {hyperparameter: (at least, below)}. A number without bounds is at least 0
    elementwise    whether each weight moves as if it were alone. Then one piece of code fits all shapes"""
    given = ("g", "w", "lr", "t", "g2")    # what a rule may ask for besides its own state

    def __init__(self, function, *, lr_factor=1, rows=(), second_moment="", corrected=True, bounds={},
                 elementwise=False):
        self.function, self.name, self.lr_factor, self.rows = function, function.__name__, lr_factor, rows
        self.bounds, self.elementwise = dict(beta1=(0, 1), beta2=(0, 1)) | bounds, elementwise
        self.second_moment, self.corrected = second_moment.split(), corrected
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        self.inputs = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
        self.state = {p.name: None if p.annotation is p.empty else p.annotation for p in parameters
                      if p.name in self.inputs and p.name not in self.given}
        self.hyper = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        self.has_blocks = self.takes_rows = per_block in self.state.values()
        if wrong := [p.name for p in parameters if p.name in self.state and p.default is not p.empty]:
            raise ValueError(f"{self.name}: {wrong[0]} is a hyperparameter; put a * before it")

    def checked(self, hyper: dict) -> dict:
        """All hyperparameters: those in hyper, else the defaults. A ValueError names a bad one."""
        values = dict(self.hyper)
        for name, value in hyper.items():
            if name not in self.hyper:
                raise ValueError(f"{name}: is not a hyperparameter of {self.name}: {', '.join(self.hyper)}")
            kind, (low, high) = type(self.hyper[name]), self.bounds.get(name, (0, math.inf))
            if not fits(value, kind) or not low <= value < high:
                raise ValueError(f"{name}={value!r}: must be of type {kind.__name__} and in [{low}, {high})")
            values[name] = kind(value)    # numpy's numbers become Python's
        return values

def fits(value, kind) -> bool:    # whether value, perhaps numpy's, can be a float, an int or a bool
    general = {float: numbers.Real, int: numbers.Integral, bool: bool}[kind]
    return isinstance(value, general) and isinstance(value, bool) is (kind is bool)

RULES = {
    "sgd":           Rule(sgd, lr_factor=300, elementwise=True),
    "sgd_ema":       Rule(sgd_ema, lr_factor=3000, elementwise=True),
    "signum":        Rule(signum, lr_factor=0.1, elementwise=True),
    "lion":          Rule(lion, lr_factor=0.1, elementwise=True),
    "adamw":         Rule(adamw, second_moment="v", elementwise=True),
    "adafactor":     Rule(adafactor, second_moment="r c"),
    "adalayer":      Rule(adalayer, second_moment="v"),
    "adasgd":        Rule(adasgd, second_moment="v", elementwise=True),
    "adalayer_star": Rule(adalayer, second_moment="v", rows=("head",)),
}

@functools.cache
def rule_of(rule) -> Rule:
    """The Rule of a name or a function: that of the table, or a new one for a function of your own."""
    if isinstance(rule, str) and rule not in RULES:
        raise ValueError(f"{rule!r} is no rule of this file; there are {', '.join(RULES)}; more in zoo/")
    if isinstance(rule, Rule | str):
        return RULES.get(rule, rule)
    return next((known for known in RULES.values() if known.function is rule), None) or Rule(rule)

def apply(rule, inputs, hyper, weights, grads, states, shared):
    """One step of one rule on a list of weights. This is the only place that changes a weight.
    shared: t, lr, decay and g2 as 0-d tensors, so that a schedule does not make the compiler start again."""
    for w, g, state in zip(weights, grads, states):
        given = shared | state | dict(g=g, w=w)
        u = rule(*(given[name] for name in inputs), **hyper)
        if getattr(u, "shape", None) != w.shape:
            raise ValueError(f"the rule returns {getattr(u, 'shape', u)}, and must return u, of {w.shape}")
        w.copy_(shared["decay"] * w.to(torch.promote_types(w.dtype, u.dtype)) - shared["lr"] * u)

@functools.cache
def compiled(function, kind, elementwise):    # kind is only the key of the cache: each kind is compiled once
    return torch.compile(function, fullgraph=True, dynamic=elementwise, isolate_recompiles=True)

def flattened(kind, p, g, state):
    """A tensor with its gradient and state in one dimension: then all tensors of a type are of one kind."""
    is_plain = type(p) in (torch.Tensor, torch.nn.Parameter) and p.is_contiguous()    # not so under FSDP2
    if p.numel() == 1 or not is_plain:    # the compiler makes special code for a single weight
        return kind, p, g, state
    torch.autograd.graph.increment_version(p)    # autograd does not see what happens to the memory itself
    def flat(x):    # x.view(-1) is a view, and the compiler would look at the shape of x itself
        return x.new_empty(0).set_(x.untyped_storage(), x.storage_offset(), (x.numel(),))
    state = {name: flat(x) if x.numel() == p.numel() else x for name, x in state.items()}
    return (p.dtype, p.device), flat(p), flat(g), state

def batches_of_one_kind(members, most=4):
    """Yields (kind, weights, gradients, states). A batch holds 4 tensors of one kind or only one, so batches
    share compiled code. A call costs 35 us, so one at a time is slow. 8 take twice as long to compile.
    The largest come first, because the compiler decides by the first batch whether to use threads."""
    kinds = {}
    for kind, *tensors in sorted(members, key=lambda member: -member[1].numel()):
        kinds.setdefault(kind, []).append(tensors)
    for kind, same in kinds.items():
        while same:
            size = most if len(same) >= most else 1
            yield (*kind, size), *zip(*same[:size])
            same = same[size:]

class Optimizer(torch.optim.Optimizer):
    """Applies an update rule. In all else it is a torch optimizer. A ValueError names what does not fit.
    params             tensors, (name, tensor) pairs, or groups, as torch takes them. A group may have its own
                       rule, lr, decay and hyperparameters, and blocks: how many blocks each tensor has
    rule, **hyper      the rule: a name of RULES, a function or a Rule; then values of its hyperparameters
    lr                 the peak learning rate, in the unit that the rule's docstring states
    weight_decay_kind  "coupled": a step multiplies weights by 1 - lr * weight_decay, as torch does;
                       "independent": by 1 - weight_decay * lr / lr_peak, the paper's. lr_peak is the first lr
    strict             raise an error if a gradient is missing; otherwise skip that parameter, as torch does
    compile            run compiled code, which is faster after its first step"""
    rule_of, compiled = staticmethod(rule_of), staticmethod(compiled)

    def __init__(self, params, rule, *, lr, weight_decay=0.0, weight_decay_kind="coupled", strict=False,
                 compile=False, **hyper):
        if isinstance(params, str):
            raise ValueError(f"params={params!r}: tensors come first: Optimizer(params, {params!r}, lr=...)")
        self.rule = self.rule_of(rule)
        self.hyper, self.compile, self.rules = self.rule.checked(hyper), compile, {}
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, weight_decay_kind=weight_decay_kind,
                                      strict=strict))

    def __getstate__(self):    # for deepcopy; torch's own keeps three attributes. A scheduler wraps `step`
        return {name: x for name, x in vars(self).items() if name != "step"}

    def add_param_group(self, param_group: dict) -> None:    # torch's __init__ calls it for each group
        group = self.defaults | dict(rule=self.rule) | param_group
        params = [group["params"]] if torch.is_tensor(group["params"]) else list(group["params"])
        rule = self.rule_of(group["rule"])
        if self.rules.setdefault(rule.name, rule).function is not rule.function:
            raise ValueError(f"{rule.name}: the name of two different rules; rename one")
        known = {"params", "param_names", "names", "roles", "blocks", "rule", "lr_peak", *self.defaults}
        hyper = {name: value for name, value in group.items() if name in rule.hyper}
        usual_names = {*rule.hyper, *(name for usual in RULES.values() for name in usual.hyper), "momentum"}
        for name in group.keys() - known - hyper.keys():    # torch allows names of the user's own
            if (difflib.get_close_matches(name, usual_names, 1, 0.75) or
                    difflib.get_close_matches(name, {*self.defaults, "blocks", "rule"}, 1, 0.9)):
                rule.checked({name: group[name]})    # raises the error
        group |= rule.checked(self.hyper | hyper if rule is self.rule else hyper)
        names = [p[0] if isinstance(p, tuple) else f"parameter {i} of shape {tuple(p.shape)}"
                 for i, p in enumerate(params)]
        usual = dict(blocks=[1] * len(params), roles=[None] * len(params), lr_peak=group["lr"])
        group = usual | group | dict(rule=rule.name, params=params, names=names)
        for name in ("lr", "lr_peak", "weight_decay"):
            if not fits(group[name], float) or not 0 <= group[name] < math.inf:
                raise ValueError(f"{name}={group[name]!r}: must be a plain number, 0 or more")
            group[name] = float(group[name])
        if (kind := group["weight_decay_kind"]) not in ("coupled", "independent"):
            raise ValueError(f"weight_decay_kind={kind!r}: must be coupled or independent")
        tensors = [p[1] if isinstance(p, tuple) else p for p in params]
        if len(set(map(id, tensors))) < len(tensors):
            raise ValueError("params: a tensor is given twice in one group")
        for name, p, blocks in zip(names, tensors, group["blocks"], strict=True):
            if not fits(blocks, int) or blocks < 1 or p.numel() % blocks:
                raise ValueError(f"{name}: {p.numel()} weights do not divide into {blocks!r} blocks")
            if p.is_complex():
                raise ValueError(f"{name}: has complex weights; give torch.view_as_real of them")
        super().add_param_group(group)

    def each_parameter(self):    # yields (group, number in the group, parameter)
        return ((group, i, p) for group in self.param_groups for i, p in enumerate(group["params"]))

    def constants(self, group, i):    # inputs that never change, for the compiler. No rule here has any
        return {}

    def start(self, group, i, device=None, starts=None):
        """The state of a parameter before its first step: fp32 (fp64 for fp64 weights), or whole numbers."""
        p, blocks = group["params"][i].detach().to(device), group["blocks"][i]
        dtype = torch.promote_types(p.dtype, torch.float32)
        zeros = torch.zeros_like(p, memory_format=torch.contiguous_format)    # rules may take a view of state
        made = {name: make_state(p, blocks) if make_state else zeros.clone()
                for name, make_state in (starts or self.rules[group["rule"]].state).items()}
        return {"t": 0} | {name: x.to(dtype) if x.is_floating_point() else x for name, x in made.items()}

    def decay(self, group: dict, t: int) -> float:
        """The factor on the weights in step t. 1 is no decay. In zoo/ it depends on t."""
        unit = 1.0 if group["weight_decay_kind"] == "coupled" else group["lr_peak"] or math.inf    # never 0/0
        if (factor := 1 - group["weight_decay"] * group["lr"] / unit) < 0:
            raise ValueError(f"weight_decay={group['weight_decay']:g}: multiplies weights by {factor:g} at "
                             f"lr {group['lr']:g}; lower it or lr, or give the highest lr as lr")
        return factor

    @torch.no_grad()
    def step(self, closure=None):
        """Updates all parameters. A closure computes loss and gradients anew; step() returns that loss."""
        with torch.enable_grad():
            loss = closure() if closure else None
        self.check_gradients()    # before anything moves
        for group in self.param_groups:
            for t, members in self.members_by_step(group).items():
                self.update(group, t, members)
        return loss

    def check_gradients(self):
        for group, i, p in self.each_parameter():
            if p.grad is None and group["strict"]:
                raise RuntimeError(f"{group['names'][i]}: has no gradient; is it used in the loss?")
            if p.grad is not None and p.grad.layout is not torch.strided:
                raise RuntimeError(f"{group['names'][i]}: has a sparse gradient; give sparse=False")

    def members_by_step(self, group):
        """Returns {step: [(kind, weight, gradient, state)]}. Usually all parameters are at the same step."""
        members = {}
        for i, p in enumerate(group["params"]):
            if p.grad is not None and p.numel():
                state = self.state[p] = self.state[p] or self.start(group, i)
                state["t"] += 1
                constants = self.constants(group, i)
                kind = (p.shape, p.dtype, p.device, group["blocks"][i], *constants.values())
                tensors = {name: x for name, x in state.items() if name != "t"} | constants
                g = p.grad.to(torch.promote_types(p.dtype, torch.float32)).contiguous()
                members.setdefault(state["t"], []).append((kind, p, g, tensors))
        return members

    def update(self, group, t, members):
        """Does step t for the members: those parameters of the group whose own count of steps is t."""
        rule = self.rules[group["rule"]]
        hyper = {name: group[name] for name in rule.hyper}
        values = torch.tensor([t, group["lr"], self.decay(group, t)], dtype=torch.float64)
        shared = dict(zip(("t", "lr", "decay"), values.unbind()))
        if "g2" in rule.inputs:
            grads = [g for _, _, g, _ in members]
            shared["g2"] = torch.nn.utils.get_total_norm(grads).square() / sum(g.numel() for g in grads)
        if not self.compile:
            return apply(rule.function, rule.inputs, hyper, *list(zip(*members))[1:], shared)
        if rule.elementwise:
            members = [flattened(*member) for member in members]
        with torch.fx.experimental._config.patch(use_duck_shape=False):    # equal sizes may differ next time
            for kind, *tensors in batches_of_one_kind(members):
                run = self.compiled(apply, (rule, *hyper.values(), *kind), rule.elementwise)
                run(rule.function, rule.inputs, hyper, *tensors, shared)

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores what state_dict() gave. State keeps its saved dtype; torch's own method would cast it."""
        states = {}
        check = self.register_load_state_dict_pre_hook(lambda _, d: states.update(self.checked_states(d)))
        keep = self.register_load_state_dict_post_hook(lambda _: self.state.update(states), prepend=True)
        with check, keep:    # removes both hooks at the end
            super().load_state_dict(state_dict)

    def checked_states(self, state_dict: dict) -> dict:
        """{parameter: its state in state_dict}. Raises ValueError if rule or shapes are not those of here."""
        states = {}
        for group, saved in zip(self.param_groups, state_dict["param_groups"]):
            if group["rule"] != (theirs := saved.get("rule", "another optimizer")):
                raise ValueError(f"the state is of {theirs}, not of {group['rule']}")
            for i, (p, number) in enumerate(zip(group["params"], saved["params"])):
                state = state_dict["state"].get(number) or {}
                theirs, ours = ({name: getattr(x, "shape", None) for name, x in state.items()}
                                for state in (state, self.start(group, i)))
                if state and theirs != ours:
                    raise ValueError(f"{group['names'][i]}: the state holds {theirs}, not {ours}")
                states[p] = {name: x.to(p.device, copy=True, memory_format=torch.contiguous_format)
                             if torch.is_tensor(x) else x for name, x in state.items()}
        return states

def triples(roles) -> list:
    """A list of triples such as those of model.roles(). Raises ValueError for anything else."""
    roles = list(roles)
    if not all(type(entry) is tuple and len(entry) == 3 for entry in roles):
        raise ValueError("roles: give (name, parameter, role); without roles use Optimizer(params, rule)")
    return roles

ROLES = ("embed", "qkv", "attn_out", "mlp_up", "mlp_down", "norm", "head")

def make(rule, roles, *, lr, rows=(), by_role={}, weight_decay=0.0, weight_decay_kind="independent",
         compile=False, optimizer=Optimizer, **hyper) -> Optimizer:
    """An Optimizer for a model. It treats each parameter by its role.

    rule      a name of RULES, or a Rule
    roles     triples (name, parameter, role), such as those of model.roles(). A role is one of ROLES
    lr        the peak learning rate, in the unit that the rule's docstring states
    rows      roles in which each row is a block. rows=("head",) makes Adalayer Adalayer*
    by_role   {role: settings}: lr, weight_decay, hyperparameters, or all of another Rule. None: untrained
    The rest is as in Optimizer, but the decay is the paper's. A ValueError names what is wrong."""
    rule, groups = rule_of(rule), {}
    if unknown := {*rows, *by_role} - {*ROLES}:
        raise ValueError(f"rows, by_role: there is no role {min(unknown)!r}; there are {', '.join(ROLES)}")
    for name, p, role in triples(roles):
        if role not in ROLES:
            raise ValueError(f"{name}: has the unknown role {role!r}; there are {', '.join(ROLES)}")
        if (own := by_role.get(role, {})) is None:
            continue
        own = own if "rule" in own else dict(rule=rule, lr=lr) | hyper | own
        group = groups.setdefault(tuple(own.items()), own | dict(params=[], roles=[], blocks=[]))
        if role in rows and not own["rule"].takes_rows:
            raise ValueError(f"rows: {own['rule'].name}, the rule of {role}, has no blocks")
        blocks = max(1, len(p)) if role in (rows or own["rule"].rows) else 3 if role == "qkv" else 1
        group["params"].append((name, p))
        group["roles"].append(role)
        group["blocks"].append(blocks if own["rule"].has_blocks else 1)
    return optimizer(list(groups.values()), rule, lr=lr, weight_decay=weight_decay,
                     weight_decay_kind=weight_decay_kind, strict=True, compile=compile, **hyper)

if __name__ == "__main__":    # a short way to start this other program, in which optim.py is a module
    runpy.run_module("zoo", run_name="__main__")
