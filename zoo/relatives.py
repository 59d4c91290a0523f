"""
More relatives of Adam: the size of its steps. Each rule asks anew how far a weight should go.

Read adamw in optim.py first. What its docstring says about m_hat, v_hat and the unit of lr also holds here.
"""
import math

import torch

from optim import hat, mean_to, per_column, power
from zoo.rule import AT_LEAST_ONE, BELOW_ONE, ZooRule, decayed_by

# ---- Bounds on the step of a tensor or of a weight ------------------------------------------------------

def stable_adamw(g, m, v, w, decay, lr, t, *, beta1=0.9, beta2=0.99, eps=1e-6):
    """StableAdamW is Adam that shortens the step of a tensor whose gradients outgrow their second moment.
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        r  = rms of g / max(sqrt(v_hat), eps) over the tensor, and at least 1
        u  = m_hat / (sqrt(v_hat) + eps) / r        the decay, too, is divided by r

    Remembers  m and v, the running means of g and g^2: 8 bytes per weight.
    Moves      each weight as Adam does while r is 1. If the gradients suddenly grow, v is too small for
               them, and the step is shorter by r. r is at most 1 / sqrt(1 - b2), which is 10.
    lr         is in weight, as Adam's lr is. Typical 3e-3.
    Defaults   are those of the package optimi. The rule takes the place of the clipping of the gradient, so
               give --clip=0 with it.
    For        every tensor.
    Source     Wortsman et al. (2023), arXiv 2304.13013. Adafactor clips its updates in the same way."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    root = hat(v, beta2, t).sqrt()
    r = (g / root.clamp_min(max(eps, 1e-30))).square().mean().sqrt().clamp_min(1.0)
    return decayed_by(1 / r, hat(m, beta1, t) / (root + eps) / r, w, decay, lr)

def adabound(g, m, v, t, lr_peak, *, beta1=0.9, beta2=0.999, eps=1e-8, final_lr=0.1, gamma=1e-3):
    """AdaBound begins as Adam and ends as SGD: two bounds on the rate of each weight close around final_lr.
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        a  = sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v) + eps)
        u  = m a, with a between F (1 - 1 / (gamma t + 1)) and F (1 + 1 / (gamma t)),  F = final_lr / lr_peak

    Remembers  m and v, the running means of g and g^2: 8 bytes per weight.
    Moves      each weight as Adam does while the bounds are wide. After some 1 / gamma steps it moves a
               weight as SGD does, by about final_lr m.
    lr         is in weight, as Adam's lr is. Typical 3e-3. But final_lr is the lr of SGD at the peak of the
               schedule, in weight per unit of gradient, and it falls as lr does. A larger lr does not move
               the bounds.
    Defaults   are the authors'. Their final_lr is for images, where SGD's lr is about 0.1. Here sgd_ema's
               is about 10. eps is added before v is corrected for its start at 0.
    For        every tensor.
    Source     Luo, Xiong, Liu, Sun (2019), arXiv 1902.09843. There the decay is an L2 term in the loss."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    return m * bounded(adams_rate(v, t, beta1, beta2, eps), t, final_lr / lr_peak.clamp_min(1e-30), gamma)

