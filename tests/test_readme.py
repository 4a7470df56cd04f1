"""The README's tables are the measured data; its pictures exist."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import chdir

import httpx
import pytest

from helpers.__main__ import main, parse
from helpers.workshop.readme import ROOT, pages
from tests.readme import README, readme_commands
from tests.servers import random_port

NEXT_STEPS = (ROOT / "docs" / "next-steps.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WORKSHOP = (ROOT / "docs" / "workshop.md").read_text(encoding="utf-8")


PAGES = pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_made_from_the_data(path):
    made = PAGES[path]
    assert path.read_text(encoding="utf-8") == made, "run: python -m helpers.workshop.readme"


def test_the_glossary_is_short():
    terms = re.search(r"\| term \|.*?\n\n", CONTRIBUTING, flags=re.DOTALL)[0].splitlines()[2:]
    assert 6 <= len([line for line in terms if line]) <= 12


def test_pictures_exist_and_are_described():
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
    assert pictures
    for words, path in pictures:
        assert len(words.split()) > 3
        assert (ROOT / path).is_file()


def test_names_no_package_host_but_pytorchs_own():
    assert re.findall(r"https?://[^\s)]+", README) == ["https://download.pytorch.org/whl/cpu"]


# What the README tells to type


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with the README's picture and conversion, where its commands are run."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "notebooks").mkdir()
    shutil.copytree(ROOT / "notebooks" / "images", folder / "notebooks" / "images")
    with chdir(folder):
        assert main(command("convert")) == 0
        yield folder


def command(name: str) -> list[str]:
    """Return the README's command of this name, without the program."""
    return next(line[1:] for line in readme_commands() if line[1] == name)


@pytest.mark.slow
def test_commands(place, capsys, monkeypatch):
    outputs = {}
    for _, name, *arguments in readme_commands():
        if name in (
            "demo",
            "serve",
            "benchmark",
            "clean",
        ):  # below; as long as a full size takes; last
            continue
        monkeypatch.setattr(sys, "stdin", io.StringIO("How many shapes are there?\n"))
        assert main([name, *arguments]) == 0, capsys.readouterr().err
        outputs[name] = capsys.readouterr().out
    assert outputs.keys() == {"convert", "ask", "chat", "evaluate", "batch", "info", "verify"}
    assert "red circle" in outputs["ask"] and "4" in outputs["chat"]
    assert re.search(r"\b9\d\.\d%|\b100\.0%", outputs["evaluate"])


def run_programs(text: str) -> dict[str, object]:
    """Run a page's two programs, one after the other, as somebody would paste them."""
    programs = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(programs) == 2
    names: dict[str, object] = {}
    for program in programs:
        exec(program, names)
    return names


@pytest.mark.slow
def test_programs(place, capsys):
    names = run_programs(README)
    printed = capsys.readouterr().out
    assert printed.count("red circle") == 2 and names["reply"].message == names["messages"][-1]


@pytest.mark.slow
def test_programs_of_the_next_steps(place, capsys):
    run_programs(NEXT_STEPS)
    assert capsys.readouterr().out == "notebooks/images/example.png 4\n"
    assert main(["info", "models/internvl2-g32", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["preset"]
    assert (settings["language_model"]["group_size"], settings["others"]["mode"]) == (32, "int8")


DOCS = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_command_lines_and_links_of_the_docs(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", "")
    for line in re.findall(r"^vlm .*$", text, flags=re.MULTILINE):
        assert parse(shlex.split(line)[1:]).run
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_the_page(place):
    """It has examples, and ends with Ctrl-C; on any free port, since others may have a page."""
    program = [sys.executable, "-m", "helpers", *command("demo")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment) as process:
        address = process.stdout.readline().split()[0]
        page = httpx.get(f"{address}config", trust_env=False).text
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stdout.read() == ""
    assert page.count("example-4.png") and "What" in page


@pytest.mark.slow
def test_the_server(place):
    """It answers, and ends with SIGTERM; on any free port, since 8000 may be taken."""
    port = random_port()
    program = [sys.executable, "-m", "helpers", *command("serve"), "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while "is loaded" not in process.stderr.readline():
            assert process.poll() is None
        body = {"messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 2}
        address = f"http://127.0.0.1:{port}/v1/chat/completions"
        answer = httpx.post(address, json=body, trust_env=False).json()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert (answer["model"], answer["usage"]["completion_tokens"]) == ("internvl2-int4", 2)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(
    "text", [README, CONTRIBUTING, WORKSHOP], ids=["README", "CONTRIBUTING", "workshop"]
)
def test_targets_of_make(text):
    lines = set(re.findall(r"(?:^|`)(make [^`#\n]*)", text, flags=re.MULTILINE))
    assert lines
    for line in lines:
        result = subprocess.run([*line.split(), "-n"], cwd=ROOT, capture_output=True, check=False)
        assert result.returncode == 0, (line, result.stderr)


def test_clean(place, capsys):
    assert main(command("clean")) == 0
