"""Logits of several last positions, where a file's language model returns those of one.

On disk a language model cuts all positions but the last off before its head, as other runtimes
expect it. Here the cut may leave some more: it needs no further input, and a single new position
costs the same. What this module does not know: what the logits are for.
"""

import openvino as ov
from openvino import opset13 as ops

_POSITIONS = 1  # the axis of positions of hidden states (batch, length, hidden)


def return_last_logits(model: ov.Model, count: int) -> None:
    """Let `model` return the logits of the last `count` positions, or of all where it gets fewer.

    A model that does not cut before its head stays as it is.
    """
    node = model.output("logits").get_node()
    while node.get_type_name() != "Slice":
        if not node.get_input_size():
            return
        node = node.input_value(0).get_node()
    start, axis = (node.input_value(index).get_node() for index in (1, 4))
    values = [c.data.tolist() for c in (start, axis) if c.get_type_name() == "Constant"]
    if values == [[-1], [_POSITIONS]]:
        first = ops.constant([-count], start.get_element_type())
        node.input(1).replace_source_output(first.output(0))
        model.validate_nodes_and_infer_types()
