"""The manifest of a converted folder: what it was made of, and each file's size and hash.

A manifest may have been damaged or made up by anyone, so nothing in it is taken for granted before
`is_sound` has looked at it. What this module does not know: how a folder grows.
"""

import hashlib
import os
from dataclasses import fields
from pathlib import Path

from helpers.errors import CheckpointError, OutputError, is_number, unreadable
from helpers.graphs.bit_widths import BitWidth
from helpers.sources.checkpoints import Config, read_json

MANIFEST = "manifest.json"
UNFINISHED_MANIFEST = "unfinished.json"
FORMAT = 2  # of the manifest; a folder of another format is not read
MADE_OF = ("format", "source", "preset", "versions", "parts")
_SECTIONS = ("source", "preset", "versions", "parts", "bit_widths", "files")  # each an object


def is_manifest(path: Path) -> bool:
    """Return whether a file is a manifest of ours, sound or not."""
    try:
        return read_json(path).keys() >= {*MADE_OF, "bit_widths", "files"}
    except CheckpointError:
        return False


def is_sound(manifest: Config) -> bool:
    """Return whether a manifest has what its readers expect, in the types that they expect.

    A part that it names has all its files.
    """
    if not all(isinstance(manifest.get(section), dict) for section in _SECTIONS):
        return False
    return _says_what_it_was_made_of(manifest) and _has_all_files(manifest)


def _says_what_it_was_made_of(manifest: Config) -> bool:
    source, preset, versions = (manifest[section] for section in ("source", "preset", "versions"))
    if not is_list_of_texts([source.get("name"), *versions.values()]):
        return False
    if not is_list_of_texts(manifest.get("notes", [])):
        return False
    return _is_stored(preset.get("language_model")) and _is_stored(preset.get("others"))


def _has_all_files(manifest: Config) -> bool:
    """Return whether files and parts are described, and each part has its files."""
    parts, widths, files = (manifest[section] for section in ("parts", "bit_widths", "files"))
    if not all(_is_file(name, file) for name, file in files.items()):
        return False
    if not is_list_of_texts([*parts.values()]) or not widths.keys() <= parts.keys():
        return False
    if not all(map(_has_widths, widths.values())):
        return False
    return all(name in files for part in widths for name in part_files(manifest, part))


def is_list_of_texts(value: object) -> bool:
    """Return whether a value that was read from a file is a list of texts."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_stored(weights: object) -> bool:
    """Return whether this says how weights are stored."""
    return isinstance(weights, dict) and isinstance(weights.get("mode"), str)


def _has_widths(widths: object) -> bool:
    return isinstance(widths, list) and all(map(_is_width, widths))


def _is_width(width: object) -> bool:
    if not isinstance(width, dict) or width.keys() != {field.name for field in fields(BitWidth)}:
        return False
    is_share = is_number(width["share"]) and 0 <= width["share"] <= 1
    return isinstance(width["type"], str) and _is_count(width["layers"]) and is_share


def _is_file(name: str, file: object) -> bool:
    """Return whether a name is one of a file in the folder itself, and is described."""
    if Path(name).name != name or not name.isprintable() or not isinstance(file, dict):
        return False
    return _is_count(file.get("bytes")) and isinstance(file.get("sha256"), str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def bit_widths_of(manifest: Config) -> dict[str, list[BitWidth]]:
    """Return the bit widths by part that a sound manifest records."""
    parts = manifest["bit_widths"].items()
    return {part: [BitWidth(**width) for width in widths] for part, widths in parts}


def part_files(manifest: Config, part: str) -> list[str]:
    """Return the names of the files of a part, which a sound manifest records."""
    file = str(manifest["parts"][part])
    return [file, f"{file.removesuffix('.xml')}.bin"]


def exists(path: Path) -> bool:
    """Return whether there is such a file; a name that cannot be is none."""
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that cannot be entered
        return False


def describe_files(folder: Path, names: list[str]) -> dict[str, Config]:
    """Return the size and the hash of files, as a manifest records them."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_hash(folder / name)}
        for name in names
    }


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resized(folder: Path, files: dict[str, Config]) -> list[str]:
    """Return the names of files that are missing or of another size than `files` says."""
    return [
        name
        for name, file in files.items()
        if not exists(folder / name) or (folder / name).stat().st_size != file["bytes"]
    ]


def check_readable(*paths: Path) -> None:
    """Raise an `OutputError` that names the first of `paths` that this user may not read."""
    for path in paths:
        try:
            if path.is_dir():
                os.scandir(path).close()
            elif path.is_file():  # a pipe would wait for a writer
                path.open("rb").close()
        except PermissionError:
            raise OutputError(unreadable(path)) from None
        except OSError:  # what is not there is told by those who look for it
            continue


def altered(folder: Path, files: dict[str, Config]) -> list[str]:
    """Return the names of files that do not hold what `files` says."""
    of_another_size = resized(folder, files)
    return of_another_size + [
        name
        for name, file in files.items()
        if name not in of_another_size and file_hash(folder / name) != file["sha256"]
    ]
