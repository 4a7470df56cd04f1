"""What each preset makes of the weights, and what it refuses."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import nncf
import numpy as np
import openvino as ov
import pytest
from nncf.openvino.optimized_functions import models as optimized_models
from openvino import opset13 as ops

from helpers.convert import calibration, conversion
from helpers.errors import SettingsError
from helpers.graphs import compression, core, presets
from helpers.graphs.bit_widths import (
    BitWidth,
    bit_width_rows,
    bit_widths,
    layer_types,
    stored_bytes,
    stored_layers,
)
from helpers.graphs.compression import compress
from helpers.graphs.part_names import FILES, IMAGE_ENCODER, LANGUAGE_MODEL, TEXT_EMBEDDINGS
from helpers.graphs.presets import Preset, Quantization, Weights, find_preset
from helpers.graphs.stateful import is_stateful
from helpers.models import load_processor
from helpers.resources import Growth
from helpers.shapes.questions import draw_samples
from helpers.show import choices
from helpers.upstream import nncf as upstream

# Layers of the small model: two of the language model with seven matrices each and an LM head; one
# of the image encoder with six, the patch embedding and the projector's two.
DECODER, HEAD, ENCODER = 2 * 7, 1, 9


@pytest.fixture
def language_model(converted):
    return ov.Core().read_model(converted / FILES[LANGUAGE_MODEL])


@pytest.fixture(scope="module")
def stored(converted):
    """Return the compressed parts by name, for each preset."""
    read = ov.Core().read_model
    return {
        name: {
            part: compress(read(converted / file), preset.weights_of(part))
            for part, file in FILES.items()
        }
        for name, preset in presets.PRESETS.items()
    }


def layers(widths: list[BitWidth]) -> dict[str, int]:
    return {width.type: width.layers for width in widths}


@pytest.mark.parametrize(
    ("preset", "language_model", "embeddings", "encoder"),
    [
        ("fp16", {"f16": DECODER + HEAD}, {"f16": 1}, {"f16": ENCODER - 1, "f32": 1}),
        ("int8", {"u8": DECODER + HEAD}, {"u8": 1}, {"u8": ENCODER}),
        ("int4", {"u4": DECODER, "u8": HEAD}, {"u8": 1}, {"u8": ENCODER}),
        ("int4-sym", {"i4": DECODER, "i8": HEAD}, {"u8": 1}, {"u8": ENCODER}),
    ],
)
def test_bit_widths_of_each_preset(stored, preset, language_model, embeddings, encoder):
    widths = {part: bit_widths(model) for part, model in stored[preset].items()}
    assert {part: layers(part_widths) for part, part_widths in widths.items()} == {
        IMAGE_ENCODER: encoder,
        TEXT_EMBEDDINGS: embeddings,
        LANGUAGE_MODEL: language_model,
    }
    for part_widths in widths.values():
        assert sum(width.share for width in part_widths) == pytest.approx(1)


def test_shares_are_those_of_the_weights(stored):
    model = stored["int4"][LANGUAGE_MODEL]
    low, high = bit_widths(model)
    vocabulary = model.output("logits").get_partial_shape()[-1].get_length()
    width, cache, inner = 128, 64, 256
    layer = width * (2 * width + 2 * cache + 3 * inner)
    assert high.share == pytest.approx(vocabulary * width / (vocabulary * width + 2 * layer))
    assert low.share == pytest.approx(1 - high.share)


def test_each_preset_is_smaller_than_the_one_before(stored, tmp_path):
    sizes = {}
    for name in ("fp16", "int8", "int4-sym", "int4"):
        path = conversion.save_part(stored[name][LANGUAGE_MODEL], tmp_path, LANGUAGE_MODEL)
        sizes[name] = path.with_suffix(".bin").stat().st_size
        assert sizes[name] == pytest.approx(stored_bytes(stored[name][LANGUAGE_MODEL]), rel=0.01)
    assert sizes["fp16"] > sizes["int8"] > sizes["int4-sym"] > sizes["int4"]


@pytest.mark.parametrize(("mode", "signs"), [("int4-asym", "u"), ("int4-sym", "i")])
def test_a_ratio_leaves_some_layers_at_8_bits(language_model, mode, signs):
    before = stored_bytes(language_model)
    widths = bit_widths(compress(language_model, Weights(mode, ratio=0.5)))
    layers_by_type = layers(widths)
    assert layers_by_type.keys() == {f"{signs}4", f"{signs}8"}
    assert sum(layers_by_type.values()) == DECODER + HEAD
    assert 0 < layers_by_type[f"{signs}4"] < DECODER
    assert stored_bytes(language_model) < before


@pytest.mark.parametrize(("mode", "signs"), [("int4-asym", "u"), ("int4-sym", "i")])
def test_a_ratio_of_0_leaves_all_layers_at_8_bits(language_model, mode, signs):
    widths = bit_widths(compress(language_model, Weights(mode, ratio=0.0)))
    assert layers(widths) == {f"{signs}8": DECODER + HEAD}


def test_all_layers_includes_the_last(language_model):
    weights = Weights("int4-sym", group_size=64, all_layers=True)
    assert layers(bit_widths(compress(language_model, weights))) == {"i4": DECODER + HEAD}


@pytest.mark.parametrize("size", [96, 7, 512])
def test_a_group_size_that_divides_no_layer_is_refused_in_a_sentence(language_model, size):
    with pytest.raises(SettingsError, match=f"group size of {size} ") as caught:
        compress(language_model, Weights("int4-asym", group_size=size))
    assert "\n" not in str(caught.value)


def test_compressing_says_nothing(language_model, capfd):
    compress(language_model, Weights("int4-asym"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mode", ["int8", "int4-asym", "int4-sym"])
def test_layers_alike_are_rounded_by_one_model(converted, monkeypatch, mode):
    """And the result is NNCF's own."""
    read, path = ov.Core().read_model, converted / FILES[LANGUAGE_MODEL]
    compile_model, compiled = optimized_models._compile_ov_model, []

    def counted(model, **options):
        compiled.append(model)
        return compile_model(model, **options)

    monkeypatch.setattr(optimized_models, "_compile_ov_model", counted)
    weights = Weights(mode, group_size=32)
    actual, number = compress(read(path), weights), len(compiled)
    assert_same(actual, by_nncf_alone(read(path), mode))
    assert number <= 2 and len(compiled) - number > 10  # NumPy rounds the smallest layers


