"""Questions of files: a reader's own and public sets', scores, agreement, and the page."""

import base64
import csv
import io
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.__main__ import main
from helpers.errors import SettingsError
from helpers.measure import outcomes
from helpers.measure.data_sets import DATA_SETS, LETTER, SHORT, Sample, read_data_set
from helpers.measure.outcomes import Outcome, Score, agreement_scores, most_different, scores
from helpers.measure.web_page import paragraph, picture, section, table, web_page
from helpers.resources import duration_in_words
from tests.tiny import picture as tiny_picture
from tests.tiny import questions
from tests.web_pages import assert_can_be_sent


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Return a file of nine questions; some have answers, one a bad picture, one no question."""
    place = tmp_path_factory.mktemp("data")
    lines = []
    for number, (_, question) in enumerate(questions(7)):
        tiny_picture(number).save(place / f"{number}.png")
        line = {"image": f"{number}.png", "question": question.text, "kind": question.kind}
        answers = {0: {"answers": [question.answer, "x"]}, 1: {"answer": question.answer}}
        lines.append(line | answers.get(number % 3, {}))
    (place / "bad.png").write_bytes(b"no picture")
    lines += [{"image": "bad.png", "question": "What?"}, {"image": "0.png"}]
    path = place / "questions.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def evaluate(capsys, *arguments: object, code: int = 0) -> dict:
    """Return what `evaluate --json` prints; check its exit code."""
    words = ["evaluate", *arguments, "--max-new-tokens", 6, "--json"]
    assert main([str(word) for word in words]) == code
    return json.loads(capsys.readouterr().out)


def test_a_readers_own_questions(capsys, converted, data):
    report = evaluate(capsys, converted, "--data", data, code=3)
    assert (report["set"], report["questions"]) == ("questions.jsonl", 7)
    assert [sentence.split(":")[0] for sentence in report["left_out"]] == ["line 9", "line 8"]
    table = report["scores"]["internvl2"]
    assert list(table["all"]) == ["exact", "relaxed", "ANLS"]
    assert table["all"]["exact"]["questions"] == 5  # with answers
    assert sum(row["exact"]["questions"] for kind, row in table.items() if kind != "all") == 5
    for row in table.values():
        assert all(score["low"] <= score["value"] <= score["high"] for score in row.values())


def test_progress_and_time_left_are_told(capsys, converted, data, monkeypatch):
    clock = itertools.count(0, 100)  # each question takes 100 s
    monkeypatch.setattr(outcomes, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(outcomes, "CHUNK", 1)
    words = ["evaluate", converted, "--data", data, "--questions", 3, "--max-new-tokens", 2]
    main([str(word) for word in words])
    _, messages = capsys.readouterr()
    left = re.findall(r"(\d) of 3 questions done, about (.*) left", messages)
    assert left == [("1", "3 min 20 s"), ("2", "1 min 40 s"), ("3", "0 s")]


@pytest.mark.parametrize(
    "seconds, words",
    [(0.4, "0 s"), (59.9, "59 s"), (125, "2 min 5 s"), (11_040, "3 h 4 min")],
)
def test_time_left_in_words(seconds, words):
    assert duration_in_words(seconds) == words


def test_questions_that_cannot_be_asked_are_left_out(capsys, converted, data):
    path = data.with_name("odd.JSONL")
    questions = ("word " * 5000, "\ud800?", "What?")
    lines = [{"image": "0.png", "question": text, "answer": "red"} for text in questions]
    path.write_text("\n".join(map(json.dumps, lines)))
    report = evaluate(capsys, converted, "--data", path, code=3)
    long, half = report["left_out"]
    assert report["questions"] == 1
    assert "the model's context holds" in long and "halves of characters" in half


def test_questions_without_answers_need_another_model(capsys, converted, data):
    path = data.with_name("unanswered.jsonl")
    path.write_text('{"image": "0.png", "question": "What?"}')
    assert main(["evaluate", str(converted), "--data", str(path)]) == 1
    assert "has no answers, so that none can be right" in capsys.readouterr().err


def test_lines_without_pictures_are_told(capsys, converted, data):
    """That they have no answers is not what has to be mended first."""
    path = data.with_name("no pictures.jsonl")
    path.write_text('{"img": "0.png", "question": "What?"}')
    assert main(["evaluate", str(converted), "--data", str(path)]) == 1
    errors = capsys.readouterr().err
    assert "line 1: The line has no image." in errors and "No question of" in errors


def test_agreement_with_pytorch_without_answers(capsys, tmp_path, converted, checkpoint, data):
    """The folder's weights are the checkpoint's, so that nothing differs but roundings."""
    page = tmp_path / "page.html"
    arguments = ("--data", data, "--against", checkpoint, "--page", page)
    report = evaluate(capsys, converted, *arguments, code=3)
    shares = report["agreement"]
    assert shares["equal answers"]["value"] == shares["similarity of texts"]["value"] == 1
    assert 0 <= shares["KL of the first token"]["value"] < 1e-9  # measured: 1e-12
    assert len(report["scores"]) == 2
    assert_can_be_sent(page.read_text(encoding="utf-8"), 7)


def test_agreement_of_two_folders(capsys, tmp_path, converted, checkpoint, data):
    other = tmp_path / "int4"
    assert main(["convert", str(checkpoint), "--precision", "int4", "--output", str(other)]) == 0
    capsys.readouterr()
    report = evaluate(capsys, other, "--data", data, "--against", converted, code=3)
    shares = report["agreement"]
    assert 1e-6 < shares["KL of the first token"]["value"] < 10
    assert shares["equal answers"]["value"] < 1
    assert shares["equal answers"]["value"] <= shares["similarity of texts"]["value"] <= 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--against", "internvl2"), "--against is for questions of a file"),
        (("--data", "no.jsonl"), "no.jsonl does not exist"),
        (("--data", "{data}", "--page", "page.html"), "give --against too"),
        (("--data", "{data}", "--questions", "0"), "Ask at least one question"),
        (("--data", "{data}", "--pictures", "."), "Pictures of your own questions"),
        (("--data", "{data}", "--against", "no-such"), "no-such is neither a folder"),
        (("--data", "{data}", "--against", "mobilevlm"), "The two models have other tokens"),
        (("--max-new-tokens", "0"), "max_new_tokens is 0; it should be"),
        (("--data", "{data}", "--max-new-tokens", "-1"), "max_new_tokens is -1"),
    ],
)
def test_what_is_refused(capsys, converted, data, options, sentence):
    words = [word.format(data=data) for word in options]
    assert main(["evaluate", str(converted), *words]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert sentence in error and error.startswith("error: ")


# Public sets


def picture_bytes(number: int) -> bytes:
    file = io.BytesIO()
    tiny_picture(number).save(file, "PNG")
    return file.getvalue()


ROWS = {
    "DocVQA": {
        "data": [
            {
                "questionId": 7,
                "question": "Who?",
                "image": "documents/a.png",
                "docId": 3,
                "answers": ["Ann", "ann"],
            },
            {"questionId": 8, "question": "When?", "image": "documents/a.png", "docId": 3},
        ]
    },
    "ChartQA": [{"imgname": "a.png", "query": "How many?", "label": "14"}],
    "TextVQA": {
        "data": [
            {"question_id": 1, "question": "Brand?", "image_id": "a", "answers": ["nokia"] * 10}
        ]
    },
    "OCRBench": [
        {
            "dataset_name": name,
            "type": kind,
            "image_path": "a.png",
            "question": "What is written?",
            "answers": answers,
            "id": 0,
        }
        for name, kind, answers in (
            ("IIIT5K", "Regular Text Recognition", ["CENTRE"]),
            ("HME100k", "Handwritten Mathematical Expression Recognition", "x ^ 2"),
        )
    ],
}
PLACES = {
    "DocVQA": "documents/a.png",
    "ChartQA": "png/a.png",
    "TextVQA": "train_images/a.jpg",
    "OCRBench": "OCRBench_Images/a.png",
}


def write_set(name: str, place: Path) -> Path:
    """Write a set's file with a picture where its authors have them."""
    picture = place / PLACES[name]
    picture.parent.mkdir()
    picture.write_bytes(picture_bytes(0))
    path = place / "file.json"
    path.write_text(json.dumps(ROWS[name]), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ROWS)
