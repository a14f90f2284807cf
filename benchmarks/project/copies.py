"""Make the tables of this package hold many rows, by copying one with statements for sets.

``python -m project.copies READY FUTURE HISTORY``: at least so many rows of each kind. They are what
the package itself would have stored, with public ids in the order of time.
"""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

import django

django.setup()

import databases  # noqa: E402
from django.db import connection, transaction  # noqa: E402
from django.db.models import Model  # noqa: E402

from background_task.models import CompletedTask, Task  # noqa: E402
from background_task.states import State  # noqa: E402
from project.tasks import begin  # noqa: E402

DAY = 86_400

# The numbers from 0 to 999,999, in every database alike.
_DIGIT = " UNION ALL ".join(f"SELECT {digit} AS n" for digit in range(10))
_NUMBER = " + ".join(f"{10**place} * d{place}.n" for place in range(6))
_FROM = ", ".join(f"({_DIGIT}) d{place}" for place in range(6))
NUMBERS = f"(SELECT {_NUMBER} AS n FROM {_FROM}) numbers"


class Dialect(NamedTuple):
    """Expressions that differ: of ``n``, of milliseconds since 1970, of seconds from now.

    A public id has the form of a UUID of version 7: moment, version, chance.
    """

    identity: str
    moment: str


DIALECTS = {
    "postgresql": Dialect(
        "(lpad(to_hex({milliseconds} + n), 12, '0') || '7' || substr(md5(random()::text), 1, 3)"
        " || '8' || substr(md5(random()::text), 1, 15))::uuid",
        "now() + interval '1 second' * ({seconds} + n * 0.001)",
    ),
    "sqlite": Dialect(
        "printf('%012x', {milliseconds} + n) || '7' || substr(hex(randomblob(2)), 1, 3)"
        " || '8' || substr(lower(hex(randomblob(8))), 1, 15)",
        "strftime('%Y-%m-%d %H:%M:%f', 'now', ({seconds} + n * 0.001) || ' seconds')",
    ),
    "mysql": Dialect(
        "CONCAT(LPAD(LOWER(HEX({milliseconds} + n)), 12, '0'), '7', SUBSTR(MD5(RAND()), 1, 3),"
        " '8', SUBSTR(MD5(RAND()), 1, 15))",
        "UTC_TIMESTAMP(6) + INTERVAL ({seconds} * 1000000 + n * 1000) MICROSECOND",
    ),
}


def fill(ready: int, future: int, history: int) -> None:
    """Copy as many rows as are missing."""
    pattern = _pattern()
    done = {
        "state": f"{State.SUCCESSFUL:d}",
        "attempts": "1",
        "locked_by": "'1'",
        "worker_id": "'host:1:12345678'",
    }
    times = {"locked_at", "started_at", "enqueued_at", "run_at"}
    _copy(CompletedTask, history, -10 * DAY, pattern, done, times)
    waits = {"state": f"{State.SCHEDULED:d}"}
    _copy(Task, future, DAY, pattern, waits, {"run_at"})
    some = Task.objects.filter(state=State.READY).exclude(pk=pattern).count()
    _copy(Task, ready - some, -DAY + some * 0.001, pattern, {}, {"run_at", "enqueued_at"})
    Task.objects.filter(pk=pattern).delete()


def _pattern() -> int:
    """Store the row that is copied, and return its key."""
    found = begin.enqueue(1)
    return int(Task.objects.get(result_id=found.id).pk)


def _copy(
    model: type[Model],
    count: int,
    seconds: float,
    pattern: int,
    values: dict[str, str],
    times: set[str],
) -> None:
    """Copy a row.

    Args:
        model: whose table takes the copies.
        count: how many.
        seconds: when the first of them is due or has ended, from now.
        pattern: the key of the row.
        values: expressions for columns that differ from it.
        times: the columns that carry the moment.
    """
    if count < 1:
        return
    dialect = DIALECTS[connection.vendor]
    milliseconds = int((time.time() + seconds) * 1000)
    values = {
        **values,
        "result_id": dialect.identity.format(milliseconds=milliseconds),
        **dict.fromkeys(times, dialect.moment.format(seconds=seconds)),
    }
    quote = connection.ops.quote_name
    live = {field.column for field in Task._meta.concrete_fields}
    columns = [f.column for f in model._meta.concrete_fields if f.column in live - {"id"}]
    listed = ", ".join(values.get(column, f"p.{quote(column)}") for column in columns)
    sql = f"""
        INSERT INTO {quote(model._meta.db_table)} ({", ".join(map(quote, columns))})
        SELECT {listed} FROM {NUMBERS}, background_task p
        WHERE p.id = {pattern} AND n < {count} ORDER BY n
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql)


def settle() -> None:
    """Let the planner know what is there now."""
    databases.settle()
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("ANALYZE")
        elif connection.vendor == "mysql":
            cursor.execute("ANALYZE TABLE background_task, background_task_completedtask")


if __name__ == "__main__":
    fill(*map(int, sys.argv[1:]))
    settle()
