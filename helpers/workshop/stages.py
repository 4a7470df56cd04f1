"""The stages of training: which pictures and which questions come when.

What this module does not know: how a picture is drawn, and which family learns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

ALL_KINDS = {
    "describe": 3,
    "count": 2,
    "colour": 3,
    "shape": 3,
    "where": 2,
    "unusual": 4,
    "word": 2,
}


@dataclass(frozen=True)
class Stage:
    """A part of training up to a share of the steps: how often each sort of batch and question.

    A batch is of pictures to `name`, of a `word` to read, of words on a `strip`, of `small`,
    `large`, `largest` or `wide` pictures, or of a `clip`. An image encoder that knows them already
    may be `frozen` meanwhile. In small print, words are on a `page`.
    """

    until: float
    batches: Mapping[str, float]
    kinds: Mapping[str, float]
    frozen: bool = False


FROM_NOTHING = (
    Stage(0.06, {"name": 0.7, "word": 0.3}, {}),
    # From what is there to its place, from a place to what is there, which is unlike the others,
    # what is written: each is learned within a thousand steps of little else, and among all kinds
    # hardly at all.
    Stage(0.18, {"small": 1}, {"where": 1}),
    Stage(0.27, {"small": 1}, {"colour": 3, "shape": 3, "describe": 2, "where": 1}),
    Stage(0.34, {"small": 1}, {"unusual": 5, "describe": 2, "colour": 1, "shape": 1, "where": 1}),
    Stage(0.45, {"word": 0.6, "small": 0.15, "large": 0.25}, ALL_KINDS),
    Stage(1.0, {"word": 0.15, "small": 0.3, "large": 0.55}, ALL_KINDS),
)

# Lengths and shares settled while the models that begin with parts were trained. Only reading is
# hardly learned among all kinds; large pictures, what is unusual in them, and letters that a cut
# goes through come last.
FROM_PARTS = (
    Stage(0.08, {"name": 0.7, "word": 0.3}, {}),
    Stage(0.25, {"small": 1}, ALL_KINDS),
    Stage(0.5, {"word": 0.85, "small": 0.1, "large": 0.05}, ALL_KINDS),
    Stage(0.69, {"word": 0.4, "small": 0.1, "large": 0.5}, ALL_KINDS | {"unusual": 6}),
    Stage(
        0.8,
        {"word": 0.1, "small": 0.4, "large": 0.5},
        {"unusual": 10, "describe": 2, "count": 2, "colour": 1, "shape": 1, "where": 2, "word": 1},
    ),
    Stage(
        1.0,
        {"word": 0.1, "strip": 0.2, "small": 0.05, "large": 0.65},
        {"describe": 2, "count": 3, "colour": 1, "shape": 1, "where": 2, "unusual": 8, "word": 3},
    ),
)

# For an image encoder that takes pictures at their own size, whose model gives boxes and reads
# clips too. Words come alone again; a box is a dozen digits, each of which has to be right, and
# takes longest. Such an encoder reads no picture much larger than those it has learned: those come
# last, since they are the dearest.
AT_OWN_SIZE = (
    *FROM_NOTHING[:4],
    Stage(0.5, {"word": 0.75, "small": 0.15, "large": 0.1}, ALL_KINDS | {"box": 12}),
    Stage(
        0.68,
        {"word": 0.2, "strip": 0.12, "small": 0.18, "large": 0.25, "wide": 0.12, "clip": 0.13},
        ALL_KINDS | {"box": 14, "unusual": 5},
    ),
    Stage(
        0.88,
        {"word": 0.1, "strip": 0.13, "small": 0.1, "large": 0.35, "wide": 0.2, "clip": 0.12},
        ALL_KINDS | {"box": 12, "unusual": 7, "count": 4},
    ),
    Stage(
        1.0,
        {
            "word": 0.08,
            "strip": 0.1,
            "small": 0.1,
            "large": 0.24,
            "largest": 0.29,
            "wide": 0.11,
            "clip": 0.08,
        },
        ALL_KINDS | {"box": 12, "unusual": 8, "count": 7, "word": 9},
    ),
)

# For an image encoder that has to learn anew what it says, letters too, before layers that know the
# language: it learns to name, then looking up is learned behind it as it is, and at last both read.
FROM_A_LANGUAGE_MODEL = (
    Stage(0.1, {"name": 0.3, "word": 0.7}, {}),
    Stage(0.13, {"small": 1}, {"where": 1}, frozen=True),
    Stage(0.18, {"small": 1}, {"colour": 3, "shape": 3, "describe": 2, "where": 1}, frozen=True),
    Stage(
        0.25,
        {"small": 1},
        {"unusual": 5, "count": 2, "describe": 2, "colour": 1, "shape": 1, "where": 1},
        frozen=True,
    ),
    Stage(
        0.42,
        {"word": 0.5, "small": 0.15, "large": 0.35},
        ALL_KINDS | {"count": 3, "unusual": 6},
    ),
    Stage(
        1.0,
        {"word": 0.2, "strip": 0.12, "page": 0.08, "small": 0.1, "large": 0.5},
        {"describe": 2, "count": 3, "colour": 1, "shape": 1, "where": 2, "unusual": 8, "word": 4},
    ),
)

# For a new language model behind an image encoder that has learned to name: looking up is learned
# in hundreds of steps, before the image encoder learns on, to read above all.
FROM_AN_ENCODER = (
    Stage(0.04, {"small": 1}, {"where": 1}, frozen=True),
    Stage(0.09, {"small": 1}, {"colour": 3, "shape": 3, "describe": 2, "where": 1}, frozen=True),
    Stage(
        0.15,
        {"small": 1},
        {"unusual": 5, "count": 2, "describe": 2, "colour": 1, "shape": 1, "where": 1},
        frozen=True,
    ),
    Stage(0.37, {"word": 0.75, "small": 0.1, "large": 0.15}, ALL_KINDS | {"count": 3}),
    Stage(
        0.9,
        {"word": 0.25, "strip": 0.25, "small": 0.1, "large": 0.4},
        {"describe": 2, "count": 3, "colour": 1, "shape": 1, "where": 2, "unusual": 8, "word": 4},
    ),
    Stage(
        1.0,
        {"word": 0.1, "strip": 0.14, "small": 0.05, "large": 0.28, "largest": 0.43},
        {"describe": 3, "count": 3, "colour": 2, "shape": 2, "where": 2, "unusual": 6, "word": 7},
    ),
)
