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
    expected,
    generate,
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
def wanted(name) -> dict[str, Tensor]:
    return expected(name)


@pytest.fixture(scope="module")
def converted(model):
    return stateful(model)


def test_features(name, model, wanted):
    encoder = compiled(model.image_encoder_part())
    for picture in PICTURES.get(name, [""]):
        pixels = wanted["pixel_values" + picture]
        for number in (1, 2):  # pictures at once
            features = torch.from_numpy(encoder(pixels.repeat(number, 1, 1, 1).numpy())[0])
            for found in features:
                assert_close(found[None], wanted["image_features" + picture], TOLERANCE)


def test_text_embeddings(model, converted):
    ids = torch.arange(12).reshape(2, 6)
    assert_close(converted.embed_tokens(ids), model.embed_tokens(ids), TOLERANCE)


def test_logits_from_one_growing_cache(converted, wanted):
    embeddings, logits = wanted["inputs_embeds"], wanted["logits"]
    cache, length = converted.new_cache(), logits.shape[1]
    for start, stop in itertools.pairwise([0, 5, 6, 7, length - 1, length]):
        output = converted(inputs_embeds=embeddings[:, start:stop], past_key_values=cache)
        assert_close(output.logits[:, 0], logits[:, stop - 1], TOLERANCE)


def test_greedy_tokens(converted, wanted):
    tokens = wanted["greedy_tokens"].flatten().tolist()
    found = generate(converted, wanted["inputs_embeds"], max_new_tokens=len(tokens))
    assert found[0].tolist() == tokens


def test_beams(name, converted, wanted):
    model = load_model(GOLDEN / name)
    options = {"num_beams": 3, "max_new_tokens": 8}
    found = generate(converted, wanted["inputs_embeds"], **options)
    assert torch.equal(found, generate(model.language_model, wanted["inputs_embeds"], **options))


# Llama-3.2-Vision, whose language model takes a picture's keys and values as inputs


def mllama_pictures(model, wanted, encoder, case: int | None) -> dict[str, np.ndarray]:
    """Return what stays the same in a conversation; without a picture it is empty."""
    names = cross_names(len(model.language_model.config.cross_attention_layers))
    images = [
        wanted[f"{name}.{case or 0}"].numpy()
        for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    ]
    pictures = dict(zip(names, encoder(images).values(), strict=True))
    return pictures if case is not None else {name: x[:, :, :0] for name, x in pictures.items()}


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


@pytest.mark.parametrize("kept", [False, True])
def test_mllama_in_one_language_model(kept):
    """Three layouts of tiles, and text only: logits of the prompt, then greedy tokens.

    The pictures' keys and values are inputs, or `kept` in state, where they are set only once.
    """
    model, wanted = load_model(GOLDEN / "mllama"), expected("mllama")
    encoder, _, language_model = (convert_part(part) for part in model.parts())
    if kept:
        keep_inputs(language_model, model.processor.kept_inputs)
    encoder, language_model = (
        ov.Core().compile_model(part, "CPU", ACCURATE) for part in (encoder, language_model)
    )
    request = language_model.create_infer_request()
    for case in (0, 1, 2, None):
        start, ending = ("text_only.", "") if case is None else ("", f".{case}")
        ids, tokens = wanted[f"{start}input_ids{ending}"], wanted[f"{start}greedy_tokens{ending}"]
        mask = wanted.get(f"cross_attention_mask{ending}", torch.zeros(*ids.shape, 0, 4).long())
        pictures = mllama_pictures(model, wanted, encoder, case)
        fixed = {"has_picture": np.float32([case is not None])}
        request.reset_state()
        for state in request.query_state() if kept else ():
            if state.name in pictures:
                state.state = ov.Tensor(np.ascontiguousarray(pictures.pop(state.name)))
        fixed |= pictures
        logits = mllama_logits(request, model.embed_tokens(ids), mask, ids.shape[1], fixed)
        assert_close(logits[:, 0], wanted[f"{start}logits{ending}"][:, -1], TOLERANCE)
        found = [int(logits.argmax())]
        while len(found) < tokens.numel():
            embeddings = model.embed_tokens(torch.tensor([found[-1:]]))
            length = ids.shape[1] + len(found)
            found.append(int(mllama_logits(request, embeddings, mask, length, fixed).argmax()))
        assert found == tokens.flatten().tolist()
