"""Try again what a database refused for a moment."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from django.db import InterfaceError, OperationalError, connections

logger = logging.getLogger("background_task.storage")

Result = TypeVar("Result")

TRANSIENT = (OperationalError, InterfaceError)
DELAYS = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)


def persevere(using: str, act: str, verb: Callable[[], Result]) -> Result:
    """Return ``verb()``; when the database is locked, deadlocked, or gone, try again for some 15 s.

    Only the outermost transaction can be tried again, so inside an open one ``verb`` runs once.
    """
    for delay in DELAYS:
        if connections[using].in_atomic_block:
            break
        try:
            return verb()
        except TRANSIENT as error:
            logger.warning("Could not %s, trying again: %s", act, str(error).strip() or repr(error))
            connections[using].close_if_unusable_or_obsolete()
            time.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter, no secret
    return verb()
