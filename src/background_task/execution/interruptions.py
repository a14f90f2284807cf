"""Ends the body of a task before its time: it takes too long, or somebody has cancelled it.

First it is asked to: an exception is raised where it stands, or, where it is a coroutine, it is
cancelled. What has not ended some seconds later is recorded as ended, and its process is replaced,
since Python can end no thread. Where it lets no other thread run, the kernel ends the process.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from types import FrameType, TracebackType
from typing import Any, Protocol

from background_task import logs
from background_task.exceptions import TaskTimeoutError
from background_task.execution.fuse import Fuse
from background_task.execution.runs import Run, runs
from background_task.utils import SignalManager, hold_off_signals

logger = logs.named("background_task.tasks")

# How long a body may take to end after it was asked to, and how long we may take to see to it that
# it does not matter, in seconds.
GRACE = 5.0
LAST_GRACE = 5.0
LONGEST_PAUSE = 3600.0


class Body(Protocol):
    """What a task does, while it does it."""

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        ...

    def interrupt(self, error: BaseException) -> None:
        """Ask it to end, with this error; nothing happens when it has ended."""
        ...

    def give_up(self, error: BaseException) -> None:
        """Record that the run has ended with this error, although the body goes on."""
        ...


class Place:
    """A thread in which functions run, one at a time.

    ``token`` is what runs there: something with the ``pk`` of a row; None between two bodies.
    Whoever runs a body sets it before, and calls :meth:`clear` after; what ``clear`` raises has
    come a moment late. ``give_up`` is what records the end of a body that does not come to it.
    ``is_busy`` tells whether a task is called here, if only to wait for a coroutine.
    """

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.token: Any = None
        self.is_busy = False
        self.give_up: Callable[[Any, BaseException], None] = _nothing
        self._lock = threading.Lock()
        self._wanted: tuple[Any, BaseException] | None = None
        self._was_sent = False

    def clear(self, before: Any = None) -> None:
        """Say that the body has ended: from now on nothing is raised in its place.

        Args:
            before: what goes on here, where the body was inside of another.
        """
        with self._lock:
            self.token = before
            if self._was_sent:  # it may not have been raised yet
                self._was_sent = False
                _raise_in(self.thread, None)

    @contextmanager
    def occupied(self, token: Any, give_up: Callable[[Any, BaseException], None]) -> Iterator[None]:
        """Within this block ``token`` runs here, and can be interrupted."""
        before = self.token, self.give_up
        self.token, self.give_up = token, give_up
        try:
            try:
                yield
            finally:
                self.clear(before[0])
        except BaseException as error:
            self.explain(error)
            raise
        finally:
            self.clear(before[0])
            self.give_up = before[1]

    def explain(self, error: BaseException) -> None:
        """Add the reason to the error that a body has ended with, if that was ours."""
        wanted, self._wanted = self._wanted, None
        if wanted is not None and type(wanted[1]) is type(error):
            error.args = wanted[1].args

    def interrupt(self, token: Any, error: BaseException) -> None:
        """Raise an error in what runs here, if that is ``token``."""
        with self._lock:
            if self.token is not token:
                return
            self._wanted = token, error
            if self._is_reached_by_signals():
                SignalManager.send_urgent()
            else:
                self._was_sent = True
                _raise_in(self.thread, type(error))

    def _is_reached_by_signals(self) -> bool:
        # A signal ends what waits in the kernel, too. Only the main thread handles any.
        return self.thread == threading.main_thread().ident and SignalManager.can_send_urgent()

    def raise_wanted(self) -> None:
        """In the handler of the signal: raise what is wanted, if that is still what runs."""
        if self._wanted is not None and self._wanted[0] is self.token:
            raise self._wanted[1]


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    what = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)


def _nothing(token: Any, error: BaseException) -> None:
    pass


_places: dict[int, Place] = {}


def here() -> Place:
    """Return the place of this thread."""
    thread = threading.get_ident()
    place = _places.get(thread)
    if place is None:
        for ended in _places.keys() - sys._current_frames().keys():
            _places.pop(ended, None)
        place = _places[thread] = Place()
    return place


def _raise_in_main_thread() -> None:
    if (place := _places.get(threading.main_thread().ident or 0)) is not None:
        place.raise_wanted()


SignalManager.on_urgent = staticmethod(_raise_in_main_thread)


class FunctionBody:
    """A function that runs in a thread."""

    def __init__(self, place: Place, token: Any) -> None:
        self._place = place
        self._token = token

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._place.token is self._token

    def interrupt(self, error: BaseException) -> None:
        """Raise the error in it."""
        self._place.interrupt(self._token, error)

    def give_up(self, error: BaseException) -> None:
        """Record that it has ended, with the stack that it stands at."""
        frames = frames_of_thread(self._place.thread)
        self._place.give_up(self._token, error.with_traceback(_traceback(frames)))


class CoroutineBody:
    """A coroutine that runs."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._run.cancel is not None

    def interrupt(self, error: BaseException) -> None:
        """Cancel it."""
        self._run.reason = error
        if (cancel := self._run.cancel) is not None:
            cancel()

    def give_up(self, error: BaseException) -> None:
        """Record that it has ended, with the stack that it stands at."""
        if self._run.give_up is not None:
            self._run.give_up(error.with_traceback(_traceback(self._run.frames())))


