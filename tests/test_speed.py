"""Times of models, measured in turn and told with their range."""

from dataclasses import astuple

import pytest

from helpers.measure import speed
from helpers.measure.speed import Latencies
from tests.tiny import picture


def test_models_are_measured_in_turn(torch_model, pipeline, monkeypatch):
    """And until their times are steady, which the last figure decides here."""
    order, times = [], iter([0.9, *[0.1, 0.2, 0.1], *[0.1] * 9])
    measure = speed.measure

    def noted(model, *arguments, **options):
        order.append(model)
        result = measure(model, *arguments, **options)
        assert min(astuple(result)) > 0
        return Latencies(1, 1, 1 if model is pipeline else next(times))

    monkeypatch.setattr(speed, "measure", noted)
    models = {"PyTorch": torch_model, "OpenVINO": pipeline}
    speeds = speed.compare(models, picture(), "What is it?", tokens=8, rounds=(3, 9))
    assert order == [torch_model, pipeline] * (1 + len(speeds["PyTorch"]))
    assert [result.next_token for result in speeds["PyTorch"]] == [0.1, 0.2, 0.1, *[0.1] * 2]


def test_steady_times_take_the_least_rounds_and_others_the_most(monkeypatch):
    seconds = iter([1.0] * 4 + [float(number) for number in range(1, 11)])
    monkeypatch.setattr(speed, "measure", lambda *_, **__: Latencies(next(seconds), 1.0, 1.0))
    lengths = [len(speed.compare({"a": None}, None, "", rounds=(3, 9))["a"]) for _ in range(2)]
    assert lengths == [3, 9]


def test_an_answer_of_which_a_part_is_computed(monkeypatch):
    """Of 64 tokens 8 are computed, in two seconds of which the prompt takes a half."""
    monkeypatch.setattr(speed, "answer_times", lambda model, prepared, tokens: (0.5, tokens / 80))
    monkeypatch.setattr(speed, "timed", lambda function: (2.0, function()))
    steps = speed.seconds_of_steps(None, {}, tokens=64, computed=8)
    assert steps == pytest.approx([0.5, 1.5 + 56 * 0.1])


def test_times_are_told_with_their_range():
    speeds = {
        "int4": [
            Latencies(0.002, 0.01, 0.004),
            Latencies(0.002, 0.03, 0.005),
            Latencies(1, 0.02, 0.001),
        ]
    }
    assert speed.rows(speeds) == [
        {
            "model": "int4",
            "image encoder": "2.0 ms (2.0 to 1000.0)",
            "first token": "20.0 ms (10.0 to 30.0)",
            "next token": "4.0 ms (1.0 to 5.0)",
        }
    ]
