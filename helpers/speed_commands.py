"""The commands of `vlm` that measure times: of a model, and of settings for a folder."""

import argparse
import contextlib
import dataclasses
import json
import os
import tempfile
from pathlib import Path

from helpers.command_output import Result, check_output, report, show, write_output
from helpers.errors import OutputError, SettingsError
from helpers.graphs.presets import precisions_in
from helpers.resources import path_of

LASTING = "/var/tmp"
QUESTIONS = 24  # drawn ones, that settings are compared on where there is time for all


def benchmark(options: argparse.Namespace) -> int:
    """Print what a model takes, or a folder beside what other engines take."""
    from helpers.convert.manifests import MANIFEST, check_readable, exists

    if options.output:
        check_output(options.output)
    against = [name for name in (options.against or "").split(",") if name]
    manifest = path_of(options.model) / MANIFEST
    check_readable(manifest)  # where the folder may be entered, it need not be listed
    if exists(manifest):
        result = _comparison(path_of(options.model), against)
    else:
        result = _figures(options, against)
    if options.output:
        write_output(options.output, json.dumps(result.data, indent=1) + "\n", result, options)
    return show(result, options)


def _comparison(folder: Path, against: list[str]) -> Result:
    """Measure a converted folder beside other engines."""
    from helpers.measure.peers.comparison import compare_engines, lines_of, rows_of

    comparison = compare_engines(folder, against, report=report)
    return Result(dataclasses.asdict(comparison), lines_of(comparison), rows_of(comparison))


def _figures(options: argparse.Namespace, against: list[str]) -> Result:
    """Measure the time, memory and disk that a model takes."""
    from helpers.measure.benchmark import benchmark as measure
    from helpers.measure.benchmark import figure_rows
    from helpers.measure.peers.comparison import check_peers

    check_peers(against)
    if set(against) - {"pytorch"}:
        raise SettingsError(
            f"{options.model} is measured against pytorch only; convert it, and measure the folder "
            "against the others."
        )
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=_large_place()))
        )
        figures = measure(
            options.model,
            folder,
            full_size=options.full_size,
            precisions=precisions_in(options.precision),
            against=("bfloat16", "float32") if against else (),
            report=report,
        )
    return Result(dataclasses.asdict(figures), rows=figure_rows(figures))


def _large_place() -> str | None:
    """Return where what is large is written for a while; None is the system's usual folder.

    That may be in memory, unlike the one for what outlives a restart.
    """
    is_usual = os.environ.get("TMPDIR") or not os.access(LASTING, os.W_OK)
    return None if is_usual else LASTING


def tune(options: argparse.Namespace) -> int:
    """Keep the settings that are fastest for a folder on this computer, and print all trials."""
    from helpers.measure.tune import tune as find
    from helpers.run.tuning import (
        check_writable,
        key_of,
        properties_in_words,
        read_tuning,
        write_tuning,
    )
    from helpers.shapes.questions import draw_questions

    check_writable(options.folder)
    key = key_of(options.folder)
    tuning, trials = find(
        options.folder, draw_questions(QUESTIONS, seed=0), seconds=options.seconds, report=report
    )
    rows = [trial.row for trial in trials]
    if tuning.key != key:
        show(Result(dataclasses.asdict(tuning), [], rows), options)
        raise OutputError(f"{options.folder} was converted anew meanwhile; tune it again.")
    tuning = tuning.or_earlier(read_tuning(options.folder))
    try:
        path = write_tuning(tuning)
    except OutputError:
        show(Result(dataclasses.asdict(tuning), [], rows), options)
        raise
    settings = {
        part: f"{properties_in_words(properties)}; "
        for part, properties in tuning.properties.items()
    }
    lines = [f"{part}: {settings.get(part, '')}{why}" for part, why in tuning.reasons.items()]
    choices = _faster_choices(options.folder)
    if choices:
        lines.append(f"`vlm convert {choices}` makes a folder that is faster here")
    data = dataclasses.asdict(tuning) | {"faster": choices or None}
    data |= {"trials": [dataclasses.asdict(t) for t in trials]}
    result = Result(data | {"file": str(path)}, lines, rows)
    return show(result, options)


def _faster_choices(folder: Path) -> str:
    """Return options of `vlm convert` that make a folder which is faster here; "" for none."""
    from helpers.convert.folders import read_manifest
    from helpers.graphs.core import core
    from helpers.graphs.part_names import IMAGE_ENCODER
    from helpers.graphs.presets import faster_image_encoder, faster_preset

    manifest = read_manifest(folder)
    encoder = core().read_model(folder / manifest["parts"][IMAGE_ENCODER])
    faster = {
        "--precision": faster_preset(manifest["preset"]),
        "--image-encoder": faster_image_encoder(manifest["preset"], encoder),
    }
    return " ".join(f"{option} {name}" for option, name in faster.items() if name)
