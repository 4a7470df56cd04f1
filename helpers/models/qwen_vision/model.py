"""The PyTorch modules that these models share, an image encoder in the parts that are exported."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.errors import CheckpointError
from helpers.graphs.part_names import IMAGE_ENCODER, PATCH_EMBEDDINGS, POSITION_EMBEDDINGS
from helpers.graphs.parts import Part, Traceable
from helpers.graphs.tables import Table
from helpers.models.base import VisionLanguageModel
from helpers.models.embeddings import is_tied
from helpers.models.qwen_vision.encoder import EncoderLayers, ImageEncoder
from helpers.models.qwen_vision.exported import PictureTokens
from helpers.models.qwen_vision.places import Grid, single_frames
from helpers.models.qwen_vision.processor import QwenVisionProcessor
from helpers.sources.checkpoints import Config
from helpers.sources.key_mapping import Rule

P = TypeVar("P", bound=QwenVisionProcessor)


class QwenVisionLanguageModel(VisionLanguageModel[P]):
    """An image encoder for pictures of any size, and the language model that a family names."""

    prefix = "model."
    image_encoder: ImageEncoder

    @abstractmethod
    def new_image_encoder(self, vision: Any) -> ImageEncoder:
        """Return the image encoder that its part of the config describes."""

    @abstractmethod
    def new_language_model(self, text: Any) -> PreTrainedModel:
        """Return the language model that its part of the config describes."""

    def build(self, config: Config) -> None:
        """Create the image encoder and the language model."""
        settings, vision = self.processor.settings, self.processor.vision
        text = settings.text_config
        text.tie_word_embeddings = is_tied(settings)
        if vision.out_hidden_size != text.hidden_size:
            raise CheckpointError(
                f"out_hidden_size in config.json is {vision.out_hidden_size}, but the language "
                f"model's hidden_size is {text.hidden_size}; download config.json again."
            )
        self.image_encoder = self.new_image_encoder(vision)
        self.language_model = self.new_language_model(text)

    def rules(self) -> list[Rule]:
        """Return the hub's names, which are transformers' own."""
        return [
            Rule("model.visual.{x}", "image_encoder.{x}"),
            Rule("model.language_model.{x}", "language_model.model.{x}"),
            Rule("lm_head.{x}", "language_model.lm_head.{x}"),
        ]

    def encode_images(
        self, pixel_values: Tensor, image_grid_thw: Tensor, times: object = None
    ) -> list[PictureTokens]:
        """Return the features (tokens, hidden) of each picture, and of each step of a video.

        They carry their grid. `times` are for the prompt.
        """
        grids = single_frames(image_grid_thw)
        patches = sum(rows * columns for _, rows, columns in grids)
        if patches != len(pixel_values):
            raise CheckpointError(
                f"image_grid_thw counts {patches} patches, but pixel_values holds "
                f"{len(pixel_values)}; take both from one call."
            )
        output = self.image_encoder(pixel_values, grid_thw=image_grid_thw)
        merged = self.processor.vision.spatial_merge_size**2
        lengths = [rows * columns // merged for _, rows, columns in grids]
        return self.pictures(output, lengths, grids)

    def pictures(self, output: Any, lengths: list[int], grids: list[Grid]) -> list[PictureTokens]:
        """Return the features of pictures that have so many tokens, from the encoder's output."""
        features = torch.split(output.pooler_output, lengths)
        return [PictureTokens.of(*picture) for picture in zip(features, grids, strict=True)]

    # What is exported

    def parts(self) -> Iterator[Part | Table]:
        """Yield what is exported; three parts make the features of a picture."""
        yield self.patch_embeddings_part()
        yield self.position_embeddings_part()
        yield from super().parts()

    def patch_embeddings_part(self) -> Part:
        """Return what turns the pixels of patches into numbers for the image encoder."""
        embed = self.image_encoder.patch_embed
        values = embed.in_channels * embed.temporal_patch_size * embed.patch_size**2
        return Part(
            PATCH_EMBEDDINGS,
            Traceable(embed, embed),
            {"hidden_states": torch.zeros(6, values)},
            outputs=("embeddings",),
            fixed={"hidden_states": (1,)},
        )

    def position_embeddings_part(self) -> Part:
        """Return the table of learned positions."""
        table = self.image_encoder.pos_embed
        return Part(
            POSITION_EMBEDDINGS,
            Traceable(table, table),
            {"input": torch.zeros(4, 6, dtype=torch.int64)},
            outputs=("embeddings",),
            fixed={"input": (0,)},
        )

    def image_encoder_part(self) -> Part:
        """Return the image encoder's layers with the merger and those of DeepStack.

        `attention_mask` (1, 1 or patches, patches) is added to the scores of all heads.
        """
        vision, layers = self.processor.vision, EncoderLayers(self.image_encoder)
        patches = 3 * vision.spatial_merge_size**2
        angles = vision.hidden_size // vision.num_heads // 2
        return Part(
            IMAGE_ENCODER,
            layers,
            {
                "hidden_states": torch.zeros(patches, vision.hidden_size),
                "attention_mask": torch.zeros(1, patches, patches),
                "rotary_pos_emb": torch.zeros(patches, angles),
            },
            outputs=("last_hidden_state", "deepstack_feature_lists")[: 2 if layers.taps else 1],
            fixed={"hidden_states": (1,), "attention_mask": (0,), "rotary_pos_emb": (1,)},
        )
