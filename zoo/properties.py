"""
The properties that every update rule must have. The tests ask them of every rule of the project. The commands
`python -m lessons check` and `python -m study audition` ask them of yours.

Each property is a function of build(w, lr=..., **options), which returns an optimizer for {role: weight}. It
returns "" if the property holds. Otherwise it returns a line that says what happened and what that means.
The table PROPERTIES names all but compiled_is_eager, which is slow. EXEMPT says which published rules lack
which property.
"""
import io
import math
from unittest import mock

import torch

import zoo
from zoo import orthogonal

CODES = (torch.uint8, torch.int8)    # of rules that keep each number of their state in a byte
STATE_DTYPES = (torch.float32, *CODES)
SHAPES = dict(embed=(12, 4), qkv=(12, 4), mlp_up=(4, 6), norm=(4,), head=(12, 4))
# A compiler makes other code for rows that fill its vectors. AVX-512 holds 16 numbers.
WIDE_SHAPES = dict(embed=(12, 16), qkv=(48, 16), mlp_up=(16, 24), norm=(16,), head=(12, 16))
DECAY = 0.3

# ---------------------------------------------------------------------------------------------------------
# Small weights and gradients for every role


def weights(dtype=torch.float64, seed: int = 0, device="cpu", shapes=SHAPES) -> dict:
    """{role: a tensor of that role}."""
    draw = torch.Generator().manual_seed(seed)
    return {role: torch.randn(shape, generator=draw, dtype=torch.float64).to(device, dtype).requires_grad_()
            for role, shape in shapes.items()}


def gradients(steps: int = 6, seed: int = 1, dtype=torch.float64, shapes=SHAPES) -> list:
    """Gradients of another size for each weight, so that every block has its own second moment."""
    draw = torch.Generator().manual_seed(seed)
    size = {role: torch.rand(shape, generator=draw, dtype=torch.float64) for role, shape in shapes.items()}
    return [{role: (torch.randn(shape, generator=draw, dtype=torch.float64) * size[role]).to(dtype)
             for role, shape in shapes.items()} for _ in range(steps)]


def zeros() -> dict:
    """Gradients of zero."""
    return {role: torch.zeros(shape) for role, shape in SHAPES.items()}


def run(optimizer, w: dict, grads: list) -> None:
    """One step for each of the gradients."""
    for g in grads:
        for role in w:
            w[role].grad = g[role].to(w[role], copy=True)    # in its dtype, on its device
        optimizer.sampled = {p: p.grad.flip(0) for p in w.values()}    # only Sophia asks for them
        optimizer.step()


def not_finite(tensors: dict) -> str:
    """"" if all numbers of {role: tensor} are finite. Otherwise a line that names a role with others."""
    bad = [role for role, x in tensors.items() if not x.isfinite().all()]
    why = "look for a division by 0, and for numbers that grow without end"
    return f"the weights of {bad[0]} are not finite: {why}" if bad else ""


def groups_of(optimizer) -> dict:
    """{role: its group}."""
    return {role: group for group in optimizer.param_groups for role in group["roles"]}


def measuring_steps(optimizer) -> int:
    """How many first steps only measure."""
    return optimizer.measuring_steps(optimizer.param_groups[0])


def moved(build, grads: list, lr: float = 0.1, **options) -> dict:
    """{role: how far these gradients move the weights}."""
    w, start = weights(), weights()
    run(build(w, lr=lr, **options), w, grads)
    return {role: (w[role] - start[role]).detach() for role in w}


# ---------------------------------------------------------------------------------------------------------
# The properties


def zero_gradient_moves_nothing(build) -> str:
    for role, x in moved(build, [zeros()] * 4).items():
        if x.isnan().any():
            return f"a gradient of 0 gives {role} an update of nan: look for a 0 / 0"
        if x.any():
            return (f"four gradients of 0 move {role} by up to {x.abs().max():.3g}: the state does not start "
                    "at 0, or u holds more than gradients")
    return ""


