"""Gemma 4's language model: what `generate` needs of it in PyTorch, and how it is traced."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from helpers.models.embeddings import ScaledEmbedding
from helpers.models.gemma4.exported import FULL, SLIDING
from helpers.models.prompt_input import WithPromptInput
from helpers.upstream.transformers import cache_argument, unpacked_heads


class Gemma4LanguageModel(WithPromptInput, Gemma4ForCausalLM):
    """transformers' language model; per-layer embeddings of later tokens it looks up itself."""

    prompt_input = "per_layer_inputs"

    def __init__(self, config: Gemma4TextConfig) -> None:
        super().__init__(config)
        text: Any = self.model
        # transformers' own tables keep their factors as tensors, which no checkpoint holds.
        for name in ("embed_tokens", "embed_tokens_per_layer"):
            table = getattr(text, name)
            rows, width = table.weight.shape
            setattr(text, name, ScaledEmbedding(rows, width, table.scalar_embed_scale))
        self.tie_weights()


class Gemma4Decoder(nn.Module):
    """The language model as it is traced, without its tables.

    Layers with keys and values of their own take them from the inputs; for those that share them
    only the last position is computed, since nothing reads the others.
    """

    def __init__(self, language_model: Gemma4LanguageModel) -> None:
        super().__init__()
        text: Any = language_model.model
        self.config = cast(Gemma4TextConfig, text.config)
        self.layers = cast(nn.ModuleList, text.layers)
        self.rotary, self.norm = text.rotary_emb, text.norm
        self.projection = text.per_layer_model_projection
        self.projection_norm = text.per_layer_projection_norm
        self.projection_factor = text.per_layer_model_projection_scale
        self.sum_factor = text.per_layer_input_scale
        self.head = language_model.lm_head

    def forward(
        self,
        inputs_embeds: Tensor,
        per_layer_inputs: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the last position's logits, and each layer's keys and values with the new ones."""
        config, kinds = self.config, cast(list[str], self.config.layer_types)
        total = attention_mask.shape[1]
        places = torch.arange(inputs_embeds.shape[1]) + total - inputs_embeds.shape[1]
        hidden, per_layer = inputs_embeds, self._per_layer(inputs_embeds, per_layer_inputs)
        rotations = {kind: self.rotary(hidden, position_ids, kind) for kind in set(kinds)}
        masks = self._masks(places, attention_mask)
        cache = _Joined(past)
        shared: dict[str, tuple[Tensor, Tensor]] = {}
        first_sharing = config.num_hidden_layers - config.num_kv_shared_layers
        for number, layer in enumerate(self.layers):
            if number == first_sharing:
                hidden, per_layer = hidden[:, -1:], per_layer[:, -1:]
                rotations = {
                    kind: (cosine[:, -1:], sine[:, -1:])
                    for kind, (cosine, sine) in rotations.items()
                }
                # Not cut from those above: OpenVINO's paged attention would not know the window.
                masks = self._masks(places[-1:], attention_mask)
            kind = kinds[number]
            with unpacked_heads():
                hidden = layer(
                    hidden,
                    per_layer[:, :, number],
                    shared_kv_states=shared,
                    position_embeddings=rotations[kind],
                    attention_mask=masks[kind],
                    **cache_argument(cast(Any, layer).self_attn.forward, cache),
                )
        logits = self.head(self.norm(hidden[:, -1:]))
        if (cap := config.final_logit_softcapping) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits, *cache.present

    def _per_layer(self, inputs_embeds: Tensor, per_layer_inputs: Tensor) -> Tensor:
        """Return what each layer gets of each token, (batch, new, layers, size)."""
        projected = self.projection(inputs_embeds) * self.projection_factor
        projected = projected.unflatten(-1, per_layer_inputs.shape[2:])
        inputs = self.projection_norm(projected) + per_layer_inputs
        return cast(Tensor, inputs * self.sum_factor)

    def _masks(self, queries: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return for both kinds of layers what is added to the scores, (batch, 1, queries, all).

        `queries` are places in `attention_mask`. OpenVINO's paged attention knows a window by
        these operations in this order alone (its StateManagementPattern); in any other it computes
        full attention and says nothing.
        """
        batch, total = attention_mask.shape
        every = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        keys, queries = torch.arange(total)[None, None, None], queries[None, None, :, None]
        is_token = attention_mask[:, None, None].bool()
        causal = keys <= queries
        near = every & (keys > (queries + torch.tensor(-self.config.sliding_window)))
        low = torch.finfo(torch.float32).min

        def added(visible: Tensor) -> Tensor:
            visible = visible.expand(batch, 1, queries.shape[2], total)
            return torch.where(visible, torch.tensor(0.0), torch.tensor(low))[:, :, :, :total]

        return {
            SLIDING: added((every & (near & causal)) & is_token),
            FULL: added(causal & is_token),
        }


class _Joined:
    """A cache as layers use it: puts new keys and values behind past ones (key 0, value 0, ...)."""

    def __init__(self, past: tuple[Tensor, ...]) -> None:
        self.past = past
        self.present: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values with the new ones."""
        past_keys, past_values = self.past[2 * layer : 2 * layer + 2]
        joined = torch.cat([past_keys, keys], 2), torch.cat([past_values, values], 2)
        self.present += joined
        return joined
