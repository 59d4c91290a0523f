"""
Speed and memory, measured so that anyone can check them. Alternatives take turns in one process; a figure is
the median of the ratios of neighbours, with quartiles.

    python bench.py                           optimizer, train and start, ten minutes; also in bench.json
    python bench.py --only=optimizer          a step of every rule against torch's optimizers and the floor
    python bench.py --only=rules              a step of every rule, the zoo's too, and of every modifier
    python bench.py --only=train --options="--width=64"     a training step in parts
    python bench.py --only=profile --options="--width=64"   what that time goes into
    python bench.py --only=start              from a new process to the end of the first step
    python bench.py --scaling                 tokens/s and memory by width, depth, context, micro-batch
"""
import functools
import gc
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    gc.disable()    # as train.py does

import numpy as np
import torch

import config
import data
import machine
import optim
import train
from config import UserError, option
from model import Decoder

PARTS = ("optimizer", "rules", "train", "profile", "start", "first_step")

@dataclass
class Options:
    only: str = option("", None, "one part instead of all", choices=PARTS)
    scaling: bool = option(False, None, "tokens/s and memory by size, and the figure, instead")
    options: str = option("", None, "options of train.py, for all parts but optimizer")
    device: str = option("auto", None, "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    threads: int = option(0, None, "CPU threads; 0: all cores", low=0)
    rounds: int = option(20, None, "turns that each alternative has", low=3)
    out: str = option("bench.json", None, "file for the numbers")

# ---------------------------------------------------------------------------------------------------------
# Taking turns

class Clock:
    """Marks in time: events on a GPU, whose queue runs behind the program; else the processor's clock."""
    def __init__(self, device):
        self.cuda, self.marks = device.type == "cuda", []

    def mark(self):
        if self.cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def seconds(self):
        """Seconds between each mark and the next; forgets the marks."""
        marks, self.marks = self.marks, []
        if self.cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1000 for a, b in zip(marks, marks[1:])]
        return [b - a for a, b in zip(marks, marks[1:])]

def in_turns(calls, rounds, clock):
    """{name: seconds of each round} of some functions that take turns, after two rounds that do not count."""
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

def ratio(a, b):
    """"median (quartiles)" of the ratios a / b, turn by turn; and the median alone."""
    low, middle, high = np.percentile(np.divide(a, b), (25, 50, 75))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})", middle

def table(title, rows):
    """Prints rows, dicts of one form, as a markdown table."""
    print(f"\n{title}\n\n| {' | '.join(rows[0])} |\n|{' --- |' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(f'{x:.4g}' if isinstance(x, float) else str(x) for x in row.values())} |")

# ---------------------------------------------------------------------------------------------------------
# The optimizer's step

def floor_bytes(rule):
    """Bytes per weight that a rule's mathematics must move, in fp32: the weight and each state of its size
    are read and written, the gradient is read; once more if a mean over it comes before the update."""
    whole = [begin is None for begin in optim.state_of(rule).values()]
    return 8 + 8 * sum(whole) + 4 + 4 * ("g2" in optim.asks_for(rule) or not all(whole))

def first_steps(name, model):
    """"seconds / seconds" of a rule's first step, compiled without and with a cache of compiled code."""
    taken = []
    with torch._inductor.utils.fresh_cache():
        for _ in range(2):
            torch._dynamo.reset()
            optimizer = optim.make(name, model.roles(), lr=1e-4, compile=True)
            begun = time.perf_counter()
            optimizer.step()
            taken.append(time.perf_counter() - begun)
    return f"{taken[0]:.1f} / {taken[1]:.1f}"

def with_gradients(device, model=None):
    """A model, else a decoder of 42 million weights, and its weights as a list; their gradients are noise."""
    model = model or Decoder(width=512, layers=8, heads=8, context=128, vocab_size=16384).to(device)
    weights = list(model.parameters())
    for w in weights:
        w.grad = 1e-3 * torch.randn_like(w)
    return model, weights

