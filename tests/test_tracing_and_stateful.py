"""One PyTorch part becomes one OpenVINO model; the language model's cache becomes state."""

import gc
import signal
import weakref
from types import SimpleNamespace

import numpy as np
import openvino as ov
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from openvino import opset13 as ops
from torch import nn

from helpers.ends import SIGNALS
from helpers.errors import SettingsError
from helpers.graphs import core
from helpers.graphs.part_names import IMAGE_ENCODER, LANGUAGE_MODEL, TEXT_EMBEDDINGS
from helpers.graphs.parts import Part
from helpers.graphs.stateful import BEAM_INPUT, is_stateful, make_stateful
from helpers.graphs.tracing import trace
from helpers.models import load_model
from tests.tiny import TOKENS_PER_TILE, seeded

TOLERANCE = 1e-4  # of the largest logit, measured: up to 1.5e-6
ACCURACY = {"EXECUTION_MODE_HINT": "ACCURACY"}


@pytest.fixture(scope="module")
def traced(checkpoint):
    """Return a `model` with the weights that its file has, and its `graphs` by part."""
    model = load_model(checkpoint)
    graphs = {part.name: trace(part) for part in model.parts()}
    return SimpleNamespace(model=model, graphs=graphs)


@pytest.fixture(scope="module")
def stateful(checkpoint):
    part = load_model(checkpoint).language_model_part()
    model = trace(part)
    make_stateful(model, part.cache)
    return model


@pytest.fixture(scope="module")
def compiled(stateful):
    return ov.Core().compile_model(stateful, "CPU", ACCURACY)


def names(ports) -> list[str]:
    return [port.any_name for port in ports]


def shapes(ports) -> dict[str, str]:
    return {port.any_name: str(port.get_partial_shape()) for port in ports}


def layer_type(node) -> str:
    """Return what the CPU made of a node of the compiled model."""
    return node.get_rt_info()["layerType"].astype(str)


# Tracing


def test_names_and_dynamic_sizes(traced):
    encoder, embeddings, language_model = (
        traced.graphs[name] for name in (IMAGE_ENCODER, TEXT_EMBEDDINGS, LANGUAGE_MODEL)
    )
    assert shapes(encoder.inputs) == {"pixel_values": "[?,3,32,32]"}
    assert shapes(encoder.outputs) == {"last_hidden_state": f"[?,{TOKENS_PER_TILE},128]"}
    assert shapes(embeddings.inputs) == {"input": "[?,?]"}
    assert shapes(embeddings.outputs) == {"inputs_embeds": "[?,?,128]"}
    cache = [f"{layer}.{kind}" for layer in (0, 1) for kind in ("key", "value")]
    assert shapes(language_model.inputs) == {
        "inputs_embeds": "[?,?,128]",
        "attention_mask": "[?,?]",
        "position_ids": "[?,?]",
    } | {f"past_key_values.{name}": "[?,2,?,32]" for name in cache}
    assert names(language_model.outputs) == ["logits", *(f"present.{name}" for name in cache)]


def test_weights_in_16_bits_are_shared_with_the_file(traced):
    language_model = traced.model.language_model
    weights = [parameter for parameter in language_model.parameters() if parameter.dim() > 1]
    assert {weight.dtype for weight in weights} == {torch.float16}
    constants = {
        node.get_data().ctypes.data: node.get_element_type().get_type_name()
        for node in traced.graphs[LANGUAGE_MODEL].get_ops()
        if node.get_type_name() == "Constant" and node.get_byte_size() > 1000
    }
    assert set(constants.values()) == {"f16"}
    matrices = [module.weight for module in language_model.modules() if type(module) is nn.Linear]
    assert len(matrices) == 2 * 7 + 1
    assert {matrix.data_ptr() for matrix in matrices} <= set(constants)


def test_tracing_leaves_a_module_as_it_was(checkpoint):
    model = load_model(checkpoint)

    def tensors() -> dict[str, tuple]:
        items = [*model.named_parameters(), *model.named_buffers()]
        return {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in items}

    before = tensors()
    for part in model.parts():
        trace(part)
        assert tensors() == before
    with torch.inference_mode():  # types that do not fit would fail
        model.encode_images(pixel_values=torch.zeros(1, 3, 32, 32, dtype=torch.float16))


