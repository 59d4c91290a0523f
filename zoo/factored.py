"""
Rules with less state than Adam's. Many weights share a second moment.

Read adafactor and adalayer in optim.py first.
"""
import torch

from optim import hat, mean_to, per_column, per_row
from zoo.rule import BELOW_ONE, ZooRule

def row_or_all(w, blocks):
    """Makes one number for each row of a matrix, (rows, 1), and one number for each weight of a vector."""
    return per_row(w, blocks) if w.dim() > 1 else w.new_zeros(w.shape)

def came(g, m, rows: row_or_all, columns: per_column, rows2: row_or_all, columns2: per_column, *, beta1=0.9,
         beta2=0.95, beta3=0.995, tiny=1e-30, eps=1e-16, clip_rms=1.0):
    """CAME is Adafactor with momentum. It trusts a step less where the step differs from earlier ones.
        rows, columns   <- running means of g^2 + tiny over rows and columns, with b2
        n                = g / sqrt((rows / mean(rows)) columns), scaled down to an rms of at most clip_rms
        m               <- b1 m + (1 - b1) n
        rows2, columns2 <- running means of (n - m)^2 + eps over rows and columns, with b3
        u                = m / sqrt((rows2 / mean(rows2)) columns2)

    If the tensor is a vector, rows holds the running mean of each g^2, and u = m.

    Remembers  m, 4 bytes per weight, and two numbers per row and two per column.
    Moves      a weight as Adam does where n - m is as large as n. Nothing is corrected for its start at 0.
               So the first step is 1.6 times as long as Adam's. With b2 0.999 and b3 0.9999 it is 11 times as
               long. There, on gradients that are noise, step 100 is still 2.5 times lr and step 1,000 is 0.8.
    lr         is in weight, as Adam's lr is. Typical 2e-3. The authors advise 0.5 ... 0.9 of Adam's.
    Defaults   are the authors' for LLaMA at 1b. Their paper uses b2 0.999 and b3 0.9999 for BERT.
    For        every tensor. The fused q, k, v are one matrix, as for Adafactor. A tensor of three axes or
               more is a matrix of its first axis by all others. The authors' code takes its means over the
               last axis and over the one before.
    Source     Luo et al. (2023), arXiv 2307.02047."""
    square = g.square() + tiny
    rows.lerp_(mean_to(square, rows), 1 - beta2)
    columns.lerp_(mean_to(square, columns), 1 - beta2)
    n = g * inverse_root(rows, columns)
    n = n / (n.square().mean().sqrt() / clip_rms).clamp_min(1.0)
    m.lerp_(n, 1 - beta1)
    strayed = (n - m).square() + eps
    rows2.lerp_(mean_to(strayed, rows2), 1 - beta3)
    columns2.lerp_(mean_to(strayed, columns2), 1 - beta3)
    return m * inverse_root(rows2, columns2) if g.dim() > 1 else m

def inverse_root(rows, columns):
    """Returns 1 / sqrt((rows / mean(rows)) columns).

    If the tensor is a vector, rows holds everything, and the result is 1 / sqrt(rows)."""
    return (rows / rows.mean()).rsqrt() * columns.rsqrt() if rows.dim() > 1 else rows.rsqrt()