def decay_multiplies(build, kind: str) -> str:
    """With a gradient of 0, a step multiplies the weights by 1 - decay lr, or by 1 - decay lr / peak."""
    w = weights()
    optimizer = build(w, weight_decay=DECAY, weight_decay_kind=kind)
    groups = groups_of(optimizer)
    for t, scale in enumerate((1.0, 0.5, 0.25, 0.0), 1):
        for group in optimizer.param_groups:
            group["lr"] = group["lr_peak"] * scale
        rates = {role: scale if kind == "independent" else group["lr"] for role, group in groups.items()
                 if t > optimizer.measuring_steps(group)}    # a step that only measures does not decay
        before = {role: w[role].detach().clone() for role in w}
        run(optimizer, w, [zeros()])
        for role in w:
            factor = 1 - DECAY * rates.get(role, 0.0)
            if not torch.allclose(w[role], before[role] * factor, rtol=1e-14, atol=0):
                return wrong_decay(role, before[role], w[role].detach(), factor, rates.get(role, 0.0))
    return ""


def wrong_decay(role, before, after, factor, rate) -> str:
    """What a wrong decay means. rate: what the decay must be multiplied by."""
    lost, ratio = before - after, (after / before).mean().item()
    if not lost.any():
        return f"{role} keeps its size where it should be multiplied by {factor:.4g}: the decay is not used"
    if torch.allclose(lost, lost.mean().expand_as(lost)):
        return f"every weight of {role} loses {lost.mean():.4g}: the decay must multiply the weight"
    if torch.allclose(lost.abs(), lost.abs().mean().expand_as(lost)):
        return (f"every weight of {role} moves by {lost.abs().mean():.4g}, whatever its size: the decay went "
                "through the rule, with the gradient, or through a sign")
    if not torch.allclose(after, before * ratio):
        return f"{role} is not multiplied by one number: the decay went through the rule, with the gradient"
    times = (1 - ratio) / (1 - factor) if factor != 1 else float("nan")
    why = {round(rate, 6): ": the decay is multiplied by the lr twice",
           round(1 / rate, 6) if rate else 0: ": the decay is not multiplied by the lr"}
    return (f"a step multiplies {role} by {ratio:.4g}, and should multiply it by {factor:.4g}"
            f"{why.get(round(times, 6), '')}")


def doubling_the_lr_doubles_the_first_step(build, moves_by_itself=lambda optimizer, role: True) -> str:
    optimizer = build(weights())
    first = gradients(measuring_steps(optimizer) + 1)
    once, twice = moved(build, first), moved(build, first, lr=0.2)
    for role in groups_of(optimizer):
        factor = 2 if moves_by_itself(optimizer, role) else 1    # the other rule's lr stayed
        if not torch.allclose(twice[role], factor * once[role], rtol=1e-12, atol=1e-15):
            ratio = (twice[role].norm() / once[role].norm()).item()
            why = {1: ": the lr has no effect", 4: ": the rule multiplies by lr, and so does the optimizer"}
            return (f"twice the lr makes the first step of {role} {ratio:.3g} times as long"
                    f"{why.get(round(ratio, 6), '')}")
    return ""


def first_step_moves(build) -> str:
    """The first step that does not only measure moves every weight that is trained."""
    w, start = weights(), weights()
    optimizer = build(w)
    trained, measuring = groups_of(optimizer), measuring_steps(optimizer)
    run(optimizer, w, gradients(measuring))
    if any(not torch.equal(w[role], start[role]) for role in w):
        return "a step that should only measure moves weights"
    newest = gradients(measuring + 1)[-1]
    run(optimizer, w, [newest])
    if found := not_finite(w):
        return found
    for role in w:
        still = int((w[role] == start[role]).sum())
        if role in trained and still:
            return (f"the first step leaves {still} of the {w[role].numel()} weights of {role} where they "
                    "are: the newest gradient does not count")
        if role not in trained and still < w[role].numel():
            return f"the first step moves {role}, which is not trained"
    return ""


def first_step_goes_downhill(build) -> str:
    """The first step that moves lowers a loss that has this gradient, if the lr is small enough."""
    measuring = measuring_steps(build(weights()))
    grads = gradients(measuring + 1)
    slope = sum((x * grads[-1][role]).sum() for role, x in moved(build, grads).items())
    if slope > 0:
        return "the first step goes uphill: the optimizer subtracts u, so u must point along the gradient"
    return ""


