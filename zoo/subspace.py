"""
Rules that treat the directions of a matrix differently. Some apply Adam only in a few directions, or in a
basis that belongs to the matrix. Others keep momentum only in a few directions, or one second moment for each
channel.

Read apollo in zoo/lowrank.py and soap in zoo/orthogonal.py first.
"""
import torch

from optim import hat, per_column, per_row, power
from zoo.lowrank import adam, in_shape_of, long_first, projected, projection
from zoo.orthogonal import matrices
from zoo.rule import AT_LEAST_ONE, ZooRule

# In this file, too, the longer side of a matrix comes first, and q, k, v are three matrices: (blocks, long,
# short). rank is a fraction of the short side.

# ---------------------------------------------------------------------------------------------------------
# One second moment for each index of the longer side

def per_channel(w, blocks):
    """Makes one number for each row of a matrix, or for each column if columns are more. A vector has one for
    each weight."""
    if w.dim() < 2:
        return w.new_zeros(w.shape)
    return (per_row if len(w) >= w[0].numel() else per_column)(w, blocks)

def adam_sn(g, m, v: per_channel, t, *, beta1=0.9, beta2=0.999, eps=1e-6):
    """Adam with Subset-Norm keeps one v for a row or a column: the mean of the squared norm of its gradient.
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) sum of g^2 over each row (over each column, if there are more columns than rows)
        u  = m / (sqrt(v) + eps) sqrt(1 - b2^t) / (1 - b1^t)

    Remembers  m, 4 bytes per weight, and one number for each index of the longer side.
    Moves      each row by about lr (its norm), each weight in proportion to its mean gradient. So a weight
               moves by about lr / sqrt(short side).
    lr         is the distance that a row or a column moves in a step if its gradients agree. Typical 3e-2:
               the authors advise ten times Adam's, because v is a sum and not a mean. At 60m they use 5e-2.
    Defaults   are the authors'. This is the choice of subsets that they call simple, and it gives their best
               results. Their other code cuts each tensor into subsets of about sqrt(weights) / 2 instead.
    For        the matrices, with the head, as in the authors' runs. AdamW trains embedding and norms at their
               own lr. The authors use the same lr for all. A vector would move as with Adam.
    Source     Nguyen, Nguyen (2024), arXiv 2411.07120."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square().sum_to_size(v.shape), 1 - beta2)
    return m / (v.sqrt() + eps) * ((1 - power(beta2, t)) ** 0.5 / (1 - power(beta1, t)))

def one_per_long(w, blocks):
    """Makes one number for each index of the longer side of each block: (blocks, long, 1)."""
    return w.new_zeros(blocks, max(matrices(w, blocks).shape[1:]), 1)

def adam_snsm(g, m: projected, v: one_per_long, p: projection, t, blocks, *, beta1=0.9, beta2=0.999, eps=1e-6,
              rank=0.25, refresh_steps=200):
    """Subset-Norm with Subspace-Momentum keeps the mean gradient only in the directions in which it is large.
    In all other directions it follows the gradient itself.
        m <- b1 m + (1 - b1) g p
        v <- b2 v + (1 - b2) sum of g^2 over the short side
        u  = (m p' + g - g p p') / (sqrt(v) + eps) sqrt(1 - b2^t) / (1 - b1^t)
        p: every refresh_steps the singular vectors of g with the largest values. Then m starts anew

    Remembers  m for 1/4 of the weights and p, 1 byte each per weight of a square matrix, and one v per index
               of the longer side.
    Moves      each row by about lr (its norm). Outside of the subspace nothing is averaged, and the factor
               1 / (1 - b1^t) belongs to m alone. So the first steps are up to ten times as long as those of
               adam_sn, and then they are as long as a single gradient makes them.
    lr         is the distance that a row or a column moves in a step. Typical 3e-2, as for adam_sn. At 60m
               the authors use 5e-2.
    Defaults   are the authors' for LLaMA at 60m: a rank of a quarter of the width. Their code refreshes p at
               t = 200, 400, ..., and this form one step later. Their code also uses the old m once more with
               the new p, whose signs are arbitrary, and only then starts anew. This form does not.
    For        the matrices, with the head, as in the authors' runs. AdamW trains embedding and norms at their
               own lr. The authors use the same lr for all.
    Source     Nguyen, Nguyen (2024), arXiv 2411.07120."""
    x = long_first(g, blocks)
    small = x @ p
    m.lerp_(small, 1 - beta1)
    v.lerp_(x.square().sum(2, keepdim=True), 1 - beta2)
    n = (x + (m - small) @ p.mT) / (v.sqrt() + eps)
    return in_shape_of(n * ((1 - power(beta2, t)) ** 0.5 / (1 - power(beta1, t))), g, blocks)

def new_directions(g, m, p, blocks):
    """Makes p the singular vectors of g with the largest values, and m 0."""
    largest_directions(g, p, blocks)
    m.zero_()

def largest_directions(g, p, blocks):
    """Makes p the singular vectors of g with the largest values."""
    p.copy_(short_vectors(long_first(g, blocks))[:, :, :p.shape[2]])

def short_vectors(x):
    """Returns the singular vectors of the short side, the largest first, as columns of each block."""
    return torch.linalg.svd(x, full_matrices=False).Vh.mT

# ---------------------------------------------------------------------------------------------------------
# Adam in a basis, or in a few directions

def basis(w, blocks):
    """Makes room for a basis of the short side of each block: (blocks, short, short)."""
    short = min(matrices(w, blocks).shape[1:])
    return w.new_zeros(blocks, short, short)

def conda(g, m, v, q: basis, t, blocks, *, beta1=0.9, beta2=0.99, eps=1e-8, scale=0.25, refresh_steps=2000):
    """Conda is Adam in the basis of the singular vectors of its momentum, on the shorter side of each matrix.
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) (g q)^2
        u  = scale ((m q) / (sqrt(v) + eps)) q' sqrt(1 - b2^t) / (1 - b1^t)
        q: every refresh_steps the singular vectors of the new m. v stays as it is

    Remembers  m and v, 8 bytes per weight, and q, 4 bytes per weight of a square matrix.
    Moves      weights by scale times Adam's step. In the directions of q it moves each by about as much,
               however small its singular value is, which is what Muon does with all of them.
    lr         is in weight, as Adam's lr is, but the step is scale times that. Typical 6e-3, the authors' for
               GPT-2 at 125m. For LLaMA at 60m ... 1b they use 1e-2.
    Defaults   are the authors'.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr. The authors use
               the same lr for all. In their GPT-2 the fused q, k, v are one matrix. In their LLaMA they are
               three matrices, as here.
    Source     Wang et al. (2025), arXiv 2509.24218."""
    m.lerp_(g, 1 - beta1)
    squares = long_first(v, blocks)
    squares.lerp_((long_first(g, blocks) @ q).square(), 1 - beta2)
    n = (long_first(m, blocks) @ q) / (squares.sqrt() + eps)
    u = (n @ q.mT) * (scale * (1 - power(beta2, t)) ** 0.5 / (1 - power(beta1, t)))
    return in_shape_of(u, g, blocks)

def conda_basis(g, m, q, blocks, beta1):
    """Makes q the singular vectors of the mean gradient that holds g."""
    q.copy_(short_vectors(long_first(m.lerp(g, 1 - beta1), blocks)))

def osd(g, m: projected, s: projected, p: projection, pm: projection, ps: projection, lr, lr_peak, t, blocks,
        *, beta1=0.9, beta2=0.999, eps=1e-6, rank=0.25, scale=0.25, refresh_steps=200):
    """Online Subspace Descent is Adam in a few directions of each matrix, which turn a little in each step.
        G  = g p
        m <- b1 m + (1 - b1) G;  s <- b2 s + (1 - b2) G^2
        u  = scale (m / (sqrt(s) + eps)) p' sqrt(1 - b2^t) / (1 - b1^t)
        p: at t = 1 the singular vectors of g with the largest values. After every later step, a step of
           AdamW (betas 0.9 and 0.999, eps 1e-8, decay 0.01) down the slope of |n p p' - n|^2, n = g / |g|,
           with the learning rate lr / lr_peak / refresh_steps

    Remembers  m, s, p, and the two means pm and ps of p's AdamW: 5 bytes per weight of a square matrix.
    Moves      weights only within the directions of p, by about sqrt(rank) scale times Adam's step.
    lr         is in weight. Typical 1e-2, the authors' for LLaMA at 60m. At 7b they use 5e-3.
    Defaults   are the authors' at 60m: a rank of a quarter of the width. refresh_steps has the name and the
               value of GaLore's option, as in their code. But nothing is refreshed: it only sets p's
               learning rate. m and s are not turned with p. The paper adds to the slope a term that keeps p
               orthonormal. The authors' code has no such term, and neither has this form.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr. The authors use
               the same lr for all.
    Source     Liang, Liu, Chen, Liu (2024), arXiv 2408.12857."""
    x = long_first(g, blocks)
    n = adam(x @ p, m, s, beta1, beta2, eps)
    u = (n @ p.mT) * (scale * (1 - power(beta2, t)) ** 0.5 / (1 - power(beta1, t)))
    unit = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    missed = unit @ p @ p.mT - unit
    slope = 2 * (missed.mT @ (unit @ p) + unit.mT @ (missed @ p)) * (t > 1).to(g)
    pm.lerp_(slope, 0.1)
    ps.lerp_(slope.square(), 0.001)
    steps, rate = (t - 1).clamp_min(1), (t > 1).to(t) * lr / lr_peak.clamp_min(1e-30) / refresh_steps
    p.mul_(1 - 0.01 * rate).sub_(rate * hat(pm, 0.9, steps) / (hat(ps, 0.999, steps).sqrt() + 1e-8))
    return in_shape_of(u, g, blocks)

def first_directions(g, p, t, blocks):
    """Makes p the singular vectors of the first gradient. Later it leaves p to the rule."""
    if t == 1:
        largest_directions(g, p, blocks)

COUNTS = dict(refresh_steps=AT_LEAST_ONE)
RULES = {
    "adam_sn":   ZooRule(adam_sn, lr_factor=10, roles="qkv+matrix+head", rest="adamw"),
    "adam_snsm": ZooRule(adam_snsm, lr_factor=10, roles="qkv+matrix+head", rest="adamw",
                         refresh=new_directions, bounds=COUNTS),
    "conda":     ZooRule(conda, lr_factor=2, roles="qkv+matrix", rest="adamw", refresh=conda_basis,
                         bounds=COUNTS),
    "osd":       ZooRule(osd, lr_factor=10 / 3, roles="qkv+matrix", rest="adamw", refresh=first_directions,
                         bounds=COUNTS),
}
