"""Auditions from the command line to the page, with made-up losses in place of training; and rules in files
of the user's."""
import functools
import gc
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import optim
import study.__main__ as study_command
import train
import zoo
from conftest import ROOT
from made_up_auditions import MadeUp
from study import audition
from study.audition import faults_of, grid_lines, growth_with_gradients, read_tune, side_of
from study.audition_page import Speed, rest_of
from study.audition_plan import Findings, Run, Side, lr_text, place_of
from study.tables import COLUMNS, differences, read_csv, read_run, row_of, variant_of, write_csv
from tiny_runs import assert_same_run, rewound, run
from trainer.errors import UserError
from trainer.settings import read
from zoo import properties

STUBBORN = '''from zoo.rule import ZooRule

def half_sign(g):
    return g.sign() / 2

def stubborn(g, m, *, beta1=0.9):
    m.lerp_(half_sign(g), 1 - beta1)
    return m

RULES = {"stubborn": ZooRule(stubborn, lr_factor=0.1)}
'''
CONFIG = str(ROOT / "configs/study.toml")


@pytest.fixture
def file(tmp_path):
    """A file with a rule."""
    path = tmp_path / "stubborn.py"
    path.write_text(STUBBORN)
    return path


# ---------------------------------------------------------------------------------------------------------
# A rule in a file

def test_a_rule_in_a_file_is_the_same_as_in_the_zoo(tiny, tmp_path, file, monkeypatch):
    assert run(tiny, tmp_path, "in_file", f"--optimizer={file}", "--lr=1e-3") == 0
    monkeypatch.setitem(zoo.RULES, "stubborn", zoo.find(str(file)))
    assert run(tiny, tmp_path, "in_zoo", "--optimizer=stubborn", "--lr=1e-3") == 0
    assert_same_run(tmp_path / "in_file", tmp_path / "in_zoo")


def test_the_state_of_another_file_with_the_same_name_is_left_behind(tiny, tmp_path, file, capsys):
    for folder, text in (("v2", STUBBORN + "# the second version\n"), ("v1", STUBBORN)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file.name).write_text(text)
    assert run(tiny, tmp_path, "a", f"--optimizer={file}", "--lr=1e-3") == 0
    for folder, words in (("v1", " and its optimizer's state"), ("v2", "is not the file of that run")):
        assert run(tiny, tmp_path, folder + "b", f"--optimizer={tmp_path}/{folder}/{file.name}", "--lr=1e-3",
                   f"--init_from={tmp_path}/a") == 0
        assert words in capsys.readouterr().out


def test_runs_of_a_rule_in_a_file_are_read_without_the_file(tiny, tmp_path, file, capsys):
    """Nobody's code runs when somebody looks at runs. The file may have changed, or be gone."""
    for name, more in (("a", []), ("b", ["--beta1=0.5"])):
        assert run(tiny, tmp_path / "runs", name, f"--optimizer={file}", "--lr=1e-3", *more) == 0
    assert run(tiny, tmp_path / "runs", "c", "--optimizer=adamw") == 0
    version = zoo.files.sha256(str(file))[:8]
    for text in ("raise SystemExit('this file was run')", None):
        file.write_text(text) if text else file.unlink()
        capsys.readouterr()
        assert study_command.main([f"--runs={tmp_path}/runs", f"--out={tmp_path}/x.png"]) == 0
        rows = capsys.readouterr().out
        assert f"| stubborn.py@{version} | 0.001 |" in rows
        assert f"| stubborn.py@{version} beta1=0.5 | 0.001 |" in rows and "| adamw | " in rows


