"""
The machine: the only place that knows of devices, ranks and what the hardware is good at.
"""
import ctypes
import gc
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from trainer.errors import UserError, one_line

class Machine:
    """The device of this process, and its place among those that torchrun started."""
    def __init__(self, config):
        local, here = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        has = dict(cpu=here, cuda=torch.cuda.device_count(), mps=int(torch.backends.mps.is_available()))
        kind = config.device if config.device != "auto" else next(k for k in ("cuda", "mps", "cpu") if has[k])
        if here > has[kind]:
            raise UserError(f"--device={kind}: this machine has {has[kind]} of them for {here} processes; "
                            "start fewer, or give --device=cpu", 4)
        self.device = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(self.device)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.threads = config.threads or max(1, cores // here)
        torch.set_num_threads(self.threads)    # torchrun allows one; compiled code keeps the number it finds
        keep_freed_memory()
        if self.world > 1:
            try:
                dist.init_process_group("nccl" if kind == "cuda" else "gloo",
                                        timeout=timedelta(seconds=config.timeout))
            except (RuntimeError, ValueError) as error:
                raise UserError(f"the {self.world} ranks could not meet: {one_line(error, 150)}", 4) from None

    def name(self):
        """What the same bits may be expected of."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"

    def precision(self, wish):
        """(choice, reason)"""
        if wish != "auto":
            return wish, "as asked"
        if self.device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            flags = torch.cpu.get_capabilities() if self.device.type == "cpu" else {}
            fast = flags.get("avx512_bf16") or flags.get("amx_bf16")
        return ("bf16", "this hardware is fast at it") if fast else ("fp32", "bf16 is slow on this hardware")

    def attention(self, wish, context):
        """(choice, reason)"""
        if wish != "auto":
            return wish, "as asked"
        if self.device.type == "cpu" and context <= 256:
            return "plain", "on CPU the fused kernels' backward is slower at short context"
        return "sdpa", "fused kernels"

    def sum(self, *numbers):
        """The sums of some numbers or 0-d tensors over all ranks, as floats."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        packed = torch.stack([torch.as_tensor(x, dtype=dtype, device=self.device) for x in numbers])
        if self.world > 1:
            dist.all_reduce(packed)
        return packed.tolist()

    def ranks(self, number):
        """A number that each rank has of its own, as a list over the ranks."""
        return self.sum(*(number if rank == self.rank else 0 for rank in range(self.world)))

def keep_freed_memory():
    """Tells glibc to reuse large buffers: by default it gives each back to the kernel, which then clears and
    maps every page of it again. A step on CPU took 1.3 to 1.9 times as long. The price is memory, a fifth at
    150m; who sets glibc's own variable decides otherwise."""
    ours = platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ
    libc = ctypes.CDLL(None) if ours else None
    for trim_or_map_threshold in (-1, -3) if libc else ():
        libc.mallopt(trim_or_map_threshold, 2**30)    # bytes

# ---------------------------------------------------------------------------------------------------------
# What ends a run

def reason(error):
    """The UserError that an exception amounts to; its code is 1 if it is a mistake of this program."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return UserError("interrupted; nothing had changed since the start", 75)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return UserError("out of memory; lower --micro_batch or the size of the model", 4)
    if isinstance(error, OSError):
        return UserError(f"{error.filename or 'the system'}: {error.strerror or error}", 4)
    return UserError(f"{type(error).__name__}: {one_line(error, 200)}", 1)

def last_words(error):
    """(exit code, message, whether it is for this rank to say it) of the exception that ends a rank.

    A rank that ends breaks the sums in which the others wait for it. So it first leaves word in torchrun's
    store, where they find it. A rank that was killed, or hangs, leaves none: then those who wait for it
    call the roll.
    """
    error = reason(error)
    if not dist.is_initialized():
        return error.code, str(error), True
    store, me = dist.distributed_c10d._get_default_store(), f"rank {dist.get_rank()}: "
    waited = error.code == 1 and ("gloo" in str(error) or "NCCL" in str(error))
    try:
        if waited and not store.check(["last words"]):
            error = UserError(f"no answer from rank {absent(store)} ({one_line(error, 150)})", 4)
        code, said = store.compare_set("last words", "", f"{error.code} {me}{error}").decode().split(" ", 1)
    except RuntimeError:    # torchrun itself has ended
        code, said = error.code, f"{me}{error}"
    if waited or said == f"{me}{error}":
        return int(code), said, True
    return error.code, f"{me}{error}", not said.endswith(f": {error}")

def absent(store, seconds=2):
    """The ranks that do not notice within some seconds that a sum has failed."""
    store.set(f"here {dist.get_rank()}", "")
    others, end = set(range(dist.get_world_size())), time.monotonic() + seconds
    while others and time.monotonic() < end:
        others -= {rank for rank in others if store.check([f"here {rank}"])}
        time.sleep(0.1)
    return ", ".join(map(str, sorted(others))) or "any"

def keep_imports():
    """For a script that has switched the garbage collector off while it imports: what is there by now stays,
    so from here on neither the collector nor the exit look through it again."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()

def leave(code):
    """Ends the process. A rank leaves at once: DDP never lets go of its process group, and a thread of Gloo
    that still holds a tensor aborts the interpreter's own way out."""
    if "RANK" in os.environ:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    gc.freeze()    # without it, to leave takes a second
    sys.exit(code)

def compiler_works():
    """Whether torch.compile works on this machine, which only a try can tell. The first try believes the
    CPU's flags: to compile and run a test for each kind of vector would take 8 s where nothing is cached."""
    import torch._inductor.config as inductor
    for inductor.cpp.vec_isa_ok in (True, None):
        try:
            torch.compile(lambda x: x.sin() + 1, fullgraph=True)(torch.ones(8))
            return True
        except Exception as error:    # it has many ways to fail: no C++ compiler, no headers, no space, ...
            reason = one_line(error, 120)
    print(f"note: no working compiler, so all runs eagerly and slower ({reason})")
    return False

def versions():
    """What a result depends on besides the options. commit: of this program, if it is a git checkout."""
    here = Path(__file__).parent
    commit = None
    if (here / ".git").exists() and shutil.which("git"):
        commit = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True)
        commit = commit.stdout.strip() or None
    return dict(python=platform.python_version(), torch=str(torch.__version__), numpy=np.__version__,
                commit=commit)
