"""Jobs of many rows: what is asked, what is written, and that no interruption changes it."""

import json
from pathlib import Path

import pytest

from helpers.__main__ import main
from helpers.errors import OutputError, SettingsError
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.serve.batch import run_job
from helpers.serve.local import Local
from helpers.serve.results import results_in
from helpers.serve.rows import batches, read_rows
from helpers.shapes.questions import draw_questions
from tests.jobs import (
    QUESTIONS,
    asked,
    command,
    draw_pictures,
    kill_at_random,
    without_times,
    written,
)
from tests.servers import message

NUMBER = 14  # of pictures


@pytest.fixture(scope="module")
def folder(internvl2_folder):
    """Return the model of these tests."""
    return internvl2_folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Return a folder of drawn pictures."""
    return draw_pictures(tmp_path_factory.mktemp("pictures"), NUMBER)


@pytest.fixture(scope="module")
def reference(folder, pictures, tmp_path_factory) -> dict[str, dict]:
    """Return the rows of a job that nothing interrupts."""
    output = tmp_path_factory.mktemp("reference") / "answers.jsonl"
    assert main(command(folder, pictures, output, *asked(*QUESTIONS))) == 3
    return written(output)


@pytest.mark.slow
def test_every_picture_has_its_answers(reference, folder, pictures):
    assert len(reference) == 2 * (NUMBER + 3)
    pipeline = VisionLanguagePipeline(folder)
    right = 0
    for row in reference.values():
        if row["error"]:
            assert row["image"] in ("broken.png", "cut.png") and row["answer"] is None
            assert row["error"].endswith(".") and str(pictures) not in row["error"]
            continue
        expected = pipeline.ask(row["question"], [pictures / row["image"]], max_new_tokens=128)
        right += row["answer"] == expected.text
        assert row["finish_reason"] == "stop" and row["tokens"] > 0
    # Computed together, a token may be rounded to another one (not so in ACCURACY mode).
    assert right >= 2 * (NUMBER + 1) - 2
    assert sum(bool(row["error"]) for row in reference.values()) == 4


@pytest.mark.slow
def test_what_is_done_is_not_done_again(reference, folder, pictures, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in reference.values()]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = output.read_bytes()
    assert main(command(folder, pictures, output, *asked(*QUESTIONS), "--json")) == 3
    assert output.read_bytes() == before
    assert json.loads(capsys.readouterr().out) == {"rows": len(reference), "new": 0, "failed": 4}
    # A torn line, as a process leaves it that is killed while it writes.
    output.write_bytes(before[:-40])
    assert main(command(folder, pictures, output, *asked(*QUESTIONS))) == 3
    assert without_times(written(output)) == without_times(reference)


@pytest.mark.slow
def test_killed_at_any_moment_the_next_run_ends_with_the_same_rows(
    reference, folder, pictures, tmp_path, fork, request
):
    output = tmp_path / "answers.jsonl"
    kills = 100 if request.config.getoption("torture") else 3
    words = command(folder, pictures, output, *asked(*QUESTIONS))
    kill_at_random(fork, words, output, kills, tear=kills > 3)
    assert main(words) == 3
    assert without_times(written(output)) == without_times(reference)


@pytest.mark.slow
def test_another_job_does_not_write_the_same_file(reference, folder, pictures, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    lines = [json.dumps(row) for row in reference.values()]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    other = command(folder, pictures, output, *asked(*QUESTIONS), "--max-new-tokens", 5)
    assert main(other) == 1
    assert "was begun with another model, question or option" in capsys.readouterr().err
    job = next(iter(reference.values()))["job"]
    with results_in(output, job):
        assert main(command(folder, pictures, output, *asked(*QUESTIONS))) == 1
    assert "Another job writes" in capsys.readouterr().err
    (tmp_path / "notes.jsonl").write_text("{}\n")
    with (
        pytest.raises(OutputError, match="no file of answers"),
        results_in(tmp_path / "notes.jsonl", job),
    ):
        pass


@pytest.mark.slow
def test_errors_are_tried_again(reference, folder, pictures, tmp_path):
    output, copy = tmp_path / "answers.jsonl", tmp_path / "pictures"
    copy.mkdir()
    for path in pictures.glob("*.png"):
        (copy / path.name).write_bytes(path.read_bytes())
    assert main(command(folder, copy, output, *asked(QUESTIONS[0]))) == 3
    (copy / "broken.png").write_bytes((pictures / "00.png").read_bytes())
    (copy / "cut.png").write_bytes((pictures / "04.png").read_bytes())
    assert main(command(folder, copy, output, *asked(QUESTIONS[0]), "--retry-errors")) == 0
    rows = {row["image"]: row for row in written(output).values()}
    assert rows["broken.png"]["answer"] == rows["00.png"]["answer"]
    assert rows["cut.png"]["answer"] == rows["04.png"]["answer"]


@pytest.mark.slow
def test_lines_keep_their_columns_and_equal_ones_are_computed_once(folder, pictures, tmp_path):
    lines = [
        {"image": "00.png", "question": QUESTIONS[0], "answer": "mine", "id": 7},
        {"image": "00.png", "question": QUESTIONS[0], "id": 8},
        {"question": "Hello", "id": 9},
        {"image": "nowhere.png", "question": "What?", "id": 10},
        {"image": "00.png", "id": 11},
        {"image": 5, "question": "What?", "id": 12},
    ]
    source = pictures / "rows.jsonl"
    text = "\n".join(json.dumps(line) for line in lines) + "\nno JSON\n"
    source.write_text(text, encoding="utf-8")
    pipeline = VisionLanguagePipeline(folder, answers_at_once=4)
    computed = []
    compute = pipeline.batch.compute
    pipeline.worker._compute = lambda rows: computed.append(len(rows)) or compute(rows)
    rows = read_rows(source, ())
    options = {"max_new_tokens": 16}
    local = Local(pipeline, "a model", options)
    progress = run_job(local, rows, tmp_path / "a.jsonl", options, report=lambda line: None)
    assert (progress.total, progress.new, progress.failed) == (7, 7, 4)
    by_id = {row.get("id"): row for row in written(tmp_path / "a.jsonl").values()}
    assert by_id[7]["input_answer"] == "mine" and by_id[7]["answer"] == by_id[8]["answer"]
    assert by_id[9]["answer"] and by_id[None]["line"] == "no JSON"
    errors = [by_id[number]["error"] for number in (10, 11, 12, None)]
    assert all(error.endswith(".") for error in errors)
    assert max(computed) == 2  # the two that are equal once, beside the one without a picture
    source.unlink()


@pytest.mark.slow
def test_openais_batch_files(folder, tmp_path):
    picture, question = draw_questions(1, seed=9)[0]
    body = {"model": "m", "messages": [message(question.text, picture)], "max_tokens": 30}
    lines = [
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": {"n": 2}},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    output = tmp_path / "out.jsonl"
    assert main(command(folder, tmp_path / "in.jsonl", output)) == 3
    rows = {row["custom_id"]: row for row in written(output).values()}
    answer = rows["a"]["response"]["body"]["choices"][0]["message"]["content"]
    assert answer == VisionLanguagePipeline(folder).ask(question.text, [picture]).text
    assert rows["b"]["response"] is None and "n is 2" in rows["b"]["error"]["message"]


def test_batches_are_cut_by_size_whatever_is_done(pictures):
    rows = read_rows(pictures, QUESTIONS)
    cut = batches(rows, 4)
    assert [len(batch) for batch in cut] == [4] * (len(rows) // 4) + [len(rows) % 4]
    sizes = [row.size for batch in cut for row in batch]
    assert sizes == sorted(sizes)
    assert len({row.identity for row in rows}) == len(rows)


def test_an_input_that_asks_nothing_is_told(tmp_path, pictures):
    with pytest.raises(SettingsError, match="--question"):
        read_rows(pictures, ())
    with pytest.raises(SettingsError, match="does not exist"):
        read_rows(tmp_path / "nothing", ("What?",))
    with pytest.raises(SettingsError, match="no picture"):
        read_rows(tmp_path, ("What?",))
