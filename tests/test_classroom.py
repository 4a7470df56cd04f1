"""Several users at once: what is measured, and that another's results are noticed."""

import dataclasses
import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers.measure.figures import Computer
from helpers.workshop import classroom
from helpers.workshop.classroom import Classroom, different_cells, main

MEGABYTE = 10**6


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a notebook of one cell with what it should print."""
    (tmp_path / "room" / "images").mkdir(parents=True)

    def write_cell(source: str, text: str, name: str = "toy"):
        cell = new_code_cell(source, outputs=[new_output("stream", name="stdout", text=text)])
        notebook = new_notebook(cells=[new_markdown_cell("# A toy"), cell])
        path = tmp_path / "room" / f"{name}.ipynb"
        nbformat.write(notebook, path)
        return path

    return write_cell


ALLOCATES = """\
import os, pathlib, time
held = bytearray(os.urandom(1)) * (200 * 10**6)
pathlib.Path("mine").mkdir()
time.sleep(3)
print("a red star at http://127.0.0.1:7861")"""


@pytest.mark.slow
def test_each_user_has_a_folder_and_a_kernel_whose_memory_is_told(write, tmp_path, capsys):
    notebook = write(ALLOCATES, "a red star at http://127.0.0.1:7860\n")
    figures = tmp_path / "figures.json"
    assert main([str(notebook), "--users", "2", "--output", str(figures)]) == 0
    measured = json.loads(figures.read_text(encoding="utf-8"))
    assert len(measured["peaks"]) == len(measured["seconds"]) == 2
    assert all(200 * MEGABYTE < peak < 500 * MEGABYTE for peak in measured["peaks"])
    assert measured["together"] is None or measured["together"] > 400 * MEGABYTE
    assert "2 users at once executed toy" in capsys.readouterr().out
    assert sorted(path.name for path in notebook.parent.iterdir()) == ["images", "toy.ipynb"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import pathlib; print(pathlib.Path.cwd().name)", "user-1 saw other results than"),
        ("1 / 0", "The notebook of user-1 failed: "),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(source, message, write, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    arguments = [str(write(source, "user-2\n")), "--users", "2", "--output", str(figures)]
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert not figures.exists()


def test_cells_that_print_times_are_not_compared(write):
    notebook = write("# NBVAL_IGNORE_OUTPUT\nprint(1.5)", "1.5\n")
    assert different_cells(notebook, write("# NBVAL_IGNORE_OUTPUT\nprint(1.5)", "2.5\n", "b")) == []
    notebook = write("print(1.5)", "1.5\n")
    assert different_cells(notebook, write("print(1.5)", "2.5\n", "b")) == ["print(1.5)"]


def test_figures_become_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(classroom, "FIGURES", tmp_path / "classroom.json")
    assert "Not measured yet" in classroom.sentence()
    computer = Computer("a processor", 2, 8 * 2**30, {"openvino": "2026"})
    peaks = [1100 * MEGABYTE, 900 * MEGABYTE]
    measured = Classroom("03", computer, peaks, [61.2, 59.0], 1800 * MEGABYTE)
    classroom.FIGURES.write_text(json.dumps(dataclasses.asdict(measured)), encoding="utf-8")
    text = classroom.sentence()
    assert "2 users at once executed 03: 900.0 MB to 1.1 GB of memory for each kernel" in text
    assert "1.8 GB together; all had ended after 61 seconds" in text
