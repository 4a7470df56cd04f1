"""A checkpoint proven: ours in PyTorch, transformers' own class and OpenVINO on the same questions.

They are about drawn pictures and charts, so that right answers are known. One model is in memory at
a time, and each question is asked alone.

What this module does not know: how a page shows it.
"""

import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.convert.conversion import convert
from helpers.convert.folders import Report
from helpers.convert.origins import describe_source
from helpers.convert.quantizing import check_image_encoder
from helpers.graphs.presets import find_preset
from helpers.inputs.messages import user_message
from helpers.inputs.questions import PictureQuestion
from helpers.measure.benchmark import computer
from helpers.measure.evaluation import Model, generate, greedy
from helpers.measure.figures import Computer
from helpers.measure.metrics import normalised
from helpers.measure.shares import Share
from helpers.models import load_model
from helpers.models.base import VisionLanguageModel
from helpers.models.exported import Features
from helpers.models.families import on_meta_device
from helpers.models.processors import Processor
from helpers.models.reference import (
    feature_rows,
    load_reference,
    recorded_features,
    reference_class,
)
from helpers.resources import available_memory, return_freed_memory
from helpers.run.decoding import text_of
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes.charts import draw_chart_questions
from helpers.shapes.questions import draw_questions
from helpers.sources.hub import checkpoint_bytes

NUMBER = 20  # of the questions
OURS = "ours in PyTorch"
# What differences of the largest value are roundings: in 32 bits, and in the 16 of most originals.
# Measured in 32 bits, of small random models: 0 beside transformers' class, 2e-6 on OpenVINO.
TOLERANCES = {torch.float32: 1e-3}
TOLERANCE_OF_16_BITS = 3e-2


