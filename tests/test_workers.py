"""Distributed Lion and DiLoCo, with one worker in this process and with three in others."""
import copy
import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from lessons import toys, workers
from rule_cases import normal
from zoo import Optimizer
from zoo.distributed import VOTES, DiLoCo, voting_lion


@pytest.fixture
def alone():
    """Makes this process the only worker."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(steps, seed=0):
    return normal(steps, 4, 3, seed=seed)


def start():
    return torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


def run(optimizer, w, grads):
    for g in grads:
        w.grad = g.clone()
        optimizer.step()
    return w


@pytest.mark.parametrize("vote", VOTES)
def test_one_worker_is_lion(vote, alone):
    a, b = start(), start()
    run(Optimizer([a], voting_lion(vote), lr=0.1, weight_decay=0.1), a, gradients(5))
    run(Optimizer([b], "lion", lr=0.1, weight_decay=0.1), b, gradients(5))
    assert torch.equal(a, b) and not torch.equal(a, start())


def test_the_outer_step_is_nesterovs_sgd_of_torch(alone):
    """The gradient of the outer step is how far the inner steps went."""
    w, old = start(), start()
    diloco = DiLoCo(Optimizer([w], "sgd", lr=0.1, beta1=0.0), inner_steps=3, outer_lr=0.7, beta1=0.9)
    outer = torch.optim.SGD([old], lr=0.7, momentum=0.9, nesterov=True)
    for three in gradients(9).split(3):
        run(diloco, w, three)
        old.grad = 0.1 * three.sum(0)
        outer.step()
        assert torch.allclose(w, old, rtol=0, atol=1e-14)


def test_diloco_resumes_bit_for_bit(alone):
    def built(w):
        return DiLoCo(Optimizer([w], "adamw", lr=0.1), inner_steps=2)
    whole, part = start(), start()
    run(built(whole), whole, gradients(7))
    saved = built(part)
    run(saved, part, gradients(7)[:3])
    state, again = copy.deepcopy(saved.state_dict()), part.clone()
    resumed = built(again)
    resumed.load_state_dict(state)
    run(resumed, again, gradients(7)[3:])
    assert torch.equal(again, whole) and resumed.steps_taken == 7


def three(rank, folder):
    """Is one of three workers, whose first gradients have the signs of the rows below."""
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 3), rank=rank, world_size=3)
    signs = torch.tensor([[1.0, 1.0, -1.0], [1.0, -1.0, -1.0], [1.0, -1.0, 0.0]])
    moved = {}
    for vote in VOTES:
        w = torch.zeros(3)
        run(Optimizer([w], voting_lion(vote), lr=1.0), w, [0.1 * signs[rank]])
        moved[vote] = (-w).tolist()
    w = torch.zeros(3)
    run(DiLoCo(Optimizer([w], "sgd", lr=1.0, beta1=0.0), inner_steps=2, outer_lr=0.5, beta1=0.0), w,
        [signs[rank], signs[rank]])
    moved["diloco"] = (-w).tolist()
    Path(folder, f"{rank}.json").write_text(json.dumps(moved))
    dist.barrier()
    os._exit(0)    # the threads of gloo outlive the process group and may abort a usual exit


@pytest.mark.slow
def test_three_workers_by_hand(tmp_path):
    torch.multiprocessing.spawn(three, (str(tmp_path),), nprocs=3)
    moved = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert moved[0] == moved[1] == moved[2]
    assert moved[0]["majority_vote"] == [1, -1, -1]
    assert moved[0]["mean_of_signs"] == pytest.approx([1, -1 / 3, -2 / 3])
    assert moved[0]["diloco"] == pytest.approx([1, -1 / 3, -2 / 3])    # 0.5 times the mean of two steps each


def worker_of_a_short_toy(*arguments):
    toys.TOYS["zipf"] = toys.TOYS["zipf"]._replace(steps=10)
    worker(*arguments)


worker = workers.worker    # of the lesson, also while a test puts the function above in its place


@pytest.mark.slow
def test_two_workers_stay_together_and_both_votes_are_the_same(monkeypatch):
    """If two workers disagree, both votes give 0. This is the answer to the lesson's exercise."""
    monkeypatch.setattr(workers, "worker", worker_of_a_short_toy)
    rows = {row.pop("way"): row for row in workers.compare(workers=2)}
    assert rows.keys() == workers.WAYS.keys() and all(row["apart"] == 0 for row in rows.values())
    assert rows["lion, majority vote"] == rows["lion, mean of signs"]


def test_no_vote_talks_before_the_first_step():
    """Without a process group, only a step fails."""
    w = start()
    optimizer = Optimizer([w], voting_lion("majority_vote"), lr=0.1)
    with pytest.raises(ValueError, match="process group"):
        run(optimizer, w, gradients(1))


def test_the_lesson_with_one_worker(alone, monkeypatch, capsys):
    """There a vote changes nothing, so three of the five ways are the same."""
    monkeypatch.setitem(toys.TOYS, "zipf", toys.TOYS["zipf"]._replace(steps=10))
    runs = {way: workers.train(way, 0.03, seed=0) for way in workers.WAYS}
    assert all(run["apart"] == 0 for run in runs.values())
    assert len({run["loss"] for way, run in runs.items() if "lion" in way}) == 1
    assert len({run["loss"] for run in runs.values()}) == 3
    monkeypatch.setattr(workers, "compare", lambda seed: [
        dict(way=way, bits=workers.WAYS[way][2], lr=0.03, **run) for way, run in runs.items()])
    workers.main(["--seed=0"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[2].strip() for row in rows] == ["32", "3.2", "32", "1", "1"]
