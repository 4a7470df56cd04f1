"""The README from nothing: an environment of its own, an installation, its commands.

Only `make integration` runs it; it needs a network for the installation.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.workshop import release
from tests.readme import readme_commands

# What does not end by itself, or takes as long as a full-size model does.
LEFT_OUT = ("chat", "demo", "benchmark")


@pytest.fixture(scope="module")
def environment(request, tmp_path_factory) -> Path:
    """Return the folder of the programs of an environment in which a copy is installed."""
    if not request.config.getoption("integration"):
        pytest.skip("in `make integration`")
    place = tmp_path_factory.mktemp("from nothing")
    for path in release.files():
        (place / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (place / "copy" / path).write_bytes((release.ROOT / path).read_bytes())
    run(place, sys.executable, "-m", "venv", "environment")
    programs = place / "environment" / ("Scripts" if sys.platform == "win32" else "bin")
    pip = (programs / "python", "-m", "pip", "install", "--quiet", "--no-input")
    run(place / "copy", *pip, "-r", "requirements.txt", "-c", "constraints.txt")
    run(place / "copy", *pip, "--no-deps", ".")
    return programs


def run(folder: Path, *command: object) -> str:
    """Run a program where nothing of this copy can be imported; return what it prints."""
    process = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=800,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_the_commands_of_the_readme(environment, tmp_path):
    (tmp_path / "notebooks").mkdir()
    shutil.copytree(release.ROOT / "notebooks" / "images", tmp_path / "notebooks" / "images")
    outputs = {}
    for program, command, *arguments in readme_commands():
        assert program == "vlm"
        if command not in LEFT_OUT:
            outputs[command] = run(tmp_path, environment / "vlm", command, *arguments)
    assert outputs.keys() == {"convert", "ask", "evaluate", "info", "verify", "clean"}
    assert outputs["ask"].strip()
    assert re.search(r"\b9\d\.\d%", outputs["evaluate"])
