"""Opening pictures so that every model sees what a person sees."""

import warnings
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from helpers.errors import PictureError

MAXIMUM_PIXELS = 64_000_000  # a 64-megapixel camera; Pillow itself only warns below 179 million


def open_picture(source: str | Path | Image.Image) -> Image.Image:
    """Return `source`, a file or a PIL picture, as RGB and the right way up.

    The rotation that a camera wrote into the file (EXIF) is applied, transparency becomes white,
    and of an animation the first frame is taken. Anything that cannot be read is a `PictureError`.
    """
    if not isinstance(source, str | Path | Image.Image):
        raise PictureError(f"{source!r} is not a picture; give the path of one.")
    with warnings.catch_warnings(action="ignore"):  # of sizes, which are checked, and of metadata
        return _to_rgb(_load(source))


def _load(source: str | Path | Image.Image) -> Image.Image:
    try:
        picture = source if isinstance(source, Image.Image) else Image.open(source)
        name = "The picture" if isinstance(source, Image.Image) else str(source)
        if picture.width * picture.height > MAXIMUM_PIXELS:
            size = f"{picture.width} x {picture.height}"
            raise PictureError(f"{name} is too large ({size} pixels); reduce it first.")
        picture.load()
        return ImageOps.exif_transpose(picture)
    except FileNotFoundError:
        raise PictureError(f"{source} does not exist; give the path of a picture.") from None
    except UnidentifiedImageError:
        raise PictureError(f"{source} is not a picture in a format that Pillow reads.") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{source} is too large; reduce it first.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise PictureError(f"{source} cannot be read as a picture ({error}).") from None


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        # Pillow clips deep pictures at 255 instead of scaling them.
        _, high = picture.getextrema()
        assert isinstance(high, int | float)  # these modes have one band
        if picture.mode == "F":
            depth = 1.0 if high <= 1 else max(high, 255)
        else:
            depth = 65535 if high > 255 else 255
        picture = picture.convert("F").point(lambda value: value * (255 / depth)).convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


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
