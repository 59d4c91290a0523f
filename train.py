"""
Trains one language model with one optimizer: from the options to a folder with everything that came of it.

    torchrun train.py --optimizer=signum                       two minutes on a laptop
    python train.py --optimizer=adamw --lr=3e-3 --run=mine     any option by name; a run with a name
    python train.py --run=mine --resume                        go on where it stopped, with the same settings
    torchrun --nproc_per_node=8 train.py --config=configs/150m.toml --optimizer=lion       eight GPUs
    torchrun -- train.py --run=mine --resume                   under torchrun, --run needs the -- before it
"""
import contextlib
import gc
import json
import math
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

if __name__ == "__main__":
    gc.disable()    # until all is imported, of which nothing becomes garbage: 0.5 of 3.6 s

import numpy as np
import torch
from tqdm import tqdm

import config as options
import data
import optim
import plan
import prepare_c4
import sample
import study
import zoo.table
from config import UserError, option
from machine import Machine, compiler_works, keep_imports, last_words, leave, versions
from model import Decoder
from runs import Run, load_checkpoint, whole_file, write_json

# ---------------------------------------------------------------------------------------------------------
# Options. free: may differ between a run and its resume, since the result does not depend on it.

@dataclass
class Config:
    config: str = option("configs/nano.toml", None, "TOML file of sizes and tuned values", free=True)
    run: str = option("", None, "name of the run's folder; default: the next number", free=True)
    runs: str = option("runs", None, "folder of all runs", free=True)
    resume: bool = option(False, None, "go on from the run's newest checkpoint", free=True)
    overwrite: bool = option(False, None, "delete what is in the run's folder and start again", free=True)
    plan: bool = option(False, None, "only print what the run will take: weights, FLOPs, memory, disk, hours",
                        free=True)
    init_from: str = option("", None, "a checkpoint to start from: its weights, and its state if the "
                                      "optimizer is the same")
    device: str = option("auto", None, "where to compute (mps is untested)", ("auto", "cpu", "cuda", "mps"))
    attention: str = option("auto", None, "sdpa: torch's fused kernels; plain: matmul, softmax, matmul",
                            ("auto", "sdpa", "plain"))
    loss_chunk: int = option(0, None, "tokens whose logits exist at a time; 0: 512 on CPU, 4,096 elsewhere",
                             low=0)
    compile: bool = option(True, None, "compile model and optimizer: a slow first step, then fast ones")
    threads: int = option(0, None, "CPU threads of a process; 0: all cores, shared by the processes here",
                          low=0, high=1024, free=True)
    timeout: int = option(600, None, "seconds after which a rank that does not answer ends the run",
                          low=1, high=10**6, free=True)
    # the model
    width: int = option(128, "model", "size of the vector at each position", low=2, high=2**16)
    layers: int = option(4, "model", "blocks", low=1, high=2**12)
    heads: int = option(2, "model", "attention heads; width / heads must be even", low=1, high=2**12)
    context: int = option(128, "model", "tokens of a sequence", low=1, high=2**20)
    vocab_size: int = option(4096, "model", "token ids of the data", low=2, high=2**24)
    padded_vocab: int = option(0, "model", "rows of embedding and head; 0: the next multiple of 128",
                               low=0, high=2**24)
    qk_norm: bool = option(True, "model", "LayerNorm on queries and keys")
    z_loss: float = option(1e-4, "model", "weight of log(Z)^2 in the training loss; 0: off", low=0)
    # the data
    data: str = option("data/sotu_bpe4096", "data", "folder of token shards", free=True)
    prepare: str = option("", "data", "options with which prepare_c4.py makes that folder", free=True)
    verify_data: bool = option(False, "data", "first read all ids and compare their sha256", free=True)
    # training
    optimizer: str = option("adamw", "train", "update rule: " + ", ".join(optim.names()) +
                            ", or one of zoo/; list: print all of them")
    modify: str = option("", "train", "changes of the rule: any of " + ", ".join(optim.modifiers()) +
                         ", joined by +")
    lr: float = option(None, "train", "peak learning rate, in the rule's unit; default: the file's for this "
                                      "optimizer", low=0)
    steps: int = option(500, "train", "optimizer steps", low=1, high=10**9)
    batch: int = option(32, "train", "sequences per step, over all ranks", low=1, high=2**24)
    micro_batch: int = option(0, "train", "sequences at a time on each rank; 0: up to 16,384 tokens",
                              low=0, free=True)
    schedule: str = option("cosine", "train", "of the lr after the warmup", ("cosine", "linear", "constant",
                                                                             *optim.shapes()))
    cooldown: float = option(1.0, "train", "fraction of the steps, at the end, in which the lr falls; 1: all "
                                           "after the warmup; 0.2: WSD", low=0, high=1)
    warmup: float = option(0.1, "train", "fraction of the steps in which the lr rises", low=0, high=1)
    warmup_from: float = option(0.1, "train", "where it rises from, as a fraction of the peak", low=0, high=1)
    floor: float = option(0.1, "train", "where it ends, as a fraction of the peak", low=0, high=1)
    clip: float = option(1.0, "train", "largest norm of the whole gradient; 0: no clipping", low=0)
    stop_loss: float = option(0.0, "train", "a training loss above it ends the run as diverged; 0: none",
                              low=0)
    weight_decay: float = option(0.0, "train", "strength of the decay, on every weight", low=0)
    weight_decay_kind: str = option("independent", "train",
                                    "weights are multiplied by 1 - weight_decay * lr / peak lr "
                                    "(coupled: by 1 - weight_decay * lr)", ("independent", "coupled"))
    rows: str = option("", "train", "roles in which each row is a block: any of " + ", ".join(optim.ROLES) +
                       ", joined by +")
    adaptive: str = option("", "train", "hybrid: roles that the optimizer trains; the others are left "
                                        "to --rest")
    rest: str = option("", "train", "hybrid: update rule of the other roles")
    rest_lr: float = option(None, "train", "hybrid: peak learning rate of the other roles", low=0)
    untrained: str = option("", "train", "roles that are never changed")
    freeze_steps: int = option(0, "train", "frozen ratios: so many extra steps that only measure",
                               low=0, high=10**9)
    updating: str = option("", "train", "frozen ratios: roles that go on measuring, or none")
    precision: str = option("auto", "train", "bf16: matrix products in bfloat16, all that is kept in "
                                             "float32; auto: where the hardware is fast at it",
                            ("auto", "bf16", "fp32"))
    seed: int = option(0, "train", "of the initial weights and of the order of the data", low=0)
    # what is written down
    log_every: int = option(10, "train", "steps between lines of metrics.jsonl", low=1, free=True)
    log_blocks: bool = option(False, "train", "log what each step does to each role and parameter", free=True)
    eval_every: int = option(100, "train", "steps between validations; 0: only at the end", low=0, free=True)
    eval_windows: int = option(64, "train", "sequences of a validation, spread over the split",
                               low=1, free=True)
    final_windows: int = option(0, "train", "sequences of the final one; 0: the whole split",
                                low=0, free=True)
    save_every: int = option(250, "train", "steps between checkpoints; 0: only at the end", low=0, free=True)
    keep: int = option(2, "train", "checkpoints to keep", low=2, free=True)
    sample_tokens: int = option(100, "train", "tokens of text to show at the end; 0: none",
                                low=0, high=10**6, free=True)
    throughput: int = option(0, "train", "tokens per second, for --plan; 0: unknown",
                             low=0, free=True)

