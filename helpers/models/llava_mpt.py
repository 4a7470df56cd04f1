"""LLaVA-Lightning-MPT: CLIP, one linear layer, and MPT, whose attention has ALiBi biases.

Source of the layout: the authors' `llava_mpt.py` and `conversation.py` (haotian-liu/LLaVA) and
MosaicML's MPT; the numbers all come from a checkpoint's `config.json` and from its tensors.
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import Cache, DynamicCache, MptConfig, MptForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.mpt.configuration_mpt import MptAttentionConfig
from transformers.models.mpt.modeling_mpt import MptAttention

from helpers.errors import CheckpointError
from helpers.inputs.prompts import IMAGE, SYSTEM_WORDS, Template
from helpers.models.clip import ClipLanguageModel, ClipProcessor, tower_places
from helpers.models.families import Family, Original, SmallTokenizer
from helpers.models.processors import Runtime
from helpers.sources.checkpoints import Config, as_json
from helpers.sources.key_mapping import Rule

# `conv_mpt` in the authors' conversation.py: the later text is the default there and here; the
# one of the release is what the model saw in training.
SYSTEM = (
    "A conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers."
)
RELEASE_SYSTEM = (
    "- You are a helpful language and vision assistant.\n"
    "- You are able to understand the visual content that the user provides, and assist the user "
    "with a variety of tasks using natural language.\n"
    "- You should follow the instructions carefully and explain your answers in detail."
)
SYSTEM_FORM = f"<|im_start|>system\n{SYSTEM_WORDS}<|im_end|>"
# The order in which training added them, which is the order of their ids.
IMAGE_MARKS = ("<im_patch>", "<im_start>", "<im_end>")


class LlavaMptProcessor(ClipProcessor):
    """Center-cropped pictures, and MPT's chat with `SYSTEM` or, if so set, `RELEASE_SYSTEM`."""

    system: str = SYSTEM
    counts_places = True  # which is how ALiBi knows distances

    @property
    def has_image_marks(self) -> bool:
        """Whether `<im_start>` and `<im_end>` stand around a picture."""
        return cast(bool, self.config.get("mm_use_im_start_end", False))  # train.py's default

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """Return GPT-NeoX's tokenizer with the chat tokens, and image marks where config asks."""
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(self.folder)
        if self.has_image_marks:
            missing = [mark for mark in IMAGE_MARKS if mark not in tokenizer.get_vocab()]
            tokenizer.add_tokens(missing, special_tokens=True)
        if len(tokenizer) > self.config["vocab_size"]:
            raise CheckpointError(
                f"The tokenizer in {self.folder} has {len(tokenizer)} tokens, but the model only "
                f"{self.config['vocab_size']}; use the tokenizer that came with the checkpoint."
            )
        return tokenizer

    @property
    def template(self) -> Template:
        """MPT's chat with `system` as the system text."""
        image = (f"<im_start>{IMAGE}<im_end>" if self.has_image_marks else IMAGE) + "\n"
        return Template(
            system=SYSTEM_FORM.replace(SYSTEM_WORDS, self.system),
            system_form=SYSTEM_FORM,
            user="<|im_start|>user\n",
            user_end="<|im_end|>",
            assistant="<|im_start|>assistant\n",
            assistant_end="<|im_end|>",
            image=image,
            images=image,
        )

    @property
    def runtime(self) -> Runtime:
        """Why others do not load it."""
        return Runtime("OpenVINO GenAI leaves out the biases by which MPT knows positions")

    @property
    def context_length(self) -> int:
        """The length that MPT was trained with; ALiBi itself sets no limit."""
        return cast(int, self.config["max_seq_len"])

    @property
    def tokens_per_picture(self) -> int:
        """One row of features for each patch."""
        return self.patches_per_side**2


class LlavaMpt(ClipLanguageModel[LlavaMptProcessor]):
    """CLIP, a linear projector, and MPT."""

    processor_class = LlavaMptProcessor

    def build(self, config: Config) -> None:
        """Create the image encoder, the projector and the language model."""
        super().build(config)
        text_config = _mpt_config(config)
        self.projector = nn.Linear(self.processor.vision_config.hidden_size, text_config.d_model)
        self.language_model = FusedMpt(text_config)

    def rules(self) -> list[Rule]:
        """Return the names of the image encoder, the projector and the language model."""
        return [
            *super().rules(),
            Rule("transformer.mm_projector.{x}", "projector.{x}"),
            Rule("transformer.{x}", "language_model.transformer.{x}"),
        ]

    def original_tensors(self, folder: Path) -> dict[str, Tensor]:
        """Return the checkpoint's tensors, and fit the vocabulary to the embeddings' rows.

        Training added tokens and padded the table, so `vocab_size` in config may tell less.
        """
        tensors = super().original_tensors(folder)
        table = tensors.get("transformer.wte.weight")
        if table is not None and len(table) != self.config["vocab_size"]:
            self.config["vocab_size"] = len(table)
            self.language_model.resize_token_embeddings(len(table), mean_resizing=False)
        return tensors


# The language model


