"""A converted folder is complete or not there; it says truly what it was made of."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import openvino as ov
import psutil
import pytest
from filelock import FileLock
from safetensors.torch import load_file, save_file

from helpers.convert import conversion, estimates, manifests
from helpers.convert.conversion import convert
from helpers.convert.estimates import expected_bytes
from helpers.convert.folders import clean, folder_bytes, read_manifest, verify, written_aside
from helpers.convert.manifests import FORMAT, MANIFEST, UNFINISHED_MANIFEST, bit_widths_of
from helpers.convert.origins import describe_source
from helpers.errors import CheckpointError, OutputError, SettingsError, UserError
from helpers.graphs.part_names import FILES, IMAGE_ENCODER, LANGUAGE_MODEL, TEXT_EMBEDDINGS
from helpers.graphs.presets import Quantization, Weights, find_preset
from helpers.models import load_model
from helpers.models.families import find_original, without_weights
from helpers.run.pipeline import VisionLanguagePipeline
from tests.disks import mount_memory, unmount

FP16 = find_preset("fp16")


@pytest.fixture
def output(converted, tmp_path):
    """Return a copy of a finished conversion, to be damaged."""
    return shutil.copytree(converted, tmp_path / "made")


@pytest.fixture
def parts(converted):
    """Return a function that gives the converted parts anew, without tracing."""
    return lambda: ((name, ov.Core().read_model(converted / file)) for name, file in FILES.items())


@pytest.fixture
def quick_parts(parts, monkeypatch):
    """Let conversions take parts that were traced before; return a list of those they took."""
    names: list[str] = []
    models = dict(parts())

    def convert_part(part):
        names.append(part.name)
        return models[part.name].clone()

    monkeypatch.setattr(conversion, "convert_part", convert_part)
    return names


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


# What a finished folder holds


def test_a_folder_has_one_of_each_part(converted):
    models = sorted(path.name for path in converted.glob("openvino_*_model.*"))
    stems = [file.removesuffix(".xml") for file in FILES.values()]
    assert models == sorted(stem + ending for stem in stems for ending in (".xml", ".bin"))
    model = ov.Core().read_model(converted / FILES[LANGUAGE_MODEL])
    assert len(model.get_variables()) == 4 and len(model.outputs) == 1


def test_a_folder_has_what_its_processor_reads(converted, checkpoint):
    for name in ("tokenizer.json", "tokenizer_config.json", "bundled.json", "added_tokens.json"):
        assert (converted / name).read_bytes() == (checkpoint / name).read_bytes()
    assert not list(converted.glob("*.safetensors*"))


def test_files_that_say_of_weights_what_was_are_left_out(checkpoint, parts, tmp_path):
    source = shutil.copytree(checkpoint, tmp_path / "source")
    for name in ("model.safetensors.index.json", "adapter_config.json", "notes.txt"):
        (source / name).write_text("{}", encoding="utf-8")
    (source / "folder.txt").mkdir()
    conversion.write(parts(), tmp_path / "made", checkpoint=source, preset=FP16, compressed=True)
    added = {path.name for path in source.iterdir()} - {path.name for path in checkpoint.iterdir()}
    assert {path.name for path in (tmp_path / "made").iterdir()} & added == {"notes.txt"}


def test_a_part_s_file_is_the_same_whatever_was_converted_before(checkpoint, converted, tmp_path):
    part = load_model(checkpoint).image_encoder_part()
    path = conversion.save_part(conversion.convert_part(part), tmp_path, IMAGE_ENCODER)
    for file in (path, path.with_suffix(".bin")):
        assert file.read_bytes() == (converted / file.name).read_bytes()


def test_the_manifest_describes_every_file(converted):
    manifest = read_manifest(converted)
    files = {path.name for path in converted.iterdir()} - {MANIFEST}
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
    on_disk = sum(path.stat().st_size for path in converted.glob("openvino_*_model.*"))
    assert list(sizes) == list(FILES) and sum(sizes.values()) == on_disk


# Room


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_the_size_that_is_expected_is_about_what_comes_out(checkpoint, tmp_path, precision):
    preset = find_preset(precision)
    expected = expected_bytes(load_model(checkpoint), preset)
    convert(checkpoint, tmp_path / "made", preset)
    actual = sum(folder_bytes(tmp_path / "made").values())
    assert 0.95 < actual / expected < 1.2  # measured: 0.98 to 1.13


def test_weights_of_32_bits_are_counted_and_told(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "in 32 bits")
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    lines: list[str] = []
    convert(folder, tmp_path / "made", FP16, report=lines.append)
    expected = expected_bytes(load_model(folder), FP16)
    actual = sum(folder_bytes(tmp_path / "made").values())
    assert 0.95 < actual / expected < 1.2
    (line,) = (line for line in lines if "32 bits" in line)
    assert "fp16 stores weights as they are; save it in 16 bits" in line
    lines.clear()
    convert(folder, tmp_path / "smaller", find_preset("int8"), report=lines.append)
    assert not any("32 bits" in line for line in lines)


def test_the_memory_that_looking_at_samples_takes(checkpoint):
    model = load_model(checkpoint)
    weights = sum(weight.numel() for weight in model.language_model.parameters())
    plain = find_preset("int4")
    memory = {
        name: estimates.expected_memory(model, find_preset("int4", **{name: True}))
        for name in ("awq", "scale_estimation")
    }
    least = estimates.expected_memory(model, plain)
    # Beside the result, at most a copy of a small model.
    embeddings = model.token_embeddings.weight.numel()  # counted with the language model, too
    copy = 2 * (sum(weight.numel() for weight in model.parameters()) + embeddings)
    assert least == expected_bytes(model, plain) + copy + 2**28
    assert memory["awq"] - least == weights
    widest = model.language_model.model.layers[0].mlp.gate_proj.weight.numel()
    assert memory["scale_estimation"] - memory["awq"] == 48 * widest
    everywhere = find_preset("int4", scale_estimation=True, all_layers=True)
    head = model.language_model.lm_head.weight.numel()
    smaller = expected_bytes(model, plain) - expected_bytes(model, everywhere)
    assert smaller > 0  # its last layer has 4 bits too
    assert estimates.expected_memory(model, everywhere) + smaller - memory["awq"] == 48 * head
    encoder = replace(plain, image_encoder=Quantization())
    assert estimates.expected_memory(model, encoder) > memory["awq"]


def test_the_memory_that_a_large_model_takes():
    model = without_weights(find_original("internvl2-1b").config)
    expected = expected_bytes(model, FP16) + estimates.BESIDE_THE_RESULT
    assert estimates.expected_memory(model, FP16) == pytest.approx(expected)


def test_parts_that_are_compressed_already_are_written_as_they_are(
    checkpoint, converted, parts, tmp_path
):
    widths = conversion.write(
        parts(),
        tmp_path / "made",
        checkpoint=checkpoint,
        preset=find_preset("int8"),
        compressed=True,
    )
    assert widths == bit_widths_of(read_manifest(converted))


def test_a_full_disk_is_found_before_the_work(checkpoint, tmp_path, monkeypatch, quick_parts):
    monkeypatch.setattr("helpers.convert.estimates.free_disk", lambda folder: 1000)
    with pytest.raises(OutputError, match="but only 0.0 MB are free"):
        convert(checkpoint, tmp_path / "made", FP16)
    assert quick_parts == [] and list(tmp_path.iterdir()) == []


def memory_of(monkeypatch, *, free: float, swap: float) -> None:
    for name, value in (("virtual_memory", {"available": free}), ("swap_memory", {"free": swap})):
        monkeypatch.setattr(psutil, name, lambda value=value: SimpleNamespace(**value))


def test_too_little_memory_is_found_before_the_work(checkpoint, tmp_path, monkeypatch, quick_parts):
    memory_of(monkeypatch, free=1e8, swap=1e7)
    with pytest.raises(SettingsError, match=r"takes about .* but only 110.0 MB are free; close"):
        convert(checkpoint, tmp_path / "made", FP16)
    assert quick_parts == [] and list(tmp_path.iterdir()) == []


def test_swap_space_is_told(checkpoint, tmp_path, monkeypatch, quick_parts):
    memory_of(monkeypatch, free=1e8, swap=1e12)
    lines = []
    convert(checkpoint, tmp_path / "made", FP16, report=lines.append)
    assert quick_parts and "so it may be very slow" in lines[1]


# Converting again


def test_a_finished_folder_is_kept(output, checkpoint, quick_parts):
    before, lines = contents(output), []
    widths = convert(checkpoint, output, FP16, report=lines.append)
    assert contents(output) == before and quick_parts == []
    assert "is there already" in lines[0] and len(lines) == 1
    assert set(widths) == set(FILES)


def test_a_folder_with_a_file_that_may_not_be_read_is_kept(
    output, checkpoint, tmp_path, quick_parts, become_ordinary
):
    """It is another user's, and nothing says that it is damaged."""
    checkpoint = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    file = output / FILES[LANGUAGE_MODEL]
    file.chmod(0)
    become_ordinary()
    with pytest.raises(OutputError, match=f"{file.name} may not be read by this user; ask its"):
        convert(checkpoint, output, FP16)
    assert quick_parts == [] and file.exists()


