"""What compression looks at: pictures with questions, and the inputs of a model's parts from them.

Inputs are computed when they are asked for, one sample after another: of a large model, what one
picture gives the language model can take hundreds of megabytes.

What this module does not know: conversations of several turns, and how good a choice of samples is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from helpers.errors import PictureError, SettingsError, reason_of
from helpers.graphs.core import ACCURACY, compile_model, feed_of, run_model
from helpers.graphs.part_names import IMAGE_ENCODER, LANGUAGE_MODEL
from helpers.graphs.presets import Preset, Quantization
from helpers.graphs.stateful import BEAM_INPUT
from helpers.graphs.token_rows import apart, row_shapes, side_by_side
from helpers.inputs.images import picture_files
from helpers.inputs.messages import user_message
from helpers.inputs.questions import Sample
from helpers.models.processors import Processor
from helpers.resources import path_of

PROMPT = "What is in the picture?"
HELD_OUT = 4  # pictures that calibration does not look at, on which the error is measured
_TRAINING = "train"  # the split of a data set that samples come from, never the one for testing

Inputs = dict[str, NDArray[Any]]  # of one call of a part, by name


def find_samples(source: str, number: int) -> list[Sample]:
    """Return up to `number` pictures, each with the question `PROMPT`.

    `source` is a folder of pictures, or the name of a data set on the Hugging Face hub as
    owner/name, for which the package `datasets` has to be installed.

    Rows of a data set without a picture are left out.

    Raises `SettingsError` for any other source and for a data set that cannot be read or has no
    pictures, and `PictureError` for a folder without pictures or one that is closed.
    """
    place = path_of(source)
    try:
        if place.is_dir():
            return [(path, PROMPT) for path in picture_files(place, "some photographs")[:number]]
    except (OSError, ValueError) as error:
        raise PictureError(
            f"{source} cannot be read ({reason_of(error)}); give another folder."
        ) from None
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return [(picture, PROMPT) for picture in _pictures_of(source, number)]
    raise SettingsError(
        f"{source} is neither a folder of pictures nor a data set's name such as owner/name; "
        "give one of the two."
    )


def samples_for(preset: Preset, source: str | None) -> list[Sample]:
    """Return what an image encoder with quantised activations looks at; [] for drawn pictures.

    A few more than it is calibrated on, so that its error can be measured on others. Raises
    `SettingsError` for a `source` where nothing looks at samples.
    """
    if source is None:
        return []
    if not isinstance(preset.image_encoder, Quantization):
        raise SettingsError(
            "Samples are looked at by int8-activations alone; choose that as the precision, or as "
            "--image-encoder, or leave --samples out."
        )
    return find_samples(source, preset.image_encoder.samples + HELD_OUT)


def _pictures_of(name: str, number: int) -> list[Image.Image]:
    """Return the first pictures of a data set, of which no more is downloaded than that."""
    try:
        import datasets
    except ImportError:
        raise SettingsError(
            f"The data set {name} needs the package `datasets`; install it, or give a folder of "
            "pictures."
        ) from None
    try:
        rows = datasets.load_dataset(name, split=_TRAINING, streaming=True).take(number)
        pictures = [picture for row in rows if (picture := _picture_in(row)) is not None]
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"The data set {name} cannot be read ({reason_of(error)}); give another one, or a "
            "folder of pictures."
        ) from None
    if not pictures:
        raise SettingsError(f"The data set {name} has no column of pictures; give another one.")
    return pictures


def _picture_in(row: Mapping[str, object]) -> Image.Image | None:
    return next((value for value in row.values() if isinstance(value, Image.Image)), None)


class PartInputs:
    """The inputs of one part for each sample, computed anew each time they are gone through.

    `compute` returns, for a sample, the inputs by name of each call of the part.
    """

    def __init__(
        self, samples: Sequence[Sample], compute: Callable[[Sample], list[Inputs]]
    ) -> None:
        self.samples, self.compute = samples, compute

    def __iter__(self) -> Iterator[Inputs]:
        """Give the inputs by name; of a sample that a part is called for several times, all."""
        for sample in self.samples:
            yield from self.compute(sample)


def inputs_by_part(
    parts: Mapping[str, ov.Model], processor: Processor, samples: Sequence[Sample]
) -> dict[str, PartInputs]:
    """Return the inputs of the image encoder and of the language model for `samples`.

    `parts` are the converted parts by name, not compressed yet: the first two are run for what the
    third takes. It is given each sample as it begins an answer: the whole prompt, and no cache.
    """
    compute = _SampleInputs(parts, processor)
    return {
        IMAGE_ENCODER: PartInputs(samples, compute.of_image_encoder),
        LANGUAGE_MODEL: PartInputs(samples, compute.of_language_model),
    }


def encoder_inputs(part: ov.Model, processor: Processor, samples: Sequence[Sample]) -> PartInputs:
    """Return the inputs of an image encoder that is the only part for pictures."""
    compute = _SampleInputs({IMAGE_ENCODER: part}, processor)
    return PartInputs(samples, compute.of_image_encoder)


class _SampleInputs:
    """The inputs of each part for one sample."""

    def __init__(self, parts: Mapping[str, ov.Model], processor: Processor) -> None:
        self.processor = processor
        self.requests = {
            name: compile_model(part, "CPU", **ACCURACY).create_infer_request()
            for name, part in parts.items()
            if name != LANGUAGE_MODEL
        }
        self.language_model = parts.get(LANGUAGE_MODEL)

    def of_image_encoder(self, sample: Sample) -> list[Inputs]:
        """Return the inputs of every call of the image encoder."""
        calls: list[Inputs] = []

        def run(name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            if name == IMAGE_ENCODER:
                calls.append(feed_of(self.requests[name], inputs))
            return self._run(name, inputs)

        picture, _ = sample
        if picture is not None:
            self.processor.exported.encode_images(run, self.processor.image_inputs([picture]))
        return calls

    def of_language_model(self, sample: Sample) -> list[Inputs]:
        """Return the inputs of the language model for the whole prompt."""
        picture, text = sample
        pictures = [] if picture is None else [picture]
        inputs = self.processor.image_inputs(pictures) if pictures else None
        ids = self.processor.input_ids([user_message(text, len(pictures))], inputs)
        features = None
        if inputs is not None:
            features = self.processor.exported.encode_images(self._run, inputs)
        prepared = self.processor.exported.prepare(ids, self._embed, features)
        picture_inputs = prepared.pop("pictures", None)
        if picture_inputs is not None:
            prepared |= picture_inputs.fixed | picture_inputs.at(torch.arange(ids.shape[1]), 1)
        assert self.language_model is not None, "the language model's own samples are asked for"
        shapes = row_shapes(self.language_model, self.processor.exported.token_parts.values())
        prepared |= apart(prepared["inputs_embeds"], shapes)
        names = {name for port in self.language_model.inputs for name in port.get_names()}
        feed = {name: value.numpy() for name, value in prepared.items() if name in names}
        return [feed | {BEAM_INPUT: np.zeros(1, np.int32)}]

    def _run(self, name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return run_model(self.requests[name], inputs)

    def _input_of(self, part: str) -> str:
        """Return the name of a part's only input."""
        return str(self.requests[part].get_compiled_model().input().any_name)

    def _embed(self, ids: Tensor) -> Tensor:
        return side_by_side(
            row
            for part in self.processor.exported.token_parts
            for row in self._run(part, {self._input_of(part): ids}).values()
        )
