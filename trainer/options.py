"""
Reads options. A dataclass describes them, and their values come from a TOML file and the command line. Both
are data: nothing in them is run as code, but an option may name a file with an update rule, which is run.

    @dataclass(frozen=True)
    class Settings:
        config: str = option("configs/nano.toml", None, "TOML file")
        steps: int = option(500, "train", "optimizer steps", low=1)

A value on the command line comes first, then the value in the table [train] of the file, then the default.
On the command line, --steps=300 and --steps 300 are the same, and a dash in a name equals an underscore. The
file may stand first without --config=. Every mistake leads to one line that names the option.
"""
import argparse
import dataclasses
import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

from trainer.errors import UserError, nearest

ROOT = Path(__file__).parent.parent    # the folder of this program


def option(default, table, help, choices=None, low=None, high=None, free=False, any_text=False):
    """Makes a field of a dataclass of options. The field's type is bool, int, float or str.

    Args:
        default: the value if nobody gives one. None means unset.
        table: the table of the TOML file that may hold the value. None: only the command line may give it.
        help: the text in --help.
        choices: the allowed values.
        low, high: the bounds, both inclusive.
        free: whether the value may change when a run is resumed, because the result does not depend on it.
        any_text: whether a text may hold line breaks, tabs and the like."""
    return dataclasses.field(default=default, metadata=dict(table=table, help=help, choices=choices, low=low,
                                                            high=high, free=free, any_text=any_text))


# ---------------------------------------------------------------------------------------------------------
# One value

def parse(key: str, text: str, kind: type):
    """Returns the value of a text from the command line as bool, int, float or str. Raises UserError."""
    # int() and float() also accept "1_000", digits of other scripts, and digits without end
    plain = text.isascii() and "_" not in text and len(text) < 40
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text if plain or kind is str else "")
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"--{key}={text!r}: must be {wanted}") from None


