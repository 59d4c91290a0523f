"""
Rules that find the size of their steps by themselves, from sums over all tensors: of how far the best weights
seem to be, or of how steep the loss is.
"""
import torch

from optim import hat, scalar
from zoo.rule import BELOW_ONE, ZooRule, copy_of_weight, decayed_by

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

def induced_sgd(g, m, q: scalar, sums, t, *, beta1=0.9, beta_metric=0.8, xi=0.1):
    """Induced SGD measures a step on the surface of the loss, so it goes less far where the surface is steep.
        m <- b1 m + (1 - b1) g
        q <- b q + (1 - b) (sum of g^2 over all tensors)
        u  = m_hat / (1 + xi q_hat)           m_hat = m / (1 - b1^t),  q_hat = q / (1 - b^t)

    Remembers  m, 4 bytes per weight, and q, which is the same for all tensors.
    Moves      each weight in proportion to its mean gradient. The factor is the same for all weights. It is
               near 1 while the norm of the whole gradient is far below 1 / sqrt(xi). A steady gradient of
               this norm makes the longest step. A larger one makes a shorter step, where clipping would keep
               the length.
    lr         is in weight per unit of gradient, as that of sgd_ema. Typical 10. The authors' default is 0.1.
    Defaults   are the authors', for small models. In their own language model the best xi is 4e-7. With
               --clip=1 the sum is at most 1, so this xi shortens steps by a tenth at most.
    For        every tensor.
    Source     Harvey (2025), arXiv 2509.03594. A variant that divides by the loss, too, is left out."""
    m.lerp_(g, 1 - beta1)
    q.lerp_(sums, 1 - beta_metric)
    return hat(m, beta1, t) / (1 + xi * hat(q, beta_metric, t))

def sum_of_squares(g):
    """Returns the part of a tensor in the sum of g^2."""
    return g.square().sum()

def induced_rms(g, m, v, q: scalar, weight: scalar, sums, t, *, beta1=0.9, beta2=0.99, beta_metric=0.8,
                xi=0.1, eps=1e-8):
    """Induced RMSprop is Adam that measures a step on the surface of the loss, as induced_sgd does.
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        q <- b q + (1 - b) (sum of g^2 / (sqrt(v_hat) + eps) over all tensors)
        u  = m_hat / (sqrt(v_hat) + eps) / (1 + xi q_hat)

    m_hat, v_hat and q_hat are corrected for their start at 0. weight is 1 - b2^t, which v_hat divides by.

    Remembers  m and v, 8 bytes per weight, and q and weight, which are the same for all tensors.
    Moves      each weight as Adam does, but by a factor 1 / (1 + xi q_hat) that all share. The sum is
               about that of |g|, so it grows with the number of weights.
    lr         is in weight, divided by the factor. Typical 3e-1. This is a guess, because the factor depends
               on the size of the model: it is near 0.01 for a million weights.
    Defaults   are the authors', for small models. In their own language model the best xi is 1e-7. Then the
               factor is near 1, and lr is Adam's.
    For        every tensor.
    Source     Harvey (2025), arXiv 2509.03594."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    weight.mul_(beta2).add_(1 - beta2)
    q.lerp_(sums, 1 - beta_metric)
    return hat(m, beta1, t) / ((v / weight).sqrt() + eps) / (1 + xi * hat(q, beta_metric, t))

def sum_of_induced_rms(g, v, weight, *, beta2, eps):
    """Returns the part of a tensor in the sum of g^2 / (sqrt(v_hat) + eps), with v_hat as after this step."""
    v_hat = v.lerp(g.square(), 1 - beta2) / (beta2 * weight + 1 - beta2)
    return (g.square() / (v_hat.sqrt() + eps)).sum()

RULES = {
    "prodigy":     ZooRule(prodigy, lr_factor=300, sums=sums_of_prodigy, elementwise=True,
                           bounds=dict(d0=(1e-12, 1)), rarely_changes=("r", "d", "w0")),
    "induced_sgd": ZooRule(induced_sgd, lr_factor=3000, sums=sum_of_squares, elementwise=True,
                           bounds=dict(beta_metric=BELOW_ONE)),
    "induced_rms": ZooRule(induced_rms, lr_factor=100, sums=sum_of_induced_rms, elementwise=True,
                           second_moment="v", bounds=dict(beta_metric=BELOW_ONE)),
}
