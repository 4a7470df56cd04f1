"""The parts that a model is exported in: what each takes and returns.

What this module does not know: how a part becomes an OpenVINO model (`tracing`), and which parts a
family has.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from helpers.graphs.part_names import IMAGE_ENCODER, LANGUAGE_MODEL
from helpers.upstream.transformers import cache_argument

SENSITIVE = "sensitive_layers"  # of a traced model's information, which its file keeps


@dataclass(frozen=True)
class Part:
    """One piece of a model that becomes one OpenVINO model.

    `module` takes `example_inputs` in their order and returns `outputs` in theirs. Sizes on the
    axes that `fixed` names for an input stay as in the example, all others become dynamic; those
    should not be 1, which tracing may take for "always 1". `cache` pairs the KV cache's inputs
    with the outputs that replace them. The layers whose names end with one of `sensitive` keep 8
    bits where others get 4.
    """

    name: str
    module: nn.Module
    example_inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    fixed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    cache: dict[str, str] = field(default_factory=dict)
    sensitive: tuple[str, ...] = ()


class Traceable(nn.Module):
    """A function of a model as a module, which holds just the modules that the function uses."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.used = nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Call the function."""
        return self.function(*inputs)


def part_of_one_size(image_encoder: nn.Module, side: int) -> Part:
    """Return the part of an image encoder of any number of squares, (number, 3, side, side)."""
    return Part(
        IMAGE_ENCODER,
        image_encoder,
        {"pixel_values": torch.zeros(2, 3, side, side)},
        outputs=("last_hidden_state",),
        fixed={"pixel_values": (1, 2, 3)},
    )


class DecoderWithCache(nn.Module):
    """A causal language model as it is traced: the KV cache goes in and comes out as tensors.

    Takes `inputs_embeds` (batch, new, hidden), `attention_mask` (batch, past + new),
    `position_ids` (batch, new) and for each layer the past keys and values (batch, heads, past,
    head size). Returns the logits of the last position (batch, 1, vocabulary), then each layer's
    keys and values with the new ones behind the past ones.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Run the decoder on the new positions."""
        output = self.decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=True,
            logits_to_keep=1,  # otherwise prefill computes a row of logits for every position
            **cache_argument(self.decoder.forward, cache_of(past)),
        )
        return output.logits, *cache_tensors(output.past_key_values.layers)


def cache_of(past: Sequence[Tensor]) -> DynamicCache:
    """Return transformers' cache object around keys and values (key 0, value 0, key 1, ...).

    The layers are filled by hand: the empty tensor that a new layer starts with does not convert.
    """
    cache = DynamicCache()
    for keys, values in zip(past[::2], past[1::2], strict=True):
        layer = DynamicLayer()
        layer.keys, layer.values = keys, values
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        cache.layers.append(layer)
    return cache


def cache_tensors(layers: Iterable[Any]) -> list[Tensor]:
    """Return what `cache_of` takes (key 0, value 0, key 1, ...) of a cache's `layers`."""
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]


def decoder_example(hidden: int, cache: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """Return example inputs of `DecoderWithCache`; `cache` has each layer's heads and head size.

    No size is 1 and no two are equal by accident, so that tracing bakes none of them in.
    """
    batch, past, new = 2, 3, 4
    example = {
        "inputs_embeds": torch.zeros(batch, new, hidden),
        "attention_mask": torch.ones(batch, past + new, dtype=torch.int64),
        "position_ids": torch.arange(past, past + new).expand(batch, new),
    }
    shapes = [(batch, heads, past, size) for heads, size in cache for _ in ("key", "value")]
    return example | dict(zip(cache_names(len(cache)), map(torch.zeros, shapes), strict=True))


def language_model_part(
    decoder: nn.Module, *, hidden: int, cache: Sequence[tuple[int, int]]
) -> Part:
    """Return the part of a causal language model; `cache` has each layer's heads and head size."""
    names = cache_names(len(cache))
    return Part(
        LANGUAGE_MODEL,
        DecoderWithCache(decoder),
        decoder_example(hidden, cache),
        outputs=("logits", *names.values()),
        fixed={"inputs_embeds": (2,)} | dict.fromkeys(names, (1, 3)),
        cache=names,
    )


def cache_names(layers: int) -> dict[str, str]:
    """Return the names of the KV cache inputs in order, each with that of the output after it."""
    names = [f"{number}.{kind}" for number in range(layers) for kind in ("key", "value")]
    return {f"past_key_values.{name}": f"present.{name}" for name in names}
