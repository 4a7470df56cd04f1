"""The patches of slices: packed as they are handed over, and in the order in which they merge.

What this module does not know: any weights.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_nearest_position_ids

FEW, MANY = "16x", "4x"  # how many times fewer tokens than patches, as transformers calls them


def levels_of(mode: str, merger_times: int) -> int:
    """Return how often 2 x 2 become one on the way from patches to tokens."""
    return merger_times + (mode != MANY)


def pack(pieces: Tensor, side: int) -> Tensor:
    """Return pieces (number, 3, height, width) as rows of patches, (number, 3, side, length)."""
    columns = torch.unflatten(pieces, 3, (-1, side))
    grid = torch.unflatten(columns, 2, (-1, side))  # (number, 3, rows, side, columns, side)
    return grid.transpose(2, 3).flatten(3)


def unpack(pixel_values: Tensor, sizes: Tensor) -> Iterator[Tensor]:
    """Yield the pieces (1, 3, height, width) of rows of patches; `sizes` count each one's."""
    side, start = pixel_values.shape[2], 0
    for rows, columns in sizes.tolist():
        width = rows * columns * side
        patches = pixel_values[..., start : start + width]
        lines = torch.unflatten(patches, 3, (rows, columns * side))
        yield lines.transpose(2, 3).flatten(2, 3)
        start += width


def nested_order(rows: int, columns: int, levels: int) -> Tensor:
    """Return a grid's places in the order in which each four in a row merge, `levels` times.

    The largest squares come row by row, and in each of them the smaller ones, and so on. So a merge
    is a reshape, and what is left is a grid in the usual order.
    """
    squares = torch.arange(rows * columns).reshape(1, rows, columns)
    for level in range(levels, -1, -1):
        side = 2**level
        strips = torch.unflatten(squares, 2, (-1, side))
        smaller = torch.unflatten(strips, 1, (-1, side))  # (squares, rows, side, columns, side)
        squares = smaller.transpose(2, 3).flatten(0, 2)
    return squares.flatten()


def patches_in_order(pieces: Tensor, side: int, order: Tensor) -> Tensor:
    """Return pieces (number, 3, height, width) as rows of patches in another order."""
    patches = torch.unflatten(pack(pieces, side), 3, (-1, side))
    return patches[:, :, :, order].flatten(3)


def table_places(rows: int, columns: int, side: int, order: Tensor) -> Tensor:
    """Return which row of the table of positions each patch takes, in their `order`.

    The table was learned for side x side patches; a patch takes that in which its corner lies
    (`get_vision_nearest_position_ids` of transformers).
    """
    places: Tensor = get_vision_nearest_position_ids(torch.tensor([[rows, columns]]), side)
    return places[order]
