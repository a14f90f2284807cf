"""When a call wants its task to run: the predecessor's ``TaskSchedule``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from background_task.exceptions import ArgumentTypeError, ArgumentValueError
from background_task.policies import arguments

_PARTS = ("run_at", "priority", "action")


class TaskSchedule:
    """When to run, how urgently, and what to do when the same task is queued already.

    Args:
        run_at: None (now), seconds from now, a timedelta from now, or a datetime.
        priority: any 32-bit number; None leaves it to the other schedule in :meth:`merge`.
        action: ``SCHEDULE`` adds a row, ``RESCHEDULE_EXISTING`` moves rows that wait with the
            same name and arguments, ``CHECK_EXISTING`` does nothing when there is one.

    Raises:
        ArgumentTypeError, ArgumentValueError: a part is of the wrong type or impossible.
    """

    SCHEDULE = 0
    RESCHEDULE_EXISTING = 1
    CHECK_EXISTING = 2

    def __init__(
        self,
        run_at: datetime | timedelta | float | None = None,
        priority: int | None = None,
        action: int | None = None,
    ) -> None:
        _check_run_at(run_at)
        if priority is not None:
            priority = arguments.priority(priority)
        if action not in (None, self.SCHEDULE, self.RESCHEDULE_EXISTING, self.CHECK_EXISTING):
            raise ArgumentValueError(
                f"schedule action is {action!r}; it must be TaskSchedule.SCHEDULE, "
                "RESCHEDULE_EXISTING or CHECK_EXISTING."
            )
        self._run_at = run_at
        self._priority = priority
        self._action = action

    @classmethod
    def create(cls, schedule: Any) -> TaskSchedule:
        """Return ``schedule``, in any form a call may give it, as a ``TaskSchedule``."""
        if isinstance(schedule, TaskSchedule):
            return schedule
        if schedule is None or isinstance(schedule, int | float | timedelta | datetime):
            return cls(run_at=schedule)
        if not isinstance(schedule, Mapping):
            raise ArgumentTypeError(
                "schedule must be None, seconds, a timedelta, a datetime, a TaskSchedule or a dict "
                f"of run_at, priority and action, not {type(schedule).__name__} ({schedule!r:.80})."
            )
        for key in schedule:
            if key not in _PARTS:
                raise ArgumentValueError(
                    f"schedule has the unknown key {key!r}; it may hold run_at, priority and "
                    f"action.{arguments.did_you_mean(str(key), _PARTS)}"
                )
        return cls(**schedule)

    def merge(self, schedule: TaskSchedule) -> TaskSchedule:
        """Return a schedule whose parts are this one's, or ``schedule``'s where this has None."""
        return TaskSchedule(
            run_at=schedule._run_at if self._run_at is None else self._run_at,
            priority=schedule._priority if self._priority is None else self._priority,
            action=schedule._action if self._action is None else self._action,
        )

    @property
    def run_at(self) -> datetime:
        """The point in time, resolved at each read."""
        run_at = self._run_at
        if isinstance(run_at, datetime):
            return run_at
        if run_at is None:
            return timezone.now()
        delay = run_at if isinstance(run_at, timedelta) else timedelta(seconds=run_at)
        return timezone.now() + delay

    @property
    def priority(self) -> int:
        """The priority, 0 where none was given."""
        return self._priority or 0

    @property
    def action(self) -> int:
        """The action, ``SCHEDULE`` where none was given."""
        return self._action or self.SCHEDULE

    @property
    def is_immediate(self) -> bool:
        """Whether nothing was said about the time."""
        return self._run_at is None

    def __repr__(self) -> str:
        return f"TaskSchedule(run_at={self._run_at}, priority={self._priority})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TaskSchedule):
            return NotImplemented
        mine = (self._run_at, self._priority, self._action)
        return mine == (other._run_at, other._priority, other._action)

    __hash__ = None  # type: ignore[assignment]  # equal by value and unhashable, as it always was


def _check_run_at(run_at: Any) -> None:
    if run_at is None or isinstance(run_at, datetime):
        return
    if isinstance(run_at, timedelta):
        seconds = run_at.total_seconds()
    elif isinstance(run_at, int | float):
        seconds = run_at
    else:
        raise ArgumentTypeError(
            "schedule run_at must be None, seconds, a timedelta or a datetime, not "
            f"{type(run_at).__name__} ({run_at!r:.80})."
        )
    try:
        if math.isfinite(seconds):
            timezone.now() + timedelta(seconds=seconds)
            return
    except OverflowError:
        pass
    raise ArgumentValueError(
        f"schedule run_at is {run_at!r:.80}, which is no point in time: give seconds from now."
    )
