"""Locating: picture tokens learn where the shape that they show begins and ends.

A box is a dozen digits, and the language model learns to write them long before the picture tokens
say which: so each token of a shape learns the hundreds and the tens of its box's four sides, read
by one linear layer that is thrown away after training.

What this module does not know: how a picture becomes tokens, and which questions are asked.
"""

import torch
from torch import Tensor, nn

from helpers.shapes.world import Box

GRID = 1000  # a picture's sides, in the numbers of a box
SIDES, DIGITS = 4, 2  # left, top, right, bottom; hundreds and tens
IGNORED = -100  # a token that shows no shape (PyTorch's cross-entropy default)


def digits_of_boxes(boxes: list[Box], rows: int, columns: int) -> Tensor:
    """Return the digits that each token of a picture learns, (rows * columns, sides, digits).

    `boxes` are in shares of the picture. A token whose middle no box holds learns nothing.
    """
    digits = torch.full((rows, columns, SIDES, DIGITS), IGNORED)
    x, y = (torch.arange(columns) + 0.5) / columns, (torch.arange(rows) + 0.5) / rows
    for left, top, right, bottom in boxes:
        numbers = torch.tensor([round(GRID * share) for share in (left, top, right, bottom)])
        numbers = numbers.clamp(0, GRID - 1)
        inside = ((top <= y) & (y <= bottom))[:, None] & ((left <= x) & (x <= right))
        digits[inside] = torch.stack([numbers // 100, numbers // 10 % 10], dim=-1)
    return digits.flatten(0, 1)


def new_locator(hidden: int) -> nn.Linear:
    """Return the layer that reads digits from picture tokens (tokens, hidden)."""
    return nn.Linear(hidden, SIDES * DIGITS * 10)


def locating_loss(locator: nn.Linear, features: Tensor, digits: Tensor) -> Tensor:
    """Return the cross-entropy of the digits (tokens, sides, digits) read from the features.

    Zero where no token shows a shape.
    """
    logits = locator(features.to(locator.weight.dtype)).unflatten(-1, (SIDES * DIGITS, 10))
    total = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), digits.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (digits != IGNORED).sum().clamp(min=1)
