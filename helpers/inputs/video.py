"""Videos as frames with their times: coded ones, animated pictures, folders of pictures.

What this module does not know: which frames a model looks at; it is told a function that chooses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageSequence

from helpers.errors import PictureError, QuestionError
from helpers.inputs.images import open_picture

FRAMES = 8  # that a model is given, as in the examples of InternVL's model cards
APART = 0.5  # seconds between frames that come without their times
T = TypeVar("T")
# Takes how many frames a video has and how many pass in a second; returns the numbers of those to
# read, from 0 on and in their order.
Choose = Callable[[int, float], Sequence[int]]


@dataclass(frozen=True)
class Video:
    """Frames in their order, PIL pictures or where they are, and when each was taken.

    `times` are seconds from the beginning; without them, frames are half a second apart. Raises
    `QuestionError` where there are not as many times as frames.
    """

    frames: Sequence[Image.Image | str | Path]
    times: Sequence[float] = ()

    def __post_init__(self) -> None:
        if not self.times:
            times = [APART * number for number in range(len(self.frames))]
            object.__setattr__(self, "times", times)
        if len(self.times) != len(self.frames):
            raise QuestionError(
                f"The video has {len(self.frames)} frames but {len(self.times)} times; give one "
                "time, in seconds, for each frame."
            )

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)
def open_video(source: str | Path, frames: int = FRAMES) -> list[Image.Image]:
    """Return at most `frames` pictures of a video, evenly spread, as RGB.

    `source` is an animated GIF, WebP or PNG, or a folder whose pictures are frames in the order of
    their names. Raises `PictureError` for anything else.
    """
    path = Path(source)
    if path.is_dir():
        endings = Image.registered_extensions()
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in endings)
        if not files:
            raise PictureError(f"The folder {path} holds no pictures; put a video's frames there.")
        return [open_picture(file) for file in spread(files, frames)]
    open_picture(path)  # or it says why not
    with Image.open(path) as animation:
        pictures = [picture.copy() for picture in ImageSequence.Iterator(animation)]
    return [open_picture(picture) for picture in spread(pictures, frames)]


def spread(items: Sequence[T], number: int) -> list[T]:
    """Return the middle of each of `number` equal stretches, or all where there are fewer.

    As `get_index` in the examples of InternVL's model cards: a stretch is (last - first) / number
    long.
    """
    if len(items) <= number:
        return list(items)
    stretch = (len(items) - 1) / number
    return [items[int(stretch / 2 + round(stretch * index))] for index in range(number)]
