"""MiniCPM-V 4.6: slices whose tokens are merged in the middle of the image encoder, and Qwen3.5.

Pictures are cut as MiniCPM-V-2 cuts them, and the language model is Qwen3.5's. New is the image
encoder: after a few layers it merges 2 x 2 patches into one token, and its projector merges 2 x 2
of those. The first merge can be left out, which gives four times as many tokens; `picture_tokens`
decides. The layout is that of transformers' `MiniCPMV4_6ForConditionalGeneration`.

What this package does not know: videos, and MiniCPM-V 4.5 and 4.7, which have other model types.
"""

from helpers.models.minicpm_v4_6.model import FAMILY, MiniCPMV4_6
from helpers.models.minicpm_v4_6.processor import MiniCPMV4_6Processor

__all__ = ["FAMILY", "MiniCPMV4_6", "MiniCPMV4_6Processor"]
