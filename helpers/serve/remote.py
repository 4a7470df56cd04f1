"""Rows answered by running servers; pictures travel with the questions, and no folder is shared.

A server that does not answer gets no more rows until it does; those it had go to the others.

What this module does not know: which rows there are, and where answers go.
"""

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from helpers.convert.folders import Report
from helpers.errors import OutputError, SettingsError, UserError, reason_of
from helpers.serve.columns import RowAnswer, columns_of, key_of, sentence_of
from helpers.serve.protocol import Refusal
from helpers.serve.requests import LaterError, LostError, RemoteServer
from helpers.serve.results import Answers
from helpers.serve.rows import Columns, Row

AT_ONCE = 8  # requests that a server has: it computes four together, and prepares the next
MOST_LOSSES = 3  # servers that may end while they answer a row, which then gets an error
PATIENCE = 60.0  # seconds that a job waits while no server answers
LOOK = 0.5  # seconds between two looks whether all is over
AGAIN = 2.0  # seconds between two questions whether a server is there again


class Servers:
    """Answers rows by servers that have one model; `options` are those of `Conversation.ask`.

    Raises `SettingsError` where none answers, refuses the key, or has another model than the rest.
    """

    rows_together = 1  # each server puts together what it gets

    def __init__(
        self,
        addresses: Sequence[str],
        key: str | None,
        model: str | None,
        options: Mapping[str, Any],
        report: Report,
    ) -> None:
        self.report, self.options = report, dict(options)
        self.servers = [RemoteServer(address, key) for address in dict.fromkeys(addresses)]
        self.fingerprint = self._find(model)
        self.rows: queue.Queue[Row] = queue.Queue()
        self.results: queue.Queue[Answers | UserError] = queue.Queue()
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.losses: dict[str, int] = {}  # by row
        self.finished: dict[bytes, RowAnswer] = {}  # by picture and question
        self.equal_rows: dict[bytes, list[Row]] = {}  # which wait for the first of them

    def _find(self, model: str | None) -> str:
        """Ask each server for its model; return the fingerprint that all of them have."""
        fingerprints: dict[str, RemoteServer] = {}
        errors = []
        for server in self.servers:
            try:
                fingerprints.setdefault(server.find(model, self.report), server)
            except LostError as error:
                server.is_lost = True
                errors.append(str(error))
                self.report(f"{error} Its rows go to the others.")
        if not fingerprints:
            raise SettingsError(errors[0] + " Start it with `vlm serve`.")
        if len(fingerprints) > 1:
            first, second = list(fingerprints.values())[:2]
            raise SettingsError(
                f"{first.address} and {second.address} have other models, or run them otherwise; "
                "serve the same folder with the same options."
            )
        return next(iter(fingerprints))

    def answers(self, batches: Sequence[Sequence[Row]]) -> Iterator[Answers]:
        """Yield rows as servers answer them."""
        number = 0
        for row in (row for batch in batches for row in batch):
            self.rows.put(row)
            number += 1
        for server in self.servers if number else ():
            for _ in range(AT_ONCE):
                threading.Thread(target=self._work, args=(server,), daemon=True).start()
        try:
            while number:
                answers = self._next()
                number -= len(answers)
                yield answers
        finally:
            self.over.set()
            for server in self.servers:
                server.close()

    def _next(self) -> Answers:
        """Wait for answers; raise an `OutputError` where no server is there to give them."""
        end = time.monotonic() + PATIENCE
        while True:
            with suppress(queue.Empty):
                answers = self.results.get(timeout=LOOK)
                if isinstance(answers, UserError):
                    raise answers
                return answers
            if not all(server.is_lost for server in self.servers):
                end = time.monotonic() + PATIENCE
            elif time.monotonic() > end:
                raise OutputError(
                    "No server answers any more; start one, and the same command goes on."
                )

    def _work(self, server: RemoteServer) -> None:
        """Have a server answer one row after another, until all are answered."""
        while not self.over.is_set():
            if server.is_lost:
                self._wait_for(server)
                continue
            with suppress(queue.Empty):
                row = self.rows.get(timeout=LOOK)
                try:
                    self._answer(server, row)
                except UserError as error:  # of all rows
                    self.results.put(error)

    def _wait_for(self, server: RemoteServer) -> None:
        """Look now and then whether a server is there again, with the model that it had."""
        if self.over.wait(AGAIN) or not server.is_there(self.fingerprint):
            return
        with self.lock:
            if server.is_lost:
                server.is_lost = False
                self.report(f"{server.address} answers again.")

    def _answer(self, server: RemoteServer, row: Row) -> None:
        """Have a row answered, or put it back."""
        key = b""
        try:
            if row.error:
                self._put([row], None, row.error)
                return
            key = key_of(row)
            if not self._is_first(row, key):
                return
            answer = server.ask(row, self.options)
            self._put(self._take(row, key, answer), answer)
        except LaterError as error:
            self._put_back(row, key)
            self.over.wait(error.seconds)
        except LostError as error:
            if not self.over.is_set():
                self._lose(server, row, key, error)
        except SettingsError:
            raise
        except (UserError, Refusal) as error:
            self._put(self._take(row, key), None, error)
        except Exception as error:  # of a library, for a file of any kind
            words = f"The row cannot be asked ({reason_of(error)})."
            self._put(self._take(row, key), None, words)

    def _is_first(self, row: Row, key: bytes) -> bool:
        """Return whether a row is to be asked; an equal one waits for it, or has its answer."""
        with self.lock:
            answer = self.finished.get(key)
            if answer is None:
                if key in self.equal_rows:
                    self.equal_rows[key].append(row)
                    return False
                self.equal_rows[key] = []
                return True
        self._put([row], answer)
        return False

    def _take(self, row: Row, key: bytes, answer: RowAnswer | None = None) -> list[Row]:
        """Return all rows that have waited for one, and that one."""
        with self.lock:
            if answer is not None:
                self.finished[key] = answer
            return [row, *self.equal_rows.pop(key, [])]

    def _put_back(self, row: Row, key: bytes) -> None:
        for equal in self._take(row, key):
            self.rows.put(equal)

    def _put(self, rows: list[Row], answer: RowAnswer | None, error: Exception | str = "") -> None:
        columns: list[tuple[str, Columns]] = []
        for row in rows:
            sentence = error if isinstance(error, str) else sentence_of(error, row)
            columns.append((row.identity, columns_of(row, answer, sentence)))
        self.results.put(columns)

    def _lose(self, server: RemoteServer, row: Row, key: bytes, error: LostError) -> None:
        """Give a row to another server, unless it has cost too many of them."""
        with self.lock:
            if not server.is_lost:
                server.is_lost = True
                self.report(f"{error} Its rows go to the others.")
            losses = self.losses[row.identity] = self.losses.get(row.identity, 0) + error.is_ended
        if losses < MOST_LOSSES:
            self._put_back(row, key)
        else:
            words = f"{MOST_LOSSES} times a server ended while it answered this; try it alone."
            self._put(self._take(row, key), None, words)
