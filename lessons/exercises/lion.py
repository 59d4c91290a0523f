"""
Exercise: Lion.

Lion is Signum with two betas. The newest gradient counts 1 - beta1 in the step, and 1 - beta2 in the
memory:

    u  = sign(beta1 m + (1 - beta1) g)
    m <- beta2 m + (1 - beta2) g

g       the gradient of this step
m       what your function remembers. It starts at 0.

Replace the dots by as many lines as you need. Then run:

    python -m lessons check lessons/exercises/lion.py

Hint: the order of the two lines matters. m.lerp(g, x) returns a new tensor; m.lerp_(g, x) changes m
itself.
"""


def lion(g, m, *, beta1=0.9, beta2=0.95):
    u = ...
    return u