def test_a_public_sets_file(name, tmp_path):
    read = read_data_set(write_set(name, tmp_path))
    assert (read.name, read.left_out) == (name, [])
    assert all(sample.open().size == tiny_picture(0).size for sample in read.samples)
    assert all(sample.text.endswith(("?", SHORT)) for sample in read.samples)
    expected = {
        "DocVQA": [("Ann", "ann"), ()],
        "ChartQA": [("14",)],
        "TextVQA": [("nokia",) * 10],
        "OCRBench": [("CENTRE",), ("x ^ 2",)],
    }
    assert [sample.right for sample in read.samples] == expected[name]


@pytest.mark.parametrize(
    ("answers", "right"),
    [([1950, "a"], ("1950", "a")), (1950, ("1950",)), ("ab", ("ab",)), (None, ())],
)
@pytest.mark.parametrize("name", ["DocVQA", "ChartQA", "TextVQA"])
def test_answers_may_be_numbers_and_single(name, answers, right, tmp_path):
    path, rows = tmp_path / "file.json", ROWS[name]
    row = (rows["data"] if isinstance(rows, dict) else rows)[0]
    column = "label" if name == "ChartQA" else "answers"
    path.write_text(json.dumps([row | {column: answers}]), encoding="utf-8")
    assert [sample.right for sample in read_data_set(path).samples] == [right]


