"""Features of the last pictures, so that another question about one skips the image encoder.

What this module does not know: what features are, beyond the tensors in them.
"""

import dataclasses
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from helpers.models.exported import Features

MOST_BYTES = 2**28  # of features; one tile of InternVL2-1B has 0.9 MB


class RememberedPictures:
    """Features by what they were computed from; those used last stay, in at most so many bytes."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._lock = threading.Lock()
        self._features: OrderedDict[bytes, tuple[list[Any], int]] = OrderedDict()

    def find(self, image_inputs: Mapping[str, Any], compute: Callable[[], Features]) -> list[Any]:
        """Return the features of an image encoder's inputs; what is not there is computed."""
        key = digest_of(image_inputs)
        with self._lock:
            if key in self._features:
                self._features.move_to_end(key)
                return self._features[key][0]
        features = list(compute())
        size = sum(part.nbytes for part in _parts_of(features) if isinstance(part, Tensor))
        with self._lock:
            if size <= self.most_bytes and key not in self._features:
                self._features[key] = (features, size)
                self.bytes += size
            while self.bytes > self.most_bytes:
                _, (_, freed) = self._features.popitem(last=False)
                self.bytes -= freed
        return features


def digest_of(image_inputs: Mapping[str, Any]) -> bytes:
    """Return what tells an image encoder's inputs apart: their names, shapes and numbers."""
    digest = hashlib.sha256()
    for part in _parts_of(sorted(image_inputs.items())):
        if isinstance(part, Tensor):
            digest.update(repr((part.dtype, tuple(part.shape))).encode())
            digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(part).encode())
    return digest.digest()


def _parts_of(value: Any) -> Iterator[Any]:
    """Yield the tensors, texts and numbers of features or inputs; a tensor may carry others."""
    if isinstance(value, Tensor):
        yield value.as_subclass(Tensor)
        yield from _parts_of(list(vars(value).values()))
    elif dataclasses.is_dataclass(value):
        yield from _parts_of(list(vars(value).values()))
    elif isinstance(value, Mapping):
        yield from _parts_of(list(value.items()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from _parts_of(part)
    else:
        yield value
