"""`python -m helpers`: what it prints, its exit codes, and one sentence for what goes wrong."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from helpers.__main__ import main
from helpers.convert.folders import MANIFEST, read_manifest
from helpers.workshop.training import NOTICE
from tests.golden_checks import change_tensors
from tests.readme import ROOT
from tests.tiny import picture


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    picture().save(path)
    return path


class Result(NamedTuple):
    """What a command leaves: its exit code, what it printed, and its messages on stderr."""

    code: int
    printed: str
    messages: str


@pytest.fixture
def run(capsys):
    """Return a function that runs a command in this process and returns its `Result`."""

    def run_here(*arguments) -> Result:
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run_here


@pytest.fixture
def run_json(run):
    """Return a function that runs a command with --json and returns the object it printed."""

    def run_and_read(*arguments) -> dict:
        code, printed, _ = run(*arguments, "--json")
        assert code == 0 and printed.count("\n") == 1
        return json.loads(printed)

    return run_and_read


# What works


@pytest.mark.slow
def test_converting_and_asking_as_programs(fork, checkpoint, tmp_path, photo):
    """The whole way in processes of their own: stdout holds JSON and nothing else."""
    output = tmp_path / "made"

    def program(*arguments) -> subprocess.CompletedProcess:
        return fork.run("-m", "helpers", *arguments, "--json")

    conversion = program("convert", checkpoint, "--precision", "int8", "--output", output)
    assert conversion.returncode == 0, conversion.stderr
    report = json.loads(conversion.stdout)
    assert report["folder"] == str(output)
    assert set(report["bytes"]) == set(report["bit_widths"])
    assert report["bit_widths"]["language model"][0]["type"] == "u8"
    assert conversion.stderr.splitlines()[-1].startswith(f"{output} is complete; it took at most ")

    reply = program("ask", output, "--image", photo, "--question", "What?", "--max-new-tokens", 5)
    assert reply.returncode == 0, reply.stderr
    answer = json.loads(reply.stdout)
    assert answer["text"] and 1 <= answer["tokens"] <= 5
    assert answer["seconds"]["first_token"] > answer["seconds"]["per_token"] > 0
    assert reply.stderr == f"note: {NOTICE}\n"


def test_converting_again_says_that_it_is_there(run, checkpoint, converted):
    code, printed, messages = run(
        "convert", checkpoint, "--precision", "fp16", "--output", converted
    )
    assert code == 0
    assert "language model   f16          15   100%\n" in printed
    assert messages == f"{converted} is there already, made of the same checkpoint and settings.\n"


def test_an_answer_is_printed_as_it_comes(run, converted, photo):
    arguments = ("ask", converted, "--image", photo, "--question", "What is it?")
    code, printed, messages = run(*arguments, "--max-new-tokens", 5)
    assert code == 0 and len(printed.strip()) > 0 and printed.endswith("\n")
    assert messages == f"note: {NOTICE}\n"


def test_asking_without_a_picture_and_with_two(run_json, converted, photo):
    question = ("--question", "What?", "--max-new-tokens", 3)
    assert run_json("ask", converted, *question)["tokens"] <= 3
    assert run_json("ask", converted, "--image", photo, "--image", photo, *question)["text"]


def test_a_model_that_knows_more_says_no_notice(run, converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "made")
    manifest = read_manifest(folder)
    del manifest["files"]["bundled.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "bundled.json").unlink()
    code, _, messages = run("ask", folder, "--question", "What?", "--max-new-tokens", 2)
    assert (code, messages) == (0, "")


def test_evaluating(run, run_json, converted):
    report = run_json("evaluate", converted, "--questions", 7, "--seed", 5)
    assert (report["questions"], report["seed"]) == (7, 5)
    kinds = ["all", "describe", "count", "colour", "shape", "where", "unusual", "word"]
    assert list(report["accuracy"]) == kinds
    assert all(0 <= share <= 1 for share in report["accuracy"].values())
    code, printed, messages = run("evaluate", converted, "--questions", 2)
    assert code == 0 and "all" in printed and "2 of 2 questions answered" in messages


def test_what_a_folder_holds(run, run_json, converted):
    info = run_json("info", converted)
    assert info["source"]["name"] == "internvl2"
    assert set(info["bytes"]) == {"image encoder", "text embeddings", "language model"}
    code, printed, messages = run("info", converted)
    assert (code, messages) == (0, "")
    assert printed.startswith("made of internvl2 with openvino ") and "f16 100%" in printed
    assert printed.splitlines()[1] == "precision: fp16"


def test_a_folder_whose_preset_has_no_name(run, converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "copy")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["preset"]["others"]["mode"] = "int8"
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    _, printed, _ = run("info", folder)
    assert printed.splitlines()[1] == "precision: one of its own, which --json shows"


# What does not


@pytest.fixture
def bad_checkpoint(checkpoint, tmp_path):
    """Return a function that copies the small checkpoint and damages the copy."""

    def make(change) -> Path:
        copy = shutil.copytree(checkpoint, tmp_path / "bad")
        change_tensors(copy, change)
        return copy

    return make


def assert_refused(result: Result, *sentence: str) -> None:
    """Check for exit code 1, nothing printed, and one sentence behind the messages before it."""
    code, printed, messages = result
    error = messages.splitlines()[-1]
    assert (code, printed) == (1, "")
    assert error.startswith("error: ") and error.endswith(".")
    assert "Traceback" not in messages
    assert all(part in error for part in sentence), error


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "has no config.json; give a checkpoint's folder"),
        ({"config.json": "{"}, "cannot be read as JSON"),
        ({"config.json": '{"model_type": "bert"}'}, "holds a 'bert' model; this reads llava_mpt"),
    ],
)
def test_a_folder_that_is_no_checkpoint(run, tmp_path, content, sentence):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text, encoding="utf-8")
    assert_refused(run("convert", folder, "--output", tmp_path / "made"), sentence)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["nonsense", "nobody/nothing", "/none", "~/none", ""])
def test_a_checkpoint_that_is_nowhere(run, tmp_path, name):
    assert_refused(run("convert", name, "--output", tmp_path / "made"), name)


def test_missing_and_unexpected_tensors(run, bad_checkpoint, tmp_path):
    def change(tensors):
        del tensors["mlp1.3.bias"]
        return tensors | {"mlp9.bias": tensors["mlp1.1.bias"].clone()}

    result = run("convert", bad_checkpoint(change), "--output", tmp_path / "made")
    assert_refused(result, "missing projector.linear_2.bias", "unexpected mlp9.bias")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["mlp1.3.bias", "language_model.model.embed_tokens.weight"])
def test_weights_that_are_no_numbers(run, bad_checkpoint, tmp_path, name, value):
    def change(tensors):
        tensors[name].view(-1)[5] = value
        return tensors

    result = run("convert", bad_checkpoint(change), "--output", tmp_path / "made")
    assert_refused(result, f"{name} of ", "holds values that are NaN or infinite", "download it")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--precision", "int2"], "'int2' does not exist; use fp16, int8, int4, int4-sym"),
        (["--ratio", "2"], "The ratio is 2.0; it should be from 0 to 1"),
        (["--group-size", "0"], "The group size is 0; it should be a whole number"),
    ],
)
def test_settings_that_cannot_be(run, checkpoint, tmp_path, options, sentence):
    output = tmp_path / "made"
    assert_refused(run("convert", checkpoint, *options, "--output", output), sentence)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written(run, checkpoint, photo):
    result = run("convert", checkpoint, "--output", photo / "made")
    assert_refused(result, "cannot be written (Not a directory); give another folder")


def test_an_output_that_holds_something_else(run, checkpoint, photo):
    result = run("convert", checkpoint, "--output", photo.parent)
    assert_refused(result, "holds something else; give a new or an empty folder")
    assert photo.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--question", ""], "The question is empty"),
        (["--question", "  "], "The question is empty"),
        (["--question", "What?", "--image", "none.png"], "none.png does not exist"),
        (["--question", "What?", "--image", __file__], "is not a picture in a format"),
        (["--question", "What?", "--image", "."], "cannot be read as a picture"),
        (["--question", "What?", "--device", "toaster"], "The device 'toaster' cannot be used"),
        (["--question", "What?", "--device", "NPU"], "an NPU needs fixed sizes"),
        (["--question", "What?", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--question", "What? " * 600], "the model's context holds"),
        (["--question", "x" * 100_000], "the model's context holds"),
        (["--question", "What is \udcff?"], "is not UTF-8; type it anew"),
        (["--question", "What is \ud83d?"], "The question has halves of characters"),
    ],
)
def test_questions_that_cannot_be_asked(run, converted, options, sentence):
    assert_refused(run("ask", converted, *options), sentence)


@pytest.mark.skipif(sys.platform != "linux", reason="others read a command line as UTF-8")
@pytest.mark.parametrize(
    "words",
    [
        ["ask", "folder", "--question", "Wéll?"],
        ["ask", "folder", "--question", "What?", "--stop", ".", "--stop", "é"],
        ["ask", "folder"],  # of standard input
        ["batch", "folder", "--input", "i", "--output", "o", "--question", "Wéll?"],
        ["evaluate", "folder", "--instruction", "Wéll?"],
        ["serve", "folder", "--name", "Wéll"],
    ],
    ids=" ".join,
)
def test_a_locale_that_lacks_a_text_s_characters(words, tmp_path):
    """In a program of its own, since the encoding is that of a process from its start."""
    python = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "helpers", *words]
    result = subprocess.run(
        [word.encode() for word in command],
        env=os.environ | python,
        cwd=tmp_path,
        input="Wéll?".encode(),
        capture_output=True,
        timeout=100,
    )
    line = result.stderr.decode().splitlines()[-1]
    assert result.returncode == 1 and line.startswith("error: The text ")
    assert "this locale's encoding, ascii, lacks; set PYTHONUTF8=1" in line
    assert list(tmp_path.iterdir()) == []


def test_half_a_character_of_a_row_is_not_the_locale_s(converted, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    row, output = {"question": "What is \udce9?"}, tmp_path / "answers.jsonl"
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    words = ["--input", str(tmp_path / "rows.jsonl"), "--output", str(output)]
    assert main(["batch", str(converted), *words]) == 3
    (answer,) = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert answer["error"] == "The question has halves of characters; give it whole ones."


def test_a_schema_that_is_not_there_is_told_before_a_model_is_loaded(run, tmp_path):
    command = ("ask", tmp_path / "no model", "--question", "What?", "--schema", "none.json")
    assert_refused(run(*command), "none.json cannot be read (No such file or directory)")


def test_a_picture_that_is_cut_off(run, converted, tmp_path):
    path = tmp_path / "cut.jpg"
    Image.effect_noise((200, 200), 90).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    result = run("ask", converted, "--image", path, "--question", "What?")
    assert_refused(result, "cut.jpg cannot be read as a picture")


@pytest.mark.parametrize("command", ["ask", "evaluate", "demo", "info"])
def test_a_folder_that_was_not_converted(run, tmp_path, command):
    question = ["--question", "What?"] if command == "ask" else []
    result = run(command, tmp_path, *question)
    assert_refused(result, "holds no finished conversion", "convert CHECKPOINT --output")


@pytest.mark.parametrize("number", ["0", "-5"])
def test_no_questions(run, converted, number):
    assert_refused(run("evaluate", converted, "--questions", number), "at least one question")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bake"],
        ["convert", "internvl2"],
        ["ask"],
        ["ask", "folder", "--question", "What?", "--max-new-tokens", "many"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: vlm" in capsys.readouterr().err


def test_a_chat_has_no_json(run, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_of:
        run("chat", tmp_path, "--json")
    assert exit_of.value.code == 2
    assert "unrecognized arguments: --json" in capsys.readouterr().err
