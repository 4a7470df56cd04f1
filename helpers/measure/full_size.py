"""What the `config.json` of each original checkpoint says, where it matters for its size.

Published files were read where they could be; other values follow from the authors' training
scripts and from the language models that they name, and the numbers of parameters agree with the
published ones. A checkpoint's own file always counts: nothing that reads one looks here. These are
for measuring what a full-size model needs without having it.
"""

from pathlib import Path

import torch

from helpers.models import FAMILIES
from helpers.models.base import VisionLanguageModel

CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

LLAVA_MPT = {
    "model_type": "llava_mpt",
    "d_model": 4096,
    "n_heads": 32,
    "n_layers": 32,
    "expansion_ratio": 4,
    "max_seq_len": 2048,
    "vocab_size": 50282,  # GPT-NeoX's 50277 tokens, two of MPT's chat, three image marks
    "no_bias": True,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "attn_config": {"alibi": True, "alibi_bias_max": 8},
    "mm_vision_tower": "openai/clip-vit-large-patch14",
    "mm_vision_select_layer": -2,
    "mm_use_im_start_end": True,
    "vision_config": CLIP_LARGE,
}

MOBILEVLM = {
    "model_type": "mobilevlm",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_vision_select_layer": -2,
    "mm_projector_type": "ldpnet",
    "image_aspect_ratio": "pad",
    "vision_config": CLIP_LARGE | {"image_size": 336},
}
MOBILEVLM_V2 = MOBILEVLM | {"mm_projector_type": "ldpnetv2"}

MINICPM_V2 = {
    "model_type": "minicpmv",
    "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
    "drop_vision_last_layer": True,
    "patch_size": 14,
    "query_num": 64,
    "slice_mode": True,
    "max_slice_nums": 9,
    "scale_resolution": 448,
    "hidden_size": 2304,
    "intermediate_size": 5760,
    "num_hidden_layers": 40,
    "num_attention_heads": 36,
    "num_key_value_heads": 36,
    "vocab_size": 122753,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

MLLAMA = {
    "model_type": "mllama",
    "image_token_index": 128256,
    "text_config": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "pad_token_id": 128004,
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_global_layers": 8,
        "attention_heads": 16,
        "image_size": 560,
        "patch_size": 14,
        "max_num_tiles": 4,
        "vision_output_dim": 7680,
        "intermediate_layers_indices": [3, 7, 15, 23, 30],
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        "hidden_act": "gelu",
        "norm_eps": 1e-5,
    },
}


def _internvl2(template: str, architecture: str, **language_model) -> dict:
    return {
        "model_type": "internvl_chat",
        "template": template,
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "use_thumbnail": True,
        "ps_version": "v2",
        "select_layer": -1,
        "vision_config": {  # InternViT-300M-448px, the same in all sizes
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "image_size": 448,
            "patch_size": 14,
            "qkv_bias": True,
            "qk_normalization": False,
            "norm_type": "layer_norm",
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
            "initializer_factor": 1.0,
        },
        "llm_config": {"architectures": [architecture], "hidden_act": "silu"} | language_model,
    }


INTERNVL2_1B = _internvl2(
    "Hermes-2",
    "Qwen2ForCausalLM",
    vocab_size=151655,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    max_position_embeddings=32768,
)
_INTERNLM2 = {
    "vocab_size": 92553,
    "num_key_value_heads": 8,
    "bias": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "max_position_embeddings": 32768,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
INTERNVL2_2B = _internvl2(
    "internlm2-chat",
    "InternLM2ForCausalLM",
    **_INTERNLM2,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=24,
    num_attention_heads=16,
)
INTERNVL2_4B = _internvl2(
    "phi3-chat",
    "Phi3ForCausalLM",
    vocab_size=32020,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    # The published factors are not known here; their number is, and ones change no size.
    rope_scaling={"type": "su", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48},
    max_position_embeddings=131072,
    original_max_position_embeddings=4096,
    pad_token_id=32000,
    bos_token_id=1,
    eos_token_id=32000,
)
INTERNVL2_8B = _internvl2(
    "internlm2-chat",
    "InternLM2ForCausalLM",
    **_INTERNLM2,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
)

FULL_SIZE = {
    "liuhaotian/LLaVA-Lightning-MPT-7B-preview": LLAVA_MPT,
    "mtgv/MobileVLM-1.7B": MOBILEVLM,
    "mtgv/MobileVLM_V2-1.7B": MOBILEVLM_V2,
    "meta-llama/Llama-3.2-11B-Vision-Instruct": MLLAMA,
    "openbmb/MiniCPM-V-2": MINICPM_V2,
    "OpenGVLab/InternVL2-1B": INTERNVL2_1B,
    "OpenGVLab/InternVL2-2B": INTERNVL2_2B,
    "OpenGVLab/InternVL2-4B": INTERNVL2_4B,
    "OpenGVLab/InternVL2-8B": INTERNVL2_8B,
}


def without_weights(config: dict) -> VisionLanguageModel:
    """Return the model that `config` describes on the meta device, which takes no memory."""
    family = FAMILIES[config["model_type"]]
    with torch.device("meta"):
        return family(config, family.processor_class(Path(), config))
