"""What tests share: the program's folder on the path, a small corpus, a compiler that forgets in between."""
import functools
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor.config
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import prepare_c4    # noqa: E402
from trainer import machine    # noqa: E402
from trainer.cores import usable_cores    # noqa: E402

TINY = """
[model]
width = 16
layers = 2
heads = 2
context = 16
vocab_size = 300

[data]
data = "{data}"

[train]
steps = 12
batch = 8
eval_every = 5
eval_windows = 10
log_every = 1
save_every = 5

[lr]
adamw = 1e-2
signum = 1e-3
"""


def documents(count=60, words=120, seed=0):
    """Made-up texts with a few frequent words and many rare ones."""
    draw = random.Random(seed)
    known = ["".join(draw.choices("aeioustrnlm", k=draw.randint(1, 8))) for _ in range(200)]
    weights = [1 / (i + 1) for i in range(len(known))]
    return [" ".join(draw.choices(known, weights, k=words)) + f". Nº {i}\n" for i in range(count)]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The path of a TOML file of a tiny model, whose data is prepared."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_c4, "sotu", documents)
        assert prepare_c4.main(["--vocab=300", f"--out={folder / 'data'}"]) == 0
    (folder / "tiny.toml").write_text(TINY.format(data=folder / "data"))
    return folder / "tiny.toml"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Without names of files, all cores share the tests, each with a process of one thread. If the command
    names files, one process runs the tests, because it starts sooner. With -s and --pdb one process runs
    them, because they use the terminal."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        return
    options, cores = config.option, min(usable_cores(), 8)    # a process takes 0.7 GB of memory
    all_files = config.args_source is config.ArgsSource.TESTPATHS
    to_terminal = options.capture == "no" or options.usepdb
    if all_files and not to_terminal and cores > 1 and getattr(options, "numprocesses", 0) is None:
        options.numprocesses, options.dist = cores, "worksteal"


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="the device of the tests that are marked gpu")


@pytest.fixture(scope="session")
def device(pytestconfig):
    """The name of the device on which a test that is marked gpu computes."""
    return pytestconfig.getoption("device")


def wait_for(what, seconds):
    """Looks at what another process does until it is so, or for some seconds. Returns what was seen last."""
    end = time.monotonic() + seconds
    while not (result := what()) and time.monotonic() < end:
        time.sleep(0.005)
    return result


@functools.cache
def compiler_works() -> bool:
    return machine.compiler_works()


def pytest_runtest_setup(item):
    if item.get_closest_marker("compiled") and not compiler_works():
        pytest.skip("no working C++ compiler here")


@pytest.fixture
def devices():
    """Makes a mesh of so many devices, of which this process is the first. Of several, no other answers."""
    def mesh(size):
        backend, store = ("gloo", dist.HashStore()) if size == 1 else ("fake", FakeStore())
        dist.init_process_group(backend, store=store, rank=0, world_size=size)
        return init_device_mesh("cpu", (size,))
    yield mesh
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def clean():
    """Each test begins with the same random numbers. After every test, compiled code, the flags of the
    compiler and the number of threads are as they were."""
    threads, cpp = torch.get_num_threads(), torch._inductor.config.cpp
    flags = cpp.vec_isa_ok, cpp.march
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    torch._dynamo.reset()
    yield
    torch.set_num_threads(threads)
    cpp.vec_isa_ok, cpp.march = flags
