"""The image encoder as it is traced: any number of patches in one graph."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionAttention,
    Qwen3VLVisionBlock,
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
)

ImageEncoder = Qwen3VLVisionModel | Qwen3_5VisionModel  # the same, with and without DeepStack


class EncoderLayers(nn.Module):
    """The layers of the image encoder as they are traced, any number of patches in one graph.

    transformers' own forward cuts its patches into pictures by numbers that are not in the graph.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.taps: list[int] = list(getattr(encoder.config, "deepstack_visual_indexes", ()))

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, rotary_pos_emb: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the picture's tokens (tokens, hidden) and, if there are any, DeepStack rows."""
        angles = torch.cat([rotary_pos_emb, rotary_pos_emb], dim=-1)
        rotation = (angles.cos(), angles.sin())
        rows = []
        layers = cast(Iterable[Qwen3VLVisionBlock], self.encoder.blocks)
        for number, layer in enumerate(layers):
            attended = attend(layer.attn, layer.norm1(hidden_states), attention_mask, rotation)
            hidden_states = hidden_states + attended
            hidden_states = hidden_states + layer.mlp(layer.norm2(hidden_states))
            if number in self.taps:
                mergers = cast(nn.ModuleList, self.encoder.deepstack_merger_list)
                rows.append(mergers[self.taps.index(number)](hidden_states))
        tokens = self.encoder.merger(hidden_states)
        return (tokens, torch.stack(rows)) if rows else (tokens,)


def attend(
    attention: Qwen3VLVisionAttention,
    hidden: Tensor,
    mask: Tensor,
    rotation: tuple[Tensor, Tensor],
) -> Tensor:
    """Return the attention of all patches to each other, (patches, hidden)."""
    heads = (3, attention.num_heads, attention.head_dim)
    queries, keys, values = torch.unflatten(attention.qkv(hidden), -1, heads).unbind(1)
    queries, keys = apply_rotary_pos_emb_vision(queries, keys, *rotation)
    by_head = [part.transpose(0, 1)[None] for part in (queries, keys, values)]
    attended = nn.functional.scaled_dot_product_attention(
        by_head[0], by_head[1], by_head[2], attn_mask=mask[None]
    )
    return cast(Tensor, attention.proj(attended[0].transpose(0, 1).flatten(1)))
