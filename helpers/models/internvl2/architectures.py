"""The language models of InternVL: Qwen2 and 2.5, Qwen3, InternLM2 (as Llama), Llama and Phi-3.

What this module does not know: pictures, and the image encoder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from helpers.models.internlm2_tokenizer import internlm2_tokenizer
from helpers.models.longrope import LongPhi3
from helpers.sources.checkpoints import Config
from helpers.sources.key_mapping import Rule
from helpers.upstream.transformers import new_config, no_rope_warnings, set_bos

_NOT_FOR_TEXT = ("architectures", "auto_map", "model_type", "torch_dtype")  # read elsewhere


def _text_fields(llm: Config) -> Config:
    fields = {name: value for name, value in llm.items() if name not in _NOT_FOR_TEXT}
    scaling = fields.get("rope_scaling") or {}
    # "dynamic" rope acts only beyond max_position_embeddings, where no prompt reaches.
    if scaling.get("rope_type", scaling.get("type", "dynamic")) == "dynamic":
        fields.pop("rope_scaling", None)
    # Whether the LM head is tied is seen from the files: see `InternVL2.original_tensors`.
    return fields | {"tie_word_embeddings": False}


def _config_of(kind: type[PreTrainedConfig]) -> Callable[[Config], PreTrainedConfig]:
    return lambda llm: new_config(kind, **_text_fields(llm))


def _internlm2_config(llm: Config) -> LlamaConfig:
    fields = {name: value for name, value in _text_fields(llm).items() if name != "bias"}
    return new_config(LlamaConfig, **fields, attention_bias=llm.get("bias", False), mlp_bias=False)


def _phi3_config(llm: Config) -> Phi3Config:
    # Phi3Config's own defaults are ids that a smaller vocabulary does not have.
    fields: Config = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    fields |= _text_fields(llm)
    if scaling := fields.get("rope_scaling"):
        # LongRoPE was called "su" when the checkpoint was made.
        fields["rope_scaling"] = scaling | {"rope_type": "longrope"}
    with no_rope_warnings():  # `factor` may be missing, and is what the two lengths say
        config = new_config(Phi3Config, **fields)
    if (config.sliding_window or 0) >= config.max_position_embeddings:
        config.sliding_window = None  # a window in which every prompt fits
    return config


def _phi3_tokenizer(folder: Path) -> PreTrainedTokenizerFast | LlamaTokenizer:
    fast = (folder / "tokenizer.json").exists()
    loader = PreTrainedTokenizerFast if fast else LlamaTokenizer
    tokenizer: PreTrainedTokenizerFast | LlamaTokenizer = loader.from_pretrained(folder)
    set_bos(tokenizer, added=True)  # as in training: preprocess_phi3 in the authors' dataset.py
    return tokenizer


@dataclass(frozen=True)
class Architecture:
    """How a language model of one architecture is made from a checkpoint."""

    make_config: Callable[[Config], PreTrainedConfig]
    model_class: type[PreTrainedModel]
    load_tokenizer: Callable[[Path], PreTrainedTokenizerBase]


ARCHITECTURES = {
    "Qwen2ForCausalLM": Architecture(
        _config_of(Qwen2Config), Qwen2ForCausalLM, Qwen2Tokenizer.from_pretrained
    ),
    "Qwen3ForCausalLM": Architecture(
        _config_of(Qwen3Config), Qwen3ForCausalLM, Qwen2Tokenizer.from_pretrained
    ),
    "LlamaForCausalLM": Architecture(
        _config_of(LlamaConfig), LlamaForCausalLM, PreTrainedTokenizerFast.from_pretrained
    ),
    "InternLM2ForCausalLM": Architecture(_internlm2_config, LlamaForCausalLM, internlm2_tokenizer),
    "Phi3ForCausalLM": Architecture(_phi3_config, LongPhi3, _phi3_tokenizer),
}


def internlm2_rules(config: LlamaConfig) -> list[Rule]:
    """Return InternLM2's names in Llama's terms.

    `wqkv` is grouped by key-value head: each group holds the query heads that share it, then the
    key head, then the value head.
    """
    key_heads, head_size = cast(int, config.num_key_value_heads), cast(int, config.head_dim)
    groups = config.num_attention_heads // key_heads

    def split(wqkv: Tensor) -> list[Tensor]:
        heads = torch.unflatten(wqkv, 0, (key_heads, groups + 2, head_size))
        parts = torch.split(heads, [groups, 1, 1], dim=1)
        return [part.flatten(0, 2) for part in parts]

    def join(parts: Sequence[Tensor]) -> Tensor:
        shape = (key_heads, -1, head_size)
        heads = torch.cat([torch.unflatten(part, 0, shape) for part in parts], dim=1)
        return heads.flatten(0, 2)

    layer, native = "language_model.model.layers.{n}.", "language_model.model.layers.{n}."
    return [
        Rule("language_model.model.tok_embeddings.{x}", "language_model.model.embed_tokens.{x}"),
        Rule(
            layer + "attention.wqkv.{x}",
            [native + f"self_attn.{part}_proj.{{x}}" for part in "qkv"],
            split=split,
            join=join,
        ),
        Rule(layer + "attention.wo.{x}", native + "self_attn.o_proj.{x}"),
        Rule(layer + "feed_forward.w1.{x}", native + "mlp.gate_proj.{x}"),
        Rule(layer + "feed_forward.w3.{x}", native + "mlp.up_proj.{x}"),
        Rule(layer + "feed_forward.w2.{x}", native + "mlp.down_proj.{x}"),
        Rule(layer + "attention_norm.{x}", native + "input_layernorm.{x}"),
        Rule(layer + "ffn_norm.{x}", native + "post_attention_layernorm.{x}"),
        Rule("language_model.model.norm.{x}", "language_model.model.norm.{x}"),
        Rule("language_model.output.{x}", "language_model.lm_head.{x}"),
    ]
