"""POSIX signals, as the predecessor's ``SignalManager`` takes them, and two it did not."""

from __future__ import annotations

import _thread
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from django.utils.log import RequireDebugFalse, RequireDebugTrue

TTW_SLOW = [0.5, 1.5]
TTW_FAST = [0.0, 0.1]
LONGEST_WAIT = 3600.0
# Not select(), which knows no more than 1,024 files, except on Windows, which has nothing else; nor
# epoll, which is a file itself, of which there may be none left.
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


STOPPING = "Stopping when what runs has ended; a second signal hands it back and stops at once."


class ForcedStop(BaseException):
    """Raised in a running task by the second request to stop. Not an error of the task."""


class SignalManager:
    """Turns signals into what the worker's loop asks for between two tasks.

    SIGTERM, SIGINT and SIGTSTP (on Windows SIGTERM, SIGINT and SIGBREAK) ask it to stop after the
    task that runs. A second one stops that task too. SIGUSR1 and SIGUSR2 choose the fast and the
    slow pace. Outside the main thread, where Python accepts no handlers, none is installed.

    Args:
        on_force: called, in a thread of its own, when a task is to be stopped.
    """

    kill_now = False
    force_now = False
    signum: int | None = None
    time_to_wait = TTW_FAST
    # Whether the patience that a stop has with a database that is away is spent.
    has_waited = False
    # After so many seconds the first signal counts as a second one; None is never.
    patience: float | None = None

    # Called in the main thread, wherever that is, when :meth:`send_urgent` was: by a signal that is
    # ignored by default, and that Go's runtime has chosen for the same purpose.
    on_urgent: Callable[[], None] = staticmethod(lambda: None)
    _URGENT = getattr(signal, "SIGURG", None)  # not on Windows

    _active: SignalManager | None = None

    def __init__(self, on_force: Callable[[], None] | None = None) -> None:
        self._on_force = on_force
        self._interrupt: Callable[[], None] | None = None
        self._previous: dict[int, Any] = {}
        self._handlers: dict[int, Any] = {}
        self._outer = SignalManager._active
        self._open_wake()
        if threading.current_thread() is threading.main_thread():
            self._install()
            SignalManager._active = self

    def _open_wake(self) -> None:
        # A handler may not touch a lock that the interrupted code could hold, so it wakes the loop
        # through a socket. (On Windows select() takes nothing else.)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)

    def _install(self) -> None:
        stopping = ["SIGTERM", "SIGINT", "SIGBREAK" if sys.platform == "win32" else "SIGTSTP"]
        handlers = dict.fromkeys(stopping, self.exit_gracefully)
        if sys.platform != "win32":
            handlers |= {"SIGUSR1": self.speed_up, "SIGUSR2": self.slow_down}
            handlers["SIGURG"] = self._handle_urgent
        self._handlers = {getattr(signal, name): handler for name, handler in handlers.items()}
        for number, handler in self._handlers.items():
            self._previous[number] = signal.signal(number, handler)

    def keep(self) -> None:
        """Make sure that the handlers are in place, in the thread that has installed them."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._handlers.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)
        if self._handlers and hasattr(signal, "pthread_sigmask"):  # not on Windows
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handlers)

    def restore(self) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()
        self._handlers.clear()
        if SignalManager._active is self:
            SignalManager._active = self._outer
        for end in (self._wake_read, self._wake_write):
            with suppress(OSError):  # a task may have closed every file it found
                end.close()

    def ignore(self) -> None:
        """Ignore from now on what was handled; the interpreter would restore the defaults."""
        self._handlers.clear()
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def exit_gracefully(self, signum: int | None, frame: FrameType | None) -> None:
        """Ask the loop to stop after the task that runs; the second time, at once.

        ``on_force`` is then called in a thread of its own.
        """
        if signum is not None:
            self.signum = signum
        if self.kill_now and not self.force_now and self._on_force is not None:
            _start_thread(self._on_force)
        if not self.kill_now and self.patience is not None:
            _start_thread(self._lose_patience, self.patience)
        self.force_now = self.kill_now
        self.kill_now = True
        self.wake()
        if self._interrupt is None:
            return
        if not self.force_now:
            say(STOPPING)
            return
        interrupt, self._interrupt = self._interrupt, _raise_forced_stop
        interrupt()

    def _lose_patience(self, seconds: float) -> None:
        """Ask for a stop once more, as whoever has sent the first signal would."""
        hold_off_signals()
        time.sleep(seconds)
        if not self.force_now and self._handlers:  # what is not ours may be running by now
            signal_main_thread(self.signum or signal.SIGTERM)

    def _handle_urgent(self, signum: int | None, frame: FrameType | None) -> None:
        type(self).on_urgent()

    @classmethod
    def can_send_urgent(cls) -> bool:
        """Tell whether :meth:`send_urgent` can be."""
        return cls._active is not None and cls._URGENT in cls._active._previous

    @classmethod
    def send_urgent(cls) -> None:
        """Have :attr:`on_urgent` called in the main thread, whatever that waits for."""
        if cls._URGENT is not None:
            signal_main_thread(cls._URGENT)

    @classmethod
    def is_stopping(cls) -> bool:
        """Tell whether the process was asked to stop, and so has to begin nothing."""
        return cls.stopping() is not None

    @classmethod
    def stopping(cls) -> SignalManager | None:
        """Return what has asked the process to stop; None if nothing has."""
        return cls._active if cls._active is not None and cls._active.kill_now else None

    @classmethod
    def is_forced(cls) -> bool:
        """Tell whether the process was asked to stop at once."""
        return cls._active is not None and cls._active.force_now

    def speed_up(self, signum: int | None, frame: FrameType | None) -> None:
        """Take the next task without a pause."""
        self.time_to_wait = TTW_FAST
        self.wake()

    def slow_down(self, signum: int | None, frame: FrameType | None) -> None:
        """Rest for 0.5 to 1.5 s after each task."""
        self.time_to_wait = TTW_SLOW

    def wait(self, seconds: float, *others: Any) -> bool:
        """Sleep for ``seconds``, or until a signal or :meth:`wake`; tells whether one came.

        Args:
            seconds: how long at most.
            others: files or their numbers; that one can be read ends it, too.
        """
        seconds = min(max(seconds, 0), LONGEST_WAIT)
        try:
            with _Selector() as selector:
                for each in (self._wake_read, *others):
                    selector.register(each, selectors.EVENT_READ)
                ready = selector.select(seconds)
            if any(key.fileobj is self._wake_read for key, _ in ready):
                self._wake_read.recv(4096)
            return bool(ready)
        except (OSError, ValueError):  # a task has closed every file it found
            for end in (self._wake_read, self._wake_write):
                end.detach()  # its number may belong to another file by now
            self._open_wake()
            return True

    def wake(self) -> None:
        """End :meth:`wait` now; safe from any thread and from a signal handler."""
        with suppress(OSError):  # full: it is awake already; closed: nobody waits
            self._wake_write.send(b"\0")


def _start_thread(target: Callable[..., None], *args: Any) -> None:
    """Start a thread in a handler: by threading.Thread it may wait for what it interrupts."""
    with suppress(RuntimeError):  # Python 3.12 starts none any more when it exits
        _thread.start_new_thread(target, args)


def say(text: str) -> None:
    """Write a line to standard error, past every buffer and lock that a signal may interrupt."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


