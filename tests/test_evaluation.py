"""Shares, divergences and times: on made-up answers, and of the small model."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image
from scipy.stats import binomtest, bootstrap

from helpers.convert.conversion import convert
from helpers.graphs.presets import FP16, find_preset
from helpers.inputs.questions import Question
from helpers.inputs.video import Video
from helpers.measure import evaluation
from helpers.measure.evaluation import (
    Answers,
    accuracy,
    agreement,
    comparison_rows,
    interval_of_mean,
    interval_of_ratio,
    kind_rows,
    overlaps,
    wrong_answers,
)
from helpers.measure.shares import Share
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes import questions
from helpers.shapes.world import draw
from helpers.workshop import report
from helpers.workshop.recipes import RECIPES
from helpers.workshop.report import questions_for

QUESTIONS = [
    (None, Question("count", "How many circles are there?", "2")),
    (None, Question("count", "Count the stars.", "0")),
    (None, Question("colour", "What colour is the star?", "red")),
    (None, Question("word", "Read the word.", "ABC")),
]


def answers_of(texts: list[str], *distributions: list[float]) -> Answers:
    """Return answers whose first tokens have these probabilities."""
    return Answers(texts, torch.tensor(distributions or [[0.5, 0.5]] * len(texts)).log())


def test_the_share_of_right_answers_by_kind():
    answers = answers_of(["2", "2", "red", "abc"])
    assert accuracy(answers, QUESTIONS) == {
        "all": Share(2, 4),
        "count": Share(1, 2),
        "colour": Share(1, 1),
        "word": Share(0, 1),
    }


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (Share(12, 13), "12 of 13"),
        (Share(49, 50), "98.0% (90 to 100)"),
        (Share(0, 50), "0.0% (0 to 7)"),
        (Share(488, 500), "97.6% (96 to 99)"),
    ],
)
def test_a_share_is_a_count_or_has_its_interval(share, text):
    assert str(share) == text


def test_an_interval_as_a_library_computes_it():
    """scipy, which NNCF brings, has the same interval."""
    expected = binomtest(49, 50).proportion_ci(0.95, method="wilson")
    assert Share(49, 50).interval == pytest.approx((expected.low, expected.high), abs=1e-5)


def test_an_interval_has_no_share_below_0_or_above_1():
    """What is rounded would be told as -0 %."""
    totals = range(50, 100)
    assert min(Share(0, total).interval[0] for total in totals) == 0
    assert max(Share(total, total).interval[1] for total in totals) == 1


def test_intervals_of_means_and_of_ratios_as_a_library_computes_them():
    """Both draw at random: measured, 0.5 % apart."""
    generator = torch.Generator().manual_seed(3)
    first, second = torch.rand(2, 200, generator=generator, dtype=torch.float64) ** 3
    second += first / 2  # what is hard for one is hard for the other
    options = {"n_resamples": 20_000, "method": "percentile", "rng": 0, "vectorized": True}
    mean = bootstrap((first.numpy(),), lambda x, axis: x.mean(axis), **options)
    assert interval_of_mean(first) == pytest.approx(mean.confidence_interval, rel=0.02)

    def ratio(x, y, axis):
        return x.mean(axis) / y.mean(axis)

    pair = (first.numpy(), second.numpy())
    paired = bootstrap(pair, ratio, paired=True, **options).confidence_interval
    assert interval_of_ratio(first, second) == pytest.approx(paired, rel=0.02)


def test_models_are_compared_row_by_row():
    pytorch = answers_of(["2", "2", "red", "abc"])
    int4 = answers_of(["2", "0", "red", "ABC"], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.1, 0.9])
    answers, moved = {"PyTorch": pytorch, "int4": int4}, -1000 * math.log(4 * 0.1 * 0.9) / 2
    sizes = {"PyTorch": 3_000_000, "int4": 1_000_000}
    assert comparison_rows(answers, QUESTIONS, sizes)[1] == {
        "model": "int4",
        "size": "1.0 MB",
        "right": "4 of 4",
        "same text": "2 of 4",
        # One question of four has moved, and 1 in 256 draws of four lack it or have it four times.
        "1000 KL": f"{moved / 4:.2f} (0.00 to {moved * 3 / 4:.2f})",
    }
    rows = comparison_rows(answers, QUESTIONS, sizes, exact=False)
    assert [row["right"] for row in rows] == ["-", "-"]
    assert kind_rows(answers, QUESTIONS)[1] == {
        "kind": "count",
        "PyTorch": "1 of 2",
        "int4": "2 of 2",
    }


def test_overlaps_of_boxes():
    def box(*corners: int) -> str:
        return json.dumps([{"bbox_2d": corners, "label": "red star"}])

    question = Question("box", "Give the box of the red star.", box(0, 0, 500, 500))
    texts = [box(0, 0, 500, 500), box(0, 0, 500, 250), box(600, 600, 900, 900), "nowhere"]
    values = overlaps(answers_of(texts), [(None, question)] * len(texts))
    assert values == pytest.approx([1, 0.5, 0, 0])


def test_every_question_needs_an_answer():
    with pytest.raises(ValueError):
        accuracy(answers_of(["2"]), QUESTIONS)


def test_wrong_answers_are_listed_with_their_questions():
    answers = answers_of(["2", "2", "red", "abc"])
    assert wrong_answers(answers, QUESTIONS) == [
        {"question": "Count the stars.", "answer": "2", "right": "0"},
        {"question": "Read the word.", "answer": "abc", "right": "ABC"},
    ]


def test_equal_answers_agree_in_everything():
    answers = answers_of(["a", "b"], [0.2, 0.3, 0.5], [0.9, 0.05, 0.05])
    comparison = agreement(answers, answers)
    assert (comparison.top_token, comparison.divergence, comparison.same_text) == (1.0, 0.0, 1.0)


def test_a_divergence_as_computed_by_hand():
    reference = answers_of(["a", "b"], [0.5, 0.5], [0.9, 0.1])
    other = answers_of(["a", "c"], [0.25, 0.75], [0.4, 0.6])
    comparison = agreement(reference, other)
    terms = [
        0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75),
        0.9 * math.log(0.9 / 0.4) + 0.1 * math.log(0.1 / 0.6),
    ]
    assert comparison.divergence == pytest.approx(sum(terms) / 2, rel=1e-6)
    assert comparison.same_text == 0.5
    assert agreement(other, reference).divergence != pytest.approx(comparison.divergence, rel=0.01)


def test_the_most_probable_token_decides_agreement():
    reference = answers_of(["a"] * 3, [0.6, 0.4], [0.1, 0.9], [0.3, 0.7])
    other = answers_of(["a"] * 3, [0.9, 0.1], [0.9, 0.1], [0.4, 0.6])
    assert agreement(reference, other).top_token == pytest.approx(2 / 3)


def test_adding_to_all_logits_changes_nothing():
    answers = answers_of(["a"], [0.2, 0.8])
    assert agreement(answers, Answers(["a"], answers.first_logits + 7)).divergence < 1e-9


@pytest.fixture(scope="module")
def samples():
    return questions.draw_questions(10, seed=3)


def test_questions_are_drawn_the_same_every_time(samples):
    repeated = questions.draw_questions(10, seed=3)
    assert [question for _, question in samples] == [question for _, question in repeated]
    assert [image.tobytes() for image, _ in samples] == [image.tobytes() for image, _ in repeated]
    assert len({question.kind for _, question in samples}) == 7


def test_of_so_many_questions_only_some_are_drawn(monkeypatch):
    recipe, drawn = RECIPES["qwen3_vl"], []
    expected = questions_for(recipe, 40, 1)[::3]
    assert {type(content) for content, _ in expected} == {Image.Image, Video}
    monkeypatch.setattr(report, "draw", lambda scene: drawn.append(scene) or draw(scene))
    assert questions_for(recipe, 40, 1, every=3) == expected
    assert len(drawn) == sum(isinstance(content, Image.Image) for content, _ in expected)


def test_pytorch_and_the_pipeline_give_the_same_answers(samples, torch_model, pipeline):
    counts = []
    reference = evaluation.answer(torch_model, samples, max_new_tokens=8, batch=4)
    actual = evaluation.answer(pipeline, samples, max_new_tokens=8, batch=4, report=counts.append)
    assert counts == [4, 8, 10]
    assert actual.texts == reference.texts and len(set(reference.texts)) > 5
    assert actual.first_logits.shape == reference.first_logits.shape
    comparison = agreement(reference, actual)
    assert (comparison.top_token, comparison.same_text) == (1.0, 1.0)
    assert comparison.divergence < 1e-9  # measured: 8e-13


def test_equal_image_encoders_encode_a_picture_once(
    samples, checkpoint, converted, pipeline, monkeypatch, tmp_path
):
    """And each model answers as it does alone."""
    folders, encoders = {"same": tmp_path / "same", "other": tmp_path / "other"}, []
    int4 = find_preset("int4")
    convert(checkpoint, folders["same"], replace(int4, others=FP16, image_encoder=FP16))
    convert(checkpoint, folders["other"], int4)
    tile = pipeline.processor.pieces.tokens
    fewer = VisionLanguagePipeline(converted, accuracy=True, picture_tokens=tile)
    models = {"fp16": pipeline, "fewer tokens": fewer}
    models |= {name: VisionLanguagePipeline(path, accuracy=True) for name, path in folders.items()}
    pairs, encode = samples[:3], VisionLanguagePipeline.encode_images
    alone = {name: evaluation.answer(model, pairs) for name, model in models.items()}

    def noted(model, **inputs):
        encoders.extend(name for name, other in models.items() if other is model)
        return encode(model, **inputs)

    monkeypatch.setattr(VisionLanguagePipeline, "encode_images", noted)
    together = evaluation.compare(models, pairs)
    assert Counter(encoders) == {"fp16": 3, "fewer tokens": 3, "other": 3}
    for name, answers in together.items():
        assert answers.texts == alone[name].texts
        assert torch.equal(answers.first_logits, alone[name].first_logits)
    assert not torch.equal(together["same"].first_logits, together["fp16"].first_logits)


def test_the_size_of_a_batch_changes_no_answer(samples, pipeline):
    single, batched = (
        evaluation.answer(pipeline, samples, max_new_tokens=8, batch=size) for size in (1, 10)
    )
    assert single.texts == batched.texts
    tolerance = 1e-5 * single.first_logits.abs().max().item()
    assert torch.allclose(single.first_logits, batched.first_logits, rtol=0, atol=tolerance)


def test_questions_of_one_length_are_answered_together(samples, pipeline, computed):
    """And answers stand in the order of the questions."""
    (image, _), *_ = samples
    texts = ["What is in this picture, and where, from left to right?", "What is it?"] * 2
    pairs = [(image, Question("describe", text, "")) for text in texts]
    answers = evaluation.answer(pipeline, pairs, max_new_tokens=8, batch=2)
    short, long = (positions for positions in computed if positions > 1)
    assert short < long
    expected = [pipeline.ask(text, [image], max_new_tokens=8).text for text in texts]
    assert answers.texts == expected and len(set(expected)) == 2


def test_an_answer_is_that_of_a_conversation(samples, pipeline):
    actual = evaluation.answer(pipeline, samples, max_new_tokens=8, batch=4)
    expected = [
        pipeline.ask(question.text, [image], max_new_tokens=8).text for image, question in samples
    ]
    assert actual.texts == expected


def test_probabilities_of_an_answer_begin_with_that_of_its_first_token(samples, torch_model):
    (image, question), *_ = samples
    first = evaluation.answer(torch_model, samples[:1], max_new_tokens=1).first_logits[0]
    most, second = first.topk(2).indices.tolist()
    log_probabilities = evaluation.log_probability(
        torch_model, image, question.text, [most, second]
    )
    assert log_probabilities[0] == pytest.approx(first.log_softmax(-1)[most].item(), abs=1e-5)
    others = evaluation.log_probability(torch_model, image, question.text, [second, second])
    assert others[0] == pytest.approx(first.log_softmax(-1)[second].item(), abs=1e-5)
    assert len(log_probabilities) == 2
    assert log_probabilities[1] != others[1]  # the second depends on the first


def test_probabilities_within_a_budget_are_those_of_the_smaller_picture(
    samples, torch_model, monkeypatch
):
    (image, question), *_ = samples
    budget = torch_model.processor.pieces.tokens
    usual = evaluation.log_probability(torch_model, image, question.text, [5])
    within = evaluation.log_probability(
        torch_model, image, question.text, [5], picture_tokens=budget
    )
    monkeypatch.setattr(torch_model, "processor", torch_model.processor.within(budget))
    assert within == evaluation.log_probability(torch_model, image, question.text, [5])
    assert within != usual
