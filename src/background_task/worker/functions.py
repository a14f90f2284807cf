"""Takes functions by the batch, runs them one after the other, and records them by the batch.

A batch holds what is expected to end within some tens of milliseconds, so that it delays nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from background_task import logs
from background_task.execution.connections import Known, mend
from background_task.execution.runs import runs
from background_task.records import Claim, Wanted
from background_task.storage import claim
from background_task.storage.batches import MOST_ROWS
from background_task.storage.engine import Engine
from background_task.storage.notifications import NEW
from background_task.storage.transient import TRANSIENT
from background_task.utils import Canary, leave
from background_task.worker import taking
from background_task.worker.batch import Batch
from background_task.worker.bookmark import Bookmark
from background_task.worker.budget import Budget
from background_task.worker.options import Queues
from background_task.worker.runner import Runner

if TYPE_CHECKING:
    from background_task.tasks import Tasks

logger = logs.named("background_task.tasks")

# How long a batch is meant to take, and how often the watchdog looks, in seconds.
MEANT_TO_TAKE = 0.05
BETWEEN_LOOKS = 0.05

# From so many rows on they are held rather than marked: then it is worth the statements around it.
WORTH_HOLDING = 20

# The exit code of a process that cannot go on, as sysexits.h has it.
EX_SOFTWARE = 70

# After so many turns without one, a batch is a single task that has lost a worker, if any has.
ALONE = 8


def _nothing() -> None:
    pass


class Functions:
    """The functions of a worker, which run in the calling thread.

    Args:
        tasks: the registry.
        engine: the connection to take and record them by.
        queues: which to take.
        backend: take only what came through this alias of Django's door; None takes all.
        budget: how many tasks may still be run.
        note_held: notes, where it survives this process, which rows are about to be held, and
            tells whether it has; None where nothing may be held, as on a connection that others
            use too.
    """

    def __init__(
        self,
        tasks: Tasks,
        engine: Engine,
        queues: Queues,
        backend: str | None,
        budget: Budget,
        note_held: Callable[[Iterable[int]], bool] | None = None,
    ) -> None:
        self._tasks = tasks
        self._names = taking.Names(tasks)
        self._engine = engine
        self._queues = queues
        self._backend = backend
        self._budget = budget
        self._note_held = note_held
        self._has_noted = False
        self._by = taking.mark_of(tasks)
        self._known = Known()
        self._size = 1
        self._is_cut = self._is_rescued = False
        self._turn = 0
        self._may_hold = False
        self._bookmark = Bookmark(engine)
        self._batch: Batch | None = None
        self._is_busy = threading.Event()
        self._is_closed = False
        self._watchdog: threading.Thread | None = None
        # The driver's connection at the last claim.
        self._driver: Any = None

    def wanted(self) -> Wanted:
        """Return which rows are taken."""
        return self._queues.all(self._names.functions(), self._backend)

    def run_some(self, *, only_one: bool = False, on_work: Callable[[], None] = _nothing) -> bool:
        """Take and run a batch, or ``only_one``; False when nothing was due.

        Args:
            only_one: take no more than one task.
            on_work: called before the batch is run, when there may be more.

        Raises:
            ForcedStop: a second request to stop has ended a function early.
        """
        self._is_cut = self._is_rescued = False
        with self._budget.grant(1 if only_one else self._size) as grant:
            batch = self._take(grant.most) if grant.most else None
            if batch is not None:
                grant.taken, grant.begun = batch.size, lambda: batch.begun
        if batch is None:
            self._may_hold = False  # what comes next may come alone
            self._forget_held()
            return False
        is_full = batch.size == grant.most
        if is_full or self._is_cut or self._is_rescued:
            on_work()
        if (driver := self._engine.connection.connection) is not self._driver:
            self._driver = driver
            mend(after_an_outage=True)  # what has ended ours has most likely ended the tasks' too
        begun = time.perf_counter()
        run = Runner(self._tasks, self._engine.using, self._by, batch, self._known)
        self._watch(batch)
        try:
            run.all()
        finally:
            self._is_busy.clear()
            _leave_if_files_are_closed()
            run.record()
            runs.drop(batch.kept)
            self._budget.close(grant)
            if batch.begun < batch.size:
                self._bookmark.remove()  # they may be taken at once
        self._adapt(batch, time.perf_counter() - begun)
        self._may_hold = is_full and run.all_were_quick
        return True

    def listen(self) -> int | None:
        """Return the file that can be read when there are new rows, until some are asked for.

        None where nothing tells, and where none would be asked for.
        """
        if self._budget.left == 0 or not self._names.functions():
            return None
        with suppress(*TRANSIENT), self._engine.lock:
            return self._engine.listen(NEW)
        return None

    def close(self) -> None:
        """End the watchdog."""
        self._is_closed = True
        self._is_busy.set()

    def _take(self, most: int) -> Batch | None:
        steps = self._queues.steps(self._names.functions(), self._backend)
        self._turn += 1
        if self._turn >= ALONE and (batch := self._rescue(steps)) is not None:
            return batch
        may_hold = self._may_hold and most >= WORTH_HOLDING and self._engine.vendor.can_hold
        take = self._hold if may_hold and self._note_held is not None else self._mark

        def verb() -> Batch | None:
            return next(filter(None, (take(wanted, most) for wanted in steps)), None)

        batch = taking.take(self._engine, verb, otherwise=None)
        return self._rescue(steps) if batch is None else batch

    def _mark(self, wanted: Wanted, most: int) -> Batch | None:
        fitting = self._fitting if self._names.have_to_be_cut(wanted.names) else None
        return self._batched(claim.mark(self._engine, wanted, most, self._by, fitting))

    def _fitting(self, claims: Sequence[Claim]) -> int:
        count = taking.together(self._tasks, claims)
        self._is_cut |= count < len(claims)
        return count

    def _hold(self, wanted: Wanted, most: int) -> Batch | None:
        self._engine.begin()
        try:
            claims = self._bookmark.hold(wanted, most)
            is_full = len(claims) == most
            count = self._fitting(claims)
            if count <= 1:  # it may have to be alone, or is: a note of it would cost as much
                self._engine.roll_back()
                return self._mark(wanted, 1) if claims else None
            claims = claims[:count]
            assert self._note_held is not None
            if not self._note_held(each.pk for each in claims):
                self._engine.roll_back()
                return self._mark(wanted, most)
            self._has_noted = True
            if is_full:
                self._bookmark.put(claims[-1])
        except BaseException:
            self._engine.roll_back()
            raise
        return self._batched(claims, is_held=True)

    def _forget_held(self) -> None:
        """What was held once and waits again must not look as if a task of it had killed us."""
        if self._has_noted and self._note_held is not None:
            with suppress(Exception):
                self._has_noted = not self._note_held(())

    def _rescue(self, steps: Sequence[Wanted]) -> Batch | None:
        self._turn = 0

        # By itself: if it ends this worker too, no other is lost with it.
        def verb() -> Batch | None:
            for wanted in steps:
                if claims := taking.rescued(self._engine, wanted, 1, self._by):
                    self._is_rescued = True
                    return self._batched(claims)
            return None

        return taking.take(self._engine, verb, otherwise=None)

    def _batched(self, claims: Sequence[Claim], *, is_held: bool = False) -> Batch | None:
        if not claims:
            return None
        batch = Batch(
            self._engine,
            claims,
            self._by,
            is_held=is_held,
            must_not_run_twice=taking.has_to_be_alone(self._tasks, claims),
        )
        keys = [each.pk for each in claims]
        runs.keep(self._engine.using, batch.kept, keys, batch.let_go)
        return batch

    def _adapt(self, batch: Batch, seconds: float) -> None:
        fitting = int(MEANT_TO_TAKE * batch.begun / max(seconds, 1e-6))
        grown = batch.size if self._is_cut else 2 * self._size
        self._size = max(1, min(grown, fitting, MOST_ROWS))

    def _watch(self, batch: Batch) -> None:
        self._batch = batch
        if self._watchdog is None or not self._watchdog.is_alive():
            self._watchdog = threading.Thread(target=self._keep_watch, name="watchdog", daemon=True)
            self._watchdog.start()
        self._is_busy.set()

    def _keep_watch(self) -> None:
        pause = threading.Event()
        while self._is_busy.wait() and not self._is_closed:
            pause.wait(BETWEEN_LOOKS)
            try:
                if self._batch is not None and self._batch.relieve():
                    with suppress(*TRANSIENT), self._engine.lock:
                        self._engine.stop_listening(NEW)
            except Exception:
                logger.exception("What waits behind a long function could not be given back")


_canary = Canary()


def _leave_if_files_are_closed() -> None:
    """End the process whose connections a task has closed.

    Their numbers are about to belong to others, so that nothing here could be trusted any more.
    """
    if not _canary.is_alive:
        logger.critical(
            "A task has closed files that are not its own, the connections of this worker among "
            "them: the process ends, and what it ran runs again"
        )
        leave(EX_SOFTWARE)