def test_other_settings_replace_it(output, checkpoint, quick_parts):
    widths = convert(checkpoint, output, find_preset("int4"))
    assert quick_parts == list(FILES)
    manifest = read_manifest(output)
    assert manifest["preset"]["language_model"]["mode"] == "int4-asym"
    assert widths[LANGUAGE_MODEL][0].type == "u4"
    assert manifest["bit_widths"][LANGUAGE_MODEL][0]["type"] == "u4"
    assert [path.name for path in output.parent.iterdir()] == ["made"]


def test_another_checkpoint_replaces_it(output, checkpoint, quick_parts, tmp_path):
    other = shutil.copytree(checkpoint, tmp_path / "other")
    convert(other, output, FP16)
    assert quick_parts and read_manifest(output)["source"]["name"] == "other"


@pytest.mark.parametrize("damage", ["a file", "the manifest", "the format"])
def test_a_damaged_folder_is_made_anew(output, checkpoint, quick_parts, damage):
    DAMAGES[damage](output)
    with pytest.raises(OutputError, match="run `vlm convert` again"):
        read_manifest(output)
    convert(checkpoint, output, FP16)
    assert quick_parts and read_manifest(output)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def change_format(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    text = json.dumps(manifest | {"format": 0})
    (folder / MANIFEST).write_text(text, encoding="utf-8")


DAMAGES = {
    "a file": lambda folder: shorten(folder / "openvino_language_model.bin"),
    "no file": lambda folder: (folder / "tokenizer.json").unlink(),
    "the manifest": lambda folder: shorten(folder / MANIFEST),
    "half a manifest": lambda folder: (folder / MANIFEST).write_text(f'{{"format": {FORMAT}}}'),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "the format": change_format,
}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("a file", "openvino_language_model.bin in .*made is missing or damaged"),
        ("no file", "tokenizer.json in .*made is missing or damaged"),
        ("the manifest", "The manifest of .*made is damaged"),
        ("half a manifest", "The manifest of .*made is damaged"),
        ("the format", "made was made by another version"),
    ],
)
def test_a_damaged_folder_is_told_when_it_is_opened(output, damage, message):
    DAMAGES[damage](output)
    with pytest.raises(OutputError, match=message) as caught:
        VisionLanguagePipeline(output)
    assert "convert` again" in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_of_another_tool_is_told(output):
    """As optimum-intel exports a model."""
    DAMAGES["no manifest"](output)
    with pytest.raises(OutputError, match=r"made holds no .* without .*\.json, as other tools"):
        VisionLanguagePipeline(output)


