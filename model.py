"""
The decoder of "Deconstructing What Makes a Good Optimizer for Language Models" (arXiv 2407.07972), as
its authors ran it: pre-norm blocks, LayerNorm with a gain and no bias, one fused q, k, v projection,
rotary positions, QK-norm over the full width, exact GELU, no biases, an untied head, and an
initialisation that shrinks with depth (OLMo's "mitchell").

Shapes: B sequences, T tokens, D width, H heads, V rows of the padded vocabulary.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

# ---------------------------------------------------------------------------------------------------------
# Parts

class LayerNorm(nn.Module):
    """LayerNorm with a gain and no bias, computed in fp32 whatever comes in. Shape (..., D) to (..., D)."""
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.layer_norm(x.float(), self.weight.shape, self.weight, None, 1e-5).to(x.dtype)

def rotary_tables(context, head_width, base=10000.0):
    """cos and sin of every position's angles, (T, head width / 2) each.
    RoPE: Su et al. (2021), arXiv 2104.09864."""
    speed = base ** -(torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angle = torch.outer(torch.arange(context, dtype=torch.float32), speed)
    return angle.cos(), angle.sin()

def rotate(x, cos, sin):
    """Turns the pairs (x_i, x_{i + half}) of each head by the position's angle, in fp32.
    Shape (B, H, T, D / H)."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)

def causal_attention(q, k, v):
    """Plain softmax(q k' / sqrt(d)) v over the past, for compilers to fuse. Shapes (B, H, T, D / H)."""
    T = q.shape[-2]
    scores = (q @ k.transpose(-2, -1)).float() / math.sqrt(q.shape[-1])          # (B, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1).to(v.dtype) @ v

