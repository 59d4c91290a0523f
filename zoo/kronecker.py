"""
Preconditioners that are a product of a matrix for the rows and one for the columns. Shampoo and PSGD
multiply the gradient by both. KL-SOAP applies Adam in the basis of both. The fused q, k, v are three
matrices.
"""
import functools
import math

import torch

from optim import hat
from zoo.lowrank import normal_like
from zoo.orthogonal import change_basis, left, matrices, right, square_matrix
from zoo.rule import AT_LEAST_ONE, ZooRule

# ---- Shampoo --------------------------------------------------------------------------------------------

def columns_or_vector(w, blocks):
    """Makes a matrix for the columns, where a vector counts as one row."""
    return square_matrix(w, blocks, matrices(w, blocks).shape[2])

def shampoo(g, gl: left, gr: columns_or_vector, pl: left, pr: columns_or_vector, blocks, *, eps=1e-6,
            refresh_steps=20):
    """Shampoo multiplies g by inverse roots of sums: of all g g' on its left, and of all g' g on its right.
        gl <- gl + g g';  gr <- gr + g' g
        u  = pl g pr
        pl = (gl + eps I)^(-1/4);  pr = (gr + eps I)^(-1/4)        every refresh_steps, with the newest g

    Remembers  gl, gr, pl and pr, 8 (rows^2 + columns^2) bytes for a matrix.
    Moves      a matrix by similar distances in all directions. The sums only grow, so steps shrink as
               1 / sqrt(t). There is no momentum: the rule is Algorithm 1 of the paper.
    Overshoots where one gradient has fewer directions than the matrix. Until the next roots, steps in the
               other directions are up to 1 / sqrt(eps) times the gradient.
    lr         is in units of (rows columns)^(1/4) sqrt(t) times the root mean square of a weight's step.
               Typical 1.0, an estimate of ours.
    Defaults   refresh_steps 20: the authors compute the roots every 20 to 100 steps. eps 1e-6 is that of
               pytorch_optimizer.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr. A vector would
               have one matrix and the exponent -1/2, and a side longer than 10,000 would have none.
    Source     Gupta, Koren, Singer (2018), arXiv 1802.09568."""
    x = matrices(g, blocks)
    if gl.numel():
        gl.add_(x @ x.mT)
    if gr.numel():
        gr.add_(x.mT @ x)
    return change_basis(x, pl, pr).reshape(g.shape)

def shampoo_roots(gl, gr, pl, pr, g, blocks, *, eps):
    """Computes the roots of the sums. The rule has not yet added the newest gradient to them."""
    x, sides = matrices(g, blocks), bool(gl.numel()) + bool(gr.numel())
    for past, newest, root in ((gl, x @ x.mT, pl), (gr, x.mT @ x, pr)):
        if past.numel():
            values, vectors = torch.linalg.eigh(past + newest)
            values = values.clamp_min(0) + eps    # rounding makes some values negative
            root.copy_((vectors * values.pow(-0.5 / sides)[:, None]) @ vectors.mT)

# ---- KL-SOAP --------------------------------------------------------------------------------------------

NO_BASIS = torch.empty(0)

def row_values(w, blocks, *, role):
    """Makes an eigenvalue for each row of each matrix, 0.1 at the start. Without a basis it makes one 1."""
    rows = left(w, blocks, role=role).shape[1]
    return w.new_full((blocks, rows or 1, 1), 0.1 if rows else 1.0, dtype=torch.float64)

def column_values(w, blocks):
    """Makes an eigenvalue for each column of each matrix, as row_values does for rows."""
    columns = right(w, blocks).shape[2]
    return w.new_full((blocks, 1, columns or 1), 0.1 if columns else 1.0, dtype=torch.float64)

