"""Qwen3.5's language model as it is traced: all that a layer remembers goes in and comes out."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5DecoderLayer,
    Qwen3_5ForCausalLM,
    Qwen3_5GatedDeltaNet,
)

from helpers.errors import CheckpointError
from helpers.graphs.part_names import LANGUAGE_MODEL
from helpers.graphs.parts import Part, cache_of
from helpers.graphs.recurrence import GatedDeltaRule
from helpers.upstream.transformers import cache_argument, silence_slow_kernels

silence_slow_kernels()

# What a recurrence reads: errors in 4 bits stay in its matrix (docs/next-steps.md has figures).
SENSITIVE_LAYERS = ("in_proj_qkv", "in_proj_a", "in_proj_b")
KINDS = {
    "linear_attention": ("convolution_state", "matrix_state"),
    "full_attention": ("key", "value"),
}


def new_language_model(text: Any) -> Qwen3_5ForCausalLM:
    """Return transformers' language model.

    Raises `CheckpointError` where no layer has a growing cache, by which a prompt's length is told.
    """
    if "full_attention" not in text.layer_types:
        raise CheckpointError(
            "layer_types in config.json names no full_attention, and a language model of "
            "linear attention alone is not read here; use a checkpoint of the published kind."
        )
    return Qwen3_5ForCausalLM(text)


class LinearAttention(nn.Module):
    """One layer of linear attention: a short convolution over time, then the gated delta rule."""

    def __init__(self, layer: Qwen3_5GatedDeltaNet) -> None:
        super().__init__()
        self.layer = layer
        self.rule = GatedDeltaRule()

    def forward(
        self, hidden: Tensor, is_token: Tensor, convolution: Tensor, matrix: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is added to the hidden states, and both states after the last token.

        `is_token` (batch, new, 1) is 0 where there is padding, which leaves the states as they are.
        """
        layer = self.layer
        batch, new = hidden.shape[:2]
        hidden = hidden * is_token
        inputs = torch.cat([convolution, layer.in_proj_qkv(hidden).transpose(1, 2)], dim=-1)
        mixed = nn.functional.conv1d(inputs, layer.conv1d.weight, groups=layer.conv_dim)
        mixed = ACT2FN[layer.activation](mixed[:, :, -new:]).transpose(1, 2)
        sizes = [layer.key_dim, layer.key_dim, layer.value_dim]
        queries, keys, values = torch.split(mixed, sizes, dim=-1)
        # Heads are numbers here, not -1: only so is the loop replaced by one operation.
        queries = queries.reshape(batch, new, layer.num_k_heads, layer.head_k_dim)
        keys = keys.reshape(batch, new, layer.num_k_heads, layer.head_k_dim)
        values = values.reshape(batch, new, layer.num_v_heads, layer.head_v_dim)
        if (group := layer.num_v_heads // layer.num_k_heads) > 1:
            queries = queries.repeat_interleave(group, dim=2)
            keys = keys.repeat_interleave(group, dim=2)
        rate = nn.functional.softplus(layer.in_proj_a(hidden).float() + layer.dt_bias)
        decay = -layer.A_log.float().exp() * rate
        beta = layer.in_proj_b(hidden).sigmoid()
        answers, matrix = self.rule(queries, keys, values, decay, beta, matrix)
        gates = layer.in_proj_z(hidden).reshape(-1, layer.head_v_dim)
        normed = layer.norm(answers.reshape(-1, layer.head_v_dim), gates)
        result = layer.out_proj(normed.reshape(batch, new, layer.value_dim))
        return result, inputs[:, :, -convolution.shape[-1] :], matrix


class _CacheOfLayers:
    """The cache of some layers, by their numbers among all."""

    def __init__(self, cache: Cache, layers: list[int]) -> None:
        self.cache, self.layers = cache, layers

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> Any:
        """Put new keys and values behind a layer's own, and return all of them."""
        return self.cache.update(keys, values, self.layers.index(layer))


class HybridDecoder(nn.Module):
    """The language model as it is traced: what each layer remembers goes in and comes out.

    Takes `inputs_embeds` (batch, new, hidden), `attention_mask` (batch, past + new),
    `position_ids` (4, batch, new), of which the first row is not used, and for each layer its two
    states as `states_of` has them. Returns the logits of the last position, then the states.
    """

    def __init__(self, decoder: Qwen3_5ForCausalLM) -> None:
        super().__init__()
        self.decoder = decoder
        self.linear = nn.ModuleDict(
            {
                str(number): LinearAttention(layer.linear_attn)
                for number, layer in enumerate(self.layers())
                if layer.block_type == "linear_attention"
            }
        )
        self.full = [n for n, _ in enumerate(self.layers()) if str(n) not in self.linear]

    def layers(self) -> Iterator[Qwen3_5DecoderLayer]:
        """Yield the layers in their order."""
        yield from cast(Any, self.decoder.model.layers)

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Run the decoder on the new positions."""
        text = cast(Any, self.decoder.model)
        pairs = list(zip(past[::2], past[1::2], strict=True))
        cache = cache_of([state for number in self.full for state in pairs[number]])
        mask = create_causal_mask(
            config=text.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            **cache_argument(create_causal_mask, cache),
        )
        new = inputs_embeds.shape[1]
        is_token = attention_mask[:, -new:, None].to(inputs_embeds.dtype)
        rotation = text.rotary_emb(inputs_embeds, position_ids[1:])
        hidden = inputs_embeds
        for number, layer in enumerate(self.layers()):
            normed = layer.input_layernorm(hidden)
            if number in self.full:
                attention = layer.self_attn
                cache_keyword = cache_argument(attention.forward, _CacheOfLayers(cache, self.full))
                change, _ = attention(
                    normed, position_embeddings=rotation, attention_mask=mask, **cache_keyword
                )
            else:
                change, *pairs[number] = self.linear[str(number)](normed, is_token, *pairs[number])
            hidden = hidden + change
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        for number, states in zip(self.full, cache.layers, strict=True):
            pairs[number] = (cast(Any, states).keys, cast(Any, states).values)
        logits = self.decoder.lm_head(text.norm(hidden[:, -1:]))
        return logits, *(state for pair in pairs for state in pair)


def states_of(text: Any, *, batch: int, past: int) -> dict[str, Tensor]:
    """Return each layer's states by name: convolution and matrix, or keys and values.

    The last inputs of a convolution are (batch, channels, kernel), a matrix (batch, heads, key
    size, value size); both have fixed sizes, and start as zeros.
    """
    heads, keys, values = (
        text.linear_num_value_heads,
        text.linear_key_head_dim,
        text.linear_value_head_dim,
    )
    channels = 2 * text.linear_num_key_heads * keys + heads * values
    states = {}
    for number, kind in enumerate(text.layer_types):
        growing = (batch, text.num_key_value_heads, past, text.head_dim)
        convolution, matrix = (
            (batch, channels, text.linear_conv_kernel_dim),
            (batch, heads, keys, values),
        )
        shapes = (growing, growing) if kind == "full_attention" else (convolution, matrix)
        for name, shape in zip(KINDS[kind], shapes, strict=True):
            states[f"past_key_values.{number}.{name}"] = torch.zeros(shape)
    return states


def language_model_part(decoder: Qwen3_5ForCausalLM) -> Part:
    """Return the language model with the states of all its layers, as it is exported."""
    text: Any = decoder.config
    batch, past, new = 2, 3, 4  # no two equal, so that tracing bakes none of them in
    states = states_of(text, batch=batch, past=past)
    cache = {name: name.replace("past_key_values", "present") for name in states}
    fixed = {
        name: (1, 3) if name.endswith(KINDS["full_attention"]) else tuple(range(1, state.dim()))
        for name, state in states.items()
    }
    return Part(
        LANGUAGE_MODEL,
        HybridDecoder(decoder),
        {
            "inputs_embeds": torch.zeros(batch, new, text.hidden_size),
            "attention_mask": torch.ones(batch, past + new, dtype=torch.int64),
            "position_ids": torch.arange(past, past + new).expand(4, batch, new),
            **states,
        },
        outputs=("logits", *cache.values()),
        fixed={"inputs_embeds": (2,), "position_ids": (0,), **fixed},
        cache=cache,
        sensitive=SENSITIVE_LAYERS,
    )
