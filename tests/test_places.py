"""What stands where a conversion writes: only what carries our own mark is ours."""
# ruff: noqa: F811  (fixtures of another file)

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from stat import S_IMODE

import pytest

from helpers.__main__ import main
from helpers.convert.conversion import convert
from helpers.convert.folders import clean, read_manifest, written_aside
from helpers.convert.manifests import MANIFEST, UNFINISHED_MANIFEST
from helpers.convert.places import HOLDER, HOLDS, Place
from helpers.errors import CheckpointError, OutputError
from helpers.graphs.presets import find_preset
from tests.disks import mount, mount_memory, tree, unmount
from tests.test_conversion import contents, parts, quick_parts  # noqa: F401

FP16, INT8 = find_preset("fp16"), find_preset("int8")


def write(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_clean_leaves_what_has_not_our_mark(tmp_path):
    write(tmp_path / ".novel.unfinished" / "chapter.txt")
    write(tmp_path / ".app.unfinished" / "manifest.json", '{"files": {}, "name": "an app"}')
    write(tmp_path / ".deep.unfinished" / HOLDER, "process 1 on host").parent.joinpath("d").mkdir()
    write(tmp_path / ".old.replaced" / "letter.txt")
    write(tmp_path / ".package.lock", "of another program")
    write(tmp_path / ".empty.lock", "")  # nothing of ours stands beside it
    write(tmp_path / "elsewhere" / "letter.txt")
    (tmp_path / ".link.unfinished").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "plain.unfinished")
    before = tree(tmp_path)
    assert clean(tmp_path) == []
    with pytest.raises(OutputError, match="novel is no folder, and no conversion to it was"):
        clean(tmp_path / "novel")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["nothing", "file/nothing", "file"])
def test_clean_says_where_nothing_ever_was(tmp_path, name):
    write(tmp_path / "file")
    with pytest.raises(OutputError, match=f"{name} is no folder, and no conversion to it was"):
        clean(tmp_path / name)


def test_clean_leaves_what_another_process_writes_to_a_folder_that_is_not_there_yet(tmp_path):
    place = Place.made(tmp_path / "made")
    with place.held():
        write(place.folder / HOLDER, HOLDS)
        assert clean(tmp_path / "made") == []
    assert clean(tmp_path / "made") == [place.folder]


def test_clean_removes_what_is_ours(tmp_path, converted):
    write(tmp_path / ".a.unfinished" / HOLDER, "process 1 on host")
    write(tmp_path / ".a.lock", "")
    shutil.copytree(converted, tmp_path / ".b.replaced")
    (tmp_path / ".c.unfinished").mkdir()
    names = [".a.unfinished", ".b.replaced", ".c.unfinished"]
    assert clean(tmp_path) == [tmp_path / name for name in names]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".made.unfinished/chapter.txt", ".made.replaced/a", ".made.lock"])
def test_what_another_has_beside_the_output_is_left_alone(checkpoint, tmp_path, quick_parts, name):
    path = write(tmp_path / name)
    with pytest.raises(OutputError, match="is in the way, and not one of ours; rename it") as error:
        convert(checkpoint, tmp_path / "made", FP16)
    assert "\n" not in str(error.value) and quick_parts == []
    assert tree(tmp_path) == {name: b"mine"} and path.exists()


def test_another_program_s_manifest_is_no_conversion(checkpoint, tmp_path, quick_parts):
    write(tmp_path / "made" / MANIFEST, '{"name": "a web app", "start_url": "/"}')
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="holds something else"):
        convert(checkpoint, tmp_path / "made", FP16)
    assert tree(tmp_path) == before and quick_parts == []


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("name", ["diary.md", "pictures/one.png"])
def test_files_in_a_conversion_that_are_not_its_own(
    checkpoint, converted, tmp_path, quick_parts, name, damaged
):
    output = shutil.copytree(converted, tmp_path / "made")
    write(output / name)
    if damaged:
        (output / MANIFEST).write_bytes((output / MANIFEST).read_bytes()[:-9])
    with pytest.raises(OutputError, match=f"holds more than a conversion .{Path(name).parts[0]}"):
        convert(checkpoint, output, INT8)
    assert (output / name).read_text(encoding="utf-8") == "mine" and quick_parts == []


