"""Killed at any moment, a conversion, a compression or a download ends as if nothing had been."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub_server import Hub

pytestmark = [pytest.mark.slow, pytest.mark.independent]

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
DOWNLOAD = "import sys; from helpers.sources.hub import download; print(download(sys.argv[1]))"


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def start(command: list, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(command, env=os.environ | environment, **PIPES)


def finish(process: subprocess.Popen) -> str:
    """Return the last line that a process prints when it ends well."""
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return (output.splitlines() or [""])[-1]


def kill_within(process: subprocess.Popen, seconds: float) -> bool:
    """Kill a process after `seconds`, unless it is done; return whether it was killed."""
    with process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()
    return process.returncode == -signal.SIGKILL


def moments(begin: Callable[[], subprocess.Popen], number: int) -> list[float]:
    """Return random moments of a run, in seconds after its start, behind the imports."""
    start_time = time.monotonic()
    finish(begin())
    duration = time.monotonic() - start_time
    return [duration * random.Random(number).uniform(0.4, 0.95) for number in range(number)]


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_a_conversion(checkpoint, tmp_path, repetitions, precision):
    task = "converting" if precision == "fp16" else "converting and compressing"

    def begin(output: Path) -> subprocess.Popen:
        program = [sys.executable, "-m", "helpers", "convert"]
        return start([*program, checkpoint, "--output", output, "--precision", precision])

    number = repetitions(f"kills -9 while {task}", 2, 14)
    delays = moments(lambda: begin(tmp_path / "undisturbed"), number)
    expected = contents(tmp_path / "undisturbed")
    for index, seconds in enumerate(delays):
        output = tmp_path / f"made {index}"
        kill_within(begin(output), seconds)
        assert not output.exists() or contents(output) == expected
        finish(begin(output))
        assert contents(output) == expected
        assert not list(tmp_path.glob(".*"))


def test_a_download(checkpoint, tmp_path, repetitions):
    hub = Hub({"someone/internvl2": checkpoint}, seconds=3)

    def begin(home: Path) -> subprocess.Popen:
        environment = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_HUB_DISABLE_XET": "1"}
        return start([sys.executable, "-c", DOWNLOAD, "someone/internvl2"], **environment)

    with hub.served() as endpoint:
        number = repetitions("kills -9 while downloading", 2, 12)
        delays = moments(lambda: begin(tmp_path / "undisturbed"), number)
        for index, seconds in enumerate(delays):
            home = tmp_path / f"home {index}"
            kill_within(begin(home), seconds)
            folder = Path(finish(begin(home)))
            assert contents(folder) == contents(checkpoint)
