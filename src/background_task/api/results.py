"""What Django knows of a task: a ``TaskResult`` made from a row of either table."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from asgiref.sync import sync_to_async
from django.db import connections

from background_task import logs
from background_task._compat import normalize_json, tasks_base
from background_task.api import aliases, definitions
from background_task.exceptions import (
    OF_RETURN_VALUE,
    ArgumentTypeError,
    TaskCancelledError,
    class_path,
)
from background_task.policies.arguments import with_text_keys
from background_task.policies.priorities import mirrored
from background_task.settings import app_settings
from background_task.states import State
from background_task.storage import transient

if TYPE_CHECKING:
    from background_task.models import Attempt, CompletedTask
    from background_task.models import Task as Row
    from background_task.storage.lookup import Found

logger = logs.named("background_task.tasks")

Status = tasks_base.TaskResultStatus
# In seconds. To wait longer than a century is to wait for ever: larger numbers are no floats.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
LONGEST_WAIT = 3e9
UNKNOWN_WORKER = "unknown"

# What any of the databases takes in one statement, as it is set up by default.
LARGEST_VALUE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult(tasks_base.TaskResult):  # type: ignore[type-arg, misc]
    """Django's result, which can also be waited for."""

    def __post_init__(self) -> None:
        """Leave the arguments as they are, since they come from JSON, or are fit for it."""

    def wait(self, timeout: float | None = None) -> Any:
        """Wait until the task has finished; return what it returned.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: it had not finished in time.
            ValueError: it failed.
        """
        from background_task.storage import notifications

        using = _database_of(self)
        finished = threading.Event()
        heard: AbstractContextManager[None] = nullcontext()
        if notifications.can_hear(using):
            heard = notifications.heard(using, self.id, finished.set)
        with heard:
            for pause in _pauses(timeout):
                finished.clear()
                self._look()
                if self.is_finished:
                    return self.return_value
                finished.wait(pause)
        raise TimeoutError(f"The task {self.id} has not finished within {timeout} s.")

    async def await_(self, timeout: float | None = None) -> Any:
        """The same without blocking the event loop."""
        from background_task.storage import notifications

        using = _database_of(self)
        finished = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(finished.set)

        heard: AbstractContextManager[None] = nullcontext()
        if await sync_to_async(notifications.can_hear)(using):
            heard = notifications.heard(using, self.id, wake)
        with heard:
            for pause in _pauses(timeout):
                finished.clear()
                await sync_to_async(self._look)()
                if self.is_finished:
                    return self.return_value
                with suppress(TimeoutError):
                    await asyncio.wait_for(finished.wait(), pause)
        raise TimeoutError(f"The task {self.id} has not finished within {timeout} s.")

    def cancel(self) -> bool:
        """Cancel the task: at once while it waits; while it runs, its worker is asked to end it.

        It has failed then, with a ``TaskCancelledError``; what runs may take some seconds to end.

        Returns:
            False when the task has finished, or nobody can be asked.
        """
        from background_task.storage import cancel, lookup

        found = lookup.by_result_id(_database_of(self), UUID(self.id))
        is_done = found is not None and found.live is not None and cancel.cancel(found.live)
        self.refresh()
        return is_done

    async def acancel(self) -> bool:
        """See :meth:`cancel`."""
        return await sync_to_async(self.cancel)()

    def _look(self) -> None:
        """Refresh, and bear an outage of the database: it will be asked again."""
        using = _database_of(self)
        try:
            self.refresh()
        except transient.TRANSIENT as error:
            if connections[using].in_atomic_block:
                raise
            logger.warning(
                "Waiting for the task %s, and for the database: %s",
                self.id,
                transient.reason(error),
            )
            transient.disconnect(connections[using])


def _database_of(result: TaskResult) -> str:
    backend: Any = result.task.get_backend()
    return str(backend.database)


def _pauses(timeout: float | None) -> Iterator[float]:
    """Yield how long to wait after each look, ever longer, with a last look when time is up.

    Raises:
        ArgumentTypeError: ``timeout`` is no number.
    """
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout != timeout
    ):
        raise ArgumentTypeError(
            f"timeout must be a number of seconds, or None, not {type(timeout).__name__} "
            f"({timeout!r:.80})."
        )
    left = math.inf if timeout is None or timeout > LONGEST_WAIT else float(timeout)
    pause = SHORTEST_PAUSE
    while left > 0:
        began, asked = time.monotonic(), min(pause, left)
        yield asked
        # Where a test has stopped the clock, what was asked for counts.
        left -= (time.monotonic() - began) or asked
        pause = min(pause * 1.25, LONGEST_PAUSE)
    yield 0


