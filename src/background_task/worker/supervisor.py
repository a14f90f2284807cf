"""The process that starts the ones that run tasks, watches them, and replaces those that end.

It runs no task itself, and imports none. What a process ran that was killed is freed at once, since
its end is known here and need not be guessed.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from background_task import logs
from background_task.exceptions import ArgumentValueError, BackgroundTaskError
from background_task.execution import fuse
from background_task.identity import this_worker
from background_task.storage import workers
from background_task.storage.engine import Engine
from background_task.storage.transient import TRANSIENT, reason
from background_task.utils import (
    STOPPING,
    TTW_FAST,
    ForcedStop,
    exit_code,
    hold_off_signals,
    leave,
    say,
    signals_held_back,
)
from background_task.worker import child, taking
from background_task.worker.heart import Heart
from background_task.worker.options import Options
from background_task.worker.process import require_tables
from background_task.worker.shutdown import GRACE, REPLACE
from background_task.worker.systemd import ServiceManager

if TYPE_CHECKING:
    from background_task.tasks import Tasks

logger = logs.named("background_task.tasks")

# New interpreters: a fork would share connections, and locks that threads hold.
_spawning = multiprocessing.get_context("spawn")

# The intervals are in seconds: how long nobody need look, how soon a rescue is tried again and for
# how long at the end, how long a process has to live so that its end is no sign of trouble, and the
# pauses before it is replaced otherwise.
LONGEST_PAUSE = 1.0
BETWEEN_RESCUES = 0.05
LAST_RESCUES = 3.0
AFTER_A_FAILURE = 1.0
SHORT_LIFE = 5.0
SHORTEST_DELAY, LONGEST_DELAY = 0.1, 10.0
# A process that was told to end at once has so long for it before it is killed.
LONGEST_END = 3 * GRACE


class Seat:
    """The place of one process, whoever sits there.

    Args:
        number: from 1.
        options: what the process is to do.
        log_std: see :func:`child.main`.
    """

    def __init__(self, number: int, options: Options, log_std: bool) -> None:
        self.number = number
        self._options = options
        self._log_std = log_std
        self._process: Any = None
        self._orders: Any = None
        self._began = 0.0
        self._failures = 0
        self.not_before = 0.0
        # Of the process, once it has said so.
        self.worker_id: str | None = None
        self.is_done = False

    @property
    def is_taken(self) -> bool:
        """Whether there is a process, ended or not."""
        return self._process is not None

    def start(self) -> None:
        """Start a process.

        Raises:
            OSError: there is no room for one, or the folder we are in has gone.
        """
        orders, theirs = _spawning.Pipe()
        self.worker_id = None
        self._began = time.monotonic()
        process = _spawning.Process(
            target=child.main,
            args=(theirs, self._options, this_worker(), self._log_std),
            name=f"worker {self.number}",
        )
        try:
            if sys.platform != "win32":
                # Otherwise start() would do so, and let the signals through before its time.
                resource_tracker.ensure_running()
            with signals_held_back():
                process.start()
        except OSError:
            orders.close()
            self._failures += 1
            raise
        finally:
            theirs.close()
        self._process, self._orders = process, orders
        logger.info("Started process %d (number %s)", self.number, self._process.pid)

    def files(self) -> list[Any]:
        """Return what can be read when the process has ended or has something to say."""
        return [self._process.sentinel, self._orders.fileno()] if self.is_taken else []

    def hear(self) -> None:
        """Hear what the process has to say."""
        with suppress(EOFError, OSError):
            while self.is_taken and self._orders.poll():
                self.worker_id = self._orders.recv()

    def tell(self, order: str) -> None:
        """Tell the process what to do; one that has ended does not hear it."""
        if self.is_taken:
            with suppress(OSError):
                self._orders.send(order)

    def leave(self) -> int | None:
        """Free the seat if its process has ended; return its exit code, None while it lives."""
        if not self.is_taken or self._process.exitcode is None:
            return None
        self.hear()
        code: int = self._process.exitcode
        self._process.close()
        self._orders.close()
        self._process = self._orders = None
        self._failures = 0 if time.monotonic() - self._began > SHORT_LIFE else self._failures + 1
        return code

    def delay(self) -> float:
        """Put the next start off, the longer the more often the process did not live long."""
        pause = SHORTEST_DELAY * 2 ** (self._failures - 1) if self._failures > 1 else 0.0
        pause = min(pause, LONGEST_DELAY)
        self.not_before = time.monotonic() + pause
        return pause

    def kill(self) -> None:
        """End the process, whatever it does."""
        with suppress(OSError, ValueError, AttributeError):  # it has ended, or is being freed
            self._process.kill()


class Supervisor:
    """A worker of several processes.

    Args:
        tasks: the registry.
        options: what they are to do together.
        signals: what tells it to stop: a ``SignalManager``.
        service: who is told how it is.
        log_std: whether what the processes print goes to the log.
    """

    def __init__(
        self,
        tasks: Tasks,
        options: Options,
        signals: Any,
        service: ServiceManager,
        *,
        log_std: bool = False,
    ) -> None:
        self._options = options
        self._signals = signals
        self._service = service
        self._tasks = tasks
        self._using = options.database or tasks.queue_database()
        self._deadline = time.monotonic() + options.duration if options.duration > 0 else None
        alone = replace(options, processes=1, duration=0.0, shutdown_timeout=None)
        name = options.worker_name or socket.gethostname()
        self._seats = [
            Seat(number, replace(alone, worker_name=f"{name} {number}"), log_std)
            for number in range(1, options.processes + 1)
        ]
        self._engine = Engine(self._using)
        # What has ended the processes of which something may be left to free.
        self._lost: dict[str, int] = {}
        self._next_rescue = 0.0
        self._force_at: float | None = None
        self._kill_at: float | None = None
        self._give_up_at: float | None = None
        self._is_stopping = self._is_forcing = self._is_ready = False
        self._pace = TTW_FAST
        self._has_failed = self._was_cut_off = False

    def run(self) -> None:
        """Work until the options or a signal say that it is enough.

        Raises:
            BackgroundTaskError: the processes cannot start; they have said why.
            ForcedStop: something that ran was cut off, and is to run again.
        """
        if taking.is_alone(self._tasks, self._using):
            raise ArgumentValueError(
                f"--processes {self._options.processes} cannot be had here: other processes do "
                "not see the rows. Use a database in a file or on a server, outside a transaction."
            )
        require_tables(self._using)
        with ExitStack() as stack:
            stack.callback(self._engine.close)
            heart = Heart(
                self._using,
                name=self._options.worker_name or socket.gethostname(),
                queues=str(self._options.queues),
                others=self._living,
            )
            stack.callback(heart.stop)
            heart.start()
            self._service.watch(lambda: heart.is_alive)
            stack.callback(self._kill_all)  # when something unforeseen happens here
            self._watch_over()
        if self._has_failed:
            raise BackgroundTaskError("The processes of this worker cannot start; see above.")
        # Of what could not be freed nobody knows whether it ran.
        is_unknown = any(code not in (child.DONE, REPLACE) for code in self._lost.values())
        if self._was_cut_off or (self._is_stopping and is_unknown):
            raise ForcedStop

    def _living(self) -> list[str]:
        return [seat.worker_id for seat in self._seats if seat.worker_id is not None]

    def _watch_over(self) -> None:
        while True:
            self._heed_signals()
            for seat in self._seats:
                seat.hear()
                if (code := seat.leave()) is not None:
                    self._look_after(seat, code)
            self._rescue()
            if self._is_over():
                return
            self._fill_seats()
            self._tell_service()
            files = [file for seat in self._seats for file in seat.files()]
            self._signals.wait(self._pause(), *files)

    def _heed_signals(self) -> None:
        now = time.monotonic()
        is_over = self._deadline is not None and now >= self._deadline
        if (self._signals.kill_now or is_over) and not self._is_stopping:
            if self._signals.kill_now:
                say(STOPPING)
            self._stop()
        is_late = self._force_at is not None and now >= self._force_at
        if (self._signals.force_now or is_late) and not self._is_forcing:
            self._is_forcing = True
            self._kill_at = now + LONGEST_END
            self._tell(child.FORCE)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_all()
        if self._signals.time_to_wait is not self._pace:
            self._pace = self._signals.time_to_wait
            self._tell(child.FAST if self._pace is TTW_FAST else child.SLOW)

    def _stop(self) -> None:
        self._is_stopping = True
        if (patience := self._options.shutdown_timeout) is not None:
            self._force_at = time.monotonic() + patience
        self._service.is_stopping()
        self._tell(child.STOP)

    def _tell(self, order: str) -> None:
        for seat in self._seats:
            seat.tell(order)

    def _look_after(self, seat: Seat, code: int) -> None:
        """See to it that what the process ran runs again, and that another takes its place."""
        if seat.worker_id is not None:
            self._lost[seat.worker_id] = code
        elif code == child.CANNOT_START:
            self._has_failed = True
            self._stop()
        seat.worker_id = None
        if code == child.DONE and self._options.burst:
            seat.is_done = True
        elif code in (child.DONE, REPLACE):
            return
        elif self._is_stopping and code > child.CUT_OFF:
            self._was_cut_off = True
        elif self._is_forcing:
            return  # whether something ran there, the rescue tells
        elif self._is_stopping:
            logger.error("Process %d was ended by %s", seat.number, _cause(code))
        else:
            pause = seat.delay()
            logger.error(
                "Process %d was ended by %s; another starts in %.1f s",
                seat.number,
                _cause(code),
                pause,
            )

    def _rescue(self) -> None:
        if time.monotonic() < self._next_rescue:
            return
        self._next_rescue = time.monotonic() + BETWEEN_RESCUES
        for worker_id, code in list(self._lost.items()):
            try:
                suspect = workers.find(self._engine, worker_id)
                if suspect is None:
                    del self._lost[worker_id]
                    continue
                count = workers.rescue(self._engine, suspect, ended_by=_cause(code))
            except TRANSIENT as error:
                logger.warning("What %s ran cannot be freed yet: %s", worker_id, reason(error))
                self._engine.close()
                self._next_rescue = time.monotonic() + AFTER_A_FAILURE
                return
            if count:
                self._was_cut_off |= self._is_stopping
                logger.warning("%d task(s) that %s ran are to run again", count, worker_id)

    def _is_over(self) -> bool:
        if any(seat.is_taken for seat in self._seats):
            return False
        if not (self._is_stopping or all(seat.is_done for seat in self._seats)):
            return False
        # What is missed in the end, the hearts of other workers will notice.
        if self._give_up_at is None:
            self._give_up_at = time.monotonic() + LAST_RESCUES
        return not self._lost or time.monotonic() >= self._give_up_at

    def _fill_seats(self) -> None:
        if self._is_stopping:
            return
        for seat in self._seats:
            if not (seat.is_taken or seat.is_done) and time.monotonic() >= seat.not_before:
                try:
                    seat.start()
                except OSError as error:
                    pause = seat.delay()
                    text = "Process %d cannot be started, trying again in %.1f s: %s"
                    logger.error(text, seat.number, pause, error)
                    continue
                if self._pace is not TTW_FAST:
                    seat.tell(child.SLOW)

    def _tell_service(self) -> None:
        if not self._is_ready and len(self._living()) == len(self._seats):
            self._is_ready = True
            self._service.is_ready(
                f"{len(self._seats)} processes take tasks of the queues {self._options.queues}"
            )

    def _pause(self) -> float:
        """Return how long nothing happens by itself, in seconds."""
        now = time.monotonic()
        moments = [seat.not_before for seat in self._seats if not seat.is_taken]
        moments += [self._next_rescue] if self._lost else []
        ends = [self._kill_at] if self._is_forcing else [self._force_at, self._deadline]
        moments += [moment for moment in ends if moment is not None]
        return min([LONGEST_PAUSE, *(max(moment - now, 0.01) for moment in moments)])

    def _kill_all(self) -> None:
        for seat in self._seats:
            seat.kill()

    def leave_soon(self) -> None:
        """End all processes, and this one, soon after a second signal, if it has not ended yet."""
        hold_off_signals()
        time.sleep(LONGEST_END + GRACE)
        self._kill_all()
        leave(exit_code(self._signals.signum))


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    if -code == fuse.SIGNAL:
        return "the kernel: a task has kept Python's global lock for longer than its timeout"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
