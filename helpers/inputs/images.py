"""Opening pictures so that every model sees what a person sees, and cutting them into slices."""

import math
import warnings
from dataclasses import dataclass
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
        if picture.mode == "F":
            depth = 1 if high <= 1 else max(high, 255)
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


# MiniCPM-V-2's slices (the idea is LLaVA-UHD's, arXiv:2403.11703): each has about the area that the
# image encoder was trained on and a shape close to the picture's. The steps are those of
# `slice_image` in the authors' modeling_minicpmv.py, Python's rounding included, so that the sizes
# are the same pixel for pixel.

Size = tuple[int, int]  # (width, height) in pixels, or a grid's (columns, rows)


@dataclass(frozen=True)
class Slicing:
    """How pictures are cut: a square's side with a slice's area, the patch, the most slices."""

    resolution: int
    patch: int
    maximum: int


@dataclass(frozen=True)
class Plan:
    """The size of the overview, and the grid and its cells' size if the picture is cut at all."""

    overview: Size
    grid: Size | None = None
    cell: Size | None = None


def plan_slices(width: int, height: int, slicing: Slicing) -> Plan:
    """Return into what a picture of `width` x `height` pixels is cut."""
    grid = best_grid(width, height, slicing)
    if grid is None:
        return Plan(fitted_size(width, height, slicing, enlarge=True))
    cell = [
        nearest_multiple(side, parts) / parts
        for side, parts in zip((width, height), grid, strict=True)
    ]
    overview = fitted_size(width, height, slicing)
    return Plan(overview, grid, fitted_size(*cell, slicing, enlarge=True))


def best_grid(width: int, height: int, slicing: Slicing) -> Size | None:
    """Return the (columns, rows) whose shape is nearest the picture's; None if one piece is enough.

    As many slices are wanted as the picture has times the area of one, give or take one.
    """
    wanted = math.ceil(width * height / slicing.resolution**2)
    wanted = min(wanted, slicing.maximum)
    if wanted <= 1:
        return None
    numbers = [n for n in (wanted - 1, wanted, wanted + 1) if 1 < n <= slicing.maximum]
    grids = [
        (n, number // n) for number in numbers for n in range(1, number + 1) if number % n == 0
    ]
    shape = math.log(width / height)
    return min(grids, key=lambda grid: abs(shape - math.log(grid[0] / grid[1])))


def fitted_size(width: float, height: float, slicing: Slicing, *, enlarge: bool = False) -> Size:
    """Return a size of the same shape in whole patches with at most a slice's area.

    A smaller picture keeps its size, unless `enlarge` gives it a slice's area too.
    """
    if enlarge or width * height > slicing.resolution**2:
        ratio = width / height
        height = int(slicing.resolution / math.sqrt(ratio))
        width = int(height * ratio)
    return nearest_multiple(width, slicing.patch), nearest_multiple(height, slicing.patch)


def nearest_multiple(length: float, unit: int) -> int:
    """Return the multiple of `unit` nearest to `length`, at least one `unit`."""
    return max(round(length / unit) * unit, unit)


def slice_picture(picture: Image.Image, slicing: Slicing) -> tuple[list[Image.Image], Size | None]:
    """Return the overview and, row by row, the slices of an RGB picture, and their grid.

    Raises `PictureError` for a picture so long that a piece of it would have more patches on one
    side than a slice has in all.
    """
    plan = plan_slices(*picture.size, slicing)
    longest = slicing.resolution**2 // slicing.patch
    if max(*plan.overview, *(plan.cell or ())) > longest:
        raise PictureError(
            f"A picture of {picture.width} x {picture.height} pixels is too long and narrow; "
            "crop it first."
        )
    pieces = [picture.resize(plan.overview, Image.Resampling.BICUBIC)]
    if plan.grid is not None and plan.cell is not None:
        pieces += _cut(picture, plan.grid, plan.cell)
    return pieces, plan.grid


def _cut(picture: Image.Image, grid: Size, cell: Size) -> list[Image.Image]:
    """Resize `picture` to fill `grid` with cells of size `cell`; return them row by row."""
    (columns, rows), (width, height) = grid, cell
    whole = picture.resize((width * columns, height * rows), Image.Resampling.BICUBIC)
    corners = [(column * width, row * height) for row in range(rows) for column in range(columns)]
    return [whole.crop((x, y, x + width, y + height)) for x, y in corners]
