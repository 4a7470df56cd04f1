"""Tables as lines of text, in notebooks, in the terminal and on pages alike."""

from collections.abc import Mapping, Sequence


def show_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a table whose columns line up; numbers are given as they are to be read."""
    print(format_table(rows))


def format_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows with the same keys as lines of text under a header."""
    if not rows:
        return "(nothing)"
    columns = list(rows[0])
    cells = [columns] + [[str(row[name]) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    right = [all(_is_number(line[i]) for line in cells[1:]) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0].ljust(sum(widths))), *lines[1:]])


def _is_number(text: str) -> bool:
    for mark in ("%", ".", ",", "-", " ms"):
        text = text.replace(mark, "")
    return text.isdigit()
