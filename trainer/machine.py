"""
The machine: its devices, its ranks, and what its hardware is good at.
"""
import atexit
import ctypes
import dataclasses
import getpass
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from trainer.cores import usable_cores
from trainer.errors import UserError, one_line
from trainer.options import ROOT
from zoo import files
from zoo.orthogonal import FAST_BF16

# Parameters of glibc's mallopt(), from malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


class Machine:
    """The device of this process, and the place of this process among those that torchrun started.

    Args:
        settings: an object with the options device, threads and timeout.
    Raises: UserError if the device is missing, or if the ranks cannot reach each other.

    device: the torch.device on which this process computes.
    threads: the number of CPU threads of this process.
    rank, world: the number of this process (0 is the first), and the number of processes on all machines.
    """
    def __init__(self, settings):
        local_rank = from_torchrun("LOCAL_RANK", 0)
        local_world = from_torchrun("LOCAL_WORLD_SIZE", 1)    # processes on this machine
        self.rank = from_torchrun("RANK", 0)
        self.world = from_torchrun("WORLD_SIZE", 1)
        if self.rank >= self.world:    # it would train, and write nothing
            raise UserError(f"RANK={self.rank}: must be below WORLD_SIZE={self.world}; torchrun sets both")
        # Any number of processes can share the CPU.
        available = dict(cuda=torch.cuda.device_count(), mps=int(torch.backends.mps.is_available()),
                         cpu=local_world)
        kind = settings.device
        if kind == "auto":
            kind = "cuda" if available["cuda"] else "cpu"    # mps is untested, so it must be asked for
        if not available[kind]:
            raise UserError(f"--device={kind}: this machine has none; give --device=cpu", 4)
        if local_world > available[kind]:
            raise UserError(f"--device={kind}: this machine has {available[kind]} of them for {local_world} "
                            "processes; start fewer, or give --device=cpu", 4)
        self.device = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(self.device)
        self.threads = settings.threads or max(1, usable_cores() // local_world)
        # torchrun sets the number of threads to one. This comes first, because compiled code keeps the number
        # that is in force when it is compiled.
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        if self.world > 1:
            try:
                dist.init_process_group("nccl" if kind == "cuda" else "gloo",
                                        timeout=timedelta(seconds=settings.timeout))
            except (RuntimeError, ValueError) as error:
                raise UserError(f"the {self.world} ranks could not meet: {one_line(error, 150)}", 4) from None

    def name(self) -> str:
        """Hardware identifier. Results are bit-identical only on machines with the same one."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"

    def precision(self, wish: str) -> tuple[str, str]:
        """Chooses the precision.

        Args:
            wish: "bf16", "fp32", or "auto" for what is fast on this hardware.
        Returns: "bf16" or "fp32", and the reason of the choice.
        """
        if wish != "auto":
            return wish, "as asked"
        if self.device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        elif self.device.type == "cpu":
            fast = "cpu" in FAST_BF16
        else:
            fast = False
        return ("bf16", "this hardware is fast at it") if fast else ("fp32", "bf16 is slow on this hardware")

    def attention(self, wish: str, context: int) -> tuple[str, str]:
        """Chooses how attention is computed.

        Args:
            wish: "plain", "sdpa", or "auto" for what is fast here.
            context: the length of the sequences, in tokens.
        Returns: "plain" or "sdpa", and the reason of the choice.
        """
        if wish != "auto":
            return wish, "as asked"
        if self.device.type == "cpu" and context <= 256:
            return "plain", "on CPU the fused kernels' backward is slower at short context"
        return "sdpa", "fused kernels"

    def complete(self, settings) -> tuple:
        """Fills in the settings that depend on the machine. The same machine always gets the same values.

        Args:
            settings: a frozen dataclass with the options device, precision, attention, context, loss_chunk
                and compile.
        Returns: (new settings, reason of the precision, reason of the attention).
        """
        provide_cache(settings.compile)
        precision, why_precision = self.precision(settings.precision)
        attention, why_attention = self.attention(settings.attention, settings.context)
        usual_chunk = 512 if self.device.type == "cpu" else 4096
        # threads stays as it was given. A run that resumes with other ranks shares the cores anew.
        settings = dataclasses.replace(settings, device=self.device.type, precision=precision,
                                       attention=attention,
                                       loss_chunk=settings.loss_chunk or usual_chunk,
                                       compile=settings.compile and compiler_works(precision))
        return settings, why_precision, why_attention

    def sum(self, *numbers: float | torch.Tensor) -> list[float]:
        """Returns the sum over all ranks of each of some numbers or 0-d tensors. All ranks must call it with
        the same count of numbers, and each waits for the others."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64    # mps has no float64
        packed = torch.stack([torch.as_tensor(x, dtype=dtype, device=self.device) for x in numbers])
        if self.world > 1:
            dist.all_reduce(packed)
        return packed.tolist()

    def gather(self, number: float | torch.Tensor) -> list[float]:
        """Returns the numbers of all ranks as a list: entry r is what rank r gave. All ranks must call it."""
        return self.sum(*(number if rank == self.rank else 0 for rank in range(self.world)))

    def gather_tables(self, table: dict) -> list[dict]:
        """Returns the tables of all ranks as a list: entry r is what rank r gave. All ranks must call it."""
        tables = [table] * self.world
        if self.world > 1:
            dist.all_gather_object(tables, table)
        return tables


def from_torchrun(name: str, usual: int) -> int:
    """Returns the number in an environment variable that torchrun sets, or the usual one if the variable is
    unset or empty. Raises UserError if it is no number, or less than the usual one."""
    text = os.environ.get(name) or str(usual)
    if not text.isdecimal() or int(text) < usual:
        raise UserError(f"{name}={text!r}: must be a whole number, {usual} or more; torchrun sets this "
                        "environment variable, and without torchrun it stays unset")
    return int(text)


def keep_freed_memory() -> None:
    """Tells glibc to reuse large buffers.

    By default glibc returns each large buffer to the kernel, which then clears and maps every page again for
    the next one. A step on CPU took 1.3 to 1.9 times as long with the default. The price is a fifth more
    memory at 150m. Setting MALLOC_MMAP_THRESHOLD_ disables this.
    """
    if platform.libc_ver()[0] != "glibc" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    libc = ctypes.CDLL(None)
    # Thresholds in bytes: larger buffers than these are still returned.
    libc.mallopt(M_TRIM_THRESHOLD, 2**30)
    libc.mallopt(M_MMAP_THRESHOLD, 2**30)


# ---------------------------------------------------------------------------------------------------------
# How a run ends

def reason(error: BaseException) -> UserError:
    """Translates any exception into a UserError, with the code 1 if it is a mistake of this program."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return UserError("interrupted before the first step", 75)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return UserError("out of memory; lower --micro_batch or the size of the model", 4)
    if isinstance(error, OSError):
        return UserError(f"{error.filename or 'the output or the system'}: {error.strerror or error}", 4)
    if path := files.rule_that_raised(error):
        line, source = files.where_it_failed(error, path)
        return UserError(f"{path}: {line}{type(source).__name__}: {source}")
    return UserError(f"{type(error).__name__}: {one_line(error, 200)}", 1)


def last_words(error: BaseException) -> tuple[int, str, bool]:
    """Finds out what to say about the exception that ends this rank.

    When a rank ends, the sums in which the other ranks wait for it fail as well. So a rank that ends first
    leaves its message in torchrun's store, and the others find it there as the cause. A rank that was killed
    or hangs leaves no message; then the ranks that wait for it find out together who is missing.

    Args:
        error: the exception.
    Returns: (exit code, message, whether this rank should print the message).
    """
    error = reason(error)
    if not dist.is_initialized():
        return error.code, str(error), True
    store = dist.distributed_c10d._get_default_store()
    speaker = f"rank {dist.get_rank()}: "
    sum_failed = error.code == 1 and ("gloo" in str(error) or "NCCL" in str(error))
    try:
        if sum_failed and not store.check(["last words"]):
            error = UserError(f"no answer from rank {absent(store)} ({one_line(error, 150)})", 4)
        # compare_set keeps the message of the first rank that ends, and returns it to all.
        first_message = store.compare_set("last words", "", f"{error.code} {speaker}{error}").decode()
        code, message = first_message.split(" ", 1)
    except RuntimeError:    # the store is gone, because torchrun itself has ended
        code, message = error.code, f"{speaker}{error}"
    if sum_failed or message == f"{speaker}{error}":
        return int(code), message, True
    # This rank has an error of its own. It prints it unless the first rank already printed the same.
    return error.code, f"{speaker}{error}", not message.endswith(f": {error}")


def absent(store: dist.Store, seconds: float = 2) -> str:
    """Lists the ranks that do not notice within some seconds that a sum has failed.

    Args:
        store: torchrun's store, in which every rank that notices leaves a mark.
        seconds: how long to wait for the marks of the others.
    Returns: their numbers, joined by commas, or "any" if all ranks noticed.
    """
    store.set(f"here {dist.get_rank()}", "")
    missing = set(range(dist.get_world_size()))
    end = time.monotonic() + seconds
    while missing and time.monotonic() < end:
        missing -= {rank for rank in missing if store.check([f"here {rank}"])}
        time.sleep(0.1)
    return ", ".join(map(str, sorted(missing))) or "any"


# ---------------------------------------------------------------------------------------------------------
# Compiled code

WRONG_NUMBERS = "compiled code gives wrong numbers"


def provide_cache(compiles: bool) -> None:
    """Sees to it that torch can write into its folder of compiled code. Every optimizer of torch makes this
    folder, also in a run that compiles nothing.

    Args:
        compiles: whether the run compiles. Only then does a note say that the folder cannot be used.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):    # this user has no name
        user = f"uid_{os.getuid()}"
    usual = os.path.join(tempfile.gettempdir(), f"torchinductor_{user}")    # torch's own choice
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR", usual)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        other = os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="torchinductor_")
        atexit.register(shutil.rmtree, other, ignore_errors=True)
        if compiles:
            print(f"note: TORCHINDUCTOR_CACHE_DIR={folder}: {error.strerror}; so the compiled code of this "
                  "run is not kept, and the next run compiles again")


