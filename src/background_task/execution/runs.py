"""The rows that this process runs: kept while they run, given back when it has to leave.

A lock is a lease: when it is older than ``MAX_RUN_TIME``, another worker takes the row. So that
this happens to dead workers only, a thread renews the leases of what runs for long.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress

from django.db import connections

from background_task.models import Task
from background_task.settings import app_settings
from background_task.storage import leases
from background_task.utils import hold_off_signals

logger = logging.getLogger("background_task.tasks")

LONGEST_INTERVAL = 60.0
LONGEST_RENEWAL = 1.0


class Run:
    """One row while this process runs it; None where a function runs without a row.

    ``cancel`` is what ends it before its time, where something can.
    """

    def __init__(self, task: Task | None) -> None:
        self.task = task
        self.cancel: Callable[[], None] | None = None
        self._is_over = False
        self._lock = threading.Lock()

    def renew(self) -> None:
        """Renew the lease, unless the outcome is being written."""
        with self._lock:
            if self.task is not None and not self._is_over:
                leases.renew(self.task)

    def end(self) -> None:
        """Begin no renewal any more: the outcome is about to be written.

        One that is on its way is waited for, but not for long: it may itself be waiting for what
        this thread has locked in the database.
        """
        self._is_over = True
        if self._lock.acquire(timeout=LONGEST_RENEWAL):
            self._lock.release()

    def hand_back(self) -> None:
        """Give the row up and end what can be ended. It is not an error when that fails."""
        self.end()
        try:
            if self.task is not None and leases.hand_back(self.task):
                logger.warning("Handed back %s, which had not finished", self.task)
        except Exception as error:
            logger.warning(
                "%s could not be handed back and stays locked until MAX_RUN_TIME is over: %s",
                self.task,
                error,
            )
        if self.cancel is not None:
            self.cancel()


class Runs:
    """Every run of this process. A forked child has none."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start afresh, as a forked child must: what its parent runs is not its own."""
        self._runs: dict[int, Run] = {}
        self._lock = threading.Lock()
        self._begun = threading.Event()
        self._keeper: threading.Thread | None = None

    def begin(self, task: Task | None) -> Run:
        """Count ``task``, which is locked, as running; calling it again changes nothing."""
        if task is None:
            return Run(None)
        with self._lock:
            run = self._runs.setdefault(id(task), Run(task))
            if self._keeper is None or not self._keeper.is_alive():
                self._keeper = threading.Thread(target=self._keep, name="leases", daemon=True)
                self._keeper.start()
            self._begun.set()
        return run

    def end(self, task: Task | None) -> None:
        """Count ``task`` as running no more."""
        with self._lock:
            self._runs.pop(id(task), None)
            if not self._runs:
                self._begun.clear()

    def hand_back(self) -> None:
        """Give up whatever runs: the process is about to end without waiting for it."""
        for run in self._all():
            run.hand_back()
            self.end(run.task)

    def renew(self) -> None:
        """Renew the lease of everything that runs; a database that is away is tried again later."""
        for run in self._all():
            try:
                run.renew()
            except Exception as error:
                logger.warning("The lease of %s could not be renewed: %s", run.task, error)

    def _all(self) -> list[Run]:
        with self._lock:
            return list(self._runs.values())

    def _keep(self) -> None:
        hold_off_signals()
        pause = threading.Event()
        while True:
            self._begun.wait()
            pause.wait(min(app_settings.BACKGROUND_TASK_MAX_RUN_TIME / 4, LONGEST_INTERVAL))
            self.renew()
            with suppress(Exception):
                connections.close_all()  # this thread's own


runs = Runs()

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=runs.forget)
