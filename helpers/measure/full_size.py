"""What was measured at full size, run by run, in `notebooks/full-size/`: reading it, and its rows.

`peers/` has what was measured beside other engines.

What this module does not know: how anything is measured, or written there.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

from helpers.measure.figures import Computer, Encoder, Figures, Run, from_json
from helpers.measure.peers.comparison import PeerComparison, medians
from helpers.models.families import find_family_by_name
from helpers.resources import in_words, time_in_words
from helpers.sources.checkpoints import read_json

# The runs that are compared, and what tables call them: PyTorch as it comes, then in OpenVINO.
RUNS = {"PyTorch bfloat16": "PyTorch", "fp16": "FP16", "int8": "INT8", "int4": "INT4"}
FOLDER = Path(__file__).parent.parent.parent / "notebooks" / "full-size"
ENCODERS = FOLDER / "image-encoders"  # a file for each that was measured without the rest
PEERS = FOLDER / "peers"


@dataclass(frozen=True)
class Measurement:
    """Figures with the `commit` that they were measured on and the `date` in UTC (ISO 8601)."""

    commit: str
    date: str
    figures: Figures

    @property
    def kind(self) -> str:
        """The kind of processor: its name and its instruction sets."""
        return processor_kind(self.figures.computer)

    @property
    def model(self) -> str:
        """The original's name."""
        return self.figures.model

    @property
    def times(self) -> dict[str, float]:
        """How many times its floor a token takes, by precision."""
        runs = self.figures.runs.items()
        return {name: run.floor.times for name, run in runs if run.floor is not None}

    def sentence(self, name: str) -> str:
        """Return one of `times` in words."""
        return f"{self.model} in {name} takes {self.times[name]:.2f} times its floor"


@dataclass(frozen=True)
class PeerMeasurement:
    """A folder beside other engines, called as its original, with `commit` and `date` as above."""

    commit: str
    date: str
    figures: PeerComparison

    @property
    def kind(self) -> str:
        """The preset and the kind of processor."""
        return f"{self.figures.preset} on {processor_kind(self.figures.computer)}"

    @property
    def model(self) -> str:
        """The original's name."""
        return self.figures.folder

    @property
    def times(self) -> dict[str, float]:
        """How many times a token of each other engine ours takes."""
        ours, *_ = tokens = medians(self.figures.engines, "next_token")
        peers = [name for name in tokens if not name.startswith("vlm")]
        return {name: (tokens[ours] or 0) / (tokens[name] or 1) for name in peers}

    def sentence(self, name: str) -> str:
        """Return one of `times` in words."""
        return f"A token of {self.model} takes {self.times[name]:.2f} times that of {name}"


AnyMeasurement = TypeVar("AnyMeasurement", Measurement, PeerMeasurement)


def processor_kind(computer: Computer) -> str:
    """Return a processor's name with the instruction sets that matter for speed."""
    sets = ", ".join(computer.instruction_sets)
    return f"{computer.processor} ({sets})" if sets else computer.processor


