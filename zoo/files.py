"""
Update rules in Python files of your own, which need not lie in this project. `--optimizer=FOLDER/mine.py`
trains with the rule of such a file.
"""
import hashlib
import inspect
import runpy
import sys
import traceback
import types
from pathlib import Path

import optim
from optim import Rule


MODULE = "rule_in_file_"    # how the names of the modules of such files begin


def rules_in(path: str) -> list:
    """Returns what may be the rule of a Python file: the rules of its table RULES, or else its functions that
    have a parameter g, or else all of its functions. Those whose names begin with _ only help others.
    Raises: ValueError if RULES is no table of rules; what the code of the file raises."""
    module = module_of(path)
    rules = vars(module).get("RULES")
    if rules and not any(rules is imported.RULES for imported in (optim, sys.modules["zoo"])):
        is_table = isinstance(rules, dict)
        if not is_table or not all(isinstance(x, Rule) or inspect.isfunction(x) for x in rules.values()):
            raise ValueError('RULES must be a table, such as {"mine": ZooRule(mine)}')
        return list(rules.values())
    functions = dict.fromkeys(filter(inspect.isfunction, vars(module).values()))    # each function once
    own = [f for f in functions if f.__module__ == module.__name__ and not f.__name__.startswith("_")]
    return [f for f in own if "g" in inspect.signature(f).parameters] or own


def why_not_one(rules: list) -> str:
    """Says why what rules_in() returns is no single rule, and what to do."""
    if not rules:
        return "there is no rule; define a function, such as def mine(g, m, *, beta1=0.9), and no class"
    names = ", ".join(rule.name if isinstance(rule, Rule) else rule.__name__ for rule in rules)
    return (f"there are {len(rules)} functions that may be the rule: {names}; begin the names of those that "
            "only help with _, and leave one rule")


def module_of(path: str) -> types.ModuleType:
    """Runs a Python file as a module of its own. The module has a name by which it can be imported, because
    torch.compile imports the module of a function that uses a constant of its file."""
    module = types.ModuleType(MODULE + sha256(path)[:16])
    vars(module).update(runpy.run_path(path, run_name=module.__name__))
    sys.modules[module.__name__] = module
    return module


def the_rule_in(path: str):
    """Returns the only rule of a Python file, which is a function or a line of its table RULES.

    Raises: ValueError if there is no such file, if it cannot be run, or if it has no rule or several."""
    if not Path(path).is_file():
        raise ValueError(f"{path!r}: there is no such file")
    try:
        rules = rules_in(path)
    except ValueError as error:    # what a rule's own checks say needs no line
        raise ValueError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        line, error = where_it_failed(error, path)
        raise ValueError(f"{path}: {line}{type(error).__name__}: {error}") from error
    if len(rules) != 1:
        raise ValueError(f"{path}: {why_not_one(rules)}")
    return rules[0]


def rule_that_raised(error: BaseException) -> str:
    """Returns the path of the file with a rule of the user's own in which an error arose, or ""."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").startswith(MODULE):
            return frame.f_code.co_filename
    return ""


def where_it_failed(error: BaseException, path: str) -> tuple:
    """Returns ("line 7, `u = m / 0`: ", the error that came from this line of the file), or ("", error)."""
    source = error
    while source:
        for frame in reversed(traceback.extract_tb(source.__traceback__)):
            if frame.filename == path:
                return f"line {frame.lineno}, `{frame.line}`: ", source
        source = source.__cause__ or source.__context__
    return "", error


def sha256(path: str) -> str:
    """Returns the hash of a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
