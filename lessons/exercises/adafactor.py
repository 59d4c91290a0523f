"""
Exercise: Adafactor's rank one.

Adam remembers one v for each weight. Adafactor remembers one number r for each row and one number c for
each column, and rebuilds v from them:

    r <- beta2 r + (1 - beta2) (mean of g^2 over each row)
    c <- beta2 c + (1 - beta2) (mean of g^2 over each column)
    v  = (r / max(mean(r), 1e-30)) c      1e-30 is only there to prevent 0 / 0

All weights are matrices in this exercise. Adam's other lines are done for you.

g       the gradient of this step, (rows, columns)
m       the running mean of gradients, (rows, columns)
r, c    what your function remembers instead of v: (rows, 1) and (1, columns)
t       the number of this step, from 1

Replace the dots by as many lines as you need. Then run:

    python -m lessons check lessons/exercises/adafactor.py

Hint: x.mean(1, keepdim=True) has the shape of r. A product of (rows, 1) and (1, columns) is a matrix.
x.clamp_min(1e-30) is max(x, 1e-30).
"""
from optim import hat, per_column, per_row


def adafactor(g, m, r: per_row, c: per_column, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta1)
    v = ...
    return hat(m, beta1, t) / (hat(v, beta2, t).sqrt() + eps)
