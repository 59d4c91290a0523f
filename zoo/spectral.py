"""
More rules that make a step orthogonal. Read muon in orthogonal.py first.

Each rule changes one part of Muon: what goes into the orthogonal step, the polynomials of that step, or what
follows it.
"""
from zoo.orthogonal import JORDAN, matrices, orthogonal
from zoo.rule import AT_LEAST_ONE, BELOW_ONE, ZooRule

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
    Defaults   are the author's in his first published code, and the paper's. His later package leaves out the
               division by |d|, so that u is d itself. Neither form is orthogonal.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr.
    Source     Maity (2025), arXiv 2509.24320."""
    m.lerp_(g, 1 - beta1)
    x = matrices(g.lerp(m, beta1), blocks)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x / (x.cosh().square().mean(dim=(1, 2), keepdim=True).sqrt() + 1e-8)
    return max(1, x.shape[1] / x.shape[2]) ** 0.5 * x.reshape(g.shape)

# The paper's polynomials for singular values from 0.001 to 1. Each is the best one after those before it. All
# but the last are made for values that are 1.01 times as large, so that rounding does no harm.
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

    Each polynomial has the least error at worst, given those before it. The first are steep, and the later
    ones converge at 1. Muon repeats one polynomial, which never converges.

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
# (shorter side, longer side). They have published no others.
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

RULES = {
    "adamuon":       ZooRule(adamuon, roles="qkv+matrix", rest="adamw", stacks=True),
    "auon":          ZooRule(auon, lr_factor=80, roles="qkv+matrix", rest="adamw", stacks=True),
    "polar_express": ZooRule(polar_express, lr_factor=7, roles="qkv+matrix", rest="adamw", stacks=True,
                             bounds=dict(iterations=AT_LEAST_ONE)),
    "root":          ZooRule(root, roles="qkv+matrix", rest="adamw", stacks=True,
                             bounds=dict(kept=BELOW_ONE)),
}
