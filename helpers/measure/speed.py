"""How long a model takes for one question: the image encoder, the first token, the next ones.

What this module does not know: why; `benchmark` profiles.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from helpers.inputs.messages import user_message
from helpers.measure.evaluation import Model, generate
from helpers.measure.peers.jobs import Clock
from helpers.run.batches import BatchRow
from helpers.run.choosing import Chooser
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.sampling import Sampling
from helpers.run.worker import Stop

T = TypeVar("T")


@dataclass(frozen=True)
class Latencies:
    """Seconds: a picture in the image encoder, the first token after that, and the next."""

    image_encoder: float
    first_token: float
    next_token: float


STEPS = ("image encoder", "first token", "next token")  # as tables and plots name them
SPREAD = 0.2


@torch.inference_mode()
def measure(model: Model, picture: Image.Image, text: str, *, tokens: int = 32) -> Latencies:
    """Measure one question once; the next token's is the median of those behind the first.

    The answer has so many `tokens`, two at least.
    """
    inputs = model.image_inputs([picture])
    ids = model.processor.input_ids([user_message(text, 1)], inputs)
    encoder, features = timed(lambda: model.encode_images(**inputs))
    return Latencies(encoder, *answer_times(model, model.prepare(ids, features), tokens=tokens))


@torch.inference_mode()
def answer_times(
    model: Model, prepared: Mapping[str, Any], *, tokens: int = 32
) -> tuple[float, float]:
    """Return the seconds to the first token after a prompt, and the median of those to the next.

    A pipeline chooses and computes them as it does when it is asked, PyTorch in `generate`.
    """
    if isinstance(model, VisionLanguagePipeline):
        return _asked(model, prepared, tokens)
    # Every run makes the same number of tokens, whatever the model wants to say. (With
    # min_new_tokens, transformers would look through the whole vocabulary for each of them.)
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    clock = _Clock()
    generate(model, **prepared, generation_config=config, streamer=clock)
    return clock.clock.first_and_next


def seconds_of_steps(
    model: Model, prepared: Mapping[str, Any], *, tokens: int, computed: int
) -> list[float]:
    """Return the seconds of the prompt and of all next tokens of an answer of `tokens`.

    The first of them are `computed`. What stands between the prompt and the next tokens counts
    with these, as moving the cache.
    """
    times = partial(answer_times, model, prepared, tokens=computed)
    seconds, (first_token, next_token) = timed(times)
    return [first_token, seconds - first_token + (tokens - computed) * next_token]


def _asked(
    pipeline: VisionLanguagePipeline, prepared: Mapping[str, Any], tokens: int
) -> tuple[float, float]:
    clock, chooser, ids = Clock(), Chooser(Sampling()), list[int]()
    cache = pipeline.language_model.new_cache()
    cache.stop = Stop()  # so the prompt is computed in pieces, as that of an answer which can end
    logits = pipeline.language_model.forward(**prepared, past_key_values=cache).logits
    assert logits is not None
    row_logits = logits[:, -1]
    while True:
        ids.append(chooser.choose(row_logits, ids))
        clock.note()
        if len(ids) == tokens:
            return clock.first_and_next
        row = BatchRow(cache, prepared.get("pictures"), ids[-1])
        (row_logits,) = pipeline.batch.compute([row])


def compare(
    models: Mapping[str, Model],
    picture: Image.Image,
    text: str,
    *,
    tokens: int = 32,
    rounds: tuple[int, int] = (5, 9),
) -> dict[str, list[Latencies]]:
    """Return what each model, by its name, took for one question in each round.

    They are measured in turn, so that whatever else the computer does meets all of them alike.
    A first round does not count. There are at least and at most so many `rounds`: the last is the
    one after which the middle half of every model's times lies within `SPREAD` of their median.
    """
    for model in models.values():
        measure(model, picture, text, tokens=tokens)
    least, most = rounds
    speeds: dict[str, list[Latencies]] = {name: [] for name in models}
    for number in range(1, most + 1):
        for name, model in models.items():
            speeds[name].append(measure(model, picture, text, tokens=tokens))
        if number >= least and all(map(_steady, speeds.values())):
            break
    return speeds


def _steady(speeds: Sequence[Latencies]) -> bool:
    """Say whether the middle half of each step's times lies within `SPREAD` of their median."""
    for seconds in zip(*map(astuple, speeds), strict=True):
        low, middle, high = quantiles(seconds, n=4, method="inclusive")
        if high - low > SPREAD * middle:
            return False
    return True


def rows(speeds: Mapping[str, Sequence[Latencies]]) -> list[dict[str, str]]:
    """Return a row for each model of `compare`: median, least and most milliseconds."""
    table = []
    for name, rounds in speeds.items():
        row = {"model": name}
        for step, seconds in zip(STEPS, zip(*map(astuple, rounds), strict=True), strict=True):
            low, middle, high = (
                1000 * value for value in (min(seconds), median(seconds), max(seconds))
            )
            row[step] = f"{middle:.1f} ms ({low:.1f} to {high:.1f})"
        table.append(row)
    return table


class _Clock(BaseStreamer):
    """Notes when tokens come."""

    def __init__(self) -> None:
        self.clock = Clock()

    def put(self, value: Tensor) -> None:
        """Take a token, or first of all the ids of a prompt, which are none here."""
        if value.numel():
            self.clock.note()

    def end(self) -> None:
        """Do nothing."""


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that a function takes, and what it returns."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result
