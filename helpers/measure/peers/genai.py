"""The runner of OpenVINO GenAI, in the environment that `make genai` makes."""

from functools import partial
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from helpers.measure.peers.jobs import Clock, Measure, Settings, serve


class Tokens(genai.StreamerBase):  # type: ignore[misc]  # its package has no types
    """Notes when tokens come."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()

    def write(self, token: int | list[int]) -> genai.StreamingStatus:
        """Take a token, or several."""
        self.clock.note()
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Do nothing."""


def start(settings: Settings) -> tuple[str, Measure]:
    """Return GenAI's version, and what measures a round."""
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": settings["threads"]}
    options |= settings["properties"]
    pipeline = genai.VLMPipeline(settings["folder"], "CPU", **options)
    picture = np.load(settings["picture_file"])
    return genai.__version__, partial(measure, pipeline, picture, settings, [0])


def measure(
    pipeline: genai.VLMPipeline, picture: Any, settings: Settings, rounds: list[int]
) -> dict[str, Any]:
    """Return the seconds of a round, and how many positions the prompt has.

    The picture is another in each round: GenAI keeps what it computed of equal prompts.
    """
    rounds[0] += 1
    config = pipeline.get_generation_config()
    config.do_sample, config.ignore_eos = False, True
    config.max_new_tokens = settings["tokens"]
    tokens = Tokens()
    result = pipeline.generate(
        settings["question"],
        images=[ov.Tensor(np.roll(picture, rounds[0], axis=1)[None])],
        generation_config=config,
        streamer=tokens,
    )
    first, next_token = tokens.clock.first_and_next
    metrics = result.perf_metrics
    return {
        "image_encoder": metrics.get_vision_encoding_duration().mean / 1000,
        "prompt": first - metrics.get_prepare_embeddings_duration().mean / 1000,
        "next_token": next_token,
        "prompt_tokens": metrics.get_num_input_tokens(),
    }


if __name__ == "__main__":
    serve(start)
