"""Attention of layers that have no keys and values of their own, as the CPU plugin does it fast.

On disk every layer has the one operation that all runtimes know. There the CPU plugin keeps keys
and values where they are attended to only if a single layer reads them, so that those that several
layers share are copied for each of them, and every new length takes memory for good. Here, layers
that share read copies of their own, in lengths that are rounded up.

What this module does not know: layers of several positions; those that share have the last one.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo

BLOCK = 256  # lengths are rounded up to a multiple of it: few are compiled for, and none is kept
_LENGTH = 2  # the axis of positions of keys and values (batch, heads, length, head size)
_LOWEST = float(np.finfo(np.float32).min)


def separate_shared_keys(model: ov.Model, window_of: Callable[[int], int | None]) -> None:
    """Give layers that share keys and values a state that they alone read, in place.

    `window_of` returns how many positions a layer of this number sees, None for all; of so many the
    copies are kept. A model in which no layer shares stays as it is.
    """
    for layer, attentions in _by_keys(model).items():
        if attentions[1:]:
            window = window_of(layer)
            keys, values = (
                _Rounded(_copied(model, _joined(attentions[0], index), window)) for index in (1, 2)
            )
            masks: dict[str, ov.Output] = {}
            for attention in attentions[1:]:
                mask = attention.input_value(3)
                name = f"{mask.get_node().get_friendly_name()}.{mask.get_index()}"
                if name not in masks:
                    masks[name] = keys.mask(mask)
                result = _attention(attention, keys.padded, values.padded, masks[name])
                for consumer in attention.output(0).get_target_inputs():
                    consumer.replace_source_output(result)
    model.validate_nodes_and_infer_types()


def _by_keys(model: ov.Model) -> Mapping[int, list[ov.Node]]:
    """Return the attentions to each layer's keys, by its number; its own comes first."""
    attentions: dict[int, list[ov.Node]] = defaultdict(list)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            variable = _read_value(_joined(node, 1)).get_variable_id()
            attentions[int(variable.split(".")[1])].append(node)
    return attentions


def _joined(attention: ov.Node, index: int) -> ov.Node:
    """Return what puts new keys, or values, behind past ones for an attention."""
    node = attention.input_value(index).get_node()
    while node.get_type_name() != "Concat":  # each head's own copy of what several share
        node = node.input_value(0).get_node()
    return node


def _read_value(joined: ov.Node) -> ov.Node:
    return joined.input_value(0).get_node().input_value(0).get_node()


def _copied(model: ov.Model, joined: ov.Node, window: int | None) -> ov.Node:
    """Return keys or values from a state of their own, of which one window's positions are kept."""
    ordered, read = joined.input_value(0).get_node(), _read_value(joined)
    info = VariableInfo()
    info.data_shape = read.get_output_partial_shape(0)
    info.data_type = read.get_output_element_type(0)
    info.variable_id = f"{read.get_variable_id()}.shared"
    variable = Variable(info)
    past = ops.read_value(read.input_value(0), variable)
    past = ops.gather(past, ordered.input_value(1), ordered.input_value(2))
    copy = ops.concat([past, joined.input_value(1)], _LENGTH)
    state = copy if window is None else _last(copy, _number(max(window - 1, 1)), _LENGTH)
    model.add_variables([variable])
    model.add_sinks([ops.assign(state, variable)])
    return copy


class _Rounded:
    """Keys or values whose length is rounded up with zeros, and masks with what nobody sees."""

    def __init__(self, states: ov.Node) -> None:
        shape = ops.shape_of(states, ov.Type.i64)
        self.length = ops.gather(shape, _number(_LENGTH), ops.constant(0, ov.Type.i64))
        block = _number(BLOCK)
        self.gap = ops.mod(ops.subtract(block, ops.mod(self.length, block)), block)
        self.padded = self._padded(states, 0.0, _LENGTH)

    def mask(self, mask: ov.Output) -> ov.Output:
        """Return a mask (batch, 1, 1, all positions) for the padded length."""
        return self._padded(_last(mask, self.length, 3), _LOWEST, 3).output(0)

    def _padded(self, states: ov.Node, value: float, axis: int) -> ov.Node:
        shape, zero = ops.shape_of(states, ov.Type.i64), ops.constant(0, ov.Type.i64)
        sizes = [
            self.gap if place == axis else ops.gather(shape, _number(place), zero)
            for place in range(4)
        ]
        filled = ops.broadcast(ops.constant(value, ov.Type.f32), ops.concat(sizes, 0))
        return ops.concat([states, filled], axis)


def _attention(attention: ov.Node, keys: ov.Node, values: ov.Node, mask: ov.Output) -> ov.Output:
    """Return the attention of one position, in which heads that share keys are rows of a matrix."""
    queries = attention.input_value(0)
    _, groups, _, size = keys.get_output_partial_shape(0)
    rows = ops.constant([0, groups.get_length(), -1, size.get_length()], ov.Type.i64)
    grouped = ops.multiply(ops.reshape(queries, rows, True), attention.input_value(4))
    scores = ops.add(ops.matmul(grouped, keys, False, True), mask)
    attended = ops.matmul(ops.softmax(scores, -1), values, False, False)
    return ops.reshape(attended, ops.shape_of(queries, ov.Type.i64), False).output(0)


def _last(states: ov.Node | ov.Output, number: ov.Node, axis: int) -> ov.Node:
    """Return the last positions along an axis, or all where there are fewer."""
    end = _number(np.iinfo(np.int64).max)
    return ops.slice(states, ops.negative(number), end, _number(1), _number(axis))


def _number(value: int) -> ov.Node:
    return ops.constant([value], ov.Type.i64)
