"""The pipelines that commands of `vlm` answer with, opened as their options say.

What is slow to import is imported where it is used.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.command_output import report, waiting
from helpers.resources import freeze_objects

if TYPE_CHECKING:
    from helpers.run.pipeline import VisionLanguagePipeline


def open_pipeline(
    options: argparse.Namespace, *, accuracy: bool = False, next_tokens_apart: bool = True
) -> "VisionLanguagePipeline":
    """Return the pipeline of the folder and the device that were named, with its notice told."""
    from helpers.run.pipeline import VisionLanguagePipeline

    with waiting(f"loading {options.folder} ..."):
        pipeline = VisionLanguagePipeline(
            options.folder,
            options.device,
            picture_tokens=options.picture_tokens,
            accuracy=accuracy,
            tuned=not options.untuned,
            next_tokens_apart=next_tokens_apart,
        )
    freeze_objects()
    if pipeline.notice:
        report(f"note: {pipeline.notice}")
    if not accuracy:  # which is never tuned
        advise(options, options.folder)
    return pipeline


def advise(options: argparse.Namespace, *folders: Path) -> None:
    """Say which folders are worth tuning, unless that is not wanted or not for this device."""
    from helpers.run.tuning import advice

    if options.untuned or (options.device or "CPU").upper() != "CPU":
        return
    for folder in folders:
        if text := advice(folder):
            report(f"note: {text}")
