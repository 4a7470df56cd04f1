"""Weights that are no numbers, told before they become a model that answers nothing."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from helpers.errors import CheckpointError


class WeightsError(CheckpointError):
    """Weights are NaN or infinite: fine-tuning in 16 bits leaves such when it overflows.

    A model of them answers `!!!!`. `names` are those of the tensors.
    """

    def __init__(self, names: list[str], place: object) -> None:
        self.names = names
        more = f" (and {len(names) - 1} more)" if names[1:] else ""
        super().__init__(
            f"{names[0]}{more} of {place} holds values that are NaN or infinite, so the model "
            "would answer nothing that makes sense; download it again, or take an earlier state of "
            "its training."
        )


def check_numbers(module: nn.Module, place: str) -> None:
    """Raise a `WeightsError` where parameters of a module are NaN or infinite."""
    if names := not_finite(module.named_parameters()):
        raise WeightsError(names, place)


def not_finite(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of the tensors that hold NaN or an infinite value."""
    return [name for name, tensor in dict(tensors).items() if not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(value.isfinite()) for value in torch.aminmax(tensor))  # both, if one is NaN
