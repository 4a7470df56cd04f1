"""What several tables give of a token, as one row: its embedding first, then what else there is.

So, prompts are padded, joined and cut as if there were embeddings alone, and a row is taken apart
where a language model is handed it.

What this module does not know: which tables a model has.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import openvino as ov
import torch
from torch import Tensor


def side_by_side(rows: Iterable[Tensor]) -> Tensor:
    """Return what several tables give of tokens, each (batch, length, ...), as one row a token."""
    return torch.cat([row.flatten(2) for row in rows], dim=-1)


def apart(rows: Tensor, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return by name what `side_by_side` joined, in the order of `shapes`, which rows have."""
    pieces = torch.split(rows, [math.prod(shape) for shape in shapes.values()], dim=-1)
    pairs = zip(shapes.items(), pieces, strict=True)
    return {name: piece.reshape(*rows.shape[:-1], *shape) for (name, shape), piece in pairs}


def row_shapes(
    language_model: ov.Model | ov.CompiledModel, inputs: Iterable[str]
) -> dict[str, list[int]]:
    """Return the shape of a token's row in each of a language model's `inputs`."""
    shapes = {name: language_model.input(name).get_partial_shape() for name in inputs}
    return {name: [size.get_length() for size in list(shape)[2:]] for name, shape in shapes.items()}
