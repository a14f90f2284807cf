"""The errors of this package.

::

    BackgroundTaskError
    ├── InvalidTaskError        raised by a task: "do not try me again"
    ├── ArgumentTypeError       (TypeError)   a call has an argument of the wrong type
    ├── ArgumentValueError      (ValueError)  a call has an argument that cannot be meant
    ├── TaskModuleError         (ImportError) a ``tasks.py`` cannot be imported
    ├── TaskTimeoutError        (TimeoutError) a run took longer than its ``timeout``
    └── WorkerLostError         a run ended because its worker did

    BaseException
    └── TaskCancelledError      raised in a run that somebody has cancelled
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


class TaskTimeoutError(BackgroundTaskError, TimeoutError):
    """Raised in a task that has run for longer than its ``timeout``; it has a while to tidy up."""

    def __init__(self, message: str = "The task has run for longer than its timeout.") -> None:
        super().__init__(message)


class TaskCancelledError(BaseException):
    """Raised in a task that somebody has cancelled; it has a while to tidy up.

    Not an ``Exception``, so that code which tries again whatever fails does not swallow it.
    """

    def __init__(self, message: str = "The task was cancelled.") -> None:
        super().__init__(message)


# A note of the error of a task that has returned what it must not: to run it again would not help.
OF_RETURN_VALUE = "The task has run, but what it returned cannot be stored as JSON."


def is_of_return_value(error: BaseException | None) -> bool:
    """Tell whether the body of a task succeeded, and what it returned cannot be kept."""
    return OF_RETURN_VALUE in getattr(error, "__notes__", ())


def class_path(error: type[BaseException]) -> str:
    """Return where the class of an error can be imported from."""
    return storable(f"{error.__module__}.{error.__qualname__}")


def storable(text: str) -> str:
    """Return text as every database can store it: NUL and lone surrogates are written out."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
