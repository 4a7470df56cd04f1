"""Opening pictures so that every model sees what a person sees."""

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from helpers.errors import PictureError

MAXIMUM_PIXELS = 64_000_000  # a 64-megapixel camera; Pillow itself only warns below 179 million


def open_picture(source: str | Path | Image.Image) -> Image.Image:
    """Return `source`, a file or a PIL picture, as RGB and the right way up.

    The rotation that a camera wrote into the file (EXIF) is applied, transparency becomes white,
    and of an animation the first frame is taken. Anything that cannot be read is a `PictureError`.
    """
    try:
        picture = source if isinstance(source, Image.Image) else Image.open(source)
        name = "The picture" if isinstance(source, Image.Image) else str(source)
        if picture.width * picture.height > MAXIMUM_PIXELS:
            size = f"{picture.width} x {picture.height}"
            raise PictureError(f"{name} is too large ({size} pixels); reduce it first.")
        picture.load()
        picture = ImageOps.exif_transpose(picture)
    except FileNotFoundError:
        raise PictureError(f"{source} does not exist; give the path of a picture.") from None
    except UnidentifiedImageError:
        raise PictureError(f"{source} is not a picture in a format that Pillow reads.") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{source} is too large; reduce it first.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise PictureError(f"{source} cannot be read as a picture ({error}).") from None
    return _to_rgb(picture)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        # Pillow clips deep pictures at 255 instead of scaling them.
        low, high = picture.getextrema()
        depth = 65535 if picture.mode != "F" and high > 255 else max(high, 255)
        picture = picture.convert("F").point(lambda value: value * (255 / depth)).convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")
