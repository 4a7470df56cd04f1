"""Run nbval on notebooks in a process of its own, to see what it makes of them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
REPAIRED = ("-p", "tests.nbval_repairs")


class Cell(NamedTuple):
    """What nbval makes of a cell: `passed`, `failed` or `skipped`; in how long; and why."""

    outcome: str
    seconds: float
    reason: str


def validate(notebooks: Sequence[Path], *options: str) -> dict[str, list[Cell]]:
    """Return the cells of notebooks in one folder, for nbval as it comes with some `options`."""
    folder = notebooks[0].parent
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")  # not this project's
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env"]
    with TemporaryDirectory() as reports:
        report = Path(reports) / "report.xml"
        command += ["-p", "no:cacheprovider", f"--junitxml={report}", *options]
        subprocess.run(
            [*command, *(path.name for path in notebooks)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
            capture_output=True,
            timeout=600,
            check=False,
        )
        cases = list(ElementTree.parse(report).iter("testcase"))
    cells: dict[str, list[Cell]] = {path.stem: [] for path in notebooks}
    for case in cases:
        name = case.get("classname", "").rpartition(".")[0]
        cells[name].append(cell_of(case))
    return cells


def cell_of(case: ElementTree.Element) -> Cell:
    """Return what a report says of a cell."""
    outcomes = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    seconds = float(case.get("time", 0))
    for element in case:
        if element.tag in outcomes:
            reason = f"{element.get('message')}\n{element.text}"
            return Cell(outcomes[element.tag], seconds, reason)
    return Cell("passed", seconds, "")
