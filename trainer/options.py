"""
Options: one dataclass, filled from a TOML file and the command line. Both are data. Nothing in them is ever run.

    @dataclass(frozen=True)
    class Settings:
        config: str = option("configs/nano.toml", None, "TOML file")
        steps: int = option(500, "train", "optimizer steps", low=1)

A value comes from the command line, else from the table [train] of the file, else from the default. On the command
line --steps=300 and --steps 300 are the same, a dash equals an underscore, and the file may stand first without
--config=. Every mistake is told in one line that names the key.
"""
import argparse
import dataclasses
import math
import tomllib
from collections.abc import Callable

from trainer.errors import UserError, nearest


def option(default, table, help, choices=None, low=None, high=None, free=False):
    """Makes a field of a dataclass of options. The field's type is bool, int, float or str.

    Args:
        default: its value if nobody gives one. None means unset.
        table: the table of the TOML file that may hold it. None: only the command line may.
        help: what --help says.
        choices: the values that are allowed.
        low, high: bounds, inclusive.
        free: whether it may differ between a run and its resume, since the result does not depend on it.
    """
    return dataclasses.field(default=default, metadata=dict(table=table, help=help, choices=choices, low=low,
                                                            high=high, free=free))


# ---------------------------------------------------------------------------------------------------------
# One value

def parse(key: str, text: str, kind: type):
    """Returns the value of a command line's text as bool, int, float or str. Raises UserError."""
    # int() and float() alone would also take "1_000", digits of other scripts, and endless ones
    plain = text.isascii() and "_" not in text and len(text) < 40
    try:
        if kind is bool:
            return {"true": True, "false": False}[text]
        return kind(text if plain or kind is str else "")
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"--{key}={text!r}: must be {wanted}") from None


def check(key: str, value, kind: type, choices=None, low=None, high=None, **_):
    """Returns the value as kind. An int will do for a float. Raises UserError for another type and for a value
    out of range."""
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{key}={value!r}: must be of type {kind.__name__}")
    if kind is int and abs(value) >= 2**53 or kind is float and not math.isfinite(value):
        raise UserError(f"{key}={value}: must be a finite number of ordinary size")
    if kind is str and not value.isprintable():
        raise UserError(f"{key}={value!r}: holds characters that cannot be printed")
    if choices and value not in choices:
        raise UserError(f"{key}={value!r}: must be one of {', '.join(choices)}{nearest(value, choices)}")
    if low is not None and value < low:
        raise UserError(f"{key}={value}: must be at least {low}")
    if high is not None and value > high:
        raise UserError(f"{key}={value}: must be at most {high}")
    return value


# ---------------------------------------------------------------------------------------------------------
# The file

def read_toml(path: str) -> dict:
    """Returns the tables of a TOML file. Raises UserError."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UserError(f"--config={path!r}: {error.strerror}; what ships is in configs/*.toml") from None
    except (ValueError, RecursionError) as error:    # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"--config={path!r}: is not TOML: {error}") from None


def from_tables(tables: dict, cls: type, extra_tables=(), foreign_names={}) -> dict:
    """Returns {field: value} of a file's tables. The caller itself reads the tables named in extra_tables."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    own_tables = {field.metadata["table"] for field in fields.values()} - {None}
    known_tables = own_tables | set(extra_tables)
    values = {}
    for table, content in tables.items():
        if table not in known_tables or not isinstance(content, dict):
            home = fields[table].metadata["table"] if table in fields else None
            advice = f"{table} is a key of [{home}]" if home else (
                f"there are {', '.join(sorted(known_tables))}{nearest(table, known_tables)}")
            raise UserError(f"{table}: no such table; {advice}")
        for key, value in content.items() if table in own_tables else ():
            if key not in fields or fields[key].metadata["table"] != table:
                raise UserError(misplaced_key(key, table, fields, foreign_names))
            values[key] = check(key, value, fields[key].type, **fields[key].metadata)
    return values


def misplaced_key(key: str, table: str, fields: dict, foreign_names: dict) -> str:
    """What to say of a key that the table of a file cannot hold."""
    if key in foreign_names:
        return f"{key}: no such key in [{table}]; {foreign_names[key]}"
    if key not in fields:
        names = [name for name, field in fields.items() if field.metadata["table"] == table]
        return f"{key}: no such key in [{table}]{nearest(key, names)}"
    home = fields[key].metadata["table"]
    where = f"it belongs into [{home}]" if home else "it is for the command line"
    return f"{key}: no such key in [{table}]; {where}"


# ---------------------------------------------------------------------------------------------------------
# The command line

class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def add_flag(group, name: str, kind: type, default, help: str, choices=None):
    """Adds --name to an argparse group. A bool may stand alone for true. Values stay text, and all are kept, so
    that an option that is given twice is noticed."""
    shown = "" if default in (None, "") else f" [{str(default).lower() if kind is bool else default}]"
    alone = dict(nargs="?", const="true") if kind is bool else {}
    group.add_argument(f"--{name}", action="append", metavar="|".join(choices or ()) or kind.__name__,
                       help=(help + shown).replace("%", "%%"), **alone)


