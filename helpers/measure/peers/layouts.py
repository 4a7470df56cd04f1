"""The language models that files of llama.cpp name, as what is written into such a file.

What this module does not know: image encoders, and weights that have learned something.
"""

from pathlib import Path
from typing import Any

from helpers.errors import SettingsError
from helpers.models.families import on_meta_device

# By transformers' `model_type`, which is also llama.cpp's name. (`MODEL_ARCH_NAMES` in gguf's
# constants.py has more; those need fields of their own.)
ARCHITECTURES = ("llama", "qwen2", "qwen3")


def gguf_layout(folder: Path) -> dict[str, Any]:
    """Return a language model's architecture, sizes, and tensors' shapes by transformers' names.

    The sizes are called as the methods of gguf's `GGUFWriter` that add them. Raises `SettingsError`
    for a language model that is none of `ARCHITECTURES`.
    """
    model = on_meta_device(folder).language_model
    config: Any = model.config
    if config.model_type not in ARCHITECTURES:
        names = ", ".join(ARCHITECTURES)
        raise SettingsError(
            f"its files hold language models of the kinds {names} here, and this one is of the "
            f"kind {config.model_type}"
        )
    head_size = getattr(config, "head_dim", None)
    head_size = head_size or config.hidden_size // config.num_attention_heads
    return {
        "architecture": config.model_type,
        "sizes": {
            "vocab_size": config.vocab_size,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "block_count": config.num_hidden_layers,
            "feed_forward_length": config.intermediate_size,
            "head_count": config.num_attention_heads,
            "head_count_kv": config.num_key_value_heads,
            "key_length": head_size,
            "value_length": head_size,
            "rope_dimension_count": head_size,
            "layer_norm_rms_eps": config.rms_norm_eps,
            "rope_freq_base": config.rope_parameters["rope_theta"],
        },
        "tensors": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
    }
