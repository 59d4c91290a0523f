"""
Adam's relatives: each weight has its own second moment, and every rule changes one thought of Adam's.

Read adamw in optim.py first. What is said there of eps, of m_hat and of the unit of lr holds here.
"""
import math

import torch

from optim import hat, power, scalar
from zoo.rule import BELOW_ONE, ZooRule

def ademamix(g, m, slow, v, t, *, beta1=0.9, beta2=0.999, beta3=0.9999, alpha=8.0, eps=1e-8, steps=0):
    """AdEMAMix: Adam that also follows a very slow mean of its gradients.

        m    <- b1 m + (1 - b1) g
        slow <- b3(t) slow + (1 - b3(t)) g          not corrected for its start at 0
        v    <- b2 v + (1 - b2) g^2
        u     = (m_hat + alpha(t) slow) / (sqrt(v_hat) + eps)

        r = min(t / steps, 1);  alpha(t) = r alpha;  1 / ln b3(t) = (1 - r) / ln b1 + r / ln b3

    Remembers  m, slow and v: 12 bytes per weight.
    Moves      as Adam, and up to alpha times as far where gradients agree over 1 / (1 - b3) steps.
    lr         in weight, as Adam's. Typical 3e-3 (the authors: as their AdamW's, 1e-3 at 110m).
    Defaults   the authors' for 110m ... 1.3b: alpha 8, b3 0.9999, both rising over all steps (the trainer
               passes --steps; 0: no rise). b3 rises so that its half-life grows in a line.
    For        every tensor.
    Source     Pagliardini, Ablin, Grangier (2024), arXiv 2409.03137.
    """
    rise = (t / max(steps, 1)).clamp(max=1.0)
    b3 = torch.exp(1 / ((1 - rise) / math.log(max(beta1, 1e-8)) + rise / math.log(max(beta3, 1e-8))))
    m.lerp_(g, 1 - beta1)
    slow.mul_(b3).add_((1 - b3) * g)
    v.lerp_(g.square(), 1 - beta2)
    return (hat(m, beta1, t) + rise * alpha * slow) / (hat(v, beta2, t).sqrt() + eps)

def adopt(g, m, s, t, *, beta1=0.9, beta2=0.9999, eps=1e-6):
    """ADOPT: divide by the second moment of the steps before, then take the mean; the first step only looks.

        n  = g / max(sqrt(s), eps), cut at +- (t - 1)^(1/4)
        m <- b1 m + (1 - b1) n
        s <- b2 s + (1 - b2) g^2                    at t = 1:  s <- g^2, and nothing moves or decays
        u  = m

    Remembers  m, the mean of normalised gradients, and s: 8 bytes per weight.
    Moves      as Adam, more cautiously at the start: m is not corrected for its start at 0.
    lr         in weight, as Adam's. Typical 3e-3 (the authors' GPT-2: 6e-4, as their Adam).
    Defaults   the authors'. Since g and s are independent, it converges with any b2, which Adam does not.
               The cut came with the second version of the paper; eps is a floor and is not added.
    For        every tensor.
    Source     Taniguchi et al. (2024), arXiv 2411.02853.
    """
    bound = (t - 1).sqrt().sqrt().to(g)
    m.lerp_(torch.clamp(g / s.sqrt().clamp_min(eps), -bound, bound), 1 - beta1)
    keep = beta2 * (t > 1).to(t)
    s.mul_(keep).add_((1 - keep) * g.square())
    return m

