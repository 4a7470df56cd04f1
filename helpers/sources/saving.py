"""Writing tensors in the formats of original checkpoints: one file, or shards with an index.

What this module does not know: which tensors belong together.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from helpers.errors import reason_of
from helpers.sources.checkpoints import write_json

STEMS = {"safetensors": "model", "bin": "pytorch_model"}


def save_tensors(
    shards: Sequence[dict[str, Tensor]],
    folder: Path,
    ending: str,
    *,
    fill: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
) -> Iterator[tuple[Path, int]]:
    """Write `shards` as files that end in safetensors or bin; yield each path with its bytes.

    With more than one there is an index, as transformers writes it. `fill` returns what is written
    for a tensor, for instance numbers for one on the meta device. Raises `OSError` where a file
    cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file_of: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        place = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        path = folder / f"{STEMS[ending]}{place}.{ending}"
        filled = {name: fill(name, tensor) for name, tensor in shard.items()}
        try:
            _save(filled, path)
        except (RuntimeError, SafetensorError) as error:  # what they make of a full disk
            raise OSError(reason_of(error)) from None
        file_of |= dict.fromkeys(shard, path.name)
        size = sum(tensor.nbytes for tensor in filled.values())
        total += size
        yield path, size
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        write_json(folder / f"{STEMS[ending]}.{ending}.index.json", index)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    if path.suffix == ".bin":
        # A clone has its own storage; a view would take the whole tensor it is part of along.
        torch.save({name: _with_own_storage(tensor) for name, tensor in tensors.items()}, path)
    else:
        save_file(tensors, path, metadata={"format": "pt"})


def _with_own_storage(tensor: Tensor) -> Tensor:
    is_alone = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if is_alone else tensor.clone()


def in_shards(tensors: dict[str, Tensor], number: int) -> list[dict[str, Tensor]]:
    """Return tensors in `number` shards with as many tensors each, give or take one."""
    names = list(tensors)
    size = -(-len(names) // number)
    starts = range(0, len(names), size)
    return [{name: tensors[name] for name in names[start : start + size]} for start in starts]


def by_size(
    tensors: dict[str, Tensor], maximum: float, dtype: torch.dtype
) -> list[dict[str, Tensor]]:
    """Return tensors in shards of at most `maximum` bytes in `dtype`, if no tensor is larger."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        tensor_bytes = tensor.numel() * dtype.itemsize
        if shards[-1] and size + tensor_bytes > maximum:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor_bytes
    return shards
