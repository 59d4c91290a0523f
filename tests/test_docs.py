"""The pages are true: commands parse, options have valid values, links lead somewhere, cheap commands run."""
import ast
import importlib.util
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

import bench
import gpu
import lessons.__main__
import optim
import prepare_c4
import sample
import study.__main__
import tiny_runs
import zoo
import zoo.__main__
from conftest import ROOT
from lessons import atlas, pictures, toys
from model import Decoder
from study import audition
from trainer import options, settings
from trainer.build import build_optimizer, decoder_shape
from zoo.frozen import FROZEN

README = ROOT / "README.md"
ZOO_NUMBERS = ROOT / "tests/golden/zoo/README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")), ROOT / "study/README.md",
         ROOT / "study/results/speed.md", ROOT / "tests/golden/README.md", ZOO_NUMBERS]
TRAIN_COMMAND = ("python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && "
                 ".venv/bin/torchrun train.py --optimizer=signum")
TEST_COMMAND = ("python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && "
                ".venv/bin/python -m pytest -q")
SCRIPTS = {"prepare_c4.py": prepare_c4, "sample.py": sample, "bench.py": bench,
           "tests/gpu.sh": gpu}
TORCHRUN_OPTIONS = {"nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port"}
SBATCH_OPTIONS = {"array", "gres", "time", "signal"}
# programs whose arguments are not checked
OTHER_PROGRAMS = {"source", "pip", "tail", "sbatch", "exec", "ruff", "cp", "diff", "head", "scontrol", "sed",
                  "mktemp", "bash"}
CLASS = "configs/class.toml"    # the model of the lessons
LANGUAGES = {"bash", "text", "python", "toml", "json", "bibtex", "diff"}


# ---------------------------------------------------------------------------------------------------------
# What a page holds

def fenced_blocks(page: Path, language: str = "") -> list[str]:
    """Returns the texts of all fenced blocks of a page, or only those of one language."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", page.read_text(), re.M | re.S)
    return [textwrap.dedent(text) for _, name, text in found if language in ("", name)]


def without_blocks(page: Path, languages: str = r"\w*") -> str:
    """Returns the text of a page without its fenced blocks in these languages."""
    return re.sub(rf"^( *)```(?:{languages})\n.*?^\1```$", "", page.read_text(), flags=re.M | re.S)


def commands_in(text: str) -> list[list[str]]:
    """Returns the simple commands of a bash text as lists of words, without assignments and redirections.

    This knows as much of bash as the pages need: comments, &&, ;, pipes, one-line for loops, and commands
    within commands."""
    def written_out(loop):
        return "\n".join(re.sub(rf"\${loop[1]}\b", value, loop[3]) for value in loop[2].split())
    text = re.sub(r"\bfor (\w+) in (.*?); do (.*?); done", written_out, text.replace("\\\n", " "))
    return [words for line in text.splitlines() for words in commands_in_line(line)]


def commands_in_line(line: str) -> list[list[str]]:
    inner = r"[<$]\((.*?)\)"    # <(command) and $(command)
    found = [words for text in re.findall(inner, line) for words in commands_in_line(text)]
    lexer = shlex.shlex(re.sub(inner, "RESULT", line), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;"):
            found += with_inner_bash(words)
            words = []
        elif not (words and words[-1] == ">"):
            words.append(word)
        else:
            words.pop()    # a redirection
    return found


def with_inner_bash(words: list[str]) -> list[list[str]]:
    """The command without assignments before it. For `srun bash -c 'commands'`, the inner commands."""
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    if "-c" in words and "bash" in words[:words.index("-c")]:
        return commands_in_line(words[words.index("-c") + 1])
    return [words] if words else []


@cache
def all_commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every command of all pages."""
    return [(page.name, words) for page in PAGES for text in fenced_blocks(page, "bash") for words in
            commands_in(text)]


def unique_commands(is_wanted) -> list:
    """The different commands that are wanted, as parameters of a test."""
    unique = {shlex.join(words): words for _, words in all_commands() if is_wanted(words)}
    return [pytest.param(words, id=text[:90]) for text, words in unique.items()]


def is_sweep(words: list[str]) -> bool:
    return words[0] == "./sweep.sh"


def is_cheap(words: list[str]) -> bool:
    """Whether the command is over in seconds and writes nothing."""
    return words[0] == "python" and not {"--plan", "--help", "--optimizer=list"}.isdisjoint(words)


# ---------------------------------------------------------------------------------------------------------
# README's own rule, and the program with it, made as the pages say

