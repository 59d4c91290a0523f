"""
More rules that make a step orthogonal. Read muon in orthogonal.py first.

The first rules change one part of Muon: what goes into the orthogonal step, the polynomials of that step, or
what follows it. Dion and COSMOS look for the largest directions of the matrix, and LARS ties the length of a
step to the size of the matrix.
"""
import math

import torch

from optim import hat, power
from zoo.lowrank import draw, in_shape_of, long_first
from zoo.orthogonal import JORDAN, matrices, orthogonal
from zoo.rule import AT_LEAST_ONE, BELOW_ONE, ZooRule, taken_by_decay

# ---------------------------------------------------------------------------------------------------------
# Muon with another input, another polynomial or another scale

def adamuon(g, m, v, blocks, *, beta1=0.95, eps=1e-8):
    """AdaMuon makes the sign of Muon's momentum orthogonal, and then gives each weight its own scale.
        m <- b1 m + (1 - b1) g
        o  = orthogonal(sign(b1 m + (1 - b1) g))
        v <- b1 v + (1 - b1) o^2
        n  = o / (sqrt(v) + eps)
        u  = 0.2 n / rms(n)

    Remembers  m and v, the running means of g and o^2: 8 bytes per weight.
    Moves      the weights of a matrix by 0.2 lr (root mean square), which is the size of AdamW's steps. The
               first step moves each weight by 0.2 lr.
    lr         is AdamW's. Typical 3e-3. The authors use 6e-4 for GPT-2, as for AdamW.
    Defaults   are the authors'. Their code has one b1 for m and for v. It does not correct v for its start at
               0, because the last line undoes any common factor.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr.
    Source     Si, Zhang, Shen (2025), arXiv 2507.11005. Some libraries leave out the sign, which makes
               another rule."""
    m.lerp_(g, 1 - beta1)
    o = orthogonal(matrices(g.lerp(m, beta1).sign(), blocks))
    squares = matrices(v, blocks)
    squares.lerp_(o.square(), 1 - beta1)
    n = o / (squares.sqrt() + eps)
    size = 0.2 * (n.shape[1] * n.shape[2]) ** 0.5
    return (n * (size / (n.norm(dim=(1, 2), keepdim=True) + eps))).reshape(g.shape)

def auon(g, m, blocks, *, beta1=0.95):
    """AuON divides by the root mean square of a hyperbolic cosine where Muon makes the step orthogonal.
        m <- b1 m + (1 - b1) g
        x  = d / |d|                          d = b1 m + (1 - b1) g
        u  = sqrt(max(1, rows / columns)) x / rms(cosh(x))

    The entries of x are so small that their cosh is 1: in a matrix of 768 x 768 the divisor is 1.000001. So
    AuON is SGD with Muon's momentum and steps of a fixed length. Its singular values keep their proportions.

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      a matrix by lr sqrt(max(1, rows / columns)) in the Frobenius norm. The root mean square of a
               weight's step is that divided by sqrt(rows columns).
    lr         is the length of a step, apart from that factor. Typical 0.24, the author's at width 512.
    Defaults   are those of the author's first code, which has the formula of the paper. His later package
               leaves out the division by |d| and the factor, so that u is d itself. Neither is orthogonal.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr.
    Source     Maity (2025), arXiv 2509.24320."""
    m.lerp_(g, 1 - beta1)
    x = matrices(g.lerp(m, beta1), blocks)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x / (x.cosh().square().mean(dim=(1, 2), keepdim=True).sqrt() + 1e-8)
    return max(1, x.shape[1] / x.shape[2]) ** 0.5 * x.reshape(g.shape)

# The paper's polynomials for singular values from 0.001 to 1. Each is the best one after those before it, if
# a value below 0.024 of the largest counts as one of 0.024, which the authors call a cushion. All but the
# last are made for values that are 1.01 times as large, so that rounding does no harm.
POLAR_EXPRESS = tuple((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248))) + ((1.875, -1.25, 0.375),)

