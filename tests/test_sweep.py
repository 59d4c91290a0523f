"""Tests of sweep.sh: it has the paper's values, and runs each combination once, even after interruptions."""
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from conftest import ROOT, TINY, documents, wait_for
from model import Decoder
from trainer import settings
from trainer.build import build_optimizer
from trainer.cores import usable_cores
from zoo import RULES

pytestmark = pytest.mark.slow


def sweep(folder, *arguments, **environment):
    """Runs the sweep.sh of a folder and returns the ended process."""
    return subprocess.run(["bash", "sweep.sh", *arguments], capture_output=True, text=True, cwd=folder,
                          env=os.environ | dict(PYTHON=sys.executable) | environment)


@pytest.fixture
def copy(tmp_path):
    """A folder with copies of sweep.sh and of all that it starts."""
    for path in [ROOT / "sweep.sh", *ROOT.glob("*.py")]:
        shutil.copy(path, tmp_path / path.name)
    for package in ("zoo", "trainer"):
        shutil.copytree(ROOT / package, tmp_path / package)
    return tmp_path


def test_a_grid_is_run_once_and_completed(tiny, copy):
    """Two of four runs diverge. Started again, the sweep only resumes the run that was interrupted."""
    command = ["grid", str(tiny), "optimizer=sgd,signum", "lr=1e-3,1e12", "--",
               "--compile=false", "--threads=1", "--save_every=5", "--keep=9", "--z_loss=0"]
    first = sweep(copy, *command)
    assert first.returncode == 0, first.stderr
    names = [f"tiny,optimizer={o},lr={lr}" for o in ("sgd", "signum") for lr in ("1e-3", "1e12")]
    assert sorted(p.name for p in (copy / "runs").iterdir()) == sorted(names)
    states = [json.loads((copy / "runs" / name / "status.json").read_text())["status"] for name in names]
    assert states == ["done", "diverged", "done", "diverged"]
    killed = copy / "runs" / names[2]
    result = (killed / "metrics.jsonl").read_text()
    for path in killed.glob("step-*.pt"):
        if path.name != "step-00000005.pt":
            path.unlink()
    (killed / "status.json").write_text('{"status": "running"}')
    others = [name for name in names if name != names[2]]
    mtimes = {p: p.stat().st_mtime_ns for name in others for p in (copy / "runs" / name).iterdir()}
    again = sweep(copy, *command)
    assert again.returncode == 0 and again.stdout.count("already") == 3
    assert f"{names[2]}: starting (running)" in again.stdout and f"{names[2]}: done" in again.stdout
    losses = [[{k: v for k, v in json.loads(line).items() if k in ("kind", "step", "loss")}
               for line in text.splitlines()]
              for text in (result, (killed / "metrics.jsonl").read_text())]
    assert losses[0] == losses[1]
    assert mtimes == {p: p.stat().st_mtime_ns for p in mtimes}


def test_failed_runs_are_listed(tiny, copy):
    result = sweep(copy, "grid", str(tiny), "init_from=nowhere.pt", "--", "--compile=false", "--threads=1")
    assert result.returncode == 1 and "failed: tiny,init_from=nowhere.pt" in result.stdout
    assert "nowhere.pt: " in result.stderr


@pytest.mark.parametrize("arguments", [
    [], ["grid"], ["nonsense", "x", "y=1"], ["grid", "nowhere.toml", "lr=1"], ["grid", "{tiny}", "lr"],
    ["grid", "{tiny}", "lr=$(touch x)"], ["grid", "{tiny}", "lr="], ["grid", "{tiny}", "lr=1,,2"],
    ["nonsense", "{tiny}"], ["lr", "{tiny}", "optimizer=adam,signum"], ["lr", "{tiny}", "--jobs", "0"],
    ["grid", "{tiny}", "heads=2,3"], ["lr", "{tiny}", "optimzer=adamw"],
    ["lr", "{tiny}", "optimzer=adamw", "--print"],
    ["lr", "{tiny}", "--jobs"], ["batch_size", "{tiny}", "batch=9"], ["lr", "{tiny}", "--threads=1"],
    ["grid", "{tiny}", "seed=0", "lr=1", "seed=1"]])
