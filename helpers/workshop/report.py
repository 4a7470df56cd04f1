"""Measure a bundled checkpoint and write its card: `python -m helpers.workshop.report FAMILY`.

Leaves `accuracy.json` (the figures, from which the README's table is made) and `README.md` (the
card) beside the checkpoint.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TypedDict

import torch
from PIL import Image

from helpers.convert.calibration import inputs_by_part
from helpers.convert.conversion import convert_part, write
from helpers.graphs.compression import compress
from helpers.graphs.presets import Preset, find_preset
from helpers.inputs.questions import Question, VisualQuestion
from helpers.inputs.video import Video
from helpers.measure import evaluation
from helpers.measure.evaluation import Answers, Model
from helpers.models import load_model
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes.clips import draw_clip, sample_clips
from helpers.shapes.questions import draw_pairs, draw_samples, sample_questions
from helpers.shapes.world import draw
from helpers.show.tables import format_table
from helpers.sources.checkpoints import BUNDLED, read_json
from helpers.sources.hub import checkpoint_bytes
from helpers.workshop.recipes import RECIPES, Recipe

QUESTIONS, SEED = 500, 2026
SECOND_QUESTIONS = 140  # 20 of each kind


class AnswerFigures(TypedDict):
    """What is measured of one model.

    That is its accuracy by kind of question, its agreement with PyTorch by measure, and the places,
    from 0, of the questions that it answers wrongly.
    """

    accuracy: dict[str, float]
    agreement: dict[str, float]
    wrong: list[int]


class SecondFigures(TypedDict):
    """How many of a number of questions are right: asked first, and asked second."""

    questions: int
    first: int
    second: int


CARD = """\
# A small {family} that knows drawn shapes

{notice}

| | |
|---|---|
| layout | the authors' own: `config.json` and the names of all tensors |
| size | {parameters:.2f} million parameters, {megabytes:.1f} MB in float16 |
| data | pictures and questions that `helpers/shapes/world.py` draws from seeds; no other data |
| not in its training | two pictures in one question, two questions in one, system messages, \
other words than those of `helpers/shapes/questions.py`, capitals, other languages |
| rare in its training | a shape that differs from equal others in both colour and shape |
| training | {training} |
| licence | Apache-2.0 |
| to train it again | `python -m helpers.workshop.training {family}` |
| to measure it again | `python -m helpers.workshop.report {family}` |

Exact answers to {questions} questions about pictures and words that training never showed, greedy,
in ACCURACY mode; KL is the mean divergence of the first token's distribution from PyTorch's. In
int4, the language model is {int4}.

```
{table}
```

In a conversation: of {second[questions]} other questions, {second[first]} are answered rightly
when they are asked first, and {second[second]} when they are asked second, after another question
about the same picture (FP16).
"""


def measure(folder: Path, *, place: Path, every: int = 1) -> dict[str, AnswerFigures]:
    """Return the figures of PyTorch and of each precision, from one question of `every` so many.

    Converted models are written to `place`.
    """
    pairs = questions_for(RECIPES[folder.name], QUESTIONS, SEED, every=every)
    models: dict[str, Model] = {"PyTorch": load_model(folder, torch.float32)}
    for preset, output in convert_with_samples(folder, place, presets(folder.name)):
        models[preset.name] = VisionLanguagePipeline(output, accuracy=True)
    answers = evaluation.compare(models, pairs)
    return {
        name: _figures(answers["PyTorch"], model_answers, pairs, every)
        for name, model_answers in answers.items()
    }


def measure_second_questions(pipeline: VisionLanguagePipeline) -> SecondFigures:
    """Ask each question first, and in a conversation second, after the model's own first answer."""
    first = second = 0
    for picture, other, question in draw_pairs(SECOND_QUESTIONS, seed=SEED + 1):
        first += evaluation.is_right(pipeline.ask(question.text, [picture]).text, question)
        conversation = pipeline.conversation()
        conversation.ask(other.text, [picture]).wait()
        second += evaluation.is_right(conversation.ask(question.text).text, question)
    return {"questions": SECOND_QUESTIONS, "first": first, "second": second}


