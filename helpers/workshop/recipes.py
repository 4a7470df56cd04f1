"""What is trained: for each family a small configuration in the authors' layout and a tokenizer.

Widths are multiples of 128, the usual group size of INT4 weights.
"""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from helpers.graphs.compression import PRESETS, Weights
from helpers.models import internvl2, llava_mpt, minicpm_v2, mllama, mobilevlm
from helpers.shapes import world
from helpers.workshop import beginnings
from helpers.workshop.beginnings import Beginning

# Pictures in a batch of each sort: the work goes with tiles and questions.
BATCHES = {"name": 64, "word": 32, "strip": 32, "small": 16, "large": 16}


@dataclass(frozen=True)
class Recipe:
    """A small model of one family: its config, tokenizer and files, its training and its INT4.

    `sizes` are the places in the config where the number of tokens belongs, each a path of names.
    `tower` is the config of an image encoder that the authors keep in a folder of its own, which
    the config names. With `shards`, weights are written as that many `.bin` files, else as one of
    safetensors. Words are learned in pictures of `word_grids`. Where the image encoder sees tiles
    as one picture, small pictures are drawn at several `scales`. `instruction` is what the authors'
    training put behind questions that a word answers. Training begins with parts of the bundled
    models of the families in `begins_with`, each with what becomes of them here. `int4` is how its
    notebook stores the language model in 4 bits.
    """

    config: dict
    tokenizer: Callable[[Iterable[str], Path], int]  # trains on texts, writes files, gives the size
    sizes: tuple[tuple[str, ...], ...] = (("vocab_size",),)
    tower: dict | None = None
    shards: int = 0
    word_grids: tuple[tuple[int, int], ...] = ((1, 1),)
    scales: tuple[int, ...] = (1,)
    instruction: str = ""
    begins_with: dict[str, Beginning] = field(default_factory=dict)
    steps: int = 8000
    batches: dict[str, int] = field(default_factory=lambda: BATCHES)
    learning_rate: float = 1.2e-3
    int4: Weights = PRESETS["int4"].language_model

    def prepare(self, folder: Path, texts: Iterable[str]) -> None:
        """Write the tokenizer's files and the configs into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        config = json.loads(json.dumps(self.config))
        size = self.tokenizer([*texts, *[self.instruction] * 100], folder)
        for *path, name in self.sizes:
            section = config
            for key in path:
                section = section[key]
            section[name] = size
        _write_json(folder / "config.json", config)
        if self.tower is not None:
            (folder / config["mm_vision_tower"]).mkdir(exist_ok=True)
            _write_json(folder / config["mm_vision_tower"] / "config.json", self.tower)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# Tokenizers

TEXT_TOKENS = 640  # in a trained vocabulary, at most: words whole, letters and bytes single


def byte_level_bpe(texts: Iterable[str], specials: Sequence[str] = ()) -> Tokenizer:
    """Train a byte-level BPE tokenizer, whose first ids are `specials`."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_TOKENS,
        min_frequency=2,
        special_tokens=[_special(token) for token in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    return trained


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


QWEN2_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
INTERNVL_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>"]
INTERNVL_TOKENS += ["<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]


def qwen2_tokenizer(texts: Iterable[str], folder: Path) -> int:
    """Train a byte-level BPE tokenizer as Qwen2 uses it, with InternVL2's added tokens."""
    # Without the template's words, every prompt would spell out the long system message.
    template = [internvl2.SYSTEM, "system\n", "user\n", "assistant\n"] * 100
    byte_level_bpe([*texts, *template]).model.save(str(folder))
    tokenizer = Qwen2Tokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )
    tokenizer.add_tokens(
        [_special(token) for token in QWEN2_TOKENS + INTERNVL_TOKENS], special_tokens=True
    )
    tokenizer.save_pretrained(folder)
    _write_json(folder / "added_tokens.json", tokenizer.get_added_vocab())
    return len(tokenizer)


def gpt_neox_tokenizer(texts: Iterable[str], folder: Path) -> int:
    """Train a byte-level BPE tokenizer as GPT-NeoX uses it, with the tokens of MPT's chat."""
    end = "<|endoftext|>"
    template = [llava_mpt.SYSTEM, "system\n", "user\n", "assistant\n"] * 100
    trained = byte_level_bpe([*texts, *template], [end])
    chat = ["<|im_start|>", "<|im_end|>", *llava_mpt.IMAGE_MARKS]
    trained.add_special_tokens([_special(token) for token in chat])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, bos_token=end, eos_token=end)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def llama_tokenizer(texts: Iterable[str], folder: Path) -> int:
    """Train a sentencepiece BPE tokenizer as Llama uses it."""
    template = [mobilevlm.TEMPLATE.system, "USER: ", " ASSISTANT: "] * 100
    return sentencepiece_tokenizer([*texts, *template], folder)


def minicpm_tokenizer(texts: Iterable[str], folder: Path) -> int:
    """Train a sentencepiece BPE tokenizer with MiniCPM-V-2's marks of pictures and of turns."""
    marks = [token for token in minicpm_v2.MARKS if token != "<unk>"]
    return sentencepiece_tokenizer(texts, folder, [*marks, "<用户>", "<AI>"])


