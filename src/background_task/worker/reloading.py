"""Signals under Django's autoreloader, where one process starts the other anew that works.

A terminal sends Ctrl-C to both, everybody else to the first one only; that kills the other when it
gets SIGTERM. So only the first one counts signals, and tells the other over a pipe.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from django.utils import autoreload

from background_task.utils import STOPPING, exit_code, hold_off_signals, say, signal_main_thread
from background_task.worker.child import FORCE, STOP, ChildSignals, obey

# The environment variable by which the other process knows where it is told.
_FILE = "BACKGROUND_TASK_ORDERS"
# The exit code by which Django's reloader knows that it is to start the other process anew.
RESTART = 3
# So long after a second signal it may take to end before a further one kills it, in seconds.
LONGEST_END = 6.0


def is_restarted() -> bool:
    """Tell whether this process is the one that works."""
    return os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) == "true"


def hand_on(*names: str) -> None:
    """Hand these signals on from now on, once there is a process that works."""
    if os.name != "posix":  # no pipe is inherited there; Ctrl-C reaches the other process too
        signal.signal(signal.SIGINT, _ignore)
        return
    restart = autoreload.restart_with_reloader

    def restart_and_hand_on() -> int:
        autoreload.restart_with_reloader = restart
        return _restart(restart, names)

    # Handlers of ours would be replaced before that is called.
    autoreload.restart_with_reloader = restart_and_hand_on


def _restart(restart: Callable[[], int], names: tuple[str, ...]) -> int:
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    os.environ[_FILE] = str(reading)
    orders = Connection(writing, readable=False)
    received: list[int] = []
    moments: list[float] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        moments.append(time.monotonic())
        if len(received) > 2 and moments[-1] - moments[1] > LONGEST_END:
            sys.exit(exit_code(signum))  # which kills the other process
        with suppress(OSError):
            orders.send(STOP if len(received) == 1 else FORCE)

    for name in names:
        signal.signal(getattr(signal, name), handle)
    code = restart()
    is_forced = received and code == exit_code(signal.SIGTERM)
    return exit_code(received[-1]) if is_forced else code


def orders() -> Connection | None:
    """Return, in the process that works, where it is told; None if nobody tells it."""
    with suppress(KeyError, ValueError, OSError):
        file = int(os.environ.pop(_FILE))
        os.set_inheritable(file, False)
        return Connection(file, writable=False)
    return None


class RestartedSignals(ChildSignals):
    """Of a worker that runs in a thread beside the reloader, which has the main thread.

    Args:
        orders: where it is told to stop.
    """

    # Whether there is something that may have to be finished.
    is_working = False

    def __init__(self, orders: Connection) -> None:
        super().__init__()
        self._orders = orders
        _once_it_has_begun(self._begin)

    def _begin(self) -> None:
        self.keep()  # the reloader has installed a handler that ends the process at once
        threading.Thread(target=obey, args=[self._orders, self], name="orders", daemon=True).start()

    def exit_gracefully(self, signum: int | None, frame: FrameType | None) -> None:
        """Ask for a stop, or end the process if nothing would heed that."""
        if self.is_working and not self.kill_now:
            say(STOPPING)
        super().exit_gracefully(signum, frame)
        if not self.is_working:
            sys.exit(0)

    def _lose_patience(self, seconds: float) -> None:
        hold_off_signals()
        time.sleep(seconds)
        self.may_force = True
        super()._lose_patience(0)


def end_when_told() -> None:
    """Have the reloader end this process, the one that works, as soon as the other is told so."""
    told = orders()
    if told is None:
        return
    signal.signal(signal.SIGINT, _ignore)  # it would come a second time
    # Nor is a second SIGTERM to interrupt what is done in the end.
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)

    def wait() -> None:
        hold_off_signals()
        with suppress(EOFError, OSError):
            told.recv()
        signal_main_thread(signal.SIGTERM)  # which ends the process by "exit 0"

    _once_it_has_begun(threading.Thread(target=wait, name="orders", daemon=True).start)


def _once_it_has_begun(act: Callable[[], object]) -> None:
    """Do it in the main thread when the reloader has begun, and has installed its handlers."""

    def begin(**kwargs: Any) -> None:
        autoreload.autoreload_started.disconnect(begin)
        act()

    autoreload.autoreload_started.connect(begin, weak=False)


def _ignore(signum: int, frame: FrameType | None) -> None:
    """Not SIG_IGN, which programs that are started would inherit."""
