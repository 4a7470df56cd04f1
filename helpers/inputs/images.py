"""Opening pictures so that every model sees what a person sees.

Pixels are worked on strip by strip, so that a picture takes little more memory than it has pixels.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Set
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, UnidentifiedImageError

from helpers.errors import PictureError, PictureSizeError, check_resources, reason_of, unreadable

Picture = str | Path | IO[bytes] | Image.Image  # where it is, an open file, or the picture itself

MAXIMUM_PIXELS = 64_000_000  # a 64-megapixel camera; Pillow itself only warns below 179 million
# A longer one has less than a hundredth of that on its other side, of which no model sees much, and
# Pillow takes 32 bytes for each pixel of a side when it makes a picture smaller.
MAXIMUM_SIDE = 100_000
LONGEST_NAME = 300  # characters of a path in a sentence; Linux takes 4096
# Of a folder's pictures, and of those that cannot be read here, such as a telephone's.
SUFFIXES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif"}
SUFFIXES |= {".tiff", ".avif", ".jp2", ".qoi", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"}
UNREADABLE_SUFFIXES = {".heic", ".heif"}
_STRIP = 2**20  # pixels that are worked on at once
# A picture in fractions has a few lights above 1. One whose values go to 255 is black to the eye
# where its mean is below this.
_DARK = 8.0

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def open_picture(source: Picture) -> Image.Image:
    """Return `source`, a file or a PIL picture, as RGB and the right way up.

    The rotation that a camera wrote into the file (EXIF) is applied, transparency becomes white,
    and of an animation the first frame is taken. Anything that cannot be read is a `PictureError`.
    """
    name = name_of(source)
    with reading(name):
        return _to_rgb(_load(source, name))


def picture_files(folder: Path, what: str) -> list[Path]:
    """Return a folder's pictures by name; a `PictureError` asks for `what` where there are none."""
    paths = sorted(filter(is_picture_file, folder.iterdir()))
    if not paths:
        raise PictureError(f"The folder {folder} holds no pictures; put {what} there.")
    return paths


def is_picture_file(path: Path, suffixes: Set[str] = SUFFIXES) -> bool:
    """Return whether something in a folder is one of its pictures, by the end of its name.

    Hidden files are thumbnails, and what macOS writes beside each file of a shared disk. What may
    not be looked at, and a link to what is not there, is told by whoever reads it.
    """
    if path.suffix.lower() not in suffixes or path.name.startswith("."):
        return False
    try:
        return path.is_file() or (path.is_symlink() and not path.exists())
    except OSError:
        return True


def name_of(source: Picture) -> str:
    """Return how a sentence calls a picture; what cannot be one is a `PictureError`."""
    if isinstance(source, str | Path):
        path = str(source)
        if not path.strip():
            raise PictureError(f"{path!r} is not a picture; give the path of one.")
        return path if len(path) <= LONGEST_NAME else f"{path[:LONGEST_NAME]}..."
    if isinstance(source, Image.Image) or hasattr(source, "read"):
        return "The picture"
    is_short = source is None or isinstance(source, int | float)
    words = repr(source) if is_short else f"An object of type {type(source).__name__}"
    raise PictureError(
        f"{words} is not a picture; give the path of one, an open file (io.BytesIO makes one of "
        "bytes) or a PIL picture (Image.fromarray makes one of an array)."
    )


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever is raised while a picture is read into a `PictureError`.

    What Pillow and its plugins raise for damaged files has nothing in common.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of sizes and of metadata
            yield
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{name} does not exist; give the path of a picture.") from None
    except PermissionError:
        raise PictureError(unreadable(name)) from None
    except UnidentifiedImageError:
        raise PictureError(
            f"{name} is not a picture in a format that Pillow reads; save it as PNG or JPEG."
        ) from None
    except Image.DecompressionBombError:
        raise PictureSizeError(f"{name} is too large; reduce it first.") from None
    except Exception as error:
        check_resources(error)
        reason = reason_of(error)[:LONGEST_NAME]
        raise PictureError(
            f"{name} cannot be read as a picture ({reason}); save or copy it anew."
        ) from None


def _load(source: Picture, name: str) -> Image.Image:
    """Return a picture of its own in the mode that the file has, the right way up."""
    if isinstance(source, Image.Image):
        _check_size(source, name)
        source.load()
        return _upright(source)
    if isinstance(source, str | Path) and Path(source).exists() and not Path(source).is_file():
        what = "a folder" if Path(source).is_dir() else "no file"  # a pipe would wait for ever
        raise PictureError(f"{name} cannot be read as a picture (it is {what}); give a file.")
    with Image.open(source) as picture:
        _check_size(picture, name)
        picture.load()
        return _upright(picture)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(picture: Image.Image) -> Image.Image:
    """Return a picture the right way up, as its metadata say; damaged ones say nothing.

    Pillow's own function fails where they cannot be read.
    """
    try:
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises whatever comes of reading them
        turn = None
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    for name in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
        turned.info.pop(name, None)  # or it would be turned once more
    return turned


