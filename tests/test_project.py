"""The project as a whole: how its modules depend on each other, and the rules that all of its code keeps."""
import ast
import subprocess
import sys
import textwrap

import pytest

import budgets
from conftest import ROOT

FILES = sorted(path for pattern in ("*.py", "trainer/*.py", "zoo/*.py", "study/*.py", "lessons/*.py",
                                    "lessons/exercises/*.py", "tests/*.py", "tests/torture/*.py")
               for path in ROOT.glob(pattern))
PRODUCT = [path for path in FILES if not path.is_relative_to(ROOT / "tests")]


def short_name(path):
    return str(path.relative_to(ROOT))


# ---------------------------------------------------------------------------------------------------------
# Every file

@pytest.mark.parametrize("path", FILES, ids=short_name)
def test_lines_have_at_most_110_columns(path):
    assert [i for i, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 110] == []


@pytest.mark.parametrize("path", FILES, ids=short_name)
def test_data_is_never_run(path):
    """No call of eval, exec or the like, no pickle, no shell; every torch.load says weights_only=True."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "")]
            assert not {"pickle", "marshal", "shelve", "yaml", "dill"} & set(names), path
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), called
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("shell") != "True"
            assert called != "torch.load" or keywords.get("weights_only") == "True"


MEASURED = '''
    def f(x):
        """A docstring
        of two lines."""
        if x:

            text = """a string
            of two lines"""
        elif x is None:
            # a comment
            for y in x:    # a comment
                with y:
                    pass
        def inner():
            while x:
                pass
'''


def test_measures_by_hand():
    assert budgets.lines_of_code(MEASURED) == 11
    f = ast.parse(textwrap.dedent(MEASURED)).body[0]
    assert budgets.nesting(f) == 3 and budgets.nesting(f.body[-1]) == 1
    row = budgets.largest("", 2, [("a", 1), ("b", 3), ("c", 4)])
    assert (row.value, row.where) == (4, "c, b")
    assert budgets.largest("", 9, [("a", 1), ("b", 3)]).where == "b"


def test_budgets():
    """No file, function or nesting is longer than a reader can follow. `pytest -s` shows all numbers."""
    rows = budgets.measures()
    print(f"\n{budgets.table(rows)}")
    broken = [row for row in rows if row.value > row.limit]
    assert not broken, f"\n{budgets.table(broken)}"


# ---------------------------------------------------------------------------------------------------------
# Imports

def module_name(path):
    """"trainer.data" for trainer/data.py, "zoo" for zoo/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in PRODUCT}


def imports_of(path):
    """The names of all modules that a file imports, also inside functions. A package counts only if the file
    imports a name from it: the import of trainer.data is not an import of trainer."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports by a relative name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in inner}
    return names


def cycle_in(graph):
    """A cycle of a graph {node: nodes that it leads to} as a list of nodes, or None."""
    left = {node: set(following) for node, following in graph.items()}
    while ends := [node for node, following in left.items() if not following & left.keys()]:
        for node in ends:
            del left[node]
    if not left:
        return None
    path = [min(left)]    # every node that is left leads to another one, so this walk must return to itself
    while path[-1] not in path[:-1]:
        path.append(min(left[path[-1]] & left.keys()))
    return path[path.index(path[-1]):]


def test_cycles_are_found():
    assert cycle_in(dict(a={"b", "c"}, b={"c"}, c=set())) is None
    assert cycle_in(dict(a={"b"}, b={"c"}, c={"d"}, d={"b"}, e=set())) == ["b", "c", "d", "b"]
    assert cycle_in(dict(a={"a"})) == ["a", "a"]


def test_imports_run_one_way():
    """train -> zoo -> optim, train -> trainer, lessons -> study -> trainer and zoo; and none in the other
    direction."""
    imports = {name: imports_of(path) for name, path in MODULES.items()}
    assert "trainer.settings" in imports["train"] and "optim" in imports["zoo"]    # the test itself sees them
    assert cycle_in({name: found & MODULES.keys() for name, found in imports.items()}) is None
    for name, found in imports.items():
        top_levels = {module.partition(".")[0] for module in found}
        assert "train" not in top_levels, f"{name}: only tests import train"
        assert "tests" not in top_levels and "conftest" not in top_levels
        assert "lessons" not in top_levels or name.startswith("lessons"), f"{name}: imports lessons"
        assert "study" not in top_levels or name.startswith(("study", "lessons")), f"{name}: imports study"
        if name in ("optim", "model"):
            assert top_levels <= {"torch"} | sys.stdlib_module_names, name


@pytest.mark.slow
def test_a_training_run_loads_no_figures():
    code = ("import sys, train; print([name for name in sys.modules "
            "if name.partition('.')[0] in ('lessons', 'study', 'matplotlib')])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------------------
# Programs

@pytest.mark.slow
@pytest.mark.parametrize("program", ["train.py", "optim.py", "prepare_c4.py", "sample.py", "bench.py",
                                     "-m study", "-m zoo", "-m lessons", "-m trainer.plan", "-OO optim.py",
                                     "-OO -m zoo"])
def test_programs_explain_themselves(program):
    command = [sys.executable, *program.split(), "--help"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and len(done.stdout) > 30, said
    assert "Traceback" not in said and "__main__.py" not in said and "plan.py" not in said


@pytest.mark.slow
@pytest.mark.parametrize("package", ["study", "zoo", "lessons"])
def test_packages_run_from_another_folder(package, tmp_path):
    command = [sys.executable, str(ROOT / package), "--help"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert f"python -m {package}" in done.stdout
