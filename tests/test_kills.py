"""Killed at any moment, a conversion, a compression or a download ends as if nothing had been."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disks import tree
from tests.hub_server import Hub
from tests.programs import Program

pytestmark = [pytest.mark.slow, pytest.mark.independent]

DOWNLOAD = "import sys; from helpers.sources.hub import download; print(download(sys.argv[1]))"


def finish(program: Program) -> str:
    """Return the last line that a program prints when it ends well."""
    assert program.wait() == 0, program.text("err")
    return (program.text("out").splitlines() or [""])[-1]


def kill_within(program: Program, seconds: float) -> bool:
    """Kill a program after `seconds`, unless it is done; return whether it was killed."""
    with contextlib.suppress(TimeoutError):
        return program.wait(seconds) == -signal.SIGKILL
    program.kill()
    return program.wait() == -signal.SIGKILL


def moments(begin: Callable[[], Program], number: int) -> list[float]:
    """Return random moments of a run, in seconds after its start."""
    start_time = time.monotonic()
    finish(begin())
    duration = time.monotonic() - start_time
    return [duration * random.Random(number).uniform(0.05, 0.95) for number in range(number)]


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_a_conversion(checkpoint, tmp_path, repetitions, fork, precision):
    task = "converting" if precision == "fp16" else "converting and compressing"

    def begin(output: Path) -> Program:
        options = ("--output", output, "--precision", precision)
        return fork.start("-m", "helpers", "convert", checkpoint, *options)

    number = repetitions(f"kills -9 while {task}", 1, 14)
    delays = moments(lambda: begin(tmp_path / "undisturbed"), number)
    expected = tree(tmp_path / "undisturbed")
    for index, seconds in enumerate(delays):
        output = tmp_path / f"made {index}"
        kill_within(begin(output), seconds)
        assert not output.exists() or tree(output) == expected
        finish(begin(output))
        assert tree(output) == expected
        assert not list(tmp_path.glob(".*"))


def test_a_download(checkpoint, tmp_path, repetitions, fork_without_hub):
    hub = Hub({"someone/internvl2": checkpoint}, seconds=3)

    def begin(home: Path) -> Program:
        variables = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        variables |= {"HF_HUB_DISABLE_XET": "1"}
        environment = os.environ | variables
        return fork_without_hub.start("-c", DOWNLOAD, "someone/internvl2", environment=environment)

    with hub.served() as endpoint:
        number = repetitions("kills -9 while downloading", 2, 12)
        delays = moments(lambda: begin(tmp_path / "undisturbed"), number)
        for index, seconds in enumerate(delays):
            home = tmp_path / f"home {index}"
            kill_within(begin(home), seconds)
            folder = Path(finish(begin(home)))
            assert tree(folder) == tree(checkpoint)
