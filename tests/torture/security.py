"""
G2 to G4. Security: nothing that a run reads is executed, and nothing leaves its folder or the machine.
"""
import ast
import hashlib
import io
import os
import shutil
import sys
import zipfile
from pathlib import Path

import torch

from command_lines import read_or_refuse
from folders import checkpoints, snapshot
from processes import Process
from tiny_runs import rewound
from tools import DATA, ROOT, SECRETS, WORK, Skip, options, refused, run
from trainer import runs

# ---------------------------------------------------------------------------------------------------------
# G2. No execution

def nothing_is_executed(folder):
    """Nothing in a config, a checkpoint or the data is ever executed.

    Each of them gets code that would create a file. The file must not appear. The source of the program must
    call no function that executes text, and must load checkpoints as plain data. A checkpoint of its own
    holds only tensors, numbers, texts, lists and dictionaries.
    """
    canary = folder / "canary"
    code = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    for text in (code, f"x = !!python/object/apply:os.system ['touch {canary}']",
                 f'[train]\noptimizer = "{code}"', f"[train]\nsteps = {code}"):
        (folder / "c.toml").write_text(text)
        assert read_or_refuse(options(folder, "x", f"--config={folder / 'c.toml'}"))[0] is None
    refused(options(folder, code), "--name")
    for option in ("optimizer", "lr", "rows", "steps"):
        assert read_or_refuse(options(folder, "x", f"--{option}={code}"))[0] is None

    bomb = b"cbuiltins\nexec\n(S" + repr(code).encode() + b"\ntR."    # a pickle that executes the code
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("archive/data.pkl", bomb)
        file.writestr("archive/version", "3\n")
    for content in (bomb, zipped.getvalue()):
        path = folder / "bomb.pt"
        path.write_bytes(content + b"\nsha256 " + hashlib.sha256(content).hexdigest().encode() + b"\n")
        refused(options(folder, "x", f"--init_from={path}"), str(path))
    shutil.copytree(DATA, folder / "data")
    for name in ("meta.pkl", "meta.json"):
        (folder / "data" / name).write_bytes(bomb)
    refused(options(folder, "x", f"--data={folder / 'data'}"), "meta.json")
    assert not canary.exists() and not (folder / "x").exists()

    sources = [path for package in (".", "trainer", "zoo", "study") for path in (ROOT / package).glob("*.py")]
    loads = sum(map(safe_loads, sources))
    assert tuple(map(int, torch.__version__.split("+")[0].split("."))) >= (2, 10)
    checkpoint = runs.load_checkpoint(newest_of_a_run(folder))
    assert is_plain(checkpoint | dict(model=dict(checkpoint["model"])))
    return f"11 canaries silent; {loads} torch.load; only plain things in a checkpoint"


def safe_loads(path):
    """Asserts that a Python file executes no text. Returns the number of its calls of torch.load."""
    loads = 0
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
            assert not {"pickle", "marshal", "shelve", "yaml", "dill"} & names, path
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert called not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), path
            assert keywords.get("shell") != "True" and keywords.get("weights_only") != "False", path
            if called == "torch.load":
                loads += 1
                assert keywords["weights_only"] == "True", path
    return loads


def is_plain(x):
    """Whether x consists of tensors, numbers, texts, None, lists and dictionaries alone."""
    if isinstance(x, dict):
        return all(type(key) in (str, int) and is_plain(value) for key, value in x.items())
    if type(x) is list:
        return all(map(is_plain, x))
    return type(x) in (str, int, float, bool, type(None), torch.Tensor)


def newest_of_a_run(folder):
    """Trains the tiny model. Returns the path of its newest checkpoint."""
    run(folder, "made")
    return checkpoints(folder / "made")[-1]


# ---------------------------------------------------------------------------------------------------------
# G3. Names

def names_stay_inside(folder):
    """Names of runs stay inside the folder of runs.

    Names with paths, links, blanks and control characters are refused, on the command line and in a file, and
    nothing is written.
    """
    inner = folder / "runs"
    inner.mkdir()
    (folder / "elsewhere").mkdir()
    (inner / "link").symlink_to(folder / "elsewhere")
    (inner / "dangling").symlink_to(folder / "nowhere")
    before = snapshot(folder)
    names = ["../../x", "/tmp/x", "a/b", "x" * 300, "-x", "a\nb", ".", "..", ".hidden", "a\0b", "a b", "é",
             "link", "dangling", "~"]
    for name in names:
        refused(options(inner, name), "--name")
    (folder.parent / "named.toml").write_text("name = '../x'\n[train]\nruns = '..'\n")
    refused(options(inner, "x", f"--config={folder.parent / 'named.toml'}"), "name")
    assert snapshot(folder) == before
    return f"{len(names) + 1} of {len(names) + 1} refused, nothing written"


# ---------------------------------------------------------------------------------------------------------
# G4. Secrets and the network

# Runs the command line of its arguments and prints every use of a socket: all events that Python reports
# meanwhile, and the sockets that are open at the end.
WATCH_SOCKETS = """
import os, sys
opened = []
sys.addaudithook(lambda event, _: event.startswith('socket.') and opened.append(event))
import train
code = train.main(sys.argv[1:])
files = ['/proc/self/fd/' + number for number in os.listdir('/proc/self/fd')]
links = [os.readlink(file) for file in files if os.path.exists(file)]
print('sockets', opened, [link for link in links if link.startswith('socket')])
sys.exit(code)
"""


def nothing_leaks(folder):
    """No secret is in any output or file, and training needs no network and opens no socket.

    This searches the files that all earlier checks have left. A checkpoint holds neither the machine's name
    nor the home folder. A run and its resume work in a process without a network.
    """
    leaks, files = 0, 0
    for path in WORK.rglob("*"):
        if path.is_file() and path.stat().st_size < 3e7:
            content, files = path.read_bytes(), files + 1
            leaks += any(secret.encode() in content for secret in SECRETS.values())
    personal = [str(Path.home()) + "/"]
    if len(os.uname().nodename) > 4:    # a shorter name may come by chance
        personal.append(os.uname().nodename)
    content = newest_of_a_run(folder).read_bytes()
    assert not leaks and not [word for word in personal if word.encode() in content]

    no_network = ["unshare", "-n"] if not os.getuid() and shutil.which("unshare") else []
    for more in (["--steps=5", "--save_every=3"], ["--steps=5", "--resume"]):
        command = [sys.executable, "-c", WATCH_SOCKETS, *options(folder, "alone", *more)]
        process = Process([*no_network, *command])
        assert process.end(60) == 0 and "sockets [] []" in process.text(), process.text()[-1500:]
        if "--resume" not in more:
            rewound(folder / "alone", folder / "copy", 3)
            shutil.rmtree(folder / "alone")
            (folder / "copy").rename(folder / "alone")
    if not no_network:
        raise Skip("no unshare here; all else passed")
    return f"0 leaks in {files} files; trains and resumes without a network, 0 sockets"
