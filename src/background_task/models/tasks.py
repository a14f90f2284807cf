"""The table of what waits or runs: ``background_task``."""

from __future__ import annotations

import json
import logging
import traceback as tracebacks
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any

from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.db import models, transaction
from django.db.models import F, Q, Value
from django.db.models.functions import Coalesce

from background_task import logs, vendors
from background_task._compat import uuid7
from background_task.exceptions import storable
from background_task.identity import this_worker
from background_task.models import rows
from background_task.models.completed_tasks import CompletedTask
from background_task.models.creators import CreatorForeignKey
from background_task.models.indexes import NarrowedIndex
from background_task.models.managers import LOSSES, TaskManager, TaskQuerySet, lock_values
from background_task.models.shared import SharedRow, named, named_databases
from background_task.models.workers import Worker
from background_task.policies import cancellation
from background_task.policies.repetition import is_declared, next_run
from background_task.policies.runs import RunPolicy, in_seconds
from background_task.settings import app_settings
from background_task.signals import announce, task_cancelled, task_failed, task_rescheduled
from background_task.states import State

logger = logging.getLogger("background_task.models")

# A database refuses a statement of many megabytes, and the outcome could never be recorded.
HALF_OF_AN_ERROR = 100_000

# What a worker is asked to end a task by, before its key.
CANCEL = "cancel:"
GIVEN_UP = "It was cancelled when a worker had taken it, and may have begun. It was given up since."


