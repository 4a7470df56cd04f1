"""Qwen3-VL: pictures of any size, DeepStack, positions in three dimensions, video.

A picture is not cut into tiles: it becomes as many patches as it has room for, and one image
encoder takes any number of them. What depends on a picture's size, where its patches are, is
computed outside of the graph and passed in. The layout of the authors' checkpoints is that of
transformers' `Qwen3VLForConditionalGeneration`.

What this package does not know: mixtures of experts (`qwen3_vl_moe`), which are refused.
"""

from helpers.models.qwen3_vl.model import FAMILY, Qwen3VL
from helpers.models.qwen3_vl.processor import Qwen3VLProcessor

__all__ = ["FAMILY", "Qwen3VL", "Qwen3VLProcessor"]
