"""The runner of what this environment has: a folder in our pipeline, or its model in PyTorch."""

from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from helpers.inputs.images import draw_lake
from helpers.inputs.messages import user_message
from helpers.measure import speed
from helpers.measure.evaluation import Model
from helpers.measure.peers.jobs import Measure, Settings, serve
from helpers.measure.random_checkpoint import random_model
from helpers.run.pipeline import VisionLanguagePipeline


def start(settings: Settings) -> tuple[str, Measure]:
    """Return the version of what computes, and what measures a round."""
    folder, threads = Path(settings["folder"]), settings["threads"]
    if name := settings.get("dtype"):
        torch.set_num_threads(threads)
        model: Model = random_model(folder, getattr(torch, name))
        return version("torch"), partial(measure, model, settings)
    # A number of threads is among what `tune` chooses.
    properties = {} if settings["tuned"] else {"INFERENCE_NUM_THREADS": threads}
    model = VisionLanguagePipeline(folder, tuned=settings["tuned"], properties=properties)
    return version("openvino"), partial(measure, model, settings)


def measure(model: Model, settings: Settings) -> dict[str, Any]:
    """Return the seconds of a round, and how many positions the prompt has."""
    picture, question = draw_lake(*settings["picture"]), settings["question"]
    ids = model.processor.input_ids([user_message(question, 1)], model.image_inputs([picture]))
    times = speed.measure(model, picture, question, tokens=settings["tokens"])
    return {
        "image_encoder": times.image_encoder,
        "prompt": times.first_token,
        "next_token": times.next_token,
        "prompt_tokens": ids.shape[1],
    }


if __name__ == "__main__":
    serve(start)
