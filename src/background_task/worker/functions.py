"""Takes functions by the batch, runs them one after the other, and records them by the batch.

A batch holds what is expected to end within some tens of milliseconds, so that it delays nobody.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from background_task import logs, vendors
from background_task import tasks as hooks
from background_task.api import context
from background_task.execution.attempt import Attempt, encode
from background_task.execution.call import leave_if_forked
from background_task.execution.connections import Known, undisturbed
from background_task.execution.interruptions import FunctionBody, here, limits
from background_task.execution.notices import Notices
from background_task.execution.quick import Plan, Plans
from background_task.execution.runs import runs
from background_task.models import Task
from background_task.policies.arguments import decoded
from background_task.records import Claim, Ended, Mark, Wanted
from background_task.storage import acknowledge, claim, leases
from background_task.storage.batches import MOST_ROWS
from background_task.storage.engine import Engine
from background_task.storage.leases import Lock
from background_task.utils import Canary, ForcedStop, interruptible, leave
from background_task.worker import taking
from background_task.worker.batch import Batch
from background_task.worker.budget import Budget
from background_task.worker.options import Queues

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

# One batch in so many is a single task that has lost a worker, if there is one.
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
        note_held: notes, where it survives this process, which rows are about to be held; None
            where nothing may be held, as on a connection that others use too.
    """

    def __init__(
        self,
        tasks: Tasks,
        engine: Engine,
        queues: Queues,
        backend: str | None,
        budget: Budget,
        note_held: Callable[[Iterable[int]], None] | None = None,
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
        self._is_cut = False
        self._turn = 0
        self._may_hold = False
        self._batch: Batch | None = None
        self._is_busy = threading.Event()
        self._is_closed = False
        self._watchdog: threading.Thread | None = None

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
        self._is_cut = False
        asked = self._budget.reserve(1 if only_one else self._size)
        batch = self._take(asked) if asked else None
        self._budget.use(asked, 0 if batch is None else batch.size)
        if batch is None:
            self._forget_held()
            return False
        if batch.size == asked or self._is_cut:
            on_work()
        begun = time.perf_counter()
        run = _Runner(self._tasks, self._engine.using, self._by, batch, self._known)
        self._watch(batch)
        try:
            run.all()
        finally:
            self._is_busy.clear()
            _leave_if_files_are_closed()
            run.record()
            runs.drop(batch.kept)
            self._budget.give_back(batch.size - batch.begun)
        self._adapt(batch, time.perf_counter() - begun)
        self._may_hold = batch.size == asked and run.all_were_quick
        return True

    def close(self) -> None:
        """End the watchdog."""
        self._is_closed = True
        self._is_busy.set()

    def _take(self, most: int) -> Batch | None:
        steps = self._queues.steps(self._names.functions(), self._backend)
        self._turn += 1
        if self._turn % ALONE == 0 and (batch := self._rescue(steps)) is not None:
            return batch
        may_hold = self._may_hold and most >= WORTH_HOLDING and self._engine.vendor.can_hold
        take = self._hold if may_hold and self._note_held is not None else self._mark

        def verb() -> Batch | None:
            return next(filter(None, (take(wanted, most) for wanted in steps)), None)

        batch = taking.take(self._engine, verb, otherwise=None)
        return self._rescue(steps) if batch is None else batch

    def _mark(self, wanted: Wanted, most: int) -> Batch | None:
        claims = claim.mark(self._engine, wanted, most, self._by)
        count = taking.together(self._tasks, claims)
        if count < len(claims):
            self._is_cut = True
            locks = [Lock(each.pk, self._by.locked_by, each.epoch) for each in claims[count:]]
            leases.hand_back(self._engine, locks)
        return self._batched(claims[:count])

    def _hold(self, wanted: Wanted, most: int) -> Batch | None:
        self._engine.begin()
        try:
            claims = claim.hold(self._engine, wanted, most)
            count = taking.together(self._tasks, claims)
            self._is_cut = count < len(claims)
            if count <= 1:  # it may have to be alone, or is: a note of it would cost as much
                self._engine.roll_back()
                return self._mark(wanted, 1) if claims else None
            claims = claims[:count]
            assert self._note_held is not None
            self._note_held(each.pk for each in claims)
            self._has_noted = True
        except BaseException:
            self._engine.roll_back()
            raise
        return self._batched(claims, is_held=True)

    def _forget_held(self) -> None:
        """What was held once and waits again must not look as if a task of it had killed us."""
        if self._has_noted and self._note_held is not None:
            with suppress(Exception):
                self._note_held(())
                self._has_noted = False

    def _rescue(self, steps: Sequence[Wanted]) -> Batch | None:
        # By itself: if it ends this worker too, no other is lost with it.
        def verb() -> Batch | None:
            for wanted in steps:
                claims = claim.rescued(self._engine, wanted, 1, claim.SUSPECTS, self._by)
                if claims:
                    return self._batched(claims)
            return None

        return taking.take(self._engine, verb, otherwise=None)

    def _batched(self, claims: Sequence[Claim], *, is_held: bool = False) -> Batch | None:
        if not claims:
            return None
        batch = Batch(self._engine, claims, self._by, is_held=is_held)
        runs.keep(self._engine.using, batch.kept)
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
                if self._batch is not None:
                    self._batch.relieve()
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
        self._log = logs.safe(hooks.logger)
        self._tells = hooks.logger.isEnabledFor(logging.INFO)
        self._interruptible = interruptible()
        self._place = here()
        self._place.give_up = self._give_up
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
            if self._tells:
                self._log.info("Running %s", claimed)
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
        place, limit = self._place, None
        token = context.enter(_Context(self._proxies[claimed.name], self._using, self._by, claimed))
        try:
            args, kwargs = decoded(claimed.params)
            if plan.timeout is not None:
                limit = limits.begin(FunctionBody(place, claimed), claimed, plan.timeout)
            try:
                place.token = claimed
                with self._interruptible:
                    value = plan.function(*args, **kwargs)
            finally:
                place.clear()
                if limit is not None:
                    limits.end(limit)
                leave_if_forked(process)
                self._known.close_what_is_open()
            text = None if value is None else encode(value, strict=plan.is_strict)
        except ForcedStop:
            raise
        except BaseException as error:
            place.clear()  # what has come a moment late may have ended the first one
            place.explain(error)
            self._has_failed(error)
            return None
        finally:
            context.leave(token)
        ended = Ended(claimed, began, time.perf_counter(), text)
        if claimed.is_chain or self._is_watched:
            self._succeed_by_itself(ended._replace(claim=self._batch.current_marked()))
            return None
        if self._tells:
            self._log.info("Ran task and deleting %s", claimed)
        return ended

    def _give_up(self, claimed: Claim, error: BaseException) -> None:
        """In another thread: record that a body has ended that goes on."""
        try:
            raise error
        except BaseException as raised:
            self._has_failed(raised)

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
                value = attempt.run_body(args, kwargs)
            at_once = at_once or attempt.is_atomic
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
                self._log.warning(
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
