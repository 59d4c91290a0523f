"""Averages of the weights; the Schedule-Free rules, which have one of their own; beta2 in the cooldown."""
import copy
import json

import numpy as np
import pytest
import torch
from torch.distributed.tensor import Shard, distribute_tensor
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

import optim
import sample
import zoo
from golden_cases import CASES, FOLDER, GOLDEN_OF, golden_case, golden_steps, golden_weights, share_off
from rule_cases import built, gradients, run, weights
from tiny_runs import assert_same_run, final, rewound
from tiny_runs import run as run_tiny
from trainer import runs, settings
from zoo import AVERAGES, Optimizer, averages
from zoo.schedule_free import RULES

NUMBERS = np.load(FOLDER / "averages.npz")


def averaged(optimizer, w):
    """{role: the weights for evaluation}."""
    with optimizer.averages():
        return {role: p.detach().clone() for role, p in w.items()}


def path_of_weights(average, steps, rule="adamw", dtype=torch.float64, **hyper):
    """(the weights after each step, the averages after the last)."""
    w, path = weights(dtype), []
    optimizer = zoo.make(rule, [(role, p, role) for role, p in w.items()], lr=0.1, average=average, **hyper)
    for g in gradients(steps, dtype=dtype):
        run(optimizer, w, [g])
        path.append({role: p.detach().clone() for role, p in w.items()})
    return path, averaged(optimizer, w)


# ---------------------------------------------------------------------------------------------------------
# What each average is

@pytest.mark.parametrize("average, hyper, theirs", [
    ("aswa", {}, None), ("ema", dict(ema_decay=0.8), get_ema_avg_fn(0.8)), ("ema", {}, get_ema_avg_fn())])
def test_ema_and_aswa_are_torchs(average, hyper, theirs):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).double()
    for p, g in zip(model.parameters(), torch.linspace(0.1, 1, 4)):
        p.data.fill_(g)
    oracle = AveragedModel(model, avg_fn=theirs)
    optimizer = Optimizer(model.named_parameters(), "adamw", lr=0.1, average=average, **hyper)
    draw = torch.Generator().manual_seed(0)
    for _ in range(30):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=draw, dtype=torch.float64)
        optimizer.step()
        oracle.update_parameters(model)
    with optimizer.averages():
        for ours, expected in zip(model.parameters(), oracle.module.parameters(), strict=True):
            assert torch.allclose(ours, expected, rtol=1e-13, atol=0)


def test_a_step_inside_averages_is_refused_because_it_would_be_lost():
    w = weights()
    optimizer = built("adamw", w, average="ema")
    run(optimizer, w, gradients(2))
    with optimizer.averages():
        with pytest.raises(RuntimeError, match="step.. inside `with averages..` would be lost"):
            optimizer.step()
    assert optimizer.state[w["head"]]["t"] == 2
    run(optimizer, w, gradients(1))    # and afterwards it goes on
    assert optimizer.state[w["head"]]["t"] == 3


@pytest.mark.parametrize("steps, used", [(2, [1]), (3, [2]), (9, [2, 5, 8]), (14, [5, 8, 11]),
                                         (15, [8, 11, 14])])
def test_lawa_is_the_mean_of_the_last_checkpoints(steps, used):
    """A checkpoint every third step, the last three of them; before the first, the weights themselves."""
    path, found = path_of_weights("lawa", steps, lawa_last=3, lawa_every=3)
    for role, x in found.items():
        assert torch.allclose(x, torch.stack([path[i][role] for i in used]).mean(0), rtol=1e-14, atol=0)


def test_naswa_adds_what_is_farther_than_the_mean_since_the_last_addition():
    """A restatement in numpy, over all tensors at once, of a path that stays near 0 and shakes."""
    w, path, draw = weights(), [], torch.Generator().manual_seed(0)
    optimizer = Optimizer(w.values(), "sgd", lr=0.3, beta1=0.0, average="naswa")
    for _ in range(40):
        for p in w.values():
            p.grad = p.detach() + torch.randn(p.shape, generator=draw, dtype=p.dtype)
        optimizer.step()
        path.append(np.concatenate([p.detach().numpy().ravel() for p in w.values()]))
    average, count, seen, quiet = path[0], 1, [], 0
    for x in path[1:]:
        distance = np.linalg.norm(x - average)
        if seen and distance > np.mean(seen):
            count += 1
            average, seen = average + (x - average) / count, []
        else:
            quiet += bool(seen)    # left out, and not only because it comes right after an addition
            seen.append(distance)
    assert count > 5 and quiet > 5
    found = np.concatenate([x.numpy().ravel() for x in averaged(optimizer, w).values()])
    assert np.abs(found - average).max() < 1e-14


