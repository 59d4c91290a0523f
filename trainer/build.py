"""
Builds what a run needs from its settings: its data, the shape of its model, and its optimizer.
"""
import zoo
from model import Decoder
from trainer import data
from trainer.errors import UserError
from trainer.settings import Settings, settings_of_roles

SHAPE = ("width", "layers", "heads", "context", "vocab_size", "padded_vocab", "qk_norm", "attention",
         "loss_chunk")
CHOICES = ("rows", "adaptive", "rest", "rest_lr", "untrained", "freeze_steps", "updating", "modify",
           "average")


def open_data(settings: Settings) -> tuple[str, data.Tokens, data.Tokens]:
    """Returns (a hash of the data, the training split, the validation split). Raises UserError."""
    meta = data.read_meta(settings.data)
    if meta["vocab_size"] != settings.vocab_size:
        raise UserError(f"--vocab_size={settings.vocab_size}: the data in {settings.data} "
                        f"has {meta['vocab_size']}; give --vocab_size={meta['vocab_size']}, or other --data")
    train_set, val_set = (data.Tokens(settings.data, split, settings.context, settings.verify_data)
                          for split in ("train", "val"))
    return data.fingerprint(meta), train_set, val_set


def decoder_shape(settings: Settings) -> dict:
    """Returns the settings that a Decoder takes, except for the seed."""
    return {name: getattr(settings, name) for name in SHAPE}


def build_optimizer(model: Decoder, settings: Settings, hyper: dict) -> zoo.Optimizer:
    """Returns the optimizer of a model. Raises UserError that names the option that does not fit."""
    choices = {name: getattr(settings, name) for name in CHOICES}
    chosen = {name: value for name, value in choices.items()
              if value not in ("", None) and (name, value) != ("freeze_steps", 0)}
    for prefix, name in (("", settings.optimizer), ("rest_", settings.rest)):
        for key in zoo.find(name).from_run if name else ():
            chosen[prefix + key] = getattr(settings, key)    # such as steps, heads, seed
    values = {name: value for name, value in hyper.items() if type(value) is not str}    # leaves out NAME_of
    try:
        return zoo.make(settings.optimizer, model.roles(), lr=settings.lr, weight_decay=settings.weight_decay,
                        weight_decay_kind=settings.weight_decay_kind, compile=settings.compile,
                        of_role=settings_of_roles(settings, hyper), **values, **chosen)
    except zoo.WrongRule as error:
        of_rest = settings.rest and str(error).startswith(zoo.find(settings.rest).name)
        option_name = "rest" if of_rest else "optimizer"
        raise UserError(f"--{option_name}={getattr(settings, option_name)}: {error}") from None
    except ValueError as error:
        raise UserError(f"--{error}") from None
