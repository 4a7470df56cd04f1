"""A converted folder in our pipeline beside other engines, in one run: `vlm benchmark FOLDER`.

All have the same shapes, prompt and threads, and are measured in turn, so that whatever else the
computer does meets all of them alike. What this module does not know: other devices than the CPU.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from helpers.convert.folders import Report, read_manifest
from helpers.convert.places import has_runtime_files
from helpers.convert.processors import read_processor
from helpers.errors import SettingsError
from helpers.graphs.part_names import LANGUAGE_MODEL
from helpers.graphs.presets import name_of
from helpers.inputs.images import draw_lake
from helpers.measure.benchmark import computer, count_parameters
from helpers.measure.figures import Computer
from helpers.measure.peers.jobs import Settings
from helpers.measure.peers.layouts import gguf_layout
from helpers.measure.peers.runners import HERE, EngineRound, Runner, python_of
from helpers.measure.tasks import QUESTION, TOKENS
from helpers.models.families import family_of, on_meta_device
from helpers.resources import (
    available_memory,
    has_bfloat16,
    in_words,
    processors,
    time_in_words,
)
from helpers.run.tuning import read_tuning

PEERS = ("pytorch", "genai", "llama.cpp")
INSTALL = "`make peers` installs it"
ROUNDS = 5  # besides a first one, which does not count
PICTURE = (448, 448)  # where a family has no original to say otherwise
STEPS = {"image_encoder": "image encoder", "prompt": "prompt of {}", "next_token": "next token"}


@dataclass(frozen=True)
class Engine:
    """A way to run the model: its runner, in the environment of this name, with these settings."""

    name: str
    runner: str
    environment: str = HERE
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class EngineFigures:
    """What was measured of an engine; `memory` is its own in bytes, `mapped` that of files."""

    version: str
    rounds: list[EngineRound]
    memory: int
    mapped: int


@dataclass(frozen=True)
class PeerComparison:
    """All figures of one run; our pipeline is the first of `engines`. `left_out` are sentences."""

    folder: str
    preset: str
    tuning: str
    computer: Computer
    threads: int
    picture: tuple[int, int]
    tokens: int
    engines: dict[str, EngineFigures]
    left_out: list[str]


def check_peers(names: Sequence[str]) -> None:
    """Raise `SettingsError` for a name that is no peer's."""
    for name in names:
        if name not in PEERS:
            raise SettingsError(
                f"There is nothing called {name!r} to measure against; use {', '.join(PEERS)}."
            )


class _Engines:
    """The engines of one run, which are measured in turn, and sentences on those left out."""

    def __init__(self, stack: ExitStack, settings: Settings, report: Report) -> None:
        self.stack, self.settings, self.report = stack, settings, report
        self.runners: dict[str, Runner] = {}
        self.rounds: dict[str, list[EngineRound]] = {}
        self.left_out: list[str] = []
        self.ours: set[str] = set()  # names

    def add(self, engine: Engine) -> int:
        """Start an engine, measure a round that does not count; return the prompt's length."""
        settings = self.settings | engine.settings
        runner = self.stack.enter_context(Runner(engine.environment, engine.runner, settings))
        first = runner.measure()
        self.report(f"{engine.name} {runner.version}: ready")
        self.runners[engine.name], self.rounds[engine.name] = runner, []
        return first.prompt_tokens

    def add_ours(self, engine: Engine) -> None:
        """Start an engine of ours, whose prompt's length is the one of all; it must run."""
        self.ours.add(engine.name)
        try:
            self.settings["prompt_tokens"] = self.add(engine)
        except SettingsError as error:
            self._leave_out(engine.name, error)

    def add_peer(self, name: str, folder: Path) -> None:
        """Start the engines of a peer; one that cannot run the folder is left out."""
        try:
            for engine in _engines(name, folder):
                self.add(engine)
        except SettingsError as error:
            self._leave_out(name, error)

    def measure(self) -> None:
        """Measure a round; a peer that fails is left out."""
        for name, runner in list(self.runners.items()):
            try:
                self.rounds[name].append(runner.measure())
            except SettingsError as error:
                self._leave_out(name, error)
                del self.runners[name]

    def _leave_out(self, name: str, error: SettingsError) -> None:
        """Go on without a peer; without ours there is nothing to compare."""
        if name in self.ours:
            raise SettingsError(f"{name} cannot be measured: {str(error).rstrip('.')}.") from None
        self.left_out.append(f"{name} is left out: {error}")
        self.report(self.left_out[-1])

    @property
    def figures(self) -> dict[str, EngineFigures]:
        """What was measured so far, by engine."""
        return {
            name: EngineFigures(runner.version, self.rounds[name], *runner.memory)
            for name, runner in self.runners.items()
        }


