"""
Makes the table of all rules, modifiers, averages and schedules from their docstrings and signatures. The
command `python train.py --optimizer=list` prints it.
"""
import inspect
import re
import textwrap

import torch

import optim
import zoo

STAR = "Adalayer* is Adalayer with one block for each row of the output head."


def state_bytes(optimizer: optim.Optimizer, group: dict) -> int:
    """Returns the bytes of state that the parameters of a group have after their first step."""
    states = [optimizer.start(group, i, "meta") for i in range(len(group["params"]))]
    return sum(x.numel() * x.element_size() for state in states for x in state.values() if torch.is_tensor(x))


def bytes_per_weight(rule) -> float:
    """Returns the bytes of state per weight of a hidden matrix of 1,024 x 1,024."""
    optimizer = zoo.Optimizer([torch.zeros(1024, 1024, device="meta")], rule, lr=1.0)
    return state_bytes(optimizer, optimizer.param_groups[0]) / 1024**2


def read_docstring(function) -> tuple:
    """Returns (idea, source, typical lr), as the docstring of a rule, modifier or schedule states them."""
    doc = inspect.getdoc(function) or "(it has no docstring)"
    idea = re.split(r"\n\n|\n    ", doc)[0].replace("\n", " ")    # the text before the formula
    source = re.search(r"Source +(.*?\))[^()]*?(arXiv [\d.]+\d|\"[^\"]*\"|[\w.]+\.io/[\w/]+)|$", doc, re.S)
    typical_lr = re.search(r"[Tt]ypical ([\d.e-]+\d)|$", doc)
    return idea, re.sub(r"\s+", " ", ", ".join(filter(None, source.groups()))), typical_lr[1] or ""


def table() -> str:
    """Returns the table, in lines of at most 110 columns."""
    width = 1 + max(map(len, zoo.RULES))
    lines = [f"{'--optimizer':{width}s}{'bytes':>6s}  {'lr':8s}idea, source"]

    def add(start, *texts):
        for text in filter(None, texts):
            for line in textwrap.wrap(text, 110 - 16 - width):
                lines.append(f"{start:{16 + width}s}{line}")
                start = ""

    for name, rule in zoo.RULES.items():
        idea, source, lr = read_docstring(rule.function)
        if name == "adalayer_star":
            idea = STAR
        add(f"{name:{width}s}{bytes_per_weight(rule):6.2f}  {lr:8s}", idea, source)
    modifiers = {name: modifier.function for name, modifier in zoo.MODIFIERS.items()}
    averages = {name: average.function for name, average in zoo.AVERAGES.items()}
    for option, functions in (("--modify", modifiers), ("--average", averages), ("--schedule", zoo.SHAPES)):
        lines += ["", option]
        for name, function in functions.items():
            idea, source, _ = read_docstring(function)
            add(name, idea, source)
    lines += ["", "The column bytes gives the state per weight of a hidden matrix. The column lr gives the",
              "typical peak learning rate for the paper's 150m model. A config has those of its own size in",
              "[lr]. `python -m zoo NAME` says more about a rule."]
    return "\n".join(lines)
