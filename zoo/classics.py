"""
The baselines that textbooks and courses teach. Most are older than Adam. The others change little of it.

Read sgd, signum and adamw in optim.py first. What adamw's docstring says about eps, m_hat and the unit of lr
also holds here.
"""
import torch

from optim import hat, power, scalar
from zoo.rule import AT_LEAST_ONE, BELOW_ONE, ZooRule

# ---- Without a second moment ----------------------------------------------------------------------------

def nesterov(g, m, *, beta1=0.98):
    """Nesterov's momentum is heavy-ball SGD that counts the newest gradient once more, as if it were already
    one step ahead.
        m <- b1 m + g
        u  = g + b1 m

    Remembers  m, the decaying sum of gradients: 4 bytes per weight.
    Moves      each weight in proportion to its gradient. A steady g moves it by lr g / (1 - b1) a step, as in
               sgd. The newest gradient alone moves it by (1 + b1) lr g at once, where sgd moves it by lr g.
    lr         is in weight per unit of gradient, and is that of sgd. Typical 1.0.
    Defaults   beta1 0.98 is sgd's here, so that the two rules differ in one line. torch has no default, and
               courses teach 0.9. With 0.9, lr must be five times as large.
    For        every tensor.
    Source     Nesterov (1983), "A method for solving the convex programming problem with convergence rate
               O(1/k^2)". This is torch's form of it, which evaluates the gradient at w itself."""
    m.mul_(beta1).add_(g)
    return g + beta1 * m

def sign_sgd(g):
    """SignSGD takes the sign of the newest gradient alone. It is Signum without momentum.
        u = sign(g)

    Remembers  nothing.
    Moves      every weight by exactly lr, and not at all where g is 0.
    lr         is how far each weight moves in a step. It is Signum's. Typical 3e-4.
    Defaults   There are none.
    For        every tensor.
    Source     Bernstein, Wang, Azizzadenesheli, Anandkumar (2018), arXiv 1802.04434."""
    return g.sign()

def ones(w, blocks):
    """Makes state that starts at 1."""
    return torch.ones_like(w, memory_format=torch.contiguous_format)

def rprop(g, last, size: ones, *, shrink=0.5, grow=1.2, smallest=1e-4, largest=5000.0):
    """Rprop gives each weight a step size of its own, which grows while the gradient keeps its sign. Where
    the sign changes, the step size shrinks, and the weight rests for one step.
        turn  = sign(g) last
        size <- clamp(size * (grow if turn > 0, shrink if turn < 0, else 1), smallest, largest)
        last <- sign(g), but 0 where turn < 0
        u     = last * size

    Remembers  last, the sign of the last gradient, and size: 8 bytes per weight.
    Moves      every weight by lr in the first step, however small its gradient is. Later steps are between
               smallest lr and largest lr.
    lr         is the length of the first step, and the unit of all step sizes. Typical 1e-3. A schedule
               scales all steps. In torch, lr is the length of the first step and nothing else.
    Defaults   are torch's. Its step sizes lie between 1e-6 and 50, which is 1e-4 and 5000 times its lr of
               1e-2. No values that were tuned for language models are known.
    For        every tensor, and gradients of the whole data. On the gradients of small batches, signs change
               by chance in half of the steps, and then step sizes shrink to the smallest.
    Source     Riedmiller, Braun (1993), "A direct adaptive method for faster backpropagation learning: the
               RPROP algorithm". This is torch's form. It is iRprop- of Igel, Hüsken (2000), which never
               takes back a step, as the rule of 1993 does."""
    turn = g.sign() * last    # of signs, because a product of two small gradients may round to 0
    new = torch.where(turn > 0, grow * size, torch.where(turn < 0, shrink * size, size))
    size.copy_(new.clamp(smallest, largest))
    last.copy_(torch.where(turn < 0, 0.0, g.sign()))
    return last * size

# ---- With a second moment, and without momentum ---------------------------------------------------------

def adagrad(g, v, *, eps=1e-10):
    """Adagrad divides each gradient by the root of the sum of all squares so far. So step sizes only ever
    shrink.
        v <- v + g^2
        u  = g / (sqrt(v) + eps)

    Remembers  v, the sum of g^2: 4 bytes per weight.
    Moves      each weight by lr in its first step, and by about lr / sqrt(t) in step t. A weight whose
               gradient is rarely other than 0, such as that of a rare token, keeps its long steps.
    lr         is the length of the first step in weight. Typical 1e-2. It is torch's default.
    Defaults   are torch's, without its lr_decay, which is 0 there.
    For        every tensor.
    Source     Duchi, Hazan, Singer (2011), "Adaptive subgradient methods for online learning and stochastic
               optimization"."""
    v.add_(g.square())
    return g / (v.sqrt() + eps)

