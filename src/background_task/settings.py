"""Every setting: name, type, default, sentence.

Settings are read at each access, so ``override_settings`` works. The predecessor's bare names
``MAX_ATTEMPTS`` and ``MAX_RUN_TIME`` are read as before; a name that starts with
``BACKGROUND_TASK_`` wins over the bare one.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any, TypeVar

from django.conf import settings

from background_task.exceptions import ArgumentValueError

Number = TypeVar("Number", int, float)

try:
    cpu_count: int = multiprocessing.cpu_count()
except NotImplementedError:
    cpu_count = 1


_MISSING = object()


def _first(default: Any, *names: str) -> Any:
    for name in names:
        if (value := getattr(settings, name, _MISSING)) is not _MISSING:
            return value
    return default


def _number(kind: Callable[[Any], Number], default: Any, *names: str) -> Number:
    value = _first(default, *names)
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentValueError(
            f"The setting {' or '.join(names)} must be a number, not {type(value).__name__} "
            f"({value!r:.80})."
        ) from None


class AppSettings:
    """The settings of the project, with the defaults filled in."""

    @property
    def MAX_ATTEMPTS(self) -> int:
        """int, 25: how many times a task is tried before it has failed for good."""
        return _number(int, 25, "BACKGROUND_TASK_MAX_ATTEMPTS", "MAX_ATTEMPTS")

    @property
    def BACKGROUND_TASK_MAX_ATTEMPTS(self) -> int:
        """int, 25: the same as ``MAX_ATTEMPTS``; read first."""
        return self.MAX_ATTEMPTS

    @property
    def MAX_RUN_TIME(self) -> float:
        """seconds, 3600: the age at which a lock that was not renewed may be taken over."""
        return _number(float, 3600, "BACKGROUND_TASK_MAX_RUN_TIME", "MAX_RUN_TIME")

    @property
    def BACKGROUND_TASK_MAX_RUN_TIME(self) -> float:
        """seconds, 3600: the same as ``MAX_RUN_TIME``; read first."""
        return self.MAX_RUN_TIME

    @property
    def BACKGROUND_TASK_MAX_LOSSES(self) -> int:
        """int, 3: how many times a task runs again after its worker was lost."""
        return _number(int, 3, "BACKGROUND_TASK_MAX_LOSSES")

    @property
    def BACKGROUND_TASK_RUN_ASYNC(self) -> bool:
        """bool, False: run the tasks of one worker in a pool of threads."""
        return bool(_first(False, "BACKGROUND_TASK_RUN_ASYNC"))

    @property
    def BACKGROUND_TASK_ASYNC_THREADS(self) -> int:
        """int, the number of cores: the size of that pool, fixed when the worker is imported."""
        return _number(int, cpu_count, "BACKGROUND_TASK_ASYNC_THREADS")

    @property
    def BACKGROUND_TASK_WORKER(self) -> dict[str, Any]:
        """dict, empty: the options of ``process_tasks`` where its command line says nothing.

        The keys are those of the command line in upper case, e.g. ``{"MAX_TASKS": 1000}``.
        """
        told: dict[str, Any] = _first({}, "BACKGROUND_TASK_WORKER")
        return told

    @property
    def BACKGROUND_TASK_EMBEDDED(self) -> bool:
        """bool, False: run a worker in a thread beside ``runserver``."""
        return bool(_first(False, "BACKGROUND_TASK_EMBEDDED"))

    @property
    def BACKGROUND_TASK_PRIORITY_ORDERING(self) -> str:
        """text, "DESC": "DESC" runs the highest number first, "ASC" the lowest.

        The property returns what ``order_by`` takes: ``"-"`` or ``""``. Anything but ``"ASC"``
        means ``"DESC"``.
        """
        return "" if _first("DESC", "BACKGROUND_TASK_PRIORITY_ORDERING") == "ASC" else "-"

    def is_ascending(self) -> bool:
        """Tell whether the lowest priority runs first."""
        return not self.BACKGROUND_TASK_PRIORITY_ORDERING

    @property
    def BACKOFF_MULTIPLIER(self) -> float:
        """number, 4: the exponent of the retry ladder, ``attempts ** 4 + 5`` seconds."""
        return _number(float, 4, "BACKGROUND_TASK_BACKOFF_MULTIPLIER", "BACKOFF_MULTIPLIER")

    @property
    def BACKGROUND_TASK_EAGER(self) -> bool:
        """bool, False: run a task at once when it is called, for tests and debugging."""
        return bool(_first(False, "BACKGROUND_TASK_EAGER"))

    @property
    def BACKGROUND_TASK_STRICT_DATETIMES(self) -> bool:
        """bool, False: refuse naive datetimes under ``USE_TZ`` instead of warning."""
        return bool(_first(False, "BACKGROUND_TASK_STRICT_DATETIMES"))

    def is_strict(self) -> bool:
        """Tell whether naive datetimes are refused."""
        return self.BACKGROUND_TASK_STRICT_DATETIMES

    @property
    def BACKGROUND_TASK_STRICT_DISCOVERY(self) -> bool:
        """bool, False: let a broken ``tasks.py`` of an installed package stop the worker too.

        One in the project's own code always does.
        """
        return bool(_first(False, "BACKGROUND_TASK_STRICT_DISCOVERY"))


app_settings = AppSettings()
