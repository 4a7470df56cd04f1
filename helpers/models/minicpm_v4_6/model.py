"""MiniCPM-V 4.6's PyTorch modules: transformers' own, cut into the parts that are exported."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import (
    MiniCPMV4_6Merger,
    MiniCPMV4_6VisionModel,
)
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5ForCausalLM

from helpers.graphs.part_names import EARLY_LAYERS, IMAGE_ENCODER, WINDOW_MERGER
from helpers.graphs.parts import Part
from helpers.graphs.tables import Table
from helpers.models.base import VisionLanguageModel
from helpers.models.embeddings import is_tied
from helpers.models.families import Family
from helpers.models.minicpm_v4_6.encoder import EarlyLayers, LateLayers, WindowMerger
from helpers.models.minicpm_v4_6.originals import ORIGINALS, TOKENIZER, token_ids
from helpers.models.minicpm_v4_6.patches import FEW
from helpers.models.minicpm_v4_6.processor import MiniCPMV4_6Processor
from helpers.models.qwen3_5.language_model import language_model_part, new_language_model
from helpers.models.qwen3_5.model import Qwen3_5
from helpers.sources.checkpoints import Config
from helpers.sources.key_mapping import Rule


class MiniCPMV4_6(VisionLanguageModel[MiniCPMV4_6Processor]):
    """An image encoder that merges its tokens on the way, and Qwen3.5's language model."""

    processor_class = MiniCPMV4_6Processor
    prefix = "model."
    left_out = Qwen3_5.left_out
    image_encoder: MiniCPMV4_6VisionModel
    projector: MiniCPMV4_6Merger
    language_model: Qwen3_5ForCausalLM

    def build(self, config: Config) -> None:
        """Create the image encoder, the projector and the language model."""
        settings = self.processor.settings
        text = settings.text_config
        text.tie_word_embeddings = is_tied(settings)
        self.image_encoder = MiniCPMV4_6VisionModel(settings.vision_config)
        self.projector = MiniCPMV4_6Merger(settings)
        self.language_model = new_language_model(text)

    def rules(self) -> list[Rule]:
        """Return the hub's names, which are transformers' own."""
        return [
            Rule("model.vision_tower.{x}", "image_encoder.{x}"),
            Rule("model.merger.{x}", "projector.{x}"),
            Rule("model.language_model.{x}", "language_model.model.{x}"),
            Rule("lm_head.{x}", "language_model.lm_head.{x}"),
        ]

    def encode_images(
        self,
        pixel_values: Tensor,
        target_sizes: Tensor,
        downsample_mode: str | None = None,
        grids: object = None,
    ) -> list[Tensor]:
        """Return (tokens, hidden) for each overview and slice; `grids` are for the prompt only.

        `downsample_mode` None is that of the processor.
        """
        is_merged = (downsample_mode or self.processor.downsample_mode) == FEW
        output = self.image_encoder(
            pixel_values.to(self.image_encoder.dtype), target_sizes, use_vit_merger=is_merged
        )
        sizes = target_sizes // 2 if is_merged else target_sizes
        features: list[Tensor] = self.projector(output.last_hidden_state, sizes)
        return features

    # What is exported

    def parts(self) -> Iterator[Part | Table]:
        """Yield what is exported; three parts make the features of a picture."""
        yield self.early_layers_part()
        yield self.window_merger_part()
        yield from super().parts()

    def early_layers_part(self) -> Part:
        """Return the patches' embeddings and the layers before the merge."""
        side, patches = self.processor.settings.patch_size, 12
        return Part(
            EARLY_LAYERS,
            EarlyLayers(self.image_encoder),
            {
                "pixel_values": torch.zeros(2, 3, side, side * patches),
                "position_ids": torch.arange(patches),
            },
            outputs=("hidden_states",),
            fixed={"pixel_values": (1, 2)},
        )

    def _tokens(self) -> dict[str, Tensor]:
        """Return tokens of two slices as an example: three windows, as often as they merge."""
        tokens = 3 * 4**self.processor.settings.merger_times
        return {"hidden_states": torch.zeros(2, tokens, self.image_encoder.config.hidden_size)}

    def window_merger_part(self) -> Part:
        """Return what makes one token of each window."""
        module = WindowMerger(self.image_encoder)
        return Part(
            WINDOW_MERGER, module, self._tokens(), ("merged_states",), {"hidden_states": (2,)}
        )

    def image_encoder_part(self) -> Part:
        """Return the layers behind the merge, and the projector."""
        module = LateLayers(self.image_encoder, self.projector)
        return Part(
            IMAGE_ENCODER, module, self._tokens(), ("last_hidden_state",), {"hidden_states": (2,)}
        )

    def language_model_part(self) -> Part:
        """Return the language model with the states of all its layers."""
        return language_model_part(self.language_model)


FAMILY = Family(
    name="minicpm-v-4-6",
    model_type="minicpmv4_6",
    model=MiniCPMV4_6,
    tokenizer=TOKENIZER,
    vocabulary=(("text_config", "vocab_size"),),
    token_ids=token_ids,
    originals=ORIGINALS,
)
