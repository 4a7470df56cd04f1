"""Llama-3.2-Vision as it is exported: a picture's keys and values are computed once, and kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, MllamaForCausalLM, MllamaTextConfig
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import create_causal_mask
from transformers.models.mllama.modeling_mllama import (
    MllamaCrossAttentionDecoderLayer,
    MllamaTextCrossAttention,
)

from helpers.graphs.part_names import IMAGE_ENCODER
from helpers.graphs.parts import cache_of, cache_tensors
from helpers.models.exported import (
    ExportedParts,
    Features,
    ImageInputs,
    PictureInputs,
    RunPart,
)
from helpers.upstream.transformers import cache_argument

if TYPE_CHECKING:
    from helpers.models.mllama.model import Mllama
    from helpers.models.mllama.processor import MllamaProcessor


def cross_names(layers: int) -> list[str]:
    """Return the names of the pictures' keys and values for each cross-attention layer."""
    return [f"cross.{n}.{kind}" for n in range(layers) for kind in ("key", "value")]


def visible_patches(cross_attention_mask: Tensor, patches: int) -> tuple[Tensor, Tensor]:
    """Return which patches a token attends to, and whether it has a visible tile at all.

    The mask (batch, length, pictures, tiles) becomes (batch, 1, length, all patches), and the
    second result is (batch, 1, length, 1); both are booleans. Tokens before the first picture
    attend to everything, so that their softmax has a sum: the authors' models were trained so,
    and leave out only such tokens' MLP.
    """
    batch, length, pictures, tiles = cross_attention_mask.shape
    visible_mask = cross_attention_mask.bool()[..., None].expand(-1, -1, -1, -1, patches)
    # With every size given: without a picture, none can be computed from the others.
    visible_mask = visible_mask.reshape(batch, 1, length, pictures * tiles * patches)
    has_visible_tile = cross_attention_mask.sum((2, 3))[:, None, :, None] > 0
    return visible_mask | ~has_visible_tile, has_visible_tile


@dataclass(frozen=True)
class PictureKeysValues:
    """What the exported image encoder gives of one picture, and its number of tiles in use.

    Keys and values by name, each (1, heads, tiles * patches, head size), unused tiles included.
    """

    tiles: int
    keys_values: dict[str, Tensor]


class MllamaExported(ExportedParts):
    """The exported parts: a picture is its keys and values, handed to the language model once."""

    processor: "MllamaProcessor"

    @property
    def kept_inputs(self) -> list[str]:
        """The keys and values of the pictures, which stay the same for all tokens."""
        return cross_names(len(self.processor.config["text_config"]["cross_attention_layers"]))

    def encode_images(self, run: RunPart, image_inputs: ImageInputs) -> list[PictureKeysValues]:
        """Return each picture's keys and values."""
        tiles = image_inputs["aspect_ratio_mask"].sum(-1).flatten().tolist()
        outputs = {
            name: value.chunk(len(tiles), 2)
            for name, value in run(IMAGE_ENCODER, image_inputs).items()
        }
        return [
            PictureKeysValues(number, {name: chunks[index] for name, chunks in outputs.items()})
            for index, number in enumerate(tiles)
        ]

    def merged_features(self, features: Features | None) -> list[Tensor]:
        """Return nothing: a picture takes no places of the prompt."""
        return []

    def picture_inputs(self, input_ids: Tensor, features: Features | None) -> PictureInputs:
        """Return the pictures' keys and values and which tokens attend to them.

        Without `features` there are none of them, and `has_picture` is 0.
        """
        pictures: list[PictureKeysValues] = [] if features is None else list(features)
        if pictures:
            tiles = [picture.tiles for picture in pictures]
            mask = self.processor.cross_attention_mask(input_ids, tiles)
        else:
            most_tiles = self.processor.config["vision_config"]["max_num_tiles"]
            mask = torch.zeros(*input_ids.shape, 0, most_tiles)
        fixed = self._joined(pictures or [self._no_picture()])
        fixed["has_picture"] = torch.full((1,), float(bool(pictures)))
        along = {"cross_attention_mask": mask.to(torch.int64)}
        return PictureInputs(fixed, along)

    @staticmethod
    def _joined(pictures: Sequence[PictureKeysValues]) -> dict[str, Tensor]:
        """Return the keys and values of all pictures by name.

        Those of a single picture stay the same objects, so that they are handed over once.
        """
        if len(pictures) == 1:
            return dict(pictures[0].keys_values)
        return {
            name: torch.cat([picture.keys_values[name] for picture in pictures], dim=2)
            for name in pictures[0].keys_values
        }

    def _no_picture(self) -> PictureKeysValues:
        text = self.processor.config["text_config"]
        size = text["hidden_size"] // text["num_attention_heads"]
        nothing = torch.zeros(1, text["num_key_value_heads"], 0, size)
        return PictureKeysValues(0, dict.fromkeys(self.kept_inputs, nothing))


