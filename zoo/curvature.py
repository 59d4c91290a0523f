"""
A rule whose second moment does not come from the gradient. It estimates the curvature of the loss.
"""

from zoo.rule import AT_LEAST_ONE, ZooRule

def sophia(g, m, h, *, beta1=0.965, beta2=0.99, rho=0.04, eps=1e-15, refresh_steps=10, batch=256,
           context=512):
    """Sophia (here Sophia-G) is Signum where the curvature is small, and a Newton step where it is large.
        m <- b1 m + (1 - b1) g
        h <- b2 h + (1 - b2) gs^2             before the first step, and then every refresh_steps
        u  = m / (rho B h + eps), clipped to +- 1

    gs is the gradient of the cross-entropy of the same tokens, with labels that are drawn from the model's
    own prediction. B gs^2 estimates the diagonal of the Gauss-Newton matrix. B = batch * context is the
    number of tokens of a step.

    Remembers  m and h: 8 bytes per weight.
    Moves      each weight by at most lr. Where rho B h < |m|, it moves a weight by exactly lr, as Signum
               does. With rho 0 the rule is Signum with a beta1 of 0.965.
    lr         is the distance of a step, in weight. Typical 6e-4, a fifth of Adam's here. The authors' file
               for GPT-2 at 125m has 6e-4, too, which equals Adam's there.
    Defaults   are those of Zhao et al.: rho 0.04, b1 0.965, b2 0.99. The authors' files for GPT-2 have rho
               0.05 ... 0.08. The trainer passes --batch and --context. As in the authors' paper, the first
               refresh comes before the first step. In their script it comes after every tenth step.
    For        every tensor. Each refresh costs another forward and backward pass.
    Source     Liu et al. (2023), arXiv 2305.14342. Zhao et al. (2024), arXiv 2407.07972, app. G, compare
               it."""
    m.lerp_(g, 1 - beta1)
    return (m / (rho * batch * context * h + eps)).clamp(-1, 1)

def curvature(h, gs, *, beta2):
    """Updates h, the running mean of squared gradients on labels that are drawn from the model."""
    h.lerp_(gs.square(), 1 - beta2)

RULES = {
    "sophia": ZooRule(sophia, lr_factor=0.2, refresh=curvature, from_run=("batch", "context"),
                      elementwise=True, bounds=dict(refresh_steps=AT_LEAST_ONE)),
}
