"""What others ask of this process, by its row in the list of workers."""

from __future__ import annotations

import threading
import time

from django.db import connections

from background_task import logs
from background_task.exceptions import TaskCancelledError
from background_task.execution.interruptions import find, limits
from background_task.identity import this_worker
from background_task.models import Task
from background_task.models.tasks import CANCEL
from background_task.storage.cancel import cancel

logger = logs.named("background_task.tasks")

# What is taken and has not begun is given back within some tenths of a second.
TRIES_TO_CANCEL = 50
BETWEEN_TRIES = 0.1


def heed(using: str, request: str) -> None:
    """Do what is asked, in a thread; what is not understood is left alone.

    Args:
        using: the alias of the database of the rows.
        request: such as ``cancel:7``.
    """
    if request.startswith(CANCEL):
        arguments = using, int(request.removeprefix(CANCEL))
        threading.Thread(target=_cancel, args=arguments, name="cancel", daemon=True).start()


def _cancel(using: str, key: int) -> None:
    """End what runs for this row, or see to it that it does not run."""
    rows = Task._base_manager.using(using).filter(pk=key)
    try:
        for _ in range(TRIES_TO_CANCEL):
            body = find(key)
            if body is not None:
                limits.interrupt(body, TaskCancelledError("The task was cancelled as it ran."))
                return
            row = rows.first()
            if row is None or row.worker_id != this_worker() or row.locked_by is None:
                if row is not None:
                    cancel(row)
                return
            time.sleep(BETWEEN_TRIES)  # it was taken, and has not begun
    except Exception:
        logger.exception("The row %d could not be cancelled", key)
    finally:
        connections.close_all()  # this thread's own
