"""Measure the memory of a long answer: `python -m helpers.workshop.long_answers FOLDER`.

It prints a row after each number of `--steps`: the memory of the process's own, now and at most,
the resident memory, which mapped files are part of, and the time of the last steps. Beside it
stands what the folder's parts take on disk. With `--plain`, weights are multiplied in 32 bits and
inputs are not rounded, which processors without AVX-512 take; `ONEDNN_MAX_CPU_ISA=AVX2` before the
command makes OpenVINO's kernels believe that it is one.

What this module does not know: what an answer says. Every token of it is the same.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from helpers.convert.folders import folder_bytes
from helpers.errors import UserError
from helpers.measure.tasks import read_prompt
from helpers.resources import (
    anonymous_memory,
    in_words,
    path_of,
    return_freed_memory,
    time_in_words,
)
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.show.tables import show_table

STEPS = (64, 1000, 5000)
PICTURE = (1024, 768)  # wide and high
LAST = 32  # steps whose mean time is told
PLAIN = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def memory_of_steps(
    folder: Path, steps: Sequence[int], picture: Sequence[int], properties: dict[str, str]
) -> Iterator[dict[str, str]]:
    """Yield a row after each number of steps of an answer about a picture of a width and height."""
    pipeline = VisionLanguagePipeline(folder, properties=properties)
    step, _ = read_prompt(pipeline, picture)
    process, peak, times = os.getpid(), 0, list[float]()
    for number in range(1, max(steps) + 1):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
        peak = max(peak, anonymous_memory(process))
        if number in steps:
            return_freed_memory()
            last = times[-LAST:]
            yield {
                "steps": str(number),
                "own memory": in_words(anonymous_memory(process)),
                "at most": in_words(peak),
                "resident": in_words(psutil.Process(process).memory_info().rss),
                "step": time_in_words(sum(last) / len(last)),
            }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m helpers.workshop.long_answers")
    parser.add_argument("folder", type=path_of, help="a folder that `vlm convert` wrote")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, metavar="NUMBER")
    parser.add_argument("--picture", type=int, nargs=2, default=PICTURE, metavar="PIXELS")
    parser.add_argument("--plain", action="store_true", help="32 bits, inputs not rounded")
    options = parser.parse_args()
    for part, size in folder_bytes(options.folder).items():
        print(f"{part}: {in_words(size)} on disk")
    rows = []
    properties = PLAIN if options.plain else {}
    for row in memory_of_steps(options.folder, options.steps, options.picture, properties):
        print(f"{row['steps']} steps", file=sys.stderr, flush=True)
        rows.append(row)
    show_table(rows)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
