"""Runs the tasks of one batch, and records how they have ended.

Quickly, where nobody wants to know more of a task than that it has run; in full, as the predecessor
runs one, where somebody listens, or the task has options that need its row.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from background_task import logs, vendors
from background_task import tasks as hooks
from background_task.api import context
from background_task.execution.attempt import Attempt, encode
from background_task.execution.call import leave_if_forked
from background_task.execution.connections import Known, refuse_left_open, undisturbed
from background_task.execution.interruptions import FunctionBody, here, limits
from background_task.execution.notices import Notices
from background_task.execution.quick import Plan, Plans
from background_task.execution.runs import runs
from background_task.models import Task
from background_task.policies.arguments import decoded
from background_task.records import Claim, Ended, Mark
from background_task.storage import acknowledge
from background_task.utils import ForcedStop, interruptible
from background_task.worker import taking
from background_task.worker.batch import Batch

if TYPE_CHECKING:
    from background_task.tasks import Tasks


class Runner:
    """Runs the tasks of one batch in the calling thread.

    Args:
        tasks: the registry.
        using: the alias of the database of the rows.
        by: who has taken them.
        batch: the rows.
        known: what is known of this thread's connections between two batches.
    """

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
                left = self._known.close_what_is_open()
            if left:
                refuse_left_open(left, claimed)
            text = None if value is None else encode(value, plan.function, strict=plan.is_strict)
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
        if row is None:
            marked = self._batch.current_marked()
            row = taking.read(self._using, [marked], self._by).get(marked.pk)
        if row is None:
            return None
        attempt = self._attempt(row)
        at_once = self._is_watched or claimed.is_chain
        began = time.perf_counter()
        try:
            args, kwargs = attempt.begin()
            with attempt.as_current(), undisturbed() as left:
                value = attempt.run_body(args, kwargs)
            attempt.refuse_left_open(left)
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
        attempt = self._attempt_that_has_run(self._batch.current_marked())
        if attempt is None:
            return
        attempt.fail(error)
        runs.end(attempt.task)

    def _succeed_by_itself(self, ended: Ended) -> None:
        attempt = self._attempts.pop(ended.claim.pk, None)
        if attempt is None and (attempt := self._attempt_that_has_run(ended.claim)) is None:
            return
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

    def _attempt_that_has_run(self, marked: Claim) -> Attempt | None:
        """Return the attempt at a row by :meth:`_run_quickly`; None if it cannot be recorded."""
        try:
            row = taking.read_again(self._using, marked, self._by)
        except Exception as error:
            runs.leave_unrecorded(self._using, self._batch.keeping([marked]), error)
            return None
        if row is None:
            was_marked = marked.pk not in self._batch.never_marked
            runs.leave_to_others(self._using, marked, "has run", may_be_unlocked=was_marked)
            return None
        attempt = self._attempt(row)
        attempt.resume()
        return attempt

    def _attempt(self, row: Task) -> Attempt:
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
