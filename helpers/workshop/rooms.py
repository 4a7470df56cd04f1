"""The rooms of `helpers/`, which imports there are between them, and pictures of both.

`python -m helpers.workshop.readme` writes the pictures; a test compares, and names an import that
goes against the order.
"""

import ast
import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELPERS = Path(__file__).parent.parent
# From the top: a room imports only from rooms further down. A picture and a question enter at
# `inputs`, and an answer comes out of `run`.
ROOMS = (
    "workshop",
    "show",
    "serve",
    "measure",
    "run",
    "convert",
    "models",
    "graphs",
    "shapes",
    "sources",
    "inputs",
    "upstream",
)
# Modules that stand in no room: the command line above all rooms, what is below all of them.
ABOVE = (
    "__init__",
    "__main__",
    "commands",
    "answer_commands",
    "accuracy_commands",
    "speed_commands",
    "command_pipelines",
    "command_options",
    "command_output",
)
BELOW = ("resources", "errors", "files", "interrupts", "ends")


@dataclass(frozen=True)
class Import:
    """A line of a module that imports from another one of this package."""

    path: Path
    line: int
    room: str  # of the importing module, or its own name outside of rooms
    imported: str


def imports() -> Iterator[Import]:
    """Yield every import inside the package, those of functions included.

    What is imported for annotations only counts too.
    """
    for path in sorted(HELPERS.rglob("*.py")):
        room = path.relative_to(HELPERS).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for module in _imported_modules(node):
                if module.split(".")[0] == "helpers" and isinstance(node, ast.stmt):
                    yield Import(path, node.lineno, room, _room_of(module))


def _imported_modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module == "helpers":
        return [f"helpers.{alias.name}" for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def _room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def upward_imports() -> list[Import]:
    """Return the imports that go against the order, those inside a room left out."""
    order = [*ABOVE, *ROOMS, *BELOW]
    return [
        line
        for line in imports()
        if line.room != line.imported
        and order.index(line.imported) <= order.index(line.room)
        and not (line.room in ABOVE and line.imported in ABOVE)
    ]


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring, or of a package's."""
    path = path / "__init__.py" if path.is_dir() else path
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = " ".join(docstring.split("\n\n")[0].split())
    return sentence.removesuffix(".")


def tree() -> str:
    """Return the package's files, each with the first sentence of its docstring."""
    lines = ["helpers/"]
    for name in ABOVE[1:]:
        lines.append(_line(HELPERS / f"{name}.py", 1))
    for room in ROOMS:
        lines.append(_line(HELPERS / room, 1))
        entries = [path for path in sorted((HELPERS / room).iterdir()) if _is_shown(path)]
        lines += [_line(path, 2) for path in entries]
    lines += [_line(HELPERS / f"{name}.py", 1) for name in BELOW]
    return "\n".join(lines)


def _is_shown(path: Path) -> bool:
    package = path.is_dir() and (path / "__init__.py").exists()
    return package or (path.suffix == ".py" and path.name != "__init__.py")


def _line(path: Path, depth: int) -> str:
    name = f"{'  ' * depth}{path.name}{'/' if path.is_dir() else ''}"
    return f"{name:<30}{first_sentence(path)}"


# The drawing

ROW, LEFT, COLUMN = 34, 250, 26  # pixels


def drawing() -> str:
    """Return an SVG of the rooms: a dot where the room of a row imports from that of a column."""
    pairs = {(line.room, line.imported) for line in imports()}
    width, height = LEFT + COLUMN * len(ROOMS) + 40, 120 + ROW * len(ROOMS)
    shapes = [_text(20, 30, "A room imports only from rooms further down", size=15)]
    for column, room in enumerate(ROOMS):
        x, y = LEFT + COLUMN * column + COLUMN // 2, 108
        turned = f' transform="rotate(-60 {x} {y})"'
        shapes.append(_text(x, y, room, size=12, more=turned))
    for row, room in enumerate(ROOMS):
        y = 120 + ROW * row
        shapes.append(
            f'<rect x="20" y="{y}" width="{LEFT - 40}" height="{ROW - 6}" rx="4" '
            'fill="#e8f0fe" stroke="#5790fc"/>'
        )
        shapes.append(_text(32, y + 19, f"helpers/{room}", size=13))
        for column, imported in enumerate(ROOMS):
            x = LEFT + COLUMN * column + COLUMN // 2
            if room == imported:
                shapes.append(
                    f'<rect x="{x - 8}" y="{y + 6}" width="16" height="16" fill="#c8c8cc"/>'
                )
            elif (room, imported) in pairs:
                shapes.append(f'<circle cx="{x}" cy="{y + 14}" r="6" fill="#e42536"/>')
            else:
                shapes.append(f'<circle cx="{x}" cy="{y + 14}" r="1.5" fill="#9c9ca1"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif">\n'
        "<title>The rooms of helpers/ from the top, and which rooms each one imports from: "
        "all dots stand right of the diagonal</title>\n"
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def _text(x: int, y: int, words: str, *, size: int, more: str = "") -> str:
    words = html.escape(words)
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="#222"{more}>{words}</text>'
