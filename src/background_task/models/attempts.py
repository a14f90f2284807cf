"""The table of attempts that did not succeed: ``background_task_attempt``."""

from __future__ import annotations

from django.db import models


class Attempt(models.Model):
    """One run of a task that failed, or whose worker was lost.

    It is found by the public id of the task, in whichever table the task stands. A success needs no
    row here: the history says all of it.
    """

    result_id = models.UUIDField()
    worker_id = models.CharField(max_length=64)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField()
    exception_class_path = models.TextField()
    traceback = models.TextField()

    class Meta:
        indexes = [models.Index(fields=["result_id"], name="background_task_attempts_of")]

    def __str__(self) -> str:
        return f"{self.exception_class_path} at {self.finished_at}"