def questions_for(
    recipe: Recipe, number: int, seed: int, *, every: int = 1
) -> list[VisualQuestion]:
    """Return questions of the kinds that a model has learned, clips being one more kind.

    Of the `number`, they are the first and each `every`th after it; no other is drawn.
    """
    about_clips = number // (len(recipe.kinds) + 1) if recipe.clips else 0
    pictures = sample_questions(number - about_clips, seed=seed, kinds=recipe.kinds)
    clips = sample_clips(about_clips, seed=seed)
    drawings: Iterator[tuple[Callable[[], Image.Image | Video], Question]] = chain(
        ((partial(draw, scene), question) for scene, question in pictures),
        ((partial(draw_clip, clip), question) for clip, question in clips),
    )
    return [(drawing(), question) for drawing, question in islice(drawings, 0, None, every)]


def presets(family: str) -> list[Preset]:
    """Return what is measured beside PyTorch: 16 and 8 bits, and the INT4 of the notebook."""
    int4 = replace(find_preset("int4"), language_model=RECIPES[family].int4)
    return [find_preset("fp16"), find_preset("int8"), int4]


def convert_with_samples(
    folder: Path, place: Path, presets: Sequence[Preset]
) -> Iterator[tuple[Preset, Path]]:
    """Convert once, compress as each preset says, and yield it with its folder in `place`.

    Where a preset looks at samples, they are of the drawn world.
    """
    model = load_model(folder)
    parts = {part.name: convert_part(part) for part in model.parts()}
    for preset in presets:
        setting, inputs = preset.language_model, {}
        if setting.needs_data:
            inputs = inputs_by_part(parts, model.processor, draw_samples(setting.samples))
        smaller = [
            (name, compress(part.clone(), preset.weights_of(name), inputs.get(name)))
            for name, part in parts.items()
        ]
        write(smaller, place / preset.name, checkpoint=folder, preset=preset, compressed=True)
        yield preset, place / preset.name


def _figures(
    reference: Answers, answers: Answers, pairs: Sequence[VisualQuestion], every: int
) -> AnswerFigures:
    shares = evaluation.accuracy(answers, pairs)
    agreement = asdict(evaluation.agreement(reference, answers))
    wrong = [place * every for place in evaluation.wrong_places(answers, pairs)]
    values = {kind: share.value for kind, share in shares.items()}
    return {"accuracy": _rounded(values), "agreement": _rounded(agreement), "wrong": wrong}


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def accuracy_rows(figures: dict[str, AnswerFigures]) -> list[dict[str, str]]:
    """Return measured figures as rows: a kind each, then the agreement."""
    kinds = next(iter(figures.values()))["accuracy"]
    rows = [
        {"kind": kind} | {name: f"{run['accuracy'][kind]:.1%}" for name, run in figures.items()}
        for kind in kinds
    ]
    for measure_name, title, form in (
        ("top_token", "same first token", ".1%"),
        ("divergence", "KL", ".4f"),
    ):
        row = {name: f"{run['agreement'][measure_name]:{form}}" for name, run in figures.items()}
        rows.append({"kind": title} | row)
    return rows


def write_card(
    folder: Path, figures: dict[str, AnswerFigures], second: SecondFigures, training: str
) -> None:
    """Write `accuracy.json` and the card."""
    report = {"questions": QUESTIONS, "seed": SEED, "training": training}
    report |= {"second questions": second, "figures": figures}
    text = json.dumps(report, indent=1) + "\n"
    (folder / "accuracy.json").write_text(text, encoding="utf-8")
    model = load_model(folder)
    card = CARD.format(
        family=folder.name,
        notice=read_json(folder / "bundled.json")["notice"],
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        megabytes=checkpoint_bytes(folder) / 1e6,
        training=training,
        questions=QUESTIONS,
        int4=RECIPES[folder.name].int4,
        table=format_table(accuracy_rows(figures)),
        second=second,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(prog="python -m helpers.workshop.report", description=__doc__)
    parser.add_argument("family", help="a bundled checkpoint")
    parser.add_argument("--training", help="what the card says of the training")
    arguments = parser.parse_args()
    folder = BUNDLED / arguments.family
    before = folder / "accuracy.json"
    training = arguments.training or (read_json(before)["training"] if before.exists() else "")
    with tempfile.TemporaryDirectory() as place:
        figures = measure(folder, place=Path(place))
        with VisionLanguagePipeline(Path(place) / "fp16", accuracy=True) as fp16:
            second = measure_second_questions(fp16)
    write_card(folder, figures, second, training)
    print(format_table(accuracy_rows(figures)))


if __name__ == "__main__":
    main()
