"""
More changes that go with most rules. Many are parts of larger optimizers, such as MARS, Lookahead or Ranger21
(Wright, Demeure, 2021, arXiv 2106.13731). Here each part stands by itself.

Read zoo/modifiers.py first.
"""
import torch

from optim import hat, scalar
from zoo.rule import AT_LEAST_ONE, BELOW_ONE, Modifier, update_to

def norms_of_rows(x):    # one norm for each row of a matrix: (rows, 1); a single norm for a vector: ()
    return x.norm(dim=tuple(range(1, x.dim())), keepdim=True) if x.dim() > 1 else x.norm()

def by_matrix(x, blocks, role):    # one row for each matrix. A row may be a block; then role says what x is
    matrices = 3 if role == "qkv" else 1
    return x.reshape(matrices if x.dim() == 2 and len(x) == blocks else blocks, -1)

# ---- Changes of the gradient ----------------------------------------------------------------------------

def agc(g, w, role, *, agc_clip=0.01, agc_eps=1e-3):
    """AGC, adaptive gradient clipping, clips each row of the gradient by the norm of that row of the weights.
    It replaces --clip, so give --clip=0 with it. Otherwise it sees only gradients that are already clipped.
        g = g min(1, clip max(|w|, eps) / |g|)        |.| is the norm of a row; a vector is one row

    Remembers  nothing.
    Defaults   clip 0.01 is the authors' for large batches of images. eps lets weights that start at 0 move.
    For        all tensors but the output head, which the authors leave out, and every rule, at the rule's lr.
    Source     Brock, De, Smith, Simonyan (2021), arXiv 2102.06171."""
    if role == "head":
        return g
    most = agc_clip * norms_of_rows(w.to(g.dtype)).clamp_min(agc_eps)
    return g * (most / norms_of_rows(g).clamp_min(1e-30)).clamp_max(1.0)

def centralize(g):
    """Gradient centralisation takes the mean of each row away from the gradient of a matrix.
        g = g - mean of g over its row                a vector stays as it is

    So the sum of a row of weights stays what it was at the start, if there is no weight decay and the rule
    treats all weights of a row alike, as SGD does.

    Remembers  nothing.
    For        all matrices and every rule, at the rule's lr.
    Source     Yong, Huang, Hua, Zhang (2020), arXiv 2004.01461."""
    return g - g.mean(dim=tuple(range(1, g.dim())), keepdim=True) if g.dim() > 1 else g

def mars_g(g, mars_g_last, *, mars_g_gamma=0.025, mars_g_beta=0.95):
    """MARS adds a part of the gradient's last change to it, to reduce noise. Then any rule may follow.
        c     = g + gamma b / (1 - b) (g - last);  last <- g
        g     = c / max(1, |c|)                       |.| is the norm of the tensor

    adamw with it, beta1 0.95, beta2 0.99 and eps 1e-8 does to matrices what the rule mars does. signum with
    it and beta1 0.95 is MARS-Lion.

    Remembers  last, a copy of the gradient: 4 bytes per weight.
    Defaults   are the authors'. b is their beta1. Give the rule's own beta1 the same value, as they do.
               Before the first step last is 0, as in their code.
    For        every tensor and every rule, at the rule's lr. The authors leave out vectors.
    Source     Yuan et al. (2024), arXiv 2411.10438. This is their approximate form, which does not compute
               a second gradient at the old weights."""
    c = g + mars_g_gamma * mars_g_beta / (1 - mars_g_beta) * (g - mars_g_last)
    mars_g_last.copy_(g)
    return c / c.norm().clamp_min(1.0)

def positive_negative(g, positive_negative_odd, positive_negative_even, t, *, positive_negative_beta=0.9,
                      positive_negative_mix=1.0):
    """Positive-negative momentum keeps a mean of the odd steps' gradients and one of the even steps', adds
    more of the newer one, and takes the older one away. This enlarges the noise of the steps on purpose.
        new <- b^2 new + (1 - b^2) g                  new is odd in odd steps, and even in even steps
        g    = ((1 + mix) new - mix old) / sqrt((1 + mix)^2 + mix^2)

    Remembers  both means: 8 bytes per weight.
    Defaults   are the authors'. The modifier is a momentum, so give the rule --beta1=0. With it, sgd is PNM.
               adamw does not become AdaPNM, where v sees the gradient itself.
    For        every tensor and every rule, at the rule's lr.
    Source     Xie, Yuan, Zhu, Sugiyama (2021), arXiv 2103.17182."""
    odd, even = positive_negative_odd, positive_negative_even
    is_odd = (t % 2 == 1).to(g)
    keep = positive_negative_beta**2
    odd.lerp_(g, is_odd * (1 - keep))
    even.lerp_(g, (1 - is_odd) * (1 - keep))
    mix = positive_negative_mix
    new, old = is_odd * odd + (1 - is_odd) * even, is_odd * even + (1 - is_odd) * odd
    return ((1 + mix) * new - mix * old) / ((1 + mix) ** 2 + mix**2) ** 0.5

