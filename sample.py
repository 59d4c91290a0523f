"""
Writes text with a trained model.

    python sample.py                                                             with the newest run
    python sample.py --name=0001 --prompt="Fellow citizens" --temperature=0.8
"""
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import script

if __name__ == "__main__":
    script.begin("sample.py")

import tiktoken
import torch

from model import Decoder
from trainer import data, runs
from trainer.errors import UserError, one_line
from trainer.options import load, option
from trainer.restore import averaged_weights


@dataclass
class Options:
    name: str = option("", None, "name of the run, a folder in --runs; default: the newest")
    runs: str = option("runs", None, "folder of all runs")
    data: str = option("", None, "folder of the run's data, for its tokenizer; default: where it was when "
                                 "the run was trained")
    prompt: str = option("", None, "text to go on from; default: the beginning of a document", any_text=True)
    tokens: int = option(200, None, "how many tokens to add", low=1)
    temperature: float = option(0.8, None, "0: always the likeliest token; 1: the model's own probabilities",
                                low=0.0)
    top_k: int = option(0, None, "draw only from this many of the likeliest tokens; 0: from all", low=0)
    seed: int = option(0, None, "of the random draws", low=0)
    average: bool = option(False, None, "take the averages of the weights, if the run kept them")


@torch.no_grad()
def generate(model: Decoder, tokens: Sequence[int], count: int, temperature: float = 0.8, top_k: int = 0,
             seed: int = 0) -> list[int]:
    """Continues a sequence of tokens.

    Args:
        model: predicts each next token from the newest tokens that fit into its context.
        tokens: ids to go on from, at least one.
        count: how many tokens to add.
        temperature: divides the logits before each draw; 0 takes the likeliest token instead of drawing.
        top_k: draw only from this many of the likeliest tokens; 0 means all.
        seed: of the random draws.
    Returns: the given ids and the new ones. Ids that only pad the vocabulary are never drawn.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens = list(tokens)
    for _ in range(count):
        past = torch.tensor([tokens[-model.context:]], device=device)              # (1, T)
        logits = model(past)[0, -1, :model.vocab_size].float().cpu()               # (vocab_size,)
        if top_k:
            smallest = logits.topk(min(top_k, len(logits))).values[-1]
            logits[logits < smallest] = -torch.inf
        if temperature == 0:
            token = logits.argmax()
        else:
            # in float64, and with a largest logit of 0, so that no temperature makes all of them infinite
            scaled = (logits.double() - logits.max()) / temperature
            token = torch.multinomial(scaled.softmax(-1).float(), 1, generator=generator)
        tokens.append(int(token))
    return tokens


def text(model: Decoder, tokenizer: tiktoken.Encoding | data.T5, prompt: str, count: int,
         temperature: float = 0.8, top_k: int = 0, seed: int = 0) -> str:
    """Continues a text.

    Args:
        model: the model that writes.
        tokenizer: of the data that the model was trained on; see data.load_tokenizer.
        prompt: the text to go on from; "" begins a new document.
        count, temperature, top_k, seed: see generate().
    Returns: the prompt and its continuation.
    """
    start = tokenizer.encode_ordinary(prompt)
    if start:
        tokens = generate(model, start, count, temperature, top_k, seed)
    else:    # a document begins after the end of the one before, which is not shown
        tokens = generate(model, [tokenizer.eot_token], count, temperature, top_k, seed)[1:]
    return tokenizer.decode(tokens).removeprefix("<|endoftext|>")


def show(model: Decoder, folder: str, count: int) -> None:
    """Prints a text of `count` tokens, or a note if the tokenizer of the data in `folder` is missing."""
    try:
        tokenizer = data.load_tokenizer(folder)
    except UserError as error:    # training needs no tokenizer
        print(f"note: no sample: {error}")
        return
    with torch.compiler.set_stance("force_eager"):
        print(f"\n--- {count} tokens from the model\n{text(model, tokenizer, '', count)}\n---\n")


def newest_checkpoint(runs_folder: str, name: str) -> Path:
    """Returns the newest checkpoint of a run, or of all runs if the name is "". Raises UserError if there is
    none."""
    folder = Path(runs_folder, name)
    if not name:
        newest = [path for run in folder.glob("*") for path in runs.checkpoints_of(run)[:1]]
        if not newest:
            raise UserError(f"--runs={folder}: no run in it has a checkpoint; train one first")
        folder = max(newest, key=lambda path: path.stat().st_mtime_ns).parent
        print(f"note: the newest run is {folder}", file=sys.stderr)
    if not folder.is_dir():
        raise UserError(f"--name={name}: no such folder in {runs_folder}")
    if not (checkpoints := runs.checkpoints_of(folder)):
        raise UserError(f"--name={name}: no checkpoint in {folder}; train it first")
    return checkpoints[0]


def tokenizer_of(checkpoint: dict, settings: Options) -> tiktoken.Encoding | data.T5:
    """Loads the tokenizer of the data that a checkpoint was trained on. Raises UserError if these data are
    not found."""
    folder = Path(settings.data or checkpoint["config"]["data"])
    if not folder.exists():    # training started in another folder, which usually holds data and runs
        folder = Path(settings.runs).absolute().parent / folder
    if not folder.exists():
        raise UserError(f"--data={folder}: no such folder; say where the data of the run are")
    found, expected = data.fingerprint(data.read_meta(folder)), checkpoint["data"]
    if found != expected:
        raise UserError(f"--data={folder}: holds other tokens than the run was trained on (sha256 "
                        f"{found[:12]}, not {expected[:12]}); say where the data of the run are")
    return data.load_tokenizer(folder)


def main(argv: list[str]) -> int:
    """Runs a command line. Returns the exit code: 0 for success, otherwise that of the UserError."""
    try:
        settings = load(Options, argv, __doc__)[0]
        checkpoint = runs.load_checkpoint(newest_checkpoint(settings.runs, settings.name))
        tokenizer = tokenizer_of(checkpoint, settings)
        model = Decoder(**checkpoint["shape"])
        weights = averaged_weights(checkpoint) if settings.average else checkpoint["model"]
        model.load_state_dict(weights)
        print(text(model, tokenizer, settings.prompt, settings.tokens, settings.temperature, settings.top_k,
                   settings.seed))
    except UserError as error:
        print(f"sample.py: error: {one_line(error)}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    script.run("sample.py", main)