def history(path: Path, kind: type[AnyMeasurement]) -> list[AnyMeasurement]:
    """Return the measurements of one model in a file, the oldest first."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [from_json(kind, json.loads(line)) for line in lines]


def peers_of(model: str) -> list[PeerMeasurement]:
    """Return what was measured of a model beside other engines, the oldest first."""
    return history(PEERS / f"{model}.jsonl", PeerMeasurement)


def histories() -> list[list[Measurement]]:
    """Return the measurements of all models, the small models first."""
    models = [history(path, Measurement) for path in FOLDER.glob("*.jsonl")]
    return sorted(models, key=lambda lines: sum(lines[-1].figures.parameters.values()))


def newest_by_kind(measurements: Sequence[AnyMeasurement]) -> list[AnyMeasurement]:
    """Return the newest measurement on each kind of processor."""
    return list({measurement.kind: measurement for measurement in measurements}.values())


def measurements_of_family(name: str) -> list[Measurement]:
    """Return the newest measurement of each original of a family, by size, on one processor."""
    return on_one_processor({original.name for original in find_family_by_name(name).originals})


def on_one_processor(models: Collection[str]) -> list[Measurement]:
    """Return the newest measurement of each of the models, by size.

    Times are compared on one kind of processor only: the one that they were measured on in most
    precisions, of two such the one with most models, then the one that was used last.
    """
    by_kind: dict[str, list[Measurement]] = {}
    for measurements in histories():
        for measurement in newest_by_kind(measurements):
            if measurement.figures.model in models:
                by_kind.setdefault(measurement.kind, []).append(measurement)
    return max(
        by_kind.values(),
        key=lambda of_kind: (len(_precisions(of_kind)), len(of_kind), _newest_date(of_kind)),
    )


def _precisions(measurements: Sequence[Measurement]) -> set[str]:
    """Return the precisions that OpenVINO was measured in, with any of the models."""
    return {
        name
        for measurement in measurements
        for name, run in measurement.figures.runs.items()
        if run.conversion is not None
    }


def _newest_date(measurements: Sequence[Measurement]) -> str:
    return max(measurement.date for measurement in measurements)


def processor_of(family: str) -> str:
    """Return the kind of processor that a family's rows were measured on."""
    return measurements_of_family(family)[-1].kind


def full_size_rows(family: str) -> list[dict[str, str]]:
    """Return a row for each run of a family's originals: their size, and their times."""
    return [
        {"original": figures.model, "in": name} | _row(figures, name, run)
        for figures in (measurement.figures for measurement in measurements_of_family(family))
        for name, run in figures.runs.items()
    ]


def encoder_of(model: str) -> Encoder | None:
    """Return what was measured of an original's image encoder alone, if anything."""
    path = ENCODERS / f"{model}.json"
    return from_json(Encoder, read_json(path)) if path.exists() else None


def encoder_rows(encoder: Encoder) -> list[dict[str, str]]:
    """Return a row for each setting of an image encoder that was measured alone."""
    return [
        {
            "image encoder": name,
            "compressing": time_in_words(run.seconds),
            "memory for that": in_words(run.peak_memory),
            "on disk": in_words(run.bytes),
            "a picture": time_in_words(median(run.rounds)),
            "least": time_in_words(min(run.rounds)),
            "most": time_in_words(max(run.rounds)),
        }
        for name, run in encoder.runs.items()
    ]


def run_bytes(figures: Figures, name: str) -> int:
    """Return the bytes of a model's weights in the run called `name`."""
    conversion = figures.runs[name].conversion
    if conversion is not None:
        return conversion.bytes
    # PyTorch, in the type that its name ends with
    itemsize: int = getattr(torch, name.split()[-1]).itemsize
    return sum(figures.parameters.values()) * itemsize


def _row(figures: Figures, name: str, run: Run) -> dict[str, str]:
    speed = run.running.speed
    return {
        "size": in_words(run_bytes(figures, name)),
        "image encoder": f"{speed.image_encoder:.2f} s",
        "first token": f"{speed.first_token:.2f} s",
        "next token": f"{speed.next_token * 1000:.0f} ms",
    }


def gains(family: str) -> dict[str, dict[str, float]]:
    """Return what to draw of a family's smallest and largest original, by what is measured.

    For each of them the gigabytes of the weights and the milliseconds of a next token, by run.
    """
    measured = [measurement.figures for measurement in measurements_of_family(family)]
    ends = {figures.model: figures for figures in (*measured[:1], *measured[-1:])}
    groups: dict[str, dict[str, float]] = {}
    for model, figures in ends.items():
        runs = {name: figures.runs[name] for name in RUNS if name in figures.runs}
        groups[f"{model}, gigabytes"] = {name: run_bytes(figures, name) / 1e9 for name in runs}
        groups[f"{model}, ms a token"] = {
            name: run.running.speed.next_token * 1000 for name, run in runs.items()
        }
    return groups
