"""Fixtures for pytest, found by its entry point ``pytest11``; they need pytest-django's ``db``.

Pytest imports this module in every project that has the package, long before Django is set up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from background_task.models import Task
    from background_task.testing import Ran


@pytest.fixture
def run_due_tasks(db: None) -> Callable[..., list[Ran]]:
    """The function :func:`background_task.testing.run_due_tasks`."""
    from background_task.testing import run_due_tasks

    return run_due_tasks


@pytest.fixture
def assert_enqueued(db: None) -> Callable[..., list[Task]]:
    """The function :func:`background_task.testing.assert_enqueued`."""
    from background_task.testing import assert_enqueued

    return assert_enqueued


@pytest.fixture
def captured_tasks(db: None) -> Iterator[list[Task]]:
    """The rows of the tasks that the test enqueues."""
    from background_task.testing import captured_tasks

    with captured_tasks() as captured:
        yield captured


@pytest.fixture
def eager_tasks(db: None) -> Iterator[None]:
    """Let tasks run at once, within the test."""
    from background_task.testing import eager_tasks

    with eager_tasks():
        yield
