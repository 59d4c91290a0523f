"""
Token shards: prepare_c4.py writes them, and training reads them through a memory map.

A folder of data holds meta.json, shards such as train-00000.bin and val-00000.bin, and the file of the
tokenizer. A shard consists of a header of 4,096 bytes (a magic line, then JSON, then blanks) and the ids.
This module trusts none of these files: it checks that sizes, headers and meta.json agree before the first
step, and it checks the ids of every batch against the vocabulary.
"""
import base64
import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import tiktoken

from trainer.errors import UserError, one_line

MAGIC = b"optimizer-study tokens\n"
HEADER_BYTES = 4096
VERSION = 1
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


# ---------------------------------------------------------------------------------------------------------
# Shards

def dtype_for(vocab_size: int) -> str:
    """Returns the name (a key of DTYPES) of the smallest type that holds all ids of a vocabulary."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def as_ids(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Converts ids to the type that shards of this vocabulary use.

    Args:
        ids: any integers, shape (tokens,).
        vocab_size: the ids must be in 0 ... vocab_size - 1.
    Returns: the same ids as an array of type uint16 or uint32, shape (tokens,).
    Raises: ValueError if an id is outside the vocabulary. So no id ever wraps around silently.
    """
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError(f"ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {vocab_size}")
    return np.ascontiguousarray(ids, DTYPES[dtype_for(vocab_size)])


def shard_bytes(ids: np.ndarray, vocab_size: int) -> tuple[bytes, memoryview]:
    """Encodes ids as a shard.

    Args:
        ids: any integers, shape (tokens,).
        vocab_size: the ids must be in 0 ... vocab_size - 1.
    Returns: the header, which has HEADER_BYTES bytes, and the ids as bytes; the file is one after the other.
    Raises: ValueError if an id is outside the vocabulary.
    """
    body = as_ids(ids, vocab_size)
    header = dict(version=VERSION, dtype=dtype_for(vocab_size), vocab_size=vocab_size, tokens=len(ids),
                  max_id=int(ids.max(initial=0)), sha256=hashlib.sha256(body).hexdigest())
    return (MAGIC + json.dumps(header).encode()).ljust(HEADER_BYTES), memoryview(body).cast("B")


def open_shard(path: str | Path, entry: dict, vocab_size: int) -> np.memmap:
    """Opens a shard after every check that is possible without reading the ids.

    Args:
        path: the file of the shard.
        entry: what meta.json says of this shard, {file, tokens, sha256}.
        vocab_size: the vocabulary of the folder.
    Returns: the ids as a read-only memory map, uint16 or uint32, shape (tokens,).
    Raises: UserError if the file cannot be read, or disagrees with its header or with `entry`.
    """
    def refuse(why: str) -> NoReturn:
        raise UserError(f"{path}: {why}; prepare the data again (delete the folder first)")

    try:
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
            size = file.seek(0, 2)
    except OSError as error:
        refuse(error.strerror)
    if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
        refuse("is not a token shard (no header)")
    try:
        header = json.loads(head[len(MAGIC):])
        version, dtype, tokens = header["version"], header["dtype"], header["tokens"]
        max_id, sha256, vocab = header["max_id"], header["sha256"], header["vocab_size"]
    except (ValueError, KeyError, TypeError, RecursionError):
        refuse("has a damaged header")
    if version != VERSION:
        refuse(f"has format version {one_line(version, 20)}, this program reads {VERSION}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        refuse(f"has ids of type {one_line(dtype, 20)}")
    if type(tokens) is not int or size != HEADER_BYTES + tokens * DTYPES[dtype].itemsize:
        refuse(f"has {size} bytes, which does not match its header of {one_line(tokens, 20)} tokens")
    if vocab != vocab_size or type(max_id) is not int or not 0 <= max_id < vocab_size:
        refuse(f"is of a vocabulary of {one_line(vocab, 20)} (largest id {one_line(max_id, 20)}), "
               f"not {vocab_size}")
    if (tokens, sha256) != (entry["tokens"], entry["sha256"]):
        refuse("is not the shard that meta.json names (another token count or sha256)")
    return np.memmap(path, DTYPES[dtype], "r", HEADER_BYTES, (tokens,))


# ---------------------------------------------------------------------------------------------------------
# A folder of data

def read_meta(folder: str | Path) -> dict:
    """Reads meta.json and checks every value that training needs.

    Args:
        folder: the folder of data.
    Returns: the content of meta.json.
    Raises: UserError if the file cannot be read, is damaged, or contradicts itself.
    """
    path = Path(folder) / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        for split in ("train", "val"):
            check_split(split, meta["splits"][split])
        if type(meta["vocab_size"]) is not int:
            raise ValueError("vocab_size is not a whole number")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: is damaged: {type(error).__name__} {error}; "
                        "prepare the data again") from None
    return meta


