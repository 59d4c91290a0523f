"""
Exercise: momentum.

Gradients of single batches are noisy. Momentum follows their decaying sum instead:

    m <- beta1 m + g
    u  = m

The optimizer calls your function once in each step for each tensor, and then subtracts lr * u from the
weights.

g       the gradient of this step
m       what your function remembers. It is a tensor of zeros before the first step. It has g's shape.
beta1   how much of the old m stays

Replace the dots by as many lines as you need. Then run:

    python -m lessons check lessons/exercises/momentum.py

Hint: the optimizer keeps the tensor m itself. So change it in place: m.mul_(x) multiplies it, m.add_(x)
adds to it. A line such as m = 2 * m makes a new tensor, which is forgotten after the step.
"""


def momentum(g, m, *, beta1=0.9):
    ...
    return m
