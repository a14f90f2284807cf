"""The tables: what waits or runs, what was done, and which attempts did not succeed.

The models keep the predecessor's methods, which read and write their own row. Whatever spans more
than one row, or has to be one transaction, is in ``background_task.storage``.
"""

from __future__ import annotations

from background_task.models.attempts import Attempt
from background_task.models.completed_tasks import CompletedTask, CompletedTaskQuerySet
from background_task.models.tasks import Task, TaskManager, TaskQuerySet, logger

__all__ = [
    "Attempt",
    "CompletedTask",
    "CompletedTaskQuerySet",
    "Task",
    "TaskManager",
    "TaskQuerySet",
    "logger",
]
