"""Measurements at full size, run by run: `python -m helpers.workshop.history FIGURES`.

Appends what `vlm benchmark --output FIGURES` wrote to the model's file of JSON lines in
`notebooks/full-size/`, or in `peers/` there what it wrote of a folder beside other engines, unless
that is slower than the run before on the same kind of processor. Such a folder is called as its
original.

What this module does not know: why a run is slower.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from helpers.errors import UserError
from helpers.measure.figures import Figures, from_json
from helpers.measure.full_size import (
    FOLDER,
    PEERS,
    AnyMeasurement,
    Measurement,
    PeerMeasurement,
    history,
)
from helpers.measure.peers.comparison import PeerComparison
from helpers.models.families import find_original
from helpers.sources.checkpoints import read_json

# A token may take so many times as long as before, in times of its floor, or of another engine's
# token, which other programs on the computer slow down too.
MARGIN = 1.25


class SlowerError(UserError):
    """A run was slower than the last one on the same kind of processor."""


def append(path: Path, measurement: AnyMeasurement) -> None:
    """Add a measurement to a model's file.

    Raises `SlowerError` where a token takes more than `MARGIN` times what it took before, and
    leaves the file as it is.
    """
    lines = history(path, type(measurement))
    before = [earlier for earlier in lines if earlier.kind == measurement.kind]
    for name, times in measurement.times.items():
        last = before[-1].times.get(name) if before else None
        if last is not None and times > MARGIN * last:
            raise SlowerError(
                f"{measurement.sentence(name)}; on {before[-1].commit} it took {last:.2f}, and "
                f"{MARGIN} times that is allowed."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(dataclasses.asdict(measurement)) + "\n")


def _commit() -> str:
    """Return the commit that is checked out, which a commit with the figures has as its parent."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    output = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    return output.stdout.strip() or "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    """Append one measurement; say in a sentence if it is slower than the last."""
    parser = argparse.ArgumentParser(prog="python -m helpers.workshop.history", description=__doc__)
    parser.add_argument("figures", type=Path, help="what `vlm benchmark --output` wrote")
    options = parser.parse_args(arguments)
    made = _commit(), datetime.now(UTC).isoformat(timespec="seconds")
    try:
        data = read_json(options.figures, cure="give what `vlm benchmark --output` wrote")
        if "engines" in data:
            peers = PeerMeasurement(*made, from_json(PeerComparison, data))
            append(PEERS / f"{find_original(peers.model).name}.jsonl", peers)
        else:
            alone = Measurement(*made, from_json(Figures, data))
            append(FOLDER / f"{alone.model}.jsonl", alone)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
