"""Weights that are no numbers, told before they become a model that answers nothing."""

from pathlib import Path
from typing import Any

import torch

from helpers.errors import CheckpointError
from helpers.graphs.parts import Part
from helpers.models.base import VisionLanguageModel


def check_numbers(model: VisionLanguageModel[Any], part: Part, checkpoint: Path) -> None:
    """Raise a `CheckpointError` where weights of a part are NaN or infinite.

    Fine-tuning in 16 bits leaves such when it overflows, and a model of them answers `!!!!`.
    """
    strange = [name for name, tensor in part.module.named_parameters() if not _is_finite(tensor)]
    if strange:
        originals = model.original_tensors(checkpoint).items()
        names = [name for name, tensor in originals if not _is_finite(tensor)] or strange
        more = f" and {len(names) - 1} more tensors" if names[1:] else ""
        raise CheckpointError(
            f"{names[0]}{more} of {checkpoint} holds values that are NaN or infinite, so the model "
            "would answer nothing that makes sense; download it again, or take an earlier state of "
            "its training."
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(value.isfinite()) for value in torch.aminmax(tensor))  # both, if one is NaN
