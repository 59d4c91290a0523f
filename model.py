"""
The decoder of "Deconstructing What Makes a Good Optimizer for Language Models" (arXiv 2407.07972), as its
authors ran it: pre-norm blocks, LayerNorm with a gain and no bias, one fused projection for q, k and v,
rotary positions, QK-norm over the full width, exact GELU, no biases, an untied head, and an initialization
that shrinks with depth (OLMo's "mitchell").

Shapes: B sequences, T tokens, D width, H heads, V rows of the padded vocabulary, N tokens of a chunk.
"""
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """LayerNorm with a gain and no bias, computed in fp32 for any input type. Shape (..., D) to (..., D)."""
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight, None, 1e-5).to(x.dtype)


def rotary_tables(context: int, head_width: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines of the angles of every position, (context, head_width / 2) each, for the
    rotary position embedding of Su et al. (2021), arXiv 2104.09864."""
    speed = base ** -(torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angle = torch.outer(torch.arange(context, dtype=torch.float32), speed)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each pair (x_i, x_{i + half}) of a head by the angle of its position, in fp32.
    x has the shape (B, H, T, D / H); cos and sin have (T, D / H / 2)."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns softmax(q k' / sqrt(d)) v, where each token attends to itself and to the tokens before it. A
    compiler can fuse these plain operations. All shapes are (B, H, T, d) with d = D / H."""
    T = q.shape[-2]
    scores = (q @ k.transpose(-2, -1)).float() / math.sqrt(q.shape[-1])          # (B, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1).to(v.dtype) @ v


class Block(nn.Module):
    """Computes x + attention(norm(x)), then x + mlp(norm(x)). Shape (B, T, D) to (B, T, D)."""
    def __init__(self, width: int, heads: int, qk_norm: bool, attention: str):
        super().__init__()
        self.heads, self.qk_norm, self.attention = heads, qk_norm, attention
        self.attn_norm = LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        if qk_norm:
            self.q_norm, self.k_norm = LayerNorm(width), LayerNorm(width)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = LayerNorm(width)
        self.mlp_up = nn.Linear(width, 4 * width, bias=False)
        self.mlp_down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(self.attn_norm(x)).split(D, dim=-1)                   # (B, T, D) each
        if self.qk_norm:                                   # over the full width, before the split into heads
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.view(B, T, self.heads, -1).transpose(1, 2) for y in (q, k, v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)                          # (B, H, T, D / H) each
        if self.attention == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = causal_attention(q, k, v)
        x = x + self.attn_out(y.transpose(1, 2).reshape(B, T, D))
        return x + self.mlp_down(F.gelu(self.mlp_up(self.mlp_norm(x))))


def chunk_loss(x: Tensor, head: Tensor, targets: Tensor, z_loss: float, count: int) -> tuple[Tensor, ...]:
    """Computes the losses of N tokens, and the gradients of (cross-entropy + z_loss log(Z)^2) / count. Z is a
    token's sum of exp(logits). The gradient of a token's logits follows by calculus:
    (softmax - one_hot(target) + 2 z_loss log(Z) softmax) / count.

    Args: x (N, D), head (V, D), targets (N,). `count` is the number of tokens of all chunks together.
    Returns: the sums of the cross-entropy and of log(Z)^2 over the N tokens; the gradients of x and head."""
    logits = (x @ head.T).float()                                                # (N, V)
    log_z = logits.logsumexp(-1)                                                 # (N,)
    target_logit = logits.gather(-1, targets[:, None])[:, 0]
    softmax = (logits - log_z[:, None]).exp()
    one_hot = (torch.arange(len(head), device=x.device) == targets[:, None]).float()
    d_logits = (softmax * (1 + 2 * z_loss * log_z[:, None]) - one_hot) / count
    return (log_z - target_logit).sum(), log_z.square().sum(), d_logits @ head, d_logits.T @ x


class HeadLoss(torch.autograd.Function):
    """Applies chunk_loss to all tokens, a chunk at a time. The forward pass also computes the gradients, and
    the backward pass only scales them. So the logits of all tokens never exist together. This takes 0.63 of
    the time of autograd through all logits at width 64, 0.75 at width 256 (vocabulary 4,096, two cores).
    Returns the objective, which alone has a gradient, the mean cross-entropy, and z_loss * mean(log(Z)^2)."""
    @staticmethod
    def forward(ctx, x, head, targets, z_loss, chunk_size, chunk_loss):
        dx, d_head, sums = torch.empty_like(x), torch.zeros_like(head), torch.zeros(2, device=x.device)
        if torch.is_autocast_enabled(x.device.type):    # cast the head once here, not again for every chunk
            head = head.to(torch.get_autocast_dtype(x.device.type))
        for start in range(0, len(x), chunk_size):
            chunk = slice(start, start + chunk_size)
            loss, z, dx[chunk], d_head_part = chunk_loss(x[chunk], head, targets[chunk], z_loss, len(x))
            d_head += d_head_part
            sums += torch.stack((loss, z))
        loss, z = sums[0] / len(x), z_loss * sums[1] / len(x)
        ctx.save_for_backward(dx, d_head)
        ctx.mark_non_differentiable(loss, z)
        return loss + z, loss, z

    @staticmethod
    def backward(ctx, grad, *_):
        dx, d_head = ctx.saved_tensors
        return dx * grad, d_head * grad, None, None, None, None


# The role of each module, one of ROLES in optim.py. A new module needs an entry here.
ROLE_OF_MODULE = {name: name for name in ("embed", "qkv", "attn_out", "mlp_up", "mlp_down", "head")} | {
    name: "norm" for name in ("attn_norm", "q_norm", "k_norm", "mlp_norm", "final_norm")}


class Decoder(nn.Module):
    """A decoder language model.

    Args:
        width, layers, heads: D, the number of blocks, and H. D / H must be even.
        context: the longest sequence, in tokens.
        vocab_size: token ids are 0 ... vocab_size - 1.
        padded_vocab: rows of embedding and head, all of them in the softmax; 0: the next multiple of 128.
        qk_norm: whether q and k pass through a LayerNorm (Dehghani et al. 2023, arXiv 2302.05442).
        attention: "sdpa" for torch's fused kernels; "plain" for matmul, softmax, matmul.
        loss_chunk: the number of tokens whose logits exist at the same time.
        seed: of the initial weights."""
    def __init__(self, *, width: int, layers: int, heads: int, context: int, vocab_size: int,
                 padded_vocab: int = 0, qk_norm: bool = True, attention: str = "sdpa", loss_chunk: int = 512,
                 seed: int = 0):
        super().__init__()
        rows = padded_vocab or math.ceil(vocab_size / 128) * 128
        self.vocab_size, self.context, self.loss_chunk = vocab_size, context, loss_chunk
        self.chunk_loss = chunk_loss    # compile_parts() replaces it
        self.embed = nn.Embedding(rows, width)
        self.blocks = nn.ModuleList(Block(width, heads, qk_norm, attention) for _ in range(layers))
        self.final_norm = LayerNorm(width)
        self.head = nn.Linear(width, rows, bias=False)
        for name, table in zip(("cos", "sin"), rotary_tables(context, width // heads)):
            self.register_buffer(name, table, persistent=False)
        self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draws each matrix from a normal distribution with sigma = 1 / sqrt(inputs), cut at 3 sigma. The two
        that add to the residual stream in layer l = 0, 1, ... have sigma = 1 / sqrt(2 inputs (l + 1))."""
        device = "cpu" if self.head.weight.is_meta else self.head.weight.device
        generator = torch.Generator(device).manual_seed(seed)
        for name, p, role in self.roles():
            if role != "norm":
                sigma = p.shape[1] ** -0.5
                if role in ("attn_out", "mlp_down"):    # the name is "blocks.<layer>.<role>.weight"
                    sigma /= math.sqrt(2 * (int(name.split(".")[1]) + 1))
                nn.init.trunc_normal_(p, 0.0, sigma, -3 * sigma, 3 * sigma, generator=generator)

    def roles(self) -> Iterator[tuple[str, nn.Parameter, str]]:
        """Yields (name, parameter, role) for every parameter. Raises ValueError if a module has no role."""
        for name, p in self.named_parameters():
            if (module := name.split(".")[-2:][0]) not in ROLE_OF_MODULE:
                raise ValueError(f"{name}: give its module a role in ROLE_OF_MODULE of model.py")
            yield name, p, ROLE_OF_MODULE[module]

    def forward(self, tokens: Tensor, targets: Tensor | None = None, z_loss: float = 0.0):
        """Predicts the token that follows each of `tokens` (B, T). Returns the logits (B, T, V).

        With `targets` (B, T) it returns three 0-d tensors instead: the objective of training, which has a
        gradient, and its two parts, which have none: the mean cross-entropy in nats per token, and z_loss *
        mean(log(Z)^2), which keeps the logits from drifting (Chowdhery et al. 2022, arXiv 2204.02311)."""
        x = self.stream(tokens)
        return self.logits(x) if targets is None else self.losses(x, targets, z_loss)

    def stream(self, tokens: Tensor) -> Tensor:
        """Returns the residual stream (B, T, D) after the last block."""
        T, x = tokens.shape[1], self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos[:T], self.sin[:T])
        return x

    def sample_labels(self, tokens: Tensor, uniform: Tensor) -> Tensor:
        """Draws labels (B, T), also padded ids, from the model's own prediction for `tokens` (B, T). Sophia
        estimates the curvature with them. Each label is the id at which the running sum of the probabilities
        reaches the label's random number in [0, 1), from `uniform` (B, T)."""
        # The blocks are compiled with gradients enabled. Disabling them here would compile the blocks again.
        x, labels = self.stream(tokens).detach(), []
        with torch.no_grad():
            x_chunks = self.final_norm(x).flatten(0, 1).split(self.loss_chunk)
            uniform_chunks = uniform.reshape(-1, 1).split(self.loss_chunk)
            for x_chunk, u in zip(x_chunks, uniform_chunks):
                sums = self.head(x_chunk).float().softmax(-1).cumsum(-1)         # (N, V)
                labels.append(torch.searchsorted(sums, u * sums[:, -1:]))
        # Where the probabilities are nan, searchsorted returns V, which is no row of the head.
        return torch.cat(labels).clamp_max(len(self.head.weight) - 1).reshape(tokens.shape)

    def logits(self, x: Tensor) -> Tensor:
        """Returns the logits (B, T, V), in fp32, of the residual stream x (B, T, D)."""
        return self.head(self.final_norm(x)).float()

    def losses(self, x: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the objective and its two parts for the residual stream x (B, T, D); see forward()."""
        x = self.final_norm(x).flatten(0, 1)                                     # (B T, D)
        return HeadLoss.apply(x, self.head.weight, targets.flatten(), z_loss, self.loss_chunk,
                              self.chunk_loss)

    def compile_parts(self) -> None:
        """Compiles one block, whose code serves all blocks, and the loss of a chunk. They run as fast as the
        whole model compiled as one graph, and compile several times faster."""
        for block in self.blocks:
            block.compile(fullgraph=True, dynamic=False)
        self.chunk_loss = torch.compile(chunk_loss, fullgraph=True, dynamic=False)
