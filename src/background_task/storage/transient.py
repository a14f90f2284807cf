"""Try again what a database refused for a moment."""

from __future__ import annotations

import logging
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
    connections,
)

from background_task import vendors

logger = logging.getLogger("background_task.storage")

Result = TypeVar("Result")

# InternalError is how PostgreSQL refuses to write after a failover to a read-only server.
TRANSIENT = (OperationalError, InterfaceError, InternalError)
PATIENT = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
HURRIED = (0.05, 0.2)


def persevere(
    using: str, act: str, verb: Callable[[], Result], delays: tuple[float, ...] = PATIENT
) -> Result:
    """Return ``verb()``; when the database is locked, deadlocked, or gone, try again.

    Only the outermost transaction can be tried again, so inside an open one ``verb`` runs once.

    Args:
        using: the alias of the database.
        act: what is tried, for the log.
        verb: a whole transaction.
        delays: how long to wait before each further try, in seconds; some 15 together by default.
    """
    for delay in delays:
        if connections[using].in_atomic_block:
            break
        try:
            return afresh(using, verb)
        except TRANSIENT as error:
            if vendors.is_missing_table(error):
                raise
            logger.warning("Could not %s, trying again: %s", act, str(error).strip() or repr(error))
            disconnect(using)  # whatever state it is in, the next one is fresh
            time.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter, no secret
    return afresh(using, verb)


def afresh(using: str, verb: Callable[[], Result]) -> Result:
    """Return ``verb()``; when the session refuses it, try once more in a new one.

    A task may leave a role, a search path, or another database behind in the session.
    """
    try:
        return verb()
    except ProgrammingError:
        if connections[using].in_atomic_block:
            raise
        disconnect(using)
        return verb()


def disconnect(using: str) -> None:
    """Close the connection; one that is broken already may complain."""
    with suppress(Exception):
        connections[using].close()