# ---------------------------------------------------------------------------------------------------------
# What all averages have in common

@pytest.mark.parametrize("rule", ["adamw", "muon", "apollo", "adasgd", "soap"])
@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_changes_no_step(average, rule):
    more = dict(rest_lr=0.1) if zoo.find(rule).rest else {}
    with_it, _ = path_of_weights(average, 5, rule, **more)
    without, same = path_of_weights("", 5, rule, **more)
    for role in same:
        assert torch.equal(with_it[-1][role], without[-1][role])
        assert torch.equal(same[role], without[-1][role])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("average", AVERAGES)
def test_weights_come_back_bit_for_bit(average, dtype):
    """Also after an error. The averages themselves are fp32, whatever the weights are."""
    w = weights(dtype)
    optimizer = zoo.make("adamw", [(role, p, role) for role, p in w.items()], lr=0.1, average=average,
                         **dict(lawa_every=2) if average == "lawa" else {})
    assert averaged(optimizer, w).keys() == w.keys()    # before the first step: nothing to put in
    run(optimizer, w, gradients(5, dtype=dtype))
    before = {role: p.detach().clone() for role, p in w.items()}
    with pytest.raises(KeyError), optimizer.averages():
        assert not any(torch.equal(p, before[role]) for role, p in w.items())
        raise KeyError
    assert all(torch.equal(p, before[role]) for role, p in w.items())
    state = optimizer.state[w["head"]]
    assert all(state[name].dtype == torch.float32 for name in AVERAGES[average].state)


@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_is_saved_loaded_and_copied(average):
    hyper = dict(lawa_last=2, lawa_every=2) if average == "lawa" else {}
    def make(w):
        return zoo.make("adamw", [(role, p, role) for role, p in w.items()], lr=0.1, average=average, **hyper)
    w = weights()
    optimizer = make(w)
    run(optimizer, w, gradients(9)[:5])
    again = {role: p.detach().clone().requires_grad_() for role, p in w.items()}
    resumed = make(again)
    resumed.load_state_dict(optimizer.state_dict())    # it copies the state
    pair = copy.deepcopy((optimizer, w))
    for one, tensors in ((optimizer, w), (resumed, again), pair):
        run(one, tensors, gradients(9)[5:])
    for other, tensors in ((resumed, again), pair):
        expected, found = averaged(optimizer, w), averaged(other, tensors)
        assert all(torch.equal(expected[role], found[role]) for role in w)
        assert not any(torch.equal(w[role], expected[role]) for role in w)


