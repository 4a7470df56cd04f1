"""NNCF 3.4: quiet, with one `Core`, and with what rounds equal layers compiled once.

No issue of theirs is known here that asks for any of it.
"""

import contextlib
import importlib
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import nncf
import numpy as np
import openvino as ov
from numpy.typing import NDArray

from helpers.resources import return_freed_memory
from helpers.upstream.patching import replaced

LARGE = 2**26  # bytes of a result which are not worth a second copy
# Bytes of results after which memory freed between them is given back. To do so for every layer
# took a sixth of compressing InternVL2-1B, whose layers are small; to wait for 2**26 cost the 8B,
# whose layers are large, 0.6 GB.
SCATTERED = 2**23


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep NNCF's progress bars, which show clock times, out of compared outputs.

    NNCF, which draws them with rich, has no switch for them. In a notebook they
    would be widgets, which redirecting the output does not reach; so rich is told that this is no
    notebook.
    """
    nncf.set_log_level(logging.ERROR)
    console = importlib.import_module("rich.console")
    with replaced(console, _is_jupyter=lambda: False), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def one_core(core: ov.Core) -> Iterator[None]:
    """Let NNCF use this process's `Core`, where it would make one for each model that reads data.

    Why that is needed: see `helpers.upstream.openvino`, by which it compiles other models.
    """
    with replaced(ov, Core=lambda: core):
        yield


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Let NNCF compile what rounds a layer's weights once for all layers alike, not for each.

    It does not where the results become part of the model, since they share the memory of the
    request that computed them. Here they are copied, and the same; for MobileVLM's 169 layers,
    compiling was 9 of 21 seconds. A large result stays where it is, and what computed it is
    compiled again for the next layer. Where NNCF has other functions, it does as it likes.
    """
    try:
        models = importlib.import_module("nncf.openvino.optimized_functions.models")
        backend = importlib.import_module(
            "nncf.quantization.algorithms.weight_compression.openvino_backend"
        )
        infer, clear = models._infer_ov_model, models.clear_ov_model_cache
    except (ImportError, AttributeError):
        yield
        return
    results = _Results(infer, clear)
    caching = replaced(backend, disable_results_caching=lambda _: contextlib.nullcontext())
    with caching, replaced(models, _infer_ov_model=results.infer):
        try:
            yield
        finally:
            clear()


class _Results:
    """NNCF's results of one compression: small ones copied, memory between them given back."""

    def __init__(self, infer: Callable[..., list[Any]], clear: Callable[[], None]) -> None:
        self._infer, self._clear = infer, clear
        self.bytes = 0  # of results since memory was given back

    def infer(self, parameters: Any, compiled: Any, inputs: Any) -> list[Any]:
        """Return what NNCF's own function returns, in memory that nothing writes over."""
        results = self._infer(parameters, compiled, inputs)
        size = sum(_bytes_of(result.data) for result in results)
        if size > LARGE:
            self._clear()
        else:
            results = [type(result)(_copy(result.data)) for result in results]
        self.bytes += size
        if self.bytes > SCATTERED:  # or results lie scattered between what each layer needs
            return_freed_memory()
            self.bytes = 0
        return results


def _bytes_of(data: "NDArray[Any] | ov.Tensor") -> int:
    return int(data.nbytes if isinstance(data, np.ndarray) else data.byte_size)


def _copy(data: "NDArray[Any] | ov.Tensor") -> "NDArray[Any] | ov.Tensor":
    if isinstance(data, np.ndarray):
        return data.copy()
    copy = ov.Tensor(data.element_type, data.shape)
    data.copy_to(copy)
    return copy
