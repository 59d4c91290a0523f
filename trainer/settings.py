"""
The settings of one run. This file defines the options of train.py and their defaults. Hyperparameters come
from the rules.
"""
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace

import optim
import zoo
from trainer import options
from trainer.errors import UserError, nearest
from trainer.options import option
from trainer.runs import checkpoints_of, step_of


# ---------------------------------------------------------------------------------------------------------
# The options. A free one may change when a run is resumed, because the result does not depend on it.

@dataclass(frozen=True)
class Settings:
    config: str = option("configs/nano.toml", None, "TOML file with sizes and tuned values", free=True)
    name: str = option("", None, "name of the run's folder; default: the next number", free=True)
    runs: str = option("runs", None, "folder of all runs", free=True)
    resume: bool = option(False, None, "continue from the run's newest checkpoint", free=True)
    overwrite: bool = option(False, None, "empty the run's folder and start again", free=True)
    plan: bool = option(False, None, "only print what the run will need: weights, FLOPs, memory, disk, hours",
                        free=True)
    init_from: str = option("", None, "checkpoint, or folder of a run, to start from: its weights, and its "
                                      "state if the optimizer is the same")
    init_from_state: bool = option(True, None, "take that state; false: only the weights")
    continue_data: bool = option(False, None, "read the data from where the run of --init_from has stopped")
    device: str = option("auto", None, "device that computes; auto: cuda or else cpu; mps is untested",
                         ("auto", "cpu", "cuda", "mps"))
    attention: str = option("auto", None, "sdpa: torch's fused kernels; plain: matmul, softmax, matmul",
                            ("auto", "sdpa", "plain"))
    loss_chunk: int = option(0, None, "tokens whose logits exist at the same time; 0: 512 on CPU, 4,096 "
                                      "elsewhere", low=0)
    compile: bool = option(True, "train", "compile model and optimizer: the first step becomes slow, the "
                                      "others fast")
    threads: int = option(0, None, "CPU threads of each process; 0: the processes share all cores",
                          low=0, high=1024, free=True)
    timeout: int = option(600, None, "seconds to wait for a rank that does not answer before the run ends",
                          low=1, high=10**6, free=True)
    # the model
    width: int = option(128, "model", "size of the vector at each position", low=2, high=2**16)
    layers: int = option(4, "model", "number of blocks", low=1, high=2**12)
    heads: int = option(2, "model", "attention heads; width / heads must be even", low=1, high=2**12)
    context: int = option(128, "model", "tokens of a sequence", low=1, high=2**20)
    vocab_size: int = option(4096, "model", "number of token ids of the data", low=2, high=2**24)
    padded_vocab: int = option(0, "model", "rows of embedding and head; 0: the next multiple of 128",
                               low=0, high=2**24)
    qk_norm: bool = option(True, "model", "LayerNorm on queries and keys")
    z_loss: float = option(1e-4, "model", "weight of log(Z)^2 in the training loss; 0: off", low=0)
    # the data
    data: str = option("data/sotu_bpe4096", "data", "folder of token shards", free=True)
    prepare: str = option("", "data", "options with which prepare_c4.py makes that folder", free=True)
    verify_data: bool = option(False, "data", "before training, read all token ids and compare their sha256",
                               free=True)
    # training
    optimizer: str = option("adamw", "train", f"update rule: {', '.join(optim.RULES)}, one of zoo/, or a "
                                              "file of your own, mine.py; list: print all rules")
    modify: str = option("", "train", f"changes to the rule: any of {', '.join(zoo.MODIFIERS)}, joined by +")
    average: str = option("", "train", "average of the weights to keep and to evaluate beside them: one of "
                                       f"{', '.join(zoo.AVERAGES)}")
    lr: float = option(None, "train", "peak learning rate, in the rule's unit; default: the file's value for "
                                      "this optimizer", low=0)
    lr_of: str = option("", "train", "multiples of the peak learning rate by role, such as head:0.5,embed:2")
    steps: int = option(500, "train", "optimizer steps", low=1, high=5 * 10**7)
    batch: int = option(32, "train", "sequences per step, over all ranks", low=1, high=2**24)
    micro_batch: int = option(0, "train", "sequences at a time on each rank; 0: up to 16,384 tokens",
                              low=0, free=True)
    schedule: str = option(None, "train", "how the lr falls after the warmup; default: the rule's own, which "
                                          "is cosine for nearly all rules", tuple(zoo.SHAPES))
    cooldown: float = option(1.0, "train", "fraction of the steps, at the end, in which the lr falls; "
                                           "1: all steps after the warmup; 0.2: WSD", low=0, high=1)
    cooldown_beta2: float = option(None, "train", "beta2 while the lr falls, such as 0.99; default: as "
                                                  "before", low=0)
    warmup: float = option(0.1, "train", "fraction of the steps, at the start, in which the lr rises",
                           low=0, high=1)
    warmup_from: float = option(0.1, "train", "lr before the first step, as a fraction of the peak lr",
                                low=0, high=1)
    floor: float = option(0.1, "train", "last lr, as a fraction of the peak lr", low=0, high=1)
    clip: float = option(1.0, "train", "largest allowed norm of the whole gradient; 0: no clipping", low=0)
    stop_loss: float = option(0.0, "train", "end the run as diverged if the training loss exceeds this; "
                                            "0: never", low=0)
    weight_decay: float = option(0.0, "train", "strength of the decay of every weight", low=0)
    weight_decay_of: str = option("", "train", "weight decay by role, such as norm:0,embed:0")
    weight_decay_kind: str = option("independent", "train",
                                    "weights are multiplied by 1 - weight_decay * lr / peak lr "
                                    "(coupled: by 1 - weight_decay * lr)", ("independent", "coupled"))
    rows: str = option("", "train", f"roles in which each row is a block: any of {', '.join(zoo.ROLE_SETS)}, "
                                    "joined by +")
    adaptive: str = option("", "train", "hybrid: roles that the optimizer trains; --rest trains all others")
    rest: str = option("", "train", "hybrid: update rule of the other roles")
    rest_lr: float = option(None, "train", "hybrid: peak learning rate of the other roles", low=0)
    untrained: str = option("", "train", "roles that are never changed")
    freeze_steps: int = option(0, "train", "frozen ratios: number of extra steps that only measure",
                               low=0, high=4 * 10**7)    # a checkpoint's name has 8 digits for the step
    updating: str = option("", "train", "frozen ratios: roles that continue to measure, or none")
    precision: str = option("auto", "train", "bf16: matrix products in bfloat16, weights and state in "
                                             "float32; auto: bf16 where the hardware is fast at it",
                            ("auto", "bf16", "fp32"))
    seed: int = option(0, "train", "seed of the initial weights and of the order of the data", low=0)
    # outputs
    log_every: int = option(10, "train", "steps between lines of metrics.jsonl", low=1, free=True)
    log_blocks: bool = option(False, "train", "log what each step does to each role and parameter", free=True)
    eval_every: int = option(100, "train", "steps between validations; 0: only at the end", low=0, free=True)
    eval_windows: int = option(64, "train", "sequences of a validation, spread over the split",
                               low=1, free=True)
    final_windows: int = option(0, "train", "sequences of the final validation; 0: the whole split",
                                low=0, free=True)
    save_every: int = option(250, "train", "steps between checkpoints; 0: only at the end", low=0, free=True)
    keep: int = option(2, "train", "checkpoints to keep", low=2, free=True)
    sample_tokens: int = option(100, "train", "tokens of sample text to print at the end; 0: none",
                                low=0, high=10**6, free=True)
    throughput: int = option(0, "train", "tokens per second, for --plan; 0: unknown",
                             low=0, free=True)


