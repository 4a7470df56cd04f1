"""Layouts of InternVL's checkpoints: transformers' own beside the authors', and what is refused.

What this module does not know: the modules that tensors are put into.
"""

from pathlib import Path
from typing import Any

from helpers.errors import CheckpointError
from helpers.models.internvl2.architectures import ARCHITECTURES
from helpers.sources.checkpoints import Config, as_json, check_choice, pixel_settings, preparation
from helpers.sources.key_mapping import Rule

HF_MODEL_TYPE = "internvl"  # of transformers' layout; the authors' is internvl_chat
# The language models by `model_type` of transformers' `text_config`.
_ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}
# Tensor names as transformers 5 has them, and as it wrote them before (its conversion_mapping.py).
HF_RULES = [
    Rule("model.vision_tower.{x}", "image_encoder.{x}"),
    Rule("model.multi_modal_projector.{x}", "projector.{x}"),
    Rule("model.language_model.{x}", "language_model.model.{x}"),
    Rule("lm_head.{x}", "language_model.lm_head.{x}"),
    Rule("vision_tower.{x}", "image_encoder.{x}"),
    Rule("multi_modal_projector.{x}", "projector.{x}"),
    Rule("language_model.{x}", "language_model.{x}"),
]
_LAYER = "vision_model.encoder.layers.{n}."
_NATIVE_LAYER = "image_encoder.encoder.layer.{n}."
# The authors' names of the image encoder and the projector.
VISION_RULES = [
    Rule("vision_model.embeddings.class_embedding", "image_encoder.embeddings.cls_token"),
    Rule(
        "vision_model.embeddings.position_embedding", "image_encoder.embeddings.position_embeddings"
    ),
    Rule(
        "vision_model.embeddings.patch_embedding.{x}",
        "image_encoder.embeddings.patch_embeddings.projection.{x}",
    ),
    Rule(
        _LAYER + "attn.qkv.{x}",
        [_NATIVE_LAYER + f"attention.{part}_proj.{{x}}" for part in "qkv"],
    ),
    Rule(_LAYER + "attn.q_norm.{x}", _NATIVE_LAYER + "attention.q_norm.{x}"),
    Rule(_LAYER + "attn.k_norm.{x}", _NATIVE_LAYER + "attention.k_norm.{x}"),
    Rule(_LAYER + "attn.proj.{x}", _NATIVE_LAYER + "attention.projection_layer.{x}"),
    Rule(_LAYER + "norm1.{x}", _NATIVE_LAYER + "layernorm_before.{x}"),
    Rule(_LAYER + "norm2.{x}", _NATIVE_LAYER + "layernorm_after.{x}"),
    Rule(_LAYER + "ls1", _NATIVE_LAYER + "lambda_1"),
    Rule(_LAYER + "ls2", _NATIVE_LAYER + "lambda_2"),
    Rule(_LAYER + "mlp.{x}", _NATIVE_LAYER + "mlp.{x}"),
    Rule("mlp1.0.{x}", "projector.layer_norm.{x}"),
    Rule("mlp1.1.{x}", "projector.linear_1.{x}"),
    Rule("mlp1.3.{x}", "projector.linear_2.{x}"),
]
# Which of the image encoder's states become tokens, and in which order: the values that are read.
_ONLY_READ = {
    "select_layer": -1,
    "ps_version": "v2",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}
# What the authors' `InternVLChatConfig` has for a config that leaves it out.
_USUAL: Config = {
    "downsample_ratio": 0.5,
    "dynamic_image_size": False,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 6,
    "ps_version": "v1",
    "use_thumbnail": True,  # theirs is False, and all their files say True
}
# Fields of the authors' configs of Flash variants, whose router drops picture tokens.
_FLASH_FIELDS = ("flash_threshold", "flash_relative_threshold", "flash_absolute_threshold")


def original_config(folder: Path, config: Config) -> Config:
    """Return the authors' config, or what it would say of a checkpoint in transformers' layout.

    How pictures are cut and what becomes of their pixels comes from `processor_config.json`, or
    from `preprocessor_config.json`; the defaults are those of transformers' `InternVLConfig`, in
    which the LM head is tied unless the file says otherwise.
    """
    if config.get("model_type") != HF_MODEL_TYPE:
        return _USUAL | config
    pictures = preparation(folder)
    vision, text = dict(config["vision_config"]), dict(config["text_config"])
    model_type = text.get("model_type", "qwen2")
    check_choice("language model", model_type, _ARCHITECTURES)
    vision["image_size"] = _side(vision.get("image_size", 448))
    vision["patch_size"] = _side(vision.get("patch_size", 14))
    vision["qkv_bias"] = vision.get("attention_bias", False)
    vision["qk_normalization"] = vision.get("use_qk_norm", False)
    vision["initializer_factor"] = vision.get("layer_scale_init_value", 0.1)
    text["architectures"] = [_ARCHITECTURES[model_type]]
    usual: Any = ARCHITECTURES[_ARCHITECTURES[model_type]].make_config({})
    for name in ("vocab_size", "max_position_embeddings"):
        text.setdefault(name, getattr(usual, name))
    text["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
    return {
        **{name: config[name] for name in _ONLY_READ if name in config},
        "model_type": "internvl_chat",
        "projector_hidden_act": config.get("projector_hidden_act", "gelu"),
        "pixels": pixel_settings(pictures),
        "image_token_id": config.get("image_token_id", 151667),
        "downsample_ratio": config.get("downsample_ratio", 0.5),
        "force_image_size": (pictures.get("size") or {}).get("height"),
        # `InternVLProcessor` cuts tiles whatever crop_to_patches in preprocessor_config.json says.
        "dynamic_image_size": True,
        "min_dynamic_patch": pictures.get("min_patches", 1),
        "max_dynamic_patch": pictures.get("max_patches", 12),
        "use_thumbnail": True,
        "vision_config": vision,
        "llm_config": text,
    }


def _side(size: Any) -> Any:
    """Return one side of a size that may be a pair of equal ones; others are refused."""
    if not isinstance(size, list):
        return size
    if size.count(size[0]) != len(size):
        raise CheckpointError(
            f"config.json has tiles or patches of {size}, and only squares are read here; use a "
            "checkpoint of the published kind."
        )
    return size[0]


def refuse_variants(config: Config) -> None:
    """Raise a `CheckpointError` for a Flash variant, and for other states of the image encoder."""
    for field, value in _ONLY_READ.items():
        if config.get(field, value) != value:
            raise CheckpointError(
                f"{field} in config.json is {as_json(config[field])}, and only {as_json(value)} "
                "is read here; use a checkpoint of the published kind."
            )
    if config["dynamic_image_size"] and not config["use_thumbnail"]:
        raise CheckpointError(
            f"use_thumbnail in config.json is {as_json(config['use_thumbnail'])}, and pictures in "
            "tiles without a thumbnail are not read here; use a checkpoint of the published kind."
        )
    side, learned = config.get("force_image_size"), config["vision_config"].get("image_size")
    if side and side != learned:
        raise CheckpointError(
            f"Pictures are to be {side} pixels wide, but image_size in config.json is "
            f"{as_json(learned)}, and positions of another size are not read here; use a "
            "checkpoint of the published kind."
        )
    fields = [name for name in _FLASH_FIELDS if name in config]
    if fields:
        raise CheckpointError(
            f"This is a Flash variant ({fields[0]} in config.json), whose router is not supported; "
            "use the checkpoint of the same size without Flash."
        )
