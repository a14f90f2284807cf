"""A thread that shows that a process lives, and frees what those ran that do not any more.

It has a connection of its own, on which it holds the lock that ends with the process. At each beat
it looks whose heart has stopped.
"""

from __future__ import annotations

import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from background_task import logs, vendors
from background_task.identity import has_ended, this_worker
from background_task.settings import app_settings
from background_task.storage import readiness, workers
from background_task.storage.engine import Engine
from background_task.storage.transient import BETWEEN_COMPLAINTS, TRANSIENT, reason
from background_task.utils import hold_off_signals

logger = logs.named("background_task.tasks")

# After its own connection was lost, a worker judges nobody for so many seconds: others may have
# lost theirs too, and be about to come back.
GRACE = 2.5
# How long a note may have to wait for the heart, in seconds.
LONGEST_NOTE = 0.1
# Between two tries to reach the database at most, in seconds.
LONGEST_PAUSE = 1.0


class Heart:
    """The thread, and what it is asked for.

    Args:
        using: the alias of the database.
        name: what operators are to call this worker.
        queues: which it takes, for operators.
        supervisor: the ``worker_id`` of the process that has started this one.
        others: returns the ``worker_id`` of processes that are known to live too.
        on_beat: called at each beat, and when the database could not be reached for one.
        on_request: called with what others ask of this worker.
    """

    def __init__(
        self,
        using: str,
        *,
        name: str,
        queues: str,
        supervisor: str | None = None,
        others: Callable[[], Sequence[str]] = tuple,
        on_beat: Callable[[], None] = lambda: None,
        on_request: Callable[[str], None] = lambda request: None,
    ) -> None:
        self._engine = Engine(using)
        self._name = name
        self._queues = queues
        self._supervisor = supervisor
        self._others = others
        self._on_beat = on_beat
        self._on_request = on_request
        self._worker_id = this_worker()
        self._lock: vendors.SessionLock | None = None
        self._has_lock = False
        self._using_engine = threading.Lock()
        self._next_beat = self._next_expiry = 0.0
        self._judges_from = time.monotonic() + GRACE
        self._missed_since: float | None = None
        self._next_complaint = 0.0
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
        """Say that this worker takes no more tasks, and end the thread.

        It is not waited for longer than a second: it may be waiting for the database.
        """
        self._is_stopping = True
        self.poke()
        if self._thread.is_alive():
            self._thread.join(LONGEST_PAUSE)
        elif self._thread.ident is None:  # it could not be started
            self._close()

    def poke(self) -> None:
        """Let it look at once; safe in any thread."""
        with suppress(OSError):  # full: it is awake already
            self._asking.send(b"\0")

    def note_held(self, keys: Iterable[int]) -> bool:
        """Note, where it survives this process, which rows a transaction of it is going to hold.

        Returns:
            False when the heart does not get to it soon. It may be waiting for a lock on the whole
            table, which waits for that very transaction: no database would see the circle.
        """
        if not self._using_engine.acquire(timeout=LONGEST_NOTE):
            return False
        try:
            workers.note_held(self._engine, self._worker_id, keys)
        finally:
            self._using_engine.release()
        return True

    @property
    def is_alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def _work(self) -> None:
        hold_off_signals()
        try:
            self._live_on()
            self._leave()
        finally:
            self._close()

    def _close(self) -> None:
        for end in (self._selector, self._asked, self._asking):
            with suppress(OSError):
                end.close()

    def _live_on(self) -> None:
        """Live until the worker stops, over one connection after the other."""
        pauses = _pauses()
        while not self._is_stopping:
            began = time.monotonic()
            try:
                self._live()
            except TRANSIENT as error:
                self._misses(error)
            except Exception:
                logger.exception("The heart of this worker has stumbled; it goes on")
            if time.monotonic() - began > LONGEST_PAUSE:
                pauses = _pauses()
            if not self._is_stopping:
                self._on_beat()
                self._begin_anew(next(pauses))

    def _misses(self, error: Exception) -> None:
        """Say that the database is away: at once, and then every now and then."""
        now = time.monotonic()
        if self._missed_since is None:
            self._missed_since = self._next_complaint = now
        if now >= self._next_complaint:
            self._next_complaint = now + BETWEEN_COMPLAINTS
            logger.warning("The heart of this worker misses the database: %s", reason(error))

    def _misses_nothing(self) -> None:
        if self._missed_since is not None:
            missed = time.monotonic() - self._missed_since
            self._missed_since = None
            logger.warning("The database answers again, after %.1f s", missed)

    def _begin_anew(self, pause: float) -> None:
        self._disconnect()
        self._judges_from = time.monotonic() + GRACE
        self._pause(pause)

    def _live(self) -> None:
        """Beat until the connection is lost, or the worker stops."""
        with self._using_engine:
            self._connect()
        self._next_beat = 0.0
        while not self._is_stopping:
            now = time.monotonic()
            if now >= self._next_beat:
                self._next_beat = now + workers.BETWEEN_BEATS
                self._beat()
                self._on_beat()
            self._spend_time(now)

    def _connect(self) -> None:
        engine, vendor = self._engine, self._engine.vendor
        self._has_lock = vendor.has_session_locks(engine.connection)
        if self._has_lock:
            vendor.prepare_control(engine.connection)

    def _spend_time(self, now: float) -> None:
        """Do what there is to do between two beats, or wait for the next."""
        self._pause(self._next_beat - now)

    def _beat(self) -> None:
        with self._using_engine:
            if self._has_lock and self._lock is None:
                key = workers.lock_key(self._worker_id)
                self._lock = self._engine.vendor.session_lock(self._engine.connection, key)
            pulse = workers.beat(self._engine, self._worker_id, self._others())
            if pulse.requests is None:
                self._register()
            elif pulse.requests:
                self._do(pulse.requests)
            if time.monotonic() >= self._judges_from:
                self._rescue(pulse.suspects)
            if time.monotonic() >= self._next_expiry:
                self._next_expiry = time.monotonic() + _between_expiries()
                readiness.expire(self._engine)
        self._misses_nothing()
        self._registered.set()

    def _register(self) -> None:
        if self._registered.is_set():
            logger.warning("This worker was taken for dead; what it ran runs again")
        workers.register(
            self._engine,
            self._worker_id,
            name=self._name,
            queues=self._queues,
            supervisor=self._supervisor,
            has_lock=self._has_lock,
        )
        # What ended the last worker on this host may be what would be taken first.
        self._rescue(filter(_has_ended, workers.all_but(self._engine, self._worker_id)))
        for worker_id in workers.forgotten(self._engine):
            if has_ended(worker_id) and workers.free_forgotten(self._engine, worker_id):
                logger.warning("What %s ran is to run again: that process has ended", worker_id)

    def _do(self, requests: str) -> None:
        if workers.take_requests(self._engine, self._worker_id, requests):
            for request in requests.split():
                self._on_request(request)

    def _rescue(self, suspects: Iterable[workers.Suspect]) -> bool:
        """Free what these ran, as far as they are dead; tells whether there was something."""
        freed = 0
        for suspect in suspects:
            count = workers.rescue(self._engine, suspect)
            if count:
                freed += count
                logger.warning(
                    "The worker %s is dead; %d task(s) that it ran are to run again",
                    suspect.worker_id,
                    count,
                )
            elif count == 0:  # as after what it ran was handed back
                logger.info(
                    "The worker %s has ended; nothing that it ran is to run again",
                    suspect.worker_id,
                )
        return bool(freed)

    def _pause(self, timeout: float) -> bool:
        """Wait; tells whether there is something to hear, beside that somebody has poked."""
        ready = {key.fileobj for key, _ in self._selector.select(max(timeout, 0))}
        if self._asked in ready:
            with suppress(OSError):
                self._asked.recv(4096)
            self._is_poked()
        return bool(ready - {self._asked})

    def _is_poked(self) -> None:
        """Somebody has called :meth:`poke`."""

    def _disconnect(self) -> None:
        with self._using_engine:
            self._lock = None
            self._engine.close()

    def _leave(self) -> None:
        with suppress(Exception), self._using_engine:
            workers.deregister(self._engine, self._worker_id)
            if self._lock is not None:
                self._lock.release()
        with suppress(Exception):
            self._disconnect()


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
