"""Execute a notebook for several users at once: `python -m helpers.workshop.classroom NOTEBOOK`.

Each user has a copy of the notebook's folder and a kernel. What is measured is a kernel's memory;
JupyterLab's own comes on top. What a kernel prints is compared with the notebook as it is kept.

What this module does not know: people, who do not run all cells at one moment.
"""

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import psutil

from helpers.errors import UserError
from helpers.measure.benchmark import computer
from helpers.measure.figures import Computer, from_json
from helpers.resources import anonymous_memory, in_words
from helpers.sources.checkpoints import read_json
from helpers.workshop.notebooks import FOLDER, text_of, write_text

FIGURES = FOLDER / "classroom.json"
EVERY = 0.5  # seconds between two looks at the memory
NOT_COMPARED = "# NBVAL_IGNORE_OUTPUT"
PORT = re.compile(r"(127\.0\.0\.1|localhost):\d+")


class ClassroomError(UserError):
    """A user's notebook did not run to its end, or was told what is not its own."""


@dataclass
class Seat:
    """One user: a folder, the program that executes the notebook, and its kernel's memory.

    `peak` is the most anonymous memory so far, in bytes; `seconds` is when the program ended.
    """

    folder: Path
    program: subprocess.Popen[bytes]
    peak: int = 0
    seconds: float = 0.0

    def look(self) -> int:
        """Note the kernel's memory; return its share of what is in memory (PSS), in bytes."""
        with suppress(psutil.NoSuchProcess):
            kernels = psutil.Process(self.program.pid).children(recursive=True)
            self.peak = max(self.peak, sum(anonymous_memory(kernel.pid) for kernel in kernels))
            return sum(_share(kernel) for kernel in kernels)
        return 0


@dataclass(frozen=True)
class Classroom:
    """What users at once took on a computer: bytes of memory and seconds, an entry a user.

    `together` is the most that all kernels had in memory at one moment, in bytes, pages that they
    share counted once; None where the system does not tell (only Linux does).
    """

    notebook: str
    computer: Computer
    peaks: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    together: int | None = None

    def __str__(self) -> str:
        peaks, seconds = sorted(self.peaks), sorted(self.seconds)
        together = f", {in_words(self.together)} together" if self.together else ""
        return (
            f"{len(peaks)} users at once executed {self.notebook}: {in_words(peaks[0])} to "
            f"{in_words(peaks[-1])} of memory for each kernel{together}; all had ended after "
            f"{seconds[-1]:.0f} seconds, and each saw its own results and no other's."
        )


def _share(process: psutil.Process) -> int:
    """Return a process's proportional share (PSS) in bytes; 0 where it is not known."""
    with suppress(psutil.Error):
        return int(getattr(process.memory_full_info(), "pss", 0))
    return 0


def _take_seat(notebook: Path, folder: Path) -> Seat:
    """Begin to execute a copy of a notebook in `folder`."""
    folder.mkdir()
    shutil.copy(notebook, folder)
    shutil.copytree(notebook.parent / "images", folder / "images")
    command = [sys.executable, "-m", "helpers.workshop.notebooks", notebook.name, "--in-place"]
    with (folder / "log.txt").open("wb") as log:
        program = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    return Seat(folder, program)


def different_cells(notebook: Path, copy: Path) -> list[str]:
    """Return the first lines of the cells that print something else than in the notebook.

    Cells whose outputs the tests do not compare are left out, and so is the port of a page.
    """
    cells = zip(_code_cells(notebook), _code_cells(copy), strict=True)
    return [
        expected.source.splitlines()[0]
        for expected, cell in cells
        if NOT_COMPARED not in expected.source and _text(expected) != _text(cell)
    ]


def _code_cells(path: Path) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _text(cell: nbformat.NotebookNode) -> str:
    return PORT.sub(r"\1", "".join(map(text_of, cell.outputs)))


def hold(notebook: Path, users: int) -> Classroom:
    """Execute a notebook for so many users at once, and return what that took.

    Raises `ClassroomError` where a user's notebook fails, or prints something else than it should.
    """
    together = 0
    with tempfile.TemporaryDirectory() as place:
        begin = time.monotonic()
        seats = [_take_seat(notebook, Path(place) / f"user-{n}") for n in range(1, users + 1)]
        try:
            while running := [seat for seat in seats if seat.program.poll() is None]:
                together = max(together, sum(seat.look() for seat in running))
                for seat in running:
                    seat.seconds = time.monotonic() - begin
                _show(len(running), users, together)
                time.sleep(EVERY)
        finally:
            for seat in seats:
                seat.program.terminate()
                seat.program.wait()
        for seat in seats:
            _check(seat, notebook)
    peaks, seconds = [seat.peak for seat in seats], [round(seat.seconds, 1) for seat in seats]
    return Classroom(notebook.stem, computer(), peaks, seconds, together or None)


def _check(seat: Seat, notebook: Path) -> None:
    """Raise `ClassroomError` unless a user's notebook ran to its end and is as it should be."""
    name = seat.folder.name
    if seat.program.returncode:
        log = (seat.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip()
        raise ClassroomError(f"The notebook of {name} failed: {log[-500:]}")
    if cells := different_cells(notebook, seat.folder / notebook.name):
        raise ClassroomError(f"{name} saw other results than the notebook has, in: {cells}")


def _show(running: int, users: int, together: int) -> None:
    """Say on the terminal's last line how far all are."""
    if sys.stderr.isatty():
        line = f"\r{running} of {users} are running, {in_words(together)} at most together  "
        print(line, end="", file=sys.stderr, flush=True)


def sentence() -> str:
    """Return what was measured last, as a sentence for a page."""
    if not FIGURES.exists():
        return "Not measured yet: `make classroom USERS=10`."
    classroom = from_json(Classroom, read_json(FIGURES))
    return f"{classroom}\nMeasured on {classroom.computer}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a class, print a sentence and leave the figures; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.workshop.classroom", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--users", type=int, default=10, help="default: 10")
    parser.add_argument("--output", type=Path, help="a file for the figures, as JSON")
    options = parser.parse_args(arguments)
    try:
        classroom = hold(options.notebook, options.users)
        if options.output:
            write_text(options.output, json.dumps(dataclasses.asdict(classroom), indent=1) + "\n")
    except UserError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    print(f"\n{classroom}\nMeasured on {classroom.computer}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
