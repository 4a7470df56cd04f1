"""Convert all parts of a checkpoint into one folder that a pipeline can run."""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import openvino as ov
import torch

from helpers.convert.estimates import (
    check_room,
    expected_bytes,
    expected_memory,
    weights_by_part,
)
from helpers.convert.folders import (
    Report,
    Unfinished,
    absolute,
    complete,
    read_manifest,
    written_aside,
)
from helpers.convert.manifests import bit_widths_of, check_readable
from helpers.convert.notes import notes_on
from helpers.convert.origins import made_of
from helpers.convert.places import COPIED, LEFT_OUT, holds_conversion
from helpers.convert.quantizing import check_image_encoder, quantized_encoder
from helpers.convert.runtime_files import write_runtime_files
from helpers.errors import (
    CheckpointError,
    OutputError,
    SettingsError,
    UserError,
    check_resources,
    reason_of,
    system_reason,
)
from helpers.graphs.bit_widths import BitWidth, bit_widths
from helpers.graphs.compression import compress
from helpers.graphs.finite_weights import WeightsError, not_finite
from helpers.graphs.part_names import FILES, LANGUAGE_MODEL
from helpers.graphs.parts import Part
from helpers.graphs.presets import FP16, Preset, Quantization, Weights
from helpers.graphs.stateful import make_stateful
from helpers.graphs.tables import Table, table_model
from helpers.graphs.tracing import trace
from helpers.inputs.questions import Sample
from helpers.models import load_processor
from helpers.models.base import VisionLanguageModel
from helpers.models.checks import check_processor
from helpers.models.families import family_of
from helpers.models.processors import Processor
from helpers.resources import Growth, in_words
from helpers.upstream.locales import plain_numbers


def convert_part(part: Part | Table) -> ov.Model:
    """Return the OpenVINO model of one part, its KV cache moved into state."""
    if isinstance(part, Table):
        return table_model(part)
    model = trace(part)
    if part.cache:
        make_stateful(model, part.cache)
    return model


def refuse_conversion(checkpoint: Path) -> None:
    """Raise a `CheckpointError` for a folder that `convert` wrote."""
    if holds_conversion(checkpoint):
        raise CheckpointError(
            f"{checkpoint} is a conversion already; give the checkpoint that it was made of, or "
            f"ask it: `vlm ask {checkpoint}`."
        )


def convert(
    checkpoint: str | Path,
    output: str | Path,
    preset: Preset,
    *,
    samples: Sequence[Sample] = (),
    report: Report = lambda line: None,
) -> dict[str, list[BitWidth]]:
    """Convert the checkpoint in a folder into `output`; return the bit widths by part.

    An image encoder whose activations are quantised is calibrated on the pictures of `samples`, or
    on drawn ones if there are none.

    `report` is told of each step. A complete folder made of the same checkpoint with the same
    preset is kept, any other conversion replaced; an incomplete one never appears, and one that was
    interrupted goes on from the parts that it finished. Raises `OutputError` for a folder that
    cannot be written, holds something else or is being written, and for a disk that is too full;
    `CheckpointError` for what cannot be read or converted; and `SettingsError` for weights that
    need samples, which only quantised activations get here, and for too little memory.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    absolute(output)  # or it is told
    refuse_conversion(checkpoint)
    origin = made_of(checkpoint, preset, samples)
    check_readable(output, *output.glob("*"))  # or it would be taken for damaged, and made anew
    complete(output)
    with suppress(OutputError):  # nothing there, or it is damaged and made anew
        manifest = read_manifest(output)
        if all(manifest[entry] == origin[entry] for entry in ("source", "preset")):
            report(f"{output} is there already, made of the same checkpoint and settings.")
            return bit_widths_of(manifest)
    _refuse_samples(preset)
    model = family_of(checkpoint).model.load(checkpoint)
    check_image_encoder(model, preset)
    check_processor(model.processor)
    notes = notes_on(checkpoint, model.processor)
    for note in notes:
        report(f"note: {note}")
    origin |= {"notes": notes}
    with written_aside(output, origin, resume=True, report=report) as work:
        missing = expected_bytes(model, preset) - work.bytes
        check_room(missing, output, memory=expected_memory(model, preset), report=report)
        if model.dtype == torch.float32 and preset.weights_of(LANGUAGE_MODEL) == FP16:
            report(
                "The checkpoint's weights have 32 bits, and fp16 stores weights as they are; save "
                "it in 16 bits first for half the size, or choose int8 for a quarter."
            )
        with Growth() as growth:
            _convert_parts(work, model, checkpoint, preset, samples, report)
        _write_small_files(checkpoint, model.processor, work.folder)
    report(f"{output} is complete; it took at most {in_words(growth.bytes)} of memory.")
    return work.bit_widths


def _convert_parts(
    work: Unfinished,
    model: VisionLanguageModel[Any],
    checkpoint: Path,
    preset: Preset,
    samples: Sequence[Sample],
    report: Report,
) -> None:
    """Convert and store the parts that are not finished, one at a time."""
    weights, done = weights_by_part(model), 0
    for part in model.parts():
        if part.name in work.parts:
            report(f"{part.name}: finished before the interruption")
        else:
            report(f"{part.name}: converting ({done / sum(weights.values()):.0%} done)")
            graph = _converted(model, part, checkpoint)
            setting = preset.weights_of(part.name)
            if isinstance(setting, Quantization):
                graph = quantized_encoder(graph, setting, model.processor, samples, report=report)
                _save(work, part.name, graph)
            else:
                _store(work, part.name, graph, preset, report)
        done += weights.get(part.name, 0)  # a small part is counted with its whole


def _refuse_samples(preset: Preset) -> None:
    """Raise `SettingsError`, before the long work, where a preset's weights need samples."""
    for weights in (preset.image_encoder, preset.language_model, preset.others):
        if isinstance(weights, Weights) and weights.needs_data:
            raise SettingsError(
                f"{weights} needs sample inputs to look at, which a conversion as a whole does not "
                "give; compress the parts with them and `write` those, as notebook 05 does."
            )


