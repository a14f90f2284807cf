"""What a waiting task and a finished one have in common: the columns, and how they read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from django.db import models
from django.utils import timezone

from background_task import identity
from background_task._compat import uuid7
from background_task.models.creators import HasCreator
from background_task.settings import app_settings

HOURLY = 3600
DAILY = 24 * HOURLY
WEEKLY = 7 * DAILY
EVERY_2_WEEKS = 2 * WEEKLY
EVERY_4_WEEKS = 4 * WEEKLY
NEVER = 0
REPEAT_CHOICES = (
    (HOURLY, "hourly"),
    (DAILY, "daily"),
    (WEEKLY, "weekly"),
    (EVERY_2_WEEKS, "every 2 weeks"),
    (EVERY_4_WEEKS, "every 4 weeks"),
    (NEVER, "never"),
)


class Row(HasCreator):
    """The predecessor's sixteen columns, and ours, which are NULL wherever its code wrote the row.

    ``result_id`` names a task for ever: it is known before the row is stored, stands in whichever
    of the two tables holds the task, and is safe to put in a URL. ``worker_id`` tells which process
    holds or held the run; ``locked_by`` keeps the predecessor's text, a bare process number.
    """

    task_name = models.CharField(max_length=190)
    task_params = models.TextField()
    task_hash = models.CharField(max_length=40)
    verbose_name = models.CharField(max_length=255, null=True, blank=True)
    priority = models.IntegerField(default=0)
    run_at = models.DateTimeField()
    repeat = models.BigIntegerField(choices=REPEAT_CHOICES, default=NEVER)
    repeat_until = models.DateTimeField(null=True, blank=True)
    queue = models.CharField(max_length=190, null=True, blank=True)
    attempts = models.IntegerField(default=0)
    failed_at = models.DateTimeField(null=True, blank=True)
    last_error = models.TextField(blank=True)
    locked_by = models.CharField(max_length=64, null=True, blank=True)
    locked_at = models.DateTimeField(null=True, blank=True)
    creator_object_id = models.PositiveIntegerField(null=True, blank=True)
    creator_key = models.CharField(max_length=255, null=True, blank=True, editable=False)

    result_id = models.UUIDField(null=True, blank=True, editable=False)
    enqueued_at = models.DateTimeField(null=True, blank=True, editable=False)
    started_at = models.DateTimeField(null=True, blank=True, editable=False)
    worker_id = models.CharField(max_length=64, null=True, blank=True, editable=False)
    backend = models.CharField(max_length=64, null=True, blank=True, editable=False)
    losses = models.SmallIntegerField(null=True, blank=True, editable=False)
    options = models.TextField(null=True, blank=True, editable=False)
    return_value = models.TextField(null=True, blank=True, editable=False)

    # What the next insert is to carry of the values that make a row this one and no other.
    _identity: Mapping[str, Any] = MappingProxyType({})

    class Meta:
        abstract = True

    def identify(self, **values: Any) -> None:
        """Say what the row is to be known by once it is stored.

        Without this a row that is inserted gets an identity of its own, wherever its other columns
        come from: projects copy rows, by ``pk = None`` or column by column.
        """
        self._identity = values

    def _begin(self, **values: Any) -> None:
        if self._state.adding or self.pk is None:
            for name, value in {**values, **self._identity}.items():
                setattr(self, name, value)
            if "result_id" not in self._identity:
                self.result_id = uuid7()
            self.__dict__.pop("_identity", None)

    def locked_by_pid_running(self) -> bool | None:
        """Tell whether the process that holds the lock lives; None when the row is not locked.

        A process of another host cannot be asked, so a lock of such a one counts as alive until it
        is ``MAX_RUN_TIME`` old.
        """
        if not self.locked_by:
            return None
        if identity.number_of(self.worker_id) == self.locked_by:
            has_ended = identity.has_ended(self.worker_id)
            is_alive = None if has_ended is None else not has_ended
        elif self.locked_by.isdecimal():  # by the predecessor, or a runner with a name of its own
            is_alive = identity.process_exists(int(self.locked_by))
        else:
            return False
        if is_alive is not None:
            return is_alive
        lease = timedelta(seconds=app_settings.BACKGROUND_TASK_MAX_RUN_TIME)
        return self.locked_at is not None and self.locked_at > timezone.now() - lease

    # As admin.display() would, which is not loaded where a project has no admin: 2 MiB a process.
    locked_by_pid_running.boolean = True  # type: ignore[attr-defined]

    def has_error(self) -> bool:
        """Tell whether an attempt has failed."""
        return bool(self.last_error)

    has_error.boolean = True  # type: ignore[attr-defined]
