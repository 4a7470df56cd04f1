"""Qwen3.5's processor: positions count the tokens too."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5Config

from helpers.models.qwen_vision.places import Grid
from helpers.models.qwen_vision.processor import QwenVisionProcessor


class Qwen3_5Processor(QwenVisionProcessor):
    """Pictures and prompts of Qwen3.5."""

    settings_class = Qwen3_5Config

    def positions_around(self, input_ids: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Return positions (4, batch, length): tokens counted, then in time, down and across."""
        positions = super().positions_around(input_ids, grids)
        counted = torch.ones_like(input_ids).cumsum(1) - 1
        return torch.cat([counted[None], positions])
