"""The cache of a conversation: keys and values, in the state of an inference request.

What this module does not know: what is computed with it, and when.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from torch import Tensor

from helpers.graphs.core import Stoppable
from helpers.graphs.stateful import is_fixed_size
from helpers.run import background


@dataclass(frozen=True, eq=False)
class Mark:
    """A place that a cache can return to: how many positions it had, and what cannot be cut."""

    length: int
    states: dict[str, NDArray[np.float32]]


class StateCache:
    """What `generate` is told about a cache that an inference request keeps.

    Handing it to `generate` again continues where it left off. `length` counts its positions;
    `stop`, once set, gives up a prompt that is being computed; the piece that was begun is finished
    in the background, and what then is in the state is taken out before the next use (`settle`).
    Where next tokens are compiled apart from prompts, it moves between `request` and
    `other_request`, of the other compiled model.
    """

    is_compileable = False
    is_sliding = (False,)

    def __init__(self, request: ov.InferRequest) -> None:
        self.request = request
        self.other_request: ov.InferRequest | None = None
        self.is_for_next_tokens = False
        self.length = 0
        self.holes: list[int] = []  # places in the state that hold what was rejected
        self.rows: np.ndarray | None = None  # the order of the batch's rows in the next step
        self.stop: Stoppable | None = None
        self.pictures: dict[str, Tensor] = {}  # what the request was handed of them
        self._goal: Mark | None = None  # where to return when the request is idle
        background.wait(request)  # for an earlier cache of its own
        request.reset_state()

    def leave(self, inputs: Mapping[str, NDArray[Any]], length: int) -> None:
        """Let the request go on in the background, after which the cache has so many positions."""
        background.keep(self.request, inputs, dict(self.pictures))
        self.length = length

    def settle(self, stop: Stoppable | None = None) -> None:
        """Wait until the request is idle, and return to where it should be.

        Raises `Stopped` where `stop` is set before that.
        """
        background.wait(self.request, stop)
        goal, self._goal = self._goal, None
        if goal is not None:
            self.return_to(goal)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many positions the cache holds."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Continue row i of the batch from row beam_idx[i] at the next step."""
        self.rows = beam_idx.numpy().astype(np.int32)

    def move_to(self, model: ov.CompiledModel) -> None:
        """Go on in the other request, which is one of `model`, with the same states."""
        target = self.other_request or model.create_infer_request()
        sources = {state.name: state for state in self.request.query_state()}
        for state in target.query_state():
            if state.name not in self.pictures:  # which the next step hands it
                state.state = ov.Tensor(sources[state.name].state.data.copy())
        self.request.reset_state()
        self.request, self.other_request = target, self.request
        self.is_for_next_tokens = not self.is_for_next_tokens
        self.pictures = {}

    def clear(self) -> None:
        """Empty the state."""
        self.request.reset_state()
        self.length, self.holes, self.rows, self.pictures = 0, [], None, {}

    def mask(self, batch: int, new: int) -> Tensor:
        """Return which places (batch, places) of the state and of so many new ones count."""
        mask = torch.ones(batch, self.length + len(self.holes) + new, dtype=torch.int64)
        mask[:, self.holes] = 0
        return mask

    def keep(self, length: int) -> None:
        """Let the last positions count no more, so that so many are left.

        Cutting them off would copy all of the state; they are masked until `close_holes`.
        """
        if length < self.length:
            self.holes += self._places()[length:].tolist()
        self.length = length

    def _places(self) -> NDArray[np.int64]:
        """Return the places in the state that count."""
        return np.setdiff1d(np.arange(self.length + len(self.holes)), self.holes)

    def close_holes(self) -> None:
        """Take what was rejected out of the state."""
        if not self.holes:
            return
        places = self._places()
        for state in self.request.query_state():
            if state.name not in self.pictures:
                state.state = ov.Tensor(np.ascontiguousarray(state.state.data[:, :, places]))
        self.holes = []

    def mark(self) -> Mark | None:
        """Return what brings the cache back to where it is; None where nothing does.

        Keys and values are cut then, so only states of a fixed size are copied.
        """
        states = self.request.query_state() if self.length else []
        fixed = {s.name: s.state.data.copy() for s in states if is_fixed_size(s.name)}
        return Mark(self.length, fixed)

    def return_to(self, mark: Mark) -> None:
        """Forget all positions since a mark; a cache that has fewer stays as it is.

        Where the request is not idle, that is left for `settle`.
        """
        if self.length <= mark.length:
            return
        if background.has(self.request):
            earlier = self._goal is not None and self._goal.length <= mark.length
            self._goal = self._goal if earlier else mark
            return
        if not mark.length:
            self.clear()
            return
        for state in self.request.query_state():
            if state.name in mark.states:
                state.state = ov.Tensor(mark.states[state.name])
            elif state.name not in self.pictures:
                state.state = ov.Tensor(np.ascontiguousarray(state.state.data[:, :, : mark.length]))
        self.length, self.rows = mark.length, None
