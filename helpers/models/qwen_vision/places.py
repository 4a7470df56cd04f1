"""Where patches lie in a picture, and which positions tokens have in a prompt.

All of it depends on the sizes of pictures, so it is computed outside of the exported graphs, which
take the results as inputs. A grid (time, rows, columns) counts patches, as transformers'
`image_grid_thw` does; patches come in blocks of 2 x 2, those that become one token.

What this module does not know: pixels, and any weights.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

Grid = tuple[int, int, int]


def single_frames(grids: Tensor) -> list[Grid]:
    """Return the grids of pictures, and of a video's steps one by one: each stands for itself."""
    return [(1, rows, columns) for time, rows, columns in grids.tolist() for _ in range(time)]


def table_places(
    grids: Tensor, side: int, merge: int, *, align_corners: bool = True
) -> tuple[Tensor, Tensor]:
    """Return from which rows of the table of positions each patch takes its own.

    The table was learned for side x side patches; a patch of another grid lies between four of
    them. The results are their indices (4, patches), and their weights (4, patches, 1), which sum
    to one. With `align_corners` the corners of both grids coincide, as the authors trained it;
    otherwise the edges of their corner patches would.
    """
    indices, weights = get_vision_interpolation_indices_and_weights(
        grids,
        num_grid_per_side=side,
        mode="bilinear",
        align_corners=align_corners,
        spatial_merge_size=merge,
    )
    return indices.T, weights.T[..., None]


def rotation_angles(
    grids: Tensor, head_size: int, merge: int, *, theta: float = 10_000.0
) -> Tensor:
    """Return the angles (patches, head size / 2) by which the image encoder rotates its patches.

    The first half of them counts rows, the second columns. `theta` is that of the config's
    `rope_parameters`; the default is transformers' `Qwen3VLVisionConfig`'s.
    """
    coordinates = get_vision_position_ids(grids, merge).float()  # (patches, 2)
    frequencies = theta ** -(torch.arange(0, head_size // 2, 2) / (head_size // 2))
    return (coordinates[:, :, None] * frequencies).flatten(1)


def token_positions(is_picture: Tensor, grids: Iterable[Grid], merge: int) -> Tensor:
    """Return the positions (3, batch, length) of a prompt's tokens: in time, down and across.

    `is_picture` (batch, length) says which tokens stand for pictures, whose `grids` come in their
    order. A text's token has the same position three times. A picture takes as many as the longer
    of its sides has tokens, whatever their number, so the word after it is not at the place that
    counting would give. (Multimodal rotary positions, arXiv:2409.12191, section 2.)
    """
    remaining_grids = iter(grids)
    rows = [_row_positions(row, remaining_grids, merge) for row in is_picture]
    return torch.stack(rows, dim=1)


def _row_positions(is_picture: Tensor, grids: Iterable[Grid], merge: int) -> Tensor:
    """Return the positions (3, length) of one prompt."""
    kinds, lengths = torch.unique_consecutive(is_picture, return_counts=True)
    pieces, start = [], 0
    for picture, length in zip(kinds.tolist(), lengths.tolist(), strict=True):
        if not picture:
            pieces.append(torch.arange(start, start + length).expand(3, -1))
            start += length
            continue
        _, rows, columns = next(iter(grids))
        rows, columns = rows // merge, columns // merge
        down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        places = torch.stack([torch.zeros_like(down), down, across]).flatten(1)
        pieces.append(places + start)
        start += max(rows, columns)
    return torch.cat(pieces, dim=1)
