"""Call the function of a task: plain or ``async``, and never twice in one process."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from asgiref.sync import async_to_sync

from background_task.execution.interruptions import (
    Body,
    CoroutineBody,
    FunctionBody,
    frames_of_task,
    here,
    limits,
)
from background_task.execution.runs import Run
from background_task.policies.runs import is_async
from background_task.utils import ForcedStop, SignalManager, interruptible, leave

# Time for a coroutine to tidy up, in seconds.
BETWEEN_CANCELLATIONS = 1.0


def call(
    function: Callable[..., Any], args: Any, kwargs: Any, run: Run, timeout: float | None
) -> Any:
    """Call ``function`` in this thread, and end it early when it takes too long, or has to.

    Args:
        function: plain or ``async``.
        args, kwargs: what to call it with.
        run: what it is the body of.
        timeout: how long it may take, in seconds; None is as long as it likes.

    Returns:
        what it returns.

    Raises:
        ForcedStop: the worker was forced to stop.
        TaskTimeoutError, TaskCancelledError: it was ended for another reason.
        BaseException: whatever the function raises.
    """
    process, place = os.getpid(), here()
    before, place.is_busy = place.is_busy, True
    try:
        if is_async(function):
            return _call_async(function, args, kwargs, run, timeout)
        limit = _limited(FunctionBody(place, run), run, timeout)
        with place.occupied(run, _give_up), limit, interruptible():
            return function(*args, **kwargs)
    finally:
        place.is_busy = before
        leave_if_forked(process)


def _give_up(run: Run, error: BaseException) -> None:
    if run.give_up is not None:
        run.give_up(error)


@contextmanager
def _limited(body: Body, run: Run, timeout: float | None) -> Iterator[None]:
    if timeout is None:
        yield
        return
    limit = limits.begin(body, run.task or "The task", timeout)
    try:
        yield
    finally:
        limits.end(limit)


def _call_async(
    function: Callable[..., Any], args: Any, kwargs: Any, run: Run, timeout: float | None
) -> Any:
    async def body() -> Any:
        run.frames = partial(frames_of_task, asyncio.current_task(), threading.get_ident())
        run.cancel = canceller(asyncio.get_running_loop(), asyncio.current_task())
        process = os.getpid()
        try:
            with _limited(CoroutineBody(run), run, timeout):
                return await function(*args, **kwargs)
        finally:
            leave_if_forked(process)
            run.cancel = None

    def stop() -> None:
        if run.cancel is None:
            raise ForcedStop
        run.cancel()

    # An exception raised in this thread would abandon the coroutine, which runs in another one.
    with interruptible(stop):
        try:
            return async_to_sync(body)()
        except asyncio.CancelledError:
            if SignalManager.is_forced():
                raise ForcedStop from None
            if run.reason is not None:
                raise run.reason from None
            raise


def canceller(
    loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None
) -> Callable[[], None]:
    """Return what cancels ``task`` until it ends; safe in any thread and in a signal handler.

    Once is not enough: a coroutine that waits for a call of ``sync_to_async``, and so for any
    query, loses the cancellation when the call returns.
    """

    def cancel() -> None:
        if task is not None and not task.done():
            task.cancel()
            loop.call_later(BETWEEN_CANCELLATIONS, cancel)

    def cancel_threadsafe() -> None:
        with suppress(RuntimeError):  # the loop has ended in this moment
            loop.call_soon_threadsafe(cancel)

    return cancel_threadsafe


def leave_if_forked(process: int) -> None:
    """End a child that the function has forked and that comes back from it.

    It would record the outcome a second time, over a connection that belongs to its parent, and go
    on as a second worker.

    Args:
        process: the number of the process in which the function was called.
    """
    if os.getpid() == process:
        return
    error = sys.exception()
    code = 0 if error is None else 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exc()
    leave(code)
