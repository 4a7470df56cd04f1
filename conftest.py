"""Settings of all tests: no calls home, a fixed environment for kernels, cheap tests first."""

import os

import pytest

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
