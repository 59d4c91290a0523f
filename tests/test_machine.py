"""The program on machines of all kinds: signals, terminals that vanish, containers, folders that refuse."""
import errno
import fcntl
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

import train
from conftest import ROOT
from tiny_runs import assert_same_run, run
from trainer import cores, machine, options, runs, script, settings
from trainer.errors import UserError, nearest


# ---------------------------------------------------------------------------------------------------------
# Signals

@pytest.mark.parametrize("argv, code", [(["--optimizer=list"], 0), (["--lr=x"], 2)])
def test_the_signal_handlers_of_before_are_back(argv, code):
    """A longer program calls train.main(), which ends well or fails."""
    def own(number, frame):
        pass

    before = {number: signal.signal(number, own) for number in script.ENDING}
    try:
        assert train.main(argv) == code
        assert [signal.getsignal(number) for number in script.ENDING] == [own] * len(script.ENDING)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_each_signal_saves_and_ends_the_run(tiny, tmp_path, monkeypatch, name):
    log = runs.Run.log

    def signalled(self, kind, step, **numbers):
        log(self, kind, step, **numbers)
        if (kind, step) == ("train", 2):
            os.kill(os.getpid(), getattr(signal, name))

    monkeypatch.setattr(runs.Run, "log", signalled)
    with script.surroundings_restored():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)    # the tests themselves may run behind nohup
        assert run(tiny, tmp_path, "a", "--eval_every=0") == 75
    status = json.loads((tmp_path / "a/status.json").read_text())
    assert status == dict(status="interrupted", step=3, steps=12)
    assert (tmp_path / "a/step-00000003.pt").exists()


def test_the_stdout_of_before_is_back():
    """Ranks other than 0 print into another one."""
    @script.surroundings_restored()
    def silent():
        sys.stdout = io.StringIO()

    before = sys.stdout
    silent()
    assert sys.stdout is before


def test_nohup_is_respected():
    with script.surroundings_restored():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        script.on_signals(signal.default_int_handler)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGUSR2) == signal.default_int_handler


def test_output_to_a_terminal_that_is_gone_vanishes(monkeypatch, tmp_path):
    """A signal that comes while the terminal is there silences nothing."""
    screen, terminal = os.openpty()
    with open(terminal, "w") as lost, open(tmp_path / "log", "w") as log:
        monkeypatch.setattr(sys, "stdout", lost)
        monkeypatch.setattr(sys, "stderr", log)
        script.silence_lost_terminal()
        print("seen", flush=True)
        assert os.read(screen, 100) == b"seen\r\n"
        os.close(screen)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(terminal, b"x")
        script.silence_lost_terminal()
        print("unseen", flush=True)
        print("logged", file=log)
    assert (tmp_path / "log").read_text() == "logged\n"


# ---------------------------------------------------------------------------------------------------------
# Output

class Full(io.StringIO):
    """A stream to a full disk."""
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stderr_that_cannot_be_written_fails_the_run(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Full())
    assert run(tiny, tmp_path, "a") == 4
    assert json.loads((tmp_path / "a/status.json").read_text()) == dict(
        status="failed", message="the output or the system: No space left on device")


def test_the_status_is_set_before_anything_is_said(tiny, tmp_path, monkeypatch):
    """The run diverges, and what it says about it cannot be written."""
    clock = train.Training.begin

    def begin(self):
        clock(self)
        self.bar.fp = Full()

    monkeypatch.setattr(train.Training, "begin", begin)
    assert run(tiny, tmp_path, "a", "--stop_loss=0.1") == 4
    assert json.loads((tmp_path / "a/status.json").read_text())["status"] == "diverged"


@pytest.fixture
def as_a_script():
    """Undoes what script.begin() does to this process."""
    before = warnings.formatwarning
    with script.surroundings_restored():
        yield
    warnings.formatwarning = before
    script.gc.enable()


def test_what_a_terminal_cannot_show_is_replaced(monkeypatch, as_a_script):
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", None)    # as with 2>&-
    script.begin("x.py")
    print("Größe ≥ 5", end="", flush=True)
    print("nowhere", file=sys.stderr)
    assert out.buffer.getvalue() == "Größe ? 5".encode("latin-1")


def test_a_warning_is_one_line(as_a_script):
    script.begin("x.py")
    assert warnings.formatwarning("too big", UserWarning, "a.py", 3, line=None) == "x.py: warning: too big\n"


