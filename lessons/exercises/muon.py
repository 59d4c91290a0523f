"""
Exercise: Muon's orthogonal step.

Muon follows the mean gradient of a matrix with all its singular values set to about 1:

    m <- beta1 m + (1 - beta1) g
    u  = sqrt(max(1, rows / columns)) orthogonal(beta1 m + (1 - beta1) g)

Write orthogonal(x). It does not need the singular values. It divides x by its norm + 1e-7, where the norm
is the root of the sum of all squares. Then it repeats this line five times:

    x <- 3.4445 x - 4.7750 (x x') x + 2.0315 (x x') (x x') x

Here x' is x transposed. If x has more rows than columns, transpose it first, and transpose the result back
at the end. The result is the same, but x x' is smaller.

g, m    the gradient and the running mean of gradients, (rows, columns)

Replace the dots by as many lines as you need. Then run:

    python -m lessons check lessons/exercises/muon.py

Hint: x.mT is the transposed matrix, @ multiplies matrices, and x.norm() is that norm.
"""


def orthogonal(x):
    ...
    return x


def muon(g, m, *, beta1=0.95):
    m.lerp_(g, 1 - beta1)
    rows, columns = g.shape
    return max(1, rows / columns) ** 0.5 * orthogonal(g.lerp(m, beta1))
