"""A runner's process: started in its environment, asked for one round after another, ended.

What this module does not know: what a runner computes.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from helpers.ends import PATIENCE
from helpers.errors import SettingsError
from helpers.measure.peers.jobs import Settings
from helpers.resources import anonymous_memory

ROOT = Path(__file__).parents[3]  # where the environments are, and `helpers` for those without it
KILLED = -9  # the exit code of a process that Linux and macOS killed
HERE = ""  # the environment that this process runs in


@dataclass(frozen=True)
class EngineRound:
    """Seconds of the image encoder (None: it has none), of a prompt behind it, and of a token."""

    image_encoder: float | None
    prompt: float
    next_token: float
    prompt_tokens: int


def python_of(environment: str) -> Path:
    """Return the Python of an environment, whether it is there or not."""
    if environment == HERE:
        return Path(sys.executable)
    place = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    return ROOT / environment / place


class Runner:
    """A process that measures; raises `SettingsError` where it cannot, with its last words."""

    def __init__(self, environment: str, module: str, settings: Settings) -> None:
        places = (str(ROOT), os.environ.get("PYTHONPATH", ""))
        self._errors = tempfile.TemporaryFile(  # noqa: SIM115  # closed with the process
            "w+", encoding="utf-8", errors="replace"
        )
        self._process = subprocess.Popen(
            [python_of(environment), "-m", f"helpers.measure.peers.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
        )
        try:
            self.version = str(self._answer(settings)["version"])
        except BaseException:
            self.close()
            raise

    def measure(self) -> EngineRound:
        """Return the figures of one round."""
        return EngineRound(**self.round())

    def round(self) -> dict[str, Any]:
        """Return what the runner says of one round."""
        return self._answer("round")

    def _answer(self, message: object) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps(message, default=str), file=self._process.stdin, flush=True)
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):  # it has ended
            raise SettingsError(self._last_words()) from None
        return answer

    def _last_words(self) -> str:
        """Return why the process has ended; what it said last is no reason where it was killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process.wait(PATIENCE) == KILLED:
                return "its process was killed, as systems do without memory; free some"
        self._errors.seek(0)
        lines = self._errors.read().split("\n")
        words = [line.strip() for line in lines if line.strip()]
        return words[-1] if words else "it ended without a word"

    @property
    def memory(self) -> tuple[int, int]:
        """The bytes that it has of its own now, and those of files that it has mapped."""
        private = anonymous_memory(self._process.pid)
        return private, max(0, psutil.Process(self._process.pid).memory_info().rss - private)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()
