"""
Adam in a few random directions only, to learn how far each channel of a matrix should move.
"""
import numpy as np
import torch

from optim import per_block, power
from zoo.orthogonal import matrices
from zoo.rule import AT_LEAST_ONE, ZooRule

# Below, a matrix stands so that its longer side comes first, and q, k, v are three:
# (blocks, long, short). rank is a fraction of the short side.

def projection(w, blocks, *, rank):
    """The random directions of each block: (blocks, short, rank)."""
    short = min(matrices(w, blocks).shape[1:])
    return w.new_zeros(blocks, short, max(1, round(rank * short)))

def projected(w, blocks, *, rank):
    """Room for what a projection leaves of each block: (blocks, long, rank)."""
    return w.new_zeros(blocks, max(matrices(w, blocks).shape[1:]), projection(w, blocks, rank=rank).shape[2])

def one_direction(w, blocks):
    """A projection of rank 1."""
    return projection(w, blocks, rank=0)

def one_column(w, blocks):
    """Room for what a projection of rank 1 leaves."""
    return projected(w, blocks, rank=0)

def apollo(g, m: projected, s: projected, p: projection, last: per_block, t, blocks, *, beta1=0.9,
           beta2=0.999, eps=1e-6, rank=0.25, scale=1.0, refresh_steps=200, seed=0):
    """APOLLO: the gradient itself, each of its channels as long as Adam would make it in a random projection.

        G  = g p                                  p: normal numbers / sqrt(rank), drawn anew now and then
        m <- b1 m + (1 - b1) G;  s <- b2 s + (1 - b2) G^2;  n = m / (sqrt(s) + eps)
        u  = g |n| / |G|, norms over rank: one factor for each index of the longer side
        u  cut to 1.01 times the norm that it had one step before
        u  times sqrt(scale) sqrt(1 - b2^t) / (1 - b1^t)

    Remembers  m and s of 1/4 of the weights, 2 bytes per weight; p, 1 byte per weight of a square matrix
               (the authors draw it again from its seed).
    Moves      along the gradient, without momentum; by about sqrt(rank) of Adam's step.
    lr         in weight; Typical 1e-2, the authors' for LLaMA at 60m ... 7b.
    Defaults   the authors': a quarter of the width; m and s are kept when p changes. seed: the trainer
               passes --seed; p is a function of it, of the tensor and of t.
    For        the hidden matrices; embedding, head and norms go to AdamW at their own lr (the authors: at
               the same).
    Source     Zhu et al. (2024), arXiv 2412.05270.
    """
    x = long_first(g, blocks)
    small = x @ p
    n = adam(small, m, s, beta1, beta2, eps)
    u = x * (n.norm(dim=2, keepdim=True) / (small.norm(dim=2, keepdim=True) + 1e-8))
    u = limited(u, last, t) * (scale * (1 - power(beta2, t))) ** 0.5 / (1 - power(beta1, t))
    return as_before(u, g, blocks)

def apollo_mini(g, m: one_column, s: one_column, p: one_direction, last: per_block, t, blocks, *, beta1=0.9,
                beta2=0.999, eps=1e-6, scale=128.0, refresh_steps=200, seed=0):
    """APOLLO-Mini: APOLLO with a single direction, which says how far the whole matrix should move.

        as APOLLO with rank 1, but  u = g |n| / |G|, norms over the matrix: one factor

    Remembers  m, s and p, three numbers per row or column: SGD's memory, without momentum.
    Moves      along the gradient, without momentum; by about sqrt(scale / columns) of Adam's step.
    lr         in weight; Typical 1e-2, as APOLLO's.
    Defaults   the authors': scale 128 (192, a quarter of the width, in their runs at 130m).
    For        as APOLLO.
    Source     Zhu et al. (2024), arXiv 2412.05270.
    """
    x = long_first(g, blocks)
    small = x @ p
    n = adam(small, m, s, beta1, beta2, eps)
    u = x * (n.norm(dim=(1, 2), keepdim=True) / (small.norm(dim=(1, 2), keepdim=True) + 1e-8))
    u = limited(u, last, t) * (scale * (1 - power(beta2, t))) ** 0.5 / (1 - power(beta1, t))
    return as_before(u, g, blocks)

def draw(p, t, index, *, seed):
    """New random directions: the same on all ranks and after a resume."""
    normal = np.random.default_rng([seed, index, t]).standard_normal(p.shape)
    p.copy_(torch.from_numpy(normal / p.shape[2] ** 0.5))

def long_first(x, blocks):
    x = matrices(x, blocks)
    return x if x.shape[1] >= x.shape[2] else x.mT

def as_before(x, like, blocks):
    """Undoes long_first."""
    rows, columns = matrices(like, blocks).shape[1:]
    return (x if rows >= columns else x.mT).reshape(like.shape)

def adam(x, m, s, beta1, beta2, eps):
    """Adam's step of x, not corrected for the start of m and s at 0."""
    m.lerp_(x, 1 - beta1)
    s.lerp_(x.square(), 1 - beta2)
    return m / (s.sqrt() + eps)

def limited(u, last, t):
    """u, whose norm may grow by 1 % a step: Chen et al. (2024), arXiv 2410.01623."""
    norm = u.norm(dim=(1, 2))
    excess = (norm / (last + 1e-8) / 1.01).clamp_min(1)
    excess = 1 + (excess - 1) * (t > 1).to(u)
    last.copy_(norm / excess)
    return u / excess[:, None, None]

RULES = {
    "apollo":      ZooRule(apollo, lr=3, roles="qkv+matrix", rest="adamw", refresh=draw, from_run=("seed",),
                           bounds=dict(refresh_steps=AT_LEAST_ONE)),
    "apollo_mini": ZooRule(apollo_mini, lr=3, roles="qkv+matrix", rest="adamw", refresh=draw, from_run=("seed",),
                           bounds=dict(refresh_steps=AT_LEAST_ONE)),
}
