"""
G1. Command lines: every text and every file gets the right value or one line that names the mistake.
"""
import re

from conftest import TINY
from folders import snapshot
from seams import OPTIONS, RunReached, stop_before_the_run
from tools import CONFIG, DATA, DRAW, call, error_line, options

# Options that say where a run reads and writes, or that do something else than train. They keep their usual
# values, so that a command line comes as far as the run's folder and no further.
KEPT = ("config", "runs", "resume", "name", "init_from", "init_from_state", "continue_data", "compile",
        "device", "data", "prepare", "plan", "verify_data", "overwrite")

ODD_TEXTS = ["", "nan", "inf", "-inf", "1e309", "-1", "0", "0x10", "1_000", "1,5", "True", "yes", "1" * 400,
             "'", '"', "\x07", "\x1b[2J", "\u202e", "🙂", "1e3", "1.0", " 5", "5 ", "+5", "--", "None",
             "true", "false", "3", "0.5", "٣", "{}", "$(touch x)", "../x", "head", "lion",
             "99999999999999999999", "1e-400", "-0", "-0.0", "٠.٥"]


def command_lines_are_read_or_refused(folder):
    """500 made-up command lines and files get the value that an oracle gives, or a line that names the key.

    350 command lines have typos, repeated options, stray words and odd values. 150 are for damaged or odd
    TOML files. Nothing may be written, and no traceback may appear.
    """
    before = snapshot(folder)
    refusals = sum(try_command_line(folder, case % 7) for case in range(350))
    refusals += sum(try_file(folder, case % 15) for case in range(150))
    for argv, words in ((["--heads=3"], "--heads=3"), (["--batch=8", "--micro_batch=3"], "--micro_batch=3"),
                        (["--warmup=1.5"], "--warmup=1.5"), (["--width=999999999"], "--width"),
                        (["--batch=4503599627370496"], "--batch"),
                        (["--timeout=9007199254740991"], "--timeout"), (["--layers=99999999"], "--layers")):
        values, line = read_or_refuse(options(folder, "x", *argv))
        assert values is None and words in line, (argv, line)
    assert "/proc/x" in error_line(call(options(folder, "x", "--runs=/proc/x"))[2])
    assert snapshot(folder) == before, "something was written"
    return f"500 cases, {refusals} refused, 0 tracebacks"


def read_or_refuse(argv):
    """Runs a command line up to the moment at which it would make the run's folder.

    Returns:
        (values of all options, "") if it came that far, (None, the error line) if it was refused.
    """
    kept = []
    with stop_before_the_run(kept):
        try:
            code, _, err = call(argv)
        except RunReached:
            return kept[0], ""
        except SystemExit as left:
            assert left.code == 0 and "--help" in argv or "-h" in argv
            return None, "help"
    assert code in (2, 4), (argv, code, err)
    return None, error_line(err)


# ---------------------------------------------------------------------------------------------------------
# Command lines

def try_command_line(folder, kind):
    """Tries a made-up command line of one of seven kinds. Returns whether it was refused."""
    name = DRAW.choice([name for name in OPTIONS if name not in KEPT])
    text = DRAW.choice(ODD_TEXTS)
    usual = options(folder, "x", "--steps=3")
    without = [option for option in usual if not option.startswith(f"--{name}=")]
    if kind == 0:
        return typo_is_refused(usual, name)
    if kind == 1:
        return given_twice_is_refused(usual, name)
    if kind == 2:    # without a value, which only some options allow
        return read_or_refuse([*usual, f"--{name}"])[0] is None
    if kind == 3:
        return stray_word_is_refused(usual)
    if kind == 4:
        argv = [*without, f"--{name}={text}"]
    elif kind == 5:    # the other spelling: the file first, dashes for underscores
        argv = [str(CONFIG), *without[1:], f"--{name.replace('_', '-')}={text}"]
    else:
        argv = [*without, f"--{name}", text]
    values, line = read_or_refuse(argv)
    if kind < 6 or not text.startswith("-"):
        compare_with_oracle(argv, name, text, values, line)
    return values is None


def typo_is_refused(usual, name):
    """Changes one letter of an option: it must be refused, with a suggestion if the name is long enough."""
    at = DRAW.randrange(len(name))
    wrong = name[:at] + DRAW.choice("qj".replace(name[at], "")) + name[at + 1:]
    argv = [*usual, f"--{wrong}=1"]
    values, line = read_or_refuse(argv)
    assert values is None and f"--{wrong}: no such option" in line, (argv, line)
    assert "did you mean" in line or len(name) < 5, (argv, line)
    return True


