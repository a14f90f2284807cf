"""The table of what was done: ``background_task_completedtask``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Self

from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.db.models import Q
from django.utils import timezone

from background_task.models import rows
from background_task.models.creators import CreatedByQuerySet, CreatorForeignKey
from background_task.models.indexes import NarrowedIndex
from background_task.states import State


class CompletedTaskQuerySet(CreatedByQuerySet["CompletedTask"]):
    """Rows of ``background_task_completedtask``; also its manager."""

    def failed(self, within: timedelta | None = None) -> Self:
        """Return the tasks that failed for good, at any time or ``within`` so long ago."""
        failed = self.filter(failed_at__isnull=False)
        return failed.filter(failed_at__gt=timezone.now() - within) if within else failed

    def succeeded(self, within: timedelta | None = None) -> Self:
        """Return the tasks that succeeded, at any time or ``within`` so long ago."""
        succeeded = self.filter(failed_at__isnull=True)
        return succeeded.filter(run_at__gt=timezone.now() - within) if within else succeeded


class CompletedTask(rows.Row):
    """One finished task.

    ``run_at`` is when it ended and ``locked_at`` when its last run began; ``attempts`` counts the
    runs. ``failed_at`` is set only on final failure, while ``last_error`` also keeps the error of
    an attempt that was retried with success.
    """

    creator_content_type = models.ForeignKey(
        ContentType,
        null=True,
        blank=True,
        related_name="completed_background_task",
        on_delete=models.CASCADE,
        db_index=False,  # see the index "done for"
    )
    creator = CreatorForeignKey("creator_content_type", "creator_pk")
    # What a GenericRelation in a project's own model looks for.
    creator_by_number = GenericForeignKey("creator_content_type", "creator_object_id")

    state = models.SmallIntegerField(
        choices=State.finished(), null=True, blank=True, editable=False
    )

    objects = CompletedTaskQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["run_at"], name="background_task_finished"),
            NarrowedIndex(
                fields=["creator_content_type", "creator_object_id"],
                name="background_task_done_for",
                where=Q(creator_content_type__isnull=False),
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["result_id"], name="background_task_done_result_id")
        ]

    def __str__(self) -> str:
        return f"{self.verbose_name or self.task_name} - {self.run_at}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the row; a copy gets a public id of its own."""
        self._begin()
        super().save(*args, **kwargs)
