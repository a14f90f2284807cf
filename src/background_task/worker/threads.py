"""Functions in several threads: each takes, runs and records batches of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from django.db import connections

from background_task import logs
from background_task.execution.connections import keep_out_of_pools
from background_task.records import Wanted
from background_task.signals import close_old
from background_task.storage.engine import Engine
from background_task.utils import ForcedStop, SignalManager
from background_task.worker.functions import Functions

logger = logs.named("background_task.tasks")

AFTER_A_FAILURE = 1.0


class Threads:
    """So many threads. One that finds work wakes another, so that an idle worker asks once.

    Args:
        count: how many.
        make: makes what a thread runs, on the connection that they share.
        engine: that connection, which the last of them closes.
        on_hunger: called when a thread begins to wait.
    """

    hears = False  # they share a connection, so none of them waits for it

    def __init__(
        self,
        count: int,
        make: Callable[[Engine], Functions],
        engine: Engine,
        on_hunger: Callable[[], None],
    ) -> None:
        self._count = count
        self._make = make
        self._wanted = make(engine).wanted
        self._engine = engine
        self._on_hunger = on_hunger
        self._changed = threading.Condition()
        self._waiting = 0
        self._woken = 0
        self._is_stopping = False
        self._threads: list[threading.Thread] = []
        self._at_work = 0

    @property
    def is_hungry(self) -> bool:
        """Whether a thread has nothing to do."""
        return self._waiting > self._woken

    @property
    def is_busy(self) -> bool:
        """Whether a thread has something to do, or was told to look."""
        return self._waiting < len(self._threads) or self._woken > 0

    def wanted(self) -> Wanted:
        """Return which rows are taken."""
        return self._wanted()

    def start(self) -> None:
        """Take and run tasks from now on; calling it again changes nothing."""
        if self._threads or self._is_stopping:
            return
        for number in range(self._count):
            thread = threading.Thread(
                target=self._work, name=f"functions {number + 1}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def wake(self) -> None:
        """Let one thread look for work, if one waits."""
        with self._changed:
            self._woken = min(self._woken + 1, self._count)
            self._changed.notify()

    def stop(self) -> None:
        """Take no more tasks."""
        self._is_stopping = True
        with self._changed:
            self._woken = self._count
            self._changed.notify_all()

    def drain(self, timeout: float) -> bool:
        """After :meth:`stop`: wait until all has ended and is recorded; tells whether it has."""
        until = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        with self._changed:
            self._at_work += 1
        keep_out_of_pools()
        functions = self._make(self._engine)
        while not self._is_stopping and not SignalManager.is_stopping():
            try:
                if functions.run_some(on_work=self.wake):
                    continue
                close_old()
            except ForcedStop:
                break
            except BaseException:  # whatever it is, the worker goes on
                logger.exception("A thread could not take or record tasks; trying again")
                self._wait(AFTER_A_FAILURE)
                continue
            self._wait(None)
        functions.close()
        with suppress(Exception):
            connections.close_all()  # this thread's own
        with self._changed:
            self._at_work -= 1
            is_last = self._at_work == 0
        if is_last:
            self._engine.close()

    def _wait(self, timeout: float | None) -> None:
        with self._changed:
            self._waiting += 1
            self._on_hunger()
            self._changed.wait_for(lambda: self._woken > 0, timeout)
            self._waiting -= 1
            self._woken = max(self._woken - 1, 0)
