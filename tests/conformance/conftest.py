"""The backends that the cases are run against: ours, and Django's own, to prove them right."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from background_task._compat import django_tasks
from background_task.models import Task
from background_task.tasks import tasks

OURS, IMMEDIATE, DUMMY = "default", "immediate", "dummy"


class Backend:
    """One backend, and how its tasks come to run."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.backend = django_tasks.task_backends[alias]

    def enqueue(self, task: Any, *args: Any, **kwargs: Any) -> Any:
        return task.using(backend=self.alias).enqueue(*args, **kwargs)

    def run(self, task: Any, *args: Any, **kwargs: Any) -> Any:
        """Enqueue, let it run, and return the result as it is then."""
        result = self.enqueue(task, *args, **kwargs)
        if self.alias == OURS:
            assert tasks.run_next_task()
            result.refresh()
        return result


@pytest.fixture(params=[OURS, IMMEDIATE, DUMMY])
def any_backend(request: pytest.FixtureRequest, transactional_db: None) -> Backend:
    """A backend that enqueues."""
    return Backend(request.param)


@pytest.fixture(params=[OURS, IMMEDIATE])
def running_backend(request: pytest.FixtureRequest, transactional_db: None) -> Backend:
    """A backend that runs what is enqueued."""
    return Backend(request.param)


@pytest.fixture
def ours(transactional_db: None) -> Backend:
    """Our backend."""
    return Backend(OURS)


def make_due() -> None:
    """Let every task that waits for its next attempt be due now."""
    Task.objects.update(run_at=timezone.now())
