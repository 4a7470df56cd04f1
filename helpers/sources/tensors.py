"""Reading a checkpoint's tensors: mapped into memory, in the type that the files have.

So loading 13 GB takes seconds and no memory of its own. What this module does not know: quantised
checkpoints, which are refused, and weights spread over several devices.
"""

import zipfile
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from helpers.errors import CheckpointError, check_resources, reason_of, unreadable
from helpers.sources.checkpoints import read_json
from helpers.sources.other_forms import refuse_parts_of_adapters, refuse_quantised_tensors

# How DistributedDataParallel, torch.compile and PEFT name the model that they hold.
_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Map all tensors of a checkpoint into memory, in the type that the files have.

    Reads `*.safetensors` or `pytorch_model*.bin`, in one file or in the shards that an index
    names. Nothing but tensors is unpickled. Raises `CheckpointError` for files that are missing or
    damaged, and for weights that are quantised already or an adapter's.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(Path(folder)):
        is_safe = path.suffix == ".safetensors"
        content = _open_safetensors(path) if is_safe else _open_bin(path)
        refuse_parts_of_adapters(path, content)
        refuse_quantised_tensors(path, content)
        tensors.update(content)
    return _unwrapped(tensors)


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without what wrappers put before the names of all of them."""
    for prefix in _WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            shorter = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            return _unwrapped(shorter)  # one may be within another
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint's weights: one, or the shards that an index names.

    One whole file counts where both are there, as for transformers: it was saved over the shards.

    Raises `CheckpointError` where there are none, or an index names others.
    """
    kinds = (("model", "safetensors"), ("pytorch_model", "bin"))
    for stem, ending in kinds:
        if (folder / f"{stem}.{ending}").exists():
            return [folder / f"{stem}.{ending}"]
        index = folder / f"{stem}.{ending}.index.json"
        if index.exists():
            shards = read_json(index).get("weight_map")
            names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
            # A name is a file of this folder, not a path to somewhere else.
            files = {path.name for path in folder.iterdir() if path.is_file()}
            missing = [name[:80] for name in names if name not in files]
            if missing or not names:
                raise CheckpointError(
                    f"{index} names files that are not there ({', '.join(missing[:3]) or 'none'}); "
                    "download the checkpoint again."
                )
            return [folder / name for name in names]
    for stem, ending in kinds:
        if any(folder.glob(f"{stem}*-of-*.{ending}")):
            index = folder / f"{stem}.{ending}.index.json"
            raise CheckpointError(
                f"{index} is missing, which tells what the shards hold; download it."
            )
    raise CheckpointError(
        f"{folder} holds no model.safetensors and no pytorch_model.bin, whole or in shards; "
        "give the folder of an original checkpoint."
    )


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        path.open("rb").close()  # or it is told as one that is not there
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except PermissionError:
        raise CheckpointError(unreadable(path)) from None
    except Exception as error:  # a header may ask for anything, and for types that torch lacks
        check_resources(error)
        raise CheckpointError(
            f"{path} is damaged ({reason_of(error)}); download it again."
        ) from None
    return tensors


def _open_bin(path: Path) -> dict[str, Tensor]:
    try:
        # What torch wrote before 1.6 is no archive and cannot be mapped: it is read into memory.
        is_mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", mmap=is_mapped, weights_only=True)
    except PermissionError:
        raise CheckpointError(unreadable(path)) from None
    except Exception as error:  # torch raises half a dozen types for a damaged or unsafe pickle
        check_resources(error)
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors ({reason_of(error)}); download it again."
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(
            f"{path} should hold named tensors and nothing else; download it again."
        )
    return content
