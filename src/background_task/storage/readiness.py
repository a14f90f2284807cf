"""Say which rows may run: the claims look only at those of which that was said.

A claim reads an index of the READY rows, in the order in which they are to run; so a million rows
that wait for their time cost it nothing. Here others become READY: those whose time has come, those
that code has stored or edited which knows no states, and those whose lock has expired.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from background_task._compat import uuid7
from background_task.models import Task
from background_task.models.managers import lease
from background_task.records import Wanted
from background_task.settings import app_settings
from background_task.states import State
from background_task.storage import cancel, leases, oddities
from background_task.storage.engine import Engine

# How many rows change their state in one transaction; each public id is a statement of its own.
AT_ONCE = 1000
NAMED_AT_ONCE = 200

# What a row becomes that may run: one that has lost a worker is taken with more care.
_FREE = f"CASE WHEN COALESCE(losses, 0) > 0 THEN {State.RESCUED:d} ELSE {State.READY:d} END"


class Look(NamedTuple):
    """What there is to do: see :func:`look`."""

    is_ready: bool
    is_rescued: bool
    is_unsettled: bool
    upcoming: float | None
    is_unknown: bool = False


def free(
    engine: Engine, wanted: Wanted, state: State, *, named: str = "IN"
) -> tuple[str, list[Any]]:
    """Return the condition on rows that may be taken in this moment, and its parameters."""
    names = sorted(wanted.names)
    parameters: list[Any] = [*names]
    among = f"task_name {named} ({_marks(names)})" if names else f"1 {named} (0)"
    sql = [_may_run(engine, state), among]
    if wanted.queues:
        sql.append(f"queue IN ({_marks(wanted.queues)})")
        parameters.extend(wanted.queues)
    if wanted.excluded:
        sql.append(f"(queue IS NULL OR queue NOT IN ({_marks(wanted.excluded)}))")
        parameters.extend(wanted.excluded)
    if wanted.backend is not None:
        sql.append("backend = %s")
        parameters.append(wanted.backend)
    return " AND ".join(sql), parameters


def _may_run(engine: Engine, state: State) -> str:
    return (
        f"state = {state:d} AND locked_by IS NULL AND failed_at IS NULL "
        f"AND {engine.vendor.unindexed_run_at} <= {engine.now}{_but_for_odd()}"
    )


def order() -> str:
    """Return in which order rows are to be taken."""
    return f"{_by_priority()}, run_at, id"


def _by_priority() -> str:
    """Return the part of it that every database can read from the index, in either direction."""
    return f"priority{'' if app_settings.is_ascending() else ' DESC'}"


def _marks(values: Any) -> str:
    return ", ".join(["%s"] * len(values))


def look(engine: Engine, wanted: Wanted, known: Collection[str] | None = None) -> Look:
    """Look, without changing anything, whether there is something to take; one statement.

    Args:
        engine: where.
        wanted: which rows.
        known: the names that tasks are known to have; None does not look for others.

    Returns:
        whether a row may run; whether one that has lost a worker may; whether :func:`promote` or
        :func:`adopt` would find something; in how many seconds the next row is due; and, when
        nothing may run, whether a row might if its name were known.
    """
    ready, parameters = first(engine, wanted, State.READY)
    rescued, same = first(engine, wanted, State.RESCUED)
    unknown, others = "NULL", list[Any]()
    if known is not None:
        other, others = first(engine, replace(wanted, names=known), named="NOT IN")
        # Only then: a deep queue of what is known would have to be read to its end.
        unknown = f"CASE WHEN ({ready}) IS NULL THEN ({other}) IS NOT NULL END"
        others = [*parameters, *others]
    until = engine.vendor.seconds_until(engine.now, "MIN(run_at)")
    sql = f"""
        SELECT ({ready}), ({rescued}),
            EXISTS(SELECT 1 FROM background_task WHERE state IS NULL{_but_for_odd()}),
            (SELECT {until} FROM background_task WHERE state = {State.SCHEDULED:d}), {unknown}
    """
    row = engine.fetch(sql, [*parameters, *same, *others])[0]
    found, of_the_lost, is_stateless, seconds, is_unknown = row
    upcoming = None if seconds is None else float(seconds)
    return Look(
        is_ready=found is not None,
        is_rescued=of_the_lost is not None,
        is_unsettled=bool(is_stateless) or (upcoming is not None and upcoming <= 0),
        upcoming=upcoming,
        is_unknown=bool(is_unknown),
    )


def first(
    engine: Engine, wanted: Wanted, state: State = State.READY, *, named: str = "IN"
) -> tuple[str, list[Any]]:
    """Return a statement for the key of the row that is to run first, if any may.

    It is asked for in the order of the index. A planner that was free to choose would read the
    table from its start, where the rows are that have been deleted meanwhile.
    """
    which, parameters = free(engine, wanted, state, named=named)
    table = engine.vendor.in_order_of_queue if wanted.queues else engine.vendor.in_order
    return f"SELECT id FROM {table} WHERE {which} ORDER BY {order()} LIMIT 1", parameters


def unknown(
    engine: Engine, known: Collection[str], among: int | None = None
) -> Iterator[tuple[Any, int]]:
    """Yield the names of rows that may run, but for those ``known``, and how many rows each has.

    Args:
        engine: where.
        known: the names that are not looked for.
        among: look only at so many rows, the most urgent ones. None looks at all, and takes its
            time where rows of known names are many.
    """
    for state in (State.READY, State.RESCUED):
        due = f"SELECT task_name FROM {engine.vendor.in_order} WHERE {_may_run(engine, state)}"
        if among is not None:
            due += f" ORDER BY {_by_priority()} LIMIT {among}"
        other = f"WHERE task_name NOT IN ({_marks(known)})" if known else ""
        sql = f"SELECT task_name, COUNT(*) FROM ({due}) AS due {other} GROUP BY task_name"
        yield from engine.fetch(f"{sql} ORDER BY task_name", [*known])


def due(engine: Engine, wanted: Wanted) -> int | None:
    """Return the key of a row for which :func:`look` would find something to do now; None if none.

    For who asks again and again: by the same key he knows that it did not help to look.
    """
    ready, parameters = first(engine, wanted)
    scheduled = _find(_has_come(engine), 1)
    stateless = _find(f"state IS NULL{_but_for_odd()}", 1)
    sql = f"SELECT COALESCE(({ready}), ({scheduled}), ({stateless}))"
    found: int | None = engine.fetch(sql, parameters)[0][0]
    return found


def settle(engine: Engine) -> int:
    """Say of every row that may run that it may; return how many rows have changed."""
    return adopt(engine) + promote(engine) + expire(engine)


def promote(engine: Engine) -> int:
    """Say READY of the rows whose time has come; return how many they were."""
    return _change(engine, _has_come(engine), f"state = {_FREE}")


def _has_come(engine: Engine) -> str:
    """Return the condition on rows whose time has come, and of which that was not said yet."""
    return f"state = {State.SCHEDULED:d} AND run_at <= {engine.now}"


def adopt(engine: Engine) -> int:
    """Give a state, and a public id, to rows that code has stored or edited which knows neither.

    What was to be cancelled while it ran, and runs no more, is cancelled.
    """
    ended = f"(locked_by IS NULL AND {leases.TO_BE_CANCELLED})"
    changed = cancel.cancel_all(engine.using, _at_hand(engine, f"state IS NULL AND {ended}"))
    nameless = "result_id IS NULL AND state IS NULL"
    if keys := engine.fetch(_find(nameless, NAMED_AT_ONCE)):
        field = Task._meta.get_field("result_id")
        with engine.transaction():
            for key in leases.lock(engine, [key for (key,) in keys], nameless):
                name = field.get_db_prep_save(uuid7(), engine.connection)
                sql = "UPDATE background_task SET result_id = %s WHERE id = %s"
                engine.run(sql, [name, key])
    changed += _change(
        engine,
        f"state IS NULL AND result_id IS NOT NULL AND NOT {ended}",
        f"""state = CASE
            WHEN locked_by IS NOT NULL THEN {State.RUNNING:d}
            WHEN run_at > {engine.now} THEN {State.SCHEDULED:d}
            ELSE {_FREE} END""",
    )
    return changed


def expire(engine: Engine) -> int:
    """Free the rows whose lock was not renewed for ``MAX_RUN_TIME``; return how many they were.

    Their run counts as lost. A row that a transaction holds is left alone: its task may live yet.
    """
    # The predecessor's workers lock rows, and unlock them for a retry, without a word on the state.
    changed = _change(engine, f"state = {State.RUNNING:d} AND locked_by IS NULL", "state = NULL")
    limit = engine.vendor.before(engine.connection, lease().total_seconds())
    expired = f"locked_by IS NOT NULL AND (locked_at IS NULL OR locked_at < {limit})"
    # What they have locked was the most urgent then.
    urgent = f"SELECT id, locked_by, locked_at FROM background_task WHERE state = {State.READY:d}"
    urgent += f" ORDER BY {order()} LIMIT {AT_ONCE}"
    running = f"state = {State.RUNNING:d} AND {expired}"
    keys = engine.fetch(_find(running, AT_ONCE))
    keys += engine.fetch(f"SELECT id FROM ({urgent}) AS urgent WHERE {expired}")
    if keys:
        with engine.transaction():
            mine = leases.lock(engine, [key for (key,) in keys], expired)
            changed += leases.lose(engine, mine, "Its lock was not renewed for MAX_RUN_TIME.")
    return changed


def _change(engine: Engine, where: str, changes: str) -> int:
    """Change rows in one transaction, but none that somebody else has locked."""
    keys = engine.fetch(_find(where, AT_ONCE))
    if not keys:
        return 0
    with engine.transaction():
        mine = leases.lock(engine, [key for (key,) in keys], where)
        if not mine and len(keys) == AT_ONCE:  # behind so many that are locked there may be others
            others = _find(where, AT_ONCE) + engine.vendor.lock + engine.vendor.skip
            mine = [key for (key,) in engine.fetch(others)]
        if not mine:
            return 0
        sql = f"UPDATE {engine.vendor.by_key} SET {changes} "
        return engine.run(f"{sql} WHERE id IN ({', '.join(map(str, mine))})")


def _at_hand(engine: Engine, where: str) -> list[int]:
    """Return the keys of rows that nobody else has locked in this moment."""
    keys = [key for (key,) in engine.fetch(_find(f"{where}{_but_for_odd()}", NAMED_AT_ONCE))]
    if keys:
        with engine.transaction():
            return leases.lock(engine, keys, where)
    return keys


def _but_for_odd() -> str:
    keys = oddities.passed_over()
    return f" AND id NOT IN ({', '.join(map(str, keys))})" if keys else ""


def _find(where: str, most: int) -> str:
    # In the order of the index, which the state is the first part of.
    return f"SELECT id FROM background_task WHERE {where} ORDER BY state, run_at LIMIT {most}"
