"""A wheelhouse: what is collected, that it is whole or not there, and how make installs from it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.workshop import release, wheelhouse
from helpers.workshop.wheelhouse import COLLECTION, WHEELS, kind_of_computer, main, pip_commands

INDEX = "https://example.org/cpu"


def test_the_name_says_system_processor_and_python():
    system, processor, python = kind_of_computer().split("-")
    assert system in ("linux", "darwin", "windows") and processor
    assert python == f"cp3{sys.version_info.minor}"


def test_all_that_is_required_is_collected(tmp_path):
    (command,) = pip_commands(tmp_path, None)
    assert str(release.ROOT / "requirements.txt") in command
    assert command[command.index("-c") + 1] == str(release.ROOT / "constraints.txt")
    assert any(re.match(r"setuptools>=\d+", part) for part in command)
    assert "--index-url" not in command


def test_pytorch_comes_first_where_it_has_an_index_of_its_own(tmp_path):
    first, second = pip_commands(tmp_path, INDEX)
    (pin,) = re.findall(r"^torch==\S+", Path("requirements.txt").read_text("utf-8"), re.MULTILINE)
    assert first[-4:] == ["--no-deps", "--index-url", INDEX, pin]
    assert INDEX not in second
    assert second[second.index("--find-links") + 1] == str(tmp_path)


@pytest.fixture
def pip(monkeypatch):
    """Return a function that says which Python is run instead of pip, beside the wheels."""
    monkeypatch.setattr(wheelhouse, "files", lambda: [Path("README.md"), Path("docs/networks.md")])

    def instead(source: str) -> None:
        def commands(wheels: Path, index: str | None) -> list[list[str]]:
            return [[sys.executable, "-c", source, str(wheels), str(index)]]

        monkeypatch.setattr(wheelhouse, "pip_commands", commands)

    return instead


WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1], 'a.whl').write_text(sys.argv[2])"


def test_a_wheelhouse_has_wheels_and_the_collection(pip, tmp_path, capfd):
    pip(WRITES)
    assert main(["--output", str(tmp_path), "--torch-index", INDEX]) == 0
    folder = tmp_path / kind_of_computer()
    assert (folder / WHEELS / "a.whl").read_text() == INDEX
    for name in ("README.md", "docs/networks.md"):
        assert (folder / COLLECTION / name).read_bytes() == (release.ROOT / name).read_bytes()
    assert (
        f"cd {folder.name}/{COLLECTION}\n  make run WHEELHOUSE=../{WHEELS}"
        in capfd.readouterr().out
    )


def test_a_new_one_takes_the_place_of_the_last(pip, tmp_path):
    for name in ("a.whl", "b.whl"):
        pip(WRITES.replace("a.whl", name))
        folder = wheelhouse.build(tmp_path)
    assert [path.name for path in (folder / WHEELS).iterdir()] == ["b.whl"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_where_pip_fails_the_last_one_stays(pip, tmp_path, capfd):
    pip(WRITES)
    folder = wheelhouse.build(tmp_path)
    pip(WRITES.replace("a.whl", "b.whl") + "; sys.exit(1)")
    assert main(["--output", str(tmp_path)]) == 1
    assert capfd.readouterr().err.startswith("error: pip could not collect all packages")
    assert [path.name for path in (folder / WHEELS).iterdir()] == ["a.whl"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_folder_that_cannot_be_written(pip, tmp_path, capfd):
    pip(WRITES)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert main(["--output", str(tmp_path / "file")]) == 1
    assert "cannot be written" in capfd.readouterr().err


def test_without_git_the_collection_is_not_known(tmp_path, monkeypatch):
    monkeypatch.setattr(release, "ROOT", tmp_path)
    with pytest.raises(release.ReleaseError, match="in a clone"):
        release.files()


# How make installs from one


def make(*arguments: str) -> subprocess.CompletedProcess:
    if not shutil.which("make"):
        pytest.skip("needs make")
    return subprocess.run(
        ["make", *arguments], cwd=release.ROOT, capture_output=True, text=True, check=False
    )


def installations(*arguments: str) -> list[str]:
    """Return what follows "pip install" in each line that make would run."""
    lines = make("-n", "run", *arguments).stdout.splitlines()
    lines = [line for line in lines if line.startswith("nowhere/")]
    return [line.partition("pip install")[2] for line in lines if "pip install" in line]


def test_with_a_wheelhouse_pip_asks_nobody():
    lines = installations("VENV=nowhere", "WHEELHOUSE=my sticks/wheels")
    assert len(lines) == 2
    assert all('--no-index --find-links "my sticks/wheels"' in line for line in lines)


def test_without_one_pip_asks_its_index():
    lines = installations("VENV=nowhere")
    assert len(lines) == 2
    assert not any("--no-index" in line or "--find-links" in line for line in lines)


@pytest.mark.parametrize("name", [None, "torch-2.13.0-cp310-cp310-linux_x86_64.whl"])
def test_wheels_of_another_python_are_refused_before_anything_is_made(name, tmp_path):
    if name:
        (tmp_path / name).touch()
    environment = tmp_path / "environment"
    process = make("run", f"VENV={environment}", f"WHEELHOUSE={tmp_path}")
    assert process.returncode and not environment.exists()
    assert f"The wheels in {tmp_path} are for another Python" in process.stderr