OPTIONS = {field.name for field in fields(Settings)}
FREE = {field.name for field in fields(Settings) if field.metadata["free"]}
HOW_TO_START = {"name", "runs", "resume", "overwrite", "plan"}    # these are for one command, not for the run
OF_A_MACHINE = {"config", "data", "prepare", "runs", "threads", "timeout"}    # these may differ between ranks
SCHEDULE = ("steps", "schedule", "cooldown", "warmup", "warmup_from", "floor")
TABLES = ("lr", "rest_lr", "hyper", "expect")    # tuned values by optimizer, and promised losses

# The names of options in other trainers, and what to write here instead.
FOREIGN_NAMES = {
    "batch_size": "write --batch, in sequences per step over all ranks and accumulation steps",
    "train_batch_size": "write --batch, in sequences per step over all ranks and accumulation steps",
    "per_device_train_batch_size": "write --micro_batch, in sequences at a time on each rank",
    "gradient_accumulation_steps": "it follows from --batch and --micro_batch: batch / (micro_batch * ranks)",
    "learning_rate": "write --lr, the peak learning rate",
    "max_lr": "write --lr, the peak learning rate",
    "min_lr": "write --floor, a fraction of the peak: min_lr / lr",
    "max_iters": "write --steps", "max_steps": "write --steps", "num_steps": "write --steps",
    "num_iterations": "write --steps", "total_steps": "write --steps",
    "epochs": "write --steps: epochs * sequences of the data / batch",
    "num_train_epochs": "write --steps: epochs * sequences of the data / batch",
    "warmup_iters": "write --warmup, a fraction of the steps: warmup_iters / steps",
    "warmup_steps": "write --warmup, a fraction of the steps: warmup_steps / steps",
    "warmup_ratio": "write --warmup, a fraction of the steps",
    "lr_decay_iters": "the lr falls until the last step; write --steps, --cooldown and --floor",
    "lr_scheduler_type": "write --schedule", "lr_schedule": "write --schedule",
    "n_layer": "write --layers", "n_layers": "write --layers", "num_layers": "write --layers",
    "depth": "write --layers",
    "n_embd": "write --width", "d_model": "write --width", "hidden_size": "write --width",
    "dim": "write --width",
    "n_head": "write --heads", "n_heads": "write --heads", "num_heads": "write --heads",
    "block_size": "write --context, in tokens", "seq_len": "write --context, in tokens",
    "sequence_length": "write --context, in tokens", "max_seq_len": "write --context, in tokens",
    "grad_clip": "write --clip", "max_grad_norm": "write --clip", "max_norm": "write --clip",
    "wd": "write --weight_decay", "beta_1": "write --beta1", "beta_2": "write --beta2",
    "betas": "write --beta1 and --beta2", "momentum": "write --beta1", "dtype": "write --precision",
    "dataset": "write --data, a folder that prepare_c4.py has made",
    "out_dir": "write --name, and --runs for the folder of all runs",
    "output_dir": "write --name, and --runs for the folder of all runs",
    "run": "write --name", "run_name": "write --name",
    "opt": "write --optimizer", "optim": "write --optimizer",
    "eval_interval": "write --eval_every, in steps", "log_interval": "write --log_every, in steps",
    "save_interval": "write --save_every, in steps", "save_steps": "write --save_every, in steps",
    "eval_iters": "write --eval_windows, in sequences: eval_iters * batch size",
    "init_ckpt": "write --init_from", "dropout": "the paper's model has no dropout; leave it out",
    "bias": "the paper's model has no biases; leave it out",
}
FOREIGN_OPTIMIZERS = {"adam": "adamw", "adamw_torch": "adamw", "adamw_fused": "adamw", "sgdm": "sgd",
                      "momentum": "sgd", "sgdw": "sgd", "signsgd": "sign_sgd", "adalayer*": "adalayer_star"}


