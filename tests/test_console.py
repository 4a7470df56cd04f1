"""What the command line writes and where: any encoding, files that cannot be written, options."""

import argparse
import errno
import getpass
import json
import os
import shutil
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from helpers.__main__ import main
from helpers.command_output import Result, check_output, report, write_output
from helpers.errors import OutputError, ResourcesError, SettingsError, ran_out
from helpers.graphs.presets import find_preset
from helpers.models.families import find_checkpoint, on_meta_device
from helpers.run.pipeline import VisionLanguagePipeline
from tests.hub_server import Hub


@pytest.fixture
def chinese(converted, tmp_path):
    """Return a conversion of a checkpoint whose name few encodings have."""
    folder = shutil.copytree(converted, tmp_path / "made")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["source"]["name"] = "模型 😀"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "gbk", "utf-8"])
def test_a_console_that_lacks_a_character(chinese, encoding):
    variables = {"PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "helpers", "info", chinese]
    result = subprocess.run(command, env=os.environ | variables, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    name = "模型 😀".encode(encoding, "backslashreplace")
    assert result.stdout.startswith(b"made of " + name + b" with openvino")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file that is always full")  # noqa: PTH110
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written(converted, unbuffered):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        result = subprocess.run(
            [sys.executable, "-m", "helpers", "info", converted],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert result.stderr == "error: The output cannot be written (No space left on device).\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps a folder that a program is in")
def test_a_working_folder_that_is_gone_is_told(tmp_path, monkeypatch, capsys):
    """PyTorch and Python's own paths end a program there, each in another way."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert main(["batch", "model", "--input", "pictures", "--output", "answers.jsonl"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: The folder that this program was started in is not there")
    assert error.count("\n") == 1


def run_program(command, **variables):
    """Return the exit code of a program and what it says on the error stream."""
    variables = os.environ | variables
    variables.pop("TORCHINDUCTOR_CACHE_DIR", None)  # which torch has set in this process
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    return result.returncode, result.stderr


def test_a_file_of_another_user_where_torch_keeps_a_folder_is_told(converted, tmp_path):
    path = tmp_path / f"torchinductor_{getpass.getuser()}"
    path.touch()
    command = [sys.executable, "-m", "helpers", "ask", converted, "--question", "What?"]
    assert run_program(command, TMPDIR=str(tmp_path)) == (
        1,
        f"error: {path} cannot be used (File exists); set TMPDIR to a folder of your own.\n",
    )


def test_a_computer_without_a_temporary_folder_is_told(converted, tmp_path):
    """As a container is that is read-only, and a full disk."""
    script = 'mount -o remount,bind,ro / && ! touch "$1" && shift && exec "$@"'
    read_only = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path / "trial")]
    can_unshare = shutil.which("unshare")
    if not can_unshare or subprocess.run([*read_only, "true"], capture_output=True).returncode:
        pytest.skip("no disk can be made read-only here")
    command = [*read_only, sys.executable, "-m", "helpers", "ask", converted, "--question", "What?"]
    code, error = run_program(command, TMPDIR="")
    assert code == 1
    assert error.splitlines()[1:] == [
        "error: No temporary folder can be written; make room on the disk, or set TMPDIR to a "
        "folder that can."
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="accounts have numbers elsewhere")
def test_an_account_without_a_home_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("HOME")
    code = (
        "import pwd, sys\n"
        "pwd.getpwuid = {}.__getitem__  # as of a number that no account has\n"
        "from helpers.__main__ import program\n"
        "sys.exit(program())"
    )
    command = [sys.executable, "-c", code, "convert", "internvl2", "--output", tmp_path / "made"]
    sentence = (
        "error: This account has no home directory, which libraries ask for; set HOME to one.\n"
    )
    assert run_program(command) == (1, sentence)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        OSError(errno.ENOMEM, "what another system says"),
        BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),  # of a process that cannot begin
        RuntimeError("Exception from src/core.cpp:1:\nException from src/x.cpp:2:\nstd::bad_alloc"),
        RuntimeError("can't start new thread"),
    ],
)
def test_memory_that_runs_out_is_told(converted, monkeypatch, capsys, error):
    monkeypatch.setattr("helpers.convert.folders.verify", Mock(side_effect=error))
    assert main(["verify", str(converted)]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: Memory or threads ran out ({type(error).__name__}")
    assert message.endswith("), or take a smaller model.\n") and message.count("\n") == 1


def test_an_import_that_ctrl_c_ended_is_ctrl_c(converted, monkeypatch, capsys):
    """As OpenVINO has it: the part that is compiled tells its cause, and the package does not."""

    def verify(folder, **options):
        try:
            raise ImportError("initialization failed") from KeyboardInterrupt()
        except ImportError as error:
            raise ImportError(f"The frontend is not available. {error}")  # noqa: B904

    monkeypatch.setattr("helpers.convert.folders.verify", verify)
    assert main(["verify", str(converted)]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("name", ["read_model", "compile_model"])
def test_memory_that_runs_out_while_a_model_is_loaded_is_told(converted, monkeypatch, name):
    """Which says nothing about the file, nor about the device."""
    error = RuntimeError("Exception from src/core.cpp:1:\nstd::bad_alloc\n")
    monkeypatch.setattr(f"openvino.Core.{name}", Mock(side_effect=error))
    with pytest.raises(ResourcesError, match=r"ran out \(RuntimeError: std::bad_alloc\); end "):
        VisionLanguagePipeline(converted)


READING = """
import resource, sys
import psutil, torch
from PIL import Image
from helpers.errors import UserError
from helpers.inputs.images import open_picture
from helpers.sources.tensors import open_tensors

Image.init()
size = psutil.Process().memory_info().vms + 2**24
resource.setrlimit(resource.RLIMIT_AS, (size, size))
for read in (open_tensors, lambda folder: open_picture(folder + "/picture.png")):
    try:
        read(sys.argv[1])
    except UserError as error:
        print(type(error).__name__)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_files_are_not_damaged_where_memory_runs_out(tmp_path, fork):
    save_file({"weight": torch.zeros(2**24)}, tmp_path / "model.safetensors")
    Image.new("RGB", (4000, 4000)).save(tmp_path / "picture.png")
    result = fork.run("-c", READING, tmp_path)
    assert (result.stdout, result.stderr) == ("ResourcesError\n" * 2, "")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "not enough memory.png"),
        BlockingIOError(errno.EAGAIN, "write could not complete without blocking", 0),
        RuntimeError("Exception from src/core.cpp:1:\nthe model has no inputs\n"),
    ],
)
def test_other_errors_say_nothing_of_memory(error):
    assert not ran_out(error)


