"""transformers 5.23: configs, mllama's vision states, the cache, heads, and warnings."""

import contextlib
import copy
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar, cast

from torch import LongTensor, Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import LinearAttentionLayer
from transformers.integrations import sdpa_attention

from helpers.upstream.patching import replaced

# Index i of `intermediate_layers_indices` is the layer whose input is handed to the text: so in
# Meta's code, and in transformers when it first had this model. transformers 5.23 hands on the
# layer's output, so each index is one too high. No issue of theirs is known here.
MLLAMA_COLLECTS_OUTPUTS = True


_Kind = TypeVar("_Kind", bound=PreTrainedConfig)


def new_config(kind: type[_Kind], /, **fields: Any) -> _Kind:
    """Return a config of these fields, in which transformers would complete the sections."""
    return kind(**copy.deepcopy(fields))


def cache_argument(function: Callable[..., Any], cache: object) -> dict[str, Any]:
    """Return the KV cache as the keyword argument that a layer, a model or a mask takes it by.

    transformers 5.24 renames `past_key_values` to `cache`, and takes the old name until 5.40.
    """
    new = "cache" in inspect.signature(function).parameters
    return {"cache" if new else "past_key_values": cache}


class DifferentiableCache(DynamicCache):
    """A cache through which gradients flow.

    transformers' own writes a new matrix state into the old one's memory, which the gradient of the
    delta rule still needs.
    """

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any
    ) -> Tensor:
        """Keep the matrix states of a layer, and return them."""
        layer: Any = self.layers[layer_idx]
        layer.recurrent_states[state_idx] = recurrent_states
        layer.is_recurrent_states_initialized[state_idx] = True
        return recurrent_states

    def for_rows(self, rows: Tensor) -> Self:
        """Return another cache, whose row i continues from row `rows[i]` of this one."""
        other = copy.copy(self)
        other.layers = [copy.copy(layer) for layer in self.layers]
        for layer in cast(list[Any], other.layers):
            if isinstance(layer, LinearAttentionLayer):  # it has dicts of states, which are copied
                layer.conv_states = dict(layer.conv_states)
                layer.recurrent_states = dict(layer.recurrent_states)
        other.reorder_cache(cast(LongTensor, rows))
        return other


@contextlib.contextmanager
def unpacked_heads() -> Iterator[None]:
    """Let attention of a single position repeat keys for each head, as that of several does.

    transformers 5.23 makes the heads that share keys positions of one head there, which OpenVINO's
    paged attention takes for positions. Not while torch compiles, which is what it is told here.
    """
    with replaced(sdpa_attention, is_torchdynamo_compiling=lambda: True):
        yield


@contextlib.contextmanager
def no_rope_warnings() -> Iterator[None]:
    """Silence what transformers says of RoPE's fields that change nothing.

    Those are a context shorter than the frequencies are scaled from, as a small model may have, and
    LongRoPE without a `factor`.
    """
    logger = logging.getLogger("transformers.modeling_rope_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def silence_slow_kernels() -> None:
    """Drop what transformers says of packages with which linear attention would be faster.

    They are flash-linear-attention and causal_conv1d, which compute on GPUs. In PyTorch a model
    runs here only so that OpenVINO's answers can be compared with it.
    """
    logger = logging.getLogger("transformers.integrations.hub_kernels")
    logger.addFilter(_is_of_no_slow_kernel)  # once, however often it is added


def _is_of_no_slow_kernel(record: logging.LogRecord) -> bool:
    return "is falling back to its reference PyTorch implementation" not in record.getMessage()


def silence_narrow_pictures() -> None:
    """Drop what transformers says of a picture 1 or 3 pixels wide, whose channels it looks for.

    It takes the first dimension for them, which is right: its own code has put them there.
    """
    logging.getLogger("transformers.image_utils").addFilter(_is_of_no_narrow_picture)


def _is_of_no_narrow_picture(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("The channel dimension is ambiguous.")


def set_bos(tokenizer: Any, *, added: bool) -> None:
    """Set whether `tokenizer` puts BOS in front of a text.

    transformers defines a setter for the property, which mypy does not recognise as one.
    """
    tokenizer.add_bos_token = added
