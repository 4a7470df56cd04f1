"""Which weights of a converted model are stored in how many bits, read from the model itself.

What this module does not know: how they came to be stored so.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import openvino as ov

# Operations that stand between a stored weight and its use: they decompress or reshape it.
_ON_THE_WAY = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose")


_USERS = {"MatMul": (0, 1), "Gather": (0,), "Convolution": (1,), "GroupConvolution": (1,)}


@dataclass(frozen=True)
class BitWidth:
    """How many layers, and what share of all weights, are stored in one type."""

    type: str
    layers: int
    share: float  # of the weights, 0 to 1


def bit_widths(model: ov.Model) -> list[BitWidth]:
    """Return how the weights of `model`'s layers are stored, the smallest type first.

    A layer is an operation that multiplies by a stored matrix or looks rows up in one. A matrix
    that two layers share is counted once.
    """
    stored = {constant.get_friendly_name(): constant for _, constant in stored_layers(model)}
    layers: Counter[tuple[int, str]] = Counter()  # by bits and name of the type
    sizes: Counter[tuple[int, str]] = Counter()
    for constant in stored.values():
        element = constant.get_element_type()
        kind = (element.bitwidth, element.get_type_name())
        layers[kind] += 1
        sizes[kind] += math.prod(constant.get_output_shape(0))
    total = sum(sizes.values())
    return [BitWidth(kind[1], layers[kind], sizes[kind] / total) for kind in sorted(layers)]


def layer_types(model: ov.Model) -> dict[str, str]:
    """Return the type that each layer's weights are stored in, such as u4, by the layer's name.

    The name is that of the PyTorch module which was traced: `decoder.transformer.blocks.0.ffn`.
    """
    return {
        module_of(layer): constant.get_element_type().get_type_name()
        for layer, constant in stored_layers(model)
    }


def module_of(layer: ov.Node) -> str:
    """Return the name of the PyTorch module that an operation was traced from."""
    return str(layer.get_friendly_name()).split("/")[0].removeprefix("__module.")


def layer_type_rows(types: Mapping[str, str], *, marked: str) -> list[dict[str, object]]:
    """Return a row for each kind of layer: how many have each type, and which blocks the `marked`.

    `types` are those of `layer_types`. The kind is the end of a layer's name, its block the first
    number in it.
    """
    rows = []
    for kind in sorted({name.rpartition(".")[2] for name in types}):
        layers = [name for name in sorted(types) if name.endswith(f".{kind}")]
        row: dict[str, object] = {"layer": kind}
        for width in sorted(set(types.values())):
            row[width] = sum(types[name] == width for name in layers)
        numbers = [re.search(r"\d+", name) for name in layers if types[name] == marked]
        row[f"{marked} in block"] = ", ".join(number[0] for number in numbers if number) or "-"
        rows.append(row)
    return rows


def same_weights(first: ov.Model, second: ov.Model) -> bool:
    """Return whether two models store the same constants, bit by bit, in the same order."""

    def stored(model: ov.Model) -> Iterator[bytes]:
        for node in model.get_ordered_ops():
            if node.get_type_name() == "Constant":
                yield node.data.tobytes()

    pairs = itertools.zip_longest(stored(first), stored(second))
    return all(ours == theirs for ours, theirs in pairs)


def stored_layers(model: ov.Model) -> Iterator[tuple[ov.Node, ov.Node]]:
    """Yield each operation that uses a stored matrix, with the constant that holds it."""
    for node in model.get_ordered_ops():
        for index in _USERS.get(node.get_type_name(), ()):
            constant = _stored_weight(node.input_value(index).get_node())
            if constant is not None and _is_matrix(constant):
                yield node, constant


def _is_matrix(constant: ov.Node) -> bool:
    """Return whether a constant has rows and columns, unlike a table of rotary frequencies."""
    sides = [length for length in constant.get_output_shape(0) if length > 1]
    return len(sides) > 1


def _stored_weight(node: ov.Node) -> ov.Node | None:
    """Return the constant that a layer's input is decompressed from, or None for an activation."""
    while node.get_type_name() in _ON_THE_WAY:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def stored_bytes(model: ov.Model) -> int:
    """Return how many bytes the constants of `model` take, scales and zero points included."""
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    return sum(node.get_byte_size() for node in constants)


def bit_width_rows(widths: dict[str, list[BitWidth]]) -> list[dict[str, object]]:
    """Return bit widths by part as rows for `tables.show_table`."""
    return [
        {"part": part, "weights": width.type, "layers": width.layers, "share": f"{width.share:.0%}"}
        for part, part_widths in widths.items()
        for width in part_widths
    ]
