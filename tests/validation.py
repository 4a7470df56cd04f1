"""Run nbval on a notebook in a process of its own, to see what it makes of it."""

import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
REPAIRED = ("-p", "tests.nbval_repairs")
SANITIZED = f"--nbval-sanitize-with={ROOT / 'tests' / 'nbval_sanitize.cfg'}"


class Validation(NamedTuple):
    """How many cells passed, failed and so on; how long it took; what pytest printed."""

    counts: dict[str, int]
    seconds: float
    output: str


def validate(notebook: Path, *options: str) -> Validation:
    """Validate a notebook with nbval as it comes, and what `options` add to it."""
    (notebook.parent / "pytest.ini").write_text(
        "[pytest]\n", encoding="utf-8"
    )  # not this project's
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-rA"]
    command += ["-p", "no:cacheprovider", "--color=no", *options, notebook.name]
    start = time.monotonic()
    run = subprocess.run(
        command,
        cwd=notebook.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    seconds = time.monotonic() - start
    words = run.stdout.strip().splitlines()[-1].replace(",", "").split()
    counts = {kind: int(number) for number, kind in pairwise(words) if number.isdigit()}
    return Validation(counts, seconds, run.stdout)
