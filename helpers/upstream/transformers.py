"""transformers 5.23: mllama's vision states, the cache's new name, and a warning."""

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

# Index i of `intermediate_layers_indices` is the layer whose input is handed to the text: so in
# Meta's code, and in transformers when it first had this model. transformers 5.23 hands on the
# layer's output, so each index is one too high. No issue of theirs is known here.
MLLAMA_COLLECTS_OUTPUTS = True


def cache_argument(function: Callable[..., Any], cache: object) -> dict[str, Any]:
    """Return the KV cache as the keyword argument that a layer, a model or a mask takes it by.

    transformers 5.24 renames `past_key_values` to `cache`, and takes the old name until 5.40.
    """
    new = "cache" in inspect.signature(function).parameters
    return {"cache" if new else "past_key_values": cache}


@contextlib.contextmanager
def no_rope_warnings() -> Iterator[None]:
    """Silence what transformers says of a context shorter than RoPE's frequencies are scaled from.

    A small model may have one, and it changes nothing.
    """
    logger = logging.getLogger("transformers.modeling_rope_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
