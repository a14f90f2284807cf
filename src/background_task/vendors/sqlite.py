"""SQLite."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from django.core.files import locks
from django.db import Error, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from background_task.vendors.base import GivenRun, Vendor, Watch
from background_task.vendors.inotify import FileWatch


class SQLite(Vendor):
    """SQLite 3.37 and newer.

    It lives on the caller's host and knows milliseconds only, so the caller's clock is read: a row
    stored a microsecond ago must be due. One transaction at a time writes, so nothing is ever held.
    """

    begin = "BEGIN IMMEDIATE"
    tells_last_key = True
    # Without the sign it may look up what is due by time, and sort a deep queue for each claim.
    unindexed_run_at = "+run_at"
    join = "CROSS JOIN"
    # Where nothing tells, a counter is asked for news, which costs some microseconds.
    between_questions = 0.006

    def given(
        self, connection: BaseDatabaseWrapper, runs: Iterable[GivenRun]
    ) -> tuple[str, list[str]]:
        """By ``json_each``; times are texts, since SQLite's functions know milliseconds only."""
        now = datetime.fromisoformat(str(connection.ops.adapt_datetimefield_value(timezone.now())))
        second = now.replace(microsecond=0)
        seconds = [f'"{second - timedelta(seconds=ago)}.' for ago in range(_SECONDS)]

        def moment(ago: float) -> str:
            whole, micro = divmod(now.microsecond - int(ago * 1e6), 1_000_000)
            if whole > -_SECONDS:
                return f'{seconds[-whole]}{micro:06d}"'
            return f'"{second + timedelta(seconds=whole)}.{micro:06d}"'

        rows = ",".join(
            [
                f"[{pk},{moment(began)},{moment(ended)},"
                f"{'null' if value is None else json.dumps(value)}]"
                for pk, began, ended, value in runs
            ]
        )
        return f"(SELECT {_COLUMNS} FROM json_each(%s)) AS given", [f"[{rows}]"]

    def moment(self, now: str, column: str) -> str:
        """As it is."""
        return column

    def seconds_until(self, now: str, moment: str) -> str:
        """From days."""
        return f"(julianday({moment}) - julianday({now})) * 86400"

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

    def lacks_savepoint(self, error: Error) -> bool:
        """By the words of the error, which has no code of its own."""
        return "no such savepoint" in str(error)

    def begin_write(self, connection: BaseDatabaseWrapper) -> None:
        """By a statement that writes no row.

        SQLite gives a transaction that began by reading no chance to wait: when another writer was
        faster, it fails at once with "database is locked", whatever the busy timeout.
        """
        with connection.cursor() as cursor:
            cursor.execute("UPDATE background_task SET id = id WHERE id = -1")

    def session_lock(self, connection: BaseDatabaseWrapper, key: int) -> _FileLock | None:
        """By locking a file beside the database: the kernel gives it up with the process."""
        return _FileLock.taken(Path(f"{connection.settings_dict['NAME']}-worker-{key & _MASK:x}"))

    def has_session_locks(self, connection: BaseDatabaseWrapper) -> bool:
        """Where a file can be made beside the database, which any writer needs."""
        folder = Path(connection.settings_dict["NAME"]).parent
        return not self.is_in_memory(connection) and os.access(folder, os.W_OK)

    def watch(self, connection: BaseDatabaseWrapper, channel: str) -> Watch:
        """By ``PRAGMA data_version``, which counts what other connections have committed."""
        return _DataVersion(connection)


# A run that is longer is rare among those that are recorded together, in seconds.
_SECONDS = 5
_COLUMNS = ", ".join(
    f"json_extract(value, '$[{number}]') AS {name}"
    for number, name in enumerate(("pk", "began", "ended", "value"))
)
_MASK = 0xFFFF_FFFF_FFFF_FFFF


class _FileLock:
    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        _open.add(self)

    @classmethod
    def taken(cls, path: Path) -> _FileLock | None:
        file = path.open("wb")
        if not locks.lock(file, locks.LOCK_EX | locks.LOCK_NB):
            file.close()
            return None
        return cls(path, file)

    def release(self) -> None:
        with suppress(OSError):
            self._path.unlink()
        self.close()

    def close(self) -> None:
        _open.discard(self)
        with suppress(OSError):
            self._file.close()


# What a forked child has to close: it would keep the lock when its parent is gone.
_open: set[_FileLock] = set()


def _close_in_child() -> None:
    for each in list(_open):
        each.close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_in_child)


class _DataVersion:
    """Counts what others have committed; on Linux a change of the files tells when to look."""

    is_of_rows = False
    was_told = False

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        connection.ensure_connection()
        self._driver = connection.connection
        self._in_djangos_errors = connection.wrap_database_errors
        self._paths = [Path(f"{connection.settings_dict['NAME']}{end}") for end in ("", "-wal")]
        self._seen = self._version()
        self._files: FileWatch | None = None
        self._watched: list[int] = []
        self._watch_files()

    @property
    def is_complete(self) -> bool:
        return self._files is not None

    def fileno(self) -> int | None:
        return None if self._files is None else self._files.fileno()

    def has_news(self) -> bool:
        if self._files is not None:
            self._files.drain()
            if self._watched != self._identities():  # another takes its place, unseen
                raise OperationalError("The files of the database were replaced.")
        return self.may_have_changed()

    def may_have_changed(self) -> bool:
        before, self._seen = self._seen, self._version()
        return before != self._seen

    def close(self) -> None:
        if self._files is not None:
            self._files.close()

    def _version(self) -> int:
        with self._in_djangos_errors:
            version: int = self._driver.execute("PRAGMA data_version").fetchone()[0]
        return version

    def _watch_files(self) -> None:
        with self._in_djangos_errors:
            (mode,) = self._driver.execute("PRAGMA journal_mode").fetchone()
        wanted = self._paths if mode == "wal" else self._paths[:1]
        with suppress(OSError):
            self._files = FileWatch(wanted)
            self._watched = self._identities()

    def _identities(self) -> list[int]:
        return [path.stat().st_ino for path in self._paths if path.exists()]
