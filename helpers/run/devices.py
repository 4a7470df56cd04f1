"""Which devices can run a model here, and why each is or is not offered.

What this module does not know: MULTI and HETERO, which spread a model over devices.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from helpers.errors import DeviceError, SettingsError
from helpers.graphs.core import core
from helpers.resources import processor_model

KINDS = ("CPU", "GPU", "NPU")
# Other names that OpenVINO takes: of the first of several GPUs, and of the only one.
OTHER_NAMES = {"GPU.0": "GPU", "GPU": "GPU.0"}


@dataclass(frozen=True)
class Device:
    """A device by OpenVINO's name, its name in words, and why it is or is not `offered`."""

    name: str
    label: str
    reason: str
    offered: bool = True


def available_devices() -> dict[str, str]:
    """Return the devices that OpenVINO finds on this computer, with their full names."""
    return {
        device: str(core().get_property(device, "FULL_DEVICE_NAME"))
        for device in core().available_devices
    }


def processor_name() -> str:
    """Return the CPU's full name, with numbers that tell processors of this name apart.

    Computers in a cloud often name only the maker's series, of which the processors of one
    generation may take twice the time of another's.
    """
    return ", ".join(filter(None, (available_devices()["CPU"], processor_model())))


def list_devices(available: Mapping[str, str] | None = None) -> list[Device]:
    """Return an entry with its reason for every device, those that cannot be chosen included."""
    available = available or available_devices()
    gpus = [name for name in available if name.startswith("GPU")]
    best = "the GPU" if gpus else "the CPU, as there is no GPU"
    devices = [Device("AUTO", "AUTO", f"OpenVINO decides: here it takes {best}")]
    for name in (*available, *(kind for kind in KINDS if not _has(available, kind))):
        reason, offered = _reason(name, available)
        devices.append(Device(name, f"{name}: {available.get(name, 'not here')}", reason, offered))
    return devices


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


def check_device(name: str, available: Mapping[str, str] | None = None) -> str:
    """Return `name` as OpenVINO writes it; a device that is not offered is a `DeviceError`.

    `GPU` is the first of several, and `AUTO:GPU,CPU` or `AUTO:-GPU` say what AUTO chooses from.
    """
    devices = {device.name: device for device in list_devices(available)}
    canonical = str(name).upper().replace(" ", "")
    kind, _, candidates = canonical.partition(":")
    parts = candidates.split(",") if kind == "AUTO" and candidates else [canonical]
    if candidates:
        del devices["AUTO"]
    for part in parts:
        device = _find(part.removeprefix("-"), devices)
        if device is None or not (device.offered or part.startswith("-")):
            offered = ", ".join(device.name for device in devices.values() if device.offered)
            reason = f" ({device.reason})" if device else ""
            raise DeviceError(f"The device {name!r} cannot be used{reason}; use {offered}.")
    return canonical


def _find(name: str, devices: Mapping[str, Device]) -> Device | None:
    """Return a device by its name; `GPU` is the first of several, and `GPU.0` the only one."""
    offered = {name for name, device in devices.items() if device.offered}
    other = OTHER_NAMES.get(name)  # no computer has both
    return devices.get(other if other in offered else name)


def check_properties(properties: object) -> None:
    """Raise a `SettingsError` unless these are a dict of OpenVINO's properties, or None."""
    is_dict = isinstance(properties, Mapping) and all(isinstance(key, str) for key in properties)
    if properties is not None and not is_dict:
        raise SettingsError(
            f"properties is {properties!r}; it should be a dict of OpenVINO's properties, such "
            'as {"INFERENCE_NUM_THREADS": 2}.'
        )
