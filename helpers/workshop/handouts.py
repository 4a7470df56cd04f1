"""Copies of the notebooks for a class: `python -m helpers.workshop.handouts --output FOLDER`.

Students' copies have neither outputs nor solutions, teachers' copies have both. The exercises, and
every cell of code, are in both as they are in the notebooks.

What this module does not know: whether an exercise's check cell tells its own answer.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from nbformat import NotebookNode

from helpers.errors import UserError, writing
from helpers.workshop.notebooks import FOLDER, notebook_text, read_notebook, write_text

SOLUTION = re.compile(r"<details><summary>Solution</summary>.*?</details>\s*", flags=re.DOTALL)


def students_copy(path: Path) -> NotebookNode:
    """Return a notebook without its outputs and its solutions."""
    notebook = read_notebook(path)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = SOLUTION.sub("", cell.source)
    return notebook


def write_handouts(paths: Sequence[Path], output: Path) -> list[Path]:
    """Write both copies of each notebook into folders of `output`; return the folders.

    What a folder holds of other files stays. Raises `OutputError` where it cannot be written.
    """
    students, teachers = output / "students", output / "teachers"
    for path in paths:
        write_text(students / path.name, notebook_text(students_copy(path)))
        write_text(teachers / path.name, path.read_text(encoding="utf-8"))
    for folder in (students, teachers):
        _copy_what_notebooks_name(folder)
    return [students, teachers]


def _copy_what_notebooks_name(folder: Path) -> None:
    with writing(folder, "folder"):
        shutil.copytree(FOLDER / "images", folder / "images", dirs_exist_ok=True)
        shutil.copy(FOLDER / "FULL_SIZE.md", folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the handouts and say where they are; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.workshop.handouts", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder of both copies")
    options = parser.parse_args(arguments)
    try:
        folders = write_handouts(sorted(FOLDER.glob("*.ipynb")), options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("Wrote " + " and ".join(map(str, folders)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
