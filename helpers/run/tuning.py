"""What `vlm tune` chose for a folder on this computer: where that is kept, and reading it.

It is kept in the user's cache directory, since a folder travels to computers where something else
is fastest. What this module does not know: how the choice is made.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from helpers import files
from helpers.convert.folders import read_manifest, weight_bytes
from helpers.convert.manifests import is_list_of_texts, part_files
from helpers.errors import CheckpointError, OutputError, system_reason
from helpers.graphs.core import core
from helpers.graphs.part_names import IMAGE_ENCODER, LANGUAGE_MODEL, NEXT_TOKENS, PROMPTS
from helpers.resources import available_memory, in_words, instruction_sets, path_of, processors
from helpers.run.devices import processor_name
from helpers.sources.checkpoints import read_json

LARGE = 5e8  # bytes of weights from which a second of waiting is worth measuring for

# Compiled models keep weights of their own, reordered; at least as much as of one of them is left
# for everything else.
RESERVE = 1

# Parts whose settings are chosen beside each other, so that they are kept together.
TOGETHER = ((IMAGE_ENCODER,), (LANGUAGE_MODEL, NEXT_TOKENS, PROMPTS))

# Of systems that keep caches elsewhere: the variable with the place ("": none has it), and where it
# is below a person's home.
CACHES = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}

Properties = dict[str, Any]  # of OpenVINO's `compile_model`, by name


@dataclass(frozen=True)
class Tuning:
    """The properties of each part that was tuned, by its name; a part without any has defaults.

    `reasons` has a sentence for each of these parts and for what was not taken; `unclear` are
    parts of which no measurement could tell. `key` says where the choice holds.
    """

    key: dict[str, Any]
    properties: dict[str, Properties] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    unclear: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "; ".join(
            f"{part} {properties_in_words(properties)}"
            for part, properties in self.properties.items()
        )

    def or_earlier(self, earlier: "Tuning | None") -> "Tuning":
        """Return this choice, with what an earlier one has for parts that are unclear in it."""
        if earlier is None:
            return self
        properties, reasons, unclear = dict(self.properties), dict(self.reasons), {*self.unclear}
        for parts in TOGETHER:
            is_clearer = {*earlier.unclear}.intersection(parts) < unclear.intersection(parts)
            says_more = is_clearer or not earlier._is_default(parts)
            if self._is_default(parts) and unclear.intersection(parts) and says_more:
                for part in parts:
                    _take(properties, earlier.properties, part)
                    _take(reasons, earlier.reasons, part)
                unclear = unclear - {*parts} | ({*earlier.unclear} & {*parts})
        return Tuning(self.key, properties, reasons, sorted(unclear))

    def _is_default(self, parts: Sequence[str]) -> bool:
        is_apart = NEXT_TOKENS in parts and NEXT_TOKENS in self.properties
        return not is_apart and not any(self.properties.get(part) for part in parts)


def _take(of_parts: dict[str, Any], others: Mapping[str, Any], part: str) -> None:
    of_parts.pop(part, None)
    if part in others:
        of_parts[part] = others[part]


def properties_in_words(properties: Mapping[str, Any]) -> str:
    """Return properties as a person reads them; none are the defaults."""
    return ", ".join(f"{name} {value}" for name, value in properties.items()) or "as by default"


def settings_in_words(folder: Path, tuning: Tuning | None) -> list[str]:
    """Return in two lines what a folder is computed with on this computer now."""
    sets = ", ".join(instruction_sets())
    processor = f"processor: {processor_name()}" + (f" ({sets})" if sets else "")
    settings = f"{tuning or f'the defaults, never tuned here (`vlm tune {folder}`)'}"
    if tuning:
        settings += "".join(f"; {part} {tuning.reasons.get(part, '')}" for part in tuning.unclear)
    if tuning and NEXT_TOKENS in tuning.properties and not fits_twice(folder):
        settings += "; no memory is free now for next tokens apart"
    return [processor, f"settings on this computer: {settings}"]


def has_room(weights: int, models: int) -> bool:
    """Return whether memory is free for so many compiled models of so many bytes of weights."""
    return available_memory() > (models + RESERVE) * weights


def fits_twice(folder: Path) -> bool:
    """Return whether memory is free for a second compiled language model, for next tokens alone."""
    return has_room(weight_bytes(folder)[LANGUAGE_MODEL], models=2)


def key_of(folder: Path) -> dict[str, Any]:
    """Return what a choice depends on: the processor, its cores, OpenVINO's version, the weights.

    The weights are named by a hash of the hashes that the manifest records.
    """
    manifest = read_manifest(folder)
    names = [name for part in manifest["parts"] for name in part_files(manifest, part)]
    hashes = "".join(manifest["files"][name]["sha256"] for name in names)
    return {
        "processor": processor_name(),
        "instruction sets": instruction_sets(),
        "precisions": sorted(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        "cores": processors(),
        "openvino": version("openvino"),
        "folder": sha256(hashes.encode()).hexdigest(),
    }


def cache_folder() -> Path:
    """Return this collection's folder in the user's cache directory, or what VLM_CACHE names.

    Raises `OutputError` where there is no such directory.
    """
    if place := os.environ.get("VLM_CACHE"):
        return path_of(place)
    variable, below = CACHES.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    if place := os.environ.get(variable):
        return Path(place) / "vlm"
    try:
        return Path.home() / below / "vlm"
    except RuntimeError:
        raise OutputError(
            "This account has no home directory to keep settings in; set VLM_CACHE to a folder "
            "that can be written."
        ) from None


def _path(key: Mapping[str, Any]) -> Path:
    name = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "tuning" / f"{name}.json"


def read_tuning(folder: Path) -> Tuning | None:
    """Return what was chosen for a folder on this computer; None where nothing readable is kept."""
    key = key_of(folder)
    try:
        data = read_json(_path(key))
        tuning = Tuning(data["key"], data["properties"], data["reasons"], data["unclear"])
    except (CheckpointError, OutputError, KeyError, TypeError):
        return None
    return tuning if tuning.key == key and _is_sound(tuning) else None


def _is_sound(tuning: Tuning) -> bool:
    """Return whether what was read has the types that readers of it expect."""
    if not isinstance(tuning.properties, dict) or not isinstance(tuning.reasons, dict):
        return False
    if not all(isinstance(properties, dict) for properties in tuning.properties.values()):
        return False
    return is_list_of_texts([*tuning.reasons.values()]) and is_list_of_texts(tuning.unclear)


def write_tuning(tuning: Tuning) -> Path:
    """Keep what was chosen, and return the file; an `OutputError` where that cannot be written."""
    path = _path(tuning.key)
    with _writing(path):
        files.write_whole(path, json.dumps(asdict(tuning), indent=1) + "\n")
    return path


def check_writable(folder: Path) -> None:
    """Raise an `OutputError` where nothing could be kept of a folder, before the long work."""
    path = _path(key_of(folder))
    with _writing(path):
        files.check_writable(path.parent)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({system_reason(error)}); set VLM_CACHE to a folder that "
            "can."
        ) from None


def advice(folder: Path) -> str:
    """Return a sentence for a large folder that was never tuned on this computer; else ""."""
    size = sum(weight_bytes(folder).values())
    if size < LARGE or read_tuning(folder) is not None:
        return ""
    return (
        f"this model ({in_words(size)}) was never tuned on this computer; `vlm tune {folder}` "
        "finds the settings that are fastest here"
    )
