"""Exit codes, and the lines that commands write to standard output and standard error."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from unrain.devices import DeviceWarning
from unrain.errors import UnrainError, UsageError

if TYPE_CHECKING:
    from cyclopts import App

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
EXIT_TERMINATED = 143

# Control characters, with which a name could forge a line or steer the terminal, those that turn the
# direction of what follows, and Unicode's own ends of lines.
_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_USUAL = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def escaped(line: str) -> str:
    """Return a line in which nothing moves the cursor, ends the line, or turns the text's direction."""
    return _NOT_SHOWN.sub(lambda found: _USUAL.get(found[0]) or f"\\u{ord(found[0]):04x}", line)


def print_line(line: str) -> None:
    """Write a line to standard output, see `escaped`.

    Raises:
        UnrainError: Standard output cannot be written.
    """
    # A file's name may hold what the terminal's encoding cannot.
    encoding = sys.stdout.encoding
    try:
        sys.stdout.write(escaped(line).encode(encoding, "backslashreplace").decode(encoding) + "\n")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UnrainError(stdout_problem(error)) from error


def error_line(line: str) -> None:
    """Write a line to standard error, see `escaped`."""
    sys.stderr.write(escaped(line) + "\n")
    sys.stderr.flush()


def check_form(*, csv: bool, json: bool) -> None:
    """Refuse two forms of a result at once.

    Raises:
        UsageError: Both are wanted.
    """
    if csv and json:
        raise UsageError("--csv and --json: give one of them")


def csv_line(values: Iterable[object]) -> str:
    """Return a line of CSV (RFC 4180) without its end; None is an empty field."""
    import csv
    import io

    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue().removesuffix("\r\n")


def run_module(app: App) -> None:
    """Run what `python -m unrain.lab.NAME` starts; a foreseen error is one line and an exit code."""
    try:
        app()
    except UnrainError as error:
        error_line(f"unrain: error: {error}")
        sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED)


def flush(code: int) -> int:
    """Write out what standard output still holds, and return the exit code."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or EXIT_PIPE_CLOSED
        _abandon_stdout()
    except OSError as error:
        if not code:
            error_line(f"unrain: error: {stdout_problem(error)}")
        code = code or EXIT_FAILED
        _abandon_stdout()
    return code


@contextlib.contextmanager
def devices_named(say: Callable[[str], object]) -> Iterator[None]:
    """Say in a line each which devices are left out."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", DeviceWarning)
        yield
    for note in notes:
        say(f"unrain: {note.message}")


@contextlib.contextmanager
def extra(name: str, command: str) -> Iterator[None]:
    """Say how to install an extra when a command misses a package of it.

    Args:
        name: The extra of this package.
        command: The command that needs it, as it is typed.

    Raises:
        UnrainError: A package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "unrain":
            raise
        raise UnrainError(
            f"{command}: needs {error.name}, which is not installed: pip install 'unrain[{name}]'"
        ) from error


def stdout_problem(error: OSError) -> str:
    """Say that standard output could not be written, and why."""
    return f"standard output: cannot be written ({error.strerror}), send it elsewhere"


def _abandon_stdout() -> None:
    """Keep Python from trying to flush once more at exit, and from complaining that it cannot."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
