"""The training script as a user meets it: through its command line and the files that it leaves."""
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import prepare_c4
import sample
import train
import zoo
from conftest import ROOT, documents
from model import Decoder
from tiny_runs import VARIANTS, ZOO, assert_refused, assert_same_run, final, rewound, run
from trainer import announce, data, measure, runs
from trainer.build import build_optimizer, decoder_shape
from trainer.errors import UserError
from trainer.cores import usable_cores
from trainer.machine import Machine, compiler_works
from trainer.restore import difference
from trainer.settings import (FOREIGN_NAMES, FOREIGN_OPTIMIZERS, Settings, by_role, defaults, is_tuned, read,
                              refuse_changes, refuse_ranks_that_differ, split_batch)


# ---------------------------------------------------------------------------------------------------------
# What a run leaves

@pytest.mark.gpu
def test_a_run(tiny, tmp_path, capsys, device):
    assert run(tiny, tmp_path, "a", "--optimizer=signum", "--sample_tokens=8", "--threads=0",
               f"--device={device}") == 0
    out = capsys.readouterr().out
    for field in Settings.__dataclass_fields__:    # every value in force is shown
        assert f" {field}=" in out
    assert " beta1=0.9" in out and "signum, lr 0.001" in out and f"everything is in {tmp_path / 'a'}" in out
    assert "--- 8 tokens from the model" in out and "no loss is promised for these settings" in out
    rows = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    keys = [(row["kind"], row["step"]) for row in rows]
    assert len(keys) == len(set(keys))
    assert sorted(keys) == sorted([("config", 0), *(("train", t) for t in range(1, 13)),
                                   ("val", 5), ("val", 10), ("val", 12)])
    assert rows[0]["config"]["lr"] == 1e-3 and rows[0]["config"]["beta1"] == 0.9
    assert rows[0]["torch"] == torch.__version__ and rows[0]["threads"] == usable_cores()
    assert all(0 < row["clipped_norm"] <= 1.0 for row in rows if row["kind"] == "train")
    lrs = [row["lr"] for row in rows if row["kind"] == "train"]
    assert lrs == [1e-3 * zoo.schedule(t, 12) for t in range(1, 13)]
    status = json.loads((tmp_path / "a/status.json").read_text())
    assert status["status"] == "done" and status["loss"] == rows[-1]["loss"]
    assert (tmp_path / "a/loss.png").read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in sorted((tmp_path / "a").glob("*.pt"))] == ["step-00000010.pt", "step-00000012.pt"]
    assert json.loads((tmp_path / "a/config.json").read_text()) == rows[0]["config"]


