"""What differs between SQLite, PostgreSQL and MySQL/MariaDB; nothing else asks for the vendor.

:func:`of` gives the :class:`Vendor` of a connection. A difference is a named fact there, or a piece
of a statement; the statements themselves are where their verbs are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime

from django.db import ProgrammingError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from background_task.vendors.base import AlwaysNews, SessionLock, Vendor, Watch
from background_task.vendors.mysql import MySQL
from background_task.vendors.postgresql import PostgreSQL
from background_task.vendors.sqlite import SQLite

__all__ = [
    "AlwaysNews",
    "SessionLock",
    "Vendor",
    "Watch",
    "begin_write",
    "clock",
    "is_missing_table",
    "now",
    "of",
    "pretend",
]

_VENDORS = {"postgresql": PostgreSQL(), "mysql": MySQL(), "sqlite": SQLite()}
_OTHER = Vendor()

_pretended: ContextVar[datetime | None] = ContextVar("background_task_now", default=None)


def of(connection: BaseDatabaseWrapper) -> Vendor:
    """Return what is particular to the database of ``connection``."""
    return _VENDORS.get(connection.vendor, _OTHER)


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

    Aware under ``USE_TZ``, else naive in the project's time zone, like ``timezone.now()``.
    """
    moment = _pretended.get()
    return of(connections[using]).now(connections[using]) if moment is None else moment


def clock(connection: BaseDatabaseWrapper) -> str:
    """Return the same as an expression for a statement."""
    moment = _pretended.get()
    vendor = of(connection)
    return vendor.clock(connection) if moment is None else vendor.literal(connection, moment)


def is_missing_table(error: Exception) -> bool:
    """Tell whether a statement failed for want of a table or a column: ``migrate`` has not run.

    PostgreSQL answers with a ``ProgrammingError``, and so does MySQL for a table, but not for a
    column (1054). SQLite answers with the class of error that it also uses for a lock, and has no
    code for it.
    """
    missing = isinstance(error, ProgrammingError) or "no such " in str(error)
    return missing or error.args[:1] == (1054,)


def begin_write(using: str) -> None:
    """Take the write lock at the start of a transaction that reads before it writes."""
    of(connections[using]).begin_write(connections[using])
