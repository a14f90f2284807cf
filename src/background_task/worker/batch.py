"""A batch of rows between their claim and the record of how their tasks ended.

It is *held*, its rows locked by an open transaction, or *marked*. Two threads touch it: the one
that runs the tasks, and a watchdog, which sees to it that a task that takes longer than expected
delays no others, and keeps no transaction open. So every step is taken under one lock.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress

from background_task import logs
from background_task.execution.runs import CUT_OFF, HANDED_BACK, Keeping, Kept, runs
from background_task.records import Claim, Ended, Mark
from background_task.storage import claim as claiming
from background_task.storage import leases, workers
from background_task.storage.acknowledge import Owned, acknowledge, acknowledge_freed, move
from background_task.storage.engine import Engine
from background_task.storage.leases import Lock
from background_task.storage.notifications import tell_freed
from background_task.storage.transient import reason
from background_task.utils import SignalManager

logger = logs.named("background_task.tasks")

# When a task has overstayed, and how long rows are held before one that has not, in seconds.
OVERDUE = 0.1
LONGEST_HOLD = 0.2


class Batch:
    """Rows that were claimed together.

    Args:
        engine: by which they were claimed, and are recorded; nobody else uses it meanwhile.
        claims: the rows.
        by: who has taken them, or will write so.
        is_held: whether a transaction of ``engine`` has locked them; else they are marked.
        must_not_run_twice: whether the one row that it has then must not.
    """

    def __init__(
        self,
        engine: Engine,
        claims: Sequence[Claim],
        by: Mark,
        *,
        is_held: bool,
        must_not_run_twice: bool = False,
    ) -> None:
        self._engine = engine
        self._by = by
        self._is_held = is_held
        self._must_not_run_twice = must_not_run_twice
        self._lock = threading.Lock()
        self._waiting = deque(claims)
        self._ended: list[Ended] = []
        self._unrecorded: list[Ended] = []
        self._current: Claim | None = None
        self._since = self._began = time.monotonic()
        # Of rows whose transaction was lost: nobody has taken off a lock that was never written.
        self.never_marked: set[int] = set()
        self.size = len(claims)
        self.begun = 0

    def next(self, done: Ended | None = None) -> Claim | None:
        """Return the next row whose task is to run; None when there is none.

        Args:
            done: how the last one has ended, where it is to be recorded with the others.
        """
        with self._lock:
            if done is not None:
                if done.claim is not self._current:  # the row was marked meanwhile
                    done = done._replace(claim=self._current)
                self._ended.append(done)
            self._current = None
            if not self._waiting:
                return None
            now = time.monotonic()
            if SignalManager.is_stopping() or (self._is_held and now - self._since > LONGEST_HOLD):
                self._let_go()
                return None
            self._began = now
            self._current = self._waiting.popleft()
            self.begun += 1
            return self._current

    def marked(self) -> list[Claim]:
        """Return the rows that wait, if it is written into them that they run."""
        with self._lock:
            return [] if self._is_held else list(self._waiting)

    def give_back(self) -> None:
        """Count the task that was to run as one that waits: it was ended early."""
        with self._lock:
            if self._current is not None:
                say = CUT_OFF if self._must_not_run_twice else HANDED_BACK
                logger.warning(say, self._current)
                runs.note_cut_off()
                self._waiting.appendleft(self._current)
                self._current = None

    def current_marked(self) -> Claim:
        """Make sure that it is written into the row that runs that it does; return it as it is now.

        What has ended is recorded then, and what was held and has not begun is free.
        """
        with self._lock:
            assert self._current is not None
            if self._is_held:
                self._let_go()
            return self._current

    def relieve(self) -> bool:
        """When a task has overstayed: record what has ended, give back what has not begun.

        Returns:
            whether one has.
        """
        with self._lock:
            if self._current is None or time.monotonic() - self._began <= OVERDUE:
                return False
            self._let_go()
            return True

    def let_go(self) -> None:
        """Record what has ended, and give back what has not begun, while one goes on."""
        with self._lock:
            self._let_go()

    def record(self) -> list[Ended]:
        """Record what has ended; return what has to be recorded by itself, all of it marked.

        What has not begun is given back.
        """
        with self._lock:
            self._current = None
            self._let_go()
            unrecorded, self._unrecorded = self._unrecorded, []
            return unrecorded

    def kept(self) -> Kept:
        """Return what is marked, and has not ended."""
        with self._lock:
            if self._is_held:
                return {}
            current = [] if self._current is None else [self._current]
            return self.keeping([*current, *self._waiting])

    def keeping(self, claims: Iterable[Claim]) -> Kept:
        """Return what is kept of rows that are marked, of which one has begun if any has."""
        is_never_again = self._must_not_run_twice and self.begun > 0
        return {
            Lock(each.pk, self._by.locked_by, each.epoch): Keeping(str(each), is_never_again)
            for each in claims
        }

    def _let_go(self) -> None:
        """Record what has ended, mark what runs, and free what waits."""
        with self._engine.lock:
            self._let_go_alone()

    def _let_go_alone(self) -> None:
        ended, self._ended = self._ended, []
        if self._is_held:
            self._is_held = False
            is_cut = bool(self._waiting)
            self._waiting.clear()  # the end of the transaction frees them
            try:
                if ended:
                    move(self._engine, ended, self._by, Owned.HELD)
                if self._current is not None:
                    (self._current,) = claiming.mark_held(self._engine, [self._current], self._by)
                self._engine.commit()
            except Exception as error:
                logger.warning("A batch of %d could not be recorded: %s", len(ended), reason(error))
                self._engine.roll_back()
                runs.doubt(self._engine.using)
                self._take_again(ended)
                self._forget_note()
                return
            if is_cut or self._current is not None:
                self._forget_note()
            if is_cut:
                tell_freed(self._engine)
            return
        recorded: set[int] = set()
        try:
            if ended:
                recorded = acknowledge(self._engine, ended, self._by)
        except Exception as error:  # the database is away: one by one there is more patience
            logger.warning("A batch could not be recorded: %s", reason(error))
        self._unrecorded += [each for each in ended if each.claim.pk not in recorded]
        if self._waiting:
            runs.give_up(self._engine, self.keeping(self._waiting), is_cut_off=False)
            self._waiting.clear()

    def _forget_note(self) -> None:
        """Blame none of what was held if this worker dies: what runs is marked, the others wait."""
        with suppress(Exception):  # it may have counted once too often; nothing else depends on it
            workers.note_held(self._engine, self._by.worker_id, ())

    def _take_again(self, ended: Sequence[Ended]) -> None:
        """After what was held was lost: record it, unless somebody else has taken it."""
        with suppress(Exception):
            recorded = acknowledge_freed(self._engine, ended, self._by)
            ended = [each for each in ended if each.claim.pk not in recorded]
        for each in ended:
            if (marked := self._mark(each.claim)) is not None:
                self._unrecorded.append(each._replace(claim=marked))
        if self._current is not None:
            self._current = self._mark(self._current) or self._current

    def _mark(self, claim: Claim) -> Claim | None:
        free = f"locked_by IS NULL AND COALESCE(epoch, 0) = {claim.epoch or 0}"
        try:
            with self._engine.transaction():
                if leases.lock(self._engine, [claim.pk], free):
                    return claiming.mark_held(self._engine, [claim], self._by)[0]
        except Exception as error:
            runs.doubt(self._engine.using)
            logger.warning(
                "%s has to run again, it could not be recorded: %s", claim, reason(error)
            )
        self.never_marked.add(claim.pk)
        return None
