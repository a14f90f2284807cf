"""SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import datetime, timedelta

from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from background_task.vendors.base import Moment, Vendor


class SQLite(Vendor):
    """SQLite 3.37 and newer.

    It lives on the caller's host and knows milliseconds only, so the caller's clock is read: a row
    stored a microsecond ago must be due. One transaction at a time writes, so nothing is ever held.
    """

    begin = "BEGIN IMMEDIATE"
    # Without the sign it may look up what is due by time, and sort a deep queue for each claim.
    unindexed_run_at = "+run_at"
    join = "CROSS JOIN"

    def ago(self, connection: BaseDatabaseWrapper) -> Callable[[float], Moment]:
        """As the text of a column: SQLite's own functions know milliseconds only."""
        now = datetime.fromisoformat(str(connection.ops.adapt_datetimefield_value(timezone.now())))
        second = now.replace(microsecond=0)

        def text(seconds: float) -> str:
            left = now.microsecond - int(seconds * 1_000_000)
            if left < 0:
                return f'"{second + timedelta(microseconds=left)}"'
            return f'"{second}.{left:06d}"'

        return text

    def moment(self, now: str, value: str) -> str:
        """As it is."""
        return value

    def seconds_until(self, now: str, moment: str) -> str:
        """From days."""
        return f"(julianday({moment}) - julianday({now})) * 86400"

    def values(self, *columns: tuple[str, str]) -> str:
        """By ``json_each``."""
        read = ", ".join(
            f"json_extract(value, '$[{number}]') AS {name}"
            for number, (name, _) in enumerate(columns)
        )
        return f"(SELECT {read} FROM json_each(%s)) AS given"

    def is_in_memory(self, connection: BaseDatabaseWrapper) -> bool:
        """As the databases of tests often are."""
        return bool(connection.is_in_memory_db())  # type: ignore[attr-defined]

    def is_closed(self, connection: BaseDatabaseWrapper) -> bool:
        """Only what fails tells."""
        try:
            connection.connection.total_changes  # noqa: B018 - it raises
        except sqlite3.ProgrammingError:
            return True
        return False

    def may_be_in_transaction(self, connection: BaseDatabaseWrapper) -> bool:
        """The driver knows."""
        return bool(connection.connection.in_transaction)

    def begin_write(self, connection: BaseDatabaseWrapper, table: str) -> None:
        """By a statement that writes no row.

        SQLite gives a transaction that began by reading no chance to wait: when another writer was
        faster, it fails at once with "database is locked", whatever the busy timeout.
        """
        with connection.cursor() as cursor:
            cursor.execute(f"UPDATE {connection.ops.quote_name(table)} SET id = id WHERE id = -1")