def amsbound(g, m, v, highest, t, lr_peak, *, beta1=0.9, beta2=0.999, eps=1e-8, final_lr=0.1, gamma=1e-3):
    """AMSBound is AdaBound with the largest v so far, so that a gradient that becomes smaller does not
    make the rate of its weight grow.
        m       <- b1 m + (1 - b1) g
        v       <- b2 v + (1 - b2) g^2
        highest <- max(highest, v)
        a  = sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(highest) + eps)
        u  = m a, with a between F (1 - 1 / (gamma t + 1)) and F (1 + 1 / (gamma t)),  F = final_lr / lr_peak

    Remembers  m, v and highest: 12 bytes per weight.
    Moves      each weight as AdaBound does, but after a spike of the gradient it stays slow until the lower
               bound lifts it.
    lr         is as in AdaBound. Typical 3e-3.
    Defaults   are the authors'.
    For        every tensor.
    Source     Luo, Xiong, Liu, Sun (2019), arXiv 1902.09843. The maximum is AMSGrad's, from Reddi, Kale,
               Kumar (2018), arXiv 1904.09237."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    highest.copy_(torch.maximum(highest, v))
    rate = adams_rate(highest, t, beta1, beta2, eps)
    return m * bounded(rate, t, final_lr / lr_peak.clamp_min(1e-30), gamma)

def adams_rate(v, t, beta1, beta2, eps):
    """Returns what Adam multiplies m by, in the form that adds eps before v is corrected."""
    return (1 - power(beta2, t)).sqrt() / (1 - power(beta1, t)) / (v.sqrt() + eps)

def bounded(rate, t, final, gamma):
    """Returns the rate within two bounds that come closer to `final` with each step."""
    lower, upper = final * (1 - 1 / (gamma * t + 1)), final * (1 + 1 / (gamma * t).clamp_min(1e-30))
    return torch.clamp(rate, lower.to(rate), upper.to(rate))

def adamod(g, m, v, usual, t, lr, *, beta1=0.9, beta2=0.999, beta3=0.999, eps=1e-8):
    """AdaMod allows each weight no more than its usual rate, so that no rate is extremely large at first.
        m     <- b1 m + (1 - b1) g
        v     <- b2 v + (1 - b2) g^2
        rate   = lr sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v) + eps)
        usual <- b3 usual + (1 - b3) rate           usual is not corrected for its start at 0
        u      = m min(rate, usual) / lr

    Remembers  m, v and usual: 12 bytes per weight.
    Moves      each weight as Adam does, but only after some 1 / (1 - b3) steps. Until then usual is small,
               and this is a warmup. The first step is 0.001 of Adam's.
    lr         is in weight, as Adam's lr is. Typical 3e-3. usual remembers earlier values of lr. So if lr
               rises, the steps follow late. If lr falls, they follow at once.
    Defaults   are the authors'. A b3 of 0 is Adam. With 0.9999 the warmup is ten times as long.
    For        every tensor.
    Source     Ding, Ren, Luo, Sun (2019), arXiv 1910.12249."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    rate = lr * adams_rate(v, t, beta1, beta2, eps)
    usual.mul_(beta3).add_((1 - beta3) * rate)
    return m * torch.minimum(rate, usual) / lr.clamp_min(1e-30)

# ---- Steps without a part along the weights -------------------------------------------------------------

