"""InternVL's processor and PyTorch modules."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLVisionConfig,
    InternVLVisionModel,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector

from helpers.errors import CheckpointError
from helpers.graphs.parts import Part, Traceable, part_of_one_size
from helpers.inputs.chat_templates import template_of
from helpers.inputs.images import open_picture
from helpers.inputs.prompts import Template
from helpers.inputs.video import Video
from helpers.models.base import VisionLanguageModel
from helpers.models.budgets import PicturePieces
from helpers.models.exported import ExportedParts, ImageInputs
from helpers.models.families import Family
from helpers.models.internvl2.architectures import ARCHITECTURES, Architecture, internlm2_rules
from helpers.models.internvl2.chats import CHATS
from helpers.models.internvl2.layouts import (
    HF_MODEL_TYPE,
    HF_RULES,
    VISION_RULES,
    original_config,
    refuse_variants,
)
from helpers.models.internvl2.originals import IMAGE_MARKS, ORIGINALS, QWEN2_TOKENIZER
from helpers.models.longrope import length_of_short_frequencies
from helpers.models.processors import Processor, Runtime
from helpers.sources.checkpoints import Config, check_choice, read_json
from helpers.sources.key_mapping import Rule

# transforms in the authors' dataset.py: the means and deviations of ImageNet
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class InternVL2Exported(ExportedParts):
    """The exported parts, of which Phi-3's cache may have to be computed anew."""

    processor: "InternVL2Processor"

    @property
    def prefill_again_beyond(self) -> int | None:
        """The length that Phi-3 was first trained with; longer ones rotate keys differently."""
        text = self.processor.text
        return length_of_short_frequencies(text) if isinstance(text, Phi3Config) else None


