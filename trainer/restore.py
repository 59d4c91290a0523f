"""
Loads a checkpoint into a model and an optimizer. The checkpoint is of the same run or of another one.
"""
import torch

from trainer.errors import UserError, one_line
from trainer.settings import refuse_changes

# A difference in one of these may change the last bits of a resumed run.
NOTED = ("torch", "device", "threads", "ranks", "micro_batch")


def resume_from(path, checkpoint: dict, model: torch.nn.Module, optimizer, in_force: dict, fingerprint: str,
                environment: dict) -> None:
    """Continues a run: loads weights and state from its own checkpoint.

    Args:
        path: the checkpoint's file, for messages.
        in_force: all settings and hyperparameters of this process. They must equal those in the checkpoint.
        fingerprint: the hash of the data. It must equal the hash in the checkpoint.
        environment: the versions and counts that the last bits depend on. A note names each one that differs.
    Raises: UserError."""
    try:
        if checkpoint["data"] != fingerprint:
            raise UserError(f"--data={in_force['data']}: holds other tokens than this run was started with "
                            f"(sha256 {fingerprint[:12]} now, {checkpoint['data'][:12]} then)")
        refuse_changes(checkpoint["config"] | dict(data=in_force["data"]), in_force)
        model.load_state_dict(checkpoint["model"])
        load_state(optimizer, checkpoint["optimizer"])
        before = {name: checkpoint["versions"][name] for name in NOTED}
    except (RuntimeError, ValueError, KeyError, TypeError) as error:    # from a loader, or an old file
        raise UserError(f"{path}: does not fit: {reason_of(error)}") from None
    print(f"resumed from {path}")
    for name in NOTED:
        # A step of two micro-batches adds the same two gradients on one rank and on two ranks.
        has_two_gradients = name == "ranks" and 2 * environment["micro_batch"] == in_force["batch"]
        if environment[name] != before[name] and not has_two_gradients:
            print(f"note: {name} was {before[name]} and is {environment[name]}: not bit for bit the same")


def start_from(path, checkpoint: dict, model: torch.nn.Module, optimizer, in_force: dict) -> None:
    """Starts a run from another run's weights, and from its state if the optimizer is the same.

    Raises: UserError."""
    try:
        model.load_state_dict(checkpoint["model"])
        theirs = [checkpoint["config"].get(key, "") for key in ("optimizer", "modify")]
        if theirs == [in_force["optimizer"], in_force["modify"]]:
            load_state(optimizer, checkpoint["optimizer"])
        else:
            print(f"note: {path} is of {'+'.join(filter(None, theirs))}; only its weights are used")
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--init_from={path}: does not fit: {reason_of(error)}") from None
    print(f"started from {path}")


def load_state(optimizer, state_dict: dict) -> None:
    """Loads the state of an optimizer. The settings of the groups, such as the lr, stay as they are."""
    settings = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state_dict)
    for group, ours in zip(optimizer.param_groups, settings):
        group.update(ours)


def reason_of(error: Exception) -> str:
    """Returns the last line of an error's message, or its type if it has no message, in 150 characters."""
    lines = str(error).splitlines() or [type(error).__name__]
    return one_line(lines[-1].strip(), 150)
