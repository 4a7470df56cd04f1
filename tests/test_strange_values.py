"""Paths, pictures and files as they should not be: the right result, or one sentence."""

import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from helpers.__main__ import main
from helpers.errors import OutputError, PictureError
from helpers.graphs.part_names import FILES, LANGUAGE_MODEL, TEXT_EMBEDDINGS
from helpers.inputs.images import open_picture
from helpers.run.pipeline import VisionLanguagePipeline
from tests.tiny import picture


@pytest.fixture
def ask(converted, capsys):
    """Return a function that asks about a picture and returns the exit code and the last line."""

    def run(path, folder=converted) -> tuple[int, str]:
        question = ["--question", "What?", "--max-new-tokens", "2"]
        code = main(["ask", str(folder), "--image", str(path), *question])
        return code, capsys.readouterr().err.splitlines()[-1]

    return run


# Pictures


@pytest.mark.parametrize("junk", [b"Exif\0\0junkjunk", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"x"])
def test_metadata_that_are_damaged_do_not_matter(ask, tmp_path, junk):
    path = tmp_path / "picture.jpg"
    picture().save(path, exif=junk, quality=95)
    assert ask(path)[0] == 0
    assert open_picture(open_picture(path)).size == picture().size


def test_a_picture_is_turned_once_however_often_it_is_opened(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "picture.jpg"
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    turned = open_picture(path)
    assert turned.size == open_picture(turned).size == (10, 20)


def test_what_is_no_file(ask, tmp_path):
    assert ask(tmp_path) == (
        1,
        f"error: {tmp_path} cannot be read as a picture (it is a folder); give a file.",
    )
    if hasattr(os, "mkfifo"):  # opening one waits for whoever writes into it
        os.mkfifo(tmp_path / "pipe.png")
        code, error = ask(tmp_path / "pipe.png")
        assert code == 1 and error.endswith("as a picture (it is no file); give a file.")


@pytest.mark.parametrize("path", ["a\0b.png", "x" * 5000])
def test_a_picture_s_path_that_there_cannot_be(path):
    with pytest.raises(PictureError, match="cannot be read as a picture|does not exist"):
        open_picture(path)


# Folders


def test_a_home_that_no_shell_wrote_out(ask, converted, tmp_path, monkeypatch):
    """`--image=~/picture.png` reaches a program as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    picture().save(tmp_path / "picture.png")
    shutil.copytree(converted, tmp_path / "made")
    assert ask("~/picture.png", "~/made")[0] == 0
    code, error = ask("~nobody-of-this-name/picture.png")
    assert code == 1 and "~nobody-of-this-name/picture.png does not exist" in error


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000])
@pytest.mark.parametrize("command", ["info", "verify", "clean", "convert", "from"])
def test_a_folder_that_there_cannot_be(capsys, tmp_path, command, path):
    arguments = {
        "convert": ["convert", "internvl2", "--output", path],
        "from": ["convert", path, "--output", str(tmp_path / "made")],
    }
    assert main(arguments.get(command, [command, path])) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


# Files of a converted folder, damaged without a change of size


@pytest.mark.parametrize(
    ("part", "name"), [(LANGUAGE_MODEL, b"inputs_embeds"), (TEXT_EMBEDDINGS, b"inputs_embeds")]
)
def test_a_part_without_an_input_or_output(converted, tmp_path, part, name):
    folder = shutil.copytree(converted, tmp_path / "made")
    path = folder / FILES[part]
    path.write_bytes(path.read_bytes().replace(name, name[:-1] + b"_"))
    with pytest.raises(OutputError, match=f"{path.name} is damaged; convert the checkpoint again"):
        VisionLanguagePipeline(folder)


def test_a_tokenizer_that_is_damaged(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "made")
    path = folder / "tokenizer.json"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(OutputError, match=".*tokenizer's files in .* cannot be used") as raised:
        VisionLanguagePipeline(folder)
    assert str(raised.value).endswith("; convert the checkpoint again.")


@pytest.mark.parametrize("name", ["config.json", "bundled.json", "generation_config.json"])
def test_a_copy_of_a_checkpoint_s_file_that_is_damaged(bundled_folder, tmp_path, name):
    folder = shutil.copytree(bundled_folder("internvl2", "int8"), tmp_path / "made")
    path = folder / name
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(OutputError, match=f"{name} cannot be read as JSON .*; convert the check"):
        VisionLanguagePipeline(folder)


def test_a_chat_template_that_is_damaged(bundled_folder, tmp_path):
    folder = shutil.copytree(bundled_folder("qwen3_vl", "int8"), tmp_path / "made")
    path = folder / "chat_template.jinja"
    path.write_bytes(b"{% for".ljust(path.stat().st_size))
    with pytest.raises(
        OutputError, match=r"cannot be used \(.*\); convert the checkpoint again\.$"
    ):
        VisionLanguagePipeline(folder)


# Settings of Python itself


@pytest.mark.parametrize("level", ["1", "2"])
def test_python_that_leaves_things_out(converted, level):
    """Without docstrings transformers cannot be imported; without `assert` all is the same."""
    command = [sys.executable, "-m", "helpers", "ask", converted, "--question", "What?"]
    result = subprocess.run(
        [*map(str, command), "--max-new-tokens", "2"],
        env=os.environ | {"PYTHONOPTIMIZE": level},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == (0 if level == "1" else 1), result.stderr
    assert "Traceback" not in result.stderr
    assert ("unset PYTHONOPTIMIZE" in result.stderr) == (level == "2")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX closes streams")
@pytest.mark.parametrize(("closed", "code"), [("<&-", 0), (">&-", 0), ("2>&-", 0), (">&- 2>&-", 0)])
def test_streams_that_are_closed(converted, closed, code):
    command = [sys.executable, "-m", "helpers", "info", str(converted)]
    result = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *command], capture_output=True, text=True, check=False
    )
    assert result.returncode == code and "Traceback" not in result.stderr