def adamp(g, m, v, w, decay, lr, t, *, beta1=0.9, beta2=0.999, eps=1e-8, delta=0.1, wd_ratio=0.1):
    """AdamP is Adam that takes the part along the weights out of a step, if the loss seems not to depend on
    the length of the weights. Such a part only makes them longer, and then each step turns them less.
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        u  = m_hat / (sqrt(v_hat) + eps)
        u  = u - (u . n) n,  n = w / |w|            by rows if all |cos(g, w)| < delta / sqrt(columns); if
                                                    not, for the whole if |cos(g, w)| < delta / sqrt(weights)

    Where the step loses a part, the decay takes only wd_ratio of what it would.

    Remembers  m and v, the running means of g and g^2: 8 bytes per weight.
    Moves      each weight of a vector as Adam does, and those of a matrix, too, as long as its gradient has
               a part along the weights. If the step loses that part, it is a little shorter than Adam's.
    lr         is in weight, as Adam's lr is. Typical 3e-3. The authors' default is 1e-3, as for their Adam.
    Defaults   are the authors'. A gradient of 0 has no part along the weights, so it takes wd_ratio of the
               decay. Where a layer feeds a norm, a row often passes the test. Elsewhere it seldom does.
    For        every tensor. Each row of a matrix is a neuron, and the fused q, k, v are one matrix.
    Source     Heo et al. (2020), arXiv 2006.08217."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    u = hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)
    u, share = without_length(u, g, w.to(u.dtype), delta, wd_ratio, eps)
    return decayed_by(share, u, w, decay, lr)

def sgdp(g, m, w, decay, lr, *, beta1=0.9, eps=1e-8, delta=0.1, wd_ratio=0.1):
    """SGDP is SGD with Nesterov's momentum and the projection of AdamP.
        m <- b1 m + g
        u  = g + b1 m, without its part along w, if the test of AdamP says so

    A step's decay is 1 / (1 - b1) times as strong as elsewhere. Where the step loses a part, the decay takes
    only wd_ratio of that.

    Remembers  m, the decaying sum of gradients: 4 bytes per weight.
    Moves      each weight in proportion to its gradient: a steady g moves it by lr g / (1 - b1) a step.
    lr         is in weight per unit of gradient, as sgd's lr is, and depends on b1 in the same way.
               Typical 1.0. For ImageNet the authors use 0.1.
    Defaults   are the authors' for ImageNet. Their class also has a form without Nesterov's step. There the
               projection changes m as well, and the authors did not use it.
    For        every tensor.
    Source     Heo et al. (2020), arXiv 2006.08217."""
    m.mul_(beta1).add_(g)
    u, share = without_length(g + beta1 * m, g, w.to(m.dtype), delta, wd_ratio, eps)
    return decayed_by(share / (1 - beta1), u, w, decay, lr)

def without_length(u, g, w, delta, wd_ratio, eps):
    """Returns (the update, the share of the decay). The update has no part along w if g has nearly none."""
    if u.dim() < 2:
        return u, 1.0
    turned, free = u, 0.0
    for shape in ((1, -1), (len(u), -1)):    # the rows come last, because they have the first say
        a, b, c = (x.reshape(shape) for x in (u, g, w))
        along = torch.cosine_similarity(b, c, dim=1, eps=eps).abs().max()
        passed = along < delta / math.sqrt(c.shape[1])
        n = c / (c.norm(dim=1, keepdim=True) + eps)
        turned = torch.where(passed, (a - n * (n * a).sum(1, keepdim=True)).reshape(u.shape), turned)
        free = passed.to(u).clamp_min(free)
    return turned, 1 - (1 - wd_ratio) * free

# ---- Another numerator, another denominator -------------------------------------------------------------

def exadam(g, m, v, t, *, beta1=0.9, beta2=0.999, eps=1e-8):
    """EXAdam adds the newest gradient to the mean, and lets each moment take part in correcting the other.
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        d1 = 1 + b2^t v / (v + eps),  d2 = 1 + b1^t m^2 / (m^2 + eps)
        u  = d1 (m + g) / (1 - b1^t) / (sqrt(v_hat d2) + eps)

    Remembers  m and v, the running means of g and g^2: 8 bytes per weight.
    Moves      a weight by 16 times lr in the first step if its gradient is near 1, and by 10 times lr if it
               is near 0.001. Equal gradients of 0.001 move it by 3.3 times lr in step 100, and by twice lr
               in the end. Noise moves it 8 to 9 times as far as Adam does with the same b2.
    lr         is in weight, as Adam's lr is. Typical 5e-4, a sixth of Adam's, because its steps are longer.
               It needs a warmup.
    Defaults   are the author's.
    For        every tensor.
    Source     Adly (2024), arXiv 2412.20302. In its first version the steps also grew with time. The second
               version and the code leave this out."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    d1 = 1 + power(beta2, t) * v / (v + eps)
    d2 = 1 + power(beta1, t) * m.square() / (m.square() + eps)
    return d1 * hat(m + g, beta1, t) / ((hat(v, beta2, t) * d2).sqrt() + eps)

