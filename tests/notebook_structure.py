"""What every notebook of this collection keeps to, as checks that return the problems they find.

A check takes a `Notebook` (its cells and where it lies) and returns sentences; an empty list is a
pass. tests/test_notebook_structure.py runs all of them on every notebook, and each of them on a
notebook made to break it.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tests.cell_names import CellNames

SECTIONS = (
    "Setup",
    "Choose a checkpoint",
    "How the model works",
    "Convert",
    "Compress",
    "Choose a device",
    "Ask",
    "Compare",
    "Demo",
    "Try it yourself",
    "Clean up",
)
CARD = (
    "What you will learn",
    "Prerequisites",
    "Time",
    "Memory",
    "Disk",
    "Tested with",
    "Papers",
    "Licence",
)
COSTS = ("time", "memory", "disk")  # of notebooks/costs.json, as in the card
WORDS_BEFORE_CODE = 60
LINES_IN_A_CELL = 25
KILOBYTES = 400
SLOWEST = 12  # times the quickest model's: what a quiet computer gives is below 5
# Cells that are the same in every notebook, in their order: `step` in their metadata.
STEPS = (
    "first",
    "versions",
    "checkpoint",
    "computer",
    "own-picture",
    "load",
    "precision",
    "write",
    "sizes",
    "device",
    "devices",
    "ask",
    "ask-again",
    "questions",
    "compare",
    "kinds",
    "speed",
    "full-size",
    "full-size-plot",
    "demo",
    "clean-up",
)
# Where a step is the new idea itself, the notebook has a cell of its own for it.
OWN_STEPS = {
    "04-minicpm-v-2": {"demo"},
    "05-llama-3.2-vision": {"write", "questions"},
    "06-qwen3-vl": {"questions"},
}
# In a table of its own, these are left out and come back: the standard steps call both so.
OTHER_MEANINGS = {"05-llama-3.2-vision": {"precisions"}}

IGNORED_OUTPUT = re.compile(r"^\s*#\s*(NBVAL_IGNORE_OUTPUT|PYTEST_VALIDATE_IGNORE_OUTPUT)", re.M)
FORBIDDEN = {
    r"^\s*[%!]": "a magic or a shell command (nbval passes one that fails)",
    r";\s*$": "a closing semicolon (under nbval the value is shown all the same)",
    r"\bpip3? install\b": "an installation (requirements.txt is the one place)",
    r"\btrust_remote_code\b": "downloaded code",
    r"NBVAL_SKIP|NBVAL_RAISES_EXCEPTION": "a marker that turns a check off",
    r"\bshare\s*=\s*True\b": "a public tunnel",
    r"\bsetattr\(": "a change that stays where the cell is stopped (patch.object takes it back)",
    r"\bdebug\s*=\s*True\b": "a page that blocks the notebook",
}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:tmp|root|work|home/\w+|Users/\w+)/|\b[A-Z]:\\+\w")


@dataclass(frozen=True)
class Notebook:
    """A notebook's cells, its file, and the costs that the data file tells."""

    path: Path
    content: NotebookNode
    costs: dict[str, str]

    @classmethod
    def read(cls, path: Path, costs: dict[str, dict[str, str]]) -> "Notebook":
        """Read a notebook; `costs` are those of all notebooks, by stem."""
        return cls(path, nbformat.read(path, as_version=4), costs.get(path.stem, {}))

    @property
    def code(self) -> list[NotebookNode]:
        """The code cells."""
        return [cell for cell in self.content.cells if cell.cell_type == "code"]

    @property
    def markdown(self) -> list[NotebookNode]:
        """The markdown cells."""
        return [cell for cell in self.content.cells if cell.cell_type == "markdown"]

    @property
    def card(self) -> str:
        """The opening card: the first cell, if it is text."""
        first = self.content.cells[0] if self.content.cells else None
        return first.source if first and first.cell_type == "markdown" else ""

    def outputs(self) -> Iterator[tuple[int, NotebookNode, NotebookNode]]:
        """Yield each output with the number of its code cell, counted from 1, and that cell."""
        for number, cell in enumerate(self.code, start=1):
            for output in cell.outputs:
                yield number, cell, output

    def section_cells(self, title: str) -> list[NotebookNode]:
        """Return the code cells of one section."""
        cells, current = [], None
        for cell in self.content.cells:
            if cell.cell_type == "markdown":
                current = next(iter(headings(cell.source, 2)[::-1]), current)
            elif current == title:
                cells.append(cell)
        return cells


