"""Sampling options as people give them."""

import math

import numpy as np
import pytest
from PIL import Image

from helpers.errors import PictureError, SettingsError
from helpers.run.sampling import Sampling
from tests.tiny import picture

QUESTION = "What is in the picture?"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 2}, {"temperature": 2.0}),
        ({"temperature": np.float32(0.5)}, {"temperature": 0.5}),
        ({"max_new_tokens": 8.0, "top_k": np.int64(5)}, {"max_new_tokens": 8, "top_k": 5}),
        ({"top_p": 1}, {"top_p": 1.0}),
        ({"temperature": 0}, {"temperature": None, "do_sample": False}),
    ],
)
def test_numbers_of_every_kind(options, expected):
    sampling = Sampling.of(do_sample=True, **options)
    for name, value in expected.items():
        assert getattr(sampling, name) == value
        assert type(getattr(sampling, name)) is type(value)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": math.nan},
        {"temperature": -0.5},
        {"temperature": math.inf},
        {"temperature": "1"},
        {"temperature": True},
        {"temperature": 5.1},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_k": 1.5},
        {"top_k": 100_001},
        {"top_k": math.nan},
        {"max_new_tokens": None},
        {"max_new_tokens": math.inf},
        {"max_new_tokens": 0},
        {"max_new_tokens": 100_001},
        {"num_beams": 0},
        {"num_beams": 17},
        {"num_beams": None},
        {"repetition_penalty": None},
        {"repetition_penalty": 10.1},
        {"seed": -1},
        {"seed": 2**63},
        {"do_sample": "yes"},
        {"do_sample": None},
        {"thinking": "yes"},
        {"prompt_lookup": 1},
        {"top": 1},
    ],
)
def test_what_is_no_setting_is_told_in_a_sentence(options):
    with pytest.raises(SettingsError) as caught:
        Sampling.of(**options)
    assert "\n" not in str(caught.value) and next(iter(options)) in str(caught.value)


def test_the_limits_of_a_setting_are_named():
    with pytest.raises(
        SettingsError, match=r"num_beams is 17; it .* a whole number from 1 to 16\."
    ):
        Sampling.of(num_beams=17)
    with pytest.raises(SettingsError, match=r"top_p is 1\.5; it should be from 0\.01 to 1\.0\."):
        Sampling.of(top_p=1.5)


@pytest.mark.parametrize("temperature", [0, 0.0])
def test_a_temperature_of_0_takes_the_most_probable_token(pipeline, temperature):
    options = {"max_new_tokens": 10, "seed": 3}
    greedy = pipeline.ask(QUESTION, **options).token_ids
    reply = pipeline.ask(QUESTION, do_sample=True, temperature=temperature, **options)
    assert reply.token_ids == greedy


def test_a_whole_temperature_samples_as_the_fraction_does(pipeline):
    options = {"max_new_tokens": 10, "seed": 3, "do_sample": True}
    replies = [pipeline.ask(QUESTION, temperature=value, **options) for value in (2, 2.0)]
    assert replies[0].token_ids == replies[1].token_ids


def test_one_picture_instead_of_a_list(pipeline, tmp_path):
    path = tmp_path / "picture.png"
    picture().save(path)
    expected = pipeline.ask(QUESTION, [picture()], max_new_tokens=4)
    with path.open("rb") as file:
        for form in (picture(), path, str(path), file, (picture(),), iter([picture()])):
            reply = pipeline.ask(QUESTION, form, max_new_tokens=4)
            assert reply.prompt_ids == expected.prompt_ids
            assert reply.token_ids == expected.token_ids
    nothing = pipeline.ask(QUESTION, None, max_new_tokens=1)
    assert len(nothing.prompt_ids) < len(expected.prompt_ids)


@pytest.mark.parametrize("images", [5, np.zeros((4, 4, 3), np.uint8), {"image": 1}, b"PNG", [None]])
def test_what_is_no_picture_is_told(pipeline, images):
    with pytest.raises(PictureError, match="is not a picture") as caught:
        pipeline.ask(QUESTION, images)
    assert "\n" not in str(caught.value)


def test_a_video_s_file_that_is_not_there_is_told(pipeline, tmp_path):
    with pytest.raises(PictureError, match=r"clip\.gif"):
        pipeline.ask(QUESTION, video=tmp_path / "clip.gif")
    assert pipeline.ask(QUESTION, Image.new("RGB", (8, 8)), max_new_tokens=1).text is not None
