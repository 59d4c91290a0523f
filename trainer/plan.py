"""
What a run will take, by arithmetic: weights, tokens, FLOPs, memory, disk, hours. It needs no data and no GPU.

    python train.py --config=configs/150m.toml --optimizer=signum --plan
    ./sweep.sh grid configs/150m.toml optimizer=adamw,lion lr=1e-3,1e-4 --print      the hours of a grid
"""
import shlex
import sys

from trainer.errors import UserError, one_line

def kept(config, tokens):
    """Bytes that autograd keeps for the backward pass of so many tokens; of eager code: compiled code
    computes some of it again instead. a: bytes of a matrix product's in- and outputs."""
    D, T, a = config.width, config.context, 2 if config.precision == "bf16" else 4
    block = 2 * 4 * D                      # inputs of the two norms: the stream is fp32
    block += 2 * 8                         # mean and 1 / deviation of each norm
    block += a * (3 * D + 4 * D + 4 * D)   # inputs of qkv, attn_out, mlp_up; of GELU; of mlp_down
    if config.qk_norm:
        block += 2 * 8 + (2 * 4 * D if a == 2 else 0)    # in bf16, q and k are copied to fp32
    if config.attention == "sdpa":
        block += a * 6 * D + 4 * config.heads            # q, k after rotation, v inside qkv, y; log-sum-exp
    else:
        block += a * 3 * D + (a * 3 * D if config.qk_norm and a == 4 else 0)    # q, k, v; qkv for the norms
        block += config.heads * T * (4 if a == 4 else 6)                        # softmax, and in bf16
    ends = 4 * D + 8 + 4 * D + 8           # input of the final norm; gradient for it from the loss; ids
    once = T * (D // config.heads) * 4     # angles
    once += 4 * D * (config.padded_vocab or -(-config.vocab_size // 128) * 128)    # the head's gradient
    once += T * T * config.layers if config.attention == "plain" else 0        # masks
    return tokens * (config.layers * block + ends) + once

def tokens_of(config):
    """How many a run reads."""
    return (config.steps + config.freeze_steps) * config.batch * config.context

def estimate(config, model, optimizer, micro, accumulation):
    """{quantity: number} of a run. model, optimizer: may be on the device meta, where they take no memory."""
    count = {}
    for name, p, role in model.roles():
        count[role] = count.get(role, 0) + p.numel()
    weights, rows = sum(count.values()), model.head.weight.shape[0]
    hidden = weights - count["embed"] - count["head"]
    tokens = tokens_of(config)
    at_once = micro * config.context
    # two FLOPs a weight and token forward, four backward; attention: two products of T x D over half the past
    flops = tokens * 6 * (weights - count["embed"] + config.layers * config.width * config.context)
    gradients = 4 * weights * (1 + optimizer.wants_sampled())    # Sophia has two sets at a time
    memory = dict(weights=4 * weights, gradients=gradients,
                  state=sum(optimizer.state_bytes(group) for group in optimizer.param_groups),
                  activations=kept(config, at_once),
                  # of a chunk of tokens, in fp32: the logits, their gradient and three parts of it
                  logits=min(config.loss_chunk, at_once) * rows * 4 * 5,
                  # of the largest tensor: the update, its parts, and the new weights
                  update=4 * 4 * max(p.numel() for p in model.parameters()))
    if config.precision == "bf16":    # autocast's copies of the matrices; the loss makes that of the head
        memory["activations"] += 2 * (weights - count["embed"] - count["norm"] - count["head"])
        memory["logits"] += 2 * count["head"]
    # the update comes after the backward pass; gradients of a single micro-batch while its activations go
    during = memory["activations"] + memory["logits"] + (memory["gradients"] if accumulation > 1 else 0)
    peak = memory["weights"] + memory["state"] + max(during, memory["gradients"] + memory["update"])
    id_bytes = 2 if config.vocab_size <= 2**16 else 4
    return dict(count=count, weights=weights, hidden=hidden, tokens=tokens, flops=flops, memory=memory,
                peak=peak, data=id_bytes * tokens, checkpoint=4 * weights + memory["state"])

def hours(config):
    """Hours at the stated throughput; None if nobody stated one."""
    return tokens_of(config) / config.throughput / 3600 if config.throughput else None

def show(config, model, optimizer, micro, accumulation):
    """Prints the plan."""
    for name, usual in (("precision", "bf16"), ("attention", "sdpa"), ("loss_chunk", 4096)):    # on a GPU
        if getattr(config, name) in ("auto", 0):
            setattr(config, name, usual)
    e = estimate(config, model, optimizer, micro, accumulation)
    step = config.batch * config.context
    print(f"weights      {e['weights']:,}: " + ", ".join(f"{role} {n:,}" for role, n in e["count"].items()))
    print(f"             {e['hidden']:,} outside embedding and head")
    print(f"tokens       {e['tokens']:,} in {e['tokens'] // step:,} steps of {step:,}: "
          f"{e['tokens'] / e['hidden']:.1f} per weight outside embedding and head")
    print(f"compute      {e['flops']:.3g} FLOP: 6 per token and weight but the embedding's, and "
          "6 x layers x width x context\n             per token for attention")
    print(f"memory       bytes on each GPU: {config.optimizer}, {micro} x {config.context} tokens at a time, "
          f"{config.precision}, {config.attention} attention")
    for name, size in e["memory"].items():
        print(f"  {name:11s}{size:18,d}")
    print(f"  {'together':11s}{e['peak']:18,d}  at once, in eager code (compiled: less), and 1 GB of CUDA")
    print(f"disk         data {e['data']:,} bytes if each token is read once; "
          f"checkpoints {config.keep + 1} x {e['checkpoint']:,}")
    if (time := hours(config)) is None:
        print("time         unknown; give --throughput, tokens per second")
    else:
        print(f"time         {time:.3g} hours at {config.throughput:,} tokens/s (--throughput), "
              f"{time / 8:.3g} at eight times that")

def main(lines):
    """The hours of many commands, one a line, as sweep.sh --print writes them."""
    import train
    try:
        runs = [train.read_options(shlex.split(line)[2:])[0] for line in lines]
    except UserError as error:
        print(f"plan.py: error: {one_line(error)}", file=sys.stderr)
        return error.code
    times = [hours(config) for config in runs]
    total = ("hours unknown: give -- --throughput=N, tokens per second" if None in times else
             f"{sum(times):.4g} hours at the stated throughput")
    print(f"# {len(runs)} runs, {total}")
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.stdin))