def test_a_part_damaged_in_place_is_told(output):
    path = output / FILES[LANGUAGE_MODEL]
    path.write_bytes(b"<" * path.stat().st_size)
    with pytest.raises(OutputError, match="is damaged; convert the checkpoint again"):
        VisionLanguagePipeline(output)


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


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that gives a folder on a disk of so many bytes, or makes that larger."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        options = f"size={size}" + (",remount" if place.is_mount() else "")
        mount_memory(place, options)
        return place

    yield mount
    if place.is_mount():
        unmount(place)


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_stage(
    small_disk, checkpoint, converted, monkeypatch, quick_parts, repetitions
):
    monkeypatch.setattr(
        "helpers.convert.estimates.free_disk", lambda folder: 10**12
    )  # let it begin
    size = sum(path.stat().st_size for path in converted.iterdir())
    number = repetitions("disks that were full", 6, 40)
    for step in range(number):
        place = small_disk(2**14 + size * step // number)
        output = place / "made"
        with pytest.raises(OutputError, match="could not be written|cannot be written") as error:
            convert(checkpoint, output, FP16)
        assert "\n" not in str(error.value)
        assert not output.exists()
        small_disk(4 * size)
        convert(checkpoint, output, FP16)
        assert contents(output) == contents(converted)
        shutil.rmtree(output)
        assert list(place.iterdir()) == []


def test_a_folder_that_may_only_be_read(small_disk, checkpoint, tmp_path, quick_parts):
    place = tmp_path / "mine"
    place.mkdir(mode=0o555)
    if os.access(place, os.W_OK):  # as the administrator, for whom only a disk can be closed
        place = small_disk(2**20)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    with pytest.raises(OutputError, match="cannot be written .*; give another folder"):
        convert(checkpoint, place / "made", FP16)
    assert quick_parts == [] and list(place.iterdir()) == []


def test_a_disk_that_is_full_is_told(parts, checkpoint, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion, "save_part", full)
    with pytest.raises(OutputError, match="could not be written .No space left on device"):
        conversion.write(parts(), tmp_path / "made", checkpoint=checkpoint, preset=FP16)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_openvino_about_a_full_disk_is_told(parts, checkpoint, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("basic_ios::clear: iostream error")  # as it says on Linux

    monkeypatch.setattr(ov, "save_model", full)
    with pytest.raises(OutputError, match="could not be written; is the disk full?"):
        conversion.write(parts(), tmp_path / "made", checkpoint=checkpoint, preset=FP16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows limits no file")
def test_a_limit_on_files_is_told(fork, checkpoint, tmp_path):
    words = ["convert", str(checkpoint), "--output", str(tmp_path / "made")]
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        f"from helpers.__main__ import main; main({words})"
    )
    result = fork.run("-c", program)
    assert "could not be written (larger than `ulimit -f` or the format" in result.stderr


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
def test_the_folder_where_one_is(converted, checkpoint, quick_parts, tmp_path, output):
    (tmp_path / "work").mkdir()
    here = Path.cwd()
    os.chdir(tmp_path / "work")
    try:
        convert(checkpoint, Path(output), FP16)
    finally:
        os.chdir(here)
    assert read_manifest(tmp_path / "work")


def test_a_link_is_followed(converted, checkpoint, quick_parts, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    convert(checkpoint, tmp_path / "link", FP16)
    assert (tmp_path / "link").is_symlink() and read_manifest(tmp_path / "real")


def test_a_file_that_is_not_there_behind_its_link(checkpoint, tmp_path):
    """As in a cache of the hub whose blobs somebody removed."""
    copy = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    (copy / "preprocessor_config.json").symlink_to(tmp_path / "none")
    with pytest.raises(
        CheckpointError, match=r"_config\.json cannot be read \(No such file or dir"
    ):
        describe_source(copy)


def test_each_file_of_a_part_is_read_once(checkpoint, tmp_path, quick_parts, monkeypatch):
    names = []
    monkeypatch.setattr(manifests, "file_hash", lambda path: names.append(path.name) or "0")
    convert(checkpoint, tmp_path / "made", FP16)
    files = read_manifest(tmp_path / "made")["files"]
    assert sorted(names) == sorted(files) == list(files)


def test_no_checkpoint_leaves_no_output(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "has no config.json"), ("none", "is not a folder")):
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / name, tmp_path / "made", FP16)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("part", ["language_model", "others", "image_encoder"])
def test_weights_that_need_samples_are_refused_at_once(checkpoint, quick_parts, tmp_path, part):
    preset = replace(FP16, **{part: Weights("int4-sym", awq=True)})
    with pytest.raises(SettingsError, match="AWQ needs sample inputs .* as notebook 05 does"):
        convert(checkpoint, tmp_path / "made", preset)
    assert not quick_parts and not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", [("tokenizer.json", "vocab.json"), ("tokenizer_config.json",)])
def test_a_checkpoint_without_its_tokenizer_is_refused_or_works(
    checkpoint, quick_parts, tmp_path, missing
):
    """What cannot answer later is refused now."""
    source = shutil.copytree(checkpoint, tmp_path / "source")
    for name in missing:
        (source / name).unlink()
    try:
        convert(source, tmp_path / "made", FP16)
    except UserError as error:
        assert "tokenizer" in str(error)
        assert not (tmp_path / "made").exists()
    else:
        assert VisionLanguagePipeline(tmp_path / "made").ask("What?", max_new_tokens=2).text


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("line", "left"),
    [("image encoder: converting", []), ("language model: converting", [".made.unfinished"])],
)
def test_control_c_leaves_no_more_than_finished_parts(checkpoint, tmp_path, fork, line, left):
    program = fork.start("-m", "helpers", "convert", checkpoint, "--output", tmp_path / "made")
    program.wait_for(line, "err")
    os.kill(program.number, signal.SIGINT)
    assert (program.wait(60), program.text("out")) == (130, "")
    error = program.text("err")
    assert "Traceback" not in error and error.endswith("stopped\n")
    assert [path.name for path in tmp_path.iterdir()] == left
    assert ("is kept" in error) == bool(left)