def polar_express(g, m, blocks, *, beta1=0.95, iterations=5):
    """Polar Express is Muon whose orthogonal step takes another polynomial in each of its iterations.
        m <- b1 m + (1 - b1) g
        u  = sqrt(max(1, rows / columns)) orthogonal(b1 m + (1 - b1) g)      with the paper's polynomials

    Each polynomial has the least error at worst, given those before it, for all but the smallest singular
    values. The first are steep, and the later ones converge at 1. Muon repeats one polynomial, which never
    converges.

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      a matrix by about lr sqrt(max(1, rows / columns)) in each of its directions. After five
               iterations the singular values are 0.84 ... 1.13, if the least was a thousandth of the norm.
    lr         is Muon's. Typical 2e-2, the best of the authors' for GPT-2 Large.
    Defaults   are the authors': five iterations, as Muon has. Eight give singular values of 1. The authors'
               own training code multiplies by sqrt(rows / columns), also where it is below 1.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr.
    Source     Amsel, Persson, Musco, Gower (2025), arXiv 2505.16932."""
    m.lerp_(g, 1 - beta1)
    o = orthogonal(matrices(g.lerp(m, beta1), blocks), iterations, POLAR_EXPRESS, margin=1.01)
    return max(1, o.shape[1] / o.shape[2]) ** 0.5 * o.reshape(g.shape)

# Polynomials that the authors of ROOT have fitted to the matrices of their model of 1.2b weights, by
# (shorter side, longer side). Their code has no others.
ROOT = {
    (2048, 2048):  (3.4916, -4.8224, 2.1095),
    (2048, 3072):  (3.4509, -4.5790, 1.9325),
    (2048, 8192):  (2.9794, -3.6674, 1.6207),
    (2048, 16384): (3.1943, -3.8221, 1.5322),
}

def root(g, m, blocks, *, beta1=0.95, kept=0.9):
    """ROOT clips the largest tenth of Muon's momentum, because a few outliers can turn the orthogonal step.
        m <- b1 m + g
        d  = g + b1 m
        d  = d, clipped to +- the quantile `kept` of |d|
        u  = 0.2 sqrt(max(rows, columns)) orthogonal(d)       with polynomials for each shape

    Remembers  m, the decaying sum of gradients: 4 bytes per weight.
    Moves      the weights of a matrix by about 0.2 lr (root mean square), as far as AdamW moves them.
    lr         is AdamW's. Typical 3e-3. The authors' example has 1e-3.
    Defaults   are the authors'. Their polynomials are for the four shapes of a model of 1.2b weights, whose
               shorter side is 2048. Matrices of all other shapes get Muon's polynomial, as in their code. So
               in small models the clipping is all that differs from Muon.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr.
    Source     He et al. (2025), arXiv 2511.20626. The paper clips m, at a fixed value. The authors' code
               clips d, at the quantile."""
    m.mul_(beta1).add_(g)
    d = matrices(g + beta1 * m, blocks)
    edge = quantile(d.abs().flatten(1), kept)[:, None, None] + 1e-9
    o = orthogonal(d.clamp(-edge, edge), polynomials=(ROOT.get(tuple(sorted(d.shape[1:])), JORDAN),))
    return 0.2 * max(o.shape[1:]) ** 0.5 * o.reshape(g.shape)

def quantile(x, part):
    """Returns the value below which lies this part of each row of x: (rows,). torch.quantile takes no more
    than 16 million numbers."""
    place = part * (x.shape[1] - 1)
    below = int(place)
    low, high = (x.kthvalue(min(k, x.shape[1]), dim=1).values for k in (below + 1, below + 2))
    return low.lerp(high, place - below)

# ---------------------------------------------------------------------------------------------------------
# The largest directions of the matrix

def long_side(w, blocks, *, rank):
    """Makes room for directions of the longer side of each block: (blocks, long, directions)."""
    long, short = long_first(w, blocks).shape[1:]
    return w.new_zeros(blocks, long, max(1, min(short, math.ceil(rank * short))))

def short_side(w, blocks, *, rank):
    """Makes room for directions of the shorter side of each block: (blocks, short, directions)."""
    return w.new_zeros(blocks, long_first(w, blocks).shape[2], long_side(w, blocks, rank=rank).shape[2])

