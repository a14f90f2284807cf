"""What others ask of this process, by its row in the list of workers."""

from __future__ import annotations

import threading
import time
from collections import defaultdict

from django.db import connections

from background_task import logs
from background_task.exceptions import TaskCancelledError
from background_task.execution.interruptions import find, limits
from background_task.identity import this_worker
from background_task.models import Task
from background_task.models.tasks import CANCEL
from background_task.storage.cancel import cancel_all

logger = logs.named("background_task.tasks")

# Between two looks for what was taken and has not begun, in seconds.
BETWEEN_TRIES = 0.1
AFTER_A_FAILURE = 1.0


def heed(using: str, request: str) -> None:
    """Do what is asked, in a thread; what is not understood is left alone.

    Args:
        using: the alias of the database of the rows.
        request: such as ``cancel:7``.
    """
    if request.startswith(CANCEL):
        _cancellations.add(using, int(request.removeprefix(CANCEL)))


class _Cancellations:
    """Ends runs, in one thread that lives for as long as there are some to be ended."""

    def __init__(self) -> None:
        self._wanted: dict[str, set[int]] = defaultdict(set)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, using: str, key: int) -> None:
        with self._lock:
            self._wanted[using].add(key)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="cancel", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while self._is_wanted():
            for using, keys in list(self._wanted.items()):
                try:
                    done = {key for key in list(keys) if _interrupt(key)}
                    done |= _leftover(using, keys - done)
                except Exception:
                    logger.exception("Tasks could not be cancelled; trying again: %s", keys)
                    done = set()
                    connections.close_all()  # this thread's own, which may be lost
                    time.sleep(AFTER_A_FAILURE)
                with self._lock:
                    keys -= done
            time.sleep(BETWEEN_TRIES)

    def _is_wanted(self) -> bool:
        with self._lock:
            if any(self._wanted.values()):
                return True
            self._thread = None
        connections.close_all()  # this thread's own
        return False


def _interrupt(key: int) -> bool:
    """End the body that runs for this row; False when there is none yet."""
    body = find(key)
    if body is not None:
        limits.interrupt(body, TaskCancelledError("The task was cancelled as it ran."))
    return body is not None


def _leftover(using: str, keys: set[int]) -> set[int]:
    """Cancel those that are not to run here, and return their keys; the others may yet begin."""
    if not keys:
        return set()
    rows = Task._base_manager.using(using).filter(pk__in=keys).in_bulk()
    ours = {
        key
        for key, row in rows.items()
        if row.worker_id == this_worker() and row.locked_by is not None
    }
    cancel_all(using, list(rows.keys() - ours))
    return keys - ours


_cancellations = _Cancellations()