@pytest.mark.parametrize("mode", ["int8", "int4-asym"])
def test_large_results_stay_where_they_are(converted, monkeypatch, mode):
    """Those of one layer are not overwritten by the next, although nothing is copied."""
    monkeypatch.setattr(upstream, "LARGE", 0)
    monkeypatch.delattr(upstream, "_copy")
    read, path = ov.Core().read_model, converted / FILES[LANGUAGE_MODEL]
    actual = compress(read(path), Weights(mode, group_size=32))
    assert_same(actual, by_nncf_alone(read(path), mode))


def by_nncf_alone(model: ov.Model, mode: str) -> ov.Model:
    options = {} if mode == "int8" else {"group_size": 32, "ratio": 1.0}
    if mode == "int4-sym":
        options["backup_mode"] = nncf.BackupMode.INT8_SYM
    modes = compression._MODES | {"int8": nncf.CompressWeightsMode.INT8_ASYM}
    return nncf.compress_weights(model, mode=modes[mode], **options)


def assert_same(actual: ov.Model, expected: ov.Model) -> None:
    """Compare the operations and the bytes of all constants."""
    pairs = zip(actual.get_ordered_ops(), expected.get_ordered_ops(), strict=True)
    for operation, counterpart in pairs:
        assert operation.get_type_name() == counterpart.get_type_name()
        if operation.get_type_name() == "Constant":
            assert operation.get_data().tobytes() == counterpart.get_data().tobytes()


