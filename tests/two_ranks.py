"""torchrun starts this file with two ranks. It trains every variant of tiny_runs.py with one micro-batch on
each rank, then AdamW with two micro-batches on each rank: once with gradients that are views into DDP's
buckets, and once with gradients that are copies."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import torch    # noqa: E402
import torch.distributed as dist    # noqa: E402

from trainer import script    # noqa: E402
import tiny_runs    # noqa: E402

config, folder = sys.argv[1:]
dist.init_process_group("gloo")    # one group for all runs: torchrun's store cannot make a second
dist.init_process_group = dist.destroy_process_group = lambda *arguments, **options: None
for name, more in (tiny_runs.VARIANTS | tiny_runs.ZOO).items():
    code = tiny_runs.run(config, folder, f"two-{name}", *more)
    if code:
        sys.exit(f"{name}: exit code {code}")
ddp = torch.nn.parallel.DistributedDataParallel
for name, class_ in dict(views=ddp, copies=lambda model, **more: ddp(model, broadcast_buffers=False)).items():
    torch.nn.parallel.DistributedDataParallel = class_
    code = tiny_runs.run(config, folder, f"two-{name}", "--optimizer=adamw", "--micro_batch=2")
    if code:
        sys.exit(f"{name}: exit code {code}")
if len(script.NEVER_FREED) != len(tiny_runs.VARIANTS | tiny_runs.ZOO) + 2:
    sys.exit("a run has freed its DDP, which may wait for ever")
dist.barrier()    # a rank that leaves while the other still talks to it takes that one down
script.leave(0)
