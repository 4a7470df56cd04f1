"""What `convert` says once of a checkpoint: words that it lacks, parts of it that are left out."""

import json
import shutil

import openvino as ov
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.__main__ import main
from helpers.convert import conversion
from helpers.convert.folders import read_manifest
from helpers.convert.notes import notes_on
from helpers.graphs.presets import find_preset
from helpers.models import load_processor
from helpers.models.processors import Processor
from helpers.sources.checkpoints import BUNDLED, write_json
from tests.bundled import BUNDLED_NAMES

WITH_TEMPLATE = [
    name for name in BUNDLED_NAMES if (BUNDLED / name / "chat_template.jinja").exists()
]
NO_TEMPLATE = "The checkpoint has no chat template, as base models have none; "
NO_AUDIO = "Left out of the conversion: hearing (the audio tower)."
AUDIO = "audio_tower.layers.0.weight"


def copy_of(name, place):
    return shutil.copytree(BUNDLED / name, place / name)


def add_audio(folder, prefix="model."):
    path = folder / "model.safetensors"
    tensors = {name.replace("model.", prefix, 1): t for name, t in load_file(path).items()}
    save_file(tensors | {f"{prefix}{AUDIO}": torch.zeros(2, 2)}, path, {"format": "pt"})


def notes_of(folder):
    return notes_on(folder, load_processor(folder))


def test_notes_and_small_files_read_no_further_tokenizer(tmp_path, monkeypatch):
    reads, read = [], Processor.__init__

    def counted(self, *arguments):
        reads.append(arguments)
        read(self, *arguments)

    monkeypatch.setattr(Processor, "__init__", counted)
    conversion.convert(BUNDLED / "qwen3_vl", tmp_path / "made", find_preset("fp16"))
    assert len(reads) == 2  # for what is there already, then with the model


def test_what_a_base_model_lacks_and_what_is_left_out_is_told_once_and_kept(tmp_path, capsys):
    folder, output = copy_of("gemma4", tmp_path), tmp_path / "made"
    (folder / "chat_template.jinja").unlink()
    add_audio(folder)
    assert main(["convert", str(folder), "--precision", "fp16", "--output", str(output)]) == 0
    error = capsys.readouterr().err
    assert error.count(f"note: {NO_TEMPLATE}") == error.count(f"note: {NO_AUDIO}") == 1
    assert main(["info", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"note: {NO_AUDIO}" in lines
    assert sum(line.startswith(f"note: {NO_TEMPLATE}") for line in lines) == 1
    assert main(["info", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == notes_of(folder)


def test_parts_that_a_notebook_writes_keep_the_notes(bundled_folder, tmp_path):
    folder = copy_of("qwen3_vl", tmp_path)
    (folder / "chat_template.jinja").unlink()
    converted = bundled_folder("qwen3_vl", "int8")
    parts = read_manifest(converted)["parts"].items()
    models = [(name, ov.Core().read_model(converted / file)) for name, file in parts]
    preset = find_preset("int8")
    conversion.write(models, tmp_path / "made", checkpoint=folder, preset=preset, compressed=True)
    (note,) = read_manifest(tmp_path / "made")["notes"]
    assert note.startswith(NO_TEMPLATE)


@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_nothing_is_said_of_a_whole_checkpoint(name):
    assert notes_of(BUNDLED / name) == []


@pytest.mark.parametrize("name", WITH_TEMPLATE)
def test_a_template_in_any_file_counts(name, tmp_path):
    folder = copy_of(name, tmp_path)
    text = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").unlink()
    (note,) = notes_of(folder)
    assert note.startswith(NO_TEMPLATE)
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    for file, content in (("tokenizer_config.json", config), ("chat_template.json", {})):
        write_json(folder / file, content | {"chat_template": text})
        assert notes_of(folder) == []
        write_json(folder / file, content)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_an_audio_tower_is_named_however_the_files_call_it(prefix, tmp_path):
    folder = copy_of("gemma4", tmp_path)
    add_audio(folder, prefix)
    assert notes_of(folder) == [NO_AUDIO]