@pytest.mark.parametrize("all_layers", [False, True])
@pytest.mark.parametrize("mode", ["int8", "int4-asym", "int4-sym"])
def test_large_matrices_are_rounded_as_by_nncf(
    language_model, inputs, monkeypatch, mode, all_layers
):
    weights = Weights(mode, group_size=64, all_layers=all_layers and mode != "int8")
    by_nncf = compress(language_model.clone(), weights)
    monkeypatch.setattr(compression, "LARGE", 2**15)  # the last layer is larger
    by_us = compress(language_model.clone(), weights)
    assert layer_types(by_us) == layer_types(by_nncf)
    assert stored_bytes(by_us) == stored_bytes(by_nncf)
    assert weights.is_symmetric != any(kind[0] == "u" for kind in layer_types(by_us).values())
    if weights.is_symmetric:  # no zero point is rounded, and a scale hardly changes in 16 bits
        ours, theirs = (list(stored_layers(model))[-1][1].data for model in (by_us, by_nncf))
        assert np.abs(ours.astype(int) - theirs).max() <= 1
    samples = inputs[LANGUAGE_MODEL]
    exact = logits_of(language_model, samples)
    errors = [np.square(logits_of(model, samples) - exact).mean() for model in (by_us, by_nncf)]
    assert errors[0] == pytest.approx(errors[1], rel=0.2)


def test_a_large_matrix_takes_little_memory():
    number, width = 2**17, 1024
    matrix = np.random.default_rng(0).standard_normal((number, width), np.float32)
    matrix = matrix.astype(np.float16)
    words = ops.parameter([-1, width], ov.Type.f32)
    wide = ops.convert(ov.op.Constant(ov.Tensor(matrix, shared_memory=True)), "f32")
    graph = ov.Model([ops.matmul(words, wide, False, True)], [words])
    with Growth() as growth:
        compress(graph, find_preset("int8").others)
    assert growth.bytes <= 2 * number * width  # of NNCF 8.7 times


def test_of_a_large_matrix_rows_are_rounded_or_columns(monkeypatch):
    """Whichever give a number of the output each; and a graph's weights may have 32 bits."""
    matrix = np.random.default_rng(0).standard_normal((32, 32), np.float32)
    matrix *= np.logspace(-2, 2, 32, dtype=np.float32)  # each column has numbers of its own size
    words = ops.parameter([-1, 32], ov.Type.f32)
    results = [
        ops.matmul(words, ops.constant(values), False, is_by_rows)
        for values, is_by_rows in ((matrix, False), (matrix.T.copy(), True))
    ]
    graph = ov.Model(results, [words])
    monkeypatch.setattr(compression, "LARGE", 32 * 32)
    compressed = compress(graph.clone(), Weights("int8"))
    assert layers(bit_widths(compressed)) == {"u8": 2}
    rounded = core.compile_model(compressed, "CPU", EXECUTION_MODE_HINT="ACCURACY")
    for actual in rounded(np.eye(32, dtype=np.float32)).values():
        steps = (matrix.max(axis=0) - matrix.min(axis=0)) / 255
        assert (np.abs(actual - matrix) < 0.8 * steps).all()  # each rounded to the next


def test_fp16_leaves_a_model_as_it_is(language_model):
    assert compress(language_model, Weights("fp16")) is language_model
    assert layers(bit_widths(language_model)) == {"f16": DECODER + HEAD}


# Methods that look at samples

PLAIN = Weights("int4-asym", group_size=64, all_layers=True)
AWARE = {
    "awq": replace(PLAIN, awq=True, samples=3),
    "scale": replace(PLAIN, scale_estimation=True, samples=3),
    "gptq": replace(PLAIN, gptq=True, samples=3),
    "both": replace(PLAIN, awq=True, scale_estimation=True, samples=3),
}


@pytest.fixture(scope="module")
def inputs(converted):
    """Return the inputs of the converted model's parts for three samples."""
    read = ov.Core().read_model
    parts = {part: read(converted / file) for part, file in FILES.items()}
    samples = draw_samples(3)
    return calibration.inputs_by_part(parts, load_processor(converted), samples)


def weight_bytes(model: ov.Model) -> bytes:
    constants = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    return b"".join(np.asarray(node.get_data()).tobytes() for node in constants)


@pytest.mark.parametrize("name", AWARE)
def test_weights_that_look_at_samples(language_model, inputs, name):
    samples = inputs[LANGUAGE_MODEL]
    plain = compress(language_model.clone(), PLAIN)
    aware = compress(language_model.clone(), AWARE[name], samples)
    assert layers(bit_widths(aware)) == layers(bit_widths(plain)) == {"u4": DECODER + HEAD}
    assert is_stateful(aware)
    assert weight_bytes(aware) != weight_bytes(plain)


