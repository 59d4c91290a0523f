"""
Rules that treat the gradient of a matrix as a matrix. Some of them make steps of equal size in all directions
of the matrix. SOAP applies Adam in a basis that belongs to the matrix. The fused q, k, v are three matrices.
"""
import torch

from optim import per_row
from zoo.rule import AT_LEAST_ONE, ZooRule

# The devices that multiply bf16 faster than fp32. A CPU does so if it has instructions for it.
FAST_BF16 = {"cuda"}
if any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16")):
    FAST_BF16.add("cpu")

JORDAN = (3.4445, -4.7750, 2.0315)    # the polynomial of Muon's Newton-Schulz iteration

def matrices(x, blocks):
    """Returns x as (blocks, rows, columns).

    q, k and v become three matrices. In a convolution, a row holds all kernels of one output. A vector
    becomes one row. In a tensor of experts, (E, rows, columns) with E blocks, each expert is a matrix."""
    if x.dim() > 2 and len(x) == blocks > 1:
        return x.flatten(2)
    return x.reshape(blocks, len(x) // blocks, -1) if x.dim() > 1 else x.reshape(1, 1, -1)

def row_of_matrix(w, blocks):
    """Makes one number for each row of each matrix."""
    return w.new_zeros(*matrices(w, blocks).shape[:2], 1) if w.dim() > 2 else per_row(w, blocks)

def orthogonal(x, steps=5, polynomials=(JORDAN,), margin=1.0):
    """Returns nearly U V', where x = U S V': the singular values of each matrix become 0.7 ... 1.2.

    It takes five steps of a Newton-Schulz iteration by Jordan (2024). The polynomial of this iteration is
    steep at 0 and does not converge at 1. From an x in fp32 it computes in bfloat16, as its authors do, if
    the hardware is fast at that and no side is shorter than 64. Then a singular value changes by at most
    0.05, and usually by 0.003.

    polynomials    (a, b, c) of each step, which makes a s + b s^3 + c s^5 of a singular value s. The last
                   one serves for all further steps
    margin         the iteration begins at x / (margin * norm of x)"""
    tall = x.shape[-2] > x.shape[-1]
    in_bf16 = x.dtype == torch.float32 and x.device.type in FAST_BF16 and min(x.shape[-2:]) >= 64
    y = (x.mT if tall else x).to(torch.bfloat16 if in_bf16 else x.dtype)
    y = y / (y.norm(dim=(-2, -1), keepdim=True) * margin + 1e-7)
    for step in range(steps):
        a, b, c = polynomials[min(step, len(polynomials) - 1)]
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return (y.mT if tall else y).to(x.dtype)

def muon(g, m, blocks, *, beta1=0.95):
    """Muon follows the mean gradient with all its singular values set to about 1.
        m <- b1 m + (1 - b1) g
        u  = sqrt(max(1, rows / columns)) orthogonal(b1 m + (1 - b1) g)

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      a matrix by about lr sqrt(max(1, rows / columns)) in each of its directions. The root mean
               square of a weight's step is about 0.9 lr / sqrt(columns).
    lr         is the size of a step in the spectral norm, apart from that factor. Typical 2e-2.
    Defaults   are the author's: b1 0.95, lr 0.02. Others scale by 0.2 sqrt(max(rows, columns)) and keep
               Adam's lr. The first version used the sum m <- b1 m + g, which gives the same steps.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr.
    Source     Jordan et al. (2024), kellerjordan.github.io/posts/muon; at scale Liu et al. (2025),
               arXiv 2502.16982."""
    m.lerp_(g, 1 - beta1)
    o = orthogonal(matrices(g.lerp(m, beta1), blocks))
    return max(1, o.shape[1] / o.shape[2]) ** 0.5 * o.reshape(g.shape)

def normuon(g, m, s: row_of_matrix, blocks, *, beta1=0.95, beta2=0.95, eps=1e-10):
    """NorMuon is Muon that then gives all rows the same size.
        m <- b1 m + (1 - b1) g
        o  = orthogonal(b1 m + (1 - b1) g)
        s <- b2 s + (1 - b2) mean of o^2 over each row
        u  = o / (sqrt(s) + eps), scaled back to the norm of o, times sqrt(max(1, rows / columns))

    Remembers  m, 4 bytes per weight, and one number per row.
    Moves      a matrix as far as Muon does, and all its rows (neurons) by the same distance.
    lr         is Muon's. Typical 2e-2.
    Defaults   are those of the authors' code. The paper ends with the factor 0.2 sqrt(rows columns) / norm
               instead, which suits Adam's lr.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr.
    Source     Li et al. (2025), arXiv 2510.05491."""
    m.lerp_(g, 1 - beta1)
    o = orthogonal(matrices(g.lerp(m, beta1), blocks))
    rows = s.reshape(len(o), -1, 1)
    rows.lerp_(o.square().mean(2, keepdim=True), 1 - beta2)
    n = o / (rows.sqrt() + eps)
    n = n * (o.norm(dim=(1, 2), keepdim=True) / (n.norm(dim=(1, 2), keepdim=True) + eps))
    return max(1, o.shape[1] / o.shape[2]) ** 0.5 * n.reshape(g.shape)

def cautious_muon(g, m, blocks, *, beta1=0.95):
    """Cautious Muon leaves out of Muon's momentum what the newest gradient disagrees with.
        m <- b1 m + (1 - b1) g
        k  = 1 where m g > 0, else 0;  k = k / max(mean(k), 0.001)
        u  = sqrt(max(1, rows / columns)) orthogonal(k (b1 m + (1 - b1) g))

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      a matrix as far as Muon does. A weight that k leaves out may move, because the orthogonal step
               mixes the weights of a matrix. The modifier cautious on Muon would hold it still.
    lr         is Muon's. Typical 2e-2.
    Defaults   are the authors'. To divide by the mean of k changes next to nothing, because orthogonal()
               divides by the norm.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr.
    Source     Liang et al. (2024), arXiv 2411.16085; this form is in their code, c_muon.py."""
    m.lerp_(g, 1 - beta1)
    k = matrices((m * g > 0).to(g), blocks)
    k = k / k.mean(dim=(1, 2), keepdim=True).clamp_min(1e-3)
    o = orthogonal(k * matrices(g.lerp(m, beta1), blocks))
    return max(1, o.shape[1] / o.shape[2]) ** 0.5 * o.reshape(g.shape)

def mars_m(g, m, last, blocks, *, beta1=0.95, gamma=0.025):
    """MARS-M is Muon on gradients plus a part of their last change, to reduce noise.
        c  = g + gamma b1 / (1 - b1) (g - last), divided by its norm over the matrix if that is above 1
        m <- b1 m + (1 - b1) c;  last <- g
        u  = 0.2 sqrt(max(rows, columns)) orthogonal(m)

    Remembers  m, and last, a copy of the gradient: 8 bytes per weight.
    Moves      a matrix in all its directions alike. The root mean square of a weight's step is about 0.2 lr,
               as in AdamW.
    lr         is Adam's, because of the factor 0.2 sqrt(max(rows, columns)). Typical 6e-3, the authors' at
               124m.
    Defaults   are those of the authors' code, which always divides by the norm, whatever its option clip_c
               says. Before the first step last is 0. There is no Nesterov step, so muon with the modifier
               mars_g differs in that and in the factor.
    For        the hidden matrices. AdamW trains embedding, head and norms at their own lr.
    Source     Liu, Yuan, Gu (2025), arXiv 2510.21800. This is their approximate form, which does not compute
               a second gradient at the old weights."""
    c = matrices(g + gamma * beta1 / (1 - beta1) * (g - last), blocks)
    c = c / c.norm(dim=(1, 2), keepdim=True).clamp_min(1.0)
    last.copy_(g)
    m.lerp_(c.reshape(g.shape), 1 - beta1)
    o = orthogonal(matrices(m, blocks))
    return 0.2 * max(o.shape[1:]) ** 0.5 * o.reshape(g.shape)

def scion(g, m, blocks, role, *, beta1=0.9, radius=50.0, radius_embed=4.0, radius_head=3000.0,
          radius_norm=4.0, eps=1e-8):
    """Scion moves each kind of tensor by a fixed distance, in the norm that suits its part in the network.
        m <- b1 m + (1 - b1) g
        u  = radius sqrt(rows / columns) orthogonal(m)        a matrix, measured by its spectral norm
        u  = radius m / (rms of its row + eps)                the embedding, by the vectors of its tokens
        u  = radius sign(m) / columns                         the head, by its largest weight
        u  = radius m / (rms + eps)                           a vector

    Remembers  m, the running mean of gradients: 4 bytes per weight.
    Moves      every tensor by lr * radius in its norm, whatever its gradient is.
    lr         is in radii. Typical 3.6e-4, the authors' at 124m.
    Defaults   are the authors' for GPT-2 at 124m: radius 50, and 3000 for the one matrix that is both
               embedding and head there. The weights of that matrix move by about 4 lr. So the radii of the
               embedding and of the norms are 4 here, and this is our own choice. With --weight_decay=1
               --weight_decay_kind=coupled the weights stay within the radii, as in the authors' constrained
               form.
    For        every tensor. The authors' networks start at the radii. Ours starts as for every other rule.
    Source     Pethick et al. (2025), arXiv 2502.07529."""
    m.lerp_(g, 1 - beta1)
    if g.dim() < 2:
        return radius_norm * m / (m.square().mean().sqrt() + eps)
    if role == "embed":    # torch 2.13's compiler fails on .mean(1)
        mean = m.square() @ m.new_full((m.shape[1], 1), 1 / m.shape[1])
        return radius_embed * m / (mean.sqrt() + eps)
    if role == "head":
        return radius_head * m.sign() / m.shape[1]
    o = orthogonal(matrices(m, blocks))
    return radius * (o.shape[1] / o.shape[2]) ** 0.5 * o.reshape(g.shape)

# ---------------------------------------------------------------------------------------------------------
# Adam in a basis that belongs to the matrix

def square_matrix(w, blocks, side):
    """Makes a (side, side) matrix for each block, or an empty one if the side is longer than 10,000."""
    side = side if side <= 10000 else 0
    return w.new_zeros(blocks, side, side)

def left(w, blocks, *, role):
    """Makes a matrix for the rows. It is empty for a vector, and where the rows are the vocabulary."""
    has_basis = w.dim() > 1 and role not in ("embed", "head")
    return square_matrix(w, blocks, matrices(w, blocks).shape[1] if has_basis else 0)

def right(w, blocks):
    """Makes a matrix for the columns. It is empty for a vector."""
    return square_matrix(w, blocks, matrices(w, blocks).shape[2] if w.dim() > 1 else 0)

def change_basis(x, ql, qr):
    """Returns ql' x qr. An empty basis changes nothing."""
    x = ql.mT @ x if ql.numel() else x
    return x @ qr if qr.numel() else x

def soap(g, m, s, gl: left, gr: right, ql: left, qr: right, t, blocks, *, beta1=0.95, beta2=0.95, eps=1e-8,
         refresh_steps=10):
    """SOAP is Adam in the eigenbasis of Shampoo's two matrices, which are the means of g g' and of g' g.
        m <- b1 m + (1 - b1) g
        s <- b2 s + (1 - b2) (ql' g qr)^2
        u  = ql ((ql' m qr) / (sqrt(s) + eps)) qr' sqrt(1 - b2^(t - 1)) / (1 - b1^(t - 1))
        gl <- b2 gl + (1 - b2) g g';  gr <- b2 gr + (1 - b2) g' g       at t = 1 the rule does only this
        ql, qr: eigenvectors of gl and gr at t = 2, then every refresh_steps a step of power iteration

    Remembers  m and s, 8 bytes per weight, and for a matrix gl, gr, ql, qr, 8 (rows^2 + columns^2) bytes.
    Moves      weights as Adam does. If the first gradient has fewer directions than the matrix, the rest of
               the first basis is rounding noise. Then two runs that differ in a last bit soon differ by a
               tenth.
    lr         is in weight, as Adam's lr is. Typical 3e-3, the authors'.
    Defaults   are the authors'.
    For        every tensor. Vectors move as with Adam. Embedding and head have only a basis of their
               columns. As with the authors, a side longer than 10,000 has no basis. q, k and v have their
               own bases.
    Source     Vyas et al. (2024), arXiv 2409.11321. They keep m in the basis, which is equivalent."""
    x, late, k = matrices(g, blocks), (t > 1).to(t), (t - 1).clamp_min(1)
    squares = s.reshape(x.shape)
    m.mul_(1 - late * (1 - beta1)).add_(late * (1 - beta1) * g)
    squares.mul_(1 - late * (1 - beta2)).add_(late * (1 - beta2) * change_basis(x, ql, qr).square())
    n = change_basis(matrices(m, blocks), ql, qr) / (squares.sqrt() + eps)
    u = change_basis(n, ql.mT, qr.mT) * ((1 - beta2**k) ** 0.5 / (1 - beta1**k))
    u = torch.where(t > 1, u, 0.0)    # with eps 0 the first n is 0 / 0
    if gl.numel():
        gl.lerp_(x @ x.mT, 1 - beta2)
    if gr.numel():
        gr.lerp_(x.mT @ x, 1 - beta2)
    return u.reshape(g.shape)

def soap_bases(s, gl, gr, ql, qr, t, blocks):
    """Updates the bases ql and qr. At t = 2 they become the eigenvectors of gl and gr.

    Later they make one step towards the eigenvectors: basis <- Q of the QR decomposition of mean times
    basis. The directions with the largest eigenvalues come first, and s gets the same order."""
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
    "muon":          ZooRule(muon, lr_factor=7, roles="qkv+matrix", rest="adamw", stacks=True),
    "normuon":       ZooRule(normuon, lr_factor=7, roles="qkv+matrix", rest="adamw", stacks=True),
    "scion":         ZooRule(scion, lr_factor=0.12, stacks=True),
    "soap":          ZooRule(soap, measures=1, refresh=soap_bases, bounds=dict(refresh_steps=AT_LEAST_ONE)),
    "cautious_muon": ZooRule(cautious_muon, lr_factor=7, roles="qkv+matrix", rest="adamw", stacks=True),
    "mars_m":        ZooRule(mars_m, lr_factor=2, roles="qkv+matrix", rest="adamw", stacks=True),
}