def adam_mini(g, m, v: per_row, t, role, *, beta1=0.9, beta2=0.95, eps=1e-15, heads=1):
    """Adam-mini is Adalayer with the blocks of the Hessian. A block is a head of the queries or of the
    keys, a row of any other matrix, or a whole vector.
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) mean of g^2 over the block
        u  = m_hat / (sqrt(v_hat) + eps)      m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)

    Remembers  m, 4 bytes per weight, and one v per row, which is the same in all rows of a head.
    Moves      a block by about lr (root mean square), each weight in proportion to its mean gradient.
    lr         is in weight, as Adam's lr is. Typical 3e-3. The authors use 6e-4 for GPT-2, as for AdamW.
    Defaults   are Adam's here. For GPT-2 the authors use the same betas and eps 1e-8. heads is the number
               of attention heads, and the trainer passes --heads.
    For        every tensor. In embedding and head a row is a token. In other matrices a row is a neuron.
               The authors' code gives a bias plain Adam. The decoder here has no biases.
    Source     Zhang et al. (2024), arXiv 2406.16793. For short runs the authors also try one block for all
               the values of the attention."""
    square = mean_to(g.square(), v)
    if role == "qkv" and g.dim() > 1:
        both = square[:2 * len(square) // 3].reshape(2 * heads, -1)
        both = both.mean(1, keepdim=True).expand_as(both).reshape(-1, 1)
        square = torch.cat((both, square[len(both):]))
    m.lerp_(g, 1 - beta1)
    v.lerp_(square, 1 - beta2)
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)

def adafactor_original(g, rows: row_or_all, columns: per_column, w, lr, t, *, exponent=0.8, tiny=1e-30,
                       clip_rms=1.0, smallest=1e-3):
    """The first Adafactor has no momentum. Its lr is a fraction of the tensor's size, and falls with time.
        rows, columns <- running means of g^2 + tiny over rows and columns, with b2(t) = 1 - t^-exponent
        n              = g / sqrt((rows / mean(rows)) columns), scaled down to an rms of at most clip_rms
        u              = n max(smallest, rms of w) min(1, 1 / (lr sqrt(t)))

    If the tensor is a vector, rows holds the running mean of each g^2.

    Remembers  one number per row and per column, and for a vector one number per weight.
    Moves      a tensor by at most lr times its own size, root mean square. A tensor of zeros counts as one of
               size `smallest`. With b2(1) = 0, nothing has to be corrected for its start at 0.
    lr         is a fraction of the tensor's size, so one lr suits all tensors. Typical 1e-2, the authors'.
               From t = 1 / lr^2 on, 1 / sqrt(t) takes its place: with 1e-2 after 10,000 steps.
    Defaults   are the authors'. In the paper lr is the constant 1e-2. As in torch's Adafactor it can have a
               schedule, and the decay is not multiplied by the tensor's size, as it is in transformers. tiny
               is added to g^2 as in the paper and in transformers. torch has lower bounds in its place: that
               on the mean of rows is 1e-7 in fp32, which is above the g^2 of a language model.
    For        every tensor. The fused q, k, v are one matrix. A tensor of three axes or more is a matrix of
               its first axis by all others.
    Source     Shazeer, Stern (2018), arXiv 1804.04235."""
    n = by_rows_and_columns(g, rows, columns, t, exponent, tiny, clip_rms)
    return n * (root_mean_square(w, smallest) / (lr * t.sqrt()).clamp_min(1.0))

def by_rows_and_columns(g, rows, columns, t, exponent, tiny, clip_rms):
    """Updates the running means of g^2 + tiny, in which the newest counts t^-exponent. Returns g, divided by
    the root of their product, and scaled down to a root mean square of at most clip_rms."""
    newest, square = t ** -exponent, g.square() + tiny
    rows.mul_(1 - newest).add_(newest * mean_to(square, rows))
    columns.mul_(1 - newest).add_(newest * mean_to(square, columns))
    n = g * inverse_root(rows, columns)
    return n / (n.square().mean().sqrt() / clip_rms).clamp_min(1.0)

def root_mean_square(w, smallest):
    """Returns the size of a tensor, and at least `smallest`."""
    return w.to(torch.promote_types(w.dtype, torch.float32)).square().mean().sqrt().clamp_min(smallest)

RULES = {
    "came":      ZooRule(came, lr_factor=0.7, bounds=dict(beta3=BELOW_ONE)),
    "adam_mini": ZooRule(adam_mini, second_moment="v", from_run=("heads",)),
    "adafactor_original": ZooRule(adafactor_original, lr_factor=10 / 3),
}
