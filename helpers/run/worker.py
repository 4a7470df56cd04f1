"""The one thread of a pipeline, which computes tasks in the order they came, a few at once.

A task may yield what it wants computed together with what others want, and goes on with the result.

A task is stopped by its caller's event, or because nobody waits for its result any more: an
interrupt, a loop that is left, a program that ends. What is stopped before it began is withdrawn.

What this module does not know: what a task computes.
"""

import itertools
import math
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from helpers.errors import DeviceError, SettingsError

# A caller's event calls nobody when it is set, so whoever waits for a task that has not begun
# looks at it this often, in seconds.
LOOK = 0.05
# Seconds. On Windows, Ctrl-C does not end a wait (CPython's bpo-35935), so it is cut.
LONGEST_WAIT = 0.5 if sys.platform == "win32" else 3600.0


class Stop:
    """Whether a task should end: its caller's event is set, or it was cancelled.

    Raises `SettingsError` for an event that nobody can look at.
    """

    def __init__(self, event: threading.Event | None = None) -> None:
        is_event = callable(getattr(event, "is_set", None)) and not isinstance(event, type)
        if event is not None and not is_event:
            raise SettingsError(f"stop is {event!r}; it should be a threading.Event().")
        self._event = event
        self._cancelled = False

    def is_set(self) -> bool:
        """Return whether the task should end."""
        return self._cancelled or (self._event is not None and self._event.is_set())

    def set(self) -> None:
        """Cancel the task; the caller's own event, which others may share, stays as it is."""
        self._cancelled = True


class Task:
    """Something to compute: `work` is called by the worker's thread, and ends soon after `stop`.

    `work` may be a generator of what it wants computed. An exception of it is kept in `error`.
    `at_end` is called once, also for a task that was stopped before it began; before that,
    `at_withdrawal` is, instead of `work`.
    """

    def __init__(
        self,
        work: Callable[[], Generator[Any, Any, None] | None],
        stop: Stop,
        *,
        at_end: Callable[[], None] = lambda: None,
        at_withdrawal: Callable[[], None] = lambda: None,
    ) -> None:
        self.work: Callable[[], Generator[Any, Any, None] | None] | None = work
        self.steps: Generator[Any, Any, None] | None = None
        self.at_end, self.at_withdrawal = at_end, at_withdrawal
        self.stop = stop
        self.started = threading.Event()
        self.done = threading.Event()
        self.error: BaseException | None = None

    def begin(self) -> Any:
        """Compute, unless it is stopped already; return what it wants next, None at the end."""
        return self._advance(self._begin)

    def go_on(self, result: Any) -> Any:
        """Go on with a result, or raise it there; return what is wanted next, or None."""
        assert self.steps is not None
        step = self.steps.throw if isinstance(result, BaseException) else self.steps.send
        return self._advance(lambda: step(result))

    def _begin(self) -> Any:
        if self.work is None:
            return None
        if self.stop.is_set():
            self.at_withdrawal()
            return None
        self.steps = self.work()
        return None if self.steps is None else next(self.steps)

    def _advance(self, step: Callable[[], Any]) -> Any:
        request = None
        try:
            request = step()
        except StopIteration:
            pass
        except BaseException as error:  # handed to whoever waits for the task
            self.error = error
        if request is None:
            self.finish()
        return request

    def finish(self) -> None:
        """Let everyone know that the task is over; forget what it would have computed."""
        self.work = self.steps = None
        self.started.set()
        try:
            self.at_end()
        finally:
            self.done.set()


