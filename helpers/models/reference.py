"""Transformers' own class for a checkpoint: what ours is measured against, where there is one.

What this module does not know: any family. What such a class takes, a processor says
(`transformers_inputs`); what its configuration needs, a model (`reference_config`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from helpers.errors import CheckpointError
from helpers.models.exported import Features
from helpers.models.families import family_of
from helpers.sources.checkpoints import read_config


def reference_class(folder: Path) -> str:
    """Return the name of transformers' own class for a checkpoint; "" where it has none."""
    model_type = read_config(folder).get("model_type")
    return str(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(str(model_type), ""))


def load_reference(folder: Path, dtype: torch.dtype | None) -> PreTrainedModel:
    """Return transformers' own model of a checkpoint that has a `reference_class`.

    `dtype` None is the files' own. No code of the checkpoint is run. Raises `CheckpointError` where
    that class knows the tensors by other names, as those of a wrapper that are read here.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model, loading = cast(Any, AutoModelForImageTextToText).from_pretrained(
        folder,
        config=family_of(folder).model.reference_config(config),
        dtype=dtype or "auto",
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    if loading["missing_keys"] and loading["unexpected_keys"]:
        name = min(loading["unexpected_keys"])
        raise CheckpointError(
            f"Transformers does not know the tensor {name} of {folder}, so there is nothing to "
            "compare with; save the model again with the names of its original."
        )
    return cast(PreTrainedModel, model.eval())


@contextmanager
def recorded_features(model: PreTrainedModel) -> Iterator[list[Features]]:
    """Give what a model makes of pictures while it answers; nothing where it has no call for them.

    So its image encoder need not run once more.
    """
    owner: Any = model.base_model
    features: list[Features] = []
    if not hasattr(owner, "get_image_features"):
        yield features
        return

    call = owner.get_image_features

    @wraps(call)  # `generate` looks at what it takes
    def recording(*arguments: Any, **options: Any) -> Any:
        output = call(*arguments, **options)
        features.append(output.pooler_output)
        return output

    owner.get_image_features = recording
    try:
        yield features
    finally:
        del owner.get_image_features


def feature_rows(features: Features) -> Tensor | None:
    """Return features of tiles, slices or pictures one below another, (tokens, hidden).

    None where they are something else, such as keys and values.
    """
    rows = [piece for piece in features if isinstance(piece, Tensor)]
    return torch.cat([piece.flatten(0, -2) for piece in rows]).float() if rows else None
