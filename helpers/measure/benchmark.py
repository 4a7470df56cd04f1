"""Measure what a model costs: conversion, memory, disk, time, and how far time is from its floor.

To write a token, a language model reads all its weights once; how long that takes at this
computer's memory bandwidth is the least time that a token can take.

What this module does not know: graphics cards, whose memory is another.
"""

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from helpers.convert.folders import Report
from helpers.convert.places import check_free
from helpers.convert.quantizing import check_image_encoder
from helpers.errors import SettingsError, writing
from helpers.graphs.part_names import LANGUAGE_MODEL
from helpers.graphs.presets import find_preset
from helpers.measure.figures import (
    Computer,
    Conversion,
    Figures,
    Floor,
    Profile,
    Run,
    Running,
    Speed,
)
from helpers.measure.random_checkpoint import write_random
from helpers.measure.tasks import measure
from helpers.models import load_model
from helpers.models.base import VisionLanguageModel
from helpers.models.families import family_of_original, find_original, without_weights
from helpers.resources import available_memory, in_words, instruction_sets, time_in_words
from helpers.run.devices import processor_name


def benchmark(
    name: str,
    place: Path,
    *,
    full_size: bool = False,
    precisions: Sequence[str] = ("int4",),
    against: Sequence[str] = (),
    report: Report = lambda line: None,
) -> Figures:
    """Measure the model called `name` and return all figures.

    Checkpoints and converted models are written to `place`. `against` are types that PyTorch
    computes in, for the same measurements there; one that does not fit into the memory is left
    out. Raises `SettingsError` for an unknown name or precision.
    """
    original = find_original(name)
    for precision in precisions:
        check_image_encoder(without_weights(original.config), find_preset(precision))
    checkpoint = family_of_original(original).checkpoint
    if full_size:
        checkpoint = write_random(original, place / "checkpoint", report=report)
    elif checkpoint is None:
        raise SettingsError(f"There is no small {name} here yet; measure it with --full-size.")
    parameters = count_parameters(load_model(checkpoint))
    picture = original.picture
    runs = {
        precision: _converted(checkpoint, place / precision, precision, picture, report)
        for precision in precisions
    }
    for dtype in against:
        size = sum(parameters.values()) * getattr(torch, dtype).itemsize
        if size > available_memory():
            report(f"PyTorch {dtype} is left out: it takes {in_words(size)} of memory.")
            continue
        arguments = {"checkpoint": checkpoint, "picture": picture, "dtype": dtype}
        runs[f"PyTorch {dtype}"] = Run(measure("pytorch", Speed, report=report, **arguments))
    return Figures(original.name, full_size, picture, computer(), parameters, runs)


def _converted(
    checkpoint: Path, output: Path, precision: str, picture: tuple[int, int], report: Report
) -> Run:
    """Convert, run and profile in one precision."""
    with writing(output, "folder"):
        check_free(output)  # an earlier measurement's, or nothing
        shutil.rmtree(output, ignore_errors=True)
    arguments = {"checkpoint": checkpoint, "output": output, "precision": precision}
    conversion = measure("conversion", Conversion, report=report, **arguments)
    running = measure("running", Running, report=report, folder=output, picture=picture)
    size = conversion.bytes_by_part[LANGUAGE_MODEL]
    times = median(step.next_token * step.bandwidth / size for step in running.rounds)
    profile = measure("profile", Profile, report=report, folder=output, picture=picture)
    return Run(running, conversion, profile, Floor(size / running.speed.bandwidth, times))


def count_parameters(model: VisionLanguageModel[Any]) -> dict[str, int]:
    """Return the number of weights of the language model and of all else."""
    language = sum(weight.numel() for weight in model.language_model.parameters())
    total = sum(weight.numel() for weight in model.parameters())
    return {LANGUAGE_MODEL: language, "others": total - language}


def computer() -> Computer:
    """Return what measurements depend on."""
    return Computer(
        processor=processor_name(),
        cores=psutil.cpu_count(logical=False) or 1,
        memory=psutil.virtual_memory().total,
        versions={name: version(name) for name in ("openvino", "nncf", "torch", "transformers")},
        instruction_sets=instruction_sets(),
    )


def figure_rows(figures: Figures) -> list[dict[str, str]]:
    """Return the figures as rows for `tables.show_table`, a run each."""
    rows = []
    for name, run in figures.runs.items():
        conversion, speed, floor = run.conversion, run.running.speed, run.floor
        row = {
            "model": name,
            "convert": f"{conversion.seconds:.0f} s" if conversion else "-",
            "memory to convert": in_words(conversion.peak_memory) if conversion else "-",
            "on disk": in_words(conversion.bytes) if conversion else "-",
            "image encoder": time_in_words(speed.image_encoder),
            "first token": time_in_words(speed.first_token),
            "next token": time_in_words(speed.next_token),
            "floor": time_in_words(floor.seconds) if floor else "-",
            "times floor": f"{floor.times:.2f}" if floor else "-",
            "memory": _memory(figures, name),
        }
        rows.append(row)
    return rows


def _memory(figures: Figures, name: str) -> str:
    """Return what a run allocates, and beside it the weights that PyTorch maps from their file.

    It maps those of the file's own type, and random checkpoints of full size have bfloat16.
    """
    size = in_words(figures.runs[name].running.peak_memory)
    if not figures.full_size or name != "PyTorch bfloat16":
        return size
    return f"{size} + {in_words(2 * sum(figures.parameters.values()))} mapped"