def frames_of_thread(thread: int) -> list[FrameType]:
    """Return the stack of a thread, the outermost frame first."""
    frames = []
    frame = sys._current_frames().get(thread)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def frames_of_task(task: asyncio.Task[Any] | None, thread: int) -> list[FrameType]:
    """Return the stack of a coroutine, the outermost frame first.

    Args:
        task: what runs it.
        thread: that of its event loop.
    """
    if task is None or asyncio.current_task(task.get_loop()) is task:
        return frames_of_thread(thread)
    frames = []
    awaited: Any = task.get_coro()
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        frames.append(frame)
        awaited = awaited.cr_await
    return frames


def _traceback(frames: list[FrameType]) -> TracebackType | None:
    traceback: TracebackType | None = None
    for frame in reversed(frames):
        traceback = TracebackType(traceback, frame, frame.f_lasti, frame.f_lineno)
    return traceback


def find(pk: int) -> Body | None:
    """Return the body that runs for a row in this process."""
    for place in list(_places.values()):
        if (token := place.token) is not None and token.pk == pk:
            return FunctionBody(place, token)
    for run in runs.of(pk):
        if run.cancel is not None:
            return CoroutineBody(run)
    return None


class Limit:
    """When a body is to be ended, unless it has ended before.

    Args:
        body: what is to be ended.
        when: a reading of ``time.monotonic()``.
        error: the reason.
    """

    def __init__(self, body: Body, when: float, error: BaseException) -> None:
        self.body = body
        self.when = when
        self.error = error
        self.was_asked = False
        # When the kernel is to end the process, since nobody here has got to do so.
        self.at_last = when + GRACE + LAST_GRACE


class Limits:
    """The thread that looks at the clock. It is started when there is something to look for."""

    def __init__(self) -> None:
        self.forget()
        # Ends this process, and sees to it that another takes its place; None where that cannot be.
        self.replace_process: Callable[[], None] | None = None

    def forget(self) -> None:
        """Start afresh, as a forked child must."""
        self._changed = threading.Condition()
        self._limits: set[Limit] = set()
        self._next = math.inf
        self._thread: threading.Thread | None = None
        self._fuse: Fuse | None = None
        self._fused: Limit | None = None

    def begin(self, body: Body, name: Any, timeout: float) -> Limit:
        """Interrupt ``body`` after so many seconds, unless :meth:`end` comes first.

        Args:
            body: what is limited.
            name: what the error calls it.
            timeout: seconds.
        """
        error = TaskTimeoutError(f"{name} has run for longer than its timeout of {timeout:g} s.")
        return self._add(Limit(body, time.monotonic() + timeout, error))

    def interrupt(self, body: Body, error: BaseException) -> None:
        """Interrupt ``body`` now."""
        self._add(Limit(body, time.monotonic(), error))

    def end(self, limit: Limit) -> None:
        """Limit it no more: it has ended."""
        with self._changed:
            self._limits.discard(limit)
            if limit is self._fused:
                self._light(min(self._limits, key=attrgetter("at_last"), default=None))

    def _add(self, limit: Limit) -> Limit:
        with self._changed:
            self._limits.add(limit)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="limits", daemon=True)
                self._thread.start()
            if limit.when < self._next:
                self._changed.notify()
            if self.replace_process is not None and (
                self._fused is None or limit.at_last < self._fused.at_last
            ):
                self._light(limit)
        return limit

    def _light(self, limit: Limit | None) -> None:
        """Let the kernel end this process if nothing here ends this one; None is for none."""
        self._fused = limit
        if self._fuse is None:
            self._fuse = Fuse()
        if limit is None or self.replace_process is None:
            self._fuse.put_out()
        else:
            self._fuse.light(limit.at_last - time.monotonic())

    def _work(self) -> None:
        hold_off_signals()
        while True:
            with self._changed:
                self._next = min((limit.when for limit in self._limits), default=math.inf)
                pause = self._next - time.monotonic()
                if pause > 0:
                    self._changed.wait(min(pause, LONGEST_PAUSE))
                    continue
                due = [limit for limit in self._limits if limit.when <= self._next]
            for limit in due:
                try:
                    self._heed(limit)
                except Exception:
                    logger.exception("A task could not be ended before its time")
                    limit.when = time.monotonic() + GRACE

    def _heed(self, limit: Limit) -> None:
        if not limit.body.is_running:
            self.end(limit)
        elif limit.was_asked and self.replace_process is not None:
            logger.error("%s It does not give way: the process is replaced", limit.error)
            with self._changed:
                self._light(None)  # we got to do so, and may take our time
            limit.body.give_up(limit.error)
            self.replace_process()
        else:
            if limit.was_asked:
                logger.error("%s It does not give way, and cannot be ended here", limit.error)
            limit.was_asked = True
            limit.body.interrupt(limit.error)
            limit.when = time.monotonic() + GRACE


limits = Limits()

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=limits.forget)
