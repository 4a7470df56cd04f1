"""Where weights come from, and how an original checkpoint's tensors reach a native module.

Tensors are memory-mapped and keep the type that the file has, so loading 13 GB takes seconds and
no memory of its own. Names are translated by rules, which work in both directions: from an
original checkpoint into transformers' modules, and back when a bundled model is saved.

What this module does not know: remote code, quantised checkpoints (GPTQ, AWQ, GGUF), weights
spread over several devices.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from helpers.errors import CheckpointError

BUNDLED = Path(__file__).parent.parent / "shapes" / "checkpoints"
CARD = "bundled.json"  # stands beside a bundled checkpoint and says what it knows


def bundled_checkpoints() -> dict[str, Path]:
    """Return the folders of the small checkpoints that come with this collection, by name."""
    return {path.parent.name: path.parent for path in sorted(BUNDLED.glob("*/config.json"))}


def read_json(path: Path) -> dict:
    """Read a JSON object; an unreadable file is a `CheckpointError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; give a checkpoint's folder."
        ) from None
    except (OSError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({error}); download it again."
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object; download it again.")
    return content


def read_config(folder: Path) -> dict:
    """Read a checkpoint's `config.json`, and check the numbers that size a model."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a checkpoint's folder.")
    config = read_json(folder / "config.json")
    check_sizes(config, folder / "config.json")
    return config


# The most that a field of a config may ask for, far above any model that fits a computer: what
# follows from these numbers is built in loops and held in memory before any weight is looked at.
_LIMITS = {
    1_000: (
        "num_hidden_layers",
        "num_global_layers",
        "n_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "attention_heads",
        "n_heads",
        "expansion_ratio",
        "num_channels",
        "min_dynamic_patch",
        "max_dynamic_patch",
        "max_slice_nums",
        "max_num_tiles",
    ),
    10_000: ("image_size", "force_image_size", "scale_resolution", "patch_size", "query_num"),
    1_000_000: ("hidden_size", "intermediate_size", "d_model", "head_dim", "vision_output_dim"),
    100_000_000: ("vocab_size", "max_position_embeddings", "max_seq_len"),
}
_LIMIT_OF = {name: limit for limit, names in _LIMITS.items() for name in names}


def check_sizes(config: dict, path: Path) -> None:
    """Raise a `CheckpointError` where a number that sizes something is none, or beyond reason.

    Looks into sections too. A field that is null counts as one that is not there.
    """
    for name, value in config.items():
        if isinstance(value, dict):
            check_sizes(value, path)
        limit = _LIMIT_OF.get(name)
        if limit is None or value is None:
            continue
        for number in value if isinstance(value, list) else [value]:
            if not _is_whole(number) or not 1 <= number <= limit:
                raise CheckpointError(
                    f"{name} in {path} is {_shortened(value)}, which should be a whole number "
                    f"from 1 to {limit:,}; download the checkpoint again."
                )


def _is_whole(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value == int(value)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


# Reading tensors


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Map all tensors of a checkpoint into memory, in the type that the files have.

    Reads `*.safetensors` or `pytorch_model*.bin`, in one file or in the shards that an index
    names. Nothing but tensors is unpickled.
    """
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(Path(folder)):
        tensors.update(
            _open_safetensors(path) if path.suffix == ".safetensors" else _open_bin(path)
        )
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{ending}.index.json"
        if index.exists():
            shards = read_json(index).get("weight_map")
            names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
            # A name is a file of this folder, not a path to somewhere else.
            there = {path.name for path in folder.iterdir() if path.is_file()}
            missing = [name[:80] for name in names if name not in there]
            if missing or not names:
                raise CheckpointError(
                    f"{index} names files that are not there ({', '.join(missing[:3]) or 'none'}); "
                    "download the checkpoint again."
                )
            return [folder / name for name in names]
        if (folder / f"{stem}.{ending}").exists():
            return [folder / f"{stem}.{ending}"]
    raise CheckpointError(
        f"{folder} holds no model.safetensors and no pytorch_model.bin, whole or in shards; "
        "give the folder of an original checkpoint."
    )


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # a header may ask for anything, and for types that torch lacks
        reason = " ".join(str(error).split("\n")[0].split())
        raise CheckpointError(f"{path} is damaged ({reason}); download it again.") from None


def _open_bin(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a damaged or unsafe pickle
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is damaged or holds more than tensors ({reason}).") from None
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(f"{path} should hold named tensors and nothing else.")
    return content


# Translating names

_WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Rule:
    """How one kind of tensor is called in the original checkpoint and in the native module.

    `{x}` in a name stands for any text and is carried over. With several native names the tensor
    is cut along its first dimension: in equal parts, or as `split` cuts it (`join` undoes it). For
    one native name, `split` and `join` may change the shape.
    """

    original: str
    native: str | Sequence[str]
    split: Callable[[Tensor], Sequence[Tensor]] | None = None
    join: Callable[[Sequence[Tensor]], Tensor] = torch.cat

    @cached_property
    def native_names(self) -> tuple[str, ...]:
        """The native names as a tuple, also where there is one."""
        return (self.native,) if isinstance(self.native, str) else tuple(self.native)

    def to_native(self, name: str, tensor: Tensor) -> dict[str, Tensor] | None:
        """Return the native tensors that `tensor` becomes; None if the rule is not about it."""
        if (found := _match(self.original, name)) is None:
            return None
        names = [native.format(**found) for native in self.native_names]
        if len(names) == 1 and self.split is None:
            return {names[0]: tensor}
        parts = self.split(tensor) if self.split else tensor.chunk(len(names))
        return dict(zip(names, parts, strict=True))

    def to_original(self, tensors: Mapping[str, Tensor], name: str) -> tuple[str, Tensor] | None:
        """Return the original tensor whose first native part is called `name`."""
        if (found := _match(self.native_names[0], name)) is None:
            return None
        parts = [tensors[native.format(**found)] for native in self.native_names]
        alone = len(parts) == 1 and self.split is None
        return self.original.format(**found), parts[0] if alone else self.join(parts)


def _match(template: str, name: str) -> dict[str, str] | None:
    pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(template))
    found = re.fullmatch(pattern, name)
    return found.groupdict() if found else None


def load_tensors(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    rules: Sequence[Rule],
    *,
    ignore: Iterable[str] = ("{x}rotary_emb.inv_freq",),
    dtype: torch.dtype | None = None,
) -> None:
    """Put a checkpoint's tensors into `module`, which was built on the meta device.

    `rules` are tried in order; a tensor that no rule knows must match a name in `ignore`. The
    tensors are assigned, not copied, unless `dtype` asks for another type. Missing, unexpected
    and mis-shaped tensors raise one `CheckpointError` that lists them.
    """
    ignore = tuple(ignore)
    native: dict[str, Tensor] = {}
    problems: list[str] = []
    expected = {name: tensor.shape for name, tensor in module.state_dict(keep_vars=True).items()}
    for name, tensor in tensors.items():
        if any(_match(pattern, name) is not None for pattern in ignore):
            continue
        try:
            parts = next((p for r in rules if (p := r.to_native(name, tensor)) is not None), {})
        except RuntimeError:  # it cannot be cut as a rule does
            problems.append(f"mis-shaped {name}: {tuple(tensor.shape)}")
            continue
        if not parts or not set(parts) <= set(expected):
            problems.append(f"unexpected {name}")
            continue
        for target, part in parts.items():
            if part.shape != expected[target]:
                shapes = f"{tuple(part.shape)}, not {tuple(expected[target])}"
                problems.append(f"mis-shaped {name}: {shapes}")
            if part.dtype not in _WEIGHT_TYPES:
                problems.append(f"{name} of type {part.dtype}")
            native[target] = part if dtype is None else part.to(dtype)
    tied = _tied_names(module)
    problems += [f"missing {name}" for name in expected if name not in native and name not in tied]
    if problems:
        shown = "; ".join(problems[:12]) + (
            f"; and {len(problems) - 12} more" if problems[12:] else ""
        )
        raise CheckpointError(f"The checkpoint does not fit its config.json: {shown}.")
    module.load_state_dict(native, strict=False, assign=True)
    for part in module.modules():
        if hasattr(part, "tie_weights"):
            part.tie_weights()
    _rebuild_buffers(module)
    module.requires_grad_(False).eval()


def _tied_names(module: nn.Module) -> set[str]:
    """Return the names of parameters that share another one's tensor (an LM head, say)."""
    names: set[str] = set()
    for prefix, part in module.named_modules():
        config = getattr(part, "config", None)
        if getattr(config, "tie_word_embeddings", False) and getattr(
            part, "_tied_weights_keys", None
        ):
            names |= {f"{prefix}.{name}".lstrip(".") for name in part._tied_weights_keys}
    return names


def _rebuild_buffers(module: nn.Module) -> None:
    """Compute the buffers that no checkpoint holds, such as rotary frequencies.

    They are still on the meta device; their modules compute them when they are built.
    """
    for part in module.modules():
        lost = [name for name, buffer in part.named_buffers(recurse=False) if buffer.is_meta]
        if lost:
            rebuilt = type(part)(part.config)
            for name in lost:
                part.register_buffer(name, getattr(rebuilt, name), persistent=False)


def original_tensors(module: nn.Module, rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Return the tensors of `module` under their original names: the inverse of `load_tensors`."""
    tensors = dict(module.state_dict())
    originals: dict[str, Tensor] = {}
    for name in tensors:
        for rule in rules:
            if (pair := rule.to_original(tensors, name)) is not None:
                originals[pair[0]] = pair[1].contiguous()
                break
    return originals
