"""Qwen3.5: three of four layers keep a matrix and a short convolution instead of a growing cache.

Pictures are those of `qwen_vision`, without DeepStack. The layout of the authors' checkpoints is
that of transformers' `Qwen3_5ForConditionalGeneration`; the weights of the layer that guesses
several tokens ahead (`mtp.*`) are left out, as there.

What this package does not know: mixtures of experts (`qwen3_5_moe`), which are refused.
"""

from helpers.models.qwen3_5.model import FAMILY, Qwen3_5
from helpers.models.qwen3_5.processor import Qwen3_5Processor

__all__ = ["FAMILY", "Qwen3_5", "Qwen3_5Processor"]
