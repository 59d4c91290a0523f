"""
How the lr falls after the warmup. With --cooldown=0.2 it falls only in the last fifth of the run. This is
called WSD: warmup, stable, decay (Hu et al. 2024, arXiv 2404.06395).

Each function gets p, the fraction of the fall that is done. It returns the fraction of the way from 1 to the
floor that is left. A linear fall to zero is --schedule=linear --floor=0: Bergsma et al. (2025), arXiv
2502.15938. Its last step has an lr of 0.
"""
import math

def schedule(t, steps, shape=None, warmup=0.1, warmup_from=0.1, floor=0.1, cooldown=1.0) -> float:
    """The fraction of the peak lr at step t = 1 ... steps. It rises in a line from warmup_from to 1 in the
    first warmup * steps, then falls to floor in the last cooldown * steps. The defaults are the paper's.
    shape: a function of SHAPES. None stands for the cosine."""
    rise = round(warmup * steps)
    if t < rise:
        return warmup_from + (1 - warmup_from) * t / rise
    fall = steps_before_fall(steps, warmup, cooldown)
    return floor + (1 - floor) * (shape or cosine)((t - fall) / (steps - fall), floor) if t > fall else 1.0

def steps_before_fall(steps, warmup=0.1, cooldown=1.0) -> int:
    """How many steps there are before the first one of the cooldown."""
    return max(round(warmup * steps), steps - round(cooldown * steps))

def cosine(p, floor):
    """(1 + cos(pi p)) / 2 falls like half a wave. Loshchilov, Hutter (2016), arXiv 1608.03983."""
    return (1 + math.cos(math.pi * p)) / 2

def linear(p, floor):
    """1 - p falls in a line."""
    return 1 - p

def sqrt(p, floor):
    """1 - sqrt(p) falls fast at first and then slowly. Hägele et al. (2024), arXiv 2405.18392."""
    return 1 - math.sqrt(p)

def square(p, floor):
    """1 - p^2 falls slowly at first and then fast. Dremov et al. (2025), arXiv 2508.01483."""
    return 1 - p**2

def mirror(p, floor):
    """2 (1 - p) - (1 + cos(pi p)) / 2 is the cosine, mirrored at the line. Dremov et al. (2025),
    arXiv 2508.01483."""
    return 2 * (1 - p) - (1 + math.cos(math.pi * p)) / 2

def lowered(p, floor):
    """0.7 (1 - p) is a line that begins with a jump down. The 0.7 is not verified. Dremov et al. (2025),
    arXiv 2508.01483."""
    return 0.7 * (1 - p)

def exponential(p, floor):
    """floor^p falls by the same fraction in each step. Hu et al. (2024), arXiv 2404.06395."""
    return (floor**p - floor) / (1 - floor)

def rex(p, floor):
    """(1 - p) / (1 - p / 2) stays above the line. Chen, Wolfe, Kyrillidis (2021), arXiv 2107.04197."""
    return (1 - p) / (1 - p / 2)

def constant(p, floor):
    """The lr stays at its peak."""
    return 1.0

SHAPES = {
    "cosine":      cosine,
    "linear":      linear,
    "constant":    constant,
    "sqrt":        sqrt,
    "square":      square,
    "mirror":      mirror,
    "lowered":     lowered,
    "exponential": exponential,
    "rex":         rex,
}
