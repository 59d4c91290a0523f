"""
Rules that take the direction and the length of a step from different places.

Read lion in optim.py first. Ano takes the direction from the mean gradient, and the length from the newest.
Lion-K is a family: it puts the gradient of a convex function K where Lion has the sign, which is the gradient
of the sum of |x|.
"""
import torch

from optim import hat
from zoo.rule import ZooRule

def ano(g, m, s, t, *, beta1=0.92, beta2=0.99, eps=1e-16):
    """Ano moves in the direction of the mean gradient, as far as the newest gradient says.
        m <- b1 m + (1 - b1) g
        s <- b2 s + (1 - b2) sign(g^2 - s) g^2
        u  = |g| sign(m) / sqrt(s_hat + eps)          s_hat = s / (1 - b2^t)

    Remembers  m, the running mean of gradients, and s: 8 bytes per weight.
    Moves      each weight by lr |g| / sqrt(s_hat). The root mean square of this is 1.2 lr where gradients are
               noise. A weight with noisy gradients moves as far as others, as in Signum and unlike in Adam.
    lr         is in weight. Typical 3e-4, as for Signum, because the steps are as long. The author's default
               is 1e-4.
    Defaults   beta1 0.92 and beta2 0.99 are the author's. The author's eps, 1e-8, is inside the root, where
               it acts like a gradient of 1e-4: smaller gradients move weights in proportion to their size. So
               eps is 1e-16 here. With b2 below 1/2, s can fall below 0, and the rule then takes 0 for it.
    For        every tensor.
    Source     Kegreisz (2025), arXiv 2508.18258, in the form of the author's package for torch. The form for
               TensorFlow adds eps to the root instead."""
    m.lerp_(g, 1 - beta1)
    return m.sign() * newest_size(g, s, t, beta2, eps)

def anolog(g, m, s, t, *, beta2=0.99, eps=1e-16):
    """Anolog is Ano whose mean gradient looks back farther and farther, so it has no beta1 to tune.
        b1(t) = 1 - 1 / ln(max(t, 2))
        m <- b1(t) m + (1 - b1(t)) g;  all else is Ano's

    Remembers  m and s: 8 bytes per weight.
    Moves      weights as Ano does. b1 is -0.44 in the first two steps, 0.78 at t = 100, and reaches Ano's
               0.92 only at t = 268,000. So m is the mean of fewer gradients than in Ano.
    lr         is in weight. Typical 3e-4, as for Ano.
    Defaults   beta2 0.99 is the author's, and eps is Ano's.
    For        every tensor.
    Source     Kegreisz (2025), arXiv 2508.18258, in the form of the author's package for torch."""
    newest = 1 / t.clamp_min(2).log()
    m.mul_(1 - newest).add_(newest * g)
    return m.sign() * newest_size(g, s, t, beta2, eps)

def newest_size(g, s, t, beta2, eps):
    """Updates s, which comes from Yogi, and returns |g| / sqrt(s_hat + eps)."""
    square = g.square()
    s.copy_(beta2 * s + (1 - beta2) * (square - s).sign() * square)
    return g.abs() / (hat(s, beta2, t).clamp_min(0) + eps).sqrt()

def lion_l2(g, m, *, beta1=0.9, beta2=0.95):
    """Lion-K with the Euclidean norm is momentum SGD whose step has the same length for every tensor.
        x  = b1 m + (1 - b1) g
        u  = x / |x|                          |x| is the norm over the tensor, and u is 0 if it is 0
        m <- b2 m + (1 - b2) g

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      every tensor by exactly lr, measured by its norm. With weight decay d, coupled, the norm of a
               tensor tends to at most 1 / d.
    lr         is a distance of a whole tensor. A weight of a tensor of n weights moves by lr / sqrt(n), root
               mean square. Typical 0.1, which is our own estimate: in a matrix of 768 x 768 it is 1.3e-4 per
               weight, and in a vector of 768 it is 3.6e-3.
    Defaults   are Lion's here.
    For        every tensor. The fused q, k, v count as one tensor.
    Source     Chen, Liu, Liang, Liu (2023), arXiv 2310.05898. Not verified against published code."""
    x = blend(g, m, beta1, beta2)
    return x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)

def lion_group(g, m, *, beta1=0.9, beta2=0.95):
    """Lion-K with the sum of the norms of rows moves every row of a matrix by the same distance.
        x  = b1 m + (1 - b1) g
        u  = x / |row of x|                   a row of zeros stays, and a vector is a single row
        m <- b2 m + (1 - b2) g

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      every row by exactly lr, measured by its norm, also the rows of tokens that are rare.
    lr         is a distance of a row. A weight in a row of n moves by lr / sqrt(n), root mean square.
               Typical 1e-2, which is our own estimate: in a row of 768 a weight then moves by 3.6e-4.
    Defaults   are Lion's here.
    For        every tensor. In embedding and head a row is a token. In other matrices a row is a neuron. A
               tensor of three axes or more is a matrix of its first axis by all others.
    Source     Chen, Liu, Liang, Liu (2023), arXiv 2310.05898. Not verified against published code."""
    x = blend(g, m, beta1, beta2)
    size = torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())) or None, keepdim=True)
    return x / size.clamp_min(torch.finfo(x.dtype).tiny)

def lion_huber(g, m, *, beta1=0.9, beta2=0.95, corner=1e-4):
    """Lion-K with Huber's loss is Lion where the mean gradient is large, and momentum SGD where it is small.
        x  = b1 m + (1 - b1) g
        u  = x / corner, clipped to +- 1
        m <- b2 m + (1 - b2) g

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      a weight by exactly lr if |x| >= corner, and by less if x is smaller. So weights can settle,
               which Lion's cannot.
    lr         is the longest distance of a weight in a step. Typical 3e-4, as for Lion.
    Defaults   are Lion's here. corner has the unit of a gradient, so it depends on the scale of the loss, and
               1e-4 is our own estimate. With corner 0 the rule is Lion.
    For        every tensor.
    Source     Chen, Liu, Liang, Liu (2023), arXiv 2310.05898. Not verified against published code."""
    return (blend(g, m, beta1, beta2) / max(corner, 1e-30)).clamp(-1, 1)

def blend(g, m, beta1, beta2):
    """Returns Lion's b1 m + (1 - b1) g, and then updates m with b2."""
    x = m.lerp(g, 1 - beta1)
    m.lerp_(g, 1 - beta2)
    return x

RULES = {
    "ano":        ZooRule(ano, lr_factor=0.1, elementwise=True),
    "anolog":     ZooRule(anolog, lr_factor=0.1, elementwise=True),
    "lion_l2":    ZooRule(lion_l2, lr_factor=100 / 3),
    "lion_group": ZooRule(lion_group, lr_factor=10 / 3),
    "lion_huber": ZooRule(lion_huber, lr_factor=0.1, elementwise=True),
}
