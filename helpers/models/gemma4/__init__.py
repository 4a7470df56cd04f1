"""Gemma 4: embeddings for every layer that stay on disk, windows, shared keys and values.

A picture keeps its shape and becomes as many patches as its budget has room for; squares of them
become one token each. The lower layers have keys and values of their own, most of them in a window;
the upper ones attend to those of the last lower layer of their kind. The layout of the authors'
checkpoints is that of transformers' `Gemma4ForConditionalGeneration`.

What this package does not know: audio and video, pictures whose tokens see each other in both
directions (26B, 31B), and `gemma4_unified` (12B).
"""

from helpers.models.gemma4.model import FAMILY, Gemma4
from helpers.models.gemma4.processor import Gemma4Processor

__all__ = ["FAMILY", "Gemma4", "Gemma4Processor"]
