"""Convert all parts of a checkpoint into one folder that a pipeline can run.

A folder appears under its own name only when it is complete: the parts are written into a folder
beside it, which is renamed at the end. Its manifest says what it was made of and holds a hash of
every file.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import openvino as ov
import psutil
from torch import nn

from helpers import hub
from helpers.checkpoints import read_json
from helpers.compression import BitWidth, Preset, bit_widths, compress
from helpers.errors import CheckpointError, OutputError
from helpers.models import load_model, load_processor
from helpers.models.base import VisionLanguageModel
from helpers.stateful import make_stateful
from helpers.tracing import FILES, Part, trace

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest; a folder of another format is not read
_ENTRIES = {"source", "preset", "bit_widths", "versions", "files"}
_PACKAGES = ("openvino", "nncf", "torch", "transformers")
_COPIED = (".json", ".txt", ".model", ".jinja")

Report = Callable[[str], None]


def convert_part(part: Part) -> ov.Model:
    """Return the OpenVINO model of one part, its KV cache moved into state."""
    model = trace(part)
    if part.cache:
        make_stateful(model, part.cache)
    return model


def convert(
    checkpoint: Path, output: Path, preset: Preset, *, report: Report = lambda line: None
) -> dict[str, list[BitWidth]]:
    """Convert the checkpoint in a folder into `output`; return the bit widths by part.

    `report` is told of each step. A complete folder made of the same checkpoint with the same
    preset is kept, any other conversion replaced; an incomplete one never appears. Raises
    `OutputError` for a folder that cannot be written or holds something else, and for a disk that
    is too full.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    source = describe_source(checkpoint)
    with suppress(OutputError):  # nothing there, or it is damaged and made anew
        manifest = read_manifest(output)
        if manifest["source"] == source and manifest["preset"] == _settings(preset):
            report(f"{output} is there already, made of the same checkpoint and settings.")
            return _widths(manifest)
    model = load_model(checkpoint)
    model.processor.check_tokenizer()

    def parts() -> Iterator[tuple[str, ov.Model]]:
        check_room(expected_bytes(model, preset), output, report=report)
        for part in model.parts():
            report(f"{part.name}: converting")
            yield part.name, convert_part(part)

    return write(parts(), output, checkpoint=checkpoint, preset=preset, report=report)


def expected_bytes(model: VisionLanguageModel, preset: Preset) -> int:
    """Return about how many bytes the weights of the converted parts will take."""
    language_model = model.language_model
    others = [module for module in model.children() if module is not language_model]
    others.append(language_model.get_input_embeddings())  # a part of its own as well
    bits = preset.language_model.bits * _weights_in(language_model)
    return int(bits + preset.others.bits * sum(map(_weights_in, others))) // 8


