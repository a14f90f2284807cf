"""This package as a program: ``BENCH_DOOR`` is the task, and so the door, that is used.

Beside the acts of all programs it knows ``linger N``, which stores N tasks of two seconds.
"""

from __future__ import annotations

import os

import django

django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import transaction  # noqa: E402
from django.tasks import task_backends  # noqa: E402
from program import Program, become  # noqa: E402

from background_task.models import CompletedTask, Task  # noqa: E402
from project import tasks  # noqa: E402

DOOR = os.environ.get("BENCH_DOOR", "begin")


class Ours(Program):
    """Stores tasks through the door of Django."""

    task = getattr(tasks, DOOR)

    def prepare(self) -> None:
        call_command("migrate", run_syncdb=True, verbosity=0)

    def empty(self) -> None:
        Task.objects.all().delete()
        CompletedTask.objects.all().delete()

    def enqueue(self) -> None:
        self.task.enqueue(1)

    def enqueue_many(self, count: int) -> None:
        with transaction.atomic():
            task_backends["default"].enqueue_many([(self.task, (1,), {})] * count)

    def work(self) -> None:
        become("-m", "django", "process_tasks")

    def linger(self, count: int) -> None:
        """Store tasks that take a while, numbered from 0, and nothing else."""
        self.empty()
        for number in range(count):
            tasks.linger.enqueue(number)


class OursByTheOldDoor(Ours):
    """Stores single tasks by calling the decorated function."""

    def enqueue(self) -> None:
        self.task(1)


program = Ours if DOOR == "begin" else OursByTheOldDoor
