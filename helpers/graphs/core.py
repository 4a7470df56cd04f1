"""The one OpenVINO `Core` of a process, and running what it compiled with tensors by name."""

import functools
from collections.abc import Mapping
from typing import Any

import openvino as ov
import torch
from numpy.typing import NDArray
from torch import Tensor

from helpers.errors import DeviceError
from helpers.graphs.bit_widths import bit_widths
from helpers.resources import instruction_sets, processors


@functools.cache
def core() -> ov.Core:
    """Return the one `Core` that a process should have.

    The CPU plugin of OpenVINO 2026.4 gives the thread that loads it a stack for signals, which goes
    with the `Core`. Where several go in another order than the last one first, the thread keeps a
    stack that is gone, and the next Ctrl-C, or Jupyter's button for it, ends the process.
    """
    return ov.Core()


def safe_options(model: ov.Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` of `compile_model` with which compiling does not end the process.

    With one thread on a processor with AMX, OpenVINO divides by zero where weights of 16 bits are
    multiplied in 16 bits (openvino#33300); such a model is computed in 32 bits instead.
    """
    threads = int(options.get("INFERENCE_NUM_THREADS", 0)) or processors()
    stored_in_16_bits = any(width.type in ("f16", "bf16") for width in bit_widths(model))
    if min(threads, processors()) == 1 and "AMX" in instruction_sets() and stored_in_16_bits:
        return {"INFERENCE_PRECISION_HINT": "f32", **options}
    return dict(options)


def compile_model(model: ov.Model, device: str, **options: Any) -> ov.CompiledModel:
    """Return `model` compiled by this process's `Core`, with `options` that are safe for it."""
    return core().compile_model(model, device, safe_options(model, options))


def run_model(compiled: ov.CompiledModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a compiled model's outputs by name, for those of `inputs` that it takes.

    Raises `DeviceError` where the device fails.
    """
    try:
        results = compiled(feed_of(compiled, inputs))
    except RuntimeError as error:
        raise cannot_compute(error) from error
    return {port.any_name: torch.from_numpy(results[port].copy()) for port in compiled.outputs}


def feed_of(compiled: ov.CompiledModel, inputs: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Return those of `inputs` that a compiled model takes, as arrays."""
    names = {port.any_name for port in compiled.inputs}
    return {name: value.numpy() for name, value in inputs.items() if name in names}


def cannot_compute(error: RuntimeError) -> DeviceError:
    """Return what a user is told when a device fails while it computes."""
    reason = str(error).strip().splitlines()[-1]
    return DeviceError(f"The device could not compute the answer: {reason}")
