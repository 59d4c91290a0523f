"""
python -m lessons check FILE ...

Judges an exercise of lessons/exercises/, or a file with a new update rule of your own. It says in one line
what is wrong and what that means. An exercise must do what the project's own rule does. A new rule must have
the properties of zoo/properties.py.
"""
import ast
import contextlib
import copy
import functools
import inspect
import io
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import optim
import zoo
from lessons.exercises import EXERCISES, Judged, Subject
from lessons.mistakes import MISTAKES
from trainer import machine
from zoo import files, properties
from zoo.properties import PROPERTIES, gradients, groups_of, run, weights

SECONDS = 60    # the most that all checks of a file together may take, without compiling
NAMES = (*EXERCISES, "accumulation")


class Failed(Exception):
    """The text is the line that says what is wrong."""


# ---------------------------------------------------------------------------------------------------------
# The checks. Each returns "" or what is wrong.

def form(subject) -> str:
    """Takes twelve steps, and looks at what the function returns and at what it changes."""
    rule = copy.copy(subject.rule)
    if "g" not in rule.inputs:
        return f"{rule.name} has no parameter g, the gradient"

    def watched(*tensors, **hyper):
        given = dict(zip(rule.inputs, tensors))
        before = {name: given[name].clone() for name in ("g", "w") if name in given}
        u = subject.rule.function(*tensors, **hyper)
        if not torch.is_tensor(u):
            what = "None" if u is None else f"a {type(u).__name__}"
            raise Failed(f"{rule.name} returns {what}, and must return u, a tensor")
        if u.shape != given["g"].shape:
            raise Failed(f"u has the shape {tuple(u.shape)}, and g has {tuple(given['g'].shape)}")
        if u.dtype != given["g"].dtype:
            raise Failed(f"u has the type {u.dtype}, and g has {given['g'].dtype}: make new tensors with "
                         "torch.zeros_like(g), and signs with sign()")
        if not u.isfinite().all():
            raise Failed("u is not finite in the first steps: look for a division by 0, for the root of a "
                         "negative number, and for a state that grows without end")
        for name, value in before.items():
            if not torch.equal(given[name], value):
                raise Failed(f"the function changes {name}, which other code still needs: work on a copy")
        return u
    if lost := lost_hyperparameters(subject):
        return f"{rule.name} has lost its hyperparameter {lost[0]}; keep the line that begins with def"
    subject.build(weights())    # here the class itself tries a new rule, and refuses what it cannot apply
    rule.function = watched
    w = weights()
    try:
        decay = dict(weight_decay=0.1) if subject.exercise else {}
        run(subject._replace(rule=rule).build(w, **decay), w, gradients(12))
    except Failed as error:
        return str(error)
    first, second = (updates(subject.build, gradients(2)) for _ in range(2))
    if any(not torch.equal(a[role], b[role]) for a, b in zip(first, second) for role in a):
        return "two runs with the same gradients differ: the rule draws random numbers"
    return ""


def lost_hyperparameters(subject) -> list:
    """The hyperparameters that the function of an exercise must have, and does not have."""
    if not subject.exercise:
        return []
    wanted = subject.exercise.hyper or zoo.RULES[subject.exercise.reference].hyper
    return [name for name in wanted if name not in subject.rule.hyper]


def updates(build, grads: list, decay: float = 0.0, **hyper) -> list:
    """[{role: u}], one for each step: by how many lr the weights move."""
    w, path = weights(), []
    optimizer = build(w, weight_decay=decay, weight_decay_kind="coupled", **hyper)
    for g in grads:
        before = {role: w[role].detach().clone() for role in w}
        run(optimizer, w, [g])
        path.append({role: (before[role] - w[role].detach()) / group["lr"]
                     for role, group in groups_of(optimizer).items()})
    return path


