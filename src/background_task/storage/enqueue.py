"""Store new rows: by statements of our own, since the ORM takes three times as long.

:func:`store` takes calls as they are, :func:`insert` rows as instances, where somebody needs those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from typing import Any
from uuid import UUID

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import signals

from background_task import vendors
from background_task.models import Task
from background_task.records import Kind, NewTask
from background_task.states import State
from background_task.storage.batches import in_batches
from background_task.storage.notifications import tell_new
from background_task.storage.overrides import replaced

# The columns of a call: what calls have in common, what is its own, and what is the same for all.
_OF_CALLS = (*Kind._fields, *NewTask._fields[1:])
_OF_ALL = {"task_hash": "", "repeat": Task.NEVER, "attempts": 0, "last_error": ""}
_LITERALS = {"task_hash": "''", "repeat": "0", "attempts": "0", "last_error": "''"}


def is_watched() -> bool:
    """Tell whether somebody wants to see each row on its way: then it has to be an instance."""
    return bool(
        signals.pre_save.has_listeners(Task)
        or signals.post_save.has_listeners(Task)
        or replaced(Task, "save", "prepare")
    )


def store(using: str, calls: Iterable[NewTask], count: int) -> None:
    """Store calls, all of them or none, in the caller's transaction if there is one.

    Args:
        using: the alias of the database.
        calls: what to store; many are taken one after the other, while the first are on their way.
        count: how many they are.
    """
    connection = connections[using]
    if vendors.of(connection).can_copy(count):
        _copy(connection, [*_OF_ALL, *_OF_CALLS], _lines(connection, calls))
    else:
        _write(connection, _OF_CALLS, list(_values(connection, calls)))
    tell_new(using)


def _lines(connection: BaseDatabaseWrapper, calls: Iterable[NewTask]) -> Iterator[str]:
    copied = vendors.of(connection).copied
    for kind, some in groupby(calls, attrgetter("kind")):
        head = copied([*_OF_ALL.values(), *_shared(connection, kind)])
        for _, *own in some:
            yield f"{head}\t{copied(own)}"


def _values(connection: BaseDatabaseWrapper, calls: Iterable[NewTask]) -> Iterator[tuple[Any, ...]]:
    is_native = connection.features.has_native_uuid_field
    for kind, some in groupby(calls, attrgetter("kind")):
        shared = _shared(connection, kind)
        for _, params, public_id in some:
            stored_id = public_id if is_native else public_id.replace("-", "")
            yield (*shared, params, stored_id)


def _shared(connection: BaseDatabaseWrapper, kind: Kind) -> list[Any]:
    """Return the values that are fit for the driver."""
    name, priority, run_at, queue, backend, enqueued_at, state = kind
    moment = connection.ops.adapt_datetimefield_value
    enqueued = moment(enqueued_at)
    due = enqueued if run_at is enqueued_at else moment(run_at)
    return [name, priority, due, queue, backend, enqueued, int(state)]


def insert(using: str, rows: Sequence[Task]) -> None:
    """Store ``rows``, all of them or none, in the caller's transaction if there is one."""
    if is_watched():
        with transaction.atomic(using=using):
            for row in rows:
                row.save(using=using, force_insert=True)
    else:
        for row in rows:
            row.prepare()
        _insert(connections[using], rows)
    tell_new(using)


def _insert(connection: BaseDatabaseWrapper, rows: Sequence[Task]) -> None:
    vendor = vendors.of(connection)
    columns, values = _filled(connection, rows)
    if vendor.can_copy(len(rows)):
        keys = vendor.next_keys(connection, Task._meta.db_table, len(rows))
        lines = (vendor.copied([k, *v]) for k, v in zip(keys, values, strict=True))
        _copy(connection, ["id", *columns], lines)
    else:
        keys = _write(connection, columns, values, is_asked_for_keys=True)
    for row, key in zip(rows, keys or _read_keys(connection.alias, rows), strict=True):
        row.pk = key
        row._state.adding = False
        row._state.db = connection.alias
        row.remember()


