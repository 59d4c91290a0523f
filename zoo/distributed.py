"""
Rules for several workers that need to send each other less than their gradients. Each worker is a process of
torch.distributed. It has all weights and its own part of the data. `python -m lessons workers` compares them.

Do not wrap the model in DistributedDataParallel with these. It averages the gradients, but here every worker
must use its own.
"""
import torch
import torch.distributed as dist

from zoo import TRIED, Optimizer, find
from zoo.classics import nesterov
from zoo.rule import ModifiedRule, Modifier

# ---- Distributed Lion: Lion on each worker's own gradient, and then a vote over its signs ---------------

def majority_vote(u):
    """Distributed Lion moves each weight where most workers would move it.
        u = sign(sum of the u of all workers)

    Remembers  nothing. The m of Lion is each worker's own, so a checkpoint needs that of every worker.
    For        lion, with gradients that nobody has averaged. With one worker it is Lion. An even number of
               workers may disagree by halves, and then the weight stays. The authors' code votes -1 there.
    Source     Liu et al. (2024), arXiv 2404.00438. There a worker sends one bit per weight and step. Here it
               sends u as it is, in 32 bits. Not compared with numbers of that code."""
    dist.all_reduce(u)
    return u.sign()

def mean_of_signs(u):
    """Distributed Lion with the mean moves a weight farther, the more workers agree.
        u = mean of the u of all workers

    Remembers  nothing, as majority_vote.
    For        lion, with gradients that nobody has averaged. With one worker it is Lion.
    Source     Liu et al. (2024), arXiv 2404.00438."""
    dist.all_reduce(u)
    return u / dist.get_world_size()

VOTES = {
    "majority_vote": Modifier(majority_vote, changes="u", elementwise=True),
    "mean_of_signs": Modifier(mean_of_signs, changes="u", elementwise=True),
}

def voting_lion(vote: str) -> ModifiedRule:
    """Returns Lion with a vote. It counts as tried, because an Optimizer tries each new rule, and a trial of
    this one would send messages to the other workers."""
    rule = ModifiedRule(find("lion"), [VOTES[vote]])
    TRIED.add(rule.function)
    return rule

# ---- DiLoCo: many steps alone, and then one step together -----------------------------------------------

class DiLoCo:
    """Lets each worker take many steps alone. Then all together take one step of Nesterov's SGD.
        every inner_steps steps:    g <- mean over workers of (w_old - w)
                                    m <- b1 m + g;  w_old <- w_old - outer_lr (g + b1 m);  w <- w_old

    Remembers  w_old and m, 8 bytes per weight, besides the state of the inner optimizer, which is each
               worker's own and is never averaged.
    Defaults   are the authors': 500 inner steps of AdamW, outer_lr 0.7, b1 0.9.
    For        every tensor. With one worker it is no plain AdamW, but a kind of lookahead.
    Source     Douillard et al. (2023), arXiv 2311.08105.

    inner         the optimizer of this worker. All workers must start with the same weights.
    inner_steps   how many steps a worker takes alone"""
    def __init__(self, inner: torch.optim.Optimizer, *, inner_steps=500, outer_lr=0.7, beta1=0.9):
        self.inner, self.inner_steps, self.steps_taken = inner, inner_steps, 0
        self.weights = [p for group in inner.param_groups for p in group["params"]]
        self.old = [p.detach().clone() for p in self.weights]
        self.outer = Optimizer(self.old, nesterov, lr=outer_lr, beta1=beta1)

    @property
    def param_groups(self) -> list:
        """The groups of the inner optimizer, whose lr a schedule may change."""
        return self.inner.param_groups

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        """Takes a step alone, and after every inner_steps of them the step together."""
        self.inner.step()
        self.steps_taken += 1
        if self.steps_taken % self.inner_steps:
            return
        for old, p in zip(self.old, self.weights):
            old.grad = old - p
            dist.all_reduce(old.grad)
            old.grad /= dist.get_world_size()
        self.outer.step()
        self.outer.zero_grad()    # which frees its memory
        for old, p in zip(self.old, self.weights):
            p.copy_(old)

    def state_dict(self) -> dict:
        return dict(inner=self.inner.state_dict(), outer=self.outer.state_dict(), old=self.old,
                    steps_taken=self.steps_taken)

    def load_state_dict(self, state: dict) -> None:
        self.inner.load_state_dict(state["inner"])
        self.outer.load_state_dict(state["outer"])
        self.steps_taken = state["steps_taken"]
        for old, saved in zip(self.old, state["old"]):
            old.copy_(saved)
