"""Programs of a test, in processes that are forked from one that has imported what takes long.

PyTorch, transformers, NNCF and Gradio take longer to import than most programs take to run. A
program has them from its beginning, and nothing of `helpers`; it is a session of its own, as in a
terminal of its own, reads and writes files, and ends as all programs do.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

IMPORTED = ("torch", "transformers.modeling_utils", "openvino", "nncf", "gradio")
# The hub's library, which transformers imports, reads the environment when it is imported itself.
WITHOUT_HUB = ("torch._dynamo", "torch.distributed.tensor", "scipy.optimize", "openvino", "nncf")
LIMIT = 300  # seconds that a program may take

# Each line of its input is a program, which it forks; its exit code goes into a file.
FORKS = """
import gc, importlib, json, os, runpy, select, signal, sys
gc.disable()
for name in sys.argv[1:]:
    importlib.import_module(name)
gc.freeze()  # or each program would look for garbage among what it only inherits
gc.enable()
places = {}
while True:
    for child in list(places):
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            path = os.path.join(places.pop(child), "code")
            with open(path + ".new", "w") as file:
                print(os.waitstatus_to_exitcode(status), file=file)
            os.replace(path + ".new", path)
    if not select.select([sys.stdin], [], [], 0.02 if places else None)[0]:
        continue
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    program = json.loads(line)
    if not (child := os.fork()):
        os.setsid()
        for number, name in enumerate(("in", "out", "err")):
            flags = os.O_RDONLY if not number else os.O_WRONLY | os.O_CREAT
            os.dup2(os.open(os.path.join(program["place"], name), flags), number)
        break
    places[child] = program["place"]
    print(child, flush=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a run by `nohup` ignores
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and this one
os.environ.clear()
os.environ.update(program["environment"])
sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
sys.stdin, sys.argv[1:] = open(0), program["arguments"][2:]
option, what = program["arguments"][:2]
if option == "-m":
    runpy.run_module(what, run_name="__main__", alter_sys=True)
else:
    exec(what, {"__name__": "__main__"})
"""


@dataclass(frozen=True)
class Program:
    """A program that runs, or has ended: its process's `number`, and the files of its `place`."""

    number: int
    place: Path
    fork: "Fork"

    def wait(self, seconds: float = LIMIT) -> int:
        """Return the exit code, negative for a signal; raise TimeoutError if it still runs."""
        end = time.monotonic() + seconds
        while (code := self.fork.exit_code(self)) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"it runs after {seconds} seconds")
            time.sleep(0.01)
        return code

    def kill(self) -> None:
        """Send what no program can handle."""
        psutil.Process(self.number).kill()

    def end(self) -> None:
        """Kill it if it still runs."""
        if self.fork.exit_code(self) is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.kill()
            self.wait()

    def text(self, name: str) -> str:
        """Return what is written so far: to `out` or to `err`."""
        return (self.place / name).read_text(encoding="utf-8")

    def wait_for(self, words: str, name: str) -> None:
        """Wait until some words are written to `out` or to `err`, or the program has ended."""
        end = time.monotonic() + LIMIT
        while words not in self.text(name) or not self.text(name):
            if not psutil.pid_exists(self.number):
                return
            assert time.monotonic() < end, self.text("err")
            time.sleep(0.02)


class Fork:
    """A process that forks programs."""

    def __init__(self, imported: Sequence[str] = IMPORTED) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS, *imported],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # so that `select` knows of every line
        )

    def start(
        self, *arguments: object, environment: Mapping[str, str] = os.environ, stdin: str = ""
    ) -> Program:
        """Start `-m module ...` or `-c text ...`."""
        place = Path(tempfile.mkdtemp(dir=self.folder.name))
        (place / "in").write_text(stdin, encoding="utf-8")
        for name in ("out", "err"):
            (place / name).touch()
        words = [str(argument) for argument in arguments]
        return Program(self.begin(words, dict(environment), place), place, self)

    def run(
        self, *arguments: object, environment: Mapping[str, str] = os.environ
    ) -> subprocess.CompletedProcess:
        """Return how a program ended, as `subprocess.run` does with captured text."""
        program = self.start(*arguments, environment=environment)
        code = program.wait()
        output, errors = program.text("out"), program.text("err")
        return subprocess.CompletedProcess(arguments, code, output, errors)

    def begin(self, arguments: list[str], environment: dict[str, str], place: Path) -> int:
        """Start a program and return its process's number."""
        program = {"arguments": arguments, "environment": environment, "place": str(place)}
        with self.lock:
            self.process.stdin.write(json.dumps(program).encode() + b"\n")
            if not select.select([self.process.stdout], [], [], LIMIT)[0]:
                raise TimeoutError(f"no program has begun within {LIMIT} seconds")
            return int(self.process.stdout.readline())

    def exit_code(self, program: Program) -> int | None:
        """Return the exit code of a program; None while it runs."""
        path = program.place / "code"
        if path.exists():
            return int(path.read_text())
        assert self.process.poll() is None, "the process that forks has ended"
        return None

    def close(self) -> None:
        """End the process, and programs that an error left."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)
        self.folder.cleanup()


class Fresh(Fork):
    """The same where the system does not fork, as Windows: each program imports what it needs."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.programs: dict[int, subprocess.Popen] = {}

    def begin(self, arguments: list[str], environment: dict[str, str], place: Path) -> int:
        """Start a program and return its process's number."""
        with (
            (place / "in").open() as stdin,
            (place / "out").open("w") as stdout,
            (place / "err").open("w") as stderr,
        ):
            streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
            command = [sys.executable, *arguments]
            process = subprocess.Popen(command, env=environment, **streams)
        self.programs[process.pid] = process
        return process.pid

    def exit_code(self, program: Program) -> int | None:
        """Return the exit code of a program; None while it runs."""
        return self.programs[program.number].poll()

    def close(self) -> None:
        """End programs that an error left."""
        for process in self.programs.values():
            process.kill()
            process.wait(60)
        self.folder.cleanup()


def new_fork(imported: Sequence[str] = IMPORTED) -> Fork:
    """Return what starts programs on this system."""
    return Fork(imported) if hasattr(os, "fork") else Fresh()


@pytest.fixture(scope="session")
def fork() -> Iterator[Fork]:
    """Return what starts programs without the time that imports take."""
    with contextlib.closing(new_fork()) as fork:
        yield fork


@pytest.fixture(scope="session")
def fork_without_hub() -> Iterator[Fork]:
    """Return the same for programs that download."""
    with contextlib.closing(new_fork(WITHOUT_HUB)) as fork:
        yield fork


def output_of(*command: object, **options: object) -> str:
    """Return what a command prints that ends well, with `options` of `subprocess.run`."""
    process = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=800,
        **options,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout
