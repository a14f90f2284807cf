"""The tables: what waits or runs, what was done, which attempts did not succeed, and who works.

The models keep the predecessor's methods, which read and write their own row. Whatever spans more
than one row, or has to be one transaction, is in ``background_task.storage``.
"""

from __future__ import annotations

from background_task.models.attempts import Attempt
from background_task.models.completed_tasks import CompletedTask, CompletedTaskQuerySet
from background_task.models.managers import TaskManager, TaskQuerySet
from background_task.models.tasks import Task, logger
from background_task.models.workers import Worker

__all__ = [
    "Attempt",
    "CompletedTask",
    "CompletedTaskQuerySet",
    "Task",
    "TaskManager",
    "TaskQuerySet",
    "Worker",
    "logger",
]
