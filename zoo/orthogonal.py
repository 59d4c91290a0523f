"""
The gradient of a matrix as a matrix: steps that are large or small in all its directions alike, or that are
Adam's in a basis of the matrix's own. The fused q, k, v are three matrices.
"""
import torch

from optim import per_row
from zoo.rule import AT_LEAST_ONE, ZooRule

def matrices(x, blocks):
    """x as (blocks, rows, columns): q, k, v apart; the kernels of a convolution in one row;
    a vector as one row."""
    return x.reshape(blocks, len(x) // blocks, -1) if x.dim() > 1 else x.reshape(1, 1, -1)

def orthogonal(x, steps=5):
    """Nearly U V', where x = U S V': the singular values of each matrix become 0.7 ... 1.2. Five steps of a
    Newton-Schulz iteration by Jordan (2024), whose polynomial climbs steeply at 0 and does not settle at 1.
    In bfloat16 on a GPU, as its authors have it; in x's own precision on the CPU, where that is faster."""
    tall = x.shape[-2] > x.shape[-1]
    y = (x.mT if tall else x).to(torch.bfloat16 if x.is_cuda else x.dtype)
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = y @ y.mT
        y = 3.4445 * y + (-4.7750 * a + 2.0315 * a @ a) @ y
    return (y.mT if tall else y).to(x.dtype)

def muon(g, m, blocks, *, beta1=0.95):
    """Muon: the mean gradient with all its singular values set to about 1.

        m <- b1 m + (1 - b1) g
        u  = sqrt(max(1, rows / columns)) orthogonal(b1 m + (1 - b1) g)

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      a matrix by about lr sqrt(max(1, rows / columns)) in each of its directions: the root mean
               square of a weight's step is about 0.9 lr / sqrt(columns).
    lr         the size of a step in the spectral norm, but for that factor. Typical 2e-2.
    Defaults   the author's: b1 0.95, lr 0.02. (Others scale by 0.2 sqrt(max(rows, columns)) and keep
               Adam's lr.) The sum m <- b1 m + g of the first version gives the same steps.
    For        the hidden matrices; embedding, head and norms go to AdamW at their own lr.
    Source     Jordan et al. (2024), kellerjordan.github.io/posts/muon; at scale Liu et al. (2025),
               arXiv 2502.16982.
    """
    m.lerp_(g, 1 - beta1)
    o = orthogonal(matrices(g.lerp(m, beta1), blocks))
    return max(1, o.shape[1] / o.shape[2]) ** 0.5 * o.reshape(g.shape)

def normuon(g, m, s: per_row, blocks, *, beta1=0.95, beta2=0.95, eps=1e-10):
    """NorMuon: Muon whose rows are then given the same size.

        m <- b1 m + (1 - b1) g
        o  = orthogonal(b1 m + (1 - b1) g)
        s <- b2 s + (1 - b2) mean of o^2 over each row
        u  = o / (sqrt(s) + eps), brought back to the norm of o, times sqrt(max(1, rows / columns))

    Remembers  m, 4 bytes per weight, and a number per row.
    Moves      a matrix as far as Muon, and its rows (neurons) by the same distance.
    lr         as Muon's. Typical 2e-2.
    Defaults   the authors' code. (The paper ends with 0.2 sqrt(rows columns) / norm instead, for Adam's lr.)
    For        the hidden matrices; embedding, head and norms go to AdamW at their own lr.
    Source     Li et al. (2025), arXiv 2510.05491.
    """
    m.lerp_(g, 1 - beta1)
    o = orthogonal(matrices(g.lerp(m, beta1), blocks))
    rows = s.reshape(len(o), -1, 1)
    rows.lerp_(o.square().mean(2, keepdim=True), 1 - beta2)
    n = o / (rows.sqrt() + eps)
    n = n * (o.norm(dim=(1, 2), keepdim=True) / (n.norm(dim=(1, 2), keepdim=True) + eps))
    return max(1, o.shape[1] / o.shape[2]) ** 0.5 * n.reshape(g.shape)

def scion(g, m, blocks, role, *, beta1=0.9, radius=50.0, radius_embed=4.0, radius_head=3000.0,
          radius_norm=4.0, eps=1e-8):
    """Scion: each kind of tensor moves by a fixed distance, in the norm that suits its part in the network.

        m <- b1 m + (1 - b1) g
        u  = radius sqrt(rows / columns) orthogonal(m)        of a matrix: its spectral norm
        u  = radius m / (rms of its row + eps)                of the embedding: a token's vector
        u  = radius sign(m) / columns                         of the head: its largest weight
        u  = radius m / (rms + eps)                           of a vector

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      every tensor by lr * radius in its norm, whatever its gradient.
    lr         in radii. Typical 3.6e-4 (the authors' 124m).
    Defaults   the authors' for GPT-2 at 124m: 50, and 3000 for its one matrix of embedding and head, whose
               weights move by about 4 lr; so here the embedding's and the norms', which are ours. With
               --weight_decay=1 --weight_decay_kind=coupled weights stay within the radii: the authors'
               constrained form.
    For        every tensor. Their networks start at the radii; ours starts as for every other rule.
    Source     Pethick et al. (2025), arXiv 2502.07529.
    """
    m.lerp_(g, 1 - beta1)
    if g.dim() < 2:
        return radius_norm * m / (m.square().mean().sqrt() + eps)
    if role == "embed":    # .mean(1) would trip torch 2.13's compiler
        mean = m.square() @ m.new_full((m.shape[1], 1), 1 / m.shape[1])
        return radius_embed * m / (mean.sqrt() + eps)
    if role == "head":
        return radius_head * m.sign() / m.shape[1]
    o = orthogonal(matrices(m, blocks))
    return radius * (o.shape[1] / o.shape[2]) ** 0.5 * o.reshape(g.shape)

# ---------------------------------------------------------------------------------------------------------
# Adam in a basis of the matrix's own

def square(w, blocks, side):
    """A (side, side) matrix for each block; none beyond 10,000."""
    side = side if side <= 10000 else 0
    return w.new_zeros(blocks, side, side)

def left(w, blocks, *, role):
    """One for the rows; none for a vector, nor for the side of the vocabulary."""
    return square(w, blocks, 0 if w.dim() < 2 or role in ("embed", "head") else len(w) // blocks)

def right(w, blocks):
    """One for the columns; none for a vector."""
    return square(w, blocks, w[0].numel() if w.dim() > 1 else 0)

def turned(x, ql, qr):
    """ql' x qr; an empty basis turns nothing."""
    x = ql.mT @ x if ql.numel() else x
    return x @ qr if qr.numel() else x

def soap(g, m, s, gl: left, gr: right, ql: left, qr: right, t, blocks, *, beta1=0.95, beta2=0.95, eps=1e-8,
         refresh_steps=10):
    """SOAP: Adam in the eigenbasis of Shampoo's two matrices, the mean of g g' and of g' g.

        m <- b1 m + (1 - b1) g
        s <- b2 s + (1 - b2) (ql' g qr)^2
        u  = ql ((ql' m qr) / (sqrt(s) + eps)) qr' sqrt(1 - b2^(t - 1)) / (1 - b1^(t - 1))
        gl <- b2 gl + (1 - b2) g g';  gr <- b2 gr + (1 - b2) g' g       at t = 1 that is all
        ql, qr: eigenvectors of gl and gr at t = 2, then every refresh_steps, by a step of power iteration

    Remembers  m and s, 8 bytes per weight; gl, gr, ql, qr: 8 (rows^2 + columns^2) bytes of a matrix.
    Moves      as Adam. Where the first gradient has fewer directions than the matrix, the rest of the first
               basis is rounding noise: two runs that differ in a last bit soon differ in a tenth.
    lr         in weight, as Adam's. Typical 3e-3, the authors'.
    Defaults   the authors'.
    For        every tensor; vectors as by Adam, embedding and head in a basis of their columns only, and no
               basis, as the authors have it, for a side beyond 10,000. q, k, v have bases of their own.
    Source     Vyas et al. (2024), arXiv 2409.11321. They keep m in the basis, which is the same.
    """
    x, late, k = matrices(g, blocks), (t > 1).to(t), (t - 1).clamp_min(1)
    squares = s.reshape(x.shape)
    m.mul_(1 - late * (1 - beta1)).add_(late * (1 - beta1) * g)
    squares.mul_(1 - late * (1 - beta2)).add_(late * (1 - beta2) * turned(x, ql, qr).square())
    n = turned(matrices(m, blocks), ql, qr) / (squares.sqrt() + eps)
    u = turned(n, ql.mT, qr.mT) * ((1 - beta2**k) ** 0.5 / (1 - beta1**k))
    if gl.numel():
        gl.lerp_(x @ x.mT, 1 - beta2)
    if gr.numel():
        gr.lerp_(x.mT @ x, 1 - beta2)
    return u.reshape(g.shape)

def soap_bases(s, gl, gr, ql, qr, t, blocks):
    """Eigenvectors at t = 2. Later one step towards them: basis <- QR decomposition of mean times basis, with
    the largest first, and s in the same order."""
    squares = matrices(s, blocks)
    for side, mean, basis in ((1, gl, ql), (2, gr, qr)):
        if t == 2 and basis.numel():
            basis.copy_(torch.linalg.eigh(mean).eigenvectors.flip(2))
        elif basis.numel():
            order = (basis * (mean @ basis)).sum(1).argsort(1, descending=True)
            basis.copy_(torch.linalg.qr(mean @ basis.gather(2, order[:, None].expand_as(basis))).Q)
            order = order[:, :, None] if side == 1 else order[:, None]
            squares.copy_(squares.gather(side, order.expand_as(squares)))

RULES = {
    "muon":    ZooRule(muon, lr=7, roles="qkv+matrix", rest="adamw"),
    "normuon": ZooRule(normuon, lr=7, roles="qkv+matrix", rest="adamw"),
    "scion":   ZooRule(scion, lr=0.12),
    "soap":    ZooRule(soap, measures=1, refresh=soap_bases, bounds=dict(refresh_steps=AT_LEAST_ONE)),
}
