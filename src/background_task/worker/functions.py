"""Takes functions by the batch, runs them one after the other, and records them by the batch.

A batch holds what is expected to end within some tens of milliseconds, so that it delays nobody.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from background_task import tasks as hooks
from background_task import vendors
from background_task.api import context
from background_task.execution.attempt import Attempt, encode
from background_task.execution.call import call, leave_if_forked
from background_task.execution.connections import Known, undisturbed
from background_task.execution.notices import Notices
from background_task.execution.quick import Plan, Plans
from background_task.execution.runs import runs
from background_task.models import Task
from background_task.records import Claim, Ended, Mark, Wanted
from background_task.storage import acknowledge, claim
from background_task.storage.batches import MOST_ROWS
from background_task.storage.engine import Engine
from background_task.utils import ForcedStop, interruptible
from background_task.worker import taking
from background_task.worker.batch import Batch

if TYPE_CHECKING:
    from background_task.tasks import Tasks

logger = logging.getLogger("background_task.tasks")

# How long a batch is meant to take, and how often the watchdog looks, in seconds.
MEANT_TO_TAKE = 0.05
BETWEEN_LOOKS = 0.05

# From so many rows on they are held rather than marked: then it is worth the statements around it.
WORTH_HOLDING = 20

# One batch in so many is a single task that has lost a worker, if there is one.
ALONE = 8


class Functions:
    """The functions of a worker, which run in the calling thread.

    Args:
        tasks: the registry.
        queue: take tasks of this queue only; None or empty takes all.
    """

    def __init__(self, tasks: Tasks, queue: str | None) -> None:
        self._tasks = tasks
        self._names = taking.Names(tasks)
        self._queue = queue
        self._engine = Engine(tasks.queue_database())
        self._by = taking.mark_of(tasks)
        self._known = Known()
        self._size = 1
        self._turn = 0
        self._may_hold = False
        self._batch: Batch | None = None
        self._is_busy = threading.Event()
        self._is_closed = False
        self._watchdog: threading.Thread | None = None

    def run_some(self, *, only_one: bool = False) -> bool:
        """Take and run a batch, or ``only_one``; False when nothing was due.

        Raises:
            ForcedStop: a second request to stop has ended a function early.
        """
        asked = 1 if only_one else self._size
        batch = self._take(asked)
        if batch is None:
            return False
        begun = time.perf_counter()
        run = _Runner(self._tasks, self._engine.using, self._by, batch, self._known)
        self._watch(batch)
        try:
            run.all()
        finally:
            self._is_busy.clear()
            run.record()
            runs.drop(batch.kept)
        self._adapt(batch, time.perf_counter() - begun)
        self._may_hold = batch.size == asked and run.all_were_quick
        return True

    def close(self) -> None:
        """End the watchdog and the connection."""
        self._is_closed = True
        self._is_busy.set()
        self._engine.close()

    def _take(self, most: int) -> Batch | None:
        wanted = Wanted(self._names.functions(), self._queue)
        self._turn += 1
        if self._turn % ALONE == 0 and (batch := self._rescue(wanted)) is not None:
            return batch
        may_hold = self._may_hold and most >= WORTH_HOLDING and self._engine.vendor.can_hold
        take = self._hold if may_hold else self._mark
        batch = taking.take(self._engine, lambda: take(wanted, most), otherwise=None)
        return self._rescue(wanted) if batch is None else batch

    def _mark(self, wanted: Wanted, most: int) -> Batch | None:
        return self._batched(claim.mark(self._engine, wanted, most, self._by))

    def _hold(self, wanted: Wanted, most: int) -> Batch | None:
        self._engine.begin()
        try:
            claims = claim.hold(self._engine, wanted, most)
        except BaseException:
            self._engine.roll_back()
            raise
        if not claims:
            self._engine.commit()
        return self._batched(claims, is_held=True)

    def _rescue(self, wanted: Wanted) -> Batch | None:
        # By itself: if it ends this worker too, no other is lost with it.
        def verb() -> Batch | None:
            return self._batched(claim.rescued(self._engine, wanted, 1, claim.SUSPECTS, self._by))

        return taking.take(self._engine, verb, otherwise=None)

    def _batched(self, claims: Sequence[Claim], *, is_held: bool = False) -> Batch | None:
        if not claims:
            return None
        batch = Batch(self._engine, claims, self._by, is_held=is_held)
        runs.keep(self._engine.using, batch.kept)
        return batch

    def _adapt(self, batch: Batch, seconds: float) -> None:
        fitting = int(MEANT_TO_TAKE * batch.begun / max(seconds, 1e-6))
        self._size = max(1, min(2 * self._size, fitting, MOST_ROWS))

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
                if self._batch is not None:
                    self._batch.relieve()
            except Exception:
                logger.exception("What waits behind a long function could not be given back")


class _Runner:
    """Runs the tasks of one batch: quickly where nobody wants to know more than that they ran."""

    def __init__(self, tasks: Tasks, using: str, by: Mark, batch: Batch, known: Known) -> None:
        self._known = known
        self._proxies = tasks._tasks
        self._using = using
        self._by = by
        self._batch = batch
        self._plans = Plans(tasks._tasks)
        self._is_watched = acknowledge.is_watched()
        # Of tasks that are run in full: their rows before, their attempts when the body has ended.
        self._rows: dict[int, Task] = {}
        self._attempts: dict[int, Attempt] = {}
        self.all_were_quick = not self._is_watched

    def all(self) -> None:
        """Run one after the other, until none is left."""
        in_full = [each for each in self._batch.marked() if not self._plans.of(each)]
        self._rows = taking.read(self._using, in_full, self._by)
        done: Ended | None = None
        while (claimed := self._batch.next(done)) is not None:
            plan = self._plans.of(claimed)
            hooks.logger.info("Running %s", claimed)
            try:
                done = self._run_quickly(claimed, plan) if plan else self._run_fully(claimed)
            except ForcedStop:
                self._batch.give_back()
                raise

    def record(self) -> None:
        """Record and announce what has ended; what has not begun is given back."""
        unrecorded = {each.claim.pk: each for each in self._batch.record()}
        recorded = [self._attempts.pop(pk) for pk in self._attempts.keys() - unrecorded.keys()]
        self._announce(recorded)
        for each in unrecorded.values():
            self._succeed_by_itself(each)

    def _run_quickly(self, claimed: Claim, plan: Plan) -> Ended | None:
        began = time.perf_counter()
        process = os.getpid()
        token = context.enter(_Context(self._proxies[claimed.name], self._using, self._by, claimed))
        try:
            args, kwargs = json.loads(claimed.params)
            try:
                with interruptible():
                    value = plan.function(*args, **kwargs)
            finally:
                leave_if_forked(process)
                self._known.close_what_is_open()
            text = None if value is None else encode(value, strict=plan.is_strict)
        except ForcedStop:
            raise
        except BaseException as error:
            self._has_failed(error)
            return None
        finally:
            context.leave(token)
        ended = Ended(claimed, began, time.perf_counter(), text)
        if claimed.is_chain or self._is_watched:
            self._succeed_by_itself(ended._replace(claim=self._batch.current_marked()))
            return None
        hooks.logger.info("Ran task and deleting %s", claimed)
        return ended

    def _run_fully(self, claimed: Claim) -> Ended | None:
        self.all_were_quick = False
        row = self._rows.get(claimed.pk)
        attempt = self._attempt(self._batch.current_marked() if row is None else row)
        if attempt is None:
            return None
        at_once = self._is_watched or claimed.is_chain
        began = time.perf_counter()
        try:
            args, kwargs = attempt.begin()
            with attempt.as_current(), undisturbed():
                value = call(attempt.function, args, kwargs, attempt.run)
            if at_once:  # in the predecessor's order
                attempt.succeed(value)
            else:
                text = attempt.encode(value)
        except ForcedStop:
            runs.end(attempt.task)
            raise
        except BaseException as error:
            attempt.fail(error)
            at_once = True
        finally:
            attempt.end_body()
        if at_once:
            runs.end(attempt.task)
            return None
        self._attempts[claimed.pk] = attempt
        return Ended(claimed, began, time.perf_counter(), text)

    def _has_failed(self, error: BaseException) -> None:
        attempt = self._attempt(self._batch.current_marked())
        if attempt is None:
            return
        attempt.resume()
        attempt.fail(error)
        runs.end(attempt.task)

    def _succeed_by_itself(self, ended: Ended) -> None:
        attempt = self._attempts.pop(ended.claim.pk, None)
        if attempt is None:
            if (attempt := self._attempt(ended.claim)) is None:
                return
            attempt.resume()
        try:
            attempt.record_success(ended.value)
        except BaseException as error:
            attempt.fail(error)
        finally:
            runs.end(attempt.task)

    def _announce(self, recorded: Sequence[Attempt]) -> None:
        """Announce successes that are in the history now."""
        if not recorded:
            return
        finished = taking.finished(self._using, [attempt.task for attempt in recorded])
        for attempt in recorded:
            row = attempt.task
            if row is not None:
                attempt.has_succeeded(finished.get(row.pk), is_recorded=True)
            runs.end(row)

    def _attempt(self, row: Task | Claim) -> Attempt | None:
        """Return the attempt at a row, which is marked; None when it is not ours any more."""
        if isinstance(row, Claim):
            found = taking.read(self._using, [row], self._by).get(row.pk)
            if found is None:
                hooks.logger.warning(
                    "%s cannot be recorded: its row was deleted or taken over meanwhile", row
                )
                return None
            row = found
        return Attempt(self._proxies[row.task_name], row, hooks.logger)


class _Context:
    """Makes the ``TaskContext`` of a run, if the task asks for it."""

    __slots__ = ("_by", "_claim", "_made", "_proxy", "_using")

    def __init__(self, proxy: Any, using: str, by: Mark, claimed: Claim) -> None:
        self._proxy = proxy
        self._using = using
        self._by = by
        self._claim = claimed
        self._made: Any = None

    def __call__(self) -> Any:
        if self._made is None:
            row = Task.objects.using(self._using).get(pk=self._claim.pk)
            if row.locked_by is None:  # it is held, and nobody else sees that it runs
                row.locked_by, row.worker_id = self._by
                row.locked_at = vendors.now(self._using)
            self._made = Notices(self._proxy, row).context
        return self._made