OPTIONS = {field.name for field in fields(Config)}
FREE = {field.name for field in fields(Config) if field.metadata["free"]}
TABLES = ("lr", "rest_lr", "hyper", "expect")    # tuned values by optimizer; the loss that README promises

def check_tables(tables):
    """The tables by optimizer, whether this run reads them or not."""
    def number(value):
        return type(value) in (int, float)
    def promise(value):
        return isinstance(value, dict) and value.keys() == {"loss", "tolerance"} and all(
            number(x) for x in value.values())
    known = [*optim.names(), *optim.zoo()]
    for table, wanted, right in (("lr", "numbers", number), ("rest_lr", "numbers", number),
                                 ("hyper", "tables", lambda value: isinstance(value, dict)),
                                 ("expect", "{loss, tolerance}", promise)):
        for key, value in tables.get(table, {}).items():
            if key not in known or not right(value):
                raise UserError(f"{key} = {value!r}: [{table}] gives {wanted} to {', '.join(known)}")

def hyperparameters(config, tables):
    """{flag: default} of the chosen rules' hyperparameters: the rule's own, under the file's [hyper.NAME].
    Those with the name of an option have its value, and no flag of their own."""
    check_tables(tables)
    flags = {}
    if config.optimizer == "list":
        return flags
    what = "optimizer"
    try:
        rule = optim.find(config.optimizer)
        config.adaptive = config.adaptive or getattr(rule, "roles", "")    # a rule for some roles only
        config.rest = config.rest or getattr(rule, "rest", "")
        for what, prefix in (("optimizer", ""), ("rest", "rest_")):
            if name := getattr(config, what):
                tuned = tables.get("hyper", {}).get(name, {})
                if clash := OPTIONS & set(tuned):
                    raise ValueError(f"{min(clash)}: is an option of the run, not of [hyper.{name}]")
                flags |= {prefix + k: v for k, v in optim.checked(optim.find(name), tuned).items()}
        what = "modify"
        flags |= optim.hyper_of(*(optim.find_modifiers(config.modify) if config.modify else ()))
    except ValueError as error:
        raise UserError(f"--{what}: {error}") from None
    return {k: v for k, v in flags.items() if k.removeprefix("rest_") not in OPTIONS}

