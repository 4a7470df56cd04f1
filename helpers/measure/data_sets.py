"""Questions about pictures with their right answers, from the files of public sets.

A set is told by its columns, which are those that public code reads: each `DataSet` names it. Files
are as the authors give them out, JSON or tab-separated; parquet is not read.

What this module does not know: files of a reader's own, and what an answer is worth.
"""

import base64
import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from helpers.errors import SettingsError, system_reason
from helpers.inputs.images import open_picture
from helpers.measure.metrics import Metric, contains_formula

Row = dict[str, Any]

# What LLaVA-1.5 asks behind a question for a short answer, and behind one with options
# (H. Liu et al., arXiv:2310.03744, section 3.2); VLMEvalKit and lmms-eval do the same.
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Sample:
    """A question about a picture: a file, or the bytes of one; `right` is empty if none is known.

    `name` is what a sentence calls it. Those of one `kind` are counted together too. `metric`
    takes the place of its set's where its answers are compared in another way.
    """

    name: str
    text: str
    picture: Path | bytes
    right: tuple[str, ...] = ()
    kind: str = ""
    metric: Metric | None = None

    def open(self) -> Image.Image:
        """Return its picture; one that cannot be read is a `PictureError`."""
        picture = self.picture
        return open_picture(BytesIO(picture) if isinstance(picture, bytes) else picture)


@dataclass(frozen=True)
class DataSet:
    """How a public set's rows are read; `columns` are those that tell it.

    `folder` is where its pictures are beside its file, `source` the public code that reads these
    columns, `metrics` what its paper counts, and `instruction` stands behind each question.
    """

    name: str
    columns: frozenset[str]
    source: str
    metrics: tuple[str, ...]
    read: Callable[[Row, Path], Sample]
    folder: str = ""
    instruction: str = SHORT


@dataclass(frozen=True)
class Questions:
    """The samples of a file, how they are counted, and sentences on rows that cannot be asked."""

    name: str
    samples: Sequence[Sample]
    metrics: Sequence[str]
    instruction: str = ""
    left_out: Sequence[str] = ()


def right_texts(answers: Any) -> tuple[str, ...]:
    """Return the right answers of a column as texts: of a list, or of a single text or number."""
    values = answers if isinstance(answers, list | tuple) else [answers]
    return tuple(str(value) for value in values if value is not None)


def _docvqa(row: Row, pictures: Path) -> Sample:
    right = right_texts(row.get("answers"))  # the test split has none
    return Sample(f"question {row['questionId']}", row["question"], pictures / row["image"], right)


def _chartqa(row: Row, pictures: Path) -> Sample:
    return Sample(
        row["imgname"], row["query"], pictures / row["imgname"], right_texts(row["label"])
    )


def _textvqa(row: Row, pictures: Path) -> Sample:
    right = right_texts(row.get("answers"))
    picture = pictures / f"{row['image_id']}.jpg"
    return Sample(f"question {row['question_id']}", row["question"], picture, right)


def _ocrbench(row: Row, pictures: Path) -> Sample:
    return Sample(
        row["image_path"],
        row["question"],
        pictures / row["image_path"],
        right_texts(row["answers"]),
        kind=str(row["type"]),
        metric=contains_formula if row["dataset_name"] == "HME100k" else None,
    )


def _mmbench(row: Row, pictures: Path) -> Sample:
    options = [f"{letter}. {row[letter]}" for letter in "ABCD" if row.get(letter)]
    text = "\n".join([*filter(None, [row.get("hint")]), row["question"], *options])
    right = (row["answer"],) if row.get("answer") else ()
    picture = base64.b64decode(row["image"])
    return Sample(f"question {row['index']}", text, picture, right, kind=row.get("category", ""))


DATA_SETS = (
    DataSet(
        "DocVQA",
        frozenset({"questionId", "question", "image"}),
        "big_vision/datasets/docvqa/docvqa.py of google-research/big_vision",
        ("ANLS",),
        _docvqa,
    ),
    DataSet(
        "ChartQA",
        frozenset({"imgname", "query", "label"}),
        "big_vision/datasets/chartqa/chartqa.py of google-research/big_vision",
        ("relaxed",),
        _chartqa,
        folder="png",
    ),
    DataSet(
        "TextVQA",
        frozenset({"question_id", "question", "image_id"}),
        "big_vision/datasets/textvqa/textvqa.py of google-research/big_vision",
        ("VQA accuracy",),
        _textvqa,
        folder="train_images",  # those of the validation split too
    ),
    DataSet(
        "OCRBench",
        frozenset({"dataset_name", "type", "image_path", "question", "answers"}),
        "OCRBench/example.py of Yuliang-Liu/MultimodalOCR",
        ("contains",),
        _ocrbench,
        folder="OCRBench_Images",
        instruction="",
    ),
    DataSet(
        "MMBench",
        frozenset({"index", "question", "A", "B", "image"}),
        "eval_mm/mmbench/mmbench_converter_dev.py of QwenLM/Qwen-VL",
        ("choice",),
        _mmbench,
        instruction=LETTER,
    ),
)
NAMES = ", ".join(data_set.name for data_set in DATA_SETS)


def read_data_set(path: Path, pictures: Path | None = None) -> Questions:
    """Return the questions of a public set's file; its `pictures` are in the folder beside it.

    Raises `SettingsError` for a file that cannot be read or is of no set that is known here.
    """
    try:
        rows = _tab_separated(path) if path.suffix == ".tsv" else _json(path)
        first = rows[0] if rows else {}
    except OSError as error:
        reason = system_reason(error)
        raise SettingsError(f"{path} cannot be read ({reason}); give another file.") from None
    except (ValueError, RecursionError, csv.Error):
        rows, first = [], {}
    columns = set(first) if isinstance(first, dict) else set()
    data_set = next((candidate for candidate in DATA_SETS if candidate.columns <= columns), None)
    if data_set is None:
        raise SettingsError(
            f"{path} has the columns of none of {NAMES}; write lines of JSON with image, question "
            "and answers into a file that ends with .jsonl."
        )
    folder = path.parent / data_set.folder if pictures is None else pictures
    samples, left_out = [], []
    for number, row in enumerate(rows, 1):
        try:
            sample = data_set.read(row, folder)
            if not isinstance(sample.text, str | int | float):
                raise TypeError
            samples.append(replace(sample, text=str(sample.text)))
        except (KeyError, TypeError, ValueError):
            left_out.append(f"Row {number} of {path.name} lacks what others have.")
    return Questions(data_set.name, samples, data_set.metrics, data_set.instruction, left_out)


def _json(path: Path) -> list[Row]:
    """Return the rows of a list, or of an object with `data`."""
    data = json.loads(path.read_text(encoding="utf-8-sig"))
    rows = data.get("data") if isinstance(data, dict) else data
    return rows if isinstance(rows, list) else []


def _tab_separated(path: Path) -> list[Row]:
    """Return the rows of a table; a picture that several have is in the row that `image` names.

    That is so in files of VLMEvalKit, `vlmeval/dataset/image_base.py` of open-compass/VLMEvalKit.
    """
    csv.field_size_limit(2**31 - 1)  # a picture is one field
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows: list[Row] = list(csv.DictReader(file, delimiter="\t"))
    pictures = {row.get("index"): row.get("image") or "" for row in rows}
    for row in rows:
        if len(row.get("image") or "") <= 64:
            row["image"] = pictures.get(row.get("image"))
    return rows