def sharing(subject) -> str:
    """Compares which weights take another step if the first weight's gradient is three times as large."""
    g, larger = gradients(1)[0], gradients(1)[0]
    for x in larger.values():
        x.view(-1)[0] *= 3

    def touched(build):
        a, b = (updates(build, [x])[0] for x in (g, larger))
        return {role: (a[role] - b[role]).abs() > 1e-6 * a[role].abs() for role in a}
    ours = touched(subject.build)
    for role, right in touched(subject.reference).items():
        if not torch.equal(ours[role].view(-1)[1:], right.view(-1)[1:]):
            found, wanted = in_words(ours[role]), in_words(right)
            if found == wanted:
                return (f"in {role}, the gradient of a weight acts on as many weights as there are in "
                        f"{wanted}, but on others: look at the order of the weights")
            return f"in {role}, the gradient of a weight acts on {found}, and should act on {wanted}"
    return ""


def in_words(touched: torch.Tensor) -> str:
    """Names a set of weights by how many there are besides the first: "its row"."""
    count = 1 + int(touched.view(-1)[1:].sum())
    names = {touched.shape[-1]: "its row", len(touched): "its column", touched.numel() // 3: "its block",
             touched.numel(): "the whole tensor", 1: "itself alone"}
    return names.get(count, f"{count} weights")


def difference(subject, steps: int = 1, size: float = 1.0, growth: float = 1.0, **hyper) -> str:
    """The first step that is not what the project's rule does, with these hyperparameters.

    Args:
        size: of the first gradients. growth: by what each step multiplies it.
    """
    grads = [{role: size * growth**t * x for role, x in g.items()} for t, g in enumerate(gradients(steps))]
    decay = 0.1 if "wd" in subject.rule.hyper else 0.0
    paths = (updates(build, grads, decay, **hyper) for build in (subject.build, subject.reference))
    for t, (ours, theirs) in enumerate(zip(*paths), 1):
        for role, right in theirs.items():
            if not same(ours[role], right):
                return wrong_step(subject, t, role, ours[role], right)
    return ""


def same(ours, right) -> bool:
    return torch.allclose(ours, right, rtol=1e-5, atol=1e-6 * right.abs().max().item())


def wrong_step(subject, t, role, ours, right) -> str:
    """What is wrong with step t of a tensor. If one factor mends it, what that factor means."""
    step = f"step {t} of {role}, the first that is wrong," if t > 1 else f"the first step of {role}"
    ratio = ((ours * right).sum() / right.square().sum()).item()
    if not same(ours, ratio * right):
        i = (ours - right).abs().argmax()
        place = ", ".join(str(int(x)) for x in torch.unravel_index(i, right.shape))
        return (f"{step} moves weight ({place}) by {ours.flatten()[i]:.3g} lr, and should move it by "
                f"{right.flatten()[i]:.3g} lr")
    hyper = zoo.RULES[subject.exercise.reference].hyper | subject.exercise.settings
    beta1, beta2 = (hyper.get(name, 0.0) for name in ("beta1", "beta2"))
    m, v, m1, v1 = 1 - beta1**t, 1 - beta2**t, 1 - beta1, 1 - beta2
    meanings = [(m, subject.exercise.too_small),
                (v**-0.5, "v is not corrected for its start at 0"),
                (m / v**0.5, "neither m nor v is corrected for its start at 0"),
                (m / m1 * (v1 / v)**0.5, "the corrections use 1 - beta, and should use 1 - beta^t")]
    why = next((f": {words}" for factor, words in meanings if abs(ratio / factor - 1) < 1e-5), "")
    return f"{step} is {ratio:.3f} of what it should be{why}"


def tiny_gradients(subject) -> str:
    found = "eps" in subject.rule.hyper and difference(subject, size=1e-9)
    if found:
        return (f"with gradients of 1e-9, {found}: is eps inside of the root, too large, or added before v "
                "is corrected?")
    found = subject.exercise.clips and difference(subject, steps=2, size=1e-3)    # the first step is the same
    return f"with gradients of 1e-3, {found}: gradients below clip stay as they are" if found else ""


def other_settings(subject) -> str:
    """A number stands where a hyperparameter belongs if only its default gives the right steps."""
    theirs = zoo.RULES[subject.exercise.reference].hyper
    others = {name: properties.other_value(subject.rule, name) for name in theirs
              if name in subject.rule.hyper}
    for name, value in (others | subject.exercise.others).items():
        if found := difference(subject, steps=6, size=0.1, growth=2.0, **{name: value}):
            return f"with {name}={value:g}, {found}: is a number written where {name} belongs?"
    return ""


