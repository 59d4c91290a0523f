"""
The paper's experiment with frozen ratios. It asks whether it is enough to measure once how far each block
should move.

Read adalayer in optim.py first. The trainer's option --freeze_steps puts this rule in the place of Adalayer.
"""
import torch

from optim import hat, mean_of_blocks, per_block
from zoo.rule import AT_LEAST_ONE, ZooRule

def adalayer_frozen(g, m, v: per_block, t, *, beta1=0.9, beta2=0.95, eps=1e-15, freeze_steps=1000,
                    updating=False):
    """Adalayer with frozen ratios first measures each block's v without moving, and then holds it.
        m <- b1 m + (1 - b1) g
        v <- v + (mean of g^2 over the block - v) / (t + 1)    while t <= freeze_steps
        v <- b2 v + (1 - b2) mean of g^2 over the block        afterwards, if updating
        u  = m_hat / (sqrt(v) + eps)                           m_hat = m / (1 - b1^t)
        u  = 0                                                 while t <= freeze_steps

    Remembers  m, 4 bytes per weight, and one v per block.
    Moves      a block as SGD does, with an lr of its own that the first steps have measured.
    lr         is Adalayer's. Typical 3e-3.
    Defaults   are Adalayer's, and the paper's 1000 measuring steps. v starts at 0 and is not corrected for
               that: after n steps it is n / (n + 1) of the mean, as in the authors' code.
    For        every tensor.
    Source     Zhao et al. (2024), arXiv 2407.07972, section 3.3."""
    m.lerp_(g, 1 - beta1)
    pace = torch.where(t > freeze_steps, (1 - beta2) * updating, 1 / (t + 1)).to(v)
    v += pace * (mean_of_blocks(g.square(), v) - v)
    u = hat(m, beta1, t).reshape(len(v), -1) / (v.sqrt() + eps)[:, None]
    return torch.where(t > freeze_steps, u.reshape(g.shape), 0.0)

FROZEN = ZooRule(adalayer_frozen, second_moment="v", corrected=False, measures="freeze_steps",
                 bounds=dict(freeze_steps=AT_LEAST_ONE))
