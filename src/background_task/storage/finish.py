"""Record how a run ended: the run's own row, its history, and the next of its chain, at once."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from django.db import IntegrityError, connections, models, transaction
from django.db.models import Case, F, Value, When

from background_task import vendors
from background_task.models import CompletedTask, Task
from background_task.policies import cancellation
from background_task.settings import app_settings
from background_task.signals import announce, task_successful
from background_task.states import State
from background_task.storage import attempts
from background_task.storage.notifications import tell_finished, tell_new
from background_task.storage.transient import outlast

Result = TypeVar("Result")

# Row values that tell one run from another; they are compared, never carried over.
_RUN = {"locked_by", "locked_at", "epoch", "worker_id", "state", "result_id"}


def succeed(task: Task, return_value: str | None = None) -> CompletedTask | None:
    """Move the row to the history and add the next of its chain; None when the run is not ours.

    It may not be ours any more because that was done already: see :func:`recorded`.

    Args:
        task: the row as it was claimed.
        return_value: what the function returned, as JSON text.

    An operator's edits made while the task ran are kept: the row is read anew before it is copied.
    """

    def verb() -> CompletedTask | None:
        with transaction.atomic(using=task.database):
            if not task.hold():
                return None
            _read_anew(task)
            task.return_value = return_value
            task.increment_attempts()
            completed = task.create_completed_task()
            announce(
                task_successful,
                task.__class__,
                using=task.database,
                task_id=task.pk,
                completed_task=completed,
            )
            if task.create_repetition() is not None:
                tell_new(task.database)
            task.delete()
            tell_finished(connections[task.database], [completed.result_id])
            return completed

    return _unless_undone(task, "record a success", verb)


def recorded(task: Task) -> CompletedTask | None:
    """Return what is in the history of this run already: the answer to a commit was lost."""
    done = CompletedTask._base_manager.using(task.database)
    rows = done.filter(result_id=task.result_id, worker_id=task.worker_id)

    def look() -> CompletedTask | None:
        # What is there of a row that is still ours is another run with its id.
        return None if task.held().exists() else rows.first()

    return outlast(connections[task.database], "look for a success", look)


def fail(
    task: Task, error: BaseException, traceback: TracebackType | None, edits: dict[str, Any]
) -> bool:
    """Record a failed attempt by ``task.reschedule()``; False when the run is not ours.

    Args:
        task: the row as it was claimed.
        error, traceback: what the attempt raised.
        edits: fields that a receiver of ``task_error`` set on ``task`` without storing them.
    """

    def verb() -> bool:
        with transaction.atomic(using=task.database):
            if not task.hold():
                return False
            _read_anew(task)
            for name, value in edits.items():
                setattr(task, name, value)
            attempts.record(task, error, task._extract_error(type(error), error, traceback))
            task.reschedule(type(error), error, traceback)
            if task.failed_at:
                tell_finished(connections[task.database], [task.result_id])
            tell_new(task.database)  # of when it is tried again, or of the next of its chain
            return True

    return _unless_undone(task, "record a failure", verb)


def cancel(task: Task, error: BaseException) -> CompletedTask | None:
    """Move the row of a run that was cancelled to the history; None when the run is not ours.

    Args:
        task: the row as it was claimed.
        error: what the run has ended with.
    """

    def verb() -> CompletedTask | None:
        with transaction.atomic(using=task.database):
            if not task.hold():
                return None
            _read_anew(task)
            text = task._extract_error(type(error), error, error.__traceback__)
            attempts.record(task, error, text)
            task.increment_attempts()
            task.end_cancelled(text)
            tell_new(task.database)  # of the next of its chain
            tell_finished(connections[task.database], [task.result_id])
            done = CompletedTask._base_manager.using(task.database)
            return done.filter(result_id=task.result_id).first()

    return _unless_undone(task, "record that a task was cancelled", verb)


def _read_anew(task: Task) -> None:
    """Take over an operator's edits; the history tells when the run began, not its last lease."""
    began = task.locked_at
    task.refresh_from_db(using=task.database)
    task.locked_at = began


def _unless_undone(task: Task, act: str, verb: Callable[[], Result]) -> Result:
    """Run ``verb`` against transient errors, each time from the task as it was claimed.

    When it fails the task is as it was claimed again.
    """
    claimed = as_claimed(task)

    def anew() -> Result:
        try:
            return verb()
        except BaseException:
            task.__dict__.update(claimed)
            raise

    try:
        return outlast(connections[task.database], act, anew)
    except IntegrityError:
        if connections[task.database].needs_rollback or not task.is_in_history():
            raise
        # What was stored past save(), by bulk_create or SQL, carries the id of one that has ended.
        task.be_another_run()
        claimed["result_id"] = task.result_id
        task.held().update(result_id=task.result_id)
        return outlast(connections[task.database], act, anew)


def as_claimed(task: Task) -> dict[str, Any]:
    """Return the attributes of a run as it is now, but for the time of its lease, which goes on."""
    claimed = dict(task.__dict__)  # at once, since another thread may add that time meanwhile
    claimed.pop("leased_at", None)
    return claimed


def snapshot(task: models.Model) -> dict[str, Any]:
    """Return the values of the fields that may be edited while a task runs."""
    return {
        field.attname: getattr(task, field.attname)
        for field in task._meta.concrete_fields
        if field.attname not in _RUN
    }


def set_aside(task: Task, error: BaseException, text: str) -> bool:
    """Put off a run whose failure could not be recorded as it should; False when it is not ours.

    No receiver and no method of a project is asked, since one of them is the likely reason. After
    the last attempt the row stays where it is, failed, and is not run again.

    Args:
        task: the row as it was claimed.
        error: what the run raised.
        text: the traceback to store.
    """
    delay = task.policy.delay(task.attempts + 1, app_settings.BACKOFF_MULTIPLIER)
    values = {
        "losses": F("losses"),  # it has ended, and its worker is still there
        "attempts": F("attempts") + 1,
        "last_error": text,
        "run_at": vendors.now(task.database) + delay,
        # What was to be cancelled is cancelled by whoever looks next.
        "state": Case(
            When(options__startswith=cancellation.MARK, then=Value(None)),
            default=Value(State.SCHEDULED),
            output_field=models.SmallIntegerField(),
        ),
        "locked_by": None,
        "locked_at": None,
    }
    if task.attempts + 1 >= task.max_attempts or task.policy.gives_up(error, task.attempts + 1):
        values["failed_at"] = vendors.now(task.database)

    def verb() -> bool:
        with transaction.atomic(using=task.database):
            if not task.held().update(**values):
                return False
            attempts.record(task, error, task._extract_error(type(error), error, None))
            if "failed_at" in values:
                tell_finished(connections[task.database], [task.result_id])
            tell_new(task.database)
            return True

    return outlast(connections[task.database], "put off a task", verb)
