"""
The memory that --plan predicts, compared with what is measured. On the CPU that is the largest resident size
of the process, less its size before the model exists; on a GPU, the most bytes of tensors. It takes minutes
and gigabytes, so pytest does not collect it.

    python -m pytest -s tests/memory.py              two steps of 150m each, within 10 %
    MALLOC_MMAP_THRESHOLD_=1000000 python tests/memory.py configs/300m.toml --optimizer=signum \\
        --precision=bf16 --attention=sdpa --loss_chunk=512 --compile=false --context=64 --batch=2

With MALLOC_MMAP_THRESHOLD_, freed memory goes back to the system at once. The prediction is for that.
"""
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import train    # noqa: E402
import zoo    # noqa: E402
from model import Decoder    # noqa: E402
from trainer import data, plan, settings    # noqa: E402


def random_data(folder, vocab_size, tokens=20_000):
    """Writes token shards with random ids into a folder."""
    ids, splits = np.random.default_rng(0).integers(0, vocab_size, tokens), {}
    for split in ("train", "val"):
        header, body = data.shard_bytes(ids, vocab_size)
        Path(folder, f"{split}.bin").write_bytes(header + bytes(body))
        sha256 = json.loads(header[len(data.MAGIC):])["sha256"]
        splits[split] = dict(tokens=tokens, bytes=4 * tokens,
                             shards=[dict(file=f"{split}.bin", tokens=tokens, sha256=sha256)])
    Path(folder, "meta.json").write_text(json.dumps(dict(vocab_size=vocab_size, splits=splits)))


def in_use(on_gpu):
    """Returns the bytes in use: those of all tensors on the GPU, or the resident size of this process."""
    if on_gpu:
        return torch.cuda.memory_allocated()
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def most_in_use(on_gpu):
    """Returns the most bytes that this process has had in use."""
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def predicted(argv):
    """Returns the largest number of bytes that --plan predicts for a command line."""
    estimate, peaks = plan.estimate, []

    def estimate_and_keep(*arguments):
        result = estimate(*arguments)
        peaks.append(result["peak"])
        return result

    with mock.patch.object(plan, "estimate", estimate_and_keep):
        assert train.main([*argv, "--plan"]) == 0
    return peaks[0]


def agree(predicted_bytes, measured_bytes):
    """Whether prediction and measurement agree within 10 %."""
    return abs(predicted_bytes - measured_bytes) <= 0.1 * measured_bytes


def measured(argv, folder, steps=2):
    """Trains some steps on random data in this process. The data and runs/1 are in the folder. Returns the
    bytes that these steps needed."""
    init, step, before, after = Decoder.__init__, zoo.Optimizer.step, [], []
    config = settings.read(argv)[0]
    on_gpu = config.device == "cuda" or config.device == "auto" and torch.cuda.is_available()

    def init_after_measuring(self, **shape):
        before.append(in_use(on_gpu))
        init(self, **shape)

    def step_and_measure(self, *arguments, **named):
        step(self, *arguments, **named)
        after.append(most_in_use(on_gpu))

    random_data(folder, config.vocab_size)
    with mock.patch.object(Decoder, "__init__", init_after_measuring), \
            mock.patch.object(zoo.Optimizer, "step", step_and_measure):
        code = train.main([*argv, f"--data={folder}", f"--runs={folder}/runs", "--name=1", f"--steps={steps}",
                           "--eval_every=0", "--save_every=0", "--final_windows=1", "--sample_tokens=0"])
    assert code == 0, f"train.py ended with exit code {code}"
    assert len(after) == steps
    return after[-1] - before[0]


SMALL = ["--precision=bf16", "--attention=sdpa", "--loss_chunk=512", "--compile=false"]


@pytest.mark.parametrize("more", [["--context=64", "--batch=2"], ["--context=256", "--batch=4"],
                                  ["--context=256", "--batch=8", "--micro_batch=4"]])
@pytest.mark.parametrize("optimizer", ["adamw", "signum"])
def test_150m(optimizer, more):
    """Each case needs a process of its own, since the largest resident size of a process never falls."""
    command = [sys.executable, __file__, "configs/150m.toml", f"--optimizer={optimizer}", *SMALL, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT,
                          env=os.environ | dict(MALLOC_MMAP_THRESHOLD_="1000000"))
    assert done.returncode == 0, done.stderr
    last_line = done.stdout.splitlines()[-1]
    print(f"\n{optimizer} {' '.join(more)}: {last_line}")
    predicted_bytes, measured_bytes = map(int, re.findall(r"\d+", last_line.replace(",", "")))
    assert agree(predicted_bytes, measured_bytes)


if __name__ == "__main__":
    config, *more = sys.argv[1:]
    argv = [f"--config={config}", *more]
    with tempfile.TemporaryDirectory() as folder:
        measured_bytes = measured(argv, folder)    # first, since a plan before it would take memory
    print(f"{predicted(argv):,} bytes predicted, {measured_bytes:,} measured")
