"""MiniCPM-V-2: slices of any shape, SigLIP, a resampler, and MiniCPM-2.4B as Granite.

Source of the layout: the authors' `configuration_minicpm.py`, `modeling_minicpmv.py` and
`resampler.py` (OpenBMB); the numbers come from a checkpoint's `config.json`.

A slice has any height and width. What depends on them, the resized position table of SigLIP and
the resampler's sines and cosines, is part of the image encoder's graph: two small matrix products
and two slices of a table. So one exported model takes every size and nothing but pixels. Both are
written so that they survive 16 bits: positions are compared as integers and sines are looked up,
because a large position rounded to 16 bits would be another position.

What this module does not know: MiniCPM-V-2.5 and later, which share the model type but have other
tensors.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

from helpers.errors import CheckpointError
from helpers.graphs.part_names import IMAGE_ENCODER
from helpers.graphs.parts import Part, Traceable
from helpers.inputs.prompts import IMAGE, Template
from helpers.models.base import Processor, VisionLanguageModel
from helpers.models.exported import ExportedParts, RunImageEncoder
from helpers.models.families import Family, Original, SmallTokenizer
from helpers.models.slices import Slicing, slice_picture
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
# The token of each mark around pictures, the field that holds its id, and the id if none does:
# the defaults of the authors' MiniCPMVConfig.
MARKS = {
    "<unk>": ("unk_token_id", 0),
    "<image>": ("im_start_token_id", 101),
    "</image>": ("im_end_token_id", 102),
    "<slice>": ("slice_start_token_id", 111),
    "</slice>": ("slice_end_token_id", 112),
}


class MiniCPMV2Exported(ExportedParts):
    """The exported parts: the image encoder takes pieces of one size at a time."""

    def encode_images(self, run: RunImageEncoder, image_inputs: dict[str, Any]) -> Sequence[Tensor]:
        """Return (queries, hidden) for each overview and slice."""

        def encode(pixel_values: Tensor) -> Tensor:
            return run({"pixel_values": pixel_values})["last_hidden_state"]

        return by_size(encode, image_inputs["pixel_values"])


class MiniCPMV2Processor(Processor):
    """An overview and slices of each picture, and MiniCPM-V-2's prompts."""

    exported_class = MiniCPMV2Exported

    def load_tokenizer(self):
        """Return that in `tokenizer.json` or `tokenizer.model`, made to put BOS in front."""
        fast = (self.folder / "tokenizer.json").exists()
        loader = PreTrainedTokenizerFast if fast else LlamaTokenizer
        tokenizer = loader.from_pretrained(self.folder)
        for token in MARKS:
            found, expected = tokenizer.convert_tokens_to_ids(token), self.mark_id(token)
            if found != expected:
                raise CheckpointError(
                    f"The tokenizer in {self.folder} has {token} at {found}, but the model expects "
                    f"it at {expected}; take the tokenizer files of the same checkpoint."
                )
        tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(self.config["bos_token_id"])
        tokenizer.add_bos_token = True  # not every copy of tokenizer.json asks for it
        return tokenizer

    def mark_id(self, token: str) -> int:
        """Return the id of one of the `MARKS`."""
        field, default = MARKS[token]
        return self.config.get(field, default)

    @property
    def template(self) -> Template:
        """The words of the authors' `chat()`: `<用户>` is "user"; there is no system message."""
        return Template("", "<用户>", "", "<AI>", "", images=IMAGE + "\n")

    @property
    def image_token_id(self) -> int:
        """The id of `<unk>`, which fills the places of a slice's features."""
        return self.mark_id("<unk>")

    @property
    def context_length(self) -> int:
        """How many tokens a conversation may have, pictures included."""
        return self.config["max_position_embeddings"]

    @property
    def stop_token_ids(self) -> list[int]:
        """The end of a text."""
        return [self.config["eos_token_id"]]

    @cached_property
    def slicing(self) -> Slicing:
        """How pictures are cut."""
        maximum = self.config["max_slice_nums"] if self.config["slice_mode"] else 1
        return Slicing(self.config["scale_resolution"], self.config["patch_size"], maximum)

    def pixels(self, pictures: list[Image.Image]) -> dict:
        """Return `pixel_values`, a list of (1, 3, height, width), and `grids` (pictures, 2).

        Of each picture the overview comes first, then the slices row by row; its grid is
        (columns, rows), or (0, 0) if it is not cut.
        """
        cuts = [slice_picture(picture, self.slicing) for picture in pictures]
        return {
            "pixel_values": [normalised(piece) for pieces, _ in cuts for piece in pieces],
            "grids": torch.tensor([grid or (0, 0) for _, grid in cuts]).reshape(-1, 2),
        }

    def image_strings(self, image_inputs: dict) -> list[str]:
        """Return for each picture its overview's places, and its slices' row by row."""
        return [self.placeholder(*grid) for grid in image_inputs["grids"].tolist()]

    def placeholder(self, columns: int, rows: int) -> str:
        """Return the tokens of one picture that is cut into `columns` x `rows` slices, or none."""
        piece = "<image>" + "<unk>" * self.config["query_num"] + "</image>"
        if not columns:
            return piece
        return piece + "<slice>" + "\n".join([piece * columns] * rows) + "</slice>"

    def picture_positions(self, input_ids: Tensor) -> Tensor:
        """Return which positions are between `<image>` and `</image>`."""
        opening = input_ids == self.mark_id("<image>")
        closing = input_ids == self.mark_id("</image>")
        inside = opening.cumsum(-1) > closing.cumsum(-1)
        return inside & ~opening


