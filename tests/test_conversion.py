"""A converted folder is complete or not there; it says truly what it was made of."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import openvino as ov
import pytest

from helpers import conversion
from helpers.compression import find_preset
from helpers.conversion import convert, expected_bytes, folder_bytes, read_manifest
from helpers.errors import CheckpointError, OutputError, UserError
from helpers.models import load_model
from helpers.pipeline import VisionLanguagePipeline
from helpers.tracing import FILES, LANGUAGE_MODEL

FP16 = find_preset("fp16")


@pytest.fixture
def made(converted, tmp_path):
    """Return a copy of a finished conversion, to be damaged."""
    return shutil.copytree(converted, tmp_path / "made")


@pytest.fixture
def parts(converted):
    """Return a function that gives the converted parts anew, without tracing."""
    return lambda: ((name, ov.Core().read_model(converted / file)) for name, file in FILES.items())


@pytest.fixture
def convert_quickly(parts, monkeypatch):
    """Return `convert` with parts that were traced before, and a list of those it took."""
    taken: list[str] = []
    models = dict(parts())

    def convert_part(part):
        taken.append(part.name)
        return models[part.name].clone()

    monkeypatch.setattr(conversion, "convert_part", convert_part)
    return convert, taken


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


# What a finished folder holds


def test_a_folder_has_one_of_each_part(converted):
    models = sorted(path.name for path in converted.iterdir() if path.suffix in (".xml", ".bin"))
    stems = [file.removesuffix(".xml") for file in FILES.values()]
    assert models == sorted(stem + ending for stem in stems for ending in (".xml", ".bin"))
    model = ov.Core().read_model(converted / FILES[LANGUAGE_MODEL])
    assert len(model.get_variables()) == 4 and len(model.outputs) == 1


def test_a_folder_has_what_its_processor_reads(converted, checkpoint):
    for name in ("tokenizer.json", "tokenizer_config.json", "bundled.json", "added_tokens.json"):
        assert (converted / name).read_bytes() == (checkpoint / name).read_bytes()
    assert not list(converted.glob("*.safetensors*"))


def test_the_manifest_describes_every_file(converted):
    manifest = read_manifest(converted)
    files = {path.name for path in converted.iterdir()} - {conversion.MANIFEST}
    assert set(manifest["files"]) == files
    for name, file in manifest["files"].items():
        content = (converted / name).read_bytes()
        assert file == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_the_manifest_says_of_what_it_was_made(converted, checkpoint):
    manifest = read_manifest(converted)
    config = (checkpoint / "config.json").read_bytes()
    assert manifest["source"]["name"] == "internvl2"
    assert manifest["source"]["config_sha256"] == hashlib.sha256(config).hexdigest()
    assert manifest["preset"]["language_model"]["mode"] == "fp16"
    assert set(manifest["bit_widths"]) == set(FILES)
    assert set(manifest["versions"]) == {"openvino", "nncf", "torch", "transformers", "python"}
    assert str(checkpoint) not in json.dumps(manifest)


def test_sizes_are_those_on_disk(converted):
    sizes = folder_bytes(converted)
    on_disk = sum(path.stat().st_size for path in converted.glob("openvino_*"))
    assert list(sizes) == list(FILES) and sum(sizes.values()) == on_disk


# Room


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_the_size_that_is_expected_is_about_what_comes_out(checkpoint, tmp_path, precision):
    preset = find_preset(precision)
    expected = expected_bytes(load_model(checkpoint), preset)
    convert(checkpoint, tmp_path / "made", preset)
    written = sum(path.stat().st_size for path in (tmp_path / "made").glob("*.bin"))
    # Scales take room too, the last layer stays at 8 bits; constants that are equal are kept once.
    assert 0.85 < written / expected < 1.4


def test_a_full_disk_is_found_before_the_work(checkpoint, tmp_path, monkeypatch, convert_quickly):
    convert, taken = convert_quickly
    monkeypatch.setattr("helpers.hub.free_disk", lambda folder: 1000)
    with pytest.raises(OutputError, match="but only 0.0 MB are free"):
        convert(checkpoint, tmp_path / "made", FP16)
    assert taken == [] and list(tmp_path.iterdir()) == []


def test_little_memory_is_told(checkpoint, tmp_path, monkeypatch, convert_quickly):
    convert, taken = convert_quickly
    lines = []
    monkeypatch.setattr("helpers.hub.CONVERSION_MEMORY", 1e15)
    convert(checkpoint, tmp_path / "made", FP16, report=lines.append)
    assert taken and "more memory than is free" in lines[1]


# Converting again


def test_a_finished_folder_is_kept(made, checkpoint, convert_quickly):
    convert, taken = convert_quickly
    before, lines = contents(made), []
    widths = convert(checkpoint, made, FP16, report=lines.append)
    assert contents(made) == before and taken == []
    assert "is there already" in lines[0] and len(lines) == 1
    assert set(widths) == set(FILES)


def test_other_settings_replace_it(made, checkpoint, convert_quickly):
    convert, taken = convert_quickly
    widths = convert(checkpoint, made, find_preset("int4"))
    assert taken == list(FILES)
    manifest = read_manifest(made)
    assert manifest["preset"]["language_model"]["mode"] == "int4-asym"
    assert widths[LANGUAGE_MODEL][0].type == "u4"
    assert manifest["bit_widths"][LANGUAGE_MODEL][0]["type"] == "u4"
    assert [path.name for path in made.parent.iterdir()] == ["made"]


def test_another_checkpoint_replaces_it(made, checkpoint, convert_quickly, tmp_path):
    convert, taken = convert_quickly
    other = shutil.copytree(checkpoint, tmp_path / "other")
    convert(other, made, FP16)
    assert taken and read_manifest(made)["source"]["name"] == "other"


@pytest.mark.parametrize("damage", ["a file", "the manifest", "the format"])
def test_a_damaged_folder_is_made_anew(made, checkpoint, convert_quickly, damage):
    convert, taken = convert_quickly
    DAMAGES[damage](made)
    with pytest.raises(OutputError, match="run `python -m helpers convert` again"):
        read_manifest(made)
    convert(checkpoint, made, FP16)
    assert taken and read_manifest(made)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def change_format(folder: Path) -> None:
    manifest = json.loads((folder / conversion.MANIFEST).read_text(encoding="utf-8"))
    text = json.dumps(manifest | {"format": 0})
    (folder / conversion.MANIFEST).write_text(text, encoding="utf-8")


DAMAGES = {
    "a file": lambda folder: shorten(folder / "openvino_language_model.bin"),
    "no file": lambda folder: (folder / "tokenizer.json").unlink(),
    "the manifest": lambda folder: shorten(folder / conversion.MANIFEST),
    "half a manifest": lambda folder: (folder / conversion.MANIFEST).write_text('{"format": 1}'),
    "no manifest": lambda folder: (folder / conversion.MANIFEST).unlink(),
    "the format": change_format,
}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("a file", "openvino_language_model.bin in .*made is missing or damaged"),
        ("no file", "tokenizer.json in .*made is missing or damaged"),
        ("the manifest", "The manifest of .*made is damaged"),
        ("half a manifest", "The manifest of .*made is damaged"),
        ("no manifest", "made holds no finished conversion"),
        ("the format", "made was made by another version"),
    ],
)
def test_a_damaged_folder_is_told_when_it_is_opened(made, damage, message):
    DAMAGES[damage](made)
    with pytest.raises(OutputError, match=message) as caught:
        VisionLanguagePipeline(made)
    assert "convert` again" in str(caught.value) and "\n" not in str(caught.value)


def test_a_part_damaged_in_place_is_told(made):
    path = made / FILES[LANGUAGE_MODEL]
    path.write_bytes(b"<" * path.stat().st_size)
    with pytest.raises(OutputError, match="is damaged; convert the checkpoint again"):
        VisionLanguagePipeline(made)


# What goes wrong on the way


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize("where", ["new", "empty", "finished"])
def test_an_interruption_leaves_what_was_there(
    parts, checkpoint, converted, tmp_path, error, where
):
    output = tmp_path / "work" / "made"
    if where == "empty":
        output.mkdir(parents=True)
    if where == "finished":
        shutil.copytree(converted, output)
    before = contents(output) if output.exists() else None

    def interrupted():
        yield from list(parts())[:2]
        raise error("in the middle")

    with pytest.raises(error):
        conversion.write(interrupted(), output, checkpoint=checkpoint, preset=FP16)
    left = sorted(tmp_path.rglob("*"))
    if where == "new":
        assert [path for path in left if path.name != "work"] == []
    else:
        assert contents(output) == before
        assert [path for path in left if path != output and path.parent != output] == [
            tmp_path / "work"
        ]


def test_a_disk_that_is_full_is_told(parts, checkpoint, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion, "save_part", full)
    with pytest.raises(OutputError, match="could not be written .No space left on device"):
        conversion.write(parts(), tmp_path / "made", checkpoint=checkpoint, preset=FP16)
    assert list(tmp_path.iterdir()) == []


def test_openvino_s_own_error_of_a_full_disk_is_told(parts, checkpoint, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("basic_ios::clear: iostream error")  # as it says on Linux

    monkeypatch.setattr(ov, "save_model", full)
    with pytest.raises(OutputError, match="could not be written; is the disk full?"):
        conversion.write(parts(), tmp_path / "made", checkpoint=checkpoint, preset=FP16)
    assert list(tmp_path.iterdir()) == []


def outputs_in_the_way(folder: Path) -> dict[str, Path]:
    (folder / "file").write_text("mine", encoding="utf-8")
    (folder / "folder").mkdir()
    (folder / "folder" / "diary.txt").write_text("mine", encoding="utf-8")
    return {
        "file": folder / "file",
        "folder": folder / "folder",
        "inside a file": folder / "file" / "made",
        "too long": folder / ("long" * 100),
    }


@pytest.mark.parametrize("kind", ["file", "folder", "inside a file", "too long"])
def test_what_is_in_the_way_is_left_alone(checkpoint, tmp_path, kind):
    output = outputs_in_the_way(tmp_path)[kind]
    with pytest.raises(OutputError, match="give (a new or an empty|another) folder") as caught:
        convert(checkpoint, output, FP16)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "folder" / "diary.txt").read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that nobody can write")
def test_a_folder_that_nobody_can_write(checkpoint):
    with pytest.raises(OutputError, match="/proc/made cannot be written"):
        convert(checkpoint, Path("/proc/made"), FP16)


@pytest.mark.parametrize("output", [".", "../work/"])
def test_the_folder_where_one_is(converted, checkpoint, convert_quickly, tmp_path, output):
    (tmp_path / "work").mkdir()
    here = Path.cwd()
    os.chdir(tmp_path / "work")
    try:
        convert_quickly[0](checkpoint, Path(output), FP16)
    finally:
        os.chdir(here)
    assert read_manifest(tmp_path / "work")


def test_a_link_is_followed(converted, checkpoint, convert_quickly, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    convert_quickly[0](checkpoint, tmp_path / "link", FP16)
    assert (tmp_path / "link").is_symlink() and read_manifest(tmp_path / "real")


def test_no_checkpoint_leaves_no_output(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "has no config.json"), ("none", "is not a folder")):
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / name, tmp_path / "made", FP16)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("missing", [("tokenizer.json", "vocab.json"), ("tokenizer_config.json",)])
def test_a_checkpoint_without_its_tokenizer_is_refused_or_works(
    checkpoint, convert_quickly, tmp_path, missing
):
    """What cannot answer later is refused now."""
    source = shutil.copytree(checkpoint, tmp_path / "source")
    for name in missing:
        (source / name).unlink()
    try:
        convert_quickly[0](source, tmp_path / "made", FP16)
    except UserError as error:
        assert "tokenizer" in str(error)
        assert not (tmp_path / "made").exists()
    else:
        assert VisionLanguagePipeline(tmp_path / "made").ask("What?", max_new_tokens=2).text


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize("line", ["image encoder: converting", "language model: converting"])
def test_control_c_leaves_nothing(checkpoint, tmp_path, line):
    output = tmp_path / "made"
    command = [sys.executable, "-m", "helpers", "convert", checkpoint, "--output", output]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        for said in process.stderr:
            if said.startswith(line):
                break
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in error and error.endswith("stopped\n")
    assert list(tmp_path.iterdir()) == []
