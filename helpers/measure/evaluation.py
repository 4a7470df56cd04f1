"""Measure a model: right answers, and agreement with PyTorch.

Everything here takes a PyTorch model or a pipeline on OpenVINO, which have the same calls, so that
both are measured by the same code in the same run.

What this module does not know: answers that are right in other words; an answer is exact or wrong,
but for the sides of a box, which may be a little off.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from helpers.convert.manifests import file_hash
from helpers.inputs.boxes import boxes_in, intersection_over_union, same_boxes
from helpers.inputs.messages import user_message
from helpers.inputs.questions import Question, VisualQuestion
from helpers.inputs.video import Video
from helpers.measure.shares import Share
from helpers.models.base import VisionLanguageModel
from helpers.models.exported import Features, collate
from helpers.resources import in_words
from helpers.run.decoding import text_of
from helpers.run.pipeline import VisionLanguagePipeline

Model = VisionLanguageModel[Any] | VisionLanguagePipeline  # which have the same calls


@dataclass(frozen=True)
class Answers:
    """What a model said: its texts, and the logits (questions, vocabulary) of each first token."""

    texts: list[str]
    first_logits: Tensor


def answer(
    model: Model,
    pairs: Sequence[VisualQuestion],
    *,
    max_new_tokens: int = 64,
    batch: int = 25,
    report: Callable[[int], None] = lambda done: None,
) -> Answers:
    """Answer the questions of all `pairs` greedily; `report` is told how many are done.

    A `batch` of them is answered at a time: those with answers of like length, since a batch takes
    as many steps as its longest answer.
    """
    models = {"": model}
    return compare(models, pairs, max_new_tokens=max_new_tokens, batch=batch, report=report)[""]


@torch.inference_mode()
def compare(
    models: Mapping[str, Model],
    pairs: Sequence[VisualQuestion],
    *,
    max_new_tokens: int = 64,
    batch: int = 25,
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, Answers]:
    """Return the answers of each model, by its name, to the same questions, as `answer` does.

    The first of `models` is the one that the others are compared with: PyTorch's. Pipelines whose
    files of the image encoder are equal encode each picture once for all of them.
    """
    texts = {name: [""] * len(pairs) for name in models}
    logits = {name: [torch.empty(0)] * len(pairs) for name in models}
    encoders = _encoders(models)
    order = sorted(range(len(pairs)), key=lambda place: _length(pairs[place][1]))
    for start in range(0, len(pairs), batch):
        places = order[start : start + batch]
        batch_pairs = [pairs[place] for place in places]  # kept, as the `id` of a picture is a key
        features: dict[Hashable, dict[int, Features]] = {key: {} for key in encoders.values()}
        for name, model in models.items():
            prompts = [
                question_inputs(model, picture, question.text, features[encoders[name]])
                for picture, question in batch_pairs
            ]
            output = generate(
                model,
                **collate(prompts),
                generation_config=greedy(model, max_new_tokens),
            )
            rows = zip(places, output.sequences.tolist(), output.logits[0].float(), strict=True)
            for place, token_ids, first_logits in rows:
                texts[name][place] = text_of(model.processor.tokenizer, token_ids)
                logits[name][place] = first_logits
        report(start + len(places))
    return {name: Answers(texts[name], torch.stack(logits[name])) for name in models}


def _encoders(models: Mapping[str, Model]) -> dict[str, Hashable]:
    """Return what the features of each model come from; equal where they are the same ones."""
    pipelines = [model for model in models.values() if isinstance(model, VisionLanguagePipeline)]
    if len(pipelines) < 2:  # files need not be read
        return {name: name for name in models}
    return {
        name: _encoder(model) if isinstance(model, VisionLanguagePipeline) else name
        for name, model in models.items()
    }


def _encoder(pipeline: VisionLanguagePipeline) -> Hashable:
    """Return what decides about a picture's features: files, properties and the budget."""
    files = pipeline.processor.exported.files
    parts = [pipeline.folder / files[name] for name in pipeline.requests]
    configs = pipeline.folder.glob("*config.json")  # which say how a picture is prepared
    paths = [*parts, *(part.with_suffix(".bin") for part in parts), *sorted(configs)]
    hashes = tuple((path.name, file_hash(path)) for path in paths)
    properties = repr([pipeline.properties[name] for name in pipeline.requests])
    return pipeline.device, pipeline.processor.picture_tokens, properties, hashes


