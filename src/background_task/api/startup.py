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

from django.apps import apps
from django.db import DatabaseError

from background_task import vendors
from background_task.models import Task
from background_task.policies.schedules import TaskSchedule
from background_task.signals import task_created
from background_task.storage import chains
from background_task.storage.transient import HURRIED

logger = logging.getLogger("background_task.tasks")

_postponed: list[Callable[[], Task | None]] = []


def importing() -> bool:
    """Tell whether the caller is, however indirectly, the body of a module that is being imported.

    Calls made before Django has finished its set-up, as in ``AppConfig.ready()``, count too.
    """
    if not apps.ready:
        return True
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            module = sys.modules.get(frame.f_globals.get("__name__", ""))
            spec = getattr(module, "__spec__", None)
            if getattr(spec, "_initializing", False):
                return True
        frame = frame.f_back
    return False


def ensure_one(
    wanted: Task, schedule: TaskSchedule, *, remove_existing: bool, sender: type
) -> Task | None:
    """Make sure that one row like ``wanted`` waits or runs, now or when a worker starts.

    Returns the row that waits, or None when it runs already or could not be stored yet. A row that
    waits is left alone, so that a restart neither delays nor repeats it. With ``remove_existing``
    it is made like ``wanted`` when the code has changed, when it has failed before, or when the
    call names a time, and always with ``RESCHEDULE_EXISTING``. When a row is stored,
    ``task_created`` is sent by ``sender``.
    """

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
            declared=False,
            remove_existing=remove_existing,
            replace=differs,
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
