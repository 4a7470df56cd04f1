"""Questions that share a picture's states are answered as if each were alone."""

import random
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from helpers.models import load_model
from helpers.models.families import load_processor
from helpers.shapes import world
from helpers.sources.checkpoints import BUNDLED
from helpers.workshop import samples, sharing, stages, training
from tests import random_qwen3_5


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory):
    """Return a random `model` with a recurrence, and a batch of two `pictures` with questions."""
    folder = tmp_path_factory.mktemp("qwen3_5")
    random_qwen3_5.write_random(folder, 1)
    model, generator = load_model(folder, torch.float32), random.Random(0)
    pictures = []
    for grid in ((2, 2), (2, 1)):
        scene = world.random_scene(generator, grid=grid)
        inputs = model.image_inputs([world.draw(scene, cell=64)])
        questions = samples.questions_about(scene, generator, 6, stages.ALL_KINDS)[:4]
        pictures.append(SimpleNamespace(inputs=inputs, questions=questions))
    return SimpleNamespace(model=model, pictures=pictures)


def batch_of(model, pictures, *, turns=False):
    """Return the samples of some pictures, in one batch."""
    encoded = [
        samples.encode_sample(model.processor, picture.inputs, picture.questions, turns=turns)
        for picture in pictures
    ]
    images = samples.join_images([picture.inputs for picture in pictures])
    return samples.collate(encoded) | {"images": images}


def logits_of(model, batch) -> torch.Tensor:
    return training.forward(model, batch, model.encode_images(**batch["images"]))


def logits_alone(model, picture) -> list[torch.Tensor]:
    """Return the logits of each answer to questions about a picture, one after the other."""
    features = model.encode_images(**picture.inputs)
    logits = []
    for question in picture.questions:
        sample = samples.encode_sample(model.processor, picture.inputs, [question], turns=False)
        prepared = model.prepare(sample["input_ids"][None], features)
        is_answer = (sample["labels"] != samples.IGNORED)[1:]
        logits.append(model(**prepared).logits[0, :-1][is_answer])
    return logits


@pytest.mark.parametrize("similar", [1, sharing.SIMILAR])
@torch.inference_mode()
def test_each_question_behind_a_picture_as_if_it_were_alone(recurrent, similar, monkeypatch):
    monkeypatch.setattr(sharing, "SIMILAR", similar)
    assert recurrent.model.is_recurrent
    batch = batch_of(recurrent.model, recurrent.pictures)
    is_answer = (batch["labels"] != samples.IGNORED)[:, 1:]
    actual = logits_of(recurrent.model, batch)[:, :-1][is_answer]
    alone = [logits_alone(recurrent.model, picture) for picture in recurrent.pictures]
    expected = torch.cat([*alone[0], *alone[1]])
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < 2e-4  # measured: 4e-5


def test_gradients_go_through_the_states_of_the_picture(recurrent):
    model, batch = recurrent.model, batch_of(recurrent.model, recurrent.pictures)
    blocks, position_ids = batch["blocks"], batch["position_ids"]
    embeddings = model.embed_tokens(batch["input_ids"]).detach().requires_grad_()
    logits = sharing.logits_of_rows(model, embeddings, position_ids, blocks)
    (actual,) = torch.autograd.grad(logits[0, blocks[0] == 2].square().mean(), embeddings)
    is_row = (blocks[0] == 0) | (blocks[0] == 2)
    row = {"inputs_embeds": embeddings[:1, is_row], "position_ids": position_ids[:, :1, is_row]}
    alone = model(**row).logits[0, blocks[0, is_row] == 2]
    (expected,) = torch.autograd.grad(alone.square().mean(), embeddings)
    assert (expected[0, blocks[0] == 0].norm(dim=-1) > 0).all()
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < 1e-3  # measured: 1e-5


@pytest.mark.parametrize("thinks", [False, True])
def test_a_turn_whose_history_is_written_otherwise_is_a_block_of_its_own(recurrent, thinks):
    """As Qwen3.5's template leaves out the place for thoughts before earlier answers."""
    picture = recurrent.pictures[0]
    processor = recurrent.model.processor if thinks else load_processor(BUNDLED / "qwen3_vl")
    inputs = processor.image_inputs([Image.new("RGB", (64, 64))])
    sample = samples.encode_sample(processor, inputs, picture.questions, turns=True)
    blocks = sample["blocks"][sample["labels"] != samples.IGNORED].unique().tolist()
    assert blocks == ([1, 2, 3, 4] if thinks else [1])
    last = sample["blocks"] == blocks[-1]  # it holds all turns, and learns the last one's answer
    text = processor.tokenizer.decode(sample["input_ids"][last])
    assert all(question.text in text for question in picture.questions[1:])