def given_twice_is_refused(usual, name):
    """Gives an option twice, in both forms: this must be refused."""
    argv = [*usual, f"--{name}", "3", f"--{name}=3"]
    assert read_or_refuse(argv)[0] is None, argv
    return True


def stray_word_is_refused(usual):
    """Appends a word that is no option: this must be refused."""
    argv = [*usual, DRAW.choice(["--", "-", "-x", "stray", "=", "--=1", "-name=5", "🙂"])]
    assert read_or_refuse(argv)[0] is None, argv
    return True


def compare_with_oracle(argv, name, text, values, line):
    """Compares what the program made of an option's text with the oracle."""
    expected = oracle(OPTIONS[name], text)
    if values is None:
        combined = expected is not None    # fine by itself, so it must not fit the other options
        is_named = name in line or name.replace("_", "-") in line
        assert is_named or combined, (argv, line)
    else:
        value = values[name]
        filled_in = expected in (0, "auto") or name == "micro_batch"    # the program chooses the value
        assert expected is not None and (value == expected or filled_in), (argv, value, expected)


def oracle(field, text):
    """Says what value an option should get from a text; None stands for a refusal.

    It is written apart from the program's own parser, from the rules that the options state.
    """
    limits = field.metadata
    if field.type is bool:
        return dict(true=True, false=False).get(text.lower())
    if field.type is str:
        return text if not limits["choices"] or text in limits["choices"] else None
    integer, decimal = r"\s*[+-]?\d{1,30}\s*", r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*"
    number = re.fullmatch(integer if field.type is int else decimal, text, re.ASCII)
    if not number or len(text) >= 40 or not text.isascii():
        return None
    value = field.type(text)
    if value in (float("inf"), -float("inf")) or field.type is int and abs(value) >= 2**53:
        return None
    low, high = limits["low"], limits["high"]
    return value if (low is None or value >= low) and (high is None or value <= high) else None


# ---------------------------------------------------------------------------------------------------------
# Files

MUST_BE_REFUSED = (4, 5, 7, 9, 10, 11, 12, 14)    # kinds of made_up_file()
MUST_BE_READ = (2, 3, 8)


def try_file(folder, kind):
    """Tries a made-up TOML file of one of 15 kinds. Returns whether it was refused."""
    path, content = folder.parent / "fuzz.toml", made_up_file(kind)
    path.write_bytes(content)
    values, line = read_or_refuse(options(folder, "x", f"--config={path}"))
    assert values or line.startswith("train.py: error: "), line
    if kind in MUST_BE_REFUSED:
        assert values is None, (kind, content[-300:])
    if kind in MUST_BE_READ:
        assert values, line
    return values is None


def made_up_file(kind):
    """Returns the content of the tiny model's file with a change of one of 15 kinds."""
    text = TINY.format(data=DATA)
    content, at = text.encode(), DRAW.randrange(len(text))
    keys = [line.split(" = ")[0] for line in text.splitlines() if " = " in line and "data" not in line]
    key = DRAW.choice(keys)
    tables = [b"[expect]\nadamw = 5\n", b"[hyper]\nadamw = 5\n", b"[expect]\nx = {}\n",
              b"[hyper.adamw]\nbeta1 = 'x'\n", b"[hyper.adamw]\nbeta1 = true\n",
              b"[expect]\nadamw = {loss = 'x', tolerance = 1}\n", b"[hyper.nix]\na = 1\n",
              b"[rest_lr]\nadamw = [1]\n", b"[expect]\nadamw = {loss = 1}\n"]
    other_lr = [rb"\1 = 1979-05-27", rb"\1 = -1", rb"\1 = nan", rb"\1 = {}", rb"\1 = 0x10"]
    set_key = f"{key} = ".encode()
    return {
        0: content[:at],
        1: content[:at] + bytes([DRAW.randrange(256)]) + content[at + 1:],
        2: b"\xef\xbb\xbf" + content,                                  # a byte order mark
        3: content.replace(b"\n", b"\r\n"),
        4: content + f"{key} = 1\n{key} = 2\n".encode(),
        5: content.replace(set_key, b"x = ", 1),
        6: content.replace(set_key, set_key + b"'").replace(b"\n\n[lr", b"'\n\n[lr"),
        7: content + b"[deep]\na = " + b"[" * DRAW.randrange(1, 3000),
        8: content + b"# " + b"x" * 10**6,
        9: DRAW.randbytes(300),
        10: content + b"\xff\xfe",
        11: content + b"[train.x]\ny = 1\n",
        12: content + DRAW.choice(tables),
        13: re.sub(rb"(\w+) = 1e-2", DRAW.choice(other_lr), content),
        14: b"import os; os.system('touch x')\n" + content,
    }[kind]