def kl_soap(g, m, s, gl: left, gr: right, ql: left, qr: right, dl: row_values, dr: column_values, t, blocks,
            *, beta1=0.9, beta2=0.98, eps=1e-8, refresh_steps=10):
    """KL-SOAP is SOAP whose two matrices depend on each other: g enters one divided by the root of the other.
        m <- b1 m + (1 - b1) g
        s <- b2 s + (1 - b2) (ql' g qr)^2
        u  = ql ((ql' m qr) / (sqrt(s) + eps)) qr'
        gl <- b2 gl + (1 - b2) a a' / columns        a = g qr / sqrt(dr)
        gr <- b2 gr + (1 - b2) b' b / rows           b = ql' g / sqrt(dl)
        dl <- b2 dl + (1 - b2) mean over each row of (ql' g qr)^2 / dr;  dr likewise over columns, with dl
        ql, qr: eigenvectors of gl and gr at t = 2, then every refresh_steps a step of power iteration
        At t = 1 the rule only changes gl and gr, with a = b = g.

    Remembers  what SOAP remembers, and dl and dr, one number per row and per column. They estimate the
               eigenvalues of gl and gr and start at 0.1. 1 / sqrt(dl) is at most the number of rows, or 10
               if there are fewer, or 4,000 if there are more. dr has the same limits.
    Moves      weights as Adam does. m and s are not corrected for their start at 0, so the first step is
               0.7 times as long as Adam's.
    lr         is in weight, as Adam's lr is. Typical 3e-3, SOAP's.
    Defaults   are those of the authors' code. It computes in bfloat16, except for the bases.
    For        every tensor. The authors' code takes no vectors. Here a vector has no basis, and embedding and
               head have only one of their columns, as with SOAP.
    Source     Lin et al. (2025), arXiv 2509.03378. They keep m in the basis, which is equivalent."""
    x, late = matrices(g, blocks), (t > 1).to(t)
    turned, squares = change_basis(x, ql, qr), s.reshape(x.shape)
    mix(m, g, late * (1 - beta1))
    mix(squares, turned.square(), late * (1 - beta2))
    u = change_basis(change_basis(matrices(m, blocks), ql, qr) / (squares.sqrt() + eps), ql.mT, qr.mT)
    a = torch.where(t > 1, change_basis(x, NO_BASIS, qr) / dr.sqrt(), x)
    b = torch.where(t > 1, change_basis(x, ql, NO_BASIS) / dl.sqrt(), x)
    of_rows, of_columns = turned.square() / dr, turned.square() / dl
    for mean, product, values, newest in ((gl, a @ a.mT / x.shape[2], dl, of_rows.mean(2, keepdim=True)),
                                          (gr, b.mT @ b / x.shape[1], dr, of_columns.mean(1, keepdim=True))):
        if mean.numel():
            mean.lerp_(product, 1 - beta2)
            mix(values, newest, late * (1 - beta2)).clamp_min_(max(10, min(mean.shape[1], 4000)) ** -2)
    return torch.where(t > 1, u, 0.0).reshape(g.shape)    # with eps 0 the first u is 0 / 0

def mix(x, new, weight):
    """Moves x towards new by a fraction `weight`, which is a tensor. lerp_ wants one of the dtype of x."""
    return x.mul_(1 - weight).add_(weight * new)

def kl_soap_bases(gl, gr, ql, qr, t):
    """Updates the bases. At t = 2 they become the eigenvectors of gl and gr, the largest first.

    Later they make one step towards the eigenvectors: basis <- Q of the QR decomposition of mean times
    basis. Unlike SOAP, the rule does not sort them."""
    for mean, basis in ((gl, ql), (gr, qr)):
        if t == 2 and basis.numel():
            basis.copy_(torch.linalg.eigh(mean).eigenvectors.flip(2))
        elif basis.numel():
            basis.copy_(torch.linalg.qr(mean @ basis).Q)

# ---- PSGD Kron ------------------------------------------------------------------------------------------

def triangle(w, blocks, side):
    """Makes a unit matrix for each block. A vector, a side of 1 and one above 8,192 get only a diagonal."""
    ones = w.new_ones(blocks, side)
    return ones.diag_embed() if w.dim() > 1 and 1 < side <= 8192 else ones

def row_triangle(w, blocks):
    """Makes a triangle for the rows of each matrix. It is empty for a vector."""
    return triangle(w, blocks, matrices(w, blocks).shape[1] if w.dim() > 1 else 0)

def column_triangle(w, blocks):
    """Makes a triangle for the columns of each matrix."""
    return triangle(w, blocks, matrices(w, blocks).shape[2])

def on_both(ql, x, qr):
    """Returns ql x qr'. ql and qr are matrices, or the diagonals of matrices, or empty."""
    for q in (ql, qr):    # twice: q times x, transposed
        x = (q @ x if q.dim() > 2 else q[:, :, None] * x if q.numel() else x).mT
    return x

def kron(g, m, ql: row_triangle, qr: column_triangle, t, blocks, *, beta1=0.9, most_rms=1.1, precond_lr=0.1,
         refresh_steps=1, seed=0):
    """PSGD Kron learns two triangular matrices that make the mean gradient equally large in all directions.
        m <- b1 m + (1 - b1) g
        u  = ql' ql m_hat qr' qr, with a root mean square of at most most_rms       m_hat = m / (1 - b1^t)
        Before that, ql and qr make a step of size precond_lr of their own: see kron_triangles.

    Remembers  m, 4 bytes per weight, and for a matrix ql and qr, 4 (rows^2 + columns^2) bytes. They start as
               unit matrices. There is no second moment and no eps.
    Moves      a tensor by about lr (root mean square) once ql and qr are learned, even if the gradients
               cancel. That is some three times as far as Adam. Small gradients move weights less until then.
    lr         is how far (root mean square) a tensor moves in a step. Typical 1e-3. The authors advise a
               third of Adam's lr, and three to ten times its weight decay.
    Defaults   are those of kron_torch. ql and qr learn in each of the first 500 steps, and then less often:
               in every 34th from about step 4,000 on. refresh_steps above 1 leaves out most of that. The
               random numbers are a function of the seed, the tensor and t. The trainer passes --seed.
    For        every tensor. A vector, and a side longer than 8,192 such as the vocabulary, has a diagonal.
    Source     Li (2015), arXiv 1512.04202; with benchmarks Pooladzandi, Li (2024), arXiv 2402.04553."""
    m.lerp_(g, 1 - beta1)
    white = on_both(ql, matrices(hat(m, beta1, t), blocks), qr)
    u = on_both(ql.mT if ql.dim() > 2 else ql, white, qr.mT if qr.dim() > 2 else qr)
    rms = u.square().mean((1, 2), keepdim=True).sqrt()
    return (u * (most_rms / (rms + 1e-12)).clamp_max(1)).reshape(g.shape)

