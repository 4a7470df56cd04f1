"""Random checkpoints of Gemma 4 in their published layout, and transformers' own model of them."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma4Config, Gemma4ForConditionalGeneration, PreTrainedModel

from helpers.models.gemma4.originals import TOKENIZER, constant_of, token_ids
from tests.random_models import write_model


@dataclass(frozen=True)
class Dimensions:
    """What is drawn of a checkpoint: sizes of both models, and which layers are of which kind."""

    vision_layers: int
    vision_heads: int
    vision_head_size: int
    is_standardised: bool
    is_clipped: bool
    layer_types: tuple[str, ...]
    sharing: int
    heads: int
    groups: int
    head_size: int
    full_head_size: int
    window: int
    per_layer: int
    is_double: bool

    @classmethod
    def drawn(cls, seed: int) -> "Dimensions":
        """Return other dimensions for each seed.

        Those of 1 have one sharing layer of a kind, those of 2 none that share, and three heads
        with keys and values.
        """
        generator = random.Random(seed)
        sliding, full = "sliding_attention", "full_attention"
        owners = [sliding, full] * generator.randint(1, 2) + [sliding] * generator.randint(0, 1)
        sharing = ([sliding, full, sliding, sliding, full], [sliding, full], [])[seed % 3]
        groups = 3 if seed % 3 == 2 else generator.choice((1, 2))
        head_size = generator.choice((16, 32))
        return cls(
            vision_layers=generator.randint(2, 3),
            vision_heads=generator.choice((2, 3)),
            vision_head_size=generator.choice((8, 16)),
            is_standardised=bool(seed % 2),
            is_clipped=bool(seed % 3),
            layer_types=(*owners, *(sharing or [full])),
            sharing=len(sharing),
            heads=groups * generator.choice((2, 4)),
            groups=groups,
            head_size=head_size,
            full_head_size=2 * head_size,
            window=generator.randint(5, 9),
            per_layer=generator.choice((8, 12)),
            is_double=bool(seed % 2),
        )


def config_of(dimensions: Dimensions, vocabulary: int) -> Gemma4Config:
    """Return transformers' config; the tables have a few rows more than there are tokens."""
    text = {
        "vocab_size": vocabulary + 6,
        "vocab_size_per_layer_input": vocabulary + 6,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": len(dimensions.layer_types),
        "layer_types": list(dimensions.layer_types),
        "num_kv_shared_layers": dimensions.sharing,
        "num_attention_heads": dimensions.heads,
        "num_key_value_heads": dimensions.groups,
        "head_dim": dimensions.head_size,
        "global_head_dim": dimensions.full_head_size,
        "sliding_window": dimensions.window,
        "hidden_size_per_layer_input": dimensions.per_layer,
        "use_double_wide_mlp": dimensions.is_double,
        "final_logit_softcapping": 3.0,
        "max_position_embeddings": 4096,
    }
    vision = {
        "num_hidden_layers": dimensions.vision_layers,
        "hidden_size": dimensions.vision_heads * dimensions.vision_head_size,
        "intermediate_size": 80,
        "num_attention_heads": dimensions.vision_heads,
        "num_key_value_heads": dimensions.vision_heads,
        "head_dim": dimensions.vision_head_size,
        "patch_size": 4,
        "position_embedding_size": 400,
        "standardize": dimensions.is_standardised,
        "use_clipped_linears": dimensions.is_clipped,
    }
    return Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None, **token_ids(vocabulary)
    )


def write_random(folder: Path, seed: int, **changes: Any) -> Any:
    """Write a random checkpoint into `folder` and return transformers' model of it.

    `changes` are other dimensions than those drawn.
    """
    dimensions = Dimensions(**(vars(Dimensions.drawn(seed)) | changes))

    def new_model(vocabulary: int) -> PreTrainedModel:
        model = Gemma4ForConditionalGeneration(config_of(dimensions, vocabulary))
        for name, tensor in model.state_dict().items():
            fill(name, tensor)
        return model

    return write_model(folder, seed, TOKENIZER, new_model)


def fill(name: str, tensor: torch.Tensor) -> None:
    """Fill a tensor with random numbers: bounds that cut some values, norms around one."""
    if name.endswith(("_min", "_max")):
        tensor.copy_(torch.empty(()).uniform_(1, 3) * (-1 if name.endswith("_min") else 1))
    elif name.endswith("layer_scalar"):
        tensor.uniform_(0.7, 1.2)
    elif name.endswith("std_scale"):
        tensor.normal_(0.3, 0.05)
    elif tensor.dim() > 1 or name.endswith("std_bias"):
        tensor.normal_(std=0.1)
    else:
        tensor.normal_(constant_of(name, tuple(tensor.shape)) or 1, 0.1)
