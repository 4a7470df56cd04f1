"""Devices of made-up computers: each is offered or not, and says why."""

import subprocess
import sys

import pytest

from helpers.errors import DeviceError, SettingsError
from helpers.run.devices import available_devices, check_device, list_devices
from helpers.show.choices import choose_device, device_rows

CPU, ARC, IRIS = {"CPU": "Core i7"}, {"GPU": "Arc A770"}, {"GPU.0": "Iris Xe"}
COMPUTERS = {
    "a CPU": CPU,
    "a CPU and a GPU": CPU | ARC,
    "two GPUs": CPU | IRIS | {"GPU.1": "Arc A770"},
    "an NPU": CPU | ARC | {"NPU": "AI Boost"},
    "no CPU": ARC,
    "an unknown plugin": CPU | {"FPGA": "Made up"},
}
OFFERED = {
    "a CPU": ["AUTO", "CPU"],
    "a CPU and a GPU": ["AUTO", "CPU", "GPU"],
    "two GPUs": ["AUTO", "CPU", "GPU.0", "GPU.1"],
    "an NPU": ["AUTO", "CPU", "GPU"],
    "no CPU": ["AUTO", "GPU"],
    "an unknown plugin": ["AUTO", "CPU", "FPGA"],
}


@pytest.fixture(params=COMPUTERS)
def computer(request):
    return request.param


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv("VLM_DEVICE", raising=False)


def test_what_is_offered(computer):
    devices = list_devices(COMPUTERS[computer])
    assert [device.name for device in devices if device.offered] == OFFERED[computer]


def test_every_entry_has_a_reason_of_one_line(computer):
    devices = list_devices(COMPUTERS[computer])
    assert all(device.reason and "\n" not in device.reason for device in devices)
    names = [device.name for device in devices]
    assert len(set(names)) == len(names)
    kinds = {name.split(".")[0] for name in names}
    assert kinds >= {"AUTO", "CPU", "GPU", "NPU"}


@pytest.mark.parametrize(
    ("computer", "device", "reason"),
    [
        ("a CPU", "AUTO", "OpenVINO decides: here it takes the CPU, as there is no GPU"),
        ("a CPU and a GPU", "AUTO", "OpenVINO decides: here it takes the GPU"),
        ("two GPUs", "AUTO", "OpenVINO decides: here it takes the GPU"),
        ("no CPU", "AUTO", "OpenVINO decides: here it takes the GPU"),
        ("a CPU", "GPU", "OpenVINO sees no GPU here; is its driver installed?"),
        ("no CPU", "CPU", "OpenVINO sees no CPU here"),
        ("two GPUs", "GPU.1", "Arc A770: faster than the CPU"),
        ("a CPU", "NPU", "an NPU needs fixed sizes"),
        ("an NPU", "NPU", "there is one, but an NPU needs fixed sizes"),
        ("an unknown plugin", "FPGA", "Made up: not tested"),
    ],
)
def test_reasons(computer, device, reason):
    (entry,) = [entry for entry in list_devices(COMPUTERS[computer]) if entry.name == device]
    assert entry.reason.startswith(reason)


def test_the_reasons_as_a_table(computer):
    rows = device_rows(list_devices(COMPUTERS[computer]))
    assert [row["device"] for row in rows if row["offered"] == "yes"] == OFFERED[computer]
    assert all(row["why"] for row in rows)


@pytest.mark.parametrize(
    "name", ["CPU", "cpu", "Gpu.1", "auto", "GPU", "AUTO:GPU,CPU", "auto:gpu.1,cpu", "AUTO:-GPU"]
)
def test_a_device_that_is_offered_is_written_as_openvino_does(name):
    assert check_device(name, COMPUTERS["two GPUs"]) == name.upper()


def test_spaces_in_a_device_do_not_matter():
    assert check_device(" auto: GPU.1, CPU ", COMPUTERS["two GPUs"]) == "AUTO:GPU.1,CPU"


def test_what_is_not_offered_may_be_left_out_of_auto():
    assert check_device("AUTO:-NPU", COMPUTERS["an NPU"]) == "AUTO:-NPU"
    with pytest.raises(DeviceError, match="'AUTO:NPU' cannot be used"):
        check_device("AUTO:NPU", COMPUTERS["an NPU"])


