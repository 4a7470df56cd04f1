"""The columns that a job adds to its rows: an answer, or the sentence of an error.

What this module does not know: who answers.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from helpers.run.replies import Counts
from helpers.serve.completions import THOUGHT, Completion
from helpers.serve.results import ERROR, JOB, ROW
from helpers.serve.rows import CUSTOM_ID, IMAGE, Columns, Row

ANSWER = ("answer", "finish_reason", "tokens", "seconds", ERROR)
OURS = (*ANSWER, THOUGHT, ROW, JOB)  # an input's columns of these names get others


@dataclass(frozen=True)
class RowAnswer:
    """What was answered, why it ended ("stop" or "length"), its tokens, and its seconds.

    There may be a `thought` before it.
    """

    text: str
    finish: str
    counts: Counts
    seconds: float
    thought: str = ""


def columns_of(row: Row, answer: RowAnswer | None, error: str = "") -> Columns:
    """Return a row as it is written: the input's columns and the answer's, or OpenAI's form."""
    if row.is_openai:
        response = {"status_code": 200, "request_id": row.identity}
        return {
            "id": f"batch_req_{row.identity}",
            CUSTOM_ID: row.columns.get(CUSTOM_ID),
            "response": response | {"body": _body(row, answer)} if answer else None,
            ERROR: {"code": "invalid_request", "message": error} if error else None,
        }
    columns = {_kept_name(name, row.columns): value for name, value in row.columns.items()}
    columns |= dict.fromkeys(ANSWER)
    if answer:
        columns |= {
            "answer": answer.text,
            "finish_reason": answer.finish,
            "tokens": answer.counts.answer,
            "seconds": round(answer.seconds, 3),
        }
        columns |= {THOUGHT: answer.thought} if answer.thought else {}
    return columns | {ERROR: error or None}


def _kept_name(name: str, columns: Columns) -> str:
    """Return the name of an input's column; one of ours gets another, which no column has."""
    if name in OURS:
        name = f"input_{name}"
        while name in columns:  # of the input of an earlier job
            name = f"input_{name}"
    return name


def _body(row: Row, answer: RowAnswer) -> Columns:
    model = str(row.columns["body"].get("model", ""))
    return Completion(model).whole(
        answer.text, answer.finish, answer.counts, thought=answer.thought
    )


def sentence_of(error: Exception, row: Row) -> str:
    """Return an error's sentence, which calls the picture as the input does."""
    name = str(row.columns.get(IMAGE))
    return str(error).replace(str(row.image), name) if row.image else str(error)


def key_of(row: Row) -> bytes:
    """Return what tells questions about pictures apart: the picture's bytes and the words."""
    digest = hashlib.sha256(row.question.encode("utf-8", "surrogatepass"))
    if row.is_openai:
        digest.update(json.dumps(row.columns["body"], sort_keys=True).encode())
    if row.image is not None:
        digest.update(_content(row.image))
    return digest.digest()


def _content(path: Path) -> bytes:
    """Return the bytes of a file, or the path of what is none: opening it says why."""
    with suppress(OSError):
        if path.is_file():
            return path.read_bytes()
    return bytes(path)