def sentencepiece_tokenizer(texts: Iterable[str], folder: Path, marks: Sequence[str] = ()) -> int:
    """Train a sentencepiece BPE tokenizer, with ids from 3 on for `marks`."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=trained,
        model_type="bpe",
        vocab_size=TEXT_TOKENS,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        split_digits=True,
        required_chars=world.LETTERS,
        user_defined_symbols=list(marks),
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True} | special
    _write_json(folder / "tokenizer_config.json", config)
    return len(LlamaTokenizer.from_pretrained(folder))


LLAMA3_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"]
LLAMA3_TOKENS += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def llama3_tokenizer(texts: Iterable[str], folder: Path) -> int:
    """Train a byte-level BPE tokenizer as Llama 3 uses it; `<|image|>` follows all other tokens."""
    trained = byte_level_bpe([*texts, *["user\n\n", "assistant\n\n"] * 100], LLAMA3_TOKENS)
    size = trained.get_vocab_size()
    trained.add_special_tokens([_special(mllama.IMAGE_TOKEN)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained, bos_token=LLAMA3_TOKENS[0], eos_token=LLAMA3_TOKENS[-1]
    )
    tokenizer.save_pretrained(folder)
    return size


# Configs

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

# One picture is one tile for CLIP, so it is larger than a tile of InternVL2, for words to be read.
CLIP = {
    "architectures": ["CLIPVisionModel"],
    "model_type": "clip_vision_model",
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,  # the last one is not used, as in the authors' checkpoints
    "num_attention_heads": 4,
    "num_channels": 3,
    "image_size": 96,
    "patch_size": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 128,
}
LLAVA = {
    "mm_vision_tower": "clip",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_hidden_size": 128,
    "use_mm_proj": True,
    "image_aspect_ratio": "pad",  # or a strip of two places would lose half of each
    "torch_dtype": "float16",
}

LLAVA_MPT = LLAVA | {
    "architectures": ["LlavaMPTForCausalLM"],
    "model_type": "llava_mpt",
    "mm_use_im_start_end": True,
    "d_model": 128,
    "n_heads": 4,
    "n_layers": 4,
    "expansion_ratio": 4,
    "max_seq_len": 2048,
    "no_bias": True,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "attn_config": {"attn_type": "multihead_attention", "alibi": True, "alibi_bias_max": 8},
    "bos_token_id": 0,
    "eos_token_id": 0,
}

MOBILEVLM = LLAVA | {
    "architectures": ["MobileLlamaForCausalLM"],
    "model_type": "mobilevlm",
    "vision_tower_type": "clip",
    "mm_projector_type": "ldpnet",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,  # that of the language model that training begins with
    "rope_scaling": None,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

MINICPM_V2 = {
    "architectures": ["MiniCPMV"],
    "model_type": "minicpmv",
    "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
    "drop_vision_last_layer": True,
    "slice_mode": True,
    "patch_size": 8,
    "scale_resolution": 64,
    "max_slice_nums": 4,
    "query_num": 16,
    "mm_use_im_start_end": True,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,  # that of the language model that training begins with
    "rope_scaling": None,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "scale_emb": 2,
    "scale_depth": 1.4,
    "dim_model_base": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "im_start_token_id": 3,
    "im_end_token_id": 4,
    "slice_start_token_id": 5,
    "slice_end_token_id": 6,
    "torch_dtype": "float16",
    "vision_config": {  # instead of what is known of the image encoder that is named above
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
    },
}

MLLAMA = {
    "architectures": ["MllamaForConditionalGeneration"],
    "model_type": "mllama",
    "torch_dtype": "float16",
    "text_config": {
        "model_type": "mllama_text_model",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "cross_attention_layers": [1, 3],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
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
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": [1, 5],
        "pad_token_id": 2,
    },
    "vision_config": {
        "model_type": "mllama_vision_model",
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_global_layers": 1,
        "attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "max_num_tiles": 4,
        "num_channels": 3,
        "intermediate_layers_indices": [1, 2],
        "supported_aspect_ratios": [
            [columns, rows]
            for columns in range(1, 5)
            for rows in range(1, 5)
            if columns * rows <= 4
        ],
        "vision_output_dim": 3 * 128,  # the last states, and those of the layers above
        "norm_eps": 1e-5,
        "hidden_act": "gelu",
    },
}

WHOLE = ((1, 1), (1, 1), (2, 2))  # CLIP reads a whole picture in one tile
MIXED = Weights("int4-asym", group_size=128, ratio=0.8)
RECIPES = {
    "internvl2": Recipe(INTERNVL2, qwen2_tokenizer, (("llm_config", "vocab_size"),)),
    "llava_mpt": Recipe(
        LLAVA_MPT, gpt_neox_tokenizer, tower=CLIP, shards=2, word_grids=WHOLE, int4=MIXED
    ),
    # A finer grid, of which the projector leaves a quarter.
    "mobilevlm": Recipe(
        MOBILEVLM,
        llama_tokenizer,
        tower=CLIP | {"patch_size": 6},
        shards=1,
        word_grids=WHOLE,
        instruction=mobilevlm.SHORT_ANSWER,
        begins_with={"llava_mpt": beginnings.clip, "internvl2": beginnings.qwen2_as_llama},
        steps=6000,
        learning_rate=8e-4,
        int4=MIXED,
    ),
    "minicpm_v2": Recipe(
        MINICPM_V2,
        minicpm_tokenizer,
        begins_with={"internvl2": beginnings.internvl2_as_minicpm},
        steps=6000,
        learning_rate=8e-4,
        int4=Weights("int4-sym", group_size=64, ratio=0.6),
    ),
    "mllama": Recipe(
        MLLAMA,
        llama3_tokenizer,
        (("text_config", "vocab_size"), ("image_token_index",)),
        begins_with={
            "llava_mpt": beginnings.clip_as_mllama,
            "internvl2": beginnings.qwen2_as_mllama,
        },
        word_grids=((2, 2),),
        scales=(1, 2, 2, 2),
        steps=6300,
        batches=BATCHES | {"name": 16},  # a picture costs all its tiles, used or not
        learning_rate=8e-4,
        int4=Weights(
            "int4-asym",
            group_size=64,
            all_layers=True,
            awq=True,
            scale_estimation=True,
            sensitivity="max_activation_variance",
            samples=24,
        ),
    ),
}