def learning_rate(tables, name, table="lr"):
    """The peak lr that the file gives an optimizer; without one, AdamW's times what is usual."""
    factor = optim.LR_OF_ADAMW.get(name) or getattr(optim.zoo().get(name), "lr_of_adamw", 1)
    usual = tables.get("lr", {}).get("adamw", 3e-3) * factor
    return float(tables.get(table, {}).get(name, usual))

def read_options(argv, stored=None):
    """(config with everything filled in, hyperparameters, tables of the file). A resumed run takes what
    the command line leaves open from its own config.json (stored), and must not differ from it."""
    config, hyper, tables = options.load(Config, argv, __doc__, TABLES, hyperparameters, stored)
    if config.resume and (config.overwrite or not config.run):
        raise UserError("--resume: needs --run=NAME, and excludes --overwrite")
    if config.resume and stored is None and (path := Path(config.runs, config.run, "config.json")).exists():
        try:
            stored = json.loads(path.read_text())
            if not isinstance(stored, dict):
                raise ValueError("is not a table of options")
            return read_options(argv, stored)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
    if config.lr is None:
        config.lr = learning_rate(tables, config.optimizer)
    if config.adaptive and config.rest and config.rest_lr is None:
        config.rest_lr = learning_rate(tables, config.rest, "rest_lr")
    if config.width % config.heads or config.width // config.heads % 2:
        raise UserError(f"--heads={config.heads}: must divide width {config.width} into heads of even size")
    if config.padded_vocab and config.padded_vocab < config.vocab_size:
        raise UserError(f"--padded_vocab={config.padded_vocab}: must be 0 or at least {config.vocab_size}")
    if config.schedule == "exponential" and not 0 < config.floor < 1:
        raise UserError(f"--floor={config.floor:g}: must be above 0 and below 1 for --schedule=exponential")
    for name in ("device", "precision", "attention") if stored else ():
        if getattr(config, name) == "auto":
            setattr(config, name, stored.get(name, "auto"))    # what was chosen at the start
    refuse_changes(stored or {}, asdict(config) | hyper)
    return config, hyper, tables

def refuse_changes(stored, now):
    """A resumed run keeps the settings with which it was started."""
    for name, value in stored.items():
        if name not in FREE and now.get(name) != value:
            raise UserError(f"--{name}={now.get(name)}: this run was started with {value}, and keeps it")

