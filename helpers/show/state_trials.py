"""What exercises do with states of a fixed size: keep pairs in them, keep them for ever, pad.

Each trial prints what it measures and returns in a word what came of it.

What this module does not know: which result is right, and what to say to another one.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from helpers.inputs.questions import VisualQuestion
from helpers.measure.evaluation import accuracy, answer
from helpers.show.trials import outcome_of, result_of
from helpers.show.weight_trials import put_back

Array = NDArray[np.floating[Any]]
LATER = 100  # tokens behind a value, after which it is looked for


def rule_of(rule: Callable[[Array, Array, Array, Array, Array], Array]) -> str:
    """Return which rule a function keeps pairs by.

    It takes queries, keys and values (length, size), decays and strengths (length,).
    """
    generator = np.random.default_rng(0)
    queries, keys, values = generator.normal(size=(3, 6, 4))
    decays, strengths = generator.uniform(0.5, 1, size=(2, 6))
    unity = np.ones(6)  # no token shrinks or weakens anything
    outcomes = {
        "added": _read(queries, keys, values, decays, strengths),
        "delta rule": _read(queries, keys, values, decays, strengths, corrected=True),
        "without decay": _read(queries, keys, values, unity, strengths),
        "without strength": _read(queries, keys, values, decays, unity),
        "neither": _read(queries, keys, values, unity, unity),
    }
    copies = (part.copy() for part in (queries, keys, values, decays, strengths))
    output = result_of(rule(*copies))
    once = np.eye(4)[[0, 1, 0]]
    pairs = np.array([[1.0], [2.0], [5.0]])
    line = rule(np.eye(4)[[0, 0, 0]], once, pairs, np.ones(3), np.ones(3))
    print("read by the first key:", *np.ravel(line).round(2).tolist())
    tensors = {name: torch.tensor(outcome) for name, outcome in outcomes.items()}
    return outcome_of(torch.tensor(np.asarray(output)), tensors)


def _read(
    queries: Array,
    keys: Array,
    values: Array,
    decays: Array,
    strengths: Array,
    corrected: bool = False,
) -> Array:
    """Return what each token reads (length, size); a value is corrected, or only added."""
    state, answers = np.zeros((keys.shape[1], values.shape[1])), []
    for query, key, value, decay, strength in zip(
        queries, keys, values, decays, strengths, strict=True
    ):
        state = state * decay
        value = value - key @ state if corrected else value
        state = state + np.outer(key, strength * value)
        answers.append(query @ state)
    return np.stack(answers)


@torch.no_grad()
def memory_of(change: Callable[[Any], object], model: Any, pairs: Sequence[VisualQuestion]) -> str:
    """Return what a function makes of how long the linear layers remember.

    It is handed the language model; the model is as before afterwards.
    """
    with put_back(model) as before:
        names = [name for name in before if name.endswith(".A_log")]
        change(model.language_model)
        after = copy.deepcopy(model.language_model.state_dict())
        shares = [_left_over(after, name) for name in names]
        shares_before = [_left_over(before, name) for name in names]
        print(f"of a value, {LATER} tokens later, in the mean of all heads:")
        print(f"{_mean(shares_before):.0%} is left before, {_mean(shares):.0%} after")
        if pairs:
            print("right:", accuracy(answer(model, pairs), pairs)["all"].count)
    changed = [name for name, weight in after.items() if not torch.equal(weight, before[name])]
    if not changed:
        return "as before"
    if not {name.rpartition(".")[2] for name in changed} <= {"A_log", "dt_bias"}:
        return "other weights"
    remembers = [float(share.min()) > 0.99 for share in shares]  # by layer
    forgets = [float(share.max()) < 0.01 for share in shares]
    if all(remembers):
        return "for ever"
    if all(forgets):
        return "not at all"
    return "some layers" if any(remembers) else "shorter"


def _left_over(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the share of a value that each head has left, where tokens themselves say nothing."""
    bias = weights[name.replace("A_log", "dt_bias")]
    rate = weights[name].float().exp() * torch.nn.functional.softplus(bias.float())
    return (-rate * LATER).exp()


def _mean(shares: Sequence[Tensor]) -> float:
    return float(torch.cat([share.flatten() for share in shares]).mean())


def padded(pad: Callable[[list[Array]], tuple[Array, NDArray[np.int64]]]) -> str:
    """Return on which side a function pads two prompts (length, size) of 3 and 5 tokens.

    It returns embeddings (2, 5, size) and the mask (2, 5).
    """
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(8, 4)).astype(np.float32)  # as embeddings are
    prompts = [numbers[:3], numbers[3:]]
    output = result_of(pad([prompt.copy() for prompt in prompts]))
    if not isinstance(output, tuple | list) or len(output) != 2:
        return "another shape"
    embeddings, mask = map(np.asarray, output)
    if embeddings.shape != (2, 5, 4) or mask.shape != (2, 5):
        print("embeddings", embeddings.shape, "mask", mask.shape)
        return "another shape"
    print("embeddings", embeddings.shape, "mask", mask.tolist())
    sides = {"in front": slice(2, 5), "behind": slice(0, 3)}
    for side, places in sides.items():
        expected = np.zeros(5)
        expected[places] = 1
        without_padding = (embeddings[0, places], embeddings[1])
        if all(map(np.array_equal, without_padding, prompts)):
            masks = np.stack([expected, np.ones(5)])
            return side if np.array_equal(mask, masks) else "another mask"
    return "not the prompts"
