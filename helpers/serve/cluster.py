"""Rows answered by actors of a Ray cluster, one on each computer, each with a pipeline of its own.

The folder of the model and the pictures have the same path on every computer. Ray deals batches
out; what comes back is written by this process, so that one file resumes the job wherever it runs.

What this module does not know: which rows there are, and where answers go.
"""

import logging
import os
import pickle
import platform
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.convert.folders import Report
from helpers.errors import OutputError, SettingsError, UserError, reason_of
from helpers.serve.local import Local, Model
from helpers.serve.results import Answers
from helpers.serve.rows import Row

QUIET = 120.0  # seconds without a row after which it is said
ROWS, ANSWERS = "rows", "answers"  # columns of Ray's tables


def difference(model: Model, fingerprint: str) -> str:
    """Return how a folder differs on this computer, as the end of a sentence, or nothing."""
    try:
        is_same = model.fingerprint() == fingerprint
    except UserError as error:
        return f"{platform.node()}: {error}"
    if not is_same:
        return f"{platform.node()}: {model.folder} holds another model than here; copy it there."
    return ""


class Actor:
    """A process of the cluster: its model is loaded once, and answers one batch after another."""

    def __init__(
        self,
        model: Model,
        fingerprint: str,
        options: Mapping[str, Any],
        threads: int,
        rows_together: int,
    ) -> None:
        if reason := difference(model, fingerprint):  # a computer that has joined since
            raise OutputError(reason)
        # Pinned, the processes of a computer would sit on the same cores (openvino#32444).
        properties = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        pipeline = model.open(rows_together, properties if model.device == "CPU" else {})
        self.local = Local(pipeline, fingerprint, options, rows_together)

    def __call__(self, table: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """Answer the batches in a table."""
        batches = [pickle.loads(rows) for rows in table[ROWS]]
        return {ANSWERS: [pickle.dumps(answers) for answers in self.local.answers(batches)]}


class Cluster:
    """Answers rows by the computers of a cluster; `options` are those of `Conversation.ask`.

    What `vlm tune` chose on a computer counts there, but for threads.
    """

    def __init__(
        self,
        address: str,
        model: Model,
        options: Mapping[str, Any],
        report: Report,
        rows_together: int,
    ) -> None:
        self.rows_together = rows_together
        self.address, self.options, self.report = address, dict(options), report
        self.fingerprint = model.fingerprint()
        self.model = replace(model, folder=model.folder.resolve())

    def answers(self, batches: Sequence[Sequence[Row]]) -> Iterator[Answers]:
        """Yield the answers to batches as they come back.

        Raises `SettingsError` for a cluster that is not there or has no room, `OutputError` where
        the model is another on one of its computers, or where Ray gives up.
        """
        if not batches:
            return
        with connected(self.address) as ray:
            threads, actors = room_in(ray.nodes())
            self._compare(ray)
            self.report(f"{actors} computers answer, each with {threads} threads")
            results: queue.Queue[Answers | Exception | None] = queue.Queue()
            work = (ray, batches, threads, actors, results)
            threading.Thread(target=self._run, args=work, daemon=True).start()
            while (answers := self._next(results)) is not None:
                yield answers

    def _run(
        self,
        ray: Any,
        batches: Sequence[Sequence[Row]],
        threads: int,
        actors: int,
        results: queue.Queue[Answers | Exception | None],
    ) -> None:
        """Deal batches out, each a block of its own, so that every actor has some.

        Ray Data spreads actors over nodes, and tries again what was lost with one.
        """
        try:
            tables = [{ROWS: pickle.dumps([_absolute(row) for row in batch])} for batch in batches]
            answers = ray.data.from_items(tables, override_num_blocks=len(tables)).map_batches(
                Actor,
                fn_constructor_args=(
                    self.model,
                    self.fingerprint,
                    self.options,
                    threads,
                    self.rows_together,
                ),
                batch_size=1,
                num_cpus=threads,
                compute=ray.data.ActorPoolStrategy(size=min(actors, len(batches))),
            )
            for table in answers.iter_rows():
                results.put(pickle.loads(table[ANSWERS]))
            results.put(None)
        except Exception as error:  # raised where the answers are read
            results.put(error)

    def _next(self, results: queue.Queue[Answers | Exception | None]) -> Answers | None:
        """Wait for answers, None at the end; say so where they are long in coming."""
        while True:
            try:
                answers = results.get(timeout=QUIET)
            except queue.Empty:
                self.report(f"no row for {QUIET:.0f} s; `ray status` says what Ray waits for")
                continue
            if isinstance(answers, Exception):
                raise _end(answers) from answers
            return answers

    def _compare(self, ray: Any) -> None:
        """Raise an `OutputError` that names the computers whose folder differs."""
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        compare = ray.remote(num_cpus=0)(difference)
        tasks = [
            compare.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote(
                self.model, self.fingerprint
            )
            for node in ray.nodes()
            if node["Alive"] and _processors(node)
        ]
        try:
            differences = sorted(set(filter(None, ray.get(tasks))))
        except Exception as error:  # of Ray, for a node that is lost or has other packages
            raise _end(error) from error
        if differences:
            raise OutputError(" ".join(differences))


def _end(error: Exception) -> OutputError:
    return OutputError(f"Ray has ended the job ({reason_of(error)}); the same command goes on.")


def _absolute(row: Row) -> Row:
    return replace(row, image=row.image and row.image.resolve())


def _processors(node: Mapping[str, Any]) -> int:
    return int(node["Resources"].get("CPU", 0))


def room_in(nodes: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return the threads of an actor, and how many actors leave a processor of each node to Ray.

    Where none is left, Ray 2.60 waits for ever without a word (ray#44687). Nodes without
    processors, as a head often is, answer nothing. Raises `SettingsError` for a node of one.
    """
    sizes = [_processors(node) for node in nodes if node["Alive"] and _processors(node)]
    if not sizes:
        raise SettingsError(
            "No node of the cluster has a CPU; start Ray with --num-cpus on one of them."
        )
    if min(sizes) < 2:
        raise SettingsError(
            "A node of the cluster has 1 CPU, and Ray needs one besides those that answer; start "
            "it with `ray start --num-cpus 2` or more."
        )
    threads = min(sizes) - 1
    return threads, sum((size - 1) // threads for size in sizes)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Give Ray, connected to a cluster; nothing is sent to its makers.

    Raises `SettingsError` where Ray is not installed, or does not find the cluster.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
        import ray.util.scheduling_strategies
    except ModuleNotFoundError:
        raise SettingsError(
            "Ray is not installed here; `make cluster` installs it into .venv-cluster."
        ) from None
    package = str(Path(__file__).parent.parent)  # the same on every node
    try:
        ray.init(
            address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"py_modules": [package], "excludes": ["**/checkpoints/**"]},
        )
    except Exception as error:  # of Ray's releases, of the network, of an address
        raise SettingsError(
            f"No Ray cluster can be joined at {address} ({reason_of(error)}); start one with "
            "`ray start --head`."
        ) from None
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield ray
    finally:
        ray.shutdown()
