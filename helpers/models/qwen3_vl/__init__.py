"""Qwen3-VL: pictures of any size, DeepStack, positions in three dimensions, video.

Pictures are those of `qwen_vision`. The layout of the authors' checkpoints is that of
transformers' `Qwen3VLForConditionalGeneration`.

What this package does not know: mixtures of experts (`qwen3_vl_moe`), which are refused.
"""

from helpers.models.qwen3_vl.model import FAMILY, Qwen3VL
from helpers.models.qwen3_vl.processor import Qwen3VLProcessor

__all__ = ["FAMILY", "Qwen3VL", "Qwen3VLProcessor"]