def test_a_benchmark_leaves_a_folder_that_is_not_its_own(tmp_path):
    write(tmp_path / "int4" / "diary.txt")
    assert main(["benchmark", "internvl2", "--folder", str(tmp_path)]) == 1
    assert tree(tmp_path) == {"int4/diary.txt": b"mine"}


# An output that exists and cannot be renamed


@pytest.fixture
def volume(tmp_path):
    """Return an empty folder that is a disk of its own, as a container's volume is."""
    place = tmp_path / "volume"
    place.mkdir()
    mount_memory(place, "size=64m")
    yield place
    unmount(place)


@pytest.fixture
def bound(tmp_path):
    """Return an empty folder that cannot be renamed and does not look like a disk of its own."""
    real, place = tmp_path / "real", tmp_path / "bound"
    real.mkdir()
    place.mkdir()
    mount(place, "--bind", real)
    yield place
    unmount(place)


@pytest.mark.parametrize("kind", ["volume", "bound"])
def test_an_output_that_is_a_mount_point(checkpoint, converted, request, quick_parts, kind):
    output = request.getfixturevalue(kind)
    convert(checkpoint, output, FP16)
    assert contents(output) == contents(converted)
    assert not list(output.parent.glob(".*")) and not list(output.glob(".*"))
    convert(checkpoint, output, FP16)
    assert len(quick_parts) == 3  # it is there already
    convert(checkpoint, output, INT8)
    assert read_manifest(output)["preset"]["language_model"]["mode"] == "int8"
    assert not list(output.parent.glob(".*")) and not list(output.glob(".*"))


def test_a_mount_point_is_written_on_its_own_disk(checkpoint, volume, quick_parts, monkeypatch):
    """Nothing goes to the disk of the folder above, which may be a container's own small one."""
    made, mkdir = [], Path.mkdir

    def recorded(path, *arguments, **options):
        made.append(path)
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", recorded)
    convert(checkpoint, volume, FP16)
    assert made and all(path.is_relative_to(volume) for path in made)


def test_killed_before_it_took_its_place(checkpoint, converted, tmp_path, quick_parts):
    shutil.copytree(converted, tmp_path / ".made.unfinished")
    convert(checkpoint, tmp_path / "made", FP16)
    assert quick_parts == [] and contents(tmp_path / "made") == contents(converted)


@pytest.fixture
def half_moved(converted, tmp_path) -> Path:
    """Return the output of a process that was killed while it moved the files of a whole one in."""
    output = tmp_path / "made"
    inside = Path(shutil.copytree(converted, output / ".unfinished"))
    for path in sorted(inside.iterdir())[:5]:
        if path.name != MANIFEST:
            path.replace(output / path.name)
    return output


def test_killed_while_it_was_moved_in(checkpoint, converted, half_moved, quick_parts):
    convert(checkpoint, half_moved, FP16)
    assert quick_parts == [] and contents(half_moved) == contents(converted)
    assert [path.name for path in half_moved.parent.iterdir()] == ["made"]


def test_killed_while_it_was_moved_in_and_other_parts_are_written(converted, half_moved):
    with suppress(KeyboardInterrupt), written_aside(half_moved, {"source": {}}):
        raise KeyboardInterrupt
    assert contents(half_moved) == contents(converted)


