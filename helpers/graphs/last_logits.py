"""The last positions' logits: how many a language model returns, and where it leaves the others.

On disk a language model cuts all positions but the last off before its head, as other runtimes
expect it. Here the cut leaves some more, which needs no further input and costs a single new
position nothing. And it is made earlier, right behind the last attention: what follows looks at
each position by itself, so nothing of it is computed for positions that are cut off anyway.

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
    place, behind = _behind_last_attention(model, data)
    consumers = [port for port in place.get_target_inputs() if _name(port) in behind]
    first = ops.constant([-count], start.get_element_type())
    earlier = ops.slice(place, first, stop, step, axis).output(0)
    for port in consumers:
        port.replace_source_output(earlier)
    cut.output(0).replace(data if consumers else earlier)
    model.validate_nodes_and_infer_types()


def _behind_last_attention(model: ov.Model, data: ov.Output) -> tuple[ov.Output, set[str]]:
    """Return the earliest place to cut positions off, and the names of the nodes behind it.

    From there to `data`, all goes through that place and looks at each position by itself.
    """
    order = {node.get_name(): number for number, node in enumerate(model.get_ordered_ops())}
    place, behind = data, set[str]()
    passed, ahead = set[str](), {_name(data): data.get_node()}
    while ahead:
        name = max(ahead, key=lambda name: order[name])
        node = ahead.pop(name)
        if not ahead and node.get_output_size() == 1 and len(node.get_output_partial_shape(0)) == 3:
            place, behind = node.output(0), set(passed)
        if not _looks_at_each_position(node):
            break
        passed.add(name)
        inputs = [value for value in node.input_values() if not _is_constant(value)]
        ahead |= {_name(value): value.get_node() for value in inputs}
    return place, behind


def _looks_at_each_position(node: ov.Node) -> bool:
    """Return whether a node computes hidden states of a position from those of that position."""
    kind, values = node.get_type_name(), node.input_values()
    if kind == "MatMul":
        is_transposed = node.get_attributes()["transpose_a"]
        return _is_constant(values[1]) and not _is_constant(values[0]) and not is_transposed
    return kind in _BY_NUMBER or (kind in _ALONG_AXES and _numbers(values[1]) in _LAST)


def _is_constant(value: ov.Output) -> bool:
    """Return whether a value depends on no input, as weights, also those that are restored."""
    node = value.get_node()
    if node.get_type_name() == "Constant":
        return True
    return node.get_input_size() > 0 and all(map(_is_constant, node.input_values()))


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
