"""Keep, or give up, the rows that are locked for a run."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connections, models, transaction
from django.db.models import F
from django.db.models.functions import Coalesce

from background_task import vendors
from background_task.models import Task
from background_task.states import State
from background_task.storage.transient import HURRIED, persevere

_LOCK = ("pk", "locked_by", "locked_at", "epoch")


def renew(tasks: Sequence[Task]) -> None:
    """Make the locks of runs that go on as fresh as new ones.

    It does not wait for a row that is locked in a transaction: that may be the transaction of the
    task itself, and while it lasts nobody can take the row anyway. ``task.locked_at`` keeps telling
    when the run began.
    """
    locked = [task for task in tasks if task.locked_at is not None]  # not so when run by hand
    for using in {task.database for task in locked}:
        mine = [task for task in locked if task.database == using]
        now = vendors.now(using)
        # Before the statement: when the answer is lost, or late, the run is recognised either way.
        for task in mine:
            task.leased_at = now
        with transaction.atomic(using=using):
            held = [row.pk for row in still_held(using, mine, wait=False)]
            Task.objects.using(using).filter(pk__in=held).update(locked_at=now)


def still_held(
    using: str, tasks: Sequence[Task], columns: Sequence[str] = _LOCK, *, wait: bool = True
) -> list[Task]:
    """Inside a transaction: lock and return the rows that still belong to these runs.

    Rows that were deleted, or handed to another run, are missing.

    Args:
        using: the alias of the database.
        tasks: the rows as they were claimed.
        columns: what to read of them.
        wait: wait for rows that another transaction holds, rather than leave them out.
    """
    vendors.begin_write(using, Task._meta.db_table)
    runs = {task.pk: task for task in tasks}
    rows = Task._base_manager.using(using).filter(pk__in=runs).only(*columns).order_by("pk")
    skip = not wait and connections[using].features.has_select_for_update_skip_locked
    return [row for row in rows.select_for_update(skip_locked=skip) if _holds(runs[row.pk], row)]


def _holds(task: Task, row: Task) -> bool:
    """Tell of a row as it is stored what :meth:`Task.held` asks the database."""
    if (task.locked_by, task.epoch) != (row.locked_by, row.epoch) or row.locked_at is None:
        return False
    began = task.locked_at
    return began is not None and began <= row.locked_at <= (task.leased_at or began)


def is_held_elsewhere(row: models.QuerySet[Task]) -> bool:
    """Inside a transaction: lock ``row``, or tell, without waiting, that another holds it.

    Where the database cannot pass over what is locked, as SQLite, nothing is locked or held.
    """
    if not connections[row.db].features.has_select_for_update_skip_locked:
        return False
    return not list(row.select_for_update(skip_locked=True).values_list("pk", flat=True))


def hand_back(tasks: Sequence[Task]) -> set[int]:
    """Give up runs that have not ended, without counting an attempt; return the keys of ours.

    All of them are one transaction: there may be no time for more.
    """
    given: set[int] = set()
    for using in {task.database for task in tasks}:
        mine = [task for task in tasks if task.database == using]

        def verb(using: str = using, mine: Sequence[Task] = mine) -> list[int]:
            with transaction.atomic(using=using):
                held = [row.pk for row in still_held(using, mine)]
                release(Task.objects.using(using).filter(pk__in=held))
                return held

        given.update(persevere(using, "hand back what has not ended", verb, HURRIED))
    return given


def release(rows: models.QuerySet[Task]) -> int:
    """Unlock ``rows`` and return how many there were; runs that still go on can record nothing."""
    return rows.update(
        locked_by=None, locked_at=None, state=State.READY, epoch=Coalesce(F("epoch"), 0) + 1
    )