def test_a_rule_in_a_file_resumes_unless_the_file_has_changed(tiny, tmp_path, file, capsys):
    assert run(tiny, tmp_path, "whole", f"--optimizer={file}", "--lr=1e-3") == 0
    rewound(tmp_path / "whole", tmp_path / "half", 5)
    assert train.main([f"--runs={tmp_path}", "--name=half", "--resume"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "half")
    rewound(tmp_path / "whole", tmp_path / "other", 5)
    file.write_text(STUBBORN.replace("/ 2", "/ 3"))
    assert train.main([f"--runs={tmp_path}", "--name=other", "--resume"]) == 2
    assert "this file has changed since" in capsys.readouterr().err


def test_two_versions_of_a_file_are_two_optimizers(tiny, tmp_path, file):
    assert run(tiny, tmp_path, "first", f"--optimizer={file}", "--lr=1e-3") == 0
    file.write_text(STUBBORN.replace("/ 2", "/ 3"))
    assert run(tiny, tmp_path, "second", f"--optimizer={file}", "--lr=1e-3") == 0
    both = [read_run(tmp_path / name) for name in ("first", "second")]
    hashes = [one.config["sha256_of_optimizer"][:8] for one in both]
    assert differences(both) == [("sha256_of_optimizer", *hashes)]    # and not the rule's defaults
    names = [variant_of(one) for one in both]
    assert names[0] != names[1] and all(name.startswith("stubborn.py@") for name in names)
    command = row_of(read_run(tmp_path / "second"))["command"]
    assert f"--optimizer={file}" in command and "sha256" not in command


@pytest.mark.compiled
def test_a_rule_in_a_file_may_use_what_else_is_in_the_file(tmp_path):
    """Constants, other functions and imports, also when it is compiled."""
    (tmp_path / "mine.py").write_text(
        "import math\n\nMATRICES = ('qkv', 'mlp_up')\n\ndef half(x):\n    return x / math.sqrt(4)\n\n"
        "def mine(g, m, role, *, beta1=0.9):\n    m.lerp_(half(g), 1 - beta1)\n"
        "    return 2 * m if role in MATRICES else m.clone()\n\nRULES = {'mine': mine}\n")
    assert faults_of(zoo.find(str(tmp_path / "mine.py")), is_new=True) == []


@pytest.mark.parametrize("text, said", [
    ("def mine(g):\n    return 1 / 0\n", "ZeroDivisionError"),
    ("import nothing_of_this_name\n", "line 1, `import nothing_of_this_name`: ModuleNotFoundError"),
    ("def mine(g:\n", "SyntaxError"),
    ("x = 1\n", "there is no rule; define a function"),
    ("def one(g):\n    return g\n\ndef two(g):\n    return -g\n", "2 functions that may be the rule"),
    (None, "there is no such file")], ids=str)
def test_what_is_wrong_with_a_file_is_one_line(tiny, tmp_path, text, said, capsys):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    assert run(tiny, tmp_path, "x", f"--optimizer={tmp_path}/mine.py", "--lr=1e-3") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("train.py: error: --optimizer") and said in error[0]


@pytest.mark.parametrize("line, code, said", [
    ("g @ g if g.shape[-1] == 16 else g", 2,
     "{path}: line 2, `return g @ g if g.shape[-1] == 16 else g`: RuntimeError: mat1 and mat2 shapes cannot"),
    ("g / (t - 3)", 3,
     "step 3: the weights are not finite; `python -m lessons check {path}` looks for faults in the rule (")])
def test_a_file_that_fails_in_the_run_is_named(tiny, tmp_path, line, code, said, capsys):
    path = tmp_path / "mine.py"
    path.write_text(f"def mine(g, t):\n    return {line}\n")
    assert run(tiny, tmp_path, "x", f"--optimizer={path}", "--lr=1e-3", "--width=16") == code
    gc.collect()    # a progress bar that is still open writes a last time
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"train.py: error: {said.format(path=path)}")


