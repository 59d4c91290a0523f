"""
Exercise: clip the gradient before the moments see it.

One bad batch can have a gradient that is a thousand times too large. Adam would remember it in v for many
steps. So the gradient is clipped first: if the norm of the whole gradient is above `clip`, all gradients
are multiplied by clip / (norm + 1e-6). Otherwise they stay as they are.

g       the gradient of one tensor in this step
norm    the norm of the gradients of all tensors together, as a tensor of one number
m, v, t what Adam needs. adamw(g, m, v, t) returns Adam's u and updates m and v.
clip    the largest norm that is allowed

Replace the dots by as many lines as you need. Then run:

    python -m lessons check lessons/exercises/clipping.py

Hint: x.clamp(max=1.0) is min(x, 1).
"""
from optim import adamw    # noqa: F401


def clipping(g, norm, m, v, t, *, clip=1.0):
    u = ...
    return u
