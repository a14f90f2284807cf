"""A thread beside the tasks: it shows that the worker lives, and wakes whoever waits for tasks.

It has a connection of its own, on which it holds the lock that ends with the process. At each beat
it looks whose heart has stopped, and frees what that worker ran. Between the beats it waits for
news of new rows, or asks for it where nobody tells.
"""

from __future__ import annotations

import logging
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from background_task import vendors
from background_task.models.rows import has_ended, this_worker
from background_task.records import Wanted
from background_task.settings import app_settings
from background_task.storage import readiness, workers
from background_task.storage.engine import Engine
from background_task.storage.notifications import BETWEEN_NOTICES, NEW
from background_task.storage.transient import TRANSIENT
from background_task.utils import hold_off_signals

logger = logging.getLogger("background_task.tasks")

# After its own connection was lost, a worker judges nobody for so many seconds: others may have
# lost theirs too, and be about to come back.
GRACE = 2.5
# Between two tries to reach the database at most, and two looks while all are busy, in seconds.
LONGEST_PAUSE = 1.0
BETWEEN_LOOKS = 0.25


class Driver(Protocol):
    """What takes tasks, and may be waiting for some."""

    @property
    def is_hungry(self) -> bool:
        """Whether it waits."""
        ...

    def wanted(self) -> Wanted:
        """Return for which rows it waits."""
        ...

    def wake(self) -> None:
        """Tell it to look; safe in any thread."""
        ...


