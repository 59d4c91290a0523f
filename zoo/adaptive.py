"""
Adam's relatives. Each weight has its own second moment, and each rule changes one idea of Adam's.

Read adamw in optim.py first. What its docstring says about eps, m_hat and the unit of lr also holds here.
"""
import math

import torch

from optim import hat, power, scalar
from zoo.rule import BELOW_ONE, ZooRule

def ademamix(g, m, slow, v, t, *, beta1=0.9, beta2=0.999, beta3=0.9999, alpha=8.0, eps=1e-8, steps=0):
    """AdEMAMix is Adam that also follows a second, very slow mean of its gradients.
        m    <- b1 m + (1 - b1) g
        slow <- b3(t) slow + (1 - b3(t)) g          slow is not corrected for its start at 0
        v    <- b2 v + (1 - b2) g^2
        u     = (m_hat + alpha(t) slow) / (sqrt(v_hat) + eps)

        r = min(t / steps, 1);  alpha(t) = r alpha;  1 / ln b3(t) = (1 - r) / ln b1 + r / ln b3

    Remembers  m, slow and v: 12 bytes per weight.
    Moves      each weight as Adam does, and 1 + alpha times as far where many more than 1 / (1 - b3)
               gradients agree.
    lr         is in weight, as Adam's lr is. Typical 3e-3. The authors use their AdamW's lr, 1e-3 at 110m.
    Defaults   are the authors', who take an alpha of 5 ... 10. alpha and b3 rise over all steps. b3
               rises such that its half-life grows linearly. The trainer passes --steps as `steps`. With 0,
               alpha and b3 have their full values from the first step.
    For        every tensor.
    Source     Pagliardini, Ablin, Grangier (2024), arXiv 2409.03137."""
    rise = (t / max(steps, 1)).clamp(max=1.0)
    b3 = torch.exp(1 / ((1 - rise) / math.log(max(beta1, 1e-8)) + rise / math.log(max(beta3, 1e-8))))
    m.lerp_(g, 1 - beta1)
    slow.mul_(b3).add_((1 - b3) * g)
    v.lerp_(g.square(), 1 - beta2)
    return (hat(m, beta1, t) + rise * alpha * slow) / (hat(v, beta2, t).sqrt() + eps)

def adopt(g, m, s, t, *, beta1=0.9, beta2=0.9999, eps=1e-6):
    """ADOPT divides each gradient by the root of the second moment of the earlier steps, and then takes the
    mean. The first step only measures.
        n  = g / max(sqrt(s), eps), clipped to +- (t - 1)^(1/4)
        m <- b1 m + (1 - b1) n
        s <- b2 s + (1 - b2) g^2                    at t = 1:  s <- g^2, and nothing moves or decays
        u  = m

    Remembers  m, the mean of normalized gradients, and s: 8 bytes per weight.
    Moves      each weight as Adam does, but less at the start: m is not corrected for its start at 0.
    lr         is in weight, as Adam's lr is. Typical 3e-3. For GPT-2 the authors use their Adam's lr, 6e-4.
    Defaults   are the authors'. g and s are independent, so ADOPT converges with any b2. Adam does not. The
               second version of the paper added the clipping. eps is a lower bound, and is not added.
    For        every tensor.
    Source     Taniguchi et al. (2024), arXiv 2411.02853."""
    bound = (t - 1).sqrt().sqrt().to(g)
    n = torch.clamp(g / s.sqrt().clamp_min(eps), -bound, bound)
    m.lerp_(torch.where(t > 1, n, 0.0), 1 - beta1)
    keep = beta2 * (t > 1).to(t)
    s.mul_(keep).add_((1 - keep) * g.square())
    return m

