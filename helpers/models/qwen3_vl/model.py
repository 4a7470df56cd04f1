"""Qwen3-VL's PyTorch modules: transformers' own, cut into the parts that are exported."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from helpers.errors import CheckpointError
from helpers.graphs.part_names import (
    IMAGE_ENCODER,
    LANGUAGE_MODEL,
    PATCH_EMBEDDINGS,
    POSITION_EMBEDDINGS,
)
from helpers.graphs.parts import Part, Traceable, decoder_example, past_names, present_names
from helpers.models.base import VisionLanguageModel
from helpers.models.families import Family
from helpers.models.qwen3_vl.encoder import EncoderLayers
from helpers.models.qwen3_vl.exported import PictureTokens
from helpers.models.qwen3_vl.language_model import Qwen3VLDecoder, Qwen3VLLanguageModel
from helpers.models.qwen3_vl.originals import ORIGINALS, TOKENIZER, token_ids
from helpers.models.qwen3_vl.processor import Qwen3VLProcessor
from helpers.sources.checkpoints import Config
from helpers.sources.key_mapping import Rule


class Qwen3VL(VisionLanguageModel[Qwen3VLProcessor]):
    """Qwen3-VL's image encoder with DeepStack, and Qwen3 with positions in three dimensions."""

    processor_class = Qwen3VLProcessor
    image_encoder: Qwen3VLVisionModel
    language_model: "Qwen3VLLanguageModel"

    def build(self, config: Config) -> None:
        """Create the image encoder and the language model."""
        settings = self.processor.settings
        text = cast(Qwen3VLTextConfig, settings.text_config)
        text.tie_word_embeddings = settings.tie_word_embeddings
        if self.processor.vision.out_hidden_size != text.hidden_size:
            raise CheckpointError(
                f"out_hidden_size in config.json is {self.processor.vision.out_hidden_size}, but "
                f"the language model's hidden_size is {text.hidden_size}; download config.json "
                "again."
            )
        self.image_encoder = Qwen3VLVisionModel(self.processor.vision)
        self.language_model = Qwen3VLLanguageModel(text)

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

        They carry their DeepStack rows and their grid. `times` are for the prompt.
        """
        grids = self.processor.single_grids(image_grid_thw)
        patches = sum(rows * columns for _, rows, columns in grids)
        if patches != len(pixel_values):
            raise CheckpointError(
                f"image_grid_thw counts {patches} patches, but pixel_values holds "
                f"{len(pixel_values)}; take both from one call."
            )
        output = self.image_encoder(pixel_values, grid_thw=image_grid_thw)
        merged = self.processor.vision.spatial_merge_size**2
        lengths = [rows * columns // merged for _, rows, columns in grids]
        deepstack = torch.split(torch.stack(output.deepstack_features), lengths, dim=1)
        features = torch.split(output.pooler_output, lengths)
        return [
            PictureTokens.of(*picture) for picture in zip(features, deepstack, grids, strict=True)
        ]

    # What is exported

    def parts(self) -> Iterator[Part]:
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
        vision = self.processor.vision
        patches, angles = (
            3 * vision.spatial_merge_size**2,
            vision.hidden_size // vision.num_heads // 2,
        )
        return Part(
            IMAGE_ENCODER,
            EncoderLayers(self.image_encoder),
            {
                "hidden_states": torch.zeros(patches, vision.hidden_size),
                "attention_mask": torch.zeros(1, patches, patches),
                "rotary_pos_emb": torch.zeros(patches, angles),
            },
            outputs=("last_hidden_state", "deepstack_feature_lists"),
            fixed={"hidden_states": (1,), "attention_mask": (0,), "rotary_pos_emb": (1,)},
        )

    def language_model_part(self) -> Part:
        """Return the language model: positions in three dimensions, and rows of DeepStack."""
        text = self.language_model.config
        heads = text.num_key_value_heads or text.num_attention_heads
        cache = (text.num_hidden_layers, heads, text.head_dim)
        example = decoder_example(text.hidden_size, cache)
        batch, new = example["inputs_embeds"].shape[:2]
        past, present = past_names(cache[0]), present_names(cache[0])
        layers = self.processor.deepstack_layers
        is_picture = torch.zeros(batch, new, dtype=torch.bool)
        is_picture[:, 1:3] = True
        return Part(
            LANGUAGE_MODEL,
            Qwen3VLDecoder(self.language_model),
            {
                "inputs_embeds": example["inputs_embeds"],
                "attention_mask": example["attention_mask"],
                "position_ids": example["position_ids"].expand(3, -1, -1),
                "visual_pos_masks": is_picture,
                "deepstack_visual_embeds": torch.zeros(layers, 2 * batch, text.hidden_size),
                **{name: example[name] for name in past},
            },
            outputs=("logits", *present),
            fixed={
                "inputs_embeds": (2,),
                "position_ids": (0,),
                "deepstack_visual_embeds": (0, 2),
                **dict.fromkeys(past, (1, 3)),
            },
            cache=dict(zip(past, present, strict=True)),
        )


FAMILY = Family(
    name="qwen3-vl",
    model_type="qwen3_vl",
    model=Qwen3VL,
    bundled="qwen3_vl",
    tokenizer=TOKENIZER,
    vocabulary=(("text_config", "vocab_size"),),
    token_ids=token_ids,
    originals=ORIGINALS,
)