def dion(g, m, p: long_side, q: short_side, blocks, *, beta1=0.95, eps=1e-8, rank=1.0, refresh_steps=1,
         seed=0):
    """Dion makes only the largest directions of the momentum orthogonal, and keeps the rest for later steps.
        m <- m + g
        p  = the Q of the QR decomposition of m q         one step of power iteration, each refresh_steps
        r  = m' p
        m <- m - (1 - b1) p r'                            what the step takes from m, decays. The rest stays
        q <- the columns of r, each divided by its norm + eps
        u  = sqrt(rows / columns) p q'

    The longer side of a matrix comes first. In a wide matrix, m and u above are their transposes.

    Remembers  m, 4 bytes per weight, and q. This code also stores p. With rank 1 both together are 8 bytes
               per weight of a square matrix. The authors compute p anew and keep only q.
    Moves      a matrix by lr sqrt(rows / columns) in each of its largest directions.
    lr         is the size of a step in the spectral norm, apart from that factor. Typical 1e-2.
    Defaults   are the authors': rank 1 leaves no direction out. rank is a fraction of the shorter side. They
               find that rank 0.25 is nearly as good at 3b weights, and that small models need a higher one.
               q begins random, as a function of the seed and of the tensor. The trainer passes --seed.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr.
    Source     Ahn et al. (2025), arXiv 2504.05295. The authors' code has three ways to compute p. All give
               the same steps."""
    m.add_(g)
    x = long_first(m, blocks)
    alive = x.abs().amax(dim=(1, 2), keepdim=True) > 0    # otherwise q would become 0 and stay so
    taken = p * alive
    r = torch.where(alive, x.mT @ taken, q)
    m.sub_(in_shape_of((1 - beta1) * taken @ r.mT, g, blocks))
    q.copy_(r / (r.norm(dim=1, keepdim=True) + eps))
    rows, columns = matrices(g, blocks).shape[1:]
    return (rows / columns) ** 0.5 * in_shape_of(taken @ q.mT, g, blocks)

def dion_directions(g, m, p, q, t, index, blocks, *, seed):
    """Makes one step of power iteration from q towards the largest directions of the new momentum."""
    if t == 1:
        draw(q, t, index, seed=seed)
    p.copy_(torch.linalg.qr(long_first(m + g, blocks) @ q).Q)

def as_matrices(x, blocks):
    """Returns x as (blocks, rows, columns). A vector becomes one column."""
    return matrices(x, blocks) if x.dim() > 1 else x.reshape(1, -1, 1)

def directions(w, blocks, *, rank):
    """Makes room for directions of the columns of each block: (blocks, columns, directions)."""
    rows, columns = as_matrices(w, blocks).shape[1:]
    return w.new_zeros(blocks, columns, max(1, min(rank, min(rows, columns) - 1)))

def along_directions(w, blocks, *, rank):
    """Makes one number for each row and direction: (blocks, rows, directions)."""
    return w.new_zeros(blocks, as_matrices(w, blocks).shape[1], directions(w, blocks, rank=rank).shape[2])

def between_directions(w, blocks, *, rank):
    """Makes one number for each pair of directions: (blocks, directions, directions)."""
    number = directions(w, blocks, rank=rank).shape[2]
    return w.new_zeros(blocks, number, number)

def cosmos(g, m, v: along_directions, s: between_directions, q: directions, t, blocks, *, beta1=0.95,
           beta2=0.95, eps=1e-8, rank=64, gamma=0.2, ratio=0.2, refresh_steps=1):
    """COSMOS is SOAP in the largest directions of the gradient, and Muon in all others.
        m <- b1 m + g
        q, s: the largest directions of the mean of g' g, and that mean along them, each refresh_steps
        v <- b2 v + (1 - b2) (g q)^2
        n  = (g + b1 m) / (1 + b1 (1 - b1^t) / (1 - b1))
        a  = (n q / (sqrt(v_hat) + eps)) q'                      v_hat = v / (1 - b2^t)
        b  = orthogonal(n - n q q'), divided by its root mean square
        u  = ratio (a + gamma b), divided by the root mean square of a + gamma b

    Remembers  m, 4 bytes per weight, and 4 rank (rows + columns + rank) bytes for v, q and s.
    Moves      the weights of a matrix by ratio lr (root mean square).
    lr         is the lr of AdamW, of which the matrices get the part `ratio`. Typical 2e-3, the authors'.
    Defaults   are the authors'. In small matrices, rank is one less than the shorter side at most, so that
               Muon has a direction left. The authors have no such limit.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr. The authors' code
               has its own Adam there, with a mistake: m decays by b1, but 0.1 g comes in, and the correction
               is for b1 = 0.9. With their b1 of 0.95 it makes steps of twice AdamW's length. We leave it out.
    Source     Liu et al. (2025), arXiv 2502.17410."""
    m.mul_(beta1).add_(g)
    x = as_matrices(g, blocks)
    n = (x + beta1 * as_matrices(m, blocks)) / (1 + beta1 * (1 - power(beta1, t)) / (1 - beta1))
    v.lerp_((x @ q).square(), 1 - beta2)
    along = n @ q
    a = (along / (hat(v, beta2, t).sqrt() + eps)) @ q.mT
    b = of_rms_one(orthogonal(n - along @ q.mT), eps)
    return ratio * of_rms_one(a + gamma * b, eps).reshape(g.shape)

