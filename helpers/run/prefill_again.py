"""A language model that computes its whole cache anew once a sequence outgrows a length.

LongRoPE (arXiv:2402.13753) rotates all keys otherwise beyond the length that the model was first
trained with, so those in the cache count no more. A length is one of positions, of which pictures
may have fewer than tokens.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from torch import Tensor

from helpers.models.exported import ExportedParts, PictureInputs
from helpers.run.caches import Mark, StateCache
from helpers.run.generation import StatefulLanguageModel


class RewindableCache(StateCache):
    """A cache that can be computed anew: it keeps each step's embeddings.

    `steps` pairs them with the rows of the batch that they continued from, until the sequence
    outgrows the limit. `is_crossing` in the step in which it does.
    """

    is_crossing = False

    def __init__(self, request: ov.InferRequest) -> None:
        super().__init__(request)
        self.steps: list[tuple[Tensor, NDArray[np.int32] | None]] = []

    def mark(self) -> Mark | None:
        """Return None: beyond the limit, keys are others than they were before it."""
        return None

    def rewind(self) -> Tensor:
        """Empty the state and return the embeddings (batch, length, hidden) it was made of."""
        pieces: list[Tensor] = []
        order: NDArray[np.integer[Any]] = np.arange(len(self.steps[-1][0]))
        for embeddings, rows in reversed(self.steps):
            pieces.append(embeddings[order])
            order = order if rows is None else rows[order]
        self.clear()
        self.steps = []
        return torch.cat(pieces[::-1], dim=1)


class PrefillAgainLanguageModel(StatefulLanguageModel):
    """A stateful language model whose sequences are prefilled again beyond `limit` positions."""

    can_be_joined = False  # each sequence outgrows the limit at a time of its own

    def __init__(
        self,
        tables: Mapping[str, ov.CompiledModel],
        language_model: ov.CompiledModel,
        next_tokens: ov.CompiledModel | None = None,
        *,
        limit: int,
    ) -> None:
        super().__init__(tables, language_model, next_tokens)
        self.limit = limit

    def new_cache(self, request: ov.InferRequest | None = None) -> StateCache:
        """Return an empty cache in `request`, or in a request of its own."""
        return RewindableCache(request or self.language_model.create_infer_request())

    def _embeddings_to_compute(
        self, cache: StateCache, new: Tensor, pictures: PictureInputs | None, *, length: int
    ) -> Tensor:
        assert isinstance(cache, RewindableCache)
        cache.is_crossing = False
        if cache.length and not cache.steps:  # it was beyond the limit before
            return new
        cache.steps.append((new, cache.rows))
        places = torch.arange(length - new.shape[1], length)
        reach = length if pictures is None else pictures.reach(places)
        cache.is_crossing = reach > self.limit
        return cache.rewind() if cache.is_crossing else new

    def _positions_at_once(self, cache: StateCache, past: int, new: int) -> int:
        # What is beyond the limit decides how all before it is computed, so both go together.
        assert isinstance(cache, RewindableCache)
        return new if cache.is_crossing else super()._positions_at_once(cache, past, new)


def language_model_of(
    tables: Mapping[str, ov.CompiledModel],
    language_model: ov.CompiledModel,
    exported: ExportedParts,
    next_tokens: ov.CompiledModel | None = None,
) -> StatefulLanguageModel:
    """Return a family's language model, with the tables by which tokens become its inputs.

    `next_tokens` is the same compiled for one token of one answer, if it is.
    """
    limit = exported.prefill_again_beyond
    if limit is None:
        return StatefulLanguageModel(tables, language_model, next_tokens)
    return PrefillAgainLanguageModel(tables, language_model, next_tokens, limit=limit)
