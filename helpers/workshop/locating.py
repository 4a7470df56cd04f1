"""Locating: picture tokens learn where the shape that they show begins and ends.

A box is a dozen digits, and the language model learns to write them long before the picture tokens
say which: so each token of a shape learns its box's four sides, as shares of the picture and as
hundreds and tens of its numbers, read by one linear layer that is thrown away after training.

What this module does not know: how a picture becomes tokens, and which questions are asked.
"""

import torch
from torch import Tensor, nn

from helpers.inputs.boxes import GRID
from helpers.shapes.world import Bounds

SIDES, DIGITS = 4, 2  # left, top, right, bottom; hundreds and tens
IGNORED = -100  # what is not to be learned (PyTorch's cross-entropy default)


def sides_of_boxes(boxes: list[Bounds], rows: int, columns: int) -> Tensor:
    """Return the numbers that each token of a picture learns, (rows * columns, sides).

    `boxes` are in shares of the picture, the numbers in thousandths. A token whose middle no box
    holds learns nothing.
    """
    sides = torch.full((rows, columns, SIDES), IGNORED)
    x, y = (torch.arange(columns) + 0.5) / columns, (torch.arange(rows) + 0.5) / rows
    for left, top, right, bottom in boxes:
        numbers = torch.tensor([round(GRID * share) for share in (left, top, right, bottom)])
        inside = ((top <= y) & (y <= bottom))[:, None] & ((left <= x) & (x <= right))
        sides[inside] = numbers.clamp(0, GRID - 1)
    return sides.flatten(0, 1)


def new_locator(hidden: int) -> nn.Linear:
    """Return the layer that reads sides and their digits from picture tokens (tokens, hidden)."""
    return nn.Linear(hidden, SIDES * (1 + DIGITS * 10))


def locating_loss(locator: nn.Linear, features: Tensor, sides: Tensor) -> Tensor:
    """Return how far the sides (tokens, sides) read from the features are off, and their digits.

    That is the mean distance in tenths of the picture and the digits' cross-entropy. Zero where no
    token shows a shape.
    """
    is_shape = sides[:, 0] != IGNORED
    sides = sides[is_shape]
    output = locator(features[is_shape].to(locator.weight.dtype)).float()
    shares, logits = output[:, :SIDES], output[:, SIDES:].unflatten(-1, (SIDES, DIGITS, 10))
    digits = torch.stack([sides // 100, sides // 10 % 10], dim=-1)
    distance = (shares - sides / GRID).abs().sum() * 10
    entropy = nn.functional.cross_entropy(logits.flatten(0, 2), digits.flatten(), reduction="sum")
    loss: Tensor = (distance / SIDES + entropy / (SIDES * DIGITS)) / max(1, len(sides))
    return loss
