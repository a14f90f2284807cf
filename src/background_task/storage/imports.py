"""Take over the rows of another backend of ``django.tasks``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django.db import connections, router, transaction

from background_task import vendors
from background_task.models import Task
from background_task.policies import arguments
from background_task.policies.priorities import mirrored
from background_task.settings import app_settings
from background_task.storage import enqueue
from background_task.storage.transient import persevere

BATCH = 500

# What django-tasks-db stores for "no time was asked for": the first day of this year.
NEVER = 9999


def take_over(model: Any, statuses: Collection[str]) -> int:
    """Move rows of django-tasks-db into our table; return how many there were.

    A row is stored here and deleted there in one transaction, so that no worker of either side can
    find it twice. It keeps its id: whoever has stored one finds the result by it.

    Args:
        model: its model, ``DBTaskResult``, in the same database as ours.
        statuses: the statuses of the rows to move.
    """
    using = router.db_for_write(Task)
    rows = model._base_manager.using(using).filter(status__in=statuses)
    skip = connections[using].features.has_select_for_update_skip_locked

    def move_some() -> int:
        with transaction.atomic(using=using):
            vendors.begin_write(using, Task._meta.db_table)
            oldest = rows.order_by("enqueued_at", "pk")
            some = list(oldest.select_for_update(skip_locked=skip)[:BATCH])
            if some:
                enqueue.insert(using, [_ours(row) for row in some])
                rows.filter(pk__in=[row.pk for row in some]).delete()
            return len(some)

    moved = 0
    while count := persevere(connections[using], "import tasks", move_some):
        moved += count
    return moved


def _ours(row: Any) -> Task:
    params = arguments.serialize(row.args_kwargs["args"], row.args_kwargs["kwargs"])
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
