"""Cutting a picture into an overview and slices of any shape, as MiniCPM-V does.

The idea is LLaVA-UHD's (arXiv:2403.11703): each slice has about the area that the image encoder was
trained on and a shape close to the picture's. The steps are those of `slice_image` in the authors'
modeling_minicpmv.py, Python's rounding included, so that the sizes are the same pixel for pixel.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from helpers.errors import PictureError
from helpers.models.exported import in_calls

HALVES = (0.5, 0.5, 0.5)  # the mean and the deviation of a colour in both published checkpoints

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
    cell_width, cell_height = (
        nearest_multiple(side, parts) / parts
        for side, parts in zip((width, height), grid, strict=True)
    )
    overview = fitted_size(width, height, slicing)
    return Plan(overview, grid, fitted_size(cell_width, cell_height, slicing, enlarge=True))


def best_grid(width: int, height: int, slicing: Slicing) -> Size | None:
    """Return the (columns, rows) whose shape is nearest the picture's; None if one piece is enough.

    As many slices are wanted as the picture has times the area of one, give or take one.
    """
    target = math.ceil(width * height / slicing.resolution**2)
    target = min(target, slicing.maximum)
    if target <= 1:
        return None
    neighbours = (target - 1, target, target + 1)
    grids = [
        (columns, number // columns)
        for number in neighbours
        if 1 < number <= slicing.maximum
        for columns in range(1, number + 1)
        if number % columns == 0
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
    refuse_long(picture.size, plan, slicing.resolution**2 // slicing.patch)
    return cut(picture, plan), plan.grid


def refuse_long(size: Size, plan: Plan, longest: int) -> None:
    """Raise `PictureError` if a piece of a picture has a side of more than `longest` pixels."""
    if max(*plan.overview, *(plan.cell or ())) > longest:
        raise PictureError(
            f"A picture of {size[0]} x {size[1]} pixels is too long and narrow; crop it first."
        )


def cut(picture: Image.Image, plan: Plan) -> list[Image.Image]:
    """Return the overview of a picture and, row by row, the cells of its grid."""
    pieces = [picture.resize(plan.overview, Image.Resampling.BICUBIC)]
    if plan.grid is None or plan.cell is None:
        return pieces
    (columns, rows), (width, height) = plan.grid, plan.cell
    canvas = picture.resize((width * columns, height * rows), Image.Resampling.BICUBIC)
    corners = [(column * width, row * height) for row in range(rows) for column in range(columns)]
    return pieces + [canvas.crop((x, y, x + width, y + height)) for x, y in corners]


def normalised(
    picture: Image.Image, mean: Sequence[float] = HALVES, deviation: Sequence[float] = HALVES
) -> Tensor:
    """Return an RGB picture's pixels (1, 3, height, width), from -1 to 1 unless files say more."""
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    means, deviations = (torch.tensor(row)[:, None, None] for row in (mean, deviation))
    return (values[None].float() / 255 - means) / deviations


def by_size(encode: Callable[[Tensor], Tensor], pieces: Sequence[Tensor]) -> list[Tensor]:
    """Return what `encode` gives for each row of `pieces`, which are (rows, 3, height, width).

    Rows of one size go together.
    """
    rows = [row for piece in pieces for row in piece]
    encoded: list[Tensor] = [torch.empty(0)] * len(rows)
    for size in dict.fromkeys(row.shape for row in rows):
        places = [place for place, row in enumerate(rows) if row.shape == size]
        results = in_calls(encode, torch.stack([rows[place] for place in places]))
        for place, result in zip(places, results, strict=True):
            encoded[place] = result
    return encoded