# ---------------------------------------------------------------------------------------------------------
# From options to complete settings

def read(argv: list, about: str = "") -> tuple:
    """Reads a command line of train.py.

    A resumed run takes the options that the command line does not give from its own config.json. The command
    line must not contradict that file, except in options that are free. refuse_changes() says when the
    schedule may change.

    Args:
        argv: the words after train.py.
        about: the text at the beginning of --help.
    Returns: (settings, {hyperparameter: value}, tables of the file). The settings are complete, except for
        those that depend on the machine. Machine.complete() fills them in.
    Raises: UserError."""
    stored = stored_settings(argv)    # comes first, so that the command line is checked beside them
    settings, hyper, tables = options.load(Settings, argv, about, complete=complete, extra_tables=TABLES,
                                           base=stored, foreign_names=FOREIGN_NAMES)
    if settings.resume and (settings.overwrite or not settings.name):
        raise UserError("--resume: needs --name=NAME, and excludes --overwrite")
    folder = Path(settings.runs, settings.name)
    chosen = {name: stored.get(name, "auto") for name in ("device", "precision", "attention")
              if stored and getattr(settings, name) == "auto"}    # the machine chose them at the start
    settings = replace(settings, init_from=newest_checkpoint(settings.init_from), **chosen)
    of_file = tables.get("data", {})
    if settings.data == Settings.data != of_file.get("data", settings.data):    # it has a recipe of its own
        settings = replace(settings, prepare=Settings.prepare)
    if stored:
        step = max(map(step_of, checkpoints_of(folder)), default=0)
        refuse_changes(stored, kept(settings, hyper), folder, step)
    return settings, hyper, tables


