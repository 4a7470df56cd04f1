"""What models answer to the questions of a file: scores, and how far two models agree.

What this module does not know: where questions come from, and how a page shows them.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from helpers.convert.folders import Report
from helpers.errors import PictureError, QuestionError, SettingsError
from helpers.inputs.messages import message_of
from helpers.inputs.questions import PictureQuestion, Question
from helpers.measure.data_sets import Questions, Sample
from helpers.measure.evaluation import (
    Answers,
    Model,
    compare,
    divergences,
    interval_of_mean,
)
from helpers.measure.metrics import METRICS, similarity
from helpers.measure.shares import Share
from helpers.resources import duration_in_words

BATCH = 4  # questions that are answered together: more take little less time and more memory
CHUNK = 24  # questions whose pictures are in memory at once


@dataclass(frozen=True)
class Outcome:
    """A question with the `texts` of each model.

    `divergence` is how far the last model's first token is from the first one's, in nats;
    `likeness` how alike their texts are, 0 to 1: 1 - edit distance / length of the longer.
    """

    sample: Sample
    texts: tuple[str, ...]
    divergence: float
    likeness: float


def outcomes_of(
    models: Sequence[Model],
    questions: Questions,
    *,
    max_new_tokens: int = 64,
    report: Report = lambda line: None,
) -> tuple[list[Outcome], list[str]]:
    """Return what one model or two answer greedily, and sentences on what could not be asked.

    `report` is told how far it is. Pictures are opened a few at a time. Raises `SettingsError` for
    models with other tokens, whose first ones cannot be compared.
    """
    if any(_tokens(model) != _tokens(models[0]) for model in models):
        raise SettingsError(
            "The two models have other tokens, so that they cannot be compared; give two that were "
            "made of one checkpoint, or of one family."
        )
    outcomes: list[Outcome] = []
    left_out = list(questions.left_out)
    samples, started = questions.samples, time.monotonic()
    places = {str(place): model for place, model in enumerate(models)}
    for start in range(0, len(samples), CHUNK):
        chunk = samples[start : start + CHUNK]
        pairs: list[tuple[Sample, PictureQuestion]] = []
        for sample in chunk:
            try:
                pair = _pair(sample, questions.instruction)
                _check(models[0], pair, max_new_tokens)
                pairs.append((sample, pair))
            except (PictureError, QuestionError) as error:
                left_out.append(f"{sample.name}: {error}")
        if pairs:
            picture_questions = [pair for _, pair in pairs]
            answers = compare(places, picture_questions, max_new_tokens=max_new_tokens, batch=BATCH)
            outcomes += _joined([sample for sample, _ in pairs], list(answers.values()))
        done = start + len(chunk)
        left = (time.monotonic() - started) / done * (len(samples) - done)
        report(f"{done} of {len(samples)} questions done, about {duration_in_words(left)} left")
    return outcomes, left_out


def _tokens(model: Model) -> dict[str, int]:
    vocabulary: dict[str, int] = model.processor.tokenizer.get_vocab()
    return vocabulary


def _pair(sample: Sample, instruction: str) -> PictureQuestion:
    text = f"{sample.text}\n{instruction}" if instruction else sample.text
    return sample.open(), Question(sample.kind, text, sample.right[0] if sample.right else "")


def _check(model: Model, pair: PictureQuestion, max_new_tokens: int) -> None:
    """Raise a `QuestionError` for a question that has no words, or no room in the context."""
    picture, question = pair
    message = message_of(question.text, [picture])
    ids = model.processor.input_ids([message], model.image_inputs([picture]))
    model.processor.check_room(ids.shape[1], max_new_tokens)


def _joined(samples: Sequence[Sample], answers: Sequence[Answers]) -> list[Outcome]:
    first, last = answers[0], answers[-1]
    distances = divergences(first, last).tolist()
    likenesses = map(similarity, first.texts, last.texts)
    texts = zip(*(model_answers.texts for model_answers in answers), strict=True)
    return [Outcome(*row) for row in zip(samples, texts, distances, likenesses, strict=True)]


# Scores


@dataclass(frozen=True)
class Score:
    """The mean of values of so many questions, and where it lies with a probability of 95 %."""

    value: float
    low: float
    high: float
    questions: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Score":
        """Return the mean of values from 0 to 1: a share's interval, or a resampled mean's."""
        mean = sum(values) / len(values)
        if set(values) <= {0.0, 1.0}:
            low, high = Share(round(sum(values)), len(values)).interval
        else:
            low, high = interval_of_mean(torch.tensor(values, dtype=torch.float64))
        return cls(mean, low, high, len(values))

    def __str__(self) -> str:
        return f"{self.value:.1%} ({100 * self.low:.0f} to {100 * self.high:.0f})"


def scores(
    outcomes: Sequence[Outcome], metrics: Sequence[str], place: int = 0
) -> dict[str, dict[str, Score]]:
    """Return the score of each metric of the model at `place`: of `all`, then of each kind.

    Questions without a right answer do not count; {} where there are no others.
    """
    answerable = [outcome for outcome in outcomes if outcome.sample.right]
    if not answerable:
        return {}
    groups = {"all": answerable}
    for kind in sorted({outcome.sample.kind for outcome in answerable if outcome.sample.kind}):
        groups[kind] = [outcome for outcome in answerable if outcome.sample.kind == kind]
    return {kind: _scores_of(group, metrics, place) for kind, group in groups.items()}


def _scores_of(outcomes: Sequence[Outcome], metrics: Sequence[str], place: int) -> dict[str, Score]:
    return {
        name: Score.of([_value(name, outcome, place) for outcome in outcomes]) for name in metrics
    }


def _value(name: str, outcome: Outcome, place: int) -> float:
    metric = outcome.sample.metric or METRICS[name]
    return metric(outcome.texts[place], outcome.sample.right)


def score_rows(tables: Mapping[str, Mapping[str, Mapping[str, Score]]]) -> list[dict[str, str]]:
    """Return a row for each kind and metric of `scores`, with a column for each model by name."""
    first = next(iter(tables.values()))
    rows = []
    for kind, metrics in first.items():
        for metric, score in metrics.items():
            row = {"kind": kind, "metric": metric, "questions": str(score.questions)}
            rows.append(row | {name: str(table[kind][metric]) for name, table in tables.items()})
    return rows


# Agreement


def agreement_scores(outcomes: Sequence[Outcome]) -> dict[str, Score]:
    """Return how far two models agree, with or without right answers.

    `equal answers` and `similarity of texts` are shares, `KL of the first token` is in nats: the
    Kullback-Leibler divergence of the last model's distribution from the first one's.
    """
    distances = torch.tensor([outcome.divergence for outcome in outcomes], dtype=torch.float64)
    return {
        "equal answers": Score.of([float(len(set(outcome.texts)) == 1) for outcome in outcomes]),
        "similarity of texts": Score.of([outcome.likeness for outcome in outcomes]),
        KL: Score(distances.mean().item(), *interval_of_mean(distances), len(outcomes)),
    }


KL = "KL of the first token"


def agreement_rows(shares: Mapping[str, Score]) -> list[dict[str, str]]:
    """Return a row for each measure of `agreement_scores`; a divergence in thousandths of a nat."""
    rows = []
    for name, score in shares.items():
        words = str(score)
        if name == KL:
            name = f"1000 {KL}"
            words = f"{1e3 * score.value:.2f} ({1e3 * score.low:.2f} to {1e3 * score.high:.2f})"
        rows.append({"agreement": name, "questions": str(score.questions), "value": words})
    return rows


def most_different(outcomes: Sequence[Outcome], number: int = 10) -> list[Outcome]:
    """Return the outcomes whose texts are least alike; of equally alike ones the most moved."""
    return sorted(outcomes, key=lambda row: (row.likeness, -row.divergence))[:number]
