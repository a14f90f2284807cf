"""The errors of this package.

::

    BackgroundTaskError
    ├── InvalidTaskError        raised by a task: "do not try me again"
    ├── InvalidArgumentType     (TypeError)   refused at the call: an argument has the wrong type
    ├── InvalidArgumentValue    (ValueError)  refused at the call: an argument has an impossible value
    └── TaskModuleError         (ImportError) a ``tasks.py`` cannot be imported
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


class InvalidArgumentType(BackgroundTaskError, TypeError):
    """A task was declared or called with an argument of the wrong type. Nothing was stored."""


class InvalidArgumentValue(BackgroundTaskError, ValueError):
    """A task was declared or called with an argument that cannot be meant. Nothing was stored."""


class TaskModuleError(BackgroundTaskError, ImportError):
    """A ``tasks.py`` could not be imported; the message names the file and the first cause."""