def split_batch(batch, micro, world, context):
    """(micro-batch, accumulation): sequences at a time on each rank, and how many times per step."""
    if batch % world:
        near = [n for n in (batch // world * world, (batch // world + 1) * world) if n]
        raise UserError(f"--batch={batch}: must divide among {world} ranks; "
                        f"try {' or '.join(map(str, near))}")
    share = batch // world
    divisors = [n for n in range(1, share + 1) if share % n == 0]
    micro = micro or max(n for n in divisors if n == 1 or n * context <= 16384)
    if micro not in divisors:
        near = [n for n in divisors if n < micro][-1:] + [n for n in divisors if n > micro][:1]
        raise UserError(f"--micro_batch={micro}: must divide the {share} sequences of a rank; "
                        f"try {' or '.join(map(str, near))}")
    return micro, share // micro

def settle(config, machine):
    """Fills in what depends on the machine: fixed functions of it. Returns why it chose
    this precision and this attention."""
    config.device, config.threads = machine.device.type, machine.threads
    config.precision, why_precision = machine.precision(config.precision)
    config.attention, why_attention = machine.attention(config.attention, config.context)
    config.loss_chunk = config.loss_chunk or (512 if config.device == "cpu" else 4096)
    config.compile = config.compile and compiler_works()
    return why_precision, why_attention

def shape_of(config):
    return {name: getattr(config, name) for name in ("width", "layers", "heads", "context", "vocab_size",
                                                     "padded_vocab", "qk_norm", "attention", "loss_chunk")}

def make_optimizer(model, config, hyper):
    chosen = {name: getattr(config, name) for name in ("rows", "adaptive", "rest", "rest_lr", "untrained",
                                                       "freeze_steps", "updating", "modify")}
    chosen = {name: value for name, value in chosen.items() if value not in ("", 0, None)}
    for prefix, name in (("", config.optimizer), ("rest_", config.rest)):
        shared = optim.hyper_of(optim.find(name)).keys() & OPTIONS if name else ()    # steps, heads, seed
        chosen |= {prefix + key: getattr(config, key) for key in shared}
    try:
        return optim.make(config.optimizer, model.roles(), lr=config.lr,
                          weight_decay=config.weight_decay, weight_decay_kind=config.weight_decay_kind,
                          compile=config.compile, **hyper, **chosen)
    except ValueError as error:
        raise UserError(f"--{error}") from None

# ---------------------------------------------------------------------------------------------------------
# What is measured

def evaluate(model, tokens, count, machine, config, autocast, stop):
    """Mean cross-entropy, in nats per token, over `count` windows spread over a split; the ranks share
    them. None if a signal has come to any of them."""
    windows = np.arange(count) * len(tokens) // count
    mine = windows[machine.rank::machine.world]
    total = 0.0
    for i in range(0, len(mine), config.micro_batch):
        if stop:
            break
        ids = torch.from_numpy(tokens[mine[i:i + config.micro_batch]]).to(machine.device)
        whole = len(ids) == config.micro_batch    # another size would have to be compiled
        with autocast, contextlib.nullcontext() if whole else torch.compiler.set_stance("force_eager"):
            _, loss, _ = model(ids[:, :-1], ids[:, 1:], config.z_loss)    # training's graph, there already
        total += loss.item() * len(ids)
    total, stopped = machine.sum(total, len(stop))
    return None if stopped else total / count

QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)

def look_into(optimizer, before):
    """What the last step did. Per role: quantiles of the effective lr, largest |u| (left out where a modifier
    decays each weight by itself). Per parameter: rms of the update, of the weight and of the gradient.
    before: the weights before that step."""
    effective, largest, blocks = {}, {}, {}
    for row in optim.effective_lr(optimizer):
        effective.setdefault(row["role"], []).append(row["values"])
    for role, values in effective.items():
        values = torch.cat(values).sort().values    # torch.quantile takes only 16 million
        effective[role] = [values[round(q * (len(values) - 1))].item() for q in QUANTILES]
    for group in optimizer.param_groups:
        same_decay = all(made != "decay" for made, _ in optimizer.parts(group))
        for p, name, role in zip(group["params"], group["param_names"], group["roles"]):
            w, old, g = p.detach(), before[p], p.grad
            rms = dict(update=w - old, weight=w, grad=g)
            blocks[name] = {key: x.square().mean().sqrt().item() for key, x in rms.items()}
            if same_decay:
                decayed = optimizer.decay(group, optimizer.state[p]["t"]) * old
                far = (decayed - w).abs().max().item()    # lr |u|
                largest[role] = max(largest.get(role, 0.0), far / group["lr"] if group["lr"] else 0.0)
    return dict(effective_lr=effective, largest_u=largest, blocks=blocks)

def checksum(model, optimizer):
    """A number that another bit anywhere in weights or state would change, and that a float64 holds."""
    state = [x for entry in optimizer.state.values() for x in entry.values() if torch.is_tensor(x)]
    whole = [x.detach().flatten().view(torch.uint8) for x in [*model.parameters(), *state]]
    return sum(int(x.sum(dtype=torch.int64)) * (i + 1) for i, x in enumerate(whole)) % 2**53

def expectation(config, hyper, tables, loss):
    """What README promises for these settings, beside what came out."""
    entry = tables.get("expect", {}).get(config.optimizer)
    usual, usual_hyper, _ = read_options([f"--config={config.config}", f"--optimizer={config.optimizer}"])
    all_same = FREE | {"seed", "device", "precision", "attention", "loss_chunk", "compile"}    # tolerated
    usual, ours = asdict(usual) | usual_hyper, asdict(config) | hyper
    other = [name for name in ours if name not in all_same and ours[name] != usual.get(name)]
    if not entry or other:
        return f"no loss is promised for these settings{' (' + ', '.join(other) + ')' if entry else ''}"
    verdict = "as promised" if abs(loss - entry["loss"]) <= entry["tolerance"] else "NOT AS PROMISED"
    return f"promised for these settings: {entry['loss']} +- {entry['tolerance']} nats per token: {verdict}"

# ---------------------------------------------------------------------------------------------------------
# Training

def show(title, values):
    """Prints a title and name=value pairs, in lines of at most 110 columns."""
    line = f"{title:10s}"
    for name, value in values.items():
        item = f" {name}={str(value).lower() if isinstance(value, bool) else value}"
        if len(line + item) > 110:
            print(line)
            line = " " * 10
        line += item
    print(line)

def on_signals(handler):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        with contextlib.suppress(ValueError):    # only a main thread can
            signal.signal(number, handler)

def train(argv, opened):
    """One run. opened: a list that receives the run's folder while something can go wrong with it."""
    on_signals(signal.default_int_handler)    # nothing to save yet: leave at once, by KeyboardInterrupt
    config, hyper, tables = read_options(argv)
    if config.optimizer == "list":
        print(zoo.table.table())
        return 0
    if config.plan:
        with torch.device("meta"):    # without memory
            model = Decoder(**shape_of(config))
        plan.show(config, model, make_optimizer(model, config, hyper),
                  *split_batch(config.batch, config.micro_batch, 1, config.context))
        return 0
    machine = Machine(config)
    master = machine.rank == 0
    if not master:
        sys.stdout = open(os.devnull, "w")    # one voice
    why_precision, why_attention = settle(config, machine)
    keep_imports()
    asked = dict(micro_batch=config.micro_batch)    # another number of ranks may need another
    micro, accumulation = split_batch(config.batch, config.micro_batch, machine.world, config.context)
    config.micro_batch = micro
    updates = config.freeze_steps + config.steps

    # --- data
    if master and not Path(config.data, "meta.json").exists():
        command = f"{config.prepare} --out={config.data}".strip()
        if config.data != Config.data:
            raise UserError(f"--data={config.data}: no data there; make it: python prepare_c4.py {command}")
        print(f"{config.data} is not there yet, so first: python prepare_c4.py {command}")
        prepare_c4.prepare(options.load(prepare_c4.Options, command.split())[0])
    machine.sum(0)    # the others wait for rank 0
    meta = data.read_meta(config.data)
    if meta["vocab_size"] != config.vocab_size:
        raise UserError(f"--vocab_size={config.vocab_size}: the data in {config.data} "
                        f"has {meta['vocab_size']}")
    fingerprint = data.fingerprint(meta)
    train_set, val_set = (data.Tokens(config.data, split, config.context, config.verify_data)
                          for split in ("train", "val"))
    windows_of = data.Order(len(train_set), config.seed)

    # --- model and optimizer
    shape = shape_of(config)
    model = Decoder(**shape, seed=config.seed).to(machine.device)
    parameters = dict(model.named_parameters())
    optimizer = make_optimizer(model, config, hyper)
    peaks = [group["lr"] for group in optimizer.param_groups]
    if config.compile:
        model.compile_parts()
    ranked = model
    if machine.world > 1:
        ranked = torch.nn.parallel.DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True)    # else gradients are there twice
    autocast = torch.autocast(machine.device.type, torch.bfloat16, enabled=config.precision == "bf16")

    # --- everything in force
    for table in (None, "model", "data", "train"):
        show(table or "this run", {field.name: getattr(config, field.name) for field in fields(Config)
                                   if field.metadata["table"] == table})
    show("hyper", hyper)
    weights = sum(p.numel() for p in parameters.values())
    hidden = weights - model.embed.weight.numel() - model.head.weight.numel()
    tokens = config.batch * config.context
    tuned = config.optimizer in tables.get("lr", {}) or config.lr != learning_rate(tables, config.optimizer)
    print(f"\ndevice     {machine.device}; {config.precision}: {why_precision}\n"
          f"           {config.attention} attention: {why_attention}\n"
          f"           {machine.world} x {machine.threads} threads\n"
          f"model      {weights:,} weights, {hidden:,} of them outside embedding and head\n"
          f"step       {tokens:,} tokens: {machine.world} ranks x {accumulation} x {micro} sequences of "
          f"{config.context}; all {updates} are {updates * config.batch / len(train_set):.2f} epochs")
    for group in optimizer.param_groups:
        print(f"optimizer  {' + '.join([group['rule'], *group['modify']])}, lr {group['lr']:g}"
              f"{'' if tuned else ' (not tuned at this size)'}: "
              f"{', '.join(sorted(set(group['roles'])))}; {optimizer.state_bytes(group):,} bytes of state")

    here = versions() | dict(device=machine.name(), threads=machine.threads, ranks=machine.world,
                             micro_batch=micro)

    # --- where it starts: at the beginning, with the weights of another run, or in its own middle
    def restore(path, checkpoint, own):
        """Model and optimizer as in a checkpoint: this run's own, or another's."""
        settings = [dict(group) for group in optimizer.param_groups]
        try:
            if own and checkpoint["data"] != fingerprint:
                raise UserError(f"--data={config.data}: holds other tokens than this run was started with "
                                f"(sha256 {fingerprint[:12]} now, {checkpoint['data'][:12]} then)")
            if own:
                refuse_changes(checkpoint["config"] | dict(data=config.data), asdict(config) | hyper)
            model.load_state_dict(checkpoint["model"])
            theirs = [checkpoint["config"].get(key, "") for key in ("optimizer", "modify")]
            if theirs == [config.optimizer, config.modify]:
                optimizer.load_state_dict(checkpoint["optimizer"])
                for group, ours in zip(optimizer.param_groups, settings):
                    group.update(ours)    # the state is from there, the settings are from here
            else:
                print(f"note: {path} is of {'+'.join(filter(None, theirs))}; only its weights are used")
            changed = [(name, checkpoint["versions"][name]) for name in
                       ("torch", "device", "threads", "ranks", "micro_batch") if own and
                       here[name] != checkpoint["versions"][name] and
                       not (name == "ranks" and 2 * micro == config.batch)]    # 1 x 2 and 2 x 1: same sums
        except (RuntimeError, ValueError, KeyError, TypeError) as error:    # from the two loaders
            reason = options.one_line(str(error).splitlines()[-1].strip(), 150)
            raise UserError(f"{'' if own else '--init_from='}{path}: does not fit: {reason}") from None
        print(f"{'resumed' if own else 'started'} from {path}")
        for name, old in changed:
            print(f"note: {name} was {old} and is {here[name]}: not bit for bit the same")

    if config.init_from and not (config.resume and any(Path(config.runs, config.run).glob("step-*.pt"))):
        restore(config.init_from, load_checkpoint(config.init_from), own=False)

    # --- the run's folder: from here on things are written
    run, first, newest = None, 0, None
    if master:
        run = Run(config.runs, config.run, config.resume, config.overwrite)
        print(f"run        {run.folder}\n")
        if config.resume and run.read_status().get("status") in ("done", "diverged"):
            first = -1
        elif config.resume:
            first, newest = run.newest()
            if not first:
                print("note: there is no checkpoint to resume from, so from the beginning")
    first = int(machine.sum(first)[0])    # all ranks agree
    if first < 0:
        return ended(run) if master else 0
    if first:
        path = Path(config.runs, config.run, f"step-{first:08d}.pt")
        restore(path, newest or load_checkpoint(path), own=True)
        newest = None    # and its memory with it
    if master:
        opened.append(run)
        run.rewind(first if first else -1)
        if not first:
            write_json(run.folder / "config.json", asdict(config) | hyper | asked)
            run.log("config", 0, config=asdict(config) | hyper | asked, data=fingerprint, weights=weights,
                    hidden=hidden, **here)
        run.status("running", step=first, steps=updates)

    # --- what the loop does now and then
    stop = []    # signals that have come since the first step; the step ends first

    def save(step):
        """A checkpoint, once the ranks are found to hold the same bits."""
        if machine.world > 1 and len(set(machine.ranks(checksum(model, optimizer)))) > 1:
            raise UserError(f"step {step}: the ranks no longer hold the same weights and state; "
                            "go on from the checkpoint before with --run=NAME --resume", 4)
        if master:
            kept = {name: value for name, value in (asdict(config) | hyper).items() if name not in FREE}
            run.save(step, dict(step=step, model=model.state_dict(), optimizer=optimizer.state_dict(),
                                shape=shape, config=kept | dict(data=config.data), data=fingerprint,
                                versions=here), config.keep)

    def gradients(step, sampled=False):
        """Adds those of the mean loss over all micro-batches and ranks to each .grad. Returns this rank's
        part of that loss. sampled: of the cross-entropy of labels that the model draws itself, for each
        window by its own numbers, so that ranks and resumes agree."""
        mean_loss = torch.zeros((), device=machine.device)
        for k in range(accumulation):
            begin = (step - 1) * config.batch + (machine.rank * accumulation + k) * micro
            ids = torch.from_numpy(train_set[windows_of(begin, micro)]).to(machine.device)
            x, targets, z_loss = ids[:, :-1], ids[:, 1:], config.z_loss
            if machine.world > 1:    # DDP must know before the forward whether to sum this one's gradients
                ranked.require_backward_grad_sync = k == accumulation - 1
            with autocast:
                if sampled:
                    uniform = np.stack([np.random.default_rng([config.seed, begin + i]).random(x.shape[1])
                                        for i in range(micro)])
                    targets = model.drawn(x, torch.from_numpy(uniform).float().to(machine.device))
                    z_loss = 0.0
                objective, loss, _ = ranked(x, targets, z_loss)
            (objective / accumulation).backward()
            mean_loss += loss / accumulation
        return mean_loss

    def clip(norm):
        """Multiplies all gradients by min(1, clip / (norm + 1e-6))."""
        if config.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters.values(), config.clip, norm)

    def interrupted(step):
        """A signal has come to some rank: all is kept, and the run ends."""
        bar.close()
        save(step)
        if master:
            run.status("interrupted", step=step, steps=updates)
        return UserError(f"interrupted at step {step}; go on with --run=NAME --resume", 75)

    def validate(step, count, **more):
        """The validation loss after a step. A signal ends it; a resumed run begins with it, then."""
        count = min(count or len(val_set), len(val_set))
        loss = evaluate(model, val_set, count, machine, config, autocast, stop)
        if loss is None:
            raise interrupted(step)
        if master:
            bits = {} if step < updates else dict(bits_per_byte=loss / math.log(2) / val_set.bytes_per_token)
            run.log("val", step, loss=loss, windows=count, **bits, **more)
        return loss, count

    def picture(title):
        with whole_file(run.folder / "loss.png") as file:
            study.draw_run(run.read_metrics(), file, f"{run.folder.name}{title}")

    # --- the loop
    bar = tqdm(total=updates, initial=first, unit="step", disable=not master, dynamic_ncols=True,
               mininterval=0.5 if sys.stderr.isatty() else 15)
    since, begun, last_loss = first, time.perf_counter(), None
    if config.eval_every and first and first % config.eval_every == 0 and first < updates:
        validate(first, config.eval_windows)
    for step in range(first + 1, updates + 1):
        sampled, sampled_norm = None, 0.0
        if optimizer.wants_sampled():    # only some rules of zoo/ do, now and then
            gradients(step, sampled=True)
            sampled_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters.values()])
            clip(sampled_norm)
            sampled = {p: p.grad.clone() for p in parameters.values()}
            model.zero_grad()
        mean_loss = gradients(step)
        total_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters.values()])
        loss, norm, stopped = machine.sum(mean_loss / machine.world, total_norm / machine.world, len(stop))

        # a broken step must not reach the weights: sign(nan) is 0, so the sign rules would hide it for ever
        finite = math.isfinite(loss) and math.isfinite(norm) and math.isfinite(sampled_norm)
        if not finite or 0 < config.stop_loss < loss:
            bar.close()
            kind = "loss" if finite or not math.isfinite(loss) else "gradient norm"
            bad = next((name for name, p in parameters.items() if not p.grad.isfinite().all() or
                        sampled and not sampled[p].isfinite().all()), None)
            ranks = [r for r, broken in enumerate(machine.ranks(int(not mean_loss.isfinite()))) if broken]
            where = f" on rank {', '.join(map(str, ranks))}" if ranks and machine.world > 1 else ""
            if master:
                run.status("diverged", step=step, steps=updates, loss=last_loss, kind=kind, tensor=bad)
                picture(", diverged")
            why = (f"is not finite{where} (first tensor: {bad})" if not finite else
                   f"is {loss:.4g}, above --stop_loss={config.stop_loss:g}")
            raise UserError(f"step {step}: the {kind} {why}; "
                            "the weights are still those of the step before", 3)
        last_loss = loss

        clip(total_norm)    # before any rule sees them
        scale = optim.schedule(max(1, step - config.freeze_steps), config.steps, config.schedule,
                               config.warmup, config.warmup_from, config.floor, config.cooldown)
        for group, peak in zip(optimizer.param_groups, peaks):
            group["lr"] = peak * scale
        logged = step % config.log_every == 0 or step in (1, updates)
        before = None
        if logged and config.log_blocks:
            before = {p: p.detach().clone() for p in parameters.values()}
        optimizer.step(sampled=sampled)

        if step == first + 1:    # it compiles, which a Ctrl-C would break: from here on signals wait
            on_signals(lambda number, frame: stop.append(number))

        # what is written down
        bar.update()
        if logged and master:
            speed = (step - since) * tokens / (time.perf_counter() - begun)
            since, begun = step, time.perf_counter()
            clipped = norm * min(1.0, config.clip / (norm + 1e-6)) if config.clip else norm
            run.log("train", step, loss=loss, lr=config.lr * scale, norm=norm, clipped_norm=clipped,
                    tokens_per_second=round(speed), **(look_into(optimizer, before) if before else {}))
            bar.set_postfix_str(f"loss {loss:.3f}, lr {config.lr * scale:.2e}, {speed:,.0f} tokens/s",
                                refresh=False)
        model.zero_grad()    # of untrained parameters, too
        if stopped:
            raise interrupted(step)
        if step == updates or config.save_every and step % config.save_every == 0:
            save(step)
        if config.eval_every and step % config.eval_every == 0 and step < updates:
            paused = time.perf_counter()
            loss, count = validate(step, config.eval_windows)
            tqdm.write(f"step {step}: validation loss {loss:.4f} ({count} windows)")
            begun += time.perf_counter() - paused
    bar.close()

    # --- the result
    loss, count = validate(updates, config.final_windows, final=True)
    if master:
        bits = loss / math.log(2) / val_set.bytes_per_token
        picture(f": {config.optimizer}, lr {config.lr:g}, final {loss:.3f}")
        run.status("done", step=updates, steps=updates, loss=loss, bits_per_byte=bits)
        opened.clear()    # nothing can take that back
        tokenizer = None
        try:
            tokenizer = data.load_tokenizer(config.data) if config.sample_tokens else None
        except UserError as error:    # training needs no tokenizer
            print(f"note: no sample: {error}")
        if tokenizer:
            with torch.compiler.set_stance("force_eager"):
                text = sample.text(model, tokenizer, "", config.sample_tokens)
            print(f"\n--- {config.sample_tokens} tokens from the model\n{text}\n---\n")
        print(f"final validation loss {loss:.4f} nats per token, {bits:.4f} bits per byte ({count} windows)")
        print(expectation(config, hyper, tables, loss))
        print(f"everything is in {run.folder}: metrics.jsonl, loss.png, {run.checkpoints()[0].name}")
    return 0

def ended(run):
    """What --resume says of a run that has come to its end."""
    status = run.read_status()
    if status["status"] == "diverged":
        raise UserError(f"{run.folder}: diverged at step {status['step']}; --overwrite starts it again", 3)
    print(f"{run.folder}: already complete, final validation loss {status['loss']:.4f}")
    return 0

def main(argv):
    """Runs a command line. Returns the exit code: 0 done, 2 usage or data, 3 diverged, 4 environment,
    75 interrupted."""
    opened = []
    try:
        return train(argv, opened)
    except (Exception, KeyboardInterrupt) as caught:
        on_signals(signal.SIG_IGN)    # another one must not disturb
        code, message, ours = last_words(caught)
        message = options.one_line(message)
        if ours:
            tqdm.write(f"train.py: error: {message}", file=sys.stderr)    # above the bar
        with contextlib.suppress(UserError, OSError):    # the disk may be full
            if opened and isinstance(caught, KeyboardInterrupt):
                opened[0].status(**opened[0].read_status() | dict(status="interrupted"))
            elif opened and code not in (3, 75):
                opened[0].status("failed", message=message)
        if code == 1:    # ours to mend, so with its traceback
            raise
        return code
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
