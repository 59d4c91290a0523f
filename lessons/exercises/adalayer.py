"""
Exercise: Adalayer's blocks.

Adalayer is Adam with one v for a whole block of weights:

    m <- beta1 m + (1 - beta1) g
    v <- beta2 v + (1 - beta2) (mean of g^2 over the block)
    u  = m_hat / (sqrt(v_hat) + eps)

Most tensors are one block. The tensor of q, k and v is three: the first third of its rows is q, and so
on. So v has one number for each block, and the weights of a block follow each other.

g       the gradient of this step. It is a matrix or a vector.
m       the running mean of gradients, of the same shape
v       what your function remembers for each block: (blocks,)
t       the number of this step, from 1

hat(x, beta, t) is x / (1 - beta^t).

Replace the dots by as many lines as you need. Then run:

    python -m lessons check lessons/exercises/adalayer.py

Hint: g.reshape(len(v), -1) has one row for each block. At the end, go back to the shape of g.
"""
from optim import hat, per_block    # noqa: F401


def adalayer(g, m, v: per_block, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    m.lerp_(g, 1 - beta1)
    u = ...
    return u
