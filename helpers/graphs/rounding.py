"""Weights rounded to 8 or 4 bits a block of rows at a time.

NNCF 3.4 takes 8.7 bytes of memory for each weight that it rounds. That is most of what a conversion
takes where one matrix is large: a vocabulary of 248 320 words, or Gemma 4's table of per-layer
embeddings, which has 2.3 billion numbers.

What this module does not know: rounding that looks at samples, and bits that differ by row.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

_BLOCK = 2**22  # numbers that are rounded at once
_LEAST = np.finfo(np.float16).tiny  # of a scale


def rounded(rows: ov.Node, bits: int, group: int, *, symmetric: bool = False) -> ov.Node:
    """Return the numbers of a constant (ids, width) in 16 bits, restored from 8 or 4 `bits`.

    Each `group` of neighbours in a row, which it divides, shares a scale and a zero point; where it
    is `symmetric`, a scale alone: numbers are signed, and the one farthest from 0 is the lowest.
    """
    ids, width = rows.get_output_shape(0)
    shape = [ids, width] if group == width else [ids, width // group, group]
    each_group = [*shape[:-1], 1]
    kind = getattr(ov.Type, f"{'i' if symmetric else 'u'}{bits}")
    # Constants share the memory of tensors and keep it alive, which they do not with arrays.
    numbers, scales = ov.Tensor(kind, ov.Shape(shape)), ov.Tensor(ov.Type.f16, ov.Shape(each_group))
    packed = numbers.data.view(np.uint8).reshape(ids, -1)
    zeros = np.empty(each_group, np.uint8)
    round_block = _symmetric if symmetric else _asymmetric
    for start, block in _blocks(rows):
        end = start + len(block)
        integers, scales.data[start:end], zeros[start:end] = round_block(
            block.reshape(-1, *shape[1:]), bits
        )
        packed[start:end] = _packed(integers.astype(np.uint8), bits).reshape(len(integers), -1)
    restored = ops.convert(_constant(numbers), "f16")
    if not symmetric:
        zero_points = ov.Tensor(kind, ov.Shape(each_group))
        zero_points.data.reshape(-1)[:] = _packed(zeros, bits)
        restored = ops.subtract(restored, ops.convert(_constant(zero_points), "f16"))
    restored = ops.multiply(restored, _constant(scales))
    if group < width:
        restored = ops.reshape(restored, ops.constant([ids, width], ov.Type.i64), False)
    return restored


_Rounded = tuple[NDArray[np.int16], NDArray[np.float16], NDArray[np.uint8] | int]


def _asymmetric(groups: NDArray[np.float32], bits: int) -> _Rounded:
    """Return whole numbers from 0 on for the last axis' groups, their scales and zero points."""
    most = 2**bits - 1
    low = np.minimum(groups.min(-1, keepdims=True), 0)
    high = np.maximum(groups.max(-1, keepdims=True), 0)
    scale = np.maximum((high - low) / most, _LEAST).astype(np.float16)
    zero = np.clip(np.rint(-low / scale.astype(np.float32)), 0, most)
    integers = np.rint(groups / scale.astype(np.float32)) + zero
    return np.clip(integers, 0, most).astype(np.int16), scale, zero.astype(np.uint8)


def _symmetric(groups: NDArray[np.float32], bits: int) -> _Rounded:
    """Return signed numbers for the last axis' groups and their scales; the zero point is 0.

    As in NNCF, the weight that is farthest from 0 becomes the lowest number, so a scale can be
    negative.
    """
    half = 2 ** (bits - 1)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    scale = np.where(-low >= high, -low, -high) / half
    scale = np.where(np.abs(scale) < _LEAST, _LEAST, scale).astype(np.float16)
    integers = np.rint(groups / scale.astype(np.float32))
    return np.clip(integers, -half, half - 1).astype(np.int16), scale, 0


def _packed(numbers: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return numbers one after the other; two of 4 bits in a byte, the first in the low half.

    Of a signed number of 4 bits, the low half of its byte counts.
    """
    flat = numbers.reshape(-1)
    if bits == 8:
        return flat
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return flat[::2] & np.uint8(15) | flat[1::2] << np.uint8(4)


def _blocks(rows: ov.Node) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the rows of a constant in 32 bits, some at a time, each with the first one's number."""
    ids, width = rows.get_output_shape(0)
    step = max(1, _BLOCK // width)
    is_bfloat16 = rows.get_output_element_type(0) == ov.Type.bf16
    for start in range(0, ids, step):
        block: NDArray[Any] = rows.data[start : start + step]
        if is_bfloat16:  # which arrays hold as if it were float16
            block = (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        yield start, block.astype(np.float32)


def _constant(tensor: ov.Tensor) -> ov.Node:
    return ov.op.Constant(tensor, shared_memory=True)