def momentum_matters(build, **rest) -> str:
    """rest: other settings without momentum, for the second rule of a hybrid."""
    optimizer = build(weights())
    trained, grads = groups_of(optimizer), gradients(6 + measuring_steps(optimizer))
    rest_with = {name: 0.9 for name in rest}
    with_momentum = moved(build, grads, beta1=0.9, **rest_with)
    without = moved(build, grads, beta1=0.0, **rest)
    if found := not_finite(with_momentum) or not_finite(without):
        return found
    for role in with_momentum:
        if torch.equal(with_momentum[role], without[role]) == (role in trained):
            return (f"{role} moves alike with beta1 0.9 and 0: the rule does not use beta1, or it forgets "
                    "the older gradients")
    return ""


def hyperparameter_matters(build, name: str, value, **base) -> str:
    grads = gradients(12 + measuring_steps(build(weights())))
    ends = [moved(build, grads, **base | changed) for changed in ({}, {name: value})]
    if found := not_finite(ends[0]) or not_finite(ends[1]):
        return f"with {name}={value}, {found}"
    if all(torch.equal(ends[0][role], ends[1][role]) for role in ends[0]):
        return f"{name}={value} gives the same 12 steps as the default: {name} is accepted and not used"
    return ""


def own_lr_is_honoured(build) -> str:
    """A group whose lr is 0 stays where it is, the other groups move, and no step changes an lr."""
    for i in (None, *range(len(build(weights()).param_groups))):
        w, start = weights(), weights()
        optimizer = build(w)
        if i is not None:
            optimizer.param_groups[i]["lr"] = 0.0
        rates = [group["lr"] for group in optimizer.param_groups]
        run(optimizer, w, gradients(6 + measuring_steps(optimizer)))
        if (after := [group["lr"] for group in optimizer.param_groups]) != rates:
            return f"six steps change a group's lr from {rates[0]} to {after[0]:.3g}, and must not do that"
        for role, group in groups_of(optimizer).items():
            if torch.equal(w[role], start[role]) != (group["lr"] == 0.0):
                return f"{role} has lr {group['lr']} and " + ("moves" if group["lr"] == 0.0 else "stays")
    return ""


def resume_is_exact(build, dtype) -> str:
    """A run that is saved and loaded after three steps goes on bit for bit. Its state stays fp32, or
    codes of 8 bits."""
    grads, w = gradients(dtype=dtype), weights(dtype)
    optimizer = build(w, weight_decay=0.1)
    run(optimizer, w, grads[:3])
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), {role: p.detach() for role, p in w.items()}), file)
    file.seek(0)
    state, values = torch.load(file, weights_only=True)
    again = {role: value.clone().requires_grad_() for role, value in values.items()}
    resumed = build(again, weight_decay=0.1)
    resumed.load_state_dict(state)
    for role in w:
        for name, value in resumed.state[again[role]].items():
            before = optimizer.state[w[role]][name]
            if torch.is_tensor(value) and not (value.dtype == before.dtype and value.dtype in STATE_DTYPES):
                was = str(before.dtype).removeprefix("torch.")
                return f"{name} of {role} is {value.dtype} after loading, and was {was}"
    run(optimizer, w, grads[3:])
    run(resumed, again, grads[3:])
    for role in w:
        same = torch.equal(w[role], again[role]) and all(
            torch.equal(torch.as_tensor(value), torch.as_tensor(resumed.state[again[role]][name]))
            for name, value in optimizer.state[w[role]].items())
        if not same:
            return f"{role} moves otherwise after saving and loading: something is remembered elsewhere"
    return ""


def codes_of(optimizer, w: dict) -> dict:
    """{(role, name of a state): its codes}, of rules that keep a state as codes."""
    return {(role, name): x for role in w for name, x in optimizer.state[w[role]].items()
            if torch.is_tensor(x) and x.dtype in CODES}