@pytest.mark.parametrize("then, now", [("", "ema"), ("ema", ""), ("lawa", "aswa"), ("aswa", "naswa")])
def test_another_average_begins_anew(then, now):
    """The rest of the state is taken, and the new average is that of the steps since then."""
    w = weights()
    first = zoo.make("adamw", [(role, p, role) for role, p in w.items()], lr=0.1, average=then)
    run(first, w, gradients(9)[:5])
    again = {role: p.detach().clone().requires_grad_() for role, p in w.items()}
    second = zoo.make("adamw", [(role, p, role) for role, p in again.items()], lr=0.1, average=now)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert all(torch.equal(averaged(second, again)[role], again[role]) for role in w)    # it is still empty
    assert set(second.param_groups[0]) == set(zoo.make("adamw", [("head", w["head"], "head")], lr=0.1,
                                                       average=now).param_groups[0])
    path = []
    for g in gradients(9)[5:]:
        run(first, w, [g])
        run(second, again, [g])
        path.append({role: p.detach().clone() for role, p in w.items()})
        assert all(torch.equal(w[role], again[role]) for role in w)
    shares = dict(ema=[0.999**3, 0.001 * 0.999**2, 0.001 * 0.999, 0.001], aswa=[0.25] * 4,
                  naswa=[0.5, 0, 0.5, 0]).get(now, [0, 0, 0, 1])
    for role, x in averaged(second, again).items():
        mean = sum(share * one[role] for share, one in zip(shares, path))
        assert torch.allclose(x, mean, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("change, goes_on", [
    (dict(average="ema", ema_decay=0.5), True), (dict(average="lawa", lawa_last=2, lawa_every=2), True),
    (dict(average="lawa", lawa_last=3, lawa_every=2), False), (dict(average="lawa", lawa_last=2), False)])
def test_an_average_goes_on_if_its_state_still_means_the_same(change, goes_on):
    w = weights()
    begins = dict(ema=dict(ema_decay=0.9), lawa=dict(lawa_last=2, lawa_every=2))[change["average"]]
    first = Optimizer(w.values(), "adamw", lr=0.1, average=change["average"], **begins)
    run(first, w, gradients(5))
    second = copy.deepcopy(Optimizer(w.values(), "adamw", lr=0.1, **change))    # a copy of an average, too
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    states = list(second.state.values())
    assert [state["average_from"] for state in states] == [0 if goes_on else 5] * len(states)
    assert all(torch.equal(a["m"], b["m"]) for a, b in zip(states, first.state.values()))


@pytest.mark.parametrize("rule, measures", [("adopt", 1), ("soap", 1), ("adamw", 0)])
def test_steps_that_only_measure_do_not_count(rule, measures):
    path, found = path_of_weights("aswa", 4, rule)
    for role, x in found.items():
        mean = torch.stack([one[role] for one in path[measures:]]).mean(0)
        assert torch.allclose(x, mean, rtol=1e-13, atol=1e-15), role


def test_a_state_of_torchs_own_optimizer_is_refused_in_one_line():
    w, v = torch.ones(2), torch.ones(2)
    theirs = torch.optim.AdamW([w])
    w.grad = torch.ones(2)
    theirs.step()
    with pytest.raises(ValueError, match="another optimizer"):
        Optimizer([v], "adamw", lr=0.1, average="ema").load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("average", AVERAGES)
def test_averages_work_with_the_tensors_of_fsdp2(average, devices):    # noqa: F811
    mesh, draw = devices(1), torch.Generator().manual_seed(0)
    plain = [torch.ones(6, 4), torch.ones(4)]
    split = [torch.nn.Parameter(distribute_tensor(w, mesh, [Shard(0)])) for w in plain]
    hyper = dict(lawa_every=2, lawa_last=2) if average == "lawa" else {}
    optimizers = [Optimizer(w, "adamw", lr=0.01, average=average, **hyper) for w in (plain, split)]
    for _ in range(7):
        for one, other in zip(plain, split):
            one.grad = torch.randn(one.shape, generator=draw)
            other.grad = distribute_tensor(one.grad, mesh, [Shard(0)])
        for optimizer in optimizers:
            optimizer.step()
    weights = [w.clone() for w in plain]
    with optimizers[0].averages(), optimizers[1].averages():
        for one, other, w in zip(plain, split, weights):
            assert torch.allclose(other.full_tensor(), one, rtol=0, atol=1e-6) and not torch.equal(one, w)
    assert all(torch.equal(one, w) for one, w in zip(plain, weights))


@pytest.mark.compiled
def test_averages_do_not_compile_anything_anew():
    """Compiled, a step with an average is the same code as without, and gives the same bits."""
    ends = []
    optim.compiled.cache_clear()
    torch._dynamo.utils.counters.clear()
    for average in ("", "ema", "naswa"):
        w = weights(torch.float32)
        optimizer = zoo.make("adamw", [(role, p, role) for role, p in w.items()], lr=0.1, average=average,
                             compile=True)
        run(optimizer, w, gradients(3, dtype=torch.float32))
        ends.append(w)
        if not average:
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert all(torch.equal(end[role], ends[0][role]) for end in ends for role in end)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0


def test_a_tensor_without_a_gradient_keeps_its_average():
    w = torch.ones(3), torch.ones(3)
    optimizer = Optimizer(w, "sgd", lr=1.0, average="aswa")
    for t in range(4):
        w[0].grad, w[1].grad = torch.ones(3), torch.ones(3) if t < 2 else None
        optimizer.step()
    assert [optimizer.state[p]["t"] for p in w] == [4, 2]
    with optimizer.averages():    # sums of 0.98^k: the weights after steps 1 and 2 are 0 and -1.98
        assert torch.allclose(w[1], torch.tensor(-0.99))


def test_without_an_average_nothing_is_kept():
    w = weights()
    optimizer = built("adamw", w)
    run(optimizer, w, gradients(1))
    assert set(optimizer.state[w["head"]]) == {"t", "m", "v"} and not optimizer.has_averages()
    assert not any("average" in key or "lawa" in key for key in optimizer.param_groups[0])
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("arguments, words", [
    (dict(average="emma"), "average='emma': must be one of ema, lawa, aswa, naswa"),
    (dict(average="ema", ema_decay=1.0), "ema_decay=1.0: must be of type float and in [0, 1)"),
    (dict(average="lawa", lawa_every=0), "lawa_every=0: must be of type int and in [1, inf)"),
    (dict(average="aswa", ema_decay=0.9), "ema_decay: is not a hyperparameter of adamw"),
    (dict(ema_decay=0.9), "ema_decay: is not a hyperparameter of adamw"),
    (dict(average="ema", name="schedule_free_sgd"),
     "average=ema: schedule_free_sgd has an average of its own")])
def test_bad_averages(arguments, words):
    options = dict(name="adamw", lr=0.1) | arguments
    with pytest.raises(ValueError) as caught:
        zoo.make(options.pop("name"), [(role, p, role) for role, p in weights().items()], **options)
    assert words in str(caught.value)


# ---------------------------------------------------------------------------------------------------------
# In a run

def test_a_run_with_an_average(tiny, tmp_path, capsys):
    """Its training is bit for bit that without; its second loss is that of the averages; it resumes."""
    assert run_tiny(tiny, tmp_path, "plain") == 0
    assert "averaged" not in capsys.readouterr().out
    ema = ["--average=ema", "--ema_decay=0.8"]
    assert run_tiny(tiny, tmp_path, "a", *ema) == 0
    out = capsys.readouterr()
    assert " average=ema" in out.out and " ema_decay=0.8" in out.out
    (weights, _, rows), (weights2, state, rows2) = final(tmp_path / "plain"), final(tmp_path / "a")
    assert all(torch.equal(weights[k], weights2[k]) for k in weights)
    second = [row.pop("average_loss") for row in rows2 if row["kind"] == "val"]
    first = [row["loss"] for row in rows if row["kind"] == "val"]
    assert rows == rows2 and len(second) == 3 and not set(first) & set(second)
    status = json.loads((tmp_path / "a/status.json").read_text())
    assert status["average_loss"] == second[-1]
    assert f"with averaged weights {second[-1]:.4f} nats per token" in out.out
    assert f", {second[0]:.4f} with averaged weights (10 windows)" in out.out + out.err
    assert "average_loss" not in json.loads((tmp_path / "plain/status.json").read_text())

    rewound(tmp_path / "a", tmp_path / "b", 10)
    assert run_tiny(tiny, tmp_path, "b", "--resume", *ema) == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")
    rewound(tmp_path / "a", tmp_path / "c", 10)
    assert run_tiny(tiny, tmp_path, "c", "--resume", "--average=ema", "--ema_decay=0.9") == 2
    rewound(tmp_path / "plain", tmp_path / "d", 10)
    assert run_tiny(tiny, tmp_path, "d", "--resume", *ema) == 2
    errors = capsys.readouterr().err
    assert "--ema_decay=0.9: this run was started with 0.8" in errors
    assert "--average=ema: this run was started with none" in errors

    # the final average loss is that of the weights which sample.py takes with --average
    checkpoint = runs.load_checkpoint(tmp_path / "a/step-00000012.pt")
    found = sample.averaged_weights(checkpoint)
    assert found.keys() == weights.keys()
    numbers = dict(enumerate(name for group in checkpoint["optimizer"]["param_groups"]
                             for name in group["names"]))
    assert all(torch.equal(found[name], state[i]["average"]) for i, name in numbers.items())
    texts = []
    for options in (["--name=a"], ["--name=a", "--average"], ["--name=plain"]):
        assert sample.main([f"--runs={tmp_path}", "--tokens=30", *options]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[2] != texts[1]
    assert sample.main([f"--runs={tmp_path}", "--name=plain", "--average"]) == 2
    assert "--average: this run kept no averages" in capsys.readouterr().err


@pytest.mark.parametrize("words, schedule", [
    ("adamw", "cosine"), ("schedule_free_adamw", "constant"), ("schedule_free_sgd", "constant"),
    ("schedule_free_adamw --schedule=linear", "linear"), ("adamw --rest=schedule_free_sgd", "cosine")])
def test_a_rule_may_have_a_schedule_of_its_own(words, schedule):
    name, *options = words.split()
    assert settings.read(["configs/study.toml", f"--optimizer={name}", *options])[0].schedule == schedule


def test_the_average_loss_is_that_of_the_averages(tiny, tmp_path):
    """A new run that starts from the averages has their loss before its first step moves anything."""
    assert run_tiny(tiny, tmp_path, "a", "--optimizer=schedule_free_adamw") == 0
    checkpoint = runs.load_checkpoint(tmp_path / "a/step-00000012.pt")
    checkpoint["model"] = sample.averaged_weights(checkpoint)
    runs.save_checkpoint(tmp_path / "start.pt", checkpoint)
    assert run_tiny(tiny, tmp_path, "b", f"--init_from={tmp_path / 'start.pt'}", "--init_from_state=false",
                    "--lr=0", "--steps=1") == 0
    assert final(tmp_path / "b")[2][-1]["loss"] == final(tmp_path / "a")[2][-1]["average_loss"]
    assert final(tmp_path / "a")[2][-1]["loss"] != final(tmp_path / "a")[2][-1]["average_loss"]


def test_an_average_of_a_run_that_goes_on_from_another(tiny, tmp_path, capsys):
    """The optimizer's state is taken, and the average begins with the first new step."""
    assert run_tiny(tiny, tmp_path, "a") == 0
    assert run_tiny(tiny, tmp_path, "b", f"--init_from={tmp_path / 'a'}", "--average=aswa", "--steps=1") == 0
    assert "its weights and its optimizer's state" in capsys.readouterr().out
    row = final(tmp_path / "b")[2][-1]
    assert row["average_loss"] == row["loss"]
    assert run_tiny(tiny, tmp_path, "c", f"--init_from={tmp_path / 'b'}", "--steps=1") == 0
    assert "its weights and its optimizer's state" in capsys.readouterr().out
    states = final(tmp_path / "c")[1].values()
    assert all(set(state) == {"t", "m", "v"} and state["t"] == 14 for state in states)


def test_a_bad_average_is_one_line(tiny, tmp_path, capsys):
    assert run_tiny(tiny, tmp_path, "a", "--average=emma") == 2
    assert run_tiny(tiny, tmp_path, "a", "--average=ema", "--optimizer=schedule_free_sgd") == 2
    errors = capsys.readouterr().err.splitlines()
    assert "--average='emma': must be one of ema, lawa, aswa, naswa; did you mean ema?" in errors[0]
    assert "--average=ema: schedule_free_sgd has an average of its own" in errors[1]


# ---------------------------------------------------------------------------------------------------------
# Schedule-Free

@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("schedule_free")])
def test_the_weights_for_evaluation_are_the_packages(case):
    w, optimizer = golden_case(case)
    for t in golden_steps(w, optimizer, CASES[case]["scale"]):
        for name, x in averaged(optimizer, w).items() if t in (3, 25) else ():
            assert share_off(x, GOLDEN_OF[case][f"{case}/x{t}/{name}"], name) <= 1e-11