def laprop(g, m, v, rate: scalar, lr, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """LaProp: Adam in the other order; normalise each gradient, then take the mean.

        v <- b2 v + (1 - b2) g^2
        m <- b1 m + (1 - b1) lr g / (sqrt(v_hat) + eps);  rate <- b1 rate + (1 - b1) lr
        u  = m / rate                         at a constant lr: m_hat / lr

    Remembers  m, the mean of normalised gradients, each times the lr of its step, and v: 8 bytes per weight.
    Moves      each weight by at most lr / sqrt(1 - b2), as the newest gradient alone would: a large one does
               not live on in m when v has forgotten it, as in Adam with b1 > sqrt(b2).
    lr         in weight, as Adam's. Typical 3e-3 (the authors' default: 4e-4).
    Defaults   Adam's here (the authors: b2 0.999; eps 1e-15 is theirs). That old gradients keep their old lr
               under a schedule is the authors' code; in the paper lr is outside of m.
    For        every tensor.
    Source     Ziyin, Wang, Ueda (2020), arXiv 2002.04839.
    """
    v.lerp_(g.square(), 1 - beta2)
    m.mul_(beta1).add_((1 - beta1) * lr * g / (hat(v, beta2, t).sqrt() + eps))
    rate.mul_(beta1).add_((1 - beta1) * lr)
    return m / rate.clamp_min(1e-30)

def radam(g, m, s, t, *, beta1=0.9, beta2=0.999, eps=1e-8):
    """RAdam: Adam that waits with its division until the second moment can be trusted.

        m <- b1 m + (1 - b1) g;  s <- b2 s + (1 - b2) g^2
        r  = r_inf - 2 t b2^t / (1 - b2^t),  r_inf = 2 / (1 - b2) - 1      how many gradients s has seen
        u  = m_hat                                                        if r <= 5
        u  = m_hat / (sqrt(s) + eps) sqrt((1 - b2^t) (r - 4) (r - 2) r_inf / ((r_inf - 4) (r_inf - 2) r))

    Remembers  m and s, the running means of g and g^2: 8 bytes per weight.
    Moves      at first as SGD, which at Adam's lr is next to nothing (5 steps), then as Adam whose lr rises:
               a warmup that comes with the rule.
    lr         in weight, as Adam's. Typical 3e-3 (the authors' default: 1e-3, as their Adam's).
    Defaults   the authors'. This is torch's form; the authors' code leaves the first steps out altogether.
    For        every tensor.
    Source     Liu et al. (2019), arXiv 1908.03265.
    """
    m.lerp_(g, 1 - beta1)
    s.lerp_(g.square(), 1 - beta2)
    r_inf = 2 / (1 - beta2) - 1
    left = power(beta2, t)
    r = r_inf - 2 * t * left / (1 - left)
    trust = (1 - left) * (r - 4) * (r - 2) * r_inf / ((r_inf - 4) * (r_inf - 2) * r)
    adam = trust.clamp_min(0).sqrt() / (s.sqrt() + eps)
    sure = (r > 5).to(g)
    return hat(m, beta1, t) * (sure * adam + (1 - sure))

def adabelief(g, m, s, t, *, beta1=0.9, beta2=0.999, eps=1e-16):
    """AdaBelief: divide by how far gradients stray from their mean, not by how large they are.

        m <- b1 m + (1 - b1) g
        s <- b2 s + (1 - b2) (g - m)^2 + eps
        u  = m_hat / (sqrt(s_hat) + eps)            s_hat = s / (1 - b2^t)

    Remembers  m and s: 8 bytes per weight.
    Moves      as Adam where gradients are noise; up to ten times as far where they agree.
    lr         in weight, as Adam's. Typical 1e-3: a third of Adam's, for its longer steps. Nobody has
               published a language model trained from scratch.
    Defaults   the authors'. eps adds up inside s, so it plays the part of the square of Adam's. Without
               RAdam's start, which the authors' code has on by default.
    For        every tensor.
    Source     Zhuang et al. (2020), arXiv 2010.07468.
    """
    m.lerp_(g, 1 - beta1)
    s.lerp_((g - m).square(), 1 - beta2).add_(eps)
    return hat(m, beta1, t) / (hat(s, beta2, t).sqrt() + eps)

def mars(g, m, v, last, t, *, beta1=0.95, beta2=0.99, gamma=0.025, eps=1e-8):
    """MARS in its AdamW form: Adam on a gradient whose noise is reduced by the change since the last one.

        c  = g + gamma b1 / (1 - b1) (g - last), divided by its norm over the tensor if that is above 1
        m <- b1 m + (1 - b1) c;  v <- b2 v + (1 - b2) c^2;  last <- g
        u  = m_hat / (sqrt(v_hat) + eps)

    Remembers  m, v, and last, a copy of the gradient: 12 bytes per weight.
    Moves      as Adam.
    lr         in weight, as Adam's. Typical 6e-3: twice Adam's, in the tuning of Wen et al. (2025),
               arXiv 2509.02046, too (the authors' GPT-2: 6e-3).
    Defaults   the authors' for GPT-2. last is 0 before the first step, as in their code.
    For        matrices, embedding and head included; the norms go to AdamW.
    Source     Yuan et al. (2024), arXiv 2411.10438: the approximate form, without a second gradient of the
               old weights.
    """
    c = g + gamma * beta1 / (1 - beta1) * (g - last)
    c = c / c.norm().clamp_min(1.0)
    last.copy_(g)
    m.lerp_(c, 1 - beta1)
    v.lerp_(c.square(), 1 - beta2)
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)

RULES = {
    "ademamix":  ZooRule(ademamix, second_moment="v", from_run=("steps",), bounds=dict(beta3=BELOW_ONE)),
    "adopt":     ZooRule(adopt, measures=1),
    "laprop":    ZooRule(laprop, second_moment="v"),
    "radam":     ZooRule(radam),
    "adabelief": ZooRule(adabelief, lr=1 / 3),
    "mars":      ZooRule(mars, lr=2, second_moment="v", roles="embed+qkv+matrix+head", rest="adamw"),
}