def options_to_prepare(folder: str, recipe: str, is_usual: bool) -> str:
    """Returns the options with which prepare_c4.py makes a folder of data.

    Args:
        folder: the folder.
        recipe: the options without the folder, or "".
        is_usual: whether an empty recipe is enough, as for the default data. Otherwise the word OPTIONS
            stands in the place of a missing recipe.
    """
    what = recipe or ("" if is_usual else "OPTIONS")
    return f"{what} {shlex.quote(f'--out={folder}')}".strip()


def check_split(split: str, entry: dict) -> None:
    """Checks what meta.json says of one split. Raises ValueError, KeyError or TypeError if it is wrong."""
    tokens = sum(shard["tokens"] for shard in entry["shards"])
    if not (tokens == entry["tokens"] > 0 and entry["bytes"] > 0 and entry["shards"]):
        raise ValueError(f"the shards of {split} do not add up")
    if not all(Path(shard["file"]).name == shard["file"] for shard in entry["shards"]):
        raise ValueError("a shard lies outside the folder")
    if not all(isinstance(shard["sha256"], str) for shard in entry["shards"]):
        raise ValueError("the sha256 of a shard is no text")


def fingerprint(meta: dict) -> str:
    """Returns a sha256 over all shards of a folder. If two folders have the same fingerprint, they hold the
    same shards in the same order.

    Args:
        meta: the content of meta.json.
    """
    hashes = [shard["sha256"] for split in ("train", "val") for shard in meta["splits"][split]["shards"]]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


