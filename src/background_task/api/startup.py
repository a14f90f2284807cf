"""Calls that a module makes while it is being imported.

``contador_task(repeat=10, remove_existing_tasks=True)`` at the bottom of a ``tasks.py`` runs in
every process that imports the module: each web worker, ``migrate`` before the table exists, the
test runner before its database does. Such a call cannot mean "one more row each time". It is taken
to mean "one row like this", which any number of processes may say.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from django.apps import apps
from django.db import DatabaseError

from background_task import logs, vendors
from background_task.models import Task
from background_task.policies.repetition import chain_key
from background_task.policies.schedules import TaskSchedule
from background_task.signals import task_created
from background_task.storage import chains
from background_task.storage.transient import HURRIED

logger = logs.named("background_task.tasks")

_postponed: list[Callable[[], Task | None]] = []
_counts: dict[tuple[str, str], int] = {}
_asked_for: set[str] = set()


def importing() -> str | None:
    """Return the name of the module whose import the caller is part of, however indirectly.

    Calls made before Django has finished its set-up, as in ``AppConfig.ready()``, count too; theirs
    is the module of the caller. None outside any import.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            name = frame.f_globals.get("__name__", "")
            if getattr(_spec(name), "_initializing", False):
                return str(name)
        frame = frame.f_back
    return None if apps.ready else str(sys._getframe(2).f_globals.get("__name__", ""))


def _spec(module: str) -> Any:
    return getattr(sys.modules.get(module), "__spec__", None)


def _key_of_call(module: str, task_hash: str) -> str:
    """Return the key of this call: the n-th one of ``module`` with this name and these arguments.

    Counting goes with the import, so that the same call has the same key in every process, and
    keeps it when its period changes in the code.
    """
    spec = _spec(module)
    counts = _counts if spec is None else spec.__dict__.setdefault("_background_task_calls", {})
    number = counts[module, task_hash] = counts.get((module, task_hash), 0) + 1
    key = chain_key(task_hash, f"{module} {number}")
    _asked_for.add(key)
    return key


def ensure_one(
    wanted: Task, schedule: TaskSchedule, *, module: str, remove_existing: bool, sender: type
) -> Task | None:
    """Make sure that one row like ``wanted`` waits or runs, now or when a worker starts.

    Returns the row that waits, or None when it runs already or could not be stored yet. A row that
    waits is left alone, so that a restart neither delays nor repeats it. With ``remove_existing``
    it is made like ``wanted`` when the code has changed, when it has failed before, or when the
    call names a time, and always with ``RESCHEDULE_EXISTING``. Rows of other calls and of other
    people are not touched without ``remove_existing``. When a row is stored, ``task_created`` is
    sent by ``sender``.
    """
    key = _key_of_call(module, wanted.task_hash)

    def differs(row: Task) -> bool:
        names = ("priority", "queue", "verbose_name", "repeat", "repeat_until")
        return schedule.action == TaskSchedule.RESCHEDULE_EXISTING or (
            remove_existing
            and (
                row.attempts > 0
                or not schedule.is_immediate
                or any(getattr(row, name) != getattr(wanted, name) for name in names)
            )
        )

    def attempt() -> Task | None:
        row, is_new = chains.ensure(
            wanted,
            key,
            remove_existing=remove_existing,
            replace=differs,
            taken=_asked_for,
            delays=HURRIED,
        )
        if is_new:
            task_created.send(sender=sender, task=row)
        return row

    if not apps.ready:
        _postponed.append(attempt)
        return None
    try:
        return attempt()
    except Exception as error:
        # Anything the database, or a tool that guards it, may answer before it is set up: an
        # import must not fail for it. Bad arguments were refused before this point.
        expected = vendors.is_missing_table(error) or not isinstance(error, DatabaseError)
        level = logging.INFO if expected else logging.WARNING
        logger.log(
            level,
            "%s is called while its module is imported, and the database is not ready (%s); "
            "the worker will schedule it when it starts.",
            wanted.task_name,
            str(error).strip().partition("\n")[0],
        )
        wanted.pk = None
        _postponed.append(attempt)
        return None


def postponed() -> list[Callable[[], None]]:
    """Return what makes good each call that could not be stored at import; worth trying again."""

    def make_good(attempt: Callable[[], Task | None]) -> None:
        attempt()
        _postponed.remove(attempt)

    return [partial(make_good, attempt) for attempt in _postponed]
