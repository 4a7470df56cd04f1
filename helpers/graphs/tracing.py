"""Turn one PyTorch part into one OpenVINO model.

Tracing runs the module once on example inputs and records the operations. Weights in 16 bits are
shared with the checkpoint's file, not copied, so a 13 GB model needs half a gigabyte to convert.

What this module does not know: branches that depend on values (a trace records the one taken) and
quantised PyTorch weights.
"""

import openvino as ov
import torch
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

from helpers.graphs import recurrence
from helpers.graphs.finite_weights import check_numbers
from helpers.graphs.parts import SENSITIVE, Part
from helpers.upstream import converter


def trace(part: Part) -> ov.Model:
    """Return the OpenVINO model of `part`, with its inputs and outputs named.

    Sizes that `part.fixed` names stay as they are in the example; all others are dynamic. The model
    shares memory with the module and keeps it alive; what is compiled from it does not, so keep the
    model as long. Raises a `WeightsError` where weights are NaN or infinite.
    """
    check_numbers(part.module, f"the {part.name}")
    weights = converter.weights_in_16_bits(part.module)
    attention = converter.recorded_attention()
    with converter.forgotten_traces():
        with converter.late_interrupts(), converter.quiet(), weights, attention, torch.no_grad():
            decoder = TorchScriptPythonDecoder(
                part.module,
                example_input=tuple(part.example_inputs.values()),
                # It would trace a second time and compare both results, two thirds of the work.
                trace_kwargs={"check_trace": False},
                module_extensions={extension.module: extension for extension in recurrence.MODULES},
            )
            model = ov.convert_model(decoder, extension=list(recurrence.CONVERSIONS))
        del decoder
    model.shares_memory_with = part.module  # constants in bfloat16 keep nothing alive themselves
    for port, name in zip(model.inputs, part.example_inputs, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
    for port, name in zip(model.outputs, part.outputs, strict=True):
        port.get_tensor().set_names({name})
    model.reshape(input_shapes(part))
    if part.sensitive:
        model.set_rt_info(" ".join(part.sensitive), SENSITIVE)
    return model


def input_shapes(part: Part) -> dict[str, ov.PartialShape]:
    """Return the shapes of a part's inputs by name, as its model has them."""
    return {name: _shape(part, name) for name in part.example_inputs}


def _shape(part: Part, name: str) -> ov.PartialShape:
    fixed = part.fixed.get(name, ())
    sizes = part.example_inputs[name].shape
    return ov.PartialShape([size if axis in fixed else -1 for axis, size in enumerate(sizes)])
