"""A pytest plugin for `pytest -n`: several processes, each with processors of its own.

Two processes of one thread each are quicker than one of two: small models keep two threads waiting
for each other. What a test starts inherits its process's processors.

What is slow to make is made once: the tests of a file stay in one process, and so do the cells of a
notebook. A file may say otherwise: `independent` tests go wherever there is room, and a mark
`xdist_group` keeps together what it names.
"""

import gc
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

import psutil
import pytest
from _pytest.mark import ParameterSet
from _pytest.nodeid import NodeId

WORKER = os.environ.get("PYTEST_XDIST_WORKER")  # gw0, gw1, ...; none without `-n`


def share(processors: Sequence[int], number: int, workers: int) -> Sequence[int]:
    """Return the processors of worker `number` of so many; all, where there are too few."""
    if len(processors) < workers:
        return processors
    begin, end = (len(processors) * place // workers for place in (number, number + 1))
    return processors[begin:end]


def in_groups(names: Iterable[str], group: str) -> list[ParameterSet]:
    """Return parameters whose tests keep to one process each, and need not be one for all."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(f"{group}-{name}")) for name in names]


def keep_to_own_processors() -> None:
    """Keep this worker to its processors, where the system has such a thing (macOS has not).

    PyTorch counts processors when it is imported. Were that before, two threads would wait for each
    other on one processor: thirteen times as long for small models.
    """
    process = psutil.Process()
    if WORKER is None or not hasattr(process, "cpu_affinity"):
        return
    if "torch" in sys.modules:
        raise RuntimeError("tests/workers.py has to be imported before PyTorch")
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    number = int(WORKER.removeprefix("gw"))
    process.cpu_affinity(list(share(process.cpu_affinity(), number, workers)))


keep_to_own_processors()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Look for no garbage meanwhile, and later not among packages and tests, which all stay.

    That is a million objects, so that every such look takes a third of a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Say which tests stay together, before pytest-xdist reads the marks."""
    if item.path.suffix == ".ipynb":
        item.add_marker("notebook")
    if not any(map(item.get_closest_marker, ("xdist_group", "independent"))):
        item.add_marker(pytest.mark.xdist_group(item.path.name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run quick tests first, then slow ones, then notebooks; with several processes, last.

    Whatever is long begins early there, so that no process ends long before the others.
    """
    for item in items if WORKER is not None else ():
        # pytest-xdist 3.8 does the same to an attribute that pytest 9.2 reads no more.
        for mark in item.iter_markers("xdist_group"):
            item._id = NodeId.parse(f"{item.nodeid}@{mark.args[0]}")
    items.sort(
        key=lambda item: (
            item.get_closest_marker("notebook") is not None,
            item.get_closest_marker("slow") is not None,
        ),
        reverse=WORKER is not None,
    )
