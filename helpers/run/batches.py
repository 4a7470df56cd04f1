"""Several answers whose next tokens are computed together.

A language model reads all of its weights for a token, of one answer or of several: four tokens cost
little more than one. Each conversation keeps its cache in a request of its own; while it is
computed together with others, one request holds the caches of all of them as rows, the shorter ones
padded on the left. States of a fixed size need no padding.

What this module does not know: how a token is chosen, and which answers there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from torch import Tensor

from helpers.graphs.stateful import BEAM_INPUT, is_fixed_size
from helpers.models.exported import PictureInputs
from helpers.run.caches import StateCache
from helpers.run.generation import StatefulLanguageModel

States = dict[str, NDArray[np.float32]]  # by name, each of one row


@dataclass(frozen=True, eq=False)
class BatchRow:
    """The last `token` of an answer, behind what is in its cache, whose next one is wanted.

    With a `draft`, which may be empty, so are those behind each of its tokens; None: it has none.
    """

    cache: StateCache
    pictures: PictureInputs | None
    token: int
    draft: tuple[int, ...] | None = None

    @property
    def can_be_joined(self) -> bool:
        """Whether nothing but the cache stays the same, and it is one token that is computed."""
        return self.draft is None and (self.pictures is None or not self.pictures.fixed)


class _TokenInputs(PictureInputs):
    """What one token of each answer takes, which is computed already."""

    def at(self, places: Tensor, batch: int) -> dict[str, Tensor]:
        """Return it, whatever the places in the answers are."""
        return self.along


class Batch:
    """Computes the next tokens of several answers with one language model."""

    def __init__(self, language_model: StatefulLanguageModel) -> None:
        self.language_model = language_model
        # Whose states the rows of the common request are; None is a row that is needed no more.
        self.members: list[StateCache | None] = []
        self.common: StateCache | None = None

    def compute(self, rows: Sequence[BatchRow]) -> list[Tensor]:
        """Return the logits (1, vocabulary) behind each row's token, and those behind its draft.

        Rows that cannot be joined are computed one after another.
        """
        joined = [row for row in rows if row.can_be_joined and self.language_model.can_be_joined]
        if len(joined) == 1 and joined[0].cache not in self.members:
            joined = []
        together = dict(zip(map(id, joined), self._compute_together(joined), strict=True))
        return [
            together[id(row)] if id(row) in together else self._compute_alone(row) for row in rows
        ]

    def leave(self, cache: StateCache) -> None:
        """Hand a cache what its answer has made of it; the others go on without it."""
        if cache not in self.members:
            return
        states = self._states(cache)
        for state in cache.request.query_state():
            state.state = ov.Tensor(np.ascontiguousarray(states[state.name]))
        self.members[self.members.index(cache)] = None

    def _compute_alone(self, row: BatchRow) -> Tensor:
        tokens = [row.token, *(row.draft or ())]
        output = self.language_model.forward(
            input_ids=torch.tensor([tokens]),
            past_key_values=row.cache,
            pictures=row.pictures,
            logits_to_keep=len(tokens),
            has_drafts=row.draft is not None,
        )
        assert output.logits is not None
        return output.logits[0]

    def _compute_together(self, rows: Sequence[BatchRow]) -> list[Tensor]:
        if not rows:
            return []
        caches = [row.cache for row in rows]
        if not all(cache in self.members for cache in caches):
            self._join(caches)
        assert self.common is not None
        length = self.common.length
        mask = torch.ones(len(rows), length + 1, dtype=torch.int64)
        for number, cache in enumerate(caches):
            mask[number, : length - cache.length] = 0
        tokens = torch.tensor([[row.token] for row in rows])
        lengths = torch.tensor([[cache.length] for cache in caches])
        inputs = {
            "inputs_embeds": self.language_model.embed_tokens(tokens).numpy(),
            "attention_mask": mask.numpy(),
            "position_ids": lengths.numpy(),
            BEAM_INPUT: np.array([self.members.index(cache) for cache in caches], np.int32),
        }
        self.language_model.step(self.common, inputs, self._picture_inputs(rows))
        self.members = list(caches)
        for cache in (self.common, *caches):
            cache.length += 1
        logits = torch.from_numpy(self.common.request.get_tensor("logits").data.copy())
        return list(logits)

    @staticmethod
    def _picture_inputs(rows: Sequence[BatchRow]) -> PictureInputs | None:
        """Return what the rows' tokens take of their prompts' pictures."""
        steps = [
            (row.pictures, row.pictures.at(torch.tensor([row.cache.length]), 1))
            for row in rows
            if row.pictures is not None
        ]
        if not steps:
            return None
        return _TokenInputs({}, steps[0][0].joined_steps([step for _, step in steps]))

    def _join(self, caches: Sequence[StateCache]) -> None:
        """Bring the states of all caches into the common request."""
        states = [self._states(cache) for cache in caches]
        if self.common is None:
            self.common = self.language_model.new_cache()
        for state in self.common.request.query_state():
            rows = [of_cache[state.name] for of_cache in states]
            if not is_fixed_size(state.name):
                length = max(row.shape[2] for row in rows)
                rows = [_padded(row, length) for row in rows]
            state.state = ov.Tensor(np.concatenate(rows))
        self.common.length = max(cache.length for cache in caches)
        self.members = list(caches)

    def _states(self, cache: StateCache) -> States:
        """Return a cache's states, from the common request or from its own."""
        if cache not in self.members:
            return {s.name: s.state.data for s in cache.request.query_state()}
        assert self.common is not None
        number, states = self.members.index(cache), self.common.request.query_state()
        return {
            s.name: _last(s.name, s.state.data[number : number + 1], cache.length) for s in states
        }


def _padded(state: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Return a state (1, heads, any length, head size) with zeros in front, of `length`."""
    return np.pad(state, ((0, 0), (0, 0), (length - state.shape[2], 0), (0, 0)))


def _last(name: str, state: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Return the last `length` positions of a state, or all of one that keeps fewer or always."""
    return state if is_fixed_size(name) else state[:, :, max(state.shape[2] - length, 0) :]
