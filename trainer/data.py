"""
Token shards: what prepare_c4.py writes and training reads, through a memory map.

A folder of data holds meta.json, shards such as train-00000.bin and val-00000.bin, and the tokenizer's
file. A shard is a header of 4,096 bytes (a magic line, then JSON padded with blanks) and the ids.
Nothing is believed: sizes, header and meta.json must agree before the first step, and every batch's ids
are checked against the vocabulary.
"""
import hashlib
import json
from pathlib import Path

import numpy as np

from trainer.errors import UserError, one_line

MAGIC = b"optimizer-study tokens\n"
HEADER_BYTES = 4096
VERSION = 1
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}

# ---------------------------------------------------------------------------------------------------------
# Shards

def dtype_for(vocab_size):
    """The name of the smallest dtype that holds the ids."""
    return "uint16" if vocab_size <= 2**16 else "uint32"

def as_ids(ids, vocab_size):
    """The ids in the dtype of a shard. Raises ValueError for an id outside the vocabulary:
    nothing ever wraps."""
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError(f"ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {vocab_size}")
    return np.ascontiguousarray(ids, DTYPES[dtype_for(vocab_size)])

def shard_bytes(ids, vocab_size):
    """(header, ids as bytes) of a shard."""
    body = as_ids(ids, vocab_size)
    header = dict(version=VERSION, dtype=dtype_for(vocab_size), vocab_size=vocab_size, tokens=len(ids),
                  max_id=int(ids.max(initial=0)), sha256=hashlib.sha256(body).hexdigest())
    return (MAGIC + json.dumps(header).encode()).ljust(HEADER_BYTES), memoryview(body).cast("B")

def open_shard(path, entry, vocab_size):
    """The ids of a shard as a read-only memory map, after every check that does not read them.

    entry is what meta.json says of the shard: {file, tokens, sha256}.
    """
    def refuse(why):
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
        refuse(f"has {size} bytes, which is not what its header of {one_line(tokens, 20)} tokens asks for")
    if vocab != vocab_size or type(max_id) is not int or not 0 <= max_id < vocab_size:
        refuse(f"is of a vocabulary of {one_line(vocab, 20)} (largest id {one_line(max_id, 20)}), "
               f"not {vocab_size}")
    if (tokens, sha256) != (entry["tokens"], entry["sha256"]):
        refuse("is not the shard that meta.json names (another token count or sha256)")
    return np.memmap(path, DTYPES[dtype], "r", HEADER_BYTES, (tokens,))

# ---------------------------------------------------------------------------------------------------------
# A folder of data

def read_meta(folder):
    """The content of meta.json, checked for what training needs."""
    path = Path(folder) / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        for split in ("train", "val"):
            entry = meta["splits"][split]
            tokens = sum(shard["tokens"] for shard in entry["shards"])
            if not (tokens == entry["tokens"] > 0 and entry["bytes"] > 0 and entry["shards"]):
                raise ValueError(f"the shards of {split} do not add up")
            if not all(Path(shard["file"]).name == shard["file"] for shard in entry["shards"]):
                raise ValueError("a shard lies outside the folder")
        if type(meta["vocab_size"]) is not int:
            raise ValueError("vocab_size is no number")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: is damaged: {type(error).__name__} {error}; "
                        "prepare the data again") from None
    return meta

def fingerprint(meta):
    """A sha256 over all shards of a folder: two folders with the same one hold the same ids."""
    hashes = [shard["sha256"] for split in ("train", "val") for shard in meta["splits"][split]["shards"]]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()

class Tokens:
    """One split as windows of context + 1 ids, at stride context, so that each has `context`
    predictions. What is left at a shard's end (fewer than context + 1 ids) is not used.

    verify: also read every id and compare the sha256 (slow on large data).
    """
    def __init__(self, folder, split, context, verify=False):
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
        self.starts = np.cumsum([0] + [max(0, len(shard) - 1) // context for shard in self.shards])
        if not len(self):
            raise UserError(f"{folder}: {split} has no window of context + 1 = {context + 1} tokens; "
                            "lower --context")

    def __len__(self):
        return int(self.starts[-1])

    def __getitem__(self, windows):
        """Ids, int64, shape (len(windows), context + 1). Raises UserError for an id
        outside the vocabulary."""
        out = np.empty((len(windows), self.context + 1), np.int64)
        for row, window in zip(out, windows):
            k = int(np.searchsorted(self.starts, window, side="right")) - 1
            begin = int(window - self.starts[k]) * self.context
            row[:] = self.shards[k][begin:begin + self.context + 1]
            if row.max() >= self.vocab_size:
                at = begin + int(row.argmax())
                raise UserError(f"{self.paths[k]}: token {at} is {row.max()}, outside the vocabulary of "
                                f"{self.vocab_size}; the file is damaged, prepare the data again")
        return out

class Order:
    """Which windows a step reads: all of them once per epoch, in an order that depends on (seed, epoch)
    alone, so it is the same for any number of ranks, and there is nothing to save."""
    def __init__(self, windows, seed):
        self.windows, self.seed, self.known = windows, seed, {}

    def __call__(self, first, count):
        """Windows of the sequences first ... first + count - 1, counted from the start of training."""
        out = []
        for i in range(first, first + count):
            epoch, j = divmod(i, self.windows)
            if epoch not in self.known:
                self.known = {e: p for e, p in self.known.items() if e == epoch - 1}    # a batch may span two
                self.known[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.windows)
            out.append(int(self.known[epoch][j]))
        return out

# ---------------------------------------------------------------------------------------------------------
# Tokenizers

class T5:
    """T5's SentencePiece model with the three parts of a tiktoken.Encoding that sampling uses. Ids without
    a text, such as T5's 100 marks, are left out."""
    def __init__(self, content):
        try:
            import sentencepiece
        except ImportError:
            raise UserError("text of T5's tokens needs the package sentencepiece; "
                            "run: pip install sentencepiece", 4) from None
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
        self.eot_token = self.pieces.eos_id()

    def encode_ordinary(self, text):
        return self.pieces.encode(text)

    def decode(self, ids):
        return self.pieces.decode([i for i in ids if i < len(self.pieces)])

def load_tokenizer(folder):
    """The tokenizer with which the data was made: a tiktoken.Encoding, or T5."""
    import base64
    import tiktoken
    meta = read_meta(folder)["tokenizer"]
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