def compiles(subject) -> str:
    with clock(0), warnings.catch_warnings():    # it may take a minute
        warnings.simplefilter("ignore")    # the line below says more
        with contextlib.redirect_stdout(sys.stderr):    # a note of the trainer's is not the student's
            works = machine.compiler_works()
        return properties.compiled_is_eager(subject.build) if works else ""


OF_EXERCISES = {"sharing": sharing, "first step": difference, "tiny gradients": tiny_gradients,
                "six steps": functools.partial(difference, steps=6), "other settings": other_settings}
OF_NEW_RULES = {"compile": compiles}


def first_fault(subject: Subject) -> str:
    """"" if all checks pass. Otherwise the name of the first that fails, and what it says."""
    checks = {"form": form}
    checks |= {name: functools.partial(has_property, check) for name, check in PROPERTIES.items()}
    checks |= OF_EXERCISES if subject.exercise else OF_NEW_RULES
    for name, check in checks.items():
        if fault := check(subject):
            return f"{name}: {fault}{known_mistake(subject) if name not in ('form', 'state') else ''}"
    return ""


def known_mistake(subject: Subject) -> str:
    """": what it means" if the function takes the steps of a mistake that learners make. Otherwise ""."""
    mistakes = MISTAKES.get(subject.rule.name, {}) if subject.exercise else {}
    decay = 0.1 if "wd" in subject.rule.hyper else 0.0
    for mistake, meaning in mistakes.items():
        made = subject._replace(rule=zoo.rule_of(mistake))
        paths = (updates(one.build, gradients(6), decay) for one in (subject, made))
        if all(same(ours[role], theirs[role]) for ours, theirs in zip(*paths) for role in ours):
            return f": {meaning}"
    return ""


def has_property(check, subject) -> str:
    fault = check(subject.build, subject.rule)
    decays_by_itself = subject.exercise and "wd" in subject.rule.hyper
    if fault and decays_by_itself and check is PROPERTIES["zero gradient"]:
        return f"with wd=0, {fault}"
    return fault


def fault_of_accumulation(function: Callable) -> str:
    """The gradient and the log must not show into how many pieces a batch was cut."""
    if len(inspect.signature(function).parameters) != 2:
        return "accumulation must take loss and micro_batches; keep the line that begins with def"
    batch = torch.linspace(-1, 2, 24, dtype=torch.float64).reshape(8, 3)
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)

    def mean_loss(x):
        return (x @ w).exp().mean()

    def loss(x):
        if len(x) > len(batch) // pieces:
            raise Failed("micro-batches: loss gets more than one of them, and more may not fit into memory")
        if in_memory:
            raise Failed("micro-batches: call loss once for each of them, and backward() before the next, or "
                         "all of them stay in memory")
        y = mean_loss(x)
        in_memory.append(y)
        y.register_hook(lambda _: in_memory.clear())
        return y
    right, = torch.autograd.grad(mean_loss(batch), w)
    for pieces in (1, 2, 4):
        w.grad, in_memory = None, []
        logged = function(loss, list(batch.chunk(pieces)))
        if w.grad is None:
            return "micro-batches: there is no gradient; call backward() on the loss of each of them"
        times = (w.grad.norm() / right.norm()).item()
        if not torch.allclose(w.grad, right):
            return f"micro-batches: cut into {pieces}, the gradient is {times:.3g} times the whole batch's"
        of_batch = mean_loss(batch).item()
        if torch.is_tensor(logged):
            return "micro-batches: the log is a tensor; return a plain number, as y.item() gives it"
        if not isinstance(logged, float) or not abs(logged - of_batch) <= 1e-6 * of_batch:    # fp32 is enough
            logged = f"{logged:.4f}" if isinstance(logged, float) else repr(logged)
            return f"micro-batches: cut into {pieces}, the log says {logged}, the loss is {of_batch:.4f}"
    return ""


# ---------------------------------------------------------------------------------------------------------
# A file

class TooLong(BaseException):    # no `except Exception` of a student catches it
    """The time is over."""