def rmsprop(g, v, *, beta2=0.99, eps=1e-8):
    """RMSprop is Adagrad that forgets: v is a running mean in place of a sum. Adam later added momentum to it
    and corrected the start.
        v <- b2 v + (1 - b2) g^2
        u  = g / (sqrt(v) + eps)

    Remembers  v, the running mean of g^2: 4 bytes per weight.
    Moves      each weight by about lr, root mean square. The first step is 1 / sqrt(1 - b2) times as long,
               which is 10 times, because v is not corrected for its start at 0.
    lr         is how far each weight moves in a step (root mean square). Typical 1e-3. It is a third of
               Adam's, because no momentum averages the noise.
    Defaults   are torch's, which calls b2 alpha. The lecture has 0.9. torch's lr is 1e-2.
    For        every tensor.
    Source     Tieleman, Hinton (2012), "Lecture 6.5-rmsprop: divide the gradient by a running average of its
               recent magnitude"."""
    v.lerp_(g.square(), 1 - beta2)
    return g / (v.sqrt() + eps)

def rmsprop_centered(g, m, v, *, beta2=0.99, eps=1e-8):
    """Centred RMSprop divides by the standard deviation of the gradients, and not by their root mean square.
        m <- b2 m + (1 - b2) g;  v <- b2 v + (1 - b2) g^2
        u  = g / (sqrt(max(v - m^2, 0)) + eps)

    Remembers  m and v, the running means of g and g^2: 8 bytes per weight.
    Moves      each weight as RMSprop does where its gradients are noise, and farther the longer they agree.
               Only eps ends this: after 1,000 equal gradients, a step is 150 times lr.
    lr         is how far a weight moves in a step if its gradients are noise. Typical 1e-3. It is RMSprop's.
    Defaults   are torch's. The paper adds 1e-4 inside the root, and has momentum and b2 0.95. Rounding can
               make v - m^2 negative. There torch returns NaN, and this rule takes 0, so that the step is
               lr g / eps. In fp32 equal gradients get there after some 1,600 steps.
    For        every tensor.
    Source     Graves (2013), arXiv 1308.0850."""
    m.lerp_(g, 1 - beta2)
    v.lerp_(g.square(), 1 - beta2)
    return g / ((v - m.square()).clamp_min(0).sqrt() + eps)

def adadelta(g, v, x, *, beta2=0.9, eps=1e-6):
    """Adadelta is RMSprop times the root mean square of its own past steps. So a step is in weight, and the
    rule was meant to need no learning rate.
        v <- b2 v + (1 - b2) g^2
        u  = sqrt(x + eps) / sqrt(v + eps) g
        x <- b2 x + (1 - b2) u^2

    Remembers  v and x, the running means of g^2 and u^2: 8 bytes per weight.
    Moves      each weight by about sqrt(10 eps) lr in the first step, which is 0.003 lr, if its gradient is
               well above sqrt(eps). From there, the step sizes find their own level.
    lr         is a factor for the steps that the rule finds by itself. Typical 1.0. The paper has no lr.
    Defaults   are torch's, which calls b2 rho. The paper has b2 0.95. No values that were tuned for language
               models are known. There most gradients are below sqrt(eps), 0.001, and such weights move as in
               SGD.
    For        every tensor.
    Source     Zeiler (2012), arXiv 1212.5701."""
    v.lerp_(g.square(), 1 - beta2)
    u = ((x + eps).sqrt() / (v + eps).sqrt()) * g
    x.lerp_(u.square(), 1 - beta2)
    return u

# ---- Adam with another denominator ----------------------------------------------------------------------

def adamax(g, m, n, t, *, beta1=0.9, beta2=0.999, eps=1e-8):
    """AdaMax is Adam that divides by the largest gradient of late, and not by their root mean square.
        m <- b1 m + (1 - b1) g
        n <- max(b2 n, |g| + eps)
        u  = m_hat / n                          m_hat = m / (1 - b1^t)

    Remembers  m, and n, a maximum that decays: 8 bytes per weight.
    Moves      each weight by at most about lr, and by less than Adam does: gradients are rarely as large as
               the largest one.
    lr         is how far a weight moves in a step if its gradients are all the same. Typical 2e-3.
    Defaults   are torch's, and are the paper's. n needs no correction for its start at 0. After a gradient
               that is far too large, n takes 1 / (1 - b2) steps to fall to 0.37 of it.
    For        every tensor.
    Source     Kingma, Ba (2014), arXiv 1412.6980, section 7.1. The paper has no eps, and torch has it."""
    m.lerp_(g, 1 - beta1)
    n.copy_(torch.maximum(beta2 * n, g.abs() + eps))
    return hat(m, beta1, t) / n

