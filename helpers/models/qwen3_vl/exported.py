"""Qwen3-VL as it is exported: what each part takes and gives of DeepStack."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import Tensor

from helpers.models.exported import Features, PictureInputs
from helpers.models.qwen_vision.exported import PictureTokens, PositionInputs, QwenVisionExported
from helpers.models.qwen_vision.places import Grid

if TYPE_CHECKING:
    from helpers.models.qwen3_vl.processor import Qwen3VLProcessor


class DeepStackTokens(PictureTokens):
    """The features of one picture, (tokens, hidden), with its grid and its DeepStack rows.

    `deepstack` (layers, tokens, hidden) is what is added to the same tokens behind the language
    model's first layers.
    """

    deepstack: Tensor

    @classmethod
    def with_rows(cls, features: Tensor, grid: Grid, deepstack: Tensor) -> Self:
        """Return the features of a picture with its grid and its DeepStack rows."""
        tokens = cls.of(features, grid)
        tokens.deepstack = deepstack
        return tokens


@dataclass(frozen=True, eq=False)
class DeepStackInputs(PositionInputs):
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
        rows = steps[0]["deepstack_visual_embeds"]
        return PositionInputs.joined_steps(steps) | {"deepstack_visual_embeds": rows}

    def at(self, places: Tensor, batch: int) -> dict[str, Tensor]:
        """Return what the tokens at `places` take; those behind the prompts are text."""
        inputs = super().at(places, batch)
        length = self.along["position_ids"].shape[1]
        return inputs | {
            "visual_pos_masks": inputs["visual_pos_masks"] & (self.behind(places) == 0),
            "deepstack_visual_embeds": self._rows_at(places.clamp(max=length - 1), batch),
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


class Qwen3VLExported(QwenVisionExported):
    """The exported parts, with DeepStack."""

    processor: "Qwen3VLProcessor"

    def picture(self, output: dict[str, Tensor], grid: Grid) -> DeepStackTokens:
        """Return a picture's features and DeepStack rows from the image encoder's output."""
        features, rows = output["last_hidden_state"], output["deepstack_feature_lists"]
        return DeepStackTokens.with_rows(features, grid, rows)

    def picture_inputs(self, input_ids: Tensor, features: Features | None) -> DeepStackInputs:
        """Return the positions of a prompt's tokens, and DeepStack rows of those of pictures."""
        layers = self.processor.deepstack_layers
        hidden = self.processor.settings.text_config.hidden_size
        pictures = cast(Sequence[DeepStackTokens], features or ())
        rows = [picture.deepstack for picture in pictures] or [torch.zeros(layers, 0, hidden)]
        along = super().picture_inputs(input_ids, features).along | {
            "visual_pos_masks": self.processor.picture_positions(input_ids)
        }
        return DeepStackInputs({}, along, [torch.cat(rows, dim=1)])
