"""MiniCPM-V-2 against the authors' own results."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional

from helpers.errors import CheckpointError, PictureError
from helpers.graphs import core
from helpers.graphs.bit_widths import bit_widths
from helpers.graphs.tracing import trace
from helpers.inputs.messages import user_message
from helpers.models import load_model, load_processor
from helpers.models.families import find_original, without_weights
from helpers.models.minicpm_v2 import (
    MiniCPMV2,
    MiniCPMV2Processor,
    bicubic_weights,
    text_config,
    vision_config,
)
from helpers.models.slices import Slicing, plan_slices, slice_picture
from helpers.sources.checkpoints import read_config
from tests.golden_checks import (
    GOLDEN,
    TOLERANCE,
    assert_close,
    change_type,
    check_original_tensors,
    conversations,
    copy_of,
    golden_pixels,
    golden_prompts,
    golden_results,
    greedy,
    loading_error,
)

FAMILY = "minicpm_v2"
FULL_SIZE = find_original("minicpm-v-2").config
SLICES = range(4)
PROMPTS = golden_prompts(FAMILY)
# Measured with bfloat16 copies: 0.010 for features, 0.015 for logits.
BFLOAT16_TOLERANCE = 0.03


@pytest.fixture(scope="module")
def model() -> MiniCPMV2:
    return load_model(GOLDEN / FAMILY)


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return golden_results(FAMILY)


# The model


@pytest.mark.parametrize("piece", SLICES)
def test_vision_hidden(model, expected, piece):
    patches = model.image_encoder.patches(expected[f"pixel_values.{piece}"])
    assert_close(patches, expected[f"vision_hidden.{piece}"])


def test_image_features_of_all_sizes_at_once(model, expected):
    features = model.encode_images(
        pixel_values=[expected[f"pixel_values.{piece}"] for piece in SLICES]
    )
    assert len(features) == len(SLICES)
    for piece in SLICES:
        assert_close(features[piece][None], expected[f"image_features.{piece}"])


def _prepare(model, expected) -> dict:
    features = model.encode_images(pixel_values=[expected["pixel_values.1"]])
    return model.prepare(expected["input_ids"], features)


def test_inputs_embeds_and_logits(model, expected):
    prepared = _prepare(model, expected)
    assert_close(prepared["inputs_embeds"], expected["inputs_embeds"])
    assert_close(model(**prepared).logits, expected["logits"])


def test_greedy_tokens(model, expected):
    prepared = _prepare(model, expected)
    tokens = expected["greedy_tokens"].tolist()
    assert greedy(model, prepared, len(tokens)) == tokens


def test_too_few_places_for_the_features(model, expected):
    features = model.encode_images(pixel_values=[expected["pixel_values.1"]] * 2)
    with pytest.raises(CheckpointError, match="room for 9 picture tokens"):
        model.prepare(expected["input_ids"], features)


def _in_bfloat16(folder: Path) -> Path:
    copy = copy_of(FAMILY, folder)
    change_type(copy, torch.bfloat16)
    return copy


def test_bfloat16_is_kept(tmp_path, expected):
    model = load_model(_in_bfloat16(tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for piece in SLICES:
        features = model.encode_images(pixel_values=expected[f"pixel_values.{piece}"])
        assert_close(features[0][None], expected[f"image_features.{piece}"], BFLOAT16_TOLERANCE)
    logits = model(**_prepare(model, expected)).logits
    assert_close(logits, expected["logits"], BFLOAT16_TOLERANCE)


def test_tensors_that_do_not_fit_are_listed(tmp_path):
    def change(tensors):
        tensors.pop("llm.lm_head.weight", None)
        if "vpm.pos_embed" in tensors:
            tensors["vpm.pos_embed"] = tensors["vpm.pos_embed"][:, 1:].contiguous()
        if "resampler.query" in tensors:
            tensors["resampler.other"] = tensors["resampler.query"].clone()
        return tensors

    message = loading_error(copy_of(FAMILY, tmp_path), change)
    assert "missing language_model.lm_head.weight" in message
    assert "mis-shaped vpm.pos_embed" in message
    assert "unexpected resampler.other" in message


def test_saving_gives_the_original_tensors(model):
    check_original_tensors(model, FAMILY)


# What a config.json implies


def test_full_size_model_has_the_published_number_of_parameters():
    model = without_weights(FULL_SIZE)
    # 2 bytes each make the total_size of the published index.
    assert sum(parameter.numel() for parameter in model.parameters()) == 6869931584 // 2
    assert model.image_encoder.resampler.heads == 18


def test_constants_of_the_full_size_language_model():
    config = text_config(FULL_SIZE)
    assert config.residual_multiplier == pytest.approx(1.4 / math.sqrt(40), rel=1e-15)
    assert config.logits_scaling == 9
    assert config.attention_multiplier == 0.125
    assert config.rope_parameters["rope_theta"] == 10000


@pytest.mark.parametrize(("dropped", "layers"), [(True, 26), (False, 27)])
def test_the_named_image_encoder(dropped, layers):
    config = vision_config(FULL_SIZE | {"drop_vision_last_layer": dropped})
    assert config.num_hidden_layers == layers
    assert config.hidden_act == "gelu"
    assert not config.vision_use_head


def test_an_unknown_image_encoder():
    with pytest.raises(CheckpointError, match='encoder "vit_huge" in config.json is none of'):
        vision_config(FULL_SIZE | {"vision_encoder": "vit_huge.laion"})


# Tables in the image encoder


@pytest.mark.parametrize("size", [1, 2, 4, 13, 26, 27, 28, 40, 113, 226])
def test_bicubic_weights(size):
    table = torch.randn(1, 8, 27, 5, generator=torch.Generator().manual_seed(size))
    options = {"mode": "bicubic", "antialias": True}
    expected = functional.interpolate(table, size=(size, 5), **options)
    assert torch.allclose(bicubic_weights(size, 27) @ table, expected, atol=1e-5)


@pytest.mark.parametrize("grid", [(9, 9), (6, 13), (1, 40)])
def test_position_table(model, expected, grid):
    embeddings = model.image_encoder.siglip.embeddings
    table = embeddings.position_embedding.weight.T.reshape(1, -1, 9, 9)
    reference = functional.interpolate(table, size=grid, mode="bicubic", antialias=True)
    resized = embeddings.interpolate_pos_encoding(torch.zeros(1), grid[0] * 14, grid[1] * 14)
    assert torch.allclose(resized[0], reference[0].flatten(1).T, atol=1e-5)


def test_grid_positions(model):
    rows, columns, hidden = 3, 5, model.config["hidden_size"]
    table = model.image_encoder.resampler.positions(rows, columns)
    for place, (row, column) in enumerate(np.ndindex(rows, columns)):
        halves = []
        for position in (column, row):
            angles = [position / 10000 ** (index / (hidden / 4)) for index in range(hidden // 4)]
            halves += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        assert np.allclose(table[place], halves, atol=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_one_exported_image_encoder_takes_every_size(expected, dtype):
    import openvino as ov

    exported = trace(load_model(GOLDEN / FAMILY, dtype).image_encoder_part())
    assert [size.is_dynamic for size in exported.input().partial_shape] == [True, False, True, True]
    accurate = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": 1}
    compiled = ov.Core().compile_model(exported, "CPU", accurate)
    tolerance = TOLERANCE if dtype is None else BFLOAT16_TOLERANCE
    for piece in SLICES:
        features = torch.from_numpy(compiled(expected[f"pixel_values.{piece}"].numpy())[0])
        assert_close(features, expected[f"image_features.{piece}"], tolerance)


@pytest.mark.parametrize(("dtype", "stored"), [(None, "f32"), (torch.bfloat16, "bf16")])
def test_exported_embeddings_are_scaled_and_keep_their_type(dtype, stored):
    model = load_model(GOLDEN / FAMILY, dtype)
    exported = trace(model.text_embeddings_part())
    assert [width.type for width in bit_widths(exported)] == [stored]
    ids = torch.tensor([[5, 1, 8]])
    embeddings = torch.from_numpy(core.compile_model(exported, "CPU")(ids.numpy())[0])
    rows = model.language_model.get_input_embeddings().weight.detach()[ids].float()
    assert torch.equal(embeddings, rows * model.config["scale_emb"])


# Slices


def test_all_grids():
    slicing = Slicing(resolution=448, patch=14, maximum=9)
    assert len(golden_pixels("minicpm_v2_grids")) == 200
    for entry in golden_pixels("minicpm_v2_grids"):
        plan = plan_slices(*entry["size"], slicing)
        sizes = [plan.overview, plan.grid, plan.cell]
        listed = [entry["overview"], entry["grid"], entry["slice"]]
        assert [size and list(size) for size in sizes] == listed


def _places(values, height: int, width: int) -> list:
    places = [(0, 0), (height // 2, width // 2), (height - 1, width - 1)]
    places.append((height // 3, 2 * width // 3))
    return [values[row][column] for row, column in places]


@pytest.mark.parametrize("entry", golden_pixels("pixels"), ids=lambda entry: entry["file"])
def test_pixels(entry):
    processor = load_processor(GOLDEN / FAMILY)
    with Image.open(GOLDEN / "preprocessing" / entry["file"]) as picture:
        inputs = processor.image_inputs([picture])
    listed = [entry["minicpm_v2_overview"], *entry["minicpm_v2_slices"]]
    assert len(inputs["pixel_values"]) == len(listed) == 1 + int(inputs["grids"].prod())
    for pixels, figures in zip(inputs["pixel_values"], listed, strict=True):
        width, height = figures["size"]
        assert pixels.shape == (1, 3, height, width)
        colours = (pixels[0].permute(1, 2, 0) * 0.5 + 0.5) * 255
        assert np.allclose(colours.mean((0, 1)), figures["mean"], atol=1e-3)
        assert np.allclose(_places(colours.tolist(), height, width), figures["pixels"], atol=1e-3)


def test_slices_of_several_pictures():
    inputs = load_processor(GOLDEN / FAMILY).image_inputs(
        [Image.new("RGB", (300, 700)), Image.new("RGBA", (448, 448))]
    )
    assert inputs["grids"].tolist() == [[1, 2], [0, 0]]
    assert len(inputs["pixel_values"]) == 3 + 1


def test_slice_mode_off():
    config = read_config(GOLDEN / FAMILY) | {"slice_mode": False}
    slicing = MiniCPMV2Processor(GOLDEN / FAMILY, config).slicing
    pieces, grid = slice_picture(Image.new("RGB", (1920, 1080)), slicing)
    assert [piece.size for piece in pieces] == [(602, 336)]
    assert grid is None


def test_a_picture_like_a_line_is_refused():
    with pytest.raises(PictureError, match="5000 x 1 pixels is too long and narrow"):
        load_processor(GOLDEN / FAMILY).image_inputs([Image.new("RGB", (5000, 1))])


# Prompts


@pytest.mark.parametrize(("queries", "columns", "rows"), [(3, 2, 1), (2, 2, 3)])
def test_placeholders(queries, columns, rows):
    processor = MiniCPMV2Processor(GOLDEN / FAMILY, FULL_SIZE | {"query_num": queries})
    grids = torch.tensor([[columns, rows]])
    expected = PROMPTS[f"placeholder_grid_{columns}x{rows}_query_{queries}"]
    assert processor.image_strings({"grids": grids}) == [expected]


QUESTION = conversations()["one_turn"][0]


@pytest.mark.parametrize("name", conversations())
def test_prompts(name):
    processor = MiniCPMV2Processor(GOLDEN / FAMILY, FULL_SIZE | {"query_num": 3})
    picture = processor.image_strings({"grids": torch.tensor([[0, 0]])})[0]
    rendered = processor.template.render(conversations()[name])
    golden = PROMPTS.get(f"{name}_overview_only_query_3") or PROMPTS[name]
    assert rendered.replace("<image>", picture) == golden


def _tokenizer_folder(folder: Path, marks: list[str]) -> Path:
    """Write a `tokenizer.json` of bytes without BOS; `marks` get the first ids."""
    special = ["<unk>", "<s>", "</s>", *marks]
    vocabulary = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(ids, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special[1:3]])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


MARKS = ["<image>", "</image>", "<slice>", "</slice>"]
MARK_FIELDS = ("im_start", "im_end", "slice_start", "slice_end")
MARK_IDS = {f"{name}_token_id": 3 + index for index, name in enumerate(MARK_FIELDS)}


def test_input_ids(tmp_path):
    config = FULL_SIZE | {"query_num": 2} | MARK_IDS
    processor = MiniCPMV2Processor(_tokenizer_folder(tmp_path, MARKS), config)
    ids = processor.input_ids([QUESTION], {"grids": torch.tensor([[2, 1]])})
    assert ids[0, 0] == 1
    places = ids[processor.picture_positions(ids)]
    assert places.tolist() == [0] * (3 * 2)
    text = processor.tokenizer.decode(ids[0])
    picture = "<image><unk><unk></image>"
    assert text == (f"<s><用户>{picture}<slice>{picture * 2}</slice>\nWhat is in the picture?<AI>")


def test_marks_that_a_person_writes_are_text(tmp_path):
    config = FULL_SIZE | {"query_num": 2} | MARK_IDS
    processor = MiniCPMV2Processor(_tokenizer_folder(tmp_path, MARKS), config)
    ids = processor.input_ids([user_message("Is <image> a word?</s>")])
    assert not processor.picture_positions(ids).any()
    assert 2 not in ids


def test_a_tokenizer_with_other_ids(tmp_path):
    processor = MiniCPMV2Processor(_tokenizer_folder(tmp_path, MARKS), FULL_SIZE)
    with pytest.raises(CheckpointError, match=r"<image> at 3, but the model expects it at 101"):
        _ = processor.tokenizer
