"""Qwen3-VL's processor: what is special to it is DeepStack."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig

from helpers.errors import CheckpointError
from helpers.models.exported import Features
from helpers.models.qwen3_vl.exported import DeepStackTokens, Qwen3VLExported
from helpers.models.qwen_vision.processor import QwenVisionProcessor


class Qwen3VLProcessor(QwenVisionProcessor):
    """Pictures and prompts, with features of pictures for several layers."""

    settings_class = Qwen3VLConfig
    exported_class = Qwen3VLExported
    exported: Qwen3VLExported

    @property
    def deepstack_layers(self) -> int:
        """How many layers of the language model get features of pictures added.

        As many as layers of the image encoder are named: one that is named twice, or that there is
        not, gives nothing more.
        """
        layers = set(self.vision.deepstack_visual_indexes).intersection(range(self.vision.depth))
        if not layers:
            raise CheckpointError(
                "deepstack_visual_indexes in config.json names no layers, and a Qwen3-VL without "
                "DeepStack is not read here; use a checkpoint of the published kind."
            )
        return len(layers)

    def prepare(
        self,
        input_ids: Tensor,
        embed_tokens: Callable[[Tensor], Tensor],
        features: Features | None = None,
    ) -> dict[str, Tensor]:
        """Return what a language model in PyTorch takes, DeepStack features among it.

        `deepstack_embeds` (batch, length, layers, hidden) is zero wherever there is text.
        """
        prepared = super().prepare(input_ids, embed_tokens, features)
        if pictures := cast(Sequence[DeepStackTokens], features or ()):
            embeddings = prepared["inputs_embeds"]
            rows = torch.cat([picture.deepstack for picture in pictures], dim=1)
            deepstack = embeddings.new_zeros(*input_ids.shape, len(rows), embeddings.shape[-1])
            deepstack[self.picture_positions(input_ids)] = rows.transpose(0, 1).to(deepstack.dtype)
            prepared["deepstack_embeds"] = deepstack
        return prepared
