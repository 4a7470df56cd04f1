"""Students' and teachers' copies of the notebooks: what each of them has and has not."""

import re

import nbformat
import pytest

from helpers.workshop.handouts import FOLDER, main

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
BY_NAME = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def handouts(tmp_path_factory):
    output = tmp_path_factory.mktemp("handouts")
    assert main(["--output", str(output)]) == 0
    return output


def cells_of(path, kind: str) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def solutions_of(path) -> list[str]:
    """Return the lines of all solutions, found without the pattern that removes them."""
    lines = []
    for cell in cells_of(path, "markdown"):
        for part in cell.source.split("<summary>Solution</summary>")[1:]:
            lines += filter(None, part.split("</details>")[0].splitlines())
    return lines


def exercises_of(path) -> list[str]:
    texts = "\n".join(cell.source for cell in cells_of(path, "markdown"))
    return re.findall(r"^\*\*\d\.\*\* .*$", texts, flags=re.MULTILINE)


@BY_NAME
def test_all_code_and_all_exercises_are_in_both(path, handouts):
    code = [cell.source for cell in cells_of(path, "code")]
    exercises = exercises_of(path)
    assert len(exercises) == sum("check(" in cell and "my_" in cell for cell in code) >= 3
    for reader in ("students", "teachers"):
        copy = handouts / reader / path.name
        nbformat.validate(nbformat.read(copy, as_version=4))
        assert [cell.source for cell in cells_of(copy, "code")] == code
        assert exercises_of(copy) == exercises


@BY_NAME
def test_students_get_no_solution_and_no_output(path, handouts):
    copy = handouts / "students" / path.name
    text = copy.read_text(encoding="utf-8")
    markdown = "\n".join(cell.source for cell in cells_of(copy, "markdown"))
    solutions = solutions_of(path)
    assert len(solutions) >= 3
    assert [line for line in solutions if line in markdown] == []
    assert "details>" not in text and "Solution" not in text
    for cell in cells_of(copy, "code"):
        assert cell.outputs == [] and cell.execution_count is None


@BY_NAME
def test_students_get_all_other_text(path, handouts):
    """In order, to the letter; what is taken away is a solution and the space after it."""
    copies = cells_of(handouts / "students" / path.name, "markdown")
    for cell, copy in zip(cells_of(path, "markdown"), copies, strict=True):
        before, _, rest = cell.source.partition("<details><summary>Solution</summary>")
        assert copy.source == before + rest.partition("</details>")[2].lstrip()
        assert copy.source.strip() and copy.id == cell.id


@BY_NAME
def test_teachers_get_the_notebook_as_it_is(path, handouts):
    copy = handouts / "teachers" / path.name
    assert copy.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


@BY_NAME
@pytest.mark.parametrize("reader", ["students", "teachers"])
def test_pictures_and_pages_that_a_copy_names_are_beside_it(path, reader, handouts):
    text = "\n".join(cell.source for cell in cells_of(handouts / reader / path.name, "markdown"))
    names = {name for name in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in name}
    assert any(name.startswith("images/") for name in names)
    assert [name for name in names if not (handouts / reader / name).is_file()] == []


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert main(["--output", str(tmp_path / "file")]) == 1
    error = capsys.readouterr().err
    assert "cannot be written" in error and error.count("\n") == 1
