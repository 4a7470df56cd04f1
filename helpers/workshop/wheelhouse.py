"""Collect what an installation without a network takes: `python -m helpers.workshop.wheelhouse`.

A wheelhouse is a folder for one kind of computer and one Python: `wheels/`, all packages, and
`vlm-notebooks/`, the files of this collection.

What this module does not know: wheels for other kinds of computers; make theirs there.
"""

import argparse
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from helpers.errors import UserError, writing
from helpers.resources import in_words
from helpers.workshop.notebooks import ROOT
from helpers.workshop.release import files

WHEELS, COLLECTION = "wheels", "vlm-notebooks"


class WheelhouseError(UserError):
    """Not every package could be collected."""


def kind_of_computer() -> str:
    """Return system, processor and Python as a folder's name: `linux-x86_64-cp311`."""
    version = sys.version_info
    name = f"{platform.system()}-{platform.machine()}-cp{version.major}{version.minor}"
    return name.lower()


def pip_commands(wheels: Path, torch_index: str | None) -> list[list[str]]:
    """Return the commands of pip that leave all wheels in a folder, in order.

    `torch_index` is the address where PyTorch's wheel comes from, without what it needs; the
    second command then takes the wheel that is there, since a release with a local part
    (`2.13.0+cpu`) is newer to pip than one without.
    """
    pip = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-input"]
    pip += ["--wheel-dir", str(wheels), "--find-links", str(wheels)]
    requirements, constraints = ROOT / "requirements.txt", ROOT / "constraints.txt"
    requests = ["-r", str(requirements), "-c", str(constraints), *_build_requirements()]
    commands = [[*pip, *requests]]
    if torch_index:
        lines = requirements.read_text(encoding="utf-8").splitlines()
        (torch,) = [line.split()[0] for line in lines if line.startswith("torch==")]
        commands.insert(0, [*pip, "--no-deps", "--index-url", torch_index, torch])
    return commands


def _build_requirements() -> list[str]:
    """Return what installing this collection takes besides what it imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    requirements: list[str] = project["build-system"]["requires"]
    return requirements


def build(output: Path, torch_index: str | None = None) -> Path:
    """Make this computer's folder below `output`, anew and whole or not at all; return it.

    Raises `WheelhouseError` where pip fails, and `OutputError` where nothing can be written.
    """
    folder = output / kind_of_computer()
    unfinished = output / f".{folder.name}.part"
    try:
        with writing(folder, "folder"):
            _fill(unfinished, torch_index)
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _fill(folder: Path, torch_index: str | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / WHEELS).mkdir(parents=True)
    for command in pip_commands((folder / WHEELS).resolve(), torch_index):
        if subprocess.run(command, check=False).returncode:
            raise WheelhouseError("pip could not collect all packages; it says why above.")
    for path in files():
        copy = folder / COLLECTION / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a wheelhouse, and say what to type beside it; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.workshop.wheelhouse", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder of all wheelhouses")
    parser.add_argument("--torch-index", help="where PyTorch's wheel comes from; default: pip's")
    options = parser.parse_args(arguments)
    try:
        folder = build(options.output, options.torch_index)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"\nWrote {folder}, {in_words(size)}. From a copy of it, without a network:")
    print(f"  cd {folder.name}/{COLLECTION}")
    print(f"  make run WHEELHOUSE=../{WHEELS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
