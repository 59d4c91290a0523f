"""
Prints a rule's docstring and then its steps on five weights, to check with a pencil. Without a name it prints
the table of all rules, modifiers, averages and schedules.

    python -m zoo adamw
    python -m zoo mine.py
    python -m zoo adamw --lr=0.01 --steps=5 --grads="1 1 1 1 1; -1 0 1 1 1"
"""
import argparse
import inspect
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))    # `python FOLDER/zoo` works from any other folder

import torch

import zoo
from optim import factored, hat
from zoo.frozen import FROZEN
from zoo.table import STAR, table

GRADIENTS = "1 -.5 8 4 .1; .5 .5 8 -4 .1; -1 .25 8 4 -.1"


class SampledByHand(zoo.Optimizer):
    """Uses the gradient itself as the gradient on sampled labels, as if the data's labels were drawn."""
    def check_gradients(self):
        self.sampled = {p: p.grad for _, _, p in self.each_parameter()}
        super().check_gradients()


def show(label: str, tensors: list) -> None:
    """Prints a line of numbers: those of the matrix, a bar, and that of the vector."""
    texts = [" ".join(f"{x:10.6f}" for x in torch.as_tensor(x).flatten().tolist()) for x in tensors]
    print(f"{label:14s}" + "  |".join(texts))


def by_hand(rule: zoo.ZooRule, lr: float, steps: int, grads: list, hyper: dict) -> None:
    """Prints a rule's docstring and its steps on a matrix of two unlike rows and on a vector of one weight.

    Args:
        rule: the rule. A rule of which rows are blocks, such as adalayer_star, has them in the matrix.
        lr: the learning rate.
        steps: how many steps to take.
        grads: the gradients, five numbers for each step. They begin anew when they are used up.
        hyper: values of the rule's hyperparameters."""
    w = [torch.tensor([[1.0, -2.0], [3.0, 0.5]], dtype=torch.float64), torch.ones(1, dtype=torch.float64)]
    optimizer = SampledByHand([dict(params=w, blocks=[2 if rule.rows else 1, 1])], rule, lr=lr, **hyper)
    if rule.rows:
        print(f"{STAR} In this example these are the rows of the matrix.\n")
    print(f"{inspect.getdoc(rule.function) or rule.function.__name__}\n\n"
          "A matrix of 2 x 2, row by row | a vector of one weight\n"
          f"lr {lr:g}, {optimizer.hyper}\n")
    show("w", w)
    for t in range(1, steps + 1):
        numbers = torch.tensor(grads[(t - 1) % len(grads)], dtype=torch.float64)
        w[0].grad, w[1].grad = numbers[:4].view(2, 2), numbers[4:]
        before, step_count = [x.clone() for x in w], torch.tensor(t, dtype=torch.float64)
        optimizer.step()
        show(f"step {t}  g", [x.grad for x in w])
        states = [optimizer.state[x] for x in w]
        for name in rule.state:
            show(f"        {name}", [state[name] for state in states])
        if "m_hat =" in (rule.function.__doc__ or ""):    # python -OO leaves out docstrings
            show("        m_hat", [hat(state["m"], optimizer.hyper["beta1"], step_count) for state in states])
        if rule.second_moment and rule.corrected:
            v = [[state[name] for name in rule.second_moment] for state in states]    # v itself, or r and c
            v = [factored(*parts) if len(parts) == 2 else parts[0] for parts in v]
            name = "v" if len(rule.second_moment) == 2 else rule.second_moment[0]
            show(f"        {name}_hat", [hat(x, optimizer.hyper["beta2"], step_count) for x in v])
        show("        u", [(old - new) / lr for old, new in zip(before, w)])
        show("        w", w)
        if rule.evaluated:
            with optimizer.averages():
                show("   evaluated", w)


def gradients(text: str) -> list:
    """Reads "1 2 3 4 5; ..." as a list of lists of five numbers. Raises ArgumentTypeError."""
    try:
        grads = [[float(number) for number in step.split()] for step in text.split(";")]
    except ValueError:
        grads = [[]]
    if any(len(step) != 5 for step in grads):
        raise argparse.ArgumentTypeError(f'{text!r}: give five numbers for each step: "1 2 3 4 5; 5 4 3 2 1"')
    return grads


def rule_named(name: str) -> zoo.ZooRule:
    """The rule of a name or of a file. Raises ArgumentTypeError."""
    try:
        return FROZEN if name == FROZEN.name else zoo.find(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(argv: list) -> int:
    parser = argparse.ArgumentParser("python -m zoo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rule", nargs="?", type=rule_named, metavar="NAME",
                        help=f"{', '.join(zoo.RULES)}, adalayer_frozen, or FILE.py with a rule of your own")
    parser.add_argument("--lr", type=float, default=0.1, help="default: 0.1")
    parser.add_argument("--steps", type=int, default=3, help="default: 3")
    parser.add_argument("--grads", type=gradients, default=GRADIENTS,
                        help=f'gradients of the five weights, step by step; default: "{GRADIENTS}"')
    given = parser.parse_args(argv)
    if not given.rule:
        print(table())
        return 0
    if not given.lr > 0 or given.steps < 1:
        parser.error("--lr must be above 0, and --steps 1 or more")
    # Prodigy's own d0 would show nothing but zeros.
    hyper = dict(adalayer_frozen=dict(freeze_steps=1), prodigy=dict(d0=0.1)).get(given.rule.name, {})
    of_run = dict(steps=given.steps, layers=0)    # no layers: these weights belong to none
    hyper |= {name: of_run.get(name, 1) for name in given.rule.from_run}
    by_hand(given.rule, given.lr, given.steps, given.grads, hyper)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)    # a reader such as head may leave before the end
    sys.exit(main(sys.argv[1:]))
