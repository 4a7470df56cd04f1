"""A pytest plugin that repairs four habits of nbval 0.11 which hide or delay a failure.

1. A kernel that dies is noticed only when the cell's whole timeout has passed: here, at once.
2. A cell that swallows the interrupt after its timeout passes: here it fails.
3. After a failed cell all later ones run, and fail in its wake: here they are skipped.
4. A text of which a sanitizer leaves nothing to compare passes whatever it says: here each cell
   that passes is compared again with its first text changed, and has to fail.

tests/test_nbval_repairs.py shows each habit without and each repair with this plugin.
"""

import copy
import time
from collections.abc import Iterator
from queue import Empty
from typing import Any

import nbval.plugin
import pytest
from nbformat import NotebookNode
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
    """Let nbval start watched kernels and compare cells twice."""
    nbval.plugin.RunningKernel = WatchedKernel
    IPyNbCell.compare_outputs = compare_twice


def changed(outputs: list[NotebookNode]) -> list[NotebookNode] | None:
    """Return a copy of a cell's outputs with the last word of the first text changed."""
    outputs = copy.deepcopy(outputs)
    for output in outputs:
        for texts, kind in ((output, "text"), (output.get("data", {}), "text/plain")):
            if texts.get(kind, "").strip():
                texts[kind] = f"{texts[kind].rstrip().rpartition(' ')[0]} changed\n"
                return outputs
    return None


compare_once = IPyNbCell.compare_outputs


def compare_twice(
    cell: IPyNbCell, test: list[NotebookNode], ref: list[NotebookNode], skip_compare: Any = None
) -> bool:
    """Compare as nbval does; where all is the same, a changed text has to be told from it."""
    if not compare_once(cell, test, ref, skip_compare):
        return False
    other = changed(ref)
    if other is not None and compare_once(cell, test, other, skip_compare):
        cell.comparison_traceback = ["A changed answer of this cell would not be noticed."]
        return False
    cell.comparison_traceback = []
    return True


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
