"""A job of many rows: answered in batches by one pipeline, and written as they are answered.

What this module does not know: where rows come from, and how a file survives.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.convert.folders import read_manifest
from helpers.errors import UserError, reason_of
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.replies import Reply
from helpers.run.sampling import Sampling
from helpers.run.worker import Task
from helpers.serve.addresses import Pictures
from helpers.serve.completions import finish_of, usage_of
from helpers.serve.protocol import Completion, Refusal, parse_request
from helpers.serve.results import ERROR, Results, results_in
from helpers.serve.rows import IMAGE, Columns, Row, batches

BATCH = 4  # rows that are answered together
EVERY = 2.0  # seconds between two lines about progress
ANSWER = ("answer", "finish_reason", "tokens", "seconds", ERROR)  # columns that a job adds

Report = Callable[[str], None]


def job_of(pipeline: VisionLanguagePipeline, options: Mapping[str, Any]) -> str:
    """Return what tells jobs apart: the model's files, and the options of its answers."""
    files = {name: file["sha256"] for name, file in read_manifest(pipeline.folder)["files"].items()}
    words = json.dumps([files, options], sort_keys=True, default=str)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


@dataclass
class Progress:
    """How many rows are done, and what is said about it."""

    total: int
    done: int
    report: Report
    failed: int = 0
    started: float = field(default_factory=time.monotonic)
    new: int = 0
    last_report: float = 0.0

    def add(self, rows: int, failed: int) -> None:
        """Count rows; say how far it is now and then."""
        self.done, self.new, self.failed = self.done + rows, self.new + rows, self.failed + failed
        now = time.monotonic()
        if now - self.last_report >= EVERY or self.done == self.total:
            self.last_report = now
            rate = self.new / max(now - self.started, 1e-9)
            left = (self.total - self.done) / max(rate, 1e-9)
            self.report(
                f"{self.done} of {self.total} rows, {rate:.2f} a second, {_duration(left)} left"
                + (f", {self.failed} failed" if self.failed else "")
            )


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


@dataclass
class Entry:
    """A row whose answer is computed; `reply` is None where it could not be asked."""

    row: Row
    reply: Reply | None
    error: str = ""
    answer: Columns | None = None  # of an equal row, which was answered before
    key: bytes = b""
    started: float = field(default_factory=time.monotonic)


class Job:
    """Answers rows with one pipeline; `options` are those of `Conversation.ask`."""

    def __init__(
        self, pipeline: VisionLanguagePipeline, options: Mapping[str, Any], report: Report
    ) -> None:
        self.pipeline, self.options, self.report = pipeline, dict(options), report
        self.pictures = Pictures()
        self.answers: dict[bytes, Columns] = {}  # of this run, by picture and question
        self.replies: dict[bytes, Reply] = {}  # those that are not answered yet

    def run(self, rows: Sequence[Row], results: Results) -> Progress:
        """Answer the rows that are missing; return how many are done and have failed.

        A batch of which one is missing is computed whole, so that what is answered together never
        depends on when the job was interrupted.
        """
        missing = [
            batch
            for batch in batches(rows, BATCH)
            if any(row.identity not in results.done for row in batch)
        ]
        done = sum(row.identity in results.done for row in rows)
        progress = Progress(len(rows), done, self.report, failed=len(results.failed))
        entries, tasks = self._begin(missing[0]) if missing else ([], [])
        for place in range(len(missing)):
            self.pipeline.worker.submit(*tasks)
            following = missing[place + 1] if place + 1 < len(missing) else []
            next_entries, tasks = self._begin(following)  # while the others are computed
            answers = [(entry.row.identity, self._answer(entry)) for entry in entries]
            new = [answer for answer in answers if answer[0] not in results.done]
            results.add(new)
            progress.add(len(new), sum(bool(columns[ERROR]) for _, columns in new))
            entries = next_entries
        return progress

    def _begin(self, batch: Sequence[Row]) -> tuple[list[Entry], list[Task]]:
        """Prepare the questions of a batch; return them, and what is to be computed together."""
        with self.pipeline.worker.held() as tasks:
            entries = [self._ask(row) for row in batch]
        return entries, tasks

    def _ask(self, row: Row) -> Entry:
        """Prepare a row's question; an equal one is computed once."""
        if row.error:
            return Entry(row, None, row.error)
        try:
            key = _key_of(row)
            if key in self.answers:
                return Entry(row, None, answer=self.answers[key])
            if key not in self.replies:
                self.replies[key] = self._reply(row)
            return Entry(row, self.replies[key], key=key)
        except (UserError, Refusal) as error:
            return Entry(row, None, _sentence(error, row))
        except Exception as error:  # of a library, for a file of any kind
            return Entry(row, None, f"The row cannot be asked ({reason_of(error)}).")

    def _reply(self, row: Row) -> Reply:
        if row.is_openai:
            request = parse_request(row.columns["body"], self.pictures.open)
            options = self.options | request.options
            return self.pipeline.chat(request.messages, **options)
        return self.pipeline.ask(row.question, [row.image] if row.image else [], **self.options)

    def _answer(self, entry: Entry) -> Columns:
        """Return the columns of an answered row; one that failed among others is tried alone."""
        error = entry.error
        if entry.reply is not None:
            try:
                entry.reply.wait()
            except Exception:
                error = self._try_alone(entry)
        if entry.reply is not None and not error:
            entry.answer = _answer_of(entry)
            self.answers[entry.key] = entry.answer
        self.replies.pop(entry.key, None)
        return _columns(entry.row, entry.answer, error)

    def _try_alone(self, entry: Entry) -> str:
        """Ask a row once more, by itself; return the sentence of its error, if there is one."""
        try:
            entry.reply = self._reply(entry.row)
            entry.reply.wait()
        except (UserError, Refusal) as error:
            return _sentence(error, entry.row)
        except Exception as error:
            return f"The answer cannot be computed ({reason_of(error)})."
        return ""


