"""Where samples come from, and what they give the parts of a model."""

import sys
import types
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from PIL import Image

from helpers.convert.calibration import (
    HELD_OUT,
    PROMPT,
    find_samples,
    inputs_by_part,
    samples_for,
)
from helpers.convert.folders import read_manifest
from helpers.errors import PictureError, SettingsError
from helpers.graphs.core import ACCURACY, compile_model
from helpers.graphs.part_names import FILES, IMAGE_ENCODER, LANGUAGE_MODEL
from helpers.graphs.presets import find_preset
from helpers.inputs.messages import user_message
from helpers.models import load_processor
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes import questions, world
from tests.tiny import TOKENS_PER_TILE


@pytest.fixture(scope="module")
def parts(converted):
    read = ov.Core().read_model
    return {part: read(converted / file) for part, file in FILES.items()}


def test_shapes_are_of_the_training_split(monkeypatch):
    scenes = []
    draw = world.draw
    monkeypatch.setattr(questions, "draw", lambda scene: scenes.append(scene) or draw(scene))
    samples = questions.draw_samples(9)
    assert len({text for _, text in samples}) > 4
    assert {world.split_of((scene.grid, scene.items)) for scene in scenes} == {"train"}


def test_a_folder_of_pictures(tmp_path):
    for name in ("b.png", "a.JPG", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    assert find_samples(str(tmp_path), 2) == [
        (tmp_path / "a.JPG", PROMPT),
        (tmp_path / "b.png", PROMPT),
    ]


def test_a_folder_of_pictures_and_more(tmp_path, monkeypatch):
    """What macOS writes beside each file, what Pillow can only write, and a folder."""
    Image.new("RGB", (8, 8)).save(tmp_path / "b.webp")
    for name in ("._b.webp", "a.pdf", "a.h5"):
        (tmp_path / name).write_bytes(b"no picture")
    (tmp_path / "a.png").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    for source in (str(tmp_path), f"~/{tmp_path.name}"):
        assert [path.name for path, _ in find_samples(source, 9)] == ["b.webp"]


def test_an_empty_folder(tmp_path):
    with pytest.raises(PictureError, match="holds no pictures; put some photographs there"):
        find_samples(str(tmp_path), 2)


def test_a_closed_folder(closed_folder):
    with pytest.raises(
        PictureError, match=r"closed/.* cannot be read \(PermissionError: .*\); give another folder"
    ):
        find_samples(str(closed_folder / "pictures"), 2)


@pytest.mark.parametrize("source", ["photos", "./photos", "/photos", "~/photos", "a/b/photos"])
def test_a_source_that_does_not_exist(source):
    with pytest.raises(
        SettingsError, match="photos is neither a folder of pictures nor a data set"
    ):
        find_samples(source, 2)


def test_the_error_is_measured_on_pictures_beyond_those_of_calibration(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.png").touch()
    preset = find_preset("int8-activations")
    number = preset.image_encoder.samples + HELD_OUT
    assert len(samples_for(preset, str(tmp_path))) == number == 36


def data_set(monkeypatch, rows, error=None):
    """Let `datasets` be a module whose only data set has these rows."""

    class Stream(list):
        def take(self, number):
            return self[:number]

    def load_dataset(name, *, split, streaming):
        assert (split, streaming) == ("train", True)
        if error:
            raise error
        return Stream(rows)

    module = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_data_set_by_name(monkeypatch):
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    data_set(monkeypatch, [{"caption": "a", "image": picture} for picture in pictures])
    assert find_samples("owner/name", 2) == [(picture, PROMPT) for picture in pictures[:2]]


def test_rows_of_a_data_set_without_a_picture_are_left_out(monkeypatch):
    picture = Image.new("RGB", (8, 8))
    data_set(monkeypatch, [{"caption": "a", "image": image} for image in (None, picture, None)])
    assert find_samples("owner/name", 3) == [(picture, PROMPT)]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([{"caption": "a"}], None, "has no column of pictures; give another one"),
        ([], None, "has no column of pictures"),
        (
            [],
            FileNotFoundError("it does not exist\nat all"),
            r"cannot be read \(FileNotFoundError: it does not exist\)",
        ),
        ([], ValueError(), r"cannot be read \(ValueError\); give another one"),
    ],
)
def test_a_data_set_that_cannot_be_used(monkeypatch, rows, error, message):
    data_set(monkeypatch, rows, error)
    with pytest.raises(SettingsError, match=message) as caught:
        find_samples("owner/name", 2)
    assert "\n" not in str(caught.value)


