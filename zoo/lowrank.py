"""
Rules that apply Adam only in a few random directions, to learn how far each channel of a matrix should move.
"""
import numpy as np
import torch

from optim import per_block, power
from zoo.orthogonal import matrices
from zoo.rule import AT_LEAST_ONE, ZooRule

# In this file the longer side of a matrix comes first, and q, k, v are three matrices: (blocks, long, short).
# rank is a fraction of the short side.

def projection(w, blocks, *, rank):
    """Makes room for the random directions of each block: (blocks, short, rank)."""
    short = min(matrices(w, blocks).shape[1:])
    return w.new_zeros(blocks, short, max(1, round(rank * short)))

def projected(w, blocks, *, rank):
    """Makes room for the projected gradient of each block: (blocks, long, rank)."""
    return w.new_zeros(blocks, max(matrices(w, blocks).shape[1:]), projection(w, blocks, rank=rank).shape[2])

def one_direction(w, blocks):
    """Makes room for a single random direction of each block: (blocks, short, 1)."""
    return projection(w, blocks, rank=0)

def one_column(w, blocks):
    """Makes room for the gradient in a single direction: (blocks, long, 1)."""
    return projected(w, blocks, rank=0)

def apollo(g, m: projected, s: projected, p: projection, last: per_block, t, blocks, *, beta1=0.9,
           beta2=0.999, eps=1e-6, rank=0.25, scale=1.0, refresh_steps=200, seed=0):
    """APOLLO follows the gradient, and makes each channel as long as Adam would in a random projection.
        G  = g p                                  p: normal numbers / sqrt(rank), redrawn every refresh_steps
        m <- b1 m + (1 - b1) G;  s <- b2 s + (1 - b2) G^2;  n = m / (sqrt(s) + eps)
        u  = g |n| / |G|, with norms over the rank: one factor for each index of the longer side
        u <- u, scaled down to at most 1.01 times its norm in the step before
        u <- u sqrt(scale) sqrt(1 - b2^t) / (1 - b1^t)

    Remembers  m and s for 1/4 of the weights, 2 bytes per weight, and p, 1 byte per weight of a square
               matrix. The authors' code keeps p, too.
    Moves      weights along the gradient, without momentum, by about half of Adam's step, sqrt(rank).
    Freezes    a tensor after one gradient of zeros, as published. Then the next step has a norm of 1e-8 and
               can grow by only 1 % a step: for some 1,400 steps.
    lr         is in weight. Typical 1e-2, the authors' for LLaMA at 60m ... 7b.
    Defaults   are the authors': the rank is a quarter of the width, as theirs at 60m ... 350m. At 1b and 7b
               they use rank 256, an eighth and a sixteenth. m and s are kept when p changes. The trainer
               passes --seed. p is a function of the seed, of the tensor and of t.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr. The authors use
               the same lr for all.
    Source     Zhu et al. (2024), arXiv 2412.05270."""
    x = long_first(g, blocks)
    small = x @ p
    n = adam(small, m, s, beta1, beta2, eps)
    u = x * (n.norm(dim=2, keepdim=True) / (small.norm(dim=2, keepdim=True) + 1e-8))
    u = limited(u, last, t) * (scale * (1 - power(beta2, t))) ** 0.5 / (1 - power(beta1, t))
    return in_shape_of(u, g, blocks)

def apollo_mini(g, m: one_column, s: one_column, p: one_direction, last: per_block, t, blocks, *, beta1=0.9,
                beta2=0.999, eps=1e-6, scale=128.0, refresh_steps=200, seed=0):
    """APOLLO-Mini is APOLLO with a single direction, which says how far the whole matrix should move.
        u  = g |n| / |G|, with norms over the whole matrix: one factor      all else is APOLLO's, with rank 1

    Remembers  m, s and p, which are three numbers per row or column: the memory of SGD without momentum.
    Moves      weights along the gradient, without momentum, by about sqrt(scale / shorter side) Adam steps.
    lr         is in weight. Typical 1e-2, as APOLLO's.
    Defaults   are the authors': scale 128. In their runs at 130m it is 192, a quarter of the width.
    For        the same tensors as APOLLO.
    Source     Zhu et al. (2024), arXiv 2412.05270."""
    x = long_first(g, blocks)
    small = x @ p
    n = adam(small, m, s, beta1, beta2, eps)
    u = x * (n.norm(dim=(1, 2), keepdim=True) / (small.norm(dim=(1, 2), keepdim=True) + 1e-8))
    u = limited(u, last, t) * (scale * (1 - power(beta2, t))) ** 0.5 / (1 - power(beta1, t))
    return in_shape_of(u, g, blocks)

def draw(p, t, index, *, seed):
    """Draws new random directions into p. They are the same on all ranks and after a resume."""
    p.copy_(normal_like(p, seed, index, t) / p.shape[2] ** 0.5)

def normal_like(x, seed, index, t):
    """Returns normal random numbers in the shape of x. They depend only on seed, index and t."""
    numbers = torch.from_numpy(np.random.default_rng([seed, index, t]).standard_normal(x.shape)).to(x.device)
    if hasattr(x, "device_mesh"):    # a tensor of FSDP2, which takes no plain tensor
        from torch.distributed.tensor import distribute_tensor
        return distribute_tensor(numbers, x.device_mesh, x.placements)
    return numbers

def long_first(x, blocks):
    """Returns x as matrices whose longer side comes first: (blocks, long, short)."""
    x = matrices(x, blocks)
    return x if x.shape[1] >= x.shape[2] else x.mT

def in_shape_of(x, like, blocks):
    """Undoes long_first. Returns x in the shape of `like`."""
    rows, columns = matrices(like, blocks).shape[1:]
    return (x if rows >= columns else x.mT).reshape(like.shape)

def adam(x, m, s, beta1, beta2, eps):
    """Returns Adam's step for x. It does not correct m and s for their start at 0."""
    m.lerp_(x, 1 - beta1)
    s.lerp_(x.square(), 1 - beta2)
    return m / (s.sqrt() + eps)

def limited(u, last, t):
    """Returns u, scaled down so that its norm grows by at most 1 % a step.

    Source     Chen et al. (2024), arXiv 2410.01623."""
    norm = u.norm(dim=(1, 2))
    excess = (norm / (last + 1e-8) / 1.01).clamp_min(1)
    excess = 1 + (excess - 1) * (t > 1).to(u)
    last.copy_(norm / excess)
    return u / excess[:, None, None]

RULES = {
    "apollo":      ZooRule(apollo, lr_factor=3, roles="qkv+matrix", rest="adamw", refresh=draw,
                           from_run=("seed",), bounds=dict(refresh_steps=AT_LEAST_ONE)),
    "apollo_mini": ZooRule(apollo_mini, lr_factor=3, roles="qkv+matrix", rest="adamw", refresh=draw,
                           from_run=("seed",), bounds=dict(refresh_steps=AT_LEAST_ONE)),
}