def check(key: str, value, kind: type, choices=None, low=None, high=None, any_text=False, **_):
    """Returns the value as kind. An int is also a valid float.

    Raises: UserError for a value of another type or out of range."""
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{key}={value!r}: must be of type {kind.__name__}")
    if kind is int and abs(value) >= 2**53 or kind is float and not math.isfinite(value):
        raise UserError(f"{key}={value}: must be finite, and below 2**53 if it is a whole number")
    if kind is str and not (any_text or value.isprintable()):
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
    """Returns the tables of a TOML file. A file that is not found may be one that ships with this program,
    in any working folder. Raises UserError."""
    try:
        is_shipped = not Path(path).exists() and (ROOT / path).exists()
        with open(ROOT / path if is_shipped else path, encoding="utf-8-sig") as file:    # no byte order mark
            text = file.read()
        return tomllib.loads(text)
    except FileNotFoundError:
        raise UserError(f"--config={path!r}: there is no such file in {Path.cwd()}; what ships is named "
                        "configs/*.toml from any folder") from None
    except OSError as error:
        raise UserError(f"--config={path!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:    # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        line = re.search(r"Invalid value \(at line (\d+)", str(error))
        hint = (f": {text.splitlines()[int(line[1]) - 1].strip()}; text needs quotes; booleans are "
                "true and false, in small letters") if line else ""
        raise UserError(f"--config={path!r}: is not TOML: {error}{hint}") from None


def from_tables(tables: dict, cls: type, extra_tables=(), foreign_names={}) -> dict:
    """Returns {field: value} from the tables of a file. Raises UserError.

    Args:
        cls: the dataclass of options.
        extra_tables: names of tables that the caller reads itself.
        foreign_names: {name of an option in other programs: advice}."""
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
    """Returns the error message for a key in a table that cannot hold this key."""
    if key in foreign_names:
        return f"{key}: no such key in [{table}]; {foreign_names[key]}"
    if key not in fields:
        names = [name for name, field in fields.items() if field.metadata["table"] == table]
        return f"{key}: no such key in [{table}]{nearest(key, names)}"
    home = fields[key].metadata["table"]
    where = f"it belongs in [{home}]" if home else "it is for the command line"
    return f"{key}: no such key in [{table}]; {where}"


# ---------------------------------------------------------------------------------------------------------
# The command line

class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def add_flag(group, name: str, kind: type, default, help: str, choices=None):
    """Adds --name to an argparse group.

    A bool may stand without a value, which means true. Values stay texts, and all of them are kept, so that
    typed_value() notices an option that is given twice."""
    shown = "" if default in (None, "") else f" [{str(default).lower() if kind is bool else default}]"
    bare_bool = dict(nargs="?", const="true") if kind is bool else {}
    group.add_argument(f"--{name}", action="append", metavar="|".join(choices or ()) or kind.__name__,
                       help=(help + shown).replace("%", "%%"), **bare_bool)


def peek(argv: list, names: tuple[str, ...]) -> dict[str, str | None]:
    """Returns {name: text} of some options of a command line, None for those that it lacks. It checks
    nothing. A name without a value has the text "true"."""
    parser = Parser(allow_abbrev=False, add_help=False)
    for name in names:
        parser.add_argument(f"--{name}", nargs="?", const="true")
    return vars(parser.parse_known_args(normalized(argv, has_config=True))[0])


def typed_value(key: str, kind: type, texts: list, limits: dict):
    """Returns the value that the command line gives to --key. Raises UserError."""
    if len(texts) > 1:
        raise UserError(f"--{key}: given {len(texts)} times")
    return check(f"--{key}", parse(key, texts[0], kind), kind, **limits)


def normalized(argv: list, has_config: bool) -> list:
    """Returns the command line with --config= before a file that stands first, and with _ for - in names."""
    words = list(argv)
    if words and has_config and not words[0].startswith("-"):
        words[0] = f"--config={words[0]}"
    for i, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            words[i] = "--" + name.replace("-", "_") + equals + value
    return words


def fill_in(cls: type, typed: dict, extra_tables=(), base=None, foreign_names={}) -> tuple:
    """Returns (an instance of cls, the tables of its file) from values by name. Raises UserError.

    Args:
        typed: {field: value} from the command line. These values come before all others.
        base: {field: value} of an earlier run. They come before the file's, unless `typed` names another file
            than that of the earlier run."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    earlier = {key: check(key, value, fields[key].type, **fields[key].metadata)
               for key, value in (base or {}).items() if key in fields and value is not None}
    tables = {}
    if "config" in fields:
        tables = read_toml((earlier | typed).get("config", fields["config"].default))
    filed = from_tables(tables, cls, extra_tables, foreign_names)
    lowest, higher = (earlier, filed) if names_another_file(typed, base) else (filed, earlier)
    return cls(**(lowest | higher | typed)), tables


def names_another_file(typed: dict, base: dict | None) -> bool:
    """Returns whether the command line names a config file that is not the one of an earlier run. The
    arguments are those of fill_in()."""
    earlier = (base or {}).get("config", "")
    return "config" in typed and Path(typed["config"]).resolve() != Path(earlier).resolve()


def no_extra_flags(values, tables) -> tuple:
    """The default `complete` of load(). It fills in nothing and adds no flags."""
    return values, {}


def load(cls: type, argv: list, about: str = "", *, complete: Callable = no_extra_flags, extra_tables=(),
         base: dict | None = None, foreign_names: dict = {}, program: str | None = None) -> tuple:
    """Reads the command line and the file that its --config names.

    Args:
        cls: the dataclass of options. If it has a field `config`, that field holds the path of the file.
        argv: the words of the command line.
        about: the text at the beginning of --help.
        complete: a function of (instance, tables). It fills in the options that follow from others. It
            returns the new instance and {name: default} of additional flags.
        extra_tables: names of tables of the file that the caller reads itself.
        base: {name: value} of an earlier run, see fill_in.
        foreign_names: {name of an option in other programs: advice}.
        program: the command as --help shows it; default: the name of the script.
    Returns: (instance, {additional flag: value}, tables of the file). On --help it prints the help and exits.
    Raises: UserError."""
    parser = Parser(prog=program, description=about, allow_abbrev=False, add_help=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-h", "--help", action="store_true", help="show this help and exit")
    fields, groups = {field.name: field for field in dataclasses.fields(cls)}, {}
    for name, field in fields.items():
        table = field.metadata["table"]
        if table not in groups:
            groups[table] = parser.add_argument_group(f"[{table}]" if table else "this run")
        add_flag(groups[table], name, field.type, field.default, field.metadata["help"],
                 field.metadata["choices"])
    if stray := [text for text in argv if text == "--" or text.endswith("=--")]:    # argparse drops them
        raise UserError(f"{stray[0]}: options are --key=value")
    given, left = parser.parse_known_args(normalized(argv, "config" in fields))
    typed = {name: typed_value(name, field.type, getattr(given, name), field.metadata)
             for name, field in fields.items() if getattr(given, name) is not None}
    values, tables = fill_in(cls, typed, extra_tables, base, foreign_names)
    values, extra = complete(values, tables)
    if base and not names_another_file(typed, base):
        extra = {name: base.get(name, default) for name, default in extra.items()}

    second = Parser(allow_abbrev=False, add_help=False)
    if extra:
        group = parser.add_argument_group("hyperparameters of the chosen optimizer",
                                          "The rule's page in docs/rules/ explains them.")
    for name, default in extra.items():
        add_flag(second, name, type(default), None, "")
        add_flag(group, name, type(default), default, "")
    if given.help:
        parser.print_help()
        raise SystemExit(0)
    given, left = second.parse_known_args(left)
    if left:
        raise UserError(unknown_option(left[0], [*fields, *extra], extra, foreign_names))
    for name, default in extra.items():
        if getattr(given, name) is not None:
            extra = extra | {name: typed_value(name, type(default), getattr(given, name), {})}
    return values, extra, tables


def unknown_option(word: str, known: list, extra: dict, foreign_names: dict) -> str:
    """Returns the error message for a word of the command line that no option takes."""
    key = word.lstrip("-").partition("=")[0]
    if word.startswith("--") and key in foreign_names:
        return f"--{key}: no such option; {foreign_names[key]}"
    what = f"--{key}: no such option" if word.startswith("--") else f"{word!r}: options are --key=value"
    hyperparameters = [name for name, default in extra.items() if type(default) is not str]
    takes = f"; the chosen optimizer takes {', '.join(hyperparameters)}" if extra else ""
    return what + nearest(key, known) + takes
