"""
What every script does before its slow imports, at signals, and at its end.

    from trainer import script

    if __name__ == "__main__":
        script.begin("train.py")

    ...    the imports and main(argv), which returns an exit code

    if __name__ == "__main__":
        script.run("train.py", main)
"""
import contextlib
import gc
import os
import signal
import stat
import sys
import warnings
from collections.abc import Callable, Iterator

from tqdm import tqdm


def say(line: str) -> None:
    """Prints a line to stderr, above a progress bar. If stderr cannot be written, only the line is lost."""
    with contextlib.suppress(OSError):
        tqdm.write(line, file=sys.stderr)


def begin(name: str) -> None:
    """Prepares this process for a script.

    Characters that the terminal or the log cannot show become question marks. Ctrl-C during the imports leads
    to one line, and so does a warning. The garbage collector pauses until run(), because imports make no
    garbage; this saves 0.5 of 3.6 s.

    Args:
        name: the script, as its messages name it.
    """
    def leave_at_once(number, frame):
        say(f"{name}: interrupted before it began")
        os._exit(75)

    def tell(kind, error, trace):
        if kind.__name__ == "WrongRule":    # of a table in zoo/, which is read during the imports
            say(f"{name}: error: {error}")
        else:
            sys.__excepthook__(kind, error, trace)

    signal.signal(signal.SIGINT, leave_at_once)
    sys.excepthook = tell
    warnings.formatwarning = lambda message, *_, **__: f"{name}: warning: {message}\n"
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:    # the process was started with a closed descriptor
            setattr(sys, stream, open(os.devnull, "w"))
        getattr(sys, stream).reconfigure(errors="replace")
    gc.disable()


def run(name: str, main: Callable[[list], int]) -> None:
    """Runs main(words of the command line) and ends the process with the exit code that it returns.

    A Ctrl-C that main does not handle ends the process with 75, and a failing file or output with 4.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.freeze()    # what the imports have made stays, so the collector need not look through it
    gc.enable()
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        code = 75
        say(f"{name}: interrupted")
    except OSError as error:
        code = 4
        say(f"{name}: error: {error.filename or 'output'}: {error.strerror or error}")
    leave(code)


def close(bar) -> None:
    """Closes a progress bar, also if nothing can be written any more."""
    with contextlib.suppress(OSError):
        bar.close()


# What a rank must not free before it ends. When DDP's model is freed, it waits for a thread of Gloo and
# holds Python's lock meanwhile. That thread may be waiting for this lock: 2 of 22 runs of two ranks never
# ended.
NEVER_FREED = []


def leave(code: int) -> None:
    """Ends the process with an exit code, or with 4 if the code is 0 but the output cannot be written.

    A rank of torchrun skips the interpreter's own shutdown: DDP never releases its process group, and a
    thread of Gloo that still holds a tensor would abort the process during that shutdown.
    """
    on_signals(signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            silence(stream)    # the interpreter flushes it once more
            say(f"error: the output could not be written: {error.strerror}")
            code = code or 4
    if os.environ.get("RANK"):
        os._exit(code)
    gc.freeze()    # the exit takes a second longer without this
    sys.exit(code)


def silence(stream) -> None:
    """Lets everything that is written to a stream vanish from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


# ---------------------------------------------------------------------------------------------------------
# Signals

# The signals that end a run in order: Ctrl-C, and what terminals and cluster schedulers send.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


def on_signals(handler) -> None:
    """Lets a function of (number, frame) handle the signals of ENDING. signal.SIG_IGN ignores them. A SIGHUP
    that is ignored already stays so, because the user has asked for that with nohup."""
    def hang_up(number, frame):
        silence_lost_terminal()
        handler(number, frame)

    for number in ENDING:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue
        with contextlib.suppress(ValueError):    # only a main thread can do that
            signal.signal(number, hang_up if number == signal.SIGHUP and callable(handler) else handler)


def until_interrupted(function: Callable, *arguments) -> None:
    """Calls a function after everything is saved. A signal ends it at once, and this is no error. Further
    signals do nothing, because only the last lines of the output are still to come."""
    on_signals(signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        function(*arguments)
    on_signals(signal.SIG_IGN)


@contextlib.contextmanager
def surroundings_restored() -> Iterator[None]:
    """Gives the signals of ENDING the handlers of before, and the process its stdout of before, when the
    block or the decorated function ends."""
    before, stdout = {number: signal.getsignal(number) for number in ENDING}, sys.stdout
    try:
        yield
    finally:
        sys.stdout = stdout
        for number, handler in before.items():
            with contextlib.suppress(ValueError, TypeError):    # not a main thread; a handler of a C library
                signal.signal(number, handler)


def silence_lost_terminal() -> None:
    """Lets output vanish that goes to a terminal which no longer exists. Otherwise the next line of output
    would end the run before it has saved anything."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):    # a stream without a descriptor is no terminal
            if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode) and not stream.isatty():
                silence(stream)
