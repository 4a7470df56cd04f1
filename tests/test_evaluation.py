"""Shares, divergences and times: on made-up answers, and of the small model."""

import math

import pytest
import torch

from helpers.inputs.questions import Question
from helpers.measure import evaluation
from helpers.measure.evaluation import Answers, accuracy, agreement, wrong_answers
from helpers.shapes import questions
from tests.tiny import picture

ASKED = [
    (None, Question("count", "How many circles are there?", "2")),
    (None, Question("count", "Count the stars.", "0")),
    (None, Question("colour", "What colour is the star?", "red")),
    (None, Question("word", "Read the word.", "ABC")),
]


def answers(texts: list[str], *distributions: list[float]) -> Answers:
    """Return answers whose first tokens have these probabilities."""
    return Answers(texts, torch.tensor(distributions or [[0.5, 0.5]] * len(texts)).log())


def test_the_share_of_right_answers_by_kind():
    given = answers(["2", "2", "red", "abc"])
    assert accuracy(given, ASKED) == {"all": 0.5, "count": 0.5, "colour": 1.0, "word": 0.0}


def test_every_question_needs_an_answer():
    with pytest.raises(ValueError):
        accuracy(answers(["2"]), ASKED)


def test_wrong_answers_are_listed_with_their_questions():
    given = answers(["2", "2", "red", "abc"])
    assert wrong_answers(given, ASKED) == [
        {"question": "Count the stars.", "answer": "2", "right": "0"},
        {"question": "Read the word.", "answer": "abc", "right": "ABC"},
    ]


def test_equal_answers_agree_in_everything():
    given = answers(["a", "b"], [0.2, 0.3, 0.5], [0.9, 0.05, 0.05])
    found = agreement(given, given)
    assert (found.top_token, found.divergence, found.same_text) == (1.0, 0.0, 1.0)


def test_a_divergence_as_computed_by_hand():
    reference = answers(["a", "b"], [0.5, 0.5], [0.9, 0.1])
    other = answers(["a", "c"], [0.25, 0.75], [0.4, 0.6])
    found = agreement(reference, other)
    by_hand = [
        0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75),
        0.9 * math.log(0.9 / 0.4) + 0.1 * math.log(0.1 / 0.6),
    ]
    assert found.divergence == pytest.approx(sum(by_hand) / 2, rel=1e-6)
    assert found.same_text == 0.5
    assert agreement(other, reference).divergence != pytest.approx(found.divergence, rel=0.01)


def test_the_most_probable_token_decides_agreement():
    reference = answers(["a"] * 3, [0.6, 0.4], [0.1, 0.9], [0.3, 0.7])
    other = answers(["a"] * 3, [0.9, 0.1], [0.9, 0.1], [0.4, 0.6])
    assert agreement(reference, other).top_token == pytest.approx(2 / 3)


def test_adding_to_all_logits_changes_nothing():
    given = answers(["a"], [0.2, 0.8])
    assert agreement(given, Answers(["a"], given.first_logits + 7)).divergence < 1e-9


@pytest.fixture(scope="module")
def asked():
    return questions.draw_questions(10, seed=3)


def test_questions_are_drawn_the_same_every_time(asked):
    again = questions.draw_questions(10, seed=3)
    assert [q for _, q in asked] == [q for _, q in again]
    assert [p.tobytes() for p, _ in asked] == [p.tobytes() for p, _ in again]
    assert len({q.kind for _, q in asked}) == 7


def test_pytorch_and_the_pipeline_give_the_same_answers(asked, torch_model, pipeline):
    done = []
    reference = evaluation.answer(torch_model, asked, max_new_tokens=8, batch=4)
    other = evaluation.answer(pipeline, asked, max_new_tokens=8, batch=4, report=done.append)
    assert done == [4, 8, 10]
    assert other.texts == reference.texts and len(set(reference.texts)) > 5
    assert other.first_logits.shape == reference.first_logits.shape
    found = agreement(reference, other)
    assert (found.top_token, found.same_text) == (1.0, 1.0)
    assert found.divergence < 1e-9  # measured: 8e-13


def test_the_size_of_a_batch_changes_no_answer(asked, pipeline):
    one, many = (evaluation.answer(pipeline, asked, max_new_tokens=8, batch=n) for n in (1, 10))
    assert one.texts == many.texts


def test_an_answer_is_that_of_a_conversation(asked, pipeline):
    given = evaluation.answer(pipeline, asked[:3], max_new_tokens=8)
    wanted = [pipeline.ask(q.text, [p], max_new_tokens=8).text for p, q in asked[:3]]
    assert given.texts == wanted


def test_speed_is_measured_for_both(torch_model, pipeline):
    for model in (torch_model, pipeline):
        found = evaluation.speed(model, picture(), "What is it?", tokens=8, repeats=1)
        assert 0 < found.image_encoder < 60
        assert 0 < found.first_token < 60
        assert 0 < found.next_token < 60


def test_probabilities_of_an_answer_begin_with_that_of_its_first_token(asked, torch_model):
    (shown, question), *_ = asked
    first = evaluation.answer(torch_model, asked[:1], max_new_tokens=1).first_logits[0]
    most, second = first.topk(2).indices.tolist()
    found = evaluation.log_probability(torch_model, shown, question.text, [most, second])
    assert found[0] == pytest.approx(first.log_softmax(-1)[most].item(), abs=1e-5)
    other = evaluation.log_probability(torch_model, shown, question.text, [second, second])
    assert other[0] == pytest.approx(first.log_softmax(-1)[second].item(), abs=1e-5)
    assert len(found) == 2 and found[1] != other[1]  # the second depends on the first
