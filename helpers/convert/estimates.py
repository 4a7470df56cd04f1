"""About how much disk and memory a conversion takes, told before its long work.

What this module does not know: how long it takes.
"""

from pathlib import Path
from typing import Any

import psutil
from torch import nn

from helpers.convert.folders import Report
from helpers.errors import OutputError, SettingsError
from helpers.graphs.part_names import IMAGE_ENCODER, LANGUAGE_MODEL
from helpers.graphs.presets import FP16, Preset, Quantization, Weights
from helpers.models.base import VisionLanguageModel
from helpers.resources import available_memory, free_disk, in_words

# Bytes of the graph's operations for each tensor of weights: 3500 to 7800 in the bundled models.
_GRAPH = 5500
_AT_WORK = 2**28  # bytes
BESIDE_THE_RESULT = 1.5 * 2**30  # bytes that a conversion takes beside the result, measured
# Bytes that looking at samples takes, with NNCF 3.4: for each weight of the part that is run, of
# the largest layer that is fitted, of a part whose activations are rounded (Llama-3.2-Vision's).
_RUNNING, _FITTING, _QUANTIZING = 1, 48, 36


def expected_bytes(model: VisionLanguageModel[Any], preset: Preset) -> int:
    """Return about how many bytes the files of the converted parts will take."""
    language_model, last = model.language_model, model.language_model.lm_head.weight
    tables = {table.weight for table in model.tables.values()} - {last}  # in parts of their own
    bits, tensors, in_8_bits = 0.0, 0, {last, *model.sensitive_weights}
    for part, modules in _modules_by_part(model).items():
        weights = preset.weights_of(part)
        for module in modules:
            for tensor in module.parameters():
                if module is language_model and tensor in tables:
                    continue
                width = weights.bits_of(last_layer=tensor in in_8_bits)
                bits += tensor.numel() * (8 * tensor.itemsize if weights == FP16 else width)
                tensors += 1
    return int(bits) // 8 + _GRAPH * tensors


def expected_memory(model: VisionLanguageModel[Any], preset: Preset) -> int:
    """Return about how many bytes of memory a conversion takes, looking at samples included."""
    sizes = [
        _memory_of_looking(modules, preset.weights_of(part))
        for part, modules in _modules_by_part(model).items()
    ]
    weights = 2 * sum(weights_by_part(model).values())  # bytes in 16 bits
    # Of a small model there is at most a copy in memory, and what libraries take to work on it.
    beside = min(BESIDE_THE_RESULT, weights + _AT_WORK)
    return int(expected_bytes(model, preset) + beside + max(sizes))


def memory_to_convert(parameters: float) -> float:
    """Return about how many bytes converting a model of so many parameters to INT4 takes.

    Measured: the compressed size, 0.62 bytes a parameter, and what a conversion takes beside it.
    """
    return parameters * 0.62 + BESIDE_THE_RESULT


def _memory_of_looking(modules: list[nn.Module], weights: Weights | Quantization) -> int:
    number = sum(map(_weights_in, modules))
    if isinstance(weights, Quantization):
        return _QUANTIZING * number
    if not weights.needs_data:
        return 0
    fitted = [
        layer.weight.numel()
        for module in modules
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and (weights.all_layers or name != "lm_head")
    ]
    largest = max(fitted) if weights.scale_estimation or weights.gptq else 0
    return _RUNNING * number + _FITTING * largest


def _modules_by_part(model: VisionLanguageModel[Any]) -> dict[str, list[nn.Module]]:
    language_model = model.language_model
    return {
        IMAGE_ENCODER: [module for module in model.children() if module is not language_model],
        **{part: [table] for part, table in model.tables.items()},  # parts of their own as well
        LANGUAGE_MODEL: [language_model],
    }


def weights_by_part(model: VisionLanguageModel[Any]) -> dict[str, int]:
    """Return how many weights each part has, by its name; an image encoder of several is one.

    A table that the language model's last layer shares counts in both.
    """
    return {
        part: sum(map(_weights_in, modules)) for part, modules in _modules_by_part(model).items()
    }


def _weights_in(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def check_room(size: int, output: Path, *, memory: int, report: Report) -> None:
    """Tell what a conversion takes, `size` bytes of disk and `memory` bytes, and what there is.

    Raises `OutputError` where the disk is too small, and `SettingsError` where the memory is, the
    swap space counted: then a conversion would end with the system killing it.
    """
    disk = free_disk(output.resolve())
    if size > disk:
        raise OutputError(
            f"The result takes about {in_words(size)}, but only {in_words(disk)} are free "
            f"where {output} is; give a folder on a larger disk or a smaller precision."
        )
    free, swap = available_memory(), psutil.swap_memory().free
    if memory > free + swap:
        raise SettingsError(
            f"The conversion takes about {in_words(memory)} of memory, but only "
            f"{in_words(free + swap)} are free; close other programs, or choose a precision "
            "that needs less."
        )
    report(
        f"about {in_words(size)} of disk and {in_words(memory)} of memory are needed; "
        f"{in_words(disk)} and {in_words(free)} are free"
    )
    if memory > free:
        report("That is more memory than is free without swapping, so it may be very slow.")