def test_sweeps_take_files_and_lists(tmp_path, file):
    def sweep(*arguments, text=""):
        return subprocess.run(["bash", str(ROOT / "sweep.sh"), *arguments], input=text, text=True,
                              cwd=tmp_path, capture_output=True, env=os.environ | {"PYTHON": sys.executable})
    lines = f"# a comment\noptimizer={file} lr=1e-3 seed=1,2\n\noptimizer=lion steps=7\n"
    done = sweep("list", CONFIG, "--print", text=lines)
    commands = [line for line in done.stdout.splitlines() if "--name=" in line]
    names = [command.partition("--name=")[2].split()[0] for command in commands]
    version = zoo.files.sha256(str(file))[:8]    # so that a changed file makes new runs
    assert names == [f"study,optimizer=stubborn.py@{version},lr=1e-3,seed={seed}" for seed in (1, 2)] + [
        "study,optimizer=lion,steps=7"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/stubborn.py").write_text(STUBBORN)
    done = sweep("grid", CONFIG, f"optimizer={file},{tmp_path}/other/stubborn.py", "--print")
    assert done.returncode == 2 and "two runs would have this name" in done.stderr
    done = sweep("list", CONFIG, "--print", text="optimizer=none.py lr=1\n")
    assert (done.returncode, done.stderr) == (2, "sweep.sh: error: none.py: there is no such file\n")
    done = sweep("list", CONFIG, "--print", text="optimizer=lion lr\n")
    assert done.returncode == 2 and "give key=a,b,c" in done.stderr


# ---------------------------------------------------------------------------------------------------------
# The sides

def test_sides():
    plain, chosen = side_of("adamw", CONFIG), side_of("adamw beta1=0.95 modify=cautious", CONFIG)
    assert plain == ("adamw", "adamw", frozenset(), -8)
    assert chosen.changed == {("beta1", 0.95), ("modify", "cautious")}
    assert side_of("adamw beta1=0.9", CONFIG).changed == frozenset()    # the default is no change
    assert side_of("muon", CONFIG).usual == -4


@pytest.mark.parametrize("words, said", [
    ("adamw lr=1", "chooses this itself"), ("adamw width=32", "is no option of the optimizer"),
    ("adamw batch=64", "is no option of the optimizer"), ("adamw final_windows=2", "is no option of the opt"),
    ("adam", "did you mean adamw"), ("adamw beta3=1", "no such option")])
def test_what_a_side_cannot_be(words, said):
    with pytest.raises(UserError, match=said):
        side_of(words, CONFIG)


def test_runs_become_lines_of_a_list():
    runs = [Run("lion", frozenset(), 500, -12, seed) for seed in (1, 2)]
    runs += [Run("adamw", frozenset(), 250, -6, 0)]
    words = {("lion", frozenset()): "lion beta1=0.9", ("adamw", frozenset()): "adamw"}
    assert grid_lines(runs, words, 500) == ["optimizer=lion lr=1e-3 seed=1,2 beta1=0.9",
                                            "optimizer=adamw lr=3.16e-2 seed=0 steps=250"]
    assert read_tune("beta1:0.8,0.9 eps:1e-8") == (("beta1", ("0.8", "0.9")), ("eps", ("1e-8",)))
    with pytest.raises(UserError, match="give NAME:VALUE"):
        read_tune("beta1=0.8")


# ---------------------------------------------------------------------------------------------------------
# Properties

@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.RULES)
def test_the_projects_rules_are_admitted(name, monkeypatch):
    monkeypatch.setattr(audition, "compiler_works", lambda: False)    # other tests compile each rule
    assert faults_of(zoo.find(name), is_new=False) == []


