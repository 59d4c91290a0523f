"""
What a checkpoint holds, and how a run goes on from its own checkpoint or starts from that of another run.
"""
from pathlib import Path

import torch

import zoo
from trainer.build import decoder_shape
from trainer.errors import UserError, one_line
from trainer.runs import load_checkpoint
from trainer.settings import FREE, Settings, refuse_changes

# A difference in one of these may change the last bits of a resumed run.
NOTED = ("torch", "device", "threads", "ranks", "micro_batch")


def checkpoint_of(training, step: int) -> dict:
    """Returns the content of a checkpoint; docs/formats.md describes it.

    Args:
        training: the Training of train.py.
        step: the number of finished steps."""
    settings = training.config
    config = {name: value for name, value in training.in_force.items() if name not in FREE}
    return dict(step=step, sequences=training.sequences_before + step * settings.batch,
                model=training.model.state_dict(), optimizer=training.optimizer.state_dict(),
                shape=decoder_shape(settings), config=config | dict(data=settings.data),
                data=training.fingerprint, versions=training.environment)


def resume_from(path: Path, checkpoint: dict, model: torch.nn.Module, optimizer: zoo.Optimizer,
                in_force: dict, fingerprint: str, environment: dict) -> int:
    """Continues a run: loads weights and state from its own checkpoint.

    Args:
        path: the checkpoint's file.
        in_force: all settings and hyperparameters of this process. They must not contradict the checkpoint.
        fingerprint: the hash of the data. It must equal the hash in the checkpoint.
        environment: the versions and counts that the last bits depend on. A note names each one that differs.
    Returns: the number of sequences that were read before the first step of this run.
    Raises: UserError."""
    try:
        step, theirs = checkpoint["step"], checkpoint["config"]
        if checkpoint["data"] != fingerprint:
            raise UserError(f"--data={in_force['data']}: holds other tokens than this run was started with "
                            f"(sha256 {fingerprint[:12]} now, {checkpoint['data'][:12]} then)")
        refuse_changes(theirs | dict(data=in_force["data"]), in_force, path.parent, step)
        model.load_state_dict(checkpoint["model"])
        load_state(optimizer, checkpoint["optimizer"])
        before = {name: checkpoint["versions"][name] for name in NOTED}
        sequences_before = sequences_read(checkpoint) - step * theirs["batch"]
    except (RuntimeError, ValueError, KeyError, TypeError) as error:    # from a loader, or an old file
        raise UserError(f"{path}: does not fit: {reason_of(error)}") from None
    print(f"resumed from {path}")
    for name in NOTED:
        # A step of two micro-batches adds the same two gradients on one rank and on two ranks.
        has_two_gradients = name == "ranks" and 2 * environment["micro_batch"] == in_force["batch"]
        if environment[name] != before[name] and not has_two_gradients:
            print(f"note: {name} was {before[name]} and is {environment[name]}: not bit for bit the same")
    return sequences_before


def start_from(model: torch.nn.Module, optimizer: zoo.Optimizer, settings: Settings, fingerprint: str) -> int:
    """Starts a run from the checkpoint of another run.

    It always takes the weights, and refuses a model of another shape. It takes the optimizer's state if both
    optimizers are the same; see difference(). It prints what it took, and what it left behind and why.

    Args:
        settings: the options of the run; init_from is the path of the checkpoint.
        fingerprint: the hash of the data.
    Returns: the number of sequences to leave out at the beginning of the data. It is 0 without continue_data.
    Raises: UserError."""
    path = settings.init_from
    if Path(path).is_dir():
        raise UserError(f"--init_from={path}: this folder holds no checkpoint")
    if not Path(path).exists():
        raise UserError(f"--init_from={path}: there is no such checkpoint and no such folder of a run")
    checkpoint = load_checkpoint(path)
    try:
        theirs, ours = checkpoint["shape"], decoder_shape(settings)
        for name in ("width", "layers", "heads", "vocab_size", "qk_norm"):
            if theirs[name] != ours[name]:
                raise UserError(f"--{name}={ours[name]}: the model in {path} has {theirs[name]}")
        rows, our_rows = len(checkpoint["model"]["embed.weight"]), len(model.embed.weight)
        if rows != our_rows:
            raise UserError(f"--padded_vocab: the model in {path} has {rows} rows, not {our_rows}")
        left_out = sequences_to_leave_out(checkpoint, settings, fingerprint) if settings.continue_data else 0
        model.load_state_dict(checkpoint["model"])
        why_not = (difference(checkpoint["optimizer"]["param_groups"], optimizer.param_groups) or
                   another_file(checkpoint["config"], settings))
        if not settings.init_from_state:
            why_not = "--init_from_state=false"
        elif settings.freeze_steps:
            why_not = "--freeze_steps measures anew"
        if not why_not:
            try:
                load_state(optimizer, checkpoint["optimizer"])
            except ValueError as error:    # hyperparameters such as a rank can give the state another shape
                why_not = reason_of(error)
        other_data = checkpoint["data"] != fingerprint
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--init_from={path}: does not fit: {reason_of(error)}") from None
    print(f"started from {path}: its weights" + (f"; its state is left behind: {why_not}" if why_not else
                                                 " and its optimizer's state"))
    if theirs["context"] != ours["context"]:
        print(f"note: that model was trained with --context={theirs['context']}, not {ours['context']}")
    if other_data:
        print(f"note: that model was trained on other data than {settings.data}; if their tokenizers differ, "
              "its weights are of no use here")
    return left_out


