"""Run what is due, here and now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from django.test import override_settings
from django.utils import timezone

from background_task import vendors
from background_task.discovery import autodiscover
from background_task.exceptions import ArgumentTypeError, ArgumentValueError
from background_task.models import Task
from background_task.models.shared import named_databases
from background_task.tasks import tasks

MOST_RUNS = 10_000


class Ran(NamedTuple):
    """One run: the name of the task, what it was called with, and what it raised, if it did."""

    name: str
    args: list[Any]
    kwargs: dict[str, Any]
    error: BaseException | None


def run_due_tasks(
    *,
    until: datetime | None = None,
    queue: str | None = None,
    database: str | None = None,
    raise_errors: bool = True,
) -> list[Ran]:
    """Run every task that is due, and those that they enqueue, until nothing is due any more.

    They run one by one, as a worker would run them, in this thread and in the transaction of the
    test. ``BACKGROUND_TASK_RUN_ASYNC`` is ignored. Their ``timeout`` ends no call that waits in the
    kernel, such as ``time.sleep()``, since the signals of the test's process are its own.

    Args:
        until: also run what comes due until then: deferred tasks, retries, repetitions. The clock
            of the queue is put forward to each of them in turn; that of Python is not.
        queue: only tasks of this queue.
        database: the tasks in this database, where a backend names one; else those in the one that
            the routers name.
        raise_errors: raise what a task raises, once its failure has been recorded. Without it the
            failure is in the list, and in the rows.

    Returns:
        the runs, in their order.

    Raises:
        ArgumentTypeError, ArgumentValueError: ``until`` is no time, or lies in the past; ``queue``
            is no name.
        RuntimeError: it did not come to an end within 10,000 runs.
        BaseException: what a task has raised.
    """
    _check(until)
    if queue is not None and not (isinstance(queue, str) and queue):
        raise ArgumentTypeError(f"queue must be the name of a queue or None, not {queue!r:.80}.")
    autodiscover()
    outer, tasks.database = tasks.database, database
    named_databases.update(filter(None, [database]))
    try:
        return _run_all(until, queue, raise_errors)
    finally:
        tasks.database = outer


def _run_all(until: datetime | None, queue: str | None, raise_errors: bool) -> list[Ran]:
    ran: list[Ran] = []
    now = timezone.now()
    while True:
        while _run_next(now, queue, ran, raise_errors):
            if len(ran) >= MOST_RUNS:
                raise RuntimeError(
                    f"{MOST_RUNS} tasks have run, and there are more: does one enqueue itself?"
                )
        upcoming = _next_due(queue, now, until) if until else None
        if upcoming is None:
            return ran
        now = upcoming


def _check(until: Any) -> None:
    if until is None:
        return
    if not isinstance(until, datetime):
        raise ArgumentTypeError(f"until must be a datetime, not {type(until).__name__}.")
    if timezone.is_naive(until) is timezone.is_aware(timezone.now()):
        raise ArgumentValueError(
            f"until is {until}; give one like timezone.now(), which is "
            f"{'aware' if timezone.is_naive(until) else 'naive'}."
        )
    if until < timezone.now():
        raise ArgumentValueError(f"until is {until}, which has passed: nothing more is due then.")


def _run_next(now: datetime, queue: str | None, ran: list[Ran], raise_errors: bool) -> bool:
    """Run one task, if there is one that is due at ``now``, or by Python's clock.

    Python's clock, and not the database's, also decides what a call stores: a test that freezes it
    freezes both.
    """
    with vendors.pretend(max(now, timezone.now())):
        return _run_one(queue, ran, raise_errors)


def _run_one(queue: str | None, ran: list[Ran], raise_errors: bool) -> bool:
    tasks.adopt_declared()
    task = tasks._runner.get_task_to_run(tasks, queue)
    if not task:
        return False
    try:
        args, kwargs = task.params()
    except (ValueError, TypeError, AttributeError):  # it fails as it does in a worker
        args, kwargs = [], {}
    error = tasks.run_here(task)
    ran.append(Ran(task.task_name, args, kwargs, error))
    if error is not None and raise_errors:
        raise error
    return True


def _next_due(queue: str | None, now: datetime, until: datetime) -> datetime | None:
    """Return when the next task is due, later than ``now``: what was due then has run."""
    waiting = Task.objects.using(tasks.queue_database()).filter(
        task_name__in=tasks._tasks.keys(), failed_at=None, locked_by=None
    )
    waiting = waiting.filter(run_at__gt=now, run_at__lte=until)
    if queue:
        waiting = waiting.filter(queue=queue)
    return waiting.order_by("run_at").values_list("run_at", flat=True).first()


@contextmanager
def eager_tasks() -> Iterator[None]:
    """Let tasks run at once, when they are called or enqueued, whatever their time.

    What a task raises is raised by the call, once its failure has been recorded. The same as the
    setting ``BACKGROUND_TASK_EAGER``.
    """
    with override_settings(BACKGROUND_TASK_EAGER=True):
        yield
