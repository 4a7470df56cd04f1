"""Tables of embeddings that stay on disk: looked up row by row in a file that is mapped.

The graph is built by hand, so that its rows can be larger than the memory.

What this module does not know: how rows are rounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import openvino as ov
import torch
from openvino import opset13 as ops
from torch import Tensor

from helpers.errors import SettingsError
from helpers.graphs.finite_weights import WeightsError, not_finite
from helpers.graphs.presets import Weights
from helpers.graphs.rounding import rounded

INPUT = "input_ids"
ROWS = "table of rows"  # the constant's name, by which such a model is known
_TYPES = {torch.float16: ov.Type.f16, torch.bfloat16: ov.Type.bf16}


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
    kind = _TYPES.get(rows.dtype)
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
    bits = 4 if weights.has_4_bits else 8
    group = width if bits == 8 or weights.group_size == -1 else weights.group_size
    if width % group:
        raise SettingsError(
            f"A group size of {group} does not divide the width of every row ({width}); choose "
            "one that does."
        )
    restored = rounded(rows, bits, group, symmetric=weights.is_symmetric)
    reader.get_node().set_arguments([restored.output(0)])
    model.validate_nodes_and_infer_types()
    return model
