"""How the questions of a sample share its picture: by a mask, or by the states behind the picture.

With attention alone, all tokens of a sample go through a language model at once, and a mask says
who goes with whom. A recurrence reads every token in its order: so the beginning that questions
share is read once, and its states are repeated for the questions, each of which is a row.

What this module does not know: what is learned, and how a picture becomes embeddings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from helpers.models.base import VisionLanguageModel
from helpers.upstream.transformers import DifferentiableCache

PADDING = -1  # the block of tokens that belong to no sample
SIMILAR = 32  # tokens; questions that differ by less are padded to one length


def visible_mask(blocks: Tensor) -> Tensor:
    """Return which tokens (batch, 1, length, length) a token of these `blocks` goes with.

    Those are earlier ones of its own block and of block 0; padding goes with padding too, so that
    no row of attention is empty.
    """
    same = blocks[:, None] == blocks[:, :, None]
    return (same | (blocks[:, None] == 0)).tril()[:, None]


def logits_of_rows(
    model: VisionLanguageModel[Any], embeddings: Tensor, position_ids: Tensor, blocks: Tensor
) -> Tensor:
    """Return the logits (batch, length, vocabulary) of samples, zeros for padding.

    `embeddings` are (batch, length, hidden), `position_ids` (batch, length) or with a dimension in
    front, `blocks` (batch, length).
    """
    all_samples = torch.arange(len(blocks), device=blocks.device)
    # Padding in front leaves a state untouched; behind, it would not.
    beginnings = _Rows.of(all_samples, blocks == 0, padding_in_front=True)
    states = DifferentiableCache(config=model.language_model.config)
    output = model(
        **beginnings.inputs(embeddings, position_ids),
        attention_mask=beginnings.is_token.long(),
        past_key_values=states,
        use_cache=True,
    )
    logits: Tensor = output.logits.new_zeros(*blocks.shape, output.logits.shape[-1])
    logits = logits.index_put(beginnings.places, output.logits[beginnings.is_token])
    for samples, is_member in _questions(blocks):
        questions = _Rows.of(samples, is_member, padding_in_front=False)
        is_token = torch.cat([beginnings.is_token[samples], questions.is_token], dim=1)
        output = model(
            **questions.inputs(embeddings, position_ids),
            attention_mask=is_token.long(),
            past_key_values=states.for_rows(samples),
            use_cache=True,
        )
        logits = logits.index_put(questions.places, output.logits[questions.is_token])
    return logits


@dataclass(frozen=True)
class _Rows:
    """Some tokens of each of some `samples`: their `order` (rows, most), and which `is_token`."""

    samples: Tensor
    order: Tensor
    is_token: Tensor

    @classmethod
    def of(cls, samples: Tensor, is_member: Tensor, *, padding_in_front: bool) -> Self:
        """Return the members (rows, length) of each row in their order."""
        most = int(is_member.sum(1).max())
        places = (is_member if padding_in_front else ~is_member).int()
        order = places.argsort(dim=1, stable=True)
        order = order[:, -most:] if padding_in_front else order[:, :most]
        return cls(samples, order, is_member.gather(1, order))

    def inputs(self, embeddings: Tensor, position_ids: Tensor) -> dict[str, Tensor]:
        """Return what the language model takes of these tokens."""
        rows = self.samples[:, None]
        return {
            "inputs_embeds": embeddings[rows, self.order],
            "position_ids": position_ids[..., rows, self.order],
        }

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Where the tokens are in a tensor (batch, length, ...)."""
        rows = self.samples[:, None].expand_as(self.order)
        return rows[self.is_token], self.order[self.is_token]


def _questions(blocks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the samples of questions of similar lengths, and their tokens (questions, length)."""
    samples = torch.arange(len(blocks), device=blocks.device)[:, None].expand_as(blocks)
    pairs = torch.unique(torch.stack([samples, blocks], dim=-1)[blocks > 0], dim=0)
    is_member = blocks[pairs[:, 0]] == pairs[:, 1:]
    steps = is_member.sum(1) // SIMILAR
    for step in torch.unique(steps):
        yield pairs[steps == step, 0], is_member[steps == step]
