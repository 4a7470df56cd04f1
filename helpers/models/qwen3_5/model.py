"""Qwen3.5's PyTorch modules: transformers' own, cut into the parts that are exported."""

from typing import Any

from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5ForCausalLM, Qwen3_5VisionModel

from helpers.graphs.parts import Part
from helpers.models.families import Family
from helpers.models.qwen3_5.language_model import (
    SENSITIVE_LAYERS,
    language_model_part,
    new_language_model,
)
from helpers.models.qwen3_5.originals import ORIGINALS, TOKENIZER
from helpers.models.qwen3_5.processor import Qwen3_5Processor
from helpers.models.qwen_vision.model import QwenVisionLanguageModel
from helpers.models.qwen_vision.originals import token_ids


class Qwen3_5(QwenVisionLanguageModel[Qwen3_5Processor]):
    """The image encoder, and a language model most of whose layers are linear attention."""

    processor_class = Qwen3_5Processor
    language_model: Qwen3_5ForCausalLM
    left_out = (*QwenVisionLanguageModel.left_out, "mtp.{x}")  # it guesses several tokens ahead
    sensitive_layers = SENSITIVE_LAYERS

    def new_image_encoder(self, vision: Any) -> Qwen3_5VisionModel:
        """Return the image encoder that its part of the config describes."""
        return Qwen3_5VisionModel(vision)

    def new_language_model(self, text: Any) -> Qwen3_5ForCausalLM:
        """Return the language model that its part of the config describes."""
        return new_language_model(text)

    def language_model_part(self) -> Part:
        """Return the language model with the states of all its layers."""
        return language_model_part(self.language_model)


FAMILY = Family(
    name="qwen3-5",
    model_type="qwen3_5",
    model=Qwen3_5,
    bundled="qwen3_5",
    tokenizer=TOKENIZER,
    vocabulary=(("text_config", "vocab_size"),),
    token_ids=token_ids,
    originals=ORIGINALS,
)
