"""The database connections of the thread that runs a task, before and after it."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from background_task import vendors
from background_task.exceptions import BackgroundTaskError
from background_task.storage.transient import disconnect


@contextmanager
def undisturbed() -> Iterator[list[str]]:
    """Run foreign code, and put right what it leaves open or broken on this thread's connections.

    What it yields names, after the block, the databases on which a transaction was left open.

    A transaction that it leaves open is rolled back, so that the outcome of a task is not part of
    it. Where the caller is inside an atomic block already, as in a ``TestCase``, the block stays
    usable: what the code has done is kept, or, when it broke the transaction, undone.
    """
    blocks = {
        connection.alias: _Block(connection)
        for connection in connections.all(initialized_only=True)
        if connection.in_atomic_block
    }
    left: list[str] = []
    try:
        yield left
    finally:
        for connection in connections.all(initialized_only=True):
            was_open = False
            with suppress(Exception):
                if connection.alias in blocks:
                    was_open = blocks[connection.alias].mend()
                elif connection.connection is not None:
                    was_open = _close_what_is_open(connection, vendors.of(connection))
            if was_open:
                left.append(connection.alias)


def refuse_left_open(left: Collection[str], what: Any) -> None:
    """Refuse that transactions were left open: they are undone, and with them what was written.

    Args:
        left: the aliases of the databases.
        what: who has left them open.

    Raises:
        BackgroundTaskError: there are any.
    """
    if left:
        raise BackgroundTaskError(
            f"{what} has left a transaction open on the database {', '.join(map(repr, left))}, so "
            "that what it wrote there is undone: use transaction.atomic(), or commit it."
        )


class _Block:
    """The atomic block that the caller is in, with a savepoint to go back to."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection
        self._depths = len(connection.atomic_blocks), len(connection.savepoint_ids)
        self._savepoint = None
        with suppress(Exception):  # broken already: that is its owner's affair
            self._savepoint = connection.savepoint()

    def mend(self) -> bool:
        """Go back to the block; tell whether others within it were left open."""
        connection = self._connection
        if self._savepoint is None:
            return False
        depths = len(connection.atomic_blocks), len(connection.savepoint_ids)
        if depths != self._depths:
            del connection.atomic_blocks[self._depths[0] :]
            del connection.savepoint_ids[self._depths[1] :]
            connection.needs_rollback = True
        if connection.needs_rollback or not connection.is_usable():
            connection.needs_rollback = False
            connection.savepoint_rollback(self._savepoint)
        else:
            connection.savepoint_commit(self._savepoint)
        return depths != self._depths


def _close_what_is_open(connection: BaseDatabaseWrapper, vendor: vendors.Vendor) -> bool:
    """Put it right; tell whether a transaction was open, and is undone."""
    is_open = False
    if connection.in_atomic_block:
        # Django keeps a connection until its blocks are left; connecting anew forgets them.
        is_open = True
        with suppress(Exception):
            connection.connection.close()
        connection.connection = None
        connection.connect()
    elif vendor.is_closed(connection):
        connection.close()
    elif not connection.settings_dict["AUTOCOMMIT"]:
        return False
    elif not connection.autocommit or vendor.may_be_in_transaction(connection):
        try:
            is_open = vendor.is_in_transaction(connection)
            connection.connection.rollback()
        except Exception:
            connection.close()
        if not connection.autocommit:
            connection.close()
    return is_open


# Connections, and the settings that they have where they come from a pool.
Left = list[tuple[BaseDatabaseWrapper, dict[str, Any]]]


def keep_out_of_pools() -> Left:
    """Let this thread, which runs tasks, open connections of its own where a project pools them.

    It keeps one for as long as there are tasks. Pools are small, and whoever finds one empty waits
    and fails in the end: other tasks, or the pages of a web server in the same process.

    Returns:
        what :func:`go_back_to_pools` wants.
    """
    left = []
    for alias in _pooled():
        connection = connections[alias]
        unpooled = vendors.of(connection).unpooled(connection.settings_dict)
        if unpooled is not None and not connection.in_atomic_block:
            disconnect(connection)
            left.append((connection, connection.settings_dict))
            connection.settings_dict = unpooled
    return left


def go_back_to_pools(left: Left) -> None:
    """Undo :func:`keep_out_of_pools`, in a thread that goes on to do something else."""
    for connection, pooled in left:
        disconnect(connection)
        connection.settings_dict = pooled


def has_pools() -> bool:
    """Tell whether the project has pools."""
    return bool(_pooled())


def _pooled() -> list[str]:
    # Not by asking for connections: the driver of another alias may not even be installed.
    every = connections.settings.items()
    return [alias for alias, each in every if (each.get("OPTIONS") or {}).get("pool")]


class Known:
    """The connections of this thread, so that it costs next to nothing to look after them.

    To ask Django for them takes as long as a short task.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._opened = [
            (connection, vendors.of(connection))
            for connection in connections.all(initialized_only=True)
        ]
        connection_created.connect(self._add)

    def _add(self, connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
        known = [opened for opened, _ in self._opened]
        is_here = threading.get_ident() == self._thread and connection not in known
        # Neither one of the engine's nor one that Django makes for a moment, of another alias.
        if is_here and connection in connections.all(initialized_only=True):
            self._opened.append((connection, vendors.of(connection)))

    def close_what_is_open(self) -> Collection[str]:
        """Put right what foreign code has left open; the thread is in no transaction of ours.

        Returns:
            the aliases of the databases on which a transaction was open.
        """
        left: Collection[str] = ()
        for connection, vendor in self._opened:
            if connection.connection is not None:
                with suppress(Exception):
                    if _close_what_is_open(connection, vendor):
                        left = [*left, connection.alias]
        return left


def tidy() -> Collection[str]:
    """Put right what a task has left open or broken in this thread, which runs no other task.

    Returns:
        the aliases of the databases on which a transaction was open.
    """
    left = []
    for connection in connections.all(initialized_only=True):
        with suppress(Exception):
            is_used = connection.connection is not None
            if is_used and _close_what_is_open(connection, vendors.of(connection)):
                left.append(connection.alias)
    mend()
    return left


def mend(*, after_an_outage: bool = False) -> None:
    """Close what is broken in this thread, in which other tasks may be about to query.

    Django would go on with a connection that its server has closed.

    Args:
        after_an_outage: whether any may be broken, and not only those that have told of an error.
    """
    for connection in connections.all(initialized_only=True):
        with suppress(Exception):
            if connection.connection is None or connection.in_atomic_block:
                continue
            if not (connection.errors_occurred or after_an_outage):
                continue
            if connection.is_usable():
                connection.errors_occurred = False
            else:
                connection.close()


def is_in_transaction() -> bool:
    """Tell whether a transaction is open on a connection of this thread."""
    return any(
        connection.connection is not None
        and (connection.in_atomic_block or not connection.get_autocommit())
        for connection in connections.all(initialized_only=True)
    )
