"""Check cells of exercises, and the solutions under them."""

import math
import re
from pathlib import Path

import nbformat
import pytest

from helpers.show.exercises import check
from helpers.workshop.notebooks import html_copy

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize(
    ("answer", "right", "line"),
    [
        (None, 3, "Not answered yet: replace None in this cell and run it again."),
        (0.8 * 4 + 0.2 * 8, 4.8, "Right."),  # 4.800000000000001
        (256.0, 256, "Right."),
        (" Red", "red", "Right."),
        (True, True, "Right."),
        ([1, 2], [1, 2], "Right."),
        (4.81, 4.8, "Not right yet. Think."),
        (math.nan, 4.8, "Not right yet. Think."),
        ("blue", "red", "Not right yet. Think."),
        (False, True, "Not right yet. Think."),
        ("256", 256, "Not right yet: the answer is a number, and this is a text in quotes."),
        (3, "red", "Not right yet: the answer is a text in quotes, and this is a number."),
        (1, True, "Not right yet: the answer is True or False, and this is a number."),
        ([3], 3, "Not right yet: the answer is a number, and this is of type list."),
    ],
)
def test_what_an_answer_is_told(capsys, answer, right, line):
    check(answer, right, "Think.")
    assert capsys.readouterr().out == f"{line}\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_solutions_are_folded_in_the_page_too(path):
    notebook = nbformat.read(path, as_version=4)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    page = html_copy(notebook, path)
    solutions = re.findall(r"<details><summary>Solution</summary>(.*?)</details>", page, re.DOTALL)
    assert len(solutions) == "".join(texts).count("<summary>Solution") >= 3
    assert all(re.sub("<[^>]*>", "", solution).strip() for solution in solutions)
