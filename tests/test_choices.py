"""The choice of a checkpoint: a folder, and whether it is one of the notebook's family."""

import json

import pytest

from helpers.errors import CheckpointError, OutputError, SettingsError
from helpers.models.families import find_checkpoint
from helpers.show.choices import choose_checkpoint, chosen_folder


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Stand where a notebook can write, which the folder of the tests need not be."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder_choice(monkeypatch):
    monkeypatch.setenv("VLM_CHECKPOINT", "folder")
    return choose_checkpoint("internvl2")


def test_a_bundled_checkpoint_has_its_folder():
    choice = choose_checkpoint("internvl2")
    assert chosen_folder(choice, "internvl2") == find_checkpoint("internvl2")


def test_a_folder_of_the_family_is_taken(folder_choice, monkeypatch):
    checkpoint = find_checkpoint("internvl2")
    monkeypatch.setenv("VLM_FOLDER", str(checkpoint))
    assert chosen_folder(folder_choice, "internvl2") == checkpoint


def test_a_folder_of_another_family_is_told_in_a_sentence(folder_choice, monkeypatch):
    monkeypatch.setenv("VLM_FOLDER", str(find_checkpoint("mobilevlm")))
    with pytest.raises(SettingsError, match="is one of mobilevlm, and this notebook is about int"):
        chosen_folder(folder_choice, "internvl2")


def test_a_folder_of_no_family_is_told_in_a_sentence(folder_choice, monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    monkeypatch.setenv("VLM_FOLDER", str(tmp_path))
    with pytest.raises(CheckpointError, match="holds a 'bert' model"):
        chosen_folder(folder_choice, "internvl2")


def test_without_a_folder_the_variable_is_named(folder_choice, monkeypatch):
    monkeypatch.delenv("VLM_FOLDER", raising=False)
    with pytest.raises(SettingsError, match="VLM_FOLDER"):
        chosen_folder(folder_choice, "internvl2")


@pytest.mark.parametrize("name", ["", "models"])
def test_where_nothing_can_be_written_is_told_before_a_download(name, place, become_ordinary):
    (place / name).mkdir(exist_ok=True)
    (place / name).chmod(0o555)
    choice = choose_checkpoint("internvl2")
    become_ordinary()
    with pytest.raises(OutputError, match=r"models, which is not possible \(Permission denied\)"):
        chosen_folder(choice, "internvl2")


def test_a_full_disk_is_told_before_a_download(full_disk, monkeypatch):
    message = r"models, which is not possible \(No space left"
    with monkeypatch.context() as patch, pytest.raises(OutputError, match=message):
        patch.chdir(full_disk)  # and back, before the disk is taken away
        chosen_folder(choose_checkpoint("internvl2"), "internvl2")
    assert [path.name for path in full_disk.iterdir()] == ["filling"]
