"""Measure an image encoder without the rest of its model, in int8 and in int8-activations.

`python -m helpers.workshop.image_encoders llama-3.2-vision FOLDER` writes what it finds to
`notebooks/full-size/image-encoders/`. A checkpoint with random weights and the converted encoders
stay in a folder of the model's name in FOLDER, so that a run that was cut off goes on there. Where
int8-activations takes more memory than there is, `--changes FILE` replaces fields of the original's
config, such as the number of layers, by those of a JSON file; they are kept with the figures, and
need a FOLDER of their own.

What this module does not know: how good such an encoder is; its samples are one drawn picture,
which time does not depend on. Nor an encoder that takes more than a picture, as Qwen3-VL's.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import openvino as ov

from helpers.convert.calibration import Inputs
from helpers.convert.conversion import convert_part, save_part
from helpers.errors import SettingsError, UserError
from helpers.graphs.compression import compress
from helpers.graphs.core import compile_model, core, feed_of
from helpers.graphs.part_names import IMAGE_ENCODER
from helpers.graphs.presets import INT8, Quantization, Weights
from helpers.inputs.images import draw_lake
from helpers.measure.benchmark import computer
from helpers.measure.figures import Encoder, EncoderRun
from helpers.measure.full_size import ENCODERS
from helpers.measure.random_checkpoint import write_random
from helpers.measure.speed import timed
from helpers.models import load_model, load_processor
from helpers.models.families import Original, find_original
from helpers.resources import Growth, in_words, time_in_words
from helpers.sources.checkpoints import Config, read_json, write_json

SETTINGS: dict[str, Weights | Quantization] = {
    "int8": INT8,
    "int8-activations": Quantization(samples=1),
}
ROUNDS = 5  # besides a first one, which does not count


def store(original: Original, place: Path) -> None:
    """Write the encoder in each setting that is not there yet, and beside it what that took."""
    place.mkdir(parents=True, exist_ok=True)
    for name, setting in SETTINGS.items():
        if (place / f"{name}.json").exists():
            continue
        graph, inputs = encoder_graph(original, place)  # anew, since it is changed in place
        with Growth() as growth:
            seconds, stored = timed(partial(compress, graph, setting, [inputs]))
        path = save_part(stored, place, IMAGE_ENCODER, file=f"{name}.xml")
        size = sum(file.stat().st_size for file in (path, path.with_suffix(".bin")))
        print(f"{name}: {seconds:.0f} s, {in_words(growth.bytes)} more memory", flush=True)
        cost = {"seconds": seconds, "peak_memory": growth.bytes, "bytes": size}
        write_json(place / f"{name}.json", cost)


def encoder_graph(original: Original, place: Path) -> tuple[ov.Model, Inputs]:
    """Return the encoder with random weights, converted, and what it takes for a picture.

    Raises `SettingsError` for an encoder that takes more than that.
    """
    model = load_model(write_random(original, place / "checkpoint", report=print))
    (part,) = (part for part in model.parts() if part.name == IMAGE_ENCODER)
    graph = convert_part(part)
    inputs = model.image_inputs([draw_lake(*original.picture)])
    names = {port.any_name for port in graph.inputs}
    if not names <= inputs.keys():
        raise SettingsError(
            f"The image encoder of {original.name} takes {', '.join(sorted(names - inputs.keys()))}"
            " from other parts, so it cannot be measured alone; measure the whole model."
        )
    return graph, {name: inputs[name].numpy() for name in sorted(names)}


def rounds_of(
    picture: tuple[int, int], place: Path, names: Sequence[str]
) -> dict[str, list[float]]:
    """Return the seconds of a picture in each setting, in turn; a first round does not count."""
    processor = load_processor(place / "checkpoint")
    inputs = processor.image_inputs([draw_lake(*picture)])
    seconds: dict[str, list[float]] = {name: [] for name in names}
    requests = {}
    for name in names:
        model = compile_model(core().read_model(place / f"{name}.xml"), "CPU")
        requests[name] = model.create_infer_request()
    for number in range(ROUNDS + 1):
        for name, request in requests.items():
            spent, _ = timed(partial(request.infer, feed_of(request, inputs)))
            print(f"{name}: {time_in_words(spent)}", flush=True)
            seconds[name] += [spent] * (number > 0)
    return seconds


def changed(original: Original, changes: Config) -> Original:
    """Return an original whose config has these fields replaced, section by section."""
    config = {
        name: value | changes.get(name, {}) if isinstance(value, dict) else value
        for name, value in original.config.items()
    }
    values = {field.name: getattr(original, field.name) for field in fields(original)}
    return type("Changed", (Original,), {"config": config})(**values)  # type: ignore[no-any-return]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one encoder and write its file; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m helpers.workshop.image_encoders")
    parser.add_argument("model", help="an original's name, such as llama-3.2-vision")
    parser.add_argument("place", type=Path, help="a folder for what is made on the way")
    parser.add_argument("--changes", type=Path, help="a JSON file of fields of its config")
    options = parser.parse_args(arguments)
    try:
        cure = "give a JSON file of fields of a config"
        changes = read_json(options.changes, cure=cure) if options.changes else {}
        original = changed(find_original(options.model), changes)
        place = options.place / original.name
        store(original, place)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    runs = {
        name: EncoderRun(rounds=rounds, **read_json(place / f"{name}.json"))
        for name, rounds in rounds_of(original.picture, place, list(SETTINGS)).items()
    }
    figures = Encoder(original.name, original.picture, changes, computer(), runs)
    ENCODERS.mkdir(exist_ok=True)
    path = ENCODERS / f"{original.name}.json"
    path.write_text(json.dumps(asdict(figures), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
