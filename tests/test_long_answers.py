"""The memory of long answers: measured after each number of steps, by a command."""

import sys

from helpers.workshop import long_answers


def test_rows_of_a_long_answer(bundled_folder, monkeypatch, capsys):
    folder = bundled_folder("internvl2", "int8")
    words = ["long_answers", str(folder), "--steps", "3", "6", "--picture", "90", "60", "--plain"]
    monkeypatch.setattr(sys, "argv", words)
    long_answers.main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("language model: ") for line in lines), lines
    header, _, first, last = lines[-4:]
    assert header.split("  ")[0] == "steps"
    assert (first.split()[0], last.split()[0]) == ("3", "6")
    assert "MB" in first or "GB" in first
