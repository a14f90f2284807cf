"""One attempt at one row, step by step: begin, the body, then succeed or fail, then end.

Whoever drives it decides where the body runs: in this thread, by :meth:`Attempt.run_body`, or on an
event loop meanwhile. No other step raises what a task has raised.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import partial
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from django.db import IntegrityError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from background_task import logs, signals, vendors
from background_task._compat import HAS_TASKS
from background_task.api.context import running
from background_task.api.proxy import DeclaredTask
from background_task.exceptions import BackgroundTaskError, TaskCancelledError, WorkerLostError
from background_task.execution.call import call
from background_task.execution.connections import refuse_left_open, undisturbed
from background_task.execution.notices import Notices
from background_task.execution.runs import Keeping, Run, runs
from background_task.models import CompletedTask, Task
from background_task.settings import app_settings
from background_task.storage import finish
from background_task.storage.transient import HURRIED, TRANSIENT, UnrecordedError, outlast
from background_task.utils import ForcedStop


class Attempt:
    """What happens around the body of a task, in the predecessor's order.

    Args:
        proxy: what stands in for the function.
        task: the row, which is locked; None when the function runs by its name.
        logger: what is told; projects replace ``background_task.tasks.logger``.
    """

    def __init__(self, proxy: Any, task: Task | None, logger: logging.Logger) -> None:
        self.proxy = proxy
        self._logger = logs.safe(logger)
        self.task = task
        self.run: Run = runs.begin(task)
        self.run.give_up = self._give_up
        self._notices = Notices(proxy, None)
        # What the history says, where it has said so in the transaction of the body.
        self._completed: CompletedTask | None = None

    def begin(self, args: Any = (), kwargs: Any = None) -> tuple[Any, dict[str, Any]]:
        """Announce the attempt; return what the function is to be called with.

        Without a row, a stored one with the same name and arguments, if there is one, counts as
        what is run.

        Args:
            args, kwargs: what to call with where there is no row.

        Raises:
            WorkerLostError: too many workers were lost over this row.
            Exception: the arguments of the row cannot be read.
        """
        with undisturbed():
            signals.announce(signals.task_started, Task)
        if self.task is not None:
            args, kwargs = self.task.params()
        else:
            self.task = _stored_row(self.proxy, args, kwargs)
            self.run = runs.begin(self.task)
            self.run.give_up = self._give_up
        self._know()
        if self.task is not None:
            _check_losses(self.task)
        with undisturbed():
            self._notices.announce_start()
        if getattr(self.proxy, "takes_context", False):
            args = (self._notices.context, *args)
        elif HAS_TASKS and self.task is not None and (self.task.attempts or self.task.losses):
            # Its log is read now: a coroutine that asks for it later may not query.
            _ = self._notices.context
        return args, kwargs or {}

    def resume(self) -> None:
        """Go on with an attempt whose body has run without being announced."""
        self._know()
        self.run.has_begun = True

    def _know(self) -> None:
        """Know what the declaration says."""
        self._notices = Notices(self.proxy, self.task)
        if self.task is not None:
            self.task.policy = self._notices.policy

    @property
    def function(self) -> Callable[..., Any]:
        """What to call.

        Raises:
            BackgroundTaskError: the proxy has none.
        """
        function: Callable[..., Any] | None = getattr(self.proxy, "task_function", None)
        if function is None:
            raise BackgroundTaskError(f"{self.proxy!r} has no task_function to call.")
        return function

    def run_body(self, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call the function in this thread; return what it returns.

        Where the task is atomic its success is recorded with that, in one transaction.

        Raises:
            ForcedStop, BaseException: see :func:`call`.
        """
        if not self.is_atomic:
            return self._call(args, kwargs)
        assert self.task is not None
        claimed, delays = finish.as_claimed(self.task), iter(HURRIED)
        while True:
            self.run.has_begun = False
            try:
                return self._run_atomically(self.task, args, kwargs)
            except BaseException as error:
                self.task.__dict__.update(claimed)  # it is not in the history after all
                if self.run.is_given_up:  # and is not to begin again
                    raise
                was_over, self.run.is_over = self.run.is_over, False
                connection = connections[self.task.database]
                if connection.in_atomic_block or not isinstance(error, Exception):
                    raise
                if not self.run.has_begun and isinstance(error, TRANSIENT):
                    # It may not be charged with that. As soon as one can begin, it does.
                    outlast(connection, "begin a transaction", partial(_begin, connection))
                    continue
                if not was_over:
                    raise
                # A deferred constraint, which is the body's own fault as any other error of it.
                is_refused = self._completed is not None and isinstance(error, IntegrityError)
                # The answer to the commit may be lost, and not the commit.
                self._completed = finish.recorded(self.task)
                if self._completed is not None:
                    self.run.is_over = True
                    return None
                if self.run.is_never_again and not is_refused:
                    raise WorkerLostError(
                        f"{self.task} could not be committed, and must not begin twice."
                    ) from error
                if not isinstance(error, TRANSIENT) or (delay := next(delays, None)) is None:
                    raise
                # What the body has written is undone, and it was not to blame.
                self._logger.warning(
                    "%s could not be committed, and runs again: %s", self.task, error
                )
                time.sleep(delay)

    def _call(self, args: Any, kwargs: dict[str, Any]) -> Any:
        self.run.has_begun = True
        if self.run.is_given_up:  # somebody else may have begun it by now
            self.run.has_begun = False
            raise ForcedStop
        return call(self.function, args, kwargs, self.run, self.timeout)

    @property
    def is_atomic(self) -> bool:
        """Whether what the body writes and its success are one transaction."""
        return self.task is not None and bool(self._notices.policy.atomic)

    def _run_atomically(self, task: Task, args: Any, kwargs: dict[str, Any]) -> Any:
        connection = connections[task.database]
        try:
            with transaction.atomic(using=connection.alias):
                vendors.begin_write(connection.alias)
                depth, driver = len(connection.atomic_blocks), connection.connection
                vendor = vendors.of(connection)
                mark = vendor.mark_transaction(connection)
                value = self._call(args, kwargs)
                if connection.connection is not driver or vendor.has_ended(connection, mark):
                    raise BackgroundTaskError(
                        f"{task} has ended the transaction that it runs in, or broken it: with "
                        "atomic=True it must neither commit nor roll back, nor let a statement "
                        "fail outside of transaction.atomic()."
                    )
                connection.validate_no_broken_transaction()
                if len(connection.atomic_blocks) != depth:
                    refuse_left_open([connection.alias], task)
                text = self.encode(value)
                self.run.end()
                self._completed = finish.succeed(task, text)
                if self._completed is None:
                    raise _NotOursError
        except _NotOursError:
            # What it has written must not stay; but an earlier commit may have come late.
            self._completed = finish.recorded(task)
            return None
        return value

    @property
    def timeout(self) -> float | None:
        """How long the body may take, in seconds; None is as long as it likes."""
        return self._notices.policy.timeout

    def refuse_left_open(self, left: Collection[str]) -> None:
        """After the body: refuse that it has left transactions open, on these databases.

        Raises:
            BackgroundTaskError: it has, and its success is not recorded yet.
        """
        try:
            refuse_left_open(left, self.task or "The task")
        except BackgroundTaskError as error:
            if self._completed is None:
                raise
            self._logger.error("%s", error)

    def _give_up(self, error: BaseException) -> None:
        try:
            raise error
        except BaseException as raised:
            self.fail(raised)
        runs.end(self.task)

    def as_current(self) -> AbstractContextManager[None]:
        """Let ``current_task()`` find this attempt, within this block."""
        return running(None if self.task is None else lambda: self._notices.context)

    def encode(self, value: Any) -> str | None:
        """Return what the function has returned as the text to store.

        Raises:
            BackgroundTaskError: the function has not run.
            TypeError, ValueError: it is no JSON, and the task has promised some.
        """
        if self.task is None:
            return None
        is_strict = isinstance(self.proxy, DeclaredTask) and self.task.backend is not None
        return encode(value, self.function, strict=is_strict)

    def succeed(self, value: Any) -> None:
        """Store and announce a success.

        Raises:
            TypeError, ValueError: see :meth:`encode`.
            Exception: it could not be stored.
        """
        if self.task is None:
            self.run.end()
        elif self.is_atomic:  # it is recorded already
            self.has_succeeded(self._completed, is_recorded=self._completed is not None)
        else:
            self.record_success(self.encode(value))

    def record_success(self, text: str | None) -> None:
        """The same with what :meth:`encode` has made of the value."""
        self.run.end()
        if self.task is not None:
            try:
                completed = finish.succeed(self.task, text) or finish.recorded(self.task)
            except Exception as error:
                if isinstance(error, UnrecordedError) or not self.run.is_never_again:
                    raise
                raise WorkerLostError(
                    f"{self.task} has succeeded, which could not be recorded, and must not begin "
                    "twice."
                ) from error
            self.has_succeeded(completed, is_recorded=completed is not None)

    def has_succeeded(self, completed: CompletedTask | None, *, is_recorded: bool) -> None:
        """Announce a success.

        Args:
            completed: the row of the history, if it is at hand.
            is_recorded: whether there is one; else the row was not ours any more.
        """
        if not is_recorded:
            self._is_not_ours("has run")
        else:
            self._logger.info("Ran task and deleting %s", self.task)
        with undisturbed():
            self._notices.announce_end(completed)

    def fail(self, error: BaseException) -> None:
        """Log, announce and store that the attempt failed; call it while ``error`` is handled."""
        if self.task is not None and isinstance(error, TaskCancelledError):
            self._end_cancelled(self.task, error)
            return
        if isinstance(error, UnrecordedError):  # it has not failed
            self._leave_unrecorded(error)
            return
        name = self.task or getattr(self.proxy, "name", self.proxy)
        self._logger.error("Rescheduling %s", name, exc_info=error)
        task = self.task
        if task is None:
            return
        claimed = finish.as_claimed(task)
        before = finish.snapshot(task)
        with undisturbed():
            signals.announce(signals.task_error, type(error), task=task)
            task.answer = self._notices.ask_backoff(error)
        self.run.end()
        edits = {key: value for key, value in finish.snapshot(task).items() if value != before[key]}
        try:
            if not finish.fail(task, error, error.__traceback__, edits):
                self._is_not_ours("has failed")
        except UnrecordedError as reason:
            self._leave_unrecorded(reason)
        except Exception as reason:
            self._logger.exception(
                "The failure of %s could not be recorded; trying without its hooks", task
            )
            task.__dict__.update(claimed)
            self._set_aside(task, error, reason)
        with undisturbed():
            self._notices.announce_end()

    def _end_cancelled(self, task: Task, error: TaskCancelledError) -> None:
        self._logger.warning("%s was cancelled while it ran", task)
        self.run.end()
        completed = None
        try:
            completed = finish.cancel(task, error)
            if completed is None:
                self._is_not_ours("was cancelled")
        except UnrecordedError as reason:
            self._leave_unrecorded(reason)
        except Exception as reason:
            self._logger.exception("That %s was cancelled could not be recorded", task)
            self._set_aside(task, error, reason)
        with undisturbed():
            self._notices.announce_end(completed)

    def _is_not_ours(self, what: str) -> None:
        if self.task is not None:
            runs.leave_to_others(self.task.database, self.task, what)
            # Or somebody has touched its lock, which nobody else would free. It counts as lost, so
            # that one which does so itself does not run for ever.
            lost = {lock: Keeping(each.name, True) for lock, each in self.run.kept.items()}
            runs.leave(self.task.database, lost)

    def _leave_unrecorded(self, reason: UnrecordedError) -> None:
        if self.task is not None:
            runs.leave_unrecorded(self.task.database, self.run.kept, reason)

    def _set_aside(self, task: Task, error: BaseException, reason: Exception) -> None:
        try:
            text = task._extract_error(type(reason), reason, reason.__traceback__)
            finish.set_aside(task, error, text)
        except UnrecordedError as why:
            self._leave_unrecorded(why)
        except Exception:
            self._logger.exception(
                "%s stays locked until MAX_RUN_TIME is over, and counts as lost then", task
            )
            runs.leave_stuck(task.database, self.run.kept)

    def end(self) -> None:
        """Count the row as running no more, and say so."""
        runs.end(self.task)
        self.end_body()

    @staticmethod
    def end_body() -> None:
        """Say that the body has ended, where it is recorded later."""
        with undisturbed():
            signals.announce(signals.task_finished, Task)


