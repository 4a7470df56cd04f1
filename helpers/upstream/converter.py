"""OpenVINO 2026.4's converter of PyTorch modules: 16-bit weights shared, attention not computed.

Also what torch 2.13 keeps of a trace, and signals while Python is called from C++.
"""

import contextlib
import gc
import io
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from openvino.frontend.pytorch import ModuleExtension, patch_model
from torch import Tensor, nn

from helpers import ends
from helpers.upstream.patching import replaced


@contextlib.contextmanager
def weights_in_16_bits(module: nn.Module) -> Iterator[None]:
    """Let 16-bit weights be shared with the graph while activations are traced in float32.

    The function is OpenVINO's own, the one that its converter uses when it loads a model itself.
    It turns norms and the like to float32 for good, so they are put back afterwards. Where it is
    gone, weights are traced in the type that they have.
    """
    make_traceable = getattr(patch_model, "__make_16bit_traceable", None)
    if make_traceable is None:
        yield
        return
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
def recorded_attention() -> Iterator[None]:
    """Let attention with a mask be recorded without being computed.

    OpenVINO's converter does that with 16-bit linear layers, by the same functions. What is left is
    attention, which for the four large tiles of Llama-3.2-Vision would take many minutes. Where the
    function is gone, attention is computed.
    """
    wrap = getattr(patch_model, "_create_function_wrapper", None)
    if wrap is None:
        yield
        return
    compute = nn.functional.scaled_dot_product_attention
    record = wrap(
        ModuleExtension(
            nn.Module,
            "aten::scaled_dot_product_attention",
            convert=lambda _, record, *inputs: record(*inputs),
            evaluate=lambda _, queries, keys, values, *__: queries.new_full(
                (*queries.shape[:-1], values.shape[-1]), 0.5
            ),
        )
    )

    def attend(
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        plain = options.get("scale") in (None, queries.shape[-1] ** -0.5)
        if attn_mask is None or not plain or options.get("enable_gqa"):
            options |= {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal}
            return compute(queries, keys, values, **options)
        result: Tensor = record(queries, keys, values, attn_mask, dropout_p, is_causal)
        return result

    with replaced(nn.functional, scaled_dot_product_attention=attend):
        yield


@contextlib.contextmanager
def late_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back until the end, and what else ends a program with an exception.

    The converter calls Python from C++, and takes an interrupt there for an attribute that cannot
    be read: it goes on without, or fails with an error of its own.
    """
    if threading.current_thread() is not threading.main_thread():  # signals do not reach others
        yield
        return
    signals: list[tuple[Any, ...]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ends.SIGNALS)}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda *details: signals.append(details))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if signals:
            number, frame = signals[0]
            handlers[number](number, frame)


@contextlib.contextmanager
def forgotten_traces() -> Iterator[None]:
    """Free at the end what TorchScript keeps of every traced class, and the weights it refers to.

    torch has no public function for that; where the private ones are gone, it is kept.
    """
    # A look for garbage among the objects of all packages takes as long as tracing a small part.
    is_frozen = gc.get_freeze_count() > 0  # by `freeze_objects`, and it stays so
    if not is_frozen:
        gc.freeze()
    try:
        yield
    finally:
        with contextlib.suppress(AttributeError):
            clear: Callable[[], None] = torch._C._jit_clear_class_registry
            clear()
            recursive = torch.jit._recursive
            recursive.concrete_type_store = recursive.ConcreteTypeStore()
            torch.jit._state._clear_class_state()
        gc.collect()
        if not is_frozen:
            gc.unfreeze()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence tracing: it warns of every Python value that a trace makes constant."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
