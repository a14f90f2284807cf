"""What differs between SQLite, PostgreSQL and MySQL/MariaDB; nothing else asks for the vendor."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

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


def is_in_memory(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether the database is one of SQLite's in memory, which other threads cannot share."""
    return connection.vendor == "sqlite" and bool(connection.is_in_memory_db())  # type: ignore[attr-defined]


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


# Held, and shared, by everybody who listens, in both halves of the key. (The first: "bgt!".)
_LISTENING = (0x62677421, 1)
# To try to have the lock alone tells whether somebody listens, without looking at every lock there
# is. NOTIFY makes all commits of the database wait for each other, so it is not sent in vain.
_NOTIFY = """
    SELECT CASE WHEN pg_try_advisory_lock(%s, %s) THEN pg_advisory_unlock(%s, %s)
           ELSE pg_notify(%s, %s) IS NULL END
"""


def notify(using: str, channel: str, payload: str) -> None:
    """On PostgreSQL: send a notification at the commit, if anybody listens."""
    with connections[using].cursor() as cursor:
        cursor.execute(_NOTIFY, [*_LISTENING, *_LISTENING, channel, payload])


def can_listen(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether notifications can be heard: on PostgreSQL with psycopg 3.2 or newer.

    Not inside a transaction: that is most likely a test, whose database is dropped soon.
    """
    if connection.vendor != "postgresql" or connection.in_atomic_block:
        return False
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    return bool(is_psycopg3) and getattr(connection, "psycopg_version", (3, 2)) >= (3, 2)


class Ear:
    """A connection of PostgreSQL that listens; ``select`` tells when there is something to hear."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def fileno(self) -> int:
        number: int = self._driver.fileno()
        return number

    def heard(self) -> list[str]:
        """Return the payloads that have come since the last time."""
        return [notification.payload for notification in self._driver.notifies(timeout=0)]


@contextmanager
def listening(using: str, channel: str) -> Iterator[Ear]:
    """On PostgreSQL: listen to ``channel``, over a connection that is closed with this block."""
    connection = connections.create_connection(using)
    # A pool would be short of this connection for as long as somebody waits.
    options = {**connection.settings_dict["OPTIONS"], "pool": False}
    connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock_shared(%s, %s)", _LISTENING)
            cursor.execute(f"LISTEN {connection.ops.quote_name(channel)}")
        yield Ear(connection.connection)
    finally:
        connection.close()


# From so many rows on, COPY is worth the statement that fetches the keys beforehand.
_WORTH_A_COPY = 100


def can_copy(using: str, count: int) -> bool:
    """Tell whether so many rows are best stored by COPY: on PostgreSQL with psycopg 3."""
    if connections[using].vendor != "postgresql" or count < _WORTH_A_COPY:
        return False
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    return bool(is_psycopg3)


def next_keys(using: str, table: str, count: int) -> list[int]:
    """On PostgreSQL: take so many values of the key of ``table`` from its sequence."""
    with connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT nextval(pg_get_serial_sequence(%s, 'id')) FROM generate_series(1, %s)",
            [connections[using].ops.quote_name(table), count],
        )
        return [key for (key,) in cursor.fetchall()]


def copy(using: str, table: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """On PostgreSQL: store ``rows`` by COPY."""
    quote = connections[using].ops.quote_name
    names = ", ".join(quote(column) for column in columns)
    with (
        connections[using].cursor() as cursor,
        cursor.copy(f"COPY {quote(table)} ({names}) FROM STDIN") as copying,
    ):
        for row in rows:
            copying.write_row(row)
