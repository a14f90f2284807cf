"""Call the function of a task: plain or ``async``, and never twice in one process."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction

from background_task.execution.runs import Run
from background_task.utils import ForcedStop, SignalManager, interruptible, leave

# Time for a coroutine to tidy up, in seconds.
BETWEEN_CANCELLATIONS = 1.0


def call(function: Callable[..., Any], args: Any, kwargs: Any, run: Run) -> Any:
    """Call ``function`` in this thread, and end it early when the worker is forced to stop.

    Returns what it returns.

    Raises:
        ForcedStop: it was ended early.
        BaseException: whatever the function raises.
    """
    process = os.getpid()
    try:
        if is_async(function):
            return _call_async(function, args, kwargs, run)
        with interruptible():
            return function(*args, **kwargs)
    finally:
        leave_if_forked(process)


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether calling ``function`` gives a coroutine."""
    return iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)


def _call_async(function: Callable[..., Any], args: Any, kwargs: Any, run: Run) -> Any:
    async def body() -> Any:
        run.cancel = canceller(asyncio.get_running_loop(), asyncio.current_task())
        process = os.getpid()
        try:
            return await function(*args, **kwargs)
        finally:
            leave_if_forked(process)

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
