"""MiniCPM-V-2: slices of any shape, SigLIP, a resampler, and MiniCPM-2.4B as Granite.

Source of the layout: the authors' `configuration_minicpm.py`, `modeling_minicpmv.py` and
`resampler.py` (OpenBMB); the numbers come from a checkpoint's `config.json`.

What this module does not know: MiniCPM-V-2.5 and later, which share the model type but have other
tensors.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
)

from helpers.errors import CheckpointError
from helpers.graphs.part_names import IMAGE_ENCODER
from helpers.graphs.parts import Part
from helpers.inputs.prompts import IMAGE, Template
from helpers.models.base import VisionLanguageModel
from helpers.models.budgets import PicturePieces
from helpers.models.embeddings import ScaledEmbedding
from helpers.models.exported import ExportedParts, ImageInputs, RunPart
from helpers.models.families import Family, Original, SmallTokenizer
from helpers.models.internlm2_tokenizer import SPACE
from helpers.models.minicpm_v2_vision import (
    RESAMPLER_RULES,
    VISION_RULES,
    ImageEncoder,
    bicubic_weights,
    vision_config,
)
from helpers.models.processors import Processor, Runtime
from helpers.models.slices import Slicing, by_size, normalised, slice_picture
from helpers.sources.checkpoints import Config
from helpers.sources.key_mapping import Rule
from helpers.upstream.transformers import new_config, set_bos

__all__ = [
    "FAMILY",
    "MARKS",
    "MiniCPMV2",
    "MiniCPMV2Exported",
    "MiniCPMV2Processor",
    "bicubic_weights",
    "text_config",
    "vision_config",
]

_OF_LATER_MODELS = "slice_config"  # in configs of 2.5, 2.6, 4.0 and 4.5, of the same model type
_SINCE_2 = "patch_size"  # and what else says how pictures are cut into slices
# The token of each mark around pictures, the field that holds its id, and the id if none does:
# the defaults of the authors' MiniCPMVConfig.
MARKS = {
    "<unk>": ("unk_token_id", 0),
    "<image>": ("im_start_token_id", 101),
    "</image>": ("im_end_token_id", 102),
    "<slice>": ("slice_start_token_id", 111),
    "</slice>": ("slice_end_token_id", 112),
}


class MiniCPMV2Exported(ExportedParts):
    """The exported parts: the image encoder takes pieces of one size at a time."""

    def encode_images(self, run: RunPart, image_inputs: ImageInputs) -> list[Tensor]:
        """Return (queries, hidden) for each overview and slice."""

        def encode(pixel_values: Tensor) -> Tensor:
            return run(IMAGE_ENCODER, {"pixel_values": pixel_values})["last_hidden_state"]

        return by_size(encode, image_inputs["pixel_values"])


class MiniCPMV2Processor(Processor):
    """An overview and slices of each picture, and MiniCPM-V-2's prompts."""

    exported_class = MiniCPMV2Exported

    def __init__(self, folder: Path, config: Config) -> None:
        super().__init__(folder, config)
        if _OF_LATER_MODELS in config:
            raise CheckpointError(
                f"{folder} holds MiniCPM-V {config.get('version', 'later than 2')}, whose parts "
                "are others; take openbmb/MiniCPM-V-2 or openbmb/MiniCPM-V-4.6."
            )
        if _SINCE_2 not in config:
            raise CheckpointError(
                f"{folder} holds a model before MiniCPM-V 2 ({_SINCE_2} is missing in config.json),"
                " which is not read here; take openbmb/MiniCPM-V-2."
            )

    def load_tokenizer(self) -> PreTrainedTokenizerFast | LlamaTokenizer:
        """Return Llama's tokenizer, as the authors have it, made to put BOS in front.

        Also where `tokenizer.json` has sentencepiece's tokens: what `AutoTokenizer` saves there for
        this model type begins no text with a space. Text after a mark gets one, too (`legacy`).
        """
        tokenizer: PreTrainedTokenizerFast | LlamaTokenizer
        tokenizer = LlamaTokenizer.from_pretrained(self.folder, legacy=True)
        if SPACE not in tokenizer.get_vocab() and (self.folder / "tokenizer.json").exists():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(self.folder)
        for token in MARKS:
            actual, expected = tokenizer.convert_tokens_to_ids(token), self.mark_id(token)
            if actual != expected:
                raise CheckpointError(
                    f"The tokenizer in {self.folder} has {token} at {actual}, but the model "
                    f"expects it at {expected}; take the tokenizer files of the same checkpoint."
                )
        tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(self.config["bos_token_id"])
        set_bos(tokenizer, added=True)  # not every copy of tokenizer.json asks for it
        return tokenizer

    def mark_id(self, token: str) -> int:
        """Return the id of one of the `MARKS`."""
        field, default = MARKS[token]
        return cast(int, self.config.get(field, default))

    @property
    def template(self) -> Template:
        """The words of the authors' `chat()`: `<用户>` is "user"; there is no system message."""
        return Template("", "<用户>", "", "<AI>", "", images=IMAGE + "\n")

    @property
    def image_token_id(self) -> int:
        """The id of `<unk>`, which fills the places of a slice's features."""
        return self.mark_id("<unk>")

    @property
    def runtime(self) -> Runtime:
        """Why others do not load it."""
        return Runtime("OpenVINO GenAI knows later models of this name, with other numbers")

    @property
    def context_length(self) -> int:
        """How many tokens a conversation may have, pictures included."""
        return cast(int, self.config["max_position_embeddings"])

    @property
    def stop_token_ids(self) -> list[int]:
        """The end of a text, and what else the folder's files have."""
        return sorted({self.config["eos_token_id"], *self.files_stop_token_ids})

    @property
    def pieces(self) -> PicturePieces:
        """Slices, before which comes an overview."""
        most = self.config["max_slice_nums"] if self.config["slice_mode"] else 1
        return PicturePieces("slice", self.config["query_num"], most, overview=True)

    @property
    def slicing(self) -> Slicing:
        """How pictures are cut."""
        slices = self.pieces.within(self.picture_tokens)
        return Slicing(self.config["scale_resolution"], self.config["patch_size"], slices)

    def pixels(self, pictures: list[Image.Image]) -> ImageInputs:
        """Return `pixel_values`, a list of (1, 3, height, width), and `grids` (pictures, 2).

        Of each picture the overview comes first, then the slices row by row; its grid is
        (columns, rows), or (0, 0) if it is not cut.
        """
        cuts = [slice_picture(picture, self.slicing) for picture in pictures]
        return {
            "pixel_values": [normalised(piece) for pieces, _ in cuts for piece in pieces],
            "grids": torch.tensor([grid or (0, 0) for _, grid in cuts]).reshape(-1, 2),
        }

    def image_strings(self, image_inputs: ImageInputs) -> list[str]:
        """Return for each picture its overview's places, and its slices' row by row."""
        return [self.placeholder(*grid) for grid in image_inputs["grids"].tolist()]

    def placeholder(self, columns: int, rows: int) -> str:
        """Return the tokens of one picture that is cut into `columns` x `rows` slices, or none."""
        piece = "<image>" + "<unk>" * cast(int, self.config["query_num"]) + "</image>"
        if not columns:
            return piece
        return piece + "<slice>" + "\n".join([piece * columns] * rows) + "</slice>"

    def picture_positions(self, input_ids: Tensor) -> Tensor:
        """Return which positions are between `<image>` and `</image>`."""
        opening = input_ids == self.mark_id("<image>")
        closing = input_ids == self.mark_id("</image>")
        inside = opening.cumsum(-1) > closing.cumsum(-1)
        return inside & ~opening

    @property
    def picture_token_ids(self) -> set[int]:
        """The ids of `<image>` and `</image>`."""
        return {self.mark_id("<image>"), self.mark_id("</image>")}


