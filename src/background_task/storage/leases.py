"""Keep, or give up, a row that is locked for a run."""

from __future__ import annotations

from django.db import connections, models, transaction
from django.db.models import F
from django.db.models.functions import Coalesce

from background_task import vendors
from background_task.models import Task
from background_task.states import State
from background_task.storage.transient import HURRIED, persevere


def renew(task: Task) -> bool:
    """Make the lock of a run that goes on as fresh as a new one; False when that cannot be.

    It does not wait for a row that is locked in a transaction: that may be the transaction of the
    task itself, and while it lasts nobody can take the row anyway. ``task.locked_at`` keeps telling
    when the run began.
    """
    if task.locked_at is None:
        return False  # a row that was run without being locked
    using = task.database
    now = vendors.now(using)
    held = task.held()
    # Before the statement: when the answer is lost, or late, the run is recognised either way.
    task.leased_at = now
    with transaction.atomic(using=using):
        return not is_held_elsewhere(held) and bool(held.update(locked_at=now))


def is_held_elsewhere(row: models.QuerySet[Task]) -> bool:
    """Inside a transaction: lock ``row``, or tell, without waiting, that another holds it.

    Where the database cannot pass over what is locked, as SQLite, nothing is locked or held.
    """
    if not connections[row.db].features.has_select_for_update_skip_locked:
        return False
    return not list(row.select_for_update(skip_locked=True).values_list("pk", flat=True))


def hand_back(task: Task) -> bool:
    """Give up a run that has not ended, without counting an attempt; False when it is not ours."""
    return persevere(task.database, "hand back a task", lambda: bool(release(task.held())), HURRIED)


def release(rows: models.QuerySet[Task]) -> int:
    """Unlock ``rows`` and return how many there were; runs that still go on can record nothing."""
    return rows.update(
        locked_by=None, locked_at=None, state=State.READY, epoch=Coalesce(F("epoch"), 0) + 1
    )
