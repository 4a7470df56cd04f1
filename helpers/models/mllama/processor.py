"""Llama-3.2-Vision's pictures, prompts and token ids, and which tiles a token attends to."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    MllamaConfig,
    MllamaImageProcessorPil,
    MllamaTextConfig,
    MllamaVisionConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.mllama.image_processing_pil_mllama import get_all_supported_aspect_ratios
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from helpers.errors import CheckpointError
from helpers.inputs.chat_templates import template_of
from helpers.inputs.prompts import IMAGE, SYSTEM_WORDS, Template
from helpers.models.budgets import PicturePieces
from helpers.models.exported import Features, ImageInputs
from helpers.models.mllama.exported import MllamaExported
from helpers.models.processors import Processor
from helpers.sources.checkpoints import Config, as_json, pixel_settings, preparation
from helpers.upstream.transformers import set_bos

IMAGE_TOKEN = "<|image|>"
# preprocessor_config.json of the published checkpoints, for a folder without it
SHIPPED: Config = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}


def _header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


# Llama 3's headers; a picture's token stands right before the text.
_BEGIN, _END = "<|begin_of_text|>", "<|eot_id|>"
TEMPLATE = Template(
    _BEGIN,
    _header("user"),
    _END,
    _header("assistant"),
    _END,
    image=IMAGE,
    images=IMAGE,
    system_form=f"{_BEGIN}{_header('system')}{SYSTEM_WORDS}{_END}",
)


class PictureStates(list[Tensor]):
    """The cross-attention states of each picture (tiles, patches, hidden), unused tiles included.

    `tiles` are the numbers of tiles in use.
    """

    def __init__(self, states: Iterable[Tensor], tiles: Sequence[int]) -> None:
        super().__init__(states)
        self.tiles = list(tiles)


# What is read of a config beside transformers' modules, whose classes have the defaults.
_READ = {
    "text_config": (
        MllamaTextConfig,
        (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "cross_attention_layers",
            "max_position_embeddings",
        ),
    ),
    "vision_config": (
        MllamaVisionConfig,
        ("image_size", "patch_size", "max_num_tiles", "intermediate_layers_indices"),
    ),
}


def with_defaults(config: Config) -> Config:
    """Return a config with what its file leaves to transformers' classes.

    Of the cross-attention layers, those that there are: the usual list is that of 40 layers.
    """
    sections = {}
    for section, (kind, names) in _READ.items():
        fields, usual = config.get(section) or {}, kind()
        sections[section] = {name: getattr(usual, name) for name in names} | fields
    text = sections["text_config"]
    layers = range(text["num_hidden_layers"])
    text["cross_attention_layers"] = [n for n in layers if n in text["cross_attention_layers"]]
    return {"image_token_index": MllamaConfig().image_token_index} | config | sections


class MllamaProcessor(Processor):
    """Up to four tiles of a picture on a canvas that fits its shape, and Llama 3's prompts."""

    exported_class = MllamaExported

    def __init__(self, folder: Path, config: Config) -> None:
        super().__init__(folder, with_defaults(config))

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """Return that in `tokenizer.json`; the template has its own `<|begin_of_text|>`."""
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(self.folder)
        set_bos(tokenizer, added=False)
        if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != self.image_token_id:
            raise CheckpointError(
                f"The tokenizer in {self.folder} does not have {IMAGE_TOKEN} at "
                f"{as_json(self.image_token_id)}; take the tokenizer files of the same checkpoint."
            )
        return tokenizer

    @cached_property
    def template(self) -> Template:
        """The words of the files' chat template where they are others than the published.

        The published one refuses a system message beside a picture; that has Llama 3's place here.
        """
        tokenizer = self.with_chat_template(self.load_tokenizer())
        if tokenizer.chat_template is None:
            return TEMPLATE
        tokenizer.bos_token = tokenizer.bos_token or _BEGIN  # with which templates begin
        words = template_of(tokenizer, IMAGE_TOKEN)
        published = TEMPLATE if words.system_form else replace(TEMPLATE, system_form=None)
        return TEMPLATE if words.writes_as(published) else words

    @property
    def image_token_id(self) -> int:
        """The id of `<|image|>`, after which the text sees the picture."""
        return cast(int, self.config["image_token_index"])

    @property
    def context_length(self) -> int:
        """How many tokens a conversation may have; pictures take none of them."""
        return cast(int, self.config["text_config"]["max_position_embeddings"])

    @property
    def stop_token_ids(self) -> list[int]:
        """The ends of a text, a message and a turn, by the folder's files."""
        return self.files_stop_token_ids or super().stop_token_ids

    @property
    def pieces(self) -> PicturePieces:
        """Tiles of a canvas, whose vectors the language model attends to instead of tokens."""
        vision = self.config["vision_config"]
        patches = (vision["image_size"] // vision["patch_size"]) ** 2
        return PicturePieces("tile", patches + 1, vision["max_num_tiles"])

    @property
    def _picture_settings(self) -> Config:
        return preparation(self.folder)

    @property
    def most_tiles(self) -> int:
        """How many tiles a picture has at most, within its budget and by the folder's files."""
        tiles = self.pieces.within(self.picture_tokens)
        return min(tiles, int(self._picture_settings.get("max_image_tiles", tiles)))

    @property
    def image_processor(self) -> MllamaImageProcessorPil:
        """transformers' processor that fits a picture into a canvas of tiles."""
        vision = self.config["vision_config"]
        side = vision["image_size"]
        return MllamaImageProcessorPil(
            size={"height": side, "width": side},
            max_image_tiles=self.most_tiles,
            **SHIPPED | pixel_settings(self._picture_settings),
        )

    def pixels(self, pictures: list[Image.Image]) -> ImageInputs:
        """Return `pixel_values` (1, pictures, tiles, 3, side, side) and how the tiles lie.

        `aspect_ratio_ids` (1, pictures) are places, from 1, in the list of supported shapes;
        `aspect_ratio_mask` (1, pictures, tiles) is 1 for tiles in use.
        """
        conversations: Any = [pictures]  # of which the processor's own annotation does not know
        output = self.image_processor(conversations, return_tensors="pt")
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        inputs = {name: torch.as_tensor(output[name]) for name in names}
        return self._on_the_whole_canvas(inputs)

    def _on_the_whole_canvas(self, inputs: ImageInputs) -> ImageInputs:
        """Return inputs of a canvas of fewer tiles as those of the one that the model knows."""
        fewer, most = self.most_tiles, self.pieces.most
        if fewer == most:
            return inputs
        shapes = get_all_supported_aspect_ratios(most)
        places = [shapes.index(shape) + 1 for shape in get_all_supported_aspect_ratios(fewer)]
        more = most - fewer
        return {
            "pixel_values": nn.functional.pad(inputs["pixel_values"], (0, 0) * 3 + (0, more)),
            "aspect_ratio_ids": torch.tensor([0, *places])[inputs["aspect_ratio_ids"]],
            "aspect_ratio_mask": nn.functional.pad(inputs["aspect_ratio_mask"], (0, more)),
        }

    def image_strings(self, image_inputs: ImageInputs) -> list[str]:
        """Return the one token that each picture has."""
        return [IMAGE_TOKEN] * image_inputs["aspect_ratio_ids"].shape[1]

    def picture_positions(self, input_ids: Tensor) -> Tensor:
        """Return False everywhere: no token's embedding is replaced."""
        return torch.zeros_like(input_ids, dtype=torch.bool)

    def prepare(
        self,
        input_ids: Tensor,
        embed_tokens: Callable[[Tensor], Tensor],
        features: Features | None = None,
        cross_attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return all that the language model takes; without `features` no layer looks at a picture.

        `cross_attention_mask` (1, length, pictures, tiles) says which tiles each token sees; the
        default is what the places of `<|image|>` in `input_ids` say. `features` are then
        `PictureStates`. Rows of `input_ids`, if there are several, have as many pictures each.
        """
        prepared = super().prepare(input_ids, embed_tokens)
        if features is None:
            return prepared
        pictures = len(features) // len(input_ids)  # all prompts of a batch have as many
        if cross_attention_mask is None:
            tiles = cast(PictureStates, features).tiles
            masks = [
                self.cross_attention_mask(ids[None], tiles[row * pictures : (row + 1) * pictures])
                for row, ids in enumerate(input_ids)
            ]
            cross_attention_mask = torch.cat(masks)
        states = torch.unflatten(torch.cat(list(features)), 0, (len(input_ids), -1))
        return prepared | {
            "cross_attention_states": states.flatten(1, 2),
            "cross_attention_mask": cross_attention_mask,
        }

    def transformers_inputs(self, input_ids: Tensor, image_inputs: ImageInputs) -> ImageInputs:
        """Return what transformers' own class takes: with pictures, which tiles each token sees."""
        inputs = super().transformers_inputs(input_ids, image_inputs)
        if not image_inputs:
            return inputs
        tiles = image_inputs["aspect_ratio_mask"].sum(-1).flatten().tolist()
        return inputs | {"cross_attention_mask": self.cross_attention_mask(input_ids, tiles)}

    def cross_attention_mask(self, input_ids: Tensor, tiles: Sequence[int]) -> Tensor:
        """Return which tiles each token sees, (1, length, pictures, tiles), ones and zeros.

        A token sees the last picture before it, and pictures that stand together with that one.
        `tiles` are the numbers of tiles in use.
        """
        ranges = get_cross_attention_token_mask(input_ids[0].tolist(), self.image_token_id)
        if len(ranges) != len(tiles):
            raise CheckpointError(
                f"The prompt has {len(ranges)} {IMAGE_TOKEN} tokens for {len(tiles)} pictures."
            )
        dense = convert_sparse_cross_attention_mask_to_dense(
            [ranges],
            num_tiles=[list(tiles)],
            max_num_tiles=self.config["vision_config"]["max_num_tiles"],
            length=input_ids.shape[1],
        )
        return torch.from_numpy(dense)
