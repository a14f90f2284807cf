"""Helpers for the tests of a project: run what is due, and look at what was enqueued.

They work inside an ordinary ``TestCase``: in the test's own thread, connection and transaction.
"""

from __future__ import annotations

from background_task.testing.enqueued import assert_enqueued, assert_not_enqueued, captured_tasks
from background_task.testing.running import Ran, eager_tasks, run_due_tasks

__all__ = [
    "Ran",
    "assert_enqueued",
    "assert_not_enqueued",
    "captured_tasks",
    "eager_tasks",
    "run_due_tasks",
]