def test_a_file_that_cannot_be_looked_at_is_told(capsys):
    """Its name is too long; the system also says so of a folder that is closed."""
    assert main(["prove", "internvl2", "--output", "x" * 300]) == 1
    error = capsys.readouterr().err
    assert (
        error == f"error: {'x' * 300} cannot be written (File name too long); give another file.\n"
    )
    assert main(["benchmark", "x" * 300]) == 1
    assert capsys.readouterr().err.startswith("error: There is no model 'xxx")


def test_a_file_in_a_closed_folder_is_told(closed_folder):
    with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\); give another"):
        check_output(closed_folder / "page.html")


def test_a_full_disk_is_told_before_the_work(full_disk):
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"):
        check_output(full_disk / "page.html")
    assert [path.name for path in full_disk.iterdir()] == ["filling"]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_disk_that_filled_during_the_work_loses_no_result(full_disk, capsys, as_json):
    path = full_disk / "page.html"
    result, options = Result({"right": 7}, ["7 are right"]), argparse.Namespace(json=as_json)
    with pytest.raises(OutputError, match=r"page.html cannot be written \(No space left"):
        write_output(path, "<p>" * 100_000, result, options)
    assert capsys.readouterr().out == ('{"right": 7}\n' if as_json else "7 are right\n")
    assert [path.name for path in full_disk.iterdir()] == ["filling"]


def test_a_full_disk_keeps_what_a_file_held_before(full_disk):
    (full_disk / "filling").unlink()
    path = full_disk / "page.html"
    path.write_text("the page of last week")
    with pytest.raises(OutputError, match="No space left"):
        write_output(path, "<p>" * 100_000, Result({}), argparse.Namespace(json=True))
    assert path.read_text() == "the page of last week"
    assert list(full_disk.iterdir()) == [path]


def test_a_benchmark_s_file_is_tried_before_the_work(tmp_path, capsys):
    place = tmp_path / "results" / "bench.json"
    assert main(["benchmark", "internvl2-1b", "--output", str(place)]) == 1
    error = capsys.readouterr().err
    assert (
        error
        == f"error: {place} cannot be written (No such file or directory); give another file.\n"
    )


@pytest.mark.parametrize("changes", [{"group_size": 64}, {"ratio": 0.8}])
@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_settings_of_4_bits_where_there_are_none(name, changes):
    with pytest.raises(SettingsError, match="Only weights in 4 bits have a (group size|ratio)"):
        find_preset(name, **changes)


def test_an_original_s_name_is_a_download_of_it(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "helpers.models.families.download", lambda *names, check: calls.append((*names, check))
    )
    find_checkpoint("internvl2_1b")
    assert calls == [("OpenGVLab/InternVL2-1B", on_meta_device)]


@pytest.mark.slow
def test_json_alone_on_stdout_where_something_is_downloaded(fork_without_hub, checkpoint, tmp_path):
    hub = Hub({"someone/internvl2": checkpoint})
    with hub.served() as endpoint:
        variables = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint}
        variables |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        options = ("--json", "--precision", "fp16", "--output", tmp_path / "made")
        command = ("-m", "helpers", "convert", "someone/internvl2", *options)
        result = fork_without_hub.run(*command, environment=os.environ | variables)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["folder"] == str(tmp_path / "made")
    assert "to download" in result.stderr


def test_work_goes_on_where_the_error_stream_is_closed(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        for line in ("a step", "the next", "the last"):
            report(line)