# ---- Changes of the update ------------------------------------------------------------------------------

def cautious_lion(u, g):
    """This is Cautious as its authors apply it to Lion: it enlarges what remains a little less.
        k = 1 where u g > 0, else 0
        u = u k n / (sum(k) + 1)                      n is how many weights the tensor has

    Remembers  nothing.
    For        every tensor and every rule, at the rule's lr. For large tensors it is the modifier cautious.
    Source     Liang et al. (2024), arXiv 2411.16085, in the form of its Lion and its Adafactor."""
    k = (u * g > 0).to(u)
    return u * (k * (k.numel() / (k.sum() + 1)))

def mgup(u, g, *, mgup_share=0.5, mgup_up=2.0, mgup_down=0.1):
    """MGUP enlarges the half of an update that agrees most with the newest gradient, and reduces the rest.
        u = up u    where u g is among the largest, a share of the tensor;    otherwise u = down u

    Remembers  nothing.
    Defaults   are those of the authors' code. In the paper, up is 1 / share and down is share, that is 2 and
               0.5. For an lr that is already tuned they advise up 1.0 ... 1.5 and down 0.5 ... 1.0.
    For        every tensor and every rule, at the rule's lr. Of weights that tie for the last place, such as
               those with a gradient of 0, all belong to the upper share. The authors' Muon compares with the
               momentum before it makes the momentum orthogonal. Here u g decides, as in their AdamW and Lion.
    Source     Chang, Yuan (2025), NeurIPS. arXiv 2606.17526, where it stands since 2026."""
    agreement = u * g
    least = agreement.flatten().topk(max(1, int(mgup_share * g.numel()))).values[-1]
    return torch.where(agreement >= least, mgup_up * u, mgup_down * u)

def update_floor(u, w, blocks, role, *, update_floor_ratio=0.35):
    """A floor under the update keeps a matrix from slowing down while it grows: before lr, the norm of the
    update is at least a share of the norm of the weights.
        u = u max(1, ratio |w| / |u|)                 |.| is the norm of the matrix; of q, k, v each

    It does what a weight decay does to the relative size of steps, so it needs little decay or none.

    Remembers  nothing.
    Defaults   ratio 0.35 is the authors', for Muon at lr 0.0375.
    For        hidden matrices and every rule, at the rule's lr. It leaves embedding, head and vectors alone.
    Source     kumarkrishna (2026), "Skylight-001", a record of github.com/KellerJordan/modded-nanogpt (pull
               request 274), where it follows a form of NorMuon."""
    if w.dim() < 2 or role in ("embed", "head"):
        return u
    step = by_matrix(u, blocks, role)
    size = by_matrix(w.to(u.dtype), blocks, role).norm(dim=1, keepdim=True).clamp_min(1e-8)
    factor = update_floor_ratio * size / step.norm(dim=1, keepdim=True).clamp_min(1e-8)
    return (step * factor.clamp_min(1.0)).reshape(u.shape)

def norm_loss(u, w, decay, *, norm_loss_factor=1e-4):
    """Norm loss pulls each row of weights to the norm 1, where a weight decay would pull it to 0. It does so
    without any gradient, too, and in steps in which a rule only measures.
        u = u + 2 factor (1 - 1 / |x|) x      x = decay w;  |.| is the norm of a row; a vector is one row

    The pull is the gradient of factor (1 - |x|)^2, summed over all rows.

    Remembers  nothing.
    Defaults   factor 1e-4 is that of Ranger21, which keeps the pull apart from the gradient, as here. In the
               paper it is a part of the gradient.
    For        every tensor and every rule, at the rule's lr.
    Source     Georgiou, Schmitt, Bäck, Chen, Lew (2021), arXiv 2103.06583; this form: arXiv 2106.13731."""
    x = decay * w.to(u.dtype)
    return u + 2 * norm_loss_factor * (1 - 1 / norms_of_rows(x).clamp_min(1e-8)) * x

