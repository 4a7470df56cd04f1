"""The last positions' logits: how many a language model returns, and where it leaves the others.

On disk a language model cuts all positions but the last off before its head, as other runtimes
expect it. Here the cut leaves some more, which needs no further input and costs a single new
position nothing. And it is made earlier, where that is possible right behind the last attention:
what follows looks at each position by itself, so nothing of it is computed for positions that are
cut off anyway.

What this module does not know: what the logits are for.
"""

import openvino as ov
from openvino import opset13 as ops

_POSITIONS = 1  # the axis of positions of hidden states (batch, length, hidden)
_LAST = ([-1], [2])  # how their last axis is written

# Operations that make of a position what they would make of it without the others.
_BY_NUMBER = {"Add", "Convert", "Divide", "Gelu", "Multiply", "Power", "Sigmoid", "Sqrt"}
_BY_NUMBER |= {"Subtract", "Swish", "Tanh"}
_ALONG_AXES = {"MVN", "ReduceMean", "VariadicSplit"}  # which their second input has


def return_last_logits(model: ov.Model, count: int) -> None:
    """Let `model` return the logits of the last `count` positions, or of all where it gets fewer.

    A model that does not cut before its head stays as it is.
    """
    cut = model.output("logits").get_node()
    while cut.get_type_name() != "Slice":
        if not cut.get_input_size():
            return
        cut = cut.input_value(0).get_node()
    data, start, stop, step, axis = cut.input_values()
    if [_numbers(start), _numbers(axis)] != [[-1], [_POSITIONS]]:
        return
    place, followers = _behind_last_attention(model, cut)
    consumers = [port for port in place.get_target_inputs() if _name(port) in followers]
    first = ops.constant([-count], start.get_element_type())
    earlier = ops.slice(place, first, stop, step, axis).output(0)
    for port in consumers:
        port.replace_source_output(earlier)
    cut.output(0).replace(data if consumers else earlier)
    model.validate_nodes_and_infer_types()


def _behind_last_attention(model: ov.Model, cut: ov.Node) -> tuple[ov.Output, set[str]]:
    """Return the earliest place to cut positions off, and the names of the nodes behind it.

    From there to `cut`, all goes through that place, looks at each position by itself and is used
    nowhere else.
    """
    order = {node.get_name(): number for number, node in enumerate(model.get_ordered_ops())}
    weights = _constants(model)
    place, followers, names = cut.input_value(0), set[str](), set[str]()
    candidates = {_name(place): place.get_node()}
    while candidates:
        name = max(candidates, key=lambda name: order[name])  # after all that it depends on
        node = candidates.pop(name)
        if not candidates and _is_hidden(node):  # all that is behind goes through it
            place, followers = node.output(0), set(names)
        if not _users(node) <= names | {cut.get_name()} or not _looks_at_each_position(
            node, weights
        ):
            break
        names.add(name)
        for value in node.input_values():
            if _name(value) not in weights:
                candidates[_name(value)] = value.get_node()
    return place, followers


def _users(node: ov.Node) -> set[str]:
    """Return the names of the nodes that take what a node gives."""
    return {_name(port) for output in node.outputs() for port in output.get_target_inputs()}


def _is_hidden(node: ov.Node) -> bool:
    """Return whether a node has one output, of hidden states (batch, length, hidden)."""
    if node.get_output_size() != 1:
        return False
    shape = node.get_output_partial_shape(0)
    return bool(shape.rank.is_static) and len(shape) == 3


def _looks_at_each_position(node: ov.Node, weights: set[str]) -> bool:
    """Return whether a node computes hidden states of a position from those of that position."""
    kind, values = node.get_type_name(), node.input_values()
    if kind == "MatMul":
        is_transposed = node.get_attributes()["transpose_a"]
        is_matrix = _name(values[1]) in weights and len(values[1].get_partial_shape()) == 2
        return is_matrix and not is_transposed and _name(values[0]) not in weights
    return kind in _BY_NUMBER or (kind in _ALONG_AXES and _numbers(values[1]) in _LAST)


def _constants(model: ov.Model) -> set[str]:
    """Return the names of nodes that depend on no input or state, as weights that are restored."""
    names = set[str]()
    for node in model.get_ordered_ops():
        inputs = {_name(value) for value in node.input_values()}
        is_restored = inputs and inputs <= names and node.get_type_name() != "ReadValue"
        if is_restored or node.get_type_name() == "Constant":
            names.add(node.get_name())
    return names


def _numbers(value: ov.Output) -> list[int]:
    """Return the numbers of a constant, in a list; of anything else, an empty one."""
    node = value.get_node()
    if node.get_type_name() != "Constant":
        return []
    numbers: list[int] = node.data.reshape(-1).tolist()
    return numbers


def _name(port: ov.Output | ov.Input) -> str:
    """Return the name of a port's node, which no other node has."""
    name: str = port.get_node().get_name()
    return name
