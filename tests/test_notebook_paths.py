"""Notebooks run with every kind of choice, set by environment variables, and call nobody.

One choice other than the usual is tried in one of them; in `make torture`, two in all.
"""

import itertools
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from _pytest.mark import ParameterSet

from helpers.models.families import find_checkpoint
from tests.offline import run_offline

FOLDER = Path(__file__).parent.parent / "notebooks"
CHOICES = [
    {"VLM_CHECKPOINT": "folder", "VLM_PRECISION": "int4-sym", "VLM_DEVICE": "AUTO"},
    {"VLM_PRECISION": "int8", "VLM_DEVICE": "CPU"},
]
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
USUAL = ("03-internvl2", CHOICES[0])


def runs() -> list[ParameterSet]:
    """Return each notebook with each choice."""
    parameters = []
    for stem, choice in itertools.product(NOTEBOOKS, CHOICES):
        is_usual = (stem, choice) == USUAL
        marks = [pytest.mark.check if is_usual else pytest.mark.long("torture")]
        name = "-".join([stem, *choice.values()])
        parameters.append(pytest.param(stem, choice, marks=marks, id=name))
    return parameters


def text_of(path: Path) -> str:
    """Return all that an executed notebook shows as text."""
    outputs = [
        output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])
    ]
    return "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs
    )


@pytest.mark.slow
@pytest.mark.independent
@pytest.mark.parametrize(("stem", "choice"), runs())
def test_choices_by_environment(stem, choice, tmp_path):
    shutil.copytree(FOLDER / "images", tmp_path / "images")
    notebook = Path(shutil.copy(FOLDER / f"{stem}.ipynb", tmp_path))
    environment = choice | {"VLM_QUESTIONS": "14"}
    if choice.get("VLM_CHECKPOINT") == "folder":
        bundled = find_checkpoint(stem.partition("-")[2])
        source = shutil.copytree(bundled, tmp_path / "my checkpoint")
        environment["VLM_FOLDER"] = str(source)
    command = [sys.executable, "-m", "helpers.workshop.notebooks", str(notebook), "--in-place"]
    code, output, attempts = run_offline(command, environment=environment)
    assert code == 0, output
    assert attempts == []
    text = text_of(notebook)
    assert f"Precision: {choice['VLM_PRECISION']}" in text
    assert f"Device: {choice['VLM_DEVICE']}" in text
    assert ("Checkpoint: folder" in text) == ("VLM_FOLDER" in environment)
    if "VLM_FOLDER" in environment:  # what is proved of the bundled checkpoint is true of it, too
        false = re.compile(r"\bFalse\b")
        stored_text = text_of(FOLDER / f"{stem}.ipynb")
        assert len(false.findall(text)) <= len(false.findall(stored_text))
