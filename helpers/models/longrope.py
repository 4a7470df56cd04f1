"""LongRoPE: up to which length its first rotations count; a Phi-3 that chooses in the graph.

LongRoPE (arXiv:2402.13753) has two sets of frequencies: one for sequences up to the length that the
model was first trained with, one for longer ones. transformers' own module writes the chosen set
into a buffer, which a trace cannot record; here it is an input of the angles.

Keys that a cache holds were rotated with the set of their time. So when a sequence outgrows the
first length, all its positions must be computed anew (`ExportedParts.prefill_again_beyond`).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Phi3Config, Phi3ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class LongRotaryEmbedding(nn.Module):
    """The cosines and sines of a position, from short or long frequencies by the total length."""

    short: Tensor
    long: Tensor

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        self.config = config
        self.switch = cast(int, length_of_short_frequencies(config))
        frequencies = ROPE_INIT_FUNCTIONS["longrope"]
        short, self.scaling = frequencies(config, seq_len=self.switch)
        long, _ = frequencies(config, seq_len=self.switch + 1)
        self.register_buffer("short", short, persistent=False)
        self.register_buffer("long", long, persistent=False)

    @torch.no_grad()
    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (batch, length, head size) of `position_ids` (batch, length).

        The last position tells the total length, that of the longest row in a batch.
        """
        is_long = position_ids.max() + 1 > self.switch
        angles = position_ids[..., None].float() * torch.where(is_long, self.long, self.short)
        angles = torch.cat((angles, angles), dim=-1)
        cosines, sines = angles.cos() * self.scaling, angles.sin() * self.scaling
        return cosines.to(hidden.dtype), sines.to(hidden.dtype)


class LongPhi3(Phi3ForCausalLM):
    """Phi-3 that can be traced, with LongRoPE or with plain rotary embeddings."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__(config)
        if length_of_short_frequencies(config) is not None:
            self.model.rotary_emb = LongRotaryEmbedding(config)


def length_of_short_frequencies(config: Any) -> int | None:
    """Return up to which length of a sequence the short set counts; None where there is one set.

    `config` is that of a language model.
    """
    settings = cast(dict[str, Any], config.rope_parameters)
    if settings["rope_type"] != "longrope":
        return None
    return cast(int, settings["original_max_position_embeddings"])
