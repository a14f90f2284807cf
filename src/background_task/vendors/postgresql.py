"""PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.db import NotSupportedError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from background_task.vendors.base import AlwaysNews, GivenRun, Vendor, Watch

# From so many rows on, COPY is worth the statement that fetches the keys beforehand.
_WORTH_A_COPY = 100

# Held, and shared, by everybody who listens, in both halves of the key. (The first: "bgt!".)
_LISTENING = (0x62677421, 1)
# To try to have the lock alone tells whether somebody listens, without looking at every lock there
# is. NOTIFY makes all commits of the database wait for each other, so it is not sent in vain.
_IS_HEARD = """
    SELECT CASE WHEN pg_try_advisory_lock(%s, %s) THEN NOT pg_advisory_unlock(%s, %s) ELSE TRUE END
"""


class PostgreSQL(Vendor):
    """PostgreSQL 15 and newer, with psycopg 3 or psycopg2."""

    lock = " FOR UPDATE"
    skip = " SKIP LOCKED"
    can_hold = True
    can_return_changed = True
    can_notify = True
    durably = "SET LOCAL synchronous_commit TO DEFAULT"

    def apart(self, settings: dict[str, Any]) -> dict[str, Any]:
        """At READ COMMITTED, whatever the project has chosen for itself, parameters by the client.

        A stricter level would fail where rows are passed over that others have changed. And a pool
        would be short of the connection for as long as the worker lives.
        """
        settings = super().apart(settings)
        options = {**settings["OPTIONS"], "server_side_binding": False, "pool": False}
        options.pop("isolation_level", None)
        return {**settings, "OPTIONS": options}

    def unpooled(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """Django has a pool for PostgreSQL alone."""
        options = settings["OPTIONS"]
        return {**settings, "OPTIONS": {**options, "pool": False}} if options.get("pool") else None

    def now(self, connection: BaseDatabaseWrapper) -> datetime:
        """The time of the server, at the beginning of the statement."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT statement_timestamp()")
            value: datetime = cursor.fetchone()[0]
        if settings.USE_TZ:
            return value.astimezone(UTC)
        return timezone.make_naive(value) if timezone.is_aware(value) else value

    def clock(self, connection: BaseDatabaseWrapper) -> str:
        """The same in the type of the columns, which have no time zone without ``USE_TZ``."""
        return "statement_timestamp()" if settings.USE_TZ else "statement_timestamp()::timestamp"

    def given(
        self, connection: BaseDatabaseWrapper, runs: Iterable[GivenRun]
    ) -> tuple[str, list[str]]:
        """By an array for each column, as a literal; times are microseconds."""
        keys, began, ended, values = zip(*runs, strict=True)
        arrays = [
            f"{{{','.join(map(str, keys))}}}",
            f"{{{','.join([str(int(each * 1e6)) for each in began])}}}",
            f"{{{','.join([str(int(each * 1e6)) for each in ended])}}}",
        ]
        if not any(values):
            columns = "unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS t(pk, began, ended)"
            return f"(SELECT *, NULL AS value FROM {columns}) AS given", arrays
        columns = "unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[])"
        texts = ",".join(map(_quoted, values))
        return f"{columns} AS given(pk, began, ended, value)", [*arrays, f"{{{texts}}}"]

    def moment(self, now: str, column: str) -> str:
        """So many microseconds ago."""
        return f"{now} - {column} * interval '1 microsecond'"

    def before(self, connection: BaseDatabaseWrapper, seconds: float) -> str:
        """By the clock of the server."""
        return f"{self.clock(connection)} - {float(seconds)!r} * interval '1 second'"

    def seconds_until(self, now: str, moment: str) -> str:
        """From an interval."""
        return f"EXTRACT(EPOCH FROM {moment} - {now})"

    def may_be_in_transaction(self, connection: BaseDatabaseWrapper) -> bool:
        """The driver knows, without asking the server."""
        return bool(connection.connection.info.transaction_status)  # 0 is idle

    def is_in_transaction(self, connection: BaseDatabaseWrapper) -> bool:
        """The same, but for a connection that is broken: 4 is that nobody knows."""
        return connection.connection.info.transaction_status not in (0, 4)

    def mark_transaction(self, connection: BaseDatabaseWrapper) -> str | None:
        """By a setting that ends with it: after a COMMIT the driver begins another by itself.

        In a savepoint nobody could choose the isolation level any more, nor after a query.
        """
        mark = uuid4().hex
        with connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL background_task.mark = '{mark}'")
        return mark

    def has_ended(self, connection: BaseDatabaseWrapper, mark: str | None) -> bool:
        """The driver knows whether it is open, idle (0), broken (3), or lost (4)."""
        status = int(connection.connection.info.transaction_status)
        if status in (0, 3, 4):
            return status != 4
        try:
            with connection.connection.cursor() as cursor:
                cursor.execute("SELECT current_setting('background_task.mark', true)")
                return bool(cursor.fetchone() != (mark,))
        except Exception:
            return False

    def prepare(self, connection: BaseDatabaseWrapper) -> None:
        """Let the planner read indexes in their order, whatever it knows of the table.

        Where it knows nothing yet it expects a few rows, and would sort thousands at each claim. To
        compile any of these statements would take longer than to execute it.
        """
        if self.has_session_locks(connection):  # else it would be set for others
            with connection.cursor() as cursor:
                cursor.execute(_PREPARE)

    def prepare_control(self, connection: BaseDatabaseWrapper) -> None:
        """Nothing that is written here has to survive the server; and a lost host is to be noticed.

        Its own keepalives tell the server within some ten seconds that a host has gone, even when
        the process there is too busy to answer anything else.
        """
        with connection.cursor() as cursor:
            cursor.execute(
                "SET synchronous_commit TO off; SET tcp_keepalives_idle TO 4; "
                "SET tcp_keepalives_interval TO 2; SET tcp_keepalives_count TO 3"
            )

    def session_lock(self, connection: BaseDatabaseWrapper, key: int) -> _AdvisoryLock | None:
        """An advisory lock of the session."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", [key])
            return _AdvisoryLock(connection, key) if cursor.fetchone()[0] else None

    def has_session_locks(self, connection: BaseDatabaseWrapper) -> bool:
        """Not behind a pooler, which hands a session on: it tells another number of the backend."""
        connection.ensure_connection()
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            told = cursor.fetchone()[0]
        return bool(told == connection.connection.info.backend_pid)

    def watch(self, connection: BaseDatabaseWrapper, channel: str) -> Watch:
        """By LISTEN, where that works."""
        return _Ear(connection) if self._listens(connection, channel) else AlwaysNews()

    def listen(self, connection: BaseDatabaseWrapper, channel: str) -> int | None:
        """By LISTEN, where that works; the driver would keep what nobody asks for."""
        if not self._listens(connection, channel):
            return None
        connection.connection.add_notify_handler(_forget)
        number: int = connection.connection.fileno()
        return number

    def _listens(self, connection: BaseDatabaseWrapper, channel: str) -> bool:
        """Begin to listen where that works; tells whether it does."""
        if not self.can_listen(connection) or not self.has_session_locks(connection):
            return False
        with connection.cursor() as cursor:
            cursor.execute(f"LISTEN {connection.ops.quote_name(channel)}")
        return True

    def stop_listening(self, connection: BaseDatabaseWrapper, channel: str) -> None:
        """By UNLISTEN."""
        with connection.cursor() as cursor:
            cursor.execute(f"UNLISTEN {connection.ops.quote_name(channel)}")
        connection.connection.remove_notify_handler(_forget)

    def can_listen(self, connection: BaseDatabaseWrapper) -> bool:
        """With psycopg 3.2 or newer.

        Not inside a transaction: that is most likely a test, whose database is dropped soon.
        """
        recent = getattr(connection, "psycopg_version", (3, 2)) >= (3, 2)
        return not connection.in_atomic_block and _is_psycopg3() and recent

    @contextmanager
    def listening(self, connection: BaseDatabaseWrapper, channel: str) -> Iterator[_Ear]:
        """Listen, and say so to whoever might notify."""
        try:
            if not self.has_session_locks(connection):
                raise NotSupportedError("LISTEN needs a session of its own, not a pooler's.")
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_lock_shared(%s, %s)", _LISTENING)
                cursor.execute(f"LISTEN {connection.ops.quote_name(channel)}")
            yield _Ear(connection)
        finally:
            connection.close()

    def is_heard(self, connection: BaseDatabaseWrapper) -> bool:
        """Whoever listens holds a lock."""
        with connection.cursor() as cursor:
            cursor.execute(_IS_HEARD, [*_LISTENING, *_LISTENING])
            return bool(cursor.fetchone()[0])

    def notify(self, connection: BaseDatabaseWrapper, channel: str, payload: str) -> None:
        """By NOTIFY."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", [channel, payload])

    def notify_soon(self, connection: BaseDatabaseWrapper, channel: str) -> None:
        """By NOTIFY, without waiting for the disk."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'off', true), pg_notify(%s, '')", [channel]
            )

    def can_copy(self, count: int) -> bool:
        """With psycopg 3, from a hundred rows on."""
        return count >= _WORTH_A_COPY and _is_psycopg3()

    def next_keys(self, connection: BaseDatabaseWrapper, table: str, count: int) -> list[int]:
        """From the sequence."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT nextval(pg_get_serial_sequence(%s, 'id')) FROM generate_series(1, %s)",
                [connection.ops.quote_name(table), count],
            )
            return [key for (key,) in cursor.fetchall()]

    def copy(
        self,
        connection: BaseDatabaseWrapper,
        table: str,
        columns: Sequence[str],
        lines: Iterable[str],
    ) -> None:
        """By COPY."""
        quote = connection.ops.quote_name
        names = ", ".join(quote(column) for column in columns)
        with (
            connection.cursor() as cursor,
            cursor.copy(f"COPY {quote(table)} ({names}) FROM STDIN") as copying,
        ):
            left = iter(lines)
            while some := list(islice(left, _AT_ONCE)):
                copying.write("\n".join([*some, ""]))

    def copied(self, values: Iterable[Any]) -> str:
        """In the text format. What is the same in many rows is made once; the driver cannot."""
        return "\t".join(map(_copied, values))


