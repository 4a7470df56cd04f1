"""How long notebooks take a class: minutes of each section, a plan of an hour and of half a day.

Nobody was timed: words and lines of code are counted, and how many of them are read in a minute is
an assumption, told on the page.

What this module does not know: talk, questions, and slow computers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from helpers.show.tables import markdown_table
from helpers.sources.checkpoints import read_json
from helpers.workshop.notebooks import FOLDER, read_notebook

WORDS, LINES = 150, 15  # of prose and of code, read in a minute
EXERCISE = 4  # minutes
ROUNDED = 5  # minutes; steps of a plan are rounded up to it
EXERCISES = "Try it yourself"


@dataclass
class Section:
    """What there is to read in a section of a notebook: words of prose, lines of code."""

    words: int = 0
    lines: int = 0
    exercises: int = 0

    @property
    def minutes(self) -> float:
        """Minutes to read it; exercises come on top."""
        return self.words / WORDS + self.lines / LINES


def sections(path: Path) -> dict[str, Section]:
    """Return the sections of a notebook; its card belongs to the first."""
    cells = read_notebook(path).cells
    title = next(iter(_titles("\n".join(cell.source for cell in cells))))
    counts = {title: Section()}
    for cell in cells:
        if cell.cell_type == "code":
            counts[title].lines += sum(bool(line.strip()) for line in cell.source.splitlines())
            continue
        for text in re.split(r"^(?=## )", cell.source, flags=re.MULTILINE):
            title = next(iter(_titles(text)), title)
            section = counts.setdefault(title, Section())
            section.words += len(text.split())
            section.exercises += len(re.findall(r"^\*\*\d+\.\*\*", text, flags=re.MULTILINE))
    return counts


def _titles(text: str) -> list[str]:
    return re.findall(r"^## (.+)$", text, flags=re.MULTILINE)


def notebooks() -> dict[str, dict[str, Section]]:
    """Return the sections of all notebooks by their names."""
    return {path.stem: sections(path) for path in sorted(FOLDER.glob("*.ipynb"))}


def times_table() -> str:
    """Return what executing, reading and the exercises of each notebook take."""
    costs = read_json(FOLDER / "costs.json")
    rows = []
    for name, parts in notebooks().items():
        exercises = sum(part.exercises for part in parts.values())
        row = {
            "notebook": f"[{name}](../notebooks/{name}.ipynb)",
            "executing": costs[name]["time"],
            "memory": costs[name]["memory"],
            "words": f"{sum(part.words for part in parts.values()):,}",
            "lines of code": str(sum(part.lines for part in parts.values())),
            "reading": f"{sum(part.minutes for part in parts.values()):.0f} min",
            "exercises": f"{exercises}, {exercises * EXERCISE} min",
        }
        rows.append(row)
    return markdown_table(rows)


def sections_table() -> str:
    """Return the minutes that reading each section of each notebook takes."""
    contents = notebooks()
    titles = dict.fromkeys(title for parts in contents.values() for title in parts)
    rows = []
    for title in titles:
        minutes = {name[:2]: parts[title].minutes for name, parts in contents.items()}
        rows.append({"section": title} | {name: f"{time:.0f}" for name, time in minutes.items()})
    return markdown_table(rows)


@dataclass(frozen=True)
class Step:
    """A step of a plan: what is done, with which `sections` of a `notebook`, if any.

    It takes the `minutes` that are said, beside those of reading. Of `exercises` each takes some.
    """

    text: str
    minutes: int = 0
    notebook: str = ""
    sections: Sequence[str] = ()
    exercises: int = 0

    def duration(self, contents: dict[str, dict[str, Section]]) -> int:
        """Return its minutes, rounded up; all sections but the exercises where none are named."""
        parts = contents.get(self.notebook, {})
        titles = self.sections or [title for title in parts if title != EXERCISES]
        reading = sum(parts[title].minutes for title in titles) if self.notebook else 0
        return ROUNDED * ceil((self.minutes + reading + EXERCISE * self.exercises) / ROUNDED)


FIRST, SECOND, LAST = "01-llava-mpt", "03-internvl2", "05-llama-3.2-vision"
UNTIL_CONVERT = ("Setup", "Choose a checkpoint", "How the model works", "Convert")
AN_ANSWER = ("Choose a device", "Ask", "Demo")
NEW_IDEA = ("How the model works", "Ask", "Compare")
PLANS = {
    "one hour": (
        Step("All open 01 and run all its cells; what a model's parts are", 5),
        Step("01 up to Convert: a picture in a prompt, the cache", 0, FIRST, UNTIL_CONVERT),
        Step("01, Ask and Demo; everybody asks the page three questions", 5, FIRST, AN_ANSWER),
        Step("01, Compare: what fewer bits cost", 0, FIRST, ("Compare",)),
        Step("01, exercise 1; where to go on is written below it", exercises=1),
    ),
    "half a day": (
        Step("Installing from the wheelhouse; `make run` gives a first answer", 20),
        Step("01, all of it but the exercises", 0, FIRST),
        Step("01, exercises 1 to 4", exercises=4),
        Step("Break", 15),
        Step("03, all of it but the exercises: tiles, and 01 once more", 0, SECOND),
        Step("03, exercises 1 to 3", exercises=3),
        Step("In groups, 02, 04 or 05: its new idea (times of 05, the longest)", 5, LAST, NEW_IDEA),
        Step("Each group shows the others one picture and one table", 15),
        Step("A photograph with an original, by who teaches; questions", 15),
    ),
}


def plan_table(name: str) -> str:
    """Return a plan as a table with the time at which each step begins."""
    contents, begin, rows = notebooks(), 0, []
    for step in PLANS[name]:
        minutes = step.duration(contents)
        clock = f"{begin // 60}:{begin % 60:02}"
        rows.append({"from": clock, "minutes": str(minutes), "what": step.text})
        begin += minutes
    rows.append({"from": f"{begin // 60}:{begin % 60:02}", "minutes": "", "what": "End"})
    return markdown_table(rows)
