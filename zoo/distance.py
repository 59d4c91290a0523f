"""
Rules that find the size of their steps by themselves, from how far the best weights seem to be.
"""
import torch

from optim import scalar
from zoo.rule import ZooRule, copy_of_weight, decayed_by

def first_distance(w, blocks, *, d0):
    """Makes one number for each tensor, which starts at d0."""
    return w.new_full((), d0, dtype=torch.promote_types(w.dtype, torch.float32))

def prodigy(g, m, v, s, r: scalar, d: first_distance, w0: copy_of_weight, w, sums, lr, decay, *, beta1=0.9,
            beta2=0.999, eps=1e-8, d0=1e-6, d_coef=1.0):
    """Prodigy is Adam whose lr is d, an estimate of the distance from the first weights to the best ones.
        m <- b1 m + (1 - b1) d g
        v <- b2 v + (1 - b2) (d g)^2
        c  = d^2 lr / d0,  b3 = sqrt(b2)
        r <- b3 r + sum of c g (w0 - w)       over all tensors; w0 is w before the first step
        s <- b3 s + c g
        u  = d m / (sqrt(v) + d_new eps)      d_new = max(d, d_coef r / sum of |s| over all tensors)

    Then d is d_new. It starts at d0 and never falls. The decay takes d times what it would.

    Remembers  m, v, s and w0, which is a copy of w: 16 bytes per weight. Also r and d, which are the same for
               all tensors.
    Moves      each weight as Adam with the lr d would. The first steps are by some d0, which is nearly
               nothing. While gradients agree, d then grows by a factor of 2 to 3 a step.
    lr         is a factor for the steps that the rule finds by itself. Typical 1.0. All tensors must have the
               same, since they share d.
    Defaults   are the authors'. To move more or less, change d_coef rather than lr. d0 must be well below the
               final d. Their options growth_rate, slice_p, safeguard_warmup and use_bias_correction are left
               out, as they are off by default. So neither m nor v is corrected for its start at 0.
    For        every tensor. A tensor without a gradient in some step misses that step's estimate of d.
    Source     Mishchenko, Defazio (2023), arXiv 2306.06101. The form is that of the authors' package."""
    c, old = d.square() * lr / d0, d.clone()
    m.lerp_(old * g, 1 - beta1)
    v.lerp_((old * g).square(), 1 - beta2)
    r.mul_(beta2**0.5).add_(sums[0])
    s.mul_(beta2**0.5).add_(c * g)
    d.copy_(torch.maximum(d, d_coef * r / sums[1].clamp_min(torch.finfo(d.dtype).tiny)))
    return decayed_by(old, old * m / (v.sqrt() + d * eps), w, decay, lr)

def sums_of_prodigy(g, s, d, w0, w, lr, *, beta2, d0):
    """Returns the part of a tensor in two sums: of c g (w0 - w), and of |s| as this step will leave it."""
    c = d.square() * lr / d0
    return torch.stack([(c * g * (w0 - w)).sum(), (beta2**0.5 * s + c * g).abs().sum()])

RULES = {
    "prodigy": ZooRule(prodigy, lr_factor=300, sums=sums_of_prodigy, elementwise=True,
                       bounds=dict(d0=(1e-12, 1)), rarely_changes=("r", "d", "w0")),
}
