"""Find a task by its public id, in whichever table it stands."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from django.db import router

from background_task.models import Attempt, CompletedTask, Task


class Found(NamedTuple):
    """The row of a task, which stands in one of two tables, and its unsuccessful attempts."""

    live: Task | None
    finished: CompletedTask | None
    log: list[Attempt]

    @property
    def task_name(self) -> str:
        """The name of the task."""
        row = self.live or self.finished
        return row.task_name if row is not None else ""


def by_result_id(using: str, result_id: UUID) -> Found | None:
    """Return the task; None when there is none.

    A task only ever moves from the first table to the second, so looking there in this order finds
    it even while it moves.
    """
    live = Task._base_manager.using(using).filter(result_id=result_id).first()
    if live is not None:
        return Found(live, None, log_of(live))
    done = CompletedTask._base_manager.using(using).filter(result_id=result_id).first()
    return None if done is None else Found(None, done, log_of(done))


def log_of(row: Task | CompletedTask) -> list[Attempt]:
    """Return the attempts of a task that did not succeed, in order; a first attempt has none."""
    succeeded = isinstance(row, CompletedTask) and row.failed_at is None
    failures = (row.attempts or 0) - succeeded
    if row.result_id is None or not (failures > 0 or row.losses):
        return []
    using = row._state.db or router.db_for_write(Task)
    return list(Attempt.objects.using(using).filter(result_id=row.result_id).order_by("id"))