@contextlib.contextmanager
def clock(seconds: float):
    """Raises TooLong in the code below after so many seconds. 0: never."""
    def over(number, frame):
        raise TooLong
    before, left = signal.signal(signal.SIGALRM, over), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *left)
        signal.signal(signal.SIGALRM, before)


def judge(path: Path) -> tuple:
    """Judges a file, and shows 5 lines of what it prints. Returns (whether it is right, what to say)."""
    printed = io.StringIO()
    try:
        with clock(SECONDS), contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*two steps have left its state")    # "state" says more
            rules = rules_of(path)
            faults = {name_of(rule): fault_of(rule) for rule in rules}
            fault = next(filter(None, faults.values()), "")
            name = next((name for name in faults if faults[name] == fault), "")
            line = f"{name}: {fault}" if fault and len(faults) > 1 else fault or "right; all checks pass"
            if name in NAMES and name != path.stem:
                line += f" (judged as the exercise {name}, because the function has its name)"
            return not fault, line
    except Failed as error:
        return False, str(error)
    except TooLong as error:
        line, _ = files.where_it_failed(error, str(path))
        return False, f"{line}the checks take more than {SECONDS} seconds; is there an endless loop?"
    except (Exception, SystemExit) as error:
        line, error = files.where_it_failed(error, str(path))
        if not line and not isinstance(error, ValueError):
            raise
        text = (str(error).strip() or "no text").splitlines()[0]
        text += "; a power is **, as in beta1**t" if "bitwise_xor" in text else ""
        return False, f"{line}{type(error).__name__}: {text}" if line else text
    finally:
        lines = printed.getvalue().splitlines()
        more = [f"and {len(lines) - 5} more lines"] if len(lines) > 5 else []
        for text in lines[:5] + more:
            print(f"{path.name} prints: {text}", file=sys.stderr)


def rules_of(path: Path) -> list:
    """The rules of a file, or its function `accumulation`. Raises Failed if the file cannot be judged yet."""
    if not path.is_file() or path.suffix != ".py":
        raise Failed("there is no such Python file; the exercises are in lessons/exercises/")
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise Failed(f"line {getattr(error, 'lineno', '?')} is not Python: {error.args[0]}") from None
    for node in ast.walk(tree):
        if isinstance(node, (ast.Expr, ast.Assign, ast.Return)) and isinstance(node.value, ast.Constant) and (
                node.value.value is ...):
            raise Failed(f"line {node.lineno} is still blank; replace the dots by one or more lines, as the "
                         "text at the top of the file asks")
    rules = files.rules_in(str(path))
    if path.stem in NAMES:    # other functions only help this one
        rules = [function for function in rules if getattr(function, "__name__", "") == path.stem]
        if not rules:
            raise Failed(f"there is no function {path.stem}; the exercise begins with def {path.stem}(")
    is_table = rules and all(isinstance(rule, optim.Rule) for rule in rules)
    if len(rules) != 1 and not is_table:
        raise Failed(files.why_not_one(rules))
    return rules


def name_of(rule: Callable | optim.Rule) -> str:
    return rule.name if isinstance(rule, optim.Rule) else rule.__name__


def fault_of(rule: Callable | optim.Rule) -> str:
    if getattr(rule, "__name__", "") == "accumulation":
        return fault_of_accumulation(rule)
    rule = zoo.rule_of(rule)
    exercise = EXERCISES.get(rule.name)
    return first_fault(Subject(rule, exercise, Judged if exercise else zoo.Optimizer))


def main(argv: list) -> int:
    """Prints a line for each file. Returns 0 if all pass, else 2."""
    if not argv or argv[0].startswith("-"):
        print(f"{__doc__.strip()}\n\nThe exercises: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    verdicts = {name: judge(Path(name)) for name in argv}
    for name, (_, line) in verdicts.items():
        shown = Path(name).name if len(verdicts) == 1 else name
        print(f"{shown}: {line}")
    right = sum(is_right for is_right, _ in verdicts.values())
    if len(verdicts) > 1:
        print(f"{right} of {len(verdicts)} are right")
    return 0 if right == len(verdicts) else 2
