"""Jobs of many rows: what is asked, what is written, and that no interruption changes it."""

import errno
import json
import os
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.__main__ import main
from helpers.errors import ContextError, OutputError, SettingsError
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.replies import Counts
from helpers.serve import answerers, batch
from helpers.serve import rows as rows_module
from helpers.serve.addresses import Pictures
from helpers.serve.answerers import answerer_for
from helpers.serve.batch import run_job
from helpers.serve.columns import RowAnswer, columns_of, key_of
from helpers.serve.local import Local
from helpers.serve.protocol import parse_request
from helpers.serve.requests import body_of
from helpers.serve.results import ERROR, JOB, ROW, fingerprint_of, results_in
from helpers.serve.rows import Row, batches, read_rows
from helpers.serve.service import Service
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
    reference, folder, pictures, tmp_path, fork
):
    output = tmp_path / "answers.jsonl"
    words = command(folder, pictures, output, *asked(*QUESTIONS))
    kill_at_random(fork, words, output, 3)
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
    assert main(command(folder, pictures, output, *asked("What else?"))) == 1
    assert "was begun with another model, question or option" in capsys.readouterr().err
    with results_in(output, job):
        assert main(command(folder, pictures, output, *asked(*QUESTIONS))) == 1
    assert "Another job writes" in capsys.readouterr().err
    long = command(folder, pictures, tmp_path / "a", *asked("What?"), "--max-new-tokens", 2048)
    assert main(long) == 1
    assert "have no room in the model's context of 2048" in capsys.readouterr().err
    (tmp_path / "notes.jsonl").write_text("{}\n")
    with (
        pytest.raises(OutputError, match="no file of answers"),
        results_in(tmp_path / "notes.jsonl", job),
    ):
        pass