def fadam(g, m, v, w, decay, lr, t, *, beta1=0.9, beta2=0.999, eps=1e-8, clip_rms=1.0):
    """FAdam takes Adam for a natural gradient. It first divides by the root of the Fisher information, and
    then takes the mean. It divides the decay by this root, too.
        v <- b2 v + (1 - b2) g^2
        f  = sqrt(v_hat) + eps max(1, rms(g))
        n  = clip_rms g / f, divided by the rms of g / f over the tensor if that is above 1
        d  = clip_rms w / f, divided by the rms of w / f over the tensor if that is above 1
        m <- b1 m + (1 - b1) n
        u  = m, and the decay takes a part of d in place of w

    Remembers  m, the mean of divided gradients, and v: 8 bytes per weight.
    Moves      each weight as Adam does, but less at the start: m is not corrected for its start at 0, so the
               first step is a tenth of Adam's. The rms of a tensor's step is at most lr clip_rms.
    lr         is in weight, as Adam's lr is. Typical 3e-3.
    Defaults   are those of the code of lessw2020, which this rule follows. The decay acts on d, so it is
               strongest where gradients are small. There are three readings of eps: this one, the smaller
               of eps and 0.01 rms(g), and eps min(1, rms(g)). They differ if gradients are tiny.
    For        every tensor.
    Source     Hwang (2024), arXiv 2405.12807."""
    def clipped(x):
        return x * (clip_rms / x.square().mean().sqrt().clamp_min(1.0))
    v.lerp_(g.square(), 1 - beta2)
    f = hat(v, beta2, t).sqrt() + eps * g.square().mean().sqrt().clamp_min(1.0)
    m.mul_(beta1).add_((1 - beta1) * clipped(g / f))
    w = w.to(m.dtype)
    return m + (1 - decay) / lr.clamp_min(1e-30) * (clipped(w / f) - w)

def innaprop(g, m, v, w, decay, lr, t, *, beta2=0.99, eps=1e-8, viscous=0.1, newton=0.9):
    """INNAprop is RMSprop for a ball with friction, which also brakes where the gradient changes. A velocity
    shows that change, so the rule needs no second derivative.
        v <- b2 v + (1 - b2) g^2
        n  = g / (sqrt(v_hat) + eps)
        m <- m + (1 - viscous newton) / newton * d         d = the part of w that the decay takes away
        u  = m + newton n                                  v_hat = v / (1 - b2^t)
        m <- m + lr ((1 - viscous newton) n - viscous m)

    Remembers  m, the velocity, and v: 8 bytes per weight.
    Moves      each weight by lr newton n for the newest gradient alone, which nothing averages. If gradients
               agree for some 1 / (viscous lr) steps, it moves the weight by lr / viscous.
    lr         is in weight, as Adam's lr is. Typical 3e-3. For GPT-2 the authors use their AdamW's lr: 6e-4
               for small, 3e-4 for medium and 2e-4 for large. lr is also the time that a step takes: the
               smaller it is, the more steps m remembers.
    Defaults   are those of the authors' code, with the beta2 of their GPT-2. The paper calls viscous alpha,
               newton beta and beta2 sigma. The configurations of their GPT-2 have viscous 2 and newton 2.
               The authors keep psi = (1 - viscous newton) w + newton m instead of m, and divide by
               newton - lr. The division cancels, and m starts at 0.
    For        every tensor. psi does not decay, so a part of each decay comes back through m.
    Source     Bolte, Boustany, Pauwels, Purica (2024), arXiv 2410.05871."""
    v.lerp_(g.square(), 1 - beta2)
    n, kept = g / (hat(v, beta2, t).sqrt() + eps), 1 - viscous * newton
    m.add_(kept / newton * (1 - decay) * w.to(m.dtype))
    u = m + newton * n
    m.add_(lr * (kept * n - viscous * m))
    return u