def normalised(picture: Image.Image) -> Tensor:
    """Return an RGB picture's pixels from -1 to 1, (1, 3, height, width)."""
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return (values[None].float() / 255 - 0.5) / 0.5


def by_size(encode: Callable[[Tensor], Tensor], pieces: Sequence[Tensor]) -> list[Tensor]:
    """Return what `encode` gives for each row of `pieces`; rows of one size go together."""
    rows = [row for piece in pieces for row in piece]
    encoded: list[Tensor] = [torch.empty(0)] * len(rows)
    for size in dict.fromkeys(row.shape for row in rows):
        places = [place for place, row in enumerate(rows) if row.shape == size]
        results = encode(torch.stack([rows[place] for place in places]))
        for place, result in zip(places, results, strict=True):
            encoded[place] = result
    return encoded


class MiniCPMV2(VisionLanguageModel):
    """SigLIP, a resampler, and MiniCPM-2.4B."""

    processor_class = MiniCPMV2Processor

    def build(self, config: dict) -> None:
        """Create the image encoder with its resampler, and the language model."""
        self.image_encoder = ImageEncoder(config)
        self.language_model = GraniteForCausalLM(text_config(config))
        table = self.language_model.get_input_embeddings()
        scaled = ScaledEmbedding(
            table.num_embeddings, table.embedding_dim, float(config["scale_emb"])
        )
        self.language_model.set_input_embeddings(scaled)

    def rules(self) -> list[Rule]:
        """Return the names of SigLIP (as timm has it), the resampler and the language model."""
        return [*_VISION_RULES, *_RESAMPLER_RULES, Rule("llm.{x}", "language_model.{x}")]

    def encode_images(
        self, pixel_values: Sequence[Tensor] | Tensor, grids: Tensor | None = None
    ) -> list[Tensor]:
        """Return (queries, hidden) for each overview and slice; `grids` is for the prompt only."""
        pieces = [pixel_values] if isinstance(pixel_values, Tensor) else pixel_values
        return by_size(self.image_encoder, pieces)

    def text_embeddings_part(self) -> Part:
        """Return a plain embedding, so that 16 bits stay 16, and the scale behind it."""
        scaled = self.language_model.get_input_embeddings()
        table = nn.Embedding.from_pretrained(scaled.weight)  # the same memory
        module = Traceable(lambda input_ids: table(input_ids) * scaled.scale, table)
        return replace(super().text_embeddings_part(), module=module)

    def image_encoder_part(self) -> Part:
        """Return SigLIP and the resampler: slices of any one size."""
        patch = self.config["patch_size"]
        return Part(
            IMAGE_ENCODER,
            self.image_encoder,
            {"pixel_values": torch.zeros(2, 3, 4 * patch, 5 * patch)},
            outputs=("last_hidden_state",),
            fixed={"pixel_values": (1,)},
        )


class ScaledEmbedding(nn.Embedding):
    """Embeddings times a number, as MiniCPM has them.

    Granite's own multiplier would scale the rows of picture features as well.
    """

    def __init__(self, number: int, width: int, scale: float) -> None:
        super().__init__(number, width)
        self.scale = scale

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings (..., width) of token ids."""
        return super().forward(input_ids) * self.scale


# The image encoder


class ImageEncoder(nn.Module):
    """SigLIP and the resampler: slices (number, 3, height, width) to (number, queries, hidden).

    Height and width are multiples of the patch; slices of one call have the same size.
    """

    def __init__(self, config: dict) -> None:
        super().__init__()
        vision = vision_config(config)
        self.patch = vision.patch_size
        self.siglip = SiglipVisionModel(vision)
        self.siglip.embeddings = PatchEmbeddings(vision)
        self.resampler = Resampler(config, vision.hidden_size)

    def patches(self, pixel_values: Tensor) -> Tensor:
        """Return SigLIP's features after its last norm, (number, patches, width)."""
        return self.siglip(pixel_values, interpolate_pos_encoding=True).last_hidden_state

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the resampler's rows for each slice."""
        rows, columns = pixel_values.shape[2] // self.patch, pixel_values.shape[3] // self.patch
        return self.resampler(self.patches(pixel_values), rows, columns)


