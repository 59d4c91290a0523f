"""
What the folders of runs hold, and what differs between two of them.
"""
import json
from pathlib import Path

import torch

from tiny_runs import final


def differences(folder, other, metrics=True):
    """Compares two finished runs bit for bit.

    Args:
        folder, other: the folders of the two runs.
        metrics: whether to compare the rows of metrics.jsonl, too.

    Returns:
        The names of the weights, state entries and files that differ; an empty list if none does.
    """
    contents, rows = [], []
    for run_folder in (folder, other):
        weights, states, all_rows = final(run_folder)
        content = dict(weights)
        for i, state in states.items():
            content |= {(i, key): torch.as_tensor(value) for key, value in state.items()}
        contents.append(content)
        rows.append([row for row in all_rows if row["kind"] == "train" or row["step"]])
    first, second = contents
    if first.keys() != second.keys():
        return ["keys"]
    different = [key for key in first if first[key].dtype != second[key].dtype
                 or not torch.equal(first[key], second[key])]
    if metrics and rows[0] != rows[1]:
        different.append("metrics")
    return different


def snapshot(folder):
    """Returns {path: (modification time, content)} of everything below a folder."""
    return {path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
            for path in sorted(Path(folder).rglob("*"))}


def read_json(path):
    """Returns the content of a JSON file."""
    return json.loads(Path(path).read_text())


def step_of(checkpoint):
    """Returns the step in the name of a checkpoint's file."""
    return int(Path(checkpoint).stem.removeprefix("step-"))


def checkpoints(folder):
    """Returns the paths of the checkpoints in a run's folder, oldest first."""
    return sorted(Path(folder).glob("step-*.pt"))
