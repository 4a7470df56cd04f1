"""Ctrl-C at any moment of any command: exit code 130, no core dump, nothing left running."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest

from helpers.__main__ import main
from helpers.ends import SIGNALS
from helpers.serve.controls import SAMPLING
from tests.programs import Fork
from tests.servers import random_port
from tests.tiny import picture

pytestmark = [pytest.mark.slow, pytest.mark.independent, pytest.mark.usefixtures("interruptible")]

# What a command imports, so that Ctrl-C comes where it works; what it does before is below.
IMPORTED = ("gradio", "helpers.commands", "helpers.measure.evaluation", "helpers.run.pipeline")
PROGRAM = "import sys; from helpers.__main__ import program; sys.exit(program())"
# Before the first module of ours, Ctrl-C is Python's own affair; so Python says what it imports.
FRESH = [sys.executable, "-X", "importtime", "-m", "helpers"]
# With tokens nearly alike an answer seldom ends, so that there is something to interrupt.
ENDLESS = ["--temperature", "5", "--top-k", "0", "--top-p", "1", "--max-new-tokens", "1500"]
QUESTIONS = "How many shapes are there?\n/clear\nWhat is in the picture?\n/nothing\nWhat?\n"
LIMIT = 60  # seconds that a process may take to end


class Ending(NamedTuple):
    """How a command ended: its exit code, its last messages, and what it left running."""

    command: str
    code: int
    errors: str
    left: list[int]


def arguments_of(command: str, model: SimpleNamespace, seed: int) -> list[str]:
    """Return the command line that is interrupted."""
    folder = str(model.folder)
    about = [folder, "--image", str(model.photo), "--seed", str(seed), *ENDLESS]
    return {
        "ask": ["ask", *about, "--question", "Describe the picture."],
        "chat": ["chat", *about],
        "evaluate": ["evaluate", folder, "--questions", "400"],
        "page": ["demo", folder],
    }[command]


def interrupted(fork: Fork, command: str, arguments: list[str], seed: int) -> Ending:
    """Run a command, send Ctrl-C at a random moment, and return how it ends.

    Half of the moments are anywhere, the others after the first word of output, where a command
    works on what it was asked.
    """
    generator = random.Random(seed)
    stdin = QUESTIONS if command == "chat" else ""
    program = fork.start("-c", PROGRAM, *arguments, stdin=stdin)
    if generator.random() < 0.5:
        time.sleep(0.05 + generator.uniform(0, 2))
    else:
        program.wait_for("", "err" if command == "evaluate" else "out")
        words = program.text("out").split()
        if command == "page" and words and generator.random() < 0.7:
            ask_page(words[0])
        time.sleep(generator.uniform(0, 0.8))
    send_control_c(program.number, fork.process.pid)
    code = program.wait()
    return Ending(command, code, program.text("err"), members(program.number))


def send_control_c(child: int, parent: int) -> None:
    """Interrupt a session of our own; a number that is another's, or everybody's, gets nothing."""
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        process = psutil.Process(child)
        assert process.ppid() == parent and child > 1  # to group 1 would mean to all there are
        if process.status() == psutil.STATUS_ZOMBIE:
            return
        while os.getsid(child) != child:  # its first step
            time.sleep(0.001)
        os.killpg(child, signal.SIGINT)


def ask_page(address: str) -> None:
    """Ask a page something, and do not wait for the answer."""
    interface = f"{address.rstrip('/')}/gradio_api"
    with urllib.request.urlopen(f"{interface}/info", timeout=30) as response:
        parameters = json.load(response)["named_endpoints"]["/ask"]["parameters"]
    # Sampled so widely that the answer goes on; what else a page has stays as it stands there.
    sampling = [control.label for control in SAMPLING]
    settings = dict(zip(("Maximum new tokens", *sampling), (512, True, 2.0, 1.0), strict=True))
    assert settings.keys() <= {entry["label"] for entry in parameters}
    values = [settings.get(entry["label"], entry["parameter_default"]) for entry in parameters]
    request = urllib.request.Request(
        f"{interface}/call/ask",
        json.dumps({"data": ["Describe the picture.", *values[1:]]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert "event_id" in json.load(response)


def members(session: int) -> list[int]:
    """Return the processes of a session that run still."""
    numbers = []
    for number in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(number) == session:
                numbers.append(number)
    return numbers


def check(ending: Ending) -> None:
    assert not ending.left and "terminate called" not in ending.errors, ending
    assert ending.code in (0, 130), ending
    assert "Traceback" not in ending.errors, ending
    if ending.code == 130:
        assert ending.errors.endswith("stopped\n"), ending  # behind a prompt in a chat


@pytest.fixture
def model(bundled_folder, tmp_path):
    photo = tmp_path / "picture.png"
    picture().save(photo)
    return SimpleNamespace(folder=bundled_folder("internvl2", "int8"), photo=photo)


def test_control_c_at_any_moment(model, repetitions):
    names = ("ask", "chat", "evaluate", "page")
    number, endings = repetitions("Ctrl-C", 8, 200), Counter()
    workers = 1 if number < 100 else 2

    def run(seed: int) -> Ending:
        command = names[seed % len(names)]
        return interrupted(fork, command, arguments_of(command, model, seed), seed)

    with contextlib.closing(Fork(IMPORTED)) as fork, ThreadPoolExecutor(workers) as pool:
        for ending in pool.map(run, range(number)):
            check(ending)
            endings[ending.command, ending.code] += 1
    print(sorted(endings.items()))
    assert sum(count for (_, code), count in endings.items() if code == 130) >= number / 3


@pytest.mark.parametrize("at_once", [True, False])
def test_control_c_while_packages_are_imported(model, repetitions, at_once):
    arguments = arguments_of("ask", model, 0)
    for seed in range(repetitions("Ctrl-C while packages are imported", 1, 12)):
        process = subprocess.Popen(
            [*FRESH, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        with process:
            imports = iter(process.stderr.readline, "")
            assert any(line.split()[-1] == "helpers.interrupts" for line in imports)
            time.sleep(0 if at_once else random.Random(seed).uniform(0, 3))
            send_control_c(process.pid, os.getpid())
            _, errors = process.communicate(timeout=LIMIT)
        check(Ending("ask", process.returncode, errors, members(process.pid)))


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), ValueError("bad")])
def test_control_c_of_which_a_package_makes_another_error(monkeypatch, capsys, cause):
    """Modules in C++, OpenVINO's among them, raise ImportError from what came meanwhile."""

    def parse(arguments):
        raise ImportError("initialization failed") from cause

    monkeypatch.setattr("helpers.__main__.parse", parse)
    if isinstance(cause, ValueError):
        with pytest.raises(ImportError, match="initialization failed"):
            main([])
        return
    assert main([]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_control_c_in_a_program_that_is_not_ours(fork):
    result = fork.run("-c", "import helpers; raise KeyboardInterrupt")
    assert "Traceback" in result.stderr and result.returncode == -signal.SIGINT


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["evaluate", "chat", "benchmark", "page", "serve"])
def test_a_command_that_is_told_to_end_leaves_nothing(fork, model, tmp_path, command, number):
    """Only the command itself is told, as by `kill`: neither its processes nor its terminal."""
    place = tmp_path / "temporary"
    place.mkdir()
    others = {
        "benchmark": ["benchmark", "internvl2"],
        "serve": ["serve", str(model.folder), "--port", str(random_port())],
    }
    words = others[command] if command in others else arguments_of(command, model, 1)
    environment = os.environ | {"TMPDIR": str(place)}
    stdin = QUESTIONS if command == "chat" else ""
    program = fork.start("-m", "helpers", *words, environment=environment, stdin=stdin)
    if command == "benchmark":
        wait_for_task(fork, program)
        assert list(place.glob("tmp*"))
    elif command == "serve":
        program.wait_for("its page is there", "err")
    else:
        program.wait_for("", "err" if command == "evaluate" else "out")
    os.kill(program.number, number)
    code = program.wait(LIMIT)
    assert code == (0 if command in ("page", "serve") else 128 + number)
    assert not members(program.number) and "Traceback" not in program.text("err")
    left = {path.name for path in place.iterdir()}
    assert not {name for name in left if not name.startswith("torchinductor_")}
    if code:
        assert program.text("err").endswith("stopped\n")


