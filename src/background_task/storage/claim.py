"""Take tasks for a run: the most urgent that may run now, of the names that this worker knows.

==========  ===================================================================================
mark        writes into the rows who runs them, and commits. Whoever looks sees it, workers of the
            predecessor too, and an end is recorded only while it stands there.
hold        only locks the rows, in a transaction that stays open until their tasks have ended.
            The wide rows are not written twice, which is half as fast again; so it is for many
            short tasks. When the process dies its rows are free at once.
claim_next  one row as a model instance, by the predecessor's steps, which projects may replace.
==========  ===================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from django.db import DataError

from background_task.identity import this_worker
from background_task.models import Task
from background_task.records import Claim, Mark, Wanted
from background_task.settings import app_settings
from background_task.states import State
from background_task.storage import leases, oddities, readiness
from background_task.storage.batches import in_batches
from background_task.storage.engine import Engine

# How many rows claim_next() looks at to take one of.
CANDIDATES = 10
# How many of the most urgent rows other workers may have locked, where it cannot be told before.
LOCKED_BY_OTHERS = 2000

# How many tasks that have lost a worker once may run at a time beside others, in one process.
SUSPECTS = 10

# What Django raises where it cannot make sense of a row.
ODD = (DataError, ValueError, TypeError, ArithmeticError)

# The fields of a Claim, in their order.
_STORED = "id, task_name, verbose_name, task_params, result_id, epoch, attempts, losses, backend"
_COLUMNS = f'{_STORED}, ("repeat" > 0 OR unique_key IS NOT NULL) AS is_chain'


class Place(NamedTuple):
    """Where a row stands in the order in which rows are taken, by the values of its columns."""

    priority: int
    run_at: Any
    pk: int


def mark(
    engine: Engine,
    wanted: Wanted,
    most: int,
    by: Mark,
    fitting: Callable[[Sequence[Claim]], int] | None = None,
) -> list[Claim]:
    """Take the most urgent rows by writing into them; return them in their order.

    What other workers are taking in this moment is passed over without waiting.

    Args:
        engine: where; not inside a transaction.
        wanted: which rows.
        most: how many at most.
        by: who takes them.
        fitting: returns how many of those that were found, from the first, are to be taken. Nobody
            ever sees that the others were looked at. None where all are.
    """
    if not wanted.names or most < 1:
        return []
    try:
        return _mark(engine, wanted, most, by, fitting)
    except ODD:  # one of them; which one it is, they tell one by one
        return _mark_one(engine, wanted, by)


def _mark(
    engine: Engine,
    wanted: Wanted,
    most: int,
    by: Mark,
    fitting: Callable[[Sequence[Claim]], int] | None,
) -> list[Claim]:
    is_at_once = engine.vendor.can_return_changed
    # A single one always fits; and one statement needs no transaction around it.
    if is_at_once and (fitting is None or most == 1):
        return _known(wanted, _mark_at_once(engine, wanted, most, by))
    if not engine.vendor.lock and not engine.fetch(*_select(engine, wanted, 1, lock=False)):
        return []  # so that an idle worker does not ask for the lock of the whole database
    fitting = fitting or len
    with engine.transaction():
        if not is_at_once:
            claims = hold(engine, wanted, most)
            return mark_held(engine, claims[: fitting(claims)], by)
        claims = _known(wanted, _mark_at_once(engine, wanted, most, by))
        count = fitting(claims)
        leases.release(engine, [claim.pk for claim in claims[count:]])
        return claims[:count]


def _mark_at_once(engine: Engine, wanted: Wanted, most: int, by: Mark) -> list[Claim]:
    found, parameters = _select(engine, wanted, most, columns="id")
    sql = f"""
        WITH marked AS (
            UPDATE background_task SET {_marked(engine)}
            WHERE id = ANY(ARRAY({found}))
            RETURNING {_COLUMNS}, priority, run_at
        )
        SELECT {_STORED}, is_chain FROM marked ORDER BY {readiness.order()}
    """
    return [Claim._make(row) for row in engine.fetch(sql, [*by, *parameters])]


def _mark_one(engine: Engine, wanted: Wanted, by: Mark) -> list[Claim]:
    for claim in _found(engine, *_select(engine, wanted, CANDIDATES, lock=False)):
        try:
            with engine.transaction():
                free, parameters = readiness.free(engine, wanted, State.READY)
                if leases.lock(engine, [claim.pk], free, parameters):
                    return mark_held(engine, [claim], by)
        except ODD as error:
            oddities.pass_over(claim.pk, claim.name, f"it cannot be locked ({error})")
    return []


def hold(engine: Engine, wanted: Wanted, most: int, behind: Place | None = None) -> list[Claim]:
    """Inside a transaction: lock the most urgent rows; return them in their order.

    Args:
        engine: where.
        wanted: which rows.
        most: how many at most.
        behind: leave out what comes before this place.
    """
    if _reads_in_order(engine):
        return _known(wanted, _found(engine, *_select(engine, wanted, most, behind=behind)))
    free = f"state = {State.READY:d} AND locked_by IS NULL"
    found = _found(engine, *_select(engine, wanted, most + LOCKED_BY_OTHERS, lock=False))
    for some in in_batches(_known(wanted, found), most=most):
        if keys := leases.lock(engine, [claim.pk for claim in some], free):
            return [claim for claim in some if claim.pk in keys]
    return []


def _reads_in_order(engine: Engine) -> bool:
    ascending = app_settings.is_ascending()
    return engine.vendor.locks_only_what_it_returns(engine.connection, is_ascending=ascending)


def place(engine: Engine, claimed: Claim) -> Place | None:
    """Return the place of a row that is held; None where no search need, or can, begin there."""
    if not (engine.vendor.wants_a_bookmark(engine.connection) and _reads_in_order(engine)):
        return None
    sql = f"SELECT priority, run_at, id FROM {engine.vendor.by_key} WHERE id = {claimed.pk}"
    return Place._make(engine.fetch(sql)[0])


def mark_held(engine: Engine, claims: Sequence[Claim], by: Mark) -> list[Claim]:
    """Inside a transaction that holds these rows: write into them that they run."""
    if not claims:
        return []
    keys = ", ".join(str(claim.pk) for claim in claims)
    sql = f"UPDATE {engine.vendor.by_key} SET {_marked(engine)} WHERE id IN ({keys})"
    engine.run(sql, [*by])
    return [claim._replace(epoch=(claim.epoch or 0) + 1) for claim in claims]


def rescued(engine: Engine, wanted: Wanted, most: int, room: int, by: Mark) -> list[Claim]:
    """Take rows that have lost a worker, as many as there is room for; return them.

    Args:
        engine: where; not inside a transaction.
        wanted: which rows.
        most: how many at most.
        room: see :func:`suspicion`.
        by: who takes them.
    """
    if not wanted.names or min(most, room) < 1:
        return []
    if not engine.fetch(*_select(engine, wanted, 1, State.RESCUED, lock=False)):
        return []
    with engine.transaction():
        found = _found(engine, *_select(engine, wanted, min(most, room), State.RESCUED))
        taken = []
        for claim in _known(wanted, found):
            if suspicion(claim.losses or 0) <= room:
                room -= suspicion(claim.losses or 0)
                taken.append(claim)
        return mark_held(engine, taken, by)


def suspicion(losses: int) -> int:
    """Return how much of :data:`SUSPECTS` a row takes up over which so many workers were lost.

    When a worker is lost, nobody knows which of its tasks has ended the process. So the next time a
    few of them run together, and the time after that each runs as the only one of its kind: then
    the loss is its own, and the others are cleared.
    """
    return 0 if not losses else 1 if losses == 1 else SUSPECTS


def _found(engine: Engine, sql: str, parameters: Sequence[Any]) -> list[Claim]:
    return [Claim._make(row) for row in engine.fetch(sql, parameters)]


def _select(
    engine: Engine,
    wanted: Wanted,
    most: int,
    state: State = State.READY,
    *,
    columns: str = _COLUMNS,
    but: Collection[int] = (),
    behind: Place | None = None,
    lock: bool = True,
) -> tuple[str, list[Any]]:
    which, parameters = readiness.free(engine, wanted, state)
    if behind is not None:
        priority, run_at, pk = behind
        later = "run_at > %s OR (run_at = %s AND id > %s)"
        which += f" AND (priority < %s OR (priority = %s AND ({later})))"
        parameters += [priority, priority, run_at, run_at, pk]
    if but:
        which += f" AND id NOT IN ({', '.join(map(str, but))})"
    vendor = engine.vendor
    table = vendor.in_order_of_queue if wanted.queues else vendor.in_order
    sql = f"SELECT {columns} FROM {table} WHERE {which} "
    sql += f"ORDER BY {readiness.order()} LIMIT {most}"
    return sql + (vendor.lock + vendor.skip if lock else ""), parameters


def _marked(engine: Engine) -> str:
    now = engine.now
    return (
        f"locked_by = %s, worker_id = %s, state = {State.RUNNING:d}, locked_at = {now}, "
        f"epoch = COALESCE(epoch, 0) + 1, started_at = COALESCE(started_at, {now})"
    )


def _known(wanted: Wanted, claims: list[Claim]) -> list[Claim]:
    """Leave out names that are only alike: MySQL compares without regard to case and accents."""
    for claim in claims:
        if claim.name not in wanted.names:
            oddities.pass_over(claim.pk, claim.name, "no tasks.py registers exactly this name")
    return [claim for claim in claims if claim.name in wanted.names]


def claim_next(
    using: str, names: Collection[str], queue: str | None, worker_name: str
) -> Task | None:
    """Lock the most urgent due row of a known name and return it; None when there is none.

    Each candidate is taken by ``Task.lock``; when all are lost to other workers, the next ones are
    asked for, since work may still be waiting.
    """
    if not names:
        return None
    readiness.settle(Engine.on(using))
    lost: set[int] = set()
    while True:
        candidates = _candidates(using, Wanted(names, (queue,) if queue else ()), lost)
        if not candidates:
            return None
        for candidate in candidates:
            if candidate.task_name not in names:
                reason = "no tasks.py registers exactly this name"
                oddities.pass_over(candidate.pk, candidate.task_name, reason)
                continue
            try:
                locked = candidate.lock(worker_name)
            except ODD as error:
                reason = f"it cannot be locked ({error})"
                oddities.pass_over(candidate.pk, candidate.task_name, reason)
                _unlock(Engine.on(using), candidate.pk, Mark(worker_name, this_worker()))
                continue
            if locked is not None:
                return locked
            lost.add(candidate.pk)


def _unlock(engine: Engine, pk: int, by: Mark) -> None:
    with engine.transaction():
        mine = leases.lock(engine, [pk], "locked_by = %s AND worker_id = %s", by)
        leases.release(engine, mine)


def _candidates(using: str, wanted: Wanted, lost: Collection[int]) -> list[Task]:
    engine = Engine.on(using)
    keys: list[int] = []
    for state in (State.READY, State.RESCUED):
        most = CANDIDATES - len(keys)
        if most > 0:
            found, parameters = _select(
                engine, wanted, most, state, columns="id", but=lost, lock=False
            )
            keys += [key for (key,) in engine.fetch(found, parameters)]
    rows = Task.objects.using(using).only("pk", "task_name").in_bulk(keys)
    return [rows[key] for key in keys if key in rows]
