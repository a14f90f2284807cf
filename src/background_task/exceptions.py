"""The errors of this package.

::

    BackgroundTaskError
    ├── InvalidTaskError        raised by a task: "do not try me again"
    ├── ArgumentTypeError       (TypeError)   a call has an argument of the wrong type
    ├── ArgumentValueError      (ValueError)  a call has an argument that cannot be meant
    ├── TaskModuleError         (ImportError) a ``tasks.py`` cannot be imported
    └── WorkerLostError         a run ended because its worker did
"""

from __future__ import annotations

from typing import Any


class BackgroundTaskError(Exception):
    """Base class; ``errors`` carries whatever details the raiser had."""

    def __init__(self, message: str, errors: Any = None) -> None:
        super().__init__(message)
        self.errors = errors


class InvalidTaskError(BackgroundTaskError):
    """Raised inside a task to fail it for good: the attempts that are left are not used."""


class ArgumentTypeError(BackgroundTaskError, TypeError):
    """A task was declared or called with an argument of the wrong type. Nothing was stored."""


class ArgumentValueError(BackgroundTaskError, ValueError):
    """A task was declared or called with an argument that cannot be meant. Nothing was stored."""


class TaskModuleError(BackgroundTaskError, ImportError):
    """A ``tasks.py`` could not be imported; the message names the file and the first cause."""


class WorkerLostError(BackgroundTaskError):
    """A run ended without an outcome: its worker was lost. That is not the task's fault."""
