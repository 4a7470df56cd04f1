"""Which devices can run a model here, and why each is or is not offered."""

import functools
from collections.abc import Mapping

import openvino as ov

from helpers.errors import DeviceError
from helpers.show.widgets import Choice, Option

KNOWN = ("CPU", "GPU", "NPU")


@functools.cache
def core() -> ov.Core:
    """Return the one `Core` that a process should have.

    The CPU plugin of OpenVINO 2026.4 gives the thread that loads it a stack for signals, which goes
    with the `Core`. Where several go in another order than the last one first, the thread keeps a
    stack that is gone, and the next Ctrl-C, or Jupyter's button for it, ends the process.
    """
    return ov.Core()


def available_devices() -> dict[str, str]:
    """Return the devices that OpenVINO sees on this computer, with their full names."""
    return {
        device: str(core().get_property(device, "FULL_DEVICE_NAME"))
        for device in core().available_devices
    }


def device_options(available: Mapping[str, str]) -> list[Option]:
    """Return an entry with its reason for every device, those that cannot be chosen included."""
    gpus = [name for name in available if name.startswith("GPU")]
    best = "the GPU" if gpus else "the CPU, as there is no GPU"
    options = [Option("AUTO", "AUTO", f"OpenVINO decides: here it takes {best}")]
    for name in (*available, *(known for known in KNOWN if not _has(available, known))):
        reason, offered = _reason(name, available)
        options.append(Option(name, f"{name}: {available.get(name, 'not here')}", reason, offered))
    return options


def _has(available: Mapping[str, str], kind: str) -> bool:
    return any(name.split(".")[0] == kind for name in available)


def _reason(name: str, available: Mapping[str, str]) -> tuple[str, bool]:
    kind = name.split(".")[0]
    if kind == "NPU":
        where = "there is one, but " if name in available else ""
        return f"{where}an NPU needs fixed sizes, and a conversation's length is not fixed", False
    if name not in available:
        return f"OpenVINO sees no {name} here; is its driver installed?", False
    if kind == "CPU":
        return f"{available[name]}: always there, and all choices of precision run on it", True
    if kind == "GPU":
        return f"{available[name]}: faster than the CPU for pictures and long prompts", True
    return f"{available[name]}: not tested with this collection", True


def check_device(device: str, available: Mapping[str, str] | None = None) -> str:
    """Return `device` as OpenVINO writes it; a device that is not offered is a `DeviceError`."""
    options = {o.value: o for o in device_options(available or available_devices())}
    option = options.get(device.upper())
    if option is None or not option.offered:
        known = ", ".join(name for name, o in options.items() if o.offered)
        reason = f": {option.line}" if option else ""
        raise DeviceError(f"The device {device!r} cannot be used{reason}; use {known}.")
    return option.value


def choose_device(available: Mapping[str, str] | None = None) -> Choice:
    """Show the devices; VLM_DEVICE sets the first choice, otherwise the CPU (or AUTO without)."""
    available = available or available_devices()
    default = "CPU" if "CPU" in available else "AUTO"
    return Choice("Device", device_options(available), default=default, variable="VLM_DEVICE")


def explain_devices(options: list[Option]) -> list[dict[str, str]]:
    """Return the reason for every entry as rows for `plots.show_table`."""
    return [
        {"device": o.value, "offered": "yes" if o.offered else "no", "why": o.line} for o in options
    ]
