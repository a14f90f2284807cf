"""Take one task for a run."""

from __future__ import annotations

from collections.abc import Collection

from background_task import vendors
from background_task.models import Task

CANDIDATES = 10


def claim_next(names: Collection[str], queue: str | None, worker_name: str) -> Task | None:
    """Lock the most urgent due row of a known name and return it; None when there is none.

    Other workers want the same rows. Each candidate is taken by one conditional UPDATE by primary
    key, so that on MySQL no gap is locked; when all candidates are lost to others, the next ones
    are asked for, since work may still be waiting.
    """
    if not names:
        return None
    while True:
        rows = Task.objects.on_primary()
        due = rows.due(vendors.now(rows.db), queue or None).filter(task_name__in=names)
        candidates = list(due[:CANDIDATES])
        if not candidates:
            return None
        for candidate in candidates:
            locked = candidate.lock(worker_name)
            if locked is not None:
                return locked
