"""What a job asks: rows of a folder of pictures, of a JSONL file, or of OpenAI's batch file.

What this module does not know: who answers, and where answers go.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from helpers.convert.folders import Report
from helpers.errors import SettingsError, system_reason
from helpers.inputs.images import SUFFIXES, UNREADABLE_SUFFIXES, is_picture_file
from helpers.inputs.messages import check_characters

Columns = dict[str, Any]

SILENCE = 2.0  # seconds of looking at pictures after which it is said
LONGEST_NAME = 255  # bytes, of a file on the systems that there are
IMAGE, QUESTION = "image", "question"
LINE = "line"  # one that is no JSON object
CUSTOM_ID, BODY = "custom_id", "body"  # which a line of OpenAI's batch file has


@dataclass(frozen=True)
class Row:
    """One question about one picture, or what is wrong with a line.

    `identity` tells rows apart, also of an input that has grown: equal rows are counted. `size` is
    the number of the picture's pixels, 0 where it cannot be told.
    """

    identity: str
    number: int
    columns: Columns
    image: Path | None = None
    question: str = ""
    error: str = ""
    size: int = 0
    is_openai: bool = False  # a line of OpenAI's batch file, which has the whole request in it


def read_rows(
    source: Path, questions: Sequence[str], report: Report = lambda line: None
) -> list[Row]:
    """Return the rows of a folder or of a JSONL file, in their order.

    `questions` are asked about each picture; a line may have its own instead. `report` is told
    where looking at the pictures takes long. Raises `SettingsError` for an input that is not there,
    cannot be read or asks nothing, and `QuestionError` for `questions` with halves of characters.
    """
    if not all(map(str.strip, questions)):
        raise SettingsError("A --question has no words; leave it out, or ask one.")
    for question in questions:
        check_characters(question)
    try:
        lines, base = _lines(source, questions)
    except OSError as error:
        reason = system_reason(error)
        raise SettingsError(f"{source} cannot be read ({reason}); give another.") from None
    if not lines:
        raise SettingsError(f"{source} has no picture and no line to ask about; give another.")
    if all(columns.keys() == {LINE} for columns in lines):
        raise SettingsError(
            f"{source} has no line of JSON; give a folder of pictures, or a JSONL file in UTF-8, "
            "each line an object with image and question."
        )
    if questions and not any(columns.get(QUESTION) in questions for columns in lines):
        raise SettingsError(f"{source} has questions of its own; leave --question out.")
    of_openai = any(CUSTOM_ID in columns and BODY in columns for columns in lines)
    counts: Counter[str] = Counter()
    rows: list[Row] = []
    next_report = time.monotonic() + SILENCE
    for number, columns in enumerate(lines):
        words = json.dumps(columns, sort_keys=True, ensure_ascii=False, default=str)
        digest = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        counts[digest] += 1
        if time.monotonic() >= next_report:
            next_report = time.monotonic() + SILENCE
            report(f"looks at the pictures' sizes: {number} of {len(lines)} rows")
        row = _row(f"{digest}-{counts[digest]}", number, columns, base)
        # What is wrong in OpenAI's file is written in its form too.
        is_openai = row.is_openai or (of_openai and QUESTION not in columns)
        rows.append(replace(row, is_openai=is_openai))
    return rows


def _lines(source: Path, questions: Sequence[str]) -> tuple[list[Columns], Path]:
    """Return the lines of an input, and the folder that its paths begin at."""
    if source.is_dir():
        if not questions:
            raise SettingsError("Pictures of a folder need a --question.")
        return list(_lines_of_folder(source, questions)), source
    if source.is_file():
        return list(_lines_of_file(source, questions)), source.parent
    raise SettingsError(f"{source} does not exist; give a folder of pictures or a JSONL file.")


def _lines_of_folder(folder: Path, questions: Sequence[str]) -> Iterator[Columns]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parent.parts)
        if not is_hidden and is_picture_file(path, SUFFIXES | UNREADABLE_SUFFIXES):
            for question in questions:
                yield {IMAGE: name.as_posix(), QUESTION: question}


def _lines_of_file(path: Path, questions: Sequence[str]) -> Iterator[Columns]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line in filter(str.strip, file):
            columns = _columns_of(line)
            if columns is None:
                yield {LINE: _readable(line.rstrip("\n")[:1000])}
            elif QUESTION in columns or CUSTOM_ID in columns or not questions:
                yield columns
            else:
                yield from (columns | {QUESTION: question} for question in questions)


def _columns_of(line: str) -> Columns | None:
    """Return the columns of a line; None where it is no JSON object in UTF-8."""
    try:
        line.encode()  # or it is in another encoding, and would be asked with wrong letters
        columns = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return columns if isinstance(columns, dict) else None


def _readable(line: str) -> str:
    """Return a line with a sign in place of each byte that is not UTF-8."""
    return line.encode(errors="surrogateescape").decode(errors="replace")


def _row(identity: str, number: int, columns: Columns, base: Path) -> Row:
    if CUSTOM_ID in columns and BODY in columns:
        return Row(identity, number, columns, is_openai=True)
    image, question = columns.get(IMAGE), columns.get(QUESTION)
    error = ""
    if columns.keys() == {LINE}:
        error = f"The line is no JSON object in UTF-8: {str(columns[LINE])[:40]!r}."
    elif CUSTOM_ID in columns and QUESTION not in columns:
        error = "The line has no body, which OpenAI's batch file has in each."
    elif not isinstance(question, str) or not question.strip():
        error = "The line has no question; give it one, or, in `vlm batch`, --question."
    elif image is not None and not _is_path(image):
        error = "The line's image is no path."
    if error:
        return Row(identity, number, columns, error=error)
    path = base / image if image else None
    return Row(identity, number, columns, path, str(question), size=_pixels(path))


def _is_path(image: Any) -> bool:
    """Return whether a value may be a path on some system."""
    if not isinstance(image, str) or not image or "\0" in image:
        return False
    names = image.encode("utf-8", "surrogatepass").split(b"/")
    return max(map(len, names)) <= LONGEST_NAME


def _pixels(path: Path | None) -> int:
    """Return how many pixels a picture has by its header; 0 for what would be waited for."""
    try:
        if path is None or not path.is_file():  # a pipe that nobody writes into has no end
            return 0
        with Image.open(path) as picture:
            return picture.width * picture.height
    except Exception:  # told when it is its turn
        return 0


def batches(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Return all rows in batches of like size, which are the same whatever is done already."""
    ordered = sorted(rows, key=lambda row: (row.size, row.number))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