def compiled_is_eager(build, device="cpu") -> str:
    """In float32, over 12 steps whose lr falls: within 2e-5 of the largest distance moved. A number halfway
    between two codes may become either of them. So codes may differ by one, and each step begins with the
    same codes. Rules that multiply in bf16 do so in float32 here, because a compiler may round bf16 at other
    places."""
    a, b, start = (weights(torch.float32, device=device, shapes=WIDE_SHAPES) for _ in range(3))
    optimizer, eager = build(a, compile=True, lr=0.01), build(b, lr=0.01)
    for t, g in enumerate(gradients(12, dtype=torch.float32, shapes=WIDE_SHAPES), 1):
        for one, w in ((optimizer, a), (eager, b)):
            for group in one.param_groups:
                group["lr"] = group["lr_peak"] * (1 - t / 13)
            with mock.patch.object(orthogonal, "FAST_BF16", set()):
                run(one, w, [g])
        for (role, name), eager_codes in codes_of(eager, b).items():
            codes = codes_of(optimizer, a)[role, name]
            if (codes.int() - eager_codes.int()).abs().max() > 1:
                return f"compiled, {name} of {role} differs by more than one code after step {t}"
            codes.copy_(eager_codes)
    for role in a:
        off, distance = (a[role] - b[role]).abs().max(), (b[role] - start[role]).abs().max()
        if not off <= 2e-5 * distance:    # a comparison with NaN is false
            return f"compiled, {role} ends {off:.1e} away from where it ends uncompiled, after {distance:.1e}"
    errors = [zoo.NOT_COMPILED[rule] for rule in optimizer.rules.values() if rule in zoo.NOT_COMPILED]
    ours = [error for error in errors if not isinstance(error, torch._dynamo.exc.BackendCompilerFailed)]
    if not ours:
        return ""
    reason = str(ours[0]).strip().splitlines()[0]
    advice = "; torch.where chooses between tensors without an if" if "branching" in reason else ""
    return f"torch.compile does not take it: {reason}{advice}"


def state_changes(build, rule) -> str:
    """Every state changes in some tensor within three steps that move weights, unless the rule says that it
    rarely does."""
    w = weights()
    optimizer = build(w)
    run(optimizer, w, gradients(3 + measuring_steps(optimizer)))
    started = [(optimizer.start(group, i), optimizer.state[p]) for group, i, p in optimizer.each_parameter()]
    for name in (name for name in started[0][0] if name not in rule.rarely_changes):
        pairs = [(torch.as_tensor(before[name]), torch.as_tensor(after[name])) for before, after in started]
        pairs = [(before, after) for before, after in pairs if before.numel()]    # 8-bit rules may have none
        if pairs and all(torch.equal(before, after) for before, after in pairs):
            return (f"after three steps {name} is what it was at the start: change it in place, as "
                    f"{name}.add_() does. A line {name} = ... makes a new tensor, which is forgotten")
    return ""


def stays_finite(build) -> str:
    """In bfloat16, twelve steps leave all weights finite."""
    w = weights(torch.bfloat16)
    run(build(w, lr=0.01), w, gradients(12, dtype=torch.bfloat16))
    for role in w:
        if not w[role].isfinite().all():
            return f"with weights and gradients in bfloat16, {role} is not finite after twelve steps"
    return ""


# ---------------------------------------------------------------------------------------------------------
# The table. Each entry is a function of (build, rule), where rule is the ZooRule that build applies.


def decay(build, rule) -> str:
    kinds = ("coupled",) if "wd" in rule.hyper else ("coupled", "independent")
    return next(filter(None, (decay_multiplies(build, kind) for kind in kinds)), "")


def hyperparameters(build, rule) -> str:
    for name in rule.hyper:
        if found := hyperparameter_matters(build, name, other_value(rule, name)):
            return found
    return ""


def other_value(rule, name: str) -> float | int | bool:
    """Another value of a hyperparameter, which should change twelve steps."""
    default, (low, high) = rule.hyper[name], rule.bounds.get(name, (0, math.inf))
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        near = default + 1 if default < 12 else 2    # a number of steps above 12 changes nothing in 12 steps
        return near if low <= near < high else default + 1
    if name == "clip":    # Adam's steps are alike for all clips below every norm
        return 100.0
    between = low + (min(high, 2 * default + 1) - low) / 3    # for bounds that leave out 0.5 and 0.25
    return next(value for value in (0.5, 0.25, between, default / 2)
                if low <= value < high and value != default)


def resume(build, rule) -> str:
    found = (resume_is_exact(build, dtype) for dtype in (torch.float32, torch.bfloat16))
    return next(filter(None, found), "")


