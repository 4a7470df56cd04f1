"""An answer's tokens one after another, some of them drafted from what stands in the prompt.

Where an answer repeats what was said before, the tokens behind the last few can be looked up: those
that once followed the same ones. All are computed in one step, which reads the weights once, and
what the model would not have written is rejected. (Saxena, "Prompt Lookup Decoding", 2023.) So the
answer is the same, but for what the last digits of a step depend on its length.

What this module does not know: how tokens are computed, and why an answer ends.
"""

from collections.abc import Callable, Generator, Sequence

from torch import Tensor

from helpers.models.exported import PictureInputs
from helpers.resources import has_vnni
from helpers.run.batches import BatchRow
from helpers.run.caches import StateCache

LONGEST = 4  # tokens of a draft: with VNNI, five positions cost about a quarter more than one
FIRST = 2  # tokens of the first one without VNNI, before anything is known of the answer
NGRAM = 3  # tokens that are looked up, at most; then fewer


def draft(ids: Sequence[int], most: int) -> list[int]:
    """Return what followed the last tokens of `ids` where they stood last, at most so many tokens.

    The longest of the last tokens, up to `NGRAM`, that stand elsewhere count; if none do, it is
    empty.
    """
    for length in range(NGRAM, 0, -1):
        last = list(ids[-length:])
        for start in range(len(ids) - length - 1, -1, -1):
            if ids[start] == last[0] and list(ids[start : start + length]) == last:
                return list(ids[start + length : start + length + most])
    return []


def answer_tokens(
    logits: Tensor,
    cache: StateCache,
    pictures: PictureInputs | None,
    take: Callable[[Tensor], int],
    *,
    prompt: Sequence[int] | None,
    is_over: Callable[[], bool],
) -> Generator[BatchRow, Tensor, None]:
    """Go from the logits (1, vocabulary) behind a prompt to the end of its answer.

    `take` chooses a token from such logits, and keeps it; `is_over` says whether it was the last.
    Drafts are looked up in the ids of the `prompt`, and not at all where there are none. Without
    VNNI, where each position costs half a step or more, one has as many tokens as were right in the
    one before, and twice as many if all were. Yields what is to be computed, for its logits
    (positions, vocabulary).
    """
    ids, guess, is_costly = list(prompt or ()), list[int](), not has_vnni()
    most = FIRST if is_costly else LONGEST
    length = cache.length  # positions of the prompt, then of the answer without its last token
    while True:
        for place in range(len(logits)):
            ids.append(take(logits[place : place + 1]))
            if is_over():
                cache.keep(length + place)
                return
            if place < len(guess) and ids[-1] != guess[place]:
                break
        length += place
        cache.keep(length)
        if guess and is_costly:
            most = min(LONGEST, 2 * place) if place == len(guess) else max(1, place)
        guess = [] if prompt is None else draft(ids, most)
        logits = yield BatchRow(cache, pictures, ids[-1], None if prompt is None else tuple(guess))
        length += 1
