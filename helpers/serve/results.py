"""The answers of a job, a JSONL file that is its own checkpoint: what is in it is done.

Rows are appended and flushed. A line that a killed process left half written is cut off, so that
each row is there whole, once, or not at all.

What this module does not know: what is asked.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from helpers.convert.folders import read_manifest
from helpers.errors import OutputError, system_reason, writing
from helpers.files import write_whole

JOB, ROW, ERROR = "job", "row", "error"

Answers = Sequence[tuple[str, Mapping[str, Any]]]  # rows' identities and columns


def fingerprint_of(folder: Path, device: str, picture_tokens: int | None) -> str:
    """Return what tells models apart: their files, and how they are run."""
    files = {name: file["sha256"] for name, file in read_manifest(folder)["files"].items()}
    return _digest([files, device.upper(), picture_tokens])


def job_of(fingerprint: str, options: Mapping[str, Any]) -> str:
    """Return what tells jobs apart: the model, and the options of its answers."""
    return _digest([fingerprint, options])


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def check_place(path: Path, source: Path | None = None) -> None:
    """Raise an `OutputError` where no file of answers can be, before a model is loaded for it.

    The `source` of the rows is no such place: it would be the next job's input, with more rows.
    """
    with writing(path):
        is_folder, is_taken = path.is_dir(), path.exists() and not path.is_file()
    if is_taken:
        what = "a folder" if is_folder else "no file"
        raise OutputError(f"{path} is {what}; give a file for the answers, such as answers.jsonl.")
    if source and path.exists() and source.exists() and path.samefile(source):
        raise OutputError(f"{path} is the input; give another file for the answers.")


def kept_size(output: Path, measure: Callable[[], int]) -> int:
    """Return how many rows of a file are computed together, as when it was begun.

    For a new file it is what `measure` says, which is kept beside it. Raises `OutputError` where
    that cannot be written.
    """
    path = output.with_name(f".{output.name}.batch-size")
    with suppress(OSError, ValueError):
        if output.exists() and (size := int(path.read_text(encoding="ascii"))) > 0:
            return size
    size = measure()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(size), encoding="ascii")
    return size


class Results:
    """The rows of an output file; `done` are the identities of those that are there."""

    def __init__(self, path: Path, job: str) -> None:
        self.path, self.job = path, job
        self.done: set[str] = set()
        self.failed: set[str] = set()

    def add(self, rows: Answers) -> None:
        """Append rows, each with its identity; they are on the disk when this returns.

        Raises `OutputError` where the disk is full.
        """
        lines = [_line_of({**columns, ROW: identity, JOB: self.job}) for identity, columns in rows]
        text = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
        with _writing_answers(self.path), self.path.open("ab") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        for identity, columns in rows:
            self.done.add(identity)
            if columns.get(ERROR):
                self.failed.add(identity)


def _line_of(columns: Mapping[str, Any]) -> str:
    """Return a row as JSON, which has no NaN and no infinity; Python reads and writes them."""
    try:
        return json.dumps(columns, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(columns, default=str)
        return json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)


@contextmanager
def _writing_answers(path: Path) -> Iterator[None]:
    """Turn an error of writing answers into an `OutputError`; those that are there stay."""
    try:
        yield
    except OSError as error:
        reason = system_reason(error)
        raise OutputError(
            f"{path} cannot be written ({reason}); the same command goes on from there."
        ) from None


@contextmanager
def results_in(path: Path, job: str, *, retry_errors: bool = False) -> Iterator[Results]:
    """Give the results of a file while no other job writes it.

    Rows with an error are taken out with `retry_errors`. Raises `OutputError` for a file that
    another job writes, that another model, question or option began, or that is no such file.
    """
    check_place(path)
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:  # which is an OSError too
            if not Path(lock.lock_file).exists():  # as in /proc, where no file can be made
                raise OutputError(
                    f"{path} cannot be written (no file can be made beside it); give another file."
                ) from None
            raise OutputError(
                f"Another job writes {path}; wait for it, or give another file."
            ) from None
    try:
        results = Results(path, job)
        if path.exists():
            try:
                length, lines = _read(results, retry_errors=retry_errors)
            except OSError as error:
                reason = system_reason(error)
                raise OutputError(f"{path} cannot be read ({reason}); give another file.") from None
            with _writing_answers(path):
                if retry_errors:
                    write_whole(path, b"".join(lines))
                else:
                    os.truncate(path, length)
        yield results
    finally:
        lock.release()


def _read(results: Results, *, retry_errors: bool) -> tuple[int, list[bytes]]:
    """Read what is done; return the bytes of its lines, and those that stay if others go."""
    length = 0
    lines: list[bytes] = []  # that stay, where others are taken out
    with results.path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):  # the end of a process
                if not length and not _may_be_torn(line):
                    raise _foreign(results.path)
                break
            length += len(line)
            identity, is_failed = _identity(results, line)
            if is_failed and retry_errors:
                continue
            if retry_errors:
                lines.append(line)
            results.done.add(identity)
            if is_failed:
                results.failed.add(identity)
    return length, lines


def _may_be_torn(line: bytes) -> bool:
    """Return whether a line may be the beginning of one of ours, and no whole file of another's."""
    try:
        json.loads(line)
    except ValueError:
        return line.startswith(b'{"')
    return False


def _foreign(path: Path) -> OutputError:
    return OutputError(f"{path} is no file of answers to this job; give another file.")


def _identity(results: Results, line: bytes) -> tuple[str, bool]:
    """Return a line's identity, and whether it has an error."""
    try:
        columns = json.loads(line)
        identity, job = columns[ROW], columns[JOB]
    except (ValueError, KeyError, TypeError):
        raise _foreign(results.path) from None
    if job != results.job:
        raise OutputError(
            f"{results.path} was begun with another model, question or option; give another file."
        )
    return str(identity), bool(columns.get(ERROR))
