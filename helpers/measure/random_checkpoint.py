"""Write a checkpoint of full size with random weights, in its authors' layout.

Memory, time and speed do not depend on what weights have learned, so they can be measured without
a download. The tokenizer is a small one of the same kind: its tokens are a few of the vocabulary.

What this module does not know: an image encoder inside the checkpoint (MobileVLM V2).
"""

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.measure.full_size import FULL_SIZE, without_weights
from helpers.models.clip import VISION_NAMES
from helpers.models.internvl2 import IMAGE_MARKS
from helpers.sources.checkpoints import original_tensors
from helpers.workshop import recipes
from helpers.workshop.training import corpus

Report = Callable[[str], None]
DTYPE = torch.bfloat16
SHARD = 4e9  # bytes of a file, at most, unless one tensor is larger
BLOCK = 2**25  # numbers that are drawn; tensors take them from different places


def internlm2_tokenizer(texts: Iterable[str], folder: Path) -> int:
    """Train a sentencepiece BPE tokenizer, and name InternLM2's and InternVL2's tokens."""
    marks = ["<|im_start|>", "<|im_end|>", *IMAGE_MARKS]
    size = recipes.sentencepiece_tokenizer(texts, folder, marks)
    tokens = ["<unk>", "<s>", "</s>", *marks]
    special = {str(number): {"content": token} for number, token in enumerate(tokens)}
    _write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": special})
    return size


def phi3_tokenizer(texts: Iterable[str], folder: Path) -> int:
    """Train a byte-level BPE tokenizer with Phi-3's and InternVL2's tokens."""
    chat = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    trained = recipes.byte_level_bpe(texts, [*chat, *IMAGE_MARKS])
    trained.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", {"eos_token": "<|end|>", "bos_token": chat[0]})
    return trained.get_vocab_size()


TOKENIZERS = {
    "liuhaotian/LLaVA-Lightning-MPT-7B-preview": recipes.gpt_neox_tokenizer,
    "mtgv/MobileVLM-1.7B": recipes.llama_tokenizer,
    "meta-llama/Llama-3.2-11B-Vision-Instruct": recipes.llama3_tokenizer,
    "openbmb/MiniCPM-V-2": recipes.minicpm_tokenizer,
    "OpenGVLab/InternVL2-1B": recipes.qwen2_tokenizer,
    "OpenGVLab/InternVL2-2B": internlm2_tokenizer,
    "OpenGVLab/InternVL2-4B": phi3_tokenizer,
    "OpenGVLab/InternVL2-8B": internlm2_tokenizer,
}
# Fields that hold ids of tokens, by which the config agrees with the small tokenizer.
_IDS = {
    "openbmb/MiniCPM-V-2": {
        "im_start_token_id": 3,
        "im_end_token_id": 4,
        "slice_start_token_id": 5,
        "slice_end_token_id": 6,
    }
}


def write_random(
    hub_id: str, folder: Path, *, seed: int = 0, report: Report = lambda line: None
) -> Path:
    """Write random weights for the configuration of `hub_id` into `folder`, and return that.

    Files that are there already are kept, since the same seed gives the same weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "complete"
    if done.exists():
        return folder
    config = dict(FULL_SIZE[hub_id]) | _IDS.get(hub_id, {})
    size = TOKENIZERS[hub_id](corpus(700), folder)
    if "image_token_index" in config:
        config["image_token_index"] = size
    model = without_weights(config)
    tensors = original_tensors(model, model.rules())
    tower = config.get("mm_vision_tower")
    if tower is not None:
        vision = {name: t for name, t in tensors.items() if name.startswith(VISION_NAMES)}
        tensors = {name: t for name, t in tensors.items() if name not in vision}
        (folder / tower).mkdir(parents=True, exist_ok=True)
        _write_json(folder / tower / "config.json", config.pop("vision_config"))
        _write_shards(vision, folder / tower, "model", "safetensors", seed, report)
        _write_shards(tensors, folder, "pytorch_model", "bin", seed, report)
    else:
        _write_shards(tensors, folder, "model", "safetensors", seed, report)
    _write_json(folder / "config.json", config)
    done.touch()
    return folder


def _write_shards(tensors, folder: Path, stem: str, ending: str, seed: int, report: Report) -> None:
    """Write tensors that are shapes only as one file or several with an index."""
    shards = list(_in_shards(tensors))
    generator = torch.Generator().manual_seed(seed)
    block = torch.empty(BLOCK, dtype=torch.float32).normal_(std=0.02, generator=generator).to(DTYPE)
    files = {}
    for number, names in enumerate(shards, 1):
        place = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = f"{stem}{place}.{ending}"
        filled = {name: _filled(tensors[name].shape, name, block) for name in names}
        if ending == "bin":
            torch.save(filled, folder / file)
        else:
            save_file(filled, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
        report(f"{file} of {folder.name}: {sum(t.nbytes for t in filled.values()) / 1e9:.1f} GB")
    if len(shards) > 1:
        _write_json(folder / f"{stem}.{ending}.index.json", {"weight_map": files})


def _in_shards(tensors: dict[str, Tensor]) -> Iterator[list[str]]:
    names, size = [], 0
    for name, tensor in tensors.items():
        taken = tensor.numel() * DTYPE.itemsize
        if names and size + taken > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += taken
    yield names


def _filled(shape: torch.Size, name: str, block: Tensor) -> Tensor:
    """Return a tensor of random numbers; weights of norms are ones."""
    if len(shape) == 1 and name.endswith("weight"):
        return torch.ones(shape, dtype=DTYPE)
    tensor = torch.empty(math.prod(shape), dtype=DTYPE)
    # Each name starts elsewhere: of equal tensors, only one would be stored.
    begin, position = 0, zlib.crc32(name.encode()) % BLOCK
    while begin < len(tensor):
        piece = block[position : position + len(tensor) - begin]
        tensor[begin : begin + len(piece)] = piece
        begin, position = begin + len(piece), 0
    return tensor.reshape(shape)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
