"""Takes functions by the batch, runs them one after the other, and records them by the batch.

A batch holds what is expected to end within some tens of milliseconds, so that it delays nobody. A
watchdog sees to that: when a function takes longer than expected, what has ended is recorded, and
what has not begun is given back, while the function goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from django.db import connections

from background_task import tasks as hooks
from background_task.execution.attempt import Attempt
from background_task.execution.call import call
from background_task.execution.connections import undisturbed
from background_task.execution.runs import runs
from background_task.models import Task
from background_task.storage import finish, leases
from background_task.storage.batches import MOST_ROWS, in_batches
from background_task.utils import ForcedStop, SignalManager
from background_task.worker import batches

if TYPE_CHECKING:
    from background_task.tasks import Tasks

logger = logging.getLogger("background_task.tasks")

# How long a batch is meant to take, and when a function has overstayed, in seconds.
WANTED = 0.05
OVERDUE = 0.1

# One batch in so many is a single task that may have lost a worker.
ALONE = 8


class Functions:
    """The functions of a worker, which run in the calling thread.

    Args:
        tasks: the registry.
        queue: take tasks of this queue only; None or empty takes all.
    """

    def __init__(self, tasks: Tasks, queue: str | None) -> None:
        self._tasks = tasks
        self._queue = queue
        self._size = 1
        self._turn = 0
        self._lock = threading.Lock()
        self._waiting: deque[Task] = deque()
        self._ended: list[tuple[Attempt, Task, str | None]] = []
        self._began: float | None = None
        self._is_busy = threading.Event()
        self._is_closed = False
        self._is_watched = False
        self._watchdog: threading.Thread | None = None

    def run_some(self, *, only_one: bool = False) -> bool:
        """Take and run a batch, or ``only_one``; False when nothing was due.

        Raises:
            ForcedStop: a second request to stop has ended a function early.
        """
        self._tasks.adopt_declared()
        taken = self._take(1 if only_one else self._size)
        if not taken:
            return False
        for task in taken:
            runs.begin(task)
        begun = time.perf_counter()
        with self._lock:
            self._waiting.extend(taken)
        self._watch()
        self._is_watched = finish.is_watched()
        try:
            while (following := self._next()) is not None:
                self._run(following)
            self._adapt(len(taken), time.perf_counter() - begun)
        finally:
            self._rest()
        return True

    def close(self) -> None:
        """End the watchdog."""
        self._is_closed = True
        self._is_busy.set()

    def _take(self, most: int) -> list[Task]:
        self._turn += 1
        if most > 1 and self._turn % ALONE:
            taken = batches.take(
                self._tasks, self._tasks.names_here(), self._queue, most, suspects=0
            )
            if taken:
                return taken
        # By itself, as a task has to be that has lost a worker: if it ends this one too, no other
        # is lost with it.
        task = self._tasks._runner.get_task_to_run(self._tasks, self._queue)
        return [task] if task else []

    def _next(self) -> Task | None:
        """Return the next task of the batch to run; when the worker is to stop, give all back."""
        with self._lock:
            if SignalManager.is_stopping():
                waiting = list(self._waiting)
                self._waiting.clear()
            elif self._waiting:
                self._began = time.monotonic()
                return self._waiting.popleft()
            else:
                return None
        runs.hand_back([runs.begin(task) for task in waiting])
        return None

    def _run(self, task: Task) -> None:
        attempt = Attempt(self._tasks._tasks[task.task_name], task, hooks.logger)
        at_once = self._is_watched
        hooks.logger.info("Running %s", task)
        try:
            args, kwargs = attempt.begin()
            with attempt.as_current(), undisturbed():
                value = call(attempt.function, args, kwargs, attempt.run)
            if at_once:  # in the predecessor's order
                attempt.succeed(value)
            else:
                text = attempt.encode(value)
        except ForcedStop:
            attempt.run.hand_back()
            raise
        except BaseException as error:
            attempt.fail(error)
            at_once = True
        finally:
            attempt.end_body()
        if at_once:
            runs.end(task)
            return
        with self._lock:
            self._ended.append((attempt, task, text))

    def _rest(self) -> None:
        """Record what has ended; the batch is over."""
        self._is_busy.clear()
        with self._lock:
            self._began = None
            ended, self._ended = self._ended, []
        _record(ended)

    def _adapt(self, count: int, seconds: float) -> None:
        fitting = int(WANTED * count / max(seconds, 1e-6))
        self._size = max(1, min(2 * self._size, fitting, MOST_ROWS))

    def _watch(self) -> None:
        if self._watchdog is None or not self._watchdog.is_alive():
            self._watchdog = threading.Thread(target=self._keep_watch, name="watchdog", daemon=True)
            self._watchdog.start()
        self._is_busy.set()

    def _keep_watch(self) -> None:
        pause = threading.Event()
        while self._is_busy.wait() and not self._is_closed:
            pause.wait(OVERDUE / 2)
            try:
                self._relieve()
            except Exception:
                logger.exception("What waits behind a long function could not be given back")
        with suppress(Exception):
            connections.close_all()  # this thread's own

    def _relieve(self) -> None:
        """When a function has overstayed: record what has ended, give back what has not begun."""
        with self._lock:
            if self._began is None or time.monotonic() - self._began < OVERDUE:
                return
            ended, self._ended = self._ended, []
            waiting = list(self._waiting)
            self._waiting.clear()
        _record(ended)
        for some in in_batches(waiting):
            try:
                leases.hand_back(some)
            except Exception:
                with self._lock:
                    self._waiting.extendleft(reversed(some))
                raise
            for task in some:
                runs.end(task)


def _record(ended: list[tuple[Attempt, Task, str | None]]) -> None:
    for some in in_batches(ended):
        recorded = batches.record(some)
        for attempt, task, text in some:
            try:
                if task.pk in recorded:
                    attempt.has_succeeded(recorded[task.pk])
                else:
                    attempt.record_success(text)
            except BaseException as error:
                attempt.fail(error)
            finally:
                runs.end(task)
