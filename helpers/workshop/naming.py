"""Naming: picture tokens are pulled towards the embeddings of the words for what they show.

What this module does not know: pictures that are not one square on the image encoder's canvas.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from helpers.models.base import VisionLanguageModel
from helpers.models.exported import Features
from helpers.models.processors import Processor
from helpers.shapes import world


def shown_words(processor: Processor, scenes: Sequence[world.Scene], side: int = 12) -> Tensor:
    """Return the words for what is at each of `side` x `side` points of pictures of one tile.

    The result holds token ids (scene, side, side, word), -1 where there is no word: colour, shape
    and place, or a printed letter. A point without a shape has none at all: the place of nothing
    answers no question, and with it in the picture tokens the language model does not learn to look
    places up. The only place of a picture is not named either.
    """
    ids = torch.full((len(scenes), side, side, 4), -1)
    for index, scene in enumerate(scenes):
        for number, item in enumerate(scene.items):
            if item is None:
                continue
            row, column = divmod(number, scene.grid[0])
            place = world.PLACES[scene.grid][number] if len(scene.items) > 1 else ""
            tokens = tokens_in_sentence(processor, f"{item} {place}".strip())
            _name(ids[index], (column, row, column + 1, row + 1), scene.grid, tokens)
        boxes = world.letter_boxes(scene)
        letters = processor.tokenizer(scene.word or "", add_special_tokens=False)["input_ids"]
        # A space may stand in front. Letters that are no tokens of their own are not named.
        pairs = list(zip(boxes, letters[-len(boxes) :], strict=False))
        if len(letters) >= len(boxes):
            for box, letter in pairs:
                _name(ids[index], box, (1, 1), [letter])
            column = -1  # each has a point of its own, the one in its middle or the next
            for (left, top, right, bottom), letter in pairs:
                row, middle = int((top + bottom) * side / 2), int((left + right) * side / 2)
                column = max(column + 1, middle)
                _name(ids[index], (column, row, column + 1, row + 1), (side, side), [letter])
    return ids


def _name(ids: Tensor, box: Sequence[float], size: tuple[int, int], tokens: list[int]) -> None:
    """Let the points (side, side, word) in a box, of a picture of this size, have these tokens."""
    side = len(ids)
    (left, top, right, bottom), (width, height) = box, size
    rows = slice(round(top * side / height), round(bottom * side / height))
    columns = slice(round(left * side / width), round(right * side / width))
    ids[rows, columns] = -1
    ids[rows, columns, : len(tokens)] = torch.tensor(tokens)


def tokens_in_sentence(processor: Processor, words: str) -> list[int]:
    """Return the tokens of `words` as they are in a sentence; a sentence's first may differ."""
    first = len(processor.tokenizer("the", add_special_tokens=False)["input_ids"])
    encoding = processor.tokenizer(f"the {words}", add_special_tokens=False)
    ids: list[int] = encoding["input_ids"]
    return ids[first:]


def naming_loss(model: VisionLanguageModel[Any], features: Features, word_ids: Tensor) -> Tensor:
    """Return how far picture tokens are from the sums of the embeddings of the words they show.

    The unit is the variance of those sums. Letters count once more among themselves, and so do
    shapes: beside what all words have in common, their differences are hardly learned. `features`
    are those of pictures whose tokens lie on a square, `word_ids` what `shown_words` returns.
    """
    tokens = model.squares(features).float()
    side, points = math.isqrt(tokens.shape[1]), word_ids.shape[1]
    nearest = (torch.arange(side, device=word_ids.device) * 2 + 1) * points // (2 * side)
    ids = word_ids[:, nearest][:, :, nearest].flatten(1, 2)
    words = model.embed_tokens(ids.clamp(min=0)).detach() * (ids >= 0)[..., None]
    sums = words.sum(2).float()
    loss: Tensor = nn.functional.mse_loss(tokens, sums) / sums.var()
    words_of_tokens = (ids >= 0).sum(2)
    for group in (words_of_tokens == 1, words_of_tokens > 1):  # letters; shapes
        names = sums[group]
        if len(names) > 1 and (unit := names.var(0).mean()):
            loss = loss + nn.functional.mse_loss(tokens[group], names) / unit
    return loss