def _converted(model: VisionLanguageModel[Any], part: Part | Table, checkpoint: Path) -> ov.Model:
    try:
        return convert_part(part)
    except WeightsError as error:  # its names are ours; people know their file's
        names = not_finite(model.original_tensors(checkpoint)) or error.names
        raise WeightsError(names, checkpoint) from None
    except UserError:
        raise
    except Exception as error:  # what a trace raises has nothing in common
        check_resources(error)
        raise CheckpointError(
            f"The {part.name} of {checkpoint} cannot be converted ({reason_of(error)}); is its "
            "config.json the authors'?"
        ) from error


def write(
    parts: Iterable[tuple[str, ov.Model]],
    output: Path,
    *,
    checkpoint: Path,
    preset: Preset,
    compressed: bool = False,
    report: Report = lambda line: None,
) -> dict[str, list[BitWidth]]:
    """Compress converted parts as `preset` says and write them as one folder, `output`.

    The parts are compressed in place, unless they are `compressed` already. Returns the bit widths
    by part. Whatever stands at `output` is replaced, since nobody knows how parts that come from
    outside were made.
    """
    processor = load_processor(checkpoint)
    origin = made_of(checkpoint, preset) | {"notes": notes_on(checkpoint, processor)}
    with written_aside(Path(output), origin) as work:
        for name, model in parts:
            if compressed:
                _save(work, name, model)
            else:
                _store(work, name, model, preset, report)
        _write_small_files(checkpoint, processor, work.folder)
    report(f"{output} is complete.")
    return work.bit_widths


def _store(work: Unfinished, name: str, model: ov.Model, preset: Preset, report: Report) -> None:
    weights = preset.weights_of(name)
    report(f"{name}: storing weights as {'they are' if weights == FP16 else weights}")
    _save(work, name, compress(model, weights))


def _save(work: Unfinished, name: str, model: ov.Model) -> None:
    save_part(model, work.folder, name, file=work.files_of(name)[0])
    work.add(name, bit_widths(model))


def save_part(model: ov.Model, folder: Path, name: str, *, file: str = "") -> Path:
    """Write one part as IR, in the types that it has, and return the path of its .xml.

    The file has the name that most families use, unless `file` is another.
    """
    path = Path(folder) / (file or FILES[name])
    _name_by_order(model, name)
    try:
        with plain_numbers():
            ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError:  # it says no more than "iostream error"
        raise OutputError(_why_unwritten(path)) from None
    return path


def _why_unwritten(path: Path) -> str:
    """Return a sentence on why a part cannot be written, by writing more to its files."""
    try:
        for file in (path, path.with_suffix(".bin")):
            with file.open("ab") as stream:
                stream.write(bytes(2**16))
    except OSError as error:
        return f"{file.name} could not be written ({system_reason(error)}); give another folder."
    return f"{path.name} could not be written; is the disk full?"


def _name_by_order(model: ov.Model, name: str) -> None:
    """Name operations without a name by their order; OpenVINO counts all that there ever were.

    So the same conversion gives the same file, whatever was converted before it.
    """
    model.set_friendly_name(name)
    for number, node in enumerate(model.get_ordered_ops()):
        kind = node.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{kind}_{number}")


def _write_small_files(checkpoint: Path, processor: Processor, folder: Path) -> None:
    """Copy configs, tokenizer and the like beside the parts, and write what other runtimes read."""
    for path in sorted(Path(checkpoint).iterdir()):
        if path.suffix in COPIED and not path.name.endswith(LEFT_OUT) and path.is_file():
            shutil.copyfile(path, folder / path.name)
    # As the processor completed it: what it read from elsewhere is not beside the parts.
    config = json.dumps(processor.config, indent=1, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")
    write_runtime_files(processor, folder)