@pytest.mark.parametrize("name", RULES)
def test_a_warmup_counts_less(name):
    """Over five steps the package raises the lr itself; here the schedule does."""
    w = golden_weights(("tall", "wide", "square", "vector"))
    optimizer = Optimizer(w.items(), name, lr=0.01, weight_decay=0.1)
    assert list(golden_steps(w, optimizer, lrs=[0.01 * min(1, t / 5) for t in range(1, 26)]))[-1] == 25
    for found, kind in ((w, "warmup"), (averaged(optimizer, w), "xwarmup")):
        for key, x in found.items():
            assert share_off(x, NUMBERS[f"{name}/{kind}/{key}"], key) <= 1e-12


@pytest.mark.parametrize("name", RULES)
def test_a_falling_lr_does_not_count_less(name):
    """As in the package, each step counts as the square of the largest lr so far."""
    w = torch.ones(2)
    optimizer = Optimizer([w], name, lr=0.25)
    for lr in (0.25, 0.125, 0.5):
        optimizer.param_groups[0]["lr"] = lr
        w.grad = torch.ones(2)
        optimizer.step()
    state = optimizer.state[w]
    assert (state["top"].item(), state["total"].item()) == (0.5, 0.0625 + 0.0625 + 0.25)


@pytest.mark.parametrize("name", RULES)
def test_w_is_between_the_mean_and_z(name):
    """x is the plain mean of all z at a constant lr, which is the theorem behind the rule."""
    w = weights()
    optimizer, zs = built(name, w, lr=0.01, beta1=0.8), []
    for g in gradients(7):
        run(optimizer, w, [g])
        zs.append({role: optimizer.state[p]["z"].clone() for role, p in w.items()})
    for role, x in averaged(optimizer, w).items():
        assert torch.allclose(x, torch.stack([z[role] for z in zs]).mean(0), rtol=1e-12, atol=1e-14)
        assert torch.allclose(w[role].detach(), 0.8 * x + 0.2 * zs[-1][role], rtol=1e-12, atol=1e-14)


