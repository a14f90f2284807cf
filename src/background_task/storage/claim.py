"""Take one task for a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from django.db import DataError, transaction

from background_task import vendors
from background_task.models import Task, rows
from background_task.storage import attempts, leases
from background_task.storage.transient import TRANSIENT

logger = logging.getLogger("background_task.storage")

CANDIDATES = 10
_NEEDED = ("pk", "task_name", "locked_by", "locked_at", "worker_id", "result_id")

# A row that cannot be taken, whoever tries, is not asked for again for so many seconds.
PASSED_OVER = 60.0
_ODD = (DataError, ValueError, TypeError, ArithmeticError)
_passed_over: dict[int, float] = {}
_reported: set[int] = set()

# Rows of which it is not known whether the claim was stored, and by which name: the connection
# broke over it.
_in_doubt: dict[int, str] = {}


def claim_next(names: Collection[str], queue: str | None, worker_name: str) -> Task | None:
    """Lock the most urgent due row of a known name and return it; None when there is none.

    Other workers want the same rows. Each candidate is taken by one conditional UPDATE by primary
    key, so that on MySQL no gap is locked; when all candidates are lost to others, the next ones
    are asked for, since work may still be waiting.
    """
    if not names:
        return None
    settle_doubts()
    lost: set[int] = set()
    while True:
        primary = Task.objects.on_primary()
        due = primary.due(vendors.now(primary.db), queue or None).filter(task_name__in=names)
        due = due.exclude(pk__in=[*lost, *_still_passed_over()])
        candidates = list(due.only(*_NEEDED)[:CANDIDATES])
        if not candidates:
            return None
        for candidate in candidates:
            if candidate.task_name not in names:
                # MySQL compares without regard to case, accents and trailing blanks.
                _pass_over(candidate, "no tasks.py registers exactly this name")
                continue
            locked = _try(candidate, worker_name)
            if locked is not None:
                return locked
            lost.add(candidate.pk)


def settle_doubts() -> None:
    """Unlock the rows that this process may have locked without having begun to run them."""
    for pk, worker_name in list(_in_doubt.items()):
        mine = Task.objects.on_primary().filter(pk=pk, worker_id=rows.this_worker())
        leases.release(mine.filter(locked_by=worker_name))
        _in_doubt.pop(pk, None)


def _try(candidate: Task, worker_name: str) -> Task | None:
    try:
        if candidate.locked_by is None:
            return candidate.lock(worker_name)
        return _take_over(candidate, worker_name)
    except TRANSIENT:
        _in_doubt[candidate.pk] = worker_name
        raise
    except _ODD as error:
        _in_doubt[candidate.pk] = worker_name
        _pass_over(candidate, f"it cannot be read or locked ({error})")
        return None


def _take_over(candidate: Task, worker_name: str) -> Task | None:
    """Lock a row whose lease has expired, unless a transaction holds it: its task may live yet."""
    using = candidate.database
    with transaction.atomic(using=using):
        if leases.is_held_elsewhere(Task.objects.using(using).filter(pk=candidate.pk)):
            return None
        locked = candidate.lock(worker_name)
        if locked is not None:
            attempts.record_loss(candidate)
        return locked


def _pass_over(candidate: Task, reason: str) -> None:
    _passed_over[candidate.pk] = time.monotonic() + PASSED_OVER
    if candidate.pk not in _reported:
        _reported.add(candidate.pk)
        logger.error(
            "The row %s of %s, named %r, does not run: %s. Mend or delete it.",
            candidate.pk,
            Task._meta.db_table,
            candidate.task_name,
            reason,
        )


def _still_passed_over() -> list[int]:
    now = time.monotonic()
    for pk in [pk for pk, until in _passed_over.items() if until <= now]:
        del _passed_over[pk]
    return list(_passed_over)
