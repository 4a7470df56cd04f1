"""An answer that is stored in a notebook and is not what the model says makes the checks fail."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from tests.notebook_structure import Notebook, is_compared
from tests.validation import REPAIRED, SANITIZED, validate

FOLDER = Path(__file__).parent.parent / "notebooks"


def change_answer(cell: NotebookNode) -> None:
    """Change the last word of the first text that a cell stores."""
    for output in cell.outputs:
        for texts, kind in ((output, "text"), (output.get("data", {}), "text/plain")):
            if texts.get(kind, "").strip():
                beginning = texts[kind].rstrip().rpartition(" ")[0]
                texts[kind] = f"{beginning} changed\n"
                return
    raise AssertionError("The cell stores no text.")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_changed_answer_is_found(path, tmp_path):
    copies = tmp_path / "notebooks"
    shutil.copytree(FOLDER, copies, ignore=shutil.ignore_patterns("*.ipynb", "*.xml", "*.bin"))
    notebook = Notebook.read(path, {})
    answer = next(cell for cell in notebook.section_cells("Ask") if is_compared(cell))
    change_answer(answer)
    cells = notebook.content.cells
    notebook.content.cells = cells[: cells.index(answer) + 1]
    nbformat.write(notebook.content, copies / path.name)
    counts, _, output = validate(copies / path.name, *REPAIRED, SANITIZED)
    number = sum(cell.cell_type == "code" for cell in notebook.content.cells)
    assert (counts["failed"], counts["passed"]) == (1, number - 1), output
    assert "changed" in output
