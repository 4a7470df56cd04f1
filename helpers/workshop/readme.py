"""Write the README's tables and FULL_SIZE.md from data: `python -m helpers.workshop.readme`."""

import re
from pathlib import Path

from helpers.measure.figures import Figures, from_json
from helpers.show.tables import format_table
from helpers.sources.checkpoints import bundled_checkpoints, read_json
from helpers.workshop.full_size_page import full_size_text
from helpers.workshop.report import accuracy_rows

ROOT = Path(__file__).parent.parent.parent


def notebooks_table() -> str:
    """Return the table of notebooks: picture, idea, and the costs that were measured."""
    costs = read_json(ROOT / "notebooks" / "costs.json")
    lines = ["| notebook | what is new in it | size | memory | time |", "|---|---|---|---|---|"]
    for stem, cost in costs.items():
        picture = f"![{cost['alt']}](notebooks/images/{stem}.svg)"
        cells = [f"[{stem}](notebooks/{stem}.ipynb) {picture}"]
        cells += [cost[name] for name in ("idea", "disk", "memory", "time")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def accuracy_tables() -> str:
    """Return what each bundled checkpoint answers rightly."""
    parts = []
    for family, folder in bundled_checkpoints().items():
        report = read_json(folder / "accuracy.json")
        table = format_table(accuracy_rows(report["figures"]))
        parts.append(
            f"{family}, exact answers to {report['questions']} questions about pictures and words "
            f"that training never showed, and the agreement with PyTorch:\n\n```\n{table}\n```"
        )
    return "\n\n".join(parts)


def filled(text: str) -> str:
    """Return the README's text with its tables made anew."""
    for name, content in (("notebooks", notebooks_table()), ("accuracy", accuracy_tables())):
        text = _replaced(text, name, content)
    return text


def _replaced(text: str, name: str, content: str) -> str:
    """Return a text with this content between the comments of this name."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)


def full_size_page() -> str:
    """Return the page of what was measured with `make full-size`, the small models first."""
    paths = (ROOT / "notebooks" / "full-size").glob("*.json")
    results = [from_json(Figures, read_json(path)) for path in paths]
    return full_size_text(sorted(results, key=lambda figures: sum(figures.parameters.values())))


if __name__ == "__main__":
    (ROOT / "notebooks" / "FULL_SIZE.md").write_text(full_size_page(), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
