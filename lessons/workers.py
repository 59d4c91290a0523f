"""
python -m lessons workers

Trains the toy zipf with three workers, and compares what they send each other. Each worker is a process. It
draws its own samples, and has all weights.

    averaged gradients    all workers average their gradients in every step, as usual
    Distributed Lion      each worker sends only signs, one bit per weight
    DiLoCo                once in ten steps, the workers average how far they went

The learning rates are set as for all toys. See docs/lessons/workers.md.
"""
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

import zoo
from lessons import toys
from study.tables import as_table
from trainer.options import load, option
from zoo.distributed import DiLoCo, voting_lion

WORKERS, INNER_STEPS = 3, 10


def voting(vote: str, params: list, lr: float) -> zoo.Optimizer:
    """Returns Lion with a vote over the workers."""
    return zoo.Optimizer(params, voting_lion(vote), lr=lr)


def averaging(rule: str, params: list, lr: float) -> zoo.Optimizer:
    """Returns the optimizer of a rule whose gradients are averaged over the workers before each step."""
    optimizer = zoo.Optimizer(params, rule, lr=lr)

    def average(optimizer, args, kwargs):
        for p in params:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()

    optimizer.register_step_pre_hook(average)
    return optimizer


def diloco(rule: str, params: list, lr: float) -> DiLoCo:
    return DiLoCo(zoo.Optimizer(params, rule, lr=lr), inner_steps=INNER_STEPS)


# {name: (a function of (weights, lr) that returns the optimizer of a worker, the rule whose usual lr is the
# middle of the grid, bits that a worker sends per weight and step)}
WAYS: dict[str, tuple[Callable, str, float]] = {
    "adamw, averaged gradients": (partial(averaging, "adamw"), "adamw", 32),
    "adamw, DiLoCo": (partial(diloco, "adamw"), "adamw", 32 / INNER_STEPS),
    "lion, averaged gradients": (partial(averaging, "lion"), "lion", 32),
    "lion, majority vote": (partial(voting, "majority_vote"), "lion", 1),
    "lion, mean of signs": (partial(voting, "mean_of_signs"), "lion", 1),
}


def train(way: str, lr: float, seed: int) -> dict:
    """Trains this worker's copy of the weights together with all others.

    Returns: {"loss": the final loss, "apart": the largest difference between the weights of two workers}."""
    kind = toys.TOYS["zipf"]
    problem = kind.make(kind.variants[0], seed)
    for _ in range(dist.get_rank() * kind.steps):    # so that each worker draws samples of its own
        problem.objective(0)
    params = list(problem.weights.values())
    optimizer = WAYS[way][0](params, lr)
    for t in range(1, kind.steps + 1):
        optimizer.param_groups[0]["lr"] = lr * zoo.schedule(t, kind.steps)
        optimizer.zero_grad()
        problem.objective(t).backward()
        optimizer.step()
    everyone = [torch.empty_like(params[0]) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, params[0].detach())
    loss = torch.tensor(problem.sum_up()["loss"])    # each worker measures on samples of its own
    dist.all_reduce(loss)
    everyone = torch.stack(everyone)
    return dict(loss=(loss / dist.get_world_size()).item(),
                apart=(everyone.amax(0) - everyone.amin(0)).max().item())


def worker(rank: int, workers: int, folder: str, seed: int) -> None:
    """Is one worker. The first one writes the rows of the table into folder/rows.json."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", workers), rank=rank,
                            world_size=workers)
    rows = []
    for way, (_, rule, bits) in WAYS.items():
        runs = toys.search(partial(train, way, seed=seed), toys.USUAL * zoo.find(rule).lr_factor)
        lr = min(runs, key=lambda lr: runs[lr]["loss"])
        rows.append(dict(way=way, bits=bits, lr=lr, **runs[lr]))
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    dist.barrier()    # no worker leaves while another one still talks to it
    sys.stdout.flush()
    os._exit(0)    # the threads of gloo outlive the process group and may abort a usual exit


def compare(workers: int = WORKERS, seed: int = 0) -> list[dict]:
    """Returns {"way", "bits", "lr", "loss", "apart"} of each way to work together."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, (workers, folder, seed), nprocs=workers)
        return json.loads(Path(folder, "rows.json").read_text())


@dataclass
class Options:
    """The options of the table."""
    seed: int = option(0, None, "of the problem and of all samples", low=0)


def main(argv: list[str]) -> None:
    """Prints the table."""
    options = load(Options, argv, __doc__, program="python -m lessons workers")[0]
    columns = ("way to work together", "bits that a worker sends, per weight and step", "best lr",
               "final loss", "weights apart")
    print(as_table(columns, [(row["way"], f"{row['bits']:g}", f"{row['lr']:g}", f"{row['loss']:.3f}",
                              f"{row['apart']:g}") for row in compare(seed=options.seed)]), end="")
