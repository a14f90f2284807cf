"""Take tasks for a run: one, or as many as there is room for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence

from django.db import DataError, connections, transaction
from django.db.models import Q

from background_task import vendors
from background_task.models import Task, TaskQuerySet, rows
from background_task.models.tasks import lock_values
from background_task.storage import attempts, leases
from background_task.storage.batches import in_batches
from background_task.storage.transient import TRANSIENT

logger = logging.getLogger("background_task.storage")

CANDIDATES = 10

# How many tasks that have lost a worker once may run at a time beside others, in one process.
SUSPECTS = 10
_NEEDED = ("pk", "task_name", "locked_by", "locked_at", "worker_id", "result_id", "losses")

_UNKNOWN = "no tasks.py registers exactly this name"

# A row that cannot be taken, whoever tries, is not asked for again for so many seconds.
PASSED_OVER = 60.0
_ODD = (DataError, ValueError, TypeError, ArithmeticError)
_passed_over: dict[int, float] = {}
_reported: set[int] = set()

# Rows of which it is not known whether the claim was stored, and by which name: the connection
# broke over it.
_in_doubt: dict[int, str] = {}
_settling = threading.Lock()


def claim_next(
    using: str, names: Collection[str], queue: str | None, worker_name: str
) -> Task | None:
    """Lock the most urgent due row of a known name and return it; None when there is none.

    Other workers want the same rows. Each candidate is taken by one conditional UPDATE by primary
    key, so that on MySQL no gap is locked; when all candidates are lost to others, the next ones
    are asked for, since work may still be waiting.
    """
    if not names:
        return None
    settle_doubts(using)
    lost: set[int] = set()
    while True:
        candidates = list(_due(using, names, queue, lost)[:CANDIDATES])
        if not candidates:
            return None
        for candidate in candidates:
            if candidate.task_name not in names:
                # MySQL compares without regard to case, accents and trailing blanks.
                _pass_over(candidate, _UNKNOWN)
                continue
            locked = _try(candidate, worker_name)
            if locked is not None:
                return locked
            lost.add(candidate.pk)


def claim_batch(
    using: str,
    names: Collection[str],
    queue: str | None,
    worker_name: str,
    most: int,
    *,
    suspects: int,
) -> list[Task]:
    """Lock the most urgent due rows of known names, ``most`` of them at most, and return them.

    Rows that nobody has locked are taken in one transaction; what other workers are taking in this
    moment is passed over without waiting. Rows that need more are taken one by one.

    Args:
        using: the alias of the database.
        names: of the tasks that may be taken.
        queue: of this queue only; None or empty takes all.
        worker_name: what ``locked_by`` is to say.
        most: how many rows at most.
        suspects: how much room there is for rows that have lost a worker, see :func:`suspicion`.
    """
    if not names or most < 1:
        return []
    settle_doubts(using)
    lost: set[int] = set()
    while True:
        due = _due(using, names, queue, lost)
        if suspects < 1:
            due = due.filter(Q(losses=None) | Q(losses=0), locked_by=None)
        candidates = list(due[:most])
        known = [candidate for candidate in candidates if candidate.task_name in names]
        locked = _take_many(using, known, worker_name, suspects)
        if locked or not candidates:
            return locked
        lost.update(candidate.pk for candidate in candidates)
        for candidate in candidates:
            if candidate.task_name not in names:
                _pass_over(candidate, _UNKNOWN)


def _due(
    using: str, names: Collection[str], queue: str | None, lost: Collection[int]
) -> TaskQuerySet:
    """Return the rows that may be taken, the most urgent first, without those lost to others."""
    due = Task.objects.using(using).due(vendors.now(using), queue or None)
    due = due.filter(task_name__in=names).exclude(pk__in=[*lost, *_still_passed_over()])
    return due.only(*_NEEDED)


def suspicion(losses: int) -> int:
    """Return how much of :data:`SUSPECTS` a row takes up over which so many workers were lost.

    When a worker is lost, nobody knows which of its tasks has ended the process. So the next time a
    few of them run together, and the time after that each runs as the only one of its kind: then
    the loss is its own, and the others are cleared.
    """
    return 0 if not losses else 1 if losses == 1 else SUSPECTS


def _take_many(
    using: str, candidates: Sequence[Task], worker_name: str, suspects: int
) -> list[Task]:
    """Lock what can be locked of ``candidates``; return it in their order."""
    simple = [row.pk for row in candidates if row.result_id is not None and not _losses(row)]
    try:
        locked = {row.pk: row for row in _lock_many(using, simple, worker_name)}
    except TRANSIENT:
        _in_doubt.update(dict.fromkeys(simple, worker_name))
        raise
    except _ODD:  # one of them; which one it is, they tell one by one
        locked, simple = {}, []
    for candidate in candidates:
        weight = suspicion(_losses(candidate))
        if candidate.pk in simple or weight > suspects:
            continue
        if (row := _try(candidate, worker_name)) is not None:
            locked[row.pk] = row
            suspects -= weight
    return [locked[candidate.pk] for candidate in candidates if candidate.pk in locked]


def _losses(candidate: Task) -> int:
    """Return how many workers will have been lost over a row once it is taken over."""
    return (candidate.losses or 0) + (candidate.locked_by is not None)


def _lock_many(using: str, keys: Sequence[int], worker_name: str) -> list[Task]:
    if not keys:
        return []
    skip = connections[using].features.has_select_for_update_skip_locked
    with transaction.atomic(using=using):
        vendors.begin_write(using, Task._meta.db_table)
        # By primary key, so that on MySQL no gap is locked, and in one order, for fewer deadlocks.
        now = vendors.now(using)
        wanted = Task.objects.using(using).filter(pk__in=keys, locked_by=None, run_at__lte=now)
        free = wanted.order_by("pk").select_for_update(skip_locked=skip)
        taken = Task.objects.using(using).filter(pk__in=list(free.values_list("pk", flat=True)))
        taken.update(**lock_values(worker_name, now))
        return list(taken)


def settle_doubts(using: str) -> None:
    """Unlock the rows that this process may have locked without having begun to run them."""
    # Not two threads at a time: the other one may lock such a row again, and then run it.
    with _settling:
        for worker_name in set(_in_doubt.values()):
            keys = [pk for pk, name in list(_in_doubt.items()) if name == worker_name]
            for some in in_batches(keys):
                mine = Task.objects.using(using).filter(pk__in=some, worker_id=rows.this_worker())
                leases.release(mine.filter(locked_by=worker_name))
                for pk in some:
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
