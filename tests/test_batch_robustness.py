"""Jobs on what a night may bring: broken rows of many kinds, a full disk, hours of rows."""

import json
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from PIL import Image

from helpers.__main__ import main
from helpers.errors import OutputError
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.serve.batch import run_job
from helpers.serve.local import Local
from helpers.serve.results import JOB, ROW, results_in
from helpers.serve.rows import read_rows
from tests.jobs import (
    QUESTIONS,
    asked,
    command,
    draw_pictures,
    kill_at_random,
    without_times,
    written,
)

pytestmark = pytest.mark.slow

COPIES = 10  # of each kind of broken row
ROWS = 5000
GROWTH = 30e6  # bytes that a process may grow by while it answers them


def broken_lines(place: Path) -> dict[str, str]:
    """Return a line of each kind that cannot be answered, by what is wrong with it."""
    picture = Image.new("RGB", (64, 64), "red")
    picture.save(place / "whole.png")
    whole = (place / "whole.png").read_bytes()
    picture.save(place / "whole.jpg")
    files = {
        "empty": b"",
        "text": b"no picture at all",
        "cut": whole[:60],
        "flipped": whole[:40] + bytes(255 - byte for byte in whole[40:]),
        "cut_jpeg": (place / "whole.jpg").read_bytes()[:200],
        "zeros": bytes(1000),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    for name, data in files.items():
        (place / f"{name}.png").write_bytes(data)
    Image.new("1", (9000, 9000)).save(place / "huge.png")
    Image.new("1", (200_000, 1)).save(place / "long.png")
    (place / "folder.png").mkdir()
    question = "What is in the picture?"
    lines: dict[str, object] = {
        name: {"image": f"{name}.png", "question": question}
        for name in (*files, "huge", "long", "folder", "nowhere", "x" * 5000, "nul\0")
    }
    lines |= {
        "no question": {"image": "whole.png"},
        "blank": {"image": "whole.png", "question": "  "},
        "number": {"image": "whole.png", "question": 5},
        "list": {"image": ["whole.png"], "question": question},
        "half": {"image": "whole.png", "question": "\ud800?"},
        "long question": {"image": "whole.png", "question": "word " * 20_000},
    }
    return {name: json.dumps(line) for name, line in lines.items()} | {"no JSON": '{"image": '}


def test_broken_rows_of_many_kinds_each_have_a_sentence(internvl2_folder, tmp_path):
    lines = broken_lines(tmp_path)
    assert len(lines) == 20
    right = json.dumps({"image": "whole.png", "question": "What is it?", "kind": "right"})
    source, output = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_text("\n".join([*lines.values()] * COPIES + [right]), encoding="utf-8")
    assert main(command(internvl2_folder, source, output)) == 3
    rows = list(written(output).values())
    assert len(rows) == 20 * COPIES + 1
    sentences = [row["error"] for row in rows if row.get("kind") != "right"]
    for sentence in sentences:
        assert re.fullmatch(r"\S.*[.]", sentence) and str(tmp_path) not in sentence, sentence
        assert "Traceback" not in sentence and len(sentence) < 1300
    counts = Counter(sentences)
    assert all(count % COPIES == 0 for count in counts.values()) and len(counts) >= 15, counts
    (row,) = [row for row in rows if row.get("kind") == "right"]
    assert row["answer"] and row["error"] is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file")
def test_a_full_disk_ends_a_job_with_a_sentence_and_it_goes_on(tmp_path):
    import resource  # which Windows has not

    path = tmp_path / "answers.jsonl"
    rows = [(str(number), {"answer": "x" * 100, "error": None}) for number in range(20)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with results_in(path, "job") as results:
        results.add(rows[:5])
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 350, limits[1]))
        try:
            with pytest.raises(OutputError, match="the same command goes on"):
                results.add(rows[5:])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with results_in(path, "job") as results:  # the line that was half written is cut off
        assert 5 <= len(results.done) < 20
        results.add([row for row in rows if row[0] not in results.done])
    assert written(path).keys() == {identity for identity, _ in rows}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file")
