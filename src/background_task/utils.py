"""POSIX signals, as the predecessor's ``SignalManager`` takes them, and two it did not."""

from __future__ import annotations

import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

TTW_SLOW = [0.5, 1.5]
TTW_FAST = [0.0, 0.1]
LONGEST_WAIT = 3600.0


class ForcedStop(BaseException):
    """Raised in a running task by the second request to stop. Not an error of the task."""


class SignalManager:
    """Turns signals into what the worker's loop asks for between two tasks.

    SIGTERM, SIGINT and SIGTSTP (on Windows SIGTERM, SIGINT and SIGBREAK) ask it to stop after the
    task that runs. A second one stops that task too. SIGUSR1 and SIGUSR2 choose the fast and the
    slow pace. Outside the main thread, where Python accepts no handlers, none is installed.
    """

    kill_now = False
    force_now = False
    signum: int | None = None
    time_to_wait = TTW_FAST

    _active: SignalManager | None = None

    def __init__(self) -> None:
        self._interruptible = False
        self._previous: dict[int, Any] = {}
        # A handler may not touch a lock that the interrupted code could hold, so it wakes the loop
        # through a socket. (On Windows select() takes nothing else.)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        if threading.current_thread() is threading.main_thread():
            self._install()
            SignalManager._active = self

    def _install(self) -> None:
        stopping = ["SIGTERM", "SIGINT", "SIGBREAK" if sys.platform == "win32" else "SIGTSTP"]
        handlers = dict.fromkeys(stopping, self.exit_gracefully)
        if sys.platform != "win32":
            handlers |= {"SIGUSR1": self.speed_up, "SIGUSR2": self.slow_down}
        for name, handler in handlers.items():
            number = getattr(signal, name)
            self._previous[number] = signal.signal(number, handler)

    def restore(self) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()
        if SignalManager._active is self:
            SignalManager._active = None
        for end in (self._wake_read, self._wake_write):
            with suppress(OSError):  # a task may have closed every file it found
                end.close()

    def exit_gracefully(self, signum: int | None, frame: FrameType | None) -> None:
        """Ask the loop to stop after the task that runs; the second time, at once."""
        if signum is not None:
            self.signum = signum
        self.force_now = self.kill_now
        self.kill_now = True
        self.wake()
        if self.force_now and self._interruptible:
            self._interruptible = False
            raise ForcedStop

    def speed_up(self, signum: int | None, frame: FrameType | None) -> None:
        """Take the next task without a pause."""
        self.time_to_wait = TTW_FAST
        self.wake()

    def slow_down(self, signum: int | None, frame: FrameType | None) -> None:
        """Rest for 0.5 to 1.5 s after each task."""
        self.time_to_wait = TTW_SLOW

    def wait(self, seconds: float) -> None:
        """Sleep for ``seconds``, or until a signal or :meth:`wake`."""
        ready, _, _ = select.select([self._wake_read], [], [], min(max(seconds, 0), LONGEST_WAIT))
        if ready:
            self._wake_read.recv(4096)

    def wake(self) -> None:
        """End :meth:`wait` now; safe from any thread and from a signal handler."""
        with suppress(OSError):  # full: it is awake already; closed: nobody waits
            self._wake_write.send(b"\0")


@contextmanager
def interruptible() -> Iterator[None]:
    """Within this block the second request to stop raises :class:`ForcedStop`.

    Only in the main thread, the one that Python runs signal handlers in.
    """
    manager = SignalManager._active
    if manager is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    manager._interruptible = True
    try:
        yield
    finally:
        manager._interruptible = False


def exit_code(signum: int | None) -> int:
    """Return the exit code of a worker that was forced to stop: 128 + the signal, as shells do."""
    return 128 + (signum or signal.SIGTERM)