@pytest.mark.parametrize(
    ("computer", "device", "message"),
    [
        ("a CPU", "GPU", ".OpenVINO sees no GPU here; .* installed[?][)]; use AUTO, CPU[.]$"),
        ("an NPU", "NPU", "'NPU' cannot be used .there is one, but .*; use AUTO, CPU, GPU"),
        ("two GPUs", "GPU.2", "'GPU.2' cannot be used; use AUTO, CPU, GPU.0, GPU.1"),
        ("a CPU", "toaster", "'toaster' cannot be used; use AUTO, CPU"),
        ("a CPU", "", "'' cannot be used"),
        ("a CPU", None, "None cannot be used; use AUTO, CPU"),
        ("two GPUs", "MULTI:CPU", "'MULTI:CPU' cannot be used; use CPU"),
        ("two GPUs", "AUTO:AUTO", "'AUTO:AUTO' cannot be used"),
        ("a CPU", "AUTO:GPU,CPU", "cannot be used .OpenVINO sees no GPU here; .*; use "),
        ("no CPU", "CPU", "'CPU' cannot be used .OpenVINO sees no CPU here; .*; use AUTO, GPU"),
    ],
)
def test_a_device_that_cannot_be_used(computer, device, message):
    with pytest.raises(DeviceError, match=message):
        check_device(device, COMPUTERS[computer])


def test_this_computer_has_a_cpu():
    assert available_devices()["CPU"]
    assert check_device("CPU") == "CPU"


# The widget


def test_the_first_choice():
    assert choose_device(COMPUTERS["two GPUs"]).value == "CPU"
    assert choose_device(COMPUTERS["no CPU"]).value == "AUTO"


@pytest.mark.parametrize("name", ["GPU", "gpu"])
def test_the_environment_chooses(monkeypatch, name):
    monkeypatch.setenv("VLM_DEVICE", name)
    assert choose_device(COMPUTERS["a CPU and a GPU"]).value == "GPU"


@pytest.mark.parametrize("name", ["GPU", "toaster"])
def test_the_environment_asks_for_what_is_not_there(monkeypatch, name):
    monkeypatch.setenv("VLM_DEVICE", name)
    with pytest.raises(SettingsError, match=f"VLM_DEVICE asks for '{name}'; this offers AUTO, CPU"):
        choose_device(COMPUTERS["a CPU"])


def test_what_cannot_be_used_cannot_be_chosen(computer):
    choice = choose_device(COMPUTERS[computer])
    assert [value for _, value in choice.dropdown.options] == OFFERED[computer]


def test_the_line_follows_the_choice():
    choice = choose_device(COMPUTERS["a CPU and a GPU"])
    choice.dropdown.value = "GPU"
    assert choice.line.startswith("Device: GPU (Arc A770: faster than the CPU")
    assert choice.text.value == choice.line


def test_the_line_is_the_plain_text_where_no_widget_is_shown(monkeypatch):
    displayed = []
    monkeypatch.setattr(
        "helpers.show.widgets.display", lambda data, raw: displayed.append((data, raw))
    )
    choice = choose_device(COMPUTERS["a CPU"])
    choice._ipython_display_()
    ((bundle, raw),) = displayed
    assert raw and bundle["text/plain"] == choice.line
    assert choice.line.startswith("Device: CPU (Core i7: always there")
    assert "application/vnd.jupyter.widget-view+json" in bundle


INTERRUPTED = """
import gc, os, signal, sys, time
import openvino as ov
from helpers.graphs.compression import compress
from helpers.graphs.part_names import FILES, LANGUAGE_MODEL
from helpers.graphs.presets import Weights
from helpers.run.pipeline import VisionLanguagePipeline

folder = sys.argv[1]
file = f"{folder}/{FILES[LANGUAGE_MODEL]}"
WORK
gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""
WORK = {
    "two pipelines, after compression": """
for mode in ("int8", "int4-asym"):
    compress(ov.Core().read_model(file), Weights(mode, 32))
first, second = VisionLanguagePipeline(folder), VisionLanguagePipeline(folder)
del first, second
""",
    "openvino's compile_model": """
models = [ov.compile_model(file, "CPU") for _ in range(3)]
while models:
    del models[0]
""",
}


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("work", WORK)
def test_an_interrupt_after_models_are_gone(converted, work):
    program = INTERRUPTED.replace("WORK", WORK[work])
    command = [sys.executable, "-c", program, str(converted)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (0, "interrupted\n"), process.stderr


@pytest.mark.parametrize(("name", "value"), [("GPU", "GPU.0"), ("auto:gpu,cpu", "AUTO:GPU,CPU")])
def test_a_notebook_s_device_where_there_are_two_gpus(monkeypatch, name, value):
    monkeypatch.setenv("VLM_DEVICE", name)
    assert choose_device(COMPUTERS["two GPUs"]).value == value


def test_the_only_gpu_as_the_first_of_several():
    assert check_device("GPU.0", COMPUTERS["a CPU and a GPU"]) == "GPU.0"
