"""Keep, or give up, the rows that are locked for a run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from background_task.models import Task
from background_task.policies.cancellation import KEY
from background_task.records import Claim, Mark
from background_task.states import State
from background_task.storage import attempts
from background_task.storage.engine import Engine
from background_task.storage.notifications import tell_freed
from background_task.storage.transient import HURRIED, persevere

# The condition that a row was to be cancelled while it ran: what follows {" in its options.
TO_BE_CANCELLED = f"COALESCE(SUBSTR(options, 3, {len(KEY)}), '') = '{KEY}'"


CUT_OFF = "The run was given up before its end was recorded."
UNLOCKED = "Its lock was taken off while it ran."


class Lock(NamedTuple):
    """What tells one run of a row from others, and from what the predecessor's workers run."""

    pk: int
    locked_by: str | None
    epoch: int | None

    @classmethod
    def of(cls, task: Task) -> Lock:
        """Return that of a row as it was claimed."""
        return cls(task.pk, task.locked_by, task.epoch)


def running(columns: str, where: str) -> str:
    """Return a statement for the rows that some process runs; its condition is said twice.

    One that is edited meanwhile has no state for a moment. Each half reads its end of an index,
    where both together might have to read all that lies in between.
    """
    halves = [f"state = {State.RUNNING:d}", "state IS NULL"]
    return " UNION ALL ".join(
        f"SELECT {columns} FROM background_task WHERE {half} AND locked_by IS NOT NULL AND {where}"
        for half in halves
    )


def run_by(engine: Engine, worker_id: str, *, older_than: float = 0) -> list[Lock]:
    """Return what a process runs; not what was locked later than so many seconds ago."""
    where = "worker_id = %s"
    if older_than:
        where += f" AND locked_at < {engine.vendor.before(engine.connection, older_than)}"
    sql = running("id, locked_by, epoch", where)
    return [Lock._make(row) for row in engine.fetch(sql, [worker_id, worker_id])]


def lock(
    engine: Engine, keys: Sequence[int], where: str, parameters: Sequence[Any] = ()
) -> list[int]:
    """Inside a transaction: lock rows that still fulfil a condition; return their keys.

    Rows that another transaction holds are left out, without waiting.
    """
    if not keys:
        return []
    sql = f"SELECT id FROM {engine.vendor.by_key} WHERE id IN ({_listed(keys)}) AND ({where})"
    sql += " ORDER BY id"
    sql += engine.vendor.lock + engine.vendor.skip
    return [key for (key,) in engine.fetch(sql, parameters)]


def present(engine: Engine, keys: Sequence[int], where: str) -> list[int]:
    """Return the keys of rows that fulfil a condition, whether or not a transaction holds them."""
    if not keys:
        return []
    sql = f"SELECT id FROM {engine.vendor.by_key} WHERE id IN ({_listed(keys)}) AND ({where})"
    return [key for (key,) in engine.fetch(sql)]


def ours(engine: Engine, locks: Sequence[Lock], *, wait: bool = True) -> list[int]:
    """Inside a transaction: lock the rows that still belong to these runs; return their keys.

    Rows that were deleted, or handed to another run, are missing.

    Args:
        engine: where.
        locks: what the runs found, or wrote, when they took the rows.
        wait: wait for rows that another transaction holds, rather than leave them out.
    """
    if not locks:
        return []
    keys = _listed([each.pk for each in locks])
    sql = f"SELECT id, locked_by, epoch FROM {engine.vendor.by_key} WHERE id IN ({keys})"
    sql += " ORDER BY id"
    sql += engine.vendor.lock + ("" if wait else engine.vendor.skip)
    known = set(locks)
    return [row[0] for row in engine.fetch(sql) if Lock._make(row) in known]


def rows(using: str, claims: Sequence[Claim], by: Mark) -> dict[int, Task]:
    """Return the rows of claims as instances, by their keys; those that are not ours are missing.

    Args:
        using: the alias of the database; they are read over the connection of this thread.
        claims: what was claimed.
        by: who took the rows.
    """
    mine = Task.objects.using(using).filter(locked_by=by.locked_by, worker_id=by.worker_id)
    epochs = {claim.pk: claim.epoch for claim in claims}
    return {row.pk: row for row in mine.filter(pk__in=epochs) if row.epoch == epochs[row.pk]}


def renew(engine: Engine, locks: Sequence[Lock], now: datetime) -> None:
    """Make the locks of runs that go on as fresh as new ones: say ``now`` in their rows.

    It does not wait for a row that is locked in a transaction: that may be the transaction of the
    task itself, and while it lasts nobody can take the row anyway.
    """
    with engine.transaction():
        if mine := ours(engine, locks, wait=False):
            fresh = engine.vendor.literal(engine.connection, now)
            sql = f"UPDATE {engine.vendor.by_key} SET locked_at = {fresh} "
            engine.run(f"{sql} WHERE id IN ({_listed(mine)})")