class InternVL2Processor(Processor):
    """Tiles of a fixed size with a thumbnail behind them, and InternVL2's prompts."""

    exported_class = InternVL2Exported
    most_pictures = None

    def __init__(self, folder: Path, config: Config) -> None:
        self.has_own_layout = config.get("model_type") != HF_MODEL_TYPE
        super().__init__(folder, original_config(folder, config))

    @cached_property
    def _files_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.with_chat_template(self.architecture.load_tokenizer(self.folder))

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the language model, its special tokens checked."""
        tokenizer = self._files_tokenizer
        vocabulary, rows = tokenizer.get_vocab(), self.config["llm_config"]["vocab_size"]
        for token in (*IMAGE_MARKS, self.template.assistant_end.strip()):
            if vocabulary.get(token, rows) >= rows:
                place = f"at {vocabulary[token]}" if token in vocabulary else "nowhere"
                raise CheckpointError(
                    f"The tokenizer in {self.folder} has {token} {place}, but the model needs it "
                    f"below {rows}; take the tokenizer files of the same checkpoint."
                )
        return tokenizer

    @property
    def architecture(self) -> Architecture:
        """What belongs to the language model that `config.json` names."""
        name = (self.config["llm_config"].get("architectures") or [None])[0]
        check_choice("language model", name, ARCHITECTURES)
        return ARCHITECTURES[name]

    @cached_property
    def text(self) -> PreTrainedConfig:
        """The language model's part of the config."""
        return self.architecture.make_config(self.config["llm_config"])

    @property
    def counts_places(self) -> bool:  # type: ignore[override]
        """Whether the language model counts masked places, as it does in a window."""
        types = getattr(self.text, "layer_types", None)  # which Phi-3, of one type, has not
        is_window = getattr(self.text, "sliding_window", None) is not None
        return is_window and (types is None or "sliding_attention" in types)

    @property
    def template(self) -> Template:
        """The template that `config.json` names, else the tokenizer's, else that of 2.5.

        `system_message` in `config.json` replaces the template's own words, as the authors do.
        """
        name = self.config.get("template")
        if name is None and self._files_tokenizer.chat_template is not None:
            return template_of(self._files_tokenizer, IMAGE_MARKS[2])
        name = "internvl2_5" if name is None else name
        check_choice("template", name, CHATS)
        return CHATS[name].template(self.config.get("system_message"))

    @property
    def runtime(self) -> Runtime:
        """How a tile is prepared; GenAI cuts up to 12 tiles, whatever the config says."""
        settings = {
            "size": {"shortest_edge": self.side},
            "crop_size": {"height": self.side, "width": self.side},
            **self._pixels,
        }
        return Runtime(image_text=IMAGE_MARKS[2], pictures=settings)

    @cached_property
    def image_token_id(self) -> int:
        """The id of `<IMG_CONTEXT>`."""
        added = self.folder / "added_tokens.json"
        if "image_token_id" in self.config:  # of transformers' layout
            return cast(int, self.config["image_token_id"])
        ids = read_json(added) if added.exists() else self.tokenizer.get_added_vocab()
        token = ids.get("<IMG_CONTEXT>")
        if not isinstance(token, int) or token >= self.config["llm_config"]["vocab_size"]:
            raise CheckpointError(
                f"The tokenizer in {self.folder} has no <IMG_CONTEXT> among the rows of the "
                "model's vocabulary; take the tokenizer files of the same checkpoint."
            )
        return token

    @property
    def context_length(self) -> int:
        """The context of the language model."""
        return cast(int, self.config["llm_config"]["max_position_embeddings"])

    @property
    def side(self) -> int:
        """The side of a tile in pixels."""
        side = self.config.get("force_image_size") or self.config["vision_config"]["image_size"]
        return cast(int, side)

    @property
    def tokens_per_tile(self) -> int:
        """How many rows of features the image encoder gives for one tile."""
        patches = self.side // self.config["vision_config"]["patch_size"]
        return int((patches * self.config["downsample_ratio"]) ** 2)

    @property
    def pieces(self) -> PicturePieces:
        """Tiles, behind which comes a thumbnail."""
        most = self.config["max_dynamic_patch"] if self.config["dynamic_image_size"] else 1
        return PicturePieces("tile", self.tokens_per_tile, most, overview=True)

    @property
    def _pixels(self) -> Config:
        """What becomes of pixels; the authors' code has it, whatever the folder's files say."""
        usual = {"image_mean": list(IMAGE_MEAN), "image_std": list(IMAGE_STD)}
        return usual | cast(Config, self.config.get("pixels", {}))

    @property
    def image_processor(self) -> GotOcr2ImageProcessorPil:
        """transformers' processor that cuts tiles as InternVL2's `dynamic_preprocess` does."""
        tiles = self.pieces.within(self.picture_tokens)
        return GotOcr2ImageProcessorPil(
            size={"height": self.side, "width": self.side},
            **self._pixels,
            crop_to_patches=self.config["dynamic_image_size"],
            min_patches=min(self.config["min_dynamic_patch"], tiles),
            max_patches=tiles,
        )

    def image_inputs(self, pictures: Sequence[Image.Image | str | Path | Video]) -> ImageInputs:
        """Return the inputs of pictures, and of a video's frames, which are one tile each."""
        if not any(isinstance(picture, Video) for picture in pictures):
            return super().image_inputs(pictures)
        inputs = [self._media_inputs(picture) for picture in pictures]
        return {name: torch.cat([part[name] for part in inputs]) for name in inputs[0]}

    def _media_inputs(self, picture: Image.Image | str | Path | Video) -> ImageInputs:
        if not isinstance(picture, Video):
            return super().image_inputs([picture])
        frames = [open_picture(frame) for frame in picture.frames]
        output = cast(Any, self.image_processor)(frames, crop_to_patches=False, return_tensors="pt")
        tiles = torch.ones(len(frames), dtype=torch.int64)
        return {"pixel_values": output["pixel_values"], "tiles": tiles}

    def pixels(self, pictures: list[Image.Image]) -> ImageInputs:
        """Return `pixel_values` (tiles, 3, side, side) and `tiles`, the number for each picture."""
        output = self.image_processor(pictures, return_tensors="pt")
        return {"pixel_values": output["pixel_values"], "tiles": output["num_patches"]}

    def transformers_inputs(self, input_ids: Tensor, image_inputs: ImageInputs) -> ImageInputs:
        """Return what transformers' own class takes, which does not count tiles."""
        inputs = super().transformers_inputs(input_ids, image_inputs)
        return {name: value for name, value in inputs.items() if name != "tiles"}

    def image_strings(self, image_inputs: ImageInputs) -> list[str]:
        """Return `<img>`, one `<IMG_CONTEXT>` for every row of features, and `</img>`."""
        rows = [int(tiles) * self.tokens_per_tile for tiles in image_inputs["tiles"]]
        return ["<img>" + "<IMG_CONTEXT>" * number + "</img>" for number in rows]


