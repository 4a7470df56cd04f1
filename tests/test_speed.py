"""Times of models, measured in turn and told with their range."""

from dataclasses import astuple

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