class CrossAttentionKeysValues(nn.Module):
    """Pictures to the keys and values of every cross-attention layer, computed once a picture.

    Takes the inputs of `Mllama.encode_images`; returns for each layer keys and values, both
    (1, heads, pictures * tiles * patches, head size).
    """

    def __init__(self, model: "Mllama") -> None:
        super().__init__()
        self.image_encoder, self.projector = model.image_encoder, model.projector
        text = model.language_model
        layers = [text.model.layers[index] for index in cross_layers(text.config)]
        self.attentions = nn.ModuleList(layer.cross_attn for layer in layers)

    def forward(
        self, pixel_values: Tensor, aspect_ratio_ids: Tensor, aspect_ratio_mask: Tensor
    ) -> tuple[Tensor, ...]:
        """Return key 0, value 0, key 1, value 1, ..."""
        states = self.image_encoder(pixel_values, aspect_ratio_ids, aspect_ratio_mask)
        states = self.projector(states.last_hidden_state).flatten(1, 3)
        layers = (cast(MllamaTextCrossAttention, layer) for layer in self.attentions)
        return tuple(tensor for layer in layers for tensor in keys_values(layer, states))


def cross_layers(config: MllamaTextConfig) -> list[int]:
    """Return the places of the cross-attention layers among all layers, in their order."""
    return sorted(cast(list[int], config.cross_attention_layers))


