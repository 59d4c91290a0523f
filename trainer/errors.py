"""
The one exception that means "the user can mend this", and helpers for its one line of text.
"""
import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can mend, told in one line.

    Args:
        message: the option or file, what is wrong with it, and what to do.
        code: the exit code. 2: usage or data; 3: the run diverged; 4: the machine; 75: interrupted.
    """
    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


def one_line(text: object, limit: int = 280) -> str:
    """Makes a text safe to print in a message: one line, printable characters, at most `limit` of them."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
    return text if len(text) <= limit else text[:limit - 4] + " ..."


def nearest(key: str, known: Iterable[str]) -> str:
    """Returns "; did you mean X?" for the known name that is most like key, or "" if none is like it. Capital
    letters make no difference."""
    by_lower = {name.lower(): name for name in known}
    if "cuda" in by_lower and key.lower() == "gpu":    # no letter says what it is called here
        return "; did you mean cuda?"
    near = difflib.get_close_matches(key.lower(), by_lower, 1, 0.4)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""