class Tokens:
    """One split, cut into windows of context + 1 ids, so that each window has `context` predictions.

    The last id of a window is the first id of the next one. A window never crosses from one shard into the
    next; the ids that are left at the end of a shard (fewer than context) are not used.

    Args:
        folder: the folder of data.
        split: "train" or "val".
        context: predictions of a window.
        verify: whether to read every id now and compare the sha256, which is slow for large data.
    Raises: UserError if the data are damaged or too small for a single window.

    bytes_per_token: bytes of text (UTF-8) that a token of this split stands for, on average.
    """
    def __init__(self, folder: str | Path, split: str, context: int, verify: bool = False):
        meta = read_meta(folder)
        self.context, self.vocab_size = context, meta["vocab_size"]
        self.bytes_per_token = meta["splits"][split]["bytes"] / meta["splits"][split]["tokens"]
        self.paths, self.shards = [], []
        for entry in meta["splits"][split]["shards"]:
            path = Path(folder) / entry["file"]
            shard = open_shard(path, entry, self.vocab_size)
            if verify and hashlib.sha256(shard).hexdigest() != entry["sha256"]:
                raise UserError(f"{path}: the ids do not have the sha256 of the header; "
                                "prepare the data again")
            self.paths.append(path)
            self.shards.append(shard)
        # starts[k] is the number of the first window of shard k; the last entry counts all windows.
        self.starts = np.cumsum([0] + [max(0, len(shard) - 1) // context for shard in self.shards])
        if not len(self):
            raise UserError(f"{folder}: {split} has no window of context + 1 = {context + 1} tokens; "
                            "lower --context")

    def __len__(self) -> int:
        """The number of windows."""
        return int(self.starts[-1])

    def __getitem__(self, windows: Sequence[int]) -> np.ndarray:
        """Reads some windows, given by their numbers.

        Returns: ids, int64, shape (len(windows), context + 1).
        Raises: UserError if an id is outside the vocabulary.
        """
        batch = np.empty((len(windows), self.context + 1), np.int64)
        for row, window in zip(batch, windows):
            k = int(np.searchsorted(self.starts, window, side="right")) - 1    # the shard of the window
            begin = int(window - self.starts[k]) * self.context
            row[:] = self.shards[k][begin:begin + self.context + 1]
            if row.max() >= self.vocab_size:
                index = begin + int(row.argmax())
                raise UserError(f"{self.paths[k]}: token {index} is {row.max()}, outside the vocabulary of "
                                f"{self.vocab_size}; the file is damaged, prepare the data again")
        return batch


def uniform_numbers(seed: int, first_sequence: int, shape: tuple[int, int]) -> np.ndarray:
    """Returns random numbers in [0, 1) for the tokens of consecutive sequences, shape (sequences, tokens).
    They depend only on the seed and on the sequence's number in training, so any number of ranks and any
    resume get the same ones."""
    sequences, tokens = shape
    return np.stack([np.random.default_rng([seed, first_sequence + i]).random(tokens)
                     for i in range(sequences)])


class Order:
    """Decides which windows a training step reads.

    Each epoch reads all windows once. Their order depends only on the seed and the epoch, so it is the same
    for any number of ranks, and a checkpoint has nothing to save about it.

    Args:
        windows: the number of windows of the split.
        seed: of the random order.
    """
    def __init__(self, windows: int, seed: int):
        self.windows, self.seed = windows, seed
        self.permutations = {}    # epoch -> its order, for the newest two epochs

    def __call__(self, first: int, count: int) -> list[int]:
        """Returns the windows of the sequences first ... first + count - 1, counted from the start of
        training."""
        windows = []
        for i in range(first, first + count):
            epoch, position = divmod(i, self.windows)
            windows.append(int(self.permutation(epoch)[position]))
        return windows

    def permutation(self, epoch: int) -> np.ndarray:
        """Returns the order of the windows in an epoch, int64, shape (windows,)."""
        if epoch not in self.permutations:
            # A batch can span two epochs, so the order of the epoch before is kept as well.
            self.permutations = {e: order for e, order in self.permutations.items() if e == epoch - 1}
            self.permutations[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.windows)
        return self.permutations[epoch]


# ---------------------------------------------------------------------------------------------------------
# Tokenizers

class T5:
    """T5's SentencePiece model, with the three members of a tiktoken.Encoding that sampling uses.

    Args:
        content: the content of spiece.model.
    Raises: UserError if the package sentencepiece is missing.
    """
    def __init__(self, content: bytes):
        try:
            import sentencepiece    # here, because only T5's tokens need this package
        except ImportError:
            raise UserError("text of T5's tokens needs the package sentencepiece; "
                            "run: pip install sentencepiece", 4) from None
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
        self.eot_token = self.pieces.eos_id()

    def encode_ordinary(self, text: str) -> list[int]:
        """Returns the ids of a text."""
        return self.pieces.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of some ids. Ids without a text, such as T5's 100 sentinels, are left out."""
        return self.pieces.decode([i for i in ids if i < len(self.pieces)])


def load_tokenizer(folder: str | Path) -> tiktoken.Encoding | T5:
    """Loads the tokenizer with which a folder of data was made.

    Args:
        folder: the folder of data.
    Returns: a tiktoken.Encoding for a byte-level BPE, or T5. Both have encode_ordinary(text), decode(ids)
        and eot_token, the id that ends a document.
    Raises: UserError if the tokenizer's file is missing or changed, or sentencepiece is not installed.
    """
    meta = read_meta(folder).get("tokenizer")
    if not meta:
        raise UserError(f"{folder}/meta.json: does not name a tokenizer")
    path = Path(folder) / Path(meta["file"]).name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != meta["sha256"]:
        raise UserError(f"{path}: is not the tokenizer of this data (another sha256); prepare the data again")
    if meta["name"] == "t5":
        return T5(content)
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}
    return tiktoken.Encoding(meta["name"], pat_str=meta["pattern"], mergeable_ranks=ranks,
                             special_tokens={meta["end_of_text"]: len(ranks)})
