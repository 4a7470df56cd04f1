"""`vlm`: what it is called, what it understands, how it is helped along."""

import gc
import io
import json
import re
import subprocess
import sys
import sysconfig
import time
from importlib import metadata
from pathlib import Path

import pytest

import helpers
from helpers import command_output
from helpers.__main__ import EXAMPLES, SUMMARIES, main
from helpers.commands import COMMANDS
from helpers.models.families import families, find_checkpoint, find_original
from helpers.run.pipeline import VisionLanguagePipeline
from tests.tiny import picture

PROGRAM = Path(sysconfig.get_path("scripts")) / ("vlm.exe" if sys.platform == "win32" else "vlm")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "picture.png"
    picture().save(path)
    return path


def test_it_is_installed_and_says_its_version():
    result = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, f"vlm {helpers.__version__}\n")
    assert metadata.version("vlm-notebooks") == helpers.__version__


def test_every_command_has_a_summary_and_an_example():
    assert COMMANDS.keys() == SUMMARIES.keys() == EXAMPLES.keys()


@pytest.mark.parametrize("command", SUMMARIES)
def test_the_examples_in_help_are_command_lines(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert EXAMPLES[command] in text
    for line in EXAMPLES[command].splitlines():
        assert re.search(rf"\bvlm {command}\b", line)


def test_choices_in_help_come_from_the_register(capsys):
    for command, names in {
        "convert": [family.name for family in families() if family.checkpoint],
        "benchmark": [original.name for family in families() for original in family.originals],
    }.items():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out.replace("-\n", "-").replace(" ", "").replace("\n", "")
        assert all(name in text for name in names)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("minicpm-v-2", "minicpm_v2"),
        ("minicpm_v2", "minicpm_v2"),
        ("MiniCPM_V_2", "minicpm_v2"),
        ("llama-3.2-vision", "mllama"),
        ("mllama", "mllama"),
        ("llava-mpt", "llava_mpt"),
        ("llava_mpt", "llava_mpt"),
    ],
)
def test_one_spelling_and_the_other_is_understood(name, folder):
    assert find_checkpoint(name).name == folder


@pytest.mark.parametrize("name", ["internvl2-1b", "internvl2_1b", "OpenGVLab/InternVL2-1B"])
def test_an_original_by_its_name_or_its_hub_id(name):
    assert find_original(name).hub_id == "OpenGVLab/InternVL2-1B"


def test_a_family_s_name_means_its_first_original():
    assert find_original("internvl2").name == "internvl2-1b"


@pytest.mark.parametrize("question", [(), ("--question", "-"), ("--question", " What is it? ")])
def test_the_question_from_standard_input(converted, photo, monkeypatch, capsys, question):
    """The line's end is not the question's, and a model would read it."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?\n"))
    questions, ask = [], VisionLanguagePipeline.ask
    monkeypatch.setattr(
        VisionLanguagePipeline,
        "ask",
        lambda self, text, *rest, **named: (
            questions.append(text) or ask(self, text, *rest, **named)
        ),
    )
    command = ["ask", str(converted), "--image", str(photo), "--max-new-tokens", "3", *question]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] and questions == ["What is it?"]


def test_sampling_options(converted, capsys):
    command = ["ask", str(converted), "--question", "What?", "--max-new-tokens", "12", "--json"]
    answers = {}
    for options in ("", "--temperature 0", "--temperature 5 --seed 1", "--top-k 40 --seed 2"):
        assert main([*command, *options.split()]) == 0
        answers[options] = json.loads(capsys.readouterr().out)["text"]
    assert answers[""] == answers["--temperature 0"]
    assert len(set(answers.values())) == 3
    assert main([*command, "--temperature", "9"]) == 1
    assert "temperature is 9.0; it should be from 0.01 to 5.0" in capsys.readouterr().err


def test_chatting(converted, photo, monkeypatch, capsys, tmp_path):
    lines = [f"/image {photo}", "What is it?", "", "And now?", "/image nowhere.png", "What?"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*lines, "/clear", "Again?", "/quit"])))
    assert main(["chat", str(converted), "--max-new-tokens", "4"]) == 0
    output = capsys.readouterr()
    assert output.out.count("\n") == 4  # answers
    assert "error: nowhere.png does not exist; give the path of a picture." in output.err
    assert "Traceback" not in output.err


def test_a_command_that_a_chat_does_not_have(converted, photo, monkeypatch, capsys):
    mistyped = ["/hepl", f"/pictuer {photo}", "/imgae a picture.png"]
    questions = [f"{photo} is what?", "/tmp has which pictures?"]
    lines = [*mistyped, f"/image\t{photo}", *questions, "/quit now"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", str(converted), "--max-new-tokens", "2"]) == 0
    output = capsys.readouterr()
    for name in ("/hepl", "/pictuer", "/imgae"):
        sentence = f"error: There is no command {name}; /image PATH adds a picture, /clear begins "
        assert sentence in output.err
    assert output.err.count("error: ") == 3 and output.out.count("\n") == 2


def test_a_chat_that_begins_anew_has_no_pictures(converted, photo, monkeypatch, capsys):
    """More than fit, which no question can be asked about."""
    lines = [*[f"/image {photo}"] * 60, "What?", "/clear", "What?"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", str(converted), "--max-new-tokens", "2"]) == 0
    output = capsys.readouterr()
    assert output.err.count("error: ") == 1 and output.out.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [("ask", 1, "error: The question is empty; "), ("chat", 0, "")],
)
def test_input_that_is_closed(converted, monkeypatch, capsys, command, code, error):
    monkeypatch.setattr(sys, "stdin", None)
    assert main([command, str(converted)]) == code
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "is_terminal"), [(0, True), (60, True), (0, False)])
def test_what_takes_long_is_told_at_a_terminal(monkeypatch, capsys, seconds, is_terminal):
    monkeypatch.setattr(command_output, "PATIENCE", seconds)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with command_output.waiting("loading models/1b ..."):
        time.sleep(0.1)
    line = capsys.readouterr().err
    assert line == ("loading models/1b ...\n" if is_terminal and not seconds else "")


def test_a_chat_ends_with_its_input(converted, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\n"))
    assert main(["chat", str(converted), "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.usefixtures("unfrozen")
def test_looks_for_garbage_pass_over_what_a_command_has_loaded(converted, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    VisionLanguagePipeline(converted)
    assert not gc.get_freeze_count()  # a library shares its process with others
    assert main(["chat", str(converted)]) == 0
    assert gc.get_freeze_count() > 100_000


def test_debug_shows_where_an_error_comes_from(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    assert main(["convert", str(tmp_path), "--output", str(tmp_path / "x")]) == 1
    plain = capsys.readouterr().err
    assert plain.startswith("error: ") and "Traceback" not in plain
    assert main(["convert", str(tmp_path), "--output", str(tmp_path / "x"), "--debug"]) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text and text.endswith(plain)
    assert "JSONDecodeError" in text  # which `from None` hides otherwise


WITHOUT_PACKAGES = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("openvino", "torch", "numpy", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
sys.meta_path.insert(0, Nothing())
from helpers.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", [["convert", "x", "--output", "y"], ["info", "x"]])
def test_an_interpreter_without_the_packages(command):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGES, *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: The Python that runs this, {sys.executable}, has no")
    assert re.search(r"run .* -m helpers|run `make` once", result.stderr)  # without .venv
