"""The frames of a file as a sequence, each read when it is asked for, so that few are in memory.

What this module does not know: kinds of files.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Self, overload

from PIL import Image


class Frames(Sequence[Image.Image], ABC):
    """Frames of the file at `path`: those of the `numbers`, in their order."""

    def __init__(self, path: Path, numbers: Sequence[int]) -> None:
        self.path, self.numbers = path, numbers

    @abstractmethod
    def read(self, numbers: Sequence[int]) -> Iterable[Image.Image]:
        """Yield the file's frames of these numbers, which do not fall, right way up and RGB."""

    def pick(self, places: Sequence[int]) -> Self:
        """Return the frames at some places of this sequence only."""
        frames = copy(self)
        frames.numbers = [self.numbers[place] for place in places]
        return frames

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.numbers)

    def __iter__(self) -> Iterator[Image.Image]:
        """Read one frame after another."""
        return iter(self.read(self.numbers))

    @overload
    def __getitem__(self, place: int) -> Image.Image: ...
    @overload
    def __getitem__(self, place: slice) -> Self: ...
    def __getitem__(self, place: int | slice) -> Image.Image | Self:
        """Read one frame, or return some of them as a sequence."""
        if isinstance(place, slice):
            return self.pick(range(len(self))[place])
        return next(iter(self.read([self.numbers[place]])))