def test_a_hybrid_evaluates_each_role_as_its_rule_says():
    w = weights()
    optimizer = zoo.make("schedule_free_adamw", [(role, p, role) for role, p in w.items()], lr=0.1,
                         adaptive="head", rest="sgd_ema", rest_lr=0.5)
    run(optimizer, w, gradients(4))
    found = averaged(optimizer, w)
    assert [role for role in w if not torch.equal(found[role], w[role])] == ["head"]
    assert averages.for_evaluation(None, {}, w["head"], {"t": 1}) is None


# ---------------------------------------------------------------------------------------------------------
# beta2 in the cooldown

def test_beta2_changes_at_the_first_step_of_the_cooldown():
    """As torch's AdamW does it, if somebody changes the betas of its groups."""
    config = settings.Settings(steps=20, warmup=0.1, cooldown=0.25, schedule="sqrt", cooldown_beta2=0.99)
    w, other = (torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4) for _ in range(2))
    other.requires_grad_()
    optimizer = Optimizer([w], "adamw", lr=0.1, weight_decay=0.1, eps=1e-8)
    theirs = torch.optim.AdamW([other], lr=0.1, betas=(0.9, 0.95), weight_decay=0.1, foreach=False)
    draw = torch.Generator().manual_seed(0)
    for t in range(1, 21):
        w.grad = torch.randn(3, 4, generator=draw, dtype=torch.float64)
        other.grad = w.grad.clone()
        scale = settings.follow_schedule(config, t, optimizer.param_groups)
        assert scale == settings.lr_scale(config, t)
        assert optimizer.param_groups[0]["beta2"] == (0.99 if t > 15 else 0.95)
        theirs.param_groups[0] |= dict(lr=0.1 * scale, betas=(0.9, 0.99 if t > 15 else 0.95))
        optimizer.step()
        theirs.step()
    assert torch.allclose(w, other.detach(), rtol=1e-12, atol=0)


