"""Qwen3-VL's videos: which frames it looks at, their size, and two of them in one patch.

As `Qwen3VLVideoProcessor` of transformers, which needs torchvision.
"""

from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor

from helpers.inputs.images import open_picture
from helpers.inputs.video import Video
from helpers.models.exported import ImageInputs

if TYPE_CHECKING:
    from helpers.models.qwen3_vl.processor import Qwen3VLProcessor


def video_inputs(processor: "Qwen3VLProcessor", video: Video) -> ImageInputs:
    """Return the inputs of one video, its frames joined two by two, and the `times` of its steps.

    The last frame stands twice where their number is odd. A step's time is the middle of its own.
    """
    images = processor.image_processor
    together = images.temporal_patch_size
    frames = [open_picture(frame) for frame in video.frames]
    missing = -len(frames) % together
    times = [*video.times, *[video.times[-1]] * missing]
    size = (frames[0].width, frames[0].height)
    frames = [frame.resize(size) if frame.size != size else frame for frame in frames]
    frames += [frames[-1]] * missing
    patches, grid = _patches(images, frames)
    steps = torch.unflatten(patches, 0, (-1, together))  # (steps, together, patches, values)
    values = torch.unflatten(steps, -1, (3, together, -1))
    joined = torch.stack([values[:, number, :, :, number] for number in range(together)], dim=3)
    return {
        "pixel_values": joined.flatten(2).flatten(0, 1),
        "image_grid_thw": torch.tensor([[len(joined), *grid]]),
        "times": [[(a + b) / 2 for a, b in zip(times[::together], times[1::together], strict=True)]],
    }


def _patches(images: Any, frames: list[Image.Image]) -> tuple[Tensor, list[int]]:
    """Return the patches (frames, patches, values) of pictures of one size, and rows and columns.

    Each is prepared as a picture, which stands for all frames of a step.
    """
    output = cast(Any, images)(frames, return_tensors="pt")
    _, *grid = output["image_grid_thw"][0].tolist()
    return output["pixel_values"].unflatten(0, (len(frames), -1)), grid
