"""What is right in exercises, where that depends on the checkpoint or on the notebook.

What this module does not know: which exercise asks for it.
"""

import math
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from helpers.graphs.parts import Part
from helpers.inputs.messages import user_message
from helpers.measure.evaluation import Answers
from helpers.models import slices
from helpers.models.slices import Slicing
from helpers.run.pipeline import VisionLanguagePipeline

BANNER = Image.new("RGB", (900, 300))  # of 03-1, 03-2 and 05-1
TOKEN_BANNER = Image.new("RGB", (700, 90))  # of 06-1 and 06-2
TEMPERATURES = (0.3, 1, 3)  # of 02-4


def banner_pieces(model: Any) -> int:
    """Return how many tiles a model cuts the banner into, the thumbnail included."""
    cutter = model.processor.image_processor
    return int(cutter.get_number_of_image_patches(BANNER.height, BANNER.width))


def banner_picture_tokens(model: Any) -> int:
    """Return how many picture tokens a language model reads for the banner's tiles."""
    return banner_pieces(model) * int(model.processor.tokens_per_tile)


def cache_bytes(part: Part) -> int:
    """Return the bytes of one token's keys and values in 16 bits, in a traced language model."""
    shapes = [part.example_inputs[name].shape for name in part.cache]
    return sum(2 * heads * size for _, heads, _, size in shapes)


def tokens_until_less(series: dict[str, dict[int, float]]) -> int:
    """Return from how many tokens on the first of two models keeps less than the second.

    `series` says how much each keeps after 100 and after 1000 tokens; both grow evenly.
    """
    slopes = [(sizes[1000] - sizes[100]) / 900 for sizes in series.values()]
    fixed = [sizes[100] - 100 * slope for sizes, slope in zip(series.values(), slopes, strict=True)]
    equal = (fixed[0] - fixed[1]) / (slopes[1] - slopes[0])
    return math.floor(equal + 1e-6) + 1


def tile_number(model: Any) -> int:
    """Return how many tiles of its canvas a model uses for the banner."""
    return int(model.image_inputs([BANNER])["aspect_ratio_mask"].sum())


def picture_bytes(original: Any, *, summaries: int = 1) -> int:
    """Return the bytes of a picture's keys and values in 16 bits, for cross-attention.

    A tile has a vector for each patch, and `summaries` for all of it.
    """
    texts, vision = original.config["text_config"], original.config["vision_config"]
    vectors = (vision["image_size"] // vision["patch_size"]) ** 2 + summaries
    head_size = texts["hidden_size"] // texts["num_attention_heads"]
    width = texts["num_key_value_heads"] * head_size
    layers = len(texts["cross_attention_layers"])
    tokens: int = vision["max_num_tiles"] * vectors
    return 2 * 2 * int(width) * tokens * layers


def best_power(activations: Tensor, weight: Tensor, rounded: Callable[..., Tensor]) -> float:
    """Return the power, in tenths, with which AWQ by hand loses least of a layer's output.

    The columns of `weight` (outputs, inputs) are multiplied by that power of their mean activation,
    `rounded` in groups of 32, and divided again.
    """
    mean_size = activations.abs().mean(0).clamp(min=1e-6)

    def error(power: float) -> float:
        factor = mean_size**power
        difference = rounded(weight * factor, 32) / factor - weight
        return float((activations @ difference.T).norm())

    return min((tenths / 10 for tenths in range(11)), key=error)


def likeliest_temperature(answers: Answers) -> float:
    """Return the temperature at which the best token of a first answer is most probable."""
    logits = answers.first_logits[0]
    return max(TEMPERATURES, key=lambda value: (logits / value).softmax(-1).max().item())


def least_side(slicing: Slicing) -> int:
    """Return the side of the smallest square that is cut into slices."""
    return next(side for side in count(1) if slices.best_grid(side, side, slicing))


def row_half(encoder: Any) -> str:
    """Return which half of the positions' waves tells two rows of a column apart."""
    upper, lower = encoder.resampler.positions(2, 1)
    half = len(upper) // 2
    return "second" if torch.equal(upper[:half], lower[:half]) else "first"


def way_of_one_token(pipeline: VisionLanguagePipeline, picture: Image.Image) -> str:
    """Return which way of decoding gives what sampling from one token gives."""
    question = ("What do you see?", [picture])
    sampled = pipeline.ask(*question, do_sample=True, top_k=1, temperature=2.0, seed=1)
    same = sampled.text == pipeline.ask(*question).text
    return "greedy search" if same else "beam search"


def banner_places(processor: Any) -> tuple[Tensor, Tensor]:
    """Return which tokens of a question are the banner's, and the positions of all tokens."""
    inputs = processor.image_inputs([TOKEN_BANNER])
    ids = processor.input_ids([user_message("Read it.", 1)], inputs)
    return processor.picture_positions(ids)[0], processor.position_ids(ids, inputs)[0, 0]


def banner_tokens(processor: Any) -> int:
    """Return how many tokens the banner has."""
    return int(banner_places(processor)[0].sum())


def banner_rise(processor: Any) -> int:
    """Return how far positions rise from the token before the banner to the one behind it."""
    is_picture, positions = banner_places(processor)
    indices = is_picture.nonzero()
    return int(positions[indices.max() + 1] - positions[indices.min() - 1])
