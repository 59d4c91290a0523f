"""
A second moment that is not the gradient's: an estimate of the curvature of the loss.
"""

from zoo.rule import AT_LEAST_ONE, ZooRule

def sophia(g, m, h, *, beta1=0.965, beta2=0.99, rho=0.04, eps=1e-15, refresh_steps=10, batch=256,
           context=512):
    """Sophia (Sophia-G): Signum where the curvature is small, a Newton step where it is large.

        m <- b1 m + (1 - b1) g
        h <- b2 h + (1 - b2) gs^2             every refresh_steps, from the first step on
        u  = m / (rho B h + eps), cut at +- 1

        gs: the gradient of the cross-entropy of the same tokens, with labels drawn from the model's own
        prediction; B gs^2 estimates the diagonal of the Gauss-Newton matrix. B = batch * context, the
        tokens of a step.

    Remembers  m and h: 8 bytes per weight.
    Moves      each weight by lr at most; by exactly lr (Signum) where rho B h < |m|. rho 0 is Signum.
    lr         in weight: the distance of a step. Typical 6e-4, a fifth of Adam's here (the authors' file for
               GPT-2 at 125m: 3e-4, half of Adam's there).
    Defaults   as the study has them: rho 0.04, b1 0.965, b2 0.99 (the authors: rho 0.03 ... 0.05). The
               trainer passes --batch and --context. Before the first step, as in the paper; the authors'
               script: after every tenth.
    For        every tensor. Each refresh costs another forward and backward pass.
    Source     Liu et al. (2023), arXiv 2305.14342; in the study Zhao et al. (2024), arXiv 2407.07972, app. G.
    """
    m.lerp_(g, 1 - beta1)
    return (m / (rho * batch * context * h + eps)).clamp(-1, 1)

def curvature(h, gs, *, beta2):
    """The mean of squared gradients on labels of the model's own."""
    h.lerp_(gs.square(), 1 - beta2)

RULES = {
    "sophia": ZooRule(sophia, lr=0.2, refresh=curvature, from_run=("batch", "context"),
                      bounds=dict(refresh_steps=AT_LEAST_ONE)),
}
