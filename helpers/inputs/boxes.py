"""Boxes in answers: where a model says that something is, as objects on a picture.

Qwen's models answer with JSON, `[{"bbox_2d": [left, top, right, bottom], "label": "..."}]`, whose
numbers count to 1000 along each side of the picture. What this module does not know: drawing.
"""

import json
import re
from dataclasses import dataclass

SAME = 0.7  # of two boxes' union is shared, and they count as the same
GRID = 1000  # where the picture's right and lower edges are
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf'"bbox(?:_2d)?"\s*:\s*\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]')
_LABEL = re.compile(r'"label"\s*:\s*("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True)
class Box:
    """Where something is: its sides as shares of the picture's, from 0 to 1, and what it is."""

    left: float
    top: float
    right: float
    bottom: float
    label: str = ""

    @property
    def area(self) -> float:
        """The share of the picture that it covers."""
        return (self.right - self.left) * (self.bottom - self.top)

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom on a picture of this size."""
        return (
            round(self.left * width),
            round(self.top * height),
            round(self.right * width),
            round(self.bottom * height),
        )


def boxes_in(answer: str) -> list[Box]:
    """Return the boxes of an answer in their order; none where it holds none.

    Words around the JSON, its fence, and damage do not matter: each box counts that is whole. An
    object ends at the brace that closes it, or at the next box. Numbers beyond the picture are cut
    at its edge, sides in the wrong order are turned.
    """
    matches = list(_BOX.finditer(answer))
    ends = [*(match.start() for match in matches[1:]), len(answer)][: len(matches)]
    boxes, start = [], 0
    for match, end in zip(matches, ends, strict=True):
        before, after = answer[start : match.start()], answer[match.end() : end]
        label = _LABEL.search(after.split("}")[0]) or _LABEL.search(before.rsplit("{", 1)[-1])
        boxes.append(_box([float(number) for number in match.groups()], label))
        start = match.end()
    return boxes


def _box(numbers: list[float], label: re.Match[str] | None) -> Box:
    left, top, right, bottom = (min(max(number, 0), GRID) / GRID for number in numbers)
    (left, right), (top, bottom) = sorted((left, right)), sorted((top, bottom))
    return Box(left, top, right, bottom, _text(label[1]) if label else "")


def _text(literal: str) -> str:
    try:
        return str(json.loads(literal))
    except ValueError:  # a damaged escape
        return literal[1:-1]


def intersection_over_union(first: Box, second: Box) -> float:
    """Return how much two boxes agree: the area that they share, as a share of all they cover."""
    width = min(first.right, second.right) - max(first.left, second.left)
    height = min(first.bottom, second.bottom) - max(first.top, second.top)
    shared = max(width, 0) * max(height, 0)
    union = first.area + second.area - shared
    return shared / union if union else float(first == second)


def same_boxes(answer: str, expected: str) -> bool:
    """Return whether two answers hold as many boxes, of the same things and nearly the same."""
    first, second = boxes_in(answer), boxes_in(expected)
    return len(first) == len(second) and all(
        a.label == b.label and intersection_over_union(a, b) >= SAME
        for a, b in zip(first, second, strict=True)
    )
