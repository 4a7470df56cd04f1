"""Tables as lines of text, in notebooks, in the terminal and on pages alike."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence

from helpers.resources import in_words

WIDTH = 84  # characters of a column, after which a text goes on in the next line


def show_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a table whose columns line up; numbers are given as they are to be read."""
    print(format_table(rows))


def format_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows with the same keys as lines of text under a header; long texts are wrapped."""
    if not rows:
        return "(nothing)"
    columns = list(rows[0])
    texts = [[str(row[name]) for name in columns] for row in rows]
    right = [all(map(_is_number, column)) for column in zip(*texts, strict=True)]
    lines = [columns]
    for row in texts:
        wrapped = [textwrap.wrap(text, WIDTH) or [""] for text in row]
        lines += [list(line) for line in itertools.zip_longest(*wrapped, fillvalue="")]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    header, *body = [_line(line, widths, right) for line in lines]
    return "\n".join([header, "-" * len(header.ljust(sum(widths))), *body])


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    """Return cells side by side, in columns of these widths, numbers to the right."""
    padded = [
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    ]
    return "  ".join(padded).rstrip()


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows with the same keys as a table of Markdown."""
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    header, *body = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([header, f"|{'---|' * len(rows[0])}", *body])


def size_rows(sizes: Mapping[str, Mapping[str, int]]) -> list[dict[str, str]]:
    """Return a row for each precision: the size of each part, and of all, from bytes by part."""
    return [
        {"precision": name}
        | {part: in_words(size) for part, size in parts.items()}
        | {"all": in_words(sum(parts.values()))}
        for name, parts in sizes.items()
    ]


def _is_number(text: str) -> bool:
    for mark in ("%", ".", ",", "-", " ms"):
        text = text.replace(mark, "")
    return text.isdigit()
