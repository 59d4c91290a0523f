"""
All rules, modifiers and schedules in a table, from their docstrings and signatures: --optimizer=list.
"""
import inspect
import re
import textwrap

import torch

import optim

def bytes_per_weight(rule):
    """Bytes of state per weight of a hidden matrix of 1,024 x 1,024."""
    optimizer = optim.Optimizer([torch.zeros(1024, 1024, device="meta")], rule, lr=1.0)
    return optimizer.state_bytes(optimizer.param_groups[0]) / 1024**2

def said(function):
    """(idea, source, typical lr) as the docstring has them."""
    doc = inspect.getdoc(function) or "(it has no docstring)"
    idea = re.sub(r"\s+", " ", doc.split("\n\n")[0])
    source = re.search(r"Source +(.*?\))[^()]*?(arXiv [\d.]+\d|\"[^\"]*\"|[\w.]+\.io/[\w/]+)|$", doc, re.S)
    lr = re.search(r"[Tt]ypical ([\d.e-]+\d)|$", doc)
    return idea, re.sub(r"\s+", " ", ", ".join(filter(None, source.groups()))), lr[1] or ""

def table():
    """The table, in lines of at most 110 columns."""
    lines = [f"{'--optimizer':15s}{'bytes':>6s}  {'lr':8s}idea, source"]

    def add(start, *texts):
        for text in filter(None, texts):
            for line in textwrap.wrap(text, 110 - 31):
                lines.append(f"{start:31s}{line}")
                start = ""

    for name in [*optim.names(), *optim.zoo()]:
        rule = optim.find(name)
        idea, source, lr = said(rule)
        if name == "adalayer_star":
            idea = "Adalayer*: Adalayer in whose output head each row is a block."
        add(f"{name:15s}{bytes_per_weight(rule):6.2f}  {lr:8s}", idea, source)
    for option, functions in (("--modify", optim.modifiers()), ("--schedule", optim.shapes())):
        lines += ["", option]
        for name, function in functions.items():
            add(name, *said(function)[:2])
    return "\n".join([*lines, "", "bytes: state per weight of a hidden matrix. lr: typical for a language "
                                  "model. More: python optim.py NAME"])
