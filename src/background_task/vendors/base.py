"""The contract: what every database is asked, with the answers of one that has nothing to add."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, ClassVar, NoReturn, Protocol

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

# On its way into a statement: the key of a row, how many seconds ago its run began and ended, and
# what it has returned, as JSON text.
GivenRun = tuple[int, float, float, str | None]


class Ear(Protocol):
    """A connection that listens; ``select`` tells when there is something to hear."""

    def fileno(self) -> int:
        """The file to wait for."""
        ...

    def heard(self) -> list[str]:
        """Return the payloads that have come since the last time."""
        ...


class SessionLock(Protocol):
    """A lock that ends with the process that has it, however the process ends."""

    def release(self) -> None:
        """Give it up; what is broken already is given up."""
        ...


class Watch(Protocol):
    """Waits for a change of the database; one is that of a connection which does nothing else."""

    @property
    def is_complete(self) -> bool:
        """Whether it is told of every change; else it has to be asked, too."""
        ...

    @property
    def is_of_rows(self) -> bool:
        """Whether news is of new rows, and not of just any change."""
        ...

    @property
    def was_told(self) -> bool:
        """Whether there is news that came with the answer to a statement: no file tells of it."""
        ...

    def fileno(self) -> int | None:
        """The file that can be read when there is news; None where nothing tells."""
        ...

    def has_news(self) -> bool:
        """Hear what is told; tell whether there may be rows that were not there the last time."""
        ...

    def may_have_changed(self) -> bool:
        """Tell whether there may be such rows, and leave what is told to be heard."""
        ...

    def close(self) -> None:
        """Watch no more; the connection is closed by its owner."""
        ...


class Vendor:
    """One database system. It keeps nothing: every method takes the connection it is about."""

    # Locks what a SELECT finds; with the second, what others have locked is passed over.
    lock: ClassVar[str] = ""
    skip: ClassVar[str] = ""
    # Whether rows can stay locked in a transaction, beside other writers, while their tasks run.
    can_hold: ClassVar[bool] = False
    # Whether one statement can find, lock, change and return rows.
    can_return_changed: ClassVar[bool] = False
    # Whether a cursor knows the key of the row that it has inserted.
    tells_last_key: ClassVar[bool] = False
    # Begins a transaction that is going to write.
    begin: ClassVar[str] = "BEGIN"
    # Makes the transaction that has begun survive the server, where the session does not care.
    durably: ClassVar[str] = ""
    # The column, where no index is to be used for it.
    unindexed_run_at: ClassVar[str] = "run_at"
    # What joins a table of values to the rows they are about, the few looked up among the many.
    join: ClassVar[str] = "JOIN"
    # The table of the queue, where rows are looked up by their keys or read in the order of an
    # index; and what deletes by keys.
    by_key: ClassVar[str] = "background_task"
    in_order: ClassVar[str] = "background_task"
    in_order_of_queue: ClassVar[str] = "background_task"
    delete: ClassVar[str] = "DELETE FROM background_task"
    # Whether it can tell of new rows by a notification, and processes of one host by a bell.
    has_bell: ClassVar[bool] = False
    can_notify: ClassVar[bool] = False
    # How often an idle worker asks for news where nothing tells it, in seconds.
    between_questions: ClassVar[float] = 1.0

    def apart(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a connection that is the engine's own, and not a project's."""
        return {**settings, "AUTOCOMMIT": True, "CONN_MAX_AGE": None}

    def unpooled(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """Return the settings of a connection that comes from no pool; None if none does anyway."""
        return None

    def prepare(self, connection: BaseDatabaseWrapper) -> None:
        """Make a new connection ready that is the engine's own."""

    def locks_only_what_it_returns(
        self, connection: BaseDatabaseWrapper, *, is_ascending: bool
    ) -> bool:
        """Tell whether a SELECT of the most urgent rows locks those, and not all that are ready.

        Args:
            connection: where.
            is_ascending: whether the lowest priority comes first.
        """
        return True

    def wants_a_bookmark(self, connection: BaseDatabaseWrapper) -> bool:
        """Tell whether a search had better begin behind the rows that were deleted last.

        They stand in the way where an index keeps them, and nobody marks those he comes across.
        """
        return False

    def now(self, connection: BaseDatabaseWrapper) -> datetime:
        """Return the time of the database's own clock."""
        return timezone.now()

    def clock(self, connection: BaseDatabaseWrapper) -> str:
        """Return an expression for the time of the database's own clock."""
        return self.literal(connection, self.now(connection))

    def literal(self, connection: BaseDatabaseWrapper, moment: datetime) -> str:
        """Return ``moment`` as a literal that compares with a column."""
        return f"'{connection.ops.adapt_datetimefield_value(moment)}'"

    def given(
        self, connection: BaseDatabaseWrapper, runs: Iterable[GivenRun]
    ) -> tuple[str, list[str]]:
        """Return a table expression named ``given``, and its parameters.

        Its columns are ``pk``, ``began``, ``ended`` and ``value``; see :meth:`moment` for times.
        """
        raise NotImplementedError

    def moment(self, now: str, column: str) -> str:
        """Return an expression for the moment in a column of :meth:`given`.

        Args:
            now: the clock.
            column: its name.
        """
        raise NotImplementedError

    def before(self, connection: BaseDatabaseWrapper, seconds: float) -> str:
        """Return an expression for the time so many seconds before the clock's."""
        return self.literal(connection, self.now(connection) - timedelta(seconds=seconds))

    def seconds_until(self, now: str, moment: str) -> str:
        """Return an expression for the seconds from the clock's time to ``moment``."""
        raise NotImplementedError

    def quoted(self, sql: str) -> str:
        """Return a statement whose names are quoted in the standard's way as it is read here."""
        return sql

    def is_in_memory(self, connection: BaseDatabaseWrapper) -> bool:
        """Tell whether other threads cannot share the database."""
        return False

    def is_closed(self, connection: BaseDatabaseWrapper) -> bool:
        """Tell whether somebody closed the driver's connection without Django's knowledge."""
        return False

    def may_be_in_transaction(self, connection: BaseDatabaseWrapper) -> bool:
        """Tell whether a transaction may be open that Django does not know of."""
        return True

    def is_in_transaction(self, connection: BaseDatabaseWrapper) -> bool:
        """Tell whether one is open for certain, if need be by asking the server."""
        return self.may_be_in_transaction(connection)

    def mark_transaction(self, connection: BaseDatabaseWrapper) -> str | None:
        """Mark the open transaction, so that its end is noticed: by a savepoint."""
        mark: str | None = connection.savepoint()
        return mark

    def has_ended(self, connection: BaseDatabaseWrapper, mark: str | None) -> bool:
        """Tell whether somebody has ended the transaction that was marked so, or broken it.

        And that without Django's knowledge. Of one that is lost with its connection the next
        statement tells.
        """
        if mark is not None and not connection.needs_rollback:
            try:
                connection.savepoint_commit(mark)
            except Error as error:
                return self.lacks_savepoint(error)
        return False

    def lacks_savepoint(self, error: Error) -> bool:
        """Tell whether a statement was refused for want of a savepoint, gone with a transaction."""
        self._refuse()

    def begin_write(self, connection: BaseDatabaseWrapper) -> None:
        """Take the write lock at the start of a transaction that reads before it writes."""

    def prepare_control(self, connection: BaseDatabaseWrapper) -> None:
        """Set up a connection by which a worker shows that it lives."""

    def session_lock(self, connection: BaseDatabaseWrapper, key: int) -> SessionLock | None:
        """Take a lock of this database that nobody else has; None when somebody has it.

        Args:
            connection: on which no transaction is open, and which stays open.
            key: a 64-bit number.
        """
        self._refuse()

    def has_session_locks(self, connection: BaseDatabaseWrapper) -> bool:
        """Tell whether :meth:`session_lock` can be relied on."""
        return False

    def watch(self, connection: BaseDatabaseWrapper, channel: str) -> Watch:
        """Watch the database over ``connection``.

        Args:
            connection: one that does not take or record tasks.
            channel: by which others tell of new rows, where they can.
        """
        return AlwaysNews()

    def listen(self, connection: BaseDatabaseWrapper, channel: str) -> int | None:
        """Listen over ``connection`` beside other work, as long as it lasts.

        Returns:
            the file that can be read when there is news, and cannot after the next statement; None
            where that cannot be had.
        """
        return None

    def stop_listening(self, connection: BaseDatabaseWrapper, channel: str) -> None:
        """End what :meth:`listen` has begun."""

    def ring(self, connection: BaseDatabaseWrapper) -> None:
        """Wake who watches on this host; nothing happens where nobody does."""

    def can_listen(self, connection: BaseDatabaseWrapper) -> bool:
        """Tell whether notifications can be heard."""
        return False

    def listening(
        self, connection: BaseDatabaseWrapper, channel: str
    ) -> AbstractContextManager[Ear]:
        """Listen to ``channel``, over ``connection``, which is closed with this block."""
        self._refuse()

    def is_heard(self, connection: BaseDatabaseWrapper) -> bool:
        """Tell whether somebody listens to notifications."""
        return False

    def notify(self, connection: BaseDatabaseWrapper, channel: str, payload: str) -> None:
        """Send a notification, at the commit."""
        self._refuse()

    def notify_soon(self, connection: BaseDatabaseWrapper, channel: str) -> None:
        """Send a notification in a transaction of its own, which need not survive the server."""
        self._refuse()

    def can_copy(self, count: int) -> bool:
        """Tell whether so many rows are best stored by :meth:`copy`."""
        return False

    def next_keys(self, connection: BaseDatabaseWrapper, table: str, count: int) -> list[int]:
        """Take so many values of the key of ``table``."""
        self._refuse()

    def copy(
        self,
        connection: BaseDatabaseWrapper,
        table: str,
        columns: Sequence[str],
        lines: Iterable[str],
    ) -> None:
        """Store rows, each of which is a line of what :meth:`copied` has made of its values."""
        self._refuse()

    def copied(self, values: Iterable[Any]) -> str:
        """Return values that follow each other in a line for :meth:`copy`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} cannot do this.")


class AlwaysNews:
    """A watch that has to be asked, and cannot tell."""

    is_complete = False
    is_of_rows = False
    was_told = False

    def fileno(self) -> None:
        """There is none."""

    def has_news(self) -> bool:
        """Look for yourself."""
        return True

    may_have_changed = has_news

    def close(self) -> None:
        """There is nothing to close."""
