"""What a command of `vlm` leaves: lines and tables to read, one JSON object, or a file.

What this module does not know: the commands.
"""

import argparse
import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import ends
from helpers.errors import OutputError, writing
from helpers.files import write_whole

PATIENCE = 2  # seconds that a person waits without a word
SOME_FAILED = 3  # the exit code where rows have errors, or a proof failed


@dataclass(frozen=True)
class Result:
    """What a command leaves: an object for `--json`, and lines or the rows of a table to read."""

    data: dict[str, Any]
    lines: Sequence[str] = ()
    rows: Sequence[Mapping[str, object]] = ()


def show(result: Result, options: argparse.Namespace) -> int:
    """Print a result as it was asked for; return the exit code."""
    if options.json:
        print(json.dumps(result.data), flush=True)
        return 0
    from helpers.show.tables import show_table

    for line in result.lines:
        print(line, flush=True)  # a server's address is read before it ends
    if result.rows:
        show_table(result.rows)
    return 0


def report(line: str) -> None:
    """Tell a step of long work on the error stream; where that is closed, the work goes on."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # as of a terminal, before the system sends its signal
        ends.silence(sys.stderr)


@contextlib.contextmanager
def waiting(line: str) -> Iterator[None]:
    """Tell a person at a terminal what is done, where it takes longer than they like to guess."""
    timer = threading.Timer(PATIENCE, report, [line])
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def thoughts() -> Iterator[Callable[[str], None]]:
    """Give what shows pieces of a thought on the error stream, dimmed; without words it is over."""
    dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
    is_open = False

    def show_thought(text: str) -> None:
        nonlocal is_open
        before, after = dim * (bool(text) > is_open), (plain + "\n\n") * (is_open > bool(text))
        is_open = bool(text)
        print(before + text + after, end="", file=sys.stderr, flush=True)

    try:
        yield show_thought
    finally:
        show_thought("")


def check_output(path: Path) -> None:
    """Raise an `OutputError` where a file cannot be written, before the long work for it."""
    is_new = False
    try:
        with writing(path):
            is_new = not path.exists()
            with path.open("a", encoding="utf-8") as file:
                if is_new:
                    file.write("\n")  # an empty file is made also on a full disk
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it was never made
                path.unlink()


def write_output(path: Path, text: str, result: Result, options: argparse.Namespace) -> None:
    """Write a file that a command leaves.

    Where that fails, the file is as it was, and the result of the long work is shown before the
    `OutputError`.
    """
    try:
        with writing(path):
            write_whole(path, text)
    except OutputError:
        show(result, options)
        raise
