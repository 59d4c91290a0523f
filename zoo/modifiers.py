"""
Changes of a line or two that go with most rules, as in --modify=cautious+cautious_decay.

Each function returns a new value for its first argument. That is the gradient g, the update u, or the factor
`decay` that multiplies the weights.
"""
import torch

from optim import scalar
from zoo.rule import AT_LEAST_ONE, BELOW_ONE, Modifier, taken_by_decay

def cautious(u, g):
    """Cautious drops the part of an update that the newest gradient disagrees with, and enlarges the rest.
        k = 1 where u g > 0, else 0
        u = u k / max(mean(k), 0.001)

    Remembers  nothing.
    For        every tensor and every rule, at the rule's lr.
    Source     Liang et al. (2024), arXiv 2411.16085, in the form of its AdamW. Its Lion is the
               modifier cautious_lion, and its Muon is the rule cautious_muon."""
    k = (u * g > 0).to(u)
    return u * (k / k.mean().clamp_min(1e-3))

def cautious_decay(decay, u, w):
    """Cautious Weight Decay shrinks only weights that the update shrinks, too.
        decay = decay where u w >= 0, else 1

    Remembers  nothing.
    For        every tensor and every rule, with a weight decay.
    Source     Chen et al. (2025), arXiv 2510.12402."""
    return 1 - (1 - decay) * (u * w >= 0).to(u)

def adagc(g, adagc_norm: scalar, norm, t, *, adagc_beta=0.98, adagc_start=1.0, adagc_growth=1.05,
          adagc_warmup_steps=100, adagc_eps=1e-8):
    """AdaGC clips each tensor by the usual norm of its own gradient. It replaces --clip, so give --clip=0
    with it. Otherwise it sees only gradients that are already clipped.
        t < warmup_steps    g = g min(1, start / norm of all gradients);  usual <- min(usual, |g|)
        afterwards          g = g min(1, growth usual / |g|);  usual <- b usual + (1 - b) |g|

    The first step always belongs to the warmup, and there usual becomes |g|.

    Remembers  the usual norm: one number per tensor.
    Freezes    a tensor whose gradient is zero in a step of the warmup, as published. Then usual is 0 at the
               end of the warmup, and grows from adagc_eps by 0.1 % a step: for some 16,000 steps.
    For        every tensor and every rule, at the rule's lr.
    Source     Wang et al. (2025), arXiv 2502.11034."""
    own, warm = g.norm(), (t < max(adagc_warmup_steps, 2)).to(g)
    early = (adagc_start / (norm + adagc_eps)).clamp_max(1.0)
    late = (adagc_growth * adagc_norm.clamp_min(adagc_eps) / own.clamp_min(adagc_eps)).clamp_max(1.0)
    g = g * (warm * early + (1 - warm) * late)
    lowest = torch.minimum(g.norm(), adagc_norm + (t == 1).to(g) * g.norm())
    usual = adagc_beta * adagc_norm + (1 - adagc_beta) * g.norm()
    adagc_norm.copy_(warm * lowest + (1 - warm) * usual)
    return g

def trust_ratio(u, w, decay, lr):
    """LAMB's trust ratio moves a tensor by lr times the size of the tensor. So lr has another unit and
    needs another value: it is a fraction of the tensor's norm. LAMB is AdamW with this modifier, beta2
    0.999 and eps 1e-6.
        d = (1 - decay) / lr w                with coupled decay this is weight_decay * w
        u = |w| / |u + d| (u + d) - d         the ratio is 1 if one of the norms is 0

    Remembers  nothing.
    For        every tensor and every rule. It comes after all modifiers but blockwise_lr and lookahead.
    Source     You et al. (2019), arXiv 1904.00962. The ratio is from LARS, You et al. (2017),
               arXiv 1708.03888."""
    d = taken_by_decay(w, decay, lr)
    size, step = w.to(u.dtype).norm(), (u + d).norm()
    ratio = torch.where((size > 0) & (step > 0), size / step, 1.0)
    return ratio * (u + d) - d

def l2(g, w, *, l2_strength=1e-4):
    """L2 regularisation adds the gradient of strength / 2 w^2, as if it were in the loss. It was the weight
    decay of Adam before AdamW. It goes through the rule: Adam divides it by the root of v, so weights with
    large gradients hardly shrink. The option --weight_decay multiplies all weights by the same factor.
        g = g + strength w

    Remembers  nothing.
    Moves      weights also where the gradient is 0.
    Defaults   strength 1e-4 is usual for SGD and images, as in arXiv 1512.03385. In SGD without momentum, L2
               is the same as the coupled weight decay of that value. torch's Adam calls it weight_decay.
    For        every tensor and every rule, at the rule's lr. --clip sees the gradient without it.
    Source     Loshchilov, Hutter (2017), arXiv 1711.05101, which tells the two apart."""
    return g + l2_strength * w.to(g.dtype)

def blockwise_lr(u, w, decay, lr, role, *, blockwise_lr_norm=1.0, blockwise_lr_vo=4.0, blockwise_lr_ffn=6.0,
                 blockwise_lr_qk=8.0, blockwise_lr_embed=10.0, blockwise_lr_head=1.0):
    """Blockwise LR gives each kind of tensor a multiple of the lr, a larger one where the loss is flatter.
        d = (1 - decay) / lr w                with coupled decay this is weight_decay * w
        u = k (u + d) - d                     so the decay is multiplied, too, as in a group with lr k

        k = 1 for norms, 4 for V and the output of attention, 6 for the MLP, 8 for Q and K, 10 for the
        embedding, 1 for the head

    Q, K and V are the three thirds of the fused tensor. A tensor without a role keeps its lr.

    Remembers  nothing.
    For        every tensor and every rule, at the lr that is best without it. Only lookahead comes after
               it. Name it after trust_ratio, which would undo it. The authors have tuned k for AdamW,
               and use it for Adam-mini and Lion, too. Their paper does not name the head. If it is tied to
               the embedding, it has the embedding's k. Otherwise their code leaves it at the base lr. Their
               schedule ends at the same lr for all tensors. Here the schedule multiplies all alike.
    Source     Wang et al. (2025), arXiv 2502.19002."""
    d = taken_by_decay(w, decay, lr)
    if role == "qkv":
        both = 2 * len(u) // 3
        return torch.cat((blockwise_lr_qk * (u + d)[:both], blockwise_lr_vo * (u + d)[both:])) - d
    k = dict(norm=blockwise_lr_norm, attn_out=blockwise_lr_vo, mlp_up=blockwise_lr_ffn,
             mlp_down=blockwise_lr_ffn, embed=blockwise_lr_embed, head=blockwise_lr_head).get(role, 1.0)
    return k * (u + d) - d

MODIFIERS = {
    "cautious":       Modifier(cautious, changes="u"),
    "cautious_decay": Modifier(cautious_decay, changes="decay", elementwise=True),
    "adagc":          Modifier(adagc, changes="g", bounds=dict(adagc_beta=BELOW_ONE,
                                                               adagc_warmup_steps=AT_LEAST_ONE)),
    "trust_ratio":    Modifier(trust_ratio, changes="u", last=2, whole=True),
    "l2":             Modifier(l2, changes="g", elementwise=True),
    "blockwise_lr":   Modifier(blockwise_lr, changes="u", last=2, whole=True),
}
