"""A heart that also looks out for work, between its beats, and wakes whoever waits for some.

It waits for news of new rows, or asks for it where nobody tells; and it says of rows whose time has
come that they may run.
"""

from __future__ import annotations

import math
import selectors
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from django.db import connections

from background_task import vendors
from background_task.execution.runs import runs
from background_task.records import Wanted
from background_task.storage import readiness, workers
from background_task.storage.notifications import BETWEEN_NOTICES, BETWEEN_NOTICES_OF_FEW, NEW
from background_task.worker import taking
from background_task.worker.heart import Heart

# Between two looks while nobody waits, in seconds.
BETWEEN_LOOKS = 0.25
# However short the time that it is to sleep, it sleeps so many seconds.
LEAST_SLEEP = 0.05
# After news, rows may be stored of which nothing is told; so many seconds later there is a look.
ECHOES = (0.00125, 0.0035, BETWEEN_NOTICES_OF_FEW, BETWEEN_NOTICES)
# A file changes a moment before what was written to it can be read: SQLite says last, by shared
# memory, that it is valid, and may wait for the disk before. After these times it is asked again.
MOMENTS = (0.0005, 0.003, 0.007, 0.012, 0.02, 0.1)
# Where nothing tells of new rows, the questions may take so much of a core; and looks and questions
# alike so much of the time, while somebody is busy who needs it.
LARGEST_SHARE = 0.005
LARGEST_SHARE_OF_TIME = 0.05
# What a look took may be somebody else's lock, and no measure of the next one. In seconds.
LONGEST_REST = 1.0


class Driver(Protocol):
    """What takes tasks, and may be waiting for some."""

    @property
    def is_hungry(self) -> bool:
        """Whether it waits."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether it may have something to do."""
        ...

    @property
    def hears(self) -> bool:
        """Whether it hears of new rows by itself, while it waits."""
        ...

    def wanted(self) -> Wanted:
        """Return for which rows it waits."""
        ...

    def wake(self) -> None:
        """Tell it to look; safe in any thread."""
        ...