def amsgrad(g, m, v, top, t, *, beta1=0.9, beta2=0.999, eps=1e-8):
    """AMSGrad is Adam that divides by the largest v so far. Without that, Adam fails to converge on some
    problems: after a rare large gradient, v falls again.
        m   <- b1 m + (1 - b1) g
        v   <- b2 v + (1 - b2) g^2
        top <- max(top, v)
        u    = m_hat / (sqrt(top_hat) + eps)    m_hat = m / (1 - b1^t),  top_hat = top / (1 - b2^t)

    Remembers  m, v and top: 12 bytes per weight.
    Moves      each weight as Adam does, but never farther than its largest v allows. So one gradient that is
               far too large shortens all later steps.
    lr         is in weight, as Adam's lr is. Typical 3e-3.
    Defaults   are torch's. For language models, Adam's usual b2 is 0.95. torch takes the maximum of v before
               the correction. The paper has no correction.
    For        every tensor.
    Source     Reddi, Kale, Kumar (2018), arXiv 1904.09237."""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    top.copy_(torch.maximum(top, v))
    return hat(m, beta1, t) / (hat(top, beta2, t).sqrt() + eps)

def small_start(w, blocks, *, v_start):
    """Makes state that starts at the hyperparameter v_start."""
    dtype = torch.promote_types(w.dtype, torch.float32)    # bf16 would round it
    return torch.full_like(w, v_start, dtype=dtype, memory_format=torch.contiguous_format)

def yogi(g, m, v: small_start, t, *, beta1=0.9, beta2=0.999, eps=1e-3, v_start=1e-6):
    """Yogi is Adam whose v changes by (1 - b2) g^2 a step, up or down, however large v is. So v falls slowly
    after large gradients.
        m <- b1 m + (1 - b1) g
        v <- v - (1 - b2) sign(v - g^2) g^2     v starts at `v_start`
        u  = m_hat sqrt(1 - b2^t) / (sqrt(v) + eps)

    Remembers  m and v: 8 bytes per weight.
    Moves      each weight as Adam does while its gradients stay of one size. If they become smaller, Yogi's
               steps stay short for longer than Adam's. Weights with gradients below eps move as in SGD.
    lr         is in weight for gradients well above eps, as Adam's lr is. Typical 1e-2. It is the author's.
    Defaults   are the author's. eps is large on purpose. The gradients of a language model are often smaller,
               so there eps 1e-8 and Adam's lr are worth a try. No values that were tuned for it are known.
    For        every tensor.
    Source     Zaheer, Reddi, Sachan, Kale, Kumar (2018), "Adaptive methods for nonconvex optimization". The
               form is that of Zaheer's own code in TensorFlow Addons. The paper has no correction for the
               start. In optax, torch_optimizer and pytorch_optimizer, m starts at 1e-6, too, and eps is added
               to the root of v_hat, as in Adam."""
    m.lerp_(g, 1 - beta1)
    square = g.square()
    v.sub_((1 - beta2) * (v - square).sign() * square)
    return hat(m, beta1, t) * (1 - power(beta2, t)).sqrt() / (v.sqrt() + eps)

# ---- Adam with Nesterov's momentum ----------------------------------------------------------------------

