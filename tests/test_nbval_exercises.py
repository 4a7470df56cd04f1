"""The plugin that answers exercises notices each kind of failure, on toy notebooks."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers.show.answers import NOT_YET
from helpers.show.exercises import EXERCISES
from tests.validation import REPAIRED, validate

EXERCISE = EXERCISES["03-3"]
HINT = f"Not right yet. {EXERCISE.hint}"
FORM = "Not right yet: the answer is a number, and this is something else."
RESPONSES = {
    "None": NOT_YET,
    "4.25": "Right.",
    "7": HINT,
    "'4.25'": FORM,
    "[4, 16]": FORM,
    "4": "Not right yet. That is the weight alone.",
    "4.125": "Not right yet. Those are groups of 128.",
    "4.3125": "Not right yet. There is no zero point.",
}
CHECK = "def check(name, answer):\n    print({responses}[repr(answer)])"
EXERCISE_CELL = 'my_bits = None\n\ncheck("03-3", my_bits)'
SOLUTION = "<details><summary>Solution</summary>\n\n```python\n{}\n```\n\nWhy.\n\n</details>"
USUAL = SOLUTION.format("my_bits = 4.25")
BY_FUNCTION = SOLUTION.format("bits = 4.25\nmy_bits = bits")
# By name: what answers are told instead, the text below the exercise, and what the plugin names.
BROKEN = {
    "solution": ({}, SOLUTION.format("my_bits = 7"), "03-3, solution"),
    "no_solution": ({}, "Think.", "no solution below it"),
    "other_name": ({}, SOLUTION.format("my_answer = 4.25"), "03-3, solution"),
    "value": ({"7": "Right."}, USUAL, "03-3, value"),
    "form": ({"'4.25'": HINT}, USUAL, "03-3, form"),
    "mistake": ({"4.125": HINT}, USUAL, "03-3, mistake"),
    "traceback": ({"'4.25'": None}, USUAL, "Traceback"),
    "silent": ({"4.125": ""}, USUAL, "03-3, mistake"),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Return the cells of all toy notebooks by name."""
    folder = tmp_path_factory.mktemp("exercises")
    toys = BROKEN | {"good": ({}, USUAL, ""), "lines": ({}, BY_FUNCTION, "")}
    paths = []
    for name, (changes, text, _) in toys.items():
        responses = {
            key: value for key, value in (RESPONSES | changes).items() if value is not None
        }
        notebook = new_notebook(
            cells=[
                new_code_cell(CHECK.format(responses=responses), execution_count=1),
                new_code_cell(EXERCISE_CELL, execution_count=2, outputs=[stream(NOT_YET)]),
                new_markdown_cell(text),
                new_code_cell(
                    "print(my_bits, 'bits' in globals())",
                    execution_count=3,
                    outputs=[stream("None False")],
                ),
            ]
        )
        paths.append(folder / f"{name}.ipynb")
        nbformat.write(notebook, paths[-1])
    return validate(paths, *REPAIRED, "-p", "tests.nbval_exercises")


def stream(text):
    return new_output("stream", name="stdout", text=f"{text}\n")


@pytest.mark.parametrize("name", ["good", "lines"])
def test_a_good_exercise_passes_and_leaves_no_names(cells, name):
    assert [cell.outcome for cell in cells[name]] == ["passed"] * 3


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_exercise_fails_and_is_named(cells, name):
    cell = cells[name][1]
    assert cell.outcome == "failed" and BROKEN[name][2] in cell.reason