_FIELDS = {field.attname: field for field in Task._meta.concrete_fields if not field.primary_key}


def _filled(
    connection: BaseDatabaseWrapper, rows: Sequence[Task]
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return the columns that any row has a value for, and the values; the others are NULL."""
    dicts = [row.__dict__ for row in rows]
    filled = [name for name in _FIELDS if dicts[0][name] is not None]
    if len(dicts) > 1:
        filled = [name for name in _FIELDS if any(each[name] is not None for each in dicts)]
    values = [tuple([_value(connection, name, each[name]) for name in filled]) for each in dicts]
    return tuple(filled), values


# What every driver takes as it is. No subclasses: an enumeration would be stored by its name.
_PLAIN = frozenset({str, int, type(None)})


def _value(connection: BaseDatabaseWrapper, name: str, value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if type(value) is State:
        return int(value)
    if type(value) is datetime:
        return connection.ops.adapt_datetimefield_value(value)
    return _FIELDS[name].get_db_prep_save(value, connection)


def _copy(connection: BaseDatabaseWrapper, columns: Sequence[str], lines: Iterable[str]) -> None:
    with transaction.atomic(using=connection.alias):
        vendors.of(connection).copy(connection, Task._meta.db_table, columns, lines)


def _write(
    connection: BaseDatabaseWrapper,
    columns: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
    *,
    is_asked_for_keys: bool = False,
) -> list[int]:
    """Write rows by as few statements as possible; return their keys, where the database tells.

    Args:
        connection: where.
        columns: what the values are of.
        rows: their values, fit for the driver.
        is_asked_for_keys: whether the keys are wanted.
    """
    if len(rows) == 1:
        return _execute(connection, columns, rows, is_asked_for_keys)
    arguments = columns.index("task_params")
    with transaction.atomic(using=connection.alias):
        batches = in_batches(rows, lambda row: len(row[arguments]))
        keys = [_execute(connection, columns, some, is_asked_for_keys) for some in batches]
    return [key for some in keys for key in some]


def _execute(
    connection: BaseDatabaseWrapper,
    columns: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
    is_asked_for_keys: bool,
) -> list[int]:
    vendor = vendors.of(connection)
    is_told = is_asked_for_keys and vendor.tells_last_key and len(rows) == 1
    returns = (
        is_asked_for_keys and not is_told and connection.features.can_return_rows_from_bulk_insert
    )
    sql = _statement(vendor, columns, len(rows), returns)
    with connection.cursor() as cursor:
        cursor.execute(sql, [value for row in rows for value in row])
        if returns:
            return [key for (key,) in cursor.fetchall()]
        return [cursor.lastrowid] if is_told else []


@lru_cache(maxsize=64)
def _statement(
    vendor: vendors.Vendor, columns: tuple[str, ...], count: int, returning: bool
) -> str:
    literals = _LITERALS if columns == _OF_CALLS else {}
    one = f"({', '.join([*literals.values(), *['%s'] * len(columns)])})"
    names = '", "'.join([*literals, *columns])
    sql = f'INSERT INTO background_task ("{names}") VALUES {", ".join([one] * count)}'
    return vendor.quoted(f'{sql} RETURNING "id"' if returning else sql)


def _read_keys(using: str, rows: Sequence[Task]) -> list[int]:
    """Return the keys of rows where the database has told none, as MySQL does."""
    ids = [row.result_id for row in rows]
    stored = Task._base_manager.using(using).filter(result_id__in=ids)
    keys = dict(stored.values_list("result_id", "pk"))
    return [keys[row.result_id] for row in rows]


def as_row(call: NewTask) -> Task:
    """Return a call as an instance, which is not stored."""
    kind, params, public_id = call
    row = Task(**kind._asdict(), task_params=params)
    row.identify(result_id=UUID(public_id))
    return row