def typed_value(key: str, kind: type, texts: list, limits: dict):
    """The value that the command line gives to --key. Raises UserError."""
    if len(texts) > 1:
        raise UserError(f"--{key}: given {len(texts)} times")
    return check(f"--{key}", parse(key, texts[0], kind), kind, **limits)


def in_our_spelling(argv: list, has_config: bool) -> list:
    """The command line with --config= before a file that stands first, and _ for - in the names of options."""
    words = list(argv)
    if words and has_config and not words[0].startswith("-"):
        words[0] = f"--config={words[0]}"
    for i, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            words[i] = "--" + name.replace("-", "_") + equals + value
    return words


def fill_in(cls: type, typed: dict, extra_tables=(), base=None, foreign_names={}) -> tuple:
    """Returns (an instance of cls, the tables of its file) from values that are given by name.

    Args:
        typed: {field: value}. They come first.
        base: {field: value} of an earlier run. They come before the file's, unless typed names a file.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    earlier = {key: check(key, value, fields[key].type, **fields[key].metadata)
               for key, value in (base or {}).items() if key in fields and value is not None}
    tables = {}
    if "config" in fields:
        tables = read_toml((earlier | typed).get("config", fields["config"].default))
    filed = from_tables(tables, cls, extra_tables, foreign_names)
    lowest, higher = (earlier, filed) if "config" in typed else (filed, earlier)
    return cls(**(lowest | higher | typed)), tables


def no_further_flags(values, tables) -> tuple:
    """The usual `complete` of load: nothing is filled in, and there are no further flags."""
    return values, {}


def load(cls: type, argv: list, about: str = "", *, complete: Callable = no_further_flags, extra_tables=(),
         base: dict | None = None, foreign_names: dict = {}) -> tuple:
    """Reads the command line and the file that its --config names.

    Args:
        cls: the dataclass of options. If it has a field `config`, that field holds the path of the file.
        argv: the words of the command line.
        about: what --help says first.
        complete: a function of (instance, tables) that returns the instance with everything filled in that follows
            from other options, and {name: default} of further flags.
        extra_tables: names of tables of the file that the caller reads.
        base: {name: value} of an earlier run, see fill_in.
        foreign_names: {name of an option in other programs: advice}.
    Returns: (instance, {further flag: value}, tables of the file). On --help it prints the help and leaves.
    Raises: UserError.
    """
    parser = Parser(description=about, allow_abbrev=False, add_help=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-h", "--help", action="store_true", help="show this and leave")
    fields, groups = {field.name: field for field in dataclasses.fields(cls)}, {}
    for name, field in fields.items():
        table = field.metadata["table"]
        if table not in groups:
            groups[table] = parser.add_argument_group(f"[{table}]" if table else "this run")
        add_flag(groups[table], name, field.type, field.default, field.metadata["help"],
                 field.metadata["choices"])
    if stray := [text for text in argv if text == "--" or text.endswith("=--")]:    # argparse drops these
        raise UserError(f"{stray[0]}: options are --key=value")
    given, left = parser.parse_known_args(in_our_spelling(argv, "config" in fields))
    typed = {name: typed_value(name, field.type, getattr(given, name), field.metadata)
             for name, field in fields.items() if getattr(given, name) is not None}
    values, tables = fill_in(cls, typed, extra_tables, base, foreign_names)
    values, further = complete(values, tables)
    if base and "config" not in typed:
        further = {name: base.get(name, default) for name, default in further.items()}

    second = Parser(allow_abbrev=False, add_help=False)
    group = parser.add_argument_group("hyperparameters of the chosen optimizer") if further else None
    for name, default in further.items():
        add_flag(second, name, type(default), None, "")
        add_flag(group, name, type(default), default, "")
    if given.help:
        parser.print_help()
        raise SystemExit(0)
    given, left = second.parse_known_args(left)
    if left:
        raise UserError(unknown_option(left[0], [*fields, *further], further, foreign_names))
    for name, default in further.items():
        if getattr(given, name) is not None:
            further = further | {name: typed_value(name, type(default), getattr(given, name), {})}
    return values, further, tables


def unknown_option(word: str, known: list, further: dict, foreign_names: dict) -> str:
    """What to say of a word of the command line that no option takes."""
    key = word.lstrip("-").partition("=")[0]
    if word.startswith("--") and key in foreign_names:
        return f"--{key}: no such option; {foreign_names[key]}"
    what = f"--{key}: no such option" if word.startswith("--") else f"{word!r}: options are --key=value"
    hyperparameters = [name for name, default in further.items() if type(default) is not str]
    takes = f"; the chosen optimizer takes {', '.join(hyperparameters)}" if further else ""
    return what + nearest(key, known) + takes