def test_a_run_whose_beta2_changes(tiny, tmp_path, capsys):
    """Up to the cooldown it is the run without; it resumes in the cooldown; a wrong value is one line."""
    usual = ["--cooldown=0.5", "--keep=20", "--save_every=1", "--weight_decay=0.01"]
    assert run_tiny(tiny, tmp_path, "a", *usual) == 0
    assert run_tiny(tiny, tmp_path, "b", *usual, "--cooldown_beta2=0.5") == 0
    weights = [[runs.load_checkpoint(tmp_path / name / f"step-{t:08d}.pt")["model"]["head.weight"]
                for t in range(1, 13)] for name in "ab"]
    assert [torch.equal(a, b) for a, b in zip(*weights)] == [True] * 6 + [False] * 6
    rewound(tmp_path / "b", tmp_path / "c", 9)
    assert run_tiny(tiny, tmp_path, "c", *usual, "--cooldown_beta2=0.5", "--resume") == 0
    assert_same_run(tmp_path / "b", tmp_path / "c")
    rewound(tmp_path / "b", tmp_path / "d", 9)
    capsys.readouterr()
    for words, options in {
            "--cooldown_beta2=0.6: this run was started with 0.5": ["--cooldown_beta2=0.6", "--resume"],
            "--cooldown_beta2: beta2=1.0: must be of type float and in [0, 1)": ["--cooldown_beta2=1"],
            "--cooldown_beta2: beta2: is not a hyperparameter of signum": ["--cooldown_beta2=0.9",
                                                                           "--optimizer=signum"],
            "--cooldown_beta2: needs a cooldown": ["--cooldown_beta2=0.9", "--schedule=constant",
                                                   "--cooldown=1"]}.items():
        assert run_tiny(tiny, tmp_path, "d", *usual, *options) == 2
        assert words in capsys.readouterr().err
