"""Take over the rows of another backend of ``django.tasks``."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from django.db import connections, router, transaction

from background_task import vendors
from background_task.exceptions import ArgumentValueError, BackgroundTaskError
from background_task.models import Task
from background_task.policies import arguments
from background_task.policies.priorities import mirrored
from background_task.settings import app_settings
from background_task.storage import enqueue
from background_task.storage.transient import persevere

BATCH = 500

# What django-tasks-db stores for "no time was asked for": the first day of this year.
NEVER = 9999


class Imported(NamedTuple):
    """How many rows were moved, and why others were left, by their keys."""

    moved: int
    left: dict[Any, str]


def take_over(model: Any, statuses: Collection[str]) -> Imported:
    """Move rows of django-tasks-db into our table, but for those that cannot be stored here.

    A row is stored here and deleted there in one transaction, so that no worker of either side can
    find it twice. It keeps its id: whoever has stored one finds the result by it.

    Args:
        model: its model, ``DBTaskResult``, in the same database as ours.
        statuses: the statuses of the rows to move.
    """
    using = router.db_for_write(Task)
    rows = model._base_manager.using(using).filter(status__in=statuses)
    skip = connections[using].features.has_select_for_update_skip_locked
    left: dict[Any, str] = {}

    def move_some() -> tuple[int, bool]:
        with transaction.atomic(using=using):
            vendors.begin_write(using)
            oldest = rows.exclude(pk__in=list(left)).order_by("enqueued_at", "pk")
            some = list(oldest.select_for_update(skip_locked=skip)[:BATCH])
            tasks = [task for row in some if (task := _ours(row, left)) is not None]
            if tasks:
                enqueue.insert(using, tasks)
                rows.filter(pk__in=[row.pk for row in some if row.pk not in left]).delete()
            return len(tasks), bool(some)

    moved, is_more = 0, True
    while is_more:
        count, is_more = persevere(connections[using], "import tasks", move_some)
        moved += count
    return Imported(moved, left)


def left_behind(rows: Iterator[Any]) -> dict[Any, str]:
    """Return, by their keys, why rows could not be moved; nothing is changed."""
    left: dict[Any, str] = {}
    for row in rows:
        _ours(row, left)
    return left


def _ours(row: Any, left: dict[Any, str]) -> Task | None:
    """Return a row as ours; None if it cannot be stored here, and the reason in ``left``."""
    try:
        return _as_task(row)
    except BackgroundTaskError as error:
        left[row.pk] = str(error)
        return None


def _as_task(row: Any) -> Task:
    call = row.args_kwargs
    if (
        not isinstance(call, dict)
        or not isinstance(call.get("args"), list)
        or not isinstance(call.get("kwargs"), dict)
    ):
        raise ArgumentValueError(
            f'args_kwargs is {call!r:.80}; it must be {{"args": [...], "kwargs": {{...}}}}.'
        )
    params = arguments.serialize(call["args"], call["kwargs"])
    is_deferred = row.run_after is not None and row.run_after.year < NEVER
    task = Task(
        task_name=arguments.task_name(row.task_path),
        task_params=params,
        priority=mirrored(row.priority, ascending=app_settings.is_ascending()),
        run_at=row.run_after if is_deferred else row.enqueued_at,
        queue=row.queue_name,
        backend=row.backend_name,
    )
    task.identify(result_id=row.pk, enqueued_at=row.enqueued_at)
    return task
