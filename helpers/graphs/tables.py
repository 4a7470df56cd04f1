"""Tables of embeddings that stay on disk: looked up row by row in a file that is mapped.

The graph is built by hand, and its rows are rounded block by block: NNCF would take 8.7 bytes of
memory for each number, of which Gemma 4's table of per-layer embeddings has 2.3 billion.

What this module does not know: rounding that looks at samples, and bits that differ by row.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from openvino import opset13 as ops
from torch import Tensor

from helpers.errors import SettingsError
from helpers.graphs.finite_weights import WeightsError, not_finite
from helpers.graphs.presets import Weights

INPUT = "input_ids"
ROWS = "table of rows"  # the constant's name, by which such a model is known
_BLOCK = 2**24  # numbers that are rounded at once
Arrays = tuple[NDArray[np.generic], ...]
_TYPES = {"torch.float16": ov.Type.f16, "torch.bfloat16": ov.Type.bf16}


@dataclass(frozen=True)
class Table:
    """A part that looks rows up: `rows` (ids, width), each of which comes out in `shape`.

    They are multiplied by `factor`. `replaced` are ids in whose place others are looked up.
    """

    name: str
    rows: Tensor
    shape: tuple[int, ...]
    output: str
    factor: float = 1.0
    replaced: Mapping[int, int] = field(default_factory=dict)


def table_model(table: Table) -> ov.Model:
    """Return the model that looks `input_ids` (batch, length) up in a table; both share memory.

    Raises a `WeightsError` where the table holds NaN or infinite numbers.
    """
    if not_finite({table.name: table.rows}):
        raise WeightsError([table.name], "the checkpoint")
    tokens = ops.parameter([-1, -1], ov.Type.i64, name=INPUT)
    ids = tokens
    for mark, other in table.replaced.items():
        absent, substitute = (ops.constant(number, ov.Type.i64) for number in (mark, other))
        ids = ops.select(ops.equal(tokens, absent), substitute, ids)
    looked_up = ops.gather(
        ops.convert(_shared(table.rows), "f32"), ids, ops.constant(0, ov.Type.i64)
    )
    scaled = ops.multiply(looked_up, ops.constant(table.factor, ov.Type.f32))
    shape = ops.constant([0, 0, *table.shape], ov.Type.i64)
    rows = ops.reshape(scaled, shape, special_zero=True)
    model = ov.Model([ops.result(rows)], [tokens], table.name)
    model.input(0).get_tensor().set_names({INPUT})
    model.output(0).get_tensor().set_names({table.output})
    model.shares_memory_with = table.rows
    return model


def _shared(rows: Tensor) -> ov.Node:
    """Return a constant that shares the memory of `rows`; NumPy has no bfloat16."""
    kind = _TYPES.get(str(rows.dtype))
    values = rows.detach().contiguous()
    array = values.numpy() if kind is None else values.view(torch.int16).numpy()
    tensor = ov.Tensor(array, ov.Shape(list(rows.shape)), kind or ov.Type.f32)
    constant = ov.op.Constant(tensor, shared_memory=True)
    constant.set_friendly_name(ROWS)
    return constant


def is_table(model: ov.Model) -> bool:
    """Return whether a model is one that `table_model` made."""
    return any(node.get_friendly_name() == ROWS for node in model.get_ops())


def compress_table(model: ov.Model, weights: Weights) -> ov.Model:
    """Return a table's model with its rows stored as `weights` says, changed in place.

    In 8 bits a row has one scale, in 4 bits each group has; scales are in 16 bits. Raises
    `SettingsError` for a group size that does not divide a row.
    """
    rows = next(node for node in model.get_ops() if node.get_friendly_name() == ROWS)
    (reader,) = rows.output(0).get_target_inputs()
    width = rows.get_output_shape(0)[1]
    bits = 8 if weights.mode == "int8" else 4
    group = width if bits == 8 or weights.group_size == -1 else weights.group_size
    if width % group:
        raise SettingsError(
            f"A group size of {group} does not divide the width of every row ({width}); choose "
            "one that does."
        )
    restored, arrays = _rounded(rows, bits, group, symmetric=weights.mode == "int4-sym")
    reader.get_node().set_arguments([restored.output(0)])
    model.validate_nodes_and_infer_types()
    model.shares_memory_with = arrays  # which constants do not keep alive
    return model


def _rounded(rows: ov.Node, bits: int, group: int, *, symmetric: bool) -> tuple[ov.Node, Arrays]:
    """Return the numbers of `rows` as they are restored from rounded ones, and those."""
    ids, width = rows.get_output_shape(0)
    shape = [ids, width] if group == width else [ids, width // group, group]
    scales = np.empty((*shape[:-1], 1), np.float16)
    zeros = np.empty((*shape[:-1], 1), np.uint8)
    most = 2**bits - 1
    numbers = np.empty((ids, width * bits // 8), np.uint8)
    for start, block in _blocks(rows):
        end = start + len(block)
        block = block.reshape(-1, *shape[1:])
        low, high = block.min(-1, keepdims=True), block.max(-1, keepdims=True)
        if symmetric:
            high = np.maximum(np.abs(low), np.abs(high))
            low = -high * (most + 1) / (most - 1)
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scale = np.maximum((high - low) / most, np.finfo(np.float16).tiny).astype(np.float16)
        scales[start:end] = scale
        scale = scale.astype(np.float32)
        zero = np.clip(np.rint(-low / scale), 0, most)
        zeros[start:end] = zero
        whole = np.clip(np.rint(block / scale) + zero, 0, most).astype(np.uint8)
        whole = whole.reshape(len(whole), -1)
        numbers[start:end] = whole if bits == 8 else whole[:, ::2] | whole[:, 1::2] << 4
    if bits == 4:
        flat = np.append(zeros, np.zeros(zeros.size % 2, np.uint8))
        zeros = flat[::2] | flat[1::2] << 4
    kind = ov.Type.u8 if bits == 8 else ov.Type.u4
    each_group = [*shape[:-1], 1]
    centred = ops.subtract(
        ops.convert(_constant(numbers, shape, kind), "f16"),
        ops.convert(_constant(zeros, each_group, kind), "f16"),
    )
    restored = ops.multiply(centred, _constant(scales, each_group, ov.Type.f16))
    if group < width:
        restored = ops.reshape(restored, ops.constant([ids, width], ov.Type.i64), False)
    return restored, (numbers, scales, zeros)


def _blocks(rows: ov.Node) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the rows of a constant in 32 bits, some at a time, each with the first one's number."""
    ids, width = rows.get_output_shape(0)
    step = max(1, _BLOCK // width)
    is_bfloat16 = rows.get_output_element_type(0) == ov.Type.bf16
    for start in range(0, ids, step):
        block = rows.data[start : start + step]
        if is_bfloat16:  # which arrays hold as if it were float16
            block = (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        yield start, block.astype(np.float32)


def _constant(values: NDArray[np.generic], shape: list[int], kind: ov.Type) -> ov.Node:
    tensor = ov.Tensor(values, ov.Shape(shape), kind)
    return ov.op.Constant(tensor, shared_memory=True)
