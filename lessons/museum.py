"""
The museum of bugs: rules that look right. Each copies a mistake in public code. The grader finds every one.

python -m lessons.museum 3                            shows an exhibit without its name: what is wrong?
python -m lessons.museum > docs/lessons/museum.md     writes the page: who, what a run and the check say

An exhibit is a rule, or a class that applies one. Its docstring says what is wrong. Compare it with the rule
of the project that its exercise is about.
"""
import functools
import inspect
import math
import re
import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F

import optim
import zoo
from lessons.atlas import source_of
from lessons.check import fault_of_accumulation, first_fault
from lessons.exercises import EXERCISES, Judged, Subject
from optim import adamw, factored, hat, mean_to, per_block, per_column, per_row
from zoo.orthogonal import orthogonal


class Exhibit(NamedTuple):
    """made_by: a project and its thread or file. check: the name of the check that finds the mistake."""
    thing: object
    exercise: str
    check: str
    made_by: str

    def subject(self) -> Subject:
        exercise = EXERCISES[self.exercise]
        if inspect.isclass(self.thing):
            return Subject(zoo.RULES[exercise.reference], exercise, self.thing)
        return Subject(zoo.rule_of(self.thing), exercise, Judged)

    def fault(self) -> str:
        if self.exercise == "accumulation":
            return fault_of_accumulation(self.thing)
        return first_fault(self.subject())


MUSEUM = {}


def exhibit(exercise, check, made_by):
    def add(thing):
        MUSEUM[thing.__name__] = Exhibit(thing, exercise, check, made_by)
        return thing
    return add


# ---------------------------------------------------------------------------------------------------------
# Momentum and signs

@exhibit("signum", "momentum", "kozistr/pytorch_optimizer#516")
def forgetful(g, m, *, beta1=0.9):
    """m is set to 0 at the start of every step."""
    m.zero_().lerp_(g, 1 - beta1)
    return m.sign()

@exhibit("momentum", "momentum", "kozistr/pytorch_optimizer#519")
def two_paths(g, m, *, beta1=0.9):
    """The fast path, here for matrices, leaves out the momentum."""
    m.mul_(beta1).add_(g)
    return g.clone() if g.dim() > 1 else m

@exhibit("momentum", "newest gradient", "mdenil/dropout#4")
def one_step_late(g, m, *, beta1=0.9):
    """The step uses the m of the step before."""
    old = m.clone()
    m.mul_(beta1).add_(g)
    return old

def copy_of_weights(w, blocks):
    return w.clone()

@exhibit("signum", "zero gradient", "epfml/llm-optimizer-benchmark, src/optim/sign.py")
def starts_at_the_weights(g, m: copy_of_weights, *, beta1=0.9):
    """m starts as a copy of the weights, so the first tens of steps follow their signs."""
    m.lerp_(g, 1 - beta1)
    return m.sign()

@exhibit("lion", "six steps", "FluxML/Optimisers.jl#129")
def lion_of_the_new_mean(g, m, *, beta1=0.9, beta2=0.95):
    """The betas weigh the gradient where they should weigh the memory, and the step follows the new m."""
    m.lerp_(g, beta2)
    return ((beta1 - beta2) * g + (1 - beta1) * m).sign()

# ---------------------------------------------------------------------------------------------------------
# Adam and its second moment

