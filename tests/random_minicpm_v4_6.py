"""Random checkpoints of MiniCPM-V 4.6 in their published layout, and transformers' own model."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration, PreTrainedModel

from helpers.models.minicpm_v4_6.originals import TOKENIZER, token_ids
from helpers.sources.checkpoints import write_json
from tests import random_qwen3_5
from tests.random_models import filled, write_model

PREPARATION = {"scale_resolution": 168, "max_slice_nums": 5, "use_image_id": True}


@dataclass(frozen=True)
class Dimensions:
    """What is drawn of a checkpoint beside the language model, which is drawn as Qwen3.5's."""

    layers: int
    merged_after: int
    heads: int
    head_size: int
    side: int  # of the table of positions

    @classmethod
    def drawn(cls, seed: int) -> "Dimensions":
        """Return other dimensions for each seed; the merge is behind the first layer, or later."""
        generator = random.Random(seed)
        layers = generator.randint(2, 4)
        return cls(
            layers=layers,
            merged_after=generator.randint(0, layers - 1),
            heads=generator.choice((2, 4)),
            head_size=generator.choice((8, 16)),
            side=generator.randint(5, 13),
        )


def config_of(seed: int, vocabulary: int) -> MiniCPMV4_6Config:
    """Return transformers' config."""
    dimensions, language = Dimensions.drawn(seed), random_qwen3_5.Dimensions.drawn(seed)
    vision = {
        "num_hidden_layers": dimensions.layers,
        "hidden_size": dimensions.heads * dimensions.head_size,
        "intermediate_size": 40,
        "num_attention_heads": dimensions.heads,
        "image_size": 14 * dimensions.side,
        "patch_size": 14,
    }
    return MiniCPMV4_6Config(
        text_config={"model_type": "qwen3_5_text"} | random_qwen3_5.text_of(language, vocabulary),
        vision_config=vision,
        insert_layer_id=dimensions.merged_after,
        tie_word_embeddings=language.tied,
        **token_ids(vocabulary),
    )


def write_random(folder: Path, seed: int) -> Any:
    """Write a random checkpoint into `folder` and return transformers' model of it."""

    def new_model(vocabulary: int) -> PreTrainedModel:
        model = MiniCPMV4_6ForConditionalGeneration(config_of(seed, vocabulary))
        return filled(model, random_qwen3_5.is_zero_centred)

    write_json(folder / "preprocessor_config.json", PREPARATION)
    return write_model(folder, seed, TOKENIZER, new_model, has_template=True)
