"""
Options: one dataclass, filled from a TOML file and the command line. Both are data: nothing in them is
ever run.

    @dataclass
    class Config:
        steps: int = option(500, "train", "optimizer steps", low=1)

A value comes from the command line (--steps=300 or --steps 300), else from the table [train] of the
file, else from the default. Whatever is wrong is one line that names the key.
"""
import argparse
import dataclasses
import math
import tomllib

from trainer.errors import UserError, nearest

def option(default, table, help, choices=None, low=None, high=None, free=False):
    """A field of a dataclass of options; its type is bool, int, float or str, and a default of None
    means unset.

    table      the table of the TOML file that may hold it; None: for the command line only
    low, high  bounds, inclusive
    free       may differ between a run and its resume, since it does not touch the result
    """
    return dataclasses.field(default=default, metadata=dict(table=table, help=help, choices=choices, low=low,
                                                            high=high, free=free))

# ---------------------------------------------------------------------------------------------------------
# One value

def parse(key, text, kind):
    """The value of a command line's text as bool, int, float or str."""
    # int() and float() would take odder forms
    plain = text.isascii() and "_" not in text and len(text) < 40
    try:
        if kind is bool:
            return {"true": True, "false": False}[text]
        return kind(text if plain or kind is str else "")
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"--{key}={text!r}: must be {wanted}") from None

def check(key, value, kind, choices=None, low=None, high=None, **_):
    """The value as kind (an int will do for a float). Raises UserError if it is of another kind
    or out of range."""
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

def read_toml(path):
    """The tables of a TOML file."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UserError(f"--config={path!r}: {error.strerror}; what ships is in configs/*.toml") from None
    except (ValueError, RecursionError) as error:    # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"--config={path!r}: is not TOML: {error}") from None

def from_tables(tables, cls, extra):
    """{field name: value} of a file's tables. extra: further tables, which the caller reads."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    own = {field.metadata["table"] for field in fields.values()} - {None}
    known = own | set(extra)
    values = {}
    for table, content in tables.items():
        if not isinstance(content, dict) or table not in known:
            home = fields[table].metadata["table"] if table in fields else None
            raise UserError(f"{table}: no such table; " + (f"{table} is a key of [{home}]" if home else
                            "there are " + ", ".join(sorted(known)) + nearest(table, known)))
        for key, value in content.items() if table in own else ():
            home = fields[key].metadata["table"] if key in fields else None
            if home != table:
                names = [name for name, field in fields.items() if field.metadata["table"] == table]
                where = (f"; it belongs into [{home}]" if home else
                         "; it is for the command line" if key in fields else nearest(key, names))
                raise UserError(f"{key}: no such key in [{table}]{where}")
            values[key] = check(key, value, fields[key].type, **fields[key].metadata)
    return values

# ---------------------------------------------------------------------------------------------------------
# The command line

class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)

def flag(group, name, kind, default, help, choices=None):
    """Adds --name to an argparse group. A bool may stand alone for true. Values stay text,
    and all are kept."""
    default = "" if default in (None, "") else f" [{str(default).lower() if kind is bool else default}]"
    alone = dict(nargs="?", const="true") if kind is bool else {}
    group.add_argument(f"--{name}", action="append", metavar="|".join(choices or ()) or kind.__name__,
                       help=(help + default).replace("%", "%%"), **alone)

def load(cls, argv, about="", extra=(), hyper=lambda config, tables: {}, base=None):
    """Reads the command line and the file that its --config names.

    cls     the dataclass of options; a field `config` holds the path of the file
    extra   names of tables that are the caller's
    hyper   a function of (config, tables) to {name: default}: further flags, once the options are known
    base    {name: value} of an earlier run, instead of the file (unless the command line names a file)
    Returns (config, {name: value of a further flag}, tables). Prints the help and leaves on --help.
    """
    parser = Parser(description=about, allow_abbrev=False, add_help=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-h", "--help", action="store_true", help="show this and leave")
    fields, groups = {field.name: field for field in dataclasses.fields(cls)}, {}
    for name, field in fields.items():
        table = field.metadata["table"]
        if table not in groups:
            groups[table] = parser.add_argument_group(f"[{table}]" if table else "this run")
        flag(groups[table], name, field.type, field.default, field.metadata["help"],
             field.metadata["choices"])
    if stray := [text for text in argv if text == "--" or text.endswith("=--")]:    # argparse drops these
        raise UserError(f"{stray[0]}: options are --key=value")
    given, left = parser.parse_known_args(argv)

    def value(key, kind, texts, limits):
        if len(texts) > 1:
            raise UserError(f"--{key}: given {len(texts)} times")
        return check(f"--{key}", parse(key, texts[0], kind), kind, **limits)

    typed = {name: value(name, field.type, getattr(given, name), field.metadata)
             for name, field in fields.items() if getattr(given, name) is not None}
    base = base or {}
    earlier = {k: check(k, v, fields[k].type, **fields[k].metadata) for k, v in base.items()
               if k in fields and v is not None}
    tables = {}
    if "config" in fields:
        tables = read_toml((earlier | typed).get("config", fields["config"].default))
    filed = from_tables(tables, cls, extra)
    config = cls(**((earlier | filed if "config" in typed else filed | earlier) | typed))

    further = hyper(config, tables)
    if "config" not in typed:
        further = {name: base.get(name, default) for name, default in further.items()}
    second = Parser(allow_abbrev=False, add_help=False)
    group = parser.add_argument_group("hyperparameters of the chosen optimizer") if further else None
    for name, default in further.items():
        flag(second, name, type(default), None, "")
        flag(group, name, type(default), default, "")
    if given.help:
        parser.print_help()
        raise SystemExit(0)
    given, left = second.parse_known_args(left)
    if left:
        key = left[0].lstrip("-").partition("=")[0]
        what = (f"--{key}: no such option" if left[0].startswith("--") else
                f"{left[0]!r}: options are --key=value")
        takes = f"; the chosen optimizer takes {', '.join(further)}" if further else ""
        raise UserError(what + nearest(key, [*fields, *further]) + takes)
    return config, {name: value(name, type(default), texts, {}) if (texts := getattr(given, name)) is not None
                    else default for name, default in further.items()}, tables