def test_a_disk_that_is_full_before_errors_are_tried_again(tmp_path):
    import resource  # which Windows has not

    path = tmp_path / "answers.jsonl"
    with results_in(path, "job") as results:
        results.add([("0", {"error": "no"}), *((str(n), {"answer": "x" * 100}) for n in "1234")])
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with (
            pytest.raises(OutputError, match="cannot be written .*; the same command goes on"),
            results_in(path, "job", retry_errors=True),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and not list(tmp_path.glob(".vlm*"))
    with results_in(path, "job", retry_errors=True) as results:
        assert results.done == set("1234")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="every folder takes files here")
def test_a_folder_in_which_no_file_can_be_made_is_told():
    with (
        pytest.raises(OutputError, match="cannot be written .no file can be made beside it"),
        results_in(Path("/proc/answers.jsonl"), "job"),
    ):
        pass


def test_answers_are_json_whatever_a_column_holds(tmp_path):
    path = tmp_path / "answers.jsonl"
    columns = json.loads('{"a": [NaN, {"b": 1e999}], "c": "\\u00e9", "d": -Infinity, "e": 1.5}')
    with results_in(path, "job") as results:
        results.add([("0", columns)])

    def refuse(name: str) -> None:
        raise AssertionError(name)

    row = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    expected = {"a": [None, {"b": None}], "c": "\u00e9", "d": None, "e": 1.5}
    assert row == expected | {ROW: "0", JOB: "job"}


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(20, marks=pytest.mark.long("integration")),
        pytest.param(100, marks=pytest.mark.long("torture")),
    ],
)
def test_500_pictures_and_many_kills(internvl2_folder, tmp_path, fork, kills):
    pictures = draw_pictures(tmp_path / "pictures", 500)
    reference, output = tmp_path / "reference.jsonl", tmp_path / "answers.jsonl"
    question = asked(QUESTIONS[0])
    assert main(command(internvl2_folder, pictures, reference, *question)) == 3
    words = command(internvl2_folder, pictures, output, *question)
    when = {"latest": 0.5, "rows": 9} if kills > 20 else {"latest": 8}
    at_work = kill_at_random(fork, words, output, kills, **when)
    print(f"{at_work} of {kills} kills came while rows were written")
    assert main(words) == 3
    assert len(written(reference)) == 503
    assert without_times(written(output)) == without_times(written(reference))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows stops no process")
def test_a_stopped_job_goes_on_and_keeps_its_file(internvl2_folder, tmp_path, fork, capsys):
    pictures, output = draw_pictures(tmp_path / "pictures", 40), tmp_path / "answers.jsonl"
    words = command(internvl2_folder, pictures, output, *asked(QUESTIONS[0]))
    program = fork.start("-m", "helpers", *words)
    while not output.exists() or not output.read_bytes():
        time.sleep(0.01)
    os.kill(program.number, signal.SIGSTOP)
    try:
        assert main(words) == 1
    finally:
        os.kill(program.number, signal.SIGCONT)
    assert "Another job writes" in capsys.readouterr().err
    assert program.wait() == 3
    assert len(written(output)) == 43


@pytest.mark.long("torture")
def test_memory_does_not_grow(internvl2_folder, tmp_path):
    pictures = draw_pictures(tmp_path / "pictures", 50)
    lines = [
        json.dumps({"image": f"{number % 50:02}.png", "question": f"What is number {number}?"})
        for number in range(ROWS)
    ]
    source = pictures / "rows.jsonl"
    source.write_text("\n".join(lines), encoding="utf-8")
    options = {"max_new_tokens": 2}
    pipeline = VisionLanguagePipeline(internvl2_folder, answers_at_once=4)
    local = Local(pipeline, "a model", options)
    sizes = []
    answers = local.answers

    def measured(batches):
        for answer in answers(batches):
            sizes.append(psutil.Process().memory_info().rss)
            yield answer

    local.answers = measured
    output = tmp_path / "answers.jsonl"
    progress = run_job(local, read_rows(source, ()), output, options, report=print)
    assert (progress.new, progress.failed) == (ROWS, 0)
    before, after = sizes[len(sizes) // 5], sizes[-1]
    growth = after - before
    print(f"{before / 1e6:.1f} MB after {ROWS // 5} rows, {after / 1e6:.1f} MB after {ROWS}")
    assert growth < GROWTH
