"""The requirements name what is imported, pin it exactly, and the constraints lock the rest."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;]+)(?:;[^#]*)?(?:\s+#.*)?$")
# Of environments of their own.
OTHERS = tuple(f"requirements-{name}.txt" for name in ("genai", "peers", "clients", "cluster"))
# Imported by runners in environments of their own, which `make peers` makes.
ELSEWHERE = {"openvino-genai", "llama-cpp", "gguf"}
LOCAL = {"helpers", "tests"}
ABSENT = {"torchvision", "timm", "einops"}  # each would need a build of torch of its own


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    """Return the pinned releases by name; a line that is no exact pin fails."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    assert [line for line in lines if not PIN.match(line)] == []
    return {canonical(pin[1]): pin[2] for line in lines if (pin := PIN.match(line))}


def imports(source: str) -> set[str]:
    """Return the top-level names that Python source imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - LOCAL


def imported_distributions(sources: list[str]) -> set[str]:
    distributions = packages_distributions()
    names = set().union(*map(imports, sources))
    return {canonical(distributions.get(name, [name])[0]) for name in names}


def sources_in(folder: str) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((ROOT / folder).rglob("*.py"))]


def notebook_sources() -> list[str]:
    return [
        cell.source
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code"
    ]


def test_what_readers_import_is_required():
    imported = imported_distributions(sources_in("helpers") + notebook_sources())
    # ipywidgets requires IPython, and display() is all that is used of it; data sets by name are
    # for who has installed `datasets`, and helpers.convert.calibration says so to all others. Ray
    # is for clusters only, see requirements-cluster.txt.
    elsewhere = {"ipython", "datasets", "ray", *ELSEWHERE}
    assert imported - elsewhere <= set(pins("requirements.txt"))


def test_what_tests_import_is_required():
    imported = imported_distributions(sources_in("tests"))
    files = ("requirements.txt", "tests/requirements.txt", *OTHERS)
    pinned = set().union(*map(pins, files))
    # LangChain's client brings its core; golden data are made in environments of their own.
    assert imported - {"ipython", "langchain-core", "anls"} <= pinned


@pytest.mark.parametrize("file", ["requirements.txt", "tests/requirements.txt"])
def test_the_constraints_hold_the_same_releases(file):
    constraints = pins("constraints.txt")
    assert {name: constraints.get(name) for name in pins(file)} == pins(file)


def test_the_constraints_hold_for_every_build_and_system():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "+" not in text and " @ " not in text
    assert not re.search(r"^(nvidia|cuda|triton|pywin|helpers)", text, flags=re.M)


def test_nothing_needs_what_does_not_fit_every_torch():
    everything = pins("requirements.txt") | pins("tests/requirements.txt") | pins("constraints.txt")
    assert not ABSENT & set(everything)
    assert not ABSENT & imported_distributions(sources_in("helpers") + notebook_sources())
