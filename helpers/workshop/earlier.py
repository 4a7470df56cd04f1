"""How long answers take beside an earlier release: `python -m helpers.workshop.earlier`.

An original's shapes with random weights are converted by both into a folder, where a run that was
cut off goes on; what is converted now is tuned too. All are asked in turn, each in a process of its
own, about a picture of the original's size and about one of four times that. They run in this
environment: what is compared is the code, not other releases of OpenVINO.

What this module does not know: other engines; `vlm benchmark FOLDER --against` does.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from helpers.errors import SettingsError, UserError, writing
from helpers.measure.benchmark import computer
from helpers.measure.peers.jobs import Settings
from helpers.measure.peers.runners import HERE, ROOT, Runner
from helpers.measure.random_checkpoint import write_random
from helpers.measure.tasks import QUESTION
from helpers.models.families import Original, find_original
from helpers.resources import time_in_words
from helpers.show.tables import show_table

FIRST = "e7dcd38"  # 0.1.0, which has no tag
TOKENS, ROUNDS = 64, 5  # of an answer; besides a first one, which does not count
# What is converted now, and what `vlm convert --precision` is told for it.
FOLDERS = {
    "int4": ("int4",),
    "int4-sym": ("int4-sym",),
    "int4, int8-activations": ("int4", "--image-encoder", "int8-activations"),
}
BEFORE = "before"  # the name of the earlier release's run
# What is measured of which picture, and what tables call it.
STEPS = {
    ("small", "image_encoder"): "image encoder",
    ("small", "prompt"): "prompt",
    ("small", "next_token"): "next token",
    ("large", "whole"): "whole answer, large picture",
}


def write_code(commit: str, folder: Path) -> Path:
    """Write the files of a commit into `folder`; raise `SettingsError` where git has none."""
    command = ["git", "archive", "--format=tar", commit]
    try:
        archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise SettingsError(
            f"There is no commit {commit} here; measure in a clone that has its history."
        ) from None
    with writing(folder, "folder"), tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def run(code: Path, *arguments: object) -> None:
    """Run the command line of the release at `code`; raise `SettingsError` where it fails."""
    command = [sys.executable, "-m", "helpers", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(code)}
    if subprocess.run(command, cwd=code, env=environment, check=False).returncode:
        raise SettingsError(f"`vlm {arguments[0]}` of the release at {code} failed.")


def runs(original: Original, place: Path, commit: str, picture_tokens: int) -> dict[str, Settings]:
    """Make all folders; return by name what is run, and with what. All run at once, in memory."""
    earlier = write_code(commit, place / commit)
    checkpoint = write_random(original, place / "checkpoint", report=print)
    convert = ("convert", checkpoint, "--output")
    run(earlier, *convert, place / BEFORE, "--precision", "int4")
    settings = {BEFORE: {"code": earlier, "folder": place / BEFORE, "pipeline": {}, "ask": {}}}
    for name, options in FOLDERS.items():
        folder = place / name.replace(", ", "-")
        run(ROOT, *convert, folder, "--precision", *options)
        run(ROOT, "tune", folder)
        common: Settings = {"code": ROOT, "folder": folder, "ask": {}}
        settings[name] = common | {"pipeline": {"tuned": False}}
        settings[f"{name}, tuned"] = common | {"pipeline": {"tuned": True}}
    budget = {"ask": {"picture_tokens": picture_tokens}}
    settings[f"int4, tuned, {picture_tokens} picture tokens"] = settings["int4, tuned"] | budget
    return settings


def measure(settings: Mapping[str, Settings], picture: tuple[int, int]) -> dict[str, list[Any]]:
    """Return what each run says of each round, in turn, every second round in reverse order."""
    width, height = picture
    pictures = {"small": picture, "large": (2 * width, 2 * height)}
    common: Settings = {"question": QUESTION, "tokens": TOKENS, "pictures": pictures}
    with ExitStack() as stack:
        runners = {}
        for name, values in settings.items():
            runners[name] = stack.enter_context(Runner(HERE, "release", common | values))
            runners[name].round()
            print(f"{name}: ready", flush=True)
        rounds: dict[str, list[Any]] = {name: [] for name in runners}
        for number in range(1, ROUNDS + 1):
            for name in list(runners)[:: 1 if number % 2 else -1]:
                rounds[name].append(runners[name].round())
            print(f"round {number} of {ROUNDS}", flush=True)
    return rounds


def rows_of(rounds: Mapping[str, Sequence[Any]]) -> list[dict[str, str]]:
    """Return a row for each run: medians, (least to most), and how many times what was before."""
    rows = []
    for name in rounds:
        row = {"": name}
        for (picture, step), words in STEPS.items():
            seconds = {run: [figures[picture][step] for figures in rounds[run]] for run in rounds}
            middle, before = median(seconds[name]), median(seconds[BEFORE])
            least, most = time_in_words(min(seconds[name])), time_in_words(max(seconds[name]))
            row[words] = f"{time_in_words(middle)} ({least} to {most}), {middle / before:.2f}"
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one original, print a table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m helpers.workshop.earlier")
    parser.add_argument("model", help="an original's name, such as internvl2-1b")
    parser.add_argument("place", type=Path, help="a folder for what is made on the way")
    parser.add_argument("--commit", default=FIRST, help="the earlier release; %(default)s")
    parser.add_argument(
        "--picture-tokens", type=int, default=320, help="the budget that is tried; %(default)s"
    )
    options = parser.parse_args(arguments)
    try:
        original = find_original(options.model)
        place = options.place.resolve()
        settings = runs(original, place, options.commit, options.picture_tokens)
        rounds = measure(settings, original.picture)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(computer())
    for name, figures in rounds.items():
        tokens = [(value["prompt_tokens"], value["answer_tokens"]) for value in figures[0].values()]
        print(f"{name}: tokens of prompt and answer {tokens}")
    show_table(rows_of(rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