def hand_back(
    engine: Engine, locks: Sequence[Lock], never_again: Collection[Lock] = ()
) -> set[int]:
    """Give up runs that have not ended, without counting an attempt; return the keys of ours.

    All of them are one transaction: there may be no time for more.

    Args:
        engine: where.
        locks: of the runs.
        never_again: those of them that have begun, and must not begin twice. They count as lost.
    """

    def verb() -> set[int]:
        with engine.transaction():
            mine = ours(engine, locks)
            _give_up(engine, mine, never_again)
            return set(mine)

    mine = persevere(engine.connection, "hand back what has not ended", verb, HURRIED)
    if mine:
        tell_freed(engine)
    return mine


def free_left(
    engine: Engine, locks: Sequence[Lock], never_again: Collection[Lock]
) -> tuple[set[int], set[int]]:
    """Do what :func:`hand_back` could not, without patience and without waiting for anybody.

    Returns:
        the keys of the rows that were freed, and of those that are ours still: somebody holds them
        in a transaction.
    """
    with engine.transaction():
        if never_again and engine.vendor.durably:
            engine.run(engine.vendor.durably)  # it is not remembered afterwards
        mine = ours(engine, locks, wait=False)
        _give_up(engine, mine, never_again)
        left = {lock for lock in locks if lock.pk not in mine}
        sql = "SELECT id, locked_by, epoch FROM background_task WHERE id IN "
        found = engine.fetch(f"{sql} ({_listed([each.pk for each in left])})") if left else []
        held = {row[0] for row in found if Lock._make(row) in left}
    if mine:
        tell_freed(engine)
    return set(mine), held


def _give_up(engine: Engine, keys: Sequence[int], never_again: Collection[Lock]) -> None:
    lost = {lock.pk for lock in never_again}.intersection(keys)
    lose(engine, sorted(lost), CUT_OFF)
    release(engine, [key for key in keys if key not in lost])


def release(engine: Engine, keys: Sequence[int], *, losses: int = 0) -> None:
    """Inside a transaction: unlock rows; runs that still go on can record nothing.

    What was to be cancelled has no state then, and so does not run again.

    Args:
        engine: where.
        keys: of the rows.
        losses: how many workers were lost over them by now that were not before.
    """
    if not keys:
        return
    is_suspect = "TRUE" if losses else "COALESCE(losses, 0) > 0"
    state = f"""CASE WHEN {TO_BE_CANCELLED} THEN NULL
        WHEN {is_suspect} THEN {State.RESCUED:d} ELSE {State.READY:d} END"""
    changes = "locked_by = NULL, locked_at = NULL, epoch = COALESCE(epoch, 0) + 1"
    if losses:
        changes += f", losses = COALESCE(losses, 0) + {losses}"
    sql = f"UPDATE {engine.vendor.by_key} SET state = {state}, {changes} "
    engine.run(f"{sql} WHERE id IN ({_listed(keys)})")


def release_forgotten(
    engine: Engine,
    worker_id: str,
    known: Collection[int],
    left: Collection[Lock],
    *,
    older_than: float = 0,
) -> None:
    """Unlock what a process has locked, but for the rows it knows of.

    Args:
        engine: where.
        worker_id: the process.
        known: the keys of the rows that it runs.
        left: what it runs no more, and has not forgotten.
        older_than: leave alone what was locked later than so many seconds ago.
    """
    locked = run_by(engine, worker_id, older_than=older_than)
    found = [each for each in locked if each.pk not in known and each not in left]
    if found:
        with engine.transaction():
            release(engine, ours(engine, found, wait=False))


def lose(engine: Engine, keys: Sequence[int], reason: str, *, worker_id: str | None = None) -> int:
    """Inside a transaction: free rows whose worker is gone, and write that down.

    Args:
        engine: where.
        keys: of rows that are locked in this transaction.
        reason: how it was noticed.
        worker_id: the worker, where the rows do not tell.

    Returns:
        how many rows there were.
    """
    if keys:
        attempts.record_losses(engine, keys, reason, worker_id)
        release(engine, keys, losses=1)
    return len(keys)


def lose_unlocked(engine: Engine, run: Task | Claim) -> None:
    """Count it as a loss that somebody has taken the lock off a row while it ran.

    Else one that does so itself would run for ever, or twice though it must not.

    Args:
        engine: where.
        run: the row as it was claimed.
    """

    def verb() -> None:
        # With more attempts it was this run that has failed: the answer was lost.
        free = f"locked_by IS NULL AND epoch = {run.epoch or 0:d} AND attempts = {run.attempts:d}"
        with engine.transaction():
            lose(engine, lock(engine, [run.pk], free), UNLOCKED)

    persevere(engine.connection, "count a loss", verb, HURRIED)


def _listed(keys: Sequence[int]) -> str:
    return ", ".join(map(str, keys))
