"""The connection by which a worker takes and records tasks, and the statements' way to it.

A worker has one of its own, beside those of the tasks: what a task does to its connection, or
leaves open on it, is no concern of the queue.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from background_task import vendors

# How long a statement of another thread may keep a connection that is to be closed, in seconds.
LONGEST_STATEMENT = 1.0


class Engine:
    """Statements for the queue's database.

    Args:
        using: the alias of the database.
        connection: the connection to use; one that is nobody else's by default. It is made when it
            is first needed, and made anew after it was lost.
    """

    def __init__(self, using: str, connection: BaseDatabaseWrapper | None = None) -> None:
        self.using = using
        self.is_own = connection is None
        self.connection = apart(using) if connection is None else connection
        self.vendor = vendors.of(self.connection)
        # The connection of the driver that was prepared.
        self._prepared: Any = None
        # For those who share it: held for as long as one of them has a transaction open.
        self.lock = threading.RLock()
        # The connection of the driver that was asked to listen, and what came of it.
        self._asked_to_listen: Any = None
        self._ear: int | None = None

    @classmethod
    def on(cls, using: str) -> Engine:
        """Return one on the connection of this thread, and in its transaction."""
        return cls(using, connections[using])

    @property
    def now(self) -> str:
        """An expression for the time of the database's own clock."""
        return vendors.clock(self.connection)

    def _cursor(self) -> Any:
        cursor = self.connection.cursor()
        if self.is_own and self.connection.connection is not self._prepared:
            self.vendor.prepare(self.connection)
            self._prepared = self.connection.connection
        return cursor

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Execute a statement; return how many rows it has changed."""
        with self._cursor() as cursor:
            cursor.execute(self.vendor.quoted(sql), parameters or None)
            return int(cursor.rowcount)

    def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Execute a statement; return its rows."""
        with self._cursor() as cursor:
            cursor.execute(self.vendor.quoted(sql), parameters or None)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def listen(self, channel: str) -> int | None:
        """Listen from now on, as far as the database can tell of something; see the vendors."""
        driver = self.connection.connection
        if driver is None:  # it was lost, and the next statement makes another
            return None
        if driver is not self._asked_to_listen:
            self._ear = self.vendor.listen(self.connection, channel)
            self._asked_to_listen = driver
        return self._ear

    def stop_listening(self, channel: str) -> None:
        """Listen no more: what nobody reads would pile up."""
        driver, ear = self._asked_to_listen, self._ear
        self._asked_to_listen = self._ear = None  # though it fails: it need not be tried again
        if ear is not None and self.connection.connection is driver:
            self.vendor.stop_listening(self.connection, channel)

    def begin(self) -> None:
        """Begin a transaction that is going to write, on a connection of our own."""
        self.run(self.vendor.begin)

    def commit(self) -> None:
        """Keep what was written since :meth:`begin`."""
        self.run("COMMIT")

    def roll_back(self) -> None:
        """Forget what was written since :meth:`begin`, if need be by closing the connection."""
        try:
            self.run("ROLLBACK")
        except Exception:
            self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep what is written within this block, or, when it raises, none of it."""
        if not self.is_own:
            with transaction.atomic(using=self.using):
                if not self.connection.savepoint_ids:
                    vendors.begin_write(self.using)
                yield
            return
        self.begin()
        try:
            yield
            self.commit()
        except BaseException:
            self.roll_back()
            raise

    def close(self) -> None:
        """Close the connection, unless another thread goes on using it.

        To close one of SQLite beside a statement ends the process.
        """
        if self.lock.acquire(timeout=LONGEST_STATEMENT):
            try:
                with suppress(Exception):  # one that is broken already may complain
                    self.connection.close()
            finally:
                self.lock.release()


def apart(using: str) -> BaseDatabaseWrapper:
    """Return a connection that no code of a project knows of."""
    connection = connections.create_connection(using)
    connection.settings_dict = vendors.of(connection).apart(connection.settings_dict)
    # Whoever uses it sees to it that no two threads do so at a time.
    connection.inc_thread_sharing()
    return connection