def bench_optimizer(options, device):
    """Every rule on the weights of a decoder of 42 million, compiled and eager."""
    (model, weights), clock = with_gradients(device), Clock(device)
    count = sum(w.numel() for w in weights)
    fused = torch.optim.AdamW(weights, lr=1e-4, fused=True).step
    fast = dict(fused=fused, sgd_torch=torch.optim.SGD(weights, lr=1e-4, momentum=0.9).step)
    slow = dict(fused=fused, foreach=torch.optim.AdamW(weights, lr=1e-4, foreach=True).step)
    compile_seconds, made = {name: first_steps(name, model) for name in optim.names()}, {}
    for name in optim.names():
        fast[name] = optim.make(name, model.roles(), lr=1e-4, compile=True).step
        made[name] = optim.make(name, model.roles(), lr=1e-4)
        slow[f"{name}, eager"] = made[name].step
    big, other = torch.zeros(2**26, device=device), torch.zeros(2**26, device=device)
    triad = torch.compile(lambda: big.add_(other, alpha=0.5))
    streams = dict(add=(triad, 3), copy=(lambda: big.copy_(other), 2), scale=(lambda: big.mul_(1), 2))
    taken = in_turns({name: call for name, (call, _) in streams.items()}, options.rounds, clock)
    best = max(4 * big.numel() * passes / min(taken[name]) for name, (_, passes) in streams.items())
    print(f"\nbest streaming bandwidth {best / 1e9:.1f} GB/s; {count:,} weights in {len(weights)} tensors")
    rows = []
    for calls in (fast, slow):    # apart, since the temporaries of eager code would be still on their way to
        taken = in_turns(calls, options.rounds, clock)    # memory when the next one starts
        for name in list(calls)[calls is slow:]:
            own = made.get(name.removesuffix(", eager"))
            row = {"step of": name, "ms": 1000 * float(np.median(taken[name])),
                   "to fused AdamW": ratio(taken[name], taken["fused"])[0]}
            floor = floor_bytes(own.rule) * count / best if own else math.nan
            rows.append(row | {
                "to the floor": f"{np.median(taken[name]) / floor:.2f}" if own else "",
                "state, bytes per weight": sum(map(own.state_bytes, own.param_groups)) / count if own else "",
                "first step, s, without and with a cache": compile_seconds.get(name, "")})
    table(f"A step of the optimizer, n = {options.rounds}", rows)
    return rows + bench_many_tensors(options, clock, device)

def bench_rules(options, device):
    """Every rule, and every modifier on AdamW, compiled, on the same weights. Rules that refresh something
    every k steps do it in some of the turns: the mean has its share of it, the median has none."""
    given = build(options)[1] if options.options else None
    (model, weights), clock = with_gradients(device, given), Clock(device)
    count = sum(w.numel() for w in weights)
    made = {name: {} for name in (*optim.names(), *optim.zoo())}
    made |= {f"adamw, {name}": dict(modify=name) for name in optim.modifiers()}
    calls, state = dict(fused=torch.optim.AdamW(weights, lr=1e-4, fused=True).step), dict(fused=8.0)
    for label, more in made.items():
        name = label.partition(",")[0]
        if hasattr(optim.find(name), "roles"):
            more["rest_lr"] = 1e-4
        optimizer = optim.make(name, model.roles(), lr=1e-4, compile=True, **more)
        calls[label] = functools.partial(optimizer.step, sampled={w: w.grad for w in weights})
        state[label] = sum(map(optimizer.state_bytes, optimizer.param_groups)) / count
    taken = in_turns(calls, options.rounds, clock)
    rows = [{"step of": label, "ms": 1000 * float(np.median(seconds)),
             "mean, ms": 1000 * float(np.mean(seconds)),
             "to fused AdamW": ratio(seconds, taken["fused"])[0], "state, bytes per weight": state[label]}
            for label, seconds in taken.items()]
    table(f"A step of all rules and modifiers, {count:,} weights, n = {options.rounds}", rows)
    return rows

def bench_many_tensors(options, clock, device):
    """A long list of small tensors against one tensor of the same size."""
    rows = []
    for name in ("signum", "adamw"):
        calls = {}
        for label, shapes in dict(one=[(48 * 8 * 128, 256)], many=[(128, 256)] * 48 * 8).items():
            weights = [torch.zeros(shape, device=device) for shape in shapes]
            for w in weights:
                w.grad = torch.ones_like(w)
            rule = optim.rules()[name]
            calls[label] = optim.Optimizer(weights, rule, lr=1e-4, compile=True).step
        taken = in_turns(calls, options.rounds, clock)
        rows.append({"rule": name, "384 tensors of 32,768 to one of 12.6 million": ratio(taken["many"],
                                                                                        taken["one"])[0]})
    table(f"Many tensors, n = {options.rounds}", rows)
    return rows

