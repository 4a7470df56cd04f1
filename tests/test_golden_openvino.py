"""The golden checkpoints of four families through OpenVINO; InternVL2 has a file of its own."""

import itertools

import numpy as np
import openvino as ov
import pytest
import torch
from torch import Tensor

from helpers.convert.conversion import convert_part
from helpers.graphs.stateful import keep_inputs
from helpers.models import load_model
from helpers.models.mllama import cross_names
from tests.golden_checks import (
    ACCURATE,
    GOLDEN,
    assert_close,
    compiled,
    generate,
    golden_results,
    stateful,
)

NAMES = ("llava_mpt", "mobilevlm", "mobilevlm_v2", "minicpm_v2")
TOLERANCE = 1e-4  # measured: below 3e-6
PICTURES = {"minicpm_v2": [f".{piece}" for piece in range(4)]}  # of four shapes


@pytest.fixture(scope="module", params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return load_model(GOLDEN / name)


@pytest.fixture(scope="module")
def expected(name) -> dict[str, Tensor]:
    return golden_results(name)


@pytest.fixture(scope="module")
def converted(model):
    return stateful(model)


def test_features(name, model, expected):
    encoder = compiled(model.image_encoder_part())
    for picture in PICTURES.get(name, [""]):
        pixels = expected["pixel_values" + picture]
        for number in (1, 2):  # pictures at once
            features = torch.from_numpy(encoder(pixels.repeat(number, 1, 1, 1).numpy())[0])
            for actual in features:
                assert_close(actual[None], expected["image_features" + picture], TOLERANCE)


def test_text_embeddings(model, converted):
    ids = torch.arange(12).reshape(2, 6)
    assert_close(converted.embed_tokens(ids), model.embed_tokens(ids), TOLERANCE)


def test_logits_from_one_growing_cache(converted, expected):
    embeddings, logits = expected["inputs_embeds"], expected["logits"]
    cache, length = converted.new_cache(), logits.shape[1]
    for start, stop in itertools.pairwise([0, 5, 6, 7, length - 1, length]):
        output = converted(inputs_embeds=embeddings[:, start:stop], past_key_values=cache)
        assert_close(output.logits[:, 0], logits[:, stop - 1], TOLERANCE)


def test_greedy_tokens(converted, expected):
    tokens = expected["greedy_tokens"].flatten().tolist()
    actual = generate(converted, expected["inputs_embeds"], max_new_tokens=len(tokens))
    assert actual[0].tolist() == tokens


def test_beams(name, converted, expected):
    model = load_model(GOLDEN / name)
    options = {"num_beams": 3, "max_new_tokens": 8}
    actual = generate(converted, expected["inputs_embeds"], **options)
    assert torch.equal(actual, generate(model.language_model, expected["inputs_embeds"], **options))


# Llama-3.2-Vision, whose language model takes a picture's keys and values as inputs


def mllama_pictures(model, expected, encoder, case: int | None) -> dict[str, np.ndarray]:
    """Return what stays the same in a conversation; without a picture it is empty."""
    names = cross_names(len(model.language_model.config.cross_attention_layers))
    images = [
        expected[f"{name}.{case or 0}"].numpy()
        for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    ]
    pictures = dict(zip(names, encoder(images).values(), strict=True))
    if case is None:
        return {name: tensor[:, :, :0] for name, tensor in pictures.items()}
    return pictures


def mllama_logits(request, embeddings: Tensor, mask: Tensor, length: int, fixed: dict) -> Tensor:
    """Run new positions that end at `length`; `mask` says what the last ones see of pictures."""
    new = embeddings.shape[1]
    steps = {
        "inputs_embeds": embeddings.numpy(),
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(length - new, length)[None],
        "cross_attention_mask": mask[:, -new:].numpy(),
        "beam_idx": np.zeros(1, np.int32),
    }
    request.infer(fixed | steps)
    return torch.from_numpy(request.get_tensor("logits").data.copy())


@pytest.mark.parametrize("in_state", [False, True])
def test_mllama_in_one_language_model(in_state):
    """Three layouts of tiles, and text only: logits of the prompt, then greedy tokens.

    The pictures' keys and values are inputs, or `in_state`, where they are set only once.
    """
    model, expected = load_model(GOLDEN / "mllama"), golden_results("mllama")
    encoder, _, language_model = (convert_part(part) for part in model.parts())
    if in_state:
        keep_inputs(language_model, model.processor.exported.kept_inputs)
    encoder, language_model = (
        ov.Core().compile_model(part, "CPU", ACCURATE) for part in (encoder, language_model)
    )
    request = language_model.create_infer_request()
    for case in (0, 1, 2, None):
        start, ending = ("text_only.", "") if case is None else ("", f".{case}")
        ids = expected[f"{start}input_ids{ending}"]
        tokens = expected[f"{start}greedy_tokens{ending}"]
        mask = expected.get(f"cross_attention_mask{ending}", torch.zeros(*ids.shape, 0, 4).long())
        pictures = mllama_pictures(model, expected, encoder, case)
        fixed = {"has_picture": np.float32([case is not None])}
        request.reset_state()
        for state in request.query_state() if in_state else ():
            if state.name in pictures:
                state.state = ov.Tensor(np.ascontiguousarray(pictures.pop(state.name)))
        fixed |= pictures
        logits = mllama_logits(request, model.embed_tokens(ids), mask, ids.shape[1], fixed)
        assert_close(logits[:, 0], expected[f"{start}logits{ending}"][:, -1], TOLERANCE)
        actual = [int(logits.argmax())]
        while len(actual) < tokens.numel():
            embeddings = model.embed_tokens(torch.tensor([actual[-1:]]))
            length = ids.shape[1] + len(actual)
            actual.append(int(mllama_logits(request, embeddings, mask, length, fixed).argmax()))
        assert actual == tokens.flatten().tolist()
