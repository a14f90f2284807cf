"""Store new rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.db import connections, transaction
from django.db.models import Field, signals

from background_task import vendors
from background_task.models import Task
from background_task.storage.batches import in_batches
from background_task.storage.notifications import tell_new
from background_task.storage.overrides import replaced


def insert(using: str, rows: Sequence[Task]) -> None:
    """Store ``rows``, all of them or none, in the caller's transaction if there is one.

    It is one statement of our own for many rows: to let the ORM do it takes three times as long.
    """
    if _is_watched():
        _insert_with_hooks(using, rows)
    else:
        for row in rows:
            row.prepare()
        _insert_all(using, rows)
    tell_new(using)


def _insert_all(using: str, rows: Sequence[Task]) -> None:
    if len(rows) == 1:
        _insert(using, rows)
        return
    with transaction.atomic(using=using):
        if vendors.of(connections[using]).can_copy(len(rows)):
            _copy(using, rows)
        else:
            for batch in in_batches(rows, lambda row: len(row.task_params)):
                _insert(using, batch)


def _is_watched() -> bool:
    """Tell whether somebody wants to see each row on its way."""
    return bool(
        signals.pre_save.has_listeners(Task)
        or signals.post_save.has_listeners(Task)
        or replaced(Task, "save", "prepare")
    )


def _insert_with_hooks(using: str, rows: Sequence[Task]) -> None:
    with transaction.atomic(using=using):
        for row in rows:
            row.save(using=using, force_insert=True)


def _insert(using: str, rows: Sequence[Task]) -> None:
    connection = connections[using]
    quote = connection.ops.quote_name
    fields = _filled(rows)
    columns = ", ".join(quote(str(field.column)) for field in fields)
    one = f"({', '.join(['%s'] * len(fields))})"
    statement = (
        f"INSERT INTO {quote(Task._meta.db_table)} ({columns}) "
        f"VALUES {', '.join([one] * len(rows))}"
    )
    keys = connection.features.can_return_rows_from_bulk_insert
    if keys:
        statement += f" RETURNING {quote('id')}"
    with connection.cursor() as cursor:
        cursor.execute(statement, [value for row in _values(using, fields, rows) for value in row])
        if keys:
            _is_stored(using, rows, [key for (key,) in cursor.fetchall()])
        elif len(rows) == 1:
            _is_stored(using, rows, [cursor.lastrowid])
        else:  # MySQL tells no keys
            _is_stored(using, rows, _read_keys(using, rows))


def _copy(using: str, rows: Sequence[Task]) -> None:
    connection = connections[using]
    vendor = vendors.of(connection)
    keys = vendor.next_keys(connection, Task._meta.db_table, len(rows))
    fields = _filled(rows)
    columns = ["id", *(str(field.column) for field in fields)]
    values = ((key, *row) for key, row in zip(keys, _values(using, fields, rows), strict=True))
    vendor.copy(connection, Task._meta.db_table, columns, values)
    _is_stored(using, rows, keys)


def _filled(rows: Sequence[Task]) -> list[Field[Any, Any]]:
    """Return the fields that have a value in any of the rows; the others are NULL."""
    first = rows[0].__dict__
    return [
        field
        for field in Task._meta.concrete_fields
        if not field.primary_key
        and (
            first.get(field.attname) is not None
            or any(getattr(row, field.attname) is not None for row in rows)
        )
    ]


def _values(
    using: str, fields: Sequence[Field[Any, Any]], rows: Sequence[Task]
) -> Iterator[list[Any]]:
    connection = connections[using]
    for row in rows:
        yield [field.get_db_prep_save(getattr(row, field.attname), connection) for field in fields]


def _is_stored(using: str, rows: Sequence[Task], keys: Sequence[int]) -> None:
    for row, key in zip(rows, keys, strict=True):
        row.pk = key
        row._state.adding = False
        row._state.db = using


def _read_keys(using: str, rows: Sequence[Task]) -> list[int]:
    ids = [row.result_id for row in rows]
    stored = Task._base_manager.using(using).filter(result_id__in=ids)
    keys = dict(stored.values_list("result_id", "pk"))
    return [keys[row.result_id] for row in rows]
