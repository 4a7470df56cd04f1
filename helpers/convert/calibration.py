"""What compression looks at: pictures with questions, and the inputs of a model's parts from them.

Inputs are computed when they are asked for, one sample after another: of a large model, what one
picture gives the language model can take hundreds of megabytes.

What this module does not know: conversations of several turns, and how good a choice of samples is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from PIL import Image
from torch import Tensor

from helpers.errors import PictureError, SettingsError
from helpers.graphs.tracing import IMAGE_ENCODER, LANGUAGE_MODEL, TEXT_EMBEDDINGS
from helpers.inputs.prompts import user_message
from helpers.models.base import Processor
from helpers.run.generation import BEAM_INPUT
from helpers.shapes import world

SHAPES = "shapes"  # the source of samples that are drawn
PROMPT = "What is in the picture?"
_TRAINING = "train"  # the split of a data set that samples come from, never the one for testing

# A picture, or where it is, and a question about it; a question without a picture has None.
Sample = tuple[Image.Image | Path | None, str]


def find_samples(source: str, number: int, *, prompt: str = PROMPT) -> list[Sample]:
    """Return up to `number` pictures with a question each.

    `source` is `shapes` (pictures and questions of the bundled world's training split), a folder of
    pictures, or the name of a data set on the Hugging Face hub as owner/name, for which the package
    `datasets` has to be installed; for both, `prompt` is the question.

    Raises `SettingsError` for any other source and for a data set that cannot be read, and
    `PictureError` for a folder without pictures.
    """
    if source == SHAPES:
        drawn = world.sample_questions(number, seed=0, split=_TRAINING)
        return [(world.draw(scene), question.text) for scene, question in drawn]
    if Path(source).is_dir():
        return [(path, prompt) for path in _pictures_in(Path(source))[:number]]
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return [(picture, prompt) for picture in _pictures_of(source, number)]
    raise SettingsError(
        f"{source} is neither {SHAPES}, nor a folder of pictures, nor a data set's name such as "
        "owner/name."
    )


def _pictures_in(folder: Path) -> list[Path]:
    endings = Image.registered_extensions()
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in endings)
    if not found:
        raise PictureError(f"The folder {folder} holds no pictures; put some photographs there.")
    return found


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
        pictures = [_picture_in(row) for row in rows]
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingsError(f"The data set {name} cannot be read ({reason}).") from None
    if None in pictures or not pictures:
        raise SettingsError(f"The data set {name} has no column of pictures; give another one.")
    return pictures


def _picture_in(row: Mapping[str, object]) -> Image.Image | None:
    return next((value for value in row.values() if isinstance(value, Image.Image)), None)


class PartInputs:
    """The inputs of one part for each sample, computed anew each time they are gone through."""

    def __init__(
        self,
        samples: Sequence[Sample],
        compute: Callable[[Image.Image | Path | None, str], list[dict[str, np.ndarray]]],
    ) -> None:
        self.samples, self.compute = samples, compute

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Give the inputs by name; of a sample that a part is called for several times, all."""
        for sample in self.samples:
            yield from self.compute(*sample)


def inputs_by_part(
    parts: Mapping[str, ov.Model], processor: Processor, samples: Sequence[Sample]
) -> dict[str, PartInputs]:
    """Return the inputs of the image encoder and of the language model for `samples`.

    `parts` are the converted parts by name, not compressed yet: the first two are run for what the
    third takes. It sees each sample as it begins an answer: the whole prompt, and no cache.
    """
    encoder, embeddings = (
        _Runner(ov.compile_model(parts[name], "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"}))
        for name in (IMAGE_ENCODER, TEXT_EMBEDDINGS)
    )
    taken = {name for port in parts[LANGUAGE_MODEL].inputs for name in port.get_names()}

    def of_image_encoder(picture, _: str) -> list[dict[str, np.ndarray]]:
        calls = []

        def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            calls.append(encoder.feed(inputs))
            return encoder(inputs)

        if picture is not None:
            processor.encode_exported(run, processor.image_inputs([picture]))
        return calls

    def of_language_model(picture, text: str) -> list[dict[str, np.ndarray]]:
        pictures = [] if picture is None else [picture]
        inputs = processor.image_inputs(pictures) if pictures else None
        features = processor.encode_exported(encoder, inputs) if pictures else None
        ids = processor.input_ids([user_message(text, len(pictures))], inputs)
        prepared = processor.prepare_exported(ids, embeddings.first, features)
        apart = prepared.pop("pictures", None)
        if apart is not None:
            prepared |= apart.fixed | apart.along
        found = {name: value.numpy() for name, value in prepared.items() if name in taken}
        return [found | {BEAM_INPUT: np.zeros(1, np.int32)}]

    return {
        IMAGE_ENCODER: PartInputs(samples, of_image_encoder),
        LANGUAGE_MODEL: PartInputs(samples, of_language_model),
    }


class _Runner:
    """A compiled part that is called with tensors by name."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self.compiled = compiled
        self.names = {port.any_name for port in compiled.inputs}

    def feed(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return those of `inputs` that the part takes."""
        return {name: value.numpy() for name, value in inputs.items() if name in self.names}

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        results = self.compiled(self.feed(inputs))
        return {
            port.any_name: torch.from_numpy(results[port].copy()) for port in self.compiled.outputs
        }

    def first(self, inputs: Tensor) -> Tensor:
        """Return the only output for the only input."""
        return torch.from_numpy(self.compiled(inputs.numpy())[0].copy())
