"""Every notebook keeps to the collection's structure; every check finds what it is for."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests import notebook_structure as structure
from tests.notebook_structure import CHECKS, SECTIONS, Notebook

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def measured_costs() -> dict[str, dict[str, str]]:
    path = FOLDER / "costs.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, check):
    assert check(Notebook.read(path, measured_costs())) == []


@pytest.mark.parametrize("pair", [*combinations(NOTEBOOKS, 2)], ids=str)
def test_standard_steps_are_the_same_cells(pair):
    first, second = (Notebook.read(path, {}) for path in pair)
    assert structure.same_steps(first, second) == []


def test_costs_are_told_of_no_other_notebook():
    assert set(measured_costs()) <= {path.stem for path in NOTEBOOKS}


# The checks themselves, on notebooks made to break them

COSTS = {"time": "about 1 minute", "memory": "2 GB", "disk": "20 MB"}
TABLE = """\
# A toy model

From a picture to an answer.

| | |
|---|---|
| **What you will learn** | how it works |
| **Prerequisites** | Python |
| **Time** | about 1 minute |
| **Memory** | 2 GB |
| **Disk** | 20 MB |
| **Tested with** | OpenVINO |
| **Papers** | [one](https://example.org/tmp/paper) |
| **Licence** | Apache-2.0 |
"""
LIST = """\
# A toy model

From a picture to an answer.

**What you will learn**

- how it works
- what it costs

- **Prerequisites:** Python
- **Time**: about 1 minute
- **Memory**: 2 GB
- **Disk**: 20 MB
- **Tested with**: OpenVINO
- **Papers**: [one](https://example.org/root/paper)
- **Licence**: Apache-2.0
"""


TIMES = """\
model    image encoder            next token
----------------------------------------------------
PyTorch  6.1 ms (6.0 to 7.2)  2.9 ms (2.8 to 3.1)
int4     2.0 ms (1.9 to 2.2)  1.5 ms (1.4 to 1.6)
"""


def printed_output(text: str):
    return new_output("stream", name="stdout", text=text)


def drawn_output(kind: str = "image/png"):
    return new_output("display_data", data={kind: "AAAA", "text/plain": "<Figure>"})


def good_cells(card: str = TABLE) -> list:
    """Return the cells of a notebook that every check passes."""
    cells = [new_markdown_cell(card)]
    for number, title in enumerate(SECTIONS, start=1):
        text = f"## {title}\n\nWhy this comes now.\n\n![a box](images/box.svg)"
        source = f"step = {number}\nprint('step', step)"
        outputs = [printed_output(f"step {number}\n")]
        cells += [new_markdown_cell(text), new_code_cell(source, outputs=outputs)]
    cells[8].metadata["alt"], cells[8].outputs = "A rising line", [drawn_output()]
    for step in structure.STEPS:
        cell = new_code_cell(f"step = {step!r}\nprint(step)", metadata={"step": step})
        cell.outputs = [printed_output(TIMES if step == "speed" else f"{step}\n")]
        cells.append(cell)
    for number, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), start=1):
        cell.execution_count = number
    return cells


@pytest.fixture
def make(tmp_path) -> Callable[..., Notebook]:
    """Return a function that writes cells and reads them back as a notebook."""

    def write(cells: list, name: str = "09-toy", **metadata) -> Notebook:
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(new_notebook(cells=cells, metadata=metadata), path)
        return Notebook.read(path, {"09-toy": COSTS})

    return write


@pytest.mark.parametrize("card", [TABLE, LIST], ids=["table", "list"])
def test_a_good_notebook_passes_every_check(make, card):
    notebook = make(good_cells(card))
    assert {check.__name__: check(notebook) for check in CHECKS if check(notebook)} == {}


def new_source(index: int, text: str):
    """Return a change of one cell's text."""
    return lambda cells: cells[index].update(source=text)


def new_outputs(index: int, *outputs, **metadata):
    """Return a change of one cell's outputs."""

    def change(cells):
        cells[index].outputs = list(outputs)
        cells[index].metadata = nbformat.from_dict(metadata)

    return change


def card_without(name: str):
    """Return a change of the card: one line less."""
    lines = [line for line in TABLE.splitlines() if name not in line]
    return new_source(0, "\n".join(lines))


def changed_card(old: str, new: str):
    """Return a change of the card."""
    return new_source(0, TABLE.replace(old, new))


def new_times(text: str):
    """Return a change of what the step that measures speed has printed."""

    def change(cells):
        for cell in cells:
            if cell.metadata.get("step") == "speed":
                cell.outputs = [printed_output(text)]

    return change


def meanings(*sources: str):
    """Return a change that ends with cells of these sources."""
    return lambda cells: cells.extend(map(new_code_cell, sources))


FIRST, ASK, COMPARE = 2, 14, 16  # code cells
BAD = [
    (structure.sections_in_order, lambda cells: cells.pop(3)),
    (structure.sections_in_order, new_source(1, "## Setting up")),
    (structure.sections_in_order, new_source(1, "```\n## Setup\n```")),
    (structure.one_title, new_source(1, "# Another title\n\n## Setup")),
    (structure.one_title, changed_card("# A toy model", "A toy model")),
    (structure.one_title, lambda cells: cells.insert(0, new_code_cell("1"))),
    *((structure.card_complete, card_without(f"**{name}**")) for name in structure.CARD),
    (structure.card_complete, changed_card("OpenVINO", "")),
    (structure.card_complete, new_source(0, LIST.replace("- how it works\n- what it costs\n", ""))),
    (
        structure.card_complete,
        new_source(
            0,
            TABLE.replace("**Time**", "**T**").replace("Disk", "Time").replace("**T**", "**Disk**"),
        ),
    ),
    (structure.card_tells_measured_costs, changed_card("2 GB", "3 GB")),
    (structure.card_tells_measured_costs, changed_card("about 1 minute", "1 minute")),
    (structure.soon_something_to_do, new_source(1, "## Setup\n\n" + "word " * 61)),
    (structure.pictures_described, new_source(1, "## Setup\n\n![](images/box.svg)")),
    (structure.pictures_described, new_source(1, '## Setup\n\n<img src="images/box.svg">')),
    (
        structure.pictures_described,
        new_source(1, '## Setup\n\n<img src="box.svg" alt=" " width="5">'),
    ),
    (structure.pictures_described, new_outputs(8, drawn_output())),
    (structure.pictures_described, new_outputs(8, drawn_output("image/svg+xml"), alt=" ")),
    (
        structure.pictures_described,
        new_outputs(8, new_output("display_data", data={"text/html": "<b><img src='x'></b>"})),
    ),
    (structure.executed_in_order, lambda cells: cells[FIRST].update(execution_count=None)),
    (structure.executed_in_order, lambda cells: cells[FIRST].update(execution_count=3)),
    (
        structure.executed_in_order,
        new_outputs(
            FIRST, new_output("execute_result", data={"text/plain": "1"}, execution_count=9)
        ),
    ),
    (
        structure.clean_outputs,
        new_outputs(FIRST, new_output("stream", name="stderr", text="Beware")),
    ),
    (
        structure.clean_outputs,
        new_outputs(FIRST, new_output("error", ename="ValueError", evalue="", traceback=[])),
    ),
    (structure.small, new_outputs(FIRST, printed_output("x" * 420_000))),
    (structure.nothing_forbidden, new_source(FIRST, "%pip install timm")),
    (structure.nothing_forbidden, new_source(FIRST, "plot.show();")),
    (structure.nothing_forbidden, new_source(FIRST, "if step:\n    !ls")),
    (structure.nothing_forbidden, new_source(FIRST, "run('pip install timm')")),
    (structure.nothing_forbidden, new_source(FIRST, "load(name, trust_remote_code=False)")),
    (structure.nothing_forbidden, new_source(FIRST, "# NBVAL_SKIP\nprint(1)")),
    (structure.nothing_forbidden, new_source(FIRST, "page.launch(share=True)")),
    (structure.nothing_forbidden, new_source(FIRST, "setattr(encoder, 'layers', [0])")),
    (structure.nothing_forbidden, new_outputs(FIRST, tags=["raises-exception"])),
    (
        structure.short_cells,
        new_source(FIRST, "\n".join(f"a{number} = {number}" for number in range(26))),
    ),
    (structure.valid_code, new_source(FIRST, "print('")),
    (structure.valid_code, new_source(FIRST, "# nothing")),
    (structure.no_machine_paths, new_source(FIRST, "folder = '/home/anna/models'")),
    (structure.no_machine_paths, new_outputs(FIRST, printed_output("Wrote /tmp/x1/model.xml"))),
    (structure.no_machine_paths, new_outputs(FIRST, printed_output("in C:\\Users\\anna"))),
    (
        structure.no_machine_paths,
        new_outputs(FIRST, new_output("display_data", data={"text/html": "<b>/root/x</b>"})),
    ),
    (structure.answers_compared, new_source(ASK, "# NBVAL_IGNORE_OUTPUT\nprint('a red star')")),
    (structure.answers_compared, new_outputs(ASK)),
    (
        structure.answers_compared,
        new_outputs(COMPARE, printed_output("1"), tags=["nbval-ignore-output"]),
    ),
    (structure.standard_steps, lambda cells: cells.pop()),
    (structure.standard_steps, lambda cells: cells.insert(-2, cells.pop())),
    (structure.plain_code, new_source(FIRST, "print([[a for a in row] for row in [[1]]])")),
    (structure.plain_code, new_source(FIRST, "for cell.value in (1, 2):\n    print(cell)")),
    (structure.one_meaning, meanings("rows = [1]", "print(rows)", "rows = {}")),
    (structure.one_meaning, meanings("a = 1", "a = a + 1")),
    (structure.one_meaning, meanings("a = 1", "a = 2", "print(a)")),
    (structure.one_meaning, meanings("a = 1", "print(a)\na += 1")),
    (structure.one_meaning, meanings("a = 1", "print(a)\ndel a")),
    (structure.one_meaning, meanings("a = 1", "def add(b):\n    return a + b", "a = 2")),
    (structure.own_picture_prepared, new_source(FIRST, "picture = open_picture(picture_path)")),
    (structure.believable_times, new_times(TIMES.replace("6.1 ms", "161.0 ms"))),
    (structure.believable_times, new_times("no table")),
]


@pytest.mark.parametrize(("check", "change"), BAD)
def test_a_check_finds_what_it_is_for(make, check, change):
    cells = good_cells()
    change(cells)
    assert check(make(cells))


def test_the_state_of_widgets_is_found(make):
    assert structure.no_widget_state(make(good_cells(), widgets={"state": {}}))


def test_a_repeated_id_is_found(make):
    cells = good_cells()
    notebook = make(cells)
    text = notebook.path.read_text(encoding="utf-8").replace(cells[1].id, cells[2].id)
    notebook.path.write_text(text, encoding="utf-8")
    assert structure.unique_ids(notebook)


def test_every_check_was_seen_to_fail():
    checks_of_other_tests = {structure.no_widget_state, structure.unique_ids}
    assert {check for check, _ in BAD} | checks_of_other_tests == set(CHECKS)


def test_a_step_that_differs_is_found(make):
    ask = new_code_cell("reply = pipeline.ask(question)", metadata={"step": "ask"})
    other = new_code_cell("answer = pipeline.ask(question)", metadata={"step": "ask"})
    first, second = make([ask], "01-one"), make([other], "02-two")
    assert structure.same_steps(first, second) == [
        "01-one.ipynb and 02-two.ipynb differ in the step 'ask'."
    ]
    assert structure.same_steps(first, make([ask], "03-three")) == []