def nadam(g, m, v, seen: scalar, t, *, beta1=0.9, beta2=0.999, momentum_decay=0.004, eps=1e-8):
    """NAdam is Adam with Nesterov's momentum: the newest gradient counts more, and the momentum rises with t.
        mu(t) = b1 (1 - 0.96^(t momentum_decay) / 2)
        m    <- b1 m + (1 - b1) g
        v    <- b2 v + (1 - b2) g^2
        seen <- mu(t) seen + 1 - mu(t)          this is 1 - mu(1) mu(2) ... mu(t); next is that of step t + 1
        u     = ((1 - mu(t)) g / seen + mu(t + 1) m / next) / (sqrt(v_hat) + eps)

    Remembers  m and v, the running means of g and g^2: 8 bytes per weight; and one number per tensor.
    Moves      each weight by about lr where its gradients agree. Noise moves it farther than in Adam, because
               the newest gradient counts 1 - mu by itself: more than half at first, and 0.1 in the end.
    lr         is in weight, as Adam's lr is. Typical 3e-3. The tuning of Wen et al. (2025), arXiv 2509.02046,
               found the same lr for both, at 130m. torch's default is 2e-3.
    Defaults   are torch's. For language models, the same authors found b1 0.95 and b2 0.98. mu rises slowly:
               from 0.45 to 0.8 in the first 9,000 steps. The paper also uses mu(t) in place of b1 in m.
    For        every tensor.
    Source     Dozat (2016), "Incorporating Nesterov momentum into Adam"; in torch's form, with its decoupled
               decay."""
    now, ahead = (beta1 * (1 - 0.5 * power(0.96, step * momentum_decay)) for step in (t, t + 1))
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    seen.mul_(now).add_(1 - now)
    u = (1 - now) / seen * g + ahead / (ahead * seen + 1 - ahead) * m
    return u / (hat(v, beta2, t).sqrt() + eps)

def adan(g, m, d, n, last, w, lr, decay, t, *, beta1=0.98, beta2=0.92, beta3=0.99, eps=1e-8):
    """Adan gets Nesterov's look ahead from the change of the gradient. It has a mean of gradients, a mean of
    their changes, and divides by the size of both together.
        c     = g - last, but 0 at t = 1;  last <- g
        m    <- b1 m + (1 - b1) g;  d <- b2 d + (1 - b2) c
        n    <- b3 n + (1 - b3) (g + b2 c)^2
        step  = (m_hat + b2 d_hat) / (sqrt(n_hat) + eps)
        u     = step, and decay as the authors have it: w becomes (w - lr step) / (2 - decay)

    Remembers  m, d, n and last, a copy of the gradient: 16 bytes per weight.
    Moves      each weight by about lr where its gradients agree. Noise moves it less than in Adam: it doubles
               the denominator, and b1 is larger.
    Decays     by 1 / (1 + lr weight_decay), and not by 1 - lr weight_decay. This is the authors' default.
               They call the other form no_prox.
    lr         is in weight, as Adam's lr is. Typical 6e-3. The authors use 2.5e-3 for GPT-2 with 345m, and
               5 to 10 times Adam's nearly everywhere else. Their default is 1e-3.
    Defaults   are the authors'. For GPT-2 they use b3 0.95, and for Transformer-XL 0.9, 0.9, 0.999. They say
               that b2 hardly matters, and that b3 is the first to tune. Their paper writes 1 - b for each b.
    For        every tensor.
    Source     Xie, Zhou, Li, Lin, Yan (2022), arXiv 2208.06677."""
    c = torch.where(t > 1, g - last, 0.0)
    last.copy_(g)
    m.lerp_(g, 1 - beta1)
    d.lerp_(c, 1 - beta2)
    n.lerp_((g + beta2 * c).square(), 1 - beta3)
    step = (hat(m, beta1, t) + beta2 * hat(d, beta2, t)) / (hat(n, beta3, t).sqrt() + eps)
    difference = (1 - decay).square() / lr.clamp_min(1e-30) * w.to(g.dtype)    # of the two forms of decay
    return (step - difference) / (2 - decay)

RULES = {
    "nesterov":         ZooRule(nesterov, lr_factor=300, elementwise=True),
    "sign_sgd":         ZooRule(sign_sgd, lr_factor=0.1, elementwise=True),
    "rprop":            ZooRule(rprop, lr_factor=1 / 3, bounds=dict(shrink=BELOW_ONE, grow=AT_LEAST_ONE),
                                elementwise=True),
    "adagrad":          ZooRule(adagrad, lr_factor=10 / 3, elementwise=True),
    "rmsprop":          ZooRule(rmsprop, lr_factor=1 / 3, second_moment="v", corrected=False,
                                elementwise=True),
    "rmsprop_centered": ZooRule(rmsprop_centered, lr_factor=1 / 3, elementwise=True),
    "adadelta":         ZooRule(adadelta, lr_factor=300, elementwise=True),
    "adamax":           ZooRule(adamax, lr_factor=2 / 3, elementwise=True),
    "amsgrad":          ZooRule(amsgrad, second_moment="top", elementwise=True),
    "yogi":             ZooRule(yogi, lr_factor=10 / 3, elementwise=True),
    "nadam":            ZooRule(nadam, second_moment="v", elementwise=True),
    "adan":             ZooRule(adan, lr_factor=2, bounds=dict(beta3=BELOW_ONE), elementwise=True),
}
