"""
Exercise: Signum.

Every weight moves by the same distance, lr, against the sign of its mean gradient. (The optimizer subtracts
lr * u.)

    m <- beta1 m + (1 - beta1) g
    u  = sign(m)

g       the gradient of this step
m       what your function remembers: the running mean of gradients. It starts at 0.

Replace the dots by as many lines as you need. Then run:

    python -m lessons check lessons/exercises/signum.py

Hint: m.lerp_(g, 0.1) moves m a tenth of the way towards g, in place. m.sign() returns the signs.
"""


def signum(g, m, *, beta1=0.9):
    u = ...
    return u