class PatchEmbeddings(SiglipVisionEmbeddings):
    """SigLIP's patches with a position table that is resized as the authors' timm does."""

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Return the position table for `height` x `width` pixels, (1, patches, width).

        Bicubic with antialiasing, which transformers' own method leaves out.
        """
        side = self.image_size // self.patch_size
        table = self.position_embedding(self.position_ids).float()
        rows = bicubic_weights(height // self.patch_size, side) @ table.reshape(side, -1)
        columns = bicubic_weights(width // self.patch_size, side)
        resized = columns @ rows.reshape(-1, side, self.embed_dim)
        return resized.reshape(1, -1, self.embed_dim).to(embeddings.dtype)


def bicubic_weights(size: int | Tensor, source_size: int) -> Tensor:
    """Return the matrix (size, source_size) that resizes a line as antialiased bicubic does.

    The cubic convolution kernel with a = -0.5 (Keys, 1981), stretched when the line shrinks, and
    each row scaled to the sum of one: what `interpolate(mode="bicubic", antialias=True)` and
    Pillow do. The distance between the centres of two pixels is taken in halves of a pixel on
    both grids, so that it is an integer.
    """
    size = torch.as_tensor(size)
    target, source = 2 * torch.arange(size) + 1, 2 * torch.arange(source_size) + 1
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

    def __init__(self, config: dict, width: int) -> None:
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
        seen = functional.scaled_dot_product_attention(q, k, v)
        return self.ln_post(self.out_proj(seen.transpose(1, 2).flatten(2))) @ self.proj

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GridPositions(nn.Module):
    """Sines and cosines of a patch's column and row (MAE's 2-D position embedding)."""

    def __init__(self, config: dict) -> None:
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


def vision_config(config: dict) -> SiglipVisionConfig:
    """Return SigLIP's configuration, from `vision_config` or the timm model that is named.

    A `vision_config` counts its layers after the last one is dropped; a name's table before.
    """
    if fields := config.get("vision_config"):
        fields = {"patch_size": config["patch_size"]} | fields
    else:
        name = config["vision_encoder"].split(".")[0]  # behind the dot is what it was trained on
        if name not in VISION_ENCODERS:
            known = ", ".join(VISION_ENCODERS)
            raise CheckpointError(f"The image encoder {name} in config.json is none of {known}.")
        fields = dict(VISION_ENCODERS[name])
        fields["num_hidden_layers"] -= bool(config["drop_vision_last_layer"])
    return SiglipVisionConfig(**fields, vision_use_head=False)


def text_config(config: dict) -> GraniteConfig:
    """Return MiniCPM-2.4B's configuration: a Llama whose scales are those of muP, as Granite has.

    The embeddings' scale is left to `ScaledEmbedding`, since picture features are not scaled.
    """
    head_size = config["hidden_size"] // config["num_attention_heads"]
    return GraniteConfig(
        **{name: config[name] for name in _TEXT_FIELDS if name in config},
        residual_multiplier=config["scale_depth"] / config["num_hidden_layers"] ** 0.5,
        logits_scaling=config["hidden_size"] / config["dim_model_base"],
        attention_multiplier=head_size**-0.5,
        embedding_multiplier=1.0,
    )


_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "attention_bias",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)

_LAYER, _NATIVE_LAYER = "vpm.blocks.{n}.", "image_encoder.siglip.encoder.layers.{n}."
_VISION_RULES = [
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
_RESAMPLER_RULES = [
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


# The families' register

# Marks of pictures from id 3 on, as a small tokenizer has them, then those of turns.
_IMAGE_MARKS = tuple(token for token in MARKS if token != "<unk>")
_TOKENIZER = SmallTokenizer("llama", marks=(*_IMAGE_MARKS, "<用户>", "<AI>"))
FAMILY = Family(
    name="minicpm-v-2",
    model_type="minicpmv",
    model=MiniCPMV2,
    bundled="minicpm_v2",
    tokenizer=_TOKENIZER,
    originals=(
        Original(
            "minicpm-v-2",
            "openbmb/MiniCPM-V-2",
            "MiniCPM Model License: free for academic research, commercial use after registration",
            3.43,
            _TOKENIZER,
            token_ids=lambda size: {
                MARKS[token][0]: place for place, token in enumerate(_IMAGE_MARKS, 3)
            },
        ),
    ),
)
