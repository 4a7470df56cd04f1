"""A pytest plugin that counts how often something was broken on purpose, in all processes."""

from collections import Counter

import pytest

BROKEN = pytest.StashKey[Counter]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of `make torture`."""
    parser.addoption("--torture", action="store_true", help="break things many times more")


def pytest_configure(config: pytest.Config) -> None:
    """Start to count."""
    config.stash[BROKEN] = Counter()


@pytest.fixture(scope="session")
def repetitions(request: pytest.FixtureRequest):
    """Return a function that says how often something is broken: `few` times, or `many`."""

    def choose(what: str, few: int = 1, many: int = 1) -> int:
        number = many if request.config.getoption("torture") else few
        request.config.stash[BROKEN][what] += number
        return number

    return choose


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the counts to the process that this one works for."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["broken"] = dict(session.config.stash[BROKEN])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """Add the counts of a process that has ended."""
    node.config.stash[BROKEN].update(getattr(node, "workeroutput", {}).get("broken", {}))


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Say how often what was broken; a loss is a failed test."""
    if config.stash[BROKEN]:
        terminalreporter.section("broken on purpose")
        for what, number in config.stash[BROKEN].items():
            terminalreporter.write_line(f"{number:6,}  {what}")