def test_a_data_set_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SettingsError, match="owner/name needs the package `datasets`"):
        find_samples("owner/name", 2)


def test_inputs_of_the_parts(converted, parts, tmp_path):
    path = tmp_path / "picture.png"
    samples = questions.draw_samples(2)
    samples[1][0].save(path)
    inputs = inputs_by_part(parts, load_processor(converted), [samples[0], (path, samples[1][1])])
    assert set(inputs) == {IMAGE_ENCODER, LANGUAGE_MODEL}
    images, prompts = (list(inputs[part]) for part in inputs)
    assert [list(feed) for feed in images] == [["pixel_values"]] * 2
    language_model = compile_model(parts[LANGUAGE_MODEL], "CPU")
    for feed, image in zip(prompts, images, strict=True):
        assert feed.keys() == {name for port in language_model.inputs for name in port.get_names()}
        length = feed["inputs_embeds"].shape[1]
        assert length > len(image["pixel_values"]) * TOKENS_PER_TILE
        assert np.array_equal(feed["position_ids"], np.arange(length)[None])
        assert np.isfinite(language_model(feed)[0]).all()


@pytest.mark.parametrize("name", ["mllama", "qwen3_vl", "gemma4"])
def test_a_prompt_s_inputs_are_those_of_the_pipeline(name, bundled_folder):
    """Of families whose pictures, or tables of tokens, give the language model more of them."""
    folder = bundled_folder(name, "int8")
    pipeline = VisionLanguagePipeline(folder, accuracy=True)
    read, files = ov.Core().read_model, read_manifest(folder)["parts"]
    graphs = {part: read(folder / file) for part, file in files.items()}
    samples = questions.draw_samples(3)
    language_model = compile_model(graphs[LANGUAGE_MODEL], "CPU", **ACCURACY)
    inputs = inputs_by_part(graphs, pipeline.processor, samples)[LANGUAGE_MODEL]
    for feed, (picture, text) in zip(inputs, samples, strict=True):
        assert feed.keys() == {name for port in language_model.inputs for name in port.get_names()}
        logits = language_model.create_infer_request().infer(feed)["logits"]
        assert logits.argmax() == pipeline.ask(text, [picture], max_new_tokens=1).token_ids[0]


def test_inputs_can_be_gone_through_again(parts, converted):
    inputs = inputs_by_part(parts, load_processor(converted), questions.draw_samples(1))
    first, second = (next(iter(inputs[LANGUAGE_MODEL])) for _ in range(2))
    assert first.keys() == second.keys() and "inputs_embeds" in first
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_question_without_a_picture(parts, converted):
    processor = load_processor(converted)
    inputs = inputs_by_part(parts, processor, [(None, "Why?")])
    assert list(inputs[IMAGE_ENCODER]) == []
    [feed] = inputs[LANGUAGE_MODEL]
    assert feed["attention_mask"].shape == processor.input_ids([user_message("Why?")]).shape


def test_nothing_is_computed_before_it_is_asked_for(parts, converted, monkeypatch):
    processor = load_processor(converted)
    monkeypatch.setattr(type(processor), "image_inputs", lambda *_: pytest.fail("too early"))
    assert len(inputs_by_part(parts, processor, [(Path("nothing.png"), "?")])) == 2