def test_a_rule_that_lacks_a_property_is_not_trained(tmp_path, monkeypatch, capsys):
    (tmp_path / "drift.py").write_text("def drift(g, m, *, beta1=0.9):\n    m.lerp_(g, 1 - beta1)\n"
                                       "    return m + 0.01\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(audition, "train", None)    # a call would fail
    assert audition.audition(["drift.py"], audition.Options(config=CONFIG)) == 0
    said = capsys.readouterr().out
    assert "zero gradient: four gradients of 0 move" in said and "So it is not trained" in said
    page = Path("auditions/drift/verdict.md").read_text()
    assert "It lacks a property" in page and "zero gradient" in page and "return m + 0.01" in page
    assert "Both optimizers trained" not in page and "runs were used" not in page
    assert json.loads(Path("auditions/drift/verdict.json").read_text())["verdict"] == "lacks a property"


def test_what_published_modifiers_lack_does_not_count_against_a_new_rule(file, monkeypatch):
    monkeypatch.setattr(audition, "compiler_works", lambda: False)
    for modify in ("l2", "adagc", "cautious", "trust_ratio"):
        assert faults_of(zoo.modified(str(file), modify), is_new=True) == []
    assert faults_of(zoo.modified("muon", "cautious"), is_new=False) == []


def test_a_modifier_that_does_not_fit_is_one_line(capsys):
    assert study_command.main(["audition", "schedule_free_adamw", "modify=cautious"]) == 2
    begins = "study: error: schedule_free_adamw modify=cautious: modify=cautious: changes the step"
    assert capsys.readouterr().err.startswith(begins)


@pytest.mark.parametrize("values", ["0.9,abc", "0.9,1.5"])
def test_values_of_tune_are_checked_before_anything_trains(values, monkeypatch, capsys):
    monkeypatch.setattr(audition, "check_that_it_steps", None)    # a call would fail
    assert study_command.main(["audition", "lion", f"--tune=beta1:{values}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("study: error: --") and "beta1" in error and error.count("\n") == 1


@pytest.mark.compiled
def test_a_rule_that_does_not_compile_is_told_so_in_one_line():
    def undecided(g, m, *, beta1=0.9):
        m.lerp_(g, 1 - beta1)
        return m if m.sum().item() > 0 else 1.0 * m
    fault, = faults_of(zoo.ZooRule(undecided), is_new=True)
    assert fault.startswith("compiled: ") and "\n" not in fault


def test_a_default_of_a_half_is_tried_with_another_value():
    def powered(g, m, *, beta1=0.5, power=0.5):
        m.lerp_(g, 1 - beta1)
        return m.sign() * m.abs() ** power
    rule = zoo.ZooRule(powered)
    assert properties.hyperparameters(functools.partial(audition.optimizer_of_rule, rule), rule) == ""


def test_the_scale_of_gradients():
    assert growth_with_gradients(zoo.find("signum")) == pytest.approx(1)
    assert growth_with_gradients(zoo.find("adamw")) == pytest.approx(1, abs=1e-6)
    assert growth_with_gradients(zoo.find("sgd")) == pytest.approx(1000)
    late = zoo.ZooRule(optim.signum, measures=8)    # its first eight steps move nothing
    assert growth_with_gradients(late) == pytest.approx(1)


# ---------------------------------------------------------------------------------------------------------
# A whole audition

def test_commands_are_printed_by_the_interpreter_that_runs_the_audition(tmp_path, monkeypatch, capfd):
    """Its folder need not be in PATH: `.venv/bin/python -m study audition RULE --print`."""
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert audition.train(["optimizer=lion lr=1e-2 seed=0"], CONFIG, 1, "--print") == 0
    assert f"python train.py --config={CONFIG} --optimizer=lion " in capfd.readouterr().out


def as_texts(row):
    """A row of results.csv of the study, of which only some columns matter."""
    study = dict(batch=32, context=128, hidden=197696)
    return dict.fromkeys(COLUMNS, "") | {name: str(value) for name, value in (study | row).items()}


def test_steps_of_runs_that_are_trained_two_at_a_time():
    """Three runs of 500 steps, two at a time, take two rounds. A short run goes beside a long one."""
    run = Run("adamw", frozenset(), 500, -8, 0)
    assert [audition.steps_in_turn([run] * count, 2) for count in (1, 2, 3, 4)] == [500, 500, 1000, 1000]
    assert audition.steps_in_turn([run, run._replace(steps=1000)], 2) == 1000


def test_usual_seconds_per_step():
    """Earlier runs on this kind of machine tell the time of a step, or else the config's throughput does."""
    settings = SimpleNamespace(batch=32, context=128, throughput=None)
    rows = [dict(tokens_per_second="2000"), dict(tokens_per_second="")]
    assert audition.usual_seconds_per_step(settings, rows, 2) == pytest.approx(32 * 128 / 2000)
    assert audition.usual_seconds_per_step(settings, [], 2) is None
    settings.throughput = 4000
    assert audition.usual_seconds_per_step(settings, [], 2) == pytest.approx(32 * 128 / 2000)


class Trained(MadeUp):
    """Stands for sweep.sh: the runs of its grids get rows with made-up losses in rows/results.csv."""
    def __init__(self, here, forgets=False, **world):
        super().__init__(0, **world)
        self.here, self.rows, self.calls, self.forgets = here, [], 0, forgets

    def __call__(self, lines, config, jobs, *more):
        self.calls += 1
        for line in lines:
            given = dict(word.split("=", 1) for word in line.split())
            lr, steps = float(given["lr"]), int(given.get("steps", 500))
            changed = {key: float(value) for key, value in given.items() if key in ("beta1", "beta2")}
            for seed in map(int, given["seed"].split(",")):
                name = "mine" if given["optimizer"].endswith("lion") else "adamw"
                key = Run(name, frozenset(changed.items()), steps, place_of(lr), seed)
                loss = self.train(key)
                row = dict(run=f"{line} {seed}", optimizer=given["optimizer"], lr=lr, steps=steps, seed=seed,
                           setting="study" if steps == 500 else f"study steps={steps}",
                           changed=" ".join(f"{option}={value}" for option, value in changed.items()),
                           loss=loss, status="done" if math.isfinite(loss) else "diverged",
                           tokens_per_second=1e4, command=f"python train.py {line} {seed}", **self.here)
                self.rows.append(as_texts(row))
        write_csv(Path("rows/results.csv"), COLUMNS, [] if self.forgets else self.rows)
        return 0


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """A function that runs `audition lion` in a made-up world, and returns its page and its numbers."""
    def run_it(options=(), **world):
        here = audition.Kind("cpu", "fp32", "1", "2.13")
        trained = Trained(here._asdict(), best=-9, **world)
        monkeypatch.chdir(tmp_path)
        Path("rows").mkdir()
        monkeypatch.setattr(audition, "train", trained)
        monkeypatch.setattr(audition, "this_machine", lambda settings, jobs: here)
        monkeypatch.setattr(audition, "faults_of", lambda rule, is_new: [])
        monkeypatch.setattr("study.audition_page.measure_speed",
                            lambda found, config, threads: Speed(2.0, 1.0, 99.0, (4.0, 8.0)))
        options = audition.Options(config=CONFIG, results="rows", **dict(options))
        assert audition.audition(["lion"], options) == 0
        folder = tmp_path / "auditions" / audition.folder_name(["lion"], options)
        return (folder / "verdict.md").read_text(), json.loads((folder / "verdict.json").read_text()), trained
    return run_it


def test_the_page_says_what_trained_the_rest():
    muon, adamw = (Side(name, name, frozenset(), 0) for name in ("muon", "adamw"))
    rows = [dict(optimizer="muon", rest_lr="0.01"), dict(optimizer="adamw", rest_lr="")]
    text = rest_of(Findings(muon, adamw), rows)
    assert text.startswith("`muon` trains only a part of the weights.") and " rate of 0.01, " in text
    assert rest_of(Findings(adamw, adamw), rows) == ""


def test_a_page(whole, capsys):
    page, numbers, trained = whole(better=0.3, noise=0.005)
    assert numbers["verdict"] == "better" and "# Is `lion` better than `adamw`? Better" in page
    ours, theirs = (sum(numbers[side]["loss_by_seed"].values()) / 3 for side in ("candidate", "reference"))
    assert numbers["difference"]["mean"] == pytest.approx(ours - theirs) == pytest.approx(-0.3, abs=0.02)
    assert numbers["speedup"]["value"] == pytest.approx(2, rel=0.1)    # twice the steps are worth 0.3 nats
    speedup = numbers["speedup"]["value"]
    assert numbers["time_to_reference_loss"] == pytest.approx(101 / 100 / speedup, abs=2e-3)
    for which in ("lr_at_tuning_seed", "lr_in_pairs"):
        assert numbers["candidate"][which] == pytest.approx(10**-2.25) and numbers["reference"][which] == 1e-2
    assert "milliseconds of the optimizer's step, 1 thread |" in page
    assert lr_text(-9) in page and "verdict.png" in page and "nats lower than that of `adamw`" in page
    assert len(numbers["runs"]) == len(set(numbers["runs"])) and len(numbers["runs"]) <= len(trained.rows)
    assert "power: unknown, because no pairs with adamw are known yet" in capsys.readouterr().out
    formats = (ROOT / "docs/formats.md").read_text()
    assert [key for key in (*COLUMNS, *numbers) if f"`{key}`" not in formats] == []
    calls = trained.calls
    kept = read_csv(Path("auditions/lion/results.csv"))
    assert sorted(row["command"] for row in kept) == sorted(numbers["runs"])
    for known in ("rows", "auditions"):    # the page has the rows of all runs that an audition needs
        again = audition.audition(["lion"], audition.Options(config=CONFIG, results=known))
        assert again == 0 and trained.calls == calls and read_csv(Path("auditions/lion/results.csv")) == kept


def test_a_page_keeps_the_rows_that_it_does_not_need(whole):
    """A row may have been needed by an earlier page only, and its run may be known nowhere else."""
    whole(better=0.3, noise=0.005)
    path = Path("auditions/lion/results.csv")
    kept = read_csv(path)
    elsewhere = kept[0] | dict(device="cuda", loss="1")
    unneeded = kept[0] | dict(run="study,optimizer=lion,lr=1e-9,seed=99", lr="1e-09", seed="99", loss="2")
    write_csv(path, COLUMNS, [*kept, elsewhere, unneeded])
    assert audition.audition(["lion"], audition.Options(config=CONFIG, results="auditions")) == 0
    as_set = {tuple(row.values()) for row in read_csv(path)}
    assert as_set == {tuple(row.values()) for row in (*kept, elsewhere, unneeded)}


def test_rows_are_kept_apart_by_kind_of_machine(tmp_path):
    """A row of another machine does not replace one of this machine, wherever it is kept."""
    here = audition.Kind("cpu", "fp32", "1", "2.13")
    row = as_texts(dict(setting="study", optimizer="lion", lr=0.01, steps=500, seed=1, status="done",
                        **here._asdict()))
    write_csv(tmp_path / "results.csv", COLUMNS, [row | dict(loss="1")])
    (tmp_path / "lion").mkdir()
    write_csv(tmp_path / "lion/results.csv", COLUMNS, [row | dict(loss="2", device="cuda")])
    options = audition.Options(config=CONFIG, results=str(tmp_path))
    settings, _, _ = read([CONFIG])
    by_machine = audition.known_rows(options, settings, here)
    run = Run("lion", frozenset(), 500, -8, 1)
    assert {kind.device: rows[run]["loss"] for kind, rows in by_machine.items()} == {"cpu": "1", "cuda": "2"}
    assert list(by_machine)[0] == here and audition.with_first_ahead(by_machine)[run]["loss"] == "1"
    for other in (replace(settings, width=128), replace(settings, batch=16)):    # another study.toml
        assert audition.known_rows(options, other, here) == {here: {}}


def test_a_folder_of_rows_that_does_not_exist():
    with pytest.raises(UserError, match="--results=nowhere: there is no such folder"):
        audition.known_rows(audition.Options(config=CONFIG, results="nowhere"), read([CONFIG])[0],
                            audition.Kind("", "", "", ""))


def test_a_tuned_hyperparameter(whole):
    """Each side tries two values of beta1. One of them is lion's own, so it trains one more run only once."""
    page, numbers, trained = whole(dict(tune="beta1:0.8,0.95"), noise=0.001)
    assert {"beta1=0.8", "beta1=0.95", ""} <= {row["changed"] for row in trained.rows}
    assert sorted(row["command"] for row in trained.rows) == sorted(numbers["runs"])
    assert "Other hyperparameters" in page and page.count("`lion beta1=0.8`") >= 1
    assert numbers["verdict"] == "same"


def test_other_questions_have_other_folders():
    for words, options, name in (
            ("mine/new.py beta1=0.8", {}, "new_beta1=0.8"),
            ("lion", dict(against="mine/old.py beta1=0.8"), "lion_against=mine-old_beta1=0.8"),
            ("lion", dict(config="mine/class.toml", tune="eps:1e-8"), "lion_config=class_tune=eps:1e-8"),
            ("lion", dict(config=CONFIG, seeds=5), "lion")):
        assert audition.folder_name(words.split(), audition.Options(**options)) == name


def test_a_file_that_changes_while_its_audition_runs_ends_it(whole):
    """Its new runs are then those of another rule, which the audition would wait for in vain."""
    with pytest.raises(UserError, match="lion: none of the last runs is one that was wanted. Has the f"):
        whole(forgets=True)


def test_what_cannot_be_tuned():
    with pytest.raises(UserError, match="--tune=beta3: neither side has this hyperparameter"):
        audition.audition(["lion"], audition.Options(config=CONFIG, tune="beta3:0.5"))


def test_a_rule_that_cannot_step_is_one_line(tmp_path):
    file = tmp_path / "typo.py"
    file.write_text("def typo(g, m, t, *, beta1=0.9):\n    m.lerp_(g, 1 - beta1)\n"
                    "    return m.sgin() if t > 1 else m\n")
    with pytest.raises(UserError) as error:
        audition.audition([str(file)], audition.Options(config=CONFIG))
    assert str(error.value).startswith(f"{file}: line 3, `return m.sgin() if t > 1 else m`: AttributeError: ")


def test_print_writes_nothing(whole, tmp_path, capsys):
    (tmp_path / "drift.py").write_text("def drift(g):\n    return g + 0.01\n")
    page, _, trained = whole(noise=0.0)
    calls = trained.calls
    for rule in ("lion", str(tmp_path / "drift.py")):
        options = audition.Options(config=CONFIG, results="rows", print=True, out=str(tmp_path / "x"))
        assert audition.audition([rule], options) == 0
    assert not (tmp_path / "x").exists() and trained.calls == calls + 1    # drift has no faults in this test
    error = capsys.readouterr().err
    assert "nothing is missing" in error and " 3 pairs find a difference of 0.000 nats" in error


def test_an_audition_stops_when_its_hours_are_over(whole):
    page, numbers, trained = whole(dict(hours=0.0))
    assert numbers["verdict"] == "not finished" and trained.calls <= 1 and "stopped early" in page


def test_a_slow_day_does_not_exceed_the_hours(whole, monkeypatch):
    """Each round takes 40 minutes here, so a second round would not end within the hour."""
    now = [0.0]
    monkeypatch.setattr(audition, "time", SimpleNamespace(monotonic=lambda: now[0]))
    train = Trained.__call__

    def train_slowly(*args):
        now[0] += 2400
        return train(*args)

    monkeypatch.setattr(Trained, "__call__", train_slowly)
    page, _, trained = whole()
    assert trained.calls == 1 and "which is more than --hours=1 leaves" in page


def test_a_copy_of_the_reference_is_the_same(whole):
    page, numbers, _ = whole(noise=0.0)
    assert numbers["verdict"] == "same" and numbers["speedup"]["value"] == pytest.approx(1)


def test_a_rule_that_diverges_at_every_learning_rate(whole):
    page, numbers, _ = whole(better=-math.inf)
    assert numbers["verdict"] == "not bracketed" and "did not find a learning rate of `lion`" in page
    text = json.dumps(numbers)
    assert "NaN" not in text and "Infinity" not in text
    assert set(numbers["candidate"]["loss_by_lr"].values()) == {None}
