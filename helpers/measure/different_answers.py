"""The page of two models' answers that differ most, with their pictures."""

from collections.abc import Mapping, Sequence

from helpers.measure.outcomes import Outcome, most_different
from helpers.measure.web_page import paragraph, picture, section, table, web_page

Rows = Sequence[Mapping[str, str]]


def page_of(
    names: Sequence[str], source: str, outcomes: Sequence[Outcome], scores: Rows, agreement: Rows
) -> str:
    """Return a page on how far the models called `names` agree on the questions of `source`."""
    parts = [
        paragraph(
            f"{len(outcomes)} questions of {source}. Both compute as PyTorch does (ACCURACY mode), "
            "so that they differ in their weights alone. In brackets: 95 % confidence intervals."
        ),
        table(agreement),
        table(scores),
        section("The most different answers"),
    ]
    for outcome in most_different(outcomes):
        sample = outcome.sample
        answers = [
            {"model": name, "answer": text} for name, text in zip(names, outcome.texts, strict=True)
        ]
        if sample.right:
            answers.append({"model": "right", "answer": " | ".join(sorted(set(sample.right)))})
        parts += [
            section(f"{sample.name}: {sample.text}"),
            picture(sample.open(), f"the picture of {sample.name}, which is asked: {sample.text}"),
            table(answers),
            paragraph(
                f"Similarity of the texts {outcome.likeness:.2f}, KL of the first token "
                f"{outcome.divergence:.4f}."
            ),
        ]
    return web_page(f"{names[-1]} beside {names[0]}", *parts)
