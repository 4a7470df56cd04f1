"""The repairs of nbval, each seen to be needed and to work, on toy notebooks in a real kernel."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tests.validation import REPAIRED, ROOT, validate

TIMEOUT = 3  # seconds for a cell of these notebooks
# By name, the sources of a notebook's cells and what its first cell printed when it was stored.
NOTEBOOKS = {
    "dies": (["import os", "os._exit(1)"], None),
    "goes_on": (
        ["import time", "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    pass"],
        None,
    ),
    "fails": (["answer = 1 / 0", "print(answer)", "print(answer)"], None),
    "same": (["print('a red star')"], "a red star\n"),
    "changed": (["print('a red star')"], "a red cross\n"),
    "address": (
        ["print('at http://127.0.0.1:7861/', hex(id(object)))"],
        "at http://127.0.0.1:7860/ 0x7f0000000000\n",
    ),
    "swallowed": (["print('a green star')"], "a green cross\n"),
}
HABITS = ("dies", "goes_on", "fails", "swallowed")  # what nbval by itself makes something else of
SWALLOWS = "regex: a green .+\nreplace: ANYTHING\n"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Return the cells of all notebooks by name: without the repairs, and with them.

    Both have the project's sanitizers and one that leaves nothing; `exact` has none.
    """
    folder = tmp_path_factory.mktemp("toys")
    paths = [write_notebook(folder, name, *texts) for name, texts in NOTEBOOKS.items()]
    usual = (ROOT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8")
    (folder / "sanitize.cfg").write_text(f"{usual}\n{SWALLOWS}", encoding="utf-8")
    plain = (f"--nbval-cell-timeout={TIMEOUT}", "--nbval-sanitize-with=sanitize.cfg")
    longer = (f"--nbval-cell-timeout={2 * TIMEOUT}", "--nbval-sanitize-with=sanitize.cfg")
    habits = [path for path in paths if path.stem in HABITS]
    with ThreadPoolExecutor() as pool:  # they wait for timeouts most of the time
        runs = SimpleNamespace(
            plain=pool.submit(validate, habits, *plain),
            repaired=pool.submit(validate, paths, *longer, *REPAIRED),
            exact=pool.submit(validate, [folder / "address.ipynb"], *REPAIRED),
        )
        return SimpleNamespace(**{name: run.result() for name, run in vars(runs).items()})


def write_notebook(folder: Path, name: str, sources: list[str], printed: str | None) -> Path:
    """Write a notebook whose cells count as run."""
    cells = [new_code_cell(source, execution_count=1) for source in sources]
    if printed is not None:
        cells[0].outputs = [new_output("stream", name="stdout", text=printed)]
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def outcomes(cells: list) -> list[str]:
    return [cell.outcome for cell in cells]


class TestADeadKernel:
    def test_without_the_repair_the_whole_timeout_passes(self, cells):
        assert sum(cell.seconds for cell in cells.plain["dies"]) > TIMEOUT

    def test_is_noticed_at_once(self, cells):
        last = cells.repaired["dies"][-1]
        assert last.outcome == "failed" and last.seconds < 2 * TIMEOUT
        assert "The kernel died while this cell ran" in last.reason


class TestACellThatSwallowsTheInterrupt:
    def test_passes_without_the_repair(self, cells):
        assert "failed" not in outcomes(cells.plain["goes_on"])

    def test_fails_after_its_timeout(self, cells):
        last = cells.repaired["goes_on"][-1]
        assert last.outcome == "failed" and "ignored the interrupt" in last.reason


class TestCellsAfterAFailure:
    def test_fail_too_without_the_repair(self, cells):
        assert outcomes(cells.plain["fails"]) == ["failed"] * 3

    def test_are_skipped(self, cells):
        assert outcomes(cells.repaired["fails"]) == ["failed", "skipped", "skipped"]
        assert "Cell 0 of this notebook failed" in cells.repaired["fails"][-1].reason


class TestAnAnswer:
    def test_that_is_the_same_passes(self, cells):
        assert outcomes(cells.repaired["same"]) == ["passed"]

    def test_that_changed_fails(self, cells):
        (cell,) = cells.repaired["changed"]
        assert cell.outcome == "failed" and "a red cross" in cell.reason

    def test_is_compared_after_what_may_differ_is_replaced(self, cells):
        assert outcomes(cells.repaired["address"]) == ["passed"]
        assert outcomes(cells.exact["address"]) == ["failed"]

    def test_that_a_sanitizer_swallows_fails(self, cells):
        assert outcomes(cells.plain["swallowed"]) == ["passed"]
        (cell,) = cells.repaired["swallowed"]
        assert cell.outcome == "failed"
        assert "A changed answer of this cell would not be noticed" in cell.reason