@pytest.mark.parametrize("tiles", [1, 3])
@torch.inference_mode()
def test_the_image_encoder_computes_as_in_pytorch(traced, torch_model, tiles):
    with seeded(0):
        pixels = torch.randn(tiles, 3, 32, 32)
    compiled = ov.Core().compile_model(traced.graphs[IMAGE_ENCODER], "CPU", ACCURACY)
    expected = torch_model.encode_images(pixel_values=pixels)
    assert_near(compiled(pixels.numpy())[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tracing_leaves_nothing_behind_and_says_nothing(checkpoint, capfd, recwarn, dtype):
    model = load_model(checkpoint, dtype)
    head = weakref.ref(model.language_model.lm_head)
    converted = trace(model.language_model_part())
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert torch.jit._state._get_script_class(torch.nn.Linear) is None
    store = torch.jit._recursive.concrete_type_store.type_store
    assert not store
    del model
    gc.collect()
    assert head() is not None  # the converted model computes with its memory
    del converted
    gc.collect()
    assert head() is None


@pytest.mark.usefixtures("unfrozen")
def test_tracing_looks_for_garbage_among_new_objects_alone(checkpoint, monkeypatch):
    """Those of all packages take longer than tracing a small part."""
    model, frozen = load_model(checkpoint), []
    collect = gc.collect

    def note() -> int:
        frozen.append(gc.get_freeze_count() > 1e5)
        return collect()

    monkeypatch.setattr(gc, "collect", note)
    trace(model.language_model_part())
    assert frozen and all(frozen)
    assert not gc.get_freeze_count()  # a notebook's own objects are looked at again


@pytest.mark.parametrize("number", [signal.SIGINT, *SIGNALS])
def test_a_signal_counts_once_a_part_is_traced(checkpoint, number):
    """The converter would take its exception for an attribute that is not there."""
    part, traced = load_model(checkpoint).language_model_part(), []

    def send(*_):
        # Not by the system: where tests had a `Core` of their own, the next one ends the process.
        signal.getsignal(number)(number, None)
        traced.append(number)

    part.module.register_forward_pre_hook(send)
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trace(part)
    finally:
        signal.signal(number, before)
    assert traced


# State


class SelfAttention(nn.Module):
    def forward(self, states, mask):
        """Attend from states to what is made of them."""
        return nn.functional.scaled_dot_product_attention(
            states, states + 1, states * 2, attn_mask=mask
        )


def test_attention_with_a_mask_is_recorded_without_being_computed(monkeypatch):
    calls, compute = [], nn.functional.scaled_dot_product_attention

    def counted(*inputs, **options):
        calls.append(inputs)
        return compute(*inputs, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    example = {"states": torch.zeros(2, 3, 5, 4), "mask": torch.zeros(2, 1, 5, 5)}
    model = trace(
        Part("attention", SelfAttention(), example, ("output",), fixed={"states": (1, 3)})
    )
    assert not calls
    inputs = torch.randn(1, 3, 7, 4), torch.randn(1, 1, 7, 7)
    compiled = ov.Core().compile_model(model, "CPU", ACCURACY)
    actual = compiled([tensor.numpy() for tensor in inputs])[0]
    assert_near(actual, SelfAttention()(*inputs))


@torch.inference_mode()
def reference_steps(model, batch: int, steps: int = 11) -> tuple[list[dict], list[torch.Tensor]]:
    """Return random inputs of a prompt and ten decode steps, and PyTorch's logits of each."""
    with seeded(batch):
        chunks = [torch.randn(batch, 7, 128)]
        chunks += [torch.randn(batch, 1, 128) for _ in range(steps - 1)]
    inputs, logits, cache, past = [], [], None, 0
    for chunk in chunks:
        length = past + chunk.shape[1]
        inputs.append(
            {
                "inputs_embeds": chunk.numpy(),
                "attention_mask": np.ones((batch, length), dtype=np.int64),
                "position_ids": np.tile(np.arange(past, length), (batch, 1)),
                BEAM_INPUT: np.arange(batch, dtype=np.int32),
            }
        )
        output = model.language_model(
            inputs_embeds=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        cache, past = output.past_key_values, length
        logits.append(output.logits)
    return inputs, logits


def assert_near(actual, expected: torch.Tensor) -> None:
    actual = torch.from_numpy(np.asarray(actual))
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_prefill_and_ten_decode_steps_agree_with_pytorch(compiled, torch_model, batch):
    request = compiled.create_infer_request()
    for inputs, expected in zip(*reference_steps(torch_model, batch), strict=True):
        assert_near(request.infer(inputs)["logits"], expected)


def test_reset_forgets_and_another_batch_may_follow(compiled, torch_model):
    request = compiled.create_infer_request()
    for batch in (3, 1, 2):
        request.reset_state()
        (prompt, *_), (expected, *_) = reference_steps(torch_model, batch, steps=1)
        assert_near(request.infer(prompt)["logits"], expected)


@torch.inference_mode()
def test_each_row_continues_from_the_row_that_beam_idx_names(compiled, torch_model):
    order = [2, 0, 0]
    (prompt, step), _ = reference_steps(torch_model, 3, steps=2)
    request = compiled.create_infer_request()
    request.infer(prompt)
    actual = request.infer(step | {BEAM_INPUT: np.array(order, dtype=np.int32)})["logits"]
    embeddings = np.concatenate([prompt["inputs_embeds"][order], step["inputs_embeds"]], axis=1)
    expected = torch_model.language_model(
        inputs_embeds=torch.from_numpy(embeddings), logits_to_keep=1
    ).logits
    assert_near(actual, expected)


def test_a_long_prompt_computes_one_row_of_logits(compiled):
    length, vocabulary = 320, compiled.output("logits").get_partial_shape()[-1].get_length()
    result = compiled.create_infer_request().infer(
        {
            "inputs_embeds": np.zeros((2, length, 128), dtype=np.float32),
            "attention_mask": np.ones((2, length), dtype=np.int64),
            "position_ids": np.tile(np.arange(length), (2, 1)),
            BEAM_INPUT: np.arange(2, dtype=np.int32),
        }
    )
    assert result["logits"].shape == (2, 1, vocabulary)
    matrix_shapes = [
        [size.get_length() for size in node.get_output_partial_shape(0)]
        for node in compiled.get_runtime_model().get_ops()
        if layer_type(node) == "FullyConnected"
    ]
    assert [2, length, 256] in matrix_shapes  # as the request just computed it
    assert [shape for shape in matrix_shapes if shape[-1] == vocabulary] == [[2, 1, vocabulary]]


@pytest.mark.parametrize("hint", ["ACCURACY", "PERFORMANCE"])
def test_attention_is_fused(stateful, hint):
    compiled = core.compile_model(stateful, "CPU", EXECUTION_MODE_HINT=hint)
    kinds = [layer_type(node) for node in compiled.get_runtime_model().get_ops()]
    assert kinds.count("ScaledDotProductAttention") == 2
    assert "Softmax" not in kinds


def test_the_cache_is_out_of_sight(stateful):
    assert is_stateful(stateful)
    assert names(stateful.inputs) == [
        *("inputs_embeds", "attention_mask", "position_ids", BEAM_INPUT)
    ]
    assert names(stateful.outputs) == ["logits"]
    assert len(stateful.get_variables()) == 4


# What cannot be made stateful


def small_model(cache_shape=(-1, 2, -1, 8), *, names=("past", "present")) -> ov.Model:
    """Return a model that puts what is new behind a cache."""
    new = ops.parameter([-1, 2, -1, 8], ov.Type.f32, name="inputs_embeds")
    past = ops.parameter(ov.PartialShape(list(cache_shape)), ov.Type.f32, name=names[0])
    present = ops.concat([past, new], 2 if len(cache_shape) == 4 else 1) if cache_shape else past
    for port, name in ((new, "inputs_embeds"), (past, names[0]), (present, names[1])):
        port.output(0).get_tensor().set_names({name})
    return ov.Model([ops.result(present)], [new, past], "small")


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ({"pest": "present"}, "no input pest; check"),
        ({"past": "prescient"}, "no output prescient; check"),
        ({"pest": "prescient"}, "no input pest, no output prescient; check"),
        ({}, "no KV cache"),
    ],
)
def test_wrong_names_are_named(cache, message):
    model = small_model()
    with pytest.raises(SettingsError, match=message):
        make_stateful(model, cache)
    assert names(model.inputs) == ["inputs_embeds", "past"]


def test_the_input_with_the_batch_is_named():
    model = small_model()
    model.input("inputs_embeds").get_tensor().set_names({"embeddings"})
    with pytest.raises(SettingsError, match="no input inputs_embeds; check"):
        make_stateful(model, {"past": "present"})


def test_a_stateful_model_is_refused():
    model = small_model()
    make_stateful(model, {"past": "present"})
    with pytest.raises(SettingsError, match="stateful already"):
        make_stateful(model, {"past": "present"})


@pytest.mark.parametrize("shape", [(-1, -1, -1, 8), (-1, 2, -1, -1)])
def test_a_cache_of_another_form_is_refused(shape):
    with pytest.raises(SettingsError, match="should be \\(batch, heads, length, head size\\)"):
        make_stateful(small_model(shape), {"past": "present"})


@pytest.mark.parametrize("names", [("past_state", "present"), ("past", "present_state")])
def test_a_cache_whose_names_say_different_things_is_refused(names):
    shape = (-1, 2, 5, 8) if names[0].endswith("_state") else (-1, 2, -1, 8)
    with pytest.raises(SettingsError, match="be called, as its output"):
        make_stateful(small_model(shape, names=names), dict([names]))


def test_a_cache_without_heads_is_refused():
    flat = ops.parameter([-1, 16], ov.Type.f32, name="inputs_embeds")
    flat.output(0).get_tensor().set_names({"inputs_embeds"})
    result = ops.relu(flat)
    result.output(0).get_tensor().set_names({"present"})
    model = ov.Model([ops.result(result)], [flat], "flat")
    with pytest.raises(SettingsError, match=r"inputs_embeds has the shape \[\?,16\]"):
        make_stateful(model, {"inputs_embeds": "present"})


def test_names_that_begin_alike_keep_their_own_sizes():
    new = ops.parameter([-1, 2, -1, 8], ov.Type.f32, name="inputs_embeds")
    inputs, results = {"inputs_embeds": new}, []
    for number, heads in (("1", 2), ("10", 4)):
        past = ops.parameter([-1, heads, -1, 8], ov.Type.f32, name=f"past.{number}")
        present = ops.concat([past, ops.concat([new] * (heads // 2), 1)], 2)
        present.output(0).get_tensor().set_names({f"present.{number}"})
        inputs[f"past.{number}"] = past
        results.append(ops.result(present))
    for name, node in inputs.items():
        node.output(0).get_tensor().set_names({name})
    model = ov.Model(results, list(inputs.values()), "alike")
    make_stateful(model, {"past.1": "present.1", "past.10": "present.10"})
    starts = [
        node.input_value(0) for node in model.get_ops() if node.get_type_name() == "ReadValue"
    ]
    assert {str(start.get_partial_shape()) for start in starts} == {"[?,2,?,8]", "[?,4,?,8]"}


# Any model


def random_model(sizes: list[tuple[int, int]]) -> ov.Model:
    """Return a model whose output is the sum over its cache, for each row and layer.

    Layer i has `sizes[i]` heads and head size, and puts what is new, times i + 1, behind its cache.
    """
    new = ops.parameter([-1, -1], ov.Type.f32, name="inputs_embeds")
    inputs, outputs, sums = {"inputs_embeds": new}, {}, []
    for layer, (heads, size) in enumerate(sizes):
        past = ops.parameter([-1, heads, -1, size], ov.Type.f32, name=f"past.{layer}")
        column = ops.unsqueeze(new, ops.constant([1, 3]))
        scaled = ops.multiply(column, ops.constant(layer + 1.0, ov.Type.f32))
        block = ops.constant(np.ones((1, heads, 1, size), np.float32))
        present = ops.concat([past, ops.multiply(scaled, block)], 2)
        sums.append(ops.reduce_sum(present, ops.constant([1, 2, 3])))
        inputs[f"past.{layer}"], outputs[f"present.{layer}"] = past, present
    outputs["sums"] = ops.concat([ops.unsqueeze(total, ops.constant(1)) for total in sums], 1)
    for name, node in (inputs | outputs).items():
        node.output(0).get_tensor().set_names({name})
    return ov.Model([ops.result(node) for node in outputs.values()], list(inputs.values()), "any")


LAYERS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 8)), min_size=1, max_size=12)


@given(LAYERS, st.integers(1, 4), st.data())
def test_any_number_of_layers_and_heads_rows_and_steps(sizes, rows, data):
    """The state is what inputs and outputs would have carried, each row from where it should."""
    model = random_model(sizes)
    make_stateful(model, {f"past.{layer}": f"present.{layer}" for layer in range(len(sizes))})
    assert names(model.outputs) == ["sums"] and len(model.get_variables()) == len(sizes)
    request = ov.Core().compile_model(model, "CPU", ACCURACY).create_infer_request()
    cache = np.zeros((rows, 0))
    for _ in range(data.draw(st.integers(1, 4))):
        new = data.draw(st.integers(1, 3))
        values = np.arange(rows * new, dtype=np.float32).reshape(rows, new) + 1
        beams = data.draw(st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows))
        cache = np.concatenate([cache[beams], values], 1)
        request.infer({"inputs_embeds": values, BEAM_INPUT: np.array(beams, np.int32)})
        factors = [heads * size * (layer + 1) for layer, (heads, size) in enumerate(sizes)]
        expected = cache.sum(1)[:, None] * np.array(factors)
        np.testing.assert_allclose(request.get_tensor("sums").data, expected, rtol=1e-5)
