"""The memory that --plan foretells beside what is measured on the CPU: resident size at its largest, less
that before the model exists. Minutes and gigabytes, so not collected; by hand:

    python -m pytest -s tests/memory.py              two steps of 150m each, within 10 %
    MALLOC_MMAP_THRESHOLD_=1000000 python tests/memory.py configs/300m.toml --optimizer=signum \\
        --precision=bf16 --attention=sdpa --loss_chunk=512 --compile=false --context=64 --batch=2

The variable makes malloc give back at once what is freed.
"""
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from trainer import data     # noqa: E402
import optim    # noqa: E402
from trainer import plan     # noqa: E402
import train    # noqa: E402


def random_data(folder, vocab_size, tokens=20_000):
    """A folder of data of random ids."""
    ids, splits = np.random.default_rng(0).integers(0, vocab_size, tokens), {}
    for split in ("train", "val"):
        header, body = data.shard_bytes(ids, vocab_size)
        Path(folder, f"{split}.bin").write_bytes(header + bytes(body))
        sha256 = json.loads(header[len(data.MAGIC):])["sha256"]
        splits[split] = dict(tokens=tokens, bytes=4 * tokens,
                             shards=[dict(file=f"{split}.bin", tokens=tokens, sha256=sha256)])
    Path(folder, "meta.json").write_text(json.dumps(dict(vocab_size=vocab_size, splits=splits)))
    return folder


def measured(config, *more):
    """Trains two steps here. Returns (bytes foretold, bytes measured)."""
    config, steps, seen = f"--config={config}", [], {}
    settings = train.read_options([config, *more])[0]
    Decoder, step, show = train.Decoder, optim.Optimizer.step, plan.show

    def resident():
        return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

    def build(**shape):
        seen.setdefault("before", resident())
        return Decoder(**shape)

    def last_step(optimizer, **sampled):
        step(optimizer, **sampled)
        steps.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    train.Decoder, optim.Optimizer.step = build, last_step
    with tempfile.TemporaryDirectory() as folder:
        random_data(folder, settings.vocab_size)
        code = train.main([config, f"--data={folder}", f"--runs={folder}/runs", "--steps=2", "--eval_every=0",
                           "--save_every=0", "--final_windows=1", "--sample_tokens=0", *more])
    train.Decoder, optim.Optimizer.step = Decoder, step
    assert code == 0 and len(steps) == 2
    train.plan.show = lambda *arguments: seen.update(foretold=plan.estimate(*arguments)["peak"])
    assert train.main([config, *more, "--plan"]) == 0
    train.plan.show = show
    return seen["foretold"], steps[-1] - seen["before"]


SMALL = ["--precision=bf16", "--attention=sdpa", "--loss_chunk=512", "--compile=false"]


@pytest.mark.parametrize("more", [["--context=64", "--batch=2"], ["--context=256", "--batch=4"],
                                  ["--context=256", "--batch=8", "--micro_batch=4"]])
@pytest.mark.parametrize("optimizer", ["adamw", "signum"])
def test_150m(optimizer, more):
    """In a process of its own: the largest resident size never falls again."""
    done = subprocess.run([sys.executable, __file__, "configs/150m.toml", f"--optimizer={optimizer}", *SMALL,
                           *more], capture_output=True, text=True, cwd=Path(__file__).parent.parent,
                          env=os.environ | dict(MALLOC_MMAP_THRESHOLD_="1000000"))
    print(f"\n{optimizer} {' '.join(more)}: {done.stdout.splitlines()[-1]}")
    foretold, real = map(int, re.findall(r"\d+", done.stdout.splitlines()[-1].replace(",", "")))
    assert abs(foretold - real) <= 0.1 * real


if __name__ == "__main__":
    print("{:,} bytes foretold, {:,} measured".format(*measured(*sys.argv[1:])))
