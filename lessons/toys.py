"""
Small problems on which optimizers differ for a reason. play() trains on them and returns plain data.

Each rule of the zoo trains all weights of a problem, with the paper's schedule, without decay and clipping.
One procedure sets all learning rates. It tries half decades around the rule's usual learning rate, and goes
on until the best has two worse ones on each side. Nobody fits a learning rate by hand.
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

import zoo
from trainer.errors import UserError

USUAL = 0.03    # adamw's usual lr here: ten times that of the 150m model, because these runs are so short


class Problem(NamedTuple):
    """What a rule trains.

    Attributes:
        weights: {name: weight at its start}.
        role: the role of all weights, one of optim.ROLES.
        objective: a function of the step t = 1 ... It returns the loss whose gradient the rule gets.
        measure: a function that returns the loss to judge by. It has no noise where that is possible.
        look: a function that returns what to keep of each step, as a list of numbers.
        sum_up: a function that returns {name: value} after the last step. A "loss" replaces the usual one,
            which is the mean of what `measure` returned in the last tenth of the steps.
    """
    weights: dict[str, torch.Tensor]
    role: str
    objective: Callable[[int], torch.Tensor]
    measure: Callable[[], torch.Tensor]
    look: Callable[[], list]
    sum_up: Callable[[], dict] = dict


class Toy(NamedTuple):
    """A kind of problem.

    Attributes:
        idea: what it shows, as the title of its picture.
        rules: the rules to show if nobody names others.
        steps: how many steps a run takes.
        variants: names of problems that are compared.
        make: a function of (variant, seed) that returns the Problem.
        cells: a function of (record, record of the first variant) that returns {column of the table: value}.
        follow: whether all variants take the learning rates of the first one.
    """
    idea: str
    rules: str
    steps: int
    variants: tuple[str, ...]
    make: Callable[[str, int], Problem]
    cells: Callable[[dict, dict], dict]
    follow: bool = False


# ---------------------------------------------------------------------------------------------------------
# Training

def find(rule: str) -> zoo.ZooRule:
    """Returns the rule of a name, or of a name with modifiers such as "adamw+cautious". Raises UserError."""
    name, _, modifiers = rule.partition("+")
    try:
        return zoo.modified(name, modifiers)
    except ValueError as error:
        raise UserError(str(error)) from None


def build(rule: str, problem: Problem, lr: float, steps: int) -> zoo.Optimizer:
    """Returns the optimizer of all weights. A row is a block where the rule's line in the zoo says so."""
    found = find(rule)
    by_rows = problem.role in found.rows
    group = dict(params=list(problem.weights.items()), roles=[problem.role] * len(problem.weights),
                 blocks=[len(w) if by_rows else 1 for w in problem.weights.values()])
    given = {"steps": steps} if "steps" in found.from_run else {}
    optimizer = zoo.Optimizer([group], found, lr=lr, strict=True, **given)
    if optimizer.wants_sampled():
        raise UserError(f"{rule}: needs labels that the model draws itself, which toys do not have")
    return optimizer


