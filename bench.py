"""
Measures speed and memory in a way that anyone can repeat.

The alternatives take turns in one process, so a machine that becomes slower for a while slows all of them. A
ratio is the median over the turns, with quartiles.

    python bench.py                           optimizer, train and start, ten minutes; also in bench.json
    python bench.py --only=optimizer          a step of every rule against torch's optimizers and the floor
    python bench.py --only=rules              a step of every rule, the zoo's too, and of every modifier
    python bench.py --only=train --options="--width=64"     a training step in parts
    python bench.py --only=profile --options="--width=64"   what the time of a training step goes into
    python bench.py --only=step --options="--optimizer=muon" --against="--optimizer=adamw"     two optimizers
    python bench.py --only=start              from a new process to the end of the first step
    python bench.py --scaling                 tokens/s and memory by width, depth, context, micro-batch
"""
import functools
import json
import math
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from trainer import script

if __name__ == "__main__":
    script.begin("bench.py")

import numpy as np
import torch

import optim
import zoo
from model import Decoder
from trainer import data
from trainer.build import build_optimizer, decoder_shape
from zoo.table import state_bytes
from trainer.errors import UserError, one_line
from trainer.machine import Machine, compiler_works, provide_cache, versions
from trainer.measure import blank_figure
from trainer.options import load, option
from trainer.runs import write_json
from trainer.settings import Settings, read, split_batch

PARTS = ("optimizer", "rules", "step", "train", "profile", "start", "first_step")


