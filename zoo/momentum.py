"""
Rules that move in proportion to the gradient, as SGD does, and change how fast or with what momentum.

Read sgd_ema in optim.py first.
"""
import torch

from optim import scalar
from zoo.rule import ZooRule

def sgd_sai(g, m, ratio: scalar, t, *, beta1=0.9, eps=1e-8):
    """SGD-SaI is SGD whose first gradient decides, once for the whole run, how fast each tensor learns.
        m <- b1 m + (1 - b1) g                        at t = 1:  m <- g
        u  = ratio m                                  at t = 1:  ratio <- |g| / (deviation of g + eps)

    The deviation is the standard deviation over the tensor, and |g| the norm over it.

    Remembers  m, 4 bytes per weight, and one ratio per tensor.
    Moves      each weight in proportion to its mean gradient. The ratio is about sqrt(n) for a tensor of n
               weights, and larger only where the mean of the gradient is far from 0.
    Freezes    a tensor whose first gradient is zero, for the whole run, as published: its ratio is 0. This
               happens in models that start with a matrix of zeros. A tensor of one weight, or one whose first
               gradient is the same everywhere, has the ratio |g| / eps, which is far too large.
    lr         is in weight per unit of gradient, divided by the ratio. Typical 1e-2, the default of the
               authors' package.
    Defaults   are those of the authors' package. It starts m at g, and not at 0.
    For        every tensor.
    Source     Xu, Xiang, Cai, Wen (2024), arXiv 2412.11768."""
    deviation = ((g - g.mean()).square().sum() / max(g.numel() - 1, 1)).sqrt()
    ratio.copy_(torch.where(t == 1, g.norm() / (deviation + eps), ratio))
    m.copy_(torch.where(t == 1, g, m.lerp(g, 1 - beta1)))
    return ratio * m

RULES = {
    "sgd_sai": ZooRule(sgd_sai, lr_factor=10 / 3),
}
