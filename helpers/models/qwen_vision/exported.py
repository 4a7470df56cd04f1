"""How pictures go through three exported parts, and what a prompt takes of their positions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self, cast

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
from helpers.models.longrope import length_of_short_frequencies
from helpers.models.qwen_vision.places import Grid, rotation_angles, single_frames, table_places

if TYPE_CHECKING:
    from helpers.models.qwen_vision.processor import QwenVisionProcessor


class PictureTokens(Tensor):
    """The features of one picture, (tokens, hidden); `grid` counts its patches.

    What is computed from it is a plain tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    grid: Grid

    @classmethod
    def of(cls, features: Tensor, grid: Grid) -> Self:
        """Return the features of a picture with its grid."""
        tokens = features.as_subclass(cls)
        tokens.grid = grid
        return tokens


class PositionInputs(PictureInputs):
    """Positions of prompts' tokens, (prompts, length, dimensions)."""

    @staticmethod
    def joined_steps(steps: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return what single tokens behind their prompts take; positions have the batch second."""
        return {
            name: torch.cat([step[name] for step in steps], dim=int(name == "position_ids"))
            for name in steps[0]
        }

    def behind(self, places: Tensor) -> Tensor:
        """Return how far behind the prompts' last position each place is; 0 for those in them."""
        return (places - (self.along["position_ids"].shape[1] - 1)).clamp(min=0)

    def at(self, places: Tensor, batch: int) -> dict[str, Tensor]:
        """Return what the tokens at `places` take; those behind the prompts count on."""
        inputs = super().at(places, batch)
        position_ids = inputs["position_ids"].permute(2, 0, 1) + self.behind(places)
        return inputs | {"position_ids": position_ids}

    def reach(self, places: Tensor) -> int:
        """Return how long a sequence is by the positions at consecutive `places`, its last."""
        position_ids = self.at(places, len(self.along["position_ids"]))["position_ids"]
        return int(position_ids[-3:].max()) + 1  # a row before those counts tokens


class QwenVisionExported(ExportedParts):
    """The exported parts, of which three make the features of a picture."""

    processor: "QwenVisionProcessor"
    files = FILES_OF_THREE_PART_ENCODER

    @property
    def prefill_again_beyond(self) -> int | None:
        """Up to which position LongRoPE's short frequencies count, if the config names them."""
        return length_of_short_frequencies(self.processor.settings.text_config)

    def encode_images(self, run: RunPart, image_inputs: ImageInputs) -> Features:
        """Return the features of each picture, and of each step of a video.

        One picture a call: a mask over all of them would take the square of all their patches.
        """
        grids = single_frames(image_inputs["image_grid_thw"])
        lengths = [rows * columns for _, rows, columns in grids]
        pictures = torch.split(image_inputs["pixel_values"], lengths)
        return [
            self._encode_picture(run, patches, grid)
            for patches, grid in zip(pictures, grids, strict=True)
        ]

    def _encode_picture(self, run: RunPart, patches: Tensor, grid: Grid) -> PictureTokens:
        vision = self.processor.vision
        side, merge = int(vision.num_position_embeddings**0.5), vision.spatial_merge_size
        head_size, rope = vision.hidden_size // vision.num_heads, vision.rope_parameters
        grids = torch.tensor([grid])
        indices, weights = table_places(grids, side, merge)
        hidden = run(PATCH_EMBEDDINGS, {"hidden_states": patches})["embeddings"]
        corners = run(POSITION_EMBEDDINGS, {"input": indices})["embeddings"]
        inputs = {
            "hidden_states": hidden + (corners * weights).sum(0),
            "attention_mask": torch.zeros(1, 1, 1),  # every patch attends to every other
            "rotary_pos_emb": rotation_angles(grids, head_size, merge, theta=rope["rope_theta"]),
        }
        return self.picture(run(IMAGE_ENCODER, inputs), grid)

    def picture(self, output: dict[str, Tensor], grid: Grid) -> PictureTokens:
        """Return a picture's features from the image encoder's output."""
        return PictureTokens.of(output["last_hidden_state"], grid)

    def picture_inputs(self, input_ids: Tensor, features: Features | None) -> PositionInputs:
        """Return the positions of a prompt's tokens, which count in several dimensions."""
        pictures = cast(Sequence[PictureTokens], features or ())
        position_ids = self.processor.positions_around(input_ids, [p.grid for p in pictures])
        return PositionInputs({}, {"position_ids": position_ids.permute(1, 2, 0)})