def test_a_question_may_be_a_number_but_not_nothing(tmp_path):
    path, row = tmp_path / "file.json", ROWS["ChartQA"][0]
    path.write_text(json.dumps([row | {"query": query} for query in (7, None)]), encoding="utf-8")
    read = read_data_set(path)
    assert [sample.text for sample in read.samples] == ["7"] and len(read.left_out) == 1


def test_ocrbenchs_formulas_are_compared_without_spaces(tmp_path):
    read = read_data_set(write_set("OCRBench", tmp_path))
    rows = [Outcome(sample, ("It is x^2 at the CENTRE",), 0.0, 1.0) for sample in read.samples]
    table = scores(rows, read.metrics)
    assert table["all"]["contains"].value == 1 and len(table) == 3


def test_mmbench(tmp_path):
    """Two questions about one picture, which is in the first row alone."""
    path = tmp_path / "mmbench.tsv"
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    photograph = picture_bytes(0) + bytes(100_000)  # a field longer than the csv module allows
    image = base64.b64encode(photograph).decode()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(columns)
        writer.writerow([100241, "What?", "Look.", "a cat", "a dog", "", "", "B", "animals", image])
        writer.writerow([2, 'Why "so"?', "", "yes", "no", "", "", "A", "reasons", "100241"])
    read = read_data_set(path)
    first, second = read.samples
    assert first.text == "Look.\nWhat?\nA. a cat\nB. a dog"
    assert second.text == 'Why "so"?\nA. yes\nB. no'
    assert (first.right, second.right, second.kind) == (("B",), ("A",), "reasons")
    assert first.picture == second.picture and second.open().size == tiny_picture(0).size
    assert (read.metrics, read.instruction) == (("choice",), LETTER)


def test_every_set_names_where_its_columns_are_read():
    assert [data_set.name for data_set in DATA_SETS] == [*ROWS, "MMBench"]
    assert all(" of " in data_set.source and "/" in data_set.source for data_set in DATA_SETS)


def test_files_of_no_set(tmp_path):
    path = tmp_path / "file.json"
    for text, sentence in (
        ('[{"a": 1}]', "has the columns of none of DocVQA, ChartQA"),
        ("[]", "has the columns of none"),
        ('"text"', "has the columns of none"),
        ("{", "has the columns of none"),
        ("image,question\n", "has the columns of none"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(SettingsError, match=sentence):
            read_data_set(path)


def test_a_file_that_is_not_there_or_has_windows_mark(tmp_path):
    path = tmp_path / "file.json"
    with pytest.raises(SettingsError, match=r"file.json cannot be read \(No such file"):
        read_data_set(path)
    path.write_text(json.dumps(ROWS["ChartQA"]), encoding="utf-8-sig")
    assert len(read_data_set(path).samples) == 1


def test_a_row_that_lacks_a_column_is_told(tmp_path):
    path = tmp_path / "file.json"
    rows = ROWS["ChartQA"] + [{"imgname": "b.png"}, 5]
    path.write_text(json.dumps(rows), encoding="utf-8")
    read = read_data_set(path)
    assert len(read.samples) == 1 and len(read.left_out) == 2


# Scores, agreement and pages


def outcome(first: str, second: str, moved: float = 0.0, likeness: float = 0.0) -> Outcome:
    return Outcome(Sample("line", "What?", b"", ("a",)), (first, second), moved, likeness)


def test_scores_and_agreement_by_hand():
    rows = [outcome("a", "a", 0.0, 1.0), outcome("a", "b", 0.4), outcome("c", "d", 0.2)]
    assert scores(rows, ["exact"])["all"]["exact"].value == pytest.approx(2 / 3)
    assert scores(rows, ["exact"], 1)["all"]["exact"].value == pytest.approx(1 / 3)
    shares = agreement_scores(rows)
    assert shares["equal answers"].value == pytest.approx(1 / 3)
    assert shares["KL of the first token"].value == pytest.approx(0.2)
    assert [row.texts[1] for row in most_different(rows, 2)] == ["b", "d"]


def test_a_score_of_shares_has_the_interval_of_a_share():
    score = Score.of([1.0] * 12 + [0.0])
    assert (score.low, score.high) == pytest.approx((0.667, 0.986), abs=1e-3)  # Wilson's
    score = Score.of([1.0] * 12)
    assert (score.low, score.high) == pytest.approx((0.757, 1), abs=1e-3)
    half = Score.of([0.5] * 20)
    assert (half.low, half.value, half.high) == (0.5, 0.5, 0.5)


def test_nothing_on_a_page_is_markup_that_another_wrote():
    words = '"><script>alert(1)</script> and a <img src=http://x.org>'
    parts = [section(words), paragraph(words), table([{words: words}])]
    text = web_page(words, *parts, picture(tiny_picture(0), words))
    assert_can_be_sent(text, 1)
    assert text.count("&lt;script&gt;") == 7
