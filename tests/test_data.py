"""The tokenizer, the shards, and the order of the windows: all steps from text to the ids of a batch."""
import json
import random
import shutil
from collections import Counter

import numpy as np
import pytest
import regex

import prepare_c4
from conftest import documents
from trainer import corpora, data, runs, vocabulary
from trainer.errors import UserError


# ---------------------------------------------------------------------------------------------------------
# The tokenizer

def slow_bpe(texts, vocab_size):
    """Trains a BPE by the definition: it counts all pairs again for every merge."""
    words = Counter(tuple(bytes([b]) for b in word.encode())
                    for text in texts for word in regex.findall(vocabulary.PATTERN, text))
    ranks = {bytes([b]): b for b in range(256)}
    while len(ranks) < vocab_size - 1:
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], ranks[pair[0]], ranks[pair[1]]))
        ranks.setdefault(best[0] + best[1], len(ranks))
        merged = Counter()
        for word, count in words.items():
            merged[slow_merge(word, best)] += count
        words = merged
    return ranks


def slow_merge(word, pair):
    """Joins each occurrence of a pair in a word, from left to right."""
    result, k = (), 0
    while k < len(word):
        length = 2 if word[k:k + 2] == pair else 1
        result += (b"".join(word[k:k + length]),)
        k += length
    return result


@pytest.mark.parametrize("texts", [documents(8), ["aaaaa aaaa aaa", "abab ababab babab", "ééé\n\n\n  ñ"]])
def test_bpe_is_its_definition(texts):
    size = 330 if len(texts) == 8 else 268
    assert vocabulary.train_bpe(texts, size) == slow_bpe(texts, size)


def test_bpe_round_trips_every_byte_string():
    encoding = vocabulary.make_encoding(vocabulary.train_bpe(documents(8), 300))
    draw = random.Random(0)
    for length in (0, 1, 2, 5, 50, 500):
        content = draw.randbytes(length)
        assert encoding.decode_bytes(encoding._encode_bytes(content)) == content
    text = "naïve <|endoftext|> 中文 \x00\u202e\n\t  end"
    assert encoding.decode(encoding.encode_ordinary(text)) == text
    assert encoding.n_vocab == 300 and encoding.eot_token == 299


BLANKS = [b"  ", b"    ", b" " * 8, b"\n\n", b" \n", b" b", b"  b"]


@pytest.mark.parametrize("run", [" " * 100_001, "\n \t" * 40_000, "\r\n" * 49_999])
def test_a_long_run_of_blanks_has_the_same_ids(run):
    """tiktoken can encode 120,000 blanks, and the ids are the same, whatever follows the run."""
    encoding = vocabulary.make_encoding({token: i for i, token in enumerate([*map(bytes, zip(range(256))),
                                                                             *BLANKS])})
    for text in (run, f"a{run}b", f"{run}'tis {run}1", f"a{run}\n", f"{run}\u3000é{run}."):
        assert vocabulary.ids_of(text, encoding).tolist() == encoding.encode_ordinary(text)


def test_a_million_blanks():
    """tiktoken cannot encode them. All blanks but the last one are a word, as in a short run."""
    ranks = {token: i for i, token in enumerate([*map(bytes, zip(range(256))), *BLANKS])}
    ids = vocabulary.byte_tokenizer("bpe", ranks).encode(["a" + " " * 1_000_001 + "b"])[0].tolist()
    assert ids == [97, *[258] * 125_000, 261, 263]


def test_bpe_of_too_little_text():
    with pytest.raises(UserError, match="--vocab=400: the text gives only"):
        vocabulary.train_bpe(["abc abc"], 400)


# ---------------------------------------------------------------------------------------------------------
# Preparation

def test_prepared_data(tiny):
    """Every 20th document is for validation, the end of text follows each document, and no text is lost."""
    folder = tiny.parent / "data"
    meta, encoding, texts = data.read_meta(folder), data.load_tokenizer(folder), documents()
    for split, expected in (("train", [t for i, t in enumerate(texts) if i % 20 != 9]),
                            ("val", texts[9::20])):
        tokens = data.Tokens(folder, split, context=16)
        ids = np.concatenate(tokens.shards)
        assert encoding.decode(ids.tolist()) == "".join(text + "<|endoftext|>" for text in expected)
        entry = meta["splits"][split]
        assert (entry["tokens"], entry["documents"]) == (len(ids), len(expected))
        assert entry["bytes"] == sum(len(text.encode()) for text in expected)
        assert tokens.bytes_per_token == entry["bytes"] / entry["tokens"]