def waiting(
    task: Any, result_id: str, enqueued_at: datetime, args: list[Any], kwargs: dict[str, Any]
) -> TaskResult:
    """Return the result of a task that was enqueued just now."""
    return TaskResult(
        task=task,
        id=result_id,
        status=Status.READY,
        enqueued_at=enqueued_at,
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=args,
        kwargs=kwargs,
        backend=task.backend,
        errors=[],
        worker_ids=[],
    )


def of(found: Found, task: Any) -> Any:
    """Return the result of a task that was looked up, in whichever table it was."""
    if found.finished is not None:
        return of_finished_row(found.finished, task, found.log)
    return of_live_row(found.live, task, found.log)  # type: ignore[arg-type]


def of_live_row(row: Row, task: Any, log: list[Attempt]) -> Any:
    """Return the result of a task that waits or runs.

    Args:
        row: the row of ``background_task``.
        task: its declaration.
        log: its attempts that did not succeed, in order.
    """
    runs = row.locked_by is not None
    failed = not runs and row.failed_at is not None  # it could not be moved to the history
    current = [row.worker_id or row.locked_by or ""] if runs else []
    return _result(
        row,
        task,
        log,
        status=Status.RUNNING if runs else Status.FAILED if failed else Status.READY,
        workers=current,
        last_attempted_at=row.locked_at if runs else None,
        finished_at=row.failed_at if failed else None,
    )


def of_finished_row(row: CompletedTask, task: Any, log: list[Attempt]) -> Any:
    """Return the result of a task that has finished; the arguments are the same."""
    failed = row.failed_at is not None
    has_run = bool(row.attempts) or row.state != State.CANCELLED
    result = _result(
        row,
        task,
        log,
        status=Status.FAILED if failed else Status.SUCCESSFUL,
        workers=[row.worker_id or row.locked_by or UNKNOWN_WORKER]
        if has_run and not (failed and log)
        else [],
        last_attempted_at=log[-1].started_at if failed and log else row.locked_at,
        finished_at=row.run_at,
    )
    if not failed and row.return_value is not None:
        object.__setattr__(result, "_return_value", json.loads(row.return_value))
    return result


def _result(
    row: Row | CompletedTask,
    task: Any,
    log: list[Attempt],
    *,
    status: Any,
    workers: list[str],
    last_attempted_at: datetime | None,
    finished_at: datetime | None,
) -> Any:
    args, kwargs = json.loads(row.task_params)
    errors = [_error(each.exception_class_path, each.traceback) for each in log]
    cancelled = class_path(TaskCancelledError)
    if row.state == State.CANCELLED and not (log and log[-1].exception_class_path == cancelled):
        errors.append(_error(cancelled, row.last_error))  # while it waited
    elif not errors and row.last_error:  # failed before there was a log
        errors.append(_error("builtins.Exception", row.last_error))
    before = [each.worker_id for each in log]
    # Attempts that the predecessor made have left no name.
    missing = (row.attempts or 0) - len(before) - (1 if finished_at and workers else 0)
    # An alias that is configured no more has no backend to ask again.
    alias = row.backend if row.backend and aliases.exists(row.backend) else task.backend
    return TaskResult(
        task=definitions.unchecked(
            task,
            priority=mirrored(row.priority, ascending=app_settings.is_ascending()),
            queue_name=row.queue or "default",
            run_after=row.run_at if _is_deferred(row) and finished_at is None else None,
            backend=alias,
        ),
        id=str(row.result_id),
        status=status,
        enqueued_at=row.enqueued_at,
        started_at=row.started_at,
        finished_at=finished_at,
        last_attempted_at=last_attempted_at or (log[-1].started_at if log else None),
        args=args,
        kwargs=kwargs,
        backend=alias,
        errors=errors,
        worker_ids=[UNKNOWN_WORKER] * max(missing, 0) + before + workers,
    )


def _error(class_path: str, traceback: str) -> Any:
    return tasks_base.TaskError(exception_class_path=class_path, traceback=traceback)


def _is_deferred(row: Row | CompletedTask) -> bool:
    """Tell whether a time was asked for, which the first attempt has not replaced yet."""
    if row.attempts or row.enqueued_at is None:
        return False
    if row.backend is not None:
        return row.run_at != row.enqueued_at
    return row.run_at > row.enqueued_at  # a call takes its time before its row is made


def encode(value: Any, *, strict: bool) -> str | None:
    """Return a return value as the JSON text that is stored.

    Django's tasks promise their return value, so one that is no JSON is an error of the task. The
    predecessor's functions promise nothing: there it is not kept.

    Raises:
        TypeError, ValueError: Django's own, when ``strict``.
    """
    if value is None:
        return None
    try:
        text = json.dumps(with_text_keys(normalize_json(value)))
        if len(text) > LARGEST_VALUE:
            raise ValueError(f"It is {len(text)} characters long; {LARGEST_VALUE} can be stored.")
    except Exception as error:
        if strict:
            error.add_note(OF_RETURN_VALUE)
            raise
        return None
    return text