class MiniCPMV2(VisionLanguageModel[MiniCPMV2Processor]):
    """SigLIP, a resampler, and MiniCPM-2.4B."""

    processor_class = MiniCPMV2Processor
    image_encoder: ImageEncoder

    def build(self, config: Config) -> None:
        """Create the image encoder with its resampler, and the language model."""
        self.image_encoder = ImageEncoder(config)
        self.language_model = GraniteForCausalLM(text_config(config))
        table = self.token_embeddings
        # Granite's own multiplier would scale the rows of picture features as well.
        scaled = ScaledEmbedding(
            table.num_embeddings, table.embedding_dim, float(config["scale_emb"])
        )
        self.language_model.set_input_embeddings(scaled)

    def rules(self) -> list[Rule]:
        """Return the names of SigLIP (as timm has it), the resampler and the language model."""
        return [*VISION_RULES, *RESAMPLER_RULES, Rule("llm.{x}", "language_model.{x}")]

    def encode_images(
        self, pixel_values: Sequence[Tensor] | Tensor, grids: Tensor | None = None
    ) -> list[Tensor]:
        """Return (queries, hidden) for each overview and slice; `grids` is for the prompt only."""
        pieces = [pixel_values] if isinstance(pixel_values, Tensor) else pixel_values
        return by_size(self.image_encoder, pieces)

    def image_encoder_part(self) -> Part:
        """Return SigLIP and the resampler: slices of any one size."""
        patch = self.config["patch_size"]
        return Part(
            IMAGE_ENCODER,
            self.image_encoder,
            {"pixel_values": torch.zeros(2, 3, 4 * patch, 5 * patch)},
            outputs=("last_hidden_state",),
            fixed={"pixel_values": (1,)},
        )


# Configs and names


def text_config(config: Config) -> GraniteConfig:
    """Return MiniCPM-2.4B's configuration: a Llama whose scales are those of muP, as Granite has.

    The embeddings' scale is left to `ScaledEmbedding`, since picture features are not scaled.
    """
    head_size = config["hidden_size"] // config["num_attention_heads"]
    return new_config(
        GraniteConfig,
        **{name: config[name] for name in _TEXT_FIELDS if name in config},
        residual_multiplier=config["scale_depth"] / config["num_hidden_layers"] ** 0.5,
        logits_scaling=config["hidden_size"] / config["dim_model_base"],
        attention_multiplier=head_size**-0.5,
        embedding_multiplier=1.0,
    )


_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)

# The families' register

# Marks of pictures from id 3 on, as a small tokenizer has them, then those of turns.
_IMAGE_MARKS = tuple(token for token in MARKS if token != "<unk>")
_TOKENIZER = SmallTokenizer("llama", marks=(*_IMAGE_MARKS, "<用户>", "<AI>"))
FAMILY = Family(
    name="minicpm-v-2",
    model_type="minicpmv",
    model=MiniCPMV2,
    bundled="minicpm_v2",
    tokenizer=_TOKENIZER,
    originals=(
        Original(
            "minicpm-v-2",
            "openbmb/MiniCPM-V-2",
            "MiniCPM Model License: free for academic research, commercial use after registration",
            3.43,
            _TOKENIZER,
            token_ids=lambda size: {
                MARKS[token][0]: place for place, token in enumerate(_IMAGE_MARKS, 3)
            },
        ),
    ),
)