# Going on


def interrupt_at(part_name: str, monkeypatch) -> None:
    """Let the conversion of a part fail; the patch of `quick_parts` stays below."""
    convert_part = conversion.convert_part

    def interrupted(part):
        if part.name == part_name:
            raise KeyboardInterrupt
        return convert_part(part)

    monkeypatch.setattr(conversion, "convert_part", interrupted)


@pytest.fixture
def interrupted_output(checkpoint, tmp_path, quick_parts, monkeypatch):
    """Return the output of a conversion that stopped at the language model."""
    output = tmp_path / "made"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(LANGUAGE_MODEL, patch)
        convert(checkpoint, output, FP16)
    quick_parts.clear()
    return output


def test_finished_parts_are_used_again(
    interrupted_output, quick_parts, converted, checkpoint, monkeypatch
):
    expected, done = expected_bytes(load_model(checkpoint), FP16), folder_bytes(converted)
    free = expected - done[IMAGE_ENCODER] - done[TEXT_EMBEDDINGS]  # as much as is missing
    monkeypatch.setattr(estimates, "free_disk", lambda folder: free)
    assert not interrupted_output.exists()
    with pytest.raises(
        OutputError, match="was interrupted and lacks language model; run .* again to go on"
    ):
        VisionLanguagePipeline(interrupted_output)
    lines = []
    widths = convert(checkpoint, interrupted_output, FP16, report=lines.append)
    assert quick_parts == [LANGUAGE_MODEL] and list(widths) == list(FILES)
    assert f"{IMAGE_ENCODER}: finished before the interruption" in lines
    sizes = folder_bytes(converted)  # in 16 bits, which is what is counted
    share = 100 - 100 * sizes[LANGUAGE_MODEL] / sum(sizes.values())
    (line,) = (line for line in lines if line.startswith(f"{LANGUAGE_MODEL}: converting"))
    assert abs(int(re.search(r"\((\d+)% done\)", line)[1]) - share) < 3
    assert contents(interrupted_output) == contents(converted)
    assert [path.name for path in interrupted_output.parent.iterdir()] == ["made"]


