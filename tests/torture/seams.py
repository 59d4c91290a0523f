"""
Where the checks reach into the program: each function here names one place that a check patches or reads.

If the program moves such a place, only this file changes. The patches are context managers.
"""
import contextlib
import dataclasses
from unittest import mock

import tools  # noqa: F401    first, since it puts the program on the path

# isort: split
import optim
import train
import zoo
from trainer import machine, runs, settings

OPTIONS = settings.Settings.__dataclass_fields__    # {name: field} of all options of train.py


class RunReached(BaseException):
    """A command line came as far as the folder of its run."""


def core_names():
    """The names of the optimizers in optim.py, without those of zoo/."""
    return list(optim.RULES)


def counts_steps(name):
    """Whether the rule of this name uses the step count t of its state."""
    rules = {rule.name: rule for rule in (*zoo.RULES.values(), zoo.FROZEN)}
    return "t" in rules[name].inputs


def compiler_works():
    """Whether torch.compile works on this machine."""
    return machine.compiler_works()


def schedule_late_by(steps):
    """Patches the schedule of the learning rate: it answers as if a step were some steps earlier."""
    schedule = zoo.schedule
    return mock.patch.object(zoo, "schedule", lambda step, *rest: schedule(max(1, step - steps), *rest))


def catch_optimizers(made):
    """Appends every optimizer that the trainer makes to the list `made`."""
    init = zoo.Optimizer.__init__

    def init_and_keep(self, *arguments, **named):
        init(self, *arguments, **named)
        made.append(self)

    return mock.patch.object(zoo.Optimizer, "__init__", init_and_keep)


def no_picture():
    """Leaves out the picture loss.png, which takes most of the time of a short run."""
    return mock.patch.object(train, "draw_run", lambda *arguments: None)


@contextlib.contextmanager
def stop_before_the_run(kept):
    """Raises RunReached in place of making a run's folder.

    Puts what is in force then into the list `kept`: one dictionary of all options and hyperparameters.
    """
    read, complete, hyper = settings.read, machine.Machine.complete, {}

    def read_and_keep(*arguments, **named):
        result = read(*arguments, **named)
        hyper.update(result[1])
        return result

    def complete_and_keep(self, *arguments):
        result = complete(self, *arguments)
        kept[:] = [dataclasses.asdict(result[0]) | hyper]
        return result

    def stop(*arguments, **named):
        raise RunReached

    with mock.patch.object(settings, "read", read_and_keep), \
            mock.patch.object(machine.Machine, "complete", complete_and_keep), \
            mock.patch.object(runs.Run, "__init__", stop):
        yield


# The calls that write each file of a run besides its checkpoints: (owner, function, number of the call).
WRITERS = {"metrics.jsonl": (runs.Run, "log", 3), "status.json": (runs.Run, "status", 1),
           "config.json": (runs.Run, "write_config", 1), "loss.png": (train, "draw_run", 1)}
