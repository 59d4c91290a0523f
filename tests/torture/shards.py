"""
D. Data: broken token shards are refused by name, and the preparation of data survives kills and full disks.
"""
import contextlib
import hashlib
import os
import shutil
import time
from pathlib import Path
from unittest import mock

import numpy as np

import prepare_c4
from conftest import documents
from folders import read_json
from processes import process_ids, start_with_fault, wait
from test_data import BROKEN
from tools import DATA, DRAW, WORK, call, options, refused, small_disk
from trainer import data, runs
from trainer.errors import UserError
from trainer.vocabulary import Tokenizer


def broken_shards_are_refused(folder):
    """Broken shards are refused at the start, in one line that names the file and the reason.

    Every way to break a shard that test_data.py knows is tried, and a shard that may not be read. No folder
    of a run is made.
    """
    for i, (change, words) in enumerate(BROKEN.values()):
        place = folder / f"data{i}"
        shutil.copytree(DATA, place)
        path = place / "train-00000.bin"
        change(path, path.read_bytes())
        line = refused(options(folder, "a", f"--data={place}"), words)
        assert str(path) in line and not (folder / "a").exists()
    refused(options(folder, "a", "--context=100000"), "lower --context")
    count = len(BROKEN) + 1
    if os.getuid() == 0:
        path = folder / "data0/val-00000.bin"
        for parent in (WORK, folder, path.parent):
            parent.chmod(0o755)
        path.chmod(0)
        assert another_user_is_refused(path), "a shard that may not be read"
        count += 1
    return f"{count} of {count} refused"


def another_user_is_refused(path):
    """Whether open_shard() raises UserError for the user nobody. Root, who may read everything, forks."""
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            os.setuid(65534)
            with contextlib.suppress(UserError):
                data.open_shard(path, {}, 300)
                os._exit(1)
            code = 0
        os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def wrong_ids_are_refused(folder):
    """Ids outside the vocabulary end a run, and vocabularies that do not agree are refused at the start.

    A wrong id in the middle of a shard is found when it is read, and the status of the run gives the same
    reason as the error line.
    """
    for value in (300, 65535):
        place = folder / str(value)
        shutil.copytree(DATA, place)
        path = place / "train-00000.bin"
        content = bytearray(path.read_bytes())
        middle = data.HEADER_BYTES + 2 * 5000
        content[middle:middle + 2] = value.to_bytes(2, "little")
        path.write_bytes(content)
        line = refused(options(folder, f"a{value}", f"--data={place}", "--steps=400", "--eval_every=0"),
                       f"train-00000.bin: token 5000 is {value}")
        status = read_json(folder / f"a{value}/status.json")
        assert status["status"] == "failed" and status["message"] in line
    refused(options(folder, "b", "--vocab_size=299"), "--vocab_size=299")
    refused(options(folder, "b", "--vocab_size=301"), "--vocab_size=301")
    place = folder / "mixed"
    shutil.copytree(DATA, place)
    BROKEN["other vocabulary"][0](place / "val-00000.bin", (place / "val-00000.bin").read_bytes())
    refused(options(folder, "b", f"--data={place}"), "vocabulary of 299")
    assert not (folder / "b").exists()
    return "5 of 5"


# ---------------------------------------------------------------------------------------------------------
# D3. Preparation

def preparation_survives_faults(folder):
    """Preparation survives 10 kills, a full disk, a cut source, ids that do not fit, and a second process.

    Every shard that a kill leaves must be whole and equal to that of an undisturbed preparation, and a folder
    with a meta.json must be complete. Each of the other faults must be refused by name and leave no shard.
    """
    shards = kill_ten_times(folder)
    second_one_waits(folder)

    with mock.patch.object(prepare_c4, "sotu", lambda: documents(600)), small_disk(120_000) as disk:
        line = refused(["--vocab=300", f"--out={disk / 'd'}"], "No space left on device", 4, prepare_c4)
        assert "bytes needed" in line and not list((disk / "d").glob("train-*.bin"))
        assert not (disk / "d/meta.json").exists() and not list((disk / "d").glob(".*.tmp"))

    read = Path.read_bytes

    def read_without_the_last_byte(path):
        return read(path)[:-1] if path.suffix == ".txt" else read(path)

    with mock.patch.object(Path, "read_bytes", read_without_the_last_byte):
        refused(preparation(folder / "early"), "another sha256", 4, prepare_c4)
    assert not list((folder / "early").glob("*.bin"))

    (folder / "wide").mkdir()
    for value in (65536, 70000, -1):
        assert id_is_refused(folder / "wide", value), "an id was wrapped"
        assert not list((folder / "wide").iterdir())
    assert shards, "no kill came between two shards"
    return f"10 kills, {shards} shards, all whole and equal"


def preparation(place):
    """Returns the command line that prepares made-up documents in a folder."""
    return ["--vocab=400", f"--out={place}"]


def kill_ten_times(folder):
    """Prepares folder/whole, then kills ten preparations of folder/killed: five at random moments, and five
    just after one more shard has come, because on a fast machine random kills never come between two shards.

    Returns the number of shards that the kills left, all of which were compared with those of folder/whole.
    """
    begun = time.monotonic()
    start_with_fault("documents", folder / "w", [preparation(folder / "whole")]).end_well(120)
    seconds, shards = time.monotonic() - begun, 0
    for k in range(10):
        process = start_with_fault("documents", folder / f"k{k}", [preparation(folder / "killed")])
        wait((folder / f"k{k}/pid-0").exists, 60, "it did not start")
        if k % 2:
            before = shards_in(folder / "killed")
            wait(lambda: shards_in(folder / "killed") > before or process.process.poll() is not None, 60,
                 "no shard came")
        else:
            time.sleep(DRAW.uniform(0, max(0.5, seconds - 2)))
        process.kill()
        complete = (folder / "killed/meta.json").exists()
        assert not complete or hashes(folder / "killed") == hashes(folder / "whole")
        for path in (folder / "killed").glob("*.bin"):
            assert path.read_bytes() == (folder / "whole" / path.name).read_bytes()
            shards += 1
        if complete:
            shutil.rmtree(folder / "killed")
    return shards


def shards_in(place):
    """Returns the number of shards in a folder."""
    return len(list(place.glob("*.bin")))


def second_one_waits(folder):
    """A preparation of folder/killed goes on to its end while a second one waits, which then has nothing to
    do."""
    first = start_with_fault("documents", folder / "last", [preparation(folder / "killed")])
    process_ids(folder / "last", 1)    # waits until it has started
    wait((folder / "killed/lock").exists, 60, "no lock")
    wait(lambda: runs.lock(folder / "killed/lock") is None, 60, "the lock is not taken")
    code, out, err = call(preparation(folder / "killed"), prepare_c4)
    assert code == 0 and "waiting for it" in out and "is prepared already" in out, (out, err)
    first.end_well(120)
    assert hashes(folder / "killed") == hashes(folder / "whole"), first.text()


def id_is_refused(place, value):
    """Whether write_split() raises UserError for an id."""
    entry = dict(tokens=0, bytes=0, documents=0, shards=[])
    try:
        prepare_c4.write_split(place, "train", entry, [(["a"], (1, 0, 1))],
                               Tokenizer(lambda texts: [np.array([value])], 65536, b"", {}), 0, lambda: None)
    except UserError:
        return True
    return False


def hashes(folder):
    """Returns {name: sha256} of the files in a folder, without the lock."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != "lock"}
