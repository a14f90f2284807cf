"""Try again what a database refused for a moment."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from django.db import (
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
)
from django.db.backends.base.base import BaseDatabaseWrapper

from background_task import logs, vendors
from background_task.utils import SignalManager

logger = logs.named("background_task.storage")

Result = TypeVar("Result")

# InternalError is how PostgreSQL refuses to write after a failover to a read-only server.
TRANSIENT = (OperationalError, InterfaceError, InternalError)
PATIENT = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
HURRIED = (0.05, 0.2)
# While the database is away: seconds between two looks at most, and between two lines of the log.
BETWEEN_PROBES = 1.0
BETWEEN_COMPLAINTS = 60.0


class UnrecordedError(Exception):
    """The database is away, and this process is to stop: what has happened is not recorded."""


def persevere(
    connection: BaseDatabaseWrapper,
    act: str,
    verb: Callable[[], Result],
    delays: tuple[float, ...] = PATIENT,
) -> Result:
    """Return ``verb()``; when the database is locked, deadlocked, or gone, try again.

    Only the outermost transaction can be tried again, so inside an open one ``verb`` runs once.

    Args:
        connection: what ``verb`` uses.
        act: what is tried, for the log.
        verb: a whole transaction.
        delays: how long to wait before each further try, in seconds; some 15 together by default.
    """
    for delay in delays:
        if connection.in_atomic_block:
            break
        try:
            return afresh(connection, verb)
        except TRANSIENT as error:
            if vendors.is_missing_table(error):
                raise
            logger.warning("Could not %s, trying again: %s", act, reason(error))
            disconnect(connection)  # whatever state it is in, the next one is fresh
            time.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter, no secret
    return afresh(connection, verb)


def outlast(connection: BaseDatabaseWrapper, act: str, verb: Callable[[], Result]) -> Result:
    """Return ``verb()`` as :func:`persevere` does, and wait for as long as the database is away.

    For what records something that has happened: to give up would be to let it happen again. When
    this process is asked to stop, the patience of :func:`persevere` has to be enough, once for all
    there is to record.

    Raises:
        UnrecordedError: it was not.
    """
    while True:
        stop = SignalManager.stopping()
        try:
            return persevere(connection, act, verb, () if stop and stop.has_waited else PATIENT)
        except TRANSIENT as error:
            if connection.in_atomic_block:
                raise
            if not _is_away(connection):  # it has just come back, or refuses this one
                return afresh(connection, verb)
            logger.warning("Waiting for the database to %s: %s", act, reason(error))
            while _is_away(connection):
                if (stop := SignalManager.stopping()) is not None:
                    stop.has_waited = True
                    raise UnrecordedError(reason(error)) from error
                time.sleep(BETWEEN_PROBES * random.uniform(0.5, 1))  # noqa: S311 - jitter


def _is_away(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether no row at all can be written now: then it is not due to what was written."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE background_task SET epoch = epoch WHERE 1 = 0")
    except TRANSIENT as error:
        disconnect(connection)
        return not vendors.is_missing_table(error)
    return False


def reason(error: BaseException) -> str:
    """Return what an error of a database says, in one line."""
    return " ".join(str(error).split()) or repr(error)


def afresh(connection: BaseDatabaseWrapper, verb: Callable[[], Result]) -> Result:
    """Return ``verb()``; when the session refuses it, try once more in a new one.

    A task may leave a role, a search path, or another database behind in the session.
    """
    try:
        return verb()
    except ProgrammingError:
        if connection.in_atomic_block:
            raise
        disconnect(connection)
        return verb()


def disconnect(connection: BaseDatabaseWrapper) -> None:
    """Close the connection; one that is broken already may complain."""
    with suppress(Exception):
        connection.close()