def headings(markdown: str, level: int) -> list[str]:
    """Return the headings of one level, code blocks aside."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S)
    return [title.strip() for title in re.findall(rf"^#{{{level}}} (.+)$", text, flags=re.M)]


def card_fields(card: str) -> dict[str, str]:
    """Return the card's fields: bold labels in a list or a table, each with the text behind it."""
    fields: dict[str, str] = {}
    label = None
    for line in card.splitlines():
        if field := re.match(r"\s*(?:[-*]\s+|\|\s*)?\*\*([^*]+?):?\*\*:?(.*)", line):
            label = field[1].strip()
            fields[label] = field[2].strip(" |")
        elif label and not line.startswith("#"):
            fields[label] = f"{fields[label]} {line.strip(' |')}".strip()
    return fields


def texts_of(output: NotebookNode) -> Iterator[str]:
    """Yield all text in an output."""
    yield output.get("text", "")
    for kind, data in output.get("data", {}).items():
        if kind.startswith("text/") or kind == "image/svg+xml":
            yield data


def code_lines(source: str) -> list[str]:
    """Return the lines that are neither empty nor only a comment."""
    return [
        line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")
    ]


def is_compared(cell: NotebookNode) -> bool:
    """Say whether a code cell stores text and nbval compares it with what the cell gives."""
    ignored = IGNORED_OUTPUT.search(cell.source) or "nbval-ignore-output" in tags_of(cell)
    return not ignored and any(any(texts_of(output)) for output in cell.outputs)


def tags_of(cell: NotebookNode) -> list[str]:
    """Return a cell's tags."""
    return cell.metadata.get("tags", [])


# The checks


def sections_in_order(notebook: Notebook) -> list[str]:
    """Check that the sections are those of every notebook, in their order."""
    titles = [title for cell in notebook.markdown for title in headings(cell.source, 2)]
    if titles == list(SECTIONS):
        return []
    return [
        f"The sections are {', '.join(titles) or 'none'}; they should be {', '.join(SECTIONS)}."
    ]


def one_title(notebook: Notebook) -> list[str]:
    """Check that the notebook opens with its card, whose title is the only one."""
    titles = [title for cell in notebook.markdown for title in headings(cell.source, 1)]
    has_title = len(headings(notebook.card, 1)) == 1
    return [] if has_title and len(titles) == 1 else ["The first cell should hold the only title."]


def card_complete(notebook: Notebook) -> list[str]:
    """Check that the card has every field, in order, and none without a text."""
    fields = card_fields(notebook.card)
    problems = [f"The card does not tell: {name}." for name in CARD if not fields.get(name)]
    if not problems and [name for name in fields if name in CARD] != list(CARD):
        problems.append(f"The card's fields should stand in this order: {', '.join(CARD)}.")
    return problems


def card_tells_measured_costs(notebook: Notebook) -> list[str]:
    """Check that the card's costs are those of the data file."""
    fields = card_fields(notebook.card)
    return [
        f"The card's {name} is {fields.get(name.capitalize())!r}, "
        f"costs.json says {notebook.costs.get(name)!r}."
        for name in COSTS
        if not notebook.costs.get(name) or fields.get(name.capitalize()) != notebook.costs[name]
    ]


def soon_something_to_do(notebook: Notebook) -> list[str]:
    """Check that little is to be read between the card and the first code."""
    words = 0
    for cell in notebook.content.cells[1:]:
        if cell.cell_type == "code":
            break
        prose = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#"))
        words += len(prose.split())
    if words <= WORDS_BEFORE_CODE:
        return []
    return [f"{words} words stand before the first code; at most {WORDS_BEFORE_CODE} should."]


