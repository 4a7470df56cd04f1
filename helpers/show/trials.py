"""What exercises do with an answer before it is checked: compress, trace, call.

Each trial prints what it measures and returns in a word or a number what came of it.

What this module does not know: which result is right, and what to say to another one.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import openvino as ov
import torch
from PIL import Image
from torch import Tensor, nn

from helpers.errors import SettingsError
from helpers.graphs.bit_widths import bit_widths, stored_bytes
from helpers.graphs.compression import compress
from helpers.graphs.core import ACCURACY, compile_model
from helpers.graphs.part_names import IMAGE_ENCODER, LANGUAGE_MODEL
from helpers.graphs.presets import INT8, Preset, Weights
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.replies import Reply
from helpers.upstream import converter

T = TypeVar("T")

PLAIN_INT4 = Weights("int4-asym")
ABOUT_HALF = (0.4, 0.6)
OF_16_BITS = 0.03  # of the largest value: as far as weights in 16 bits move a small encoder


# Compressing


def stored_size(weights: Weights, graph: ov.Model) -> int:
    """Return how many bytes a graph's constants take when its weights are stored so."""
    return stored_bytes(compress(graph.clone(), weights))


def size_between(weights: Weights, graph: ov.Model, smaller: Weights = PLAIN_INT4) -> str:
    """Return whether a graph in `weights` is between that in `smaller` and that in 8 bits."""
    sizes = []
    for settings in (smaller, weights, INT8):
        sizes.append(stored_size(settings, graph))
        print(f"{sizes[-1] / 1e6:8.2f} MB  {settings}")
    least, size, most = sizes
    if size <= least:
        return "too small"
    return "too large" if size >= most else "between"


def size_by_groups(weights: Weights, graph: ov.Model) -> str:
    """Return what `size_between` does, and whether groups are as large as in INT4."""
    outcome = size_between(weights, graph)
    same = weights.group_size == PLAIN_INT4.group_size
    return "same groups" if same and outcome == "between" else outcome


def smaller_than(weights: Weights, graph: ov.Model, other: Weights) -> str:
    """Return whether a graph in `weights` is smaller than in `other` weights."""
    usual, size = (stored_size(settings, graph) for settings in (other, weights))
    print(f"{usual / 1e6:8.2f} MB  {other}")
    print(f"{size / 1e6:8.2f} MB  {weights}")
    if size == usual:
        return "the same"
    return "smaller" if size < usual else "larger"


def share_in_4_bits(ratio: float, graph: ov.Model) -> str:
    """Return whether a ratio stores about half of a graph's weights in 4 bits."""
    compressed = compress(graph.clone(), Weights("int4-asym", ratio=ratio))
    share = sum(width.share for width in bit_widths(compressed) if width.type == "u4")
    print(f"{share:.0%} of the weights are in 4 bits")
    least, most = ABOUT_HALF
    if share < least:
        return "too few"
    return "too many" if share > most else "within"


def smaller_with_16_bit_encoder(
    preset: Preset, graphs: Mapping[str, ov.Model], other: Preset
) -> str:
    """Return whether a preset leaves the image encoder alone and stores less than `other`."""
    for settings in (preset.language_model, preset.others):
        if not isinstance(settings, Weights):
            raise SettingsError(f"A preset holds Weights(...), and {settings!r} is none.")
    encoder = preset.weights_of(IMAGE_ENCODER)
    print("image encoder:", encoder)
    if encoder.bits != 16:
        return "fewer bits"
    sizes = []
    for settings in (other.language_model, preset.language_model):
        sizes.append(stored_size(settings, graphs[LANGUAGE_MODEL]))
        print(f"{sizes[-1] / 1e6:8.2f} MB  {settings}")
    return "smaller" if sizes[1] < sizes[0] else "not smaller"


# Tracing


