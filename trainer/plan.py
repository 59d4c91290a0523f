"""
Estimates by arithmetic what a run will take: weights, tokens, FLOPs, memory, disk space and hours. This needs
neither the data nor a GPU.

    python train.py --config=configs/150m.toml --optimizer=signum --plan
    ./sweep.sh grid configs/150m.toml optimizer=adamw,lion lr=1e-3,1e-4 --print      the hours of a grid
"""
import dataclasses
import math
import os
import shlex
import sys
from pathlib import Path

import torch

from model import Decoder
from trainer.announce import print_optimizer
from trainer.build import build_optimizer, decoder_shape
from trainer.data import DTYPES, dtype_for, options_to_prepare
from trainer.errors import UserError, one_line
from trainer.machine import provide_cache
from trainer.options import ROOT
from trainer.settings import Settings, read, split_batch
from zoo.table import state_bytes


def activation_bytes(settings: Settings, tokens: int) -> int:
    """Counts the bytes that autograd keeps for the backward pass, in eager code. Compiled code keeps less,
    because it computes some values a second time instead.

    Args:
        settings: the options of the run; precision and attention must not be "auto".
        tokens: how many tokens pass through the model together.
    """
    width, context = settings.width, settings.context
    bf16, plain = settings.precision == "bf16", settings.attention == "plain"
    element = 2 if bf16 else 4    # bytes of a number that enters or leaves a matrix product
    # For each token, in each block. The residual stream is in fp32.
    block = 2 * 4 * width                     # inputs of the two norms
    block += 2 * 8                            # mean and 1 / deviation of each of these norms
    block += element * 3 * width              # inputs of qkv, attn_out and mlp_up
    block += element * (4 + 4) * width        # inputs of GELU and of mlp_down
    if settings.qk_norm:
        block += 2 * 8                        # mean and 1 / deviation for q and for k
        block += 2 * 4 * width if bf16 else 0    # in bf16, copies of q and k in fp32
    if plain:
        block += element * 3 * width          # q, k, v
        block += element * 3 * width if settings.qk_norm and not bf16 else 0    # qkv, as input of the norms
        block += settings.heads * context * (6 if bf16 else 4)    # softmax; in bf16 also a copy of it
    else:
        block += element * 6 * width          # q and k after the rotation, qkv because v is in it, the output
        block += 4 * settings.heads           # logarithms of the sums of exponentials
    # For each token, outside the blocks.
    ends = 4 * width + 8                      # input of the final norm, with its mean and 1 / deviation
    ends += 4 * width + 8                     # the loss's gradient for the normed stream; the token's id
    # For all tokens together.
    rows = settings.padded_vocab or math.ceil(settings.vocab_size / 128) * 128
    once = 4 * context * (width // settings.heads)    # cos and sin of the rotary angles
    once += 4 * width * rows                          # the head's gradient, which the loss has computed
    once += context * context * settings.layers if plain else 0    # masks of the future, one byte an element
    return tokens * (settings.layers * block + ends) + once


def tokens_of(settings: Settings) -> int:
    """Returns how many tokens a run reads."""
    return (settings.steps + settings.freeze_steps) * settings.batch * settings.context


def estimate(settings: Settings, model: Decoder, optimizer: torch.optim.Optimizer, micro: int,
             accumulation: int) -> dict:
    """Estimates what a run needs.

    Args:
        settings: the options of the run; precision and attention must not be "auto", nor loss_chunk 0.
        model, optimizer: of the run. They may be on the device meta, where they take no memory.
        micro: sequences of a micro-batch.
        accumulation: micro-batches of a step on each rank.
    Returns: {quantity: number}.
        count: {role: weights}; weights: all of them; hidden: all outside embedding and head.
        tokens: that the run reads; flops: for all of them.
        memory: {part: bytes}; peak: the largest number of bytes that exist at the same time.
        data: bytes on disk if each token is read once; checkpoint: bytes of one checkpoint.
    """
    count = {}
    for _, p, role in model.roles():
        count[role] = count.get(role, 0) + p.numel()
    weights, rows = sum(count.values()), model.head.weight.shape[0]
    head, hidden = model.head.weight.numel(), weights - count["embed"] - count.get("head", 0)
    tokens = tokens_of(settings)
    at_once = micro * settings.context
    # A weight costs two FLOPs for each token forward, and four backward. Attention has two products of T x D,
    # over half of the T positions on average.
    flops = tokens * 6 * (hidden + head + settings.layers * settings.width * settings.context)
    gradients = 4 * weights * (1 + optimizer.wants_sampled())    # Sophia has two sets of them at a time
    memory = dict(weights=4 * weights, gradients=gradients,
                  state=sum(state_bytes(optimizer, group) for group in optimizer.param_groups),
                  activations=activation_bytes(settings, at_once),
                  # for a chunk of tokens, in fp32: logits, their gradient, and three parts of the gradient
                  logits=min(settings.loss_chunk, at_once) * rows * 4 * 5,
                  # for the largest tensor: the update, two of its parts, and the new weights
                  update=4 * 4 * max(p.numel() for p in model.parameters()))
    if settings.precision == "bf16":
        # Autocast keeps bf16 copies of the matrices, and the loss makes the copy of the head.
        memory["activations"] += 2 * (hidden - count["norm"])
        memory["logits"] += 2 * head
    # The update comes after the backward pass, when the activations are gone. With a single micro-batch, the
    # gradients appear while the activations disappear, so they do not add up.
    in_backward = memory["activations"] + memory["logits"]
    if accumulation > 1:
        in_backward += memory["gradients"]
    in_update = memory["gradients"] + memory["update"]
    peak = memory["weights"] + memory["state"] + max(in_backward, in_update)
    id_bytes = DTYPES[dtype_for(settings.vocab_size)].itemsize
    return dict(count=count, weights=weights, hidden=hidden, tokens=tokens, flops=flops, memory=memory,
                peak=peak, data=id_bytes * tokens, checkpoint=4 * weights + memory["state"])


def hours(settings: Settings) -> float | None:
    """Returns the hours of a run at the stated throughput, or None if none is stated."""
    return tokens_of(settings) / settings.throughput / 3600 if settings.throughput else None


def show(settings: Settings, hyper: dict, tables: dict) -> None:
    """Prints the plan of a run. Where the machine would choose, it takes what a GPU would choose."""
    on_a_gpu = dict(precision="bf16", attention="sdpa", loss_chunk=4096)
    open_choices = {name: usual for name, usual in on_a_gpu.items() if getattr(settings, name) in ("auto", 0)}
    settings = dataclasses.replace(settings, **open_choices)
    micro_batch, accumulation = split_batch(settings.batch, settings.micro_batch, 1, settings.context)
    provide_cache(compiles=False)
    with torch.device("meta"):    # without memory
        model = Decoder(**decoder_shape(settings))
    optimizer = build_optimizer(model, settings, hyper)
    e = estimate(settings, model, optimizer, micro_batch, accumulation)
    tokens_of_step = settings.batch * settings.context
    weights_by_role = ", ".join(f"{role} {count:,}" for role, count in e["count"].items())
    print_optimizer(settings, hyper, tables, optimizer)
    print(f"weights      {e['weights']:,}: {weights_by_role}")
    print(f"             {e['hidden']:,} outside embedding and head")
    print(f"tokens       {e['tokens']:,} in {e['tokens'] // tokens_of_step:,} steps of {tokens_of_step:,}: "
          f"{e['tokens'] / e['hidden']:.1f} per weight outside embedding and head")
    print(f"compute      {e['flops']:.3g} FLOP: 6 per token and weight but the embedding's, and "
          "6 x layers x width x context\n             per token for attention")
    print(f"memory       bytes on each GPU: {settings.optimizer}, {micro_batch} x {settings.context} tokens "
          f"at a time, {settings.precision}, {settings.attention} attention")
    for name, size in e["memory"].items():
        print(f"  {name:11s}{size:18,d}")
    print(f"  {'together':11s}{e['peak']:18,d}  at once, in eager code (compiled: less), and 1 GB of CUDA")
    print(f"disk         data {e['data']:,} bytes if each token is read once; "
          f"checkpoints {settings.keep + 1} x {e['checkpoint']:,}")
    if (time := hours(settings)) is None:
        print("time         unknown; give --throughput, tokens per second")
    else:
        print(f"time         {time:.3g} hours at {settings.throughput:,} tokens/s (--throughput), "
              f"{time / 8:.3g} hours at eight times this speed")


def main(lines) -> int:
    """Checks many commands, one a line, as sweep.sh --print writes them. Prints which data to prepare before
    them, and their hours together. Returns the exit code."""
    try:
        runs = [read(shlex.split(line)[2:])[0] for line in lines]
    except UserError as error:
        print(f"trainer.plan: error: {one_line(error)}", file=sys.stderr)
        return error.code
    recipes = {settings.data: settings.prepare for settings in runs}
    for folder, recipe in recipes.items():
        if not Path(folder, "meta.json").exists():
            script = shlex.quote(os.path.relpath(ROOT / "prepare_c4.py"))
            print(f"# first: python {script} {options_to_prepare(folder, recipe, folder == Settings.data)}")
    times = [hours(settings) for settings in runs]
    total = ("hours unknown: give -- --throughput=N, tokens per second" if None in times else
             f"{sum(times):.4g} hours at the stated throughput")
    print(f"# {len(runs)} runs, {total}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:]:
        print(f"{__doc__}\npython -m trainer.plan has no options. It reads such commands, one a line.")
        sys.exit(0 if sys.argv[1] in ("-h", "--help") else 2)
    sys.exit(main(sys.stdin))
