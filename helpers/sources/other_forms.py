"""Forms of a model that are not read here, and what to do about each of them.

What this module does not know: the families, and what a config says beside its form.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_ORIGINAL = (
    "give the folder of the original checkpoint, in 16 or 32 bits; `convert` makes it smaller"
)


def refuse_files(folder: Path) -> None:
    """Raise a `CheckpointError` where a folder, or a file, holds GGUF or an adapter alone."""
    if folder.suffix == ".gguf" or (_has(folder, "*.gguf") and not _has(folder, "*.safetensors")):
        raise CheckpointError(
            f"{folder} holds GGUF, whose weights are quantised for llama.cpp; {_ORIGINAL}."
        )
    weights = ("model*.safetensors", "pytorch_model*.bin")
    if _has(folder, "adapter_config.json") and not any(_has(folder, name) for name in weights):
        raise CheckpointError(
            f"{folder} holds an adapter without its base model; merge both first (PEFT's "
            "`merge_and_unload`, then `save_pretrained`), and give the folder of the result."
        )


def refuse_quantised(folder: Path, config: dict[str, Any]) -> None:
    """Raise a `CheckpointError` where a config says that the weights are quantised already."""
    sections = [config, *(value for value in config.values() if isinstance(value, dict))]
    for section in sections:
        if (settings := section.get("quantization_config")) is not None:
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            raise CheckpointError(
                f"{folder} holds weights that are quantised already ({method or 'unnamed'}); "
                f"{_ORIGINAL}."
            )


def refuse_small_floats(path: Path, tensors: dict[str, "Tensor"]) -> None:
    """Raise a `CheckpointError` where a file holds floating-point numbers of 8 bits or fewer."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{path} holds {name} quantised already ({kind}); {_ORIGINAL}.")


def refuse_experts(folder: Path, model_type: object) -> None:
    """Raise a `CheckpointError` for a model type that is a mixture of experts."""
    if isinstance(model_type, str) and "moe" in model_type.split("_"):
        raise CheckpointError(
            f"{folder} holds a mixture of experts ({model_type}), which is not read here; take a "
            "dense model of the same family."
        )


def _has(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None