def core(g, m, v, s, w, decay, lr, t, lr_peak, *, beta1=0.8125, beta2=0.99, beta1_start=0.7375, eps=1e-8,
         rise_steps=250, shrink=0.7375, grow=1.2, smallest=1e-6, largest=1e-3):
    """CoRe gives Adam's step a length of its own for each weight, as Rprop does. The length grows while the
    mean gradient keeps its sign, and shrinks if the sign changes.
        b1 = beta1 + (beta1_start - beta1) exp(-((t - 1) / rise_steps)^2)
        s <- s grow if the new m has the sign of the old one, s shrink if it has the other sign; then s is
             put between smallest and largest. It starts as the peak lr
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        u  = s / lr_peak m_hat / (sqrt(v_hat) + eps)           m_hat = m / (1 - b1^t), with the b1 of now

    Each weight decays in proportion to |u|: a weight that does not move does not decay.

    Remembers  m, v and s: 12 bytes per weight.
    Moves      each weight by about s lr / lr_peak. Even if gradients are noise, the mean keeps its sign more
               often than not. So s rises to 0.8 of `largest` on average, and then it is nearly Adam.
    lr         is only the first s, in weight, as published. Typical 1e-3. Twice the peak makes no step longer
               than `largest`. A schedule has no effect in the authors' code. Here it scales all steps.
    Defaults   are the authors' for mini-batches. Their package takes 0.01 for `largest`, and the paper 1 if
               each batch is the whole data. The scores that freeze some weights are left out.
    For        every tensor.
    Source     Eckhoff, Reiher (2023), arXiv 2307.15663."""
    b1 = beta1 + (beta1_start - beta1) * torch.exp(-((t - 1) / rise_steps).square())
    new = b1 * m + (1 - b1) * g
    turn = new * m
    s.copy_(torch.where(t == 1, lr_peak.to(s), s))
    s.copy_(torch.where(turn > 0, s * grow, torch.where(turn < 0, s * shrink, s))).clamp_(smallest, largest)
    m.copy_(new)
    v.lerp_(g.square(), 1 - beta2)
    u = new / (1 - torch.exp(t * torch.log(b1))) / (hat(v, beta2, t).sqrt() + eps)
    u = u * (s / lr_peak.clamp_min(1e-30))
    return decayed_by(u.abs(), u, w, decay, lr)

def adamomentum(g, m, v, t, *, beta1=0.9, beta2=0.999, eps=1e-16):
    """AdaMomentum is Adam whose second moment is of the mean gradient, not of the gradient.
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) m^2 + eps
        u  = m_hat / sqrt(v_hat)

    Remembers  m and v: 8 bytes per weight.
    Moves      a weight by about lr, even if its gradients are noise, because v shrinks as m does. There Adam
               moves it by a quarter of that. The first step is 10 times lr, and the tenth is 2 times lr.
    lr         is in weight, as Adam's lr is. Typical 1e-3, a third of Adam's, because its steps are longer.
               It needs a warmup.
    Defaults   are the authors' but for eps. eps adds up inside v, so it plays the part of the square of
               Adam's eps, as in AdaBelief. For images it is 1e-8.
    For        every tensor.
    Source     Wang et al. (2021), arXiv 2106.11514. The authors published no code that could be found. The
               rule agrees with that of Fassold's omni_optimizer."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(m.square(), 1 - beta2).add_(eps)
    return hat(m, beta1, t) / hat(v, beta2, t).sqrt()

def mean_of_tokens(w, blocks, *, role):
    """Makes one number for each column of the embedding or the head, and one for each weight elsewhere."""
    return per_column(w, blocks) if role in ("embed", "head") else torch.zeros_like(w)

def coupled_adam(g, m, v: mean_of_tokens, t, role, *, beta1=0.9, beta2=0.95, eps=1e-8):
    """Coupled Adam is Adam with the same second moment for all tokens. Then frequent and rare tokens have one
    rate, and the mean of all embeddings has no reason to drift away from 0.
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2                    in embedding and head: with the mean of g^2 over all rows
        u  = m_hat / (sqrt(v_hat) + eps)

    Remembers  m and v: 8 bytes per weight. In embedding and head v is one number per column.
    Moves      each weight as Adam does, but in embedding and head a rare token moves far less.
    lr         is in weight, as Adam's lr is. Typical 3e-3. For GPT-2 the authors use their AdamW's lr, 6e-4.
    Defaults   are the authors'. They do not decay the embedding.
    For        every tensor. The authors' embedding is at once the head, so both are coupled here. The
               argument is about the head.
    Source     Stollenwerk, Stollenwerk (2025), arXiv 2502.08441."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(mean_to(g.square(), v) if role in ("embed", "head") else g.square(), 1 - beta2)
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)

# ---- A memory of more than two running means ------------------------------------------------------------