def test_the_loss_is_the_mean_over_the_whole_batch_and_split(tiny, tmp_path):
    """Step 1's training loss and the final validation, computed by hand;
    bits per byte = loss / ln 2 * tokens / bytes."""
    assert run(tiny, tmp_path, "a", "--precision=fp32", "--micro_batch=2") == 0
    rows = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    shape = runs.load_checkpoint(tmp_path / "a/step-00000012.pt")["shape"]
    train_set, val_set = (data.Tokens(tiny.parent / "data", split, 16) for split in ("train", "val"))

    def loss(model, ids):
        logits, targets = model(torch.tensor(ids[:, :-1])), torch.tensor(ids[:, 1:])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()
    ids = train_set[data.Order(len(train_set), 0)(0, 8)]
    assert rows[1]["loss"] == pytest.approx(loss(Decoder(**shape, seed=0), ids), rel=1e-5)
    model = Decoder(**shape)
    model.load_state_dict(runs.load_checkpoint(tmp_path / "a/step-00000012.pt")["model"])
    some = loss(model, val_set[[i * len(val_set) // 10 for i in range(10)]])    # spread over the split
    assert run(tiny, tmp_path, "a10", "--precision=fp32", "--micro_batch=2", "--final_windows=10") == 0
    assert final(tmp_path / "a10")[2][-1]["loss"] == pytest.approx(some, rel=1e-5)
    expected = loss(model, val_set[range(len(val_set))])
    assert rows[-1]["loss"] == pytest.approx(expected, rel=1e-5) and rows[-1]["windows"] == len(val_set)
    entry = data.read_meta(tiny.parent / "data")["splits"]["val"]
    bits = expected / 0.6931471805599453
    assert rows[-1]["bits_per_byte"] == pytest.approx(bits * entry["tokens"] / entry["bytes"])


def test_a_run_takes_the_steps_of_plain_autograd(tiny, tmp_path):
    """Three steps of SGD, with all that changes a gradient or a weight, equal those without the trainer."""
    assert run(tiny, tmp_path, "a", "--optimizer=sgd", "--beta1=0.9", "--lr=0.5", "--steps=3", "--seed=3",
               "--micro_batch=2", "--z_loss=0.1", "--clip=0.5", "--weight_decay=0.1",
               "--weight_decay_kind=coupled", "--precision=fp32") == 0
    checkpoint = runs.load_checkpoint(tmp_path / "a/step-00000003.pt")
    model, tokens = Decoder(**checkpoint["shape"], seed=3), data.Tokens(tiny.parent / "data", "train", 16)
    momenta = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for t in (1, 2, 3):
        ids = torch.tensor(tokens[data.Order(len(tokens), 3)(8 * (t - 1), 8)])
        logits = model(ids[:, :-1]).flatten(0, 1)
        z_loss = 0.1 * logits.logsumexp(-1).square().mean()
        model.zero_grad()
        (torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()) + z_loss).backward()
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.6    # so the clipping shows
        lr = 0.5 * zoo.schedule(t, 3)
        for name, p in model.named_parameters():
            momenta[name] = 0.9 * momenta[name] + p.grad
            p.data = (1 - 0.1 * lr) * p - lr * momenta[name]
    for name, p in model.named_parameters():
        assert torch.allclose(checkpoint["model"][name], p, rtol=1e-4, atol=1e-6), name


def test_bf16_computes_in_bf16(tiny, tmp_path):
    """The losses of the two precisions differ, by less than one in a hundred."""
    losses = []
    for precision in ("fp32", "bf16"):
        assert run(tiny, tmp_path, precision, f"--precision={precision}", "--steps=2") == 0
        losses.append([row["loss"] for row in final(tmp_path / precision)[2] if row["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], rel=0.01) and losses[0][0] != losses[1][0]


@pytest.mark.slow
def test_looking_changes_nothing(tiny, tmp_path):
    """Any interval of logging, validating and saving gives the same weights and state."""
    assert run(tiny, tmp_path, "a") == 0
    for name, more in dict(b=["--eval_every=1", "--log_every=5"], c=["--eval_every=0", "--save_every=2"],
                           d=["--log_blocks", "--save_every=0", "--keep=3"]).items():
        assert run(tiny, tmp_path, name, *more) == 0
        (weights, state, _), (weights2, state2, _) = final(tmp_path / "a"), final(tmp_path / name)
        assert all(torch.equal(weights[k], weights2[k]) for k in weights)
        assert all(torch.equal(state[i][k], state2[i][k]) for i in state for k in ("m", "v"))


@pytest.mark.slow
def test_log_blocks(tiny, tmp_path):
    assert run(tiny, tmp_path, "a", "--optimizer=adalayer_star", "--log_blocks", "--weight_decay=0.1") == 0
    row = json.loads((tmp_path / "a/metrics.jsonl").read_text().splitlines()[3])
    assert set(row["effective_lr"]) == set(row["largest_u"]) == set(zoo.ROLE_SETS)
    assert all(len(q) == 7 and q == sorted(q) for q in row["effective_lr"].values())
    model = Decoder(width=16, layers=2, heads=2, context=16, vocab_size=300)
    assert set(row["blocks"]) == {name for name, _ in model.named_parameters()}
    assert run(tiny, tmp_path, "c", "--modify=cautious_decay", "--log_blocks") == 0
    row = json.loads((tmp_path / "c/metrics.jsonl").read_text().splitlines()[1])
    assert row["largest_u"] == {} and row["blocks"]    # no one decay factor to take it from
    assert run(tiny, tmp_path, "b", "--optimizer=signum", "--log_blocks") == 0
    row = json.loads((tmp_path / "b/metrics.jsonl").read_text().splitlines()[3])
    assert row["effective_lr"] == {} and all(abs(u - 1) < 0.01 for u in row["largest_u"].values())
    head = row["blocks"]["head.weight"]
    assert head["update"] == pytest.approx(row["lr"], rel=0.01)    # signum moves by lr


def test_what_a_look_measures():
    """On a matrix of 2 x 2 after one step, v is g^2, so numbers can be computed by hand."""
    w, unseen = torch.ones(2, 2), torch.ones(2, 2)
    w.grad = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    unseen.grad = torch.tensor([[0.0, 0.0], [1e-12, 1e-12]])

    def look(rule):
        optimizer = zoo.make(rule, [("w", w, "head"), ("unseen", unseen, "embed")], lr=1.0)
        optimizer.step()
        return measure.look_into(optimizer, before)
    before = {w: w.clone(), unseen: unseen.clone()}
    blocks = look("adamw")["blocks"]
    # v: 1, 4; 9, 0. In a row: mean 2.5, variance 2.25; 4.5, 4.5^2. In a column: 5, 16; 2, 4. All: 3.5, 3.5^2
    assert blocks["w"]["snr"] == pytest.approx(dict(row=(2.5**2 / 2.25 + 1) / 2, column=(25 / 16 + 1) / 2,
                                                    tensor=1.0))
    assert blocks["w"]["grad_over_root_v"] == pytest.approx(0.75**0.5) and blocks["w"]["role"] == "head"
    # the first row of `unseen` does not count, and a variance of 1e-50 is no zero
    assert blocks["unseen"]["snr"] == pytest.approx(dict(row=math.inf, column=1, tensor=1))
    assert len(set(look("adamw")["effective_lr"]["embed"])) == 1    # only of what has had a gradient
    # one v for a tensor, or for each row: 3.5; 2.5 and 4.5. g / sqrt(v) has the mean square 1
    for rule in ("adalayer", "adalayer_star", "adasgd"):
        blocks = look(rule)["blocks"]
        assert "snr" not in blocks["w"]
        assert blocks["w"]["grad_over_root_v"] == pytest.approx(2**0.5 if rule == "adasgd" else 1), rule
    blocks = look("signum")["blocks"]
    assert not {"snr", "grad_over_root_v"} & set(blocks["w"])
    # a gradient that is ten times as large as before: v = 0.1 100 + 0.9 1, so g^2 / v = 100 / 10.9
    v = torch.tensor([1.0, 4.0]) * 10.9
    assert measure.gradient_over_root(torch.tensor([10.0, 20.0]), v, 0) == pytest.approx((100 / 10.9)**0.5)


def test_a_look_leaves_the_decay_out_of_u_and_takes_quantiles_over_all_weights():
    """After one step of Adam the effective lr is lr / |g|, here 0.5 k for k = 1 to 101."""
    w = torch.ones(101)
    w.grad = 1 / torch.arange(1, 102)
    for rule in ("signum", "adamw"):
        optimizer = zoo.make(rule, [("w", w, "head")], lr=0.5, weight_decay=0.1)
        before = {w: w.clone()}
        optimizer.step()
        found = measure.look_into(optimizer, before)
        assert found["largest_u"]["head"] == pytest.approx(1, rel=1e-5), rule
    assert found["effective_lr"]["head"] == pytest.approx([0.5, 3, 13, 25.5, 38, 48, 50.5], rel=1e-4)


def test_the_checksum_is_of_weights_and_state():
    model = Decoder(width=16, layers=1, heads=2, context=8, vocab_size=50)
    optimizer = zoo.make("adamw", model.roles(), lr=0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    first = measure.checksum(model, optimizer)
    optimizer.state[model.head.weight]["v"][3, 4] += 1e-3
    second = measure.checksum(model, optimizer)
    model.head.weight.data[3, 4] += 1e-3
    assert len({first, second, measure.checksum(model, optimizer)}) == 3


def test_the_speed_is_of_the_steps_alone(tiny, tmp_path, monkeypatch):
    """A step of 8 sequences of 16 tokens takes 2 seconds here; validation and saving take 100."""
    now = [0.0]

    def taking(seconds, function):
        def timed(*arguments):
            now[0] += seconds
            return function(*arguments)
        return timed
    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(train.Training, "clip", taking(2, train.Training.clip))
    monkeypatch.setattr(train, "validation_losses", taking(100, train.validation_losses))
    monkeypatch.setattr(runs.Run, "save", taking(100, runs.Run.save))
    assert run(tiny, tmp_path, "a", "--log_every=3") == 0
    rows = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    assert [row["tokens_per_second"] for row in rows if row["kind"] == "train"] == [64] * 5


def test_the_signal_to_noise_of_a_v_of_rank_one():
    """Each row of r c has the ratio of c, and each column that of r. With a = variance / mean^2 of r and b of
    c, the tensor has 1 / ((1 + a) (1 + b) - 1). Three blocks are averaged."""
    r, c = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0, 3.0])
    a, b = 1 / 4, (2 / 3) / 4
    expected = dict(row=1 / b, column=1 / a, tensor=1 / ((1 + a) * (1 + b) - 1))
    assert measure.signal_to_noise(r[:, None] * c) == pytest.approx(expected)
    blocks = torch.cat([r, 1e-25 * r, 100 * r])[:, None] * c
    assert measure.signal_to_noise(blocks, blocks=3) == pytest.approx(expected)
    assert measure.signal_to_noise(blocks[:, :, None], blocks=3) == pytest.approx(expected)    # a convolution
    assert measure.signal_to_noise(c) == pytest.approx(dict(tensor=1 / b))
    assert math.isnan(measure.signal_to_noise(torch.zeros(2, 2))["tensor"])


def test_frozen_ratios_measure_first(tiny, tmp_path):
    """freeze_steps extra steps in which nothing moves; then the whole schedule."""
    assert run(tiny, tmp_path, "a", "--optimizer=adalayer_star", "--freeze_steps=5", "--updating=none",
               "--keep=9", "--weight_decay=0.1") == 0
    start = Decoder(**runs.load_checkpoint(tmp_path / "a/step-00000005.pt")["shape"]).state_dict()
    for step, still in ((5, True), (10, False), (17, False)):
        weights = runs.load_checkpoint(tmp_path / f"a/step-{step:08d}.pt")["model"]
        assert all(torch.equal(weights[k], start[k]) == still for k in weights), step
    rows = final(tmp_path / "a")[2]
    peak = json.loads((tmp_path / "a/config.json").read_text())["lr"]
    assert [row["lr"] for row in rows if row["kind"] == "train" and row["step"] > 5] == \
        [peak * zoo.schedule(t, 12) for t in range(1, 13)]


@pytest.mark.slow
def test_the_promised_loss(tiny, tmp_path, capsys):
    promise = tmp_path / "promise.toml"
    promise.write_text(tiny.read_text() + "[expect]\nsignum = {loss = 5.0, tolerance = 2.0}\n"
                                          "adamw = {loss = 1.0, tolerance = 0.1}\n")
    for name, more, words in (
            ("a", ["--optimizer=signum", "--seed=3", "--log_every=4"],
             "5.0 +- 2.0 nats per token: as promised"),
            ("b", ["--optimizer=adamw"], "1.0 +- 0.1 nats per token: NOT AS PROMISED"),
            ("c", ["--optimizer=signum", "--lr=2e-3"], "no loss is promised for these settings (lr)"),
            ("d", ["--optimizer=signum", "--beta1=0.8", "--batch=4"],
             "no loss is promised for these settings (batch, beta1)"),
            ("e", ["--optimizer=lion"], "no loss is promised for these settings\n"),
            ("f", ["--optimizer=signum", "--final_windows=2"],
             "no loss is promised for these settings (final_windows)")):
        assert run(promise, tmp_path, name, *more) == 0
        assert words in capsys.readouterr().out


def test_default_data_is_prepared_and_only_that(tiny, tmp_path, monkeypatch, capsys):
    """Missing data of the default folder is made; any other missing data is one line with the command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare_c4, "sotu", documents)
    config = tmp_path / "own.toml"
    config.write_text(tiny.read_text().replace(f'data = "{tiny.parent / "data"}"',
                                               f'data = "{Settings.data}"\nprepare = "--vocab=300"'))
    assert run(config, "runs", "a") == 0
    out, program = capsys.readouterr().out, os.path.relpath(prepare_c4.__file__)
    assert f"{Settings.data} is not there yet, so first: python {program} --vocab=300" in out
    assert run(config, "runs", "b") == 0
    assert "prepare_c4.py" not in capsys.readouterr().out
    assert run(config, "runs", "c", "--data=data/other") == 2
    assert capsys.readouterr().err == ("train.py: error: --data=data/other: no data there; make it: "
                                       f"python {program} --vocab=300 --out=data/other\n")
    assert not Path("runs/c").exists()
    config.write_text(config.read_text().replace(Settings.data, "data/mine"))
    assert read([str(config)])[0].prepare == "--vocab=300"
    assert read([str(config), f"--data={Settings.data}"])[0].prepare == Settings.prepare    # its own recipe


# ---------------------------------------------------------------------------------------------------------
# Resume

QUICK = ("adamw", "signum", "frozen", "by_role", "sophia")    # all other variants are slow tests


@pytest.fixture
def no_picture(monkeypatch):
    """Leaves out the picture loss.png, which takes most of the time of a tiny run."""
    monkeypatch.setattr(train, "draw_run", lambda *arguments: None)


def quick_or_slow(names, marks_of_quick=()):
    return [pytest.param(name, marks=marks_of_quick if name in QUICK else pytest.mark.slow)
            for name in names]


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", quick_or_slow(VARIANTS | ZOO, pytest.mark.gpu))
def test_resume_is_exact(tiny, tmp_path, no_picture, variant, precision, device):
    more = [*(VARIANTS | ZOO)[variant], f"--precision={precision}", "--keep=9", f"--device={device}"]
    assert run(tiny, tmp_path, "a", *more) == 0
    rewound(tmp_path / "a", tmp_path / "b", 5)
    assert run(tiny, tmp_path, "b", *more, "--resume") == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.gpu
@pytest.mark.slow
def test_resume_is_exact_in_a_new_process_and_compiled(tiny, tmp_path, device):
    """Through the shell, twice, compiled; and the resumed run needs no option but its name."""
    def shell(*more):
        return subprocess.run([sys.executable, "train.py", f"--runs={tmp_path}", *more], cwd=ROOT, text=True,
                              capture_output=True)
    first = shell(f"--config={tiny}", "--name=a", "--optimizer=adamw", "--keep=9", "--threads=1",
                  f"--device={device}")
    assert first.returncode == 0
    rewound(tmp_path / "a", tmp_path / "b", 10)
    assert shell("--name=b", "--resume").returncode == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_run_is_resumed_with_a_config_that_has_moved(tiny, tmp_path):
    moved, gone = tmp_path / "moved.toml", tmp_path / "gone.toml"
    gone.write_text(tiny.read_text())
    assert run(gone, tmp_path, "a", "--keep=9") == 0
    rewound(tmp_path / "a", tmp_path / "b", 10)
    gone.rename(moved)
    assert run(moved, tmp_path, "b", "--keep=9", "--resume") == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_config_that_is_named_again_does_not_override_the_options_of_the_run(tiny, tmp_path):
    """Another config does, as far as a run may change."""
    own = ["--steps=11", "--schedule=constant", "--warmup=0", "--beta1=0.8", "--eval_every=4"]
    assert run(tiny, tmp_path, "a", *own, "--keep=9") == 0
    rewound(tmp_path / "a", tmp_path / "b", 10)
    assert run(tiny, tmp_path, "b", "--resume") == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")
    other = tmp_path / "other.toml"
    other.write_text(tiny.read_text())
    rewound(tmp_path / "a", tmp_path / "c", 10)
    assert run(other, tmp_path, "c", "--resume", *own[1:4]) == 0
    assert final(tmp_path / "c")[2][-1]["step"] == 12


def test_some_options_of_a_run_may_be_repeated(tiny, tmp_path):
    """Each makes sense beside the others of the run, and not beside the config alone."""
    own = ["--optimizer=muon", "--rest_eps=1e-9", "--width=24", "--heads=3"]
    assert run(tiny, tmp_path, "a", *own, "--keep=9") == 0
    for name, option in (("b", "--rest_eps=1e-9"), ("c", "--heads=3")):
        rewound(tmp_path / "a", tmp_path / name, 10)
        assert run(tiny, tmp_path, name, "--resume", option) == 0
        assert_same_run(tmp_path / "a", tmp_path / name)


@pytest.mark.slow
def test_resume_at_every_step_and_after_the_end(tiny, tmp_path, no_picture, capsys):
    assert run(tiny, tmp_path, "a", "--save_every=1", "--keep=99") == 0
    for step in range(1, 13):
        rewound(tmp_path / "a", tmp_path / f"at{step}", step)
        assert run(tiny, tmp_path, f"at{step}", "--resume", "--save_every=1", "--keep=99") == 0
        assert_same_run(tmp_path / "a", tmp_path / f"at{step}")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    capsys.readouterr()
    assert run(tiny, tmp_path, "a", "--resume", "--save_every=1", "--keep=99") == 0
    assert "already complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("change, words", [
    ("--lr=0.5", "--lr=0.5: this run was started with 0.01"), ("--seed=1", "--seed=1"),
    ("--layers=3", "--layers=3"), ("--batch=4", "--batch=4"), ("--optimizer=lion", "lion"),
    ("--beta2=0.5", "--beta2=0.5"), ("--clip=2", "--clip=2.0"), ("--z_loss=0", "--z_loss=0.0"),
    ("--data={other}", "holds other tokens")])
def test_resume_refuses_what_changed(tiny, tmp_path, no_picture, capsys, monkeypatch, change, words):
    assert run(tiny, tmp_path, "a") == 0
    rewound(tmp_path / "a", tmp_path / "b", 10)
    monkeypatch.setattr(prepare_c4, "sotu", lambda: documents(seed=1))
    assert prepare_c4.main(["--vocab=300", f"--out={tmp_path / 'other'}"]) == 0
    capsys.readouterr()
    assert run(tiny, tmp_path, "b", "--resume", change.format(other=tmp_path / "other")) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert run(tiny, tmp_path, "b", "--resume", "--log_every=3", "--eval_every=0") == 0    # looking is free


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(tiny, tmp_path, capsys):
    assert run(tiny, tmp_path, "a", "--keep=9") == 0
    folder = rewound(tmp_path / "a", tmp_path / "b", 10)
    path = folder / "step-00000010.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert run(tiny, tmp_path, "b", "--resume", "--keep=9") == 0
    out = capsys.readouterr().out
    assert "skipped" in out and "step-00000010.pt: is damaged" in out and "resumed from" in out
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert run(tiny, tmp_path, "c", f"--init_from={tmp_path / 'nothing.pt'}") == 2
    path.write_bytes(content)
    assert run(tiny, tmp_path, "c", f"--init_from={path}") == 2
    missing, damaged = capsys.readouterr().err.splitlines()
    assert "nothing.pt: there is no such checkpoint" in missing and "step-00000010.pt: is damaged" in damaged


def test_a_damaged_checkpoint_does_not_count_among_those_to_keep(tmp_path):
    for step in (1, 2, 3):
        runs.save_checkpoint(runs.checkpoint_path(tmp_path, step), dict(step=step))
    runs.checkpoint_path(tmp_path, 3).write_bytes(b"damaged")
    own = runs.Run(tmp_path.parent, tmp_path.name, resume=True)
    assert own.newest() == (2, dict(step=2))
    for step, kept in ((4, {2, 3, 4}), (3, {3, 4})):    # step 3 is then saved once more
        own.save(step, dict(step=step), keep=2)
        assert {runs.step_of(path) for path in runs.checkpoints_of(own.folder)} == kept
    own.release()


@pytest.mark.parametrize("validates, left", [(True, [1, 2]), (False, [1, 2, 2])])
def test_a_validation_is_only_deleted_if_it_is_made_again(tmp_path, validates, left):
    own = runs.Run(tmp_path, "a")
    for kind, step in (("train", 1), ("train", 2), ("val", 2), ("train", 3)):
        own.log(kind, step)
    own.rewind(2, {}, validates)
    assert [row["step"] for row in own.read_metrics()] == left
    own.log("val", 2, final=True)    # the end of a run that then gets more steps
    own.rewind(2, {}, validates)
    assert [row["step"] for row in own.read_metrics()] == left
    own.release()


@pytest.mark.parametrize("name, value", [
    ("init_from_state", False), ("continue_data", True), ("average", "ema"), ("cooldown_beta2", 0.99)])
def test_a_run_that_is_older_than_an_option_had_its_usual_value(name, value):
    now = asdict(Settings())
    stored = {key: now[key] for key in now if key != name}
    refuse_changes(stored, now, Path("runs/a"), 5)
    with pytest.raises(UserError, match=f"--{name}={value}: this run was started with"):
        refuse_changes(stored, now | {name: value}, Path("runs/a"), 5)


def test_plain_torch_load_reads_a_checkpoint(tiny, tmp_path):
    assert run(tiny, tmp_path, "a") == 0
    path = tmp_path / "a/step-00000012.pt"
    for mmap in (False, True):
        assert torch.load(path, weights_only=True, mmap=mmap)["step"] == 12


def test_how_a_run_was_started_is_no_part_of_it(tiny, tmp_path):
    """A run that --overwrite has begun can be resumed, also if an older version kept that in config.json and
    did not count sequences. A folder that was copied is not taken for the one in which the run began."""
    assert run(tiny, tmp_path, "a", "--overwrite", "--keep=9") == 0
    config = json.loads((tmp_path / "a/config.json").read_text())
    started = dict(name="a", runs=str(tmp_path), resume=False, overwrite=True, plan=False)
    assert not started.keys() & config.keys()
    old = rewound(tmp_path / "a", tmp_path / "elsewhere/runs/b", 10)
    path = old / "step-00000010.pt"
    new_options = ("init_from_state", "continue_data", "average", "cooldown_beta2")
    content = runs.load_checkpoint(path)
    for name in new_options:
        del config[name], content["config"][name]
    del content["sequences"]
    runs.save_checkpoint(path, content)
    runs.write_json(old / "config.json", config | started | dict(resume=True))
    (tmp_path / "elsewhere/configs").mkdir()
    (tmp_path / "elsewhere/configs/nano.toml").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "elsewhere")
        assert train.main(["--name=b", "--resume"]) == 0
    assert_same_run(tmp_path / "a", old)
    assert not (tmp_path / "b").exists()


# ---------------------------------------------------------------------------------------------------------
# A finished run that goes on

CONSTANT = ["--schedule=constant", "--warmup=0"]


def test_more_steps_are_as_if_they_had_been_asked_for_at_the_start(tiny, tmp_path, capsys):
    """A finished run with a constant lr; WSD before its cooldown, which then comes later; a warmup that keeps
    its steps. The program says how to keep them."""
    wsd = ["--schedule=linear", "--cooldown=0.5", "--warmup=0.25", "--keep=9"]
    for name, steps, more in (("a", 6, CONSTANT), ("all-a", 12, CONSTANT), ("b", 12, wsd),
                              ("all-b", 20, [*wsd, "--warmup=0.15", "--cooldown=0.2"])):
        assert run(tiny, tmp_path, name, *more, f"--steps={steps}") == 0
    assert run(tiny, tmp_path, "a", "--resume", "--steps=12") == 0
    assert_same_run(tmp_path / "a", tmp_path / "all-a")
    rewound(tmp_path / "b", tmp_path / "c", 5)
    capsys.readouterr()
    assert run(tiny, tmp_path, "c", "--resume", "--steps=20", "--cooldown=0.2") == 2
    assert "give --warmup=0.15, too, so that the warmup keeps its 3 steps" in capsys.readouterr().err
    assert run(tiny, tmp_path, "d", "--warmup=0.5", "--keep=9") == 0
    rewound(tmp_path / "d", tmp_path / "e", 5)
    assert run(tiny, tmp_path, "e", "--resume", "--steps=5") == 2    # which cannot keep 6 steps of warmup
    assert "step 1 had another lr; for a new run that goes on from here" in capsys.readouterr().err
    assert run(tiny, tmp_path, "c", "--resume", "--steps=20", "--cooldown=0.2", "--warmup=0.15") == 0
    assert_same_run(tmp_path / "c", tmp_path / "all-b")
    for name, steps in (("a", 12), ("c", 20)):
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert rows[0]["config"] == config and config["steps"] == steps
    assert run(tiny, tmp_path, "a", "--resume") == 0    # from now on the run has 12 steps
    assert "already complete" in capsys.readouterr().out


@pytest.mark.parametrize("more, change, words", [
    ([], "--steps=24", "--steps=24: this run was started with 12, and step 1 had another lr; for a new run"),
    ([], "--floor=0.5", "--floor=0.5: this run was started with 0.1, and step 2 had another lr"),
    (CONSTANT, "--steps=11", "--steps=11: this run was started with 12, and has already done 12 steps"),
    ([*CONSTANT, "--optimizer=ademamix"], "--steps=24", "and ademamix depends on it in every step")])
def test_another_past_is_refused(tiny, tmp_path, capsys, more, change, words):
    assert run(tiny, tmp_path, "a", *more, "--eval_every=0", "--final_windows=1") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    capsys.readouterr()
    assert run(tiny, tmp_path, "a", "--resume", change) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert before == {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}


def test_a_new_run_goes_on_in_the_order_of_the_data(tiny, tmp_path, capsys):
    """Three runs of 4 steps, each from the folder of the one before, are one run of 12 steps. The second of
    them was stopped and resumed. Without --continue_data a run begins with the first window again."""
    more = [*CONSTANT, "--eval_every=0", "--save_every=2", "--keep=9"]
    assert run(tiny, tmp_path, "all", *more) == 0
    assert run(tiny, tmp_path, "a", *more, "--steps=4") == 0
    start = [f"--init_from={tmp_path / 'a'}", "--continue_data"]
    assert run(tiny, tmp_path, "b", *more, *start, "--steps=4") == 0
    rewound(tmp_path / "b", tmp_path / "c", 2)
    assert train.main([f"--runs={tmp_path}", "--name=c", "--resume"]) == 0
    assert_same_run(tmp_path / "b", tmp_path / "c")
    more += [f"--init_from={tmp_path / 'c'}"]
    assert run(tiny, tmp_path, "d", *more, "--steps=4", "--continue_data") == 0
    (weights, state, rows), (weights2, state2, rows2) = final(tmp_path / "all"), final(tmp_path / "d")
    assert all(torch.equal(weights[k], weights2[k]) for k in weights)
    assert all(torch.equal(state[i][k], state2[i][k]) for i in state for k in ("m", "v"))
    losses = [[row["loss"] for row in part if row["kind"] == "train"] for part in (rows, rows2)]
    assert losses[0][8:] == losses[1]
    assert run(tiny, tmp_path, "e", *more, "--steps=1") == 0
    assert final(tmp_path / "e")[2][1]["loss"] != losses[1][0]
    capsys.readouterr()
    for change, words in (("--seed=1", "in the order of --seed=0; give the same"),
                          ("--context=8", "in the order of --context=16; give the same")):
        assert run(tiny, tmp_path, "f", *more, "--continue_data", change) == 2
        assert words in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------
# A new run that starts from another one

QUICKLY = ["--steps=2", "--eval_every=0", "--final_windows=1", "--save_every=1"]
LEFT = "its weights; its state is left behind: "


@pytest.mark.parametrize("old, new, words", [
    ([], ["--beta1=0.5", "--lr=0.5"], ""), (["--optimizer=soap"], ["--optimizer=soap"], ""),
    ([], ["--optimizer=signum"], "embed.weight has another rule, adamw then and signum now"),
    (["--modify=cautious"], [], "embed.weight has another rule, adamw+cautious then and adamw now"),
    (VARIANTS["hybrid"], ["--optimizer=adalayer_star"],
     "embed.weight has another rule, sgd_ema then and adalayer now"),
    (["--optimizer=adalayer"], ["--optimizer=adalayer", "--rows=head"],
     "head.weight has another number of blocks, 1 then and 384 now"),
    ([], ["--lr_of=head:2"], "embed.weight shares its group with other parameters than then"),
    ([], ["--untrained=embed"], "embed.weight is trained in only one of the two runs"),
    (["--untrained=embed"], [], "embed.weight is trained in only one of the two runs")])
def test_when_two_optimizers_are_the_same(tiny, old, new, words):
    groups = []
    for options in (old, new):
        config, hyper, _ = read([str(tiny), "--compile=false", *options])
        optimizer = build_optimizer(Decoder(**decoder_shape(config)), config, hyper)
        groups.append(optimizer.state_dict()["param_groups"])
    assert difference(*groups) == words


@pytest.mark.parametrize("old, new, words", [
    ([], ["--beta1=0.5", "--lr=0.5"], "its weights and its optimizer's state"),
    ([], ["--init_from_state=false"], f"{LEFT}--init_from_state=false"),
    (["--optimizer=adalayer"], ["--optimizer=adalayer", "--rows=head"], f"{LEFT}head.weight has another"),
    (["--optimizer=apollo", "--rank=2"], ["--optimizer=apollo", "--rank=4"],
     f"{LEFT}blocks.0.qkv.weight: the state holds"),
    (VARIANTS["frozen"], VARIANTS["frozen"], f"{LEFT}--freeze_steps measures anew")])
def test_init_from(tiny, tmp_path, capsys, old, new, words):
    """A new run always takes the weights. It takes the state only if the optimizer is the same, and says so.
    Its own checkpoints can be resumed."""
    assert run(tiny, tmp_path, "a", *old, *QUICKLY) == 0
    before = {}

    def begin(training):
        before.update(weights={name: p.detach().clone() for name, p in training.parameters.items()},
                      states=[state["t"] for state in training.optimizer.state.values()])
        begin_as_usual(training)
    begin_as_usual = train.Training.begin
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Training, "begin", begin)
        assert run(tiny, tmp_path, "b", *new, *QUICKLY, f"--init_from={tmp_path / 'a'}") == 0
    out = capsys.readouterr().out
    assert words in out and "note: that model" not in out
    weights = final(tmp_path / "a")[0]
    assert all(torch.equal(weights[name], p) for name, p in before["weights"].items())
    assert before["states"] == ([2] * len(weights) if "optimizer's state" in words else [])
    rewound(tmp_path / "b", tmp_path / "c", 1)
    assert train.main([f"--runs={tmp_path}", "--name=c", "--resume"]) == 0
    assert_same_run(tmp_path / "b", tmp_path / "c")


def test_init_from_refuses_another_shape_and_notes_other_data(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare_c4, "sotu", lambda: documents(seed=1))
    assert prepare_c4.main(["--vocab=300", f"--out={tmp_path / 'other'}"]) == 0
    assert run(tiny, tmp_path, "a", *QUICKLY) == 0
    path = tmp_path / "a/step-00000002.pt"
    (tmp_path / "empty").mkdir()
    start = [*QUICKLY, f"--init_from={path}"]
    for more, words in (
            ([*start, "--heads=1"], f"--heads=1: the model in {path} has 2"),
            ([*start, "--width=32"], f"--width=32: the model in {path} has 16"),
            ([*start, "--qk_norm=false"], f"--qk_norm=False: the model in {path} has True"),
            ([*start, "--padded_vocab=320"], f"--padded_vocab: the model in {path} has 384 rows, not 320"),
            ([*start, "--continue_data", f"--data={tmp_path / 'other'}"], "does not hold the data of"),
            ([f"--init_from={tmp_path / 'empty'}"], "empty: this folder holds no checkpoint"),
            ([f"--init_from={tmp_path}/none"], f"--init_from={tmp_path}/none: there is no such checkpoint"),
            (["--continue_data"], "--continue_data: goes with --init_from"),
            (["--init_from_state=false"], "--init_from_state: goes with --init_from")):
        capsys.readouterr()
        assert run(tiny, tmp_path, "b", *more) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1 and not (tmp_path / "b").exists()
    assert run(tiny, tmp_path, "b", *start, f"--data={tmp_path / 'other'}", "--context=8") == 0
    out = capsys.readouterr().out
    assert f"note: that model was trained on other data than {tmp_path / 'other'}" in out
    assert "note: that model was trained with --context=16, not 8" in out


# ---------------------------------------------------------------------------------------------------------
# Broken steps

@pytest.mark.parametrize("variant", quick_or_slow(VARIANTS))
@pytest.mark.parametrize("where", ["loss", pytest.param("gradient", marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_stops_before_the_update(tiny, tmp_path, capsys, monkeypatch,
                                                           no_picture, variant, where):
    """Sign rules would go on for ever: sign(nan) is 0."""
    assert run(tiny, tmp_path, "a", *VARIANTS[variant], "--save_every=6", "--keep=9") == 0
    forward, calls = Decoder.losses, []

    def broken(self, x, targets, z_loss):
        calls.append(1)
        objective, loss, z = forward(self, x, targets, z_loss)
        if len(calls) != 7:
            return objective, loss, z
        if where == "loss":
            return objective * float("nan"), loss * float("nan"), z
        x.register_hook(lambda grad: grad * float("inf"))
        return objective, loss, z
    monkeypatch.setattr(Decoder, "losses", broken)
    capsys.readouterr()
    more = ["--save_every=6", "--eval_every=0", "--keep=9"]
    assert run(tiny, tmp_path, "b", *VARIANTS[variant], *more) == 3
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("train.py: error: step 7: the " + ("loss" if where == "loss" else "gradient norm"))
    assert "embed.weight" in err
    status = json.loads((tmp_path / "b/status.json").read_text())
    assert status["status"] == "diverged" and status["step"] == 7
    a, b = (runs.load_checkpoint(tmp_path / name / "step-00000006.pt") for name in "ab")
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    assert [p.name for p in (tmp_path / "b").glob("*.pt")] == ["step-00000006.pt"]
    assert run(tiny, tmp_path, "b", *VARIANTS[variant], *more, "--resume") == 3    # a result: never retried


def read_strictly(text):
    """Reads JSON as other programs do, which know neither NaN nor infinity."""
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")
    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("more, words, checkpoints", [
    (["--steps=1", "--lr=1e30"], "step 1: the validation loss is not finite", [1]),
    (["--steps=1", "--lr=1e300"], "step 1: the weights are not finite (first tensor: embed.weight)", []),
    (["--steps=1", "--optimizer=adamw", "--eps=0"],
     "step 1: the weights are not finite; with an eps of 0, a gradient of 0 gives 0 / 0 "
     "(first tensor: embed.weight)", []),
    (["--steps=9", "--lr=1e30", "--eval_every=1"], "step 1: the validation loss is not finite", []),
    (["--steps=9", "--lr=1e300", "--eval_every=0"],
     "step 1: the weights are not finite (first tensor: embed.weight)", [])])
def test_what_is_not_finite_after_a_step_is_divergence(tiny, tmp_path, capsys, more, words, checkpoints):
    """Also after the last step. No checkpoint holds such weights, and no file holds NaN as JSON."""
    assert run(tiny, tmp_path, "a", "--log_blocks", *more) == 3
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err == f"train.py: error: {words}"
    status = read_strictly((tmp_path / "a/status.json").read_text())
    assert status["status"] == "diverged" and status["step"] == 1 and status["kind"] in words
    rows = [read_strictly(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["config", "train"]
    assert [int(path.stem[5:]) for path in (tmp_path / "a").glob("*.pt")] == checkpoints
    assert train.main([f"--runs={tmp_path}", "--name=a", "--resume"]) == 3


def test_interrupted_runs_say_their_name(tiny, tmp_path, capsys, monkeypatch):
    """Also a run that has only a number."""
    log = runs.Run.log

    def logged(self, kind, step, **numbers):
        log(self, kind, step, **numbers)
        if (kind, step) == ("train", 2):
            os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(runs.Run, "log", logged)
    monkeypatch.chdir(tmp_path)
    script = os.path.relpath(train.__file__)    # train.py alone would not be found from here
    for folder, option in (("runs", ""), ("mine", " --runs=mine"), ("my runs", " --runs='my runs'")):
        capsys.readouterr()
        assert run(tiny, folder, "") == 75
        assert capsys.readouterr().err.endswith(
            f"interrupted at step 3; go on with python {script}{option} --name=0001 --resume\n")


@pytest.mark.parametrize("ranks, ranks_here, command", [
    ("", "", "python {} --name=a --resume"), (1, 1, "python {} --name=a --resume"),
    (8, 8, "torchrun --nproc_per_node=8 {} --name=a --resume"),
    (8, 4, "the same torchrun command on each machine, with --name=a --resume")])
def test_the_resume_command_keeps_the_ranks(monkeypatch, ranks, ranks_here, command):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks_here))
    assert announce.resume_command(Settings(), "a") == command.format(os.path.relpath(train.__file__))


def test_a_config_may_be_edited_while_its_run_trains(tiny, tmp_path, monkeypatch, capsys):
    path, log = tmp_path / "own.toml", runs.Run.log
    path.write_text(tiny.read_text())

    def logged(self, kind, step, **numbers):
        log(self, kind, step, **numbers)
        path.write_text("[train]\nsteps = ")
    monkeypatch.setattr(runs.Run, "log", logged)
    assert run(path, tmp_path, "a") == 0
    assert "no loss is promised for these settings" in capsys.readouterr().out


def test_an_average_that_is_not_finite_is_no_result(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "validation_losses", lambda *_: dict(loss=1.0, average_loss=math.nan))
    assert run(tiny, tmp_path, "a", "--average=ema", "--eval_every=0") == 3
    assert json.loads((tmp_path / "a/status.json").read_text())["status"] == "diverged"


def test_data_without_a_tokenizer_give_no_sample(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "read_meta", lambda folder: {})
    sample.show(None, "data/mine", 8)
    assert capsys.readouterr().out == "note: no sample: data/mine/meta.json: does not name a tokenizer\n"


# ---------------------------------------------------------------------------------------------------------
# Ranks

@pytest.mark.parametrize("other, words", [
    (dict(seed=1), "--seed: is 1 on rank 1 and 0 on rank 0; start all ranks with the same options"),
    (dict(optimizer="lion"), "--optimizer: is lion on rank 1 and adamw on rank 0"),
    (dict(eps=1e-8), "--eps: is 1e-08 on rank 1 and None on rank 0"),
    (dict(resume=True), "--resume: is True on rank 1 and False on rank 0"),
    (dict(compile=False), "--compile: is False on rank 1 and True on rank 0"),
    (dict(data="there", tokens="b"), "--data: rank 1 has there with other tokens than rank 0 has in data/"),
    (dict(data="there", runs="/x", threads=9, config="y.toml"), None)])
def test_ranks_must_have_the_same_settings_and_data(other, words):
    """Each machine may keep its files where it likes, and has its own number of cores."""
    ours = asdict(Settings()) | dict(beta1=0.9, tokens="a")
    if words is None:
        refuse_ranks_that_differ([ours, ours | other])
        return
    with pytest.raises(UserError, match=re.escape(words)):
        refuse_ranks_that_differ([ours, ours | other])


DIFFERENT_RANKS = """
import os, sys
sys.path[:0] = sys.argv[1:3]
import tiny_runs, train
from trainer.script import leave
rank, (config, folder) = int(os.environ["RANK"]), sys.argv[3:5]
more = [] if rank == 0 else sys.argv[5:]
if more == ["other weights"]:    # as if each machine read a checkpoint of its own
    begin, more = train.Training.begin, []
    def other_weights(self):
        self.parameters["embed.weight"].data.add_(1)
        begin(self)
    train.Training.begin = other_weights
leave(tiny_runs.run(config, folder, "a", *more))
"""


@pytest.mark.slow
@pytest.mark.parametrize("more, words", [
    (["--data={folder}/other"], "--data: rank 1 has {folder}/other with other tokens than rank 0 has in"),
    (["other weights"], "step 0: the ranks no longer hold the same weights and state; all machines must")])
def test_different_ranks_do_not_start(tiny, tmp_path, monkeypatch, more, words):
    """Nothing but the comparison notices other data: both ranks would train on."""
    monkeypatch.setattr(prepare_c4, "sotu", lambda: documents(seed=1))
    assert prepare_c4.main(["--vocab=300", f"--out={tmp_path}/other"]) == 0
    more, words = [word.format(folder=tmp_path) for word in more], words.format(folder=tmp_path)
    (tmp_path / "ranks.py").write_text(DIFFERENT_RANKS)
    arguments = [tmp_path / "ranks.py", ROOT, ROOT / "tests", tiny, tmp_path / "runs", *more]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run([*torchrun, *arguments], text=True, timeout=120, capture_output=True)
    lines = [line for line in done.stderr.splitlines() if "train.py: error: " in line]
    assert done.returncode and len(lines) == 1 and words in lines[0], done.stderr
    assert not list(tmp_path.glob("runs/a/metrics.jsonl"))


@pytest.mark.slow
def test_two_ranks_are_one_process_with_two_micro_batches(tiny, tmp_path):
    """Bit for bit, for every optimizer, through the run's own command line."""
    script = Path(__file__).parent / "two_ranks.py"
    arguments = [str(script), str(tiny), str(tmp_path)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    two = subprocess.run([*torchrun, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert two.returncode == 0, two.stderr[-3000:]
    for name, more in (VARIANTS | ZOO).items():
        assert run(tiny, tmp_path, f"one-{name}", *more, "--micro_batch=4") == 0
        weights, state, rows = final(tmp_path / f"one-{name}")
        weights2, state2, rows2 = final(tmp_path / f"two-{name}")
        assert all(torch.equal(weights[k], weights2[k]) for k in weights), name
        assert all(torch.equal(torch.as_tensor(state[i][k]), torch.as_tensor(state2[i][k]))
                   for i in state for k in state[i])
        for a, b in zip(rows[1:], rows2[1:], strict=True):    # evaluation is summed in another order
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-6) and a.get("norm") == b.get("norm")
    assert_same_run(tmp_path / "two-views", tmp_path / "two-copies")    # gradients inside DDP's buckets


@pytest.mark.parametrize("batch, micro, world, expected", [
    (32, 0, 1, (32, 1)), (32, 8, 1, (8, 4)), (32, 0, 2, (16, 1)), (256, 0, 1, (128, 2)), (7, 0, 1, (7, 1)),
    (7, 0, 2, "--batch=7: must divide among 2 ranks; try 6 or 8"), (1, 0, 2, "--batch=1: .* try 2"),
    (8, 3, 1, "--micro_batch=3: must divide the 8 sequences of a rank; try 2 or 4"), (8, 9, 1, "try 8")])
def test_split_batch(batch, micro, world, expected):
    if isinstance(expected, tuple):
        assert split_batch(batch, micro, world, 128) == expected
    else:
        with pytest.raises(UserError, match=expected):
            split_batch(batch, micro, world, 128)


def test_accumulation_gives_the_gradient_of_the_whole_batch(tiny, tmp_path):
    """8 sequences at once, or 4 x 2: the same first step to rounding
    (weights before anything is amplified)."""
    for name, more in dict(a=[], b=["--micro_batch=2"]).items():
        assert run(tiny, tmp_path, name, "--optimizer=sgd", "--lr=0.1", "--steps=1", "--precision=fp32",
                   *more) == 0
    a, b = (final(tmp_path / name)[1] for name in "ab")
    for i in a:
        assert (a[i]["m"] - b[i]["m"]).norm() <= 1e-5 * a[i]["m"].norm()


# ---------------------------------------------------------------------------------------------------------
# Options

BAD = [(["--optimzer=adamw"], "--optimzer: no such option; did you mean optimizer?"),
       (["--beta2=0.5", "--optimizer=signum"], "the chosen optimizer takes beta1"),
       (["--device=gpu"], "did you mean cuda?"),
       (["--optimizer=adam"], "did you mean adamw?"), (["--rest=sgd"], "rest"), (["--lr"], "--lr"),
       (["--lr=fast"], "--lr='fast': must be a number"), (["--lr=-1"], "--lr=-1.0: must be at least 0"),
       (["--lr=nan"], "--lr=nan"), (["--lr=1e999"], "--lr=inf"),
       (["--steps=0"], "--steps=0: must be at least 1"),
       (["--steps=1.5"], "--steps='1.5': must be a whole number"), (["--steps=1_000"], "--steps='1_000'"),
       (["--steps=" + "9" * 400], "--steps="), (["--steps=5", "--steps=6"], "--steps: given 2 times"),
       (["--qk_norm=yes"], "--qk_norm='yes': must be true or false"),
       (["--precision=fp16"], "--precision='fp16'"),
       (["--beta1=1.0"], "beta1=1.0: must be of type float and in [0, 1)"),
       (["--beta1=x"], "--beta1='x': must be a number"),
       (["--rows=head"], "rows: adamw, the rule of head, has no blocks"),
       (["--untrained=feet"], "untrained='feet': must be one or more of"),
       (["--adaptive=head"], "adaptive, rest and rest_lr"),
       (["--cooldown=0", "--cooldown_beta2=0.99"], "--cooldown_beta2: needs a cooldown; give more"),
       (["--schedule=constant", "--cooldown=0.2"], "--cooldown=0.2: --schedule=constant has none"),
       (["--warmup=0.5", "--cooldown=0.8"], "--cooldown=0.8: the warmup of 0.5 leaves 0.5 of the steps"),
       (["--heads=3"], "--heads=3"), (["--heads=16"], "--heads=16"),
       (["--padded_vocab=10"], "--padded_vocab=10"), (["--vocab_size=299"], "has 300"),
       (["--context=99999"], "context"), (["--micro_batch=3"], "try 2 or 4"),
       (["stray"], "'stray': options are --key=value"), (["--resume", "--overwrite"], "--resume"),
       (["--config=nowhere.toml"], "nowhere.toml"), (["--data=\x1b[31m"], "cannot be printed"),
       (["--name=../x"], "--name='../x'"), (["--name=a/b"], "--name="), (["--name=-x"], "--name="),
       (["--keep=1"], "at least 2"), (["--name=" + "x" * 300], "--name="), (["--name=.hidden"], "--name=")]


@pytest.mark.parametrize("arguments, words", BAD)
def test_bad_options_are_one_line(tiny, tmp_path, capsys, arguments, words):
    assert_refused(tiny, tmp_path, capsys, arguments, words)


@pytest.mark.parametrize("content, words", [
    ("steps = 5", "steps: no such table; steps is a key of [train]"),
    ("[train]\nstepz = 5", "did you mean steps?"), ("\ufeff[train]\nstepz = 5", "did you mean steps?"),
    ("[model]\nsteps = 5", "steps: no such key in [model]; it belongs in [train]"),
    ("[trian]", "did you mean train?"), ("[train]\nsteps = '5'", "steps='5': must be of type int"),
    ("[train]\nqk_norm = true", "it belongs in [model]"),
    ("[train]\nname = 'x'", "name: no such key in [train]; it is for the command line"),
    ("[train]\nbatch_size = 4", "batch_size: no such key in [train]; write --batch"),
    ("[train]\nlr_of = 'hed:1'", "lr_of='hed:1': give role:value"),
    ("[hyper.adamw]\nbeta1_of = 3", "beta1_of"),
    ("[lr]\nadam = 1", "adam = 1"), ("[lr]\nadamw = 'x'", "adamw = 'x'"),
    ("[hyper.adamw]\nbeta3 = 1", "beta3"), ("[train]\nlr = nan", "lr=nan"),
    ("[train", "is not TOML"), ("[train]\nsteps = 1\nsteps = 2", "is not TOML"), ("\x00", "is not TOML"),
    ("[model]\nqk_norm = True", "Invalid value (at line 2, column 11): qk_norm = True; text needs quotes; "
                                "booleans are true and false, in small letters"),
    ("import os", "is not TOML"), ("a = " + "[" * 5000, "is not TOML")])
def test_bad_files_are_one_line(tmp_path, capsys, content, words):
    (tmp_path / "own.toml").write_text(content)
    options = [f"--config={tmp_path / 'own.toml'}", f"--runs={tmp_path / 'runs'}", "--compile=false"]
    assert train.main(options) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not (tmp_path / "runs").exists()


def numbers(hyper):
    """The hyperparameters without NAME_of, their values by role."""
    return {name: value for name, value in hyper.items() if not name.endswith("_of")}


def test_values_come_from_the_command_line_then_the_file_then_the_default(tmp_path):
    (tmp_path / "own.toml").write_text("[train]\nsteps = 7\nclip = 2\noptimizer = 'lion'\n"
                                       "[lr]\nadamw = 1e-2\nlion = 1e-4\n"
                                       "[hyper.lion]\nbeta2 = 0.99\n[hyper.adamw]\nbeta2 = 0.9\n"
                                       "[rest_lr]\nsgd_ema = 3\n")
    file = f"--config={tmp_path / 'own.toml'}"
    config, hyper, _ = read([file, "--steps", "9", "--qk_norm", "false"])
    assert (config.steps, config.clip, config.qk_norm, config.optimizer, config.lr) == \
        (9, 2.0, False, "lion", 1e-4)
    assert numbers(hyper) == dict(beta1=0.9, beta2=0.99)
    config, hyper, _ = read([file, "--optimizer=signum"])    # not tuned: a tenth of AdamW's
    assert config.lr == pytest.approx(1e-3) and numbers(hyper) == dict(beta1=0.9)
    config, hyper, _ = read([file, "--adaptive=head", "--rest=sgd_ema", "--rest_beta1=0.5",
                                           "--beta2=0.5"])
    assert config.rest_lr == 3.0 and numbers(hyper) == dict(beta1=0.9, beta2=0.5, rest_beta1=0.5)


def test_both_rules_of_a_hybrid_may_have_values_by_role_in_the_file(tmp_path):
    (tmp_path / "own.toml").write_text("[hyper.adamw]\nbeta1_of = 'head:0.8'\nbeta2_of = 'head:0.9'\n"
                                       "[hyper.sgd_ema]\nbeta1_of = 'embed:0.5'\n")
    _, hyper, _ = read([f"--config={tmp_path / 'own.toml'}", "--adaptive=head", "--rest=sgd_ema"])
    assert hyper["beta1_of"] == "head:0.8,embed:0.5" and hyper["beta2_of"] == "head:0.9"
    _, hyper, _ = read([f"--config={tmp_path / 'own.toml'}", "--adaptive=head", "--rest=adamw"])
    assert hyper["beta1_of"] == "head:0.8"


def test_what_counts_as_tuned():
    tables = dict(lr=dict(adamw=1e-2, lion=2e-3), rest_lr=dict(sgd_ema=30.0))
    for name, lr, table, tuned in (
            ("lion", 2e-3, "lr", True), ("signum", 1e-3, "lr", False), ("signum", 3e-3, "lr", True),
            ("adamw", 1e-2, "rest_lr", True), ("sgd_ema", 30.0, "rest_lr", True),
            ("sgd", 3.0, "rest_lr", False), ("sgd", 1.0, "rest_lr", True)):
        assert is_tuned(tables, name, lr, table) is tuned, (name, lr, table)


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as left:
        train.main(["--help", "--optimizer=lion"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and "--beta2" in text
    for name, field in Settings.__dataclass_fields__.items():
        assert f"--{name} " in text and len(field.metadata["help"]) > 5


@pytest.mark.slow
def test_a_used_folder_is_safe(tiny, tmp_path, capsys):
    assert run(tiny, tmp_path, "a") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert run(tiny, tmp_path, "a") == 2
    held = runs.lock(tmp_path / "a/lock")
    assert run(tiny, tmp_path, "a", "--overwrite") == 2
    held.close()
    errors = capsys.readouterr().err.splitlines()[-2:]
    assert "already holds files; give --resume" in errors[0] and "another process" in errors[1]
    assert before == {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert run(tiny, tmp_path, "a", "--overwrite", "--optimizer=signum") == 0
    for expected in ("0001", "0002"):
        assert run(tiny, tmp_path, "") == 0
        assert (tmp_path / expected / "status.json").exists()


def test_without_a_compiler_one_line_and_eager(tiny, tmp_path, capsys, monkeypatch):
    eager = []

    def no_compiler(function, **options):
        def fail(*arguments):
            eager.append(1)
            raise RuntimeError("no C++ compiler\nat all")
        return fail
    monkeypatch.setattr(torch, "compile", no_compiler)
    assert run(tiny, tmp_path, "a", compile=True) == 0
    assert eager == [1, 1]    # the CPU's flags may be wrong for this compiler: it tries without, too
    out = capsys.readouterr().out
    assert "note: no working compiler, so all runs eagerly and slower (no C++ compiler" in out
    assert "compile=false" in out


def test_wrong_compiled_code_is_noticed_and_avoided(tiny, tmp_path, capsys, monkeypatch):
    """Code that gives wrong numbers is compiled again without vectors of straight code. If that does not
    help, the run is eager."""
    import torch._inductor.config as inductor
    for march, words in (
            ("native -fno-tree-slp-vectorize", "note: this compiler makes mistakes where it vectorizes"),
            ("never", "note: no working compiler, so all runs eagerly and slower (compiled code gives")):
        def broken_compiler(function, march=march, **options):
            def compiled(*arguments):
                return function(*arguments) * (1 if inductor.cpp.march == march else float("nan"))
            return compiled
        with monkeypatch.context() as patch, inductor.patch({"cpp.march": None, "cpp.vec_isa_ok": None}):
            patch.setattr(torch, "compile", broken_compiler)
            assert compiler_works("bf16") == (march != "never")
            assert words in capsys.readouterr().out and (march == "never" or inductor.cpp.march == march)


def test_a_foreign_name_is_answered_with_ours():
    """Every name of another trainer gets one line that names our option, or says that there is none."""
    for name, advice in FOREIGN_NAMES.items():
        with pytest.raises(UserError, match=f"--{name}: no such option; ") as caught:
            read([f"--{name}=1"])
        ours = set(re.findall(r"--([a-z_0-9]+)", advice))
        assert ours <= {*Settings.__dataclass_fields__, "beta1", "beta2"}, name
        assert ours or "leave it out" in advice, name
        assert name not in Settings.__dataclass_fields__ and "\n" not in str(caught.value)
    for name, ours in FOREIGN_OPTIMIZERS.items():
        with pytest.raises(UserError, match=f"did you mean {ours}"):
            read([f"--optimizer={name.upper()}"])


def test_the_command_line_may_be_written_in_several_ways(tmp_path):
    (tmp_path / "own.toml").write_text("[train]\nsteps = 7\n")
    file = str(tmp_path / "own.toml")
    usual = read([f"--config={file}", "--weight_decay=0.1", "--lr=1e-3", "--compile=false"])
    for words in ([file, "--weight-decay=0.1", "--lr", "1e-3", "--compile", "false"],
                  [file, "--weight_decay", "0.1", "--lr=1e-3", "--compile=false"]):
        assert read(words) == usual
    with pytest.raises(UserError, match="--config: given 2 times"):
        read([file, f"--config={file}"])
    with pytest.raises(UserError, match="--config='nowhere'"):
        read(["nowhere"])


def test_torchrun_takes_none_of_our_options_for_its_own():
    """torchrun reads an abbreviation of one of its options as that option, wherever it stands."""
    from torch.distributed.run import get_args_parser
    theirs = get_args_parser()
    for name in Settings.__dataclass_fields__:
        assert not theirs._get_option_tuples(f"--{name}"), name


def test_defaults_are_what_a_run_with_nothing_typed_has(tmp_path):
    config = ROOT / "configs/nano.toml"
    for name in ("signum", "muon", "adalayer_star"):
        settings, hyper, _ = read([f"--config={config}", f"--optimizer={name}"])
        assert defaults(config, name) == asdict(settings) | hyper
    assert defaults(config, "adalayer", rest="sgd_ema", adaptive="head")["rest_lr"] == 10.0
    with pytest.raises(FrozenInstanceError):
        settings.lr = 1.0


@pytest.mark.parametrize("arguments, words", [
    (["--lr_of=head"], "--lr_of='head': give role:value,role:value; the roles are embed, qkv"),
    (["--lr_of=head:x"], "--lr_of='x': must be a number"),
    (["--lr_of=head:-1"], "--lr_of: head=-1.0: must be at least"),
    (["--weight_decay_of=norm:2"], "--weight_decay_of: norm=2.0: must be at most 1"),
    (["--lr_of=matrix:1,mlp_up:2"], "names mlp_up twice"),
    (["--beta2_of=head:0.5", "--optimizer=signum"], "--beta2_of: no such option"),
    (["--beta1_of=head:1.5"], "--beta1_of: head: beta1=1.5: must be of type float and in [0, 1)"),
    (["--lr_of=head:2", "--optimizer=adasgd"], "lr_of: adasgd has one second moment"),
    (["--lr_of=head:2", "--untrained=head"], "lr_of: head is untrained")])
def test_bad_settings_by_role(tiny, tmp_path, capsys, arguments, words):
    test_bad_options_are_one_line(tiny, tmp_path, capsys, arguments, words)


@pytest.mark.parametrize("text, values", [
    ("head:2e+1+embed:true", dict(head=20.0, embed=True)),
    ("head:1.e+1,norm:2E-1", dict(head=10.0, norm=0.2)),
    ("norm:1e1+head:false+embed:0.5", dict(norm=10.0, head=False, embed=0.5)), ("", {})])
def test_a_plus_separates_roles_or_is_the_sign_of_an_exponent(text, values):
    assert by_role("x", text) == values


def test_settings_by_role_are_shown_and_kept(tiny, tmp_path, capsys):
    """At the start, in config.json, in the plan; and a resume refuses others."""
    own = ["--lr_of=head:0.5+embed:2", "--beta1_of=matrix:0.8", "--weight_decay_of=norm:0",
           "--weight_decay=0.1"]
    assert run(tiny, tmp_path, "a", *own) == 0
    out = capsys.readouterr().out
    for line in ("adamw, lr 0.005 (cosine): head;", "adamw, lr 0.02 (cosine): embed;",
                 "weight_decay 0: norm;", "adamw, lr 0.01 (cosine), beta1 0.8: attn_out, mlp_down, mlp_up;"):
        assert line in out, line
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert (config["lr_of"], config["beta1_of"]) == ("head:0.5+embed:2", "matrix:0.8")
    assert train.main([str(tiny), "--plan", *own]) == 0
    assert "adamw, lr 0.005 (cosine): head;" in capsys.readouterr().out
    rewound(tmp_path / "a", tmp_path / "b", 5)
    assert run(tiny, tmp_path, "b", "--resume", "--beta1_of=matrix:0.7") == 2
    assert "--beta1_of=matrix:0.7: this run was started with matrix:0.8" in capsys.readouterr().err


def test_threads(tiny, tmp_path, monkeypatch, capsys):
    """All cores shared by the ranks of this machine, whatever OMP_NUM_THREADS says; --threads wins."""
    cores = usable_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert Machine(Settings(device="cpu")).threads == torch.get_num_threads() == cores
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * cores))
    assert Machine(Settings(device="cpu")).threads == 1
    assert Machine(Settings(device="cpu", threads=3)).threads == torch.get_num_threads() == 3


def test_a_resumed_run_shares_the_cores_anew(tiny, tmp_path, monkeypatch, capsys):
    """A run keeps the number of threads that --threads asked for, not the number that it became."""
    cores = usable_cores()
    assert run(tiny, tmp_path, "a", *CONSTANT, "--threads=0", "--steps=1") == 0
    assert json.loads((tmp_path / "a/config.json").read_text())["threads"] == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * cores))
    assert run(tiny, tmp_path, "a", "--threads=0", "--resume", "--steps=2") == 0
    assert cores == 1 or f"note: threads was {cores} and is 1" in capsys.readouterr().out


def test_overwrite_empties_only_folders_of_runs(tiny, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("all of it")
    (tmp_path / "mine/notes.tmp").write_text("and more")
    assert run(tiny, tmp_path, "mine", "--overwrite") == 2
    assert "mine holds files, but no run; choose another --name" in capsys.readouterr().err
    assert (tmp_path / "mine/thesis.txt").read_text() == "all of it"
    (tmp_path / "mine/.metrics.jsonl.17.tmp").write_text("of a killed process")
    assert run(tiny, tmp_path, "mine", "--resume", "--steps=1") == 0
    assert (tmp_path / "mine/notes.tmp").read_text() == "and more"
    assert not (tmp_path / "mine/.metrics.jsonl.17.tmp").exists()


def test_a_resumed_run_needs_neither_its_source_nor_copies_of_its_checkpoints(tiny, tmp_path):
    """The first checkpoint of the run came from another run, whose folder is gone."""
    assert run(tiny, tmp_path, "a", "--steps=2") == 0
    assert run(tiny, tmp_path, "b", "--steps=4", "--save_every=2", f"--init_from={tmp_path / 'a'}") == 0
    copy = rewound(tmp_path / "b", tmp_path / "c", 2)
    (copy / "step-backup01.pt").write_bytes(b"a copy of the user's")
    shutil.rmtree(tmp_path / "a")
    assert run(tiny, tmp_path, "c", "--resume") == 0
    (copy / "step-backup01.pt").unlink()
    assert_same_run(tmp_path / "b", tmp_path / "c")


def test_resume_false_is_no_resume_in_any_spelling(tiny, tmp_path):
    assert run(tiny, tmp_path, "a", "--lr=1e-3", "--steps=2") == 0
    assert run(tiny, tmp_path, "a", "--overwrite", "--resume=False") == 0
    assert json.loads((tmp_path / "a/config.json").read_text())["lr"] == 1e-2


def test_a_signal_while_the_sample_is_printed_is_no_error(tiny, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal did not end the sample")
    monkeypatch.setattr(sample, "show", interrupted)
    assert run(tiny, tmp_path, "a", "--sample_tokens=9") == 0
    assert "everything is in" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_threads_give_the_same_bits_again(tiny, tmp_path, optimizer):
    """In two runs, and in a run that is resumed. The model is so wide that both threads have work."""
    usual = [f"--optimizer={optimizer}", "--lr=1e-2", "--threads=2", "--width=256", "--batch=32", "--keep=9"]
    usual += ["--rest_lr=1e-2"] if optimizer == "muon" else []
    for name in "ab":
        assert run(tiny, tmp_path, name, *usual) == 0
    rewound(tmp_path / "b", tmp_path / "c", 5)
    assert run(tiny, tmp_path, "c", *usual, "--resume") == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert_same_run(tmp_path / "b", tmp_path / "c")


def test_a_device_that_is_not_there(tiny, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert run(tiny, tmp_path, "a", "--device=cuda") == 4
    assert "--device=cuda: this machine has none; give --device=cpu" in capsys.readouterr().err