def keys_values(attention: MllamaTextCrossAttention, states: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values (1, heads, patches, head size) of `states` (1, patches, hidden)."""
    shape = (attention.num_key_value_heads, attention.head_dim)
    keys = attention.k_norm(attention.k_proj(states).unflatten(-1, shape))
    values = attention.v_proj(states).unflatten(-1, shape)
    return keys.transpose(1, 2), values.transpose(1, 2)


class DecoderWithPicture(nn.Module):
    """The language model as it is traced: the pictures' keys and values are inputs.

    Takes `inputs_embeds` (batch, new, hidden), `attention_mask` (batch, past + new),
    `position_ids` (batch, new), `cross_attention_mask` (batch, new, pictures, tiles),
    `has_picture` (1,), what `CrossAttentionKeysValues` returns for one prompt or several, whose
    rows (beams, say) follow one another, and the past keys and values of each self-attention
    layer. Returns the last position's logits (batch, 1, vocabulary) and the self-attention layers'
    keys and values.

    `has_picture` is 1, or 0 for a conversation without: then a cross-attention layer adds
    nothing. Masking the keys would not do that, since attention to no keys is not zero. The keys
    and values may then be empty, and the mask has no pictures.
    """

    def __init__(self, decoder: MllamaForCausalLM, patches: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.patches = patches
        self.cross_layers = cross_layers(decoder.config)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        cross_attention_mask: Tensor,
        has_picture: Tensor,
        *keys_and_values: Tensor,
    ) -> tuple[Tensor, ...]:
        """Run the decoder on the new positions."""
        pictures = keys_and_values[: 2 * len(self.cross_layers)]
        pairs = zip(pictures[::2], pictures[1::2], strict=True)
        past = self._cache(keys_and_values[2 * len(self.cross_layers) :])
        hidden = self.hidden_states(
            inputs_embeds,
            attention_mask,
            position_ids,
            PictureAttention(cross_attention_mask, self.patches, has_picture),
            dict(zip(self.cross_layers, pairs, strict=True)),
            past,
        )
        return self.decoder.lm_head(hidden[:, -1:]), *cache_tensors(self._own(past).layers)

    def _cache(self, past: Sequence[Tensor]) -> DynamicCache:
        """Return the self-attention layers' cache, with empty places for the other layers."""
        cache = cache_of(past)
        for index in self.cross_layers:
            cache.layers.insert(index, DynamicLayer())
        return cache

    def _own(self, cache: DynamicCache) -> DynamicCache:
        """Return the cache of the self-attention layers alone.

        A mask is as long as the first layer's keys, and that may be a cross-attention layer.
        """
        layers = enumerate(cache.layers)
        self_attention = DynamicCache()
        self_attention.layers = [layer for n, layer in layers if n not in self.cross_layers]
        return self_attention

    def hidden_states(
        self,
        embeddings: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        attention: "PictureAttention",
        pictures: dict[int, tuple[Tensor, Tensor]],
        past: DynamicCache,
    ) -> Tensor:
        """Return the last norm's output, (batch, new, hidden), and fill the cache `past`."""
        text = self.decoder.model
        causal = create_causal_mask(
            config=text.config,
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **cache_argument(create_causal_mask, self._own(past)),
        )
        rotary = text.rotary_emb(embeddings, position_ids=position_ids)
        hidden = embeddings
        for index, layer in enumerate(text.layers):
            if index in pictures:
                hidden = attention.run_layer(layer, hidden, *pictures[index])
            else:
                hidden = layer(
                    hidden,
                    attention_mask=causal,
                    position_embeddings=rotary,
                    **cache_argument(layer.forward, past),
                )
        return cast(Tensor, text.norm(hidden))


class PictureAttention:
    """Cross-attention to the pictures for the tokens of one call."""

    def __init__(self, cross_attention_mask: Tensor, patches: int, has_picture: Tensor) -> None:
        self.visible_mask, has_visible_tile = visible_patches(cross_attention_mask, patches)
        self.has_visible_tile = has_visible_tile[:, 0]
        self.has_picture = has_picture

    def run_layer(
        self, layer: MllamaCrossAttentionDecoderLayer, hidden: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Return a cross-attention layer's output, (batch, new, hidden)."""
        attended = self.attend(layer.cross_attn, layer.input_layernorm(hidden), keys, values)
        hidden = hidden + self._with_picture(layer.cross_attn_attn_gate.tanh() * attended)
        transformed = self.has_visible_tile * layer.mlp(layer.post_attention_layernorm(hidden))
        return hidden + self._with_picture(layer.cross_attn_mlp_gate.tanh() * transformed)

    def _with_picture(self, added: Tensor) -> Tensor:
        """Return what a layer adds, or nothing: chosen, since attention to no keys is not zero."""
        return torch.where(self.has_picture > 0, added, 0.0)

    def attend(
        self, attention: MllamaTextCrossAttention, hidden: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Return attention over the pictures, (batch, new, hidden).

        Query heads that share a key head, and all tokens of a prompt's rows, become rows of one
        matrix: so the keys of a picture, thousands of them, are never repeated.
        """
        heads, groups = attention.num_key_value_heads, attention.num_key_value_groups
        prompts = keys.shape[0]
        queries = attention.q_proj(hidden).reshape(prompts, -1, heads, groups, attention.head_dim)
        queries = attention.q_norm(queries).transpose(1, 2).flatten(2, 3)
        rows = queries.shape[2]
        mask = self.visible_mask.reshape(prompts, rows // groups, 1, keys.shape[2])
        mask = mask.expand(-1, -1, groups, -1).reshape(prompts, 1, rows, keys.shape[2])
        # Not scaled_dot_product_attention: without a growing cache, OpenVINO's CPU plugin makes it
        # operations that transpose and scale all keys for every token.
        scores = (queries * attention.scaling) @ keys.transpose(2, 3)
        scores = scores + torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        attended = scores.softmax(-1) @ values
        attended = attended.unflatten(2, (-1, groups)).transpose(1, 2)
        return cast(Tensor, attention.o_proj(attended.reshape(hidden.shape)))
