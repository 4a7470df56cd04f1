"""Forms of a model that are not read here, and what to do about each of them.

What this module does not know: the families, and what a config says beside its form.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_ORIGINAL = (
    "give the folder of the original checkpoint, in 16 or 32 bits; `convert` makes it smaller"
)


# Files of AutoAWQ, AutoGPTQ and ModelOpt, which did not always say it in config.json.
_QUANTISERS = ("quant_config.json", "quantize_config.json", "hf_quant_config.json")
_OF_TEXT = ("text_config", "llm_config")  # sections of a language model, the second InternVL's
_FIELDS = ("quantization_config", "quantization", "compression_config")  # the second is MLX's


def refuse_files(folder: Path) -> None:
    """Raise a `CheckpointError` where a folder, or a file, holds what is not read here."""
    if folder.suffix == ".gguf" or (_has(folder, "*.gguf") and not _has(folder, "*.safetensors")):
        raise CheckpointError(
            f"{folder} holds GGUF, whose weights are quantised for llama.cpp; {_ORIGINAL}."
        )
    weights = ("model*.safetensors", "pytorch_model*.bin")
    has_base = any(_has(folder, name) for name in weights)
    if _has(folder, "consolidated.*.pth") and not has_base:
        raise CheckpointError(
            f"{folder} holds weights in Meta's own layout (consolidated.*.pth); take config.json, "
            "model*.safetensors and the tokenizer's files of the same page instead."
        )
    if _has(folder, "adapter_config.json") and not has_base:
        raise CheckpointError(
            f"{folder} holds an adapter without its base model; merge both first (PEFT's "
            "`merge_and_unload`, then `save_pretrained`), and give the folder of the result."
        )
    if _has(folder, "adapter_config.json") and _has(folder, "adapter_model.*"):
        raise CheckpointError(
            f"{folder} holds an adapter beside a whole model; merge both first (PEFT's "
            "`merge_and_unload`), or remove the files adapter_* if that is done."
        )
    for name in _QUANTISERS:
        if _has(folder, name):
            raise CheckpointError(
                f"{folder} holds weights that are quantised already ({name}); {_ORIGINAL}."
            )


def refuse_quantised(folder: Path, config: dict[str, Any]) -> None:
    """Raise a `CheckpointError` where a config says that the weights are quantised already."""
    sections = [config, *(value for value in config.values() if isinstance(value, dict))]
    for section, field in itertools.product(sections, _FIELDS):
        if settings := section.get(field):  # an empty one says nothing
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            method = method if isinstance(method, str) else None
            raise CheckpointError(
                f"{folder} holds weights that are quantised already ({method or 'unnamed'}); "
                f"{_ORIGINAL}."
            )


def without_quantisation(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config as that of the original, which says nothing of quantised weights."""
    return {
        name: without_quantisation(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in _FIELDS
    }


def refuse_quantised_tensors(path: Path, tensors: dict[str, "Tensor"]) -> None:
    """Raise a `CheckpointError` where a file holds quantised weights, whatever a config says.

    They are floating-point numbers of 8 bits, or matrices of integers of fewer than 64, which ids
    have.
    """
    for name, tensor in tensors.items():
        kind, size = str(tensor.dtype).removeprefix("torch."), tensor.dtype.itemsize
        is_small_float = tensor.is_floating_point() and size == 1
        is_matrix = tensor.dim() == 2 and not tensor.is_floating_point() and kind != "bool"
        if is_small_float or (is_matrix and size < 8):
            raise CheckpointError(f"{path} holds {name} quantised already ({kind}); {_ORIGINAL}.")


def refuse_parts_of_adapters(path: Path, names: Iterable[str]) -> None:
    """Raise a `CheckpointError` where a file holds LoRA beside a model's own tensors."""
    name = next((name for name in names if ".lora_" in name.lower()), None)
    if name is not None:
        raise CheckpointError(
            f"{path} holds an adapter that is not merged ({name}); merge it first (PEFT's "
            "`merge_and_unload`, then `save_pretrained`), and give the folder of the result."
        )


def refuse_experts(folder: Path, config: dict[str, Any]) -> None:
    """Raise a `CheckpointError` where a model, or its language model, is a mixture of experts."""
    for section in (config, *(config.get(name) for name in _OF_TEXT)):
        model_type = section.get("model_type") if isinstance(section, dict) else None
        if isinstance(model_type, str) and "moe" in model_type.split("_"):
            raise CheckpointError(
                f"{folder} holds a mixture of experts ({model_type}), which is not read here; take "
                "a dense model of the same family."
            )


def _has(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None