def compiler_works(precision: str = "fp32") -> bool:
    """Finds out by a try whether torch.compile works on this machine and gives the right numbers. If it does
    not, prints a note.

    The first try trusts the CPU's flags. By default torch compiles and runs a test program for each kind of
    vector instruction, which takes 8 s if its cache is empty. The last try avoids a mistake of gcc 12 on
    a virtual machine with AVX-512, which gcc takes for a cooperlake. Where gcc vectorized code without loops,
    vectors held memory that nobody had written, and gradients in bf16 were not finite.
    """
    import torch._inductor.config as inductor    # here, because it is slow and not every run compiles

    function, arguments = probe(precision)
    failure = None
    for trusts_flags, march in ((True, None), (None, None), (None, "native -fno-tree-slp-vectorize")):
        if march and failure != WRONG_NUMBERS:
            continue
        inductor.cpp.vec_isa_ok, inductor.cpp.march = trusts_flags, march    # None: torch's default
        failure = compiler_failure(function, arguments)
        if failure is None:
            if march:
                print("note: this compiler makes mistakes where it vectorizes code without loops, so it does "
                      "not do so here (-fno-tree-slp-vectorize)")
            return True
    print(f"note: no working compiler, so all runs eagerly and slower ({failure})")
    return False


def probe(precision: str) -> tuple:
    """Returns (function, arguments) to try the compiler with. The one for bf16 is the backward pass of rotary
    positions behind a transposed product, as it occurs in the model."""
    if precision != "bf16":
        return torch.sin, (torch.linspace(0, 1, 64),)

    def rotated(x, cos, sin):
        a, b = x.transpose(-1, -2).float().chunk(2, dim=-1)
        return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1).to(x.dtype)

    x = torch.linspace(-1, 1, 64 * 64 * 128).reshape(64, 64, 128).to(torch.bfloat16)
    return rotated, (x, torch.full((128, 32), 0.8), torch.full((128, 32), 0.6))


def compiler_failure(function: Callable, arguments: tuple) -> str | None:
    """Compiles and runs a function. Returns None if the result is right, or else the reason in one line."""
    torch.compiler.reset()    # else the code of the try before would serve again
    try:
        result = torch.compile(function, fullgraph=True, dynamic=False)(*arguments)
    except Exception as error:    # it can fail in many ways: no C++ compiler, no headers, no disk space, ...
        return one_line(error, 120)
    is_right = torch.allclose(result.float(), function(*arguments).float(), rtol=2e-2, atol=2e-2)
    return None if is_right else WRONG_NUMBERS


def versions() -> dict[str, str | None]:
    """Returns what a result depends on besides the options: the versions of Python, torch and numpy, and the
    commit of this program (None if it is not a git checkout)."""
    commit = None
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    return dict(python=platform.python_version(), torch=str(torch.__version__), numpy=np.__version__,
                commit=commit)