def test_wrong_use(tiny, copy, arguments):
    result = sweep(copy, *(a.format(tiny=tiny) for a in arguments))
    assert result.returncode == 2 and result.stderr and not result.stdout
    assert not (copy / "runs").exists() and not (copy / "x").exists()


# --- the sweeps by name

STUB = """#!/bin/bash
case "$*" in
  *trainer.plan) [ -e plans ] || {{ echo "#"; exit 0; }}; exec {python} "$@" ;;
  "train.py "*|*"/train.py "*) ;;
  *) exec {python} "$@" ;;
esac
for word in "$@"; do case $word in --name=*) name=${{word#--name=}} ;; esac; done
status() {{ echo "{{\\"status\\": \\"$1\\"}}" >"runs/$name/status.json"; }}
trap 'status interrupted; echo "left $name" >>log; exit 75' TERM
mkdir -p "runs/$name" && status running && echo "began $name $* gpu=${{CUDA_VISIBLE_DEVICES-none}}" >>log
case $name in *fails*) echo "train.py: error: as told" >&2; exit 2 ;; esac
while [ -e wait ]; do sleep 0.05; done
status done && echo "ended $name" >>log
"""


@pytest.fixture
def stub(copy):
    """A program in place of python that does not train. As train.py it writes the status "done" as soon as
    there is no file `wait`. As trainer.plan it accepts everything, unless there is a file `plans`."""
    (copy / "stub").write_text(STUB.format(python=sys.executable))
    (copy / "stub").chmod(0o755)
    return str(copy / "stub")


TENS = [f"{digits}e{power}" for power in range(-5, 1) for digits in ("1", "3.16")] + ["10"]
SIX = ["adamw", "adafactor", "adalayer_star", "lion", "signum", "sgd"]
BETAS = [0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99]


def tens(low, high):
    """Returns the powers of the square root of ten from low to high, rounded as in the paper."""
    return [x for x in map(float, TENS + ["31.6", "100", "316", "1000", "3160"]) if low <= x <= high * 1.001]


def product(**lists):
    """Returns all combinations of these values, each as {key: value}."""
    found = [{}]
    for key, values in lists.items():
        values = values if isinstance(values, list) else [values]
        found = [one | {key: value} for one in found for value in values]
    return found