class Lookout(Heart):
    """The thread.

    Args:
        using: the alias of the database.
        drivers: who waits for tasks.
        sleep: seconds between two looks where nothing has told of new rows.
        known: returns the names that tasks are known to have, or None to look for no others.
        on_unknown: called when nothing may run but rows of other names.
        options: see :class:`Heart`.
    """

    def __init__(
        self,
        using: str,
        *,
        drivers: Sequence[Driver],
        sleep: float,
        known: Callable[[], Collection[str] | None] = lambda: None,
        on_unknown: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        super().__init__(using, **options)
        self._drivers = drivers
        self._sleep = sleep
        self._known = known
        self._on_unknown = on_unknown
        self._next_look = 0.0
        self._echoes: deque[float] = deque()
        self._watch: vendors.Watch = vendors.AlwaysNews()
        self._ear: int | None = None
        # When something is due that a look has seen; when the last look, or question, has ended.
        self._next_due = self._looked_at = 0.0
        # The key of the row that was due when it was asked for one the last time, and when it was
        # looked for.
        self._due: int | None = None
        self._noticed_at = 0.0
        self._cost = self._rested_at = 0.0
        # For whom there may be rows that were not looked for, since they were not hungry. It is not
        # changed but replaced: the drivers read it in their own threads.
        self._behind = frozenset(drivers)

    def expect_hunger(self) -> None:
        """Know that a driver is hungry now: look for what was not looked for, or begin to ask."""
        if any(each.is_hungry for each in self._behind) or not self._watch.is_complete:
            self.poke()

    def note_held(self, keys: Iterable[int]) -> bool:
        """See :class:`Heart`; what is heard meanwhile is not lost."""
        is_noted = super().note_held(keys)
        if self._watch.was_told:
            self.poke()
        return is_noted

    def _hungry(self) -> list[Driver]:
        return [driver for driver in self._drivers if driver.is_hungry]

    def _connect(self) -> None:
        super()._connect()
        # Nothing was heard meanwhile; and who has told of a row a moment ago may not do so again.
        self._next_look = self._next_due = 0.0
        self._watch = self._engine.vendor.watch(self._engine.connection, NEW)
        self._echoes = deque([time.monotonic() + BETWEEN_NOTICES])
        self._ear = self._watch.fileno()
        if self._ear is not None:
            self._selector.register(self._ear, selectors.EVENT_READ)

    def _disconnect(self) -> None:
        if self._ear is not None:
            self._selector.unregister(self._ear)
            self._ear = None
        self._watch.close()
        self._watch = vendors.AlwaysNews()
        super()._disconnect()

    def _spend_time(self, now: float) -> None:
        hungry = self._hungry()
        if now >= self._next_look or self._is_echo(now):
            self._behind = frozenset(self._drivers).difference(hungry)
            if any(each.is_hungry for each in self._behind):  # only since a moment ago
                self.poke()
            # Nobody need be woken; but what becomes due may be more urgent than what waits.
            if hungry or now >= min(self._next_due, self._looked_at + BETWEEN_LOOKS):
                self._look(hungry or self._drivers)
            self._plan(now)
        if not hungry:
            tick = max(self._looked_at + BETWEEN_LOOKS, self._rested)
            self._next_look = min(self._next_look, tick)
        self._wait(hungry)

    def _rest(self, began: float) -> None:
        """Know that a look has taken so long, until now."""
        self._looked_at = now = time.monotonic()
        self._rested_at = now + min((now - began) / LARGEST_SHARE_OF_TIME, LONGEST_REST)

    @property
    def _rested(self) -> float:
        """When there may be a look: while somebody is busy, they have a small share of the time."""
        is_busy = any(each.is_busy and not each.is_hungry for each in self._drivers)
        return self._rested_at if is_busy else 0.0

    def _look(self, drivers: Collection[Driver]) -> None:
        """Wake these if there is something for them."""
        began = time.monotonic()  # a beat may have taken its time
        self._next_due = began + max(self._sleep, LEAST_SLEEP)
        try:
            self._look_for(drivers)
        finally:
            self._rest(began)

    def _look_for(self, drivers: Collection[Driver]) -> None:
        wanted = _wanted(drivers)
        known = self._known() if self._hungry() else None
        soonest = 0.0
        with self._using_engine:
            found = readiness.look(self._engine, wanted, known)
            if found.is_unsettled:
                changed = readiness.adopt(self._engine)
                connections.close_all()  # this thread's own, where something was cancelled
                if changed:
                    # A worker of the predecessor may have locked some of them, and be gone.
                    readiness.expire(self._engine)
                changed += readiness.promote(self._engine)
                # What is due and cannot be changed, somebody else has locked.
                soonest = 0.0 if changed else BETWEEN_LOOKS
                found = readiness.look(self._engine, wanted, known)
        if found.is_ready or found.is_rescued:
            _wake(drivers)
        elif found.is_unknown:
            self._on_unknown()
        if found.upcoming is not None:
            upcoming = time.monotonic() + max(found.upcoming, soonest)
            self._next_due = min(self._next_due, upcoming)

    def _plan(self, began: float) -> None:
        """Say when there is to be a look: when something is due.

        Args:
            began: before the last look, which may have missed what came while it lasted.
        """
        while self._echoes and self._echoes[0] <= began:
            self._echoes.popleft()
        self._next_look = self._next_due

    @property
    def _next_echo(self) -> float:
        """When there is to be a look, or a question, a moment after news."""
        return max(self._echoes[0], self._rested) if self._echoes else math.inf

    def _is_echo(self, now: float) -> bool:
        """Tell whether there is to be a look since there was news a moment ago."""
        if now < self._next_echo:
            return False
        while self._echoes and self._echoes[0] <= now:
            self._echoes.popleft()
        with self._using_engine:
            return self._watch.may_have_changed()

    def _wait(self, hungry: Collection[Driver]) -> None:
        """Wait for the next beat, the next look, or news."""
        until = min(self._next_beat, self._next_look, self._next_echo)
        if hungry and not self._watch.is_complete:
            self._ask(hungry, until)
        elif self._watch.was_told or self._pause(until - time.monotonic()):
            with self._using_engine:
                is_news = self._watch.has_news()
            # In this order: a driver says that it is hungry before it asks whether we are behind.
            self._behind = frozenset(self._drivers)
            if not (hungry := self._hungry()):
                if self._watch.is_of_rows:
                    # Whoever has told of a row may store another, of which he does not tell.
                    self._look_again()
                return
            if is_news:
                self._heed_news(hungry)
            elif not self._watch.is_of_rows:
                self._look_again()

    def _heed_news(self, drivers: Collection[Driver]) -> None:
        if self._watch.is_of_rows:
            # What it may have missed is found by the looks that follow.
            _wake([driver for driver in drivers if not driver.hears])
        if self._watch.is_complete:
            self._look_again()
        if not (self._watch.is_of_rows and self._watch.is_complete):
            self._next_look = min(self._next_look, self._rested)

    def _look_again(self) -> None:
        """Look a few times more for what was not told of, or could not be read yet."""
        pauses = ECHOES if self._watch.is_of_rows else MOMENTS
        now = time.monotonic()
        self._echoes = deque(now + pause for pause in pauses)

    def _ask(self, hungry: Collection[Driver], until: float) -> None:
        """Ask for news, again and again, until there is some or the time has come."""
        wanted = _wanted(hungry)
        while (left := until - time.monotonic()) > 0:
            is_told = self._pause(min(left, self._between_questions()))
            if self._next_look < until or self._is_stopping:
                return
            began, began_at = time.thread_time(), time.monotonic()
            with self._using_engine:
                is_news = self._watch.has_news()
                if is_news and not is_told:
                    is_news = self._is_due(wanted)
            self._cost += (time.thread_time() - began - self._cost) / 8
            self._rest(began_at)
            if is_told:
                self._heed_news(hungry)
            elif is_news:
                self._next_look = 0.0
            if is_told or is_news:
                return

    def _is_due(self, wanted: Wanted) -> bool:
        """Tell whether to look for a row; now and then only for one that was not taken since."""
        before, self._due = self._due, readiness.due(self._engine, wanted)
        now = time.monotonic()
        if self._due is None or (self._due == before and now < self._noticed_at + BETWEEN_LOOKS):
            return False
        self._noticed_at = now
        return True

    def _between_questions(self) -> float:
        """Return how long to wait before the next one, so that they take little of a core."""
        rest = self._rested - time.monotonic()
        return max(self._engine.vendor.between_questions, self._cost / LARGEST_SHARE, rest)

    def _is_poked(self) -> None:
        if self._watch.is_complete and not self._watch.is_of_rows:
            self._look_again()  # who is hungry only now was told of nothing since
        self._next_look = min(self._next_look, self._rested)

    def _beat(self) -> None:
        super()._beat()
        with self._using_engine:
            taking.settle_late_doubts(self._engine)

    def _register(self) -> None:
        super()._register()
        # An earlier worker of this process, as in a web server, may have left something behind.
        runs.doubt(self._engine.using, lasts=0)

    def _rescue(self, suspects: Iterable[workers.Suspect]) -> bool:
        if is_freed := super()._rescue(suspects):
            self._next_look = 0.0
        return is_freed


def _wanted(drivers: Collection[Driver]) -> Wanted:
    each = [driver.wanted() for driver in drivers]
    return replace(each[0], names=frozenset(name for one in each for name in one.names))


def _wake(drivers: Collection[Driver]) -> None:
    for driver in drivers:
        driver.wake()
