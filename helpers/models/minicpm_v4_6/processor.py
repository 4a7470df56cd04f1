"""MiniCPM-V 4.6's pictures and prompts: slices in patches, and a number for each picture."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import MiniCPMV4_6Config

from helpers.errors import CheckpointError
from helpers.inputs.chat_templates import template_of
from helpers.inputs.prompts import IMAGE, Template
from helpers.models.budgets import PicturePieces
from helpers.models.exported import ImageInputs
from helpers.models.minicpm_v4_6.exported import MiniCPMV4_6Exported
from helpers.models.minicpm_v4_6.patches import FEW, MANY, levels_of, pack
from helpers.models.processors import Processor
from helpers.models.qwen_vision.processor import CHATML
from helpers.models.slices import HALVES, Plan, Slicing, cut, normalised, plan_slices, refuse_long
from helpers.sources.checkpoints import Config, preparation
from helpers.upstream.transformers import new_config

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
MARKS = ("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>")
# preprocessor_config.json of the published checkpoint, for a folder without it
SHIPPED: Config = {
    "max_slice_nums": 9,
    "scale_resolution": 448,
    "slice_mode": True,
    "use_image_id": True,
    "downsample_mode": FEW,
    "image_mean": HALVES,
    "image_std": HALVES,
}


class MiniCPMV4_6Processor(Processor):
    """An overview and slices of each picture, in one of two numbers of tokens, and ChatML."""

    exported_class = MiniCPMV4_6Exported
    most_pictures = None

    @cached_property
    def settings(self) -> Any:
        """The config as transformers reads it; a `CheckpointError` for merges not read here."""
        settings = new_config(MiniCPMV4_6Config, **self.config)
        vision: Any = settings.vision_config
        layers = range(vision.num_hidden_layers)
        readable: dict[str, tuple[Any, Sequence[object]]] = {
            "window_kernel_size": (list(vision.window_kernel_size), [[2, 2]]),
            "merge_kernel_size": (list(settings.merge_kernel_size), [[2, 2]]),
            "insert_layer_id": (settings.insert_layer_id, layers),
            "merger_times": (settings.merger_times, range(1, 10)),
        }
        for field, (value, values) in readable.items():
            if value not in values:
                raise CheckpointError(
                    f"{field} in {self.folder / 'config.json'} is {value}, and only "
                    f"{_in_words(values)} is read here; use a checkpoint of the published kind."
                )
        return settings

    @cached_property
    def picture_settings(self) -> Config:
        """How the folder's files say that pictures are prepared."""
        return SHIPPED | preparation(self.folder)

    # Prompts

    @cached_property
    def template(self) -> Template:
        """The words of the tokenizer's chat template; without one, ChatML."""
        tokenizer = self.with_chat_template(self.load_tokenizer())
        if tokenizer.chat_template is None:
            return replace(CHATML, image=IMAGE + "\n", images=IMAGE + "\n")
        return template_of(tokenizer, IMAGE_TOKEN)

    @property
    def image_token_id(self) -> int:
        """The id of `<|image_pad|>`."""
        number = self.settings.image_token_id
        return cast(
            int, self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) if number is None else number
        )

    @property
    def context_length(self) -> int:
        """The context of the language model."""
        return cast(int, self.settings.text_config.max_position_embeddings)

    def image_strings(self, image_inputs: ImageInputs) -> list[str]:
        """Return for each picture its overview's tokens, and its slices' row by row."""
        patches = image_inputs["target_sizes"].prod(-1)
        counts = iter((patches // 4 ** self._levels(image_inputs["downsample_mode"])).tolist())
        return [self._placeholder(counts, *grid) for grid in image_inputs["grids"].tolist()]

    @staticmethod
    def _placeholder(counts: Iterator[int], columns: int, rows: int) -> str:
        """Return the tokens of one picture, whose pieces have the next `counts` of them."""
        overview = f"<image>{IMAGE_TOKEN * next(counts)}</image>"
        slices = [f"<slice>{IMAGE_TOKEN * next(counts)}</slice>" for _ in range(rows * columns)]
        lines = ["".join(slices[row * columns : (row + 1) * columns]) for row in range(rows)]
        return overview + "\n".join(lines)

    def with_number(self, number: int, string: str | list[int]) -> str | list[int]:
        """Return the tokens of a conversation's picture behind its number, counted from 0."""
        if not self.picture_settings["use_image_id"]:
            return string
        return f"<image_id>{number}</image_id>{string}"

    # Pictures

    def _levels(self, mode: str) -> int:
        return levels_of(mode, self.settings.merger_times)

    @property
    def pieces(self) -> PicturePieces:
        """Slices and an overview, each of as many tokens as a square one has in either mode."""
        settings = self.picture_settings
        most = settings["max_slice_nums"] if settings["slice_mode"] else 1
        patches = (settings["scale_resolution"] // self.settings.patch_size) ** 2
        few, many = (max(1, patches // 4 ** self._levels(mode)) for mode in (FEW, MANY))
        return PicturePieces("slice", few, most, overview=True, finer=many, varies=True)

    @property
    def usual_picture_tokens(self) -> int | None:  # type: ignore[override]
        """The budget for the mode that the folder's files name, if it is that of many tokens."""
        modes = {self.picture_settings["downsample_mode"], self.settings.downsample_mode}
        return self.pieces.largest if MANY in modes else None

    @property
    def downsample_mode(self) -> str:
        """How many times fewer tokens than patches there are: "4x" if the budget has room."""
        budget = self.picture_tokens or self.usual_picture_tokens
        return FEW if self.pieces.at(budget) == self.pieces else MANY

    @property
    def slicing(self) -> Slicing:
        """How pictures are cut: sides are whole numbers of tokens."""
        unit = self.settings.patch_size * 2 ** self._levels(self.downsample_mode)
        slices = self.pieces.within(self.picture_tokens)
        return Slicing(self.picture_settings["scale_resolution"], unit, slices)

    def plan(self, width: int, height: int) -> Plan:
        """Return into what a picture of `width` x `height` pixels is cut; within its budget.

        A slice that is no square can have a few tokens more than one that is, which may take a
        smaller number of slices, and of a long picture in one piece a smaller area.
        """
        slicing, side = self.slicing, self.settings.patch_size
        plan = plan_slices(width, height, slicing)
        refuse_long((width, height), plan, slicing.resolution**2 // side)
        while self.picture_tokens is not None and _tokens(plan, slicing) > self.picture_tokens:
            if slicing.maximum > 1:
                slicing = replace(slicing, maximum=slicing.maximum - 1)
            else:
                slicing = replace(slicing, resolution=slicing.resolution - side)
            plan = plan_slices(width, height, slicing)
        return plan

    def pixels(self, pictures: list[Image.Image]) -> ImageInputs:
        """Return what the image encoder takes, and the grids of slices, for the prompt.

        `pixel_values` (1, 3, patch, patch times patches) has the patches of all pieces, each
        picture's overview first, then its slices row by row. `target_sizes` (pieces, 2) counts the
        patches of each down and across, `grids` (pictures, 2) the slices across and down, (0, 0)
        for a picture that is not cut. `downsample_mode` is how they are merged.
        """
        plans = [self.plan(*picture.size) for picture in pictures]
        mean, deviation = (self.picture_settings[name] for name in ("image_mean", "image_std"))
        pieces = []
        for picture, plan in zip(pictures, plans, strict=True):
            pieces += [normalised(piece, mean, deviation) for piece in cut(picture, plan)]
        side = self.settings.patch_size
        sizes = [[piece.shape[2] // side, piece.shape[3] // side] for piece in pieces]
        return {
            "pixel_values": torch.cat([pack(piece, side) for piece in pieces], dim=-1),
            "target_sizes": torch.tensor(sizes, dtype=torch.int32),
            "grids": torch.tensor([plan.grid or (0, 0) for plan in plans]),
            "downsample_mode": self.downsample_mode,
        }

    def transformers_inputs(self, input_ids: Tensor, image_inputs: ImageInputs) -> ImageInputs:
        """Return what transformers' own class takes; grids are for the prompt only."""
        inputs = super().transformers_inputs(input_ids, image_inputs)
        return {name: value for name, value in inputs.items() if name != "grids"}


def _in_words(values: Sequence[object]) -> str:
    """Return the only value that is read, or the first and the last."""
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _tokens(plan: Plan, slicing: Slicing) -> int:
    """Return how many tokens a picture has that is cut so."""
    sizes = [plan.overview]
    if plan.grid is not None and plan.cell is not None:
        columns, rows = plan.grid
        sizes += [plan.cell] * (columns * rows)
    return sum(width * height // slicing.patch**2 for width, height in sizes)