def compare_engines(
    folder: Path, against: Sequence[str], *, report: Report = lambda line: None
) -> PeerComparison:
    """Measure a folder here and in the engines `against`; what cannot run it is left out and told.

    Raises `SettingsError` for an unknown engine, and `OutputError` for a folder without a finished
    conversion.
    """
    check_peers(against)
    folder = Path(folder).resolve()
    preset, tuning = read_manifest(folder)["preset"], read_tuning(folder)
    originals = family_of(folder).originals
    picture, threads = (originals[0].picture if originals else PICTURE), processors()
    common: Settings = {"folder": folder, "picture": picture, "threads": threads}
    common |= {"question": QUESTION, "tokens": TOKENS}
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        common |= {"place": place, "picture_file": place / "picture.npy"}
        np.save(common["picture_file"], np.asarray(draw_lake(*picture)))
        engines = _Engines(stack, common, report)
        for engine in _ours(folder):
            engines.add_ours(engine)
        for name in against:
            engines.add_peer(name, folder)
        for number in range(1, ROUNDS + 1):
            engines.measure()
            report(f"round {number} of {ROUNDS}")
        figures = engines.figures  # while they run, as their memory is told
    return PeerComparison(
        folder=folder.name,
        preset=name_of(preset),
        tuning=str(tuning or ""),
        computer=computer(),
        threads=threads,
        picture=picture,
        tokens=TOKENS,
        engines=figures,
        left_out=engines.left_out,
    )


# The engines. Each has the settings that its own pages recommend for one answer on a CPU.


def _ours(folder: Path) -> Iterator[Engine]:
    """Yield our pipeline as it runs here, and untuned where that is not the same."""
    if read_tuning(folder) is not None:
        yield Engine("vlm, tuned", "here", settings={"tuned": True})
    yield Engine("vlm", "here", settings={"tuned": False})


def _engines(name: str, folder: Path) -> Iterator[Engine]:
    """Yield the engines of a peer; raises `SettingsError` with why it cannot run this folder."""
    if name == "pytorch":
        yield _pytorch(folder)
    elif name == "genai":
        yield from _genai(folder)
    else:
        yield _llama(folder)


def _pytorch(folder: Path) -> Engine:
    """Return PyTorch: 16 bits where the processor multiplies them, else 32."""
    dtype, size = ("bfloat16", 2) if has_bfloat16() else ("float32", 4)
    size *= sum(count_parameters(on_meta_device(folder)).values())
    if size > available_memory():
        raise SettingsError(f"its weights in {dtype} take {in_words(size)} of memory")
    return Engine(f"PyTorch {dtype}", "here", settings={"dtype": dtype})


def _genai(folder: Path) -> Iterator[Engine]:
    """Yield GenAI with its defaults, and with what `tune` chose for the language model."""
    runtime = read_processor(folder).runtime
    if not runtime.loads:
        raise SettingsError(runtime.why)
    if not has_runtime_files({path.name for path in folder.iterdir()}):
        raise SettingsError("the folder lacks the files that it reads; convert into a new one")
    _check_environment(".venv-genai")
    tuning = read_tuning(folder)
    properties = tuning.properties.get(LANGUAGE_MODEL, {}) if tuning else {}
    if properties:
        settings = {"properties": properties}
        yield Engine("GenAI, tuned alike", "genai", ".venv-genai", settings)
    yield Engine("GenAI", "genai", ".venv-genai", {"properties": {}})


def _llama(folder: Path) -> Engine:
    """Return llama.cpp with random weights in the language model's shapes."""
    settings = {"layout": gguf_layout(folder)}
    _check_environment(".venv-llama")
    return Engine("llama.cpp Q4_0", "llama", ".venv-llama", settings)


def _check_environment(name: str) -> None:
    if not python_of(name).exists():
        raise SettingsError(f"it is not installed here; {INSTALL}")


# Reading


def lines_of(comparison: PeerComparison) -> list[str]:
    """Return what the table's figures depend on, and what is not in it."""
    first, *_ = comparison.engines.values()
    tuning = f", tuned ({comparison.tuning})" if comparison.tuning else ""
    lines = [
        f"{comparison.computer}, {comparison.threads} threads",
        f"{comparison.folder}, {comparison.preset or 'a precision of its own'}{tuning}; medians of "
        f"{len(first.rounds)} rounds in turn, a picture of {comparison.picture[0]} x "
        f"{comparison.picture[1]}, {comparison.tokens} tokens; in brackets, how many times the "
        "first column's",
    ]
    length = first.rounds[0].prompt_tokens
    lines += [
        f"{name}'s prompt has {figures.rounds[0].prompt_tokens} tokens"
        for name, figures in comparison.engines.items()
        if figures.rounds[0].prompt_tokens != length
    ]
    return lines + comparison.left_out


def rows_of(comparison: PeerComparison) -> list[dict[str, str]]:
    """Return a row for each step and for memory, and in it what each engine takes of it."""
    engines = comparison.engines
    length = next(iter(engines.values())).rounds[0].prompt_tokens
    rows = [
        {"": words.format(length)} | _cells(medians(engines, step), time_in_words)
        for step, words in STEPS.items()
    ]
    memory = {name: figures.memory for name, figures in engines.items()}
    mapped = {name: in_words(figures.mapped) for name, figures in engines.items()}
    return [*rows, {"": "memory"} | _cells(memory, in_words), {"": "mapped files"} | mapped]


def medians(engines: Mapping[str, EngineFigures], step: str) -> dict[str, float | None]:
    """Return the seconds of one of `STEPS` by engine; None for what an engine does not have."""
    result: dict[str, float | None] = {}
    for name, figures in engines.items():
        seconds = [getattr(figures_of_round, step) for figures_of_round in figures.rounds]
        result[name] = None if None in seconds else median(seconds)
    return result


def _cells(values: Mapping[str, float | None], words: Any) -> dict[str, str]:
    """Return values in words, each with how many times it is the first."""
    first = next(iter(values.values())) or 1
    return {
        name: "-" if value is None else f"{words(value)} ({value / first:.2f})"
        for name, value in values.items()
    }
