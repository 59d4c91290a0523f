"""Runs of a tiny model, and what tests compare of them. Shared by the tests of the trainer."""
import json
import shutil
from pathlib import Path

import torch

import optim
import train
import zoo
from trainer import runs

VARIANTS = {name: [f"--optimizer={name}"] for name in optim.RULES} | {
    "hybrid": ["--optimizer=adalayer_star", "--adaptive=head+norm", "--rest=sgd_ema", "--rest_lr=1"],
    "hybrid_adasgd": ["--optimizer=adalayer_star", "--adaptive=head+norm", "--rest=adasgd", "--rest_lr=1e-2"],
    "frozen": ["--optimizer=adalayer_star", "--freeze_steps=3", "--updating=head+norm"],
    "untrained": ["--optimizer=adalayer", "--untrained=norm", "--rows=head+embed", "--weight_decay=0.1"],
    "by_role": ["--optimizer=adamw", "--lr_of=head:0.5,matrix:2", "--beta1_of=qkv:0.8", "--weight_decay=0.1",
                "--weight_decay_of=norm:0"],
}
ZOO = {name: [f"--optimizer={name}", "--weight_decay=0.01"] for name in zoo.RULES if name not in optim.RULES}
for name in ("apollo", "apollo_mini", "soap", "sophia"):
    ZOO[name] += ["--refresh_steps=2"]    # on either side of a resume
ZOO |= {name: ["--optimizer=muon", f"--modify={name}", "--weight_decay=0.01"] for name in zoo.MODIFIERS}
ZOO |= {name: ["--optimizer=adamw", f"--average={name}"] for name in zoo.AVERAGES}
ZOO["lawa"] += ["--lawa_every=2"]
ZOO["adagc"] += ["--adagc_warmup_steps=3"]


def run(tiny: Path, runs_folder: Path, name: str, *more: str, compile: bool = False) -> int:
    """Exit code of a run of the tiny model. A later option takes the place of an earlier one."""
    usual = [f"--config={tiny}", f"--runs={runs_folder}", f"--name={name}",
             f"--compile={str(compile).lower()}", "--sample_tokens=0", "--device=cpu",
             "--threads=1"]    # the products are so small that a second thread only waits
    return train.main(list({option.split("=")[0]: option for option in [*usual, *more]}.values()))


def assert_refused(tiny: Path, folder: Path, capsys, arguments: list, words: str) -> None:
    """Asserts that these options of train.py lead to one line of error with these words, and to no run."""
    usual = [f"--config={tiny}"] if "--config" not in arguments[0] else []
    code = train.main([*usual, f"--runs={folder / 'runs'}", "--compile=false", *arguments])
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("train.py: error: ") and words in err
    assert err.count("\n") == 1 and len(err) <= 300 and err.rstrip().isprintable()
    assert not list(folder.glob("runs/*"))


def final(folder: Path) -> tuple:
    """(weights, optimizer state, metrics without times) of a finished run."""
    checkpoint = runs.load_checkpoint(sorted(folder.glob("step-*.pt"))[-1])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if k not in ("tokens_per_second", "config")} for row in rows]
    return checkpoint["model"], checkpoint["optimizer"]["state"], rows


def assert_same_run(a: Path, b: Path) -> None:
    """Two finished runs have the same bits in weights and state, and the same metrics."""
    (weights, state, rows), (weights2, state2, rows2) = final(a), final(b)
    assert weights.keys() == weights2.keys() and all(torch.equal(weights[k], weights2[k]) for k in weights)
    assert state.keys() == state2.keys()
    for i in state:
        assert state[i].keys() == state2[i].keys()
        for key, value in state[i].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(state2[i][key])), (i, key)
    assert rows == rows2


def rewound(folder: Path, to: Path, step: int) -> Path:
    """A copy of a run's folder as a kill just after the checkpoint of `step` would have left it."""
    shutil.copytree(folder, to)
    for path in to.glob("step-*.pt"):
        if int(path.stem[5:]) > step:
            path.unlink()
    runs.write_json(to / "status.json", dict(status="running", step=0, steps=12))
    return to
