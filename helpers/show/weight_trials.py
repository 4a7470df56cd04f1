"""What exercises do with the weights of a language model: close gates, and put all of them back.

What this module does not know: which weights a reader should change, and what to say to others.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from helpers.inputs.questions import VisualQuestion
from helpers.measure.evaluation import accuracy, answer


@contextmanager
def put_back(model: Any) -> Iterator[dict[str, Tensor]]:
    """Let a reader's function change the language model, which is as before afterwards.

    Gives the weights from before, by name.
    """
    before = copy.deepcopy(model.language_model)
    try:
        yield before.state_dict()
    finally:
        try:
            model.language_model.load_state_dict(before.state_dict())
        except RuntimeError:  # modules or weights are missing, or are others
            model.language_model = before


@torch.no_grad()
def closed_gates(
    close: Callable[[Any], object],
    model: Any,
    pairs: Sequence[VisualQuestion],
    *,
    gate: str = "_gate",
) -> str:
    """Return which gates a function closes; tell how many answers are right then.

    Gates are the weights with such a name, closed at 0. All weights are as before afterwards.
    """
    gates = list(gates_of(model, gate))
    with put_back(model):
        close(model.language_model)
        closed = [name for name, weight in gates_of(model, gate).items() if not weight.any()]
        if closed and pairs:
            print("closed:", ", ".join(closed))
            print("right:", accuracy(answer(model, pairs), pairs)["all"].count)
    layers = dict.fromkeys(name.rpartition(".")[0] for name in gates)
    first = [name for name in gates if name.startswith(f"{next(iter(layers))}.")]
    outcomes = {"nothing": [], "all layers": gates, "first layer": first}
    for outcome, names in outcomes.items():
        if closed == names:
            return outcome
    if set(closed) < set(first):
        return "half"
    return "another layer" if len(closed) <= len(first) else "some layers"


def gates_of(model: Any, gate: str) -> dict[str, nn.Parameter]:
    """Return the weights of a language model with such a name, those of the first layers first."""
    parameters = model.language_model.named_parameters()
    return {name: weight for name, weight in parameters if name.endswith(gate)}