def kron_triangles(m, ql, qr, g, t, index, blocks, *, beta1, precond_lr, seed):
    """Moves ql and qr one step towards those that make m_hat white. v are normal random numbers.
        a   = ql (m_hat + 0.0003 mean|m_hat| v) qr';   b = ql'^-1 v qr^-1
        ql <- ql - precond_lr triu(a a' - b b') ql / |a a' + b b'|;   qr likewise, with a' a and b' b

    In every 101st lesson it also gives both the same largest entry, which changes no product of the two.
    The authors do so in about every hundredth, at random. Their code adds the small noise to the step of
    the weights, too."""
    lesson = lesson_at(t)
    if not lesson:
        return
    x = matrices(m.lerp(g, 1 - beta1) / (1 - beta1**t), blocks)
    v = normal_like(x, seed, index, t).to(x.dtype)
    a = on_both(ql, x + 2**-11.5 * x.abs().mean((1, 2), keepdim=True) * v, qr)    # the root of fp32's eps
    b = divided(divided(v, ql).mT, qr).mT
    both = [(q, y, z) for q, y, z in ((ql, a, b), (qr, a.mT, b.mT)) if q.numel()]
    for q, y, z in both:
        if q.dim() > 2:
            yy, zz = y @ y.mT, z @ z.mT
            q.sub_(precond_lr / lower_norm(yy + zz) * (yy - zz).triu() @ q)
        else:
            yy, zz = y.square().sum(2), z.square().sum(2)
            largest = (yy + zz).amax(1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
            q.sub_(precond_lr / largest * (yy - zz) * q)
    if lesson % 101 == 0 and len(both) == 2:    # 101 is prime, so no refresh_steps below misses all
        largest = [q.abs().flatten(1).amax(1) for q in (ql, qr)]
        for q, own, other in ((ql, *largest), (qr, *largest[::-1])):
            q.mul_((other / own).sqrt().reshape(-1, *[1] * (q.dim() - 1)))

def divided(x, q):
    """Returns q'^-1 x."""
    if q.dim() > 2:
        return torch.linalg.solve_triangular(q.mT, x, upper=False)
    return x / q[:, :, None] if q.numel() else x

def lower_norm(x):
    """Returns a lower bound of the spectral norm of each symmetric matrix, by a power step from a column."""
    tiny = torch.finfo(x.dtype).tiny
    largest = x.abs().amax((1, 2), keepdim=True).clamp_min(tiny)
    y = x / largest
    longest = y.square().sum(1).argmax(1)
    column = y @ y.gather(2, longest[:, None, None].expand(-1, y.shape[1], 1))
    column = column / column.norm(dim=1, keepdim=True).clamp_min(tiny)
    return ((y @ column).norm(dim=1, keepdim=True) * largest).clamp_min(tiny)

@functools.cache
def next_lesson(t):
    """Returns the step in which ql and qr learn again, after step t."""
    later = t + 1
    while later - t < 1 / min(1, max(0.03, math.exp(-0.001 * (later - 1 - 500)))):
        later += 1
    return later

@functools.lru_cache(16)
def lesson_at(t):
    """Returns which lesson of ql and qr step t is, from 1, or 0 if they do not learn in it."""
    step = lesson = 0
    while step < t:
        step, lesson = next_lesson(step), lesson + 1
    return lesson if step == t else 0

RULES = {
    "shampoo": ZooRule(shampoo, lr_factor=333, roles="qkv+matrix", rest="adamw", refresh=shampoo_roots,
                       bounds=dict(eps=(1e-12, math.inf), refresh_steps=AT_LEAST_ONE)),
    "kl_soap": ZooRule(kl_soap, measures=1, refresh=kl_soap_bases, bounds=dict(refresh_steps=AT_LEAST_ONE)),
    "kron":    ZooRule(kron, lr_factor=0.33, refresh=kron_triangles, from_run=("seed",),
                       bounds=dict(precond_lr=(0, 1), refresh_steps=AT_LEAST_ONE)),
}
