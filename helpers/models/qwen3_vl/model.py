"""Qwen3-VL's PyTorch modules: transformers' own, cut into the parts that are exported."""

from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from helpers.graphs.part_names import LANGUAGE_MODEL
from helpers.graphs.parts import Part, cache_names, decoder_example
from helpers.models.families import Family
from helpers.models.qwen3_vl.exported import DeepStackTokens
from helpers.models.qwen3_vl.language_model import Qwen3VLDecoder, Qwen3VLLanguageModel
from helpers.models.qwen3_vl.originals import ORIGINALS, TOKENIZER
from helpers.models.qwen3_vl.processor import Qwen3VLProcessor
from helpers.models.qwen_vision.exported import PictureTokens
from helpers.models.qwen_vision.model import QwenVisionLanguageModel
from helpers.models.qwen_vision.originals import token_ids
from helpers.models.qwen_vision.places import Grid


class Qwen3VL(QwenVisionLanguageModel[Qwen3VLProcessor]):
    """The image encoder with DeepStack, and Qwen3 with positions in three dimensions."""

    processor_class = Qwen3VLProcessor
    language_model: "Qwen3VLLanguageModel"

    def new_image_encoder(self, vision: Any) -> Qwen3VLVisionModel:
        """Return the image encoder that its part of the config describes.

        Raises `CheckpointError` for one without DeepStack.
        """
        _ = self.processor.deepstack_layers  # or it is an error
        return Qwen3VLVisionModel(vision)

    def new_language_model(self, text: Any) -> Qwen3VLLanguageModel:
        """Return the language model that its part of the config describes."""
        return Qwen3VLLanguageModel(text)

    def pictures(self, output: Any, lengths: list[int], grids: list[Grid]) -> list[PictureTokens]:
        """Return the features of pictures, which carry their DeepStack rows and their grid."""
        features = super().pictures(output, lengths, grids)
        rows = torch.split(torch.stack(output.deepstack_features), lengths, dim=1)
        return [
            DeepStackTokens.with_rows(picture.as_subclass(Tensor), picture.grid, layers)
            for picture, layers in zip(features, rows, strict=True)
        ]

    def language_model_part(self) -> Part:
        """Return the language model: positions in three dimensions, and rows of DeepStack."""
        text = self.language_model.config
        heads = text.num_key_value_heads or text.num_attention_heads
        cache = [(heads, text.head_dim)] * text.num_hidden_layers
        example = decoder_example(text.hidden_size, cache)
        batch, new = example["inputs_embeds"].shape[:2]
        names = cache_names(len(cache))
        layers = self.processor.deepstack_layers
        is_picture = torch.zeros(batch, new, dtype=torch.bool)
        is_picture[:, 1:3] = True
        return Part(
            LANGUAGE_MODEL,
            Qwen3VLDecoder(self.language_model),
            {
                "inputs_embeds": example["inputs_embeds"],
                "attention_mask": example["attention_mask"],
                "position_ids": example["position_ids"].expand(3, -1, -1),
                "visual_pos_masks": is_picture,
                "deepstack_visual_embeds": torch.zeros(layers, 2 * batch, text.hidden_size),
                **{name: example[name] for name in names},
            },
            outputs=("logits", *names.values()),
            fixed={
                "inputs_embeds": (2,),
                "position_ids": (0,),
                "deepstack_visual_embeds": (0, 2),
                **dict.fromkeys(names, (1, 3)),
            },
            cache=names,
        )


FAMILY = Family(
    name="qwen3-vl",
    model_type="qwen3_vl",
    model=Qwen3VL,
    bundled="qwen3_vl",
    tokenizer=TOKENIZER,
    vocabulary=(("text_config", "vocab_size"),),
    token_ids=token_ids,
    originals=ORIGINALS,
)
