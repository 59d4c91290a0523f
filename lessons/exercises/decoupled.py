"""
Exercise: decoupled weight decay.

Weight decay shrinks the weights a little in each step. In AdamW it is decoupled: the decay never passes
through Adam's m and v. A step is

    w <- (1 - lr wd) w - lr (Adam's u)

The optimizer computes w - lr * u with the u that you return, and knows nothing of wd. So u must hold the
decay.

g, w    the gradient and the weights of this step
m, v, t what Adam needs. adamw(g, m, v, t) returns Adam's u and updates m and v.
wd      the weight decay

Replace the dots by as many lines as you need. Then run:

    python -m lessons check lessons/exercises/decoupled.py

Hint: write the step above in the form w - lr * u. What is u?
"""
from optim import adamw    # noqa: F401


def decoupled(g, w, m, v, t, *, wd=0.1):
    u = ...
    return u
