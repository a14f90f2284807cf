"""One event loop in a thread of its own, for the bodies of ``async`` tasks.

Nothing but coroutines runs there. What comes before and after them, and may wait for a database,
is done by whoever calls :meth:`Flight.begin` and :meth:`Flight.conclude`, in another thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import connections

from background_task import logs
from background_task.exceptions import BackgroundTaskError
from background_task.execution.attempt import Attempt
from background_task.execution.call import canceller, leave_if_forked
from background_task.execution.connections import (
    has_pools,
    is_in_transaction,
    keep_out_of_pools,
    mend,
    refuse_left_open,
    tidy,
)
from background_task.execution.interruptions import CoroutineBody, frames_of_task, limits
from background_task.models import CompletedTask, Task
from background_task.records import Ended
from background_task.signals import close_old
from background_task.utils import SignalManager

logger = logs.named("background_task.tasks")

# So many tasks at a time have a thread for their queries to themselves, and with it a database
# connection. More tasks than that share these: no server grants a thousand connections.
LANES = 8

# How long a task waits for the thread of its lane at its end, in seconds.
PATIENCE = 0.5

# How long what still runs is waited for when the loop is closed, in seconds.
LONGEST_END = 1.0


class Lane:
    """A thread for the queries of some tasks: what ``sync_to_async`` uses in its context."""

    def __init__(self) -> None:
        self.context = contextvars.copy_context()
        self._thread = ThreadSensitiveContext()
        # How many tasks were sent here; belongs to whoever sends them.
        self.users = 0
        # These belong to the loop: how many coroutines run, whether any ever did, and whether the
        # thread is busy with what a task has left behind.
        self.aloft = 0
        self.was_used = False
        self.is_stuck = False

    async def open(self) -> None:
        """Bind the context to a thread, which is made when it is first needed."""
        await self._thread.__aenter__()  # type: ignore[no-untyped-call]
        if has_pools():
            await sync_to_async(keep_out_of_pools)()

    async def close(self) -> None:
        """End the thread and its connections."""
        if self.was_used:
            with suppress(Exception):
                await sync_to_async(connections.close_all)()
        await self._thread.__aexit__(None, None, None)  # type: ignore[no-untyped-call]

    async def do(self, what: Callable[[], Any]) -> None:
        """Call ``what`` in the thread, without waiting for long if that is busy."""
        call = asyncio.ensure_future(sync_to_async(what)())
        call.add_done_callback(self._is_free)
        with suppress(BaseException):  # the task may be cancelled once more
            done, _ = await asyncio.wait([call], timeout=PATIENCE)
            self.is_stuck = not done

    def _is_free(self, call: asyncio.Future[Any]) -> None:
        self.is_stuck = False
        if not call.cancelled():
            call.exception()  # or asyncio would complain that nobody asked


class Flight:
    """One attempt whose body is a coroutine.

    Args:
        attempt: the attempt; it has a row.
        task: that row.
        lane: where its queries go.
    """

    began = ended_at = 0.0
    value: Any = None
    error: BaseException | None = None
    # What ``value`` is stored as.
    text: str | None = None

    def __init__(self, attempt: Attempt, task: Task, lane: Lane) -> None:
        self.attempt = attempt
        self.task = task
        self.lane = lane
        # Called, in the thread of the loop, when the body begins.
        self.on_start: Callable[[], None] = _nothing_to_do
        # Receivers and the body see each other's context variables, as they do in one thread.
        self._context = lane.context.copy()
        self._args: Any = ()
        self._kwargs: dict[str, Any] = {}

    def begin(self) -> bool:
        """Announce the attempt; False when it has failed before its body could run."""
        try:
            self._args, self._kwargs = self._context.run(self.attempt.begin)
        except BaseException as error:
            self.error = error
            return False
        return True

    def launch(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        """Start the coroutine; called in the thread of the loop."""
        return loop.create_task(self._fly(), context=self._context)

    async def _fly(self) -> None:
        lane, run = self.lane, self.attempt.run
        lane.aloft += 1
        lane.was_used = True
        run.frames = partial(frames_of_task, asyncio.current_task(), threading.get_ident())
        run.cancel = canceller(asyncio.get_running_loop(), asyncio.current_task())
        process = os.getpid()
        self.began = time.perf_counter()
        run.has_begun = True
        self.on_start()
        limit = None
        try:
            if run.is_given_up:  # somebody else may have begun it by now
                raise asyncio.CancelledError
            if (timeout := self.attempt.timeout) is not None:
                limit = limits.begin(CoroutineBody(run), self.task, timeout)
            with self.attempt.as_current():
                self.value = await self.attempt.function(*self._args, **self._kwargs)
        except BaseException as error:  # KeyboardInterrupt would end the loop
            leave_if_forked(process)
            self.error = error
            if isinstance(error, asyncio.CancelledError) and run.reason is not None:
                self.error = run.reason.with_traceback(error.__traceback__)
        leave_if_forked(process)
        run.cancel = None
        if limit is not None:
            limits.end(limit)
        self.ended_at = time.perf_counter()
        if lane.aloft == 1:
            await lane.do(self._tidy)
        else:
            await lane.do(self._look_around)
        lane.aloft -= 1

    def _tidy(self) -> None:
        """Put right what this task, or one that has shared its connections, has left behind."""
        try:
            refuse_left_open(tidy(), self.task)
        except BackgroundTaskError as error:
            self.error = self.error or error

    def _look_around(self) -> None:
        """Look after the connections that this task has shared with others."""
        if self.error is not None:
            mend()
        if is_in_transaction():
            logger.error(
                "%s has ended, and on the connection that it shares with other async tasks a "
                "transaction is open: what they write may be rolled back. Do not keep one open "
                "across an await.",
                self.task,
            )

    @property
    def is_waiting(self) -> bool:
        """Whether the body has not begun, and may yet."""
        return not self.began and self.error is None

    def encode(self) -> bool:
        """Make the text to store of what was returned; False when the attempt has failed."""
        if self.error is None and not self.attempt.run.is_given_up:
            try:
                self.text = self.attempt.encode(self.value)
            except BaseException as error:
                self.error = error
        return self.error is None and not self.attempt.run.is_given_up

    @property
    def is_in_a_chain(self) -> bool:
        """Whether another row is to be stored when this one has ended."""
        return bool(self.task.repeat > 0 or self.task.unique_key)

    def ended(self) -> Ended:
        """Return how it has ended, after :meth:`encode`."""
        return Ended(self.task, self.began, self.ended_at, self.text)

    def conclude(self, recorded: Mapping[int, CompletedTask | None]) -> None:
        """Record how it ended, unless that was done already, and announce it.

        Args:
            recorded: the successes that are stored, by the key of their rows.
        """
        # A copy: a task may have left something behind that goes on in the original.
        self._context.copy().run(self._conclude, recorded)

    def _conclude(self, recorded: Mapping[int, CompletedTask | None]) -> None:
        try:
            if self.attempt.run.is_given_up:
                return
            if self.error is not None:
                self._fail(self.error)
            elif self.task.pk in recorded:
                self.attempt.has_succeeded(recorded[self.task.pk], is_recorded=True)
            else:
                self.attempt.succeed(self.value)
        except BaseException as error:
            self._fail(error)
        finally:
            self.attempt.end()

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError) and SignalManager.is_forced():
            self.attempt.run.hand_back()
            return
        frames = error.__traceback__
        try:
            raise error
        except BaseException as raised:
            # The traceback is that of the task, and does not tell of this thread.
            self.attempt.fail(raised.with_traceback(frames))


class EventLoop:
    """The loop and its thread. No task can end it: not by an exit, nor by stopping it.

    Args:
        on_end: called, in the thread of the loop, with each flight whose body has ended.
    """

    def __init__(self, on_end: Callable[[Flight], None]) -> None:
        self._on_end = on_end
        self._lanes = [Lane() for _ in range(LANES)]
        self._aloft: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._is_closing = False
        self._is_ready = threading.Event()
        # Its signals are not held off: what a task starts would inherit that.
        self._thread = threading.Thread(target=self._run, name="event loop", daemon=True)
        self._thread.start()
        self._is_ready.wait()  # a context that is copied too soon would belong to no lane

    def emptiest_lane(self) -> Lane:
        """Return the lane that the fewest tasks use."""
        return min(self._lanes, key=lambda lane: (lane.is_stuck, lane.users))

    def launch(self, flight: Flight) -> None:
        """Run the body of ``flight``."""
        self._loop.call_soon_threadsafe(self._launch, flight)

    def rest(self) -> None:
        """Close the connections that are past their lifetime, where nothing runs."""
        for lane in self._lanes:
            if lane.was_used and not lane.users:
                self._loop.call_soon_threadsafe(
                    self._start, lane.do(close_old), lane.context.copy()
                )

    def mend(self) -> None:
        """After an outage: close what is broken, before what is launched from now on uses it."""
        for lane in self._lanes:
            if lane.was_used:
                # Not lane.do(), which would come to the thread a step after what is launched.
                what = sync_to_async(partial(mend, after_an_outage=True))
                self._loop.call_soon_threadsafe(self._start, what(), lane.context.copy())

    def close(self) -> None:
        """End the loop and its threads; what does not end by itself is left behind."""
        self._is_closing = True
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LONGEST_END)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        for lane in self._lanes:
            self._finish(lane.open(), lane.context)
        self._is_ready.set()
        while not self._is_closing:
            try:
                self._loop.run_forever()
            except BaseException:
                # Such as SystemExit in something that a task has started; asyncio lets it through.
                logger.exception("A part of an async task has called for an exit; the loop goes on")
        leftover = asyncio.all_tasks(self._loop)
        for task in leftover:
            task.cancel()
        self._finish(asyncio.wait(leftover, timeout=LONGEST_END) if leftover else _nothing())
        for lane in self._lanes:
            self._finish(lane.close(), lane.context)
        self._finish(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _finish(
        self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context | None = None
    ) -> None:
        """Run a coroutine of our own to its end."""
        task = self._loop.create_task(coroutine, context=context)
        while not task.done():
            with suppress(BaseException):
                self._loop.run_until_complete(task)

    def _launch(self, flight: Flight) -> None:
        task = flight.launch(self._loop)
        self._aloft.add(task)  # the loop itself holds it weakly
        task.add_done_callback(lambda task: self._end(flight, task))

    def _end(self, flight: Flight, task: asyncio.Task[None]) -> None:
        self._aloft.discard(task)
        if flight.error is None:  # unless it could not begin, or something of ours has failed
            flight.error = asyncio.CancelledError() if task.cancelled() else task.exception()
        self._on_end(flight)

    def _start(self, coroutine: Coroutine[Any, Any, None], context: contextvars.Context) -> None:
        task = self._loop.create_task(coroutine, context=context)
        self._aloft.add(task)
        task.add_done_callback(self._aloft.discard)


async def _nothing() -> None:
    pass


def _nothing_to_do() -> None:
    pass
