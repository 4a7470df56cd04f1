"""Times for who teaches: what is counted, and plans that fit into the time they are for."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers.workshop import lessons
from helpers.workshop.lessons import FOLDER, PLANS, Section, Step, plan_table, sections

LIMITS = {"one hour": 60, "half a day": 240}  # minutes


def test_words_and_lines_are_counted_by_section(tmp_path):
    cells = [
        new_markdown_cell("# A toy\n\nOne card."),
        new_markdown_cell("## Setup\n\nWhy, and how."),
        new_code_cell("import os\n\nprint(os.name)"),
        new_markdown_cell("Here it ends.\n\n## Try it yourself\n\n**1.** How many?"),
        new_code_cell("my_answer = None"),
        new_markdown_cell("Not so.\n\n**2.** And then?"),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "toy.ipynb")
    assert sections(tmp_path / "toy.ipynb") == {
        "Setup": Section(words=13, lines=2),
        "Try it yourself": Section(words=12, lines=1, exercises=2),
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_all_of_a_notebook_is_counted(path):
    parts = sections(path).values()
    cells = nbformat.read(path, as_version=4).cells
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert sum(part.words for part in parts) == len("\n".join(prose).split())
    assert sum(part.lines for part in parts) == sum(map(bool, map(str.strip, code.splitlines())))
    assert sum(part.exercises for part in parts) >= 3


def test_minutes_of_a_step_are_rounded_up():
    contents = {"toy": {"Setup": Section(150, 15), "Ask": Section(300, 0, exercises=1)}}
    assert Section(150, 15).minutes == 2
    assert Step("Talk", 3).duration(contents) == 5
    assert Step("All", 0, "toy").duration(contents) == 5
    assert Step("All, and talk", 2, "toy").duration(contents) == 10
    assert Step("Ask", 0, "toy", ("Ask",), exercises=2).duration(contents) == 10


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_fits(name):
    contents = lessons.notebooks()
    total = sum(step.duration(contents) for step in PLANS[name])
    assert 0.7 * LIMITS[name] < total <= LIMITS[name]
    assert plan_table(name).endswith(f"| {total // 60}:{total % 60:02} |  | End |")


def test_a_plan_names_exercises_and_sections_that_there_are():
    for step in (step for plan in PLANS.values() for step in plan):
        parts = lessons.notebooks().get(step.notebook, {})
        assert bool(parts) == bool(step.notebook) and set(step.sections) <= set(parts)
        if step.exercises:
            parts = next(
                part for stem, part in lessons.notebooks().items() if stem[:2] == step.text[:2]
            )
            assert step.exercises <= parts[lessons.EXERCISES].exercises