class Task(SharedRow):
    """One task that waits or runs.

    ``epoch`` counts the claims: together with the lock it tells one run from the next, so a worker
    that lost its lock can write nothing. ``unique_key`` is what at most one live row may carry.
    """

    HOURLY = rows.HOURLY
    DAILY = rows.DAILY
    WEEKLY = rows.WEEKLY
    EVERY_2_WEEKS = rows.EVERY_2_WEEKS
    EVERY_4_WEEKS = rows.EVERY_4_WEEKS
    NEVER = rows.NEVER
    REPEAT_CHOICES = rows.REPEAT_CHOICES

    creator_content_type = models.ForeignKey(
        ContentType,
        null=True,
        blank=True,
        related_name="background_task",
        on_delete=models.CASCADE,
        db_index=False,  # see the index "created by"
    )
    creator = CreatorForeignKey("creator_content_type", "creator_pk")
    # What a GenericRelation in a project's own model looks for.
    creator_by_number = GenericForeignKey("creator_content_type", "creator_object_id")

    state = models.SmallIntegerField(choices=State.live(), null=True, blank=True, editable=False)
    epoch = models.IntegerField(null=True, blank=True, editable=False)
    unique_key = models.CharField(max_length=190, null=True, blank=True, editable=False)

    objects = TaskManager()

    # When the lease was last renewed, if it was; ``locked_at`` keeps telling when the run began.
    # See storage/leases.py.
    leased_at: datetime | None = None
    # What the declaration of the task says about retries, where it says something, and what its
    # backoff answered when it was asked: seconds, or None to give up.
    policy = RunPolicy()
    answer: tuple[float | None] | None = None
    # Whether it ends since somebody has cancelled it.
    is_cancelled = False

    class Meta:
        db_table = "background_task"
        indexes = [
            models.Index(fields=["task_hash"], name="background_task_hash"),
            NarrowedIndex(
                fields=["state", "-priority", "run_at", "id"],
                name="background_task_ready",
                where=Q(state=State.READY) | Q(state=State.RESCUED),
            ),
            NarrowedIndex(
                fields=["state", "queue", "-priority", "run_at", "id"],
                name="background_task_ready_by_queue",
                where=Q(state=State.READY) | Q(state=State.RESCUED),
            ),
            NarrowedIndex(
                fields=["state", "run_at"],
                name="background_task_pending",
                where=Q(state=None) | Q(state=State.SCHEDULED) | Q(state=State.RUNNING),
            ),
            NarrowedIndex(
                fields=["unique_key"],
                name="background_task_unique_key",
                where=Q(unique_key__isnull=False),
                unique=True,
            ),
            NarrowedIndex(
                fields=["creator_content_type", "creator_object_id"],
                name="background_task_created_by",
                where=Q(creator_content_type__isnull=False),
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["result_id"], name="background_task_result_id"),
        ]

    def __str__(self) -> str:
        return self.verbose_name or self.task_name

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the row; an empty ``locked_by`` becomes NULL, and the state follows the others."""
        if self._state.db in named_databases:
            kwargs.setdefault("using", self._state.db)
        self.prepare()
        fields = named(args, kwargs)
        if fields is not None and {"run_at", "locked_by"} & set(fields):
            kwargs["update_fields"] = {*fields, "state"}
            args = args[:3]
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """Delete the row, where it is."""
        if self._state.db in named_databases:
            kwargs.setdefault("using", self._state.db)
        return super().delete(*args, **kwargs)

    def params(self) -> tuple[Any, dict[str, Any]]:
        """Return the arguments and keyword arguments, decoded."""
        args, kwargs = json.loads(self.task_params)
        return args, {str(key): value for key, value in kwargs.items()}

    def lock(self, locked_by: str) -> Task | None:
        """Take the row for a run; returns it anew, or None when somebody else holds it.

        The database decides, in one conditional UPDATE, and its clock tells whether an older lock
        has expired. What this instance remembers of the row does not matter.
        """
        now = vendors.now(self.database)
        manager = Task.objects.using(self.database)
        taken = (
            manager.unlocked(now)
            .filter(pk=self.pk)
            .update(
                # First: MySQL evaluates in this order, and sees what was set before.
                losses=LOSSES,
                **lock_values(locked_by, now),
                result_id=Coalesce(F("result_id"), Value(uuid7(), models.UUIDField())),
            )
        )
        if not taken:
            return None
        # None again when somebody deletes the row, or gives it to another, in this moment.
        return manager.filter(pk=self.pk, locked_at=now, worker_id=this_worker()).first()

    def held(self) -> TaskQuerySet:
        """Return the row as a queryset: empty when it was deleted or handed to another run."""
        if self.leased_at is None:
            locked_at = Q(locked_at=self.locked_at)
        else:
            # Any time in between, too: a task that saves its own row puts an older one back.
            locked_at = Q(locked_at__range=(self.locked_at, self.leased_at))
        rows = TaskQuerySet(type(self), using=self.database)
        return rows.filter(locked_at, pk=self.pk, locked_by=self.locked_by, epoch=self.epoch)

    def hold(self) -> bool:
        """Inside a transaction: keep the row from everybody else, if the run is still ours.

        False means that the row was deleted, or handed to another run since this instance was
        loaded; whoever gets False writes nothing. It is an UPDATE that changes nothing, rather
        than a SELECT FOR UPDATE, because that makes SQLite take its write lock and wait for it.
        """
        return bool(self.held().update(epoch=F("epoch")))

    def increment_attempts(self) -> None:
        """Count one more run, and store the row; a row that was deleted does not come back."""
        self.attempts += 1
        self.save(force_update=True)

    def has_reached_max_attempts(self) -> bool:
        """Tell whether no attempt is left."""
        return self.attempts >= self.max_attempts

    @property
    def max_attempts(self) -> int:
        """How many times the task is tried in all: what its declaration says, or the setting."""
        return self.policy.max_attempts or app_settings.BACKGROUND_TASK_MAX_ATTEMPTS

    def is_repeating_task(self) -> bool:
        """Tell whether the task runs again after it succeeded."""
        return self.repeat > self.NEVER

    def reschedule(
        self,
        type: type[BaseException] | None,
        err: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Record a failed attempt: set the time of the next one, or move the row to the history.

        The history is reached when no attempt is left, ``err`` is an ``InvalidTaskError``, or the
        declaration of the task gives up. All of it is one transaction.
        """
        with transaction.atomic(using=self.database):
            self.last_error = self._extract_error(type, err, traceback)
            self.increment_attempts()
            if self._gives_up(err):
                self._fail()
            else:
                self._retry()

    def _gives_up(self, error: BaseException | None) -> bool:
        return (
            self.has_reached_max_attempts()
            or self.policy.gives_up(error, self.attempts)
            or self.answer == (None,)
        )

    def _fail(self) -> None:
        self.failed_at = vendors.now(self.database)
        logs.safe(logger).warning("Marking task %s as failed", self)
        self.save(update_fields=["failed_at"])
        completed = self.create_completed_task()
        announce(
            task_failed,
            self.__class__,
            using=self.database,
            task_id=self.id,
            completed_task=completed,
        )
        if is_declared(self.unique_key):
            self.create_repetition()
        self.delete()

    def _retry(self) -> None:
        if cancellation.is_marked(self.options):
            self.end_cancelled(self.last_error)
            return
        if self.answer is not None and self.answer[0] is not None:
            delay = in_seconds(self.answer[0])
        else:
            delay = self.policy.delay(self.attempts, app_settings.BACKOFF_MULTIPLIER)
        self.run_at = vendors.now(self.database) + delay
        logs.safe(logger).warning(
            "Rescheduling task %s for %s later at %s", self, delay, self.run_at
        )
        announce(task_rescheduled, self.__class__, using=self.database, task=self)
        self.locked_by = None
        self.locked_at = None
        self.is_given_back = True
        try:
            self.save(force_update=True)
        finally:
            self.is_given_back = False

    def create_completed_task(self) -> CompletedTask:
        """Store and return the history row of this task; its ``run_at`` is the time of the end."""
        completed = self.as_completed(vendors.now(self.database))
        completed.save(using=self.database)
        return completed

    def as_completed(self, ended: datetime) -> CompletedTask:
        """Return the history row of this task, unsaved."""
        completed = CompletedTask(
            **{name: getattr(self, name) for name in _COPIED},
            result_id=self.result_id,
            run_at=ended,
            state=self._final_state,
        )
        completed.identify(result_id=self.result_id)
        return completed

    @property
    def _final_state(self) -> State:
        if self.is_cancelled:
            return State.CANCELLED
        return State.FAILED if self.failed_at else State.SUCCESSFUL

    def cancel(self) -> bool:
        """Cancel the task: at once while it waits; while it runs, its worker is asked to end it.

        A chain of repetitions ends with it, unless its period is declared in the code.

        Returns:
            False when the task has finished, or nobody can be asked.
        """
        using = self.database
        rows = TaskQuerySet(type(self), using=using).filter(pk=self.pk)
        with transaction.atomic(using=using):
            vendors.begin_write(using)
            row = rows.select_for_update().first()
            if row is None:
                return False
            # It reads what is there now, and not what the transaction began with.
            if rows.unlocked(vendors.now(using)).select_for_update().first() is not None:
                row.locked_by = None  # by a worker that is gone
                if row.is_in_history():  # stored past save(), with the id of one that has ended
                    row.be_another_run()
                was_taken = cancellation.is_marked(row.options)
                row.end_cancelled(GIVEN_UP if was_taken else "It was cancelled while it waited.")
                return True
            if not Worker.can_be_asked(using, row.worker_id):
                return False
            # Later: a worker whose row is locked cannot show that it lives.
            ask = partial(Worker.ask, using, row.worker_id, f"{CANCEL}{row.pk}")
            transaction.on_commit(ask, using=using, robust=True)
            # The request is gone with the worker; this is not.
            return bool(rows.update(options=cancellation.marked(row.options)))

    def end_cancelled(self, reason: str) -> None:
        """Inside a transaction that holds the row: move it to the history as cancelled."""
        self.is_cancelled = True
        self.failed_at = vendors.now(self.database)
        self.last_error = reason
        completed = self.create_completed_task()
        announce(
            task_cancelled,
            self.__class__,
            using=self.database,
            task_id=self.pk,
            completed_task=completed,
        )
        if is_declared(self.unique_key):
            self.create_repetition()
        self.delete()

    def create_repetition(self) -> Task | None:
        """Store and return the next row of the chain; None when the chain ends here.

        It gets a new id and public id, no attempts, and the phase of this row. What was to be
        cancelled as it ran is the last of a chain, however it has ended.
        """
        if cancellation.is_marked(self.options) and not is_declared(self.unique_key):
            return None
        run_at = next_run(self.run_at, self.repeat, self.repeat_until, vendors.now(self.database))
        if run_at is None:
            return None
        following = Task(
            **{name: getattr(self, name) for name in _REPEATED},
            run_at=run_at,
        )
        following.options = cancellation.unmarked(self.options)
        following.identify(unique_key=self.unique_key)
        if self.unique_key:
            # At most one live row may carry the key, and this one lives a moment longer.
            type(self)._base_manager.using(self.database).filter(pk=self.pk).update(unique_key=None)
        following.save(using=self.database)
        return following

    @staticmethod
    def _extract_error(
        type: type[BaseException] | None,
        err: BaseException | None,
        tb: TracebackType | None,
    ) -> str:
        """Return the traceback as text that every database can store, cut in the middle if huge."""
        text = "".join(tracebacks.format_exception(type, err, tb))
        if len(text) > 2 * HALF_OF_AN_ERROR:
            text = f"{text[:HALF_OF_AN_ERROR]}\n[…]\n{text[-HALF_OF_AN_ERROR:]}"
        return storable(text)


_REPEATED = (
    "task_name",
    "task_params",
    "task_hash",
    "verbose_name",
    "priority",
    "repeat",
    "repeat_until",
    "queue",
    "creator_content_type_id",
    "creator_object_id",
    "creator_key",
    "backend",
    "options",
)
_COPIED = (
    *_REPEATED,
    "return_value",
    "attempts",
    "failed_at",
    "last_error",
    "locked_by",
    "locked_at",
    "enqueued_at",
    "started_at",
    "worker_id",
    "losses",
)
