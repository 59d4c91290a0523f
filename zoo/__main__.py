"""
python -m zoo          prints the table of all rules, modifiers and schedules
python -m zoo NAME     prints a rule's docstring and three of its steps on two weights, to check with a pencil
"""
import sys

import zoo
from optim import by_hand
from zoo.frozen import FROZEN
from zoo.table import table


class SampledByHand(zoo.Optimizer):
    """Uses the gradient itself as the gradient on sampled labels, as if the data's labels were drawn."""
    def check_gradients(self):
        self.sampled = {p: p.grad for _, _, p in self.each_parameter()}
        super().check_gradients()


def main(argv: list) -> int:
    if not argv:
        print(table())
        return 0
    rules = zoo.RULES | {"adalayer_frozen": FROZEN}
    if len(argv) > 1 or argv[0] not in rules:
        print(f"{__doc__.strip()}\n\nNAME is one of {', '.join(rules)}.", file=sys.stderr)
        return 2
    hyper = dict(freeze_steps=1) if argv[0] == "adalayer_frozen" else {}
    by_hand(rules[argv[0]], SampledByHand, **hyper)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