def kept(settings: Settings, hyper: dict) -> dict:
    """Returns {name: value} of all options and hyperparameters that are part of the run. How this process was
    told to start it is no part of it. If a rule is in a file of the user's, the file's hash and the rule's
    defaults are a part. So nobody needs the file to read what the run has done."""
    of_files = {}
    for option_name, prefix in (("optimizer", ""), ("rest", "rest_")):
        if not (path := getattr(settings, option_name)).endswith(".py"):
            continue
        rule = find_rule(option_name, path)
        own = [key for key in rule.hyper if key not in rule.from_run]
        usual = {prefix + key: rule.hyper[key] for key in own} | {f"{key}_of": "" for key in own}
        if option_name == "optimizer":
            usual |= dict(adaptive=rule.roles, rest=rule.rest, schedule=rule.schedule)
        of_files |= {f"sha256_of_{option_name}": rule.sha256, f"defaults_of_{option_name}": usual}
    return {name: value for name, value in (asdict(settings) | hyper | of_files).items()
            if name not in HOW_TO_START}


def newest_checkpoint(path: str) -> str:
    """Returns the path of the newest checkpoint in the folder of a run. Any other path stays as it is, also
    one that does not exist: start_from() refuses it. A resumed run does not need it any more."""
    found = checkpoints_of(Path(path)) if path else []
    return str(found[0]) if found else path


def stored_settings(argv: list) -> dict | None:
    """Returns the settings in config.json of the run that a command line resumes. None if it resumes no run,
    or one that has no config.json yet. Raises UserError."""
    words = options.peek(argv, ("runs", "name", "resume"))
    path = Path(words["runs"] or Settings.runs, words["name"] or "", "config.json")
    is_resumed = words["name"] and (words["resume"] or "false").lower() != "false"
    return read_stored(path) if is_resumed and path.exists() else None


def read_stored(path: Path) -> dict:
    """Returns the settings in a run's config.json. Raises UserError."""
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(stored, dict):
        raise UserError(f"{path}: cannot be read: it holds no table of options")
    return {name: value for name, value in stored.items() if name not in HOW_TO_START}