ENCODED = Quantization(samples=3)
SENSITIVE = Weights("int4-asym", ratio=0.5, sensitivity="mean_activation_variance", samples=3)


@pytest.mark.parametrize(
    ("part", "weights", "changes"),
    [
        (LANGUAGE_MODEL, AWARE["awq"], {"samples": 1}),
        (LANGUAGE_MODEL, AWARE["gptq"], {"samples": 1}),
        (LANGUAGE_MODEL, SENSITIVE, {"sensitivity": "mean_activation_magnitude"}),
        (IMAGE_ENCODER, ENCODED, {"samples": 1, "smooth_quant": 0.3}),
    ],
    ids=["awq", "gptq", "sensitivity", "activations"],
)
def test_settings_reach_nncf(converted, inputs, part, weights, changes):
    """As how many samples are looked at: each that is changed gives other weights."""
    model = ov.Core().read_model(converted / FILES[part])
    settings = [weights, *(replace(weights, **{name: changes[name]}) for name in changes)]
    results = {weight_bytes(compress(model.clone(), setting, inputs[part])) for setting in settings}
    assert len(results) == len(settings)


@pytest.mark.parametrize("weights", [AWARE["gptq"], ENCODED], ids=str)
def test_what_nncf_refuses_is_told(language_model, inputs, monkeypatch, weights):
    def refuse(*_, **__):
        raise nncf.UnsupportedModelError("of no kind")

    monkeypatch.setattr(nncf, "compress_weights", refuse)
    monkeypatch.setattr(nncf, "quantize", refuse)
    with pytest.raises(SettingsError, match=r"NNCF cannot .* \(of no kind\); choose other"):
        compress(language_model, weights, inputs[LANGUAGE_MODEL])


def test_looking_at_samples_brings_their_logits_closer(language_model, inputs):
    samples = inputs[LANGUAGE_MODEL]
    exact = logits_of(language_model, samples)
    errors = [
        np.square(logits_of(compress(language_model.clone(), weights, samples), samples) - exact)
        for weights in (PLAIN, AWARE["both"])
    ]
    assert errors[1].mean() < errors[0].mean()


def logits_of(model: ov.Model, feeds: compression.Samples) -> np.ndarray:
    """Return the logits (samples, vocabulary) of prompts, each from an empty cache."""
    language_model = core.compile_model(model, "CPU", EXECUTION_MODE_HINT="ACCURACY")
    return np.stack(
        [language_model.create_infer_request().infer(feed)["logits"][0, 0].copy() for feed in feeds]
    )


def test_the_state_is_reset_between_samples(language_model, inputs):
    """NNCF does it; with it, samples in another order give the same statistics, so weights."""
    samples = list(inputs[LANGUAGE_MODEL])
    weights = [
        weight_bytes(compress(language_model.clone(), AWARE["awq"], order))
        for order in (samples, samples[::-1])
    ]
    assert len(set(weights)) == 1


@pytest.mark.parametrize("dtype", [ov.Type.f16, ov.Type.bf16])
def test_activations_of_the_image_encoder_in_8_bits(converted, inputs, dtype):
    model = ov.Core().read_model(converted / FILES[IMAGE_ENCODER])
    for constant in model.get_ops():
        if constant.get_output_element_type(0) == ov.Type.f16:
            values = ops.constant(constant.get_data(dtype=np.float32), dtype)
            for reader in constant.output(0).get_target_inputs():
                reader.replace_source_output(values.output(0))
    samples = inputs[IMAGE_ENCODER]
    quantized = compress(model.clone(), ENCODED, samples)
    assert layers(bit_widths(quantized))["i8"] >= ENCODER - 1
    assert stored_bytes(quantized) < 0.75 * stored_bytes(model)
    kinds = Counter(node.get_type_name() for node in quantized.get_ops())
    assert kinds["FakeQuantize"] == ENCODER  # in front of each layer, and of nothing else
    types = {node.get_output_element_type(0) for node in quantized.get_ops()}
    assert not types & {ov.Type.f16, ov.Type.bf16}
    exact, rounded = (core.compile_model(part, "CPU") for part in (model, quantized))
    for feed in samples:
        expected, actual = exact(feed)[0], rounded(feed)[0]
        assert 0 < np.abs(actual - expected).mean() < 0.2 * np.abs(expected).mean()


