"""A pytest plugin that repairs three habits of nbval 0.11 which hide or delay a failure.

1. A kernel that dies is noticed only when the cell's whole timeout has passed: here, at once.
2. A cell that swallows the interrupt after its timeout passes: here it fails.
3. After a failed cell all later ones run, and fail in its wake: here they are skipped.

tests/test_nbval_repairs.py shows each habit without and each repair with this plugin.
"""

import time
from collections.abc import Iterator
from queue import Empty

import nbval.plugin
import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell

LOOK_EVERY = 1.0  # seconds between two looks at whether the kernel is alive
FIRST_FAILURE = pytest.StashKey[str]()


class KernelDied(Exception):
    """The kernel's process ended while a cell was waiting for it."""


class WatchedKernel(RunningKernel):
    """A kernel whose death ends the wait for its reply."""

    def await_reply(self, msg_id: str, timeout: float | None = None) -> None:
        """Wait for the reply to a message as nbval does, but not for that of a dead kernel."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while True:
            remaining = deadline - time.monotonic()
            try:
                return super().await_reply(msg_id, timeout=max(0.0, min(LOOK_EVERY, remaining)))
            except Empty:
                if not self.is_alive():
                    raise KernelDied from None
                if remaining <= 0:
                    raise


def pytest_configure() -> None:
    """Let nbval start watched kernels."""
    nbval.plugin.RunningKernel = WatchedKernel


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the cells after the first one that failed; they depend on it."""
    if isinstance(item, IPyNbCell) and (failure := item.parent.stash.get(FIRST_FAILURE, None)):
        pytest.skip(f"{failure} of this notebook failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a cell whose kernel died, and one that went on after its timeout."""
    try:
        result = yield
    except KernelDied:
        item.raise_cell_error("The kernel died while this cell ran; was there enough memory?")
    if isinstance(item, IPyNbCell) and item.parent.timed_out:
        item.raise_cell_error("The cell took longer than its timeout and ignored the interrupt.")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember the first cell of each notebook that failed."""
    report = yield
    if isinstance(item, IPyNbCell) and report.failed:
        item.parent.stash.setdefault(FIRST_FAILURE, item.name)
    return report
