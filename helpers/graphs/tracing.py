"""Turn one PyTorch part into one OpenVINO model.

Tracing runs the module once on example inputs and records the operations. Weights in 16 bits are
shared with the checkpoint's file, not copied, so a 13 GB model needs half a gigabyte to convert.

What this module does not know: branches that depend on values (a trace records the one taken) and
quantised PyTorch weights.
"""

import contextlib
import gc
import io
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from unittest import mock

import openvino as ov
import torch
from openvino.frontend.pytorch import ModuleExtension, patch_model
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

IMAGE_ENCODER, TEXT_EMBEDDINGS = "image encoder", "text embeddings"
LANGUAGE_MODEL = "language model"
# The names that optimum-intel and OpenVINO GenAI share, so that they can read the folder too.
FILES = {
    IMAGE_ENCODER: "openvino_vision_embeddings_model.xml",
    TEXT_EMBEDDINGS: "openvino_text_embeddings_model.xml",
    LANGUAGE_MODEL: "openvino_language_model.xml",
}


@dataclass(frozen=True)
class Part:
    """One piece of a model that becomes one OpenVINO model.

    `module` takes `example_inputs` in their order and returns `outputs` in theirs. Sizes on the
    axes that `fixed` names for an input stay as in the example, all others become dynamic; those
    should not be 1, which tracing may take for "always 1". `cache` pairs the KV cache's inputs
    with the outputs that replace them.
    """

    name: str
    module: nn.Module
    example_inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    fixed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    cache: dict[str, str] = field(default_factory=dict)


class Traceable(nn.Module):
    """A function of a model as a module, which holds just the modules that the function uses."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.used = nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Call the function."""
        return self.function(*inputs)


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

    def forward(self, inputs_embeds, attention_mask, position_ids, *past):
        """Run the decoder on the new positions."""
        output = self.decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache_of(past),
            use_cache=True,
            logits_to_keep=1,  # otherwise prefill computes a row of logits for every position
        )
        present = [t for layer in output.past_key_values.layers for t in (layer.keys, layer.values)]
        return output.logits, *present


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


def decoder_example(hidden: int, cache: tuple[int, int, int]) -> dict[str, Tensor]:
    """Return example inputs of `DecoderWithCache` for `cache`: layers, heads, head size.

    No size is 1 and no two are equal by accident, so that tracing bakes none of them in.
    """
    batch, past, new = 2, 3, 4
    layers, heads, head_size = cache
    example = {
        "inputs_embeds": torch.zeros(batch, new, hidden),
        "attention_mask": torch.ones(batch, past + new, dtype=torch.int64),
        "position_ids": torch.arange(past, past + new).expand(batch, new),
    }
    names = past_names(layers)
    return example | {name: torch.zeros(batch, heads, past, head_size) for name in names}


def language_model_part(decoder: nn.Module, *, hidden: int, cache: tuple[int, int, int]) -> Part:
    """Return the part of a causal language model with `cache`: layers, heads, head size."""
    past, present = past_names(cache[0]), present_names(cache[0])
    return Part(
        LANGUAGE_MODEL,
        DecoderWithCache(decoder),
        decoder_example(hidden, cache),
        outputs=("logits", *present),
        fixed={"inputs_embeds": (2,)} | dict.fromkeys(past, (1, 3)),
        cache=dict(zip(past, present, strict=True)),
    )


def past_names(layers: int) -> list[str]:
    """Return the names of the KV cache inputs, in order."""
    return [f"past_key_values.{n}.{kind}" for n in range(layers) for kind in ("key", "value")]


def present_names(layers: int) -> list[str]:
    """Return the names of the KV cache outputs, in order."""
    return [f"present.{n}.{kind}" for n in range(layers) for kind in ("key", "value")]


def trace(part: Part) -> ov.Model:
    """Return the OpenVINO model of `part`, with its inputs and outputs named.

    Sizes that `part.fixed` names stay as they are in the example; all others are dynamic. The model
    shares memory with the module and keeps it alive; what is compiled from it does not, so keep the
    model as long.
    """
    weights = _traceable_in_16_bits(part.module)
    with _late_interrupts(), _quiet(), weights, _recorded_attention(), torch.no_grad():
        decoder = TorchScriptPythonDecoder(
            part.module,
            example_input=tuple(part.example_inputs.values()),
            # It would trace a second time and compare what both compute, two thirds of the work.
            trace_kwargs={"check_trace": False},
        )
        model = ov.convert_model(decoder)
    del decoder
    forget_traces()
    model.shares_memory_with = part.module  # constants in bfloat16 keep nothing alive themselves
    for port, name in zip(model.inputs, part.example_inputs, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
    for port, name in zip(model.outputs, part.outputs, strict=True):
        port.get_tensor().set_names({name})
    model.reshape({name: _shape(part, name) for name in part.example_inputs})
    return model


def _shape(part: Part, name: str) -> ov.PartialShape:
    fixed = part.fixed.get(name, ())
    sizes = part.example_inputs[name].shape
    return ov.PartialShape([size if axis in fixed else -1 for axis, size in enumerate(sizes)])


@contextlib.contextmanager
def _traceable_in_16_bits(module: nn.Module) -> Iterator[None]:
    """Let 16-bit weights be shared with the graph while activations are traced in float32.

    The function is OpenVINO's own, the one that its converter uses when it loads a model itself.
    It turns norms and the like to float32 for good, so they are put back afterwards.
    """
    make_traceable = getattr(patch_model, "__make_16bit_traceable")
    tensors = [*module.parameters(), *module.buffers()]
    before = [tensor.data for tensor in tensors]
    make_traceable(module)
    try:
        yield
    finally:
        patch_model.unpatch_model(module, "_openvino_module_extension_patch_orig_forward")
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data


@contextlib.contextmanager
def _recorded_attention() -> Iterator[None]:
    """Let attention with a mask be recorded without being computed.

    OpenVINO's converter does that with 16-bit linear layers, by the same functions. What is left is
    attention, which for the four large tiles of Llama-3.2-Vision would take many minutes.
    """
    compute = nn.functional.scaled_dot_product_attention
    extension = ModuleExtension(
        nn.Module,
        "aten::scaled_dot_product_attention",
        convert=lambda _, record, *inputs: record(*inputs),
        evaluate=lambda _, queries, keys, values, *__: queries.new_full(
            (*queries.shape[:-1], values.shape[-1]), 0.5
        ),
    )
    record = patch_model._create_function_wrapper(extension)

    def attend(queries, keys, values, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
        plain = options.get("scale") in (None, queries.shape[-1] ** -0.5)
        if attn_mask is None or not plain or options.get("enable_gqa"):
            options |= {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal}
            return compute(queries, keys, values, **options)
        return record(queries, keys, values, attn_mask, dropout_p, is_causal)

    with mock.patch.object(nn.functional, "scaled_dot_product_attention", attend):
        yield


@contextlib.contextmanager
def _late_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back until the end.

    The converter calls Python from C++, and takes an interrupt there for an attribute that cannot
    be read: it goes on without, or fails with an error of its own.
    """
    if threading.current_thread() is not threading.main_thread():  # Ctrl-C does not reach others
        yield
        return
    received: list[tuple] = []
    handler = signal.signal(signal.SIGINT, lambda *details: received.append(details))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received and callable(handler):
            handler(*received[0])


def forget_traces() -> None:
    """Free what TorchScript keeps of every traced class, and the weights that it refers to."""
    torch._C._jit_clear_class_registry()
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
    torch.jit._state._clear_class_state()
    gc.collect()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence tracing: it warns of every Python value that a trace makes constant."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
