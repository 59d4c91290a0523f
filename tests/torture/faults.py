"""
Runs command lines in a process of their own, or in the ranks of torchrun, with a fault in them.

    python tests/torture/faults.py FAULT FOLDER
    torchrun --nproc_per_node=2 tests/torture/faults.py FAULT@1 FOLDER

FOLDER/commands.json holds the command lines, which run one after another. Every process writes its process
id to FOLDER/pid-RANK. With @1 behind its name, a fault happens on rank 1 alone.

    none            nothing
    options         the command line gets the options of FOLDER/options.json, too
    raise           the ninth read of training data raises ValueError
    nan-loss        the loss of the ninth micro-batch is NaN
    nan-gradient    the loss of the ninth micro-batch is finite, its gradients are NaN
    slow-save       a checkpoint leaves half a temporary file, creates FOLDER/saving and waits for 1.5 s
    raise-in-save   the same, but it then raises ValueError
    full            a checkpoint finds a full disk
    denied          a checkpoint finds a disk that it may not write to
    folder          a checkpoint finds a folder in its place
    drift           the ninth step changes one weight
    record          nothing; what the run computed goes to FOLDER/NUMBER-RANK.pt, which recorded() reads
    documents       the command line is for prepare_c4.py, which gets made-up documents and small shards
"""
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import tools  # noqa: F401    first, since it puts the program on the path

# isort: split
import torch
import torch.distributed as dist

import prepare_c4
import train
import zoo
from conftest import documents
from model import Decoder
from trainer import data, runs, script


class Record:
    """What a process has done since its current command line began.

    Attributes:
        reads: a list of window numbers for every read of training or validation data.
        gradients: for every optimizer step, a list with a copy of each gradient.
        optimizer: the optimizer that made the last step.
    """
    def __init__(self):
        self.reads, self.gradients, self.optimizer = [], [], None

    def clear(self):
        self.reads.clear()
        self.gradients.clear()


def break_reads(kind, record):
    """Replaces the reading of data: reads are recorded, and the fault "raise" happens in one."""
    read = data.Tokens.__getitem__

    def broken_read(self, windows):
        record.reads.append(list(map(int, windows)))
        if kind == "raise" and len(record.reads) == 9:
            raise ValueError("boom")
        return read(self, windows)

    data.Tokens.__getitem__ = broken_read


def break_losses(kind, record):
    """Replaces the computation of the loss, in which "nan-loss" and "nan-gradient" happen."""
    losses = Decoder.losses

    def broken_losses(self, x, targets, z_loss):
        objective, loss, z = losses(self, x, targets, z_loss)
        if kind == "nan-loss" and len(record.reads) == 9:
            return objective * float("nan"), loss * float("nan"), z
        if kind == "nan-gradient" and len(record.reads) == 9:
            x.register_hook(lambda gradient: gradient * float("nan"))
        return objective, loss, z

    Decoder.losses = broken_losses


def break_saves(kind, folder):
    """Replaces the writing of a checkpoint, in which the faults of saving happen."""
    save = runs.save_checkpoint

    def broken_save(path, content):
        path = Path(path)
        if kind in ("slow-save", "raise-in-save"):
            path.with_name(f".{path.name}.1.tmp").write_bytes(b"half")
            (folder / "saving").write_text("")
        if kind == "slow-save":
            time.sleep(1.5)
        if kind == "raise-in-save":
            raise ValueError("boom")
        if kind == "full":
            raise runs.not_written(path, OSError(28, "No space left on device"), 1000)
        if kind == "denied":
            raise PermissionError(13, "Permission denied", str(path))
        if kind == "folder":
            path.mkdir(parents=True, exist_ok=True)
        save(path, content)

    runs.save_checkpoint = broken_save


def record_steps(kind, record):
    """Replaces the optimizer's step: gradients are recorded, and "drift" happens in one."""
    step = zoo.Optimizer.step

    def recorded_step(self, *arguments, **named):
        record.optimizer = self
        record.gradients.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        if kind == "drift" and len(record.gradients) == 9:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] += 1
        return step(self, *arguments, **named)

    zoo.Optimizer.step = recorded_step


def write_record(path, record):
    """Saves the first five gradients, the reads, and the sha256 of all weights and of the whole state."""
    optimizer = record.optimizer
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    tensors += [x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x)]
    sha256 = hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()
    torch.save(dict(gradients=record.gradients[:5], sha256=sha256, reads=list(record.reads)), path)


def recorded(folder, number, rank):
    """Reads what write_record() saved for a command line, counted from 0, and a rank."""
    return torch.load(folder / f"{number}-{rank}.pt", weights_only=True)


def in_another_process(fault, folder):
    """Runs the command lines of folder/commands.json with a fault. Returns the exit code."""
    folder, rank = Path(folder), int(os.environ.get("RANK", "0"))
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    commands = json.loads((folder / "commands.json").read_text())
    if len(commands) > 1 and "RANK" in os.environ:    # torchrun's store cannot make a second group
        dist.init_process_group("gloo")
        dist.init_process_group = dist.destroy_process_group = lambda *arguments, **named: None

    kind, _, victim = fault.partition("@")
    record = Record()
    if not victim or int(victim) == rank:
        break_reads(kind, record)
        break_losses(kind, record)
        break_saves(kind, folder)
        if kind in ("record", "drift"):
            record_steps(kind, record)

    if kind == "documents":
        prepare_c4.sotu = lambda: documents(6000)
        prepare_c4.SHARD_TOKENS, prepare_c4.BATCH = 10_000, 20_000
        return prepare_c4.main(commands[0])
    for number, command in enumerate(commands):
        record.clear()
        if kind == "options" and int(victim) == rank:
            command = [*command, *json.loads((folder / "options.json").read_text())]
        code = train.main(command)
        if kind == "record":
            write_record(folder / f"{number}-{rank}.pt", record)
        if code:
            return code
    return 0


if __name__ == "__main__":
    script.leave(in_another_process(*sys.argv[1:]))
