"""Videos as their frames: animated pictures, and folders with a picture for each frame.

What this module does not know: coded videos such as MP4; a program such as ffmpeg writes their
frames into a folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

from helpers.errors import PictureError
from helpers.inputs.images import open_picture, reading

FRAMES = 8  # that a model is given, as in the examples of InternVL's model cards
T = TypeVar("T")


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
    pictures = []
    with reading(str(path)), Image.open(path) as animation:
        for number in spread(range(getattr(animation, "n_frames", 1)), frames):
            animation.seek(number)
            pictures.append(open_picture(animation))
    return pictures


def spread(items: Sequence[T], number: int) -> list[T]:
    """Return the middle of each of `number` equal stretches, or all where there are fewer.

    As `get_index` in the examples of InternVL's model cards: a stretch is (last - first) / number
    long.
    """
    if len(items) <= number:
        return list(items)
    stretch = (len(items) - 1) / number
    return [items[int(stretch / 2 + round(stretch * index))] for index in range(number)]
