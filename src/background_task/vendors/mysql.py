"""MySQL and MariaDB."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from background_task.vendors.base import AlwaysNews, GivenRun, Vendor, Watch
from background_task.vendors.inotify import FileWatch

_COLUMNS = """
    pk BIGINT PATH '$[0]', began BIGINT PATH '$[1]', ended BIGINT PATH '$[2]',
    value LONGTEXT PATH '$[3]'
"""


# ER_SP_DOES_NOT_EXIST, of savepoints too.
_NO_SUCH_SAVEPOINT = 1305


class MySQL(Vendor):
    """MySQL 8.4, MariaDB 10.6 and newer."""

    lock = " FOR UPDATE"
    skip = " SKIP LOCKED"
    can_hold = True
    tells_last_key = True
    join = "STRAIGHT_JOIN"
    # Nothing tells of new rows of other hosts, so it is asked so often that nobody waits for long.
    between_questions = 0.034
    has_bell = True
    # Whatever is read on the way is locked. A small table would be read from one end to the other.
    by_key = "background_task FORCE INDEX (PRIMARY)"
    in_order = "background_task FORCE INDEX (background_task_ready)"
    in_order_of_queue = "background_task FORCE INDEX (background_task_ready_by_queue)"
    delete = "DELETE background_task FROM background_task FORCE INDEX (PRIMARY)"

    def locks_only_what_it_returns(
        self, connection: BaseDatabaseWrapper, *, is_ascending: bool
    ) -> bool:
        """Only where an index has the order; what is sorted has been locked before."""
        return bool(connection.features.supports_index_column_ordering) and not is_ascending

    def wants_a_bookmark(self, connection: BaseDatabaseWrapper) -> bool:
        """On MariaDB, which is known to read on from there without a sort."""
        return bool(connection.mysql_is_mariadb)  # type: ignore[attr-defined]

    def apart(self, settings: dict[str, Any]) -> dict[str, Any]:
        """At READ COMMITTED, whatever the project has chosen for itself.

        A stricter level locks the gaps between rows, and with them who stores new ones.
        """
        settings = super().apart(settings)
        options = {**settings["OPTIONS"], "isolation_level": "read committed"}
        return {**settings, "OPTIONS": options}

    def now(self, connection: BaseDatabaseWrapper) -> datetime:
        """The time of the server, at the beginning of the statement."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT utc_timestamp(6)")
            value: datetime = cursor.fetchone()[0].replace(tzinfo=UTC)
        return value if settings.USE_TZ else timezone.make_naive(value)

    def clock(self, connection: BaseDatabaseWrapper) -> str:
        """The same in the zone of the columns.

        That is the one which the entry of the database names, UTC by default; without ``USE_TZ`` it
        is the project's.
        """
        zone = connection.timezone or timezone.get_default_timezone()
        offset = datetime.now(zone).utcoffset() or timedelta()
        seconds = round(offset.total_seconds())
        return f"(utc_timestamp(6) + INTERVAL {seconds} SECOND)" if seconds else "utc_timestamp(6)"

    def given(
        self, connection: BaseDatabaseWrapper, runs: Iterable[GivenRun]
    ) -> tuple[str, list[str]]:
        """By ``JSON_TABLE``; times are microseconds."""
        rows = ",".join(
            f"[{pk},{int(began * 1e6)},{int(ended * 1e6)},{json.dumps(value)}]"
            for pk, began, ended, value in runs
        )
        return f"JSON_TABLE(%s, '$[*]' COLUMNS ({_COLUMNS})) AS given", [f"[{rows}]"]

    def moment(self, now: str, column: str) -> str:
        """So many microseconds ago."""
        return f"{now} - INTERVAL {column} MICROSECOND"

    def before(self, connection: BaseDatabaseWrapper, seconds: float) -> str:
        """By the clock of the server."""
        return f"{self.clock(connection)} - INTERVAL {round(seconds * 1_000_000)} MICROSECOND"

    def seconds_until(self, now: str, moment: str) -> str:
        """From microseconds."""
        return f"TIMESTAMPDIFF(MICROSECOND, {now}, {moment}) / 1000000"

    def quoted(self, sql: str) -> str:
        """With backticks, since double quotes mean text here."""
        return sql.replace('"', "`")

    def prepare_control(self, connection: BaseDatabaseWrapper) -> None:
        """Let the server give up a host that has gone, after ten minutes without a word.

        It has no sign of its own for that, and a task may keep a process too busy to say a word.
        """
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION wait_timeout = 600")

    def session_lock(self, connection: BaseDatabaseWrapper, key: int) -> _NamedLock | None:
        """By ``GET_LOCK``, whose names are those of the server; so the database is in the name."""
        lock = _NamedLock(connection, f"{key & 0xFFFF_FFFF_FFFF_FFFF:x}")
        return lock if lock.take() else None

    def has_session_locks(self, connection: BaseDatabaseWrapper) -> bool:
        """As long as nothing between us and the server shares its sessions out."""
        return True

    def watch(self, connection: BaseDatabaseWrapper, channel: str) -> Watch:
        """By a bell that processes of this host ring; those of others are not heard."""
        try:
            return _Bell(_path_of_bell(connection))
        except OSError:
            return AlwaysNews()

    def ring(self, connection: BaseDatabaseWrapper) -> None:
        """By touching a file, if there is one."""
        with suppress(OSError, NotImplementedError):
            os.utime(_path_of_bell(connection), follow_symlinks=False)

    def is_closed(self, connection: BaseDatabaseWrapper) -> bool:
        """The driver knows."""
        return not connection.connection.open

    def may_be_in_transaction(self, connection: BaseDatabaseWrapper) -> bool:
        """PyMySQL knows; with mysqlclient it may be where a statement was executed since."""
        status: int | None = getattr(connection.connection, "server_status", None)
        if status is not None:
            return bool(status & _IN_TRANSACTION)
        for wrapper in connection.execute_wrappers:
            if isinstance(wrapper, _Use):
                was_used, wrapper.was_made = wrapper.was_made, False
                return was_used
        connection.execute_wrappers.append(_Use())
        return True

    def is_in_transaction(self, connection: BaseDatabaseWrapper) -> bool:
        """PyMySQL knows, and so does MariaDB; MySQL cannot be asked, and Django knows of most."""
        if hasattr(connection.connection, "server_status"):
            return self.may_be_in_transaction(connection)
        if not connection.mysql_is_mariadb:  # type: ignore[attr-defined]
            return connection.in_atomic_block or not connection.autocommit
        cursor = connection.connection.cursor()
        cursor.execute("SELECT @@in_transaction")
        return bool(cursor.fetchone()[0])

    def lacks_savepoint(self, error: Error) -> bool:
        """By the number of the error."""
        return error.args[:1] == (_NO_SUCH_SAVEPOINT,)


