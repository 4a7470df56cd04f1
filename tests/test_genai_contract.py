"""Folders of Qwen3-VL and Qwen3.5 have the files, names, shapes and types that GenAI reads.

GenAI itself runs in an environment of its own. Without one of these, it answers wrongly or dies.
"""

from types import SimpleNamespace

import numpy as np
import openvino as ov
import pytest

from helpers.convert import conversion
from helpers.graphs.presets import find_preset
from tests import random_qwen3_5, random_qwen3_vl

SEED = 1
TEXT, PICTURE, PLACES, MERGER, WORDS = (
    f"openvino_{name}_model.xml"
    for name in (
        "text_embeddings",
        "vision_embeddings",
        "vision_embeddings_pos",
        "vision_embeddings_merger",
        "language",
    )
)


def converted(random_checkpoint, checkpoint) -> SimpleNamespace:
    """Return the `path` of a converted random checkpoint, and the `config` that it had."""
    model = random_checkpoint.write_random(checkpoint, SEED)
    conversion.convert(checkpoint, checkpoint / "converted", find_preset("fp16"))
    return SimpleNamespace(path=checkpoint / "converted", config=model.config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return converted(random_qwen3_vl, tmp_path_factory.mktemp("qwen3_vl"))


@pytest.fixture(scope="module")
def folder_with_states(tmp_path_factory):
    return converted(random_qwen3_5, tmp_path_factory.mktemp("qwen3_5"))


def ports(model: ov.Model) -> tuple[dict[str, str], dict[str, str]]:
    """Return the inputs and the outputs by name, each with its type and shape as a text."""
    return tuple(
        {port.any_name: f"{port.element_type.to_string()}{port.partial_shape}" for port in side}
        for side in (model.inputs, model.outputs)
    )


def expected_ports(config) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    vision, text = config.vision_config, config.text_config
    width, hidden = vision.hidden_size, text.hidden_size
    taps = len(getattr(vision, "deepstack_visual_indexes", ()))
    rows = {"deepstack_feature_lists": f"f32[{taps},?,{hidden}]"} if taps else {}
    words = {
        "inputs_embeds": f"f32[?,?,{hidden}]",
        "attention_mask": "i64[?,?]",
        "position_ids": f"i64[{3 if taps else 4},?,?]",
        "beam_idx": "i32[?]",
    }
    if taps:
        words |= {
            "visual_pos_masks": "boolean[?,?]",
            "deepstack_visual_embeds": f"f32[{taps},?,{hidden}]",
        }
    angles = width // vision.num_heads // 2
    return {
        TEXT: ({"input": "i64[?,?]"}, {"inputs_embeds": f"f32[?,?,{hidden}]"}),
        PICTURE: ({"hidden_states": "f32[?,1536]"}, {"embeddings": f"f32[?,{width}]"}),
        PLACES: ({"input": "i64[4,?]"}, {"embeddings": f"f32[4,?,{width}]"}),
        MERGER: (
            {
                "hidden_states": f"f32[?,{width}]",
                "attention_mask": "f32[1,?,?]",
                "rotary_pos_emb": f"f32[?,{angles}]",
            },
            {"last_hidden_state": f"f32[?,{hidden}]", **rows},
        ),
        WORDS: (
            words,
            {"logits": f"f32[?,..1,{text.vocab_size}]"},
        ),
    }


@pytest.mark.parametrize("file", [TEXT, PICTURE, PLACES, MERGER, WORDS])
def test_names_types_and_shapes(folder, file):
    assert ports(ov.Core().read_model(folder.path / file)) == expected_ports(folder.config)[file]


def test_states_are_told_apart_by_their_shapes(folder_with_states):
    """GenAI takes one dynamic axis, the batch, for a state of linear attention."""
    path, config = folder_with_states.path, folder_with_states.config
    expected = expected_ports(config)
    for file in (MERGER, WORDS):
        assert ports(ov.Core().read_model(path / file)) == expected[file]
    variables = ov.Core().read_model(path / WORDS).get_variables()
    shapes = [variable.info.data_shape for variable in variables]
    kinds = config.text_config.layer_types
    dynamic = [sum(size.is_dynamic for size in shape) for shape in shapes]
    assert dynamic.count(1) == 2 * kinds.count("linear_attention")
    assert dynamic.count(2) == 2 * kinds.count("full_attention")
    assert all(shape[0].is_dynamic for shape in shapes)


def test_one_row_of_deepstack_serves_any_number_of_tokens(folder):
    """GenAI's mask is (1, 1) for a prompt of text, and for several beams."""
    compiled = ov.Core().compile_model(
        folder.path / WORDS, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"}
    )
    hidden = folder.config.text_config.hidden_size
    taps = len(folder.config.vision_config.deepstack_visual_indexes)
    for rows, tokens in ((1, 30), (4, 1)):
        mask = np.zeros((rows, tokens), bool)
        logits = []
        for shape in ((rows, tokens), (1, 1)):
            request = compiled.create_infer_request()
            generator = np.random.default_rng(SEED)
            feed = {
                "inputs_embeds": generator.normal(size=(rows, tokens, hidden)).astype(np.float32),
                "attention_mask": np.ones((rows, tokens), np.int64),
                "position_ids": np.broadcast_to(np.arange(tokens), (3, rows, tokens)).copy(),
                "visual_pos_masks": mask[: shape[0], : shape[1]],
                "deepstack_visual_embeds": np.zeros((taps, 1, hidden), np.float32),
                "beam_idx": np.arange(rows, dtype=np.int32),
            }
            logits.append(request.infer(feed)["logits"])
        assert logits[0].shape == (rows, 1, folder.config.text_config.vocab_size)
        assert np.array_equal(*logits)


def test_a_mask_of_one_number_is_that_of_all_patches(folder):
    compiled = ov.Core().compile_model(
        folder.path / MERGER, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"}
    )
    vision, patches = folder.config.vision_config, 24
    generator = np.random.default_rng(SEED)
    feed = {
        "hidden_states": generator.normal(size=(patches, vision.hidden_size)).astype(np.float32),
        "rotary_pos_emb": generator.normal(
            size=(patches, vision.hidden_size // vision.num_heads // 2)
        ).astype(np.float32),
    }
    number, all_patches = (
        compiled(feed | {"attention_mask": np.zeros((1, side, side), np.float32)})
        for side in (1, patches)
    )
    for name in ("last_hidden_state", "deepstack_feature_lists"):
        assert np.allclose(number[name], all_patches[name], atol=1e-6)


def test_the_small_files(folder):
    files = {path.name for path in folder.path.iterdir()}
    assert {"config.json", "tokenizer.json", TEXT, PICTURE, PLACES, MERGER, WORDS} <= files