# ---------------------------------------------------------------------------------------------------------
# A training step

def flops_per_token(model, layers):
    """Forward and backward: 6 per weight of a matrix, and 12 D T of attention per layer."""
    matrices = sum(p.numel() for _, p, role in model.roles() if role in ("qkv", "matrix", "head"))
    return 6 * matrices + 12 * layers * model.embed.weight.shape[1] * model.context

def matmul_peak(device, precision):
    """The most FLOP/s of a product of two large matrices."""
    dtype, clock = torch.bfloat16 if precision == "bf16" else torch.float32, Clock(device)
    best = 0.0
    for n in (1024, 2048, 4096):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        taken = in_turns({n: lambda: a @ b}, 5, clock)[n]
        best = max(best, 2 * n**3 / min(taken))
    return best

def build(options):
    """(config, model, optimizer, windows, autocast, device) as train.py would have them, on one process."""
    settings, hyper, _ = train.read_options(options.options.split())
    settings.device, settings.threads = options.device, options.threads
    here = machine.Machine(settings)
    train.settle(settings, here)
    settings.micro_batch, _ = train.split_batch(settings.batch, settings.micro_batch, 1, settings.context)
    model = Decoder(**train.shape_of(settings)).to(here.device)
    optimizer = train.make_optimizer(model, settings, hyper)
    if settings.compile:
        model.compile_parts()
    if Path(settings.data, "meta.json").exists():
        windows = data.Tokens(settings.data, "train", settings.context)
    else:    # ids that the data would hold, but for their meaning
        windows = np.random.default_rng(0).integers(0, settings.vocab_size, (64, settings.context + 1))
    autocast = torch.autocast(here.device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    return settings, model, optimizer, windows, autocast, here.device

def bench_train(options, device=None):
    """One micro-batch through everything that a step of training does."""
    settings, model, optimizer, windows, autocast, device = build(options)
    clock, names = Clock(device), ("data", "forward", "backward", "clip", "optimizer", "logging")
    order, taken, micro = data.Order(len(windows), 0), [], settings.micro_batch
    with tempfile.TemporaryFile("w") as log:
        for step in range(options.rounds + 3):
            clock.mark()
            ids = torch.from_numpy(windows[order(step * micro, micro)]).to(device)
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
            optimizer.step()
            clock.mark()
            model.zero_grad()
            log.write(json.dumps(numbers) + "\n")
            clock.mark()
            taken.append(clock.seconds())
    taken = np.array(taken[3:])                                                  # (rounds, parts)
    tokens = micro * settings.context
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
    row |= {f"{name}, ms": round(1000 * ms, 2) for name, ms in zip(names, np.median(taken, 0))}
    table(f"A step of training, {tokens:,} tokens, n = {options.rounds}", [row])
    return [row]

def bench_profile(options, device):
    """What a training step on a CPU spends its time on, by torch's profiler. Shapes are not recorded: that
    alone makes matrix products seem half as fast again."""
    if device.type != "cpu":
        raise UserError(f"--device={device.type}: the profile is of a CPU; give --device=cpu")
    settings, model, optimizer, windows, autocast, device = build(options)
    ids = torch.from_numpy(windows[range(settings.micro_batch)])
    def step():
        with autocast:
            objective, _, _ = model(ids[:, :-1], ids[:, 1:], settings.z_loss)
        objective.backward()
        optimizer.step()
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

def again(*arguments, **environment):
    """The rows of a bench in a process of its own, and the time at which that was started."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.time()
        command = [sys.executable, __file__, *arguments, f"--out={folder}/out.json"]
        done = subprocess.run(command, capture_output=True, text=True, env=machine.os.environ | environment)
        if done.returncode:
            raise UserError(f"--only={arguments[0]}: failed: {done.stderr.strip().splitlines()[-1]}", 4)
        return list(json.loads(Path(folder, "out.json").read_text()).values())[-1], begun

def bench_first_step(options, device=None):
    """The phases of one process up to the end of its first step."""
    begun = time.perf_counter()
    settings, model, optimizer, windows, autocast, device = build(options)
    built = time.perf_counter()
    ids = torch.from_numpy(windows[range(settings.micro_batch)]).to(device)
    with autocast:
        objective, loss, _ = model(ids[:, :-1], ids[:, 1:], settings.z_loss)
    objective.backward()
    trained = time.perf_counter()
    optimizer.step()
    return [{"compiler's trial, model, data": built - begun, "forward and backward": trained - built,
             "optimizer": time.perf_counter() - trained, "ended": time.time()}]

def bench_start(options, device=None):
    """The first step with an empty cache of compiled code, and with a kept one."""
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for label in ("empty", "kept", "kept", "kept"):
            (row,), begun = again("--only=first_step", f"--options={options.options}",
                                  f"--threads={options.threads}", TORCHINDUCTOR_CACHE_DIR=cache)
            seconds = row.pop("ended") - begun
            rows.append({"cache": label, "start to first step, s": seconds,
                         "imports": seconds - sum(row.values())} | row)
    table("From a new process to the end of the first step", rows)
    return rows

def bench_scaling(options, device=None):
    """One setting changed at a time, each in a process of its own; and the picture of it."""
    rows, base = [], dict(width=128, layers=4, context=128, micro_batch=32)
    axes = dict(width=(64, 128, 256, 512), layers=(2, 4, 8, 16), context=(64, 128, 256, 512, 1024),
                micro_batch=(4, 8, 16, 32, 64))
    for axis, values in axes.items():
        for value in values:
            shape = base | {axis: value}
            text = " ".join(f"--{k}={v}" for k, v in shape.items())
            heads = max(1, shape["width"] // 64)
            text += f" --batch={shape['micro_batch']} --heads={heads} {options.options}"
            (row,), _ = again("--only=train", f"--options={text}", f"--threads={options.threads}",
                              f"--rounds={options.rounds}")
            rows.append({"axis": axis, "value": value} | row)
    table("Scaling", rows)
    draw_scaling(rows, Path(options.out).with_suffix(".png"))
    return rows

def draw_scaling(rows, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, panels = plt.subplots(2, 4, figsize=(12, 5), layout="constrained", sharey="row")
    for column, axis in enumerate(dict.fromkeys(row["axis"] for row in rows)):
        mine = [row for row in rows if row["axis"] == axis]
        values = [row["value"] for row in mine]
        for panel, key in zip(panels[:, column], ("tokens/s", "peak memory, MB")):
            panel.plot(values, [row[key] for row in mine], "o-", color="tab:blue")
            panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=key if column == 0 else "")
            panel.set_xticks(values, values)
            panel.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:,.0f}")
            for ticks in (panel.xaxis, panel.yaxis):
                ticks.set_minor_formatter("")
            panel.grid(alpha=0.3)
        low, high = np.transpose([[float(x) for x in row["quartiles"].split("-")] for row in mine])
        panels[0, column].vlines(values, low, high, color="tab:blue", lw=4, alpha=0.4)
    figure.savefig(path, dpi=130)
    plt.close(figure)

def main(argv):
    try:
        options = config.load(Options, argv, __doc__)[0]
        if options.only and options.scaling:
            raise UserError(f"--scaling: is a part of its own; leave out --only={options.only}")
        settings = train.Config(device=options.device, threads=options.threads)
        device = machine.Machine(settings).device
        machine.compiler_works()
        machine.keep_imports()
        benches = dict(optimizer=bench_optimizer, rules=bench_rules, train=bench_train,
                       profile=bench_profile, start=bench_start, scaling=bench_scaling,
                       first_step=bench_first_step)
        about = machine.versions() | dict(device=str(device), threads=torch.get_num_threads())
        results = dict(machine=about)
        only = "scaling" if options.scaling else options.only
        for name in [only] if only else ("optimizer", "train", "start"):
            results[name] = benches[name](options, device)
        Path(options.out).write_text(json.dumps(results, indent=1))
    except UserError as error:
        print(f"bench.py: error: {config.one_line(error)}", file=sys.stderr)
        return error.code
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
