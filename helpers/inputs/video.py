"""Videos as frames with their times: coded ones, animated pictures, folders of pictures.

What this module does not know: which frames a model looks at; it is told a function that chooses.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageSequence, UnidentifiedImageError

from helpers.errors import PictureError, QuestionError, reason_of
from helpers.inputs.coded_video import CodedFrames, unreadable
from helpers.inputs.frames import Frames
from helpers.inputs.images import open_picture, picture_files, reading

APART = 0.5  # seconds between frames that come without their times
QUICK = 0.1  # seconds that a frame of an animation stays whose file says none, as browsers have it
T = TypeVar("T")
# Takes how many frames a video has and how many pass in a second; returns the numbers of those to
# read, from 0 on and in their order.
Choose = Callable[[int, float], Sequence[int]]


@dataclass(frozen=True)
class Video:
    """Frames in their order, PIL pictures or where they are, and when each was taken.

    `times` are seconds from the beginning; without them, frames are half a second apart. A family
    looks at some of the frames only, unless they are `sampled` already. Raises `QuestionError`
    where there are no frames, or not as many times.
    """

    frames: Sequence[Image.Image | str | Path]
    times: Sequence[float] = ()
    sampled: bool = False

    def __post_init__(self) -> None:
        if not len(self.frames):
            raise QuestionError("The video has no frames; give at least one.")
        if not len(self.times):
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

    @property
    def rate(self) -> float:
        """How many frames pass in a second; two where the times do not say."""
        seconds = self.times[-1] - self.times[0]
        return round((len(self) - 1) / seconds, 6) if seconds > 0 else 1 / APART

    def sample(self, choose: Choose) -> "Video":
        """Return the video with the frames only that `choose` returns."""
        if self.sampled:
            return self
        numbers = choose(len(self), self.rate)
        frames = self.frames
        chosen_frames = (
            frames.pick(numbers) if isinstance(frames, Frames) else [frames[i] for i in numbers]
        )
        return Video(chosen_frames, [self.times[number] for number in numbers], sampled=True)


def open_video(source: str | Path, choose: Choose) -> Video:
    """Return the frames that `choose` returns of a video, each read when it is asked for.

    `source` is a file that PyAV reads (MP4, WebM, ...), an animated GIF, WebP or PNG, or a folder
    whose pictures are frames, half a second apart, in the order of their names. Raises
    `PictureError` for anything else.
    """
    path = Path(source)
    try:
        files = picture_files(path, "a video's frames") if path.is_dir() else None
        is_other = path.exists() and not path.is_file()
    except (OSError, ValueError) as error:  # a folder that is closed, a name that cannot be
        raise unreadable(path, reason_of(error)) from None
    if files is not None:
        return Video(files).sample(choose)
    if is_other:
        raise unreadable(path, "it is no file")  # a pipe would wait for ever
    if not path.exists():
        raise PictureError(f"{path} does not exist; give the path of a video.")
    if _is_picture(path):
        times = _animation_times(path)
        return Video(AnimationFrames(path, range(len(times))), times).sample(choose)
    return _open_coded(path, choose)


def _open_coded(path: Path, choose: Choose) -> Video:
    frames = CodedFrames(path)
    numbers = choose(len(frames), frames.rate)
    return Video(frames.pick(numbers), [frames.times[number] for number in numbers], sampled=True)


def _is_picture(path: Path) -> bool:
    """Return whether Pillow reads a file; it knows MPEG by name only."""
    with reading(str(path)), suppress(UnidentifiedImageError), Image.open(path) as picture:
        return picture.format != "MPEG"
    return False


class AnimationFrames(Frames):
    """The frames of an animated picture, of which `numbers` are those to read."""

    def read(self, numbers: Sequence[int]) -> Iterable[Image.Image]:
        """Yield the frames of these numbers, in their order."""
        with Image.open(self.path) as animation:
            for number in numbers:
                animation.seek(number)
                yield open_picture(animation.copy())


def _animation_times(path: Path) -> list[float]:
    """Return when each frame of an animated picture begins, in seconds."""
    open_picture(path)  # or it says why not
    with reading(str(path)), Image.open(path) as animation:
        durations = [_duration(picture) for picture in ImageSequence.Iterator(animation)]
    return [0.0, *accumulate(durations[:-1])]


def _duration(picture: Image.Image) -> float:
    picture.load()  # a WebP's duration is only then that of its present frame
    return float(picture.info.get("duration", 0)) / 1000 or QUICK


def spread(items: Sequence[T], number: int) -> list[T]:
    """Return the middle of each of `number` equal stretches, or all where there are fewer.

    As `get_index` in the examples of InternVL's model cards: a stretch is (last - first) / number
    long.
    """
    if len(items) <= number:
        return list(items)
    stretch = (len(items) - 1) / number
    return [items[int(stretch / 2 + round(stretch * index))] for index in range(number)]
