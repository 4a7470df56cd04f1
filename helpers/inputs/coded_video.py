"""The frames of a coded video, such as MP4 or WebM, read through PyAV.

PyAV is imported when such a file is given. What this module does not know: sound, and pixels that
are not square.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from helpers.errors import PictureError, system_reason
from helpers.inputs.frames import Frames
from helpers.inputs.images import open_picture


class CodedFrames(Frames):
    """The frames of a coded video; `times` are seconds since its first, `rate` frames a second.

    Raises `PictureError` for a file that PyAV cannot read or that has no pictures.
    """

    def __init__(self, path: Path) -> None:
        with _stream(path) as (container, stream):
            packets = [
                (packet.pts, packet.is_keyframe)
                for packet in container.demux(stream)
                if packet.pts is not None and not packet.is_discard
            ]
            self.rate = float(stream.average_rate or 0)
            unit = float(stream.time_base)
        if not packets:
            raise unreadable(path, "it has no frames")
        self._stamps = sorted(stamp for stamp, _ in packets)  # in units of the file
        self._starts = sorted(stamp for stamp, is_start in packets if is_start)
        self.times = [(stamp - self._stamps[0]) * unit for stamp in self._stamps]
        super().__init__(path, range(len(packets)))

    def read(self, numbers: Sequence[int]) -> Iterator[Image.Image]:
        """Yield the frames of these numbers, which do not fall; those between are decoded only."""
        with _stream(self.path) as (container, stream):
            frames, frame, picture = _decoded(container, stream), None, None
            for stamp in (self._stamps[number] for number in numbers):
                start = self._start_before(stamp)
                if start is not None and (frame is None or frame.pts < start):
                    container.seek(start, stream=stream)  # it costs less than what is between
                    frames = _decoded(container, stream)
                while frame is None or frame.pts < stamp:
                    following = next(frames, None)
                    if following is None:  # what is left cannot be decoded; the last frame stays
                        break
                    if following.pts is not None:
                        frame, picture = following, None
                if frame is None:
                    raise unreadable(self.path, "none of its frames can be decoded")
                picture = picture or _upright(frame)
                yield picture

    def _start_before(self, stamp: int) -> int | None:
        """Return where decoding can begin so that it reaches a frame soonest."""
        place = bisect_right(self._starts, stamp)
        return self._starts[place - 1] if place else None


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the frames from where a file stands, but for those that cannot be decoded.

    Several threads decode, so it depends on their times behind which packet an error is told.
    """
    import av

    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:  # a file that was cut off, or is damaged in one place
            continue
        yield from frames


def _upright(frame: Any) -> Image.Image:
    """Return a frame as a person sees it: a phone writes how it was held beside the pixels."""
    return open_picture(frame.to_image().rotate(frame.rotation, expand=True))


@contextmanager
def _stream(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open the first video of a file; what PyAV raises while it is read is a `PictureError`."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise unreadable(path, "it has no pictures in it")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except av.error.FFmpegError as error:
        raise unreadable(path, system_reason(error)) from None


def unreadable(path: Path, reason: str) -> PictureError:
    """Return what a user is told of a file that is no video."""
    return PictureError(f"{path} cannot be read as a video ({reason}); give another file.")