@exhibit("adam", "first step", "google-research/bert#153")
def uncorrected(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """The means are not corrected for their start at 0. "This was mostly an oversight", wrote its author."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    return m / (v.sqrt() + eps)

@exhibit("adam", "six steps", "allenai/OLMo-core#317")
def the_step_stays_one(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """t is never counted up, so the corrections stay those of the first step: 2.2 times the lr for ever."""
    return adamw(g, m, v, torch.ones_like(t), beta1=beta1, beta2=beta2, eps=eps)

@exhibit("adam", "first step", "DiffSharp/DiffSharp#292")
class CountsTensors(Judged):
    """t is counted up for each tensor, so the later tensors get the corrections of later steps."""
    def update(self, group, t, members):
        for i, member in enumerate(members):
            super().update(group, (t - 1) * len(members) + i + 1, [member])

@exhibit("adam", "tiny gradients", "FluxML/Flux.jl#448")
def eps_in_the_root(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """eps is added inside of the root, where it is worth its root: 3e-8 here, 1e-4 for the usual 1e-8."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    return hat(m, beta1, t) / (hat(v, beta2, t) + eps).sqrt()

@exhibit("adalayer", "sharing", "zyushun/Adam-mini#16")
def no_blocks(g, m, v: per_block, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """The number of blocks is accepted, and the mean is over the whole tensor."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square().mean().expand(len(v)), 1 - beta2)
    return hat(m, beta1, t) / (hat(v[0], beta2, t).sqrt() + eps)

@exhibit("adalayer_star", "sharing", "PaddlePaddle/PaddleNLP#10413")
def wrong_axis(g, m, v: per_column, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """The mean is along the wrong axis: one v for each column, where a token is a row."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(mean_to(g.square(), v), 1 - beta2)
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)

@exhibit("adafactor", "sharing", "huggingface/pytorch-image-models#2749")
def tall_without_rows(g, m, r: per_row, c: per_column, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """In a tall matrix r is divided by itself, where it should be divided by its mean."""
    m.lerp_(g, 1 - beta1)
    r.lerp_(mean_to(g.square(), r), 1 - beta2)
    c.lerp_(mean_to(g.square(), c), 1 - beta2)
    v = factored(r, c) if len(g) < g.shape[1] else c
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)

@exhibit("adafactor", "learning rate", "jettify/pytorch-optimizer#535")
def relative_step(g, m, r: per_row, c: per_column, t, lr, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """The rule has a step size of its own, 0.1 / sqrt(t), so that lr and schedule have no effect."""
    u = optim.adafactor(g, m, r, c, t, beta1=beta1, beta2=beta2, eps=eps)
    return u * 0.1 / t.sqrt() / lr

# ---------------------------------------------------------------------------------------------------------
# Matrices

@exhibit("muon", "six steps", "TheAlgorithms/Python#13720")
def momentum_of_orthogonal(g, m, *, beta1=0.95):
    """The gradient is made orthogonal before the momentum, so noise counts as much as the signal."""
    m.mul_(beta1).add_(max(1, len(g) / g.shape[1]) ** 0.5 * orthogonal(g))
    return m.clone()

@exhibit("muon", "first step", "TheAlgorithms/Python#13724")
def no_scale(g, m, *, beta1=0.95):
    """Tall matrices lack their factor sqrt(rows / columns)."""
    m.lerp_(g, 1 - beta1)
    return orthogonal(g.lerp(m, beta1))

@exhibit("muon", "form", "KellerJordan/Muon, muon.py")
def spends_the_gradient(g, m, *, beta1=0.95):
    """The mix of g and m is written into g, so whoever logs the norm of g afterwards logs another one."""
    m.lerp_(g, 1 - beta1)
    return max(1, len(g) / g.shape[1]) ** 0.5 * orthogonal(g.lerp_(m, beta1))

# ---------------------------------------------------------------------------------------------------------
# Weight decay

@exhibit("decoupled", "weight decay", "pytorch/pytorch#38767")
def l2(g, w, m, v, t, *, wd=0.1):
    """The decay is added to the gradient: where gradients are large, v takes it away again."""
    return adamw(g + wd * w, m, v, t)

@exhibit("decoupled", "weight decay", "jettify/pytorch-optimizer#454")
def constant_decay(g, w, m, v, t, *, wd=0.1):
    """The factor w is missing: every weight becomes smaller by the same amount."""
    return adamw(g, m, v, t) + wd

@exhibit("decoupled", "weight decay", "dholzmueller/pytabkit#40")
def lr_counts_twice(g, w, m, v, t, lr, *, wd=0.1):
    """The decay is multiplied by the lr twice."""
    return adamw(g, m, v, t) + lr * wd * w

@exhibit("decoupled", "weight decay", "tensorflow/addons#2282")
def lr_does_not_count(g, w, m, v, t, lr, *, wd=0.1):
    """The decay is not multiplied by the lr, so that it does not follow the schedule either."""
    return adamw(g, m, v, t) + wd * w / lr.clamp_min(1e-30)

@exhibit("muon", "weight decay", "KellerJordan/modded-nanogpt#275")
class DecayIsPrinted(Judged):
    """The log prints the decay of Muon's group. Its step does not use it."""
    def decay(self, group, t):
        return 1.0

@exhibit("lion", "weight decay", "bitsandbytes-foundation/bitsandbytes#1992")
class DecayInTheSign(Judged):
    """One path adds the decay to the gradient. There, the sign makes a full step of it."""
    def decay(self, group, t):
        for p in group["params"]:
            p.grad.add_(p, alpha=group["weight_decay"])
        return 1.0

@exhibit("lion", "weight decay", "lucidrains/lion-pytorch, decoupled_weight_decay")
class PeakOfTheConstructor(Judged):
    """The peak is that of the constructor, also for a group with an lr of its own, and is not saved."""
    def decay(self, group, t):
        coupled = group["weight_decay_kind"] == "coupled"
        return 1 - group["weight_decay"] * group["lr"] / (1 if coupled else self.defaults["lr"])

# ---------------------------------------------------------------------------------------------------------
# Clipping, groups, checkpoints, micro-batches

@exhibit("clipping", "hyperparameters", "awslabs/graphstorm#1366")
def clips_afterwards(g, norm, m, v, t, *, clip=1.0):
    """The gradient is clipped when the moments have already seen it, and then nobody uses it again."""
    u = adamw(g, m, v, t)
    g = g * (clip / (norm + 1e-6)).clamp(max=1.0)
    return u

@exhibit("clipping", "first step", "sanchit-gandhi/seq2seq-speech#7")
def clips_the_update(g, norm, m, v, t, *, clip=1.0):
    """The update is clipped and not the gradient. v remembers the gradient that was too large."""
    u = adamw(g, m, v, t)
    return u * (clip / (u.norm() + 1e-6)).clamp(max=1.0)

@exhibit("clipping", "six steps", "huggingface/transformers#581")
def clips_each_tensor(g, norm, m, v, t, *, clip=1.0):
    """Each tensor is clipped by its own norm, which changes the direction of the whole gradient."""
    return adamw(g * (clip / (g.norm() + 1e-6)).clamp(max=1.0), m, v, t)

@exhibit("adafactor", "own lr", "huggingface/transformers#9751")
class WritesToItsGroup(Judged):
    """The step size of one tensor is written to the group's lr, where the next tensor finds it."""
    def update(self, group, t, members):
        for member in members:
            group["lr"] *= member[1].square().mean().sqrt().item()
            super().update(group, t, [member])

@exhibit("adam", "resume", "deepspeedai/DeepSpeed#7746")
class CastsOnLoad(Judged):
    """Loading casts the state to the type of the weights, as torch's own loader does."""
    load_state_dict = torch.optim.Optimizer.load_state_dict

@exhibit("adam", "resume", "KempnerInstitute/KempnerForge#115")
class LosesMoments(Judged):
    """Loading restores all but m and v, which start again at 0."""
    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for group, i, p in self.each_parameter():
            self.state[p] = self.start(group, i) | {"t": self.state[p]["t"]}

@exhibit("accumulation", "micro-batches", "karpathy/nanochat#515")
def logs_the_last(loss, micro_batches):
    """The logged loss is that of the last micro-batch: the run is right, and its curve is noisier."""
    for x in micro_batches:
        y = loss(x)
        (y / len(micro_batches)).backward()
    return y.item()

@exhibit("accumulation", "micro-batches", "openai/guided-diffusion#111")
def adds_up_gradients(loss, micro_batches):
    """The gradients are not divided by the number of pieces: more pieces are a larger step of SGD."""
    total = 0.0
    for x in micro_batches:
        y = loss(x)
        y.backward()
        total += y.item()
    return total / len(micro_batches)

# ---------------------------------------------------------------------------------------------------------
# The page

def best_loss(build, role: str, usual_lr: float, decay: dict) -> float:
    """The lowest loss of five learning rates half a decade apart, in a run of 40 steps with decay. The model
    is a network of two layers with 96 classes, whose frequency falls as 1 / rank."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(96, 16, generator=draw, dtype=torch.float64)
    frequency = 1 / torch.arange(1.0, 97.0)

    def batch(size):
        labels = torch.multinomial(frequency, size, replacement=True, generator=draw)
        return centres[labels] + 0.5 * torch.randn(size, 16, generator=draw, dtype=torch.float64), labels
    batches, (x_val, y_val) = [batch(256) for _ in range(40)], batch(2048)

    def end(lr):
        w = dict(mlp_up=torch.eye(16, dtype=torch.float64), **{role: 0.01 * centres.clone()})
        for p in w.values():
            p.requires_grad_()

        def loss(x, y):
            return F.cross_entropy((x @ w["mlp_up"].T).tanh() @ w[role].T, y)
        optimizer = build(w, lr=lr, **decay)
        for t, (x, y) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = group["lr_peak"] * (1 - t / 40)
            optimizer.zero_grad()
            loss(x, y).backward()
            try:
                optimizer.step()
            except ValueError:    # an exhibit has raised the lr so far that the decay would be below 0
                return math.inf
            if t == 20:
                optimizer.load_state_dict(optimizer.state_dict())
        return loss(x_val, y_val).item()
    return min(end(usual_lr * 10**(k / 2)) for k in range(-2, 3))


@functools.cache
def losses(name: str) -> tuple:
    """(the loss with the right rule, the loss with the exhibit)."""
    subject, exercise = MUSEUM[name].subject(), MUSEUM[name].exercise
    role = dict(adalayer="qkv", adalayer_star="head", lion="head").get(exercise, "embed")
    reference = EXERCISES[exercise].reference
    lr = {"sgd": 3.0, "muon": 0.44}.get(reference, 0.2 * zoo.RULES[reference].lr_factor)    # near the best
    coupled = "wd" in subject.rule.hyper
    decay = dict(weight_decay=0.1, weight_decay_kind="coupled") if coupled else dict(weight_decay=0.02)
    return best_loss(subject.reference, role, lr, decay), best_loss(subject.build, role, lr, decay)


def riddle(number: int) -> str:
    """Returns the code of an exhibit without what names its bug: name, docstring, and the line above."""
    name, one = list(MUSEUM.items())[number - 1]
    code = source_of(one.thing).partition("\n")[2]
    return f"# exhibit {number}, of the exercise {one.exercise}\n" + re.sub(rf"\b{name}\b", "exhibit", code)


def page() -> str:
    lines = [inspect.cleandoc(PAGE)]
    for number, (name, one) in enumerate(MUSEUM.items(), 1):
        shown = "" if one.exercise == "accumulation" else "{:.2f} -> {:.2f}".format(*losses(name))
        project, _, thread = one.made_by.partition("#")
        made_by = f"[{one.made_by}](https://github.com/{project}/issues/{thread})" if thread else one.made_by
        lines.append(f"| {number} | `{name}` | {one.exercise} | {made_by} | {inspect.getdoc(one.thing)} | "
                     f"{shown} | {one.fault()} |")
    return "\n".join(lines)


PAGE = """
    # The museum of bugs

    Each exhibit is a rule, or a class that applies one, that looks right. Each copies a mistake that was
    really made in public code. Many are mended today. `python -m lessons.museum 3` shows the code of the
    third exhibit without its name and its answer. To find a bug, compare an exhibit with the rule of its
    [exercise](exercises.md), and only then read on here. [museum.py](../../lessons/museum.py) has all
    exhibits, with their answers.

    *Loss* is the final loss of a small run with the right rule and with the exhibit, each at the best of five
    learning rates. A network of two layers learns 96 classes, whose frequency falls as 1 / rank, in 40 steps.
    Half-way the run is saved and loaded. There is one seed. Look at how many exhibits have a loss that would
    alarm nobody, or even a better one. A loss does not find such a mistake. A check does.

    `python -m lessons.museum > docs/lessons/museum.md` writes this page in half a minute.

    | number | exhibit | exercise | made by | what is wrong | loss, right -> exhibit | what the check says |
    | --- | --- | --- | --- | --- | --- | --- |"""


def main(argv: list[str]) -> int:
    """Prints the exhibits of these numbers, or the page. Returns the exit code."""
    torch.set_num_threads(1)    # the networks are so small that a second thread only waits
    numbers = [str(number) for number in range(1, len(MUSEUM) + 1)]
    if unknown := [text for text in argv if text not in numbers]:
        print(f"museum: error: {unknown[0]}: is no exhibit; give a number from 1 to {len(MUSEUM)}",
              file=sys.stderr)
        return 2
    print("\n\n".join(riddle(int(number)) for number in argv) if argv else page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
