"""Random checkpoints of Qwen3.5 in their published layout, and transformers' own model of them."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from helpers.models.qwen3_5.originals import TOKENIZER
from helpers.models.qwen_vision.originals import token_ids
from tests.random_models import filled, write_model
from tests.random_qwen3_vl import VisionDimensions


@dataclass(frozen=True)
class Dimensions(VisionDimensions):
    """What is drawn of a checkpoint: sizes of both models, and which layers are full attention."""

    layers: int
    interval: int  # of layers of full attention
    heads: int
    groups: int
    head_size: int
    sections: tuple[int, int, int]
    linear_keys: int
    linear_values: int
    linear_sizes: tuple[int, int]  # of a head's keys and values
    activation: str
    tied: bool

    @classmethod
    def drawn(cls, seed: int) -> "Dimensions":
        """Return other dimensions for each seed."""
        generator = random.Random(seed)
        groups = generator.choice((1, 2))
        keys = generator.choice((1, 2))
        half = generator.choice((4, 6))  # of the numbers of a head that rotate
        down, across = (half // 3,) * 2
        return cls(
            vision_layers=generator.randint(2, 3),
            vision_heads=generator.choice((2, 4)),
            vision_head_size=generator.choice((8, 16)),
            side=generator.randint(5, 13),
            theta=(10_000.0, 300.0)[seed % 2],
            layers=generator.randint(4, 6),
            interval=generator.choice((2, 3)),
            heads=2 * groups,
            groups=groups,
            head_size=8 * half,
            sections=(half - down - across, down, across),
            linear_keys=keys,
            linear_values=keys * (1 + seed % 2),
            linear_sizes=(16, 16),
            activation=("silu", "gelu")[seed % 2],
            tied=bool(seed % 2),
        )


HIDDEN = 64


def text_of(dimensions: Dimensions, vocabulary: int) -> dict[str, Any]:
    """Return the language model's config; its table has a few rows more than there are tokens."""
    return {
        "vocab_size": vocabulary + 5,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "hidden_act": dimensions.activation,
        "num_hidden_layers": dimensions.layers,
        "full_attention_interval": dimensions.interval,
        "num_attention_heads": dimensions.heads,
        "num_key_value_heads": dimensions.groups,
        "head_dim": dimensions.head_size,
        "linear_num_key_heads": dimensions.linear_keys,
        "linear_num_value_heads": dimensions.linear_values,
        "linear_key_head_dim": dimensions.linear_sizes[0],
        "linear_value_head_dim": dimensions.linear_sizes[1],
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "mrope_section": list(dimensions.sections),
            "mrope_interleaved": True,
        },
    }


def config_of(dimensions: Dimensions, vocabulary: int) -> Qwen3_5Config:
    """Return transformers' config."""
    return Qwen3_5Config(
        text_config=text_of(dimensions, vocabulary),
        vision_config=dimensions.vision_config(HIDDEN),
        tie_word_embeddings=dimensions.tied,
        **token_ids(vocabulary),
    )


def is_zero_centred(name: str) -> bool:
    """Return whether a norm adds its weights to one, as most of the language model do."""
    return "language_model" in name and "linear_attn.norm" not in name


def write_random(folder: Path, seed: int, *, dimensions: Dimensions | None = None) -> Any:
    """Write a random checkpoint into `folder` and return transformers' model of it."""

    def new_model(vocabulary: int) -> PreTrainedModel:
        config = config_of(dimensions or Dimensions.drawn(seed), vocabulary)
        return filled(Qwen3_5ForConditionalGeneration(config), is_zero_centred)

    return write_model(folder, seed, TOKENIZER, new_model, has_template=True)
