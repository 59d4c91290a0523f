"""
From a checkpoint back to a model and an optimizer: this run's own checkpoint, or that of another run.
"""
import torch

from trainer.errors import UserError, one_line
from trainer.settings import refuse_changes

NOTED = ("torch", "device", "threads", "ranks", "micro_batch")    # another one may change the last bits


def resume_from(path, checkpoint: dict, model: torch.nn.Module, optimizer, in_force: dict, fingerprint: str,
                environment: dict) -> None:
    """Continues a run: loads weights and state of its own checkpoint.

    Args:
        path: the checkpoint's file, for messages.
        in_force: all settings and hyperparameters of this process. They must be those of the checkpoint.
        fingerprint: the hash of the data, which must be that of the checkpoint.
        environment: what the last bits depend on. A difference is noted.
    Raises: UserError.
    """
    try:
        if checkpoint["data"] != fingerprint:
            raise UserError(f"--data={in_force['data']}: holds other tokens than this run was started with "
                            f"(sha256 {fingerprint[:12]} now, {checkpoint['data'][:12]} then)")
        refuse_changes(checkpoint["config"] | dict(data=in_force["data"]), in_force)
        model.load_state_dict(checkpoint["model"])
        load_state(optimizer, checkpoint["optimizer"])
        before = {name: checkpoint["versions"][name] for name in NOTED}
    except (RuntimeError, ValueError, KeyError, TypeError) as error:    # of the two loaders, and of old files
        raise UserError(f"{path}: does not fit: {reason_of(error)}") from None
    print(f"resumed from {path}")
    for name in NOTED:
        two_halves = name == "ranks" and 2 * environment["micro_batch"] == in_force["batch"]
        if environment[name] != before[name] and not two_halves:    # 1 rank x 2 and 2 ranks x 1 give the same sums
            print(f"note: {name} was {before[name]} and is {environment[name]}: not bit for bit the same")


def start_from(path, checkpoint: dict, model: torch.nn.Module, optimizer, in_force: dict) -> None:
    """Starts a run from another run's weights, and from its state if the optimizer is the same. Raises UserError."""
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
    """Loads the state. The settings of the groups, such as the lr, stay as they are."""
    settings = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state_dict)
    for group, ours in zip(optimizer.param_groups, settings):
        group.update(ours)


def reason_of(error: Exception) -> str:
    return one_line(str(error).splitlines()[-1].strip(), 150)