@pytest.fixture(scope="session")
def stubborn(tmp_path_factory):
    """The module stubborn.py as README has it."""
    path = tmp_path_factory.mktemp("rule") / "stubborn.py"
    path.write_text(fenced_blocks(README, "python")[0])
    spec = importlib.util.spec_from_file_location("stubborn", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def extended_program(tmp_path_factory):
    """A copy of the program to which the rule of docs/adding_a_rule.md is added, following that page."""
    folder = tmp_path_factory.mktemp("program")
    for path in [ROOT / "sweep.sh", *ROOT.glob("*.py")]:
        shutil.copy(path, folder)
    for name in ("configs", "trainer", "zoo"):
        shutil.copytree(ROOT / name, folder / name)
    page = ROOT / "docs/adding_a_rule.md"
    for name in ("zoo/stubborn.py", "stubborn.py"):
        (folder / name).write_text(fenced_blocks(page, "python")[0])
    listing = folder / "zoo/__init__.py"
    text = listing.read_text()
    for part in fenced_blocks(page, "text")[0].split("\n\n"):
        first_line, dots, new_line, end = part.strip().splitlines()
        assert (text.count(f"{first_line}\n"), dots.strip(), end) == (1, "...", ")")
        place = text.index(f"\n{end}\n", text.index(f"{first_line}\n"))
        text = f"{text[:place]}\n{new_line}{text[place:]}"
    listing.write_text(text)
    (folder / "bin").mkdir()
    this_python = shlex.quote(sys.executable)
    write_script(folder / "bin/python", f'exec {this_python} "$@"')
    only_counts = 'case "$*" in *"-m trainer.plan") echo "# $(wc -l) runs, hours unknown"; exit ;; esac'
    write_script(folder / "bin/quick_python", f'{only_counts}\nexec {this_python} "$@"')
    return folder


def write_script(path: Path, text: str):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def run_in(folder: Path, command: str) -> subprocess.CompletedProcess:
    """Runs a line of bash in a copy of the program."""
    variables = os.environ | dict(PATH=f"{folder}/bin:{os.environ['PATH']}")
    return subprocess.run(["bash", "-c", command], cwd=folder, env=variables, text=True, capture_output=True)


# ---------------------------------------------------------------------------------------------------------
# README

def test_readme_has_the_two_commands():
    first, second = fenced_blocks(README, "bash")[:2]
    assert (first.strip(), second.strip()) == (TRAIN_COMMAND, TEST_COMMAND)
    marked = README.read_text().split("<!-- test command -->\n")[1]
    assert marked.startswith(f"```bash\n{TEST_COMMAND}\n```\n")    # where .ci/run looks for it


def test_readmes_own_rule_works(stubborn, monkeypatch):
    rule = zoo.find(stubborn.__file__)
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    w.grad = torch.tensor([0.5, -3.0])
    optim.Optimizer([w], rule.function, lr=1.0).step()
    assert torch.allclose(w, torch.tensor([0.9, -1.9]))    # u = 0.1 sign(g)
    monkeypatch.chdir(ROOT)
    usual = settings.defaults("configs/nano.toml", stubborn.__file__)
    assert (usual["lr"], usual["beta1"]) == (1e-2, 0.9)    # AdamW's, since it says no other


def test_pages_agree_on_the_own_rule():
    readmes, pages = (fenced_blocks(page, "python")[0] for page in (README, ROOT / "docs/adding_a_rule.md"))
    assert readmes in pages


# ---------------------------------------------------------------------------------------------------------
# All pages

@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_are_valid(page):
    """bash blocks are bash, python blocks are Python, and every block names its language."""
    languages = re.findall(r"^ *```(.*)$", page.read_text(), re.M)[::2]
    assert not set(languages) - LANGUAGES
    for text in fenced_blocks(page, "bash"):
        checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr
    for text in fenced_blocks(page, "python"):
        ast.parse(text)


def slug(heading: str) -> str:
    """The anchor that a heading gets on a page: lower case, no punctuation, hyphens for blanks."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Every file and every heading that a page links to is there."""
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", without_blocks(target), re.M)
            assert anchor in [slug(heading) for heading in headings], link


def test_options_in_prose_exist():
    """Every --option that a page names is an option of some program of the pages."""
    known = {"help", "print", "jobs", "options", "grads"} | TORCHRUN_OPTIONS | SBATCH_OPTIONS
    known |= {name for name, _ in torture_options()} | settings.OPTIONS
    for module in (*SCRIPTS.values(), study.__main__, audition, lessons.__main__, atlas):
        known |= set(module.Options.__dataclass_fields__)
    for rule in (*zoo.RULES.values(), *zoo.MODIFIERS.values(), *zoo.AVERAGES.values(), FROZEN):
        for name in rule.hyper:
            known |= {name, f"rest_{name}", f"{name}_of"}
    for page in PAGES:
        named = set(re.findall(r"--([a-z][a-z_0-9]*)", without_blocks(page, "text")))
        assert not named - known, page.name


def torture_options() -> list[tuple[str, str]]:
    """The options of tests/torture, as pairs because of the regular expression's groups."""
    text = (ROOT / "tests/torture/__main__.py").read_text()
    return re.findall(r"add_argument\(\"--(\w+)(\")", text)


# ---------------------------------------------------------------------------------------------------------
# All commands

@pytest.mark.parametrize("words", unique_commands(lambda words: not is_sweep(words)))
def test_command_is_valid(words, stubborn, tmp_path, monkeypatch):
    """The program is one that the pages may use, and its options exist and have valid values."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(zoo.RULES, "stubborn", zoo.find(stubborn.__file__))
    words = [copies().get(word, word).replace("stubborn.py", stubborn.__file__) for word in words]
    program = words[0].removeprefix(".venv/bin/")
    if program == "torchrun":
        script = words.index("train.py")
        named = {word.removeprefix("--").partition("=")[0] for word in words[1:script]}
        assert not named - TORCHRUN_OPTIONS
        check_train(words[script + 1:], tmp_path)
    elif program in ("python", "python3", "bash"):
        check_python(words[1:], tmp_path)
    else:
        assert program in OTHER_PROGRAMS, f"{program}: remarks in a bash block stand behind #"


@cache
def copies() -> dict[str, str]:
    """{copy: original} of all files that a page tells its readers to copy."""
    return {words[2]: words[1] for _, words in all_commands() if words[0] == "cp"}


def check_python(argv: list[str], tmp_path: Path):
    """Checks the arguments of python or bash: a script, -m and a module, or -c and a program."""
    script, rest = argv[0], argv[1:]
    if script == "RESULT":    # bash runs a line that another command of the page has printed
        assert not rest
    elif script == "-c":
        ast.parse(rest[0])
    elif script == "-m" and rest[0] == "pytest":
        check_pytest(rest[1:])
    elif script == "-m" and rest[:2] == ["study", "audition"]:
        check_audition(rest[2:])
    elif script == "-m" and rest[0] == "study":
        study.__main__.read_options(rest[1:])
    elif script == "-m" and rest[0] == "lessons":
        run_lesson(rest[1:], tmp_path)
    elif script == "-m" and rest[0] == "zoo":
        assert zoo.__main__.main(rest[1:]) == 0
    elif script == "-m":
        assert rest[0] == "venv"
    elif script == "train.py":
        check_train(rest, tmp_path)
    elif script in SCRIPTS:
        loaded = options.load(SCRIPTS[script].Options, rest)[0]
        if script == "bench.py":
            check_train(shlex.split(loaded.options), tmp_path)
    elif script == "optim.py":
        assert rest[0] in optim.RULES and zoo.__main__.main(rest) == 0
    elif script == "tests/made_up_auditions.py":
        assert rest[0].isdecimal()
    else:
        assert script in ("tests/torture", "tests/memory.py")
        known = {f"--{name}" for name, _ in torture_options()}
        assert not {word.partition("=")[0] for word in rest} - known


def check_audition(argv: list[str]):
    """The rule exists, it takes the options, and the options of the audition exist."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    loaded = study.__main__.audition_options(argv[len(words):])
    for side in (" ".join(words), loaded.against):
        audition.side_of(side.replace("../mine.py", "adamw"), loaded.config)


def run_lesson(argv: list[str], tmp_path: Path):
    """Runs a command of the lessons, with short runs. The files that it judges are exercises, still blank."""
    if argv[:1] == ["check"]:
        is_blank = "exercises" in argv[1]
        assert all((ROOT / path).exists() for path in argv[1:])
        assert lessons.__main__.main(argv) == 2 * is_blank
        return
    if argv[:1] == ["workers"]:    # it starts three processes; tests/test_workers.py does what they do
        assert argv == ["workers"]
        return
    if argv:
        argv = [word for word in argv if not word.startswith("--out=")]
        argv += [f"--out={tmp_path / 'picture.png'}"]
    with short_toys():
        assert lessons.__main__.main(argv) == 0


@contextmanager
def short_toys():
    """Each rule takes twelve steps at its usual learning rate, and nothing is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toys, "TOYS", {name: toy._replace(steps=12) for name, toy in toys.TOYS.items()})
        patch.setattr(toys, "SPIKE", 6)
        patch.setattr(toys, "search", lambda run, usual: {usual: run(usual)})
        for name in ("draw", "draw_step"):
            patch.setattr(pictures, name, lambda *_: None)
        yield


def check_train(argv: list[str], tmp_path: Path):
    """Reads a command line of train.py, and makes the optimizer of the model without memory."""
    if "--help" in argv:
        argv = [word for word in argv if word != "--help"]
    if not any(word.startswith("--runs") for word in argv):
        argv = [*argv, f"--runs={tmp_path}"]    # what this checkout's own runs hold does not matter
    for i, word in enumerate(argv):
        if word.startswith("--init_from=runs/"):    # a run that the reader has, and this checkout has not
            (tmp_path / "step-00000001.pt").touch()
            argv[i] = f"--init_from={tmp_path}/step-00000001.pt"
    config, hyper, _ = settings.read(argv)
    if config.optimizer != "list":
        with torch.device("meta"):
            model = Decoder(**decoder_shape(config))
        build_optimizer(model, config, hyper)


def check_pytest(argv: list[str]):
    """The files exist, and the words behind -k occur in the tests."""
    words = iter(argv)
    tests = "".join(path.read_text() for path in [*ROOT.glob("tests/*.py"), ZOO_NUMBERS])
    for word in words:
        if word == "-k":
            names = set(re.findall(r"\w+", next(words))) - {"and", "or", "not"}
            assert all(name in tests for name in names)
        elif word == "-m":
            assert "slow" in next(words)
        elif not word.startswith("-"):
            assert (ROOT / word).exists(), word


@pytest.mark.slow
def test_a_reader_of_the_steps_may_leave():
    with subprocess.Popen([sys.executable, "-u", "-m", "zoo", "lion"], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_steps_by_hand_are_as_printed(capsys):
    """The lines "step 4  u   of signum: ..." of the lessons are what the commands print."""
    lines = [(page, *line) for page in PAGES for line in re.findall(
        r"^step (\d+)  u   of (\w+): +(.+)$", page.read_text(), re.M)]
    assert len(lines) > 10
    for page, step, rule, numbers in lines:
        grads = re.search(r'--grads=".+"', page.read_text())[0].replace('"', "")
        zoo.__main__.main([rule, f"--steps={step}", grads])
        update = re.findall(r"^        u +(.+)$", capsys.readouterr().out, re.M)[-1]
        assert update.split() == numbers.split(), f"{page.name}: {rule}"


@pytest.mark.slow
@pytest.mark.parametrize("words", unique_commands(lambda words: words[1:3] == ["train.py", CLASS]))
def test_training_of_a_lesson_runs(words, tiny, tmp_path):
    """It takes two steps, with a model that is even smaller."""
    assert tiny_runs.run(tiny, tmp_path, "lesson", *words[3:], "--steps=2") == 0


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch, capsys):
    """Jupyter has run the whole notebook. Its code still runs, here with short toys. All else that it prints
    is what it holds."""
    cells = json.loads((ROOT / "lessons/lesson.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    (tmp_path / "notebook.py").write_text("\n".join("".join(cell["source"]) for cell in code))
    monkeypatch.chdir(ROOT)
    with short_toys():
        runpy.run_path(str(tmp_path / "notebook.py"))
    printed = capsys.readouterr().out
    for cell in code[1:]:
        texts = ["".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream"]
        if "toy(" in "".join(cell["source"]):
            assert texts and "image/png" in cell["outputs"][-1]["data"]
        else:
            assert texts and "".join(texts) in printed


@pytest.mark.slow
@pytest.mark.parametrize("words", unique_commands(is_sweep))
def test_sweep_is_valid(words, stubborn, extended_program, tmp_path, monkeypatch):
    """sweep.sh prints the runs of the sweep, and their options are valid. The interpreter that sweep.sh gets
    does not read the options a second time, which would take seconds."""
    words, grids = (words[:words.index("<")], ROOT / words[-1]) if "<" in words else (words, os.devnull)
    end = words.index("--") if "--" in words else len(words)
    words = words if "--print" in words else [*words[:end], "--print", *words[end:]]
    done = run_in(extended_program, f"PYTHON=quick_python {shlex.join(words)} < {grids}")
    *runs, total = done.stdout.splitlines()
    assert done.returncode == 0 and total == f"# {len(runs)} runs, hours unknown", done.stderr
    monkeypatch.chdir(extended_program)
    monkeypatch.setitem(zoo.RULES, "stubborn", zoo.find(stubborn.__file__))
    for run in runs:
        settings.read([*shlex.split(run)[2:], f"--runs={tmp_path}"])


@pytest.mark.slow
@pytest.mark.parametrize("words", unique_commands(is_cheap))
def test_cheap_command_runs(words, extended_program):
    done = run_in(extended_program, shlex.join(copies().get(word, word) for word in words))
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.slow
def test_diffs_show_a_difference(extended_program):
    lines = [line for page in PAGES for text in fenced_blocks(page, "bash") for line in text.splitlines()
             if line.startswith("diff ")]
    for line in dict.fromkeys(lines):
        done = run_in(extended_program, line)
        assert done.returncode == 1 and done.stdout and not done.stderr, line


# ---------------------------------------------------------------------------------------------------------
# docs/forks.md: the changes to the code, made in a copy of the program

def snippets_of_forks():
    """{heading: the python blocks below it}."""
    parts = re.split(r"^## (.*)$", (ROOT / "docs/forks.md").read_text(), flags=re.M)[1:]
    return {title: re.findall(r"```python\n(.*?)```", text, re.S)
            for title, text in zip(parts[::2], parts[1::2])}


def replace(path, old, new):
    """Replaces a line of a file, which must be there once, and keeps its indentation."""
    text = path.read_text()
    found = re.findall(rf"^( *){re.escape(old)}", text, re.M)
    assert len(found) == 1, old
    indented = "\n".join(found[0] + line if line else line for line in new.strip("\n").splitlines())
    path.write_text(text.replace(found[0] + old, indented))


@pytest.mark.slow
@pytest.mark.parametrize("title", [
    "RMSNorm instead of LayerNorm", "SwiGLU instead of GELU", "A tied embedding", "A new number in the log",
    "Another clip", "Another schedule"])
def test_a_fork_takes_a_step(tiny, tmp_path, title):
    for name in ("train.py", "model.py", "optim.py", "prepare_c4.py", "sample.py"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("trainer", "zoo"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    snippet, = snippets_of_forks()[title]
    model, more = tmp_path / "model.py", []
    if title.startswith("RMSNorm"):
        old = "return F.layer_norm(x.float(), self.weight.shape, self.weight, None, 1e-5).to(x.dtype)"
        replace(model, old, snippet)
    elif title.startswith("SwiGLU"):
        sizes, forward = snippet.split("\n\n")
        up, down = sizes.splitlines()
        replace(model, "self.mlp_up = nn.Linear(width, 4 * width, bias=False)", up)
        replace(model, "self.mlp_down = nn.Linear(4 * width, width, bias=False)", down)
        replace(model, "return x + self.mlp_down(F.gelu(self.mlp_up(self.mlp_norm(x))))", forward)
    elif title == "A tied embedding":
        head = "self.head = nn.Linear(width, rows, bias=False)"
        replace(model, head, f"{head}\n{snippet}")
    elif title == "Another clip":
        text = (tmp_path / "train.py").read_text()
        old = re.search(r"( +)if self\.config\.clip:\n +torch\.nn\.utils\.clip_grads_with_norm_.*\n", text)
        new = "".join(f"{old[1]}{line}\n" for line in snippet.splitlines())
        (tmp_path / "train.py").write_text(text.replace(old[0], new))
    elif title == "A new number in the log":
        replace(tmp_path / "train.py", "self.run.log(\"train\", step, loss=loss,",
                f"self.run.log(\"train\", step, {snippet.strip()}, loss=loss,")
    else:
        schedules = tmp_path / "zoo/schedules.py"
        schedules.write_text(schedules.read_text().replace("SHAPES = ", f"{snippet}\nSHAPES = ").replace(
            '    "sqrt":', '    "cube": cube,\n    "sqrt":'))
        more = ["--schedule=cube"]
    command = [sys.executable, "train.py", str(tiny), "--steps=3", "--compile=false", "--threads=1",
               "--sample_tokens=0", "--name=fork", *more]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "runs/fork/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3]
    if title == "A new number in the log":
        assert all(row["weight_norm"] > 0 for row in rows if row["kind"] == "train")
    assert title != "A tied embedding" or rows[0]["weights"] - rows[0]["hidden"] == 384 * 16
