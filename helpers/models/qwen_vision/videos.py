"""Videos: which frames it looks at, their size, and two of them in one patch.

As `Qwen3VLVideoProcessor` of transformers, which needs torchvision, without the cap for each frame
that it leaves off unless it is asked for.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from helpers.inputs.images import open_picture
from helpers.inputs.video import Video
from helpers.models.exported import ImageInputs
from helpers.sources.checkpoints import Config

# What the class says where no file does.
SHIPPED: Config = {
    "size": {"shortest_edge": 131_072, "longest_edge": 786_432},
    "fps": 2,
    "min_frames": 4,
    "max_frames": 768,
}


@dataclass(frozen=True)
class VideoSettings:
    """How many frames are read, and how many pixels all of them have together.

    `unit` is the side of a token in pixels; `most_for_frame` is the budget of a step of two frames.
    `frames` is how many of any video are read, in place of a rate.
    """

    least: int
    most: int
    rate: float
    fewest_frames: int
    most_frames: int
    unit: int
    most_for_frame: int | None = None
    frames: int | None = None

    @classmethod
    def of(cls, config: Config, unit: int, most_for_frame: int | None) -> "VideoSettings":
        """Return what a `video_preprocessor_config.json` says; null counts as nothing."""
        config = {name: value for name, value in config.items() if value is not None}
        frames = None if "fps" in config else config.get("num_frames")
        config = SHIPPED | config
        return cls(
            config["size"]["shortest_edge"],
            config["size"]["longest_edge"],
            config["fps"],
            config["min_frames"],
            config["max_frames"],
            unit,
            most_for_frame,
            frames,
        )

    def choose(self, number: int, rate: float) -> list[int]:
        """Return which of `number` frames, `rate` a second, are read, evenly spread.

        As `sample_frames`: so many a second, but no fewer and no more than the settings say.
        """
        count = self.frames or max(int(number / rate * self.rate), self.fewest_frames)
        count = min(count, self.most_frames, number)
        return [
            int(place)
            for place in torch.linspace(0, number - 1, count, dtype=torch.float64).round()
        ]

    def size(self, width: int, height: int, frames: int) -> tuple[int, int]:
        """Return the width and height that `frames` frames get.

        As the `smart_resize` of videos: the nearest whole tokens, and the same shape in fewer or
        more pixels where all frames together are beyond the limits.
        """
        most = self.most
        if self.most_for_frame is not None:
            most = min(most, self.most_for_frame * frames)
        least, unit = min(self.least, most), self.unit
        enlarged = max(1.0, unit / width, unit / height)
        width, height = int(width * enlarged), int(height * enlarged)
        fitted = [round(side / unit) * unit for side in (width, height)]
        total = round(frames / 2) * 2 * fitted[0] * fitted[1]
        if total > most:
            scale = math.sqrt(frames * width * height / most)
            fitted = [max(unit, int(side / scale / unit) * unit) for side in (width, height)]
        elif total < least:
            scale = math.sqrt(least / (frames * width * height))
            fitted = [math.ceil(side * scale / unit) * unit for side in (width, height)]
        return fitted[0], fitted[1]


def video_inputs(
    images: Qwen2VLImageProcessorPil, settings: VideoSettings, video: Video
) -> ImageInputs:
    """Return the inputs of one video, its frames joined two by two, and the `times` of its steps.

    The last frame stands twice where their number is odd. A step's time is the middle of its own.
    Frames are read one after another, and no more than two are in memory.
    """
    video = video.sample(settings.choose)
    frames = _fitted(video, settings)
    steps = [_step(images, first, second) for first, second in _pairs(frames)]
    times = list(_pairs(iter(video.times)))
    patches, grids = zip(*steps, strict=True)
    return {
        "pixel_values": torch.cat(patches),
        "image_grid_thw": torch.tensor([[len(steps), *grids[0][1:]]]),
        "times": [[(begin + end) / 2 for begin, end in times]],
    }


def _fitted(video: Video, settings: VideoSettings) -> Iterator[Image.Image]:
    """Yield the frames in their size; all get that of the first."""
    frames = map(open_picture, video.frames)
    first = next(frames)
    size = settings.size(*first.size, max(len(video), 2))
    for frame in chain([first], frames):
        yield frame if frame.size == size else frame.resize(size, Image.Resampling.BICUBIC)


def _pairs(items: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield items two by two; the last stands twice where their number is odd."""
    for first, second in zip_longest(items, items):
        yield first, first if second is None else second


def _step(
    images: Qwen2VLImageProcessorPil, first: Image.Image, second: Image.Image
) -> tuple[Tensor, list[int]]:
    """Return the patches (patches, values) of two frames, and their grid.

    Each is prepared as a picture, whose patches hold it twice.
    """
    output = cast(Any, images)([first, second], do_resize=False, return_tensors="pt")
    patches = output["pixel_values"].unflatten(0, (2, -1)).unflatten(-1, (3, 2, -1))
    return torch.stack([patches[0, :, :, 0], patches[1, :, :, 1]], 2).flatten(1), (
        output["image_grid_thw"][0].tolist()
    )