def defaults(config_file: str, optimizer: str, **chosen) -> dict:
    """Returns {name: value} of all options and hyperparameters for a config file, an optimizer and the chosen
    options. All others have their defaults. Raises UserError."""
    typed = dict(config=str(config_file), optimizer=optimizer, **chosen)
    settings, tables = options.fill_in(Settings, typed, TABLES, foreign_names=FOREIGN_NAMES)
    settings, hyper = complete(settings, tables)
    return asdict(settings) | hyper


def complete(settings: Settings, tables: dict) -> tuple:
    """Fills in the options that follow from others: the schedule, the learning rates, and a hybrid's roles
    and rest.

    Returns: (settings, {hyperparameter: default}).
    Raises: UserError if options do not fit together."""
    check_tables(tables)
    if settings.optimizer == "list":
        return settings, {}
    for name in ("init_from_state", "continue_data"):
        if not settings.init_from and getattr(settings, name) != getattr(Settings, name):
            raise UserError(f"--{name}: goes with --init_from")
    rule = find_rule("optimizer", settings.optimizer)
    settings = replace(settings, adaptive=settings.adaptive or rule.roles, rest=settings.rest or rule.rest,
                       schedule=settings.schedule or rule.schedule)
    hyper = hyperparameters(settings, tables)
    check_schedule(settings, rule)
    if settings.lr is None:
        settings = replace(settings, lr=learning_rate(tables, settings.optimizer))
    if settings.adaptive and settings.rest and settings.rest_lr is None:
        settings = replace(settings, rest_lr=learning_rate(tables, settings.rest, "rest_lr"))
    if settings.width % settings.heads or settings.width // settings.heads % 2:
        raise UserError(f"--heads={settings.heads}: must divide width {settings.width} into heads of even "
                        "size")
    if settings.padded_vocab and settings.padded_vocab < settings.vocab_size:
        raise UserError(f"--padded_vocab={settings.padded_vocab}: must be 0 or at least "
                        f"{settings.vocab_size}")
    return settings, hyper


def check_schedule(settings: Settings, rule: zoo.ZooRule) -> None:
    """Checks that the options of the schedule fit together. Raises UserError."""
    cooldown, warmup = settings.cooldown, settings.warmup
    if settings.schedule == "constant" and 0 < cooldown < 1:
        raise UserError(f"--cooldown={cooldown:g}: --schedule=constant has none; give another schedule")
    if cooldown < 1 and warmup + cooldown > 1 + 1e-9:    # sums such as 0.7 + 0.3 are rounded
        raise UserError(f"--cooldown={cooldown:g}: the warmup of {warmup:g} leaves {1 - warmup:g} of the "
                        "steps; 1 means all steps after the warmup")
    if settings.schedule == "exponential" and not 0 < settings.floor < 1:
        raise UserError(f"--floor={settings.floor:g}: must be above 0 and below 1 for --schedule=exponential")
    if settings.cooldown_beta2 is not None:
        checked("cooldown_beta2", rule, dict(beta2=settings.cooldown_beta2))
        if settings.schedule == "constant":
            raise UserError("--cooldown_beta2: needs a cooldown, and --schedule=constant has none")
        if zoo.steps_before_fall(settings.steps, warmup, cooldown) == settings.steps:
            raise UserError("--cooldown_beta2: needs a cooldown; give more --cooldown or less --warmup")


def find_rule(option_name: str, name: str) -> zoo.ZooRule:
    """Returns the rule of that name. Raises UserError that names the option."""
    if name.lower() in FOREIGN_OPTIMIZERS:
        near = FOREIGN_OPTIMIZERS[name.lower()]
        raise UserError(f"--{option_name}: {name!r} is no optimizer; did you mean {near}?")
    try:
        return zoo.find(name)
    except ValueError as error:
        raise UserError(f"--{option_name}: {error}") from None


