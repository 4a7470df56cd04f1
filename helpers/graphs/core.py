"""The one OpenVINO `Core` of a process, and running what it compiled with tensors by name."""

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

import openvino as ov
from numpy.typing import NDArray

from helpers.errors import DeviceError, ResourcesError, SettingsError, is_whole, ran_out
from helpers.graphs.bit_widths import bit_widths
from helpers.resources import instruction_sets, processors
from helpers.upstream.openvino import share_core

if TYPE_CHECKING:
    from torch import Tensor

LOOK = 20  # milliseconds between looks whether a computation should end
ACCURACY = {"EXECUTION_MODE_HINT": "ACCURACY"}  # computes as PyTorch does, and more slowly


@functools.cache
def core() -> ov.Core:
    """Return the one `Core` that a process should have: `helpers.upstream.openvino` says why."""
    return ov.Core()


def safe_options(model: ov.Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` of `compile_model` with which compiling does not end the process.

    With one thread on a processor with AMX, OpenVINO divides by zero where weights of 16 bits are
    multiplied in 16 bits (openvino#33300); such a model is computed in 32 bits instead. Raises
    `SettingsError` for a number of threads that is none.
    """
    threads = _threads(options.get("INFERENCE_NUM_THREADS", 0)) or processors()
    stored_in_16_bits = any(width.type in ("f16", "bf16") for width in bit_widths(model))
    if min(threads, processors()) == 1 and "AMX" in instruction_sets() and stored_in_16_bits:
        return {"INFERENCE_PRECISION_HINT": "f32", **options}
    return dict(options)


def _threads(number: object) -> int:
    """Return a number of threads, which may be a text; OpenVINO would take anything for one."""
    number = getattr(number, "value", number)  # of `openvino.properties.inference_num_threads(2)`
    if is_whole(number) or (isinstance(number, str) and number.isdecimal()):
        return int(cast(int, number))
    raise SettingsError(f"INFERENCE_NUM_THREADS is {number!r}; it should be a whole number.")


share_core(core, safe_options)


def compile_model(model: ov.Model, device: str, **options: Any) -> ov.CompiledModel:
    """Return `model` compiled by this process's `Core`, with `options` that are safe for it."""
    return core().compile_model(model, device, safe_options(model, options))


class Stoppable(Protocol):
    """What says that a computation should end, as a `threading.Event` does."""

    def is_set(self) -> bool:
        """Return whether it should."""


class Stopped(Exception):
    """A computation was given up at a set stop event; no caller of a pipeline sees this."""


def run_model(
    request: ov.InferRequest, inputs: Mapping[str, "Tensor"], stop: Stoppable | None = None
) -> dict[str, "Tensor"]:
    """Return a model's outputs by name, for those of `inputs` that it takes.

    The model has no state, so that the request can be cancelled. Raises `Stopped` where `stop` is
    set before it is done, and `DeviceError` where the device fails.
    """
    import torch  # takes seconds, which `vlm info` and others that compute nothing do not wait for

    try:
        request.start_async(feed_of(request, inputs), share_inputs=True)
        while not request.wait_for(LOOK):
            if stop is not None and stop.is_set():
                request.cancel()
                request.wait()
    except RuntimeError as error:
        if stop is not None and stop.is_set():
            raise Stopped from None
        raise cannot_compute(error) from error
    outputs = request.get_compiled_model().outputs
    return {
        port.any_name: torch.from_numpy(request.get_tensor(port).data.copy()) for port in outputs
    }


def feed_of(request: ov.InferRequest, inputs: Mapping[str, "Tensor"]) -> dict[str, NDArray[Any]]:
    """Return those of `inputs` that a request takes, as arrays."""
    names = {port.any_name for port in request.get_compiled_model().inputs}
    return {name: value.numpy() for name, value in inputs.items() if name in names}


def has_one_size(inputs: Iterable[ov.PartialShape]) -> bool:
    """Return whether an image encoder of these inputs takes tiles of one size, not of any."""
    tiles = [shape for shape in inputs if len(shape) >= 4]
    sizes = [size for shape in tiles for size in list(shape)[-3:]]
    return bool(sizes) and not any(size.is_dynamic for size in sizes)


def cannot_compute(error: RuntimeError) -> DeviceError:
    """Return what a user is told when a device fails while it computes."""
    if ran_out(error):
        return ResourcesError(error)
    return DeviceError(
        f"The device could not compute the answer ({_reason(error)}); ask again, or on another "
        "device."
    )


def cannot_run(
    device: str,
    name: str,
    error: RuntimeError,
    advice: str = "choose another device or other properties",
) -> DeviceError:
    """Return what a user is told when a device fails to compile the model of that name."""
    if ran_out(error):
        return ResourcesError(error)
    return DeviceError(f"{device} cannot run {name} ({_reason(error)}); {advice}.")


def _reason(error: RuntimeError) -> str:
    return (str(error).strip().splitlines() or ["OpenVINO does not say why"])[-1]
