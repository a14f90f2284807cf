"""Rows that cannot be taken, whoever tries: they are passed over, and stop no other."""

from __future__ import annotations

import time

from background_task import logs
from background_task.models import Task

logger = logs.named("background_task.storage")

# For so many seconds one is not asked for again.
PASSED_OVER = 60.0
_passed_over: dict[int, float] = {}
_reported: set[int] = set()


def pass_over(pk: int, name: str, reason: str) -> None:
    """Take this row no more for a while, and say why, once."""
    _passed_over[pk] = time.monotonic() + PASSED_OVER
    if pk not in _reported:
        _reported.add(pk)
        logger.error(
            "The row %s of %s, named %r, does not run: %s. Mend or delete it.",
            pk,
            Task._meta.db_table,
            name,
            reason,
        )


def passed_over() -> list[int]:
    """Return the keys of the rows that are not to be asked for now."""
    now = time.monotonic()
    for pk in [pk for pk, until in list(_passed_over.items()) if until <= now]:
        _passed_over.pop(pk, None)
    return list(_passed_over)