def pictures_described(notebook: Notebook) -> list[str]:
    """Check that every picture says in words what is seen.

    In markdown and HTML by alt; a picture that a cell draws by `alt` in the cell's metadata.
    """
    problems = []
    texts = [(f"markdown {cell.source[:40]!r}", cell.source) for cell in notebook.markdown]
    for number, cell, output in notebook.outputs():
        has_picture = any(kind.startswith("image/") for kind in output.get("data", {}))
        if has_picture and not str(cell.metadata.get("alt", "")).strip():
            problems.append(f"Code cell {number} draws a picture and its metadata has no alt.")
        texts.append((f"the output of code cell {number}", output.get("data", {}).get("text/html")))
    for place, text in texts:
        if re.search(r"!\[\s*\]\(", text or ""):
            problems.append(f"A picture in {place} has no alt text.")
        for tag in re.findall(r"<img\b[^>]*>", text or "", flags=re.I):
            if not re.search(r"\balt\s*=\s*([\"'])\s*[^\s\"'].*?\1", tag, flags=re.S):
                problems.append(f"An <img> in {place} has no alt text.")
    return problems


def executed_in_order(notebook: Notebook) -> list[str]:
    """Check that the outputs come from one run from top to bottom.

    nbval compares only cells that have a count, so that this check guards all comparisons.
    """
    counts = [cell.execution_count for cell in notebook.code]
    if not counts or counts != list(range(1, len(counts) + 1)):
        return [f"The cells' execution counts are {counts}; they should be 1, 2, 3 and so on."]
    return [
        f"The value of code cell {number} has the count {count} of another run."
        for number, _, output in notebook.outputs()
        if (count := output.get("execution_count", number)) != number
    ]


def clean_outputs(notebook: Notebook) -> list[str]:
    """Check that no output is an error or a warning."""
    problems = []
    for number, _, output in notebook.outputs():
        if output.output_type == "error":
            problems.append(f"Code cell {number} ends with an error.")
        elif output.get("name") == "stderr":
            problems.append(f"Code cell {number} writes to stderr: {output.text[:60]!r}.")
    return problems


def no_widget_state(notebook: Notebook) -> list[str]:
    """Check that the notebook does not keep the state of widgets, which is random and large."""
    return (
        ["The metadata keeps the state of widgets."]
        if "widgets" in notebook.content.metadata
        else []
    )


def small(notebook: Notebook) -> list[str]:
    """Check the size of the file."""
    size = notebook.path.stat().st_size / 1024
    return [] if size <= KILOBYTES else [f"The file is {size:.0f} KB; at most {KILOBYTES} KB."]


def nothing_forbidden(notebook: Notebook) -> list[str]:
    """Check that no cell installs, downloads code, or turns a check off."""
    problems = []
    for number, cell in enumerate(notebook.code, start=1):
        for pattern, name in FORBIDDEN.items():
            if re.search(pattern, cell.source, flags=re.M):
                problems.append(f"Code cell {number} holds {name}.")
        if {"raises-exception", "nbval-skip"} & set(tags_of(cell)):
            problems.append(f"Code cell {number} has a tag that turns a check off.")
    return problems


def short_cells(notebook: Notebook) -> list[str]:
    """Check that a cell of code does one thing."""
    return [
        f"Code cell {number} has {length} lines of code; at most {LINES_IN_A_CELL} should stand."
        for number, cell in enumerate(notebook.code, start=1)
        if (length := len(code_lines(cell.source))) > LINES_IN_A_CELL
    ]


def valid_code(notebook: Notebook) -> list[str]:
    """Check that every cell is Python, and does something."""
    problems = []
    for number, cell in enumerate(notebook.code, start=1):
        try:
            if not ast.parse(cell.source).body:
                problems.append(f"Code cell {number} is empty.")
        except SyntaxError as error:
            problems.append(f"Code cell {number} is not Python: {error.msg}.")
    return problems


def unique_ids(notebook: Notebook) -> list[str]:
    """Check that every cell has an id of its own, in the file as it is: nbformat repairs ids."""
    cells = json.loads(notebook.path.read_text(encoding="utf-8"))["cells"]
    ids = sorted(cell.get("id", "") for cell in cells)
    repeated = {first for first, second in pairwise(ids) if first == second}
    return [f"Cells share the id {name!r}." for name in sorted(repeated)]


def no_machine_paths(notebook: Notebook) -> list[str]:
    """Check that no path of the computer it ran on stands in the notebook."""
    texts = [(f"cell {number}", cell.source) for number, cell in enumerate(notebook.content.cells)]
    for number, _, output in notebook.outputs():
        texts += [(f"the output of code cell {number}", text) for text in texts_of(output)]
    return [
        f"A path of one computer stands in {place}: {match[0]}."
        for place, text in texts
        if (match := MACHINE_PATH.search(text))
    ]


