"""Takes ``async`` tasks, many at a time, lets them run on an event loop, and records how they end.

Both ends go by the batch, in a thread beside the worker's own: a thousand tasks that sleep for a
second would take longer to claim and record one by one than they run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from django.db import connections

from background_task import logs
from background_task import tasks as hooks
from background_task.execution.attempt import Attempt
from background_task.execution.event_loop import LONGEST_END, EventLoop, Flight
from background_task.execution.runs import Run, must_not_run_twice, runs
from background_task.models import CompletedTask, Task
from background_task.records import Claim, Wanted
from background_task.signals import close_old
from background_task.storage import acknowledge, claim
from background_task.storage.batches import MOST_ROWS
from background_task.storage.engine import Engine
from background_task.utils import SignalManager
from background_task.worker import taking
from background_task.worker.budget import Budget
from background_task.worker.options import Queues

if TYPE_CHECKING:
    from background_task.tasks import Tasks

logger = logs.named("background_task.tasks")

AFTER_A_FAILURE = 1.0

# Who is woken when there is something to do looks by himself all the same, in seconds.
LONGEST_PAUSE = 60.0

# How long a batch may take to be announced; what has not begun by then is given back. In seconds.
LONGEST_START = 0.25


class Coroutines:
    """The ``async`` tasks in flight, and the thread that takes and records them.

    Args:
        tasks: the registry.
        queues: which to take.
        backend: take only what came through this alias of Django's door; None takes all.
        concurrency: how many may be in flight at a time.
        budget: how many tasks may still be run.
        on_hunger: called when there is room for more, and nothing was due.
    """

    hears = False

    def __init__(
        self,
        tasks: Tasks,
        queues: Queues,
        backend: str | None,
        concurrency: int,
        budget: Budget,
        on_hunger: Callable[[], None],
    ) -> None:
        self._tasks = tasks
        self._names = taking.Names(tasks)
        self._by = taking.mark_of(tasks)
        self._queues = queues
        self._backend = backend
        self._concurrency = concurrency
        self._budget = budget
        self._on_hunger = on_hunger
        self._loop: EventLoop | None = None
        self._in_flight: set[Flight] = set()
        # The last of those that must not run again when their worker is lost.
        self._alone: Flight | None = None
        self._landed: deque[Flight] = deque()
        self._woken = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._is_stopping = False
        self._is_hungry = self._is_cut = False
        self._next_look = 0.0
        self._most = MOST_ROWS
        # The driver's connection at the last claim.
        self._driver: Any = None

    @property
    def is_hungry(self) -> bool:
        """Whether there is room for more, and nothing was due the last time."""
        return self._is_hungry

    @property
    def is_busy(self) -> bool:
        """Whether a task is in flight, or there was one that may be."""
        return bool(self._in_flight or self._landed) or (
            self._loop is not None and not self._is_hungry
        )

    def wanted(self) -> Wanted:
        """Return which rows are taken."""
        return self._queues.all(self._names.coroutines(), self._backend)

    def wake(self) -> None:
        """Look for tasks."""
        self._next_look = 0
        self._woken.set()

    def start(self) -> None:
        """Take and run tasks from now on, once there is an ``async`` one to know of."""
        if self._loop is None and not self._is_stopping and self._names.coroutines():
            self._loop = EventLoop(self._land)
            self._idle.clear()
            threading.Thread(
                target=self._work, args=[self._loop], name="coroutines", daemon=True
            ).start()

    def stop(self) -> None:
        """Take no more tasks."""
        self._is_stopping = True
        self._woken.set()

    def drain(self, timeout: float | None = None) -> bool:
        """After :meth:`stop`: wait until all has ended and is recorded; tells whether that is so.

        Args:
            timeout: seconds at most.
        """
        return self._idle.wait(timeout)

    def close(self) -> None:
        """End the loop. What was cancelled has a moment to tidy up."""
        self.stop()
        self.drain(LONGEST_END)
        if self._loop is not None:
            self._loop.close()

    def _work(self, loop: EventLoop) -> None:
        while not (self._is_stopping and not self._in_flight):
            try:
                self._record()
                self._take(loop)
            except BaseException:  # whatever it is, the worker goes on
                logger.exception("Async tasks could not be taken or recorded; trying again")
                self._next_look = time.monotonic() + AFTER_A_FAILURE
            pause = self._pause()
            self._is_hungry = pause is not None and pause > 0
            if self._is_hungry:
                self._on_hunger()
            self._woken.wait(pause)
            self._is_hungry = False
            self._woken.clear()
        with suppress(Exception):
            connections.close_all()  # this thread's own
        self._idle.set()

    def _pause(self) -> float | None:
        """Return how long there is nothing to do; None until a flight lands."""
        if self._landed or (self._is_stopping and not self._in_flight):
            return 0
        if self._stops() or self._awaits_start() or len(self._in_flight) >= self._concurrency:
            return None
        return max(self._next_look - time.monotonic(), 0)

    def _awaits_start(self) -> bool:
        """Tell whether a task that must not run again was taken, and has not begun.

        If the worker dies now it has failed, so no other is to share its fate.
        """
        return self._alone is not None and self._alone.is_waiting

    def _stops(self) -> bool:
        return self._is_stopping or SignalManager.is_stopping()

    def _land(self, flight: Flight) -> None:
        self._landed.append(flight)
        self._woken.set()

    def _take(self, loop: EventLoop) -> None:
        """Claim as many tasks as there is room for, and let them run."""
        free = min(self._concurrency - len(self._in_flight), self._most)
        is_early = self._awaits_start() or time.monotonic() < self._next_look
        if free < 1 or self._stops() or is_early:
            return
        # Before the claim: whoever wakes us meanwhile knows of what it may not have seen.
        self._next_look = time.monotonic() + LONGEST_PAUSE
        with self._budget.grant(free) as grant:
            claimed = self._claim(grant.most) if grant.most else []
            waiting = deque(runs.begin(task) for task in claimed)
            grant.taken, grant.begun = len(claimed), lambda: len(claimed) - len(waiting)
        if len(claimed) == free or self._is_cut:
            self._next_look = 0
        driver = connections[self._tasks.queue_database()].connection
        if claimed and driver is not self._driver:
            self._driver = driver
            loop.mend()  # what has ended ours has most likely ended the tasks' too
        if not claimed and not self._in_flight:
            close_old()
            loop.rest()
        began = time.monotonic()
        try:
            while waiting and not self._stops() and time.monotonic() - began < LONGEST_START:
                self._begin(waiting.popleft(), loop)
        finally:
            self._most = min(2 * self._most, MOST_ROWS)
            self._budget.close(grant)
            if waiting:
                self._most = max(1, len(claimed) - len(waiting))
                self._next_look = 0
                runs.hand_back(list(waiting))

    def _begin(self, run: Run, loop: EventLoop) -> None:
        task = run.task
        assert task is not None
        attempt = Attempt(self._tasks._tasks[task.task_name], task, hooks.logger)
        flight = Flight(attempt, task, loop.emptiest_lane())
        flight.lane.users += 1
        logs.safe(hooks.logger).info("Running %s", task)
        self._in_flight.add(flight)
        try:
            if flight.begin():
                if must_not_run_twice(task.policy):
                    self._alone, flight.on_start = flight, self._woken.set
                loop.launch(flight)
                return
        except BaseException as error:
            flight.error = error
        self._land(flight)

    def _claim(self, most: int) -> list[Task]:
        engine = Engine.on(self._tasks.queue_database())
        names = self._names.coroutines()
        steps = self._queues.steps(names, self._backend)
        self._is_cut = False

        def verb() -> list[Task]:
            claims: list[Claim] = []

            def fitting(found: Sequence[Claim]) -> int:
                count = taking.together(self._tasks, [*claims, *found]) - len(claims)
                self._is_cut |= count < len(found)
                return count

            cut = fitting if self._names.have_to_be_cut(names) else None
            for wanted in steps:
                # A single one is taken whether or not it fits; so it has to be the first.
                if not claims or cut is None or most - len(claims) > 1:
                    claims += claim.mark(engine, wanted, most - len(claims), self._by, cut)
                else:
                    self._is_cut = True
            for wanted in steps:
                claims += taking.rescued(engine, wanted, most - len(claims), self._by)
            rows = taking.read(engine.using, claims, self._by)
            # At once, so that all of them are kept, and handed back when the worker has to leave.
            for row in rows.values():
                runs.begin(row)
            return [rows[each.pk] for each in claims if each.pk in rows]

        return taking.take(engine, verb, otherwise=[])

    def _record(self) -> None:
        """Record how the flights have ended that have landed since the last time."""
        while self._landed:
            count = min(len(self._landed), MOST_ROWS)
            flights = [self._landed.popleft() for _ in range(count)]
            recorded: dict[int, CompletedTask | None] = {}
            try:
                recorded = self._record_at_once([flight for flight in flights if flight.encode()])
            finally:
                # First what is recorded already, and has only to be announced.
                for flight in sorted(flights, key=lambda flight: flight.task.pk not in recorded):
                    self._conclude(flight, recorded)
            self._next_look = 0  # they may have enqueued others, or made room

    def _record_at_once(self, flights: Sequence[Flight]) -> dict[int, CompletedTask | None]:
        """Record successes; return what is in the history now, by the keys of the rows."""
        if acknowledge.is_watched():
            return {}
        ended = [flight.ended() for flight in flights if not flight.is_in_a_chain]
        if not ended:
            return {}
        engine = Engine.on(self._tasks.queue_database())
        keys = acknowledge.acknowledge(engine, ended, self._by)
        found = taking.finished(engine.using, [each.claim for each in ended])
        return {key: found.get(key) for key in keys}

    def _conclude(self, flight: Flight, recorded: dict[int, CompletedTask | None]) -> None:
        try:
            flight.conclude(recorded)
        except BaseException:
            logger.exception("%s has ended, which could not be recorded", flight.task)
        finally:
            flight.lane.users -= 1
            self._in_flight.discard(flight)
