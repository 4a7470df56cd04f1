"""Manifests that were damaged or made up: a folder is read, or one sentence says why not."""

import json
import random
import re
import shutil

import pytest

from helpers.__main__ import main
from helpers.convert.folders import clean, read_manifest
from helpers.convert.manifests import MANIFEST
from helpers.errors import OutputError
from tests.mutations import changed, changed_json

SENTENCES = ("is damaged; run", "is missing or damaged; run", "another version", "changed since")


@pytest.fixture
def output(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "made")


def damaged_anywhere(text: bytes, generator: random.Random) -> bytes:
    return (changed_json if generator.random() < 0.8 else changed)(text, generator)


def test_mutated_manifests(output, repetitions, capsys):
    """Mostly by changing values, as in a JSON file that somebody edited; some by changing bytes."""
    number = repetitions("mutated manifests", 100, 2000)
    text, refusals = (output / MANIFEST).read_bytes(), 0
    for seed in range(number):
        (output / MANIFEST).write_bytes(damaged_anywhere(text, random.Random(seed)))
        command = ("info", "verify")[seed % 2]
        code = main([command, str(output)])
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert code == len(errors), seed  # one sentence where it is refused, and none where not
        assert lines[len(lines) - code :] == errors  # and it is the last line
        assert all(any(end in error for end in SENTENCES) for error in errors)
        refusals += code
    assert refusals >= number / 2  # or nothing much was damaged


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("source",), 5),
        (("source", "name"), None),
        (("versions",), ["openvino"]),
        (("versions", "openvino"), {}),
        (("files", "config.json"), {"bytes": 3}),
        (("files", "config.json"), None),
        (("files", "config.json", "sha256"), 3),
        (("files", "config.json"), {"bytes": -1, "sha256": ""}),
        (("files", "../../etc/passwd"), {"bytes": 1, "sha256": ""}),
        (("files", "two\nlines"), {"bytes": 1, "sha256": ""}),
        (("bit_widths", "language model"), None),
        (("bit_widths", "language model"), [{"type": "f16", "layers": 1}]),
        (("bit_widths", "language model"), [{"type": "f16", "layers": 1, "share": 1.5}]),
        (("bit_widths", "a fourth part"), []),
        (("files",), {}),
        (("preset",), {}),
        (("preset", "language_model"), {"mode": []}),
        (("preset", "others"), "int8"),
        (("notes",), "a note"),
        (("notes",), [3]),
    ],
)
@pytest.mark.parametrize("command", ["info", "verify", "ask"])
def test_a_value_that_cannot_be(output, capsys, place, value, command):
    manifest = section = json.loads((output / MANIFEST).read_bytes())
    for name in place[:-1]:
        section = section[name]
    section[place[-1]] = value
    (output / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    assert main([command, str(output), *(["--question", "What?"] if command == "ask" else [])]) == 1
    error = capsys.readouterr().err
    assert error == f"error: The manifest of {output} is damaged; run `vlm convert` again.\n"


def test_a_part_that_the_manifest_does_not_have(output, capsys):
    manifest = json.loads((output / MANIFEST).read_bytes())
    del manifest["bit_widths"]["language model"]
    (output / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    assert main(["info", str(output)]) == 1
    assert "is damaged" in capsys.readouterr().err


# Folders of another user


@pytest.mark.parametrize("name", [MANIFEST, "config.json", "openvino_language_model.bin"])
def test_a_file_that_may_not_be_read(name, converted, tmp_path, become_ordinary):
    folder = shutil.copytree(converted, tmp_path / "folder")
    (folder / name).chmod(0)
    become_ordinary()
    with pytest.raises(OutputError, match=f"{name} may not be read by this user; ask its owner"):
        read_manifest(folder)


def test_a_folder_that_may_not_be_looked_into(tmp_path, become_ordinary):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0)
    become_ordinary()
    for read in (read_manifest, clean):
        with pytest.raises(OutputError, match="may not be read by this user; ask its owner"):
            read(folder)


@pytest.mark.parametrize("command", ["info", "verify", "clean", "benchmark", "tune", "convert"])
def test_a_path_below_a_folder_that_may_not_be_entered(command, request, tmp_path, capsys):
    output = ["--output", "made"] if command == "convert" else []
    # What a command imports may lie where an ordinary user may not look.
    assert main([command, str(tmp_path / "nothing"), *output]) == 1
    closed_folder = request.getfixturevalue("closed_folder")
    assert main([command, str(closed_folder / "model"), *output]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"closed/model\S* may not be read by this user; ask its owner", error)
