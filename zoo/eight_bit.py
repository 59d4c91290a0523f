"""
Rules that keep their state in 8 bits per number. A block of numbers shares one number in fp32, its scale: the
largest size in the block. Each number is a code, which names one of 256 values between -scale and scale.
"""
import torch

from optim import hat
from zoo.orthogonal import matrices, orthogonal
from zoo.rule import AT_LEAST_ONE, ZooRule

def dynamic_map(signed):
    """Returns the 256 values of a code, for a scale of 1, in order. Small values lie closer together.

    Each power of ten has twice as many values as the power below it. With the sign there are 1, 2, ... 64
    of them, and 2, 4, ... 128 without. They are the middles of equal parts. 0 and 1 are values, too.
    Source     Dettmers, Lewis, Shleifer, Zettlemoyer (2021), arXiv 2110.02861."""
    parts = [(10.0 ** (i - 6), 2**i if signed else 2 ** (i + 1)) for i in range(7)]
    values = [power * (0.1 + 0.9 * (j + 0.5) / count) for power, count in parts for j in range(count)]
    return torch.tensor(sorted([-x for x in values if signed] + [0.0] + values + [1.0]), dtype=torch.float64)

SIGNED, UNSIGNED = dynamic_map(True), dynamic_map(False)
LINEAR = None    # code / 127, with a code from -127 to 127

def codes(w, blocks, *, block_size):
    """Makes a code of SIGNED or UNSIGNED for each weight. If they do not divide into blocks, it makes
    fp32."""
    return w.new_zeros(w.shape, dtype=torch.uint8 if w.numel() % block_size == 0 else w.dtype)

def linear_codes(w, blocks, *, block_size):
    """Makes codes of LINEAR, as codes() makes those of the other maps."""
    return w.new_zeros(w.shape, dtype=torch.int8 if w.numel() % block_size == 0 else w.dtype)

def scales(w, blocks, *, block_size):
    """Makes a number for each block of consecutive weights: (blocks, 1)."""
    return w.new_zeros(w.numel() // block_size if w.numel() % block_size == 0 else 0, 1)

def decoded(x, scale, values):
    """Returns the numbers that the codes x stand for. values: SIGNED, UNSIGNED or LINEAR."""
    if x.is_floating_point():
        return x
    def value(code):
        if values is None:
            return code.to(scale.dtype) / 127
        return values.to(scale.dtype).to(code.device)[code.int()]
    return (on_each_device(value, x).reshape(len(scale), -1) * scale).reshape(x.shape)

def encode(x, numbers, scale, values):
    """Writes the codes of numbers into x, and their scales into scale. A code is that of the nearest
    value."""
    if x.is_floating_point():
        x.copy_(numbers)
        return
    def nearest(y):
        if values is None:
            return (127 * y).round()
        middles = ((values[1:] + values[:-1]) / 2).to(y.dtype).to(y.device)
        return torch.bucketize(y, middles, right=True)
    in_blocks = numbers.reshape(len(scale), -1)
    scale.copy_(in_blocks.abs().amax(1, keepdim=True))
    y = in_blocks / scale.clamp_min(torch.finfo(scale.dtype).tiny)
    x.copy_(on_each_device(nearest, y).reshape(x.shape))

def on_each_device(function, x):
    """Applies a function of single numbers to a tensor, or to each device's part of a tensor of FSDP2."""
    if not hasattr(x, "device_mesh"):
        return function(x)
    from torch.distributed.tensor import DTensor
    return DTensor.from_local(function(x.to_local()), x.device_mesh, x.placements, shape=x.shape,
                              stride=x.stride())

def adamw_8bit(g, m: codes, v: codes, m_scale: scales, v_scale: scales, t, *, beta1=0.9, beta2=0.95, eps=1e-8,
               block_size=256):
    """8-bit Adam is Adam that remembers m and v in 8 bits, with one scale for each block of 256 weights.
        m' = b1 decoded(m) + (1 - b1) g
        v' = b2 decoded(v) + (1 - b2) g^2
        u  = m'_hat / (sqrt(v'_hat) + eps)
        m <- encoded(m');  v <- encoded(v')

    Remembers  m and v as codes, 2 bytes per weight, and two scales per block. A quarter of Adam's 8 bytes.
    Moves      each weight as Adam does, but for the rounding of m and v. It changes m by at most 0.7 % of the
               largest m in the block, and v by at most 0.4 % of the largest v.
    Jumps      where v is below 1.6e-7 of the block's largest. Then its code is 0, while that of m may not be.
               If the next gradient is 0, only eps limits the step. So eps is not as small as adamw's.
    lr         is how far each weight moves in a step if its gradients agree. Typical 3e-3, Adam's.
    Defaults   beta1 0.9, beta2 0.95 as for adamw here. eps 1e-8 is the authors'. So are, in bitsandbytes,
               blocks of 256; the paper has 2,048.
    For        all matrices but the embedding. AdamW trains embedding and norms, in 32 bits, as the authors
               advise. A tensor that does not divide into blocks is in 32 bits, too.
    Source     Dettmers, Lewis, Shleifer, Zettlemoyer (2021), arXiv 2110.02861."""
    new_m = decoded(m, m_scale, SIGNED).lerp(g, 1 - beta1)
    new_v = decoded(v, v_scale, UNSIGNED).lerp(g.square(), 1 - beta2)
    encode(m, new_m, m_scale, SIGNED)
    encode(v, new_v, v_scale, UNSIGNED)
    return hat(new_m, beta1, t) / (hat(new_v, beta2, t).sqrt() + eps)

def muon_8bit(g, m: linear_codes, m_scale: scales, blocks, *, beta1=0.95, block_size=2048):
    """8-bit Muon is Muon that remembers m in 8 bits. Values at equal distances are good enough for it.
        m' = b1 decoded(m) + (1 - b1) g
        u  = sqrt(max(1, rows / columns)) orthogonal(b1 m' + (1 - b1) g)
        m <- encoded(m')

    Remembers  m as codes, 1 byte per weight, and one scale for each block of 2,048 weights. A quarter of
               Muon's 4 bytes.
    Moves      a matrix as Muon does. A number below 1/254 of its block's largest is forgotten.
    lr         is Muon's. Typical 2e-2.
    Defaults   are Muon's. The blocks are the authors'. They have the sum m <- b1 m + g, which gives the same
               codes, and the factor 0.2 sqrt(max(rows, columns)), which suits Adam's lr. Not verified against
               published code.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr. A matrix that does
               not divide into blocks is in 32 bits.
    Source     Gupta et al. (2025), arXiv 2509.23106."""
    new_m = decoded(m, m_scale, LINEAR).lerp(g, 1 - beta1)
    encode(m, new_m, m_scale, LINEAR)
    o = orthogonal(matrices(g.lerp(new_m, beta1), blocks))
    return max(1, o.shape[1] / o.shape[2]) ** 0.5 * o.reshape(g.shape)

RULES = {
    "adamw_8bit": ZooRule(adamw_8bit, roles="qkv+matrix+head", rest="adamw",
                          bounds=dict(block_size=AT_LEAST_ONE)),
    "muon_8bit":  ZooRule(muon_8bit, lr_factor=7, roles="qkv+matrix", rest="adamw", stacks=True,
                          bounds=dict(block_size=AT_LEAST_ONE)),
}