def check_tables(tables: dict) -> None:
    """Checks the file's tables of tuned values, even those that this run does not read. Raises UserError."""
    def is_number(value):
        return type(value) in (int, float)

    def is_promise(value):
        has_its_keys = isinstance(value, dict) and value.keys() == {"loss", "tolerance"}
        return has_its_keys and all(map(is_number, value.values()))

    for table, wanted, is_right in (("lr", "numbers", is_number), ("rest_lr", "numbers", is_number),
                                    ("hyper", "tables", lambda value: isinstance(value, dict)),
                                    ("expect", "{loss, tolerance}", is_promise)):
        for key, value in tables.get(table, {}).items():
            if key not in zoo.RULES or not is_right(value):
                raise UserError(f"{key} = {value!r}: [{table}] gives {wanted} to {', '.join(zoo.RULES)}")


def hyperparameters(settings: Settings, tables: dict) -> dict:
    """Returns {flag: default} of the hyperparameters of the chosen rules, modifiers and average.

    The defaults are the rule's own, unless the table [hyper.NAME] of the file has others. Each hyperparameter
    has a second flag, NAME_of, for values by role. Hyperparameters that the rule's line names in from_run
    take the value of an option of the run, and have no flags.
    Raises: UserError."""
    flags, names = {}, {}
    for option_name, prefix in (("optimizer", ""), ("rest", "rest_")):
        if not (name := getattr(settings, option_name)):
            continue
        rule, tuned = find_rule(option_name, name), dict(tables.get("hyper", {}).get(name, {}))
        if clash := OPTIONS & set(tuned):
            raise UserError(f"--{option_name}: {min(clash)}: is an option of the run, not of [hyper.{name}]")
        if clash := OPTIONS & set(rule.hyper) - set(rule.from_run):
            raise UserError(f"--{option_name}: {min(clash)}: is an option of the run; the line of {name} "
                            "must name it in from_run")
        own = {key: "" for key in rule.hyper if key not in rule.from_run}
        for key in own:    # both rules of a hybrid may have values for roles of their own
            texts = filter(None, (names.get(f"{key}_of"), tuned.pop(f"{key}_of", "")))
            names[f"{key}_of"] = ",".join(dict.fromkeys(map(str, texts)))    # once if both are one rule
        values = checked(option_name, rule, tuned)
        flags |= {prefix + key: value for key, value in values.items() if key in own}
    try:
        modifiers = zoo.find_modifiers(settings.modify) if settings.modify else []
    except ValueError as error:
        raise UserError(f"--{error}") from None
    if settings.average and settings.average not in zoo.AVERAGES:
        raise UserError(f"--average={settings.average!r}: must be one of {', '.join(zoo.AVERAGES)}"
                        f"{nearest(settings.average, zoo.AVERAGES)}")
    for change in (*modifiers, *filter(None, [zoo.AVERAGES.get(settings.average)])):
        flags |= change.hyper
    return flags | names


def checked(option_name: str, rule: zoo.ZooRule, hyper: dict) -> dict:
    """Returns all hyperparameters of a rule. Raises UserError that names the option."""
    try:
        return rule.checked(hyper)
    except ValueError as error:
        raise UserError(f"--{option_name}: {error}") from None


def learning_rate(tables: dict, name: str, table: str = "lr") -> float:
    """Returns the peak lr that the file gives an optimizer, or else the usual multiple of AdamW's."""
    usual = tables.get("lr", {}).get("adamw", 3e-3) * zoo.find(name).lr_factor
    return float(tables.get(table, {}).get(name, usual))


def is_tuned(tables: dict, name: str, lr: float, table: str) -> bool:
    """Returns whether the file's author or the user chose the lr of a rule for this size.

    table: "lr" for the optimizer, "rest_lr" for the rest of a hybrid."""
    of_file = [tables.get(kind, {}).get(name) for kind in ("lr", table)]
    return lr in of_file or lr != learning_rate(tables, name, table)


# ---------------------------------------------------------------------------------------------------------
# What may not differ: between a run and its resumption, and between the ranks of a run

