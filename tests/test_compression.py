"""What each preset makes of the weights, and what it refuses."""

import openvino as ov
import pytest

from helpers import compression, conversion
from helpers.compression import BitWidth, Preset, Weights, bit_widths, compress, find_preset
from helpers.errors import SettingsError
from helpers.tracing import FILES, IMAGE_ENCODER, LANGUAGE_MODEL, TEXT_EMBEDDINGS

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
        for name, preset in compression.PRESETS.items()
    }


def layers(widths: list[BitWidth]) -> dict[str, int]:
    return {width.type: width.layers for width in widths}


@pytest.mark.parametrize(
    ("preset", "language_model", "embeddings", "encoder"),
    [
        ("fp16", {"f16": DECODER + HEAD}, {"f16": 1}, {"f16": ENCODER - 1, "f32": 1}),
        ("int8", {"u8": DECODER + HEAD}, {"u8": 1}, {"u8": ENCODER}),
        ("int4", {"u4": DECODER, "u8": HEAD}, {"u8": 1}, {"u8": ENCODER}),
        ("int4-sym", {"i4": DECODER, "u8": HEAD}, {"u8": 1}, {"u8": ENCODER}),
    ],
)
def test_each_preset_s_bit_widths(stored, preset, language_model, embeddings, encoder):
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
    for name in ("fp16", "int8", "int4", "int4-sym"):
        path = conversion.save_part(stored[name][LANGUAGE_MODEL], tmp_path, LANGUAGE_MODEL)
        sizes[name] = path.with_suffix(".bin").stat().st_size
        assert sizes[name] == pytest.approx(
            compression.stored_bytes(stored[name][LANGUAGE_MODEL]), rel=0.01
        )
    assert sizes["fp16"] > sizes["int8"] > sizes["int4"] > sizes["int4-sym"]


def test_a_ratio_leaves_some_layers_at_8_bits(language_model):
    before = compression.stored_bytes(language_model)
    widths = bit_widths(compress(language_model, Weights("int4-asym", ratio=0.5)))
    found = layers(widths)
    assert sum(found.values()) == DECODER + HEAD
    assert 0 < found["u4"] < DECODER
    assert compression.stored_bytes(language_model) < before


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


def test_fp16_leaves_a_model_as_it_is(language_model):
    assert compress(language_model, Weights("fp16")) is language_model
    assert layers(bit_widths(language_model)) == {"f16": DECODER + HEAD}


# Settings


def test_a_mode_that_does_not_exist():
    with pytest.raises(SettingsError, match="'int3' do not exist; use fp16, int8, int4-asym"):
        Weights("int3")


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan")])
def test_a_ratio_out_of_range(ratio):
    with pytest.raises(SettingsError, match="ratio is .*; it should be from 0 to 1"):
        Weights("int4-asym", ratio=ratio)


@pytest.mark.parametrize("size", [0, -2, 1.5])
def test_a_group_size_that_cannot_be(size):
    with pytest.raises(SettingsError, match=f"group size is {size}; it should be a whole number"):
        Weights("int4-asym", group_size=size)


def test_a_preset_that_does_not_exist():
    with pytest.raises(SettingsError, match="'int5' does not exist; use fp16, int8, int4, int4-"):
        find_preset("int5")


def test_a_preset_s_changes_are_its_language_model_s():
    preset = find_preset("int4", group_size=64, ratio=None)
    assert preset.weights_of(LANGUAGE_MODEL) == Weights("int4-asym", group_size=64)
    assert preset.weights_of(IMAGE_ENCODER) == Weights("int8")
    assert preset.name == "int4" and isinstance(preset, Preset)
    assert find_preset("int4") == compression.PRESETS["int4"]


def test_what_a_preset_says_of_itself():
    assert str(find_preset("int4")) == (
        "language model INT4-ASYM group 128 ratio 1, other parts INT8"
    )


def test_rows_for_a_table():
    widths = {"a part": [BitWidth("u4", 3, 0.75), BitWidth("u8", 1, 0.25)]}
    assert compression.table(widths) == [
        {"part": "a part", "weights": "u4", "layers": 3, "share": "75%"},
        {"part": "a part", "weights": "u8", "layers": 1, "share": "25%"},
    ]


def test_the_choice_s_first_value(monkeypatch):
    assert compression.choose_precision().value == "int4"
    monkeypatch.setenv("VLM_PRECISION", "int8")
    assert compression.choose_precision().value == "int8"
    monkeypatch.setenv("VLM_PRECISION", "int2")
    with pytest.raises(SettingsError, match="VLM_PRECISION asks for 'int2'; this offers fp16"):
        compression.choose_precision()


def test_a_notebook_s_own_presets_are_offered():
    own = find_preset("int4", ratio=0.8)
    choice = compression.choose_precision(presets={"int8": find_preset("int8"), "int4": own})
    assert list(choice.options) == ["int8", "int4"]
    assert str(own) in choice.line