def laprop(g, m, v, rate: scalar, lr, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """LaProp is Adam in the other order: it normalizes each gradient, and then takes the mean.
        v <- b2 v + (1 - b2) g^2
        m <- b1 m + (1 - b1) lr g / (sqrt(v_hat) + eps);  rate <- b1 rate + (1 - b1) lr
        u  = m / rate                         at a constant lr this is m_hat / lr

    Remembers  m, the mean of normalized gradients, each times the lr of its step, and v: 8 bytes per
               weight. rate is one number per tensor.
    Moves      each weight by at most lr / sqrt(1 - b2), because no normalized gradient is larger. The newest
               one alone moves it by 1 - b1 of that. In Adam with b1 > sqrt(b2), a large gradient still acts
               in m at full size after v has forgotten it. Here m holds it already divided.
    lr         is in weight, as Adam's lr is. Typical 3e-3. The authors' default is 4e-4.
    Defaults   are Adam's here. The authors use b2 0.999, and eps 1e-15 is theirs. Under a schedule, old
               gradients keep the lr of their own step, as in the authors' code. In the paper lr is outside
               of m.
    For        every tensor.
    Source     Ziyin, Wang, Ueda (2020), arXiv 2002.04839."""
    v.lerp_(g.square(), 1 - beta2)
    m.mul_(beta1).add_((1 - beta1) * lr * g / (hat(v, beta2, t).sqrt() + eps))
    rate.mul_(beta1).add_((1 - beta1) * lr)
    return m / rate.clamp_min(1e-30)

def radam(g, m, s, t, *, beta1=0.9, beta2=0.999, eps=1e-8):
    """RAdam is Adam that starts to divide only when its second moment has seen enough gradients.
        m <- b1 m + (1 - b1) g;  s <- b2 s + (1 - b2) g^2
        r  = r_inf - 2 t b2^t / (1 - b2^t),  r_inf = 2 / (1 - b2) - 1      r: how many gradients s has seen
        u  = m_hat                                        if r <= 5, as it always is for b2 <= 2/3; otherwise
        u  = m_hat / (sqrt(s) + eps) sqrt((1 - b2^t) (r - 4) (r - 2) r_inf / ((r_inf - 4) (r_inf - 2) r))

    Remembers  m and s, the running means of g and g^2: 8 bytes per weight.
    Moves      weights as SGD does in the first 5 steps, which is next to nothing at Adam's lr. Then it
               moves them as Adam does with a rising lr. So the rule brings its own warmup.
    lr         is in weight, as Adam's lr is. Typical 3e-3. The authors' default is 1e-3, as for their Adam.
    Defaults   are the authors'. This is torch's form. The authors' code leaves the first steps out
               altogether, and divides from r = 5 on. The paper divides from r = 4 on.
    For        every tensor.
    Source     Liu et al. (2019), arXiv 1908.03265."""
    m.lerp_(g, 1 - beta1)
    s.lerp_(g.square(), 1 - beta2)
    r_inf = 2 / (1 - beta2) - 1
    left = power(beta2, t)
    r = r_inf - 2 * t * left / (1 - left)
    trust = (1 - left) * (r - 4) * (r - 2) * r_inf / ((r_inf - 4) * (r_inf - 2) * r)
    adam = trust.clamp_min(0).sqrt() / (s.sqrt() + eps)
    return hat(m, beta1, t) * torch.where(r > 5, adam, 1.0)    # a product with 0 would keep a NaN of adam

def adabelief(g, m, s, t, *, beta1=0.9, beta2=0.999, eps=1e-16):
    """AdaBelief is Adam that divides by how far gradients stray from their mean, not by how large they are.
        m <- b1 m + (1 - b1) g
        s <- b2 s + (1 - b2) (g - m)^2 + eps
        u  = m_hat / (sqrt(s_hat) + eps)            s_hat = s / (1 - b2^t)

    Remembers  m and s: 8 bytes per weight.
    Moves      a weight as Adam does where gradients are noise, and farther the longer they agree: nine times
               as far after 300 equal gradients, and twenty times after 1,000. Only eps ends this.
    lr         is in weight, as Adam's lr is. Typical 1e-3, a third of Adam's, because its steps are longer.
               It is the authors' value for a language model, an LSTM of one layer. With two and three layers
               they use 1e-2, and 5e-4 for a transformer that translates.
    Defaults   are the authors'. eps adds up inside s, so it plays the part of the square of Adam's eps. The
               rule leaves out RAdam's start, which the authors' code uses by default.
    For        every tensor.
    Source     Zhuang et al. (2020), arXiv 2010.07468."""
    m.lerp_(g, 1 - beta1)
    s.lerp_((g - m).square(), 1 - beta2).add_(eps)
    return hat(m, beta1, t) / (hat(s, beta2, t).sqrt() + eps)

def mars(g, m, v, last, t, *, beta1=0.95, beta2=0.99, gamma=0.025, eps=1e-8):
    """MARS, in its AdamW form, is Adam on gradients plus a part of their last change, to reduce noise.
        c  = g + gamma b1 / (1 - b1) (g - last), divided by its norm over the tensor if that is above 1
        m <- b1 m + (1 - b1) c;  v <- b2 v + (1 - b2) c^2;  last <- g
        u  = m_hat / (sqrt(v_hat) + eps)

    Remembers  m, v, and last, a copy of the gradient: 12 bytes per weight.
    Moves      each weight as Adam does.
    lr         is in weight, as Adam's lr is. Typical 6e-3, twice Adam's, as the tuning of Wen et al. (2025),
               arXiv 2509.02046, found. The authors use ten times their AdamW's: 6e-3 for GPT-2 small, 3e-3
               for medium and 2e-3 for large, and half of it for the norms.
    Defaults   are the authors' for GPT-2. Before the first step last is 0, as in their code.
    For        matrices, including embedding and head. AdamW trains the norms.
    Source     Yuan et al. (2024), arXiv 2411.10438. This is their approximate form, which does not compute
               a second gradient at the old weights."""
    c = g + gamma * beta1 / (1 - beta1) * (g - last)
    c = c / c.norm().clamp_min(1.0)
    last.copy_(g)
    m.lerp_(c, 1 - beta1)
    v.lerp_(c.square(), 1 - beta2)
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)

RULES = {
    "ademamix":  ZooRule(ademamix, second_moment="v", from_run=("steps",), bounds=dict(beta3=BELOW_ONE),
                         elementwise=True),
    "adopt":     ZooRule(adopt, measures=1, elementwise=True),
    "laprop":    ZooRule(laprop, second_moment="v", elementwise=True),
    "radam":     ZooRule(radam, elementwise=True),
    "adabelief": ZooRule(adabelief, lr_factor=1 / 3, elementwise=True),
    "mars":      ZooRule(mars, lr_factor=2, second_moment="v", roles="embed+qkv+matrix+head", rest="adamw"),
}
