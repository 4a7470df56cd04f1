"""How a family's exported parts are called: what each takes, and what its outputs mean.

What this module does not know: what runs a part; it is handed a function that does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from helpers.graphs.part_names import FILES, IMAGE_ENCODER, TEXT_EMBEDDINGS
from helpers.graphs.stateful import keep_inputs

if TYPE_CHECKING:
    import openvino as ov

    from helpers.models.processors import Processor

# What an image encoder takes, by name: tensors, or lists of them where sizes differ.
ImageInputs = dict[str, Any]
# What an image encoder returns: iterating gives the features of each tile, slice or picture.
Features = Tensor | Sequence[Any]
# Runs an exported part, given its name: inputs by name to outputs by name.
RunPart = Callable[[str, Mapping[str, Tensor]], dict[str, Tensor]]


# Tiles or slices in a call: those of a picture, most often. More gain no time, and take memory each
# (37 MB of a tile of InternVL2-1B; its four took 1.05 times as long one by one).
MOST_AT_ONCE = 16


def in_calls(encode: Callable[[Tensor], Tensor], pixel_values: Tensor) -> Tensor:
    """Return what `encode` gives for rows (number, ...) of one size, at most so many in a call."""
    return torch.cat([encode(rows) for rows in torch.split(pixel_values, MOST_AT_ONCE)])


@dataclass(frozen=True, eq=False)
class PictureInputs:
    """What an exported language model takes of pictures beside the prompt's embeddings, by name.

    `fixed` stays the same for all tokens; `along` (prompts, length, ...) has a row for each of the
    prompt's positions, and tokens that are written later take the last one. An object of its own,
    so that `generate` does not repeat it for each beam.
    """

    fixed: dict[str, Tensor]
    along: dict[str, Tensor]

    def at(self, places: Tensor, batch: int) -> dict[str, Tensor]:
        """Return what the tokens at consecutive `places` of all prompts take, by name.

        A `batch` that is larger than the number of prompts has several rows for each, as beams.
        """
        inputs = {}
        for name, value in self.along.items():
            rows = value[:, places.clamp(max=value.shape[1] - 1)]
            inputs[name] = rows.repeat_interleave(batch // len(rows), dim=0)
        return inputs

    def reach(self, places: Tensor) -> int:
        """Return how long a sequence is by the positions at consecutive `places`, its last."""
        return int(places[-1]) + 1

    @classmethod
    def joined(cls, prompts: "Sequence[PictureInputs]", length: int) -> Self:
        """Return what prompts of one batch take, padded on the left to `length`.

        A fixed input without a batch, which has one dimension, is the same for all prompts.
        """
        fixed = dict(prompts[0].fixed)
        for name, value in fixed.items():
            if value.dim() > 1:
                fixed[name] = torch.cat([prompt.fixed[name] for prompt in prompts])
        return cls(fixed, cls.joined_along(prompts, length))

    @staticmethod
    def joined_steps(steps: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return what single tokens of several answers take, from what each of them takes."""
        return {name: torch.cat([step[name] for step in steps]) for name in steps[0]}

    @staticmethod
    def joined_along(prompts: "Sequence[PictureInputs]", length: int) -> dict[str, Tensor]:
        """Return what prompts have for each of their positions, padded on the left to `length`."""
        return {
            name: torch.cat([pad_left(prompt.along[name], length) for prompt in prompts])
            for name in prompts[0].along
        }


class ExportedParts:
    """How the exported parts of most families are called; `processor` knows their ids.

    `files` are the parts' files by the parts' names, in the order of conversion. `token_parts` are
    those that look tokens up, each with the input of the language model that takes its rows; what
    they give of a token is one row here, side by side, the embeddings of text first.
    """

    files: Mapping[str, str] = FILES
    token_parts: Mapping[str, str] = {TEXT_EMBEDDINGS: "inputs_embeds"}

    def __init__(self, processor: "Processor") -> None:
        self.processor = processor

    @property
    def kept_inputs(self) -> list[str]:
        """Names of the language model's inputs that stay the same for all tokens."""
        return []

    def adapt(self, language_model: "ov.Model") -> None:
        """Change a language model that was read from its file, in place, into what runs here."""
        keep_inputs(language_model, self.kept_inputs)

    @property
    def prefill_again_beyond(self) -> int | None:
        """After how many positions cached keys count no more, as all are computed otherwise."""
        return None

    @property
    def can_skip_places(self) -> bool:
        """Whether places in the cache may be masked and left out."""
        return not self.processor.counts_places and self.prefill_again_beyond is None

    def encode_images(self, run: RunPart, image_inputs: ImageInputs) -> Features:
        """Return picture features; iterating gives those of each tile, slice or picture."""

        def encode(pixel_values: Tensor) -> Tensor:
            inputs = image_inputs | {"pixel_values": pixel_values}
            return run(IMAGE_ENCODER, inputs)["last_hidden_state"]

        return in_calls(encode, image_inputs["pixel_values"])

    def prepare(
        self,
        input_ids: Tensor,
        embed_tokens: Callable[[Tensor], Tensor],
        features: Features | None = None,
        *,
        past: int = 0,
    ) -> dict[str, Any]:
        """Return what the language model takes for a prompt (1, length) with picture features.

        The first `past` positions are in its cache, so their embeddings are left zero. What it
        takes beside embeddings is under "pictures".
        """
        rows = None
        if merged := self.merged_features(features):
            cached = int(self.processor.picture_positions(input_ids[:, :past]).sum())
            rows = torch.cat(merged)[cached:]
        new_features = None if rows is None or not len(rows) else [rows]
        new = self.processor.embed(input_ids[:, past:], embed_tokens, new_features)
        mask = torch.ones(input_ids.shape, dtype=torch.int64)
        prepared = {
            "inputs_embeds": nn.functional.pad(new, (0, 0, past, 0)),
            "attention_mask": mask,
            "position_ids": mask.cumsum(1) - 1,
        }
        pictures = self.picture_inputs(input_ids, features)
        return prepared if pictures is None else prepared | {"pictures": pictures}

    def merged_features(self, features: Features | None) -> list[Tensor]:
        """Return the features that take the places of a prompt's picture tokens."""
        return [] if features is None else list(features)

    def picture_inputs(self, input_ids: Tensor, features: Features | None) -> PictureInputs | None:
        """Return what a prompt (1, length) takes beside embeddings; in most families nothing."""
        return None


def pad_left(tensor: Tensor, length: int) -> Tensor:
    """Return (rows, any length, ...) with zeros in front, so that it has `length`."""
    # Paddings are given from the last dimension on.
    return nn.functional.pad(tensor, (0, 0) * (tensor.dim() - 2) + (length - tensor.shape[1], 0))


def collate(prompts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join prepared prompts of one row into a batch, the shorter ones padded on the left.

    What has no row for each of its prompt's positions, as the states of a picture, must have the
    same size in all prompts.
    """
    lengths = [prompt["attention_mask"].shape[1] for prompt in prompts]
    batch: dict[str, Any] = {}
    for name, first in prompts[0].items():
        values = [prompt[name] for prompt in prompts]
        if isinstance(first, PictureInputs):
            batch[name] = type(first).joined(values, max(lengths))
        elif name == "position_ids" and first.dim() == 3:  # (dimensions, 1, length)
            rows = [pad_left(value.permute(1, 2, 0), max(lengths)) for value in values]
            batch[name] = torch.cat(rows).permute(2, 0, 1)
        elif [value.shape[1] for value in values] == lengths:
            batch[name] = torch.cat([pad_left(value, max(lengths)) for value in values])
        else:
            batch[name] = torch.cat(values)
    return batch