@pytest.mark.parametrize("moves", [0, 1, 12, 22, 23, 24, 26])
@pytest.mark.parametrize("what", [(Path, "unlink"), (shutil, "move")])
@pytest.mark.parametrize("cleaned", [False, True])
def test_killed_while_another_conversion_is_replaced(
    checkpoint, converted, tmp_path, volume, quick_parts, monkeypatch, what, moves, cleaned
):
    """What the other one alone has is no obstacle to going on, wherever it ended."""
    shutil.copytree(converted, volume, dirs_exist_ok=True)
    manifest = json.loads((volume / MANIFEST).read_text(encoding="utf-8"))
    for name in ("vocab.txt", "openvino_rows_model.bin"):
        write(volume / name, "an earlier model's")
        manifest["files"][name] = {"bytes": 18, "sha256": ""}
    manifest["source"]["name"] = "an earlier model"
    (volume / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    owner, name = what
    calls, function = iter(range(1000)), getattr(owner, name)

    def ending(path, *arguments, **options):
        if path.is_relative_to(volume) and path.name != ".lock" and next(calls) == moves:
            raise KeyboardInterrupt
        return function(path, *arguments, **options)

    with monkeypatch.context() as patches:
        patches.setattr(owner, name, ending)
        with suppress(KeyboardInterrupt):
            convert(checkpoint, volume, FP16)
    if cleaned:
        clean(volume)
        assert read_manifest(volume)  # of one of them, whole
    convert(checkpoint, volume, FP16)
    assert contents(volume) == contents(converted) and (cleaned or len(quick_parts) == 3)


def test_going_on_inside_an_output(checkpoint, converted, tmp_path, volume, quick_parts):
    convert(checkpoint, tmp_path / "whole", FP16)
    inside = shutil.copytree(tmp_path / "whole", volume / ".unfinished")
    manifest = (inside / MANIFEST).rename(inside / UNFINISHED_MANIFEST)
    assert manifest.exists()
    quick_parts.clear()
    (inside / "openvino_language_model.bin").unlink()
    with pytest.raises(OutputError, match="was interrupted and lacks"):
        read_manifest(volume)
    convert(checkpoint, volume, FP16)
    assert quick_parts == ["language model"] and contents(volume) == contents(converted)


def test_files_that_a_manifest_names_elsewhere_are_left_alone(converted, tmp_path):
    (tmp_path / "made").mkdir()
    aside, letter = tmp_path / ".made.unfinished", write(tmp_path / "letter.txt")
    manifest = json.loads((converted / MANIFEST).read_bytes())
    for name in (str(letter), "../letter.txt"):
        manifest["files"][name] = {"bytes": 4, "sha256": ""}
    write(aside / MANIFEST, json.dumps(manifest))
    clean(tmp_path)
    assert letter.read_text() == "mine" and list((tmp_path / "made").iterdir()) == []


IN_ANOTHER_S_FOLDER = """
import os, sys
from pathlib import Path
from helpers.convert.folders import written_aside
output = Path(sys.argv[1])
made_of = {"source": {"name": "x"}, "preset": {}, "versions": {}}
try:
    with written_aside(output, made_of) as work:
        print(work.folder.relative_to(output.parent).as_posix())
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print(sorted(os.listdir(output)))
"""


@pytest.mark.skipif(not shutil.which("setpriv"), reason="no other user can be had here")
def test_my_empty_folder_in_a_folder_that_is_not_mine(tmp_path):
    if os.getuid():
        pytest.skip("only the administrator can become another user")
    output = tmp_path / "mine"
    output.mkdir()
    os.chown(output, 65534, 65534)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(S_IMODE(folder.stat().st_mode) | 0o055)  # /tmp is everybody's and stays so
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable]
    result = subprocess.run(
        [*command, "-c", IN_ANOTHER_S_FOLDER, output], capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines() == ["mine/.unfinished", "[]"], result.stderr


@pytest.fixture
def everybodys(tmp_path):
    """Return a folder in which anybody writes, and a conversion to `theirs` is another user's."""
    folder = tmp_path / "shared"
    write(folder / ".theirs.unfinished" / HOLDER, f"{HOLDS}1")
    (folder / ".theirs.lock").touch(0)
    folder.chmod(0o1777)
    return folder


def test_a_lock_of_another_user_leaves_nothing_of_mine(everybodys, become_ordinary):
    (everybodys / ".other.lock").touch(0)
    become_ordinary()
    with (
        pytest.raises(OutputError, match=r"other cannot be written \(Permission denied\); give an"),
        written_aside(everybodys / "other", {"source": {}, "preset": {}, "versions": {}}),
    ):
        pass
    assert not (everybodys / ".other.unfinished").exists()


def test_what_is_left_of_another_user_does_not_keep_mine(everybodys, become_ordinary, capsys):
    (everybodys / ".unreadable.unfinished").mkdir(0)
    become_ordinary()
    write(everybodys / ".yours.unfinished" / HOLDER, f"{HOLDS}1")
    with pytest.raises(OutputError, match="theirs.unfinished cannot be removed .* as its owner"):
        clean(everybodys)
    assert not (everybodys / ".yours.unfinished").exists()
    write(everybodys / ".yours.unfinished" / HOLDER, f"{HOLDS}1")
    assert main(["clean", str(everybodys)]) == 1  # which tells what is gone, too
    output = capsys.readouterr()
    assert output.out.splitlines() == [str(everybodys / ".yours.unfinished")]
    assert "theirs.unfinished cannot be removed" in output.err
    with pytest.raises(OutputError, match="unreadable.unfinished may not be read by this user"):
        clean(everybodys / "unreadable")


# What is a checkpoint, and what is not


def test_an_output_inside_the_checkpoint(checkpoint, tmp_path, quick_parts):
    source = shutil.copytree(checkpoint, tmp_path / "source")
    convert(source, source / "ov", FP16)
    assert len(quick_parts) == 3
    write(source / "README.md")
    write(source / ".git" / "index")
    os.utime(source / "tokenizer.json", (1, 1))
    os.utime(source / "config.json", (1, 1))
    convert(source, source / "ov", FP16)
    assert len(quick_parts) == 3


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_what_is_read_makes_another_checkpoint(checkpoint, tmp_path, quick_parts, name):
    source = shutil.copytree(checkpoint, tmp_path / "source")
    convert(source, tmp_path / "made", FP16)
    if name == "model.safetensors":
        os.utime(source / name, (1, 1))
    else:
        text = (source / name).read_text(encoding="utf-8")
        (source / name).write_text(f"{text}\n", encoding="utf-8")
    convert(source, tmp_path / "made", FP16)
    assert len(quick_parts) == 6


def test_a_snapshot_of_the_hub_is_called_as_its_model(checkpoint, tmp_path, quick_parts):
    snapshots = tmp_path / "models--OpenGVLab--InternVL2-1B" / "snapshots"
    source = shutil.copytree(checkpoint, snapshots / "7af2d4a5b2b5bd8e5c7d3f0a2f0f8f7c6b5a4d3e")
    convert(source, tmp_path / "made", FP16)
    assert read_manifest(tmp_path / "made")["source"]["name"] == "InternVL2-1B"


def test_a_conversion_is_no_checkpoint(converted, tmp_path):
    with pytest.raises(CheckpointError, match="is a conversion already; give the checkpoint"):
        convert(converted, tmp_path / "made", FP16)


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are text")
def test_a_name_that_is_not_text(checkpoint, tmp_path):
    source = os.fsdecode(os.fsencode(tmp_path) + b"/model\xff")
    shutil.copytree(checkpoint, source)
    with pytest.raises(CheckpointError, match="is not UTF-8; rename it"):
        convert(Path(source), tmp_path / "made", FP16)


@pytest.mark.parametrize("folder", ["/", "nothing"])
def test_a_folder_that_never_was_a_conversion(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="convert CHECKPOINT --output .* makes one"):
        read_manifest(Path(folder))
    assert Place.beside(Path("/")).folder == Path("/.unfinished")


def test_a_lock_is_let_go_of_where_ctrl_c_comes_while_it_is(tmp_path, monkeypatch):
    """A notebook's kernel goes on, and converts into the same folder again."""
    place = Place.made(tmp_path / "models")

    def interrupted(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as error, place.held():
        patch.setattr(type(place.lock), "unlink", interrupted)
    with place.held():
        assert place.lock.exists()
    assert error.tb is not None  # as a notebook keeps it, and with it what its frames hold
    assert not place.lock.exists()