@pytest.mark.parametrize("weights", [*AWARE.values(), Quantization()], ids=str)
@pytest.mark.parametrize("samples", [None, []])
def test_no_samples(language_model, weights, samples):
    with pytest.raises(SettingsError, match="needs sample inputs to look at; give some"):
        compress(language_model, weights, samples)


def test_what_looks_at_samples():
    assert all(weights.needs_data for weights in (*AWARE.values(), Quantization()))
    assert Weights("int4-sym", ratio=0.5, sensitivity="max_activation_variance").needs_data
    assert not PLAIN.needs_data and not Weights("fp16").needs_data


def test_what_they_say_of_themselves():
    assert str(AWARE["both"]) == (
        "INT4-ASYM group 64 ratio 1 + all layers + AWQ + scale estimation"
    )
    preset = replace(find_preset("int8"), image_encoder=Quantization())
    assert str(preset) == (
        "language model INT8, image encoder INT8 with activations, SmoothQuant 0.6, "
        "other parts INT8"
    )


def test_a_preset_with_its_own_image_encoder():
    preset = replace(find_preset("int4"), image_encoder=presets.FP16)
    assert preset.weights_of(IMAGE_ENCODER) == presets.FP16
    assert preset.weights_of(TEXT_EMBEDDINGS) == presets.INT8


# Settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Weights("int8", awq=True), "Weights in int8 look at no samples"),
        (lambda: Weights("int4-sym", sensitivity="taste"), "sensitivity 'taste' does not exist"),
        (lambda: Weights("int4-sym", samples=0), "There are 0 samples to look at"),
        (lambda: Quantization(samples=0), "There are 0 samples to look at"),
        (lambda: Quantization(samples="9"), "There are '9' samples .* a whole number from 1 on"),
        (lambda: Quantization(smooth_quant=1.2), "SmoothQuant is 1.2; it should be from 0 to 1"),
        (
            lambda: Preset("x", "int4", "int8", "why"),
            r"preset 'x' has 'int4' for its language model; give Weights, as in Preset\(.*\)\.$",
        ),
        (lambda: Preset("x", presets.FP16, "int8", "why"), "'int8' for its others; give Weights"),
        (
            lambda: Preset("x", presets.FP16, Quantization(), "why"),
            r"has Quantization\(.*\) for its others",
        ),
        (
            lambda: replace(find_preset("int8"), image_encoder="int8"),
            "'int8' for its image encoder; give Weights or Quantization, as",
        ),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(SettingsError, match=message):
        make()


def test_a_mode_that_does_not_exist():
    with pytest.raises(SettingsError, match="'int3' do not exist; use fp16, int8, int4-asym"):
        Weights("int3")


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan"), "1", True])
def test_a_ratio_out_of_range(ratio):
    with pytest.raises(SettingsError, match="ratio is .*; it should be from 0 to 1"):
        Weights("int4-asym", ratio=ratio)


@pytest.mark.parametrize("size", [0, -2, 1.5, "64", None, True])
def test_a_group_size_that_cannot_be(size):
    with pytest.raises(SettingsError, match=f"group size is {size!r}; it should be a whole number"):
        Weights("int4-asym", group_size=size)


def test_a_preset_that_does_not_exist():
    names = "fp16, int8, int4, int4-sym, int8-activations"
    with pytest.raises(SettingsError, match=f"'int5' does not exist; use {names}, auto, or see "):
        find_preset("int5")
    with pytest.raises(SettingsError, match=f"'auto' does not exist; use {names}, or see "):
        find_preset("int4", image_encoder="auto")
    with pytest.raises(SettingsError, match=r"precision \['int4'\] does not exist; use "):
        find_preset(["int4"])


def test_a_precision_that_is_the_fastest():
    assert find_preset("auto") is find_preset("int4-sym")


