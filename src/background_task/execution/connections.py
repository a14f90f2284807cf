"""The database connections of the thread that runs a task, before and after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from background_task import vendors


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run foreign code, and put right what it leaves open or broken on this thread's connections.

    A transaction that it leaves open is rolled back, so that the outcome of a task is not part of
    it. Where the caller is inside an atomic block already, as in a ``TestCase``, the block stays
    usable: what the code has done is kept, or, when it broke the transaction, undone.
    """
    savepoints = {
        connection.alias: _savepoint(connection)
        for connection in connections.all(initialized_only=True)
        if connection.in_atomic_block
    }
    try:
        yield
    finally:
        for connection in connections.all(initialized_only=True):
            with suppress(Exception):
                if connection.alias in savepoints:
                    _mend(connection, savepoints[connection.alias])
                elif connection.connection is not None:
                    _close_what_is_open(connection)


def _savepoint(connection: BaseDatabaseWrapper) -> str | None:
    with suppress(Exception):
        return connection.savepoint()
    return None  # the block is broken already: it is its owner's affair


def _mend(connection: BaseDatabaseWrapper, savepoint: str | None) -> None:
    if savepoint is None:
        return
    if connection.needs_rollback or not connection.is_usable():
        connection.needs_rollback = False
        connection.savepoint_rollback(savepoint)
    else:
        connection.savepoint_commit(savepoint)


def _close_what_is_open(connection: BaseDatabaseWrapper) -> None:
    if connection.in_atomic_block:
        # Django keeps a connection until its blocks are left; connecting anew forgets them.
        with suppress(Exception):
            connection.connection.close()
        connection.connection = None
        connection.connect()
    elif vendors.is_closed(connection):
        connection.close()
    elif connection.settings_dict["AUTOCOMMIT"] and not connection.autocommit:
        with suppress(Exception):
            connection.rollback()
        connection.close()