def in_both(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Return what a module gives in PyTorch; print whether OpenVINO gives the same."""
    module = module.eval()
    inputs = tuple(value.clone() for value in inputs)  # inference tensors cannot be traced
    with torch.inference_mode():
        # Of copies, since a module may change what it is given
        expected: Tensor = result_of(module(*(value.clone() for value in inputs)))
    if not isinstance(expected, Tensor) or not expected.numel():
        kind = tuple(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
        raise SettingsError(f"The module should return a tensor of numbers, and returns {kind}.")
    with converter.quiet():
        example = tuple(value.clone() for value in inputs)
        graph = ov.convert_model(module, example_input=example)
    compiled = compile_model(graph, "CPU", **ACCURACY)
    actual = torch.from_numpy(compiled([value.numpy() for value in inputs])[0])
    error = (actual - expected).abs().max() / expected.abs().max()
    print("in OpenVINO as in PyTorch:", bool(error < 1e-4))
    return expected


def result_of(output: T | None) -> T:
    """Return what a reader's function returned; raise `SettingsError` where that is nothing."""
    if output is None:
        raise SettingsError("The function returns None: is a line with `return` missing?")
    return output


def tokens_left(blocks: nn.Module, kind: type[nn.Module], grid: Tensor) -> int | str:
    """Return how many tokens two blocks of a kind leave of a grid (width, rows, columns)."""
    if sum(isinstance(module, kind) for module in blocks.modules()) != 2:
        return "other blocks"
    output = in_both(blocks, grid.float()[None])
    print("from", tuple(grid.shape), "to", tuple(output.shape[1:]))
    return output[0, 0].numel()


def gate_kind(gate_module: nn.Module) -> str:
    """Return what a module that is called with words, a picture's share and a gate computes."""
    gate = torch.tensor([0.5])
    words, attended = torch.randn(2, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    output = in_both(gate_module, words, attended, gate)
    formulas = {
        "gated": words + gate.tanh() * attended,
        "gate as it is": words + gate * attended,
        "without words": gate.tanh() * attended,
        "all gated": gate.tanh() * (words + attended),
    }
    for name, expected in formulas.items():
        if output.shape == expected.shape and torch.allclose(output, expected, atol=1e-5):
            return name
    return "something else"


# Looking at pictures


@torch.inference_mode()
def vectors_kept(module: nn.Module, model: Any, pixels: Tensor) -> str:
    """Return which of an image encoder's vectors a module gives, as wide as those of words."""
    output = in_both(module, pixels)
    states = model.image_encoder(pixels).last_hidden_state
    projected = model.projector(states)
    print("from", tuple(pixels.shape), "to", tuple(output.shape))
    outcome = outcome_of(
        output,
        {
            "all vectors": projected,
            "CLS last": projected.roll(-1, dims=1),
            "without CLS": projected[:, 1:],
            "CLS alone": projected[:, :1],
            "not projected": states,
        },
    )
    if outcome == "something else" and output.shape == projected.shape:
        error = (output - projected).abs().max() / projected.abs().max()
        return "rounded" if error < OF_16_BITS else outcome
    return "all vectors" if outcome == "CLS last" else outcome


def outcome_of(output: object, outcomes: Mapping[str, Tensor]) -> str:
    """Return which of the outcomes a tensor, an array or a list is, but for rounding."""
    try:
        tensor = torch.as_tensor(output).float()
    except (TypeError, ValueError, RuntimeError):  # a string, say, or lists of several lengths
        return "something else"
    for name, expected in outcomes.items():
        if tensor.shape != expected.shape:
            continue
        if torch.allclose(tensor, expected.float(), rtol=1e-4, atol=1e-4):
            return name
    return "something else"


def depth_scale(flow: Callable[[Tensor, list[tuple[Tensor, Tensor]], float], Tensor]) -> str:
    """Return how a function scales what layers, each a pair of tensors, add to words.

    Another `scale_depth` is tried too: it and the number of layers should be no constants.
    """
    generator = torch.Generator().manual_seed(0)
    outcomes = set()
    for number, scale in ((4, 1.4), (16, 1.4), (64, 1.4), (64, 0.7)):
        words, *added = torch.randn(2 * number + 1, 1000, generator=generator)
        layers = list(zip(added[::2], added[1::2], strict=True))
        total = torch.stack(added).sum(0)
        output = result_of(flow(words.clone(), layers, scale))
        formulas = {
            "scaled": words + scale / number**0.5 * total,
            "as they are": words + total,
            "by the number": words + scale / number * total,
            "by both": words + scale / (2 * number) ** 0.5 * total,
            "without words": scale / number**0.5 * total,
        }
        outcomes.add(outcome_of(output, formulas))
        if "something else" not in outcomes:
            deviation = f"{torch.as_tensor(output).std():.2f}"
            print(f"{number} layers, scale_depth {scale}: what flows out has deviation {deviation}")
    if len(outcomes) == 1:
        return outcomes.pop()
    return "at times" if "scaled" in outcomes else "something else"


# Tables, windows and budgets


@torch.inference_mode()
def piece_of_row(piece: Callable[[Tensor, int, int], Tensor], model: Any) -> str:
    """Return what a function takes of the stored table of per-layer embeddings for one layer.

    It gets the table (tokens, layers * width), a token's id and a layer's number.
    """
    stored = model.per_layer_embeddings
    table, text = stored.weight.float(), model.processor.text
    shape = (text.num_hidden_layers, text.hidden_size_per_layer_input)
    token, layer = text.vocab_size // 2, shape[0] - 2
    row = table[token] * stored.factor
    output = torch.as_tensor(result_of(piece(table, token, layer)))
    inputs = model.prepare(torch.tensor([[token]]))["per_layer_inputs"][0, 0, layer].float()
    if output.shape == inputs.shape:
        print("as the model gets it:", torch.allclose(output, inputs, atol=1e-5))
    return outcome_of(
        output,
        {
            "piece": row.reshape(shape)[layer],
            "not multiplied": table[token].reshape(shape)[layer],
            "whole row": row,
            "every so many": row.reshape(shape[::-1])[:, layer],
        },
    )


def heard_through_windows(hear: Callable[[Tensor], Tensor]) -> str:
    """Return what a function makes of the window that each token (row) sees in one layer."""
    window, length = 32, 100
    distance = torch.arange(length)[:, None] - torch.arange(length)
    causal = distance >= 0
    near = causal & (distance < window)
    heard = torch.as_tensor(result_of(hear(near.clone()))) > 0
    if heard.shape != near.shape:
        print("near", tuple(near.shape), "and what was returned", tuple(heard.shape))
        return "another shape"
    print("the last token hears of", int(heard[-1].sum()) - 1, "tokens before it")
    outcomes = {
        "two layers": distance <= 2 * (window - 1),
        "one layer": near,
        "twice the window": distance < 2 * window,
        "everything": causal,
    }
    return outcome_of(heard, {name: grid & causal for name, grid in outcomes.items()})


def tokens_in_budget(picture: Image.Image, processor: Any) -> int:
    """Return how many tokens a picture has within a budget of 280."""
    inputs = processor.within(280).image_inputs([picture])
    rows, columns = processor.token_grid(inputs)
    print(f"{columns} columns, {rows} rows: {rows * columns} tokens")
    return int(rows * columns)


# Calling


class CountedReply:
    """A reply that counts the pieces which are read of it, and is otherwise the reply."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.pieces = reply, 0

    def __iter__(self) -> Iterator[str]:
        for piece in self.reply:
            self.pieces += 1
            yield piece

    def __getattr__(self, name: str) -> object:
        return getattr(self.reply, name)


def stopped(
    function: Callable[[CountedReply, threading.Event], object],
    pipeline: VisionLanguagePipeline,
    question: str,
    picture: Image.Image,
) -> str:
    """Return what a function does with a reply and its event: whether it reads, and stops."""
    event = threading.Event()
    reply = CountedReply(pipeline.ask(question, [picture], stop=event))
    with contextlib.suppress(StopIteration):  # of next(...) on what was stopped before it was read
        function(reply, event)
    if not reply.pieces:
        return "nothing read"
    if not event.is_set():
        return "not set"
    print(f"pieces read: {reply.pieces}; tokens computed: {len(reply.reply.token_ids)}")
    return "stopped" if reply.pieces == 1 else "more read"
