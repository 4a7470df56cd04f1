"""Gemma 4's PyTorch modules: transformers' own, cut into the parts that are exported."""

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.gemma4.modeling_gemma4 import Gemma4MultimodalEmbedder, Gemma4VisionModel

from helpers.graphs.part_names import (
    IMAGE_ENCODER,
    LANGUAGE_MODEL,
    PER_LAYER_EMBEDDINGS,
)
from helpers.graphs.parts import Part, cache_names, decoder_example
from helpers.graphs.tables import Table
from helpers.models.base import VisionLanguageModel
from helpers.models.embeddings import ScaledEmbedding, is_tied
from helpers.models.families import Family
from helpers.models.gemma4.encoder import PictureEncoder
from helpers.models.gemma4.exported import FULL, SLIDING
from helpers.models.gemma4.language_model import Gemma4Decoder, Gemma4LanguageModel
from helpers.models.gemma4.originals import ORIGINALS, TOKENIZER, token_ids
from helpers.models.gemma4.processor import Gemma4Processor
from helpers.sources.checkpoints import Config
from helpers.sources.key_mapping import Rule

_KEYS_AND_VALUES = ("k_proj", "v_proj", "k_norm", "v_norm")


class Gemma4(VisionLanguageModel[Gemma4Processor]):
    """Gemma 4's image encoder, and a language model with embeddings for every layer."""

    processor_class = Gemma4Processor
    unused_parts = MappingProxyType(
        {"hearing (the audio tower)": ("model.audio_tower.", "model.embed_audio.")}
    )
    prefix = "model."
    image_encoder: Gemma4VisionModel
    projector: Gemma4MultimodalEmbedder
    language_model: Gemma4LanguageModel

    def build(self, config: Config) -> None:
        """Create the image encoder, its projector and the language model."""
        settings, text = self.processor.settings, self.processor.text
        text.tie_word_embeddings = is_tied(settings)
        self.image_encoder = Gemma4VisionModel(self.processor.vision)
        self.projector = Gemma4MultimodalEmbedder(self.processor.vision, text)
        self.language_model = Gemma4LanguageModel(text)

    def rules(self) -> list[Rule]:
        """Return the hub's names, which are transformers' own."""
        return [
            Rule("model.vision_tower.{x}", "image_encoder.{x}"),
            Rule("model.embed_vision.{x}", "projector.{x}"),
            Rule("model.language_model.{x}", "language_model.model.{x}"),
            Rule("lm_head.{x}", "language_model.lm_head.{x}"),
        ]

    def original_tensors(self, folder: Path) -> dict[str, Tensor]:
        """Return the tensors that are used: no keys of layers that share those of others."""
        layers = range(self.processor.first_sharing_layer, self.processor.text.num_hidden_layers)
        unused = tuple(
            f"model.language_model.layers.{layer}.self_attn.{name}."
            for layer in layers
            for name in _KEYS_AND_VALUES
        )
        tensors = super().original_tensors(folder).items()
        return {name: tensor for name, tensor in tensors if not name.startswith(unused)}

    @property
    def per_layer_embeddings(self) -> ScaledEmbedding:
        """The table of what each layer gets of a token."""
        return cast(ScaledEmbedding, cast(Any, self.language_model.model).embed_tokens_per_layer)

    @property
    def tables(self) -> dict[str, nn.Embedding]:
        """Both tables of embeddings."""
        return super().tables | {PER_LAYER_EMBEDDINGS: self.per_layer_embeddings}

    @property
    def _row_shape(self) -> tuple[int, int]:
        """How many layers there are, and how many numbers each gets of a token."""
        text = self.processor.text
        return text.num_hidden_layers, text.hidden_size_per_layer_input

    def encode_images(self, pixel_values: Tensor, image_position_ids: Tensor) -> list[Tensor]:
        """Return the features (tokens, hidden) of each picture."""
        states = self.image_encoder(pixel_values, pixel_position_ids=image_position_ids)
        features = self.projector(states.last_hidden_state)
        counts = self.processor.exported.token_counts(image_position_ids)
        return list(torch.split(features, counts))

    def prepare(self, input_ids: Tensor, features: Any = None) -> dict[str, Tensor]:
        """Return what `forward` takes, with `per_layer_inputs` (batch, length, layers, size)."""
        rows = self.per_layer_embeddings(self.processor.text_ids(input_ids))
        per_layer = rows.unflatten(-1, self._row_shape)
        return super().prepare(input_ids, features) | {"per_layer_inputs": per_layer}

    def attention_masks(self, visible: Tensor, position_ids: Tensor) -> dict[str, Tensor]:
        """Return a mask for each kind of layer: one for all tokens, one for those in a window."""
        distance = position_ids[:, None, :, None] - position_ids[:, None, None]
        near = distance < self.processor.text.sliding_window
        return {FULL: visible, SLIDING: visible & near}

    # What is exported

    def parts(self) -> Iterator[Part | Table]:
        """Yield what is exported; the per-layer embeddings are a table that stays on disk."""
        yield self.image_encoder_part()
        yield self.text_embeddings_part()
        yield self.per_layer_embeddings_part()
        yield self.language_model_part()

    def image_encoder_part(self) -> Part:
        """Return the image encoder with its projector."""
        vision = self.processor.vision
        side = vision.pooling_kernel_size
        columns, rows = 3 * side, 2 * side
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(-1)
        return Part(
            IMAGE_ENCODER,
            PictureEncoder(self.image_encoder, self.projector),
            {
                "pixel_values": torch.zeros(2, rows * columns, 3 * vision.patch_size**2),
                "image_position_ids": places.expand(2, -1, -1).contiguous(),
            },
            outputs=("last_hidden_state",),
            fixed={"pixel_values": (2,), "image_position_ids": (2,)},
        )

    def per_layer_embeddings_part(self) -> Table:
        """Return the table of per-layer embeddings."""
        table = self.per_layer_embeddings
        return Table(
            PER_LAYER_EMBEDDINGS,
            table.weight,
            self._row_shape,
            factor=table.factor,
            output="per_layer_inputs",
            replaced=dict.fromkeys(
                self.processor.marks_without_embeddings, self.processor.text.pad_token_id or 0
            ),
        )

    def language_model_part(self) -> Part:
        """Return the language model; layers that share keys and values have no cache."""
        text = self.processor.text
        owners = range(self.processor.first_sharing_layer)
        layers = [text.per_layer_config[layer] for layer in owners]
        cache = [(layer.num_key_value_heads, layer.head_dim) for layer in layers]
        example = decoder_example(text.hidden_size, cache)
        names = cache_names(len(cache))
        batch, new = example["inputs_embeds"].shape[:2]
        return Part(
            LANGUAGE_MODEL,
            Gemma4Decoder(self.language_model),
            {
                "inputs_embeds": example.pop("inputs_embeds"),
                "per_layer_inputs": torch.zeros(batch, new, *self._row_shape),
                **example,
            },
            outputs=("logits", *names.values()),
            fixed={"inputs_embeds": (2,), "per_layer_inputs": (2, 3)}
            | dict.fromkeys(names, (1, 3)),
            cache=names,
        )


FAMILY = Family(
    name="gemma-4",
    model_type="gemma4",
    model=Gemma4,
    bundled="gemma4",
    tokenizer=TOKENIZER,
    vocabulary=(
        ("text_config", "vocab_size"),
        ("text_config", "vocab_size_per_layer_input"),
    ),
    token_ids=token_ids,
    originals=ORIGINALS,
)
