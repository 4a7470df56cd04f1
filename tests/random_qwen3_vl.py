"""Random checkpoints of Qwen3-VL in their published layout, and transformers' own model of them."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from helpers.models.qwen3_vl.originals import TOKENIZER
from helpers.models.qwen_vision.originals import token_ids
from tests.random_models import filled, write_model


@dataclass(frozen=True)
class VisionDimensions:
    """What is drawn of an image encoder, which Qwen3.5 has too."""

    vision_layers: int
    vision_heads: int
    vision_head_size: int
    side: int  # of the table of positions
    theta: float  # of the rotations

    def vision_config(self, hidden: int) -> dict[str, Any]:
        """Return its config; `hidden` is the language model's width."""
        return {
            "depth": self.vision_layers,
            "hidden_size": self.vision_heads * self.vision_head_size,
            "intermediate_size": 80,
            "num_heads": self.vision_heads,
            "out_hidden_size": hidden,
            "num_position_embeddings": self.side**2,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.theta},
        }


@dataclass(frozen=True)
class Dimensions(VisionDimensions):
    """What is drawn of a checkpoint: sizes of both models, and which layers are tapped."""

    taps: tuple[int, ...]
    layers: int
    heads: int
    groups: int
    head_size: int
    sections: tuple[int, int, int]
    tied: bool

    @classmethod
    def drawn(cls, seed: int) -> "Dimensions":
        """Return other dimensions for each seed."""
        generator = random.Random(seed)
        depth = generator.randint(3, 5)
        layers = generator.randint(3, 5)
        groups = generator.choice((1, 2))
        half = generator.choice((16, 24))
        down, across = (half // 3,) * 2
        return cls(
            vision_layers=depth,
            vision_heads=generator.choice((2, 4)),
            vision_head_size=generator.choice((8, 16)),
            taps=tuple(sorted(generator.sample(range(depth), 3))),
            side=generator.randint(5, 13),
            theta=(10_000.0, 300.0)[seed % 2],
            layers=layers,
            heads=2 * groups,
            groups=groups,
            head_size=2 * half,
            sections=(half - down - across, down, across),
            tied=bool(seed % 2),
        )


def config_of(dimensions: Dimensions, vocabulary: int, hidden: int = 64) -> Qwen3VLConfig:
    """Return transformers' config; the table of tokens has a few rows more than tokens."""
    text = {
        "vocab_size": vocabulary + 5,
        "hidden_size": hidden,
        "intermediate_size": hidden * 3 // 2,
        "num_hidden_layers": dimensions.layers,
        "num_attention_heads": dimensions.heads,
        "num_key_value_heads": dimensions.groups,
        "head_dim": dimensions.head_size,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": list(dimensions.sections),
            "mrope_interleaved": True,
        },
    }
    taps = {"deepstack_visual_indexes": list(dimensions.taps)}
    return Qwen3VLConfig(
        text_config=text,
        vision_config=dimensions.vision_config(hidden) | taps,
        tie_word_embeddings=dimensions.tied,
        **token_ids(vocabulary),
    )


def write_random(
    folder: Path, seed: int, dimensions: Dimensions | None = None, hidden: int = 64
) -> Any:
    """Write a random checkpoint into `folder` and return transformers' model of it."""
    dimensions = dimensions or Dimensions.drawn(seed)

    def new_model(vocabulary: int) -> PreTrainedModel:
        return filled(Qwen3VLForConditionalGeneration(config_of(dimensions, vocabulary, hidden)))

    return write_model(folder, seed, TOKENIZER, new_model)