@pytest.mark.parametrize("retry_errors", [False, True])
def test_a_line_that_lacks_its_end_is_computed_anew(tmp_path, retry_errors):
    path = tmp_path / "answers.jsonl"
    failed, cut = (
        json.dumps({ROW: row, JOB: "a", ERROR: "no" if row == "0" else ""}) for row in "01"
    )
    path.write_text(f"{failed}\n{cut}")
    with results_in(path, "a", retry_errors=retry_errors) as results:
        assert results.done == (set() if retry_errors else {"0"})
    assert path.read_text() == ("" if retry_errors else f"{failed}\n")


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
        {"image": "", "question": "What?", "id": 13},
        {"image": 5, "question": "What?", "id": 12, "row": "mine", "job": 1},
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
    assert (progress.total, progress.new, progress.failed) == (8, 8, 5)
    by_id = {row.get("id"): row for row in written(tmp_path / "a.jsonl").values()}
    assert by_id[7]["input_answer"] == "mine" and by_id[7]["answer"] == by_id[8]["answer"]
    assert (by_id[12]["input_row"], by_id[12]["input_job"]) == ("mine", 1)
    assert by_id[9]["answer"] and by_id[None]["line"] == "no JSON"
    errors = [by_id[number]["error"] for number in (10, 11, 12, 13, None)]
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
        {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions"},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"custom_id": "d", "body": {'
    (tmp_path / "in.jsonl").write_text(text, encoding="utf-8")
    output = tmp_path / "out.jsonl"
    assert main(command(folder, tmp_path / "in.jsonl", output)) == 3
    rows = {row["custom_id"]: row for row in written(output).values()}
    answer = rows["a"]["response"]["body"]["choices"][0]["message"]["content"]
    assert answer == VisionLanguagePipeline(folder).ask(question.text, [picture]).text
    for name, words in (
        ("b", "n is 2"),
        ("c", "has no body"),
        (None, "object in UTF-8: '{"),
    ):
        assert rows[name]["response"] is None and words in rows[name]["error"]["message"]


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
    with pytest.raises(SettingsError, match="has no words"):
        read_rows(pictures, ("What?", " "))
    with pytest.raises(SettingsError, match="does not exist"):
        read_rows(tmp_path / "nothing", ("What?",))
    with pytest.raises(SettingsError, match="no picture"):
        read_rows(tmp_path, ("What?",))


def test_progress_is_told_now_and_then_and_at_the_end(monkeypatch):
    """Of a job that goes on, only what is new says how fast it is."""
    seconds, lines = iter([100.0, 101.0, 102.0, 102.5]), []
    monkeypatch.setattr(batch, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    progress = batch.BatchProgress(22_000, 4_000, lines.append, started=90.0)
    progress.add(10, failed=0)
    progress.add(10, failed=1)
    progress.add(10, failed=0)
    progress.add(17_970, failed=0)
    assert lines == [
        "4010 of 22000 rows, 1.00 a second, 4 h 59 min left",
        "4030 of 22000 rows, 2.50 a second, 1 h 59 min left, 1 failed",
        "22000 of 22000 rows, 1440.00 a second, 0 s left, 1 failed",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 8])
def test_next_tokens_are_apart_where_one_row_is_computed_at_a_time(monkeypatch, folder, size):
    calls: list[dict] = []
    monkeypatch.setattr(
        "helpers.serve.local.VisionLanguagePipeline", lambda *_, **options: calls.append(options)
    )
    monkeypatch.setattr(answerers, "Local", lambda *_: None)
    answerer_for({}, print, folder=folder, batch_size=size)
    assert (calls[0]["answers_at_once"], calls[0]["next_tokens_apart"]) == (size, size == 1)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--model", "--key-file"])
@pytest.mark.parametrize("where", [(), ("--ray", "auto")])
def test_what_only_servers_need_is_refused(folder, pictures, tmp_path, capsys, option, where):
    words = command(folder, pictures, tmp_path / "a", *asked("What?"), option, "name", *where)
    assert main(words) == 1
    assert capsys.readouterr().err == f"error: Leave out {option}, which only a --server needs.\n"
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_cluster_has_what_was_tuned_unless_that_is_left_out(folder):
    for untuned in (True, False):
        cluster = answerer_for({}, print, folder=folder, device="cpu", ray="auto", untuned=untuned)
        assert cluster.model.tuned is not untuned and cluster.model.device == "CPU"


@pytest.mark.slow
def test_another_device_or_budget_is_another_job(monkeypatch, folder):
    """A file that was begun so does not go on otherwise, here or on a cluster."""
    monkeypatch.setattr("helpers.serve.local.VisionLanguagePipeline", lambda *_, **__: None)
    monkeypatch.setattr(answerers, "Local", lambda _, name, *__: SimpleNamespace(fingerprint=name))
    local, on_cluster = (
        [
            answerer_for(
                {}, print, folder=folder, device=device, picture_tokens=number, ray=ray
            ).fingerprint
            for device, number in (("CPU", None), ("CPU", 64), ("AUTO", None))
        ]
        for ray in (None, "auto")
    )
    assert len(set(local)) == 3 and local == on_cluster
    assert fingerprint_of(folder, "cpu", None) == local[0]  # as a server may be told


def test_files_as_other_programs_write_them(tmp_path):
    """Windows' line ends and its mark at the beginning are no part of a line."""
    source = tmp_path / "rows.jsonl"
    line = json.dumps({"image": "grüße.png", "question": "What?"}, ensure_ascii=False)
    source.write_bytes(f"\ufeff{line}\r\n{line}\r\nno JSON".encode())
    first, second, third = read_rows(source, ())
    assert first.columns == second.columns == json.loads(line) and not first.error
    assert third.error == "The line is no JSON object in UTF-8: 'no JSON'."
    for text in ("image,question\na.png,What?\n", f"[{line}]", "\x89PNG"):
        source.write_text(text, encoding="utf-8")
        with pytest.raises(SettingsError, match="no line of JSON"):
            read_rows(source, ())


def test_a_line_in_another_encoding_is_not_asked_with_wrong_letters(tmp_path):
    source = tmp_path / "rows.jsonl"
    line = json.dumps({"question": "Wie groß?"}, ensure_ascii=False)
    source.write_bytes(f"{line}\n".encode() + line.encode("cp1252"))
    right, wrong = read_rows(source, ())
    assert right.question == "Wie groß?" and not right.error
    assert wrong.error.startswith("The line is no JSON object in UTF-8: ") and not wrong.question
    assert wrong.columns == {"line": line.replace("ß", "\ufffd")}


def test_seconds_and_tokens_of_an_answer():
    answer = RowAnswer("Red.", "stop", Counts(prompt=5, answer=4, cached=2, thought=1), 1.23456)
    columns = columns_of(Row("a", 0, {}), answer)
    assert (columns["seconds"], columns["tokens"]) == (1.235, 4)


def test_columns_of_ours_are_kept_through_several_jobs():
    """The second job's answer goes beside the first one's, and a thought is kept as well."""
    columns = {"question": "What?"}
    for number in range(3):
        counts = Counts(1, answer=1)
        answer = RowAnswer(
            f"answer {number}", "stop", counts, 1.0, f"thought {number}" * (number < 2)
        )
        columns = columns_of(Row("row", 0, columns), answer)
    assert columns["answer"] == "answer 2" and columns.get("reasoning_content") is None
    values = {str(value) for value in columns.values()}
    assert values >= {"answer 0", "answer 1", "thought 0", "thought 1"}


def test_a_question_that_would_not_be_asked_is_refused(tmp_path):
    source = tmp_path / "rows.jsonl"
    lines = [{"question": "What?"}, {"custom_id": "a", "body": {}}]
    source.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(SettingsError, match="leave --question out"):
        read_rows(source, ("How many?",))
    source.write_text("\n".join(map(json.dumps, [*lines, {"id": 1}])))
    assert [row.question for row in read_rows(source, ("How many?",))] == ["What?", "", "How many?"]


class Pipeline:
    """Keeps with which options it is asked; a picture has 64 to 1280 tokens."""

    def __init__(self) -> None:
        pieces = SimpleNamespace(tokens=64, largest=1280)
        self.processor = SimpleNamespace(
            thinking=lambda _: None, has_switch=False, pieces=pieces, context_length=2048
        )
        self.options: list[dict] = []

    def conversation(self, _: object = ()) -> SimpleNamespace:
        return SimpleNamespace(ask=self.ask)

    def ask(self, _: object, **options: object) -> None:
        self.options.append(options)
        if options["max_new_tokens"] > 1000:
            raise ContextError("There is no room.", room=50)


@pytest.mark.parametrize(("limit", "fits"), [(2047, True), (2048, False)])
def test_an_answer_leaves_room_for_its_question(limit, fits):
    expectation = nullcontext() if fits else pytest.raises(SettingsError, match="have no room")
    with expectation:
        Local(Pipeline(), "a model", {"max_new_tokens": limit})


@pytest.mark.parametrize("detail", ["auto", "low", "high"])
@pytest.mark.parametrize("limit", [30, 1500])
def test_a_line_is_computed_here_as_by_a_server(detail, limit):
    """One file may be begun by the one and finished by the other."""
    local, served = Pipeline(), Pipeline()
    asking = message("What?", draw_questions(1, seed=9)[0][0])
    asking["content"][0]["image_url"]["detail"] = detail
    body = {"messages": [asking], "max_tokens": limit, "reasoning_effort": "low"}
    row = Row("a", 0, {"body": body}, is_openai=True)
    Local(local, "a model", {"max_new_tokens": 16})._reply(row)
    request = parse_request(body_of(row, {"max_new_tokens": 16}), Pictures().opener())
    service = Service(served, longest_queue=1)
    service.start(request.messages, request.options, detail=request.detail)
    assert local.options == served.options
    assert [options["max_new_tokens"] for options in local.options] == [limit, 50][
        : limit // 750 or 1
    ]
    budget = {"auto": None, "low": 256, "high": 1280}[detail]
    assert all(options["picture_tokens"] == budget for options in local.options)


def test_hidden_files_are_no_pictures_of_a_folder(tmp_path):
    for name in ("a b.JPG", "deep/er/ü.heic", ".thumbnails/a.jpg", "._a.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    rows = read_rows(tmp_path, ("What?",))
    assert [row.columns["image"] for row in rows] == ["a b.JPG", "deep/er/ü.heic"]


def test_an_input_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    """A name that is too long stands for a folder that may not be entered: tests may be root's."""
    with pytest.raises(SettingsError, match=r"cannot be read \(File name too long\); give another"):
        read_rows(tmp_path / ("a" * 300), ("What?",))
    source = tmp_path / "rows.jsonl"
    source.touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SettingsError, match=r"rows.jsonl cannot be read \(Permission denied\)"):
        read_rows(source, ())


def refuse(*_: object, **__: object) -> None:
    """Do as a system does with a file of somebody else."""
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_picture_that_may_not_be_looked_at_is_a_row(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"no picture")
    is_file = Path.is_file
    monkeypatch.setattr(
        Path, "is_file", lambda path: refuse() if path.suffix == ".png" else is_file(path)
    )
    (row,) = read_rows(tmp_path, ("What?",))
    assert (row.image, row.size) == (tmp_path / "a.png", 0)
    assert key_of(row) == key_of(row)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_a_link_to_what_is_not_there_is_a_row(tmp_path):
    """So are all pictures of a repository of git-annex whose content is elsewhere."""
    (tmp_path / "a.png").symlink_to("elsewhere.png")
    (tmp_path / "b.png").symlink_to("b.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "c.png").symlink_to("folder")
    rows = read_rows(tmp_path, ("What?",))
    assert [(row.columns["image"], row.size) for row in rows] == [("a.png", 0), ("b.png", 0)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_a_pipe_is_a_row_and_nothing_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    source = tmp_path / "rows.jsonl"
    source.write_text('{"image": "pipe.png", "question": "What?"}')
    rows: list[Row] = []
    thread = threading.Thread(target=lambda: rows.extend(read_rows(source, ())), daemon=True)
    thread.start()
    thread.join(5)
    assert [(row.image, row.size) for row in rows] == [(tmp_path / "pipe.png", 0)]


def test_looking_at_many_pictures_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "SILENCE", 0.0)
    source, lines = tmp_path / "rows.jsonl", []
    source.write_text('{"question": "What?"}\n' * 3)
    read_rows(source, (), lines.append)
    assert lines[-1] == "looks at the pictures' sizes: 2 of 3 rows"


@pytest.mark.parametrize("text", ['{"my": "file"}', "my file", '{"image": "a"}\n', "\x89PNG"])
def test_a_file_of_somebody_else_is_never_cut_off(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OutputError, match="no file of answers"), results_in(path, "a job"):
        pass
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("output", [".", "..", "/", "{folder}", "{folder}/pipe", "{long}"])
def test_an_output_that_can_be_no_file_is_told_before_the_model(tmp_path, capsys, output):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"question": "Hello"}')
    if "pipe" in output:
        if sys.platform == "win32":
            pytest.skip("Windows has no such files")
        os.mkfifo(tmp_path / "pipe")
    place = Path(output.format(folder=tmp_path, long="a" * 300))
    assert main(command(None, source, place, "--server", "127.0.0.1:1")) == 1
    reason = "cannot be written (File name too long)" if "long" in output else "is a folder"
    reason = "is no file" if "pipe" in output else reason
    assert f"error: {place} {reason}; give " in capsys.readouterr().err
    with pytest.raises(OutputError, match="give"), results_in(place, "a job"):
        pass


def test_an_input_is_no_place_for_its_answers(tmp_path, capsys):
    """Also where its lines are answers of the same job, to which those of more rows were added."""
    source, link = tmp_path / "rows.jsonl", tmp_path / "link.jsonl"
    source.write_text('{"question": "What?"}\n')
    link.symlink_to(source)
    for output in (source, link):
        assert main(command(None, source, output, "--server", "127.0.0.1:1")) == 1
        assert "is the input; give another file" in capsys.readouterr().err
    assert source.read_text() == '{"question": "What?"}\n'


def test_a_first_line_that_is_torn_is_cut_off(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"image": "a.png", "ques', encoding="utf-8")
    with results_in(path, "a job") as results:
        assert not results.done
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("[]", "holds no JSON schema"),
        ('{"type": "nonsense"}', "The schema cannot be followed"),
    ],
)
def test_a_schema_is_looked_at_before_all_rows(tmp_path, capsys, text, words):
    source, schema = tmp_path / "rows.jsonl", tmp_path / "schema.json"
    source.write_text('{"question": "Hello"}')
    if text is not None:
        schema.write_text(text, encoding="utf-8-sig")
    server = ("--server", "127.0.0.1:1")
    assert main(command(None, source, tmp_path / "a", "--schema", schema, *server)) == 1
    assert words in capsys.readouterr().err


def test_lines_without_pictures_are_told(tmp_path, capsys):
    """As of a file whose column has another name."""
    source = tmp_path / "rows.jsonl"
    source.write_text('{"picture": "a.png", "question": "What?"}')
    assert main(command(None, source, tmp_path / "a", "--server", "127.0.0.1:1")) == 1
    assert "note: no line has an image" in capsys.readouterr().err
