"""What settings do to answers: a row each, measured by a command."""

import sys

from helpers.workshop import settings

QUESTIONS = "3"
EXACT = {"EXECUTION_MODE_HINT": "ACCURACY"}
# Rounds on each processor, whatever else it has.
ROUNDED = {"KV_CACHE_PRECISION": "u4", "INFERENCE_PRECISION_HINT": "f32"}


def test_a_setting_beside_accuracy_mode(monkeypatch, capsys):
    monkeypatch.setattr(settings, "SETTINGS", {"int4": (EXACT, ROUNDED)})
    monkeypatch.setattr(sys, "argv", ["settings", "qwen3_vl", "--questions", QUESTIONS])
    settings.main()
    reference, exact, rounded = capsys.readouterr().out.splitlines()[-3:]
    assert reference.split()[:4] == ["int4", "ACCURACY", "-", "-"]
    right = reference.split()[-1]
    assert exact.split() == ["int4", "EXECUTION_MODE_HINT", "ACCURACY", "0", "0", right]
    assert float(rounded.split()[-2]) > 0