def _check_size(picture: Image.Image, name: str) -> None:
    size = f"{picture.width} x {picture.height} pixels"
    if not picture.width * picture.height:
        raise PictureError(f"{name} is empty ({size}); give one with something to see.")
    if picture.width * picture.height > MAXIMUM_PIXELS:
        raise PictureSizeError(f"{name} is too large ({size}); reduce it first.")
    if max(picture.size) > MAXIMUM_SIDE:
        raise PictureSizeError(f"{name} is too long and narrow ({size}); crop it first.")


_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_UNMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in _DEEP:
        picture = _grey(picture)
    if picture.mode in _UNMULTIPLIED:
        picture = picture.convert(_UNMULTIPLIED[picture.mode])
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        return _on_white(picture)
    return picture.convert("RGB")


def _on_white(picture: Image.Image) -> Image.Image:
    result = Image.new("RGB", picture.size)
    for box in _strips(picture.size):
        strip = picture.crop(box).convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        result.paste(strip.convert("RGB"), box)
    return result


def _grey(picture: Image.Image) -> Image.Image:
    """Return deep greys in 8 bits; Pillow clips them at 255 instead of scaling them."""
    white, clear = _white(picture), picture.info.get("transparency")
    result = Image.new("L", picture.size)
    for box in _strips(picture.size):
        values = _values(picture, box)
        levels = np.nan_to_num(values, posinf=white).clip(0, white) * (255 / white)
        if isinstance(clear, int):
            levels[values == clear] = 255
        result.paste(Image.fromarray(levels.astype(np.float32).astype(np.uint8)), box)
    return result


def _white(picture: Image.Image) -> float:
    """Return the value that is white: 1, 255, 65535, or the highest that there is."""
    high, total, integral = 0.0, 0.0, True
    for box in _strips(picture.size):
        values = _values(picture, box)
        values = values[np.isfinite(values)]
        high = max(high, values.max(initial=0))
        total += values.sum()
        integral = integral and bool((values == values.round()).all())
    if picture.mode != "F":
        return max(high, 255 if high <= 255 else 65535)
    mean = total / math.prod(picture.size)
    return 1.0 if high <= 1 or (not integral and mean <= _DARK) else max(high, 255)


def _values(picture: Image.Image, box: Rectangle) -> NDArray[np.float64]:
    return np.asarray(picture.crop(box)).astype(np.float64)


def _strips(size: tuple[int, int]) -> Iterator[Rectangle]:
    """Yield boxes of whole rows that make up a picture."""
    width, height = size
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def draw_lake(width: int = 480, height: int = 360) -> Image.Image:
    """Draw a wooden jetty on a mountain lake: a place that can be asked about, without a photo."""
    outlines = (
        ("#f2f5f9", ((0.30, 0.55), (0.52, 0.08), (0.78, 0.55))),  # a mountain, far away
        ("#7d8fa6", ((0.00, 0.55), (0.00, 0.30), (0.17, 0.18), (0.46, 0.55))),
        ("#5e718a", ((0.58, 0.55), (0.86, 0.22), (1.00, 0.34), (1.00, 0.55))),
        ("#2f5d3a", ((0.00, 0.56), (0.00, 0.45), (0.30, 0.56))),  # woods on both shores
        ("#2f5d3a", ((0.70, 0.56), (1.00, 0.43), (1.00, 0.56))),
        ("#3f7fa8", ((0.00, 0.55), (1.00, 0.55), (1.00, 1.00), (0.00, 1.00))),
        ("#8a6644", ((0.36, 1.00), (0.47, 0.66), (0.53, 0.66), (0.64, 1.00))),  # the jetty
    )
    picture = Image.new("RGB", (width, height), "#bcd9f0")
    pen = ImageDraw.Draw(picture)
    for colour, points in outlines:
        pen.polygon([(x * width, y * height) for x, y in points], fill=colour)
    for y in (0.70, 0.75, 0.81, 0.88, 0.96):  # its planks, wider as they come nearer
        half = 0.05 + 0.09 * (y - 0.66) / 0.34
        ends = ((0.5 - half) * width, y * height, (0.5 + half) * width, y * height)
        pen.line(ends, fill="#5b4129", width=max(1, height // 180))
    return picture