def refuse_changes(stored: dict, now: dict, folder: Path, step: int) -> None:
    """Raises UserError if a resumed run has other settings than it had at its start.

    The schedule may change if this leaves the lr of every finished step as it was. Then the run goes on as if
    the new schedule had been asked for at its start.

    Args:
        stored: the settings at the start.
        now: the settings of this process.
        folder: the folder of the run, for messages.
        step: how many steps are finished."""
    not_in_older_runs = dict(init_from_state=True, continue_data=False, average="", cooldown_beta2=None)
    stored = not_in_older_runs | stored
    for name in ("optimizer", "rest"):
        was, is_now = (values.get(f"sha256_of_{name}") for values in (stored, now))
        if was != is_now and stored[name] == now[name]:
            raise UserError(f"--{name}={now[name]}: this file has changed since {folder} was started "
                            "with it; give the new version or the run another name")
    for name, value in stored.items():
        if name not in FREE and name not in SCHEDULE and name != "run" and now.get(name) != value:
            was = value if value not in ("", None) else "none"
            raise UserError(f"--{name}={now.get(name)}: this run was started with {was}, and keeps it")
    changed = [name for name in SCHEDULE if now[name] != stored.get(name, now[name])]
    if step and changed:
        refuse_another_past(changed[0], stored, now, folder, step)


def refuse_another_past(name: str, stored: dict, now: dict, folder: Path, step: int) -> None:
    """Raises UserError that names an option of the schedule, if a finished step would have had another lr
    with it. The arguments are those of refuse_changes()."""
    changed = f"--{name}={now[name]}: this run was started with {stored[name]}"
    if now["freeze_steps"] + now["steps"] < step:
        raise UserError(f"{changed}, and has already done {step} steps")
    for rule in filter(None, (now["optimizer"], now["rest"])):
        if now["steps"] != stored["steps"] and "steps" in zoo.find(rule).from_run:
            raise UserError(f"{changed}, and {rule} depends on it in every step")
    if not (other := first_other_lr(stored, now, step)):
        return
    rise = round(stored["warmup"] * stored["steps"])
    warmup = f"{min(1, rise / now['steps']):.9g}"
    if not first_other_lr(stored, now | dict(warmup=float(warmup)), step):
        raise UserError(f"{changed}; give --warmup={warmup}, too, so that the warmup keeps its {rise} steps")
    raise UserError(f"{changed}, and step {other} had another lr; for a new run that goes on from here, give "
                    f"--init_from={folder} --continue_data --warmup=0 and a new --name")


def first_other_lr(stored: dict, now: dict, steps: int) -> int | None:
    """Returns the first of some steps whose lr is not the same in both settings, or None."""
    stored, now = SimpleNamespace(**stored), SimpleNamespace(**now)
    return next((t for t in range(1, steps + 1) if lr_scale(stored, t) != lr_scale(now, t)), None)


def lr_scale(settings: Settings, step: int) -> float:
    """Returns the fraction of the peak lr at a step. The steps that only measure have that of the first real
    step."""
    return zoo.schedule(max(1, step - settings.freeze_steps), settings.steps, zoo.SHAPES[settings.schedule],
                        settings.warmup, settings.warmup_from, settings.floor, settings.cooldown)


def follow_schedule(settings: Settings, step: int, groups: list[dict]) -> float:
    """Gives the groups of an optimizer the lr of a step, and in the cooldown the beta2 of the cooldown.

    beta2 changes only once in a run, because each new value takes the time of a compilation.
    Returns: the fraction of the peak lr."""
    scale = lr_scale(settings, step)
    before = settings.freeze_steps + zoo.steps_before_fall(settings.steps, settings.warmup, settings.cooldown)
    for group in groups:
        group["lr"] = group["lr_peak"] * scale
        if settings.cooldown_beta2 is not None and step > before and "beta2" in group:
            group["beta2"] = settings.cooldown_beta2
    return scale


