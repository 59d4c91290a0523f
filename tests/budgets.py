"""
Measures how long and how deeply nested the code is, so that it stays readable.

    python tests/budgets.py        prints every measure beside the most that it may be
"""
import ast
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import optim
import zoo
from zoo.frozen import FROZEN

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
CONTROL_FLOW = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar,
                ast.Match)
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
           tokenize.ENDMARKER}


class Measure(NamedTuple):
    """A row of the table."""
    what: str
    value: int
    limit: int    # the most that the value may be
    where: str = ""    # if many functions are measured: the one with this value, or all above the limit


# ---------------------------------------------------------------------------------------------------------
# What is measured

def lines(text: str) -> int:
    """Counts all lines of a text."""
    return len(text.splitlines())


def lines_of_code(source: str) -> int:
    """Counts the lines of a definition without blank lines, comments and docstrings.

    Args:
        source: the text of a function or class, with any indentation.
    """
    source = textwrap.dedent(source)
    held = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            held |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DEFINITIONS) and ast.get_docstring(node) is not None:
            held -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(held)


def nesting(node: ast.AST) -> int:
    """Returns how many statements of control flow stand inside each other at most. These are if, for, while,
    with, try and match. An elif is as deep as its if. A function inside a function is measured by itself."""
    return max((nesting_of_child(node, child) for child in ast.iter_child_nodes(node)), default=0)


def nesting_of_child(node: ast.AST, child: ast.AST) -> int:
    """Returns how deep the control flow is that begins with one child of a node."""
    if isinstance(child, DEFINITIONS):
        return 0
    is_elif = (isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
               and child.col_offset == node.col_offset)
    return nesting(child) + (isinstance(child, CONTROL_FLOW) and not is_elif)


# ---------------------------------------------------------------------------------------------------------
# Finding it

def text_of(path: str) -> str:
    """Returns the text of a file of the project."""
    return (ROOT / path).read_text()


def source_of(path: str, name: str) -> str:
    """Returns the text of one definition of a file, such as source_of("optim.py", "Optimizer.step")."""
    text = text_of(path)
    node = ast.parse(text)
    for part in name.split("."):
        node = next(child for child in node.body if isinstance(child, DEFINITIONS) and child.name == part)
    return ast.get_source_segment(text, node, padded=True)


def functions_of(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Yields (file and name, node) of every function of a file, methods and inner functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, FUNCTIONS):
            yield f"{path.relative_to(ROOT)}: {node.name}", node


def zoo_functions() -> set:
    """Returns the update and refresh functions of all rules and modifiers of zoo/."""
    rules = (*zoo.RULES.values(), *zoo.MODIFIERS.values(), FROZEN)
    functions = {function for rule in rules for function in (rule.function, rule.refresh) if function}
    return functions - {rule.function for rule in optim.RULES.values()}


def largest(what: str, limit: int, values: Iterable[tuple[str, int]]) -> Measure:
    """Returns the row of the largest of many values. It names all above the limit, or else only the largest.

    Args:
        values: (name, value) of each.
    """
    values = sorted(values, key=lambda pair: -pair[1])
    above = [name for name, value in values if value > limit]
    return Measure(what, values[0][1], limit, ", ".join(above or [values[0][0]]))


def longest(what: str, limit: int, functions: Iterable[Callable]) -> Measure:
    """Returns the row of the function with the most lines of code."""
    return largest(what, limit, [(f.__name__, lines_of_code(inspect.getsource(f))) for f in functions])


def deepest(what: str, limit: int, pattern: str) -> Measure:
    """Returns the row of the function with the deepest nesting in all files that match a pattern."""
    return largest(what, limit, [(name, nesting(node)) for path in sorted(ROOT.glob(pattern))
                                 for name, node in functions_of(path)])


def measures() -> list[Measure]:
    """Measures everything that has a budget."""
    core = {rule.function for rule in optim.RULES.values()}
    core_code = sum(lines_of_code(source_of("optim.py", name)) for name in ("Optimizer", "make"))
    return [
        Measure("lines of README.md", lines(text_of("README.md")), 150),
        Measure("lines of train.py", lines(text_of("train.py")), 350),
        Measure("lines of Training.train", lines(source_of("train.py", "Training.train")), 45),
        Measure("lines of optim.py", lines(text_of("optim.py")), 480),
        Measure("lines of code of optim.Optimizer and optim.make", core_code, 170),
        Measure("lines of Optimizer.step", lines(source_of("optim.py", "Optimizer.step")), 25),
        Measure("lines of model.py", lines(text_of("model.py")), 220),
        longest("lines of code of the longest rule of optim.py", 15, core),
        longest("lines of code of the longest rule of zoo/", 25, zoo_functions()),
        deepest("deepest nesting in optim.py", 3, "optim.py"),
        deepest("deepest nesting in train.py", 3, "train.py"),
        deepest("deepest nesting in trainer/", 3, "trainer/*.py"),
        deepest("deepest nesting in zoo/", 3, "zoo/*.py"),
    ]


def table(rows: list[Measure]) -> str:
    """Returns the measures as a table, in which a ! marks what is above its limit."""
    width = max(len(row.what) for row in rows)
    text = [f"  {'measure':{width}}  is  at most"]
    for row in rows:
        mark = "!" if row.value > row.limit else " "
        text.append(f"{mark} {row.what:{width}} {row.value:4d} {row.limit:7d}   {row.where}".rstrip())
    return "\n".join(text)


def main() -> int:
    """Prints the table. Returns 1 if a measure is above its limit, else 0."""
    rows = measures()
    print(table(rows))
    return int(any(row.value > row.limit for row in rows))


if __name__ == "__main__":
    sys.exit(main())
