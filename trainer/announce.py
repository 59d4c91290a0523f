"""
Prints what a run says before its first step and after its last one: all settings, their meaning on this
machine, the optimizer's groups, how long compilation takes, the final loss, and where everything is.
"""
import os
import shlex
from dataclasses import fields

import zoo
from trainer.machine import from_torchrun
from trainer.measure import promise, sizes_of
from trainer.options import ROOT
from trainer.runs import checkpoints_of
from trainer.settings import Settings, is_tuned, settings_of_roles
from zoo.table import state_bytes


def print_values(title: str, values: dict) -> None:
    """Prints a title and name=value pairs, in lines of at most 110 columns."""
    line = f"{title:10s}"
    for name, value in values.items():
        item = f" {name}={str(value).lower() if isinstance(value, bool) else value}"
        if len(line + item) > 110:
            print(line)
            line = " " * 10
        line += item
    print(line)


def print_settings(settings: Settings, hyper: dict) -> None:
    """Prints all options by table, and the hyperparameters."""
    for table in (None, "model", "data", "train"):
        names = [field.name for field in fields(Settings) if field.metadata["table"] == table]
        print_values(table or "this run", {name: getattr(settings, name) for name in names})
    print_values("hyper", {name: value for name, value in hyper.items() if value != ""})


def print_run(training, why_precision: str, why_attention: str) -> None:
    """Prints what the settings mean on this machine.

    Args:
        training: the Training of train.py.
        why_precision, why_attention: the reasons for the machine's choices."""
    settings, machine, sizes = training.config, training.machine, sizes_of(training.model)
    epochs = training.steps * settings.batch / len(training.train_set)
    print(f"\ndevice     {machine.device}; {settings.precision}: {why_precision}\n"
          f"           {settings.attention} attention: {why_attention}\n"
          f"           {machine.world} x {machine.threads} threads\n"
          f"model      {sizes['weights']:,} weights, {sizes['hidden']:,} of them outside embedding and head\n"
          f"step       {settings.batch * settings.context:,} tokens: {machine.world} x "
          f"{training.accumulation} x {training.micro_batch} sequences of {settings.context} (ranks x "
          f"micro-batches x sequences); {training.steps} steps read {epochs:.2f} epochs")


def print_optimizer(settings: Settings, hyper: dict, tables: dict, optimizer) -> None:
    """Prints a line for each group of the optimizer. It shows the rule, the lr, the settings that only these
    roles have, the roles, and the bytes of state."""
    by_role = settings_of_roles(settings, hyper)
    adaptive = zoo.role_set("adaptive", settings.adaptive) if settings.rest else set(zoo.ROLES)
    for group in optimizer.param_groups:
        roles = sorted(set(group["roles"]))
        chosen = ((settings.optimizer, settings.lr, "lr") if set(roles) <= adaptive else
                  (settings.rest, settings.rest_lr, "rest_lr"))
        note = "" if is_tuned(tables, *chosen) else " (not tuned at this size)"
        own = sorted({name for role in roles for name in by_role.get(role, {})} - {"lr"})
        settings_of_group = "".join(f", {name} {group[name]:g}" for name in own)
        by_rows = {role for p, role, blocks in zip(group["params"], group["roles"], group["blocks"])
                   if blocks == len(p)}
        rows = f" with a block for each row of {', '.join(sorted(by_rows))}" if by_rows else ""
        print(f"optimizer  {group['rule'].replace('+', ' + ')}{rows}, lr {group['lr_peak']:g} "
              f"({settings.schedule}){settings_of_group}{note}: {', '.join(roles)}; "
              f"{state_bytes(optimizer, group):,} bytes of state")


COMPILING = ("compiling for the first step takes 20 to 40 seconds, and about 5 when this model runs again; "
             "--compile=false starts at once but runs slower")


def with_average(losses: dict) -> str:
    """Returns the loss as a text, and after it the loss of the averages of the weights, if there is one."""
    more = f", {losses['average_loss']:.4f} with averaged weights" if "average_loss" in losses else ""
    return f"{losses['loss']:.4f}{more}"


def print_end(training, losses: dict, bits: float, windows: int) -> None:
    """Prints what came of a run.

    Args:
        training: the Training of train.py.
        losses: the final validation losses, in nats per token. See measure.validation_losses().
        bits: the loss in bits per byte.
        windows: the number of sequences of the final validation."""
    loss, *average = losses.values()
    print(f"final validation loss {loss:.4f} nats per token, {bits:.4f} bits per byte ({windows} windows)")
    if average:
        print(f"with averaged weights {average[0]:.4f} nats per token")
    print(promise(training.config.optimizer, training.unpromised, training.tables, loss))
    newest = checkpoints_of(training.run.folder)[0].name
    print(f"everything is in {training.run.folder}: metrics.jsonl, loss.png, {newest}")


def resume_command(settings: Settings, name: str) -> str:
    """Returns the command that goes on with a run of this name on as many ranks as there are now."""
    script = shlex.quote(os.path.relpath(ROOT / "train.py"))
    runs = "" if settings.runs == Settings.runs else f" --runs={shlex.quote(settings.runs)}"
    ranks, ranks_here = (from_torchrun(key, 1) for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if ranks_here < ranks:    # torchrun's other options are those of this cluster
        return f"the same torchrun command on each machine, with{runs} --name={name} --resume"
    program = f"torchrun --nproc_per_node={ranks}" if ranks > 1 else "python"
    return f"{program} {script}{runs} --name={name} --resume"
