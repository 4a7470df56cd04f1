"""Convert all parts of a checkpoint into one folder that a pipeline can run."""

import hashlib
import json
import platform
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import openvino as ov
import psutil
from torch import nn

from helpers import hub
from helpers.compression import BitWidth, Preset, bit_widths, compress
from helpers.errors import CheckpointError, OutputError
from helpers.folders import Report, Unfinished, bit_widths_of, read_manifest, written_aside
from helpers.models import load_model, load_processor
from helpers.models.base import VisionLanguageModel
from helpers.stateful import make_stateful
from helpers.tracing import FILES, Part, trace

_PACKAGES = ("openvino", "nncf", "torch", "transformers")
_COPIED = (".json", ".txt", ".model", ".jinja")


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
    preset is kept, any other conversion replaced; an incomplete one never appears, and one that was
    interrupted goes on from the parts that it finished. Raises `OutputError` for a folder that
    cannot be written, holds something else or is being written, and for a disk that is too full.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    made_of = _made_of(checkpoint, preset)
    with suppress(OutputError):  # nothing there, or it is damaged and made anew
        manifest = read_manifest(output)
        if all(manifest[entry] == made_of[entry] for entry in ("source", "preset")):
            report(f"{output} is there already, made of the same checkpoint and settings.")
            return bit_widths_of(manifest)
    model = load_model(checkpoint)
    model.processor.check_tokenizer()
    with written_aside(output, made_of, resume=True, report=report) as work:
        check_room(expected_bytes(model, preset) - work.bytes, output, report=report)
        for part in model.parts():
            if part.name in work.parts:
                report(f"{part.name}: finished before the interruption")
                continue
            report(f"{part.name}: converting")
            _store(work, part.name, convert_part(part), preset, report)
        _copy_small_files(checkpoint, work.folder)
    report(f"{output} is complete.")
    return work.bit_widths


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

    The parts are compressed in place. Returns the bit widths by part. Whatever stands at `output`
    is replaced, since nobody knows how parts that come from outside were made.
    """
    with written_aside(Path(output), _made_of(checkpoint, preset)) as work:
        for name, model in parts:
            _store(work, name, model, preset, report)
        _copy_small_files(checkpoint, work.folder)
    report(f"{output} is complete.")
    return work.bit_widths


def _store(work: Unfinished, name: str, model: ov.Model, preset: Preset, report: Report) -> None:
    weights = preset.weights_of(name)
    report(f"{name}: storing weights as {weights}")
    model = compress(model, weights)
    save_part(model, work.folder, name)
    work.add(name, bit_widths(model))


def save_part(model: ov.Model, folder: Path, name: str) -> Path:
    """Write one part as IR, in the types that it has, and return the path of its .xml."""
    path = Path(folder) / FILES[name]
    _name_by_order(model, name)
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError:  # it says no more than "iostream error"
        raise OutputError(f"{path.name} could not be written; is the disk full?") from None
    return path


def _name_by_order(model: ov.Model, name: str) -> None:
    """Name operations without a name by their order; OpenVINO counts all that there ever were.

    So the same conversion gives the same file, whatever was converted before it.
    """
    model.set_friendly_name(name)
    for number, node in enumerate(model.get_ordered_ops()):
        unnamed = re.match(rf"{node.get_type_name()}_\d+", node.get_friendly_name())
        if unnamed:
            rest = node.get_friendly_name()[unnamed.end() :]
            node.set_friendly_name(f"{node.get_type_name()}_{number}{rest}")


def _copy_small_files(checkpoint: Path, folder: Path) -> None:
    """Copy configs, tokenizer and the like beside the parts."""
    for path in sorted(Path(checkpoint).iterdir()):
        if path.suffix in _COPIED and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    # As the processor completed it: what it read from elsewhere is not beside the parts.
    config = json.dumps(load_processor(checkpoint).config, indent=1, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")


def _made_of(checkpoint: Path, preset: Preset) -> dict:
    """Return what a conversion depends on: its source, settings, and the packages' versions."""
    versions = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    source = describe_source(Path(checkpoint))
    return {"source": source, "preset": _settings(preset), "versions": versions}


def describe_source(checkpoint: Path) -> dict:
    """Return what tells one checkpoint from another: its config, its files' sizes and times."""
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint} is not a folder; give a checkpoint's folder.")
    stats = {
        path.relative_to(checkpoint).as_posix(): path.stat()
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    files = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    config = checkpoint / "config.json"
    digest = hashlib.sha256(config.read_bytes()).hexdigest() if config.exists() else None
    return {"name": checkpoint.resolve().name, "files": files, "config_sha256": digest}


def _settings(preset: Preset) -> dict:
    return {"language_model": asdict(preset.language_model), "others": asdict(preset.others)}
