"""MiniCPM-V 4.6 as it is exported: an image encoder in three parts, the middle one if needed."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from helpers.graphs.part_names import (
    EARLY_LAYERS,
    FILES_OF_MERGING_ENCODER,
    IMAGE_ENCODER,
    WINDOW_MERGER,
)
from helpers.models.exported import ExportedParts, Features, ImageInputs, RunPart
from helpers.models.longrope import length_of_short_frequencies
from helpers.models.minicpm_v4_6.patches import (
    FEW,
    levels_of,
    nested_order,
    patches_in_order,
    table_places,
    unpack,
)
from helpers.models.qwen_vision.exported import PositionInputs
from helpers.models.slices import by_size

if TYPE_CHECKING:
    from helpers.models.minicpm_v4_6.processor import MiniCPMV4_6Processor


class MiniCPMV4_6Exported(ExportedParts):
    """The exported parts: slices of one size at a time, and positions as Qwen3.5 has them."""

    processor: "MiniCPMV4_6Processor"
    files = FILES_OF_MERGING_ENCODER

    @property
    def prefill_again_beyond(self) -> int | None:
        """Up to which position LongRoPE's short frequencies count, if the config names them."""
        return length_of_short_frequencies(self.processor.settings.text_config)

    def encode_images(self, run: RunPart, image_inputs: ImageInputs) -> list[Tensor]:
        """Return (tokens, hidden) for each overview and slice."""
        mode = image_inputs.get("downsample_mode") or self.processor.downsample_mode
        pieces = list(unpack(image_inputs["pixel_values"], image_inputs["target_sizes"]))
        return by_size(lambda pixels: self._encode(run, pixels, mode), pieces)

    def _encode(self, run: RunPart, pixels: Tensor, mode: str) -> Tensor:
        """Return the features (number, tokens, hidden) of pieces (number, 3, height, width)."""
        settings = self.processor.settings
        vision, side = settings.vision_config, settings.patch_size
        rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
        order = nested_order(rows, columns, levels_of(mode, settings.merger_times))
        inputs = {
            "pixel_values": patches_in_order(pixels, side, order),
            "position_ids": table_places(rows, columns, vision.image_size // side, order),
        }
        hidden = run(EARLY_LAYERS, inputs)["hidden_states"]
        if mode == FEW:
            hidden = run(WINDOW_MERGER, {"hidden_states": hidden})["merged_states"]
        return run(IMAGE_ENCODER, {"hidden_states": hidden})["last_hidden_state"]

    def picture_inputs(self, input_ids: Tensor, features: Features | None) -> PositionInputs:
        """Return the positions of a prompt's tokens, each the same four times."""
        positions = torch.arange(input_ids.shape[1])[None, :, None].repeat(1, 1, 4)
        return PositionInputs({}, {"position_ids": positions})
