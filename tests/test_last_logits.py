"""Where a language model leaves all positions but the last ones, and what it returns of these."""

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from helpers.graphs.core import core
from helpers.graphs.last_logits import return_last_logits
from helpers.graphs.part_names import FILES, LANGUAGE_MODEL
from tests.bundled import BUNDLED_NAMES

WIDTH, LENGTH, COUNT = 6, 9, 4
ACCURACY = {"EXECUTION_MODE_HINT": "ACCURACY"}


def weights(rows, columns, seed):
    """Return a node of weights that are stored in 8 bits, as of a compressed model."""
    numbers = np.random.default_rng(seed).integers(-9, 9, (rows, columns), dtype=np.int8)
    return ops.multiply(ops.convert(ops.constant(numbers), "f32"), ops.constant(np.float32(0.1)))


def mixed(hidden):
    """Return what an attention makes of hidden states: each position looks at all."""
    scores = ops.softmax(ops.matmul(hidden, hidden, False, True), -1)
    return ops.matmul(scores, hidden, False, False)


def normalized(hidden):
    mean = ops.reduce_mean(ops.power(hidden, ops.constant(np.float32(2))), [-1], True)
    return ops.divide(hidden, ops.sqrt(ops.add(mean, ops.constant(np.float32(1e-6)))))


def fed_forward(hidden):
    """Return a residual connection around two layers."""
    inner = ops.swish(ops.matmul(normalized(hidden), weights(WIDTH, 8, 1), False, False))
    return ops.add(hidden, ops.matmul(inner, weights(8, WIDTH, 2), False, False))


def with_halves(hidden):
    """Return what depends on two halves of one layer, split along the last axis."""
    both = ops.matmul(hidden, weights(WIDTH, 12, 3), False, False)
    halves = ops.variadic_split(both, ops.constant(-1), ops.constant([6, 6]))
    return ops.multiply(ops.sigmoid(halves.output(0)), halves.output(1))


def with_mean(hidden):
    """Return what depends on all positions, without an attention."""
    return ops.add(hidden, ops.reduce_mean(hidden, [1], True))


def added_first(hidden):
    """Return a residual connection whose layers come first in the sum, as MPT's."""
    inner = ops.matmul(hidden, weights(WIDTH, WIDTH, 5), False, False)
    return ops.add(inner, hidden)


def returned(hidden):
    """Return hidden states that are an output, too, which has all positions."""
    layer = fed_forward(hidden)
    layer.output(0).get_tensor().set_names({"hidden states"})
    return layer


def with_rows(hidden):
    """Return hidden states that another input is added to, as Gemma 4's embeddings of layers."""
    return ops.add(hidden, ROWS)


ROWS = ops.parameter([-1, -1, WIDTH], name="rows")


def build(*layers):
    """Return a model of these layers, an attention first, and a head behind the cut to one."""
    hidden = state = ops.parameter([-1, -1, WIDTH], name="hidden")
    outputs = []
    for layer in (mixed, *layers):
        state = layer(state)
        outputs += [state] * (layer == returned)
    cut = ops.slice(state, [-1], [2**31 - 1], [1], [1])
    logits = ops.matmul(cut, weights(WIDTH, 11, 4), False, False)
    logits.output(0).get_tensor().set_names({"logits"})
    return ov.Model([logits, *outputs], [hidden] + [ROWS] * (with_rows in layers))


def matrices_behind_cut(model):
    """Return how many matrices of weights are multiplied with the last positions only."""
    slices = [node for node in model.get_ops() if node.get_type_name() == "Slice"]
    starts = {node.get_name(): node.input_value(1).get_node() for node in slices}
    constants = {name: n for name, n in starts.items() if n.get_type_name() == "Constant"}
    last_nodes = {name for name, start in constants.items() if start.data.tolist() == [-COUNT]}
    assert len(last_nodes) == 1
    for node in model.get_ordered_ops():
        if last_nodes & {value.get_node().get_name() for value in node.input_values()}:
            last_nodes.add(node.get_name())
    names = [n.get_name() for n in model.get_ops() if n.get_type_name() == "MatMul"]
    return len(last_nodes.intersection(names))


@pytest.mark.parametrize(
    "layers, matrices",
    [
        ([], 1),
        ([fed_forward], 3),
        ([fed_forward, fed_forward], 5),
        ([with_halves], 2),
        ([fed_forward, with_halves, normalized], 4),
        ([fed_forward, mixed], 1),
        ([fed_forward, mixed, normalized], 1),
        ([mixed, fed_forward], 3),
        ([fed_forward, with_mean], 1),
        ([with_mean, fed_forward], 3),
        ([fed_forward, with_rows], 1),
        ([with_rows, fed_forward], 3),
        ([returned], 1),
        ([returned, fed_forward], 3),
        ([mixed, *[added_first] * 300], 301),
    ],
)
def test_nothing_is_computed_for_positions_that_are_cut_off(layers, matrices):
    """Behind what mixes positions or takes another input, all goes through the last ones alone."""
    model, uncut = build(*layers), build(*layers)
    (cut,) = [node for node in uncut.get_ops() if node.get_type_name() == "Slice"]
    cut.output(0).replace(cut.input_value(0))
    return_last_logits(model, COUNT)
    assert matrices_behind_cut(model) == matrices
    compute, compute_all = (core().compile_model(m, "CPU", ACCURACY) for m in (model, uncut))
    rng = np.random.default_rng(0)
    for length in (COUNT - 2, COUNT, LENGTH):
        feed = {"hidden": rng.normal(size=(2, length, WIDTH)).astype(np.float32)}
        if with_rows in layers:
            feed["rows"] = rng.normal(size=(2, length, WIDTH)).astype(np.float32)
        results = zip(compute(feed).values(), compute_all(feed).values(), strict=True)
        for number, (result, expected) in enumerate(results):
            last = expected if number else expected[:, -COUNT:]
            np.testing.assert_allclose(result, last, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_the_last_feed_forward_network_computes_the_last_positions_only(name, bundled_folder):
    """It has two or three matrices, and the head is one; Gemma 4 adds embeddings of its own."""
    model = core().read_model(bundled_folder(name, "int8") / FILES[LANGUAGE_MODEL])
    return_last_logits(model, COUNT)
    expected = {"llava_mpt": 3, "gemma4": 1}.get(name, 4)
    assert matrices_behind_cut(model) == expected


def test_a_model_that_does_not_cut_before_its_head_stays_as_it_is():
    rows = ops.parameter([1, -1, 3], name="rows")
    result = ops.relu(rows)
    result.output(0).get_tensor().set_names({"logits"})
    model = ov.Model([result], [rows])
    return_last_logits(model, COUNT)
    assert model.output("logits").get_partial_shape()[1].is_dynamic
    assert [n.get_type_name() for n in model.get_ordered_ops()] == ["Parameter", "Relu", "Result"]