def comparison_rows(
    answers: Mapping[str, Answers],
    pairs: Sequence[VisualQuestion],
    bytes_of: Mapping[str, int],
    *,
    exact: bool = True,
) -> list[dict[str, str]]:
    """Return a row for each model of `compare`: its size in bytes, right answers, its agreement.

    The agreement is with the first model. Right answers are counted where they can be `exact`: an
    original model answers in its own words.
    """
    reference = next(iter(answers))
    rows = []
    for name, model_answers in answers.items():
        right = str(accuracy(model_answers, pairs)["all"]) if exact else "-"
        row = {"model": name, "size": in_words(bytes_of[name]), "right": right}
        row |= dict.fromkeys(("same text", "1000 KL"), "-")
        if name != reference:
            same_texts = map(str.__eq__, answers[reference].texts, model_answers.texts)
            row["same text"] = str(Share(sum(same_texts), len(pairs)))
            values = 1000 * divergences(answers[reference], model_answers)
            low, high = interval_of_mean(values)
            row["1000 KL"] = f"{values.mean():.2f} ({low:.2f} to {high:.2f})"
        rows.append(row)
    return rows


def kind_rows(
    answers: Mapping[str, Answers], pairs: Sequence[VisualQuestion]
) -> list[dict[str, str]]:
    """Return a row for each kind of question: the right answers of each model of `compare`."""
    shares = {name: accuracy(model_answers, pairs) for name, model_answers in answers.items()}
    return [
        {"kind": kind} | {name: shares[name][kind].count for name in shares}
        for kind in next(iter(shares.values()))
    ]


def _length(question: Question) -> tuple[int, int]:
    """Return what sorts questions: how long the answer is to be, then how long the prompt is."""
    return len(question.answer), len(question.text)


def question_inputs(
    model: Model,
    picture: Image.Image | Video,
    text: str,
    features: dict[int, Features] | None = None,
) -> dict[str, Any]:
    """Return all that the language model takes for one question about a picture or a video.

    `features` are those of pictures, by the `id` of each, to which it adds what is missing.
    """
    features = {} if features is None else features
    frames = len(picture) if isinstance(picture, Video) else 0
    inputs = model.image_inputs([picture])
    message = user_message(text, frames=frames) if frames else user_message(text, 1)
    ids = model.processor.input_ids([message], inputs)
    if id(picture) not in features:
        features[id(picture)] = model.encode_images(**inputs)
    return model.prepare(ids, features[id(picture)])


def generate(model: Model, **options: Any) -> Any:
    """Call `generate`, which all language models here have and transformers' types do not know."""
    language_model: Any = model.language_model
    return language_model.generate(**options)


def greedy(model: Model, max_new_tokens: int) -> GenerationConfig:
    """Return how `generate` takes the most probable tokens, and returns their logits too."""
    stop = model.processor.stop_token_ids
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=stop[0],
        output_logits=True,
        return_dict_in_generate=True,
    )


def accuracy(answers: Answers, pairs: Sequence[VisualQuestion]) -> dict[str, Share]:
    """Return the share of exact answers: `all`, then each kind of question."""
    right: dict[str, list[bool]] = {"all": []}
    for text, (_, question) in zip(answers.texts, pairs, strict=True):
        right["all"].append(is_right(text, question))
        right.setdefault(question.kind, []).append(right["all"][-1])
    return {kind: Share(sum(values), len(values)) for kind, values in right.items()}


def is_right(answer: str, question: Question) -> bool:
    """Return whether an answer is the expected one: its words, or its boxes, nearly."""
    if boxes_in(question.answer):
        return same_boxes(answer, question.answer)
    return answer == question.answer


def overlaps(answers: Answers, pairs: Sequence[VisualQuestion]) -> list[float]:
    """Return how well the first box of each answer meets the first of the right one, 0 to 1.

    That is their intersection over union; an answer without a box has 0.
    """
    values = []
    for text, (_, question) in zip(answers.texts, pairs, strict=True):
        boxes, expected = boxes_in(text), boxes_in(question.answer)
        values.append(intersection_over_union(boxes[0], expected[0]) if boxes else 0.0)
    return values


