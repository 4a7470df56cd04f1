"""Measure what settings do to answers: `python -m helpers.workshop.settings NAME`.

Each setting is forced on all parts of a bundled model in `int4` and `int4-sym`. A row has, of so
many drawn `--questions`, the mean divergence from ACCURACY mode of the first and of the tenth token
in thousandths of a nat, and the right answers. All settings read the same ten tokens, those that
ACCURACY mode writes; of a shorter answer the last token counts as the tenth.

What this module does not know: how fast a setting is.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from helpers.convert.conversion import convert
from helpers.graphs.presets import find_preset
from helpers.inputs.questions import VisualQuestion
from helpers.measure.candidates import GROUP, PRECISION
from helpers.measure.evaluation import accuracy, answer, divergences_of_logits, question_inputs
from helpers.measure.tune import answer_logits
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.tuning import properties_in_words
from helpers.show.tables import show_table
from helpers.sources.checkpoints import BUNDLED
from helpers.workshop.recipes import RECIPES
from helpers.workshop.report import questions_for

QUESTIONS, SEED = 300, 2027
TOKENS = 10
SETTINGS: dict[str, Sequence[Mapping[str, object]]] = {
    "int4": (
        {},
        {GROUP: 64},
        {GROUP: 128},
        {PRECISION: "f32"},
        {PRECISION: "f32", GROUP: 64},
        {PRECISION: "f32", GROUP: 128},
        {"KV_CACHE_PRECISION": "f16"},
    ),
    "int4-sym": ({}, {GROUP: 64}),
}


class _Answers:
    """What ACCURACY mode writes: of each question its first tokens and the logits behind them."""

    def __init__(self, folder: Path, pairs: Sequence[VisualQuestion]) -> None:
        self.pairs, self.token_ids, self.logits = pairs, list[list[int]](), list[Tensor]()
        with VisionLanguagePipeline(folder, accuracy=True) as pipeline:
            ends = pipeline.processor.stop_token_ids
            for pair in pairs:
                logits = _logits(pipeline, pair, TOKENS)
                token_ids = logits.argmax(-1).tolist()
                length = next((n for n, token in enumerate(token_ids, 1) if token in ends), TOKENS)
                self.token_ids.append(token_ids[:length])
                self.logits.append(logits[:length])
            self.right = accuracy(answer(pipeline, pairs), pairs)["all"].right

    def row(self, folder: Path, properties: Mapping[str, object]) -> dict[str, str]:
        """Return how far a setting is from them, and how many of its answers are right."""
        ends = []
        with VisionLanguagePipeline(folder, properties=properties, tuned=False) as pipeline:
            for pair, token_ids, reference in zip(
                self.pairs, self.token_ids, self.logits, strict=True
            ):
                logits = _logits(pipeline, pair, len(token_ids), token_ids)
                ends.append(divergences_of_logits(reference, logits)[[0, -1]])
            right = accuracy(answer(pipeline, self.pairs), self.pairs)["all"].right
        first, tenth = (1000 * torch.stack(ends).mean(0)).tolist()
        return {
            "setting": properties_in_words(properties),
            "first": f"{first:.2g}",
            "tenth": f"{tenth:.2g}",
            "right": str(right),
        }


def _logits(
    pipeline: VisionLanguagePipeline,
    pair: VisualQuestion,
    number: int,
    token_ids: Sequence[int] = (),
) -> Tensor:
    """Return the logits (number, vocabulary) behind a question and each token of its answer."""
    picture, question = pair
    return answer_logits(
        pipeline, question_inputs(pipeline, picture, question.text), number, token_ids
    )


def measure(name: str, number: int) -> Iterator[dict[str, str]]:
    """Yield a row for ACCURACY mode and each setting of each preset, for a bundled checkpoint."""
    pairs = questions_for(RECIPES[name], number, SEED)
    for preset, settings in SETTINGS.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / preset
            convert(BUNDLED / name, folder, find_preset(preset))
            answers = _Answers(folder, pairs)
            right = str(answers.right)
            yield {
                "preset": preset,
                "setting": "ACCURACY",
                "first": "-",
                "tenth": "-",
                "right": right,
            }
            for properties in settings:
                yield {"preset": preset} | answers.row(folder, properties)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m helpers.workshop.settings")
    parser.add_argument("name", choices=sorted(RECIPES), help="a bundled checkpoint")
    parser.add_argument("--questions", type=int, default=QUESTIONS, metavar="NUMBER")
    options = parser.parse_args()
    rows = []
    for row in measure(options.name, options.questions):
        print(*row.values(), sep=", ", flush=True)
        rows.append(row)
    show_table(rows)


if __name__ == "__main__":
    main()
