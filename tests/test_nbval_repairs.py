"""The repairs of nbval, each seen to be needed and to work, on toy notebooks in a real kernel."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tests import validation
from tests.validation import REPAIRED, SANITIZED, Validation

TIMEOUT = 3  # seconds for a cell of these notebooks

DIES = ["import os", "os._exit(1)"]
SWALLOWS_THE_INTERRUPT = [
    "import time",
    "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    pass",
]
FAILS = ["answer = 1 / 0", "print(answer)", "print(answer)"]
ANSWERS = ["print('a red star')"]


def write_notebook(folder: Path, sources: list[str], outputs: dict[int, str] | None = None) -> Path:
    """Write a notebook whose cells count as run; `outputs` are the printed texts by cell."""
    cells = []
    for index, source in enumerate(sources):
        text = (outputs or {}).get(index)
        printed = [new_output("stream", name="stdout", text=text)] if text else []
        cells.append(new_code_cell(source, execution_count=index + 1, outputs=printed))
    path = folder / "toy.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def validate(notebook: Path, *options: str) -> Validation:
    return validation.validate(notebook, f"--nbval-cell-timeout={TIMEOUT}", *options)


@pytest.mark.slow
class TestADeadKernel:
    def test_without_the_repair_the_whole_timeout_passes(self, tmp_path):
        _, seconds, output = validate(write_notebook(tmp_path, DIES))
        assert seconds > TIMEOUT, output

    def test_is_noticed_at_once(self, tmp_path):
        counts, _, output = validate(
            write_notebook(tmp_path, DIES), *REPAIRED, "--nbval-cell-timeout=100"
        )
        assert counts["failed"] == 1, output
        assert "The kernel died while this cell ran" in output


@pytest.mark.slow
class TestACellThatSwallowsTheInterrupt:
    def test_passes_without_the_repair(self, tmp_path):
        counts, _, output = validate(write_notebook(tmp_path, SWALLOWS_THE_INTERRUPT))
        assert counts.get("failed", 0) == 0, output

    def test_fails_after_its_timeout(self, tmp_path):
        counts, _, output = validate(write_notebook(tmp_path, SWALLOWS_THE_INTERRUPT), *REPAIRED)
        assert counts["failed"] == 1, output
        assert "ignored the interrupt" in output


@pytest.mark.slow
class TestCellsAfterAFailure:
    def test_fail_too_without_the_repair(self, tmp_path):
        counts, _, output = validate(write_notebook(tmp_path, FAILS))
        assert counts["failed"] == len(FAILS), output

    def test_are_skipped(self, tmp_path):
        counts, _, output = validate(write_notebook(tmp_path, FAILS), *REPAIRED)
        assert (counts["failed"], counts["skipped"]) == (1, len(FAILS) - 1), output
        assert "Cell 0 of this notebook failed" in output


@pytest.mark.slow
class TestAnAnswer:
    def test_that_is_the_same_passes(self, tmp_path):
        notebook = write_notebook(tmp_path, ANSWERS, {0: "a red star\n"})
        counts, _, output = validate(notebook, *REPAIRED)
        assert counts["passed"] == 1 and "failed" not in counts, output

    def test_that_changed_fails(self, tmp_path):
        notebook = write_notebook(tmp_path, ANSWERS, {0: "a red cross\n"})
        counts, _, output = validate(notebook, *REPAIRED)
        assert counts["failed"] == 1, output
        assert "a red cross" in output

    def test_is_compared_after_what_may_differ_is_replaced(self, tmp_path):
        notebook = write_notebook(
            tmp_path,
            ["print('at http://127.0.0.1:7861/', hex(id(object)))"],
            {0: "at http://127.0.0.1:7860/ 0x7f0000000000\n"},
        )
        assert validate(notebook, *REPAIRED, SANITIZED)[0].get("failed", 0) == 0
        assert validate(notebook, *REPAIRED)[0]["failed"] == 1

    def test_that_a_sanitizer_swallows_fails(self, tmp_path):
        sanitizer = tmp_path / "sanitizer.cfg"
        sanitizer.write_text("regex: (?s).+\nreplace: ANYTHING\n", encoding="utf-8")
        notebook = write_notebook(tmp_path, ANSWERS, {0: "a blue cross\n"})
        swallows = f"--nbval-sanitize-with={sanitizer}"
        assert validate(notebook, swallows).counts == {"passed": 1}
        result = validate(notebook, swallows, *REPAIRED)
        assert result.counts["failed"] == 1, result.output
        assert "A changed answer of this cell would not be noticed" in result.output
