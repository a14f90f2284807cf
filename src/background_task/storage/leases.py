"""Keep, or give up, a row that is locked for a run."""

from __future__ import annotations

from django.db import models
from django.db.models import F
from django.db.models.functions import Coalesce

from background_task import vendors
from background_task.models import Task
from background_task.states import State
from background_task.storage.transient import persevere


def renew(task: Task) -> bool:
    """Make the lock of a run that goes on as fresh as a new one; False when the run is not ours.

    ``task.locked_at`` keeps telling when the run began. When the database does not answer, it may
    or may not have stored the new time: from then on the run is recognised by either.
    """
    if task.locked_at is None:
        return False  # a row that was run without being locked
    now = vendors.now(task.database)
    held = task.held()
    before = task.leases
    task.leases = (*before, task.locked_at, now)
    renewed = held.update(locked_at=now)
    task.leases = (now,) if renewed else before
    return bool(renewed)


def hand_back(task: Task) -> bool:
    """Give up a run that has not ended, without counting an attempt; False when it is not ours."""
    return persevere(task.database, "hand back a task", lambda: bool(release(task.held())))


def release(rows: models.QuerySet[Task]) -> int:
    """Unlock ``rows`` and return how many there were; runs that still go on can record nothing."""
    return rows.update(
        locked_by=None, locked_at=None, state=State.READY, epoch=Coalesce(F("epoch"), 0) + 1
    )
