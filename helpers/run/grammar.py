"""Answers that follow a JSON schema: which tokens may come next is asked of llguidance.

What this module does not know: schemas themselves, and how a token is chosen among those allowed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llguidance
import llguidance.hf
import llguidance.numpy
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation import LogitsProcessor

from helpers.errors import SettingsError, system_reason


class Grammars:
    """Makes grammars for one tokenizer and the `vocabulary` of its model's logits.

    Reading a large tokenizer takes about a second, so that it is read for the first schema.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, stop_token_ids: Sequence[int]
    ) -> None:
        self.vocabulary, self.stop_token_ids = vocabulary, list(stop_token_ids)
        self.tokenizer = llguidance.hf.from_tokenizer(
            tokenizer,  # type: ignore[arg-type]
            n_vocab=max(vocabulary, len(tokenizer)),
            eos_token=self.stop_token_ids,
        )

    def follow(self, schema: Mapping[str, Any]) -> "SchemaProcessor":
        """Return what holds an answer to a JSON schema.

        Raises `SettingsError` for a schema that llguidance cannot follow.
        """
        matcher = llguidance.LLMatcher(self.tokenizer, _grammar_of(schema))
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        return SchemaProcessor(matcher, self)


def _grammar_of(schema: Mapping[str, Any]) -> str:
    """Return a schema's grammar; raises `SettingsError` where llguidance cannot follow it."""
    if not isinstance(schema, Mapping):
        raise SettingsError(
            f"A schema is a dict, and this is of type {type(schema).__name__}; json.loads makes a "
            "dict of a text."
        )
    try:
        # Small models would write spaces until their limit, where they may stand anywhere.
        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            json.dumps(schema), overrides={"whitespace_flexible": False}
        )
        reason = llguidance.LLMatcher.validate_grammar(grammar)
    except (TypeError, ValueError) as error:
        reason = str(error)
    if reason:
        raise _refusal(reason)
    return str(grammar)


def _refusal(reason: str) -> SettingsError:
    return SettingsError(
        f"The schema cannot be followed ({_first_line(reason)}); change or leave out what it names."
    )


def read_schema(path: Path) -> dict[str, Any]:
    """Return the JSON schema in a file, which any model can follow.

    Raises `SettingsError` where there is none.
    """
    try:
        schema = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        reason = system_reason(error)
        raise SettingsError(f"{path} cannot be read ({reason}); give another file.") from None
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise SettingsError(f"{path} holds no JSON schema; write one into it, which is an object.")
    _grammar_of(schema)
    return schema


class SchemaProcessor(LogitsProcessor):
    """Forbids tokens with which an answer would no longer follow its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, grammars: Grammars) -> None:
        self.matcher = matcher
        self.stop_token_ids = grammars.stop_token_ids
        self.length = 0  # tokens of the answer that the matcher has been told
        self.mask = llguidance.numpy.allocate_token_bitmask(1, grammars.tokenizer.vocab_size)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (1, vocabulary) with those of forbidden tokens at minus infinity.

        `input_ids` (1, length) are those of the answer alone, as `generate` has them for prompts
        that are given as embeddings.
        """
        for token in input_ids[0, self.length :].tolist():
            self.matcher.consume_token(token)
        self.length = input_ids.shape[1]
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        if self.matcher.is_stopped():
            allowed[:, self.stop_token_ids] = True
        else:
            llguidance.numpy.fill_next_token_bitmask(self.matcher, self.mask)
            bits = torch.from_numpy(self.mask)[0, :, None] >> torch.arange(32) & 1
            allowed = bits.flatten()[None, : scores.shape[1]].bool()
        if self.matcher.is_error():
            raise _refusal(self.matcher.get_error())
        return scores.masked_fill(~allowed, -torch.inf)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0]
