"""Run a program with every connection to another computer refused and recorded."""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

GUARD = Path(__file__).parent / "no_network"


class OfflineRun(NamedTuple):
    """How a program ended, what it printed, and whom it tried to reach."""

    returncode: int
    output: str
    attempts: list[str]


def run_offline(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
    timeout: float = 600,
) -> OfflineRun:
    """Run `command`, a Python program, without a network; its child processes have none either.

    `environment` is added to this process's own. Each attempt is "event host". Output holds
    stdout and stderr together.
    """
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "attempts.txt"
        record.touch()
        paths = [str(GUARD), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {
            **os.environ,
            **(environment or {}),
            "PYTHONPATH": os.pathsep.join(paths),
            "NO_NETWORK_RECORD": str(record),
        }
        run = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
        )
        attempts = record.read_text(encoding="utf-8").splitlines()
    return OfflineRun(run.returncode, run.stdout, attempts)
