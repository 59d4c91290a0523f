"""
Averages of the weights, as in --average=ema. They go with most rules, and never change what is trained.

Each function updates an average in place, after a step has moved the weight w. t is the number of the step
since the average began, from 1. Steps that only measure do not count. t is a plain number, because no
compiler sees these functions. Any other positional parameter is state, as in a rule. The names of
hyperparameters begin with the name of the average, so that they differ from all names of rules.
Optimizer.averages() in zoo/__init__.py puts the averages into the model for evaluation.
"""
import torch

from optim import Rule, scalar
from zoo.rule import AT_LEAST_ONE, BELOW_ONE, parameter_names

def ema(average, w, t, *, ema_decay=0.999):
    """EMA is a mean of the weights of about the last 1 / (1 - decay) steps. Older weights count less.
        average <- w                                      after the first step
        average <- decay average + (1 - decay) w          after each later step

    Remembers  average: 4 bytes per weight.
    Defaults   decay 0.999 is torch's. The weights of the first step keep a share of decay^(t - 1), and
               nothing corrects for this. So a short run wants a smaller decay, such as 0.98 for 500 steps.
    Source     Polyak, Juditsky (1992), "Acceleration of stochastic approximation by averaging", average all
               steps alike. With a decay it is torch.optim.swa_utils.get_ema_avg_fn."""
    average.lerp_(w, 1 - ema_decay if t > 1 else 1.0)

def last_checkpoints(w, blocks, *, lawa_last):
    """Makes state for the last checkpoints: so many tensors of the weight's shape, in one."""
    return torch.stack([torch.zeros_like(w)] * lawa_last)