def of_rms_one(x, eps):
    """Returns each matrix of x, divided by the root mean square of its entries."""
    norm = x.norm(dim=(1, 2), keepdim=True)
    return (x.shape[1] * x.shape[2]) ** 0.5 * x / (norm + eps).clamp_min(1e-30)    # with eps 0, for x = 0

def cosmos_directions(g, s, q, t, blocks, *, beta2):
    """Makes one step of power iteration towards the largest directions of the mean of g' g, which is known
    only along the old directions. At t = 1 they are the eigenvectors of g' g."""
    x, old = as_matrices(g, blocks), q.clone()
    if t == 1:
        q.copy_(torch.linalg.eigh(x.mT @ x).eigenvectors.flip(2)[:, :, :q.shape[2]])
    else:
        q.copy_(torch.linalg.qr(beta2 * old @ s + (1 - beta2) * x.mT @ (x @ old)).Q)
    turn, now = old.mT @ q, x @ q
    s.copy_(beta2 * turn.mT @ s @ turn + (1 - beta2) * now.mT @ now)

# ---------------------------------------------------------------------------------------------------------
# A step as long as the tensor is large

def lars(g, m, w, decay, lr, *, beta1=0.9, trust=0.001, eps=1e-8):
    """LARS is SGD whose gradient is scaled to a fixed part of the size of its tensor.
        d  = (1 - decay) / lr w               with coupled decay this is weight_decay * w
        k  = trust |w| / (|g| + |d| + eps)    k is 1 if |w| or |g| is 0
        m <- b1 m + k (g + d)
        u  = m - d                            the class takes d off by itself, so the weight moves by lr m

    The decay goes through the momentum, with the gradient. So a weight without gradients is not multiplied by
    1 - lr weight_decay, as it is with the other rules.

    Remembers  m, the decaying sum of scaled gradients: 4 bytes per weight.
    Moves      a tensor by trust / (1 - b1) of its size a step if gradients agree, times lr. That is 1 %.
    lr         has no unit. It multiplies `trust`. Typical 1.0, timm's. It is not tuned for language models.
    Defaults   are the paper's: trust 0.001, and b1 0.9. eps is timm's.
    For        every tensor. timm leaves out the scale k where the decay is 0, unless always_adapt is set.
               Others leave it out for vectors. This rule scales all tensors. q, k and v are one tensor.
    Source     You, Gitman, Ginsburg (2017), arXiv 1708.03888. There lr comes before the momentum. Here it
               comes after it, as in timm. The two differ only while lr changes."""
    d = taken_by_decay(w, decay, lr)
    size, slope = w.to(g.dtype).norm(), g.norm()
    k = torch.where((size > 0) & (slope > 0), trust * size / (slope + d.norm() + eps), 1.0)
    m.mul_(beta1).add_(k * (g + d))
    return m - d

RULES = {
    "adamuon":       ZooRule(adamuon, roles="qkv+matrix", rest="adamw", stacks=True),
    "auon":          ZooRule(auon, lr_factor=80, roles="qkv+matrix", rest="adamw", stacks=True),
    "polar_express": ZooRule(polar_express, lr_factor=7, roles="qkv+matrix", rest="adamw", stacks=True,
                             bounds=dict(iterations=AT_LEAST_ONE)),
    "root":          ZooRule(root, roles="qkv+matrix", rest="adamw", stacks=True,
                             bounds=dict(kept=BELOW_ONE)),
    "dion":          ZooRule(dion, lr_factor=10 / 3, roles="qkv+matrix", rest="adamw",
                             refresh=dion_directions, from_run=("seed",),
                             bounds=dict(refresh_steps=AT_LEAST_ONE)),
    "cosmos":        ZooRule(cosmos, lr_factor=2 / 3, roles="qkv+matrix", rest="adamw", stacks=True,
                             refresh=cosmos_directions,
                             bounds=dict(rank=AT_LEAST_ONE, refresh_steps=AT_LEAST_ONE)),
    "lars":          ZooRule(lars, lr_factor=1000 / 3),
}
