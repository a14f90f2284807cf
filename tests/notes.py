"""Calls of the tests' own tasks, and the notes by which they say what they have done."""

from __future__ import annotations

from collections.abc import Callable

from project.models import Note

from background_task.models import Task


def enqueue(name: str, *args: object, **options: object) -> Task:
    """Store a call of the task of this name in ``project.tasks``."""
    task = Task.objects.new_task(f"project.tasks.{name}", args, **options)
    task.save()
    return task


def noted(text: str) -> Callable[[], bool]:
    """Return what tells whether there is such a note, for ``wait_until``."""
    return lambda: Note.objects.filter(text=text).exists()
