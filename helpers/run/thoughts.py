"""The thought before an answer: its tokens told from the answer's, between two marks.

What this module does not know: which marks a family has, and how a prompt asks for a thought.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.generation import LogitsProcessor


class Thought:
    """Follows an answer token by token: `is_open` while it thinks.

    `begin` and `end` are the ids of the marks. A thought may be begun by the prompt, which is
    `prompt_ids`, or by the model with its first tokens; `thinks` says whether it should. `length`
    counts the answer's tokens up to the end of the thought.
    """

    def __init__(
        self, begin: Sequence[int], end: Sequence[int], prompt_ids: Sequence[int], *, thinks: bool
    ) -> None:
        self.begin, self.end = list(begin), list(end)
        # A tokenizer without the marks has other tokens for their letters.
        self.has_marks = bool(self.begin) and len(self.end) == 1
        self.thinks = thinks and self.has_marks
        self.is_open = self.thinks and _ends_open(prompt_ids, self.begin[0], self.end[0])
        self.may_begin = self.has_marks and not self.is_open  # with the next token
        self.length = 0
        self._expected = [] if self.is_open else self.begin  # of a mark that has begun

    def takes(self, token: int) -> bool:
        """Take the next token; return whether it belongs to the answer."""
        if self.may_begin and token == self.begin[0]:
            self.is_open = True
        self.may_begin = False
        if not self.is_open:
            return True
        self.length += 1
        if token == self.end[0]:
            self.is_open = False
        return False

    def is_mark(self, token: int) -> bool:
        """Return whether a token of the thought is one of its marks, which no text has."""
        if self._expected and token == self._expected[0]:
            self._expected = self._expected[1:]
            return True
        self._expected = []
        return token == self.end[0]


def _ends_open(prompt_ids: Sequence[int], begin: int, end: int) -> bool:
    """Return whether the last mark of a prompt is one that begins a thought."""
    marks = [token for token in prompt_ids if token in (begin, end)]
    return bool(marks) and marks[-1] == begin


class BehindThought(LogitsProcessor):
    """Applies another processor to the answer alone; a thought may begin, and is free.

    But none of the `stop_ids` is chosen in it, behind which no answer would come.
    """

    def __init__(
        self, thought: Thought, processor: LogitsProcessor, stop_ids: Sequence[int]
    ) -> None:
        self.thought, self.processor, self.stop_ids = thought, processor, list(stop_ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (1, vocabulary) of the token behind an answer's `input_ids`."""
        if self.thought.is_open:
            return scores.index_fill(1, torch.tensor(self.stop_ids), -torch.inf)
        result: Tensor = self.processor(input_ids[:, self.thought.length :], scores)
        if self.thought.thinks and self.thought.may_begin:
            begin = torch.tensor(self.thought.begin[:1])
            result = result.index_copy(1, begin, scores[:, begin])
        return result
