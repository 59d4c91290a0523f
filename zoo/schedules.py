"""
What the lr may do after the warmup, or with --cooldown=0.2 in the last fifth of the run: WSD, warmup, stable,
decay (Hu et al. 2024, arXiv 2404.06395). Each function says what is left of the fall from 1 to the floor
when the part p of it is done.

Linear to zero is --schedule=linear --floor=0: Bergsma et al. (2025), arXiv 2502.15938. Its last step is 0.
"""
import math

import optim

def sqrt(p, floor):
    """1 - sqrt(p): most of the fall at once, the rest slowly. Hägele et al. (2024), arXiv 2405.18392."""
    return 1 - math.sqrt(p)

def square(p, floor):
    """1 - p^2: the fall at the end. Dremov et al. (2025), arXiv 2508.01483, as the next two."""
    return 1 - p**2

def mirror(p, floor):
    """The cosine mirrored at the line: 2 (1 - p) - (1 + cos(pi p)) / 2."""
    return 2 * (1 - p) - (1 + math.cos(math.pi * p)) / 2

def lowered(p, floor):
    """0.7 (1 - p): a line that begins with a jump down. The 0.7 is not verified."""
    return 0.7 * (1 - p)

def exponential(p, floor):
    """floor^p: the same fraction with each step. Hu et al. (2024), arXiv 2404.06395."""
    return (floor**p - floor) / (1 - floor)

def rex(p, floor):
    """(1 - p) / (1 - p / 2): above the line. Chen, Wolfe, Kyrillidis (2021), arXiv 2107.04197."""
    return (1 - p) / (1 - p / 2)

SHAPES = optim.SHAPES | {
    "sqrt":        sqrt,
    "square":      square,
    "mirror":      mirror,
    "lowered":     lowered,
    "exponential": exponential,
    "rex":         rex,
}