@dataclass(frozen=True)
class Agreement:
    """How close one model's answers are to another's on the same questions.

    `top_token` is the share of questions whose most probable first token is the same; `divergence`
    the mean Kullback-Leibler divergence in nats, sum p log(p / q), of the first token's
    distribution q from the reference's p; `same_text` the share of equal answers.
    """

    top_token: float
    divergence: float
    same_text: float


def divergences(reference: Answers, other: Answers) -> Tensor:
    """Return how far the first token's distribution has moved, in nats, by question (questions,).

    The Kullback-Leibler divergence of `other`'s from the reference's.
    """
    return divergences_of_logits(reference.first_logits, other.first_logits)


def divergences_of_logits(reference: Tensor, other: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence in nats of each row of logits (rows, vocabulary).

    That is sum p log(p / q), of `other`'s distribution q from the reference's p.
    """
    log_p = reference.double().log_softmax(-1)
    log_q = other.double().log_softmax(-1)
    # Not below 0 but for rounding
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def interval_of_mean(values: Tensor) -> tuple[float, float]:
    """Return where the mean of such values (questions,) lies with a probability of 95 %."""
    return _interval(_resampled_means(values))


def interval_of_ratio(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return where the ratio of two means lies with a probability of 95 %.

    Both are values of the same questions (questions,), which are drawn in pairs: a question that is
    hard for one is hard for the other.
    """
    return _interval(_resampled_means(first) / _resampled_means(second))


DRAWS = 2000


def _resampled_means(values: Tensor) -> Tensor:
    """Return the means (draws,) of values drawn with replacement: the bootstrap.

    B. Efron, 1979, doi:10.1214/aos/1176344552. The draws are the same each time.
    """
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(values), (DRAWS, len(values)), generator=generator)
    return values[places].mean(1)


def _interval(values: Tensor) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def agreement(reference: Answers, other: Answers) -> Agreement:
    """Return how close `other` is to `reference`."""
    same_top = reference.first_logits.argmax(-1) == other.first_logits.argmax(-1)
    same_text = [a == b for a, b in zip(reference.texts, other.texts, strict=True)]
    return Agreement(
        top_token=same_top.double().mean().item(),
        divergence=divergences(reference, other).mean().item(),
        same_text=sum(same_text) / len(same_text),
    )


@torch.inference_mode()
def log_probability(
    model: VisionLanguageModel[Any],
    picture: Image.Image,
    text: str,
    token_ids: Sequence[int],
    *,
    picture_tokens: int | None = None,
) -> list[float]:
    """Return the natural logarithm of each answer token's probability, as a PyTorch model has it.

    Each is that of the token at temperature 1 after the question and the tokens before it. The
    picture has at most `picture_tokens`; None: as many as usual.
    """
    processor = model.processor.within(picture_tokens)
    inputs = processor.image_inputs([picture])
    prompt = processor.input_ids([user_message(text, 1)], inputs)
    answer_ids = torch.tensor([list(token_ids)])
    prepared = model.prepare(torch.cat([prompt, answer_ids], 1), model.encode_images(**inputs))
    logits = model(**prepared).logits[0].float()
    before = logits[-len(token_ids) - 1 : -1].log_softmax(-1)  # what stands before each token
    values: list[float] = before.gather(1, answer_ids[0, :, None])[:, 0].tolist()
    return values


def wrong_places(answers: Answers, pairs: Sequence[VisualQuestion]) -> list[int]:
    """Return the places, from 0, of the questions that are not answered exactly."""
    texts = enumerate(zip(answers.texts, pairs, strict=True))
    return [place for place, (text, (_, question)) in texts if not is_right(text, question)]


def wrong_answers(answers: Answers, pairs: Sequence[VisualQuestion]) -> list[dict[str, str]]:
    """Return each wrong answer with its question, as rows for a table."""
    return [
        {
            "question": pairs[place][1].text,
            "answer": answers.texts[place],
            "right": pairs[place][1].answer,
        }
        for place in wrong_places(answers, pairs)
    ]
