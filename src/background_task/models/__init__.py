"""The two tables: what waits or runs, and what was done.

The models keep the predecessor's methods, which read and write their own row. Whatever spans more
than one row, or has to be one transaction, is in ``background_task.storage``.
"""

from __future__ import annotations

from background_task.models.completed_tasks import CompletedTask, CompletedTaskQuerySet
from background_task.models.tasks import Task, TaskManager, TaskQuerySet, logger

__all__ = [
    "CompletedTask",
    "CompletedTaskQuerySet",
    "Task",
    "TaskManager",
    "TaskQuerySet",
    "logger",
]