def sequences_read(checkpoint: dict) -> int:
    """Returns how many sequences a run had read. Older checkpoints do not say so; their runs read the data
    from the beginning."""
    return checkpoint.get("sequences", checkpoint["step"] * checkpoint["config"]["batch"])


def sequences_to_leave_out(checkpoint: dict, settings: Settings, fingerprint: str) -> int:
    """Returns how many sequences the run of a checkpoint has read. Raises UserError if this run does not have
    the same data in the same order."""
    if checkpoint["data"] != fingerprint:
        raise UserError(f"--continue_data: {settings.data} does not hold the data of {settings.init_from}")
    for name, theirs in (("seed", checkpoint["config"]["seed"]), ("context", checkpoint["shape"]["context"])):
        if theirs != getattr(settings, name):
            raise UserError(f"--continue_data: the run of {settings.init_from} read its data in the order of "
                            f"--{name}={theirs}; give the same")
    return sequences_read(checkpoint)


def difference(theirs: list[dict], ours: list[dict]) -> str:
    """Returns in which parameter two optimizers differ, or "" if they have the same rule, groups and blocks.

    Args:
        theirs, ours: the param_groups of both."""
    theirs, ours = places_of(theirs), places_of(ours)
    if only_one := [name for name in theirs | ours if name not in theirs or name not in ours]:
        return f"{only_one[0]} is trained in only one of the two runs"
    for name, (rule, blocks, group) in ours.items():
        their_rule, their_blocks, their_group = theirs[name]
        if rule != their_rule:
            return f"{name} has another rule, {their_rule} then and {rule} now"
        if blocks != their_blocks:
            return f"{name} has another number of blocks, {their_blocks} then and {blocks} now"
        if group != their_group:
            return f"{name} shares its group with other parameters than then"
    return ""


def another_file(theirs: dict, settings: Settings) -> str:
    """Returns which rule of a run is in another file of the user's, or in another version of it, or "".

    Args:
        theirs: the options of the earlier run."""
    for option in ("optimizer", "rest"):
        path = getattr(settings, option)
        if path.endswith(".py") and zoo.find(path).sha256 != theirs.get(f"sha256_of_{option}"):
            return f"{path} is not the file of that run"
    return ""


def places_of(groups: list[dict]) -> dict:
    """Returns {name of a parameter: (its rule, its number of blocks, the names of its group)}."""
    places = {}
    for group in groups:
        rule = "+".join([group["rule"], *group.get("modify", [])])    # older checkpoints keep modifiers apart
        for name, blocks in zip(group["names"], group["blocks"], strict=True):
            places[name] = rule, blocks, group["names"]
    return places


def averaged_weights(checkpoint: dict) -> dict:
    """Returns the state dict of the model in a checkpoint, with the averages of its weights.

    Raises: UserError if the run kept no averages."""
    weights, saved, averages = checkpoint["model"], checkpoint["optimizer"], {}
    for group in saved["param_groups"]:
        kept = zoo.AVERAGES.get(group.get("average")) or zoo.RULES.get(group["rule"].partition("+")[0])
        for name, number in zip(group["names"], group["params"]):
            other = zoo.averages.for_evaluation(kept, group, weights[name], saved["state"].get(number))
            averages |= {} if other is None else {name: other}
    if not averages:
        if any(group["rule"].partition("+")[0].endswith(".py") for group in saved["param_groups"]):
            raise UserError("--average: a rule of this run is in a file of yours, which is not run here; if "
                            "it keeps an average, only train.py can evaluate that")
        raise UserError("--average: this run kept no averages of its weights; train with --average=ema")
    return weights | averages


def load_state(optimizer: zoo.Optimizer, state_dict: dict) -> None:
    """Loads the state of an optimizer. The settings of the groups, such as the lr, stay as they are."""
    settings = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state_dict)
    for group, ours in zip(optimizer.param_groups, settings):
        group.update(ours)


def reason_of(error: Exception) -> str:
    """Returns the last line of an error's message, or its type if it has no message, in 150 characters."""
    lines = str(error).splitlines() or [type(error).__name__]
    return one_line(lines[-1].strip(), 150)
