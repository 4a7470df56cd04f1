"""What is trained: for each family a small configuration in the authors' layout and a tokenizer.

Widths are multiples of 128, the usual group size of INT4 weights.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from helpers.models.internvl2 import SYSTEM


@dataclass(frozen=True)
class Recipe:
    """A small model of one family: its `config.json`, its tokenizer, and how long it trains."""

    config: dict
    tokenizer: Callable[[Iterable[str], Path], int]  # trains on texts, writes files, gives the size
    vocab_size: tuple[str, ...]  # where in the config the tokenizer's size belongs
    steps: int = 5200
    batch: int = 16
    learning_rate: float = 1.2e-3

    def prepare(self, folder: Path, texts: Iterable[str]) -> None:
        """Write the tokenizer's files and `config.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        config = json.loads(json.dumps(self.config))
        *path, name = self.vocab_size
        section = config
        for key in path:
            section = section[key]
        section[name] = self.tokenizer(texts, folder)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


QWEN2_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
INTERNVL_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>"]
INTERNVL_TOKENS += ["<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]


def qwen2_tokenizer(texts: Iterable[str], folder: Path) -> int:
    """Train a byte-level BPE tokenizer as Qwen2 uses it, with InternVL2's added tokens."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Without the template's words, every prompt would spell out the long system message.
    template = [SYSTEM, "system\n", "user\n", "assistant\n"] * 100
    trained.train_from_iterator([*texts, *template], trainer)
    trained.model.save(str(folder))
    tokenizer = Qwen2Tokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )
    tokenizer.add_tokens(
        [AddedToken(t, special=True, normalized=False) for t in QWEN2_TOKENS + INTERNVL_TOKENS],
        special_tokens=True,
    )
    tokenizer.save_pretrained(folder)
    added = json.dumps(tokenizer.get_added_vocab(), indent=1)
    (folder / "added_tokens.json").write_text(added + "\n", encoding="utf-8")
    return len(tokenizer)


INTERNVL2 = {
    "architectures": ["InternVLChatModel"],
    "model_type": "internvl_chat",
    "template": "Hermes-2",
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": 64,
    "max_dynamic_patch": 4,
    "min_dynamic_patch": 1,
    "use_thumbnail": True,
    "ps_version": "v2",
    "select_layer": -1,
    "torch_dtype": "float16",
    "llm_config": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    },
    "vision_config": {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "image_size": 64,
        "patch_size": 8,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "initializer_factor": 1.0,
    },
}

RECIPES = {"internvl2": Recipe(INTERNVL2, qwen2_tokenizer, ("llm_config", "vocab_size"))}