def lawa(lawa_ring: last_checkpoints, w, t, *, lawa_last=5, lawa_every=100):
    """LAWA is the mean of the last few checkpoints. Here a checkpoint is a copy of the weights in memory.
        every lawa_every steps    the oldest of lawa_last copies <- w
        average = mean of the copies

    Remembers  lawa_last copies: 20 bytes per weight with 5. A sum of the copies is not enough, because a new
               copy replaces the oldest. With lawa_last 1 the average is the newest copy. Before the first
               copy, the average is w itself.
    Defaults   are this project's. The authors average the checkpoints at the ends of epochs, which a language
               model hardly has. For a run with a falling learning rate, lawa_last * lawa_every steps should
               be a small part of all steps.
    Source     Kaddour (2022), arXiv 2209.14981. Not verified against published code."""
    if t % lawa_every == 0:
        lawa_ring[(t // lawa_every - 1) % lawa_last].copy_(w)

def mean_of_checkpoints(w, lawa_ring, t, *, lawa_last, lawa_every):
    """The average of LAWA. There are fewer than lawa_last copies at first."""
    there_are = min(t // lawa_every, lawa_last)
    return lawa_ring[:there_are].mean(0) if there_are else w

def aswa(average, w, t):
    """ASWA is the plain mean of the weights after all steps.
        average <- average + (w - average) / t

    Remembers  average: 4 bytes per weight.
    Defaults   There is nothing to choose. The weights of the first steps count as much as those of the last.
               So ASWA suits a run that starts from good weights and keeps its learning rate, such as one with
               --init_from, --schedule=constant and --warmup=0. In a run from the beginning it lags behind.
    Source     Polyak, Juditsky (1992), "Acceleration of stochastic approximation by averaging". It is
               torch.optim.swa_utils.AveragedModel, updated after every step. Another ASWA, of Demir, Sharma,
               Ngonga Ngomo (2024), arXiv 2406.19092, adds weights only while the validation gets better."""
    average.lerp_(w, 1 / t)

def naswa(average, w, distance, naswa_count: scalar, naswa_total: scalar, naswa_seen: scalar):
    """NASWA is ASWA that adds only weights that are farther from the average than others before them.
        the first weights            count = 1,  average <- w
        distance > total / seen      count <- count + 1,  average <- average + (w - average) / count;
                                     seen, total <- 0
        otherwise                    seen <- seen + 1,  total <- total + distance

    distance is the norm of w - average over all tensors, and total / seen is the mean of the distances since
    the last addition. Right after an addition there are none, so the next weights are never added.

    Remembers  average: 4 bytes per weight, and three numbers per tensor, which are the same for all tensors.
    Defaults   There is nothing to choose. If weights move away from the average steadily, every second step
               counts. Then this is ASWA in half of its steps.
    Source     Not verified, because neither the paper nor code was found. A description takes the norms of
               some chosen layers. A language model has no obvious choice, so here all tensors count."""
    naswa_seen.add_(1)
    # The newest distance may be added first: it is above the mean with itself if and only if it is without.
    naswa_total.add_(distance)
    adds = (distance * naswa_seen > naswa_total) | (naswa_count == 0)
    naswa_count.add_(adds)
    average.lerp_(w, torch.where(adds, 1 / naswa_count, 0.0))
    naswa_seen.mul_(~adds)
    naswa_total.mul_(~adds)

def average_itself(average):
    """The average of all that keep it as a state of this name."""
    return average

class Average(Rule):
    """A line of the table. An average reads its function's signature as a rule does. It may ask for w, t and
    `distance`, the norm of w - average over all tensors.

    evaluated    a function of w, t, state and hyperparameters that returns the average, as in ZooRule
    may_change   hyperparameters with another value of which a loaded state still means the same"""
    given = ("w", "t", "distance")

    def __init__(self, function, *, evaluated=average_itself, may_change=(), **line):
        super().__init__(function, **line)
        self.evaluated, self.may_change = evaluated, may_change

AVERAGES = {
    "ema":   Average(ema, may_change=("ema_decay",), bounds=dict(ema_decay=BELOW_ONE)),
    "lawa":  Average(lawa, evaluated=mean_of_checkpoints,
                     bounds=dict(lawa_last=AT_LEAST_ONE, lawa_every=AT_LEAST_ONE)),
    "aswa":  Average(aswa),
    "naswa": Average(naswa),
}

def find(name: str) -> Average:
    """The average of that name. Raises ValueError that names the option."""
    if name not in AVERAGES:
        raise ValueError(f"average={name!r}: must be one of {', '.join(AVERAGES)}")
    return AVERAGES[name]

@torch.no_grad()
def update(optimizer, *_) -> None:
    """Updates the averages of all weights that a step has moved. torch calls this after each step."""
    average = optimizer.average
    stepped = [(group, p.detach(), optimizer.state[p]) for group, _, p in optimizer.each_parameter()
               if p.grad is not None and p.numel()]
    moved = [(group, w, state) for group, w, state in stepped if state["t"] > state["average_from"]]
    shared = {}
    if "distance" in average.inputs:
        norms = [(w - state["average"]).norm() for _, w, state in moved]    # of one tensor at a time
        shared["distance"] = torch.nn.utils.get_total_norm(norms)
    for group, w, state in moved:
        given = state | shared | dict(w=w.to(torch.promote_types(w.dtype, torch.float32)),
                                      t=state["t"] - state["average_from"])
        hyper = {name: group[name] for name in average.hyper}
        average.function(*(given[name] for name in average.inputs), **hyper)

def names_of(average) -> tuple:
    """(names of what an average keeps in the state of a tensor, names of its entries in a group)."""
    return (("average_from", *average.state), ("average", *average.hyper)) if average else ((), ())

def with_own_average(optimizer, state_dict: dict) -> dict:
    """A state dict for this optimizer. If it has another average or none, the average of the optimizer begins
    anew, at the step that the state dict has reached. An EMA goes on with another decay."""
    may_change = optimizer.average.may_change if optimizer.average else ()
    fixed = [name for name in ("average", *optimizer.averaging) if name not in may_change]
    groups, states = [], dict(state_dict["state"])
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"]):
        if any(saved.get(name) != optimizer.averaging.get(name) for name in fixed):
            of_state, of_group = names_of(find(saved["average"]) if "average" in saved else None)
            saved = {name: x for name, x in saved.items() if name not in of_group} | optimizer.averaging
            for i, number in zip(range(len(group["params"])), saved["params"]):
                state = {name: x for name, x in states.pop(number, {}).items() if name not in of_state}
                states |= {number: state | begun(optimizer, group, i, state.get("t", 0))} if state else {}
        groups.append(saved)
    groups += state_dict["param_groups"][len(groups):]    # groups too many are an error, which torch raises
    return state_dict | dict(param_groups=groups, state=states)

def begun(optimizer, group: dict, i: int, t: int) -> dict:
    """The state of the average of parameter i of a group, if it begins after step t."""
    names, _ = names_of(optimizer.average)
    state = optimizer.start(group, i) | dict(average_from=max(t, optimizer.measuring_steps(group)))
    return {name: state[name] for name in names}

def for_evaluation(part, group: dict, w, state: dict):
    """The weights for the evaluation of a tensor, or None if they are w itself.

    part    an Average or a ZooRule, which has the function `evaluated`, or None
    group   a group of the optimizer. It holds the hyperparameters
    state   the state of w. It is empty before the first step"""
    if not state or part is None or not part.evaluated:
        return None
    t = state["t"] - state.get("average_from", 0)
    if t <= 0:    # an average holds nothing before its first step
        return None
    given = group | state | dict(w=w, t=t)
    return part.evaluated(**{name: given[name] for name in parameter_names(part.evaluated)})
