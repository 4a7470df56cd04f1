"""The gated delta rule: a matrix that is corrected with each token, instead of a growing cache.

Tracing would record as many steps as the example has tokens, so the recurrence is a module of its
own with a rule of its own for the converter: a `Loop` over tokens. OpenVINO 2026.4's CPU plugin
replaces this `Loop` by its own operation, `GatedDeltaNet`, but only in exactly this form, with the
heads as numbers in the graph. (The pass is called FuseGDNLoop; the rule is arXiv:2412.06464, 3.1.)

What this module does not know: convolutions, and where queries, keys and values come from.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset14 as ops
from openvino.frontend.pytorch import ConversionExtension, ModuleExtension
from torch import Tensor, nn

_OPERATION = "GatedDeltaRecurrence"
_EPSILON = 1e-6  # of the norms of queries and keys, as transformers' `l2norm` has it


class Recurrence(nn.Module):
    """The steps alone, which the converter's rule replaces."""

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        decay: Tensor,
        beta: Tensor,
        matrix: Tensor,
    ) -> Tensor:
        """Return the answers and the last matrix, each flattened, in one tensor.

        Queries and keys (batch, heads, length, key size), values (..., value size), decay, which is
        a logarithm, and beta (batch, heads, length); the matrix (batch, heads, key size, value
        size). One tensor, since the converter takes an operation with one output.
        """
        answers = []
        for step in range(keys.shape[2]):
            key = keys[:, :, step, :, None]
            matrix = matrix * decay[:, :, step, None, None].exp()
            error = values[:, :, step] - (matrix * key).sum(-2)
            matrix = matrix + key * (error * beta[:, :, step, None])[:, :, None]
            answers.append((matrix * queries[:, :, step, :, None]).sum(-2))
        return torch.cat([torch.stack(answers, 2).flatten(), matrix.flatten()])


class GatedDeltaRule(nn.Module):
    """What the layers of one model share; sizes and types are those of `Recurrence`."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrence = Recurrence()

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        decay: Tensor,
        beta: Tensor,
        matrix: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the answers (batch, length, heads, value size) and the last matrix.

        All but the matrix have the length before the heads. Queries and keys become unit vectors.
        """
        tensors = (_unit(queries), _unit(keys), values, decay, beta)
        queries, keys, values, decay, beta = (
            tensor.transpose(1, 2).contiguous().float() for tensor in tensors
        )
        # The size is read from the tensor, which is a part of the form that is replaced.
        scaled = queries * (1 / queries.shape[-1] ** 0.5)
        both = self.recurrence(scaled, keys, values, decay, beta, matrix)
        answers, last = both[: values.numel()], both[values.numel() :]
        answers = answers.reshape(values.shape).transpose(1, 2).contiguous()
        return answers, last.reshape(matrix.shape)


def _unit(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt((vectors * vectors).sum(-1, keepdim=True) + _EPSILON)


def _loop(context: Any) -> Sequence[ov.Output]:
    """Return the recurrence as a `Loop` over tokens."""
    inputs = [context.get_input(number) for number in range(6)]
    values, matrix = inputs[2], inputs[5]
    shape = ops.shape_of(values)
    empty = ops.broadcast(ops.constant(0, dtype=np.float32), shape)
    length = ops.convert(ops.gather(shape, _integer(2), _integer(0)), "i32")
    body, tokens, states, outputs = _body()
    loop = ops.loop(length, ops.constant(True, dtype=bool))
    loop.set_function(body)
    for parameter, tensor in zip(tokens, inputs[:5], strict=True):
        loop.set_sliced_input(parameter, tensor, 0, 1, 1, -1, 2)  # along the length, one by one
    for parameter, first, after in zip(states, (matrix, empty.output(0)), outputs, strict=True):
        loop.set_merged_input(parameter, first, after)
    loop.set_special_body_ports([0, 0])  # the number of the step, and whether another follows
    answers = loop.get_iter_value(outputs[1], -1)
    last = loop.get_iter_value(outputs[0], -1)
    flat = [ops.reshape(tensor, _integer([-1]), False) for tensor in (answers, last)]
    return [ops.concat(flat, 0).output(0)]


def _body() -> tuple[ov.Model, list[Any], list[Any], list[ov.Output]]:
    """Return one step, its parameters for a token's and for kept tensors, and the latter's new."""
    step = ops.parameter([], np.int32, "step")
    names = ("query", "key", "value", "decay", "beta")
    tokens = [
        ops.parameter([-1, -1, 1] + [-1] * (name not in names[3:]), np.float32, name)
        for name in names
    ]
    matrix = ops.parameter([-1] * 4, np.float32, "matrix")
    answers = ops.parameter([-1] * 4, np.float32, "answers")
    query, key, value = (ops.squeeze(parameter, _integer(2)) for parameter in tokens[:3])
    decay, beta = tokens[3:]
    decayed = ops.multiply(matrix, ops.unsqueeze(ops.exp(decay), _integer(-1)))
    column = ops.unsqueeze(key, _integer(-1))
    recalled = ops.reduce_sum(ops.multiply(decayed, column), _integer(-2), False)
    error = ops.multiply(ops.subtract(value, recalled), beta)
    corrected = ops.add(decayed, ops.multiply(column, ops.unsqueeze(error, _integer(-2))))
    products = ops.multiply(corrected, ops.unsqueeze(query, _integer(-1)))
    answer = ops.reduce_sum(products, _integer(-2), True)
    place = ops.unsqueeze(step, _integer(0))
    new_answers = ops.scatter_update(answers, place, answer, _integer(2))
    goes_on = ops.constant([True], dtype=bool)
    body = ov.Model(
        [goes_on, corrected, new_answers], [step, *tokens, matrix, answers], "gated delta rule"
    )
    return body, tokens, [matrix, answers], [corrected.output(0), new_answers.output(0)]


def _integer(value: int | list[int]) -> ov.Node:
    return ops.constant(value, dtype=np.int32)


MODULES = (ModuleExtension(Recurrence, _OPERATION),)
CONVERSIONS = (ConversionExtension(_OPERATION, _loop),)
