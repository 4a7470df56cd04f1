"""The choices of every notebook: checkpoint, precision, image encoder, device, number of questions.

An environment variable sets each first choice. What this module does not know: what becomes of a
choice.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.convert.estimates import memory_to_convert
from helpers.errors import OutputError, SettingsError, system_reason
from helpers.files import check_writable
from helpers.graphs.presets import PRESETS, Preset, Quantization, Weights
from helpers.models.families import (
    Family,
    families,
    family_of,
    find_checkpoint,
    find_family_by_name,
)
from helpers.resources import path_of
from helpers.run.devices import (
    OTHER_NAMES,
    Device,
    available_devices,
    check_device,
    list_devices,
)
from helpers.show.widgets import Choice, Option
from helpers.sources.hub import checkpoint_bytes

FOLDER = "folder"


def choose_checkpoint(name: str) -> Choice:
    """Show the checkpoints of the family called `name`, and a folder named by VLM_FOLDER.

    The bundled one comes first, then the originals. VLM_CHECKPOINT sets the first choice: the
    family's name, a hub id, or `folder`.
    """
    family = find_family_by_name(name)
    options = [_bundled_option(family)] if family.checkpoint is not None else []
    for original in family.originals:
        memory = memory_to_convert(original.parameters * 1e9) / 2**30
        line = (
            f"{original.parameters:g} billion parameters, {original.licence}; "
            f"download {original.download:.1f} GB, memory about {memory:.1f} GiB in INT4"
        )
        options.append(Option(original.hub_id, f"{original.hub_id}: {original.licence}", line))
    path = os.environ.get("VLM_FOLDER", "")
    options.append(
        Option(FOLDER, "a folder on this computer (set VLM_FOLDER)", path or "set VLM_FOLDER")
    )
    return Choice("Checkpoint", options, default=options[0].value, variable="VLM_CHECKPOINT")


def _bundled_option(family: Family) -> Option:
    assert family.checkpoint is not None
    size = checkpoint_bytes(family.checkpoint) / 1e6
    return Option(
        family.name,
        f"{family.name}: bundled, knows drawn shapes, offline",
        f"bundled, {size:.1f} MB, Apache-2.0, knows drawn shapes and nothing else",
        aliases=(family.bundled,),
    )


def chosen_folder(choice: Choice, name: str) -> Path:
    """Return the folder of the checkpoint that is chosen, downloading it where needed.

    Raises `SettingsError` for a folder of another family than the one called `name`, and
    `OutputError` where the notebook could not write what it converts.
    """
    _check_place()  # before a download
    if choice.value != FOLDER:
        return find_checkpoint(choice.value)
    path = os.environ.get("VLM_FOLDER", "")
    if not path:
        raise SettingsError("Set the environment variable VLM_FOLDER to a checkpoint's folder.")
    family = family_of(path_of(path))
    if family != find_family_by_name(name):
        raise SettingsError(
            f"The checkpoint in {path} is one of {family.name}, and this notebook is about {name}: "
            f"set VLM_FOLDER to a checkpoint of {name}."
        )
    return path_of(path)


def _check_place() -> None:
    """Raise an `OutputError` where a notebook cannot write what it converts."""
    place = Path("models").absolute()
    try:
        check_writable(place if place.exists() else place.parent)
    except OSError as error:
        raise OutputError(
            f"This notebook writes to {place}, which is not possible ({system_reason(error)}); "
            "copy its folder to a place of yours, and open it there."
        ) from None


def smallest_original(name: str) -> str:
    """Return in words the smallest original of the family called `name`, and its download."""
    original = min(find_family_by_name(name).originals, key=lambda original: original.parameters)
    return f"{original.hub_id} is the smallest, {original.download:.1f} GB to download."


def terms_of_use(choice: Choice) -> str:
    """Return the terms of use of the checkpoint that is chosen, as a page shows them."""
    if choice.value == FOLDER:
        return "The terms of use are those of the folder's checkpoint."
    originals = {
        original.hub_id: original for family in families() for original in family.originals
    }
    if choice.value in originals:
        return f"Terms of use: {originals[choice.value].licence}."
    return "This small model may be used under Apache-2.0."


def choose_precision(default: str = "int4", presets: Mapping[str, Preset] = PRESETS) -> Choice:
    """Show the presets; VLM_PRECISION sets the first choice."""
    options = [
        Option(name, f"{name}: {preset.why}", str(preset)) for name, preset in presets.items()
    ]
    return Choice("Precision", options, default=default, variable="VLM_PRECISION")


def choose_image_encoder(settings: Mapping[str, Weights | Quantization], default: str) -> Choice:
    """Show settings of the image encoder; VLM_IMAGE_ENCODER sets the first choice."""
    options = [
        Option(name, f"{name}: {setting}", str(setting)) for name, setting in settings.items()
    ]
    return Choice("Image encoder", options, default=default, variable="VLM_IMAGE_ENCODER")


def choose_device(available: Mapping[str, str] | None = None) -> Choice:
    """Show the devices; VLM_DEVICE sets the first choice, otherwise the CPU (or AUTO without).

    It may also say what AUTO chooses from, as `AUTO:GPU,CPU`.
    """
    available = available or available_devices()
    options = [
        Option(
            device.name,
            device.label,
            device.reason,
            device.offered,
            aliases=tuple(name for name, other in OTHER_NAMES.items() if other == device.name),
        )
        for device in list_devices(available)
    ]
    request = os.environ.get("VLM_DEVICE", "")
    if ":" in request:
        name = check_device(request, available)
        options.append(Option(name, name, "OpenVINO decides among these", aliases=(request,)))
    default = "CPU" if "CPU" in available else "AUTO"
    return Choice("Device", options, default=default, variable="VLM_DEVICE")


def device_rows(devices: Sequence[Device]) -> list[dict[str, str]]:
    """Return the reason for every device as rows for `tables.show_table`."""
    return [
        {
            "device": device.name,
            "offered": "yes" if device.offered else "no",
            "why": device.reason,
        }
        for device in devices
    ]


def question_number(usual: int) -> int:
    """Return how many questions a comparison asks: VLM_QUESTIONS, or else the `usual` number.

    Raises `SettingsError` for what is no whole number from 1 on.
    """
    text = os.environ.get("VLM_QUESTIONS") or str(usual)
    if not text.isdecimal() or int(text) == 0:
        raise SettingsError(f"VLM_QUESTIONS is {text!r}; it should be a whole number from 1 on.")
    return int(text)
