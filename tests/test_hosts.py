"""Two hosts, simulated on one machine by network namespaces. Each has an address, a cable connects them, and
the tests can cut it. The hosts share the disk, as the nodes of a cluster do. The tests are skipped without
root or iproute2."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from conftest import ROOT, wait_for
from tiny_runs import final, run
from trainer import runs

ADDRESSES = ("10.213.71.1", "10.213.71.2")

pytestmark = pytest.mark.slow


def ip(*arguments):
    """Runs the command ip. Returns its output, or raises CalledProcessError."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def hosts():
    """The names of two namespaces with a cable between them, and no other network. They are deleted
    afterwards."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("two hosts need root and iproute2")
    names = [f"host{i}-{os.getpid()}" for i in (0, 1)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "eth7", "netns", names[0], "type", "veth", "peer", "name", "eth7",
               "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        for name, address in zip(names, ADDRESSES):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth7")
            for link in ("lo", "eth7"):
                ip("-n", name, "link", "set", link, "up")
        yield names
    finally:
        for process in [process for name in names for process in processes(name)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def processes(name):
    """Returns the ids of the processes in a namespace."""
    done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    return [int(number) for number in done.stdout.split()]


def torchrun(names, folder, *options):
    """Starts torchrun on both hosts, as README describes. Returns the two processes of torchrun. Their output
    is in folder/host0.log and folder/host1.log."""
    started = []
    for i, name in enumerate(names):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
                   f"--node_rank={i}", f"--master_addr={ADDRESSES[0]}", "--master_port=29400",
                   "train.py", f"--runs={folder}", "--compile=false", "--threads=1", "--sample_tokens=0",
                   *options]
        environment = os.environ | dict(GLOO_SOCKET_IFNAME="eth7", PYTHONFAULTHANDLER="1")
        with open(folder / f"host{i}.log", "w") as log:
            started.append(subprocess.Popen(["ip", "netns", "exec", name, *command], cwd=ROOT, stdout=log,
                                            stderr=log, env=environment))
    return started


def end(names, folder, process, seconds):
    """Waits for a torchrun to end. Returns its exit code. If it does not end in time, the test fails and
    shows the output and the traceback of every process on both hosts."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        for name in names:
            for number in processes(name):
                os.kill(number, signal.SIGABRT)    # the fault handler writes its traceback to the log
        process.wait(30)
        logs = [log.read_text().replace("\r", "\n")[-5000:] for log in sorted(folder.glob("host*.log"))]
        pytest.fail("no end in time\n" + "\n---\n".join(logs), pytrace=False)


def test_two_hosts_agree_with_one_process(tiny, tmp_path, hosts):
    """The weights and the optimizer's state are the same, bit for bit. metrics.jsonl has the same lines, and
    each only once."""
    started = torchrun(hosts, tmp_path, f"--config={tiny}", "--name=two", "--timeout=60")
    codes = [end(hosts, tmp_path, process, 240) for process in started]
    assert codes == [0, 0], (tmp_path / "host0.log").read_text()[-2000:]
    assert run(tiny, tmp_path, "one", "--micro_batch=4") == 0
    (weights, state, rows), (weights2, state2, rows2) = (final(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(weights[k], weights2[k]) for k in weights)
    assert all(torch.equal(torch.as_tensor(state[i][k]), torch.as_tensor(state2[i][k]))
               for i in state for k in state[i])
    assert (rows[0]["ranks"], rows2[0]["ranks"]) == (1, 2)
    for a, b in zip(rows[1:], rows2[1:], strict=True):    # the mean loss is summed in another order
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6) and a.get("norm") == b.get("norm")


@pytest.mark.parametrize("death", ["killed", "cut off"])
def test_one_host_dies(tiny, tmp_path, hosts, death):
    """When the processes of one host are killed, or its cable is cut, the other host ends by itself. It
    leaves no process behind, the lock of the run's folder is free, and the newest checkpoint is undamaged."""
    started = torchrun(hosts, tmp_path, f"--config={tiny}", "--name=a", "--steps=1000000", "--eval_every=0",
                       "--save_every=20", "--timeout=10")
    folder = tmp_path / "a"
    saved = wait_for(lambda: len(list(folder.glob("step-*.pt"))) >= 2, 90)
    assert saved, (tmp_path / "host0.log").read_text()[-2000:]
    if death == "cut off":
        ip("-n", hosts[1], "link", "set", "eth7", "down")
    for number in processes(hosts[1]):
        os.kill(number, signal.SIGKILL)
    assert end(hosts, tmp_path, started[0], 90) != 0
    assert wait_for(lambda: not processes(hosts[0]), 30), "processes are left"
    assert json.loads((folder / "status.json").read_text())["status"] != "done"
    newest = max(folder.glob("step-*.pt"))
    step = runs.load_checkpoint(newest)["step"]
    assert step == int(newest.stem.removeprefix("step-")) and step % 20 == 0
    lock = runs.lock(folder / "lock")
    assert lock, "the run's folder is still locked"
    lock.close()
