"""An image encoder whose activations have 8 bits too: what it is calibrated on, and its error.

What this module does not know: image encoders that take pictures of any size; in those the ranges
of activations belong to a size.
"""

import random
from collections.abc import Sequence
from typing import Any

import openvino as ov
import torch
from PIL import Image
from torch import Tensor

from helpers.convert.calibration import HELD_OUT, PROMPT, Inputs, encoder_inputs
from helpers.convert.folders import Report
from helpers.errors import SettingsError
from helpers.graphs.compression import compress
from helpers.graphs.core import ACCURACY, compile_model, has_one_size
from helpers.graphs.part_names import IMAGE_ENCODER
from helpers.graphs.presets import INT8, Preset, Quantization
from helpers.graphs.tracing import input_shapes
from helpers.inputs.questions import Sample
from helpers.models.base import VisionLanguageModel
from helpers.models.processors import Processor
from helpers.shapes.charts import draw_chart, random_chart
from helpers.shapes.world import draw, random_scene

_SIZES = ((640, 480), (480, 640), (448, 448), (900, 400))


def varied_pictures(number: int, *, seed: int = 0) -> list[Sample]:
    """Return drawn pictures of several sizes: shapes, words, charts, gradients with noise.

    They are what calibration looks at when no photographs are given. An original checkpoint has
    learned from photographs, whose activations may lie in wider ranges than those of drawings.
    """
    generator = random.Random(seed)
    samples: list[Sample] = []
    for index in range(number):
        size = _SIZES[index // 3 % len(_SIZES)]
        if index % 3 == 0:
            picture = draw(random_scene(generator, "train"), cell=generator.randint(96, 320))
        elif index % 3 == 1:
            picture = draw_chart(random_chart(generator)).resize(size)
        else:
            picture = _noisy_gradient(size, generator)
        samples.append((picture, PROMPT))
    return samples


def _noisy_gradient(size: tuple[int, int], generator: random.Random) -> Image.Image:
    """Return a picture that has all colours, smooth in some places and rough in others."""
    seed = torch.Generator().manual_seed(generator.randrange(2**31))
    width, height = size
    corners = torch.rand(1, 3, 2, 2, generator=seed)
    rough = torch.randn(1, 3, height // 8, width // 8, generator=seed) * 0.2
    smooth, noise = (
        torch.nn.functional.interpolate(part, size=(height, width), mode="bilinear")
        for part in (corners, rough)
    )
    values = ((smooth + noise)[0].clamp(0, 1) * 255).byte()
    return Image.fromarray(values.movedim(0, -1).numpy())


def quantized_encoder(
    part: ov.Model,
    setting: Quantization,
    processor: Processor,
    samples: Sequence[Sample],
    *,
    report: Report,
) -> ov.Model:
    """Return a converted image encoder with weights and activations in 8 bits.

    It is calibrated on `samples`, or on drawn pictures if there are none. `report` is told how far
    its features are from those in 16 bits, beside weights in 8 bits alone, on pictures that were
    held out. The image encoder is one that `check_image_encoder` lets pass.
    """
    samples, others = split(samples, setting.samples)
    report(f"{IMAGE_ENCODER}: looking at {len(samples)} pictures, to calibrate it")
    calibration = list(encoder_inputs(part, processor, samples))
    held_out = list(encoder_inputs(part, processor, others))
    expected = _features(part, held_out)
    weights_only = _distance(_features(compress(part.clone(), INT8), held_out), expected)
    encoder = compress(part, setting, calibration)
    distance = _distance(_features(encoder, held_out), expected)
    report(
        f"{IMAGE_ENCODER}: features of {len(others)} other pictures differ from those in 16 bits "
        f"by {distance:.1%}, with weights alone in 8 bits by {weights_only:.1%}"
    )
    return encoder


def split(samples: Sequence[Sample], number: int) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Return at most `number` pictures to calibrate on, and those to measure the error on.

    Of the reader's pictures, up to `HELD_OUT` are of the second sort, at most a quarter; with fewer
    than four, all are looked at, and the error is measured on drawn ones.
    """
    if not samples:
        return varied_pictures(number), varied_pictures(HELD_OUT, seed=1)
    calibrated = min(number, len(samples) - min(HELD_OUT, len(samples) // 4))
    others = samples[calibrated:][:HELD_OUT]
    return samples[:calibrated], others or varied_pictures(HELD_OUT, seed=1)


def check_image_encoder(model: VisionLanguageModel[Any], preset: Preset) -> None:
    """Raise `SettingsError` where activations are to be quantised for pictures of any size.

    The model needs no weights, so that it is told before long work. Calls of changing sizes with
    quantised activations have ended processes where the processor has AMX (openvino#37577).
    """
    if not isinstance(preset.weights_of(IMAGE_ENCODER), Quantization):
        return
    if not has_one_size(input_shapes(model.image_encoder_part()).values()):
        raise SettingsError(
            "This model's image encoder takes pictures of any size, and activations in 8 bits "
            "are for tiles of one size; choose int8 for it."
        )


def _features(part: ov.Model, calls: Sequence[Inputs]) -> Tensor:
    """Return all that an image encoder gives for these calls, behind one another."""
    request = compile_model(part, "CPU", **ACCURACY).create_infer_request()
    outputs = [values for call in calls for values in request.infer(call).to_tuple()]
    return torch.cat([torch.from_numpy(values).float().flatten() for values in outputs])


def _distance(features: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, in parts of the norm of what is expected."""
    return float((features - expected).norm() / expected.norm())
