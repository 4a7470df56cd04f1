"""Settings of all tests: no calls home, a fixed environment for kernels, options."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

import helpers  # noqa: F401  (switches the telemetry of other libraries off)

pytest_plugins = ["tests.counts", "tests.nbval_repairs", "tests.nbval_exercises", "tests.workers"]

# The kernels of notebooks inherit these. What a reader has chosen for themselves is not tested.
for name in [name for name in os.environ if name.startswith("VLM_")]:
    del os.environ[name]
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no warning about frozen modules on stderr
    "COLUMNS": "100",
    "VLM_CACHE": str(Path(tempfile.gettempdir()) / "nothing-was-tuned"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `make soak`, `make integration`, `make browser` and `make screenshots`."""
    parser.addoption("--soak", action="store_true", help="use the page for three minutes")
    parser.addoption("--integration", action="store_true", help="install anew, from nothing")
    parser.addoption("--browser", action="store_true", help="open all notebooks in a browser")
    parser.addoption("--screenshots", action="store_true", help="take the README's pictures")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is long, where its option is not set: what CI runs at night."""
    long = [item for item in items if is_left_out(item, config)]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


def is_left_out(item: pytest.Item, config: pytest.Config) -> bool:
    """Return whether a test is marked as `long` with an option that is not set."""
    options = [mark.args[0] for mark in item.iter_markers("long")]
    return any(not config.getoption(option) for option in options)


def pytest_configure(config: pytest.Config) -> None:
    """Say how many examples hypothesis tries."""
    examples = 300 if config.getoption("torture") else 20
    settings.register_profile("ours", max_examples=examples, deadline=None, derandomize=True)
    settings.load_profile("ours")
