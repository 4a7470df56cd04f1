"""Qwen3.5 at random dimensions, beside transformers' own model of the same checkpoint."""

from types import SimpleNamespace

import pytest
import torch

from helpers.inputs.messages import user_message
from helpers.models import load_model
from helpers.sources.saving import save_tensors
from helpers.sources.tensors import open_tensors
from tests.random_qwen3_5 import write_random
from tests.random_qwen3_vl import noise
from tests.workers import in_groups

SEEDS = in_groups(range(3), "qwen3_5")
PICTURES = (noise(300, 260, 1), noise(64, 512, 2), noise(700, 400, 3))
BETWEEN = {
    "role": "user",
    "content": [
        {"type": "text", "text": "Here "},
        {"type": "image"},
        {"type": "text", "text": " and "},
        {"type": "image"},
        {"type": "image"},
        {"type": "text", "text": " what is it?"},
    ],
}


@pytest.fixture(scope="module", params=SEEDS)
def random_models(request, tmp_path_factory):
    """Return transformers' model as `reference` and ours as `model`."""
    folder = tmp_path_factory.mktemp("qwen3_5")
    reference = write_random(folder, request.param)
    return SimpleNamespace(reference=reference, model=load_model(folder, torch.float32))


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def prompt_of(models, message, pictures) -> SimpleNamespace:
    """Return a prompt's `ids`, its `images`, and what transformers' model takes besides."""
    images = models.model.image_inputs(pictures) if pictures else {}
    ids = models.model.processor.input_ids([message], images or None)
    kinds = (ids == models.reference.config.image_token_id).int()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images}
    return SimpleNamespace(
        ids=ids, images=images, reference=inputs | ({"mm_token_type_ids": kinds} if images else {})
    )


CASES = {
    "pictures between words": (BETWEEN, PICTURES),
    "one picture": (user_message("What is it?", 1), PICTURES[:1]),
    "text": (user_message("Who are you?"), ()),
}


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_logits(random_models, case):
    prompt, model = prompt_of(random_models, *CASES[case]), random_models.model
    expected = random_models.reference(**prompt.reference).logits
    features = model.encode_images(**prompt.images) if prompt.images else None
    prepared = model.prepare(prompt.ids, features)
    assert error(model(**prepared).logits, expected) < 5e-6


def test_positions(random_models):
    """Those of transformers, for pictures of several shapes between words, and tokens counted."""
    prompt = prompt_of(random_models, *CASES["pictures between words"])
    expected, _ = random_models.reference.model.get_rope_index(
        prompt.ids,
        prompt.reference["mm_token_type_ids"],
        image_grid_thw=prompt.images["image_grid_thw"],
    )
    counted, *positions = random_models.model.processor.position_ids(prompt.ids, prompt.images)
    assert torch.equal(torch.stack(positions), expected)
    assert counted.tolist() == [list(range(prompt.ids.shape[1]))]


def test_gradients_reach_every_weight(random_models):
    """In training, all of both models learns."""
    model = random_models.model
    prompt = prompt_of(random_models, *CASES["one picture"])
    model.requires_grad_(True)
    try:
        prepared = model.prepare(prompt.ids, model.encode_images(**prompt.images))
        model(**prepared, use_cache=False).logits.square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    finally:
        model.requires_grad_(False)


def test_the_layer_that_guesses_ahead_is_left_out(random_models, tmp_path):
    source = random_models.model.processor.folder
    tensors = open_tensors(source) | {"mtp.fc.weight": torch.ones(2, 2)}
    for path in source.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    list(save_tensors([tensors], tmp_path, "safetensors"))
    model = load_model(tmp_path, torch.float32)
    for name, tensor in random_models.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