def touch(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.parametrize("change", ["source", "precision", "part", "manifest", "files"])
def test_what_changed_is_not_used_again(
    interrupted_output, quick_parts, checkpoint, tmp_path_factory, change
):
    aside = interrupted_output.parent / ".made.unfinished"
    source = shutil.copytree(checkpoint, tmp_path_factory.mktemp("source") / checkpoint.name)
    for path in source.iterdir():
        shutil.copystat(checkpoint / path.name, path)
    if change == "source":
        touch(source / "model.safetensors")
    if change == "part":
        path = aside / FILES[IMAGE_ENCODER].replace(".xml", ".bin")
        path.write_bytes(bytes(path.stat().st_size))
    if change == "manifest":
        (aside / UNFINISHED_MANIFEST).write_text(
            f'{{"format": {FORMAT}, "source": 3}}', encoding="utf-8"
        )
    if change == "files":
        manifest = json.loads((aside / UNFINISHED_MANIFEST).read_text(encoding="utf-8"))
        (aside / UNFINISHED_MANIFEST).write_text(json.dumps(manifest | {"files": {}}))
    (aside / "stray.txt").write_text("of another checkpoint", encoding="utf-8")
    convert(source, interrupted_output, find_preset("int8") if change == "precision" else FP16)
    reused = [TEXT_EMBEDDINGS] if change == "part" else []
    assert quick_parts == [name for name in FILES if name not in reused]
    assert list(read_manifest(interrupted_output)["bit_widths"]) == list(FILES)
    assert not (interrupted_output / "stray.txt").exists()


def test_a_second_process_is_told_of_the_first(checkpoint, tmp_path, quick_parts):
    output = tmp_path / "made"
    lock = FileLock(tmp_path / ".made.lock")
    with lock, pytest.raises(OutputError, match="is being written by another process"):
        convert(checkpoint, output, FP16)
    assert not output.exists()
    lock.release()
    made_of = {"source": "another", "preset": {}, "versions": {}}
    with contextlib.suppress(KeyboardInterrupt), written_aside(output, made_of):
        with pytest.raises(OutputError, match=f"is being written by process {os.getpid()} on .*"):
            convert(checkpoint, output, FP16)
        raise KeyboardInterrupt
    convert(checkpoint, output, FP16)
    assert read_manifest(output)


# Looking after folders


def test_an_altered_file_is_found_by_reading_it(output):
    lines: list[str] = []
    assert len(verify(output, report=lines.append)) == len(contents(output)) - 1
    size = (output / "config.json").stat().st_size
    assert f"config.json: {size:,} bytes" in lines
    path = output / "openvino_language_model.bin"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert read_manifest(output)
    with pytest.raises(OutputError, match="^openvino_language_model.bin in .* changed since"):
        verify(output)


def test_what_an_interruption_left_is_removed(interrupted_output, output):
    folder = interrupted_output.parent
    (folder / ".other.replaced").mkdir()
    (folder / ".mine").mkdir()
    with FileLock(folder / ".made.lock"):
        assert clean(interrupted_output) == []
    assert clean(interrupted_output) == [folder / ".made.unfinished"]
    assert clean(folder) == [folder / ".other.replaced"]
    assert sorted(path.name for path in folder.iterdir()) == [".mine", "made"]
