"""Qwen3-VL as it is exported: what each part takes, and how pictures go through three of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor

from helpers.graphs.part_names import (
    FILES_OF_THREE_PART_ENCODER,
    IMAGE_ENCODER,
    PATCH_EMBEDDINGS,
    POSITION_EMBEDDINGS,
)
from helpers.models.exported import (
    ExportedParts,
    Features,
    ImageInputs,
    PictureInputs,
    RunPart,
)
from helpers.models.qwen3_vl.places import Grid, rotation_angles, table_places

if TYPE_CHECKING:
    from helpers.models.qwen3_vl.processor import Qwen3VLProcessor


class PictureTokens(Tensor):
    """The features of one picture, (tokens, hidden), which carry what else belongs to it.

    `deepstack` (layers, tokens, hidden) is what is added to the same tokens behind the language
    model's first layers; `grid` counts the patches. What is computed from it is a plain tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    deepstack: Tensor
    grid: Grid

    @staticmethod
    def of(features: Tensor, deepstack: Tensor, grid: Grid) -> "PictureTokens":
        """Return the features of a picture with its DeepStack rows and its grid."""
        tokens = features.as_subclass(PictureTokens)
        tokens.deepstack, tokens.grid = deepstack, grid
        return tokens


@dataclass(frozen=True, eq=False)
class Qwen3VLPictureInputs(PictureInputs):
    """Positions of prompts' tokens, (prompts, length, 3), and DeepStack rows of their pictures.

    `deepstack` holds a prompt's rows (layers, picture tokens, hidden); `along` says under
    "visual_pos_masks" which tokens they belong to.
    """

    deepstack: list[Tensor] = field(default_factory=list)

    @classmethod
    def joined(cls, prompts: Sequence[PictureInputs], length: int) -> Self:
        """Return what prompts of one batch take, padded on the left to `length`."""
        parts = cast(Sequence[Self], prompts)
        along = cls.joined_along(prompts, length)
        return cls({}, along, [rows for part in parts for rows in part.deepstack])

    @staticmethod
    def joined_steps(steps: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return what single tokens behind their prompts take; none of them is a picture's."""
        positions = [step["position_ids"] for step in steps]  # each (dimensions, 1, 1)
        masks = [step["visual_pos_masks"] for step in steps]
        return {
            "position_ids": torch.cat(positions, dim=1),
            "visual_pos_masks": torch.cat(masks),
            "deepstack_visual_embeds": steps[0]["deepstack_visual_embeds"],
        }

    def at(self, places: Tensor, batch: int) -> dict[str, Tensor]:
        """Return what the tokens at `places` take; those behind the prompts are text."""
        inputs = super().at(places, batch)
        length = self.along["position_ids"].shape[1]
        behind = (places - (length - 1)).clamp(min=0)  # each has the position after the last one's
        position_ids = inputs["position_ids"].permute(2, 0, 1) + behind
        is_picture = inputs["visual_pos_masks"] & (behind == 0)
        rows = self._rows_at(places.clamp(max=length - 1), batch)
        return {
            "position_ids": position_ids,
            "visual_pos_masks": is_picture,
            "deepstack_visual_embeds": rows,
        }

    def _rows_at(self, places: Tensor, batch: int) -> Tensor:
        """Return the DeepStack rows of consecutive places; one of zeros where there are none."""
        pieces = []
        for is_picture, rows in zip(self.along["visual_pos_masks"], self.deepstack, strict=True):
            start = int(is_picture[: places[0]].sum())
            count = int(is_picture[places[0] : places[-1] + 1].sum())
            pieces += [rows[:, start : start + count]] * (batch // len(self.deepstack))
        rows = torch.cat(pieces, dim=1)
        return rows if rows.shape[1] else rows.new_zeros(rows.shape[0], 1, rows.shape[2])


class Qwen3VLExported(ExportedParts):
    """The exported parts, of which three make the features of a picture."""

    processor: "Qwen3VLProcessor"
    files = FILES_OF_THREE_PART_ENCODER

    def encode_images(self, run: RunPart, image_inputs: ImageInputs) -> Features:
        """Return the features of each picture, and of each step of a video.

        One picture a call: a mask over all of them would take the square of all their patches.
        """
        grids = self.processor.single_grids(image_inputs["image_grid_thw"])
        lengths = [rows * columns for _, rows, columns in grids]
        pictures = torch.split(image_inputs["pixel_values"], lengths)
        return [
            self._encode_picture(run, patches, grid)
            for patches, grid in zip(pictures, grids, strict=True)
        ]

    def _encode_picture(self, run: RunPart, patches: Tensor, grid: Grid) -> PictureTokens:
        vision = self.processor.vision
        side, merge = int(vision.num_position_embeddings**0.5), vision.spatial_merge_size
        grids = torch.tensor([grid])
        indices, weights = table_places(grids, side, merge)
        hidden = run(PATCH_EMBEDDINGS, {"hidden_states": patches})["embeddings"]
        corners = run(POSITION_EMBEDDINGS, {"input": indices})["embeddings"]
        inputs = {
            "hidden_states": hidden + (corners * weights).sum(0),
            "attention_mask": torch.zeros(1, 1, 1),  # every patch attends to every other
            "rotary_pos_emb": rotation_angles(grids, vision.hidden_size // vision.num_heads, merge),
        }
        output = run(IMAGE_ENCODER, inputs)
        return PictureTokens.of(
            output["last_hidden_state"], output["deepstack_feature_lists"], grid
        )

    def prepare(
        self,
        input_ids: Tensor,
        embed_tokens: Callable[[Tensor], Tensor],
        features: Features | None = None,
        *,
        past: int = 0,
    ) -> dict[str, Any]:
        """Return what the language model takes; positions count in three dimensions."""
        processor = self.processor
        prepared = super().prepare(input_ids, embed_tokens, features, past=past)
        pictures = cast(Sequence[PictureTokens], features or ())
        position_ids = processor.positions_around(input_ids, [p.grid for p in pictures])
        layers, hidden = processor.deepstack_layers, prepared["inputs_embeds"].shape[-1]
        rows = [picture.deepstack for picture in pictures] or [torch.zeros(layers, 0, hidden)]
        along = {
            "position_ids": position_ids.permute(1, 2, 0),
            "visual_pos_masks": processor.picture_positions(input_ids),
        }
        return prepared | {
            "pictures": Qwen3VLPictureInputs({}, along, [torch.cat(rows, dim=1)]),
        }
