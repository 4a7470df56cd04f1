"""Llama-3.2-Vision's PyTorch modules: transformers' own, with the layers' indices corrected."""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import (
    MllamaForCausalLM,
    MllamaTextConfig,
    MllamaVisionConfig,
    MllamaVisionModel,
    PreTrainedConfig,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.mllama.image_processing_pil_mllama import get_all_supported_aspect_ratios

from helpers.errors import CheckpointError
from helpers.graphs.part_names import IMAGE_ENCODER, LANGUAGE_MODEL
from helpers.graphs.parts import Part, cache_names, decoder_example
from helpers.models.base import VisionLanguageModel
from helpers.models.exported import Features
from helpers.models.families import Family, Original, SmallTokenizer
from helpers.models.mllama.exported import (
    CrossAttentionKeysValues,
    DecoderWithPicture,
    cross_layers,
    cross_names,
    visible_patches,
)
from helpers.models.mllama.processor import IMAGE_TOKEN, MllamaProcessor, PictureStates
from helpers.sources.checkpoints import Config
from helpers.sources.key_mapping import Rule
from helpers.upstream import transformers as upstream

INDICES = "intermediate_layers_indices"
Method = TypeVar("Method", bound=Callable[..., Any])


def with_signature_of(original: Callable[..., Any]) -> Callable[[Method], Method]:
    """Give a method the signature of another one for whoever inspects it, as `generate` does."""
    return cast(Callable[[Method], Method], wraps(original))


class Mllama(VisionLanguageModel[MllamaProcessor]):
    """Two image encoders behind one another, a linear layer, and Llama 3 with cross-attention."""

    processor_class = MllamaProcessor
    image_encoder: MllamaVisionModel
    projector: nn.Linear
    language_model: "MllamaLanguageModel"

    def build(self, config: Config) -> None:
        """Create the image encoder, the projector and the language model."""
        self.config = config = self.processor.config
        vision = upstream.new_config(
            MllamaVisionConfig, **corrected_vision_fields(config["vision_config"])
        )
        _check_shapes(vision)
        text = text_config(config["text_config"])
        if not text.cross_attention_layers:
            raise CheckpointError(
                "cross_attention_layers in config.json names no layer of the language model, which "
                "would see no picture; use a checkpoint of the published kind."
            )
        self.image_encoder = MllamaVisionModel(vision)
        self.projector = nn.Linear(vision.vision_output_dim, text.hidden_size)
        self.language_model = MllamaLanguageModel(text)
        self.language_model.patches = self.image_encoder.num_patches

    @staticmethod
    def reference_config(config: PreTrainedConfig) -> PreTrainedConfig:
        """Return it with the indices of the layers whose states are handed to the text."""
        vision: Any = config.vision_config
        fields = {INDICES: vision.intermediate_layers_indices}
        vision.intermediate_layers_indices = corrected_vision_fields(fields)[INDICES]
        return config

    def rules(self) -> list[Rule]:
        """Return the hub's names, then those of transformers' modules, in which it may save too."""
        return [
            Rule("vision_model.{x}", "image_encoder.{x}"),
            Rule("multi_modal_projector.{x}", "projector.{x}"),
            Rule("language_model.{x}", "language_model.{x}"),
            Rule("model.vision_model.{x}", "image_encoder.{x}"),
            Rule("model.multi_modal_projector.{x}", "projector.{x}"),
            Rule("model.language_model.{x}", "language_model.model.{x}"),
            Rule("lm_head.{x}", "language_model.lm_head.{x}"),
        ]

    def encode_images(
        self, pixel_values: Tensor, aspect_ratio_ids: Tensor, aspect_ratio_mask: Tensor
    ) -> PictureStates:
        """Return for each picture the states that the text attends to, (tiles, patches, hidden)."""
        states = self.image_encoder(pixel_values, aspect_ratio_ids, aspect_ratio_mask)
        states = self.projector(states.last_hidden_state).flatten(0, 1)
        return PictureStates(states, aspect_ratio_mask.sum(-1).flatten().tolist())

    def squares(self, features: Features) -> Tensor:
        """Return the patches of tiles that make a square, row by row, (pictures, patches, hidden).

        The state of the whole tile, which is in front of its patches, is left out.
        """
        tiles = cast(PictureStates, features).tiles
        pairs = zip(features, tiles, strict=True)
        return torch.stack([_join_tiles(states[:number, 1:]) for states, number in pairs])

    def prepare(
        self,
        input_ids: Tensor,
        features: Features | None = None,
        cross_attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return all that `forward` takes, as `MllamaProcessor.prepare` says."""
        return self.processor.prepare(input_ids, self.embed_tokens, features, cross_attention_mask)

    def image_encoder_part(self) -> Part:
        """Return what turns pictures into the keys and values of every cross-attention layer."""
        vision = self.image_encoder.config
        layers = len(cross_layers(self.language_model.config))
        pictures, tiles, side = 2, vision.max_num_tiles, cast(int, vision.image_size)
        return Part(
            IMAGE_ENCODER,
            CrossAttentionKeysValues(self),
            {
                "pixel_values": torch.zeros(1, pictures, tiles, 3, side, side),
                "aspect_ratio_ids": torch.ones(1, pictures, dtype=torch.int64),
                "aspect_ratio_mask": torch.ones(1, pictures, tiles, dtype=torch.int64),
            },
            outputs=tuple(cross_names(layers)),
            fixed={
                "pixel_values": (0, 2, 3, 4, 5),
                "aspect_ratio_ids": (0,),
                "aspect_ratio_mask": (0, 2),
            },
        )

    def language_model_part(self) -> Part:
        """Return the language model: cross-attention keys and values are inputs of their own."""
        text, tiles = self.language_model.config, self.image_encoder.config.max_num_tiles
        cross_count = len(cross_layers(text))
        layers = text.num_hidden_layers - cross_count
        heads, head_size = text.num_key_value_heads, text.hidden_size // text.num_attention_heads
        example = decoder_example(text.hidden_size, [(heads, head_size)] * layers)
        batch, new = example["inputs_embeds"].shape[:2]
        keys = torch.zeros(batch, heads, 2 * tiles * self.image_encoder.num_patches, head_size)
        names = cache_names(layers)
        return Part(
            LANGUAGE_MODEL,
            DecoderWithPicture(self.language_model, self.image_encoder.num_patches),
            {
                **{name: value for name, value in example.items() if name not in names},
                "cross_attention_mask": torch.ones(batch, new, 2, tiles, dtype=torch.int64),
                "has_picture": torch.ones(1),
                **dict.fromkeys(cross_names(cross_count), keys),
                **{name: example[name] for name in names},
            },
            outputs=("logits", *names.values()),
            fixed={
                "inputs_embeds": (2,),
                "cross_attention_mask": (3,),
                "has_picture": (0,),
                **dict.fromkeys(cross_names(cross_count), (1, 3)),
                **dict.fromkeys(names, (1, 3)),
            },
            cache=names,
        )


class MllamaLanguageModel(MllamaForCausalLM):
    """transformers' language model with a mask by tiles, which `generate` makes longer.

    transformers has that only in the class that has the image encoder too. `patches` is the number
    of patches of a tile.
    """

    patches: int

    # `generate` reads signatures to know what it may hand on.
    @with_signature_of(MllamaForCausalLM.forward)
    def forward(
        self, *args: Any, cross_attention_mask: Tensor | None = None, **inputs: Any
    ) -> CausalLMOutputWithPast:
        """Return the output; the mask (batch, length, pictures, tiles) is for this call's tokens.

        All else is as `MllamaForCausalLM` has it.
        """
        if cross_attention_mask is not None:
            visible_mask, has_visible_tile = visible_patches(cross_attention_mask, self.patches)
            inputs |= {
                "cross_attention_mask": visible_mask,
                "full_text_row_masked_out_mask": has_visible_tile.to(self.dtype),
            }
        return cast(CausalLMOutputWithPast, super().forward(*args, **inputs))

    @with_signature_of(MllamaForCausalLM.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the inputs of one call; a new token attends to the pictures of the last one."""
        mask: Tensor | None = kwargs.pop("cross_attention_mask", None)
        states: Tensor | None = kwargs.pop("cross_attention_states", None)
        parent: Any = super()  # transformers annotates the method for a class of its type checks
        prepared: dict[str, Any] = parent.prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if mask is None:
            return prepared
        if kwargs.get("is_first_iteration"):  # later the cache has the pictures' keys and values
            return prepared | {"cross_attention_mask": mask, "cross_attention_states": states}
        return prepared | {"cross_attention_mask": mask[:, -1:]}


def text_config(fields: Config) -> MllamaTextConfig:
    """Return the language model's configuration."""
    with upstream.no_rope_warnings():
        return upstream.new_config(MllamaTextConfig, **fields)


def _join_tiles(tiles: Tensor) -> Tensor:
    """Return the patches of tiles (tiles, patches, hidden) that make a square, row by row."""
    rows, side = math.isqrt(tiles.shape[0]), math.isqrt(tiles.shape[1])
    square = torch.unflatten(torch.unflatten(tiles, 1, (side, side)), 0, (rows, rows))
    return square.transpose(1, 2).flatten(0, 3)


def _check_shapes(vision: MllamaVisionConfig) -> None:
    """Raise a `CheckpointError` where fewer shapes of canvases are learned than pictures get."""
    needed = len(get_all_supported_aspect_ratios(vision.max_num_tiles))
    if vision.max_aspect_ratio_id < needed:
        raise CheckpointError(
            f"supported_aspect_ratios in config.json names {vision.max_aspect_ratio_id} shapes, "
            f"and {vision.max_num_tiles} tiles lie in {needed}; use a checkpoint of the published "
            "kind."
        )


def corrected_vision_fields(fields: Config) -> Config:
    """Return the vision configuration with which transformers collects the states that Meta does.

    `intermediate_layers_indices` are layers whose inputs are handed to the text. Where
    transformers takes their outputs, each index is one too high.
    """
    if not upstream.MLLAMA_COLLECTS_OUTPUTS:
        return fields
    indices = [index - 1 for index in fields[INDICES]]
    if min(indices, default=0) < 0:
        raise CheckpointError(
            "intermediate_layers_indices in config.json asks for the input of layer 0, which this "
            "release of transformers cannot hand on; install a release that can."
        )
    return fields | {INDICES: indices}


# The families' register

# The words of the published form.
CHAT_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
{{- "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" }}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for part in message.content %}
{{- "<|image|>" if part.type == "image" else part.text }}
{%- endfor %}
{%- endif %}
{{- "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""
_TOKENIZER = SmallTokenizer("llama3", ("user\n\n", "assistant\n\n"), (IMAGE_TOKEN,), CHAT_TEMPLATE)
FAMILY = Family(
    name="llama-3.2-vision",
    model_type="mllama",
    model=Mllama,
    bundled="mllama",
    tokenizer=_TOKENIZER,
    vocabulary=(("text_config", "vocab_size"), ("image_token_index",)),
    originals=(
        Original(
            "llama-3.2-vision",
            "meta-llama/Llama-3.2-11B-Vision-Instruct",
            "Llama 3.2 Community License, to be accepted on its page",
            10.67,
            _TOKENIZER,
            token_ids=lambda size: {"image_token_index": size},
            picture=(1120, 1120),
        ),
    ),
)