def train(rule: str, problem: Problem, lr: float, steps: int) -> dict:
    """Returns {"loss": final loss, "losses": at the start and after each step, "path": what look() gave}.
    If the loss grows to a million times its start, the run ends, and its final loss is infinite."""
    optimizer = build(rule, problem, lr, steps)
    losses, path = [problem.measure().item()], [problem.look()]
    for t in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = lr * zoo.schedule(t, steps)
        optimizer.zero_grad()
        problem.objective(t).backward()
        optimizer.step()
        with torch.no_grad():
            losses.append(problem.measure().item())
            path.append(problem.look())
        if not losses[-1] <= 1e6 * losses[0]:
            return dict(loss=math.inf, losses=losses, path=path)
    last = losses[-(steps // 10):]
    return dict(loss=sum(last) / len(last), losses=losses, path=path) | problem.sum_up()


def search(run: Callable[[float], dict], usual: float) -> dict[float, dict]:
    """Returns {learning rate: run} of the half decades that the rule for all toys asks for, in order."""
    middle, runs = round(2 * math.log10(usual)), {}
    wanted = range(middle - 2, middle + 3)
    while (missing := [k for k in wanted if k not in runs]) and len(runs) < 30:
        runs |= {k: run(half_decade(k)) for k in missing}
        best = min(runs, key=lambda k: (runs[k]["loss"], k))
        wanted = range(best - 2, best + 3)
    return {half_decade(k): runs[k] for k in sorted(runs)}


def half_decade(k: int) -> float:
    return float(f"{10 ** (k / 2):.3g}")


def play(name: str, rules: list[str], lrs: list[float] | None = None, seed: int = 0) -> list[dict]:
    """Trains rules on all variants of a toy.

    Args:
        name: the name of a toy.
        rules: names of rules, also with modifiers.
        lrs: for each rule the learning rate to look at. The default is the best.
        seed: of the problem and of its noise.

    Returns:
        A record for each rule and variant: {"rule", "variant", "lr", "curve": {lr: final loss}, "cells":
        {column: value}}, and of the run at lr what train() returns. A run that diverged has no cells.
    """
    toy, records = TOYS[name], []
    for rule in rules:    # a rule that does not fit must say so before the others train
        build(rule, toy.make(toy.variants[0], seed), 1.0, toy.steps)
    for rule, given_lr in zip(rules, lrs or [None] * len(rules)):
        first = None
        for variant in toy.variants:
            def run(lr):
                return train(rule, toy.make(variant, seed), lr, toy.steps)

            if first and toy.follow:
                runs, lr = {lr: run(lr) for lr in first["curve"]}, first["lr"]
            else:
                runs = search(run, USUAL * find(rule).lr_factor)
                lr = given_lr or min(runs, key=lambda lr: runs[lr]["loss"])
            record = dict(rule=rule, variant=variant, lr=lr, curve={lr: runs[lr]["loss"] for lr in runs})
            record |= runs.get(lr) or run(lr)
            first = first or record
            has_ended = math.isfinite(record["loss"])
            records.append(record | dict(cells=toy.cells(record, first) if has_ended else {}))
    return records


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_step(rules: list[str], seed: int = 0) -> list[dict]:
    """Feeds all rules the same twenty noisy gradients of a matrix, of low rank and with rows of unequal size.

    Returns:
        {"rule", "update": the matrix u of the last step, "singular_values", "cells"} for each rule, after a
        record of the mean gradient, whose rule is "".
    """
    draw, steps = random(seed), 20
    sizes = torch.logspace(0, -1.5, 12)[torch.randperm(12, generator=draw)]
    mean = sizes[:, None] * (torch.randn(12, 4, generator=draw) @ torch.randn(4, 20, generator=draw))
    noisy = mean + 0.1 * torch.randn(steps, 12, 20, generator=draw)

    def update(rule):
        w = torch.zeros(12, 20, requires_grad=True)
        role = "head" if "head" in find(rule).rows else "mlp_up"
        problem = Problem({"w": w}, role, lambda t: (noisy[t - 1] * w).sum(), lambda: torch.zeros(()),
                          lambda: w.detach().clone())
        before, after = train(rule, problem, 1.0, steps)["path"][-2:]
        return (before - after) / zoo.schedule(steps, steps)

    records = []
    for rule, u in ({"": mean} | {rule: update(rule) for rule in rules}).items():
        values = torch.linalg.svdvals(u)
        cosine = torch.nn.functional.cosine_similarity(u.flatten(), mean.flatten(), 0)
        records.append(dict(rule=rule, update=u.tolist(), singular_values=values.tolist(), cells={
            "rms": u.square().mean().sqrt().item(), "least / largest singular value":
            (values[-1] / values[0]).item(), "cosine with the mean gradient": cosine.item()}))
    return records


# ---------------------------------------------------------------------------------------------------------
# Two weights, which are a row of a matrix

def in_the_plane(surface: Callable, start: list[float], noise: float = 0.0, seed: int = 0) -> Problem:
    """surface: a function of (x, y) that returns the loss. noise: standard deviation of each gradient."""
    w = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    draw = random(seed)

    def objective(t):    # the gradient of the second term is noise
        return surface(*w[0]) + noise * (torch.randn(w.shape, generator=draw) * w).sum()

    return Problem({"w": w}, "mlp_up", objective, lambda: surface(*w[0]), lambda: w[0].tolist())


def ravine_loss(variant: str, x, y):
    """A bowl that is a hundred times steeper across than along."""
    angle = math.radians(30 if variant == "turned" else 0)
    along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    return along**2 / 2 + 100 * across**2 / 2


def ravine(variant: str, seed: int) -> Problem:
    """Starts at a distance of 1, about as far from the goal along as across."""
    angle = 40 + 10 * torch.rand((), generator=random(seed)).item() + (30 if variant == "turned" else 0)
    start = [math.cos(math.radians(angle)), math.sin(math.radians(angle))]
    return in_the_plane(lambda x, y: ravine_loss(variant, x, y), start)


def valley_loss(variant: str, x, y):
    """A bent valley that falls gently towards (1, 1)."""
    return (x - 1)**2 / 2 + 5 * (y - x**2)**2


def valley(variant: str, seed: int) -> Problem:
    noise = 1.0 if variant == "noisy" else 0.0
    return in_the_plane(lambda x, y: valley_loss(variant, x, y), [-1.0, 1.5], noise, seed)


def step_over_lr(record: dict, first: dict) -> dict:
    """How far a weight moves in a step (root mean square), in learning rates. It skips the first quarter."""
    path = torch.tensor(record["path"])
    lrs = torch.tensor([record["lr"] * zoo.schedule(t, len(path) - 1) for t in range(1, len(path))])
    steps = path.diff(dim=0).square().mean(1).sqrt() / lrs
    return {"step / lr": steps[len(steps) // 4:].mean().item()}


# ---------------------------------------------------------------------------------------------------------
# Linear models

INPUTS, SAMPLES = 32, 512


def zipf(variant: str, seed: int) -> Problem:
    """A linear softmax over classes. The class of rank k comes with a frequency in proportion to 1 / k."""
    draw, classes = random(seed), int(variant.partition(" ")[0].replace(",", ""))
    frequency = 1 / torch.arange(1, classes + 1)
    frequency /= frequency.sum()
    centres = torch.randn(classes, INPUTS, generator=draw)
    w = torch.zeros(classes, INPUTS, requires_grad=True)
    newest = torch.tensor(math.log(classes))

    def losses(labels):
        inputs = centres[labels] + 0.3 * torch.randn(len(labels), INPUTS, generator=draw)
        return torch.nn.functional.cross_entropy(inputs @ w.T, labels, reduction="none")

    def objective(t):
        loss = losses(torch.multinomial(frequency, SAMPLES, True, generator=draw)).mean()
        newest.copy_(loss.detach())
        return loss

    @torch.no_grad()
    def by_rank():
        of_ranks = losses(torch.arange(classes).repeat(4)).reshape(4, classes).mean(0)
        return dict(loss=(frequency * of_ranks).sum().item(), by_rank=of_ranks.tolist())

    return Problem({"w": w}, "head", objective, lambda: newest, list, by_rank)


def frequent_and_rare(record: dict, first: dict) -> dict:
    """Mean losses of the first sixteenth of the classes, and of the last half."""
    losses = torch.tensor(record["by_rank"])
    return {"frequent": losses.chunk(16)[0].mean().item(), "rare": losses.chunk(2)[1].mean().item()}


def layers(variant: str, seed: int) -> Problem:
    """Two linear layers with an input each. That of the second is so small that its gradient is a thousand
    times smaller."""
    draw, sizes = random(seed), (1.0, 1000**-0.5)
    targets = [torch.randn(16, 16, generator=draw) for _ in sizes]
    weights = [torch.zeros(16, 16, requires_grad=True) for _ in sizes]

    def objective(t):
        inputs = [size * torch.randn(32, 16, generator=draw) for size in sizes]
        return sum((x @ (w - target).T).square().mean() for x, w, target in zip(inputs, weights, targets)) / 2

    def errors():    # of each layer, as a fraction of its error at the start
        return [((w - target).norm() / target.norm()).square() for w, target in zip(weights, targets)]

    def measure():
        return sum(size**2 * error for size, error in zip(sizes, errors()))

    return Problem({"first": weights[0], "second": weights[1]}, "mlp_up", objective, measure,
                   lambda: [error.item() for error in errors()])


def errors_of_layers(record: dict, first: dict) -> dict:
    return dict(zip(("error of layer 1", "error of layer 2"), record["path"][-1]))


SPIKE = 100    # the step with the spike


def spike(variant: str, seed: int) -> Problem:
    """A round bowl of 64 weights with noise. One gradient may be a thousand times too large."""
    draw = random(seed)
    w = torch.randn(8, 8, generator=draw).requires_grad_()

    def objective(t):
        size = 1000 if variant == "spike" and t == SPIKE else 1
        return size * (w.square() / 2 + 0.3 * torch.randn(8, 8, generator=draw) * w).sum()

    return Problem({"w": w}, "mlp_up", objective, lambda: w.square().mean(), list)


def jump_and_memory(record: dict, first: dict) -> dict:
    """jump: how many times farther from the minimum the spike throws the weights, at most. memory: for how
    many steps they are more than twice as far away as without the spike; infinite if to the end. A run that
    diverged before the spike has no jump."""
    pairs = zip(record["losses"][SPIKE:], first["losses"][SPIKE:])
    farther = [math.sqrt(with_spike / max(calm, 1e-30)) for with_spike, calm in pairs]
    memory = max((i for i, ratio in enumerate(farther, 1) if ratio > 2), default=0)
    return {"jump": max(farther, default=math.nan), "memory": memory if memory < len(farther) else math.inf}


SHAPES = {"square": (32, 32), "tall": (64, 16), "wide": (16, 64)}


def matrix(variant: str, seed: int) -> Problem:
    """A linear map to be learned, whose singular values are all 1. The variance of the input falls as 1 / k^2
    from one direction to the next, and no direction is an axis."""
    draw, (rows, columns) = random(seed), SHAPES[variant]
    directions = torch.linalg.qr(torch.randn(columns, columns, generator=draw)).Q
    covariance = directions * torch.arange(1, columns + 1)**-2.0 @ directions.T
    left, _, right = torch.linalg.svd(torch.randn(rows, columns, generator=draw), full_matrices=False)
    w = torch.zeros(rows, columns, requires_grad=True)

    def loss(t=0):
        return ((w - left @ right) @ covariance * (w - left @ right)).sum() / 2

    return Problem({"w": w}, "mlp_up", loss, loss, lambda: torch.linalg.svdvals(w).tolist())


def least_and_largest(record: dict, first: dict) -> dict:
    return {"least singular value": record["path"][-1][-1], "largest": record["path"][-1][0]}


TOYS = {
    "ravine": Toy("Rules that scale each weight by itself win along the axes, and lose in a turned ravine",
                  "sgd_ema,signum,adamw", 40, ("along the axes", "turned"), ravine,
                  lambda record, first: {}),
    "zipf": Toy("Rare classes have small gradients: one step size for all classes learns them late",
                "sgd_ema,adalayer,signum,adamw,adalayer_star", 60, ("1,024 classes", "256 classes"), zipf,
                frequent_and_rare),
    "layers": Toy("Gradients of two layers differ by a thousand: one step size for all fails, one per tensor "
                  "suffices", "sgd_ema,adasgd,adalayer,signum,adamw", 60, ("both layers",), layers,
                  errors_of_layers),
    "spike": Toy("One gradient is a thousand times too large: how far rules jump, and how long they remember",
                 "sgd_ema,adalayer,signum,lion,adamw", 400, ("calm", "spike"), spike, jump_and_memory, True),
    "matrix": Toy("Some directions of the input hardly vary: only rules that see the matrix learn them soon",
                  "sgd_ema,adamw,muon,scion", 60, tuple(SHAPES), matrix, least_and_largest),
    "valley": Toy("Where gradients cancel, SGD and Adam take small steps; a sign is never small",
                  "sgd_ema,signum,adamw", 100, ("calm", "noisy"), valley, step_over_lr),
}