def wait_for_task(fork, program):
    """Wait until a benchmark has started a process of its own."""
    while len(members(program.number)) < 2:
        assert fork.exit_code(program) is None, program.text("err")
        time.sleep(0.01)


def test_what_a_killed_benchmark_measures_ends_too(fork, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    program = fork.start("-m", "helpers", "benchmark", "internvl2", environment=environment)
    wait_for_task(fork, program)
    os.kill(program.number, signal.SIGKILL)
    assert program.wait(LIMIT) == -signal.SIGKILL
    end = time.monotonic() + LIMIT
    while members(program.number):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="it has no terminals of this kind")
@pytest.mark.parametrize(
    ("command", "words", "code"),
    [("convert", "image encoder: converting", 128 + 1), ("serve", "its page is there", 0)],
)
def test_a_terminal_that_is_closed_ends_what_it_shows(model, tmp_path, command, words, code):
    """Nothing can be told to it any more, and the system sends SIGHUP."""
    import fcntl
    import pty
    import termios

    arguments = {
        "convert": ["internvl2", "--output", str(tmp_path / "made")],
        "serve": [str(model.folder), "--port", str(random_port())],
    }
    terminal, inner = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "helpers", command, *arguments[command]],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(inner)
    output = b""
    while words.encode() not in output:
        output += os.read(terminal, 1000)
    os.close(terminal)
    assert program.wait(LIMIT) == code


LOST = """
import sys, time
from helpers import __main__
class Cleaned:
    def __del__(self):
        raise KeyboardInterrupt
def work():
    Cleaned()
    time.sleep(30)
__main__.parse = lambda arguments: __import__("types").SimpleNamespace(run=lambda options: work())
sys.exit(__main__.program())
"""


def test_control_c_while_an_object_is_cleaned_up():
    """Python only prints what is raised there, so that the program would go on, or wait on."""
    begin = time.monotonic()
    result = subprocess.run([sys.executable, "-c", LOST], capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (130, b"stopped\n")
    assert time.monotonic() - begin < 25  # of the 30 seconds that the program would wait