def paper(steps):
    """Returns {sweep: its runs}, each run as {key: value} of what differs from the config."""
    star, hybrid = dict(optimizer="adalayer_star"), dict(rest="sgd_ema", rest_lr=tens(0.1, 3160))
    lrs, head, both = tens(1e-4, 1), dict(adaptive="head"), dict(adaptive="head+norm")
    freeze = star | dict(freeze_steps=steps // 10)
    tied = [dict(optimizer="adamw", beta1=b, beta2=b) for b in BETAS]
    halves = [(16, 2 * steps), (32, steps), (64, steps // 2), (128, steps // 4)]
    return {
        "lr": product(optimizer=SIX[:3], lr=lrs) + product(optimizer=SIX[3:5], lr=tens(1e-5, 0.1))
              + product(optimizer="sgd", lr=tens(1e-3, 10)),
        "momentum": product(optimizer=SIX, beta1=BETAS),
        "tied": tied + [one for one in product(optimizer=["adamw", "signum"], beta1=BETAS)
                        if one != dict(optimizer="adamw", beta1=0.95)],
        "weight_decay": product(optimizer=SIX, weight_decay=[0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1]),
        "warmup": product(optimizer=SIX, warmup=[0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8]),
        "batch_size": [dict(optimizer=o, batch=b, steps=s) for o in SIX for b, s in halves],
        "beta2": product(optimizer=SIX[:4], beta2=[0.8, 0.9, 0.95, 0.98, 0.99]) + product(optimizer=SIX[4:]),
        "eps": product(optimizer=SIX[:3], beta2=0.98, eps=[1e-15, 1e-12, 1e-8, 1e-5]),
        "adalayer": product(optimizer=["adalayer", "adalayer_star"], lr=lrs)
                    + product(optimizer="adalayer", rows="head+embed", lr=lrs),
        "hybrid_last": product(**star, **head, **hybrid),
        "hybrid_last_norm": product(**star, **both, **hybrid),
        "hybrid_reverse": product(**star, adaptive="qkv+matrix", **hybrid),
        "hybrid_adafactor": product(optimizer="adafactor", **both, **hybrid),
        "norms_untrained": product(**star, **head, **hybrid, untrained="norm")
                           + product(**star, untrained="norm", lr=lrs),
        "frozen": product(**freeze, updating=["head+norm", "none", "head", "norm"], lr=lrs)
                  + product(**freeze, updating="head", untrained="norm", lr=lrs),
        "adasgd": product(optimizer="adasgd", beta1=[0.9, 0.98], lr=lrs)
                  + product(**star, **both, rest="adasgd", rest_lr=lrs),
        "granularity": product(optimizer=["adalayer", "adalayer_star", "adamw"], lr=lrs)
                       + product(optimizer="adalayer", rows="embed+qkv+matrix+head", lr=lrs),
        "effective_lr": product(**star, log_blocks=True),
        "sophia": product(optimizer="sophia", lr=tens(1e-5, 0.1), beta1=0.965, beta2=0.99)}


ELSEWHERE = ["--runs=no_such_folder"]    # runs of these names may be in runs/
PLAIN = ("steps", "batch", "warmup", "weight_decay", "adaptive", "rest", "rows", "untrained", "updating",
         "freeze_steps", "log_blocks")
SWEPT = (*PLAIN, "optimizer", "lr", "rest_lr", "beta1", "beta2", "eps")


@pytest.mark.parametrize("name, steps", [*((name, 500) for name in paper(500)), ("frozen", 2000),
                                         ("batch_size", 2000)])
def test_the_papers_grids(name, steps, copy, stub):
    """Each sweep has these runs and no others. No other option differs from the config, and each run's
    optimizer can be built."""
    length = ["steps=2000"] if steps == 2000 else []    # the config has 500
    done = sweep(ROOT, name, "configs/nano.toml", *length, "seed=7", "--print", PYTHON=stub)
    assert done.returncode == 0, done.stderr
    with torch.device("meta"):
        model = Decoder(width=16, layers=1, heads=2, context=16, vocab_size=128)
    base = settings.defaults(ROOT / "configs/nano.toml", "adamw")
    found, names = [], []
    for line in done.stdout.splitlines()[:-1]:
        chosen, hyper, tables = settings.read([*shlex.split(line)[2:], *ELSEWHERE])
        build_optimizer(model, replace(chosen, compile=False), hyper)
        values = {key: value for key, value in (asdict(chosen) | hyper).items() if key in SWEPT}
        values["own_lr"] = chosen.lr == settings.learning_rate(tables, chosen.optimizer)
        assert (chosen.seed, chosen.resume) == (7, True) and chosen.name.endswith(",seed=7")
        names.append(chosen.name)
        found.append(values)
    wanted = paper(steps)[name]
    assert len(found) == len(set(names)) == len(wanted)
    for one in wanted:    # each is found once, and all other options have the config's values
        usual = {key: base[key] for key in PLAIN} | dict(steps=steps)
        usual |= dict(own_lr=True) if "lr" not in one else {}
        usual |= dict(beta1=0.98 if one["optimizer"] == "sgd" else 0.9)
        usual |= dict(beta2=0.95) if one["optimizer"] not in ("sgd", "signum") else {}
        same = [values for values in found if all(values.get(k) == v for k, v in (usual | one).items())]
        assert len(same) == 1, (one, same)


@pytest.mark.parametrize("config", ["study", "class"])    # in class, schedule_free_sgd has an lr of 316
def test_the_league_has_every_rule(stub, config):
    """Every rule has five learning rates, half a decade apart, with the usual one between them."""
    done = sweep(ROOT, "league", f"configs/{config}.toml", "--print", PYTHON=stub)
    assert done.returncode == 0, done.stderr
    lrs = {}
    for line in done.stdout.splitlines()[:-1]:
        chosen, _, tables = settings.read([*shlex.split(line)[2:], *ELSEWHERE])
        lrs.setdefault(chosen.optimizer, []).append(chosen.lr)
    assert set(lrs) == set(RULES)
    for name, values in lrs.items():
        assert np.diff(np.log10(values)) == pytest.approx([0.5] * 4, abs=1e-3), name
        assert values[0] < settings.learning_rate(tables, name) < values[-1], name


def test_a_new_rule_is_one_function_in_a_file_of_its_own(copy):
    """README's rule is in the list, and in the league about its usual learning rate."""
    rule = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    table = 'from zoo.rule import ZooRule\nRULES = {"stubborn": ZooRule(stubborn, lr_factor=0.1)}\n'
    (copy / "zoo/stubborn.py").write_text(f"{rule}\n{table}")
    init = (copy / "zoo/__init__.py").read_text()
    assert init.count("\nTABLES = (") == 1
    init = init.replace("\nTABLES = (", "\nfrom zoo import stubborn\nTABLES = (stubborn.RULES, ")
    (copy / "zoo/__init__.py").write_text(init)
    shutil.copytree(ROOT / "configs", copy / "configs")
    done = sweep(copy, "league", "configs/study.toml", "optimizer=stubborn", "--print", PYTHON=sys.executable)
    lrs = re.findall(r"--optimizer=stubborn --lr=(\S+)", done.stdout)
    assert done.returncode == 0 and lrs == ["1e-4", "3.16e-4", "1e-3", "3.16e-3", "1e-2"]
    done = subprocess.run([sys.executable, "train.py", "--optimizer=list"], cwd=copy, text=True,
                          capture_output=True)
    assert re.search(r"^stubborn +4.00", done.stdout, re.M), done.stderr


def test_the_command_line_narrows_replaces_and_adds(stub):
    def names(name, *arguments):
        done = sweep(ROOT, name, "configs/nano.toml", *arguments, "--print", PYTHON=stub)
        assert done.returncode == 0, done.stderr
        return [word[7:] for word in done.stdout.split() if word.startswith("--name=")]
    assert names("lr", "optimizer=adamw,sgd", "lr=3e-3,1e-2", "seed=0,1") == [
        f"nano,optimizer={o},lr={lr},seed={seed}" for o in ("adamw", "sgd") for lr in ("3e-3", "1e-2")
        for seed in (0, 1)]
    assert names("beta2", "optimizer=signum", "steps=9") == ["nano,optimizer=signum,steps=9"]
    assert names("momentum", "optimizer=lion", "beta1=default") == ["nano,optimizer=lion"]
    shared = set(names("momentum")) & set(names("warmup"))
    assert shared == {f"nano,optimizer={name}" for name in SIX}    # all sweeps share the run of the defaults
    assert names("grid", "lr_of=head:0.5,head:0.5+embed:2") == [
        f"nano,lr_of={value}" for value in ("head:0.5", "head:0.5+embed:2")]


def test_a_list_of_grids_is_read_from_a_file(stub):
    def listed(lines):
        command = ["bash", "sweep.sh", "list", "configs/nano.toml", "seed=1", "--print"]
        return subprocess.run(command, cwd=ROOT, env=os.environ | dict(PYTHON=stub), input=lines, text=True,
                              capture_output=True)
    done = listed("# why\n\noptimizer=sgd lr=1,2\noptimizer=adamw beta1=0.5")
    assert re.findall(r"--name=(\S+)", done.stdout) == [
        "nano,optimizer=sgd,lr=1,seed=1", "nano,optimizer=sgd,lr=2,seed=1",
        "nano,optimizer=adamw,beta1=0.5,seed=1"]
    refused = listed("lr=1 optimizer=sgd lr=2")
    assert refused.returncode == 2 and "lr: is given two times; give lr=a,b,c" in refused.stderr


def test_jobs_share_the_machine_and_a_signal_ends_them_in_order(tiny, copy, stub):
    """Never more than N runs are at work. When a sweep is started again after a signal or a kill, each run
    still ends exactly once."""
    def begin():
        return subprocess.Popen(["bash", "sweep.sh", "grid", str(tiny), "seed=0,1,2,3,4", "--jobs", "2"],
                                cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                start_new_session=True,
                                env=os.environ | dict(PYTHON=stub, CUDA_VISIBLE_DEVICES="4,6"))
    def log(word):
        lines = (copy / "log").read_text().splitlines() if (copy / "log").exists() else []
        return [line for line in lines if line.startswith(word)]
    (copy / "wait").touch()
    process = begin()
    assert wait_for(lambda: len(log("began")) == 2, 20)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=20)[0]
    assert process.returncode == 75
    assert len(re.findall(r"seed=\d: interrupted", out)) == 2 and "start it again" in out
    assert len(log("left")) == len(log("began")) == 2
    share = max(1, usable_cores() // 2)
    assert all(f" --threads={share} " in line for line in log("began"))
    assert sorted(line.split()[-1] for line in log("began")) == ["gpu=4", "gpu=6"]
    process = begin()
    assert wait_for(lambda: len(log("began")) == 4, 20)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (copy / "wait").unlink()
    process = begin()
    out = process.communicate(timeout=30)[0]
    assert process.returncode == 0 and out.count("starting (running)") == 2 and "5 runs" in out
    assert len(log("ended")) == 5
    running, most = 0, 0
    for line in log("")[6:]:    # after the last start of the sweep
        running += line.startswith("began") - line.startswith("ended")
        most = max(most, running)
    assert most <= 2
    again = begin()
    assert again.communicate(timeout=20)[0].count("done already") == 5 and len(log("began")) == 9


def test_a_sweep_keeps_its_runs_in_its_folder_and_its_rules_as_they_were(copy, stub, tiny):
    for words in (["runs=/x", "lr=1"], ["lr=1", "--", "--runs=/x"]):
        done = sweep(copy, "grid", str(tiny), *words, PYTHON=stub)
        assert done.returncode == 2 and "a sweep's runs are in runs/" in done.stderr
    (copy / "mine.py").write_text("def mine(g):\n    return g\n")
    (copy / "wait").touch()
    command = ["bash", "sweep.sh", "grid", str(tiny), "optimizer=mine.py", "lr=1,2"]
    process = subprocess.Popen(command, cwd=copy, env=os.environ | {"PYTHON": stub}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert wait_for(lambda: list(copy.glob("runs/*/status.json")), 20)
    (copy / "mine.py").write_text("def mine(g):\n    return -g\n")
    (copy / "wait").unlink()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and out.count("starting") == 1
    assert "mine.py has changed since this sweep began; start the sweep again" in err


def test_missing_data_are_prepared_once(copy, stub):
    """Two runs that start together need the same data. Ended runs need none."""
    (copy / "text.jsonl").write_text("".join(json.dumps(dict(text=text)) + "\n" for text in documents()))
    config = TINY.format(data="new").replace(
        "[train]", 'prepare = "--dataset=files --files=text.jsonl --vocab=300"\n[train]')
    (copy / "mine.toml").write_text(config)
    (copy / "plans").touch()
    command = ["grid", "mine.toml", "seed=0,1", "--jobs=2"]
    done = sweep(copy, *command, PYTHON=stub)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("new: 1") == 1 and (copy / "new/meta.json").exists()
    assert done.stdout.index("new: 1") < done.stdout.index("starting")
    shutil.rmtree(copy / "new")
    again = sweep(copy, *command, PYTHON=stub)
    assert again.stdout.count("done already") == 2 and not (copy / "new").exists()


def test_data_that_no_config_names_are_not_made(copy, stub):
    """Their name may be mistyped, and the recipe is for the data of the config."""
    config = TINY.format(data="new").replace("[train]", 'prepare = "--dataset=files"\n[train]')
    (copy / "mine.toml").write_text(config)
    (copy / "plans").touch()
    done = sweep(copy, "grid", "mine.toml", "data=nwe", PYTHON=stub)
    assert done.returncode == 2 and "--data=nwe: no data there; make it: " in done.stderr
    assert "no run has started" in done.stderr and not (copy / "nwe").exists()


def test_threads_as_a_key_of_a_sweep(tiny, copy, stub):
    done = sweep(copy, "grid", str(tiny), "threads=1", "seed=0,1", "--jobs=2", PYTHON=stub)
    assert done.returncode == 0, done.stderr
    began = [line for line in (copy / "log").read_text().splitlines() if line.startswith("began")]
    assert len(began) == 2 and all(line.count(" --threads=") == 1 for line in began)


def test_a_sweep_of_no_runs(tiny, copy):
    command = ["bash", "sweep.sh", "list", str(tiny)]
    done = subprocess.run(command, cwd=copy, input="\n", capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "sweep.sh: error: no run is asked for\n"


def test_a_sweep_from_another_folder_and_with_blanks(tiny, copy, stub):
    """The interpreter and the config are in folders with a blank. The runs are where the command is given."""
    folder = copy / "an other"
    (folder / "my configs").mkdir(parents=True)
    shutil.copy(tiny, folder / "my configs/x.toml")
    shutil.copytree(ROOT / "configs", copy / "configs")
    (folder / "my python").symlink_to(stub)

    def begin(*arguments, python=folder / "my python"):
        return subprocess.run(["bash", copy / "sweep.sh", "grid", *arguments], capture_output=True, text=True,
                              cwd=folder, env=os.environ | dict(PYTHON=str(python)))

    line = begin("my configs/x.toml", "seed=0", "--print").stdout.splitlines()[0]
    assert shlex.split(line)[:4] == [f"{folder}/my python", f"{copy}/train.py", "--config=my configs/x.toml",
                                     "--seed=0"]
    for config, name in (("my configs/x.toml", "x,seed=0"), ("configs/nano.toml", "nano,seed=0")):
        done = begin(config, "seed=0")
        assert done.returncode == 0, done.stderr
        assert json.loads((folder / f"runs/{name}/status.json").read_text()) == dict(status="done")
    (folder / "x y.toml").touch()
    for arguments, words in ((["x y.toml", "seed=0"], "'x y.toml': runs are named after it"),
                             (["z.toml", "seed=0"], f"z.toml: no such file in {folder}")):
        refused = begin(*arguments)
        assert refused.returncode == 2 and words in refused.stderr
    refused = begin("configs/nano.toml", "seed=0", python="no python")
    assert (refused.returncode, refused.stderr) == (2, "sweep.sh: error: PYTHON=no python: no such program\n")


def test_a_failed_job_says_why(tiny, copy, stub):
    shutil.copy(tiny, copy / "fails.toml")
    done = sweep(copy, "grid", "fails.toml", "seed=0,1", "--jobs=2", PYTHON=stub)
    assert done.returncode == 1 and done.stdout.count("failed: fails,seed=") == 2
    assert done.stderr.count("train.py: error: as told") == 2


def test_other_settings_do_not_pass_for_an_ended_run(tiny, copy):
    """Options after -- are not in the run's name, so the sweep compares them with those of the ended run."""
    folder = copy / "runs/tiny,seed=0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings.defaults(tiny, "adamw")))
    (folder / "status.json").write_text('{"status": "done"}')
    same = sweep(copy, "grid", str(tiny), "seed=0", "--", "--threads=1")
    assert same.returncode == 0 and "tiny,seed=0: done already" in same.stdout, same.stderr
    other = sweep(copy, "grid", str(tiny), "seed=0", "--", "--width=32")
    assert other.returncode == 2 and "--width=32: this run was started with 16" in other.stderr
    assert "belongs before --" in other.stderr
