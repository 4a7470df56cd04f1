"""Qwen3-VL at random dimensions, beside transformers' own model of the same checkpoint."""

import os
import shutil
import sys
from threading import Event

import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from helpers.errors import CheckpointError, PictureError, QuestionError
from helpers.graphs.core import Stopped
from helpers.graphs.part_names import IMAGE_ENCODER
from helpers.models import load_model
from helpers.models.qwen_vision import exported
from helpers.models.qwen_vision.places import table_places
from helpers.resources import anonymous_memory, return_freed_memory
from helpers.sources.checkpoints import write_json
from tests.random_models import (
    CASES,
    PICTURES,
    WAYS,
    error,
    noise,
    random_models,
)
from tests.random_qwen3_vl import write_random
from tests.workers import in_groups

SEEDS = in_groups(range(3), "qwen3_vl")


@pytest.fixture(scope="module", params=SEEDS)
def models(request, tmp_path_factory):
    return random_models(tmp_path_factory.mktemp("qwen3_vl"), write_random, request.param)


@pytest.mark.parametrize("case", CASES)
def test_logits(models, case):
    models.check_logits(models.prompt(*CASES[case]))


@torch.inference_mode()
def test_deepstack(models):
    images = models.model.image_inputs(PICTURES)
    pairs = zip(*(m.encode_images(**images) for m in (models.pipeline, models.model)), strict=True)
    for ours, theirs in pairs:
        assert error(ours.deepstack, theirs.deepstack) < 1e-4


def test_positions(models):
    """Those of transformers, for pictures of several shapes between words."""
    prompt = models.prompt(*CASES["pictures between words"])
    expected, _ = models.reference.model.get_rope_index(
        prompt.ids,
        prompt.reference["mm_token_type_ids"],
        image_grid_thw=prompt.images["image_grid_thw"],
    )
    positions = models.model.processor.position_ids(prompt.ids, prompt.images)
    assert torch.equal(positions, expected)


