"""Write tables, lists and drawings of pages from data: `python -m helpers.workshop.readme`."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from helpers.measure.figures import Figures
from helpers.measure.full_size import RUNS, histories, on_one_processor, run_bytes
from helpers.measure.tasks import ROUNDS, TOKENS
from helpers.models import load_processor
from helpers.models.families import families
from helpers.resources import in_words
from helpers.show.tables import format_table, markdown_table
from helpers.sources.checkpoints import read_json
from helpers.workshop import classroom, lessons, rooms
from helpers.workshop.full_size_page import full_size_text
from helpers.workshop.notebooks import FOLDER, ROOT
from helpers.workshop.rooms import ROOMS

# Pages with places to fill.
FILLED = ("README.md", "CONTRIBUTING.md", "helpers/README.md", "docs/workshop.md")


def notebooks_table() -> str:
    """Return the table of notebooks: idea, and the costs that were measured; pictures below it."""
    costs = read_json(FOLDER / "costs.json")
    rows = [
        {
            "notebook": f"[{stem}](notebooks/{stem}.ipynb)",
            "what is new in it": cost["idea"],
            "size": cost["disk"],
            "memory": cost["memory"],
            "time": cost["time"],
        }
        for stem, cost in costs.items()
    ]
    lines = [markdown_table(rows)]
    for stem, cost in costs.items():
        lines += ["", f"`{stem}`:", "", f"![{cost['alt']}](notebooks/images/{stem}.svg)"]
    return "\n".join(lines)


GAINS = ("internvl2-1b", "qwen3-vl-4b", "internvl2-8b")  # a small, a middling, a large one


def gains_table() -> str:
    """Return what originals take in PyTorch and in OpenVINO, and which computer measured it."""
    measurements = on_one_processor(GAINS)
    rows = [row for measurement in measurements for row in _gains(measurement.figures)]
    kind, cores = measurements[0].kind, measurements[0].figures.computer.cores
    pictures = ", ".join(
        f"{m.figures.model} {' x '.join(map(str, m.figures.picture))}" for m in measurements
    )
    return (
        f"```\n{format_table(rows)}\n```\n\nOn {kind}, {cores} cores, with random weights, since "
        f"time does not depend on what weights have learned; pictures: {pictures}. PyTorch "
        "computes in bfloat16. *First word*: the image encoder and the first token together. Times "
        f"are medians of {ROUNDS} answers, in each of which a token's is the median of the "
        f"{TOKENS - 1} behind the first. [speed.md](docs/speed.md) says what the names in brackets "
        "are; other processors gain differently, see [FULL_SIZE.md](notebooks/FULL_SIZE.md)."
    )


def _gains(figures: Figures) -> list[dict[str, str]]:
    """Return a row each for the size and the times of an original, a column for each run."""
    size: dict[str, str] = {"original": figures.model, "what": "size"}
    word, token = {"original": "", "what": "first word"}, {"original": "", "what": "token"}
    for run_name, column in RUNS.items():
        run = figures.runs[run_name]
        speed = run.running.speed
        size[column] = in_words(run_bytes(figures, run_name))
        word[column] = f"{speed.image_encoder + speed.first_token:.1f} s"
        token[column] = f"{speed.next_token * 1000:.0f} ms"
    return [size, word, token]


def models_table() -> str:
    """Return the families, their originals on the hub, and the notebook of each, if it has one."""
    stems = {path.stem[3:]: path.stem for path in FOLDER.glob("*.ipynb")}
    rows = []
    for family in families():
        stem = stems.get(family.name)
        names = ", ".join(original.hub_id for original in family.originals)
        notebook = "loads and converts; no notebook of its own"
        if stem is not None:
            notebook = f"[{stem[:2]}](notebooks/{stem}.ipynb)"
        rows.append({"family": family.name, "originals": names, "notebook": notebook})
    return markdown_table(rows)


def accuracy_table() -> str:
    """Return what each bundled checkpoint answers rightly, and how close INT4 is to PyTorch."""
    rows = []
    for family in families():
        if family.checkpoint is not None:
            figures = read_json(family.checkpoint / "accuracy.json")["figures"]
            row = {"bundled checkpoint": family.name}
            row |= {name: f"{figures[name]['accuracy']['all']:.1%}" for name in figures}
            divergence = 1000 * figures["int4"]["agreement"]["divergence"]
            rows.append(row | {"1000 KL": f"{divergence:.1f}"})
    return f"```\n{format_table(rows)}\n```"


def runtimes_table() -> str:
    """Return which folders OpenVINO GenAI and Model Server load, and why not the others."""
    rows = []
    for family in families():
        if family.checkpoint is not None:
            runtime = load_processor(family.checkpoint).runtime
            why = "load it" if runtime.loads else runtime.why
            rows.append({"model": family.name, "OpenVINO GenAI and Model Server": why})
    return markdown_table(rows)


def room_list() -> str:
    """Return the rooms from the top, each with the first sentence of its docstring."""
    return "\n".join(f"- `{room}/`: {rooms.first_sentence(rooms.HELPERS / room)}" for room in ROOMS)


def filled(text: str) -> str:
    """Return a page's text with its tables and lists made anew."""
    contents: dict[str, Callable[[], str]] = {
        "notebooks": notebooks_table,
        "gains": gains_table,
        "models": models_table,
        "accuracy": accuracy_table,
        "runtimes": runtimes_table,
        "rooms": room_list,
        "tree": lambda: f"```\n{rooms.tree()}\n```",
        "times": lessons.times_table,
        "sections": lessons.sections_table,
        **{name: partial(lessons.plan_table, name) for name in lessons.PLANS},
        "classroom": classroom.sentence,
    }
    for name, content in contents.items():
        if f"<!-- {name} -->" in text:
            text = _replaced(text, name, content())
    return text


def _replaced(text: str, name: str, content: str) -> str:
    """Return a text with this content between the comments of this name."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)


def full_size_page() -> str:
    """Return the page of what was measured with `make full-size`, the small models first."""
    return full_size_text(histories())


def pages() -> dict[Path, str]:
    """Return what each generated file should hold."""
    texts = {ROOT / name: (ROOT / name).read_text(encoding="utf-8") for name in FILLED}
    return {path: filled(text) for path, text in texts.items()} | {
        ROOT / "docs" / "rooms.svg": rooms.drawing(),
        FOLDER / "FULL_SIZE.md": full_size_page(),
    }


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
