"""The stateful language model behind transformers' `generate()`.

`generate` brings greedy search, sampling, beam search, penalties, streaming and stopping; all that
it needs is a model whose `forward` gives logits and a cache object. The cache object here holds
neither keys nor values: they live in the state of an OpenVINO inference request.

What this module does not know: which tokens are drafts, and how caches that began apart are joined.
"""

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import numpy as np
import openvino as ov
import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.generation import StoppingCriteria
from transformers.modeling_outputs import CausalLMOutputWithPast

from helpers.graphs.core import LOOK, Stoppable, Stopped, cannot_compute
from helpers.graphs.stateful import BEAM_INPUT, is_fixed_size
from helpers.graphs.token_rows import apart, row_shapes, side_by_side
from helpers.models.exported import PictureInputs
from helpers.run import background
from helpers.run.caches import StateCache
from helpers.run.pieces import LEAST, PieceSizes


class StopOnEvent(StoppingCriteria):
    """End `generate` after the current token once an event is set."""

    def __init__(self, event: Stoppable) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Return for each row of the batch whether it is finished."""
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool)


class StatefulLanguageModel(PreTrainedModel, GenerationMixin):
    """An OpenVINO language model with state, used as transformers uses its own.

    `language_model` is a compiled model, and so is each of `tables`, which look tokens up for its
    inputs of these names; what they give of a token is one row, side by side, and called
    `inputs_embeds`. `next_tokens`, if given, is the language model compiled for one token of one
    answer, to which a cache moves behind a prompt. As with transformers' own models,
    `inputs_embeds` given to `generate` are those of the whole sequence; the positions that the
    cache already holds are cut off.
    """

    config_class = PreTrainedConfig
    main_input_name = "input_ids"
    can_be_joined = True  # whether rows of one batch may have caches that began apart
    _supports_sdpa = True

    def __init__(
        self,
        tables: Mapping[str, ov.CompiledModel],
        language_model: ov.CompiledModel,
        next_tokens: ov.CompiledModel | None = None,
    ) -> None:
        sizes = language_model.output("logits").get_partial_shape()
        vocabulary = sizes[-1].get_length()
        config = PreTrainedConfig(is_encoder_decoder=False)
        config.vocab_size = vocabulary  # which beam search asks for
        super().__init__(config)
        self.generation_config = GenerationConfig()
        self.tables = tables
        self.row_shapes = row_shapes(language_model, tables)
        self.language_model, self.next_tokens = language_model, next_tokens
        self.pieces = PieceSizes()
        self.input_names = {port.any_name for port in language_model.inputs}

    # What transformers asks of a model

    @property
    def device(self) -> torch.device:
        """Where the tensors of `generate` are: in main memory."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The type of embeddings and logits."""
        return torch.float32

    @classmethod
    def can_generate(cls) -> bool:
        """Return that `generate` works."""
        return True

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *_: Any
    ) -> bool:
        if model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = self.new_cache()
        return False  # the cache is not transformers' own

    # The work

    def new_cache(self, request: ov.InferRequest | None = None) -> StateCache:
        """Return an empty cache in `request`, or in a request of its own."""
        return StateCache(request or self.language_model.create_infer_request())

    @cached_property
    def is_recurrent(self) -> bool:
        """Whether it keeps states that no token can be taken out of again."""
        states = self.language_model.create_infer_request().query_state()
        return any(is_fixed_size(state.name) for state in states)

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings (batch, length, hidden) of token ids, and what else they have."""
        return side_by_side(
            torch.from_numpy(table(input_ids.numpy(), share_inputs=True)[0])
            for table in self.tables.values()
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: StateCache | None = None,
        pictures: PictureInputs | None = None,
        logits_to_keep: int = 1,
        has_drafts: bool = False,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Run the new positions; return the last ones' logits (batch, to keep, vocabulary).

        There are as many as the graph returns, at most. An answer that `has_drafts` computes
        several tokens at a time, and so never moves to the model for single ones.
        """
        if inputs_embeds is None:
            assert input_ids is not None  # transformers gives one of the two
            inputs_embeds = self.embed_tokens(input_ids)
        batch, new = inputs_embeds.shape[:2]
        cache = past_key_values if past_key_values is not None else self.new_cache()
        if attention_mask is None:
            attention_mask = cache.mask(batch, new)
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        inputs_embeds = self._embeddings_to_compute(
            cache, inputs_embeds, pictures, length=int(positions.max()) + 1
        )
        positions = positions[:, -inputs_embeds.shape[1] :]
        self._choose_request(cache, is_single=positions.numel() == 1 and not has_drafts)
        rows = cache.rows if cache.rows is not None else np.arange(batch, dtype=np.int32)
        inputs = {
            "inputs_embeds": inputs_embeds.numpy(),
            "attention_mask": attention_mask.numpy(),
            "position_ids": positions.numpy(),
            BEAM_INPUT: rows,
        }
        if pictures is not None:
            self._set_pictures(cache, pictures)
        self.step(cache, inputs, pictures)
        cache.length, cache.rows = attention_mask.shape[1] - len(cache.holes), None
        last = cache.request.get_tensor("logits").data[:, -logits_to_keep:]
        logits = torch.from_numpy(last.copy())
        return CausalLMOutputWithPast(logits=logits, past_key_values=cast(Cache, cache))

    def _choose_request(self, cache: StateCache, *, is_single: bool) -> None:
        """Move a cache to the model that computes a single next token, or back to the other."""
        is_next = is_single and cache.length > 0
        if self.next_tokens is None or is_next == cache.is_for_next_tokens:
            return
        try:
            cache.move_to(self.next_tokens if is_next else self.language_model)
        except RuntimeError as error:
            raise cannot_compute(error) from error

    def _set_pictures(self, cache: StateCache, pictures: PictureInputs) -> None:
        """Hand the request what stays the same for all tokens, unless it has it."""
        states = {state.name: state for state in cache.request.query_state()}
        for name, value in pictures.fixed.items():
            if cache.pictures.get(name) is value:
                continue
            tensor = ov.Tensor(value.numpy(), shared_memory=True)
            if name in states:
                states[name].state = tensor
            else:
                cache.request.set_tensor(name, tensor)
            cache.pictures[name] = value  # kept, since a request's tensor shares its memory

    def _embeddings_to_compute(
        self, cache: StateCache, new: Tensor, pictures: PictureInputs | None, *, length: int
    ) -> Tensor:
        """Return the embeddings to run for a sequence that has `length` tokens with them."""
        return new

    def _positions_at_once(self, cache: StateCache, past: int, new: int) -> int:
        """Return how many of the `new` positions are run before a stop event is looked at.

        So many are `past`, in the cache already.
        """
        return new if cache.stop is None else self.pieces.size(past)

    def step(
        self,
        cache: StateCache,
        inputs: dict[str, np.ndarray],
        pictures: PictureInputs | None,
    ) -> None:
        """Run the cache's request: a long prompt piece by piece, given up at a set stop event.

        How large pieces are follows the time that the last ones took (`PieceSizes`). The one
        that is being computed then is left to the background.
        """
        new = inputs["position_ids"].shape[1]
        past = inputs["attention_mask"].shape[1] - new
        start = 0
        if new > 1:  # what others left computes first anyway, and is no time of this prompt
            background.finish(cache.stop)
        while start < new:
            if cache.stop is not None and cache.stop.is_set():
                cache.length = past + start - len(cache.holes)  # so that `return_to` cuts it
                raise Stopped
            end = min(start + self._positions_at_once(cache, past + start, new - start), new)
            length = past + end - len(cache.holes)
            feed = self._feed(inputs, pictures, start, end, length=length)
            started = time.perf_counter()
            self._infer(cache, feed, length=length, can_be_left=end - start >= LEAST)
            if new > 1:
                self.pieces.note(past + start, end - start, time.perf_counter() - started)
            start = end

    def _feed(
        self,
        inputs: Mapping[str, np.ndarray],
        pictures: PictureInputs | None,
        start: int,
        end: int,
        *,
        length: int,
    ) -> dict[str, np.ndarray]:
        """Return what is run of the new positions from `start` to `end`.

        There are `length` positions with them, without places that hold what was rejected.
        """
        batch, new = inputs["position_ids"].shape
        total = inputs["attention_mask"].shape[1] - new + end
        rows = apart(torch.from_numpy(inputs["inputs_embeds"][:, start:end]), self.row_shapes)
        part = {
            **{name: value.numpy() for name, value in rows.items()},
            "attention_mask": inputs["attention_mask"][:, :total],
            "position_ids": inputs["position_ids"][:, start:end],
            BEAM_INPUT: inputs[BEAM_INPUT] if start == 0 else np.arange(batch, dtype=np.int32),
        }
        if pictures is not None:
            places = torch.arange(length - (end - start), length)
            part |= {name: value.numpy() for name, value in pictures.at(places, batch).items()}
        return {
            name: np.ascontiguousarray(value)
            for name, value in part.items()
            if name in self.input_names
        }

    @staticmethod
    def _infer(
        cache: StateCache, feed: Mapping[str, np.ndarray], *, length: int, can_be_left: bool
    ) -> None:
        """Run the cache's request, after which it has `length` positions.

        Where it `can_be_left`, it is left to the background at a set stop event.
        """
        try:
            # `infer` computes in this thread instead, in which a token took 0.3 to 5 ms longer.
            cache.request.start_async(feed, share_inputs=True)
            while not cache.request.wait_for(LOOK):
                if can_be_left and cache.stop is not None and cache.stop.is_set():
                    cache.leave(feed, length)
                    raise Stopped
        except RuntimeError as error:
            raise cannot_compute(error) from error
