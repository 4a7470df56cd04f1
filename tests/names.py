"""Which names code binds, and which of them are pronouns or participles."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What a name like these holds has a noun of its own: answers, widths, visible_mask.
VAGUE = frozenset(
    """
    found seen sees one ones each own said told taken given gives shown whole there behind looks
    speaks ways asked answered wanted tried written begun kept known chosen drawn
    """.split()  # noqa: SIM905 (a list of words reads better than a list of strings)
)
LIMIT = 3  # of a thousand names


def sources(place: str) -> dict[Path, str]:
    """Return the Python of a folder by path: of files, or of notebooks' code cells."""
    files = {path: path.read_text(encoding="utf-8") for path in (ROOT / place).rglob("*.py")}
    for path in (ROOT / place).glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        files[path] = "\n\n".join(code)
    return files


def stored_names(source: str) -> Iterator[tuple[str, int]]:
    """Yield each name that code binds, with its line: variables, parameters, attributes, loops."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.id if isinstance(node, ast.Name) else node.attr
            yield name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


def vague_names(source: str) -> list[tuple[str, int]]:
    """Return the names with a pronoun or a participle among their words, and their lines."""
    return [
        (name, line) for name, line in stored_names(source) if VAGUE & set(name.lower().split("_"))
    ]