def refuse_ranks_that_differ(everyone: list[dict]) -> None:
    """Raises UserError if some rank was started with other options or other data than rank 0.

    Args:
        everyone: for each rank {name: value} of all options and hyperparameters, and "tokens", a hash of the
            data."""
    ours = everyone[0]
    for rank, theirs in enumerate(everyone):
        for name in ours | theirs:
            if name in OF_A_MACHINE or theirs.get(name) == ours.get(name):
                continue
            if name == "tokens":
                raise UserError(f"--data: rank {rank} has {theirs['data']} with other tokens than rank 0 has "
                                f"in {ours['data']}")
            raise UserError(f"--{name}: is {theirs.get(name)} on rank {rank} and {ours.get(name)} on rank 0; "
                            "start all ranks with the same options")


def split_batch(batch: int, micro_batch: int, world: int, context: int) -> tuple[int, int]:
    """Splits the sequences of a step among the ranks, and further into micro-batches.

    Args:
        batch: sequences of a step, over all ranks.
        micro_batch: sequences at a time on each rank. 0 chooses as many as have at most 16,384 tokens.
        world: number of ranks.
        context: tokens of a sequence.
    Returns: (micro-batch, accumulation): sequences at a time on each rank, and micro-batches per step.
    Raises: UserError with the nearest numbers that divide."""
    if batch % world:
        near = [n for n in (batch // world * world, (batch // world + 1) * world) if n]
        raise UserError(f"--batch={batch}: must divide among {world} ranks; "
                        f"try {' or '.join(map(str, near))}")
    share = batch // world
    divisors = [n for n in range(1, share + 1) if share % n == 0]
    micro_batch = micro_batch or max(n for n in divisors if n == 1 or n * context <= 16384)
    if micro_batch not in divisors:
        near = [n for n in divisors if n < micro_batch][-1:] + [n for n in divisors if n > micro_batch][:1]
        raise UserError(f"--micro_batch={micro_batch}: must divide the {share} sequences of a rank; "
                        f"try {' or '.join(map(str, near))}")
    return micro_batch, share // micro_batch


# ---------------------------------------------------------------------------------------------------------
# Settings by role

def by_role(option_name: str, text: str) -> dict:
    """Returns {role: number or bool} from a text such as "head:0.5,embed:2".

    A role may be a set such as matrix. In a sweep the comma separates values, so a + may stand in its place.
    Raises: UserError that names the option."""
    found = {}
    for part in re.split(r",|(?<![\d.][eE])\+", text) if text else ():    # not at the + of 1e+1
        roles, colon, value = part.partition(":")
        if not colon or roles not in zoo.ROLE_SETS:
            raise UserError(f"--{option_name}={text!r}: give role:value,role:value; the roles are "
                            f"{', '.join(zoo.ROLE_SETS)}")
        number = {"true": True, "false": False}.get(value.lower())
        if number is None:
            number = options.parse(option_name, value, int if value.isdecimal() else float)
        for role in zoo.ROLE_SETS[roles]:
            if role in found:
                raise UserError(f"--{option_name}={text!r}: names {role} twice")
            found[role] = number
    return found


def settings_of_roles(settings: Settings, hyper: dict) -> dict:
    """Returns {role: {name: value}} of lr_of, weight_decay_of, and NAME_of for every hyperparameter.

    Raises: UserError."""
    texts = dict(lr=settings.lr_of, weight_decay=settings.weight_decay_of)
    texts |= {name.removesuffix("_of"): value for name, value in hyper.items() if type(value) is str}
    is_independent = settings.weight_decay_kind == "independent"    # 1 takes the whole weight
    most = dict(lr=None, weight_decay=1 if is_independent else None)
    found = {}
    for name, text in texts.items():
        for role, value in by_role(f"{name}_of", text).items():
            if name in most:
                value = options.check(f"--{name}_of: {role}", value, float, low=0, high=most[name])
            found.setdefault(role, {})[name] = value
    return found