@dataclass(frozen=True)
class Options:
    """The options of bench.py."""
    only: str = option("", None, "one part; default: optimizer, train and start", choices=PARTS)
    scaling: bool = option(False, None, "tokens/s and memory by size, and the figure, instead")
    options: str = option("", None, "options of train.py; the parts optimizer and rules use only the model "
                                    "and --compile")
    against: str = option("", None, "step: options of train.py with the other optimizer")
    first_steps: bool = option(True, None, "optimizer: also time the first step of each rule, which compiles")
    device: str = option("auto", None, "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    threads: int = option(0, None, "CPU threads; 0: all cores", low=0)
    rounds: int = option(20, None, "turns that each alternative has", low=3)
    out: str = option("bench.json", None, "file for the numbers")


# ---------------------------------------------------------------------------------------------------------
# Taking turns

class Clock:
    """Marks points in time. On a GPU, whose queue runs behind the program, the marks are CUDA events.
    Elsewhere they are readings of the processor's clock."""
    def __init__(self, device: torch.device):
        self.cuda, self.marks = device.type == "cuda", []

    def mark(self):
        """Marks this point in time."""
        if self.cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Returns the seconds from each mark to the next one, and forgets the marks."""
        marks, self.marks = self.marks, []
        if self.cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1000 for a, b in zip(marks, marks[1:])]
        return [b - a for a, b in zip(marks, marks[1:])]


def in_turns(calls: dict, rounds: int, clock: Clock) -> dict:
    """Times some functions that take turns.

    Args:
        calls: {name: function without arguments}.
        rounds: how many turns of each function count. Two rounds before them do not count.
    Returns: {name: seconds of each round}.
    """
    taken = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            clock.mark()
            call()
            clock.mark()
            seconds, = clock.seconds()
            if turn >= 2:
                taken[name].append(seconds)
    return taken


def ratio(a, b) -> tuple[str, float]:
    """Compares times turn by turn. Returns "median (quartiles)" of the ratios a / b, and the median."""
    low, middle, high = np.percentile(np.divide(a, b), (25, 50, 75))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})", middle


def table(title: str, rows: list[dict]) -> None:
    """Prints rows as a markdown table. All rows have the same keys, which become the head of the table."""
    print(f"\n{title}\n\n| {' | '.join(rows[0])} |\n|{' --- |' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(f'{x:.4g}' if isinstance(x, float) else str(x) for x in row.values())} |")


# ---------------------------------------------------------------------------------------------------------
# The optimizer's step

def floor_bytes(rule: optim.Rule) -> int:
    """Returns the bytes per weight that a rule must move, in fp32. It reads and writes the weight and each
    state of the weight's size, and it reads the gradient. It reads the gradient once more if a mean over it
    comes before the update."""
    is_whole = [make_state is None for make_state in rule.state.values()]    # one number for each weight
    reads_twice = "g2" in rule.inputs or not all(is_whole)
    return 8 + 8 * sum(is_whole) + 4 + 4 * reads_twice


def state_per_weight(optimizer: zoo.Optimizer, count: int) -> float:
    """Returns the bytes of an optimizer's state, divided by `count`, the number of weights."""
    return sum(state_bytes(optimizer, group) for group in optimizer.param_groups) / count


def first_steps(name: str, model: Decoder) -> str:
    """Times a rule's first step, compiled, twice: first with an empty cache of compiled code, then with the
    cache that the first time filled. Returns "seconds / seconds"."""
    taken = []
    with torch._inductor.utils.fresh_cache():
        for _ in range(2):
            torch._dynamo.reset()
            optim.compiled.cache_clear()    # else the compiled function of the time before would serve again
            optimizer = zoo.make(name, model.roles(), lr=1e-4, compile=True)
            begun = time.perf_counter()
            optimizer.step()
            taken.append(time.perf_counter() - begun)
    return f"{taken[0]:.1f} / {taken[1]:.1f}"


def with_gradients(device: torch.device, model: Decoder | None = None) -> tuple[Decoder, list]:
    """Gives every weight of a model a gradient of noise.

    Args:
        model: default: a new decoder of 42 million weights.
    Returns: the model, and its parameters as a list.
    """
    model = model or Decoder(width=512, layers=8, heads=8, context=128, vocab_size=16384).to(device)
    weights = list(model.parameters())
    for w in weights:
        w.grad = 1e-3 * torch.randn_like(w)
    return model, weights


def given_model(options: Options, device: torch.device) -> tuple[Decoder, list, bool]:
    """Returns the model of --options or else the usual one, its parameters, and whether to compile."""
    parts = build(options) if options.options else None
    compile = parts.settings.compile if parts else compiler_works()
    return *with_gradients(device, parts and parts.model), compile


def best_bandwidth(options: Options, device: torch.device, clock: Clock, compile: bool) -> float:
    """Returns the highest rate, in bytes per second, at which this device streams large tensors."""
    big, other = torch.zeros(2**26, device=device), torch.zeros(2**26, device=device)
    triad = torch.compile(lambda: big.add_(other, alpha=0.5), disable=not compile)
    streams = dict(add=triad, copy=lambda: big.copy_(other), scale=lambda: big.mul_(1))
    passes = dict(add=3, copy=2, scale=2)    # how many times an operation reads or writes 256 MB
    taken = in_turns(streams, options.rounds, clock)
    return max(4 * big.numel() * passes[name] / min(taken[name]) for name in streams)


def bench_optimizer(options: Options, device: torch.device) -> list[dict]:
    """Measures a step of every rule of optim.py, compiled and eager, on a decoder of 42 million weights or on
    that of --options."""
    (model, weights, compile), clock = given_model(options, device), Clock(device)
    count = sum(w.numel() for w in weights)
    fused = torch.optim.AdamW(weights, lr=1e-4, fused=True).step
    compiled = dict(fused=fused, sgd_torch=torch.optim.SGD(weights, lr=1e-4, momentum=0.9).step)
    eager = dict(fused=fused, foreach=torch.optim.AdamW(weights, lr=1e-4, foreach=True).step)
    times_first = options.first_steps and compile
    compile_seconds, optimizers = {name: first_steps(name, model) for name in optim.RULES if times_first}, {}
    for name in optim.RULES:
        compiled[name] = zoo.make(name, model.roles(), lr=1e-4, compile=compile).step
        optimizers[name] = zoo.make(name, model.roles(), lr=1e-4)
        eager[f"{name}, eager"] = optimizers[name].step
    bandwidth = best_bandwidth(options, device, clock, compile)
    print(f"\nbest streaming bandwidth {bandwidth / 1e9:.1f} GB/s; "
          f"{count:,} weights in {len(weights)} tensors")
    # Compiled and eager code are timed apart. Temporary tensors of eager code would still be on their way to
    # memory when the next alternative starts.
    taken = in_turns(compiled, options.rounds, clock)
    taken_eager = in_turns(eager, options.rounds, clock)
    timed = [(name, seconds, taken["fused"]) for name, seconds in taken.items()]
    fused_eager = taken_eager.pop("fused")
    timed += [(name, seconds, fused_eager) for name, seconds in taken_eager.items()]
    rows = []
    for name, seconds, fused_seconds in timed:
        own = optimizers.get(name.removesuffix(", eager"))    # None for torch's own optimizers
        floor = floor_bytes(own.rule) * count / bandwidth if own else math.nan
        rows.append({"step of": name, "ms": 1000 * float(np.median(seconds)),
                     "to fused AdamW": ratio(seconds, fused_seconds)[0],
                     "to the floor": f"{np.median(seconds) / floor:.2f}" if own else "",
                     "state, bytes per weight": state_per_weight(own, count) if own else "",
                     "first step, s, without and with a cache": compile_seconds.get(name, "")})
    table(f"A step of the optimizer, n = {options.rounds}", rows)
    return rows + bench_many_tensors(options, clock, device, compile)


def make_step(optimizer: zoo.Optimizer) -> None:
    """Makes a step. The gradients also serve as those on sampled labels, for rules that need these."""
    optimizer.sampled = {p: p.grad for _, _, p in optimizer.each_parameter()}
    optimizer.step()


def bench_rules(options: Options, device: torch.device) -> list[dict]:
    """Measures a step of every rule, and of every modifier on AdamW, compiled, on the same weights. Some
    rules refresh something every k steps, so some of the turns include it. The mean has its share of it, the
    median has none."""
    (model, weights, compile), clock = given_model(options, device), Clock(device)
    count = sum(w.numel() for w in weights)
    chosen = {name: {} for name in zoo.RULES}
    chosen |= {f"adamw, {name}": dict(modify=name) for name in zoo.MODIFIERS}
    calls, state = dict(fused=torch.optim.AdamW(weights, lr=1e-4, fused=True).step), dict(fused=8.0)
    for label, more in chosen.items():
        name = label.partition(",")[0]
        if zoo.find(name).roles:    # it is for some roles only; another rule trains the others
            more["rest_lr"] = 1e-4
        optimizer = zoo.make(name, model.roles(), lr=1e-4, compile=compile, **more)
        calls[label] = functools.partial(make_step, optimizer)
        state[label] = state_per_weight(optimizer, count)
    # Torch refuses more than 256 versions of a function, and all rules together need more of apply().
    with torch._dynamo.config.patch(accumulated_recompile_limit=4096):
        taken = in_turns(calls, options.rounds, clock)
    if options.options:
        taken["forward and backward"] = time_the_rest(build(options), options.rounds)
        state["forward and backward"] = 0.0
    rows = [{"step of": label, "ms": 1000 * float(np.median(seconds)),
             "mean, ms": 1000 * float(np.mean(seconds)),
             "to fused AdamW": ratio(seconds, taken["fused"])[0], "state, bytes per weight": state[label]}
            for label, seconds in taken.items()]
    table(f"A step of all rules and modifiers, {count:,} weights, n = {options.rounds}", rows)
    return rows


def bench_step(options: Options, device: torch.device) -> list[dict]:
    """Measures a step of the optimizer of --options and of that of --against, each on a model of its own, and
    the forward and backward passes of a training step."""
    calls, state, clock = {}, {}, Clock(device)
    sizes = []
    for label, text in (("optimizer", options.options), ("against", options.against)):
        parts = build(replace(options, options=text))
        _, weights = with_gradients(device, parts.model)
        sizes.append([tuple(w.shape) for w in weights])
        if sizes[0] != sizes[-1]:
            raise UserError("--against: has another model than --options; give both the same options of it")
        calls[label] = functools.partial(make_step, parts.optimizer)
        state[label] = state_per_weight(parts.optimizer, sum(w.numel() for w in weights))
    taken = in_turns(calls, options.rounds, clock)
    taken["forward and backward"] = time_the_rest(parts, options.rounds)
    rows = [{"what": label, "ms": 1000 * float(np.median(seconds)),
             "mean, ms": 1000 * float(np.mean(seconds)), "to the other": ratio(seconds, taken["against"])[0],
             "state, bytes per weight": state.get(label, "")} for label, seconds in taken.items()]
    table(f"A step of two optimizers, and the rest of a training step, n = {options.rounds}", rows)
    return rows


def time_the_rest(parts: "Parts", rounds: int) -> list[float]:
    """Returns the seconds of the forward and backward passes of a training step, several times."""
    ids = torch.from_numpy(parts.windows[range(parts.settings.micro_batch)]).to(parts.device)
    call = functools.partial(forward_and_backward, parts, ids)
    seconds = in_turns(dict(rest=call), rounds, Clock(parts.device))["rest"]
    return [parts.settings.batch // parts.settings.micro_batch * one for one in seconds]


def forward_and_backward(parts: "Parts", ids: torch.Tensor) -> None:
    """Computes the gradients of one micro-batch of ids of the shape (sequences, context + 1)."""
    with parts.autocast:
        objective, _, _ = parts.model(ids[:, :-1], ids[:, 1:], parts.settings.z_loss)
    objective.backward()


def bench_many_tensors(options: Options, clock: Clock, device: torch.device, compile: bool) -> list[dict]:
    """Compares a step on a long list of small tensors with a step on one tensor of the same size."""
    rows = []
    for name in ("signum", "adamw"):
        calls = {}
        for label, shapes in dict(one=[(48 * 8 * 128, 256)], many=[(128, 256)] * 48 * 8).items():
            weights = [torch.zeros(shape, device=device) for shape in shapes]
            for w in weights:
                w.grad = torch.ones_like(w)
            calls[label] = zoo.Optimizer(weights, zoo.RULES[name], lr=1e-4, compile=compile).step
        taken = in_turns(calls, options.rounds, clock)
        many_to_one = ratio(taken["many"], taken["one"])[0]
        rows.append({"rule": name, "384 tensors of 32,768 to one of 12.6 million": many_to_one})
    table(f"Many tensors, n = {options.rounds}", rows)
    return rows


# ---------------------------------------------------------------------------------------------------------
# A training step

def flops_per_token(model: Decoder, layers: int) -> int:
    """Returns the FLOPs of a token, forward and backward: 6 per weight of a matrix, and 12 D T of attention
    per layer. Shares of a peak are published with this count (Chowdhery et al. 2022, arXiv 2204.02311,
    appendix B). train.py --plan counts 6 D T, because the causal mask leaves half of the products."""
    matrices = sum(p.numel() for _, p, role in model.roles() if role not in ("embed", "norm"))
    return 6 * matrices + 12 * layers * model.embed.weight.shape[1] * model.context


def matmul_peak(device: torch.device, precision: str, sizes=(1024, 2048, 4096)) -> float:
    """Returns the most FLOP/s of a product of two square matrices.

    Args:
        precision: "bf16" or "fp32".
        sizes: the numbers of rows to try.
    """
    dtype, clock = torch.bfloat16 if precision == "bf16" else torch.float32, Clock(device)
    best = 0.0
    for n in sizes:
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        taken = in_turns({n: functools.partial(torch.matmul, a, b)}, 5, clock)[n]
        best = max(best, 2 * n**3 / min(taken))
    return best


class Parts(NamedTuple):
    """What train.py makes of its options before the first step."""
    settings: Settings    # complete
    model: Decoder
    optimizer: zoo.Optimizer
    windows: Any          # token ids of the data; windows[numbers] has the shape (sequences, context + 1)
    autocast: torch.autocast
    device: torch.device


def build(options: Options) -> Parts:
    """Makes of --options what train.py would make of them in one process."""
    settings, hyper, _ = read(shlex.split(options.options))
    for name in ("device", "threads"):
        if getattr(settings, name) != getattr(Settings, name):
            raise UserError(f"--options: has --{name}; give it to bench.py itself")
    settings = replace(settings, device=options.device, threads=options.threads)
    machine = Machine(settings)
    settings, _, _ = machine.complete(settings)
    micro_batch, _ = split_batch(settings.batch, settings.micro_batch, 1, settings.context)
    settings = replace(settings, micro_batch=micro_batch)
    model = Decoder(**decoder_shape(settings)).to(machine.device)
    optimizer = build_optimizer(model, settings, hyper)
    if settings.compile:
        model.compile_parts()
    if Path(settings.data, "meta.json").exists():
        windows = data.Tokens(settings.data, "train", settings.context)
    else:    # random ids serve as well, since the time does not depend on their meaning
        windows = np.random.default_rng(0).integers(0, settings.vocab_size, (64, settings.context + 1))
    autocast = torch.autocast(machine.device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    return Parts(settings, model, optimizer, windows, autocast, machine.device)


def bench_train(options: Options, device=None) -> list[dict]:
    """Times each part of a training step, with one micro-batch."""
    settings, model, optimizer, windows, autocast, device = build(options)
    clock, names = Clock(device), ("data", "forward", "backward", "clip", "optimizer", "logging")
    order, taken, micro_batch = data.Order(len(windows), 0), [], settings.micro_batch
    with tempfile.TemporaryFile("w") as log:
        for step in range(options.rounds + 3):
            clock.mark()
            ids = torch.from_numpy(windows[order(step * micro_batch, micro_batch)]).to(device)
            clock.mark()
            with autocast:
                objective, loss, _ = model(ids[:, :-1], ids[:, 1:], settings.z_loss)
            clock.mark()
            objective.backward()
            clock.mark()
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), settings.clip, norm)
            numbers = loss.item(), norm.item()    # the one point at which the program waits for the device
            clock.mark()
            make_step(optimizer)
            clock.mark()
            model.zero_grad()
            log.write(json.dumps(numbers) + "\n")
            clock.mark()
            taken.append(clock.seconds())
    taken = np.array(taken[3:])                                                  # (rounds, parts)
    tokens = micro_batch * settings.context
    speed = tokens / np.median(taken.sum(1))
    flops = speed * flops_per_token(model, settings.layers)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    low, high = np.percentile(tokens / taken.sum(1), (25, 75))
    row = {"options": options.options, "precision": settings.precision, "tokens/s": round(speed),
           "quartiles": f"{low:.0f}-{high:.0f}", "GFLOP/s": round(flops / 1e9),
           "of the matmul peak": f"{flops / matmul_peak(device, settings.precision):.0%}",
           "peak memory, MB": round(peak / 1e6)}
    row |= {f"{name}, ms": round(1000 * seconds, 2) for name, seconds in zip(names, np.median(taken, 0))}
    table(f"A step of training, {tokens:,} tokens, n = {options.rounds}", [row])
    return [row]


def bench_profile(options: Options, device: torch.device) -> list[dict]:
    """Finds out by torch's profiler what a training step on a CPU spends its time on. The profiler does not
    record shapes, because that alone makes matrix products seem half as fast again."""
    if device.type != "cpu":
        raise UserError(f"--device={device.type}: the profile is of a CPU; give --device=cpu")
    parts = build(options)
    settings, model, optimizer = parts.settings, parts.model, parts.optimizer
    ids = torch.from_numpy(parts.windows[range(settings.micro_batch)])

    def step():
        forward_and_backward(parts, ids)
        make_step(optimizer)
        model.zero_grad()

    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(options.rounds):
            step()
    kinds = {"aten::mm": "products with weights", "aten::bmm": "attention's products"}
    ms = dict.fromkeys((*kinds.values(), "compiled code", "all other"), 0.0)
    for event in profiler.key_averages():
        kind = "compiled code" if "CompiledFxGraph" in event.key else kinds.get(event.key, "all other")
        ms[kind] += event.self_cpu_time_total / 1000 / options.rounds
    tokens, peak = settings.micro_batch * settings.context, matmul_peak(device, settings.precision)
    speed = tokens * flops_per_token(model, 0) / ms["products with weights"] * 1000
    rows = [{"what": what, "ms": taken, "of the step": f"{taken / sum(ms.values()):.0%}",
             "of the matmul peak": f"{speed / peak:.0%}" if what == "products with weights" else ""}
            for what, taken in ms.items()]
    table(f"What a step of {tokens:,} tokens is made of, {settings.precision}, n = {options.rounds}", rows)
    return rows


# ---------------------------------------------------------------------------------------------------------
# New processes

def again(*arguments: str, **environment: str) -> tuple[list[dict], float]:
    """Runs a part of this program in a process of its own.

    Args:
        arguments: its command line. The first one is --only=PART.
        environment: environment variables that it gets besides those of this process.
    Returns: the rows of that part, and the time (of time.time()) at which the process was started.
    Raises: UserError if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        begun = time.time()
        command = [sys.executable, __file__, *arguments, f"--out={folder}/out.json"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
        if done.returncode:
            words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise UserError(f"{arguments[0]}: failed: {words[-1]}", 4)
        return list(json.loads(Path(folder, "out.json").read_text()).values())[-1], begun


def bench_first_step(options: Options, device=None) -> list[dict]:
    """Times the phases of this process up to the end of its first step."""
    begun = time.perf_counter()
    parts = build(options)
    built = time.perf_counter()
    ids = torch.from_numpy(parts.windows[range(parts.settings.micro_batch)]).to(parts.device)
    forward_and_backward(parts, ids)
    trained = time.perf_counter()
    make_step(parts.optimizer)
    return [{"compiler's trial, model, data": built - begun, "forward and backward": trained - built,
             "optimizer": time.perf_counter() - trained, "ended": time.time()}]


def bench_start(options: Options, device=None) -> list[dict]:
    """Times new processes up to the end of their first step: one with an empty cache of compiled code, and
    three with the cache that the first one filled."""
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for label in ("empty", "kept", "kept", "kept"):
            (row,), begun = again("--only=first_step", f"--options={options.options}",
                                  f"--threads={options.threads}", f"--device={options.device}",
                                  TORCHINDUCTOR_CACHE_DIR=cache)
            seconds = row.pop("ended") - begun
            rows.append({"cache": label, "start to first step, s": seconds,
                         "imports": seconds - sum(row.values())} | row)
    table("From a new process to the end of the first step", rows)
    return rows


def bench_scaling(options: Options, device=None) -> list[dict]:
    """Changes one setting of the model at a time, measures each in a process of its own, and draws the
    results."""
    rows, base = [], dict(width=128, layers=4, context=128, micro_batch=32)
    axes = dict(width=(64, 128, 256, 512), layers=(2, 4, 8, 16), context=(64, 128, 256, 512, 1024),
                micro_batch=(4, 8, 16, 32, 64))
    for axis, values in axes.items():
        for value in values:
            shape = base | {axis: value}
            text = " ".join(f"--{name}={number}" for name, number in shape.items())
            heads = max(1, shape["width"] // 64)
            text += f" --batch={shape['micro_batch']} --heads={heads} {options.options}"
            (row,), _ = again("--only=train", f"--options={text}", f"--threads={options.threads}",
                              f"--device={options.device}", f"--rounds={options.rounds}")
            rows.append({"axis": axis, "value": value} | row)
    table("Scaling", rows)
    draw_scaling(rows, Path(options.out).with_suffix(".png"))
    return rows


def draw_scaling(rows: list[dict], path: Path) -> None:
    """Draws the rows of bench_scaling as a PNG: tokens/s and memory, a column for each setting."""
    figure = blank_figure(8, 4.6)    # small, so that letters are large
    panels = figure.subplots(2, 4, sharey="row")
    from matplotlib.ticker import LogLocator    # here, because only this figure needs it
    for column, axis in enumerate(dict.fromkeys(row["axis"] for row in rows)):
        rows_of_axis = [row for row in rows if row["axis"] == axis]
        values = [row["value"] for row in rows_of_axis]
        for panel, key in zip(panels[:, column], ("tokens/s", "peak memory, MB")):
            panel.plot(values, [row[key] for row in rows_of_axis], "o-", color="tab:blue")
            panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=key if column == 0 else "")
            panel.set_xticks(values, values)
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:,.0f}")
            for ticks in (panel.xaxis, panel.yaxis):
                ticks.set_minor_formatter("")
            panel.grid(alpha=0.3)
        low, high = np.transpose([[float(x) for x in row["quartiles"].split("-")] for row in rows_of_axis])
        panels[0, column].vlines(values, low, high, color="tab:blue", lw=4, alpha=0.4)
    figure.savefig(path, dpi=190)


BENCHES = dict(optimizer=bench_optimizer, rules=bench_rules, step=bench_step, train=bench_train,
               profile=bench_profile, start=bench_start, scaling=bench_scaling, first_step=bench_first_step)


def main(argv: list[str]) -> int:
    """Runs a command line. Returns the exit code."""
    try:
        options = load(Options, argv, __doc__)[0]
        if options.only and options.scaling:
            raise UserError(f"--scaling: is a part of its own; leave out --only={options.only}")
        if options.against and options.only != "step":
            raise UserError("--against: goes with --only=step")
        device = Machine(Settings(device=options.device, threads=options.threads)).device
        provide_cache(compiles=True)
        results = dict(machine=versions() | dict(device=str(device), threads=torch.get_num_threads()))
        only = "scaling" if options.scaling else options.only
        for name in [only] if only else ("optimizer", "train", "start"):
            results[name] = BENCHES[name](options, device)
        write_json(options.out, results)
    except UserError as error:
        print(f"bench.py: error: {one_line(error)}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    script.run("bench.py", main)
