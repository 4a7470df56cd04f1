"""Metrics of answers: beside others' code on golden cases, and where people differ."""

import json

import pytest

from helpers.measure.metrics import METRICS, choice, contains, contains_formula, exact, similarity
from tests.golden_metrics import GOLDEN, NUMBER

CASES = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_a_metric_equals_its_papers_code(name):
    """PyPI's `anls`, TextVQA's evaluation, and the formula of ChartQA's paper in fractions."""
    values = [METRICS[name](answer, right) for answer, right, _ in CASES[name]]
    assert values == pytest.approx([expected for *_, expected in CASES[name]], abs=1e-12)
    assert len(values) == NUMBER and 0.3 * NUMBER < sum(value > 0 for value in values) < NUMBER


@pytest.mark.parametrize(
    ("answer", "right", "value"),
    [
        ("3.15", "3", 1),  # exactly 5 %, which a binary fraction misses
        ("3.151", "3", 0),
        ("0.0", "0", 1),
        ("0.01", "0", 0),
        ("-95", "-100", 1),
        ("Yes", "yes", 1),
        ("1e400", "1", 0),
        ("nan", "nan", 1),
        ("9" * 5000, "1", 0),
    ],
)
def test_relaxed_at_its_edges(answer, right, value):
    assert METRICS["relaxed"](answer, [right]) == value


def test_exact_is_but_for_white_space():
    assert exact(" red\n", ["blue", "red"]) == 1
    assert exact("Red", ["red"]) == 0


def test_an_answer_that_contains_the_right_one():
    assert contains("It says\nSTOP.", ["it says stop"]) == 1
    assert contains("a b", ["ab"]) == 0
    assert contains_formula("x ^ 2", ["x^2"]) == 1
    assert contains_formula("X^2", ["x^2"]) == 0


@pytest.mark.parametrize("answer", ["B", "b.", "(B) a cat", " B: two", "**B**"])
def test_letters_of_a_choice(answer):
    assert choice(answer, ["B"]) == 1
    assert choice(answer, ["A"]) == 0


def test_no_letter_is_no_choice():
    assert choice("Blue", ["B"]) == choice("", ["A"]) == 0


def test_no_number_is_written_as_none():
    """So says VQA's evaluation; its golden answers here have no such word."""
    people = ["0"] * 10
    assert METRICS["VQA accuracy"]("None", people) == METRICS["VQA accuracy"]("zero", people) == 1


def test_similarity_counts_letters():
    assert similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert similarity("", "") == 1 and similarity("", "abc") == 0
