"""Write a checkpoint of full size with random weights, in its authors' layout.

Memory, time and speed do not depend on what weights have learned, so they can be measured without
a download. The tokenizer is a small one of the same kind: its tokens are a few of the vocabulary.

What this module does not know: which original needs what; its family's entry says so.
"""

import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from helpers.convert.folders import Report
from helpers.errors import CheckpointError, OutputError, SettingsError, writing
from helpers.models.base import VisionLanguageModel
from helpers.models.families import Original, on_meta_device, without_weights
from helpers.resources import available_memory, free_disk, in_words
from helpers.shapes import tokenizers
from helpers.sources.checkpoints import Config, read_json, write_json
from helpers.sources.key_mapping import Rule, load_tensors
from helpers.sources.saving import by_size, save_tensors

DTYPE = torch.bfloat16
SHARD = 4e9  # bytes of a file, at most, unless one tensor is larger
BLOCK = 2**25  # numbers that are drawn; tensors take them from different places
SEED = 0
MARK = "random_weights"  # a file that says which random weights a folder holds
TEXTS = 700  # questions that the small tokenizer is trained on


def write_random(original: Original, folder: Path, *, report: Report = lambda line: None) -> Path:
    """Write random weights for the configuration of `original` into `folder`, and return that.

    A folder that is complete already is kept, since the weights are the same each time, and one
    of other random weights is replaced. Raises `OutputError` for a folder that holds something
    else or cannot be written, and for a disk that is too small; `SettingsError` for such a memory.
    """
    mark = {"original": original.name, "seed": SEED, "config": original.config}
    with writing(folder, "folder"):
        folder = folder.resolve()  # also where it is a link to a larger disk
        earlier = _mark_of(folder)
        if earlier == mark | {"complete": True}:
            return folder
        if earlier:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / MARK, mark)
        _write(original, folder, report)
        write_json(folder / MARK, mark | {"complete": True})
    return folder


def _mark_of(folder: Path) -> Config:
    """Return what the mark of a folder says; {} where there is nothing."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return {}
    try:
        return read_json(folder / MARK)
    except CheckpointError:
        raise OutputError(f"{folder} holds something else; give another folder.") from None


def _write(original: Original, folder: Path, report: Report) -> None:
    config = original.config
    texts = [*tokenizers.corpus(TEXTS), *original.tokenizer.words * 100]
    trainer = tokenizers.TRAINERS[original.tokenizer.kind]
    config |= original.token_ids(trainer(texts, folder, original.tokenizer.marks))
    layout, block = without_weights(config).layout(), _block()
    shards_of = [by_size(files.tensors, SHARD, DTYPE) for files in layout]
    _check_room(original.name, folder, [shard for shards in shards_of for shard in shards])
    for files, shards in zip(layout, shards_of, strict=True):
        place = folder / files.folder
        for path, size in save_tensors(
            shards,
            place,
            files.ending,
            fill=lambda name, tensor: _filled(
                tensor, name, block, original.constant(name, tensor.shape)
            ),
        ):
            report(f"{path.name} of {place.name}: {in_words(size)}")
        if files.config is not None:
            write_json(place / "config.json", files.config)


def _check_room(name: str, folder: Path, shards: list[dict[str, Tensor]]) -> None:
    """Raise `OutputError` for a disk, and `SettingsError` for a memory, that is too small."""
    sizes = [DTYPE.itemsize * sum(map(torch.numel, shard.values())) for shard in shards]
    size, free = sum(sizes), free_disk(folder)
    if size > free:
        raise OutputError(
            f"The checkpoint of {name} takes {in_words(size)} of disk, and "
            f"{in_words(free)} are free at {folder}; give a folder on a larger disk."
        )
    memory = max(sizes) + BLOCK * DTYPE.itemsize  # a file is in memory whole before it is written
    free = available_memory() + psutil.swap_memory().free
    if memory > free:
        raise SettingsError(
            f"Writing the checkpoint of {name} takes {in_words(memory)} of memory, and "
            f"{in_words(free)} are free; close other programs, or take a smaller original."
        )


def random_model(folder: Path, dtype: torch.dtype) -> VisionLanguageModel[Any]:
    """Return the PyTorch model that a folder's `config.json` describes, with random weights."""
    model, block = on_meta_device(folder), _block()
    tensors = {
        name: _filled(tensor, name, block, None)
        for name, tensor in model.state_dict(keep_vars=True).items()
    }
    load_tensors(model, tensors, [Rule("{x}", "{x}")], dtype=dtype)
    return model


def _block() -> Tensor:
    """Return the numbers that all tensors take theirs from."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.empty(BLOCK, dtype=torch.float32).normal_(std=0.02, generator=generator).to(DTYPE)


def _filled(empty: Tensor, name: str, block: Tensor, constant: float | None) -> Tensor:
    """Return random numbers in the shape of `empty`; weights of norms are ones.

    A `constant` is what all numbers are.
    """
    if constant is not None:
        return torch.full(empty.shape, constant, dtype=DTYPE)
    if empty.dim() == 1 and name.endswith("weight"):
        return torch.ones(empty.shape, dtype=DTYPE)
    tensor = torch.empty(math.prod(empty.shape), dtype=DTYPE)
    # Each name starts elsewhere: of equal tensors, only one would be stored.
    begin, position = 0, zlib.crc32(name.encode()) % BLOCK
    while begin < len(tensor):
        piece = block[position : position + len(tensor) - begin]
        tensor[begin : begin + len(piece)] = piece
        begin, position = begin + len(piece), 0
    return tensor.reshape(empty.shape)