class Worker:
    """A queue of tasks and the thread that computes them, which begins with the first task.

    The first `at_once` of them are begun. What those want is handed to `compute` together, which
    returns a result for each. `at_close` is called when it has closed. An error that ends the
    thread ends all tasks; the next one begins another.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Any]], Sequence[Any]] = list,
        *,
        at_once: int = 1,
        at_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._compute, self._at_once, self._at_close = compute, at_once, at_close
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._queue: deque[Task] = deque()  # the first ones are being computed
        self._thread: threading.Thread | None = None
        self._held = threading.local()
        self._closed = False

    def close_with(self, owner: object) -> None:
        """Close when `owner` is gone, or when the program ends, whichever comes first.

        A thread that is inside OpenVINO when the interpreter is torn down would end the process
        with an abort.
        """
        weakref.finalize(owner, self.close)

    @property
    def is_of_this_process(self) -> bool:
        """Whether this process made the worker; one that was forked has none of its threads."""
        return os.getpid() == self._process

    def check_process(self) -> None:
        """Raise a `DeviceError` in a process that was forked from the one that made the worker.

        It has neither our thread nor OpenVINO's, so that it would wait for ever.
        """
        if not self.is_of_this_process:
            raise DeviceError(
                "This process was forked from the one that loaded the model, whose threads it "
                'lacks; start it with multiprocessing\'s "spawn" and load the folder there.'
            )

    @contextmanager
    def held(self) -> Iterator[list[Task]]:
        """Hold back what this thread submits; gives a list of it, to be submitted together."""
        tasks: list[Task] = []
        self._held.tasks = tasks
        try:
            yield tasks
        finally:
            self._held.tasks = None

    def submit(self, *tasks: Task) -> None:
        """Put tasks at the end of the queue, where nothing comes between them."""
        thread_tasks: list[Task] | None = getattr(self._held, "tasks", None)
        if thread_tasks is not None:
            thread_tasks += tasks
            return
        with self._changed:
            if self._closed:
                for task in tasks:
                    task.stop.set()
                    task.begin()
                return
            self._queue.extend(tasks)
            if self._thread is None and tasks:
                # A daemon, since the interpreter waits for all others before it lets us close.
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, task: Task, timeout: float | None = None) -> bool:
        """Wait until a task is done, at most `timeout` seconds; return whether it is.

        An interrupt cancels the task. A task that is stopped before it began is withdrawn. Raises
        `DeviceError` for one that is not done in a process that was forked meanwhile.
        """
        if not task.done.is_set():
            self.check_process()
        end = math.inf if timeout is None else time.monotonic() + timeout
        try:
            while not task.done.is_set() and (seconds := end - time.monotonic()) > 0:
                if task.started.is_set():
                    task.done.wait(min(seconds, LONGEST_WAIT))
                    continue
                if task.stop.is_set():
                    self.withdraw(task)
                task.started.wait(min(seconds, LOOK))
            return task.done.is_set()
        except BaseException:
            task.stop.set()
            raise

    def withdraw(self, task: Task) -> None:
        """Take a task that has not begun out of the queue; it is over then."""
        with self._changed:
            if task in self._queue and not task.started.is_set():
                self._queue.remove(task)
                task.stop.set()  # the caller's event may be cleared meanwhile
                task.begin()
                self._changed.notify_all()

    def place(self, task: Task) -> int:
        """Return how many tasks are computed before this one."""
        with self._changed:
            place = self._queue.index(task) if task in self._queue else 0
            return 0 if task.started.is_set() else place

    def places(self, task: Task) -> Iterator[int]:
        """Yield how many tasks are before this one, as that changes, until none is."""
        last = 0
        while (place := self.place(task)) and not task.stop.is_set():
            if place != last:
                yield place
            last = place
            with self._changed:
                self._changed.wait(LOOK)

    def close(self) -> None:
        """Cancel all tasks and wait for the thread to end, in the process that has it."""
        if not self.is_of_this_process:
            return
        with self._changed:
            self._closed = True
            for task in self._queue:
                task.stop.set()
            self._changed.notify_all()
            thread = self._thread
        if thread is not threading.current_thread():
            if thread is not None:
                thread.join()
            self._compute = list  # what was computed with may be large
        self._at_close()

    def _work(self) -> None:
        requests: dict[Task, Any] = {}
        try:
            while self._begin(requests):
                self._step(requests)
        except BaseException as error:  # of no task, or whoever waits for one would wait for ever
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End all tasks with an error that ends the thread."""
        with self._changed:
            tasks = list(self._queue)
            self._queue.clear()
            self._thread = None
            self._changed.notify_all()
        for task in tasks:
            task.error = task.error or error
            with suppress(Exception):  # of `at_end`, which may be what failed
                task.finish()

    def _begin(self, requests: dict[Task, Any]) -> bool:
        """Begin the tasks that there is room for; return whether the thread goes on."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if not self._queue:
                return False
            first = itertools.islice(self._queue, self._at_once)
            new = [task for task in first if not task.started.is_set()]
            for task in new:
                task.started.set()
        for task in new:
            self._keep(requests, task, task.begin())
        return True

    def _step(self, requests: dict[Task, Any]) -> None:
        """Compute what the tasks want, and let them go on with it."""
        if not requests:
            return
        tasks = list(requests)
        try:
            results = self._compute([requests[task] for task in tasks])
        except BaseException as error:  # raised in each of them
            results = [error] * len(tasks)
        for task, result in zip(tasks, results, strict=True):
            self._keep(requests, task, task.go_on(result))

    def _keep(self, requests: dict[Task, Any], task: Task, request: Any) -> None:
        """Remember what a task wants next; one that wants nothing more is over."""
        if request is not None:
            requests[task] = request
            return
        requests.pop(task, None)
        with self._changed:
            self._queue.remove(task)
            self._changed.notify_all()
