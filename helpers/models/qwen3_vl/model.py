"""Qwen3-VL's PyTorch modules: transformers' own, cut into the parts that are exported."""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLPreTrainedModel,
    Qwen3VLTextModel,
    Qwen3VLVisionAttention,
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
)

from helpers.errors import CheckpointError
from helpers.graphs.part_names import (
    IMAGE_ENCODER,
    LANGUAGE_MODEL,
    PATCH_EMBEDDINGS,
    POSITION_EMBEDDINGS,
)
from helpers.graphs.parts import (
    DecoderWithCache,
    Part,
    Traceable,
    cache_of,
    decoder_example,
    past_names,
    present_names,
)
from helpers.models.base import VisionLanguageModel
from helpers.models.families import Family, Original, SmallTokenizer
from helpers.models.qwen3_vl.exported import PictureTokens
from helpers.models.qwen3_vl.processor import PICTURE_MARKS, VIDEO_MARK, Qwen3VLProcessor
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
        deepstack = torch.stack(output.deepstack_features).split(lengths, dim=1)
        features = output.pooler_output.split(lengths)
        return [
            PictureTokens.of(*picture) for picture in zip(features, deepstack, grids, strict=True)
        ]

    # What is exported

    def parts(self) -> Any:
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
        cache = (text.num_hidden_layers, text.num_key_value_heads, text.head_dim)
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


class EncoderLayers(nn.Module):
    """The layers of the image encoder as they are traced, any number of patches in one graph.

    transformers' own forward cuts its patches into pictures by numbers that are not in the graph.
    """

    def __init__(self, encoder: Qwen3VLVisionModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, rotary_pos_emb: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the picture's tokens (tokens, hidden) and their DeepStack rows."""
        angles = torch.cat([rotary_pos_emb, rotary_pos_emb], dim=-1)
        rotation = (angles.cos(), angles.sin())
        taps = list(self.encoder.config.deepstack_visual_indexes)
        rows = []
        for number, layer in enumerate(self.encoder.blocks):
            attended = attend(layer.attn, layer.norm1(hidden_states), attention_mask, rotation)
            hidden_states = hidden_states + attended
            hidden_states = hidden_states + layer.mlp(layer.norm2(hidden_states))
            if number in taps:
                rows.append(self.encoder.deepstack_merger_list[taps.index(number)](hidden_states))
        return self.encoder.merger(hidden_states), torch.stack(rows)


def attend(
    attention: Qwen3VLVisionAttention,
    hidden: Tensor,
    mask: Tensor,
    rotation: tuple[Tensor, Tensor],
) -> Tensor:
    """Return the attention of all patches to each other, (patches, hidden)."""
    heads = (3, attention.num_heads, attention.head_dim)
    queries, keys, values = torch.unflatten(attention.qkv(hidden), -1, heads).unbind(1)
    queries, keys = apply_rotary_pos_emb_vision(queries, keys, *rotation)
    attended = nn.functional.scaled_dot_product_attention(
        *(part.transpose(0, 1)[None] for part in (queries, keys, values)), attn_mask=mask[None]
    )
    return cast(Tensor, attention.proj(attended[0].transpose(0, 1).flatten(1)))


class Qwen3VLText(Qwen3VLTextModel):
    """transformers' text model, to which DeepStack comes as a row for every token."""

    def _deepstack_process(
        self, hidden_states: Tensor, visual_pos_masks: Tensor | None, visual_embeds: Tensor
    ) -> Tensor:
        """Add (tokens of all rows, hidden); one row of zeros stands for any number of them."""
        tokens = hidden_states.shape[0] * hidden_states.shape[1]
        return hidden_states + visual_embeds.expand(tokens, -1).reshape(hidden_states.shape)


class Qwen3VLLanguageModel(Qwen3VLPreTrainedModel, GenerationMixin):
    """The language model alone, which transformers has only together with the image encoder."""

    config: Qwen3VLTextConfig
    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Qwen3VLTextConfig) -> None:
        super().__init__(config)
        self.model = Qwen3VLText(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of embeddings."""
        return self.model.embed_tokens

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        deepstack_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits; `deepstack_embeds` is (batch, length, layers, hidden)."""
        deepstack = None if deepstack_embeds is None else deepstack_embeds.flatten(0, 1).unbind(1)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            deepstack_visual_embeds=deepstack,
        )
        hidden = output.last_hidden_state[:, -logits_to_keep:]
        return CausalLMOutputWithPast(
            logits=self.lm_head(hidden), past_key_values=output.past_key_values
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *,
        inputs_embeds: Tensor | None = None,  # `generate` looks for the name
        is_first_iteration: bool = False,
        deepstack_embeds: Tensor | None = None,
        **kwargs: Any,  # under this name `generate` knows that `forward` takes the rest
    ) -> dict[str, Any]:
        """Return the inputs of one call; tokens that are written later are text."""
        parent: Any = super()
        inputs: dict[str, Any] = parent.prepare_inputs_for_generation(
            input_ids,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        return inputs | ({"deepstack_embeds": deepstack_embeds} if is_first_iteration else {})


class Qwen3VLDecoder(DecoderWithCache):
    """The language model as it is traced, with DeepStack rows of picture tokens only.

    So, the input is small, and while tokens are written it is one row of zeros.
    """

    def forward(  # type: ignore[override]
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        visual_pos_masks: Tensor,
        deepstack_visual_embeds: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """Run the decoder on the new positions."""
        is_picture = visual_pos_masks.flatten()
        places = (is_picture.long().cumsum(0) - 1).clamp(min=0)
        picked = deepstack_visual_embeds.index_select(1, places)
        rows = picked * is_picture.to(picked.dtype)[:, None]
        language_model = cast(Qwen3VLLanguageModel, self.decoder)
        output = language_model.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache_of(past),
            use_cache=True,
            deepstack_visual_embeds=[rows[layer] for layer in range(rows.shape[0])],
        )
        logits = language_model.lm_head(output.last_hidden_state[:, -1:])
        return logits, *self.present(output.past_key_values)


# The families' register


def _token_ids(size: int) -> dict[str, int]:
    """Return the fields of the config with tokens' ids; the marks are the last tokens."""
    names = ("vision_start_token_id", "image_token_id", "vision_end_token_id", "video_token_id")
    return {name: size - len(names) + number for number, name in enumerate(names)}


# The words of the published chat template that matter for pictures and text.
_CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- "<|im_start|>" + message.role + "\\n" }}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == "image" %}
{{- "<|vision_start|><|image_pad|><|vision_end|>" }}
{%- elif part.type == "video" %}
{{- "<|vision_start|><|video_pad|><|vision_end|>" }}
{%- else %}
{{- part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|im_start|>assistant\\n" }}
{%- endif %}
"""
_TOKENIZER = SmallTokenizer(
    "qwen2", ("user\n", "assistant\n"), (*PICTURE_MARKS, VIDEO_MARK), _CHAT_TEMPLATE
)


def _original(name: str, parameters: float) -> Original:
    return Original(
        f"qwen3-vl-{name.lower()}",
        f"Qwen/Qwen3-VL-{name}-Instruct",
        "Apache-2.0",
        parameters,
        _TOKENIZER,
        token_ids=_token_ids,
        picture=(1024, 768),
    )


FAMILY = Family(
    name="qwen3-vl",
    model_type="qwen3_vl",
    model=Qwen3VL,
    bundled="qwen3_vl",
    tokenizer=_TOKENIZER,
    vocabulary=(("text_config", "vocab_size"),),
    token_ids=_token_ids,
    originals=(_original("2B", 2.13), _original("4B", 4.44), _original("8B", 8.77)),
)
