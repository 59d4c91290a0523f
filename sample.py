"""
Text from a trained model.

    python sample.py --run=0001 --prompt="Fellow citizens" --temperature=0.8
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import config
import data
import runs
from config import UserError, option
from model import Decoder

@dataclass
class Options:
    run: str = option("", None, "name of the run, a folder in --runs")
    runs: str = option("runs", None, "folder of all runs")
    data: str = option("", None, "folder of the run's data, for its tokenizer; default: where the run "
                                 "found it")
    prompt: str = option("", None, "text to go on from; default: the beginning of a document")
    tokens: int = option(200, None, "how many tokens to add", low=1)
    temperature: float = option(0.8, None, "0: always the likeliest token; 1: as the model says", low=0.0)
    top_k: int = option(0, None, "draw from the so many likeliest tokens only; 0: from all", low=0)
    seed: int = option(0, None, "of the draws", low=0)

@torch.no_grad()
def generate(model, tokens, count, temperature=0.8, top_k=0, seed=0):
    """The list of ids `tokens`, and `count` more that the model draws after them.
    Padded ids are never drawn."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens = list(tokens)
    for _ in range(count):
        past = torch.tensor([tokens[-model.context:]], device=device)
        logits = model(past)[0, -1, :model.vocab_size].float().cpu()
        if top_k:
            logits[logits < logits.topk(min(top_k, len(logits))).values[-1]] = -torch.inf
        if temperature == 0:
            tokens.append(int(logits.argmax()))
        else:
            tokens.append(int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)))
    return tokens

def text(model, encoding, prompt, *settings):
    """The prompt and its continuation as text. An empty prompt begins a new document."""
    start = encoding.encode_ordinary(prompt) or [encoding.eot_token]
    tokens = generate(model, start, *settings)
    kept = [t for t in tokens if t != encoding.eot_token or t is not tokens[0]]
    return encoding.decode(kept).removeprefix("<|endoftext|>")

def main(argv):
    try:
        options = config.load(Options, argv, __doc__)[0]
        folder = Path(options.runs) / options.run
        if not options.run or not folder.is_dir():
            raise UserError(f"--run={options.run!r}: no such folder in {options.runs}")
        paths = sorted(folder.glob("step-*.pt"), reverse=True)
        if not paths:
            raise UserError(f"--run={options.run}: {folder} holds no checkpoint")
        checkpoint = runs.load_checkpoint(paths[0])
        model = Decoder(**checkpoint["shape"])
        model.load_state_dict(checkpoint["model"])
        encoding = data.load_tokenizer(options.data or checkpoint["config"]["data"])
        print(text(model, encoding, options.prompt, options.tokens, options.temperature, options.top_k,
                   options.seed))
    except UserError as error:
        print(f"sample.py: error: {config.one_line(error)}", file=sys.stderr)
        return error.code
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
