"""How an original checkpoint's tensors reach a native module: rules that translate names.

Rules work in both directions: from an original checkpoint into transformers' modules, and back
when a bundled model is saved. What this module does not know: how files are read.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from helpers.errors import CheckpointError

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
    join: Callable[[list[Tensor]], Tensor] = torch.cat

    @cached_property
    def native_names(self) -> tuple[str, ...]:
        """The native names as a tuple, also where there is one."""
        return (self.native,) if isinstance(self.native, str) else tuple(self.native)

    def to_native(self, name: str, tensor: Tensor) -> dict[str, Tensor] | None:
        """Return the native tensors that `tensor` becomes; None if the rule is not about it."""
        if (fields := _match(self.original, name)) is None:
            return None
        names = [native.format(**fields) for native in self.native_names]
        if len(names) == 1 and self.split is None:
            return {names[0]: tensor}
        parts = self.split(tensor) if self.split else tensor.chunk(len(names))
        return dict(zip(names, parts, strict=True))

    def to_original(self, tensors: Mapping[str, Tensor], name: str) -> tuple[str, Tensor] | None:
        """Return the original tensor whose first native part is called `name`."""
        if (fields := _match(self.native_names[0], name)) is None:
            return None
        parts = [tensors[native.format(**fields)] for native in self.native_names]
        alone = len(parts) == 1 and self.split is None
        return self.original.format(**fields), parts[0] if alone else self.join(parts)


def _match(template: str, name: str) -> dict[str, str] | None:
    pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(template))
    match = re.fullmatch(pattern, name)
    return match.groupdict() if match else None


def load_tensors(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    rules: Sequence[Rule],
    *,
    ignore: Iterable[str] = (),
    dtype: torch.dtype | None = None,
) -> None:
    """Put a checkpoint's tensors into `module`, which was built on the meta device.

    `rules` are tried in order; a tensor that no rule knows must match a name in `ignore`. The
    tensors are assigned, not copied, unless `dtype` asks for another type or they have 64 bits.
    What the config ties is apart where the checkpoint has two tensors that differ, as for
    transformers. Missing, unexpected and mis-shaped tensors raise one `CheckpointError` that lists
    them.
    """
    expected = {name: tensor.shape for name, tensor in module.state_dict(keep_vars=True).items()}
    native, problems = _native_tensors(tensors, rules, expected, tuple(ignore), dtype)
    ties = list(_ties(module))
    tied = {target for _, target, _ in ties}
    problems += [f"missing {name}" for name in expected if name not in native and name not in tied]
    if problems:
        more = f"; and {len(problems) - 12} more" if problems[12:] else ""
        raise CheckpointError(
            f"The checkpoint does not fit its config.json ({'; '.join(problems[:12])}{more}); take "
            "both from one place."
        )
    for part, target, source in ties:
        has_both = target in native and source in native
        if has_both and not torch.equal(native[target], native[source]):
            part.config.tie_word_embeddings = False  # a head that was trained apart
    module.load_state_dict(native, strict=False, assign=True)
    for submodule in module.modules():
        if hasattr(submodule, "tie_weights"):
            cast(Any, submodule).tie_weights()
    _rebuild_buffers(module)
    module.requires_grad_(False).eval()


def _native_tensors(
    tensors: Mapping[str, Tensor],
    rules: Sequence[Rule],
    expected: Mapping[str, torch.Size],
    ignore: Sequence[str],
    dtype: torch.dtype | None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Return a checkpoint's tensors by native names, and what is wrong with some of them."""
    native: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, tensor in tensors.items():
        if any(_match(pattern, name) is not None for pattern in ignore):
            continue
        try:
            parts = next((p for r in rules if (p := r.to_native(name, tensor)) is not None), {})
        except (RuntimeError, ValueError):  # it cannot be cut as a rule does
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
            # 64 bits, which nothing here computes in, become 32.
            usable = torch.float32 if part.dtype == torch.float64 else part.dtype
            native[target] = part.to(dtype or usable)
    return native, problems


def _ties(module: nn.Module) -> Iterator[tuple[Any, str, str]]:
    """Yield which parameters share another one's tensor (an LM head, say) by a part's config.

    With the part come the names of the one that shares and of the one that it shares.
    """
    for prefix, part in module.named_modules():
        if getattr(getattr(part, "config", None), "tie_word_embeddings", False):
            names = cast(dict[str, str], getattr(part, "_tied_weights_keys", None) or {})
            for pair in names.items():
                target, source = (f"{prefix}.{name}".lstrip(".") for name in pair)
                yield part, target, source


def _rebuild_buffers(module: nn.Module) -> None:
    """Compute the buffers that no checkpoint holds, such as rotary frequencies.

    They are still on the meta device; their modules compute them when they are built.
    """
    for submodule in module.modules():
        lost = [name for name, buffer in submodule.named_buffers(recurse=False) if buffer.is_meta]
        if lost:
            rebuilt = type(submodule)(submodule.config)
            for name in lost:
                submodule.register_buffer(name, getattr(rebuilt, name), persistent=False)


def original_tensors(module: nn.Module, rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Return the tensors of `module` under their original names: the inverse of `load_tensors`.

    What is tied is there once, as in the files of transformers.
    """
    first_names = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    tensors = {name: value for name, value in module.state_dict().items() if name in first_names}
    originals: dict[str, Tensor] = {}
    for name in tensors:
        for rule in rules:
            if (pair := rule.to_original(tensors, name)) is not None:
                originals[pair[0]] = pair[1].contiguous()
                break
    return originals
