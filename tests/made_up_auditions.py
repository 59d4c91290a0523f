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
        width_of_candidate: the same for the candidate, or None if it is equal.
        steep_above: how many times as far a learning rate above the best one seems to be.
        tails: "normal", "heavy" (Student's t with 3 degrees of freedom) or "skewed" (exponential) noise.
        tails_of_candidate: the same for the candidate, or None if it is equal.
        noise_of_candidate: how many times as noisy the candidate is.
        diverging: which fraction of all runs diverges.
        diverging_above: which fraction more diverges at half a decade above the best learning rate. It grows
            with the square of the distance.
        off_grid: how far the reference's best is from its place, in steps of the grid.
    """
    def __init__(self, seed: int, better: float = 0.0, noise: float = 0.02, best: float = -8,
                 width: float = 0.05, width_of_candidate: float | None = None, steep_above: float = 1.0,
                 tails: str = "normal", tails_of_candidate: str | None = None,
                 noise_of_candidate: float = 1.0, diverging: float = 0.0, diverging_above: float = 0.0,
                 off_grid: float = 0.0):
        self.draw = np.random.default_rng(seed)
        self.better, self.noise, self.steep_above = better, noise, steep_above
        self.diverging, self.diverging_above = diverging, diverging_above
        self.width = dict(adamw=width, mine=width if width_of_candidate is None else width_of_candidate)
        self.tails = dict(adamw=tails, mine=tails_of_candidate or tails)
        self.noisy = dict(adamw=1.0, mine=noise_of_candidate)
        self.best = dict(adamw=-8 + off_grid, mine=best)
        self.shifts: dict[int, float] = {}
        self.losses: dict[Run, float] = {}

    def draw_noise(self, tails: str) -> float:
        """Returns noise with mean 0 and standard deviation 1."""
        if tails == "heavy":
            return self.draw.standard_t(3) / math.sqrt(3)
        return self.draw.exponential() - 1 if tails == "skewed" else self.draw.normal()

    def steps_for_gain(self, nats: float) -> float:
        """Returns after how many times as many steps the loss is lower by these nats."""
        low, high = -4.0, 4.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if after(1) - after(2**middle) < nats else (low, middle)
        return 2**high

    def train(self, run: Run) -> float:
        """Returns the final loss of a run."""
        shift = self.shifts.setdefault(run.seed, self.draw.normal(0, 0.03))
        side = run.optimizer
        distance = (run.lr - self.best[side]) / COARSE    # half decades
        if distance > 0:
            distance *= self.steep_above
        noise = self.noise * self.noisy[side] * self.draw_noise(self.tails[side])
        gain = self.better if side == "mine" else 0.0
        diverging = self.diverging + self.diverging_above * max(0, distance)**2
        if diverging and self.draw.random() < diverging:
            return math.inf
        return 3.75 + after(run.steps / 500) + shift - gain + self.width[side] * distance**2 + noise

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


def after(length: float) -> float:
    """Returns the part of the loss that falls with the length of a run, in nats. A doubling gains 0.62 at
    length 1/2, 0.29 at 1 and 0.16 at 2, much as AdamW's does with configs/study.toml."""
    return 0.25 * length**-1.5 + 0.7 * length**-0.3


WORLDS = {
    "equal rules": {},
    "equal, one of them has no worse learning rates": dict(width_of_candidate=0.0),
    "equal and twice as noisy, the candidate is flat and the reference steep":
        dict(noise=0.04, width=1.0, width_of_candidate=0.01),
    "equal, heavy tails": dict(tails="heavy"),
    "equal, skewed noise": dict(tails="skewed"),
    "equal, the candidate's noise alone is skewed": dict(tails_of_candidate="skewed"),
    "equal, the reference's noise alone is skewed": dict(tails="skewed", tails_of_candidate="normal"),
    "equal, more and more runs diverge above the best learning rate": dict(diverging_above=0.3),
    "equal, one in twenty runs diverges at any learning rate": dict(diverging=0.05),
    "equal, both are twice as noisy": dict(noise=0.04),
    "equal, the candidate is four times as noisy": dict(noise_of_candidate=4.0),
    "equal, the candidate's best lies between two learning rates": dict(best=-7.5),
    "equal and steep": dict(width=0.35),
    "equal, the loss rises four times as fast above the best learning rate": dict(steep_above=2.0),
    "equal and steep, the reference's best lies between two learning rates": dict(width=0.35, off_grid=0.5),
    "worse by just more than the margin": dict(better=-0.031),
    "worse by 0.15": dict(better=-0.15),
    "better by 0.05": dict(better=0.05),
    "better by 0.1": dict(better=0.1),
    "better by 0.15": dict(better=0.15),
    "better by 0.2": dict(better=0.2),
}


def main(count: int) -> None:
    """Prints, for each world, how many of `count` auditions end with which word, in percent, and in how many
    of those that know a speedup its interval misses the truth."""
    words = ("better", "same", "worse", "cannot tell", "not bracketed")
    columns = ("truth", *words, "speedup missed", "pairs at the end, median", "runs, median")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for truth, options in WORLDS.items():
        plan = Audition(CANDIDATE, REFERENCE, 500)
        worlds = [MadeUp(seed, **options) for seed in range(count)]
        found = [world.audition(plan) for world in worlds]
        ends = [one.verdict.word if one.verdict else "not bracketed" for one in found]
        shares = " | ".join(f"{100 * ends.count(word) / count:.1f}" for word in words)
        true_speedup = worlds[0].steps_for_gain(worlds[0].better)
        speedups = [speedup for one in found if one.verdict and (speedup := one.speedup(500))]
        missed = sum(not speedup.low <= true_speedup <= speedup.high for speedup in speedups)
        pairs = np.median([len(one.seeds) for one in found if one.verdict])
        runs = np.median([len(world.losses) for world in worlds])
        print(f"| {truth} | {shares} | {100 * missed / max(1, len(speedups)):.1f} | {pairs:g} | {runs:.0f} |",
              flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 2000)
