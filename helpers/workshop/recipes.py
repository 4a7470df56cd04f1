"""What is trained: for each family how its small model learns, and what it begins with.

The small model's config stands in its checkpoint's folder, in the authors' layout. Widths there are
multiples of 128, the usual group size of INT4 weights.
"""

import copy
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.graphs.presets import PRESETS, Weights
from helpers.models import mobilevlm
from helpers.models.families import Family, families
from helpers.shapes import tokenizers
from helpers.shapes.questions import BOX_KINDS, KINDS
from helpers.sources.checkpoints import BUNDLED, Config, read_json, write_json
from helpers.workshop import beginnings, gemma_beginnings, qwen_beginnings
from helpers.workshop.beginnings import Beginning, Tensors
from helpers.workshop.stages import (
    AT_OWN_SIZE,
    FROM_A_LANGUAGE_MODEL,
    FROM_AN_ENCODER,
    FROM_NOTHING,
    FROM_PARTS,
    Stage,
)

# Pictures in a batch of each sort: the work goes with tiles and questions.
BATCHES = {"name": 64, "word": 32, "strip": 32, "small": 16, "large": 16, "wide": 16, "clip": 16}


@dataclass(frozen=True)
class Recipe:
    """How the small model of one family is trained, and its INT4.

    Weights are written as `shards` files. Words are learned in pictures of `word_grids`. Where the
    image encoder sees tiles as one picture, small pictures are drawn at several `scales`.
    Pictures that are no square get one of the `budgets` of tokens, where there are some. What is to
    be named is told at `points` a side of a picture: where letters are no wider than a token, at as
    many as there are tokens.
    `instruction` is what the authors' training put behind questions that a word answers. Training
    begins with parts of the bundled models of the families in `begins_with`, each with what becomes
    of them here, and with `first_tensors` of the new model's config. It has `stages`, in which the
    model learns `kinds` of question, and `clips` too, in conversations of at most so many `turns`.
    `int4` is how its notebook stores the language model in 4 bits.
    """

    bundled: str
    shards: int = 1
    word_grids: tuple[tuple[int, int], ...] = ((1, 1),)
    scales: tuple[int, ...] = (1,)
    budgets: tuple[int, ...] = ()
    points: int = 12
    instruction: str = ""
    begins_with: dict[str, Beginning] = field(default_factory=dict)
    first_tensors: Callable[[Config], Tensors] = beginnings.none
    stages: tuple[Stage, ...] = FROM_NOTHING
    kinds: tuple[str, ...] = tuple(KINDS)
    clips: bool = False
    turns: int = 10
    steps: int = 8000
    batches: dict[str, int] = field(default_factory=lambda: BATCHES)
    learning_rate: float = 1.2e-3
    int4: Weights = PRESETS["int4"].language_model

    @property
    def gives_boxes(self) -> bool:
        """Whether the model learns to give boxes."""
        return any(kind in BOX_KINDS for kind in self.kinds)

    @property
    def family(self) -> Family:
        """The entry of the family."""
        return next(family for family in families() if family.bundled == self.bundled)

    @property
    def config(self) -> dict[str, Any]:
        """The small model's config."""
        return read_json(BUNDLED / self.bundled / "config.json")

    def write_files(
        self, folder: Path, texts: Iterable[str], config: dict[str, Any] | None = None
    ) -> None:
        """Write the tokenizer's files and the configs into `folder`.

        `config` is the recipe's own unless given; the number of tokens in it is set here.
        """
        folder.mkdir(parents=True, exist_ok=True)
        config = copy.deepcopy(config or self.config)
        tokenizer = self.family.tokenizer
        assert tokenizer is not None  # every family with a recipe says how one is trained
        texts = [*texts, *tokenizer.words * 100, *[self.instruction] * 100]
        size = tokenizers.TRAINERS[tokenizer.kind](texts, folder, tokenizer.marks)
        for *keys, name in self.family.vocabulary:
            section = config
            for key in keys:
                section = section[key]
            section[name] = size
        config |= self.family.token_ids(size)
        write_json(folder / "config.json", config)
        if tokenizer.chat_template:
            (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
        for path in (BUNDLED / self.bundled).glob("*preprocessor_config.json"):
            shutil.copy(path, folder)
        for path in (BUNDLED / self.bundled).glob("*/config.json"):  # an image encoder's own
            (folder / path.parent.name).mkdir(exist_ok=True)
            write_json(folder / path.parent.name / "config.json", read_json(path))


CLIP_WORD_GRIDS = ((1, 1), (1, 1), (2, 2))  # CLIP reads a whole picture in one tile
MIXED = Weights("int4-asym", group_size=128, ratio=0.8)
RECIPES = {
    recipe.bundled: recipe
    for recipe in (
        Recipe("internvl2"),
        Recipe("llava_mpt", shards=2, word_grids=CLIP_WORD_GRIDS, int4=MIXED),
        Recipe(
            "mobilevlm",
            word_grids=CLIP_WORD_GRIDS,
            instruction=mobilevlm.SHORT_ANSWER,
            begins_with={"llava_mpt": beginnings.clip, "internvl2": beginnings.qwen2_as_llama},
            stages=FROM_PARTS,
            steps=6000,
            learning_rate=8e-4,
            int4=MIXED,
        ),
        Recipe(
            "minicpm_v2",
            begins_with={"internvl2": beginnings.internvl2_as_minicpm},
            stages=FROM_PARTS,
            steps=6000,
            learning_rate=8e-4,
            int4=Weights("int4-sym", group_size=64, ratio=0.6),
        ),
        Recipe(
            "mllama",
            begins_with={
                "llava_mpt": beginnings.clip_as_mllama,
                "internvl2": beginnings.qwen2_as_mllama,
            },
            stages=FROM_PARTS,
            word_grids=((2, 2),),
            scales=(1, 2, 2, 2),
            steps=6300,
            batches=BATCHES | {"name": 16},  # a picture costs all its tiles, used or not
            learning_rate=8e-4,
            int4=Weights(
                "int4-asym",
                group_size=64,
                all_layers=True,
                awq=True,
                scale_estimation=True,
                sensitivity="max_activation_variance",
                samples=24,
            ),
        ),
        Recipe(
            "qwen3_vl",
            scales=(1, 1, 2),
            word_grids=((2, 2),),
            first_tensors=qwen_beginnings.qwen3_vl_places,
            batches=BATCHES | {"word": 24, "strip": 24, "large": 14, "largest": 6, "wide": 14},
            stages=AT_OWN_SIZE,
            kinds=(*KINDS, *BOX_KINDS),
            clips=True,
            steps=13_500,
            learning_rate=6e-4,
        ),
        Recipe(
            "qwen3_5",
            scales=(1, 1, 2),
            word_grids=((2, 2),),
            begins_with={"qwen3_vl": qwen_beginnings.qwen3_vl_as_qwen3_5},
            first_tensors=qwen_beginnings.qwen3_5_states,
            batches=BATCHES | {"word": 24, "strip": 20, "large": 10, "largest": 6, "wide": 10},
            stages=FROM_AN_ENCODER,
            turns=3,
            steps=8500,
            learning_rate=1e-3,
        ),
        Recipe(
            "gemma4",
            word_grids=((2, 2),),
            begins_with={
                "qwen3_vl": gemma_beginnings.qwen3_vl_as_gemma4,
                "internvl2": gemma_beginnings.internvl2_as_gemma4,
            },
            first_tensors=gemma_beginnings.gemma4_first,
            budgets=(70, 70, 70, 140),
            points=8,
            batches=BATCHES | {"name": 32, "word": 24, "strip": 20, "page": 6, "large": 12},
            stages=FROM_A_LANGUAGE_MODEL,
            steps=6000,
        ),
    )
}