def _sentence(error: Exception, row: Row) -> str:
    """Return an error's sentence, which calls the picture as the input does."""
    name = str(row.columns.get(IMAGE))
    return str(error).replace(str(row.image), name) if row.image else str(error)


def _key_of(row: Row) -> bytes:
    """Return what tells questions about pictures apart: the picture's bytes and the words."""
    digest = hashlib.sha256(row.question.encode("utf-8", "surrogatepass"))
    if row.is_openai:
        digest.update(json.dumps(row.columns["body"], sort_keys=True).encode())
    if row.image is not None:
        digest.update(row.image.read_bytes() if row.image.is_file() else bytes(row.image))
    return digest.digest()


def _answer_of(entry: Entry) -> Columns:
    reply = entry.reply
    assert reply is not None  # it was waited for
    answer = {
        "answer": reply.text,
        "finish_reason": reply.finish,
        "tokens": reply.counts.answer,
        "seconds": round(time.monotonic() - entry.started, 3),
    }
    if entry.row.is_openai:
        model = str(entry.row.columns["body"].get("model", ""))
        answer["body"] = Completion(model).whole(reply.text, finish_of(reply), usage_of(reply))
    return answer


def _columns(row: Row, answer: Columns | None, error: str) -> Columns:
    """Return a row as it is written: the input's columns and the answer's, or OpenAI's form."""
    if row.is_openai:
        response = {"status_code": 200, "request_id": row.identity}
        return {
            "id": f"batch_req_{row.identity}",
            "custom_id": row.columns["custom_id"],
            "response": response | {"body": answer["body"]} if answer else None,
            ERROR: {"code": "invalid_request", "message": error} if error else None,
        }
    columns = {
        (f"input_{name}" if name in ANSWER else name): value for name, value in row.columns.items()
    }
    return {**columns, **dict.fromkeys(ANSWER), **(answer or {}), ERROR: error or None}


def run_job(
    folder: Path,
    rows: Sequence[Row],
    output: Path,
    options: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    retry_errors: bool,
    report: Report,
) -> Progress:
    """Answer the rows that a file lacks with the model of a folder; return how it ended.

    `options` are those of `Conversation.ask`, `settings` those of the pipeline.
    """
    Sampling.of(**options)  # or it is an error
    pipeline = VisionLanguagePipeline(folder, answers_at_once=BATCH, **settings)
    job = job_of(pipeline, {**options, **settings})
    with results_in(output, job, retry_errors=retry_errors) as results:
        return Job(pipeline, options, report).run(rows, results)
