"""A language model whose sizes are those of one more token of one answer.

Where the CPU plugin of OpenVINO knows all sizes of an operation beforehand it derives none at each
step, which takes a small model a tenth of a token's time. What this module does not know: where the
keys and values of the prompt come from.
"""

import openvino as ov

from helpers.graphs.stateful import BEAM_INPUT

_ONE = ov.Dimension(1)


def expect_single_token(model: ov.Model) -> None:
    """Fix the sizes of `model`, in place, to a batch of one with one new position.

    How many positions its attention mask and its states have stays open.
    """
    shapes, states = {}, {}
    for port in model.inputs:
        name, shape = port.any_name, list(port.get_partial_shape())
        if name in (BEAM_INPUT, "attention_mask"):
            shape[0] = _ONE
        elif name == "position_ids":  # (batch, positions), or as many of these as it has axes
            shape[-2:] = _ONE, _ONE
        elif len(shape) > 2 and shape[0].is_dynamic and shape[1].is_dynamic:
            shape[:2] = _ONE, _ONE  # what it takes of each position
        shapes[port] = ov.PartialShape(shape)
    for state in model.get_variables():
        sizes = list(state.info.data_shape)
        states[state.info.variable_id] = ov.PartialShape([_ONE, *sizes[1:]])
    model.reshape(shapes, states)
