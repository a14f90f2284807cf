"""Store new rows: by statements of our own, since the ORM takes three times as long.

:func:`store` takes calls as they are, :func:`insert` rows as instances, where somebody needs those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Field, signals

from background_task import vendors
from background_task.models import Task
from background_task.records import NewTask
from background_task.states import State
from background_task.storage.batches import in_batches
from background_task.storage.notifications import tell_new
from background_task.storage.overrides import replaced

Values = Iterable[Sequence[Any]]

# What the rows of all new calls have in common.
_ALIKE = {"repeat": Task.NEVER, "attempts": 0, "last_error": ""}


def is_watched() -> bool:
    """Tell whether somebody wants to see each row on its way: then it has to be an instance."""
    return bool(
        signals.pre_save.has_listeners(Task)
        or signals.post_save.has_listeners(Task)
        or replaced(Task, "save", "prepare")
    )


def store(using: str, calls: Sequence[NewTask]) -> None:
    """Store calls, all of them or none, in the caller's transaction if there is one."""
    connection = connections[using]
    columns = [*NewTask._fields, *_ALIKE]
    alike = tuple(_ALIKE.values())
    moment, identity = _adapters(connection)
    rows = [
        (
            *each[:4],
            moment(each.run_at),
            each.queue,
            each.backend,
            identity(each.result_id),
            moment(each.enqueued_at),
            int(each.state),
            *alike,
        )
        for each in calls
    ]
    _write(connection, columns, rows, heavy=NewTask._fields.index("task_params"))
    tell_new(using)


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
    fields = [field for field in _FIELDS if _is_filled(field, rows)]
    columns = [str(field.column) for field in fields]
    values: Values = [[_prepared(field, row, connection) for field in fields] for row in rows]
    if vendor.can_copy(len(rows)):
        keys = vendor.next_keys(connection, Task._meta.db_table, len(rows))
        values = [(key, *row) for key, row in zip(keys, values, strict=True)]
        _write(connection, ["id", *columns], values)
    else:
        keys = _write(
            connection, columns, values, heavy=columns.index("task_params"), returning=True
        )
    for row, key in zip(rows, keys or _read_keys(connection.alias, rows), strict=True):
        row.pk = key
        row._state.adding = False
        row._state.db = connection.alias


def _write(
    connection: BaseDatabaseWrapper,
    columns: Sequence[str],
    rows: Values,
    *,
    heavy: int = 0,
    returning: bool = False,
) -> list[int]:
    """Write rows, whose values are fit for the driver, by as few statements as possible.

    Args:
        connection: where.
        columns: what the values are of.
        rows: the values.
        heavy: which of them may be long.
        returning: whether to return the keys, where the database tells them.
    """
    rows = list(rows)
    vendor = vendors.of(connection)
    if len(rows) > 1:
        with transaction.atomic(using=connection.alias):
            if vendor.can_copy(len(rows)):
                vendor.copy(connection, Task._meta.db_table, columns, rows)
                return []
            batches = in_batches(rows, lambda row: len(row[heavy]))
            keys = [_execute(connection, columns, some, returning=returning) for some in batches]
        return [key for some in keys for key in some]
    return _execute(connection, columns, rows, returning=returning)


def _execute(
    connection: BaseDatabaseWrapper,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    returning: bool,
) -> list[int]:
    one = f"({', '.join(['%s'] * len(columns))})"
    names = '", "'.join(columns)
    sql = f'INSERT INTO background_task ("{names}") VALUES {", ".join([one] * len(rows))}'
    can_return = returning and connection.features.can_return_rows_from_bulk_insert
    if can_return:
        sql += ' RETURNING "id"'
    with connection.cursor() as cursor:
        cursor.execute(vendors.of(connection).quoted(sql), [value for row in rows for value in row])
        if can_return:
            return [key for (key,) in cursor.fetchall()]
        return [cursor.lastrowid] if returning and len(rows) == 1 else []


_FIELDS = [field for field in Task._meta.concrete_fields if not field.primary_key]
_by_attribute = {field: attrgetter(field.attname) for field in _FIELDS}
# What every driver takes as it is. No subclasses: an enumeration would be stored by its name.
_PLAIN = frozenset({str, int, type(None)})


def _is_filled(field: Field[Any, Any], rows: Sequence[Task]) -> bool:
    """Tell whether any of the rows has a value; the others are NULL."""
    read = _by_attribute[field]
    return any(read(row) is not None for row in rows)


def _prepared(field: Field[Any, Any], row: Task, connection: BaseDatabaseWrapper) -> Any:
    value = _by_attribute[field](row)
    return value if type(value) in _PLAIN else field.get_db_prep_save(value, connection)


def _adapters(
    connection: BaseDatabaseWrapper,
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return what makes values for the driver of a moment, and of a public id."""
    identity = Task._meta.get_field("result_id")
    return (
        connection.ops.adapt_datetimefield_value,
        lambda value: identity.get_db_prep_value(value, connection, prepared=True),
    )


def _read_keys(using: str, rows: Sequence[Task]) -> list[int]:
    """Return the keys of rows where the database has told none, as MySQL does."""
    ids = [row.result_id for row in rows]
    stored = Task._base_manager.using(using).filter(result_id__in=ids)
    keys = dict(stored.values_list("result_id", "pk"))
    return [keys[row.result_id] for row in rows]


def as_row(call: NewTask) -> Task:
    """Return a call as an instance, which is not stored."""
    row = Task(**{**call._asdict(), "state": State(call.state)})
    row.identify(result_id=call.result_id)
    return row
