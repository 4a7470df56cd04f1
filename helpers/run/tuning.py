"""What `vlm tune` chose for a folder on this computer: where that is kept, and reading it.

It is kept in the user's cache directory, since a folder travels to computers where something else
is fastest. What this module does not know: how the choice is made.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from helpers.convert.folders import read_manifest, weight_bytes
from helpers.convert.manifests import part_files
from helpers.errors import CheckpointError, OutputError
from helpers.graphs.part_names import LANGUAGE_MODEL, NEXT_TOKENS
from helpers.resources import in_words, instruction_sets, processors
from helpers.run.devices import available_devices
from helpers.sources.checkpoints import read_json

LARGE = 5e8  # bytes of weights from which a second of waiting is worth measuring for

# Free memory, by the language model's weights, from which on it may be compiled a second time: both
# keep weights of their own, reordered, and so much again is left for everything else.
ROOM = 3

Properties = dict[str, Any]  # of OpenVINO's `compile_model`, by name


@dataclass(frozen=True)
class Tuning:
    """The properties of each part that was tuned, by its name; a part without any has defaults.

    `reasons` has a sentence for each of these parts and for what was not taken; `key` says where
    the choice holds.
    """

    key: dict[str, Any]
    properties: dict[str, Properties] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "; ".join(
            f"{part} {properties_in_words(properties)}"
            for part, properties in self.properties.items()
        )


def properties_in_words(properties: Mapping[str, Any]) -> str:
    """Return properties as a person reads them; none are the defaults."""
    return ", ".join(f"{name} {value}" for name, value in properties.items()) or "as by default"


def settings_in_words(folder: Path, tuning: Tuning | None) -> list[str]:
    """Return in two lines what a folder is computed with on this computer now."""
    sets = ", ".join(instruction_sets())
    processor = f"processor: {available_devices()['CPU']}" + (f" ({sets})" if sets else "")
    settings = f"{tuning or f'the defaults, never tuned here (`vlm tune {folder}`)'}"
    if tuning and NEXT_TOKENS in tuning.properties and not fits_twice(folder):
        settings += "; no memory is free now for next tokens apart"
    return [processor, f"settings on this computer: {settings}"]


def fits_twice(folder: Path) -> bool:
    """Return whether memory is free for a second compiled language model, for next tokens alone."""
    return psutil.virtual_memory().available > ROOM * weight_bytes(folder)[LANGUAGE_MODEL]


def key_of(folder: Path) -> dict[str, Any]:
    """Return what a choice depends on: the processor, its cores, OpenVINO's version, the weights.

    The weights are named by a hash of the hashes that the manifest records.
    """
    manifest = read_manifest(folder)
    names = [name for part in manifest["parts"] for name in part_files(manifest, part)]
    hashes = "".join(manifest["files"][name]["sha256"] for name in names)
    return {
        "processor": available_devices()["CPU"],
        "instruction sets": instruction_sets(),
        "cores": processors(),
        "openvino": version("openvino"),
        "folder": sha256(hashes.encode()).hexdigest(),
    }


def cache_folder() -> Path:
    """Return this collection's folder in the user's cache directory, or what VLM_CACHE names."""
    if place := os.environ.get("VLM_CACHE"):
        return Path(place)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "vlm"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "vlm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlm"


def _path(key: Mapping[str, Any]) -> Path:
    name = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "tuning" / f"{name}.json"


def read_tuning(folder: Path) -> Tuning | None:
    """Return what was chosen for a folder on this computer; None where nothing readable is kept."""
    key = key_of(folder)
    try:
        kept = read_json(_path(key))
        tuning = Tuning(kept["key"], kept["properties"], kept["reasons"])
        return tuning if tuning.key == key and _is_sound(tuning.properties) else None
    except (CheckpointError, KeyError, TypeError):
        return None


def _is_sound(properties: object) -> bool:
    return isinstance(properties, dict) and all(
        isinstance(of_part, dict) for of_part in properties.values()
    )


def write_tuning(tuning: Tuning) -> Path:
    """Keep what was chosen, and return the file; an `OutputError` where that cannot be written."""
    path = _path(tuning.key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(asdict(tuning), indent=1) + "\n", encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); set VLM_CACHE to a folder "
            "that can."
        ) from None
    return path


def advice(folder: Path) -> str:
    """Return a sentence for a large folder that was never tuned on this computer; else ""."""
    size = sum(weight_bytes(folder).values())
    if size < LARGE or read_tuning(folder) is not None:
        return ""
    return (
        f"this model ({in_words(size)}) was never tuned on this computer; `vlm tune {folder}` "
        "finds the settings that are fastest here"
    )
