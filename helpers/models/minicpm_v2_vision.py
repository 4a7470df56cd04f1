"""MiniCPM-V-2's image encoder: SigLIP and a resampler, for slices of any shape.

A slice has any height and width. What depends on them, the resized position table of SigLIP and
the resampler's sines and cosines, is part of the image encoder's graph: two small matrix products
and two slices of a table. So one exported model takes every size and nothing but pixels. Both are
written so that they survive 16 bits: positions are compared as integers and sines are looked up,
because a large position rounded to 16 bits would be another position.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

from helpers.sources.checkpoints import Config, check_choice
from helpers.sources.key_mapping import Rule

# Configs name an image encoder of timm instead of describing it; the numbers are from timm's
# vision_transformer.py, where "so400m" is the shape-optimised transformer of arXiv:2305.13035.
VISION_ENCODERS = {
    "vit_so400m_patch14_siglip_384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",  # the exact one, not SigLIP's usual approximation by tanh
    }
}


class ImageEncoder(nn.Module):
    """SigLIP and the resampler: slices (number, 3, height, width) to (number, queries, hidden).

    Height and width are multiples of the patch; slices of one call have the same size.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        vision = vision_config(config)
        self.patch = cast(int, vision.patch_size)
        self.siglip = SiglipVisionModel(vision)
        self.siglip.embeddings = PatchEmbeddings(vision)
        self.resampler = Resampler(config, vision.hidden_size)

    def patches(self, pixel_values: Tensor) -> Tensor:
        """Return SigLIP's features after its last norm, (number, patches, width)."""
        output = self.siglip(pixel_values, interpolate_pos_encoding=True)
        return cast(Tensor, output.last_hidden_state)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the resampler's rows for each slice, (number, queries, hidden)."""
        rows, columns = pixel_values.shape[2] // self.patch, pixel_values.shape[3] // self.patch
        return cast(Tensor, self.resampler(self.patches(pixel_values), rows, columns))


