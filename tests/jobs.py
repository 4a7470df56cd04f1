"""Jobs of many rows in tests: their pictures, their command line, and what they write."""

import contextlib
import json
import random
import time
from pathlib import Path

import psutil

from helpers.shapes.questions import draw_questions
from tests.programs import Fork, Program

QUESTIONS = ("What is in the picture?", "How many shapes are there?")


def draw_pictures(place: Path, number: int) -> Path:
    """Fill a folder with drawn pictures, one of them twice, and two files that are none."""
    (place / "deeper").mkdir(parents=True)
    for name, (picture, _) in enumerate(draw_questions(number, seed=9)):
        picture.save(place / f"{name:02}.png")
    (place / "deeper" / "again.png").write_bytes((place / "03.png").read_bytes())
    (place / "broken.png").write_bytes(b"no picture")
    (place / "cut.png").write_bytes((place / "04.png").read_bytes()[:300])
    (place / "notes.txt").write_text("no picture")
    return place


def command(folder: Path | None, source: Path, output: Path, *options: object) -> list[str]:
    """Return the command line of a job; without a folder, servers have the model."""
    folders = [folder] if folder else []
    words = ["batch", *folders, "--input", source, "--output", output, *options]
    return [str(word) for word in words]


def asked(*questions: str) -> list[str]:
    """Return the options that ask questions."""
    return [word for question in questions for word in ("--question", question)]


def written(output: Path) -> dict[str, dict]:
    """Return the rows of an output by their identity; each is there once."""
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len({row["row"] for row in rows}) == len(rows)
    return {row["row"]: row for row in rows}


def without_times(rows: dict[str, dict]) -> dict[str, dict]:
    """Return rows without the seconds that they took."""
    return {name: row | {"seconds": None} for name, row in rows.items()}


def kill_at_random(
    fork: Fork, words: list[str], output: Path, kills: int, *, latest: float = 4, rows: int = 0
) -> int:
    """Start a job so many times, and kill it at most `latest` seconds later.

    With `rows`, that time begins when up to so many new ones are written, and sometimes the last
    line is cut, as by a computer that has lost its power. Returns how many kills came after a row
    was written, and before the last one.
    """
    generator, at_work = random.Random(5), 0
    for _ in range(kills):
        before = _lines(output)
        program = fork.start("-m", "helpers", *words)

        def goes_on(program: Program = program) -> bool:
            return " rows in " not in program.text("out") and psutil.pid_exists(program.number)

        new = generator.randrange(rows) if rows else 0
        while _lines(output) < before + new and goes_on():
            time.sleep(0.01)
        end = time.monotonic() + generator.uniform(0.0 if rows else 0.5, latest)
        while time.monotonic() < end and goes_on():
            time.sleep(0.01)
        at_work += _lines(output) > before and goes_on()
        with contextlib.suppress(psutil.NoSuchProcess):  # it was done
            program.kill()
        program.wait()
        if rows and output.exists() and generator.random() < 0.3:
            output.write_bytes(output.read_bytes()[: -generator.randint(1, 60)])
    return at_work


def _lines(output: Path) -> int:
    return output.read_bytes().count(b"\n") if output.exists() else 0