def hyperball(u, w, decay, lr, blocks, role):
    """Hyperball keeps the norm of each matrix at what it was at the start, and gives all updates that norm.
        u   = R u / |u|                               R = |w|, the norm of the matrix; of q, k, v each
        new = R (w - lr u) / |w - lr u|

    So lr has another unit: it is about the angle of a step, in radians. A weight decay has no effect.

    Remembers  nothing. The norm of the weights is their memory.
    Freezes    a matrix that starts at 0.
    For        all matrices but the embedding, and every rule. Modifiers that would change the norm again,
               such as lookahead, are refused, and so is update_floor, which it would undo. Embedding and
               vectors move as the rule says. They need another lr, as in --lr_of=embed:0.3,norm:0.3. For
               Muon the authors take 0.018.
    Source     Wen, Dang, Lyu, Ma, Liang (2026), arXiv 2606.16899."""
    if w.dim() < 2 or role == "embed":
        return u
    x, step = by_matrix(w.to(u.dtype), blocks, role), by_matrix(u, blocks, role)
    size = x.norm(dim=1, keepdim=True)
    new = x - lr * (size / step.norm(dim=1, keepdim=True).clamp_min(1e-10)) * step
    new = new * (size / new.norm(dim=1, keepdim=True).clamp_min(1e-10))
    return update_to(new.reshape(w.shape), w, decay, lr)

def lookahead(u, w, lookahead_slow, decay, lr, t, *, lookahead_steps=5, lookahead_alpha=0.5):
    """Lookahead lets the rule run ahead for five steps. Then it returns half of the way to where it began.
        fast = decay w - lr u
        every fifth step    new = slow + alpha (fast - slow);  slow <- new
        otherwise           new = fast

    Such a step takes back half of what the decay has done to the weights, too. With an lr of exactly 0 no
    weight returns.

    Remembers  slow, which starts as a copy of the weights: 4 bytes per weight.
    Defaults   are those of most code, Ranger21's among it.
    For        every tensor and every rule, at the rule's lr. It comes after all other modifiers.
    Source     Zhang, Lucas, Hinton, Ba (2019), arXiv 1907.08610."""
    start = w.to(u.dtype)
    fast = decay * start - lr * u
    slow = torch.where(t == 1, start, lookahead_slow)
    returns = t % lookahead_steps == 0
    back = slow + lookahead_alpha * (fast - slow)
    lookahead_slow.copy_(torch.where(returns, back, slow))
    return torch.where(returns, update_to(back, w, decay, lr), u)

# ---- Changes of the decay -------------------------------------------------------------------------------

def stable_decay(decay, g2, stable_decay_v: scalar, t, *, stable_decay_beta=0.999):
    """Stable weight decay divides the decay by the size of gradients, as Adam does with its steps.
        v    <- b v + (1 - b) mean of g^2 over all weights of the group
        decay = 1 - (1 - decay) / sqrt(v_hat)         v_hat = v / (1 - b^t)

    Gradients of a language model are small. If their root mean square is 1e-4, a weight decay acts as one of
    10,000 times its value, so it needs a much smaller one.

    Remembers  v, which is the same number for all tensors of the group.
    Defaults   b is the authors' beta2 of Adam. Give the rule the same beta2, as they do. Their mean is over
               all groups. Here a hybrid has one mean for each of its rules.
    For        every tensor and every rule, with a weight decay. Without any gradient there is no decay.
    Source     Xie, Sato, Sugiyama (2020), arXiv 2011.11152, in the form of its AdamS."""
    stable_decay_v.lerp_(g2, 1 - stable_decay_beta)
    size = hat(stable_decay_v, stable_decay_beta, t).sqrt()
    return 1 - torch.where(size > 0, (1 - decay) / size, 0.0)

MODIFIERS = {
    "agc":               Modifier(agc, changes="g"),
    "centralize":        Modifier(centralize, changes="g"),
    "mars_g":            Modifier(mars_g, changes="g", bounds=dict(mars_g_beta=BELOW_ONE)),
    "positive_negative": Modifier(positive_negative, changes="g", elementwise=True,
                                  bounds=dict(positive_negative_beta=BELOW_ONE)),
    "cautious_lion":     Modifier(cautious_lion, changes="u"),
    "mgup":              Modifier(mgup, changes="u", bounds=dict(mgup_share=BELOW_ONE)),
    "update_floor":      Modifier(update_floor, changes="u", scales=True),
    "norm_loss":         Modifier(norm_loss, changes="u", last=1),
    "hyperball":         Modifier(hyperball, changes="u", last=2, alone=True),
    "lookahead":         Modifier(lookahead, changes="u", last=3, whole=True, elementwise=True,
                                  bounds=dict(lookahead_steps=AT_LEAST_ONE)),
    "stable_decay":      Modifier(stable_decay, changes="decay", elementwise=True,
                                  bounds=dict(stable_decay_beta=BELOW_ONE)),
}
