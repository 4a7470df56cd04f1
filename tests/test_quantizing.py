"""An image encoder with activations in 8 bits: one preset, calibrated on pictures of the reader."""

from collections import Counter

import openvino as ov
import pytest
import torch

from helpers.__main__ import main
from helpers.convert import conversion, quantizing
from helpers.convert.calibration import HELD_OUT
from helpers.convert.folders import read_manifest
from helpers.errors import SettingsError
from helpers.graphs.compression import compress
from helpers.graphs.core import has_one_size
from helpers.graphs.part_names import FILES, IMAGE_ENCODER
from helpers.graphs.presets import INT8, Quantization, find_preset, name_of
from helpers.graphs.tracing import input_shapes
from helpers.measure import evaluation
from helpers.models import load_model, load_processor
from helpers.models.families import find_family_by_name, on_meta_device
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes.questions import draw_questions
from helpers.sources.checkpoints import BUNDLED

TILES = ("llava_mpt", "mobilevlm", "internvl2", "mllama")
WHOLE_PICTURES = ("minicpm_v2", "qwen3_vl", "qwen3_5", "gemma4")


@pytest.fixture(scope="module")
def folder(bundled_folder):
    return bundled_folder("internvl2", "int8-activations")


def test_the_image_encoder_multiplies_in_8_bits_and_its_answers_stay_right(folder):
    assert name_of(read_manifest(folder)["preset"]) == "int8-activations"
    graph = ov.Core().read_model(folder / FILES[IMAGE_ENCODER])
    kinds = Counter(node.get_type_name() for node in graph.get_ops())
    assert kinds["FakeQuantize"] > kinds["MatMul"] / 2
    pairs = draw_questions(21, seed=5)
    right = evaluation.accuracy(evaluation.answer(VisionLanguagePipeline(folder), pairs), pairs)
    assert right["all"].right >= 19


def test_calibration_has_the_first_pictures_and_the_error_is_that_of_others():
    checkpoint, lines = BUNDLED / "mobilevlm", []
    setting = find_preset("int8-activations").image_encoder
    processor = load_processor(checkpoint)
    exact = conversion.convert_part(load_model(checkpoint).image_encoder_part())
    pictures = quantizing.varied_pictures(10, seed=3)
    first, others = (
        list(quantizing.encoder_inputs(exact, processor, samples))
        for samples in (pictures[:8], pictures[8:])
    )
    encoder = quantizing.quantized_encoder(
        exact.clone(), setting, processor, pictures, report=lines.append
    )

    def features(graph):
        compiled = ov.Core().compile_model(graph, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
        return torch.cat([torch.from_numpy(compiled(call)[0]).flatten() for call in others])

    expected, calibrated = features(exact), features(encoder)
    assert torch.equal(calibrated, features(compress(exact.clone(), setting, first)))
    (line,) = [line for line in lines if "differ from those" in line]
    shares = [float(word.strip("%,.")) / 100 for word in line.split() if "%" in word]
    weights_only = features(compress(exact, INT8))
    for values, distance in zip((calibrated, weights_only), shares, strict=True):
        measured = (values - expected).norm() / expected.norm()
        assert distance == pytest.approx(float(measured), abs=6e-4)


@pytest.mark.parametrize("name", (*TILES, *WHOLE_PICTURES))
def test_tiles_of_one_size_are_told_without_their_model(name):
    part = load_model(BUNDLED / name).image_encoder_part()
    shapes = [port.partial_shape for port in conversion.convert_part(part).inputs]
    assert has_one_size(shapes) == has_one_size(input_shapes(part).values()) == (name in TILES)


@pytest.mark.parametrize("name", TILES)
def test_tiles_of_one_size_are_taken(name):
    quantizing.check_image_encoder(on_meta_device(BUNDLED / name), find_preset("int8-activations"))


def words_of(command, name, place):
    """Return a command line that would quantise activations; what it writes is in `place`."""
    precision = ["--precision", "int8-activations"]
    if command == "convert":
        precision = ["--image-encoder", "int8-activations"]
    if command == "benchmark":
        name = find_family_by_name(name).originals[0].name
        return ["benchmark", name, "--full-size", *precision, "--folder", str(place)]
    return [command, name, *precision, "--output", str(place / "made")]


@pytest.mark.parametrize("name", WHOLE_PICTURES)
@pytest.mark.parametrize("command", ["convert", "benchmark", "prove"])
def test_pictures_of_any_size_are_refused_before_the_work(name, command, tmp_path, capsys):
    assert main(words_of(command, name, tmp_path)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: This model's image encoder takes pictures of any size")
    assert error.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_pictures_of_a_reader_are_what_calibration_looks_at(tmp_path, capsys):
    pictures = tmp_path / "photographs"
    pictures.mkdir()
    for number, (picture, _) in enumerate(quantizing.varied_pictures(4)):
        picture.save(pictures / f"{number}.png")
    output = tmp_path / "made"
    options = ["--image-encoder", "int8-activations", "--samples", str(pictures)]
    options += ["--output", str(output)]
    assert main(["convert", "internvl2", *options]) == 0
    first = read_manifest(output)
    assert first["preset"]["image_encoder"]["smooth_quant"] == 0.6
    assert first["preset"]["language_model"]["mode"] == "int4-asym"
    error = capsys.readouterr().err
    assert "looking at 3 pictures" in error and "features of 1 other pictures" in error
    (pictures / "0.png").unlink()
    assert main(["convert", "internvl2", *options]) == 0
    assert read_manifest(output)["source"]["samples"] != first["source"]["samples"]


def test_the_error_is_measured_on_pictures_of_the_reader_that_calibration_does_not_look_at():
    drawings = [picture.tobytes() for picture, _ in quantizing.varied_pictures(4, seed=1)]
    pictures = [(place, "?") for place in range(40)]
    assert quantizing.split(pictures[:36], 32) == (pictures[:32], pictures[32:36])
    assert quantizing.split(pictures, 32) == (pictures[:32], pictures[32:36])
    assert quantizing.split(pictures[:10], 32) == (pictures[:8], pictures[8:10])
    samples, others = quantizing.split(pictures[:3], 32)
    assert samples == pictures[:3] and [picture.tobytes() for picture, _ in others] == drawings
    samples, others = quantizing.split([], 32)
    assert len(samples) == 32 and [picture.tobytes() for picture, _ in others] == drawings


def test_samples_that_nothing_looks_at_are_refused(tmp_path, capsys):
    options = ["--samples", str(tmp_path), "--output", str(tmp_path / "made")]
    assert main(["convert", "internvl2", *options]) == 1
    assert "--samples" in capsys.readouterr().err


def test_drawn_pictures_are_the_same_every_time_and_differ_in_size():
    first, again = (quantizing.varied_pictures(24) for _ in range(2))
    assert [picture.tobytes() for picture, _ in first] == [other.tobytes() for other, _ in again]
    assert len({picture.size for picture, _ in first}) >= 6
    others = {picture.tobytes() for picture, _ in quantizing.varied_pictures(HELD_OUT, seed=1)}
    assert not others & {picture.tobytes() for picture, _ in first}


def test_a_preset_is_changed_in_its_image_encoder_alone():
    preset = find_preset("int4", image_encoder="int8-activations")
    assert isinstance(preset.image_encoder, Quantization)
    assert preset.language_model == find_preset("int4").language_model
    with pytest.raises(SettingsError, match="int5"):
        find_preset("int4", image_encoder="int5")
