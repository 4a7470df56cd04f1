"""Attention masks as numbers to add, where a file's model has them as true and false.

The CPU plugin of OpenVINO 2026.4 makes such numbers of a mask itself, but anew in every layer and
one by one: a third of the time of a prompt of 280 tokens, and more of a longer one. What this
module does not know: which positions a mask leaves out.
"""

import openvino as ov
from openvino import opset13 as ops

_MASK = 3  # which input of an attention it is
# What is added to the scores of positions that are left out: the least number that 16 bits hold,
# since rows that leave all out, as padding has them, would be NaN with an infinite one.
_LEFT_OUT = -65504.0


def add_masks(model: ov.Model) -> None:
    """Let attentions of `model` add a mask of numbers, which those of equal masks share."""
    masks: dict[tuple[str, int], ov.Output] = {}
    for node in model.get_ops():
        if node.get_type_name() != "ScaledDotProductAttention" or node.get_input_size() <= _MASK:
            continue
        mask = node.input_value(_MASK)
        if mask.get_element_type() != ov.Type.boolean:
            continue
        source = (mask.get_node().get_name(), mask.get_index())
        if source not in masks:
            kind = node.get_input_element_type(0)
            numbers = ops.select(mask, ops.constant(0.0, kind), ops.constant(_LEFT_OUT, kind))
            masks[source] = numbers.output(0)
        node.input(_MASK).replace_source_output(masks[source])
    if masks:
        model.validate_nodes_and_infer_types()