def test_ctrl_c_is_one_line(monkeypatch, capsys, as_a_script):
    """While a script imports, and where its main() does not handle it."""
    def leave(code):
        raise SystemExit(code)

    def main(argv):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "_exit", leave)
    script.begin("x.py")
    with pytest.raises(SystemExit, match="75"):
        os.kill(os.getpid(), signal.SIGINT)
    assert capsys.readouterr().err == "x.py: interrupted before it began\n"
    with pytest.raises(SystemExit, match="75"):
        script.run("x.py", main)
    assert capsys.readouterr().err == "x.py: interrupted\n"


@pytest.mark.parametrize("path", ["train.py", "prepare_c4.py", "sample.py", "bench.py", "study/__main__.py"])
def test_every_script_begins_before_its_slow_imports(path):
    text = (ROOT / path).read_text()
    name = "study" if path.startswith("study") else path
    before, _, after = text.partition(f'if __name__ == "__main__":\n    script.begin("{name}")\n')
    imports = [line.split()[1] for line in before.splitlines() if line.startswith(("import ", "from "))]
    assert {word.partition(".")[0] for word in imports} - {"trainer"} <= sys.stdlib_module_names
    assert after.endswith(f'if __name__ == "__main__":\n    script.run("{name}", main)\n')


@pytest.mark.slow
def test_hostile_surroundings(tiny, tmp_path):
    """A notebook's MPLBACKEND, a log in latin-1, an empty RANK, a folder of compiled code that cannot be
    made, another working folder, and no docstrings. A run without compiled code is not disturbed."""
    surroundings = dict(MPLBACKEND="module://matplotlib_inline.backend_inline", PYTHONIOENCODING="latin-1",
                        RANK="", TORCHINDUCTOR_CACHE_DIR="/dev/null/cache")
    done = subprocess.run([sys.executable, "-OO", ROOT / "train.py", f"--config={tiny}", "--name=a",
                           "--compile=false", "--threads=1"], cwd=tmp_path, capture_output=True,
                          env=os.environ | surroundings)
    out = done.stdout.decode("latin-1")
    assert done.returncode == 0, done.stderr.decode("latin-1")
    assert "final validation loss" in out and "tokens from the model" in out and "note:" not in out
    assert (tmp_path / "runs/a/loss.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------------------------------------------------
# Containers and ranks

@pytest.mark.parametrize("files, expected", [
    ({}, float("inf")),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, float("inf")),
    ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
      "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 2),
    ({"proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/docker/3fa\n0::/x\n",    # as a container sees it
      "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
      "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ({"proc/self/cgroup": "4:cpu,cpuacct:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
      "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, float("inf"))])
def test_the_quota_of_a_container(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.quota(tmp_path) == expected


@pytest.mark.parametrize("quota, expected", [(0.5, 1), (2.9, 2), (float("inf"), 3)])
def test_usable_cores(monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 4, 7}, raising=False)
    monkeypatch.setattr(cores, "quota", lambda: quota)
    assert cores.usable_cores() == expected


@pytest.mark.parametrize("variables, words", [
    (dict(RANK="", WORLD_SIZE="", LOCAL_RANK="", LOCAL_WORLD_SIZE=""), None),
    (dict(RANK="one"), "RANK='one': must be a whole number"),
    (dict(WORLD_SIZE="-1"), "WORLD_SIZE='-1': must be a whole number"),
    (dict(LOCAL_WORLD_SIZE="0"), "LOCAL_WORLD_SIZE='0': must be a whole number, 1 or more"),
    (dict(RANK="1"), "RANK=1: must be below WORLD_SIZE=1")])
def test_the_place_among_the_ranks(monkeypatch, variables, words):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = SimpleNamespace(device="cpu", threads=1, timeout=1)
    if words is None:
        place = machine.Machine(settings)
        assert (place.rank, place.world) == (0, 1)
    else:
        with pytest.raises(UserError, match=words):
            machine.Machine(settings)


@pytest.mark.parametrize("compiles", [True, False])
def test_a_folder_of_compiled_code_that_cannot_be_made(monkeypatch, capsys, compiles):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/dev/null/cache")
    machine.provide_cache(compiles)
    out = capsys.readouterr().out
    assert out.startswith("note: TORCHINDUCTOR_CACHE_DIR=/dev/null/cache: Not a directory") if compiles \
        else out == ""
    assert os.access(os.environ["TORCHINDUCTOR_CACHE_DIR"], os.W_OK)
    machine.provide_cache(compiles)
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------------------------------------------------
# Files and locks

@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_disk_that_cannot_sync_folders(tmp_path, monkeypatch, capsys, number):
    """It is noted once. Any other failure to sync ends the run."""
    sync = os.fsync

    def refuses_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuses_folders)
    runs.note_once.cache_clear()
    if number == errno.EIO:
        with pytest.raises(UserError, match="could not be written to the disk: Input/output error"):
            runs.write_json(tmp_path / "x.json", {})
    else:
        for name in ("x.json", "y.json"):
            runs.write_json(tmp_path / name, {})
            assert (tmp_path / name).read_text() == "{}\n"
        assert capsys.readouterr().out.count("note: this disk cannot sync folders") == 1


@pytest.fixture
def no_flock(monkeypatch, capsys):
    """A file system without flock."""
    def flock(file, how):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    runs.note_once.cache_clear()
    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("owner, is_free", [
    (None, True),
    ("{host} {me} 17", True),             # a restarted container, whose first process always has the same id
    ("{host} 4194305 17", True),          # no process has this id
    ("{other} {me} 17", False),           # another machine cannot be asked
    ("{parent}", False), ("{itself}", False)])
def test_a_lock_without_flock(tmp_path, no_flock, capsys, owner, is_free):
    path = tmp_path / "lock.holder"
    names = dict(host=socket.gethostname(), other="x" + socket.gethostname(), me=os.getpid(),
                 parent=runs.identity(os.getppid()), itself=runs.identity(os.getpid()))
    if owner:
        path.write_text(owner.format(**names))
    assert runs.lock(tmp_path / "lock") == (path if is_free else None)
    assert path.read_text() == (names["itself"] if is_free else owner.format(**names))
    assert capsys.readouterr().out.startswith(f"note: no file locks here, using {path}; if a run was killed")
    if is_free:
        assert runs.lock(tmp_path / "lock") is None
        runs.unlock(path)
        assert runs.lock(tmp_path / "lock") == path


def test_who_waits_for_a_lock_gets_it(tmp_path, monkeypatch, capsys):
    held = [runs.lock(tmp_path / "lock")]
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: held.clear())    # frees the lock
    second = runs.lock(tmp_path / "lock", waits=True)
    assert second and runs.lock(tmp_path / "lock") is None
    assert capsys.readouterr().out == \
        f"note: another process is at work in {tmp_path}; waiting for it\n"


def test_a_picture_that_cannot_be_drawn_is_a_note(tiny, tmp_path, monkeypatch, capsys):
    def draw(rows, file, title):
        file.write(b"half")
        raise RuntimeError("no fonts")

    assert run(tiny, tmp_path, "a") == 0
    monkeypatch.setattr(train, "draw_run", draw)
    assert run(tiny, tmp_path, "b") == 0
    note = f"note: {tmp_path}/b/loss.png: could not be drawn: RuntimeError: no fonts\n"
    assert note in capsys.readouterr().out
    assert not (tmp_path / "b/loss.png").exists()
    assert_same_run(tmp_path / "a", tmp_path / "b")


# ---------------------------------------------------------------------------------------------------------
# Words

def test_what_ships_is_found_from_any_folder(tmp_path, monkeypatch):
    """A file of the working folder comes first. The message names the folder."""
    monkeypatch.chdir(tmp_path)
    assert settings.defaults("configs/nano.toml", "adamw")["vocab_size"] == 4096
    with pytest.raises(UserError) as caught:
        settings.defaults("nano.toml", "adamw")
    assert str(caught.value) == (f"--config='nano.toml': there is no such file in {tmp_path}; what ships is "
                                 "named configs/*.toml from any folder")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/nano.toml").write_text("[model]\nwidth = 32\n")
    assert settings.defaults("configs/nano.toml", "adamw")["width"] == 32


@pytest.mark.parametrize("text, value", [("true", True), ("True", True), ("FALSE", False)])
def test_booleans(text, value):
    assert options.parse("resume", text, bool) is value
    assert settings.by_role("nesterov_of", f"head:{text}") == dict(head=value)


@pytest.mark.parametrize("word, known, found", [
    ("SGD", ["sophia", "sgd"], "sgd"), ("BF16", ["auto", "bf16"], "bf16"), ("lr", ["LR"], "LR")])
def test_capital_letters_make_no_difference(word, known, found):
    assert nearest(word, known) == f"; did you mean {found}?"
