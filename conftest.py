"""Settings of all tests: no calls home, a fixed environment for kernels, cheap tests first.

With `--torture`, what breaks things on purpose does so many times more; a table says how often.
"""

import os
from collections import Counter

import pytest
from hypothesis import settings

import helpers  # noqa: F401  (switches the telemetry of other libraries off)

pytest_plugins = ["tests.nbval_repairs"]

# The kernels of notebooks inherit these. What a reader has chosen for themselves is not tested.
for name in [name for name in os.environ if name.startswith("VLM_")]:
    del os.environ[name]
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no warning about frozen modules on stderr
    "COLUMNS": "100",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the quick tests first, then the slow ones, then the notebooks."""
    items.sort(
        key=lambda item: (
            item.get_closest_marker("notebook") is not None,
            item.get_closest_marker("slow") is not None,
        )
    )


BROKEN = pytest.StashKey[Counter]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `make torture`, `make soak`, `make browser` and `make screenshots`."""
    parser.addoption("--torture", action="store_true", help="break things many times more")
    parser.addoption("--soak", action="store_true", help="use the page for three minutes")
    parser.addoption("--browser", action="store_true", help="open all notebooks in a browser")
    parser.addoption("--screenshots", action="store_true", help="take the README's pictures")


def pytest_configure(config: pytest.Config) -> None:
    """Start to count, and say how many examples hypothesis tries."""
    config.stash[BROKEN] = Counter()
    examples = 300 if config.getoption("torture") else 20
    settings.register_profile("ours", max_examples=examples, deadline=None, derandomize=True)
    settings.load_profile("ours")


@pytest.fixture(scope="session")
def repetitions(request: pytest.FixtureRequest):
    """Return a function that says how often something is broken: `few` times, or `many`."""

    def choose(what: str, few: int = 1, many: int = 1) -> int:
        number = many if request.config.getoption("torture") else few
        request.config.stash[BROKEN][what] += number
        return number

    return choose


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Say how often what was broken; a loss is a failed test."""
    if config.stash[BROKEN]:
        terminalreporter.section("broken on purpose")
        for what, number in config.stash[BROKEN].items():
            terminalreporter.write_line(f"{number:6,}  {what}")