class Heart:
    """The thread, and what it is asked for.

    Args:
        using: the alias of the database.
        name: what operators are to call this worker.
        queues: which it takes, for operators.
        drivers: who waits for tasks.
        sleep: seconds between two looks where nothing has told of new rows.
        supervisor: the ``worker_id`` of the process that has started this one, and beats for it.
        on_request: called with what others ask of this worker.
    """

    def __init__(
        self,
        using: str,
        *,
        name: str,
        queues: str,
        drivers: Sequence[Driver],
        sleep: float,
        supervisor: str | None = None,
        on_request: Callable[[str], None] = lambda request: None,
    ) -> None:
        self._engine = Engine(using)
        self._name = name
        self._queues = queues
        self._drivers = drivers
        self._sleep = sleep
        self._supervisor = supervisor
        self._on_request = on_request
        self._worker_id = this_worker()
        self._lock: vendors.SessionLock | None = None
        self._ear: int | None = None
        self._using_engine = threading.Lock()
        self._next_beat = self._next_look = self._next_expiry = 0.0
        self._judges_from = time.monotonic() + GRACE
        self._is_stopping = False
        self._registered = threading.Event()
        self._asked, self._asking = socket.socketpair()
        self._asked.setblocking(False)
        self._asking.setblocking(False)
        self._selector = selectors.DefaultSelector()  # which knows more than 1,024 files
        self._selector.register(self._asked, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._work, name="heart", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def wait_until_registered(self, timeout: float) -> bool:
        """Wait until others know of this worker, so that what it takes can be rescued."""
        return self._registered.wait(timeout)

    def stop(self) -> None:
        """Say that this worker takes no more tasks, and end the thread."""
        self._is_stopping = True
        self.poke()
        if self._thread.is_alive():
            self._thread.join(LONGEST_PAUSE)
        for end in (self._selector, self._asked, self._asking):
            with suppress(OSError):
                end.close()

    def poke(self) -> None:
        """Let it look at once; safe in any thread."""
        with suppress(OSError):  # full: it is awake already
            self._asking.send(b"\0")

    def expect_hunger(self) -> None:
        """Know that a driver is hungry now: where news has to be asked for, ask from now on."""
        if self._ear is None:
            self.poke()

    def note_held(self, keys: Iterable[int]) -> None:
        """Note, where it survives this process, which rows a transaction of it is going to hold."""
        with self._using_engine:
            workers.note_held(self._engine, self._worker_id, keys)

    @property
    def is_alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def _work(self) -> None:
        hold_off_signals()
        pauses = _pauses()
        while not self._is_stopping:
            began = time.monotonic()
            try:
                self._live()
            except TRANSIENT as error:
                logger.warning("The heart of this worker misses the database: %s", error)
            except Exception:
                logger.exception("The heart of this worker has stumbled; it goes on")
            if time.monotonic() - began > LONGEST_PAUSE:
                pauses = _pauses()
            if not self._is_stopping:
                self._begin_anew(next(pauses))
        self._leave()

    def _begin_anew(self, pause: float) -> None:
        self._disconnect()
        self._judges_from = time.monotonic() + GRACE
        self._pause(pause)

    def _live(self) -> None:
        """Beat and look until the connection is lost, or the worker stops."""
        engine, vendor = self._engine, self._engine.vendor
        with self._using_engine:
            has_lock = vendor.has_session_locks(engine.connection)
            if has_lock:
                vendor.prepare_control(engine.connection)
            watch = vendor.watch(engine.connection, NEW)
            self._ear = watch.fileno()
            if self._ear is not None:
                self._selector.register(self._ear, selectors.EVENT_READ)
        self._next_beat = 0.0
        while not self._is_stopping:
            now = time.monotonic()
            if now >= self._next_beat:
                self._next_beat = now + workers.BETWEEN_BEATS
                self._beat(has_lock)
            hungry = [driver for driver in self._drivers if driver.is_hungry]
            if now >= self._next_look:
                self._look(hungry or self._drivers)
            if not hungry:
                # Nobody need be woken; but what becomes due may be more urgent than what waits.
                self._next_look = min(self._next_look, now + BETWEEN_LOOKS)
            self._wait(watch, hungry)

    def _beat(self, has_lock: bool) -> None:
        with self._using_engine:
            if has_lock and self._lock is None:
                key = workers.lock_key(self._worker_id)
                self._lock = self._engine.vendor.session_lock(self._engine.connection, key)
            pulse = workers.beat(self._engine, self._worker_id)
            if pulse.requests is None:
                self._register(has_lock)
            elif pulse.requests:
                self._do(pulse.requests)
            if time.monotonic() >= self._judges_from:
                self._rescue(pulse.suspects)
            if time.monotonic() >= self._next_expiry:
                self._next_expiry = time.monotonic() + _between_expiries()
                readiness.expire(self._engine)
        self._registered.set()

    def _register(self, has_lock: bool) -> None:
        if self._registered.is_set():
            logger.warning("This worker was taken for dead; what it ran runs again")
        workers.register(
            self._engine,
            self._worker_id,
            name=self._name,
            queues=self._queues,
            supervisor=self._supervisor,
            has_lock=has_lock,
        )
        # What ended the last worker on this host may be what would be taken first.
        self._rescue(filter(_has_ended, workers.all_but(self._engine, self._worker_id)))

    def _do(self, requests: str) -> None:
        if workers.take_requests(self._engine, self._worker_id, requests):
            for request in requests.split():
                self._on_request(request)

    def _rescue(self, suspects: Iterable[workers.Suspect]) -> None:
        for suspect in suspects:
            count = workers.rescue(self._engine, suspect)
            if count is not None:
                logger.warning(
                    "The worker %s is dead; %d task(s) that it ran are to run again",
                    suspect.worker_id,
                    count,
                )
                self._next_look = 0.0

    def _look(self, drivers: Collection[Driver]) -> None:
        """Wake these if there is something for them."""
        self._next_look = time.monotonic() + self._sleep
        wanted = _wanted(drivers)
        if not wanted.names:
            return
        with self._using_engine:
            found = readiness.look(self._engine, wanted)
            if found.is_unsettled:
                if readiness.adopt(self._engine):
                    # A worker of the predecessor may have locked some of them, and be gone.
                    readiness.expire(self._engine)
                readiness.promote(self._engine)
                found = readiness.look(self._engine, wanted)
        if found.is_ready or found.is_rescued:
            _wake(drivers)
        if found.upcoming is not None:
            upcoming = time.monotonic() + max(found.upcoming, 0)
            self._next_look = min(self._next_look, upcoming)

    def _wait(self, watch: vendors.Watch, hungry: Collection[Driver]) -> None:
        """Wait for the next beat, the next look, or news."""
        until = min(self._next_beat, self._next_look)
        if self._ear is None and hungry:
            self._ask(watch, hungry, until)
        elif self._pause(until - time.monotonic()):
            with self._using_engine:
                is_news = watch.has_news()
            if is_news:
                _wake(self._drivers)
                # Some that are stored soon after are not told of.
                soon = time.monotonic() + BETWEEN_NOTICES
                self._next_look = min(self._next_look, soon)

    def _ask(self, watch: vendors.Watch, hungry: Collection[Driver], until: float) -> None:
        """Ask for news, again and again, until there is some or the time has come."""
        wanted = _wanted(hungry)
        pause = self._engine.vendor.between_questions
        question, parameters = readiness.first(self._engine, wanted)
        while wanted.names and (left := until - time.monotonic()) > 0:
            if self._pause(min(left, pause)):
                return
            with self._using_engine:
                if not watch.has_news():
                    continue
                if not watch.is_certain and not self._engine.fetch(question, parameters):
                    continue
            if watch.is_certain:
                self._next_look = 0.0
            else:
                _wake(hungry)
            return
        self._pause(until - time.monotonic())

    def _pause(self, timeout: float) -> bool:
        """Wait; tells whether there is something to hear."""
        ready = self._selector.select(max(timeout, 0))
        if not ready:
            return False
        if self._asked in [key.fileobj for key, _ in ready]:
            with suppress(OSError):
                self._asked.recv(4096)
            self._next_look = 0.0
        return True

    def _disconnect(self) -> None:
        with self._using_engine:
            self._lock = None
            if self._ear is not None:
                self._selector.unregister(self._ear)
                self._ear = None
            self._engine.close()

    def _leave(self) -> None:
        with suppress(Exception), self._using_engine:
            workers.deregister(self._engine, self._worker_id)
            if self._lock is not None:
                self._lock.release()
        self._engine.close()


def _wanted(drivers: Collection[Driver]) -> Wanted:
    each = [driver.wanted() for driver in drivers]
    return replace(each[0], names=frozenset(name for one in each for name in one.names))


def _wake(drivers: Collection[Driver]) -> None:
    for driver in drivers:
        driver.wake()


def _between_expiries() -> float:
    return min(max(app_settings.BACKGROUND_TASK_MAX_RUN_TIME / 4, 0.5), 30.0)


def _has_ended(suspect: workers.Suspect) -> bool:
    return has_ended(suspect.worker_id) is True


def _pauses() -> Iterator[float]:
    """Yield how long to wait before each further try, in seconds."""
    pause = 0.05
    while True:
        yield pause * random.uniform(0.5, 1)  # noqa: S311 - jitter, no secret
        pause = min(2 * pause, LONGEST_PAUSE)