@torch.inference_mode()
def test_a_folder_as_transformers_writes_it(models, tmp_path):
    """In several files of weights, with all settings of pictures and videos in one."""
    source = models.model.processor.folder
    shutil.copytree(source, tmp_path, ignore=lambda *_: ("converted",), dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    models.reference.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    settings = {
        "image_processor": {
            "size": {"shortest_edge": 4 * 32**2, "longest_edge": 30 * 32**2},
            "image_mean": [0.4, 0.5, 0.6],
            "image_std": [0.2, 0.3, 0.4],
            "patch_size": 16,
        },
        "video_processor": {"fps": 1, "min_frames": 2},
    }
    write_json(tmp_path / "processor_config.json", settings)
    model = load_model(tmp_path, torch.float32)
    for name, tensor in models.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    theirs = Qwen2VLImageProcessorPil(**settings["image_processor"])
    for picture in PICTURES:
        inputs = model.image_inputs([picture])
        expected = theirs(picture, return_tensors="pt")
        assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
        assert torch.equal(inputs["image_grid_thw"], expected["image_grid_thw"])
        assert int(inputs["image_grid_thw"].prod()) // 4 <= 30
    assert model.processor.choose_frames(8, 2) == [0, 2, 5, 7]


@pytest.mark.parametrize("way", WAYS)
def test_tokens(models, way):
    models.check_tokens(models.prompt(*CASES["pictures between words"]), WAYS[way])


def test_prompts_of_several_lengths_in_one_batch(models):
    models.check_batch([models.prompt(*case) for case in CASES.values()])


def test_a_conversation_is_the_prompt_of_all_its_turns(models):
    """Positions are not token counts, so what is cached must be counted otherwise."""
    models.check_conversation((1, 0, 2, 0, 1))


def test_a_question_that_does_not_fit_is_told_beforehand(models):
    with pytest.raises(QuestionError, match=r"would need \d+ tokens and 4096 for the answer"):
        models.pipeline.ask("What is it?", PICTURES[0], max_new_tokens=4096)


# Pictures


SIZES = ((32, 32), (64, 64), (100, 30), (30, 100), (64, 512), (512, 64), (400, 300), (640, 480))
SIZES += ((1024, 1024), (2048, 1024))


@torch.inference_mode()
def test_one_graph_takes_every_size(models):
    pipeline, model = models.pipeline, models.model
    before = pipeline.parts[IMAGE_ENCODER]
    for size in SIZES[:6]:
        inputs = pipeline.processor.image_inputs([noise(*size)])
        (features,) = pipeline.encode_images(**inputs)
        (expected,) = model.encode_images(**inputs)
        assert error(features, expected) < 1e-4
    assert pipeline.parts[IMAGE_ENCODER] is before


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives freed memory back when asked")
@torch.inference_mode()
def test_what_a_picture_took_is_given_back(models):
    """In six runs 11 to 28 MB stayed after the largest (85 to 111 where nothing is released).

    All sizes together add as much once, and then nothing.
    """
    pipeline = models.pipeline
    pictures = [pipeline.processor.within(4096).image_inputs([noise(*size)]) for size in SIZES]

    def kept_after(inputs_of_rounds) -> int:
        for inputs in inputs_of_rounds:
            pipeline.encode_images(**inputs)
        return_freed_memory()
        return anonymous_memory(os.getpid())

    smallest = kept_after(pictures[:1] * 3)
    assert kept_after(pictures[-1:] * 3) - smallest < 50 * 2**20
    every_size = kept_after(pictures[:-1] * 2)
    again = kept_after(pictures[:-1] * 2)
    assert again - every_size < 2**20


@torch.inference_mode()
def test_a_picture_that_was_given_up_leaves_nothing_for_the_next_one(models):
    """Where the part was not compiled anew, the next picture of another size ended in an error."""
    encode, processor = models.pipeline.encode_images, models.pipeline.processor.within(4096)
    small, large = (processor.image_inputs([noise(*size)]) for size in (SIZES[6], SIZES[-1]))
    (expected,) = encode(**small)
    stop = Event()
    stop.set()
    for _ in range(5):
        with pytest.raises(Stopped):
            models.pipeline.encode_until(stop, large)
        (features,) = encode(**small)
        assert torch.equal(features, expected)


@torch.inference_mode()
def test_pictures_never_see_each_other(models):
    for model in (models.model, models.pipeline):
        together = model.encode_images(**model.image_inputs(PICTURES))
        for picture, features in zip(PICTURES, together, strict=True):
            (alone,) = model.encode_images(**model.image_inputs([picture]))
            assert error(features, alone) < 1e-5
            assert error(features.deepstack, alone.deepstack) < 1e-5


@torch.inference_mode()
def test_the_two_known_ways_to_get_it_wrong_are_told_apart(models, monkeypatch):
    """Corners that are not aligned, and DeepStack rows in another order, give other numbers."""
    pipeline = models.pipeline
    prompt = models.prompt(*CASES["one picture"])
    (right,) = pipeline.encode_images(**prompt.images)

    def logits(features) -> torch.Tensor:
        return pipeline.language_model(**pipeline.prepare(prompt.ids, [features])).logits

    (turned,) = pipeline.encode_images(**prompt.images)
    turned.deepstack = turned.deepstack.flip(0)
    assert error(logits(turned), logits(right)) > 1e-3
    monkeypatch.setattr(
        exported, "table_places", lambda *values: table_places(*values, align_corners=False)
    )
    (shifted,) = pipeline.encode_images(**prompt.images)
    assert error(shifted, right) > 1e-3


def test_a_grid_that_does_not_fit_is_told(models):
    inputs = models.model.image_inputs(PICTURES[:1])
    inputs["image_grid_thw"] = inputs["image_grid_thw"] + torch.tensor([0, 2, 0])
    with pytest.raises(CheckpointError, match=r"counts \d+ patches, but pixel_values holds \d+"):
        models.model.encode_images(**inputs)


def test_pictures_that_are_too_long_or_too_small(models):
    processor = models.model.processor
    with pytest.raises(PictureError, match="none that is more than 200 times as long"):
        processor.image_inputs([noise(2010, 10)])
    grid = processor.image_inputs([noise(5, 9)])["image_grid_thw"][0].tolist()
    assert grid[1] * grid[2] >= 4
