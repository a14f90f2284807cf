"""Take one task for a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from django.db import DataError

from background_task import vendors
from background_task.models import Task, rows
from background_task.storage import leases
from background_task.storage.transient import TRANSIENT

logger = logging.getLogger("background_task.storage")

CANDIDATES = 10

# A row that the database or Django cannot make sense of is not asked for again for so many seconds.
PASSED_OVER = 60.0
_ODD = (DataError, ValueError, TypeError, ArithmeticError)
_passed_over: dict[int, float] = {}

# Rows of which it is not known whether the claim was stored: the connection broke over it.
_in_doubt: set[int] = set()


def claim_next(names: Collection[str], queue: str | None, worker_name: str) -> Task | None:
    """Lock the most urgent due row of a known name and return it; None when there is none.

    Other workers want the same rows. Each candidate is taken by one conditional UPDATE by primary
    key, so that on MySQL no gap is locked; when all candidates are lost to others, the next ones
    are asked for, since work may still be waiting.
    """
    if not names:
        return None
    _settle_doubts(worker_name)
    while True:
        primary = Task.objects.on_primary()
        due = primary.due(vendors.now(primary.db), queue or None).filter(task_name__in=names)
        due = due.exclude(pk__in=_still_passed_over())
        candidates = list(due.only("pk")[:CANDIDATES])
        if not candidates:
            return None
        for candidate in candidates:
            locked = _try(candidate, worker_name)
            if locked is not None:
                return locked


def _try(candidate: Task, worker_name: str) -> Task | None:
    try:
        return candidate.lock(worker_name)
    except TRANSIENT:
        _in_doubt.add(candidate.pk)
        raise
    except _ODD as error:
        if candidate.pk not in _passed_over:
            logger.error(
                "The row %s of %s cannot be read or locked, so it does not run: mend or delete it. "
                "(%s)",
                candidate.pk,
                Task._meta.db_table,
                error,
            )
        _passed_over[candidate.pk] = time.monotonic() + PASSED_OVER
        _release({candidate.pk}, worker_name)
        return None


def _still_passed_over() -> list[int]:
    now = time.monotonic()
    return [pk for pk, until in _passed_over.items() if until > now]


def _settle_doubts(worker_name: str) -> None:
    if _in_doubt:
        _release(_in_doubt, worker_name)
        _in_doubt.clear()


def _release(keys: set[int], worker_name: str) -> None:
    """Unlock rows that this process has locked without having begun to run them."""
    mine = Task.objects.on_primary().filter(locked_by=worker_name, worker_id=rows.this_worker())
    leases.release(mine.filter(pk__in=keys))