def answers_compared(notebook: Notebook) -> list[str]:
    """Check that answers and figures are in cells whose output nbval compares."""
    return [
        f"No output in the section {title!r} is compared."
        for title in ("Ask", "Compare")
        if not any(is_compared(cell) for cell in notebook.section_cells(title))
    ]


def standard_steps(notebook: Notebook) -> list[str]:
    """Check that the standard steps are there, in their order, but for those that are its idea."""
    expected = [step for step in STEPS if step not in OWN_STEPS.get(notebook.path.stem, ())]
    steps = [cell.metadata["step"] for cell in notebook.code if "step" in cell.metadata]
    if steps == expected:
        return []
    missing = ", ".join(step for step in expected if step not in steps)
    return [f"The standard steps are not those of every notebook; missing: {missing or 'none'}."]


def plain_code(notebook: Notebook) -> list[str]:
    """Check that code can be read line by line.

    No comprehension stands inside another, and no loop assigns to an attribute.
    """
    problems = []
    for number, cell in enumerate(notebook.code, start=1):
        for node in ast.walk(ast.parse(cell.source)):
            inside = [part for part in ast.walk(node) if isinstance(part, COMPREHENSIONS)]
            if isinstance(node, COMPREHENSIONS) and len(inside) > 1:
                problems.append(f"Code cell {number} has a comprehension inside another.")
            if isinstance(node, ast.For) and any(
                isinstance(part, ast.Attribute) for part in ast.walk(node.target)
            ):
                problems.append(f"Code cell {number} has a loop that assigns to an attribute.")
    return problems


def one_meaning(notebook: Notebook) -> list[str]:
    """Check that a cell gets the same from the cells before it, also where one is run again."""
    names = [CellNames(cell.source) for cell in notebook.code]
    exempt = OTHER_MEANINGS.get(notebook.path.stem, set())
    times = Counter(name for cell in names for name in cell.stores)
    repeated = {name for name, number in times.items() if number > 1}
    problems, earlier = [], set()
    for place, cell in enumerate(names, 1):
        problems += [
            f"Code cell {place} reads {name!r}, which more than one cell sets."
            for name in sorted((cell.reads & earlier & repeated) - exempt)
        ]
        earlier |= cell.stores
    return problems


def own_picture_prepared(notebook: Notebook) -> list[str]:
    """Check that a picture that a model cannot read is told where it is opened, not under Ask."""
    return [
        f"Code cell {number} opens the reader's picture and does not prepare it."
        for number, cell in enumerate(notebook.code, start=1)
        if "open_picture(picture_path)" in cell.source
        and "image_inputs([picture])" not in cell.source
    ]


def believable_times(notebook: Notebook) -> list[str]:
    """Check that no stored time is many times another model's, as on a busy computer."""
    problems = []
    for cell in notebook.code:
        if cell.metadata.get("step") != "speed":
            continue
        text = "".join(text for output in cell.outputs for text in texts_of(output))
        rows = [re.findall(r"([\d.]+) ms", line) for line in text.splitlines()]
        columns = zip(*(map(float, row) for row in rows if row), strict=True)
        ratios = [max(column) / min(column) for column in columns]
        if not ratios or max(ratios) > SLOWEST:
            problems.append(f"The times of the models are {ratios} times apart; execute it anew.")
    return problems


CHECKS: tuple[Callable[[Notebook], list[str]], ...] = (
    sections_in_order,
    one_title,
    card_complete,
    card_tells_measured_costs,
    soon_something_to_do,
    pictures_described,
    executed_in_order,
    clean_outputs,
    no_widget_state,
    small,
    nothing_forbidden,
    short_cells,
    valid_code,
    unique_ids,
    no_machine_paths,
    answers_compared,
    standard_steps,
    plain_code,
    one_meaning,
    own_picture_prepared,
    believable_times,
)


def same_steps(first: Notebook, second: Notebook) -> list[str]:
    """Check that the standard steps of two notebooks are the same cells."""
    cells = {cell.metadata.get("step"): cell.source for cell in first.code}
    return [
        f"{first.path.name} and {second.path.name} differ in the step {step!r}."
        for cell in second.code
        if (step := cell.metadata.get("step")) in cells and step and cells[step] != cell.source
    ]
