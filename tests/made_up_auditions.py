"""
Auditions in worlds whose truth is known, to find out how often they are wrong.

    python tests/made_up_auditions.py        the table of docs/audition.md, in a few minutes
"""
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from study.audition_plan import COARSE, Audition, Findings, Run, Side

CANDIDATE = Side("mine", "mine", frozenset(), -8)
REFERENCE = Side("adamw", "adamw", frozenset(), -8)


class MadeUp:
    """A world in which the truth is known. The final loss of a run is a parabola over the logarithm of the
    learning rate, plus a shift that all runs of its seed share, plus noise.

    Args:
        seed: of this world's random numbers.
        better: how much lower the candidate's losses are, in nats.
        noise: the standard deviation of the noise of a run, in nats.
        best: the place of the candidate's best learning rate on the grid. The reference's is -8.
        width: the loss at a half decade from the best, in nats. With 0 all learning rates are equal.
        flat: whether the candidate's losses do not depend on the learning rate at all.
        tails: "normal", "heavy" (Student's t with 3 degrees of freedom) or "skewed" (exponential) noise.
        noise_of_candidate: how many times as noisy the candidate is.
        off_grid: how far the reference's best is from its place, in steps of the grid.
    """
    def __init__(self, seed: int, better: float = 0.0, noise: float = 0.02, best: float = -8,
                 width: float = 0.05, flat: bool = False, tails: str = "normal",
                 noise_of_candidate: float = 1.0, off_grid: float = 0.0):
        self.draw = np.random.default_rng(seed)
        self.better, self.noise, self.best, self.width = better, noise, best, width
        self.flat, self.tails, self.noise_of_candidate = flat, tails, noise_of_candidate
        self.off_grid = off_grid
        self.shifts: dict[int, float] = {}
        self.losses: dict[Run, float] = {}

    def draw_noise(self) -> float:
        """Returns noise with mean 0 and standard deviation 1."""
        if self.tails == "heavy":
            return self.draw.standard_t(3) / math.sqrt(3)
        return self.draw.exponential() - 1 if self.tails == "skewed" else self.draw.normal()

    def train(self, run: Run) -> float:
        """Returns the final loss of a run."""
        shift = self.shifts.setdefault(run.seed, self.draw.normal(0, 0.03))
        is_candidate = run.optimizer == "mine"
        distance = (run.lr - (self.best if is_candidate else -8 + self.off_grid)) / COARSE    # half decades
        basin = 0 if self.flat and is_candidate else self.width * distance**2
        noise = self.noise * self.draw_noise() * (self.noise_of_candidate if is_candidate else 1)
        gain = self.better if is_candidate else 0.0
        return 4.7 - 0.3 * math.log2(run.steps / 500) + shift - gain + basin + noise

    def audition(self, plan: Audition, most: int = 100) -> Findings:
        """Trains what the audition wants until it wants nothing."""
        for _ in range(most):
            found = plan.assess(self.losses, {"here": self.losses})
            if not found.wanted:
                return found
            assert not set(found.wanted) & set(self.losses) and len(set(found.wanted)) == len(found.wanted)
            for run in found.wanted:
                self.losses[run] = self.train(run)
        raise AssertionError("the audition does not end")


WORLDS = {
    "equal rules": {},
    "equal, one of them has no worse learning rates": dict(flat=True),
    "equal, heavy tails": dict(tails="heavy"),
    "equal, skewed noise": dict(tails="skewed"),
    "equal, both are twice as noisy": dict(noise=0.04),
    "equal, the candidate is four times as noisy": dict(noise_of_candidate=4.0),
    "equal, the candidate's best lies between two learning rates": dict(best=-7.5),
    "equal and steep": dict(width=0.35),
    "equal and steep, the reference's best lies between two learning rates": dict(width=0.35, off_grid=0.5),
    "worse by just more than the margin": dict(better=-0.031),
    "better by 0.05": dict(better=0.05),
    "better by 0.1": dict(better=0.1),
    "better by 0.2": dict(better=0.2),
}


def main(count: int) -> None:
    """Prints, for each world, how many of `count` auditions end with which word."""
    words = ("better", "same", "worse", "cannot tell", "not bracketed")
    columns = ("truth", *words, "pairs at the end, median", "runs, median")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for truth, options in WORLDS.items():
        plan = Audition(CANDIDATE, REFERENCE, 500)
        worlds = [MadeUp(seed, **options) for seed in range(count)]
        found = [world.audition(plan) for world in worlds]
        ends = [one.verdict.word if one.verdict else "not bracketed" for one in found]
        shares = " | ".join(f"{100 * ends.count(word) / count:.1f}" for word in words)
        pairs = np.median([len(one.seeds) for one in found if one.verdict])
        runs = np.median([len(world.losses) for world in worlds])
        print(f"| {truth} | {shares} | {pairs:g} | {runs:.0f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 2000)
