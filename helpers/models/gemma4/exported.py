"""Gemma 4 as it is exported: what its parts take beside those of most families."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from torch import Tensor

from helpers.graphs.part_names import (
    FILES_WITH_PER_LAYER_EMBEDDINGS,
    IMAGE_ENCODER,
    PER_LAYER_EMBEDDINGS,
)
from helpers.graphs.shared_keys import separate_shared_keys
from helpers.models.exported import ExportedParts, Features, ImageInputs, RunPart

if TYPE_CHECKING:
    import openvino as ov

    from helpers.models.gemma4.processor import Gemma4Processor


SLIDING, FULL = "sliding_attention", "full_attention"  # the kinds of layers in the config


class Gemma4Exported(ExportedParts):
    """The exported parts, of which one looks up what each layer gets of a token."""

    processor: "Gemma4Processor"
    files = FILES_WITH_PER_LAYER_EMBEDDINGS
    token_parts: Mapping[str, str] = {
        **ExportedParts.token_parts,
        PER_LAYER_EMBEDDINGS: "per_layer_inputs",
    }

    def adapt(self, language_model: "ov.Model") -> None:
        """Give the layers that share keys and values copies that are theirs alone."""
        super().adapt(language_model)
        text = self.processor.text
        kinds = cast(list[str], text.layer_types)
        separate_shared_keys(
            language_model,
            lambda layer: text.sliding_window if kinds[layer] == SLIDING else None,
        )

    def token_counts(self, image_position_ids: Tensor) -> list[int]:
        """Return how many tokens each picture has, of positions (pictures, patches, 2)."""
        patches = (image_position_ids != -1).all(-1).sum(-1)
        counts: list[int] = (patches // self.processor.vision.pooling_kernel_size**2).tolist()
        return counts

    def encode_images(self, run: RunPart, image_inputs: ImageInputs) -> Features:
        """Return the features (tokens, hidden) of each picture."""
        rows = run(IMAGE_ENCODER, image_inputs)["last_hidden_state"]
        counts = self.token_counts(image_inputs["image_position_ids"])
        return [picture[:count] for picture, count in zip(rows, counts, strict=True)]