# Not every server that speaks PostgreSQL's language has each of them.
_PREPARE = """
    SELECT set_config(name, 'off', false) FROM pg_settings
    WHERE name IN ('enable_bitmapscan', 'jit')
"""
# So many rows are handed over together when they are copied.
_AT_ONCE = 1000
_SPECIAL = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def _copied(value: Any) -> str:
    if value is None:
        return r"\N"
    text = str(value)
    if "\\" in text or not text.isprintable():
        return text.translate(_SPECIAL)
    return text


def _quoted(value: str | None) -> str:
    """Return a text as an element of the literal of an array."""
    if value is None:
        return "NULL"
    text = value.replace("\\", r"\\").replace('"', r"\"")
    return f'"{text}"'


def _forget(notification: Any) -> None:
    pass


class _AdvisoryLock:
    def __init__(self, connection: BaseDatabaseWrapper, key: int) -> None:
        self._connection = connection
        self._key = key

    def release(self) -> None:
        with suppress(Exception), self._connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [self._key])


class _Ear:
    is_complete = True
    is_of_rows = True

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._driver = connection.connection
        self._translated = connection.wrap_database_errors
        self._heard: list[str] = []
        # Any statement may receive some, as it waits for its answer.
        self._driver.add_notify_handler(lambda notice: self._heard.append(notice.payload))

    @property
    def was_told(self) -> bool:
        return bool(self._heard)

    def fileno(self) -> int:
        number: int = self._driver.fileno()
        return number

    def has_news(self) -> bool:
        return bool(self.heard())

    def may_have_changed(self) -> bool:
        return True  # not everything is told

    def close(self) -> None:
        pass  # it is the connection

    def heard(self) -> list[str]:
        driver = self._driver.pgconn
        with self._translated:
            driver.consume_input()
            while (notice := driver.notifies()) is not None:
                self._heard.append(notice.extra.decode(errors="replace"))
        heard, self._heard = self._heard, []
        return heard


def _is_psycopg3() -> bool:
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    return bool(is_psycopg3)
