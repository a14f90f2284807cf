"""What differs between SQLite, PostgreSQL and MySQL/MariaDB; nothing else asks for the vendor."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from django.conf import settings
from django.db import ProgrammingError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

_CLOCKS = {
    "postgresql": "SELECT statement_timestamp()",
    "mysql": "SELECT utc_timestamp(6)",
}


_pretended: ContextVar[datetime | None] = ContextVar("background_task_now", default=None)


@contextmanager
def pretend(moment: datetime | None) -> Iterator[None]:
    """Let :func:`now` return ``moment`` within this block; for tests. None leaves it alone."""
    token = _pretended.set(moment)
    try:
        yield
    finally:
        _pretended.reset(token)


def now(using: str) -> datetime:
    """Return the time of the database's own clock, which decides what is due and what is expired.

    Aware under ``USE_TZ``, else naive in the project's time zone, like ``timezone.now()``. SQLite
    lives on the caller's host and knows milliseconds only, so there the caller's clock is read: a
    row stored a microsecond ago must be due.
    """
    if (moment := _pretended.get()) is not None:
        return moment
    connection = connections[using]
    query = _CLOCKS.get(connection.vendor)
    if query is None:
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute(query)
        value: datetime = cursor.fetchone()[0]
    if connection.vendor == "mysql":
        value = value.replace(tzinfo=UTC)
    if settings.USE_TZ:
        return value.astimezone(UTC)
    return timezone.make_naive(value) if timezone.is_aware(value) else value


def is_missing_table(error: Exception) -> bool:
    """Tell whether a statement failed for want of a table or a column: ``migrate`` has not run.

    PostgreSQL answers with a ``ProgrammingError``, and so does MySQL for a table, but not for a
    column (1054). SQLite answers with the class of error that it also uses for a lock, and has no
    code for it.
    """
    missing = isinstance(error, ProgrammingError) or "no such " in str(error)
    return missing or error.args[:1] == (1054,)


def is_closed(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether somebody closed the driver's connection without Django's knowledge.

    PostgreSQL's driver need not be asked: it answers like a lost connection, which is made anew.
    """
    driver = connection.connection
    if connection.vendor == "sqlite":
        try:
            driver.total_changes  # noqa: B018 - it raises
        except sqlite3.ProgrammingError:
            return True
    return connection.vendor == "mysql" and not driver.open


def may_be_in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether a transaction may be open that Django does not know of: somebody wrote BEGIN.

    The driver knows, without asking the server; MySQL's does not tell, so there it may always be.
    """
    if connection.vendor == "sqlite":
        return bool(connection.connection.in_transaction)
    if connection.vendor == "postgresql":
        return bool(connection.connection.info.transaction_status)  # 0 is idle
    return True


def begin_write(using: str, table: str) -> None:
    """Take the write lock at the start of a transaction that reads before it writes.

    SQLite gives a transaction that began by reading no chance to wait: when another writer was
    faster, it fails at once with "database is locked", whatever the busy timeout. A statement that
    writes no row takes the lock first. The other databases lock rows and need nothing.
    """
    connection = connections[using]
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute(f"UPDATE {connection.ops.quote_name(table)} SET id = id WHERE id = -1")  # noqa: S608
