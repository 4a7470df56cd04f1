"""The runner of a release of this collection, this one or an earlier one: whole answers.

What this module does not know: how a release computes; it asks as a program does.
"""

import itertools
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from helpers.measure.peers.jobs import Measure, Settings, serve

SQUARES = 32  # squares along a side of the picture, each in a colour of its own


def start(settings: Settings) -> tuple[str, Measure]:
    """Return the place of the release, and what measures a round.

    All releases call their package `helpers`, so this one's makes room for the one at `code`.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "helpers"]:
        del sys.modules[name]
    sys.path.insert(0, settings["code"])
    try:
        module = import_module("helpers.run.pipeline")
    except ImportError:  # in 0.1.0
        module = import_module("helpers.pipeline")
    pipeline = module.VisionLanguagePipeline(settings["folder"], **settings["pipeline"])
    return settings["code"], partial(measure, pipeline, settings, itertools.count(1))


def measure(pipeline: Any, settings: Settings, rounds: Iterator[int]) -> dict[str, Any]:
    """Return by picture the seconds of a whole answer and of its steps, and the tokens of both."""
    number = next(rounds)
    figures = {}
    for name, size in settings["pictures"].items():
        # Another picture in each round: features of the last pictures are kept.
        colours = np.random.default_rng(number).integers(256, size=(SQUARES, SQUARES, 3))
        picture = Image.fromarray(colours.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        started = time.perf_counter()
        reply = pipeline.ask(
            settings["question"], [picture], max_new_tokens=settings["tokens"], **settings["ask"]
        )
        _ = reply.text  # waits
        seconds = time.perf_counter() - started
        times, counts = reply.times, reply.counts
        figures[name] = {
            "whole": seconds,
            "image_encoder": times.image_encoder,
            "prompt": times.first_token - times.image_encoder,
            "next_token": times.per_token,
            "prompt_tokens": counts.prompt,
            "answer_tokens": counts.answer,
        }
    return figures


if __name__ == "__main__":
    serve(start)
