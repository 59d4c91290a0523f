"""
Mistakes that learners make in the exercises. If a wrong function takes exactly the steps of one of these, the
grader says which mistake it is. Each mistake is a rule with the signature of its exercise.
"""
from optim import adamw, hat, per_block, per_column, per_row


def momentum_ahead(g, m, *, beta1=0.9):
    m.mul_(beta1).add_(g)
    return g + beta1 * m


def momentum_decays_the_newest(g, m, *, beta1=0.9):
    return m.add_(g).mul_(beta1)


def lion_memory_first(g, m, *, beta1=0.9, beta2=0.95):
    m.lerp_(g, 1 - beta2)
    return m.lerp(g, 1 - beta1).sign()


def lion_other_betas(g, m, *, beta1=0.9, beta2=0.95):
    u = m.lerp(g, 1 - beta2).sign()
    m.lerp_(g, 1 - beta1)
    return u


def lion_memory_of_signs(g, m, *, beta1=0.9, beta2=0.95):
    u = m.lerp(g, 1 - beta1).sign()
    m.lerp_(u, 1 - beta2)
    return u


def adam_no_root(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    return hat(m, beta1, t) / (hat(v, beta2, t) + eps)


def adam_root_first(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    return hat(m, beta1, t) / (hat(v.sqrt(), beta2, t) + eps)


def adam_other_betas(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta2)
    v.lerp_(g.square(), 1 - beta1)
    return hat(m, beta2, t) / (hat(v, beta1, t).sqrt() + eps)


def adam_v_of_m(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta1)
    v.lerp_(m.square(), 1 - beta2)
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)


def adam_counts_from_zero(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    return hat(m, beta1, t + 1) / (hat(v, beta2, t + 1).sqrt() + eps)


def adam_hat_in_place(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta1).div_(1 - beta1**t)
    v.lerp_(g.square(), 1 - beta2)
    return m / (hat(v, beta2, t).sqrt() + eps)


def adam_hats_in_place(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta1).div_(1 - beta1**t)
    v.lerp_(g.square(), 1 - beta2).div_(1 - beta2**t)
    return m / (v.sqrt() + eps)


def adafactor_no_mean(g, m, r: per_row, c: per_column, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta1)
    r.lerp_(g.square().mean(1, keepdim=True), 1 - beta2)
    c.lerp_(g.square().mean(0, keepdim=True), 1 - beta2)
    return hat(m, beta1, t) / (hat(r * c, beta2, t).sqrt() + eps)


def adafactor_sums(g, m, r: per_row, c: per_column, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta1)
    r.lerp_(g.square().sum(1, keepdim=True), 1 - beta2)
    c.lerp_(g.square().sum(0, keepdim=True), 1 - beta2)
    v = r / r.mean().clamp_min(1e-30) * c
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)


def adalayer_sum(g, m, v: per_block, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square().reshape(len(v), -1).sum(1), 1 - beta2)
    u = hat(m, beta1, t).reshape(len(v), -1) / (hat(v, beta2, t).sqrt() + eps)[:, None]
    return u.reshape(g.shape)


def adalayer_whole_tensor(g, m, v: per_block, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square().mean().expand_as(v), 1 - beta2)
    return hat(m, beta1, t) / (hat(v[0], beta2, t).sqrt() + eps)


def adalayer_star_sum(g, m, v: per_row, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square().sum(1, keepdim=True), 1 - beta2)
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)


def decoupled_through_moments(g, w, m, v, t, *, wd=0.1):
    return adamw(g + wd * w, m, v, t)


def decoupled_minus(g, w, m, v, t, *, wd=0.1):
    return adamw(g, m, v, t) - wd * w


def clipping_of_the_step(g, norm, m, v, t, *, clip=1.0):
    return adamw(g, m, v, t) * (clip / (norm + 1e-6)).clamp(max=1.0)


def clipping_of_each_weight(g, norm, m, v, t, *, clip=1.0):
    return adamw(g.clamp(-clip, clip), m, v, t)


def clipping_of_each_tensor(g, norm, m, v, t, *, clip=1.0):
    return adamw(g * (clip / (g.norm() + 1e-6)).clamp(max=1.0), m, v, t)


MISTAKES = {    # {exercise: {the mistake as a rule: what it means}}
    "momentum": {
        momentum_ahead: "u is g + beta1 m, which is Nesterov's form, and should be m",
        momentum_decays_the_newest: "beta1 multiplies the newest gradient, too, and belongs to the old m"},
    "lion": {
        lion_memory_first: "m changes before u is computed, so g counts twice; compute u first",
        lion_other_betas: "beta1 and beta2 are exchanged: beta1 belongs to u, and beta2 to m",
        lion_memory_of_signs: "m remembers the signs u, and should remember the gradients g"},
    "adam": {
        adam_no_root: "v_hat has no root; without it, u has the unit of 1 / g",
        adam_root_first: "v is corrected after the root, and should be corrected before it",
        adam_other_betas: "beta1 and beta2 are exchanged: beta1 belongs to m, and beta2 to v",
        adam_v_of_m: "v is the mean of m^2, and should be the mean of g^2",
        adam_counts_from_zero: "the corrections use t + 1; t is already 1 in the first step",
        adam_hat_in_place: "m_hat takes the place of m, so the next step corrects it again; keep m as it is",
        adam_hats_in_place: "m_hat and v_hat take the places of m and v; keep m and v as they are"},
    "adafactor": {
        adafactor_no_mean: "v is r c, and should be divided by the mean of r: r c has the unit of g^4",
        adafactor_sums: "r and c are made of sums, and should be made of means"},
    "adalayer": {
        adalayer_sum: "v is the sum of g^2 over the block, and should be the mean",
        adalayer_whole_tensor: "v is of the whole tensor, and should be of one block, such as q"},
    "adalayer_star": {
        adalayer_star_sum: "v is the sum of g^2 over the row, and should be the mean"},
    "decoupled": {
        decoupled_through_moments: "wd w passes through m and v, which is L2 regularization",
        decoupled_minus: "the decay has the wrong sign, so the weights grow"},
    "clipping": {
        clipping_of_the_step: "the step is clipped, and not the gradient, so v remembers the bad batch",
        clipping_of_each_weight: "each weight's gradient is clipped by itself, which changes the direction",
        clipping_of_each_tensor: "each tensor is clipped by its own norm, and not by that of all of them"},
}
