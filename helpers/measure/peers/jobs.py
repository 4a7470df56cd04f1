"""What a runner is told and what it says: settings in a line of JSON, then a line for each round.

A runner may be in an environment that has nothing else of this collection's, so this module takes
the standard library only.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

Settings = dict[str, Any]
Measure = Callable[[], dict[str, Any]]  # the figures of one round


class Clock:
    """Notes when tokens come, from when it is made."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def note(self) -> None:
        """Note a token."""
        self.times.append(time.perf_counter())

    @property
    def first_and_next(self) -> tuple[float, float]:
        """The seconds to the first token, and the median of those between tokens."""
        waits = [after - before for before, after in itertools.pairwise(self.times)]
        return waits[0], median(waits[1:])


def serve(start: Callable[[Settings], tuple[str, Measure]]) -> None:
    """Let `start` make an engine ready; it returns its version, and what measures a round.

    What libraries print goes to the error stream, so that nothing comes between the lines.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    version, measure = start(json.loads(sys.stdin.readline()))
    print(json.dumps({"version": version}), file=channel, flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), file=channel, flush=True)
