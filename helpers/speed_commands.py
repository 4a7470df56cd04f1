"""The commands of `vlm` that measure times: of a model, and of settings for a folder."""

import argparse
import contextlib
import dataclasses
import json
import tempfile
from pathlib import Path

from helpers.command_output import Result, check_output, report, show, writing

QUESTIONS = 24  # drawn ones, that settings are compared on where there is time for all


def benchmark(options: argparse.Namespace) -> int:
    """Print the time, memory and disk that a model takes."""
    from helpers.measure.benchmark import benchmark as measure
    from helpers.measure.benchmark import figure_rows

    if options.output:
        check_output(options.output)
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        figures = measure(
            options.model,
            folder,
            full_size=options.full_size,
            precisions=options.precision.split(","),
            against=("bfloat16", "float32") if options.against else (),
            report=report,
        )
    data = dataclasses.asdict(figures)
    show(Result(data, rows=figure_rows(figures)), options)
    if options.output:
        with writing(options.output):
            options.output.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return 0


def tune(options: argparse.Namespace) -> int:
    """Keep the settings that are fastest for a folder on this computer, and print all trials."""
    from helpers.convert.folders import read_manifest
    from helpers.graphs.presets import faster_preset
    from helpers.measure.tune import tune as find
    from helpers.run.tuning import properties_in_words, write_tuning
    from helpers.shapes.questions import draw_questions

    tuning, trials = find(
        options.folder, draw_questions(QUESTIONS, seed=0), seconds=options.seconds, report=report
    )
    path = write_tuning(tuning)
    lines = [
        f"{part}: {properties_in_words(properties)}; {tuning.reasons[part]}"
        for part, properties in tuning.properties.items()
    ]
    faster = faster_preset(read_manifest(options.folder)["preset"])
    if faster:
        lines.append(f"`vlm convert --precision {faster}` makes a folder that is faster here")
    data = dataclasses.asdict(tuning) | {"faster preset": faster or None}
    data |= {"trials": [dataclasses.asdict(t) for t in trials]}
    result = Result(data | {"file": str(path)}, lines, [trial.row for trial in trials])
    return show(result, options)
