"""`python -m helpers.workshop.notebooks`: what it shows, what it leaves, and how it fails."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers.workshop.notebooks import first_line, heading_of, html_copy, main

CARD = new_markdown_cell("# A toy\n\n![a box](images/box.svg)")
BOX = '<svg xmlns="http://www.w3.org/2000/svg"><rect width="5" height="5"/></svg>'


def tagged_cell(source: str, **metadata):
    return new_code_cell(source, metadata={"tags": ["show"], **metadata})


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a notebook of cells, with a folder of pictures beside it."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "box.svg").write_text(BOX, encoding="utf-8")

    def write_cells(*cells) -> Path:
        path = tmp_path / "toy.ipynb"
        nbformat.write(new_notebook(cells=[CARD, new_markdown_cell("## Ask"), *cells]), path)
        return path

    return write_cells


@pytest.mark.slow
def test_shows_progress_and_tagged_text_and_leaves_both_copies(write, tmp_path, capsys):
    notebook = write(
        new_code_cell("print('not for the terminal')"),
        tagged_cell("for word in ['a', 'red', 'star']:\n    print(word, end=' ', flush=True)"),
        tagged_cell("from IPython.display import SVG\nSVG('images/box.svg')", alt="a small box"),
        tagged_cell("import pandas\npandas.DataFrame({'accuracy': [0.97]})"),
        new_code_cell(
            "import matplotlib.pyplot as plt\nplt.plot([1, 2]);", metadata={"alt": "A rising line"}
        ),
    )
    output = tmp_path / "made" / "here"
    assert main([str(notebook), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "\nAsk\n" in printed
    assert re.search(r"1/5  print\('not for the terminal'\) +\d+\.\d s\n", printed)
    assert "\na red star \n" in printed
    assert "accuracy" in printed and "0.97" in printed
    executed_notebook = nbformat.read(output / "toy.ipynb", as_version=4)
    code_cells = [cell for cell in executed_notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code_cells] == [1, 2, 3, 4, 5]
    assert code_cells[1].outputs[0].text == "a red star "
    assert "widgets" not in executed_notebook.metadata
    assert all("execution" not in cell.metadata for cell in code_cells)
    assert (output / "images" / "box.svg").exists()
    page = (output / "toy.html").read_text(encoding="utf-8")
    assert 'alt="A rising line"' in page and 'alt="a box"' in page
    assert 'alt="a small box"' in page
    sources = re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=[\"']([^\"']{0,12})", page)
    assert sources and all(source.startswith("data:") for source in sources)
    assert sorted(path.name for path in output.iterdir()) == ["images", "toy.html", "toy.ipynb"]


@pytest.mark.slow
def test_long_lines_of_the_page_are_scrolled(new_page, tmp_path):
    output = new_output("stream", text="a purple cross, " * 30)
    notebook = new_notebook(cells=[new_code_cell("print(answer)", outputs=[output])])
    page = new_page()
    page.set_content(html_copy(notebook, tmp_path / "answer.ipynb"))
    answer = page.locator(".jp-OutputArea-output pre")
    assert answer.bounding_box()["height"] < 30  # one line
    assert answer.evaluate("pre => pre.scrollWidth > pre.clientWidth")
    assert page.evaluate("() => document.body.scrollWidth <= window.innerWidth")


@pytest.mark.slow
def test_a_diagram_is_scrolled_on_a_telephone(new_page, tmp_path):
    (tmp_path / "box.svg").write_text(BOX, encoding="utf-8")
    notebook = new_notebook(cells=[new_markdown_cell("![a box](box.svg)")])
    page = new_page()
    page.set_viewport_size({"width": 390, "height": 800})
    page.set_content(html_copy(notebook, tmp_path / "diagram.ipynb"))
    assert page.locator("img").bounding_box()["width"] >= 500
    assert page.evaluate("() => document.body.scrollWidth <= window.innerWidth")


@pytest.mark.slow
def test_in_place_gives_the_same_file_every_time(write, tmp_path):
    notebook = write(tagged_cell("print('a red star')"))
    main([str(notebook), "--in-place"])
    content = notebook.read_bytes()
    main([str(notebook), "--in-place"])
    assert notebook.read_bytes() == content
    assert b"a red star" in content
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nraise ValueError('no good')", "failed at: raise ValueError('no good')\nValueErro"),
        ("def f(:", "SyntaxError"),
        ("import os\nos._exit(1)", "Cell 2 (Ask) ended the kernel"),
    ],
)
def test_a_failing_cell_is_named_without_a_traceback(write, tmp_path, capsys, source, message):
    notebook = write(new_code_cell("1"), new_code_cell(source))
    assert main([str(notebook), "--output", str(tmp_path / "output")]) == 1
    error = capsys.readouterr().err
    assert "Cell 2 (Ask)" in error and message in error
    assert "Traceback" not in error and "nbclient" not in error
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("content", [None, "{}", "not json", '{"cells": 1}'])
def test_what_is_no_notebook_is_refused_in_a_sentence(tmp_path, capsys, content):
    path = tmp_path / "toy.ipynb"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert main([str(path)]) == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.slow
def test_an_output_folder_that_cannot_be_written(write, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert main([str(write()), "--output", str(tmp_path / "file" / "output")]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_control_c_ends_it_cleanly(write, tmp_path):
    notebook = write(tagged_cell("import time\nprint('running', flush=True)\ntime.sleep(60)"))
    command = [
        sys.executable,
        "-m",
        "helpers.workshop.notebooks",
        notebook,
        "--output",
        tmp_path / "output",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line == "running\n":
                break
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == "\nStopped; nothing was written.\n"
    assert not (tmp_path / "output").exists()


def test_the_first_line_skips_comments_and_is_cut():
    assert first_line("# NBVAL_IGNORE_OUTPUT\n\nimport os") == "import os"
    assert first_line("") == ""
    assert len(first_line("x = " + "1 + " * 40 + "1")) == 60


def test_a_heading_is_of_level_one_or_two():
    assert heading_of("text\n## Ask\nmore") == "Ask"
    assert heading_of("### Details") is None
