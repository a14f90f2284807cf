"""Record many successes at once, where that comes to the same as recording them one by one.

Three facts may stand against it. A chain goes on with the row: then its end has to store the next
one. Somebody listens to each row, or has replaced a step: see :func:`is_watched`. Or the row is not
ours any more. :func:`storage.finish.succeed` knows what to do then.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from enum import Enum
from uuid import UUID

from django.db import IntegrityError
from django.db.models import ForeignObjectRel, signals

from background_task.models import CompletedTask, Task
from background_task.records import Ended, Mark
from background_task.signals import task_successful
from background_task.states import State
from background_task.storage import leases
from background_task.storage.batches import in_batches
from background_task.storage.engine import Engine
from background_task.storage.notifications import tell_finished
from background_task.storage.overrides import replaced
from background_task.storage.transient import outlast


class Owned(Enum):
    """How it is known that rows are ours: what has to be true of them, beside the epoch."""

    HELD = "locked_by IS NULL"  # this transaction has locked them
    MARKED = "locked_by = %s AND worker_id = %s"  # the claim has written so


# What the history takes over as it is at the end, an operator's edits included.
KEPT = (
    "task_name",
    "task_params",
    "task_hash",
    "verbose_name",
    "priority",
    '"repeat"',
    "repeat_until",
    "queue",
    "failed_at",
    "last_error",
    "creator_content_type_id",
    "creator_object_id",
    "creator_key",
    "result_id",
    "enqueued_at",
    "backend",
    "losses",
    "options",
)
# Of a row after whose end there is nothing to do.
_LAST = "\"repeat\" <= 0 AND COALESCE(unique_key, '') = '' AND failed_at IS NULL"
# How often rows are looked at that others change meanwhile.
_TRIES = 3


class NotAllError(Exception):
    """One of the rows is not ours, or not at its end. The transaction is good for nothing else."""


def acknowledge(engine: Engine, ended: Sequence[Ended], by: Mark) -> set[int]:
    """Record successes of marked rows in one transaction, against transient errors.

    Args:
        engine: where; not inside a transaction.
        ended: the runs.
        by: who took the rows.

    Returns:
        the keys of the rows that are recorded; what is missing needs
        :func:`storage.finish.succeed`.
    """
    left = list(ended)

    def verb() -> None:
        with engine.transaction():
            move(engine, left, by, Owned.MARKED)

    recorded: set[int] = set()
    for _ in range(_TRIES):
        try:
            outlast(engine.connection, "record successes", verb)
        except NotAllError:
            keys = ", ".join(str(each.claim.pk) for each in ended)
            # What is in the history of a row that is still here is another run with its id.
            recorded = _recorded(engine, ended, by) - _found(engine, f"id IN ({keys})")
            ours = _found(engine, *_ours(left, by, Owned.MARKED))
            left = [each for each in left if each.claim.pk in ours]
        except IntegrityError:  # a copy with the id of another row, or a key that protects a row
            break
        else:
            return recorded.union(each.claim.pk for each in left)
    return recorded


def _found(engine: Engine, which: str, parameters: Sequence[str] = ()) -> set[int]:
    rows = engine.fetch(f"SELECT id FROM background_task WHERE {which}", parameters)
    return {key for (key,) in rows}


def _recorded(engine: Engine, ended: Sequence[Ended], by: Mark) -> set[int]:
    """Return the keys of those that are in the history already: the answer was lost."""
    found: set[str] = set()
    by_id = {UUID(str(each.claim.result_id)).hex: each.claim.pk for each in ended}
    prepare = CompletedTask._meta.get_field("result_id").get_db_prep_value
    for some in in_batches(by_id):
        sql = f"""
            SELECT result_id FROM background_task_completedtask
            WHERE result_id IN ({", ".join(["%s"] * len(some))}) AND worker_id = %s
        """
        ids = [prepare(UUID(each), engine.connection) for each in some]
        rows = engine.fetch(sql, [*ids, by.worker_id])
        found.update(UUID(str(result_id)).hex for (result_id,) in rows)
    return {pk for result_id, pk in by_id.items() if result_id in found}


def acknowledge_freed(engine: Engine, ended: Sequence[Ended], by: Mark) -> set[int]:
    """Record successes of rows that were held until their transaction was lost, where it still can.

    What another worker has taken since runs a second time. For the rest see :func:`acknowledge`.
    """
    found: set[int] = set()

    def verb() -> None:
        with engine.transaction():
            free, _ = _ours(ended, by, Owned.HELD)
            found.clear()
            found.update(leases.lock(engine, [each.claim.pk for each in ended], free))
            move(engine, [each for each in ended if each.claim.pk in found], by, Owned.HELD)

    try:
        outlast(engine.connection, "record successes", verb)
    except IntegrityError:
        return set()
    return found


def move(engine: Engine, ended: Sequence[Ended], by: Mark, owned: Owned) -> None:
    """Inside a transaction: move rows to the history.

    Args:
        engine: where.
        ended: the runs.
        by: who took the rows.
        owned: how it is known that they are ours.

    Raises:
        NotAllError: not all of them fulfil the conditions.
    """
    epochs: dict[int, list[Ended]] = defaultdict(list)
    for each in ended:
        epochs[each.claim.epoch or 0].append(each)
    for epoch, runs in epochs.items():
        for some in in_batches(runs, lambda each: len(each.value or "")):
            _move(engine, some, _still(epoch, owned), by, owned)
    tell_finished(engine.connection, [each.claim.result_id for each in ended])


def _move(engine: Engine, ended: Sequence[Ended], still: str, by: Mark, owned: Owned) -> None:
    vendor = engine.vendor
    keys = ", ".join([str(each.claim.pk) for each in ended])
    now = time.perf_counter()
    given, values = vendor.given(
        engine.connection,
        [(each.claim.pk, now - each.began, now - each.ended, each.value) for each in ended],
    )
    new = _new(engine)
    copy = f"""
        INSERT INTO background_task_completedtask ({", ".join([*KEPT, *new])})
        SELECT {", ".join([*KEPT, *new.values()])}
    """
    mine = by if owned is Owned.MARKED else ()
    if vendor.can_return_changed:
        # As an array whose length the planner does not know it never means all of a small table.
        among = f"ANY(ARRAY(SELECT unnest('{{{keys}}}'::bigint[])))"
        gone = f"""
            DELETE FROM background_task WHERE id = {among} AND {still}
            RETURNING {", ".join([*KEPT, "id", "attempts", "started_at"])}
        """
        sql = f"WITH gone AS ({gone}) {copy} FROM gone JOIN {given} ON gone.id = given.pk"
        if engine.run(sql, [*mine, *by, *values]) != len(ended):
            raise NotAllError
        return
    # The keys are in the table alone: said twice, they would lead planners astray.
    source = f"{given} {vendor.join} background_task ON id = given.pk"
    if engine.run(f"{copy} FROM {source} WHERE {still}", [*by, *values, *mine]) != len(ended):
        raise NotAllError
    if engine.run(f"{vendor.delete} WHERE id IN ({keys}) AND {still}", mine) != len(ended):
        raise NotAllError


def _new(engine: Engine) -> dict[str, str]:
    """Return the columns of the history that are new, and expressions for them."""
    began = engine.vendor.moment(engine.now, "given.began")
    return {
        "attempts": "attempts + 1",
        "state": f"{State.SUCCESSFUL:d}",
        "run_at": engine.vendor.moment(engine.now, "given.ended"),
        "locked_at": began,
        "started_at": f"COALESCE(started_at, {began})",
        "locked_by": "%s",
        "worker_id": "%s",
        "return_value": "given.value",
    }


def _ours(ended: Sequence[Ended], by: Mark, owned: Owned) -> tuple[str, list[str]]:
    """Return the condition that rows are ours and at their end, and its parameters."""
    epochs: dict[int, list[str]] = defaultdict(list)
    for each in ended:
        epochs[each.claim.epoch or 0].append(str(each.claim.pk))
    runs = [
        f"(id IN ({', '.join(keys)}) AND {_still(epoch, owned)})" for epoch, keys in epochs.items()
    ]
    # Said by itself, so that an index is used.
    keys = ", ".join(str(each.claim.pk) for each in ended)
    among = f"id IN ({keys}) AND ({' OR '.join(runs)})"
    return among, [*by] * len(runs) if owned is Owned.MARKED else []


def _still(epoch: int, owned: Owned) -> str:
    """Return the same of one epoch, whichever rows they are."""
    ours = [f"COALESCE(epoch, 0) = {epoch}", owned.value, _LAST]
    return " AND ".join([*ours, *_unreferenced()])


def _unreferenced() -> list[str]:
    """Return that no row of a project refers to a task: what is to become of it, Django knows."""
    relations = Task._meta.get_fields(include_hidden=True)
    references = {
        (each.related_model._meta.db_table, each.field.column)
        for each in relations
        if isinstance(each, ForeignObjectRel) and (each.one_to_many or each.one_to_one)
    }
    return [
        f'NOT EXISTS (SELECT 1 FROM "{table}" WHERE "{table}"."{column}" = background_task.id)'
        for table, column in sorted(references)
    ]


# What records a success one by one.
_STEPS = (
    "held",
    "hold",
    "refresh_from_db",
    "increment_attempts",
    "save",
    "create_completed_task",
    "create_repetition",
    "delete",
)


def is_watched() -> bool:
    """Tell whether a receiver, or a method that a project has replaced, wants each row."""
    return (
        task_successful.has_listeners(Task)
        or bool(replaced(Task, *_STEPS) or replaced(CompletedTask, "save"))
        or any(
            each.has_listeners(model)
            for each in (
                signals.pre_save,
                signals.post_save,
                signals.pre_delete,
                signals.post_delete,
            )
            for model in (Task, CompletedTask)
        )
    )