def test_the_page_on_presets_of_one_s_own_exists():
    with pytest.raises(SettingsError, match="or see docs/next-steps.md for one of your own") as end:
        find_preset("int4-g32")
    page = Path(__file__).parent.parent / "docs" / "next-steps.md"
    assert page.name in str(end.value) and "PRESETS" in page.read_text(encoding="utf-8")


def test_changes_of_a_preset_are_for_its_language_model():
    preset = find_preset("int4", group_size=64, ratio=None)
    assert preset.weights_of(LANGUAGE_MODEL) == Weights("int4-asym", group_size=64)
    assert preset.weights_of(IMAGE_ENCODER) == Weights("int8")
    assert preset.name == "int4" and isinstance(preset, Preset)
    assert find_preset("int4") == presets.PRESETS["int4"]


def test_what_a_preset_says_of_itself():
    for name, weights in (("int4", "INT4-ASYM group 128"), ("int4-sym", "INT4-SYM group 64")):
        text = f"language model {weights} ratio 1, other parts INT8"
        assert str(find_preset(name)) == text


def test_rows_for_a_table():
    widths = {"a part": [BitWidth("u4", 3, 0.75), BitWidth("u8", 1, 0.25)]}
    assert bit_width_rows(widths) == [
        {"part": "a part", "weights": "u4", "layers": 3, "share": "75%"},
        {"part": "a part", "weights": "u8", "layers": 1, "share": "25%"},
    ]


def test_the_first_value_of_the_choice(monkeypatch):
    assert choices.choose_precision().value == "int4"
    monkeypatch.setenv("VLM_PRECISION", "int8")
    assert choices.choose_precision().value == "int8"
    monkeypatch.setenv("VLM_PRECISION", "int2")
    with pytest.raises(SettingsError, match="VLM_PRECISION asks for 'int2'; this offers fp16"):
        choices.choose_precision()
    monkeypatch.delenv("VLM_PRECISION")
    with pytest.raises(SettingsError, match="The default asks for 'int2'; this offers fp16"):
        choices.choose_precision("int2")


def test_a_cell_chooses_without_the_widget():
    choice = choices.choose_precision()
    choice.value = "INT8"
    assert choice.value == "int8" and choice.text.value.startswith("Precision: int8")
    for value in ("int2", None, 8):
        with pytest.raises(SettingsError, match=f"The cell asks for {value!r}; this offers fp16"):
            choice.value = value
    assert choice.value == "int8"


def test_presets_of_a_notebook_are_offered():
    preset = find_preset("int4", ratio=0.8)
    choice = choices.choose_precision(presets={"int8": find_preset("int8"), "int4": preset})
    assert list(choice.options) == ["int8", "int4"]
    assert str(preset) in choice.line


def test_ways_for_the_image_encoder_are_offered(monkeypatch):
    encoders = {"int8": presets.INT8, "int8-activations": Quantization()}
    choice = choices.choose_image_encoder(encoders, default="int8")
    assert choice.value == "int8"
    monkeypatch.setenv("VLM_IMAGE_ENCODER", "int8-activations")
    choice = choices.choose_image_encoder(encoders, default="int8")
    assert choice.line == f"Image encoder: int8-activations ({Quantization()})"


def test_the_type_of_each_layer_by_its_module(stored):
    types = layer_types(stored["int4"][LANGUAGE_MODEL])
    assert len(types) == DECODER + HEAD
    assert types["decoder.lm_head"] == "u8"
    assert types["decoder.model.layers.0.self_attn.q_proj"] == "u4"


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("", 140), (None, 140)])
def test_the_variable_says_how_many_questions_are_asked(monkeypatch, text, number):
    monkeypatch.delenv("VLM_QUESTIONS", raising=False)
    if text is not None:
        monkeypatch.setenv("VLM_QUESTIONS", text)
    assert choices.question_number(140) == number


@pytest.mark.parametrize("text", ["0", "-3", "many", "2.5"])
def test_a_number_of_questions_that_none_can_be_is_told_in_a_sentence(monkeypatch, text):
    monkeypatch.setenv("VLM_QUESTIONS", text)
    with pytest.raises(SettingsError, match=f"VLM_QUESTIONS is '{text}'; it should be a whole"):
        choices.question_number(140)