def test_preparing_again(tiny, monkeypatch, tmp_path, capsys):
    """A second preparation gives the same bytes. A folder that is complete stays untouched. A folder with
    other data is refused. While another process prepares the folder, the second one waits."""
    monkeypatch.setattr(prepare_c4, "sotu", documents)
    first, again = tiny.parent / "data", tmp_path / "again"
    assert prepare_c4.main(["--vocab=300", f"--out={again}"]) == 0
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in again.iterdir()}
    assert prepare_c4.main(["--vocab=300", f"--out={again}"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in again.iterdir()}
    assert prepare_c4.main(["--vocab=310", f"--out={again}"]) == 2
    error, = capsys.readouterr().err.splitlines()
    assert "holds other data" in error
    held = [runs.lock(again / "lock")]
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: held.clear())    # frees the lock
    assert prepare_c4.main(["--vocab=300", f"--out={again}"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"note: another process is at work in {again}; waiting for it", f"{again}: is prepared already"]


def test_missing_data_are_made_only_where_that_is_allowed(monkeypatch, tmp_path):
    monkeypatch.setattr(prepare_c4, "sotu", documents)
    mine = str(tmp_path / "mine")
    for recipe, shown in (("", "OPTIONS"), ("--vocab=300", "--vocab=300")):
        with pytest.raises(UserError, match=f"--data={mine}: no data there.* {shown} --out={mine}$"):
            prepare_c4.prepare_if_missing(mine, recipe, False)
    prepare_c4.prepare_if_missing(mine, "--vocab=300", True)
    assert data.read_meta(mine)["vocab_size"] == 300


def test_many_shards(tiny, monkeypatch, tmp_path):
    """Many small shards hold the same ids as a large one, and no window crosses from one into the next."""
    monkeypatch.setattr(prepare_c4, "sotu", documents)
    monkeypatch.setattr(prepare_c4, "SHARD_TOKENS", 1000)
    monkeypatch.setattr(prepare_c4, "BATCH", 1000)
    assert prepare_c4.main(["--vocab=300", f"--out={tmp_path / 'many'}"]) == 0
    one, many = data.Tokens(tiny.parent / "data", "train", 16), data.Tokens(tmp_path / "many", "train", 16)
    assert len(many.shards) > 3
    assert np.array_equal(np.concatenate(many.shards), one.shards[0])
    expected = [shard[i:i + 17] for shard in many.shards for i in range(0, len(shard) - 16, 16)]
    assert np.array_equal(many[range(len(many))], np.stack(expected))


def test_the_default_corpus_is_checked(monkeypatch, tmp_path):
    """The real package sotu passes the check of its sha256, and changed texts do not."""
    texts = corpora.sotu()
    assert len(texts) == 249 and sum(len(text.encode()) for text in texts) == 12_185_751
    monkeypatch.setattr(corpora, "SOTU_SHA256", "0" * 64)
    with pytest.raises(UserError, match="another sha256"):
        corpora.sotu()


# ---------------------------------------------------------------------------------------------------------
# Reading: damaged data are refused

HEADER = data.HEADER_BYTES


def edited(**values):
    """Returns a change of a shard that sets some values of its header."""
    def change(path, content):
        header = json.loads(content[len(data.MAGIC):HEADER]) | values
        path.write_bytes((data.MAGIC + json.dumps(header).encode()).ljust(HEADER) + content[HEADER:])
    return change


def as_folder(path, content):
    path.unlink()
    path.mkdir()


def plus(n):
    """Returns a change of a shard that adds n to the token count of its header."""
    def change(path, content):
        header = json.loads(content[len(data.MAGIC):HEADER])
        edited(tokens=header["tokens"] + n)(path, content)
    return change


# Each case is a change of a shard, and words of the message that refuses it.
BROKEN = {
    "missing": (lambda path, content: path.unlink(), "No such file"),
    "empty": (lambda path, content: path.write_bytes(b""), "no header"),
    "one byte": (lambda path, content: path.write_bytes(b"o"), "no header"),
    "no header": (lambda path, content: path.write_bytes(content[HEADER:]), "no header"),
    "wrong magic": (lambda path, content: path.write_bytes(b"X" + content[1:]), "no header"),
    "web page": (lambda path, content: path.write_bytes(b"<!DOCTYPE html><html>" * 500), "no header"),
    "no JSON": (lambda path, content: path.write_bytes(content[:40] + b"}" + content[41:]), "damaged header"),
    "later version": (edited(version=2), "format version 2"),
    "other dtype": (edited(dtype="float32"), "ids of type float32"),
    "one more": (plus(1), "header of"),
    "one less": (plus(-1), "header of"),
    "huge": (plus(2**63), "header of"),
    "cut by a byte": (lambda path, content: path.write_bytes(content[:-1]), "header of"),
    "cut in half": (lambda path, content: path.write_bytes(content[:len(content) // 2]), "header of"),
    "other vocabulary": (edited(vocab_size=299), "is of a vocabulary of 299"),
    "id out of range": (edited(max_id=300), "largest id 300"),
    "other sha256": (edited(sha256="0" * 64), "not the shard that meta.json names"),
    "a folder": (as_folder, "Is a directory"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_shard_is_refused(tiny, tmp_path, case):
    change, words = BROKEN[case]
    folder = tmp_path / "data"
    shutil.copytree(tiny.parent / "data", folder)
    path = folder / "train-00000.bin"
    change(path, path.read_bytes())
    with pytest.raises(UserError, match=words) as caught:
        data.Tokens(folder, "train", 16)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content, words", [
    ("", "is damaged"), ("[]", "is damaged"), ("{}", "splits"), ('{"splits": {"train": 1}}', "is damaged"),
    ("\x00" * 100, "is damaged"), ("[" * 100_000, "is damaged")])
def test_a_broken_meta_is_refused(tiny, tmp_path, content, words):
    shutil.copytree(tiny.parent / "data", tmp_path / "data")
    (tmp_path / "data/meta.json").write_text(content)
    with pytest.raises(UserError, match=words):
        data.Tokens(tmp_path / "data", "train", 16)


@pytest.mark.parametrize("change, words", [
    (dict(tokens=1), "do not add up"), (dict(file="../train-00000.bin"), "a shard lies outside the folder"),
    (dict(sha256=1), "the sha256 of a shard is no text")])
def test_a_meta_with_a_wrong_shard_is_refused(tiny, tmp_path, change, words):
    shutil.copytree(tiny.parent / "data", tmp_path / "data")
    meta = data.read_meta(tmp_path / "data")
    meta["splits"]["train"]["shards"][0] |= change
    (tmp_path / "data/meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=f"meta.json: .*{words}"):
        data.Tokens(tmp_path / "data", "train", 16)


def test_a_changed_tokenizer_is_refused(tiny, tmp_path):
    shutil.copytree(tiny.parent / "data", tmp_path / "data")
    path = tmp_path / "data" / data.read_meta(tmp_path / "data")["tokenizer"]["file"]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=f"{path}: is not the tokenizer of this data"):
        data.load_tokenizer(tmp_path / "data")


def test_ids_are_checked_when_they_are_read(tiny, tmp_path):
    """An id outside the vocabulary stops the batch that holds it. --verify_data finds it at the start."""
    shutil.copytree(tiny.parent / "data", tmp_path / "data")
    path = tmp_path / "data/train-00000.bin"
    content = bytearray(path.read_bytes())
    content[HEADER + 2 * 100:HEADER + 2 * 101] = (65535).to_bytes(2, "little")
    path.write_bytes(content)
    tokens = data.Tokens(tmp_path / "data", "train", 16)
    assert tokens[[0, 1]].max() < 300
    with pytest.raises(UserError, match="train-00000.bin: token 100 is 65535"):
        tokens[[3, 6]]
    with pytest.raises(UserError, match="sha256"):
        data.Tokens(tmp_path / "data", "train", 16, verify=True)


def test_ids_never_wrap():
    with pytest.raises(ValueError, match="do not fit"):
        data.shard_bytes(np.array([1, 70000]), 65536)
    with pytest.raises(ValueError, match="do not fit"):
        data.shard_bytes(np.array([-1]), 10)
    assert json.loads(data.shard_bytes(np.array([70000]), 70001)[0][len(data.MAGIC):])["dtype"] == "uint32"


def test_too_little_data(tiny):
    with pytest.raises(UserError, match="lower --context"):
        data.Tokens(tiny.parent / "data", "val", 10**6)


# ---------------------------------------------------------------------------------------------------------
# The order

def test_order_is_a_permutation_of_each_epoch_and_independent_of_the_ranks():
    order = data.Order(10, seed=1)
    epochs = [order(first, 10) for first in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != data.Order(10, seed=2)(0, 10)
    whole = order(0, 30)
    assert whole == sum(epochs, [])
    for size in (1, 3, 7):    # batches of any size, each from a new Order, give the same windows
        assert sum((data.Order(10, seed=1)(i, min(size, 30 - i)) for i in range(0, 30, size)), []) == whole
    assert order(7, 6) == whole[7:13] and order(0, 2) == whole[:2]
    assert whole[:10] == [int(j) for j in np.random.default_rng([1, 0]).permutation(10)]