def proof_questions(number: int = NUMBER) -> list[PictureQuestion]:
    """Return the first of 20 questions about drawn shapes and drawn charts, the same each time."""
    shapes = draw_questions(NUMBER // 2, seed=0, kinds=("count", "colour", "shape"))
    charts = draw_chart_questions(NUMBER // 2, seed=0)
    return [pair for pairs in zip(shapes, charts, strict=True) for pair in pairs][:number]


@dataclass(frozen=True)
class Trace:
    """What one question leaves: picture features, the first token's logits, tokens and their text.

    `features` (tokens, hidden) are None where a model has keys and values instead.
    """

    features: Tensor | None
    logits: Tensor
    token_ids: list[int]
    text: str


@dataclass(frozen=True)
class Comparison:
    """A model beside ours in PyTorch, or that itself: differences as shares of the largest value.

    `tolerance` is what they may be; None where weights in fewer bits may change anything.
    """

    name: str
    right: Share
    features: float | None = None
    logits: float | None = None
    same_tokens: Share | None = None
    tolerance: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the differences are roundings, as far as they have to be."""
        if self.tolerance is None:
            return True
        return max(self.features or 0.0, self.logits or 0.0) <= self.tolerance

    @property
    def row(self) -> dict[str, str]:
        """The comparison as a row of a table."""
        return {
            "model": self.name,
            "right": self.right.count,
            "features differ by": _share(self.features),
            "logits differ by": _share(self.logits),
            "at most": _share(self.tolerance),
            "same tokens": self.same_tokens.count if self.same_tokens else "-",
        }


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


@dataclass(frozen=True)
class Proof:
    """What was compared; `texts` are the answers to each of the `questions`, by model."""

    source: dict[str, Any]
    reference: str  # the name of transformers' own class, or ""
    dtype: str
    computer: Computer
    questions: Sequence[PictureQuestion]
    comparisons: Sequence[Comparison]
    texts: dict[str, list[str]]

    @property
    def holds(self) -> bool:
        """Whether nothing differs by more than it may."""
        return all(comparison.holds for comparison in self.comparisons)

    @property
    def rows(self) -> list[dict[str, str]]:
        """A row for each model."""
        return [comparison.row for comparison in self.comparisons]

    @property
    def verdict(self) -> str:
        """One sentence on how it ended."""
        names = [comparison.name for comparison in self.comparisons if not comparison.holds]
        if names:
            return f"{' and '.join(names)} differ from {OURS} by more than rounding."
        names = [c.name for c in self.comparisons if c.tolerance is not None]
        if not names:
            return f"Weights in fewer bits alone were compared with {OURS}; they may differ."
        return f"But for rounding, the same as {OURS}: {' and '.join(names)}."

    @property
    def about_reference(self) -> str:
        """What transformers' own class has to do with it."""
        if self.reference:
            return f"transformers' own class for this checkpoint is {self.reference}."
        return (
            "transformers has no class of its own for this checkpoint, so ours in PyTorch is "
            "compared with OpenVINO only."
        )

    @property
    def data(self) -> dict[str, Any]:
        """All of it but the pictures, as JSON has it."""
        return {
            "holds": self.holds,
            "source": self.source,
            "transformers' class": self.reference,
            "dtype": self.dtype,
            "computer": asdict(self.computer),
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "answers": [
                {"question": question.text, "right": question.answer}
                | {name: texts[place] for name, texts in self.texts.items()}
                for place, (_, question) in enumerate(self.questions)
            ],
        }


def prove(
    checkpoint: Path,
    folder: Path | None = None,
    *,
    precisions: Sequence[str] = ("fp16", "int4"),
    questions: int = NUMBER,
    max_new_tokens: int = 24,
    report: Report = lambda line: None,
) -> Proof:
    """Ask ours in PyTorch, transformers' own class if there is one, and OpenVINO; compare them.

    Converted models are kept in `folder`, or removed. OpenVINO computes as PyTorch does (ACCURACY
    mode), so that its weights alone may differ. Raises `SettingsError` for an unknown precision.
    """
    presets = {name: find_preset(name) for name in precisions}
    for preset in presets.values():
        check_image_encoder(on_meta_device(checkpoint), preset)
    pairs = proof_questions(questions)
    model = pytorch_model(checkpoint, report=report)
    dtype, processor = model.dtype, model.processor
    tolerance = TOLERANCES.get(dtype, TOLERANCE_OF_16_BITS)
    ours = _traces(OURS, partial(trace, model, max_new_tokens), pairs, report)
    comparisons = [Comparison(OURS, _right(ours, pairs))]
    texts = {OURS: [answer.text for answer in ours]}

    def add(name: str, others: Sequence[Trace], limit: float | None) -> None:
        comparisons.append(_compared(name, others, ours, pairs, limit))
        texts[name] = [answer.text for answer in others]
        gc.collect()
        return_freed_memory()

    language_model: Any = model  # its options of `generate` are ours
    options = greedy(language_model, max_new_tokens)
    del model, language_model
    gc.collect()
    if class_name := reference_class(checkpoint):
        reference = load_reference(checkpoint, dtype)
        ask = partial(_trace_reference, reference, processor, options)
        add(class_name, _traces(class_name, ask, pairs, report), tolerance)
        del reference, ask
    for name, preset in presets.items():
        with _place(folder, name) as output:
            convert(checkpoint, output, preset, report=report)
            pipeline = VisionLanguagePipeline(output, accuracy=True)
            ask = partial(trace, pipeline, max_new_tokens)
            title = f"OpenVINO {name}"
            add(title, _traces(title, ask, pairs, report), tolerance if name == "fp16" else None)
            del pipeline, ask
    source = describe_source(checkpoint)
    return Proof(source, class_name, str(dtype), computer(), pairs, comparisons, texts)


def pytorch_model(
    checkpoint: Path, *, picture_tokens: int | None = None, report: Report
) -> VisionLanguageModel[Any]:
    """Return a checkpoint in PyTorch: in 32 bits where they take half of the free memory at most.

    Otherwise in the type of its files, whose roundings are larger. A picture becomes as many tokens
    as in a pipeline.
    """
    fits = 2 * checkpoint_bytes(checkpoint) <= available_memory() / 2
    model = load_model(checkpoint, torch.float32 if fits else None)
    usual = model.processor.usual_picture_tokens if picture_tokens is None else picture_tokens
    model.processor = model.processor.within(usual)
    report(f"PyTorch computes in {str(model.dtype).removeprefix('torch.')}")
    return model


@contextmanager
def _place(folder: Path | None, precision: str) -> Iterator[Path]:
    """Give where a conversion is written; without a `folder` it is removed at the end."""
    if folder is not None:
        yield folder / precision
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:  # Windows maps files
        yield Path(place) / precision


def _traces(
    name: str,
    ask: Callable[[PictureQuestion], Trace],
    pairs: Sequence[PictureQuestion],
    report: Report,
) -> list[Trace]:
    traces: list[Trace] = []
    for pair in pairs:
        report(f"{name}: {len(traces)} of {len(pairs)} questions answered")
        traces.append(ask(pair))
    report(f"{name}: {len(traces)} of {len(pairs)} questions answered")
    return traces


@torch.inference_mode()
def trace(model: Model, max_new_tokens: int, pair: PictureQuestion) -> Trace:
    """Return what one question leaves in a model of ours, in PyTorch or on OpenVINO."""
    picture, question = pair
    inputs = model.image_inputs([picture])
    features: Features = model.encode_images(**inputs)
    prompt = model.processor.input_ids([user_message(question.text, 1)], inputs)
    prepared = model.prepare(prompt, features)
    output = generate(model, **prepared, generation_config=greedy(model, max_new_tokens))
    return _trace_of(feature_rows(features), output, 0, model.processor)


@torch.inference_mode()
def _trace_reference(
    reference: PreTrainedModel, processor: Processor, options: Any, pair: PictureQuestion
) -> Trace:
    """Return what one question leaves in transformers' own class, which gets our inputs."""
    picture, question = pair
    images = processor.image_inputs([picture])
    prompt = processor.input_ids([user_message(question.text, 1)], images)
    inputs = processor.transformers_inputs(prompt, images)
    model: Any = reference
    with recorded_features(reference) as features:
        output = model.generate(**inputs, generation_config=options)
    rows = feature_rows(features[0]) if features else None
    return _trace_of(rows, output, prompt.shape[1], processor)


def _trace_of(features: Tensor | None, output: Any, start: int, processor: Processor) -> Trace:
    token_ids = output.sequences[0, start:].tolist()
    text = text_of(processor.tokenizer, token_ids)
    return Trace(features, output.logits[0][0].float(), token_ids, text)


def _compared(
    name: str,
    others: Sequence[Trace],
    ours: Sequence[Trace],
    pairs: Sequence[PictureQuestion],
    tolerance: float | None,
) -> Comparison:
    features = [
        _difference(other.features, mine.features)
        for other, mine in zip(others, ours, strict=True)
        if other.features is not None and mine.features is not None
    ]
    traces = list(zip(others, ours, strict=True))
    return Comparison(
        name,
        _right(others, pairs),
        max(features, default=None),
        max(_difference(other.logits, mine.logits) for other, mine in traces),
        Share(sum(other.token_ids == mine.token_ids for other, mine in traces), len(traces)),
        tolerance,
    )


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value; infinite for other shapes."""
    if actual.shape != expected.shape:
        return float("inf")
    return float((actual - expected).abs().max() / expected.abs().max())


def _right(traces: Sequence[Trace], pairs: Sequence[PictureQuestion]) -> Share:
    """Return how many answers hold the right words, since originals answer in sentences."""
    answers = zip(traces, pairs, strict=True)
    right = [
        f" {normalised(question.answer)} " in f" {normalised(answer.text)} "
        for answer, (_, question) in answers
    ]
    return Share(sum(right), len(right))