class PatchEmbeddings(SiglipVisionEmbeddings):
    """SigLIP's patches with a position table that is resized as the authors' timm does."""

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Return the position table for `height` x `width` pixels, (1, patches, width).

        Bicubic with antialiasing, which transformers' own method leaves out.
        """
        patch = cast(int, self.patch_size)
        side = cast(int, self.image_size) // patch
        table = self.position_embedding(self.position_ids).float()
        rows = bicubic_weights(height // patch, side) @ table.reshape(side, -1)
        columns = bicubic_weights(width // patch, side)
        resized: Tensor = columns @ rows.reshape(-1, side, self.embed_dim)
        return resized.reshape(1, -1, self.embed_dim).to(embeddings.dtype)


def bicubic_weights(size: int | Tensor, source_size: int) -> Tensor:
    """Return the matrix (size, source_size) that resizes a line as antialiased bicubic does.

    The cubic convolution kernel with a = -0.5 (Keys, 1981), stretched when the line shrinks, and
    each row scaled to the sum of one: what `interpolate(mode="bicubic", antialias=True)` and
    Pillow do. The distance between the centres of two pixels is taken in halves of a pixel on
    both grids, so that it is an integer.
    """
    size = torch.as_tensor(size)
    target, source = 2 * torch.arange(cast(int, size)) + 1, 2 * torch.arange(source_size) + 1
    distance = (source[None] * size - target[:, None] * source_size).abs()
    x = (distance.float() / (2 * size.clamp(min=source_size))).clamp(max=2)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, near, far)
    return weights / weights.sum(1, keepdim=True)


class Resampler(nn.Module):
    """Queries that attend to a slice's patches: a fixed number of rows from any number.

    The authors' attention is `nn.MultiheadAttention`; here its projections are linear layers of
    their own, so that each can be compressed.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        hidden, queries = config["hidden_size"], config["query_num"]
        self.heads = hidden // 128  # the size of a head in the authors' Resampler
        self.query = nn.Parameter(torch.empty(queries, hidden))
        self.pos_embed = nn.Parameter(torch.empty(queries, hidden))
        self.proj = nn.Parameter(torch.empty(hidden, hidden))
        self.kv_proj = nn.Linear(width, hidden, bias=False)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(hidden, eps=1e-6) for _ in range(3))
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(hidden, hidden) for _ in range(4)
        )
        self.positions = GridPositions(config)

    def forward(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """Return (number, queries, hidden) for patches (number, rows * columns, width)."""
        values = self.ln_kv(self.kv_proj(patches))
        keys = values + self.positions(rows, columns).to(values.dtype)
        queries = (self.ln_q(self.query) + self.pos_embed)[None]
        q = self._split(self.q_proj(queries)).expand(patches.shape[0], -1, -1, -1)
        k, v = self._split(self.k_proj(keys)), self._split(self.v_proj(values))
        attended = functional.scaled_dot_product_attention(q, k, v)
        normalised = self.ln_post(self.out_proj(attended.transpose(1, 2).flatten(2)))
        return cast(Tensor, normalised @ self.proj)

    def _split(self, states: Tensor) -> Tensor:
        return torch.unflatten(states, -1, (self.heads, -1)).transpose(1, 2)


class GridPositions(nn.Module):
    """Sines and cosines of a patch's column and row (MAE's 2-D position embedding)."""

    table: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        quarter = config["hidden_size"] // 4
        # No side has more patches than a slice has in all: see `slice_picture`.
        positions = torch.arange((config["scale_resolution"] // config["patch_size"]) ** 2)
        frequencies = 10000 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
        angles = positions[:, None] * frequencies
        table = torch.cat([angles.sin(), angles.cos()], dim=1).float()
        self.register_buffer("table", table, persistent=False)

    def forward(self, rows: int, columns: int) -> Tensor:
        """Return (rows * columns, hidden): the column's half, then the row's, row by row."""
        across = self.table[:columns][None].expand(rows, -1, -1)
        down = self.table[:rows][:, None].expand(-1, columns, -1)
        return torch.cat([across, down], dim=-1).flatten(0, 1)


# Configs and names


def vision_config(config: Config) -> SiglipVisionConfig:
    """Return SigLIP's configuration, from `vision_config` or the timm model that is named.

    A `vision_config` counts its layers after the last one is dropped; a name's table before.
    """
    if fields := config.get("vision_config"):
        fields = {"patch_size": config["patch_size"]} | fields
    else:
        name = config["vision_encoder"].split(".")[0]  # behind the dot is what it was trained on
        check_choice("image encoder", name, VISION_ENCODERS)
        fields = dict(VISION_ENCODERS[name])
        fields["num_hidden_layers"] -= bool(config["drop_vision_last_layer"])
    return SiglipVisionConfig(**fields, vision_use_head=False)


_LAYER, _NATIVE_LAYER = "vpm.blocks.{n}.", "image_encoder.siglip.encoder.layers.{n}."
VISION_RULES = [
    Rule(
        "vpm.pos_embed",
        "image_encoder.siglip.embeddings.position_embedding.weight",
        split=lambda table: [table.squeeze(0)],
        join=lambda tables: tables[0].unsqueeze(0),
    ),
    Rule("vpm.patch_embed.proj.{x}", "image_encoder.siglip.embeddings.patch_embedding.{x}"),
    Rule(
        _LAYER + "attn.qkv.{x}",
        [_NATIVE_LAYER + f"self_attn.{part}_proj.{{x}}" for part in "qkv"],
    ),
    Rule(_LAYER + "attn.proj.{x}", _NATIVE_LAYER + "self_attn.out_proj.{x}"),
    Rule(_LAYER + "norm1.{x}", _NATIVE_LAYER + "layer_norm1.{x}"),
    Rule(_LAYER + "norm2.{x}", _NATIVE_LAYER + "layer_norm2.{x}"),
    Rule(_LAYER + "mlp.{x}", _NATIVE_LAYER + "mlp.{x}"),
    Rule("vpm.norm.{x}", "image_encoder.siglip.post_layernorm.{x}"),
]
_RESAMPLER = "image_encoder.resampler."
RESAMPLER_RULES = [
    Rule(
        "resampler.attn.in_proj_{x}",
        [_RESAMPLER + f"{part}_proj.{{x}}" for part in "qkv"],
    ),
    Rule("resampler.attn.out_proj.{x}", _RESAMPLER + "out_proj.{x}"),
    *(
        Rule(f"resampler.{name}", _RESAMPLER + name)
        for name in ("query", "pos_embed", "proj", "kv_proj.{x}", "ln_{x}")
    ),
]
