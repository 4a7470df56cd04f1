"""Rotations that change beyond a length (LongRoPE), beside transformers' own without a cache."""

import shutil
import threading

import pytest
import torch

from helpers.errors import CheckpointError
from helpers.models import load_model
from helpers.sources.checkpoints import read_json, write_json
from tests import random_minicpm_v4_6, random_qwen3_5, random_qwen3_vl
from tests.golden_checks import GOLDEN
from tests.random_models import noise, random_models
from tests.tiny import equal_pieces

FAMILIES = {
    "qwen3_vl": random_qwen3_vl.write_random,
    "qwen3_5": random_qwen3_5.write_random,
    "minicpm_v4_6": random_minicpm_v4_6.write_random,
}
LIMIT = 110  # positions


def write_long(write_random):
    """Return what writes a random checkpoint whose rotations change beyond the limit."""

    def write(folder, seed):
        model = write_random(folder, seed)
        config = read_json(folder / "config.json")
        frequencies = config["text_config"]["rope_parameters"]
        half = sum(frequencies["mrope_section"])
        frequencies |= {
            "rope_type": "longrope",
            "original_max_position_embeddings": LIMIT,
            "short_factor": [1.0] * half,
            "long_factor": [1.0 + number for number in range(half)],
        }
        write_json(folder / "config.json", config)
        return type(model).from_pretrained(folder).eval()

    return write


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return random_models(folder, write_long(FAMILIES[request.param]), 0, answers_at_once=2)


@torch.inference_mode()
def tokens_without_cache(models, reply, pictures) -> list[int]:
    images = models.model.image_inputs(pictures) if pictures else {}
    ids = torch.tensor([reply.prompt_ids])
    for _ in reply.token_ids:
        logits = models.reference(**models.with_ids(ids, images).reference).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids[0, len(reply.prompt_ids) :].tolist()


@pytest.mark.parametrize("pictures, tokens", [(1, 4), (0, 60)], ids=["question", "answer"])
def test_a_conversation_that_outgrows_the_first_length(models, pictures, tokens):
    conversation, all_pictures, lengths = models.pipeline.conversation(), [], []
    for turn in range(3):
        new = [noise(400, 300, turn)] * pictures
        all_pictures += new
        reply = conversation.ask("What is it?", new, max_new_tokens=tokens)
        assert reply.token_ids == tokens_without_cache(models, reply, all_pictures)
        images = models.model.image_inputs(all_pictures) if all_pictures else None
        ids = torch.tensor([reply.prompt_ids])
        lengths.append(int(models.model.processor.position_ids(ids, images)[-3:].max()) + 1)
    assert lengths[0] < LIMIT < lengths[-1]


def test_a_prompt_beyond_the_first_length_is_not_computed_in_pieces(models, monkeypatch):
    monkeypatch.setattr(models.pipeline.language_model, "pieces", equal_pieces(16))
    reply = models.pipeline.ask("What is it? " * 20, max_new_tokens=4)
    assert reply.token_ids == tokens_without_cache(models, reply, [])
    assert len(reply.prompt_ids) > LIMIT


def test_answers_at_once_outgrow_it_each_at_its_time(models):
    texts = ("What is it? " * 14, "What is it? " * 12)
    replies = [models.pipeline.ask(text, max_new_tokens=40) for text in texts]
    for reply in replies:
        assert reply.token_ids == tokens_without_cache(models, reply, [])
        assert len(reply.prompt_ids) < LIMIT < len(reply.prompt_ids) + len(reply.token_ids)


@torch.inference_mode()
def test_beams_that_outgrow_it(models):
    options = {"num_beams": 3, "max_new_tokens": 30}
    reply = models.pipeline.ask("What is it? " * 14, **options)
    prompt = models.with_ids(torch.tensor([reply.prompt_ids]), {})
    stop = models.pipeline.processor.stop_token_ids
    options |= {"do_sample": False, "pad_token_id": 0, "eos_token_id": stop, "use_cache": False}
    expected = models.reference.generate(**prompt.reference, **options)
    assert reply.token_ids == expected[0, len(reply.prompt_ids) :].tolist()
    assert len(reply.prompt_ids) < LIMIT < expected.shape[1]


def test_a_conversation_that_was_stopped_within_a_prompt(models, monkeypatch):
    stop, pieces = threading.Event(), equal_pieces(16)
    monkeypatch.setattr(pieces, "note", lambda *_: stop.set())
    monkeypatch.setattr(models.pipeline.language_model, "pieces", pieces)
    conversation = models.pipeline.conversation()
    first = conversation.ask("What is it? " * 8, stop=stop)
    assert (first.token_ids, first.finish) == ([], "cancelled")
    monkeypatch.undo()
    second = conversation.ask("What is it?", max_new_tokens=60)
    assert len(first.prompt_ids) < LIMIT < len(second.prompt_ids) + 60
    assert second.token_ids == tokens_without_cache(models, second, [])


# Where the settings of the language model are, in checkpoints whose cached keys would stay
SECTIONS = {
    "mobilevlm": None,
    "minicpm_v2": None,
    "internvl2_qwen2": "llm_config",
    "internvl2_internlm2": "llm_config",
    "mllama": "text_config",
}


@pytest.mark.parametrize("family", SECTIONS)
def test_other_language_models_are_refused_with_it(family, tmp_path):
    folder, section = shutil.copytree(GOLDEN / family, tmp_path / family), SECTIONS[family]
    config = read_json(folder / "config.json")
    frequencies = {"factor": 4.0, "original_max_position_embeddings": 64}
    frequencies |= {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    (config[section] if section else config)["rope_scaling"] = frequencies
    write_json(folder / "config.json", config)
    with pytest.raises(CheckpointError, match="asks for longrope, with which rotations change"):
        load_model(folder)
