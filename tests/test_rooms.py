"""The rooms of `helpers/`: who imports whom, how long files are, what a pipeline brings along."""

import json
import subprocess
import sys

import pytest

from helpers.workshop import rooms
from helpers.workshop.rooms import HELPERS, ROOMS, imports, upward_imports
from tests.tiny import picture

LONGEST = 350  # lines of a file


def test_a_room_imports_only_from_rooms_below_it():
    lines = [
        f"{line.path.relative_to(HELPERS.parent)}:{line.line}: {line.room} imports {line.imported}"
        for line in upward_imports()
    ]
    assert not lines, "\n".join(lines)


def test_every_folder_is_a_room():
    folders = {path.parent.relative_to(HELPERS).parts[0] for path in HELPERS.glob("*/__init__.py")}
    assert folders == set(ROOMS)
    modules = {path.stem for path in HELPERS.glob("*.py")}
    assert modules == {*rooms.ABOVE, *rooms.BELOW}


def test_an_import_against_the_order_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(rooms, "HELPERS", tmp_path)
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "images.py").write_text("import os\nfrom helpers.run import pipeline\n")
    (line,) = upward_imports()
    assert (line.path.name, line.line, line.imported) == ("images.py", 2, "run")


def test_no_room_imports_itself_in_a_circle_through_another():
    pairs = {(line.room, line.imported) for line in imports() if line.room != line.imported}
    assert not [pair for pair in pairs if pair[::-1] in pairs and set(pair) <= set(ROOMS)]


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_says_what_it_knows_and_what_it_does_not(room):
    docstring = (HELPERS / room / "__init__.py").read_text(encoding="utf-8")
    assert "Knows" in docstring and "Does not know" in docstring.replace("\n", " ")


def test_files_are_short():
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in HELPERS.rglob("*.py")}
    assert not [path.name for path, length in lengths.items() if length > LONGEST]


ANSWER = """
import json, sys
from PIL import Image
from helpers import VisionLanguagePipeline
pipeline = VisionLanguagePipeline(sys.argv[1])
reply = pipeline.ask("What?", [Image.open(sys.argv[2])], max_new_tokens=2)
assert reply.token_ids
heavy = {"nncf", "ipywidgets", "IPython", "gradio", "matplotlib"}
print(json.dumps(sorted(heavy & sys.modules.keys())))
"""


COMMANDS = """
import json, sys
from helpers.__main__ import main
codes = [main([command, sys.argv[1]]) for command in ("info", "verify", "clean")]
print(json.dumps([codes, "torch" in sys.modules]))
"""


def test_commands_that_compute_nothing_import_no_pytorch(converted):
    command = [sys.executable, "-c", COMMANDS, str(converted)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(result.stdout.splitlines()[-1]) == [[0, 0, 0], False], result.stderr


def test_running_a_folder_imports_neither_nncf_nor_widgets(converted, tmp_path):
    picture().save(tmp_path / "picture.png")
    command = [sys.executable, "-c", ANSWER, str(converted), str(tmp_path / "picture.png")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == []
