"""`make earlier`: answers of an earlier release beside this one's, in turn."""

import pytest

from helpers.errors import SettingsError
from helpers.measure.peers.runners import ROOT, Runner
from helpers.sources.checkpoints import BUNDLED
from helpers.workshop import earlier


def test_a_commit_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SettingsError, match="no commit 0123456 here; measure in a clone"):
        earlier.write_code("0123456", tmp_path / "code")


@pytest.mark.slow
def test_the_first_release_answers_beside_this_one(bundled_folder, monkeypatch, tmp_path):
    try:
        code = earlier.write_code(earlier.FIRST, tmp_path / "code")
    except SettingsError:
        pytest.skip("a clone without its history")
    monkeypatch.setattr(earlier, "TOKENS", 4)
    monkeypatch.setattr(earlier, "ROUNDS", 2)
    folder = tmp_path / "before"
    options = ("--precision", "int4", "--output", folder)
    earlier.run(code, "convert", BUNDLED / "internvl2", *options)
    settings = {
        earlier.BEFORE: {"code": code, "folder": folder, "pipeline": {}, "ask": {}},
        "now": {
            "code": ROOT,
            "folder": bundled_folder("internvl2", "int4"),
            "pipeline": {"tuned": False},
            "ask": {"picture_tokens": 64},
        },
    }
    places = []
    start = Runner.__init__

    def noting(runner, *arguments):
        start(runner, *arguments)
        places.append(runner.version)

    monkeypatch.setattr(Runner, "__init__", noting)
    rounds = earlier.measure(settings, (96, 96))
    assert places == [str(code), str(ROOT)]
    before, now = (rounds[name] for name in settings)
    assert len(before) == len(now) == 2
    assert before[0]["large"]["prompt_tokens"] > now[0]["large"]["prompt_tokens"]
    for figures in (*before, *now):
        for of_picture in figures.values():
            steps = (of_picture["image_encoder"], of_picture["prompt"], of_picture["next_token"])
            assert min(steps) > 0 and sum(steps) < of_picture["whole"] < 60


def test_what_an_earlier_release_cannot_do_is_told(tmp_path):
    with pytest.raises(SettingsError, match="`vlm convert` of the release"):
        earlier.run(ROOT, "convert", tmp_path, "--output", tmp_path / "folder")


def test_a_table_has_medians_and_how_many_times_they_are_what_was_before():
    def rounds(*seconds):
        steps = ("whole", "image_encoder", "prompt", "next_token")
        return [{size: dict.fromkeys(steps, s) for size in ("small", "large")} for s in seconds]

    rows = earlier.rows_of({earlier.BEFORE: rounds(2, 8, 4), "int4": rounds(1, 2, 30)})
    assert [row["prompt"] for row in rows] == [
        "4 s (2 s to 8 s), 1.00",
        "2 s (1 s to 30 s), 0.50",
    ]