PROPERTIES = {
    "state": state_changes,
    "zero gradient": lambda build, rule: zero_gradient_moves_nothing(build),
    "learning rate": lambda build, rule: doubling_the_lr_doubles_the_first_step(build),
    "own lr": lambda build, rule: own_lr_is_honoured(build),
    "weight decay": decay,
    "newest gradient": lambda build, rule: first_step_moves(build),
    "downhill": lambda build, rule: first_step_goes_downhill(build),
    "momentum": lambda build, rule: momentum_matters(build) if "beta1" in rule.hyper else "",
    "hyperparameters": hyperparameters,
    "bfloat16": lambda build, rule: stays_finite(build),
    "resume": resume,
}

# (property, rule, reason): rules that lack a property, as published. "adamw+NAME" stands for a modifier.
# The docstring of the rule says so, too.
EXEMPT = [
    ("newest gradient", "muon+cautious+cautious_decay",
     "cautious leaves out weights where Muon disagrees with g"),
    ("newest gradient", "badam", "it moves one block of layers at a time"),
    ("zero gradient", "adamw+norm_loss", "it pulls weights to the norm 1 without any gradient"),
    ("weight decay", "adamw+trust_ratio", "it rescales the decay, too"),
    ("weight decay", "adamw+norm_loss", "it pulls weights to the norm 1"),
    ("weight decay", "adamw+hyperball", "it takes the decay back, so the norm stays"),
    ("weight decay", "adamw+stable_decay", "it divides the decay by the gradients"),
    ("weight decay", "badam", "only the block that moves decays"),
    ("weight decay", "adalomo", "it multiplies the decay by the size of the tensor"),
    ("learning rate", "adamw+hyperball", "its step ends on a sphere"),
    ("momentum", "anolog", "it has no beta1: its momentum follows from t"),
    ("momentum", "adalomo", "it has no momentum"),
    ("momentum", "shampoo", "Algorithm 1 has no momentum"),
    ("zero gradient", "adamw+l2", "it adds the weight to the gradient"),
    ("weight decay", "adamw+l2", "it adds the weight to the gradient"),
    ("weight decay", "adan", "it divides weights by 1 + lr weight_decay"),
    ("momentum", "adagrad", "it has no momentum"),
    ("momentum", "rmsprop", "it has no momentum"),
    ("momentum", "rmsprop_centered", "it has no momentum"),
    ("momentum", "adadelta", "it has no momentum"),
    ("momentum", "rprop", "it has no momentum"),
    ("momentum", "sign_sgd", "it has no momentum"),
    ("learning rate", "adabound",
     "a larger lr does not move the bounds around final_lr"),
    ("learning rate", "amsbound",
     "a larger lr does not move the bounds around final_lr"),
    ("weight decay", "adamp",
     "a gradient of 0 has no part along the weights, so it takes wd_ratio of the decay"),
    ("weight decay", "sgdp",
     "the same, and its decay is 1 / (1 - beta1) times as strong"),
    ("weight decay", "fadam",
     "the decay acts on the weights divided by the root of v"),
    ("weight decay", "innaprop",
     "psi does not decay, so a part of each decay comes back"),
    ("momentum", "innaprop", "it has no beta1: its momentum follows from lr, viscous and newton"),
    ("weight decay", "core", "a weight decays in proportion to its step"),
    ("learning rate", "core",
     "the peak lr is only the first length of a step, which has bounds of its own"),
    ("zero gradient", "gravity", "its velocities start at random numbers"),
    ("weight decay", "gravity", "its velocities start at random numbers"),
    ("learning rate", "gravity",
     "its velocities start at random numbers divided by the lr"),
    ("learning rate", "nag_gs",
     "its first step is in proportion to the square of lr"),
    ("momentum", "nag_gs", "it has no beta1: mu and gamma0 take its place"),
    ("momentum", "adafactor_original", "it has no momentum"),
    ("weight decay", "lars", "the decay goes through its momentum, with the gradient"),
    ("weight decay", "adamw+blockwise_lr", "it multiplies the decay, too"),
    ("weight decay", "schedule_free_adamw",
     "as published, z takes all of the decay, and the weight only a part at once"),
    ("weight decay", "schedule_free_sgd",
     "as published, z takes all of the decay, and the weight only a part at once"),
    ("momentum", "schedule_free_adamw",
     "it needs a beta1 above 0: with 0 nothing would remember the mean"),
    ("momentum", "schedule_free_sgd",
     "it needs a beta1 above 0: with 0 nothing would remember the mean"),
    ("weight decay", "prodigy", "it multiplies the decay by d, as it does the step"),
]
