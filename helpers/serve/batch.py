"""A job of many rows: those that are missing are answered, and written as they are answered.

What this module does not know: where rows come from, who answers, and how a file survives.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from helpers.convert.folders import Report
from helpers.resources import duration_in_words
from helpers.serve.results import ERROR, Answers, job_of, results_in
from helpers.serve.rows import Row, batches

EVERY = 2.0  # seconds between two lines about progress


class Answerer(Protocol):
    """Answers rows, so many of them together, with a model that its `fingerprint` tells apart."""

    rows_together: int
    fingerprint: str

    def answers(self, batches: Sequence[Sequence[Row]]) -> Iterator[Answers]:
        """Yield the answers to batches of rows, a few at a time, in any order."""


@dataclass
class BatchProgress:
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
            left = duration_in_words((self.total - self.done) / max(rate, 1e-9))
            self.report(
                f"{self.done} of {self.total} rows, {rate:.2f} a second, {left} left"
                + (f", {self.failed} failed" if self.failed else "")
            )


def run_job(
    answerer: Answerer,
    rows: Sequence[Row],
    output: Path,
    options: Mapping[str, Any],
    *,
    retry_errors: bool = False,
    report: Report,
) -> BatchProgress:
    """Answer the rows that a file lacks; return how many are done and have failed.

    `options` are what answers depend on beside the model and the rows. A batch of which one is
    missing is answered whole, so that what is computed together never depends on when the job was
    interrupted.
    """
    job = job_of(answerer.fingerprint, options)
    with results_in(output, job, retry_errors=retry_errors) as results:
        missing = [
            batch
            for batch in batches(rows, answerer.rows_together)
            if any(row.identity not in results.done for row in batch)
        ]
        done = sum(row.identity in results.done for row in rows)
        failed = sum(row.identity in results.failed for row in rows)
        progress = BatchProgress(len(rows), done, report, failed=failed)
        for answers in answerer.answers(missing):
            new = [answer for answer in answers if answer[0] not in results.done]
            results.add(new)
            progress.add(len(new), sum(bool(columns[ERROR]) for _, columns in new))
        return progress
