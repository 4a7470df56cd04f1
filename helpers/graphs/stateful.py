"""Move a language model's cache from its inputs and outputs into its state.

A stateless model hands all keys and values back after each token, and takes them again before the
next. A stateful one keeps them between calls, so that a call passes only what is new. One such
model serves the prompt (prefill, with an empty cache) and every later token (decode steps).

A state has one of two forms. Keys and values (batch, heads, length, head size) grow and can be cut
to fewer positions. What a recurrence keeps, a convolution's last inputs or a matrix, has the same
size for any length: it begins with zeros, and no position can be taken out of it again. Its name
says so, by its end.

What this module does not know: what is in a state.
"""

from collections.abc import Mapping, Sequence

import openvino as ov
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation
from openvino.op.util import Variable, VariableInfo

from helpers.errors import SettingsError

BEAM_INPUT = "beam_idx"
EMBEDDINGS = "inputs_embeds"
FIXED_SIZE = "_state"  # the end of the names of states that do not grow


def is_stateful(model: ov.Model) -> bool:
    """Return whether `model` keeps state between calls."""
    return bool(model.get_variables())


def is_fixed_size(name: str) -> bool:
    """Return whether the state of this name has the same size for any number of positions."""
    return name.endswith(FIXED_SIZE)


def make_stateful(model: ov.Model, cache: Mapping[str, str]) -> None:
    """Turn the `cache` inputs, each given with the output that replaces it, into state, in place.

    Adds the input `beam_idx` (batch,) of int32: row i of the batch continues from row beam_idx[i]
    of the cache. An empty cache starts with the batch of `inputs_embeds`. Cache inputs need four
    dimensions, heads and head size fixed; those called `..._state`, as their outputs, need all
    sizes fixed but the batch.

    Raises `SettingsError` for a model that is stateful already, for an empty `cache`, for a name
    that the model does not have, and for a cache of another form.
    """
    _check(model, cache)
    rows = ops.parameter([-1], ov.Type.i32, name=BEAM_INPUT)
    rows.output(0).get_tensor().add_names({BEAM_INPUT})
    model.add_parameters([rows])
    shapes = {name: model.input(name).get_partial_shape() for name in cache}
    for name in cache:
        port = model.input(name)
        consumers = port.get_target_inputs()
        ordered = ops.gather(port, rows, ops.constant(0, ov.Type.i64))
        for consumer in consumers:
            consumer.replace_source_output(ordered.output(0))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, dict(cache))
    _start_empty(model, cache, shapes)
    model.validate_nodes_and_infer_types()


def keep_inputs(model: ov.Model, names: Sequence[str]) -> None:
    """Turn inputs that stay the same for many calls into state, in place.

    Their values are set once, through the request's `query_state`, and are kept in the type that
    the device computes in; as inputs they would be converted in every call. Until then they are
    empty. They need the form of a KV cache.
    """
    for name in names:
        port, shape = model.input(name), model.input(name).get_partial_shape()
        info = VariableInfo()
        info.data_shape, info.data_type, info.variable_id = shape, port.get_element_type(), name
        variable = Variable(info)
        read = ops.read_value(_empty(model, shape, port.get_element_type()), variable)
        for consumer in port.get_target_inputs():
            consumer.replace_source_output(read.output(0))
        model.remove_parameter(port.get_node())
        model.add_variables([variable])
        model.add_sinks([ops.assign(read, variable)])
    model.validate_nodes_and_infer_types()


def _check(model: ov.Model, cache: Mapping[str, str]) -> None:
    if is_stateful(model):
        raise SettingsError("The model is stateful already; convert it from PyTorch again.")
    if not cache:
        raise SettingsError("The model has no KV cache to keep; name its inputs and outputs.")
    inputs = {name for port in model.inputs for name in port.get_names()}
    outputs = {name for port in model.outputs for name in port.get_names()}
    missing = [f"input {name}" for name in (*cache, EMBEDDINGS) if name not in inputs]
    missing += [f"output {name}" for name in cache.values() if name not in outputs]
    if missing:
        raise SettingsError(f"The model has no {', no '.join(missing)}; check the names.")
    for name, output in cache.items():
        shape, fixed = model.input(name).get_partial_shape(), is_fixed_size(name)
        if fixed != is_fixed_size(output) or not _can_be_state(shape, fixed=fixed):
            raise SettingsError(
                f"The cache input {name} has the shape {shape}; it should be (batch, heads, "
                "length, head size) with heads and head size fixed, or fixed but for the batch "
                f"and be called, as its output {output}, something that ends in {FIXED_SIZE}."
            )


def _can_be_state(shape: ov.PartialShape, *, fixed: bool) -> bool:
    """Return whether the batch alone may vary in a `fixed` state, and the length too in another."""
    if fixed:
        sizes = list(shape)[1:]
    elif shape.rank.is_static and len(shape) == 4 and shape[2].is_dynamic:
        sizes = [shape[1], shape[3]]
    else:
        return False
    return bool(sizes) and not any(size.is_dynamic for size in sizes)


def _start_empty(
    model: ov.Model, cache: Mapping[str, str], shapes: Mapping[str, ov.PartialShape]
) -> None:
    """Give every state its first value: no positions or zeros, for as many rows as the batch."""
    reads = {node.get_variable_id(): node for node in model.get_ops() if _is_read(node)}
    for variable, node in reads.items():
        name = next(name for name in cache if variable == name + cache[name])
        start = _empty(model, shapes[name], node.get_output_element_type(0))
        node.set_arguments([start.output(0)])


def _empty(model: ov.Model, shape: ov.PartialShape, element: ov.Type) -> ov.Node:
    """Return keys or values of no positions, or zeros, for as many rows as the batch has."""
    batch = ops.gather(
        ops.shape_of(model.input(EMBEDDINGS), ov.Type.i64),
        ops.constant([0], ov.Type.i64),
        ops.constant(0, ov.Type.i64),
    )
    # A zero that is computed: the CPU plugin takes a constant one for the length of all times.
    nothing = ops.subtract(batch, batch)
    sizes = [
        nothing if size.is_dynamic else ops.constant([size.get_length()], ov.Type.i64)
        for size in list(shape)[1:]
    ]
    return ops.broadcast(ops.constant(0.0, element), ops.concat([batch, *sizes], 0))


def _is_read(node: ov.Node) -> bool:
    return str(node.get_type_name()) == "ReadValue"