def copies(w, blocks, *, capacity):
    """Makes room for `capacity` tensors like the weight."""
    return torch.stack([torch.zeros_like(w)] * capacity)

def one_for_each_copy(w, blocks, *, capacity):
    """Makes a number for each of these tensors."""
    return w.new_zeros(capacity)

def adam_cm(g, m, v, past: copies, keys: one_for_each_copy, sums, t, *, beta1=0.9, beta2=0.999, eps=1e-8,
            capacity=5, fading=0.7):
    """Adam with critical momenta keeps the momenta of steep steps, and adds their mean to the newest one.
        m <- b1 m + (1 - b1) g                in the first step m stays 0
        a  = m + mean of past
        past <- m takes the place of the momentum with the smallest key, if that key is below |g|
        v <- b2 v + (1 - b2) a^2
        u  = a_hat / (sqrt(v_hat) + eps)      a_hat = a / (1 - b1^t),  v_hat = v / (1 - b2^t)

    past holds up to `capacity` momenta. The first is the first gradient itself. The key of a momentum is |g|
    of its step, which is the sum of the norms of all tensors. Each step multiplies all keys by `fading`.

    Remembers  m, v and past: 28 bytes per weight with the usual capacity of 5.
    Moves      each weight as Adam does. |a| is about twice |m|, and v is that of a, so it is no longer.
    lr         is in weight, as Adam's lr is. Typical 3e-3. The authors advise Adam's lr, or a tenth of it.
    Defaults   are those of the authors' code. They also try a capacity of 10 and 20, and a fading of 0.99.
    For        every tensor. The first step only measures.
    Source     Malviya et al. (2023), arXiv 2307.09638."""
    m.lerp_(g, (1 - beta1) * (t > 1).to(g))
    kept = (t - 1).clamp_max(capacity).to(g)
    a = m + past.sum(0) / kept.clamp_min(1)
    v.lerp_(a.square(), 1 - beta2)
    place = torch.where(kept < capacity, t - 1, keys.argmin())
    numbers = torch.ones_like(keys).cumsum(0) - 1    # 0, 1, ...; a plain range is no tensor of FSDP2
    enters = (numbers == place) & ((kept < capacity) | (sums > keys.min()))
    newest = torch.where(t == 1, g, m)
    past.copy_(torch.where(enters.view(-1, *[1] * g.dim()), newest, past))
    keys.copy_(fading * torch.where(enters, sums, keys))
    return hat(a, beta1, t) / (hat(v, beta2, t).sqrt() + eps)

def norm_of_gradient(g):
    """Returns the part of a tensor in the sum of the norms."""
    return g.norm()

RULES = {
    "stable_adamw": ZooRule(stable_adamw, second_moment="v"),
    "adabound":     ZooRule(adabound, elementwise=True),
    "amsbound":     ZooRule(amsbound, elementwise=True),
    "adamod":       ZooRule(adamod, bounds=dict(beta3=BELOW_ONE), elementwise=True),
    "adamp":        ZooRule(adamp, second_moment="v"),
    "sgdp":         ZooRule(sgdp, lr_factor=300),
    "exadam":       ZooRule(exadam, lr_factor=1 / 6, elementwise=True),
    "fadam":        ZooRule(fadam),
    "innaprop":     ZooRule(innaprop, bounds=dict(newton=(0.01, math.inf)), elementwise=True),
    "core":         ZooRule(core, lr_factor=1 / 3, elementwise=True,
                            bounds=dict(beta1_start=BELOW_ONE, rise_steps=AT_LEAST_ONE)),
    "adamomentum":  ZooRule(adamomentum, lr_factor=1 / 3, second_moment="v", elementwise=True),
    "coupled_adam": ZooRule(coupled_adam, second_moment="v"),
    "adam_cm":      ZooRule(adam_cm, measures=1, sums=norm_of_gradient, second_moment="v",
                            bounds=dict(eps=(1e-30, math.inf), capacity=AT_LEAST_ONE,
                                        fading=(0, math.nextafter(1, 2)))),
}