class InternVL2(VisionLanguageModel[InternVL2Processor]):
    """InternViT, pixel shuffle and MLP, and one of the `ARCHITECTURES` of language models."""

    processor_class = InternVL2Processor
    image_encoder: InternVLVisionModel
    projector: InternVLMultiModalProjector

    def build(self, config: Config) -> None:
        """Create the image encoder, the projector and the language model."""
        self.config = config = self.processor.config
        refuse_variants(config)
        vision = dict(config["vision_config"])
        vision_config = InternVLVisionConfig(
            **{name: vision[name] for name in _VISION_FIELDS if name in vision},
            attention_bias=vision["qkv_bias"],
            use_qk_norm=vision["qk_normalization"],
            layer_scale_init_value=vision.get("initializer_factor", 1.0),
        )
        text_config = self.processor.text
        self.downsample_ratio = config["downsample_ratio"]
        # First, since its config takes the choice of attention from the configs inside.
        self.projector = InternVLMultiModalProjector(
            InternVLConfig(
                vision_config=vision_config,
                text_config=text_config,
                downsample_ratio=self.downsample_ratio,
                projector_hidden_act=config.get("projector_hidden_act", "gelu"),
            )
        )
        self.image_encoder = InternVLVisionModel(vision_config)
        # Tiles always have the size that the model was trained on, so the position table is used
        # as it is; traced, transformers' own code would resize it at every call.
        embeddings: Any = self.image_encoder.embeddings
        embeddings.interpolate_pos_encoding = lambda *_: embeddings.position_embeddings
        self.language_model = self.processor.architecture.model_class(text_config)

    def rules(self) -> list[Rule]:
        """Return the names of the image encoder, the projector and the language model."""
        if not self.processor.has_own_layout:
            return HF_RULES
        name = self.config["llm_config"]["architectures"][0]
        if name == "InternLM2ForCausalLM":
            return VISION_RULES + internlm2_rules(cast(LlamaConfig, self.language_model.config))
        return [*VISION_RULES, Rule("language_model.{x}", "language_model.{x}")]

    def original_tensors(self, folder: Path) -> dict[str, Tensor]:
        """Return the checkpoint's tensors; a missing LM head is the embeddings, if config says so.

        A head that is there counts, whatever the config says, since it may have been trained apart.
        """
        tensors = super().original_tensors(folder)
        has_head = any(name.endswith(("lm_head.weight", ".output.weight")) for name in tensors)
        if not has_head and self.config["llm_config"].get("tie_word_embeddings"):
            self.language_model.config.tie_word_embeddings = True
        return tensors

    def encode_images(self, pixel_values: Tensor, tiles: Tensor | None = None) -> Tensor:
        """Return features (tiles, tokens, hidden): drop CLS, shuffle pixels, project."""
        patches = self.image_encoder(pixel_values).last_hidden_state[:, 1:]
        return cast(Tensor, self.projector(pixel_shuffle(patches, self.downsample_ratio)))

    def image_encoder_part(self) -> Part:
        """Return InternViT, pixel shuffle and MLP: any number of tiles of one fixed size."""
        side = cast(tuple[int, int], self.image_encoder.config.image_size)[0]
        module = Traceable(self.encode_images, self.image_encoder, self.projector)
        return part_of_one_size(module, side)


def pixel_shuffle(patches: Tensor, ratio: float) -> Tensor:
    """Join neighbouring patches: (tiles, n * n, width) to (tiles, (n * ratio)^2, width / ratio^2).

    With a ratio of a half, each block of 2 x 2 patches becomes one token whose features stand one
    behind the other, row by row. (InternVL2's `ps_version` "v2".)
    """
    # A tile's size is fixed, so these may become constants of a trace; the number of tiles may not.
    count, width = int(patches.shape[1]), int(patches.shape[2])
    block = round(1 / ratio)
    side = round(count**0.5) // block
    blocks = patches.reshape(-1, side, block, side, block, width)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, block * block * width)


# Configs and names

_VISION_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "image_size",
    "patch_size",
    "norm_type",
    "layer_norm_eps",
    "hidden_act",
    "use_mask_token",
    "use_absolute_position_embeddings",
    "use_mean_pooling",
)


# The families' register

FAMILY = Family(
    name="internvl2",
    model_type="internvl_chat",
    model=InternVL2,
    bundled="internvl2",
    tokenizer=QWEN2_TOKENIZER,
    vocabulary=(("llm_config", "vocab_size"),),
    other_model_types=(HF_MODEL_TYPE,),
    originals=ORIGINALS,
)