class FusedAttention(MptAttention):
    """MPT's attention as one operation, which OpenVINO runs as one kernel over the KV cache.

    Takes the mask and the ALiBi biases in one tensor, `position_bias` (batch, heads, new, all).
    """

    def forward(
        self,
        hidden_states: Tensor,
        position_bias: Tensor,
        past_key_values: Cache | None = None,
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, None]:
        """Return what the new positions (batch, new, hidden) attend to, and no weights."""
        mixed = self.Wqkv(hidden_states)
        if self.clip_qkv:
            mixed = mixed.clamp(-self.clip_qkv, self.clip_qkv)
        query, key, value = (
            part.unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)
            for part in mixed.split(self.hidden_size, dim=-1)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, cast(int, self.layer_idx))
        context = scaled_dot_product_attention(
            query, key, value, attn_mask=position_bias, scale=self.softmax_scale
        )
        return self.out_proj(context.transpose(1, 2).flatten(2)), None


class FusedMpt(MptForCausalLM):
    """MPT with fused attention, and biases computed from the lengths of the inputs.

    transformers' own class cuts them from a table of `max_seq_len` columns, which a trace would
    make constant.
    """

    def __init__(self, config: MptConfig) -> None:
        super().__init__(config)
        for index, block in enumerate(self.transformer.blocks):
            block.attn = FusedAttention(config, index)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits (batch, new, vocabulary) and the cache.

        `attention_mask` (batch, past + new) says which positions are no padding. For training it
        may be (batch, 1, new, new) and say who sees whom; then, and only then, `position_ids`
        (batch, new) count.
        """
        hidden = self.transformer.wte(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if attention_mask is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            attention_mask = hidden.new_ones(len(hidden), past + hidden.shape[1])
        distance, visible = _distance_and_visibility(attention_mask, position_ids, hidden.shape[1])
        attention = cast(MptAttentionConfig, self.config.attn_config)
        slopes = alibi_slopes(self.config.n_heads, attention.alibi_bias_max)
        bias = slopes.to(hidden.device)[:, None, None] * distance[:, None]
        bias = bias.masked_fill(~visible, torch.finfo(hidden.dtype).min).to(hidden.dtype)
        for block in self.transformer.blocks:
            hidden, _ = block(hidden, bias, None, layer_past=past_key_values)
        hidden = self.transformer.norm_f(hidden)[:, -logits_to_keep:]
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=past_key_values)


def alibi_slopes(heads: int, bias_max: int) -> Tensor:
    """Return how steeply the bias falls with the distance, for each head: (heads,), float32.

    They are 2^(-bias_max * i / n) for i = 1 .. n, where n is the next power of two. If that is more
    than `heads`, every second one counts first (MosaicML's `gen_slopes` in llm-foundry).
    """
    number = 2 ** (heads - 1).bit_length()
    slopes = [2 ** (-bias_max * index / number) for index in range(1, number + 1)]
    if number != heads:
        slopes = (slopes[1::2] + slopes[::2])[:heads]
    return torch.tensor(slopes, dtype=torch.float32)


def _distance_and_visibility(
    attention_mask: Tensor, position_ids: Tensor | None, new: int
) -> tuple[Tensor, Tensor]:
    """Return how far a key is from a query, and whether the query sees it.

    Distances are (1 or batch, new, all), zero for a position itself and negative for those before
    it; visibility is (batch, 1, new, all). Distances from the query, not from the last key as in
    the authors' code, give the same attention and stay exact in 16 bits where they matter.
    """
    if attention_mask.dim() == 4:
        positions = cast(Tensor, position_ids)  # which always come with such a mask
        return positions[:, None] - positions[..., None], attention_mask
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    distance = (positions - positions[-new:, None])[None]
    # Padding sees itself, since a row of attention must not be empty.
    visible = (distance == 0) | ((distance < 0) & attention_mask[:, None].bool())
    return distance, visible[:, None]


_TEXT_FIELDS = (
    "d_model",
    "n_heads",
    "n_layers",
    "expansion_ratio",
    "max_seq_len",
    "vocab_size",
    "layer_norm_epsilon",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)
_ATTENTION_FIELDS = ("alibi_bias_max", "clip_qkv", "softmax_scale")
# What MPT can be but LLaVA-MPT is not, and transformers' MPT leaves out.
_SUPPORTED = {"no_bias": True, "logit_scale": None}
_SUPPORTED_ATTENTION = {
    "alibi": True,
    "attn_type": "multihead_attention",
    "qk_ln": False,
    "prefix_lm": False,
}


def _mpt_config(config: Config) -> MptConfig:
    attention = dict(config["attn_config"])
    for section, supported in ((config, _SUPPORTED), (attention, _SUPPORTED_ATTENTION)):
        for name, value in supported.items():
            if section.get(name, value) != value:
                raise CheckpointError(
                    f"{name} in config.json is {as_json(section[name])}, and only "
                    f"{as_json(value)} is read here; use a checkpoint of the published kind."
                )
    return MptConfig(
        **{name: config[name] for name in _TEXT_FIELDS if name in config},
        attn_config={name: attention[name] for name in _ATTENTION_FIELDS if name in attention},
    )


# The families' register

_TOKENIZER = SmallTokenizer(
    "gpt_neox",
    (SYSTEM, "system\n", "user\n", "assistant\n"),
    ("<|im_start|>", "<|im_end|>", *IMAGE_MARKS),
)
FAMILY = Family(
    name="llava-mpt",
    model_type="llava_mpt",
    model=LlavaMpt,
    other_folders=tower_places,
    bundled="llava_mpt",
    tokenizer=_TOKENIZER,
    originals=(
        Original(
            "llava-mpt",
            "liuhaotian/LLaVA-Lightning-MPT-7B-preview",
            "CC BY-NC-SA 4.0, a research preview: no commercial use",
            6.96,
            _TOKENIZER,
        ),
    ),
)
