"""
Schedule-Free rules need no falling learning rate, because the mean of the weights takes its place.

The model is trained at weights w, which the paper calls y. It is evaluated at other weights, the paper's x.
They are a weighted mean of z, which moves as the rule without any averaging would move. A checkpoint holds w,
and the state holds z. x follows from both: see mean_of_z().
"""
import torch

from optim import hat, scalar
from zoo.rule import ZooRule, copy_of_weight, update_to

def schedule_free_adamw(g, w, z: copy_of_weight, v, top: scalar, total: scalar, t, lr, decay, *, beta1=0.9,
                        beta2=0.999, eps=1e-8):
    """Schedule-Free AdamW trains near the mean of its weights, and that mean replaces the falling lr.
        v <- b2 v + (1 - b2) g^2
        s  = lr g / (sqrt(v_hat) + eps) + (1 - decay) w
        w <- (1 - c) w + c z - (1 - b1 (1 - c)) s
        z <- z - s

        top <- max(top, lr);  total <- total + top^2;  c = top^2 / total        at a constant lr c is 1 / t
        x  = w - (1 / b1 - 1) (z - w)         the weights for evaluation

    Remembers  z, which starts as a copy of w, and v: 8 bytes per weight, as Adam does. There is no m.
    Moves      z by about lr, as Adam without momentum does. w follows: it is b1 x + (1 - b1) z.
    lr         is in weight, as Adam's lr is. Typical 3e-3. The authors find that 1 ... 10 times the lr of
               Adam with a schedule is best. It stays constant after a warmup, unless --schedule is given.
    Defaults   are the authors', whose lr is 0.0025. b1 has the effect of momentum, and long runs want more of
               it, such as 0.98. Their option r, for a mean that favours late steps, is left out: it is 0.
               The decay is a part of s. So z takes all of it, and w takes 1 - b1 (1 - c) of it at once.
    For        every tensor. Its result is the loss at x, which the trainer logs as average_loss.
    Source     Defazio et al. (2024), arXiv 2405.15682. The form is that of the authors' package."""
    v.lerp_(g.square(), 1 - beta2)
    s = lr * g / (hat(v, beta2, t).sqrt() + eps) + (1 - decay) * w.to(z.dtype)
    return schedule_free_step(w, z, s, top, total, lr, decay, beta1)

def schedule_free_sgd(g, w, z: copy_of_weight, top: scalar, total: scalar, lr, decay, *, beta1=0.9):
    """Schedule-Free SGD trains near the mean of its weights, and that mean replaces the falling lr.
        s  = lr g + (1 - decay) w
        w <- (1 - c) w + c z - (1 - b1 (1 - c)) s
        z <- z - s

        top <- max(top, lr);  total <- total + top^2;  c = top^2 / total        at a constant lr c is 1 / t
        x  = w - (1 / b1 - 1) (z - w)         the weights for evaluation

    Remembers  z, which starts as a copy of w: 4 bytes per weight.
    Moves      z by lr g, as SGD without momentum does. w follows: it is b1 x + (1 - b1) z.
    lr         is in weight per unit of gradient. Typical 30, because a step moves w by only about a tenth of
               what moves z. This value is a guess. The authors' default is 1. It stays constant.
    Defaults   are the authors'. Their option r, for a mean that favours late steps, is left out: it is 0.
    For        every tensor. Its result is the loss at x, which the trainer logs as average_loss.
    Source     Defazio et al. (2024), arXiv 2405.15682. The form is that of the authors' package."""
    s = lr * g + (1 - decay) * w.to(z.dtype)
    return schedule_free_step(w, z, s, top, total, lr, decay, beta1)

def schedule_free_step(w, z, s, top, total, lr, decay, beta1):
    """Moves z by s, and returns the update u that moves w to its next mean of x and z."""
    top.copy_(torch.maximum(top, lr))
    total.add_(top.square())
    c = top.square() / total.clamp_min(torch.finfo(total.dtype).tiny)
    new = w + c * (z - w) - (1 - beta1 * (1 - c)) * s
    z.sub_(s)
    return update_to(new, w, decay, lr)

def mean_of_z(w, z, *, beta1):
    """Returns x, the weights for evaluation: w = beta1 x + (1 - beta1) z."""
    return w + (1 - 1 / beta1) * (z - w)

ABOVE_ZERO = (0.01, 1)    # bounds of beta1: with 0, w would be z, and nothing would remember the mean

RULES = {
    "schedule_free_adamw": ZooRule(schedule_free_adamw, second_moment="v", elementwise=True,
                                   schedule="constant", evaluated=mean_of_z, bounds=dict(beta1=ABOVE_ZERO)),
    "schedule_free_sgd":   ZooRule(schedule_free_sgd, lr_factor=10000, elementwise=True,
                                   schedule="constant", evaluated=mean_of_z, bounds=dict(beta1=ABOVE_ZERO)),
}