def _weights_in(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def check_room(size: int, output: Path, *, report: Report) -> None:
    """Tell what a conversion of `size` bytes needs, and what there is of it.

    Raises `OutputError` where the disk is too small. Memory is only told: an estimate should not
    forbid what a swap file may allow.
    """
    disk = hub.free_disk(output.resolve())
    memory = psutil.virtual_memory().available
    if size > disk:
        raise OutputError(
            f"The result takes about {hub.in_words(size)}, but only {hub.in_words(disk)} are free "
            f"where {output} is; give a folder on a larger disk or a smaller precision."
        )
    needed = size + hub.CONVERSION_MEMORY
    report(
        f"about {hub.in_words(size)} of disk and {hub.in_words(needed)} of memory are needed; "
        f"{hub.in_words(disk)} and {hub.in_words(memory)} are free"
    )
    if needed > memory:
        report("That is more memory than is free: close other programs, or it may be very slow.")


def write(
    parts: Iterable[tuple[str, ov.Model]],
    output: Path,
    *,
    checkpoint: Path,
    preset: Preset,
    report: Report = lambda line: None,
) -> dict[str, list[BitWidth]]:
    """Compress converted parts as `preset` says and write them as one folder, `output`.

    The parts are compressed in place. Returns the bit widths by part.
    """
    widths = {}
    with written_aside(Path(output)) as folder:
        for name, model in parts:
            report(f"{name}: storing weights as {preset.weights_of(name)}")
            model = compress(model, preset.weights_of(name))
            widths[name] = bit_widths(model)
            save_part(model, folder, name)
        finish(folder, checkpoint, describe_source(checkpoint), preset, widths)
    report(f"{output} is complete.")
    return widths


def save_part(model: ov.Model, folder: Path, name: str) -> Path:
    """Write one part as IR, in the types that it has, and return the path of its .xml."""
    path = Path(folder) / FILES[name]
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError:  # it says no more than "iostream error"
        raise OutputError(f"{path.name} could not be written; is the disk full?") from None
    return path


def finish(
    folder: Path, checkpoint: Path, source: dict, preset: Preset, widths: dict[str, list[BitWidth]]
) -> None:
    """Copy the checkpoint's small files beside the parts and write the manifest."""
    for path in sorted(Path(checkpoint).iterdir()):
        if path.suffix in _COPIED and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    # As the processor completed it: what it read from elsewhere is not beside the parts.
    config = json.dumps(load_processor(checkpoint).config, indent=1, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")
    files = {path.name: _describe(path) for path in sorted(folder.iterdir())}
    manifest = {
        "format": FORMAT,
        "source": source,
        "preset": _settings(preset),
        "bit_widths": {name: [asdict(w) for w in part] for name, part in widths.items()},
        "versions": {name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "files": files,
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def describe_source(checkpoint: Path) -> dict:
    """Return what tells one checkpoint from another: its files' names and sizes, its config."""
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint} is not a folder; give a checkpoint's folder.")
    sizes = {
        path.name: path.stat().st_size for path in sorted(checkpoint.iterdir()) if path.is_file()
    }
    config = checkpoint / "config.json"
    digest = hashlib.sha256(config.read_bytes()).hexdigest() if config.exists() else None
    return {"name": checkpoint.resolve().name, "files": sizes, "config_sha256": digest}


def _settings(preset: Preset) -> dict:
    return {"language_model": asdict(preset.language_model), "others": asdict(preset.others)}


def _describe(path: Path) -> dict:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _widths(manifest: dict) -> dict[str, list[BitWidth]]:
    parts = manifest["bit_widths"].items()
    return {name: [BitWidth(**width) for width in widths] for name, widths in parts}


# Folders


@contextmanager
def written_aside(output: Path) -> Iterator[Path]:
    """Give a folder to write into that takes the name `output` when all went well.

    A conversion that stands at `output` is replaced; whatever goes wrong, Ctrl-C included, leaves
    `output` as it was and nothing beside it.
    """
    output = output.resolve()  # also where it is "." or a link
    aside = output.with_name(f".{output.name}.unfinished-{os.getpid()}")
    try:
        is_empty = output.is_dir() and not any(output.iterdir())
        if output.exists() and not is_empty and not is_conversion(output):
            raise OutputError(f"{output} holds something else; give a new or an empty folder.")
        aside.mkdir(parents=True)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{output} cannot be written ({reason}); give another folder.") from None
    try:
        yield aside
        if output.exists():
            shutil.rmtree(output)
        aside.replace(output)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{output} could not be written ({reason}).") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def is_conversion(folder: Path) -> bool:
    """Return whether `folder` holds a finished conversion."""
    try:
        return (Path(folder) / MANIFEST).is_file()
    except OSError:  # a name that is too long, a folder that cannot be entered
        return False


def read_manifest(folder: Path) -> dict:
    """Return the manifest of a finished conversion after checking that every file is there.

    Raises `OutputError` for a folder without one, of another format, or with a file missing or of
    another size.
    """
    folder = Path(folder)
    again = "run `python -m helpers convert` again"
    if not is_conversion(folder):
        raise OutputError(f"{folder} holds no finished conversion; {again}.")
    damaged = OutputError(f"The manifest of {folder} is damaged; {again}.")
    try:
        manifest = read_json(folder / MANIFEST)
    except CheckpointError:
        raise damaged from None
    if manifest.get("format") != FORMAT:
        raise OutputError(f"{folder} was made by another version of this collection; {again}.")
    if not manifest.keys() >= _ENTRIES:
        raise damaged
    for name, file in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file["bytes"]:
            raise OutputError(f"{name} in {folder} is missing or damaged; {again}.")
    return manifest


def folder_bytes(folder: Path) -> dict[str, int]:
    """Return the size on disk in bytes of each part of a finished conversion."""
    files = read_manifest(folder)["files"]
    sizes = {}
    for name, file in FILES.items():
        stem = file.removesuffix(".xml")
        sizes[name] = sum(files[stem + ending]["bytes"] for ending in (".xml", ".bin"))
    return sizes
