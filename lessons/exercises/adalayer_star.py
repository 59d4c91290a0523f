"""
Exercise: Adalayer*, in the output head.

Adalayer has one v for the whole head. Frequent tokens have large gradients, rare ones have small
gradients, and they share that v. Adalayer* gives each token a v of its own. A token is a row of the head:

    m <- beta1 m + (1 - beta1) g
    v <- beta2 v + (1 - beta2) (mean of g^2 over each row)
    u  = m_hat / (sqrt(v_hat) + eps)

g       the gradient of the head in this step, (tokens, width)
m       the running mean of gradients, (tokens, width)
v       what your function remembers for each token: (tokens, 1)
t       the number of this step, from 1

hat(x, beta, t) is x / (1 - beta^t).

Replace the dots by as many lines as you need. Then run:

    python -m lessons check lessons/exercises/adalayer_star.py

Hint: a row runs along axis 1. keepdim=True keeps that axis, with length 1.
"""
from optim import hat, per_row    # noqa: F401


def adalayer_star(g, m, v: per_row, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta1)
    u = ...
    return u
