"""Llama-3.2-Vision: the language model attends to the picture through cross-attention.

No token of the prompt stands for a piece of the picture. Some layers of the language model attend
to the picture's states instead of the text before; their keys and values are computed once for
each picture. Source of the layout: Meta's `llama_models` and transformers' mllama, which reads the
hub's files almost as they are; the numbers come from a checkpoint's `config.json`.

What this package does not know: a batch of the exported language model in which some prompts have
pictures and others do not, or different numbers of them.
"""

from helpers.models.mllama.exported import (
    CrossAttentionKeysValues,
    DecoderWithPicture,
    PictureKeysValues,
    cross_names,
    keys_values,
    visible_patches,
)
from helpers.models.mllama.model import FAMILY, Mllama, corrected_vision_fields, text_config
from helpers.models.mllama.processor import IMAGE_TOKEN, MllamaProcessor, PictureStates

__all__ = [
    "FAMILY",
    "IMAGE_TOKEN",
    "CrossAttentionKeysValues",
    "DecoderWithPicture",
    "Mllama",
    "MllamaProcessor",
    "PictureKeysValues",
    "PictureStates",
    "corrected_vision_fields",
    "cross_names",
    "keys_values",
    "text_config",
    "visible_patches",
]