def _begin(connection: BaseDatabaseWrapper) -> None:
    """See whether a transaction for a task can be begun."""
    with transaction.atomic(using=connection.alias):
        vendors.begin_write(connection.alias)


class _NotOursError(Exception):
    """Undoes what a body has written whose row is not its own any more; never leaves this file."""


def encode(value: Any, function: Callable[..., Any], *, strict: bool) -> str | None:
    """Return what a function has returned as the text to store, where a result is kept.

    Raises:
        BackgroundTaskError: the function has not run.
        TypeError, ValueError: what it returned is no JSON, and ``strict``.
    """
    if value is None:
        return None
    if isinstance(value, _UNBEGUN):
        _refuse_unbegun(value, function)
    if not HAS_TASKS:
        return None
    from background_task.api import results

    return results.encode(value, strict=strict)


# What calling a function may give instead of running it.
_UNBEGUN = (CoroutineType, GeneratorType, AsyncGeneratorType)


def _refuse_unbegun(value: Any, function: Callable[..., Any]) -> None:
    within = inspect.unwrap(function)
    if isinstance(value, CoroutineType):
        value.close()  # or Python would warn of it as well
        remedy = "declare the async function itself, or let what wraps it be async"
    elif inspect.isgeneratorfunction(within) or inspect.isasyncgenfunction(within):
        remedy = "a task must not yield"
    else:  # a value like others
        return
    raise BackgroundTaskError(
        f"Calling the function gave a {type(value).__name__}, and has run none of its lines: "
        f"{remedy}."
    )


def _check_losses(task: Task) -> None:
    if (task.losses or 0) > task.policy.losses_allowed(app_settings.BACKGROUND_TASK_MAX_LOSSES):
        raise WorkerLostError(
            f"The worker of {task} was lost {task.losses} times while it ran; it is not run again. "
            "Something in it may end the process: look at the memory it takes."
        )


def _stored_row(proxy: Any, args: Any, kwargs: Any) -> Task | None:
    rows = Task.objects.get_task(getattr(proxy, "name", ""), args, kwargs)
    queue = getattr(proxy, "queue", None)
    return (rows.filter(queue=queue) if queue else rows).order_by("id").first()