def _path_of_bell(connection: BaseDatabaseWrapper) -> Path:
    """Return the path of a file that whoever uses this database on this host finds."""
    settings = connection.settings_dict
    where = "\0".join(str(settings[name]) for name in ("HOST", "PORT", "NAME"))
    name = blake2b(where.encode(), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"background_task-{name}"


class _Bell:
    is_complete = False
    is_of_rows = True
    was_told = False

    def __init__(self, path: Path) -> None:
        # Producers may be of another user. It is never read, and nothing is ever written to it.
        file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with suppress(OSError):
            os.fchmod(file, 0o666)
        os.close(file)
        self._file = FileWatch([path])

    def fileno(self) -> int:
        return self._file.fileno()

    def has_news(self) -> bool:
        self._file.drain()
        return True  # not everybody rings

    def may_have_changed(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()


class _NamedLock:
    # At most 64 characters, which the name of a database alone may have.
    _FULL_NAME = "CONCAT('background_task:', SHA1(CONCAT(DATABASE(), ':', %s)))"

    def __init__(self, connection: BaseDatabaseWrapper, name: str) -> None:
        self._connection = connection
        self._name = name

    def take(self) -> bool:
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT GET_LOCK({self._FULL_NAME}, 0)", [self._name])
            return bool(cursor.fetchone()[0])

    def release(self) -> None:
        with suppress(Exception), self._connection.cursor() as cursor:
            cursor.execute(f"SELECT RELEASE_LOCK({self._FULL_NAME})", [self._name])


# SERVER_STATUS_IN_TRANS of the protocol.
_IN_TRANSACTION = 1


class _Use:
    """Notes that a statement is executed."""

    was_made = False

    def __call__(self, execute: Callable[..., Any], *arguments: Any) -> Any:
        self.was_made = True
        return execute(*arguments)
