"""Gemma 4's image encoder: padded patches, any number of them and of pictures in one graph."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.gemma4.modeling_gemma4 import (
    Gemma4MultimodalEmbedder,
    Gemma4VisionModel,
)

from helpers.models.embeddings import plain_table


class PictureEncoder(nn.Module):
    """The image encoder with its projector as it is computed and traced.

    transformers' own forward makes its mask by code that cannot be traced, and picks the rows of
    all pictures by a mask.
    """

    def __init__(self, encoder: Gemma4VisionModel, projector: Gemma4MultimodalEmbedder) -> None:
        super().__init__()
        embedder: Any = encoder.patch_embedder
        self.patches = embedder.input_proj
        self.places = nn.ModuleList(map(plain_table, embedder.position_embedding_table))
        self.rotary = encoder.encoder.rotary_emb
        self.layers = encoder.encoder.layers
        self.projection = projector.embedding_projection
        self.side = encoder.config.pooling_kernel_size
        self.factor = encoder.config.hidden_size**0.5
        self.eps = projector.eps
        is_standardised = encoder.config.standardize
        self.bias = encoder.std_bias if is_standardised else None
        self.scale = encoder.std_scale if is_standardised else None

    def forward(self, pixel_values: Tensor, image_position_ids: Tensor) -> Tensor:
        """Return the tokens (pictures, most tokens of a picture, hidden), each picture's first.

        Takes pixels from 0 to 1 (pictures, patches, values) and the column and the row of each
        patch (pictures, patches, 2), -1 where there is none.
        """
        is_padding = (image_position_ids == -1).all(-1)
        places = image_position_ids.clamp(min=0)
        hidden = self.patches((2 * (pixel_values - 0.5)).to(self.patches.weight.dtype))
        hidden = hidden + self.places[0](places[..., 0]) + self.places[1](places[..., 1])
        rotation = self.rotary(hidden, image_position_ids)
        mask = torch.zeros_like(pixel_values[..., 0], dtype=hidden.dtype)
        mask = mask.masked_fill(is_padding, torch.finfo(hidden.dtype).min)[:, None, None]
        for layer in self.layers:
            hidden = layer(
                hidden,
                position_embeddings=rotation,
                attention_mask=mask,
                position_ids=image_position_ids,
            )
        pooled = self._pooled(hidden.masked_fill(is_padding[..., None], 0), places)
        most = ((~is_padding).sum(-1) // self.side**2).max()
        normed = self._normed(pooled[:, :most]).to(hidden.dtype)
        return cast(Tensor, self.projection(normed))

    def _pooled(self, hidden: Tensor, places: Tensor) -> Tensor:
        """Return the mean (pictures, tokens, width) of the patches of each square, in 32 bits."""
        columns = places[..., 0].amax(-1, keepdim=True) + 1
        squares = torch.div(places, self.side, rounding_mode="floor")
        numbers = squares[..., 0] + (columns // self.side) * squares[..., 1]
        tokens = torch.arange(hidden.shape[1] // self.side**2, device=hidden.device)
        weights = (numbers[:, None] == tokens[None, :, None]).float() / self.side**2
        return weights @ hidden.float()

    def _normed(self, pooled: Tensor) -> Tensor:
        """Return the states as the projector multiplies them.

        The authors multiply them by the root of the width first, which does not fit into float16.
        Here the constants behind it are divided by that: of a norm without weights, its epsilon.
        """
        eps = self.eps / self.factor**2
        if self.bias is not None and self.scale is not None:
            pooled = (pooled - self.bias.float() / self.factor) * self.scale.float()
        root = (pooled.pow(2).mean(-1, keepdim=True) + eps).pow(-0.5)
        return cast(Tensor, pooled * root)
