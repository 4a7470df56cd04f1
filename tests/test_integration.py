"""From nothing: an environment of its own, an installation, what the README tells to type.

Only `make integration` runs it; it needs a network to make a wheelhouse, from which an installation
needs none. `.ci/run` itself installs with a network, in a new clone.
"""

import re
import shutil
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest

from helpers.workshop import release, wheelhouse
from helpers.workshop.notebooks import SHOW
from helpers.workshop.wheelhouse import COLLECTION, WHEELS
from tests.offline import OfflineRun, run_offline
from tests.programs import output_of
from tests.readme import readme_commands

# What does not end by itself, or takes as long as a full-size model does.
LEFT_OUT = ("chat", "demo", "serve", "benchmark")


@pytest.fixture(scope="module")
def stick(request, tmp_path_factory) -> Path:
    """Return a wheelhouse that was carried elsewhere: PyTorch's CPU build on Linux, as by make."""
    if not request.config.getoption("integration"):
        pytest.skip("in `make integration`")
    makefile = (release.ROOT / "Makefile").read_text(encoding="utf-8")
    index = re.search(r"^TORCH_INDEX := (.+)$", makefile, flags=re.MULTILINE)[1]
    arguments = []
    if sys.platform == "linux":
        with suppress(OSError):  # it does not answer, so pip's own index is asked
            urllib.request.urlopen(f"{index}/torch/", timeout=10).close()
            arguments = ["--torch-index", index]
    place = tmp_path_factory.mktemp("wheelhouse")
    assert wheelhouse.main(["--output", str(place), *arguments]) == 0
    (made,) = place.iterdir()
    return made.rename(tmp_path_factory.mktemp("somebody's") / "my stick")


def answers() -> list[str]:
    """Return what the first notebook should show in the terminal, times left out."""
    notebook = nbformat.read(release.ROOT / "notebooks" / "01-llava-mpt.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if SHOW in cell.metadata.get("tags", [])]
    compared = [cell for cell in cells if "NBVAL_IGNORE_OUTPUT" not in cell.source]
    outputs = [output for cell in compared for output in cell.outputs]
    return [output.text for output in outputs if output.output_type == "stream"]


@pytest.fixture(scope="module")
def installation(stick) -> tuple[OfflineRun, float]:
    """Return how the one command ended that installs from the wheelhouse, and its seconds."""
    with pytest.MonkeyPatch.context() as variables:
        variables.delenv("PYTHONPATH", raising=False)  # this copy's `helpers` would be taken
        command = ["make", "run", f"WHEELHOUSE=../{WHEELS}", f"PYTHON={sys.executable}"]
        begin = time.monotonic()
        run = run_offline(command, cwd=stick / COLLECTION, timeout=3000)
        return run, time.monotonic() - begin


@pytest.mark.timeout(3600)
def test_an_installation_without_a_network(stick, installation, capsys):
    """One command installs from the wheelhouse and ends with an answer; nobody is asked."""
    (code, output, attempts), seconds = installation
    assert code == 0, output
    assert attempts == []
    assert len(answers()) >= 2 and all(answer in output for answer in answers())
    assert (stick / COLLECTION / "output" / "01-llava-mpt.html").exists()
    with capsys.disabled():
        print(f"\nfrom a wheelhouse to the first notebook's last cell: {seconds:.0f} seconds")


@pytest.fixture(scope="module")
def programs(stick, installation, tmp_path_factory) -> Path:
    """Return the folder of the programs of a second environment: not `-e`, packages of the first.

    What a program of somebody else installs is a copy of the package, without the clone beside it.
    """
    place = tmp_path_factory.mktemp("from nothing")
    packages = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = "Scripts" if sys.platform == "win32" else "bin"
    clone, environment = stick / COLLECTION, place / "environment"
    notebook_packages = output_of(clone / ".venv" / folder / "python", "-c", packages).strip()
    output_of(sys.executable, "-m", "venv", environment)
    python = environment / folder / "python"
    packages_folder = Path(output_of(python, "-c", packages).strip())
    # Without the first one's own `.pth` files, one of which names the clone.
    (packages_folder / "lent.pth").write_text(f"{notebook_packages}\n", encoding="utf-8")
    pip = (python, "-m", "pip", "install", "--quiet", "--no-input")
    output_of(*pip, "--no-deps", "--force-reinstall", clone)
    where = output_of(python, "-c", "import helpers; print(helpers.__file__)", cwd=place)
    assert Path(where.strip()).is_relative_to(packages_folder)
    return environment / folder


def test_the_commands_of_the_readme(programs, tmp_path):
    (tmp_path / "notebooks").mkdir()
    shutil.copytree(release.ROOT / "notebooks" / "images", tmp_path / "notebooks" / "images")
    outputs = {}
    for program, command, *arguments in readme_commands():
        assert program == "vlm"
        if command not in LEFT_OUT:
            vlm = programs / "vlm"
            outputs[command] = output_of(vlm, command, *arguments, cwd=tmp_path)
    assert outputs.keys() == {"convert", "ask", "evaluate", "batch", "info", "verify", "clean"}
    assert outputs["ask"].strip()
    assert re.search(r"\b9\d\.\d%", outputs["evaluate"])