def hold_off_signals() -> None:
    """Let no signal be delivered to this thread, which runs nobody's code but ours.

    Delivered to it, a signal would not wake the main thread, where Python handles it.
    """
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Hold back what is handled here; what is started within inherits that, and has to end it.

    Until a new process has handlers of its own, a signal to the whole group would kill it.
    """
    manager = SignalManager._active
    if manager is None or not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, manager._previous)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def signal_main_thread(number: int) -> None:
    """Have a signal handled as if it had come from outside, whatever the main thread waits for."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:  # Windows, where os.kill() ends the process
        signal.raise_signal(number)


def _raise_forced_stop() -> None:
    raise ForcedStop


class interruptible:  # noqa: N801 - read as a verb
    """Within this block the second request to stop calls ``interrupt``; a further one raises.

    Only in the main thread, the one that Python runs signal handlers in.

    Raises:
        ForcedStop: the request has come before.
    """

    __slots__ = ("_before", "_interrupt", "_manager")

    def __init__(self, interrupt: Callable[[], None] = _raise_forced_stop) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        self._manager = SignalManager._active if is_main else None
        self._interrupt = interrupt

    def __enter__(self) -> None:
        if (manager := self._manager) is not None:
            self._before, manager._interrupt = manager._interrupt, self._interrupt
            if manager.force_now:
                manager._interrupt = self._before
                raise ForcedStop

    def __exit__(self, *raised: object) -> None:
        if self._manager is not None:
            self._manager._interrupt = self._before


_mask = threading.local()


def _before_fork() -> None:
    """Hold signals back until the child has its own handlers: one may be sent to it at once."""
    if SignalManager._active is not None:
        _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, SignalManager._active._previous)


def _after_fork() -> None:
    if (before := _mask.__dict__.pop("before", None)) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_fork_in_child() -> None:
    """Let a process that a task has forked be ended like any other."""
    if SignalManager._active is not None:
        SignalManager._active.restore()
    _after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )


def would_log(logger: logging.Logger, level: int) -> bool:
    """Tell whether a record of this level might reach somebody.

    A logger may be enabled while each of its handlers refuses: Django's default ones do, for what
    is less than an error, unless ``DEBUG`` is on.
    """
    if not logger.isEnabledFor(level):
        return False
    if logger.callHandlers.__code__.co_filename != logging.__file__:
        return True  # replaced by a tool that wants to see every record
    if logger.filters:
        return True
    each: logging.Logger | None = logger
    found = 0
    while each is not None:
        for handler in each.handlers:
            found += 1
            if level >= handler.level and not any(map(_refuses, handler.filters)):
                return True
        each = each.parent if each.propagate else None
    return not found and logging.lastResort is not None and level >= logging.lastResort.level


def _refuses(filter: Any) -> bool:
    return type(filter) in (RequireDebugTrue, RequireDebugFalse) and not filter.filter(None)


class Canary:
    """Tells whether somebody has closed files that are not his: this one is nobody else's."""

    def __init__(self) -> None:
        self._file, other = os.pipe()
        os.close(other)
        self._identity = self._look()

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.fstat(self._file)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @property
    def is_alive(self) -> bool:
        """Whether the file is open, and the one it was."""
        return self._look() == self._identity


def leave(code: int) -> NoReturn:
    """End the process now, whatever its threads do; what was printed is not lost."""
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def exit_code(signum: int | None) -> int:
    """Return the exit code of a worker that was forced to stop: 128 + the signal, as shells do."""
    return 128 + (signum or signal.SIGTERM)
