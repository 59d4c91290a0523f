"""Two hosts on one machine: network namespaces with an address each, joined by a cable that can be cut. They
share the disk, as nodes of a cluster do. Needs root and iproute2, and says so where it is skipped."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from trainer import runs
from conftest import ROOT, wait_for
from test_train import final, run

ADDRESSES = ("10.213.71.1", "10.213.71.2")


def ip(*arguments):
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def hosts():
    """The names of two namespaces with a cable between them. Afterwards nothing of them is left."""
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
        for name in names:
            for process in processes(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def processes(name):
    done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    return [int(number) for number in done.stdout.split()]


def torchrun(names, folder, *options):
    """Starts torchrun on both hosts, as README says. Returns the two processes."""
    started = []
    for i, name in enumerate(names):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
                   f"--node_rank={i}", f"--master_addr={ADDRESSES[0]}", "--master_port=29400", "--",
                   "train.py", f"--runs={folder}", "--compile=false", "--threads=1", "--sample_tokens=0",
                   *options]
        with open(folder / f"host{i}.log", "w") as log:
            more = dict(GLOO_SOCKET_IFNAME="eth7", PYTHONFAULTHANDLER="1")
            started.append(subprocess.Popen(["ip", "netns", "exec", name, *command], cwd=ROOT, stdout=log,
                                            stderr=log, env=os.environ | more))
    return started


def end(names, folder, process, seconds):
    """The exit code of a torchrun. If it does not end in time, the test fails with what every process on both
    hosts is doing, and what it said."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        for number in [number for name in names for number in processes(name)]:
            os.kill(number, signal.SIGABRT)    # its traceback goes to the log
        process.wait(30)
        logs = [log.read_text().replace("\r", "\n")[-5000:] for log in sorted(folder.glob("host*.log"))]
        pytest.fail("no end in time\n" + "\n---\n".join(logs), pytrace=False)


def test_two_hosts_are_one_process(tiny, tmp_path, hosts):
    """Weights and state bit for bit, and the same numbers in metrics.jsonl, each once."""
    started = torchrun(hosts, tmp_path, f"--config={tiny}", "--run=two", "--timeout=60")
    codes = [end(hosts, tmp_path, process, 240) for process in started]
    assert codes == [0, 0], (tmp_path / "host0.log").read_text()[-2000:]
    assert run(tiny, tmp_path, "one", "--micro_batch=4") == 0
    (weights, state, rows), (weights2, state2, rows2) = (final(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(weights[k], weights2[k]) for k in weights)
    assert all(torch.equal(torch.as_tensor(state[i][k]), torch.as_tensor(state2[i][k]))
               for i in state for k in state[i])
    assert (rows[0]["ranks"], rows2[0]["ranks"]) == (1, 2)
    for a, b in zip(rows[1:], rows2[1:], strict=True):    # mean losses are summed in another order
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6) and a.get("norm") == b.get("norm")


@pytest.mark.parametrize("death", ["killed", "cut off"])
def test_one_host_dies(tiny, tmp_path, hosts, death):
    """Its processes are killed, or nothing is heard of it any more: the other one ends by itself, nothing of
    it is left running, the run's folder is free and its newest checkpoint whole."""
    started = torchrun(hosts, tmp_path, f"--config={tiny}", "--run=a", "--steps=1000000", "--eval_every=0",
                       "--save_every=20", "--timeout=10")
    folder = tmp_path / "a"
    saved = wait_for(lambda: len(list(folder.glob("step-*.pt"))) >= 2, 90)
    assert saved, (tmp_path / "host0.log").read_text()[-2000:]
    if death == "cut off":
        ip("-n", hosts[1], "link", "set", "eth7", "down")
    for process in processes(hosts[1]):
        os.kill(process, signal.SIGKILL)
    assert end(hosts, tmp_path, started[0], 90) != 0
    assert wait_for(lambda: not processes(hosts[0]), 30), "processes are left"
    assert json.loads((folder / "status.json").read_text())["status"] != "done"
    newest = max(folder.glob("step-*.pt"))
    step = runs.load_checkpoint(newest)["step"]
    assert step == int(newest.stem.removeprefix("step-")) and step % 20 == 0
    lock = runs.lock(folder / "lock")
    assert lock, "the run's folder is still locked"
    lock.close()
