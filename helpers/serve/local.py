"""Rows answered by one pipeline in this process, in batches.

What this module does not know: which rows there are, and where answers go.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.errors import SettingsError, UserError, reason_of
from helpers.inputs.messages import message_of
from helpers.resources import freeze_objects, return_freed_memory
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.replies import Reply
from helpers.run.worker import Task
from helpers.serve.addresses import Pictures
from helpers.serve.columns import RowAnswer, columns_of, key_of, sentence_of
from helpers.serve.completions import finish_of
from helpers.serve.protocol import Refusal, parse_request
from helpers.serve.results import Answers, fingerprint_of
from helpers.serve.rows import Row
from helpers.serve.service import ask_within_context, budget_of

# Rows that are answered together, each with a cache of its own: 24 pictures took 34.9 and 37.8 s in
# batches of 8, 37.5 s of 4, 33.7 s of 16 (InternVL2-1B in INT4 on 2 cores).
BATCH = 8


@dataclass(frozen=True)
class Model:
    """A folder, and how it is run.

    What `vlm tune` chose on a computer counts there if it is `tuned`.
    """

    folder: Path
    device: str
    picture_tokens: int | None
    tuned: bool

    def fingerprint(self) -> str:
        """Return what tells the model apart; an `OutputError` where it is no folder of ours."""
        return fingerprint_of(self.folder, self.device, self.picture_tokens)

    def open(
        self, rows_together: int, properties: Mapping[str, Any] | None = None
    ) -> VisionLanguagePipeline:
        """Load the model for at most so many rows at once."""
        pipeline = VisionLanguagePipeline(
            self.folder,
            self.device,
            picture_tokens=self.picture_tokens,
            tuned=self.tuned,
            properties=properties,
            answers_at_once=rows_together,
            next_tokens_apart=rows_together == 1,
        )
        freeze_objects()
        return pipeline


@dataclass
class Entry:
    """A row whose answer is computed; `reply` is None where it could not be asked."""

    row: Row
    reply: Reply | None
    error: str = ""
    answer: RowAnswer | None = None  # of an equal row, which was answered before
    key: bytes = b""
    started: float = field(default_factory=time.monotonic)


class Local:
    """Answers rows with one pipeline, so many `rows_together`.

    `options` are those of `Conversation.ask`. Raises `SettingsError` for answers that are longer
    than the model's context.
    """

    def __init__(
        self,
        pipeline: VisionLanguagePipeline,
        fingerprint: str,
        options: Mapping[str, Any],
        rows_together: int = BATCH,
    ) -> None:
        pipeline.processor.thinking(options.get("thinking"))  # or it is an error of every row
        limit, tokens = pipeline.processor.context_length, options["max_new_tokens"]
        if tokens >= limit:
            raise SettingsError(
                f"Answers of {tokens} tokens have no room in the model's context of {limit}; ask "
                "for fewer with --max-new-tokens."
            )
        self.pipeline, self.fingerprint, self.options = pipeline, fingerprint, dict(options)
        self.rows_together = rows_together
        self.pictures = Pictures()
        self.finished: dict[bytes, RowAnswer] = {}  # of this run, by picture and question
        self.replies: dict[bytes, Reply] = {}  # those that are not answered yet

    def answers(self, batches: Sequence[Sequence[Row]]) -> Iterator[Answers]:
        """Yield the answers of each batch; the next one is prepared meanwhile."""
        entries, tasks = self._begin(batches[0]) if batches else ([], [])
        for place in range(len(batches)):
            self.pipeline.worker.submit(*tasks)
            following = batches[place + 1] if place + 1 < len(batches) else []
            next_entries, tasks = self._begin(following)  # while the others are computed
            yield [self._answer(entry) for entry in entries]
            entries = next_entries
            return_freed_memory()  # pieces between what stays add up over thousands of pictures

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
            key = key_of(row)
            if key in self.finished:
                return Entry(row, None, answer=self.finished[key])
            if key not in self.replies:
                self.replies[key] = self._reply(row)
            return Entry(row, self.replies[key], key=key)
        except (UserError, Refusal) as error:
            return Entry(row, None, sentence_of(error, row))
        except Exception as error:  # of a library, for a file of any kind
            return Entry(row, None, f"The row cannot be asked ({reason_of(error)}).")

    def _reply(self, row: Row) -> Reply:
        """Begin an answer as a server does, so that a job may go on at either."""
        if row.is_openai:
            request = parse_request(row.columns["body"], self.pictures.opener())
            options = self.options | request.options
            options["picture_tokens"] = budget_of(self.pipeline, request.detail)
            if not self.pipeline.processor.has_switch:
                options.pop("thinking", None)
            *history, message = request.messages
        else:
            history, options = [], self.options
            message = message_of(row.question, [row.image] if row.image else [])
        return ask_within_context(self.pipeline.conversation(history), message, options)

    def _answer(self, entry: Entry) -> tuple[str, dict[str, Any]]:
        """Return a row's identity and columns; one that failed among others is tried alone."""
        error = entry.error
        if entry.reply is not None:
            try:
                entry.reply.wait()
            except Exception:  # of any of those that were computed together
                error = self._try_alone(entry)
        if entry.reply is not None and not error:
            entry.answer = self.finished[entry.key] = _answer_of(entry.reply, entry.started)
        self.replies.pop(entry.key, None)
        return entry.row.identity, columns_of(entry.row, entry.answer, error)

    def _try_alone(self, entry: Entry) -> str:
        """Ask a row once more, by itself; return the sentence of its error, if there is one."""
        try:
            entry.reply = self._reply(entry.row)
            entry.reply.wait()
        except (UserError, Refusal) as error:
            return sentence_of(error, entry.row)
        except Exception as error:  # the other rows of a job of days go on
            return f"The answer cannot be computed ({reason_of(error)})."
        return ""


def _answer_of(reply: Reply, started: float) -> RowAnswer:
    seconds = time.monotonic() - started
    return RowAnswer(reply.text, finish_of(reply), reply.counts, seconds, reply.thought)
