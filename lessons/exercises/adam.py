"""
Exercise: Adam.

Adam divides the mean of each weight's gradient by the root of the mean of its square:

    m <- beta1 m + (1 - beta1) g
    v <- beta2 v + (1 - beta2) g^2
    u  = m_hat / (sqrt(v_hat) + eps)

m and v start at 0, so after one step m is only (1 - beta1) g. The hats correct that:

    m_hat = m / (1 - beta1^t)            v_hat = v / (1 - beta2^t)

g       the gradient of this step
m, v    what your function remembers. Both start at 0. Change them in place, as m.lerp_(g, x) does.
t       the number of this step. It is 1 in the first step.

Replace the dots by as many lines as you need. Then run:

    python -m lessons check lessons/exercises/adam.py

Hint: what must the first step be? m_hat is g and v_hat is g^2, so every weight moves by lr.
"""


def adam(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    u = ...
    return u
