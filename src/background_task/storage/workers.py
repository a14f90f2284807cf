"""The processes that run tasks: they show that they live, and one that is gone is rescued from.

A worker has a lock that ends with its process, however that ends, and a heartbeat. When the lock is
free and the heart has stood still, it is dead: whoever notices first frees its rows, so that they
run again. How long a task takes has nothing to do with it. A lost connection alone is no death: the
worker takes its lock again within its next beat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any, NamedTuple

from background_task import logs
from background_task.states import State
from background_task.storage import leases
from background_task.storage.engine import Engine
from background_task.storage.notifications import tell_freed
from background_task.vendors import SessionLock

logger = logs.named("background_task.storage")

# The intervals are in seconds. A heart beats so often; has it stood still for so long while the
# lock is free, or for so long where there is no such lock, the worker is dead.
BETWEEN_BEATS = 1.5
STILL = 2.0
STILL_WITHOUT_LOCK = 30.0


class Suspect(NamedTuple):
    """A worker whose heart has stood still for ``silent`` seconds, since ``seen_at``."""

    worker_id: str
    lock_key: int | None
    held: str
    silent: float
    seen_at: Any


def lock_key(worker_id: str) -> int:
    """Return the key of the lock of a worker: 64 bits that no other has."""
    digest = blake2b(worker_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def register(
    engine: Engine,
    worker_id: str,
    *,
    name: str,
    queues: str,
    supervisor: str | None,
    has_lock: bool,
) -> None:
    """Say that this process takes tasks; it is forgotten what was known of it before."""
    key = lock_key(worker_id) if has_lock else None
    with engine.transaction():
        _delete(engine, worker_id)
        engine.run(
            f"""
            INSERT INTO background_task_worker (worker_id, name, supervisor, queues,
                started_at, seen_at, lock_key, held, requests)
            VALUES (%s, %s, %s, %s, {engine.now}, {engine.now}, %s, '', '')
            """,
            [worker_id, name, supervisor, queues, key],
        )


def deregister(engine: Engine, worker_id: str) -> None:
    """Say that this process takes no more tasks; not if it has left rows, which are rescued."""
    with engine.transaction():
        if not leases.run_by(engine, worker_id):
            _delete(engine, worker_id)


def _delete(engine: Engine, worker_id: str) -> None:
    engine.run("DELETE FROM background_task_worker WHERE worker_id = %s", [worker_id])


class Pulse(NamedTuple):
    """What a beat tells: see :func:`beat`."""

    requests: str | None
    suspects: list[Suspect]


def beat(engine: Engine, worker_id: str, others: Sequence[str] = ()) -> Pulse:
    """Show that a worker lives, and which other hearts have stood still; one statement if possible.

    Args:
        engine: where.
        worker_id: the worker.
        others: workers of which it is known that they live too.

    Returns:
        what is asked of the worker, None if somebody has said that it is dead; and those that may
        be dead.
    """
    alive = [worker_id, *others]
    update = f"""
        UPDATE background_task_worker SET seen_at = {engine.now}
        WHERE worker_id IN ({", ".join(["%s"] * len(alive))})
    """
    still = _silence(engine)
    asked = f"""
        SELECT {_suspect(engine)}, requests FROM background_task_worker
        WHERE worker_id = %s OR {still}
    """
    if engine.vendor.can_return_changed:
        rows = engine.fetch(f"WITH beaten AS ({update}) {asked}", [*alive, worker_id])
    else:
        engine.run(update, alive)
        rows = engine.fetch(asked, [worker_id])
    own = next((row[-1] for row in rows if row[0] == worker_id), None)
    return Pulse(own, [Suspect._make(row[:-1]) for row in rows if row[0] not in alive])


def _suspect(engine: Engine) -> str:
    silent = engine.vendor.seconds_until("seen_at", engine.now)
    return f"worker_id, lock_key, held, {silent}, seen_at"


def _silence(engine: Engine) -> str:
    """Return the condition that a heart has stood still for so long as to judge."""
    limits = [engine.vendor.before(engine.connection, each) for each in (STILL, STILL_WITHOUT_LOCK)]
    return f"(seen_at < {limits[0]} AND (lock_key IS NOT NULL OR seen_at < {limits[1]}))"


def take_requests(engine: Engine, worker_id: str, requests: str) -> bool:
    """Say that what is asked of a worker is being done; False if more is asked meanwhile."""
    sql = "UPDATE background_task_worker SET requests = '' WHERE worker_id = %s AND requests = %s"
    return bool(engine.run(sql, [worker_id, requests]))


def note_held(engine: Engine, worker_id: str, keys: Iterable[int]) -> None:
    """Note which rows a worker is about to hold; no keys, when it holds none any more."""
    engine.run(
        "UPDATE background_task_worker SET held = %s WHERE worker_id = %s",
        [_packed(keys), worker_id],
    )


def all_but(engine: Engine, worker_id: str) -> list[Suspect]:
    """Return the other workers, whether or not they live."""
    sql = f"SELECT {_suspect(engine)} FROM background_task_worker"
    rows = engine.fetch(f"{sql} WHERE worker_id <> %s", [worker_id])
    return [Suspect._make(row) for row in rows]


def find(engine: Engine, worker_id: str) -> Suspect | None:
    """Return what is known of a worker; None when it has left, or was rescued from."""
    sql = f"SELECT {_suspect(engine)} FROM background_task_worker"
    rows = engine.fetch(f"{sql} WHERE worker_id = %s", [worker_id])
    return Suspect._make(rows[0]) if rows else None


def forgotten(engine: Engine) -> list[str]:
    """Return who runs rows, but is not registered: it takes no tasks, or has left without them."""
    where = """
        worker_id IS NOT NULL
        AND worker_id NOT IN (SELECT worker_id FROM background_task_worker)
    """
    sql = f"SELECT DISTINCT worker_id FROM ({leases.running('worker_id', where)}) AS running"
    return [worker_id for (worker_id,) in engine.fetch(sql)]


def free_forgotten(engine: Engine, worker_id: str) -> int:
    """Free what a process ran that has ended and is not registered; return how much it was."""
    with engine.transaction():
        return _free(engine, Suspect(worker_id, None, "", 0.0, None))[1]


def rescue(engine: Engine, suspect: Suspect, *, ended_by: str | None = None) -> int | None:
    """Free the rows of a worker that is dead; return how many there were, None if it lives.

    Args:
        engine: where; not inside a transaction.
        suspect: the worker.
        ended_by: what has ended it, where that is certain, as to the process that has started it.
    """
    lock: SessionLock | None = None
    if suspect.lock_key is not None and ended_by is None:
        lock = engine.vendor.session_lock(engine.connection, suspect.lock_key)
        if lock is None:
            return None
    try:
        with engine.transaction():
            if not _is_still_there(engine, suspect, is_dead=ended_by is not None):
                return None
            found, freed = _free(engine, suspect, ended_by)
            if freed == found:
                _delete(engine, suspect.worker_id)
    finally:
        if lock is not None:
            lock.release()
    if freed:
        tell_freed(engine)
    return freed


def _is_still_there(engine: Engine, suspect: Suspect, *, is_dead: bool) -> bool:
    """Lock the row of the worker, unless somebody else rescues from it, or it has beaten since."""
    sql = "SELECT seen_at FROM background_task_worker WHERE worker_id = %s"
    sql += engine.vendor.lock + engine.vendor.skip
    # Not by how long it was silent: databases differ in what they make of fractions of a second.
    found = [seen_at for (seen_at,) in engine.fetch(sql, [suspect.worker_id])]
    return bool(found) and (is_dead or found == [suspect.seen_at])


def _free(engine: Engine, suspect: Suspect, ended_by: str | None = None) -> tuple[int, int]:
    """Return how many rows there are to be freed, and how many are: transactions may hold some."""
    reason = "The worker was lost."
    if ended_by is not None:
        reason = f"The worker was lost; it was ended by {ended_by}."
    elif suspect.silent:
        reason = f"The worker was lost; it has been silent for {suspect.silent:.1f} s."
    found = leases.run_by(engine, suspect.worker_id)
    marked = leases.ours(engine, found, wait=False)
    freed = leases.lose(engine, marked, reason)
    # What it held is free, or is about to be, but one of these tasks may have ended the process.
    free = f"state = {State.READY:d} AND locked_by IS NULL"
    held = leases.present(engine, list(_unpacked(suspect.held)), free)
    noted = leases.lock(engine, held, free)
    leases.lose(engine, noted, reason, worker_id=suspect.worker_id)
    return len(found) + len(held), freed + len(noted)


def _packed(keys: Iterable[int]) -> str:
    """Return keys as text, those in a row as a range: ``3-7,9``."""
    ordered = sorted(keys)
    if not ordered:
        return ""
    ends = [(a, b) for a, b in pairwise(ordered) if b != a + 1]
    starts = [ordered[0], *(b for _, b in ends)]
    stops = [*(a for a, _ in ends), ordered[-1]]
    ranges = zip(starts, stops, strict=True)
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in ranges)


def _unpacked(text: str) -> Iterator[int]:
    for each in filter(None, text.split(",")):
        first, _, last = each.partition("-")
        yield from range(int(first), int(last or first) + 1)
