"""The project as a whole: what README says can be done is there, and the code keeps its own rules."""
import ast
import re
import subprocess
import sys

import pytest

from conftest import ROOT

FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("zoo/*.py"), *ROOT.glob("tests/*.py")])
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_lines_have_at_most_110_columns(path):
    assert [i for i, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 110] == []


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
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


def test_readme_has_two_commands_of_one_line():
    commands = re.findall(r"```bash\n(.*?)```", README, re.S)
    assert len(commands) == 2 and all(command.count("\n") == 1 for command in commands)
    assert "torchrun train.py --optimizer=signum" in commands[0] and "pytest" in commands[1]
    gate = subprocess.run(["sed", "-n", "/<!-- test command -->/,/```$/p", ROOT / "README.md"], text=True,
                          capture_output=True).stdout
    assert commands[1].strip() in gate


def test_readmes_options_exist(tiny):
    """Every --option of README is one of a script's; every file it links to is there."""
    import bench
    import optim
    import prepare_c4
    import sample
    import study
    import train
    known = {"help", "print", "jobs", "array", "gres", "time", "signal"}    # any script, sweep.sh, sbatch
    known |= {"nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port"}    # torchrun
    known = known.union(*(optim.hyper_of(f) for f in [*optim.rules().values(), *optim.zoo().values(),
                                                            *optim.modifiers().values()]))
    for options in (train.Config, prepare_c4.Options, sample.Options, study.Options, bench.Options):
        known |= set(options.__dataclass_fields__)
    assert {name for name in re.findall(r"--([a-z_0-9]+)", README)} <= known
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://arxiv.org/") or (ROOT / target).exists(), target


def test_readmes_own_rule_is_the_tested_one():
    rule = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    code = [line.strip() for line in rule.splitlines() if '"""' not in line]
    assert all(line in (ROOT / "tests/test_optim.py").read_text() for line in code)


def test_scripts_explain_themselves():
    for script in ("optim.py", "prepare_c4.py", "sample.py", "study.py"):
        done = subprocess.run([sys.executable, script, "--help"],
                              cwd=ROOT, text=True, capture_output=True)
        assert "Traceback" not in done.stderr and len(done.stdout + done.stderr) > 30
