"""The image encoder as it is traced: layers, a merge that can be left out, and layers again.

All of it takes patches in the order in which they merge (`nested_order`), so that graphs know
nothing of a slice's shape, and the same later layers serve both numbers of tokens.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import (
    MiniCPMV4_6Merger,
    MiniCPMV4_6VisionModel,
)

MERGED = 4  # tokens that become one


def attend(attention: Any, hidden: Tensor) -> Tensor:
    """Return the attention of all tokens of a row to each other, (rows, tokens, width).

    transformers' own cuts tokens into slices by numbers that are not in the graph.
    """
    heads = (attention.num_heads, attention.head_dim)
    queries, keys, values = (
        torch.unflatten(project(hidden), -1, heads).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    attended = nn.functional.scaled_dot_product_attention(queries, keys, values)
    return cast(Tensor, attention.out_proj(attended.transpose(1, 2).flatten(2)))


def run_layers(layers: Iterable[Any], hidden: Tensor) -> Tensor:
    """Return the tokens (number, tokens, width) behind some layers."""
    for layer in layers:
        hidden = hidden + attend(layer.self_attn, layer.layer_norm1(hidden))
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return hidden


class EarlyLayers(nn.Module):
    """Patches of slices of one size to tokens, (number, patches, width).

    Takes `pixel_values` (number, 3, side, side times patches) and `position_ids` (patches).
    """

    def __init__(self, encoder: MiniCPMV4_6VisionModel) -> None:
        super().__init__()
        self.patches = encoder.embeddings.patch_embedding
        self.positions = encoder.embeddings.position_embedding
        self.layers = encoder.encoder.layers[: encoder.config.insert_layer_id + 1]

    def forward(self, pixel_values: Tensor, position_ids: Tensor) -> Tensor:
        """Return the tokens where they can be merged."""
        hidden = self.patches(pixel_values).flatten(2).transpose(1, 2)
        return run_layers(self.layers, hidden + self.positions(position_ids))


class WindowMerger(nn.Module):
    """Each four tokens of a window to one, (number, windows, width), after a look at each other."""

    def __init__(self, encoder: MiniCPMV4_6VisionModel) -> None:
        super().__init__()
        self.merger = encoder.vit_merger

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return a quarter of the tokens."""
        merger, number = self.merger, hidden_states.shape[0]
        windows = hidden_states.reshape(-1, MERGED, hidden_states.shape[-1])
        windows = windows + attend(merger.self_attn, merger.layer_norm1(windows))
        change = merger.linear_1(merger.pre_norm(windows.flatten(1)))
        merged = windows.mean(1) + merger.linear_2(merger.act(change))
        return cast(Tensor, merged.reshape(number, -1, hidden_states.shape[-1]))


class LateLayers(nn.Module):
    """Tokens behind the merge, or behind none, to rows of the language model's width."""

    def __init__(self, encoder: MiniCPMV4_6VisionModel, projector: MiniCPMV4_6Merger) -> None:
        super().__init__()
        self.layers = encoder.encoder.layers[encoder.config.insert_layer_id + 1 :]
        self.norm = encoder.post_layernorm
        self.merges = projector.mlp

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the features (number, tokens, hidden)."""
        number = hidden_states.shape[0]
        hidden = self.norm(run_layers(self.layers, hidden_states))
        for merge in self.merges:
            hidden = merge(hidden.reshape(-1, MERGED * hidden.shape[-1]))
        return cast(Tensor, hidden.reshape(number, -1, hidden.shape[-1]))
