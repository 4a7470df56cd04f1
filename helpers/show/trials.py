"""What exercises do with an answer before it is checked: compress, trace, draw and ask, call.

Each trial prints what it measures and returns in a word or a number what came of it.

What this module does not know: which result is right, and what to say to another one.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import openvino as ov
import torch
from PIL import Image
from torch import Tensor, nn

from helpers.errors import SettingsError
from helpers.graphs.bit_widths import bit_widths, stored_bytes
from helpers.graphs.compression import compress
from helpers.graphs.part_names import IMAGE_ENCODER, LANGUAGE_MODEL
from helpers.graphs.presets import INT8, Preset, Weights
from helpers.inputs.boxes import Box, boxes_in, intersection_over_union
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.replies import Reply
from helpers.shapes.world import COLOURS, PLACES, SHAPES, Scene, draw, item_boxes
from helpers.upstream import converter

PLAIN_INT4 = Weights("int4-asym")
SAME_BOX = 0.5  # intersection over union from which on two boxes count as one
ENOUGH_SHAPES = 3


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
    return "too small" if size <= least else "too large" if size >= most else "between"


def share_in_4_bits(ratio: float, graph: ov.Model, low: float = 0.4, high: float = 0.6) -> str:
    """Return whether a ratio stores from `low` to `high` of a graph's weights in 4 bits."""
    compressed = compress(graph.clone(), Weights("int4-asym", ratio=ratio))
    share = sum(width.share for width in bit_widths(compressed) if width.type == "u4")
    print(f"{share:.0%} of the weights are in 4 bits")
    return "too few" if share < low else "too many" if share > high else "within"


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
        expected: Tensor = module(*inputs)
    with converter.quiet():
        graph = ov.convert_model(module, example_input=inputs)
    compiled = ov.compile_model(graph, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    actual = torch.from_numpy(compiled([value.numpy() for value in inputs])[0])
    error = (actual - expected).abs().max() / expected.abs().max()
    print("in OpenVINO as in PyTorch:", bool(error < 1e-4))
    return expected


def tokens_left(blocks: nn.Module, grid: Tensor) -> int:
    """Return how many tokens blocks of convolutions leave of a grid (width, rows, columns)."""
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


# Drawing and asking


def checked(scene: Scene) -> Scene:
    """Return a scene that can be drawn; raise `SettingsError` where it cannot."""
    if scene.grid not in PLACES:
        raise SettingsError(f"The grid {scene.grid} does not exist; use {listed(PLACES)}.")
    places = len(PLACES[scene.grid])
    if len(scene.items) != places:
        raise SettingsError(
            f"The grid has {places} places and the scene {len(scene.items)} items; put None where "
            "nothing is."
        )
    for item in scene.places.values():
        for value, values in ((item.shape, SHAPES), (item.colour, COLOURS)):
            if value not in values:
                raise SettingsError(f"There is no {value!r} here; use {listed(values)}.")
    return scene


def listed(values: Iterable[object]) -> str:
    """Return values in words."""
    return ", ".join(map(str, values))


def seen_by_model(scene: Scene, pipeline: VisionLanguagePipeline) -> str:
    """Return whether a model names the colour and the shape at every place of a drawn scene."""
    if len(checked(scene).places) < ENOUGH_SHAPES:
        return "few shapes"
    picture, errors = draw(scene), 0
    for place, item in scene.places.items():
        colour = pipeline.ask(f"What colour is the shape at the {place}?", [picture]).text
        shape = pipeline.ask(f"What shape is at the {place}?", [picture]).text
        print(f"{place}: drawn {item}; the model says {colour}, {shape}")
        errors += item.colour not in colour.lower() or item.shape not in shape.lower()
    return "missed" if errors else "seen"


def read_by_model(
    scene: Scene, scene_before: Scene | None, pipeline: VisionLanguagePipeline
) -> str:
    """Return whether a model reads the word that was added to an earlier scene."""
    word = checked(scene).word
    if not word:
        return "no word"
    if scene_before is None or scene.items != scene_before.items:
        return "other shapes"
    text = pipeline.ask("What word is written?", [draw(scene)]).text
    print(f"printed {word}; the model reads {text}")
    return "read" if word in text else "missed"


def located_by_model(scene: Scene, pipeline: VisionLanguagePipeline) -> str:
    """Return whether a model's box of each shape of a drawn scene is near the one it has."""
    items = list(checked(scene).places.values())
    if len(set(items)) < len(items):
        return "twins"
    if len(items) < ENOUGH_SHAPES - 1:
        return "few shapes"
    picture, errors = draw(scene), 0
    for place, corners in item_boxes(scene).items():
        item = scene.places[place]
        boxes = boxes_in(pipeline.ask(f"Give the box of the {item}.", [picture]).text)
        drawn_box = Box(*corners, label=str(item))
        overlap = intersection_over_union(boxes[0], drawn_box) if boxes else 0.0
        print(f"{item}: overlap of the boxes {overlap:.2f}")
        errors += overlap < SAME_BOX
    return "missed" if errors else "located"


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
    function(reply, event)
    if not reply.pieces:
        return "nothing read"
    if not event.is_set():
        return "not set"
    print(f"pieces read: {reply.pieces}; tokens computed: {len(reply.reply.token_ids)}")
    return "stopped" if reply.pieces == 1 else "more read"