class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Shape (B, T, D) to (B, T, D)."""
    def __init__(self, width, heads, qk_norm, attention):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.attn_norm = LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        if qk_norm:
            self.q_norm = LayerNorm(width)
            self.k_norm = LayerNorm(width)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = LayerNorm(width)
        self.mlp_up = nn.Linear(width, 4 * width, bias=False)
        self.mlp_down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x, cos, sin):
        B, T, D = x.shape
        q, k, v = self.qkv(self.attn_norm(x)).split(D, dim=-1)                   # (B, T, D) each
        if hasattr(self, "q_norm"):                       # over the full width, before the heads part
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.view(B, T, self.heads, -1).transpose(1, 2) for y in (q, k, v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.attention == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = causal_attention(q, k, v)
        x = x + self.attn_out(y.transpose(1, 2).reshape(B, T, D))
        return x + self.mlp_down(F.gelu(self.mlp_up(self.mlp_norm(x))))

# ---------------------------------------------------------------------------------------------------------
# The loss: head, cross-entropy and z-loss over chunks of tokens, with their gradients in the same pass, so
# that the logits of all tokens never exist. Against autograd through all logits at once, at a vocabulary of
# 4,096 on two cores: 0.63 of the time at width 64, 0.75 at width 256.

def chunk_loss(x, head, targets, z_loss, count):
    """Sums over N tokens of the cross-entropy and of log(Z)^2, Z the sum of exp of logits; and the gradient
    of cross-entropy + z_loss log(Z)^2, divided by count, for x (N, D) and for head (V, D).

        d / d logits = softmax - one_hot(target) + 2 z_loss log(Z) softmax
    """
    logits = (x @ head.T).float()                                                # (N, V)
    log_z = logits.logsumexp(-1)                                                 # (N,)
    right = logits.gather(-1, targets[:, None])[:, 0]
    softmax = (logits - log_z[:, None]).exp()
    one_hot = (torch.arange(len(head), device=x.device) == targets[:, None]).float()
    d = (softmax * (1 + 2 * z_loss * log_z[:, None]) - one_hot) / count
    return (log_z - right).sum(), log_z.square().sum(), d @ head, d.T @ x

class HeadLoss(torch.autograd.Function):
    """chunk_loss over all tokens. Returns three 0-d tensors: the objective, which alone has a gradient, and
    its two parts, the mean cross-entropy and z_loss * mean(log(Z)^2)."""
    @staticmethod
    def forward(ctx, x, head, targets, z_loss, chunk, chunk_loss):
        dx, dhead, sums = torch.empty_like(x), torch.zeros_like(head), torch.zeros(2, device=x.device)
        if torch.is_autocast_enabled(x.device.type):    # cast once, and not for every chunk
            head = head.to(torch.get_autocast_dtype(x.device.type))
        for i in range(0, len(x), chunk):
            here = slice(i, i + chunk)
            loss, z, dx[here], part = chunk_loss(x[here], head, targets[here], z_loss, len(x))
            dhead += part
            sums += torch.stack((loss, z))
        loss, z = sums[0] / len(x), z_loss * sums[1] / len(x)
        ctx.save_for_backward(dx, dhead)
        ctx.mark_non_differentiable(loss, z)
        return loss + z, loss, z

    @staticmethod
    def backward(ctx, grad, *_):
        dx, dhead = ctx.saved_tensors
        return dx * grad, dhead * grad, None, None, None, None

# ---------------------------------------------------------------------------------------------------------
# The model

ROLES = dict(embed="embed", qkv="qkv", attn_out="matrix", mlp_up="matrix", mlp_down="matrix", head="head",
             attn_norm="norm", q_norm="norm", k_norm="norm", mlp_norm="norm", final_norm="norm")

class Decoder(nn.Module):
    """A decoder language model.

    width, layers, heads   D, the number of blocks, H; D / H must be even
    context                longest sequence, in tokens
    vocab_size             token ids are 0 ... vocab_size - 1
    padded_vocab           rows of embedding and head; 0: the next multiple of 128. The softmax sees
                           all of them.
    qk_norm                LayerNorm on q and on k (Dehghani et al. 2023, arXiv 2302.05442)
    attention              "sdpa": torch's fused kernels; "plain": matmul, softmax, matmul
    loss_chunk             tokens whose logits exist at the same time
    seed                   of the initial weights
    """
    def __init__(self, *, width, layers, heads, context, vocab_size, padded_vocab=0, qk_norm=True,
                 attention="sdpa", loss_chunk=512, seed=0):
        super().__init__()
        rows = padded_vocab or -(-vocab_size // 128) * 128
        self.vocab_size, self.context, self.loss_chunk = vocab_size, context, loss_chunk
        self.chunk_loss = chunk_loss
        self.embed = nn.Embedding(rows, width)
        self.blocks = nn.ModuleList(Block(width, heads, qk_norm, attention) for _ in range(layers))
        self.final_norm = LayerNorm(width)
        self.head = nn.Linear(width, rows, bias=False)
        for name, table in zip(("cos", "sin"), rotary_tables(context, width // heads)):
            self.register_buffer(name, table, persistent=False)
        self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed):
        """Normal, cut at 3 sigma. sigma = 1 / sqrt(inputs); in layer l = 0, 1, ... what is added to the
        stream has 1 / sqrt(2 inputs (l + 1)), so that deep layers begin small."""
        generator = torch.Generator(self.head.weight.device if not self.head.weight.is_meta else "cpu")
        generator.manual_seed(seed)
        for name, p, role in self.roles():
            if role != "norm":
                sigma = p.shape[1] ** -0.5
                if name.endswith(("attn_out.weight", "mlp_down.weight")):
                    sigma /= math.sqrt(2 * (int(name.split(".")[1]) + 1))
                nn.init.trunc_normal_(p, 0.0, sigma, -3 * sigma, 3 * sigma, generator=generator)

    def roles(self):
        """Yields (name, parameter, role) for every parameter; a parameter without a role is a KeyError."""
        for name, p in self.named_parameters():
            yield name, p, ROLES[name.split(".")[-2]]

    def forward(self, tokens, targets=None, z_loss=0.0):
        """Logits (B, T, V) of the next token. With targets (B, T), three 0-d tensors instead: the objective
        of training, to call backward() on, and the two of which it is the sum, for the record: the mean
        cross-entropy in nats per token, and z_loss * mean(log(sum of exp of logits)^2), which keeps the
        logits from drifting (Chowdhery et al. 2022, arXiv 2204.02311)."""
        x = self.stream(tokens)
        return self.logits(x) if targets is None else self.losses(x, targets, z_loss)

    def stream(self, tokens):
        T = tokens.shape[1]
        x = self.embed(tokens)                                                   # (B, T, D)
        for block in self.blocks:
            x = block(x, self.cos[:T], self.sin[:T])
        return x

    def drawn(self, tokens, uniform):
        """Next tokens (B, T) drawn from the model's own prediction, a chunk at a time: where the running sum
        of the probabilities passes the numbers uniform (B, T) in [0, 1)."""
        x, uniform = self.stream(tokens).detach(), uniform.reshape(-1, 1)    # training's graph, there already
        with torch.no_grad():
            chunks = self.final_norm(x).flatten(0, 1).split(self.loss_chunk)
            sums = (self.head(chunk).float().softmax(-1).cumsum(-1) for chunk in chunks)
            ids = [torch.searchsorted(s, u * s[:, -1:]) for s, u in zip(sums, uniform.split(self.loss_chunk))]
        return torch.cat(ids).clamp_max(len(self.head.weight) - 1).reshape(tokens.shape)    # beyond it: nan

    def logits(self, x):
        return self.head(self.final_norm(x)).float()                             # (B, T, V)

    def losses(self, x, targets, z_loss):
        x = self.final_norm(x).flatten(0, 1)                                     # (B T, D)
        return HeadLoss.apply(x, self.head.weight, targets.flatten(), z_loss, self.loss_chunk,
                              self.chunk_loss)

    def compile_parts(self):
        """Compiles one block, whose code serves all of them, and a chunk of the loss: as fast as the whole
        model in one graph, and several times sooner ready."""
        for block in self.blocks:
            block.compile(fullgraph=True, dynamic=False)
        self.chunk_loss = torch.compile(chunk_loss, fullgraph=True, dynamic=False)
