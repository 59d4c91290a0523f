"""
Rules that keep less than one number per weight for the second moment, and some of them less for the first.

Read adafactor in optim.py and came in zoo/factored.py first.
"""
import math

import torch

from optim import hat, mean_to, per_column, per_row
from zoo.factored import by_rows_and_columns, root_mean_square, row_or_all
from zoo.rule import AT_LEAST_ONE, ZooRule, decayed_by, update_to

def slim(w, blocks, *, role):
    """Makes one number for each weight of a vector, for each row of embedding and head, and for each column
    of any other matrix. The fused q, k, v have one for each row of q and k, then one for each column of v."""
    if w.dim() < 2:
        return w.new_zeros(w.shape)
    if role == "qkv":
        return w.new_zeros(2 * len(w) // 3 + math.prod(w.shape[1:]))
    return (per_row if role in ("embed", "head") else per_column)(w, blocks)

def slim_adam(g, m, v: slim, t, role, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """SlimAdam is Adam that averages v along one side of each matrix: the side along which v hardly differs.
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) mean of g^2 over each row        embedding, head, queries and keys
        v <- b2 v + (1 - b2) mean of g^2 over each column     values, attention output, MLP
        v <- b2 v + (1 - b2) g^2                              vectors
        u  = m_hat / (sqrt(v_hat) + eps)      m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)

    Remembers  m, 4 bytes per weight, and one v per row or per column.
    Moves      a row or a column by about lr (root mean square), each weight in proportion to its mean
               gradient.
    lr         is in weight, as Adam's lr is. Typical 3e-3. The authors find the same best lr as for Adam.
    Defaults   are Adam's here. For GPT-2 the authors use the same betas and eps 1e-8. The sides are those
               of their table for language models. They also choose them anew for each run: they measure
               mean(v)^2 / variance(v) along each side in a run with Adam, and average where it is above 1.
    For        every tensor. A row is an output of a matrix, or a token. A matrix whose role nobody has named
               counts as one of the MLP.
    Source     Kalra, Kirchenbauer, Barkeshli, Goldstein (2025), arXiv 2503.01843."""
    m.lerp_(g, 1 - beta1)
    square = g.square()
    if role == "qkv" and g.dim() > 1:
        rows = 2 * len(g) // 3
        v.lerp_(torch.cat((square[:rows].flatten(1).mean(1), square[rows:].mean(0).flatten())), 1 - beta2)
        flat = m.flatten(1)
        root = torch.cat((v[:rows, None].expand_as(flat[:rows]), v[rows:].expand_as(flat[rows:])))
        root = (hat(root, beta2, t).sqrt() + eps).reshape(g.shape)
    else:
        v.lerp_(mean_to(square, v), 1 - beta2)
        root = hat(v, beta2, t).sqrt() + eps
    return hat(m, beta1, t) / root

def adalomo(g, rows: row_or_all, columns: per_column, w, t, lr, decay, *, exponent=0.8, clip_rms=1.0,
            tiny=1e-30):
    """AdaLomo is the Adafactor of 2018 without an lr that falls by itself. Steps scale with a tensor's size.
        rows, columns <- running means of g^2 + tiny over rows and columns, with b2 = 1 - t^-exponent
        n              = g / sqrt((rows / mean(rows)) columns), scaled down to an rms of at most clip_rms
        size           = rms(w), and at least 0.001
        u              = size n, and the weight decay is multiplied by size, too

    If the tensor is a vector, rows holds the running mean of each g^2.

    Remembers  one number per row and per column.
    Moves      a tensor by at most clip_rms lr rms(w) (root mean square) in each step, however large
               its gradient is. A tensor that is 0 moves by 0.001 clip_rms lr.
    lr         is a fraction of the tensor's size. Typical 1e-2, which is the largest step of Adafactor's
               authors. AdaLomo's authors use 5e-4 ... 1e-3 on models that have been trained before.
    Defaults   are the authors'. At t = 1, b2 is 0, so nothing needs a correction for its start at 0.
    For        every tensor. The fused q, k, v are one matrix, as for Adafactor. The authors update each
               tensor as soon as the backward pass has its gradient, so that they never hold all gradients.
               This form does not, so gradients can be accumulated and clipped.
    Source     Lv et al. (2023), arXiv 2310.10195; the rule is that of Shazeer, Stern (2018),
               arXiv 1804.04235."""
    n = by_rows_and_columns(g, rows, columns, t, exponent, tiny, clip_rms)
    size = root_mean_square(w, 1e-3)
    return decayed_by(size, size * n, w, decay, lr)

# ---------------------------------------------------------------------------------------------------------
# A product of two vectors in the place of each moment

def squarest(size) -> tuple:
    """The shape (long, short) of the matrix of that size whose sides differ least."""
    short = next(side for side in range(math.isqrt(size), 0, -1) if size % side == 0)
    return size // short, short

def long_side(w, blocks):
    """Makes one number for each row of the squarest matrix."""
    return w.new_zeros(squarest(w.numel())[0])

def short_side(w, blocks):
    """Makes one number for each column of the squarest matrix."""
    return w.new_zeros(squarest(w.numel())[1])

def sixteenth(w, blocks):
    """Makes one number for each 16 weights. It holds a bit of each."""
    return w.new_zeros(-(-w.numel() // 16))

def smmf(g, long_m: long_side, short_m: short_side, signs: sixteenth, long_v: long_side, short_v: short_side,
         t, *, beta1=0.9, growth=0.999, exponent=0.8, eps=1e-8):
    """SMMF is Adam that rebuilds both moments from two vectors and the signs of the first.
        x  = g as the matrix with rows >= columns whose sides differ least
        m  = b1 (+- long_m short_m') + (1 - b1) x           b1 = beta1 growth^(t - 1)
        v  = b2 long_v short_v' + (1 - b2) x^2              b2 = 1 - t^-exponent
        u  = m / (sqrt(v) + eps)
        long_m, short_m <- sums of |m| over its rows and columns, short_m divided by its own sum
        long_v, short_v <- the same of v;  signs <- whether m > 0

    Remembers  one bit per weight, sixteen of them in a number, which is 1/4 byte per weight, and four
               vectors. The authors' code keeps each sign in a byte.
    Moves      each weight by a tenth of lr at first, because m is not corrected for its start at 0. Later b2
               rises to 1 and b1 falls: it is 0.04 at step 3,000, and then a step is nearly g / sqrt(v).
    lr         is in weight, as Adam's lr is. Typical 3e-3, Adam's. The authors advise 1e-3.
    Defaults   are the authors' for transformers. For convolutions they use exponent 0.5.
    For        every tensor. A vector becomes a matrix, too. The fused q, k, v are one tensor.
    Source     Park, Lee (2024), arXiv 2412.08894."""
    x = g.reshape(squarest(g.numel()))
    b1, newest = beta1 * growth ** (t - 1), torch.exp(-exponent * torch.log(t))
    m = b1 * unpacked(signs, x) * torch.outer(long_m, short_m) + (1 - b1) * x
    v = (1 - newest) * torch.outer(long_v, short_v) + newest * x.square()
    signs.copy_(packed(m > 0, signs))
    for moment, long, short in ((m.abs(), long_m, short_m), (v, long_v, short_v)):
        long.copy_(moment.sum(1))
        short.copy_(moment.sum(0) / moment.sum().clamp_min(torch.finfo(moment.dtype).tiny))
    return (m / (v.sqrt() + eps)).reshape(g.shape)

def packed(bits, like):
    """Returns 16 bits in each number. fp32 holds such a number without rounding."""
    padded = torch.nn.functional.pad(bits.flatten().to(like), (0, -bits.numel() % 16))
    return (padded.reshape(-1, 16) * places(like)).sum(1)

def unpacked(signs, like):
    """Undoes packed. Returns 1 for a bit that is set and -1 for one that is not, in the shape of `like`."""
    bits = (signs[:, None] / places(signs)).floor() % 2
    return (2 * bits - 1).flatten()[:like.numel()].reshape(like.shape)

def places(like):
    """Returns 1, 2, 4, ... 32768, the values of 16 bits."""
    return like.new_full((16,), 2.0).cumprod(0) / 2

# ---------------------------------------------------------------------------------------------------------
# A part of the weights at a time

def badam(g, m, v, w, t, lr, decay, layer, *, beta1=0.9, beta2=0.999, eps=1e-8, layers=0, switch_steps=10):
    """BAdam trains one layer at a time with Adam. After switch_steps steps it goes on to the next one.
        block = (t - 1) // switch_steps mod (layers + 2),  k = (t - 1) mod switch_steps + 1
        If the tensor's layer is not block:  m <- 0;  v <- 0, and the weight stays as it is, without decay
        If it is, Adam from its start at step k:
            m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2           m and v are 0 before k = 1
            u  = m_hat / (sqrt(v_hat) + eps)        m_hat = m / (1 - b1^k),  v_hat = v / (1 - b2^k)

    Remembers  m and v of the layer that moves. In this form all tensors keep room for them, 8 bytes per
               weight, so it shows what the rule does and saves no memory.
    Moves      each weight of one layer by about lr where its gradients agree, and no other weight.
    lr         is in weight, as Adam's lr is. Typical 3e-3, Adam's. The authors only train further what
               others have trained, and use 1e-6 ... 1e-5.
    Defaults   are Adam's of PyTorch, as in the authors' code. Its switch_steps is 50, and 100 in its examples
               for fine-tuning. A new model needs many rounds, so it is 10 here. The trainer passes --layers
               as `layers`. With 0, all tensors are one block, which is Adam that starts anew every
               switch_steps steps.
    For        every tensor. The embedding is the first block and the head, with the last norm, is the last
               one, so the head stands still for switch_steps (layers + 1) steps. The authors leave both
               untrained by default, which a new model cannot afford. Their order descends by default, and is
               drawn anew for each round in their examples. Here it ascends, which is an option of theirs. In
               their code the very first block has one step less than all others.
    Source     Luo, Yu, Li (2024), arXiv 2404.02827."""
    turn = torch.floor((t - 1) / switch_steps)
    k = t - turn * switch_steps
    moves = (layer.clamp(max=layers + 1) == turn % (layers + 2)) | (layers == 0)
    keep, new = (moves & (k > 1)).to(t), moves.to(t)
    m.mul_(keep * beta1).add_(new * (1 - beta1) * g)
    v.mul_(keep * beta2).add_(new * (1 - beta2) * g.square())
    u = hat(m, beta1, k) / (hat(v, beta2, k).sqrt() + eps)
    old = w.to(u.dtype)
    return torch.where(moves, u, update_to(old, old, decay, lr))

RULES = {
    "slim_adam": ZooRule(slim_adam),
    "adalomo":   ZooRule(adalomo, lr_factor=10 / 3),
    "smmf":      ZooRule(smmf, bounds=dict(growth=(0, math.nextafter(1, 2)))),
    "badam":     ZooRule(badam, from_run=("layers",), elementwise=True,
                         bounds=dict(switch_steps=AT_LEAST_ONE)),
}
