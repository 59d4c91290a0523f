"""
Rules that move in proportion to the gradient, as SGD does, and change how fast or with what momentum.

Read sgd_ema in optim.py first.
"""
import numpy as np
import torch

from optim import power, scalar
from zoo.rule import ZooRule, copy_of_weight

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
    Defaults   are those of version 1.0.3 of the authors' package. It starts m at g, and not at 0. Version
               1.0.4 also divides every ratio by the largest one, so it needs a larger lr.
    For        every tensor.
    Source     Xu, Xiang, Cai, Wen (2024), arXiv 2412.11768."""
    deviation = ((g - g.mean()).square().sum() / max(g.numel() - 1, 1)).sqrt()
    ratio.copy_(torch.where(t == 1, g.norm() / (deviation + eps), ratio))
    m.copy_(torch.where(t == 1, g, m.lerp(g, 1 - beta1)))
    return ratio * m

def start_of_gamma(w, blocks, *, gamma0):
    """Makes one number for each tensor, which starts at the hyperparameter gamma0."""
    return w.new_full((), gamma0, dtype=torch.promote_types(w.dtype, torch.float32))

def nag_gs(g, v: copy_of_weight, gamma: start_of_gamma, w, lr, decay, *, mu=1.0, gamma0=1.5):
    """NAG-GS follows Nesterov's accelerated flow in implicit steps: v leads, and the weight goes to meet it.
        v     <- v + lr / (lr mu + gamma) (mu (w - v) - g)      v starts at w, and gamma at gamma0
        gamma <- (gamma + lr mu) / (1 + lr)
        u      = (w - v) / (1 + lr)           so w becomes (w + lr v) / (1 + lr)

    Remembers  v, which has the size of a weight, 4 bytes per weight, and one gamma per tensor.
    Moves      each weight in proportion to its gradient. A steady g moves it by g lr / (mu (2 + lr)) a step,
               as soon as gamma has come to mu. The first step is about g lr^2 / gamma0 long: v needs
               some 1 / lr steps to take the weight with it.
    lr         is a span of time without a unit, and mu and gamma0 carry the unit. Typical 5e-2, the default
               of the authors' JAX code. No published value for the training of language models is known to
               us. Their gradients are small, so mu and gamma0 must be far smaller there.
    Defaults   mu 1 and gamma0 1.5 are those of the authors' JAX code. gamma tends to mu as there and in the
               paper. The authors' code for torch computes the new gamma and then forgets it, which is the
               same only if gamma0 equals mu. Their code for JAX leaves out the first gradient. This rule uses
               it. They have no weight decay. Here it shrinks w and v alike, which is our own choice.
    For        every tensor.
    Source     Leplat, Merkulov, Katrutsa, Bershatsky, Tsymboi, Oseledets (2022), arXiv 2209.14937."""
    x = decay * w.to(v.dtype)
    v.mul_(decay)
    v.add_(lr / (lr * mu + gamma).clamp_min(1e-30) * (mu * (x - v) - g))
    gamma.copy_((gamma + lr * mu) / (1 + lr))
    return (x - v) / (1 + lr)

def first_push(w, blocks, *, alpha, seed, lr_peak, index):
    """Makes random velocities of deviation alpha / lr. They are the same on all ranks, for each seed."""
    normal = np.random.default_rng([seed, index]).standard_normal(w.shape)
    v = torch.from_numpy(np.asarray(normal * alpha / max(lr_peak, 1e-30)))
    if hasattr(w, "device_mesh"):    # a tensor of FSDP2, whose state is split as it is
        from torch.distributed.tensor import distribute_tensor
        return distribute_tensor(v.to(w.device), w.device_mesh, w.placements)
    return v.to(w.device)

def gravity(g, v: first_push, t, *, beta1=0.9, alpha=0.01, seed=0):
    """Gravity is SGD with a mean that grows longer. It holds large gradients back, as a slope holds a ball.
        z  = g / (1 + (g max|g|)^2)           max|g| is the largest of the tensor
        v <- b(t) v + (1 - b(t)) z,  b(t) = (b1 t + 1) / (t + 2)
        u  = v                                v starts as normal numbers times alpha / (peak of lr)

    Remembers  v, the running mean of z: 4 bytes per weight.
    Moves      each weight in proportion to its mean gradient while g max|g| is far below 1, which is usual
               for a language model, and less where g is larger. Even without gradients the start of v moves
               each weight: by 0.63 alpha in the first step, and by 2.8 alpha in all.
    lr         is in weight per unit of gradient. Typical 10, as for sgd_ema, whose steps are as long where
               gradients are small. The authors' default is 0.1.
    Defaults   are the authors', and so is t, which is 1 in the first step, as in their code for torch. Their
               code for Keras begins at 0. An alpha of 0.01 moves weights about as far as the usual start of a
               model is from 0. With alpha 0 all velocities start at 0. The trainer passes --seed. The first
               v is a function of the seed and of the tensor.
    For        every tensor.
    Source     Bahrami, Pouriyan Zadeh (2021), arXiv 2101.09192."""
    z = g / (1 + (g * g.abs().max()).square())
    keep = (beta1 * t + 1) / (t + 2)
    v.mul_(keep).add_((1 - keep) * z)
    return v

def swats(g, m, s, mean: scalar, rate: scalar, t, *, beta1=0.9, beta2=0.999, eps=1e-9, tolerance=1e-6):
    """SWATS starts as Adam. It switches a tensor to SGD when it has found the lr that SGD needs there.
        m <- b1 m + (1 - b1) g                        m starts anew at 0 after the switch
        as Adam    s <- b2 s + (1 - b2) g^2
                   u  = m / (sqrt(s) + eps) sqrt(1 - b2^t) / (1 - b1^t)
                   need = |u|^2 / (u . g);  mean <- b2 mean + (1 - b2) need;  found = mean / (1 - b2^t)
                   switch after this step, with rate <- found,
                   if t > 1 and found > 0 and |found - need| <= tolerance |need|
        as SGD     u  = rate m

    Remembers  m and s, 8 bytes per weight, and two numbers per tensor. rate is 0 before the switch.
    Moves      weights as Adam does, and after the switch in proportion to their mean gradient. `need` is how
               long a step along g would be as far as u in the direction of u, as a multiple of lr.
    lr         is in weight, as Adam's lr is. Typical 3e-3. rate is a multiple of lr, so lr and its schedule
               also act after the switch.
    Defaults   beta1, beta2 and eps are the authors'. Their condition is |found - need| < 1e-9, in weight per
               gradient, which depends on the scale of the loss. Libraries for torch have a relative tolerance
               of 1e-6, as here. In noise either holds only by chance, where need comes close enough to found.
               So the switch may come late or never. In libraries all tensors of a group switch together. Here
               each tensor switches by itself.
    For        every tensor.
    Source     Keskar, Socher (2017), arXiv 1712.07628."""
    sgd = rate > 0
    m.mul_(beta1 * (~sgd | (mean == 0)).to(m.dtype)).add_((1 - beta1) * g)
    s.lerp_(g.square(), 1 - beta2)
    u = m / (s.sqrt() + eps) * ((1 - power(beta2, t)) ** 0.5 / (1 - power(beta1, t)))
    along = (u * g).sum()
    need = torch.where(along != 0, u.square().sum() / along, 0.0)
    mean.copy_(torch.where(along != 0, beta2 * mean + (1 - beta2) * need, mean))
    found = mean / (1 - power(beta2, t))
    settled = (t > 1) & (along != 0) & (found > 0) & ((found - need).abs() <= tolerance * need.abs())
    u = torch.where(sgd, rate * m, u)
    mean.copy_(torch.where(sgd, 0.0, mean))    # says that m holds only gradients of the SGD phase
    rate.copy_(torch.where(sgd, rate, torch.where(settled, found, 0.0)))
    return u

RULES = {
    "sgd_sai": ZooRule(sgd_sai, lr_factor=10 / 3),
    "nag_gs":  ZooRule(nag_gs, lr_factor=50 / 3, elementwise=True),
    "gravity": ZooRule(gravity, lr_factor=10000 / 3, from_run=("seed",)),
    "swats":   ZooRule(swats, rarely_changes=("rate",)),
}
