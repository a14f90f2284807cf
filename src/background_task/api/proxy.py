"""What stands in for a function that was marked as a task."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from background_task.api import startup
from background_task.exceptions import ArgumentTypeError, ArgumentValueError
from background_task.models import Task
from background_task.policies import arguments
from background_task.policies.schedules import TaskSchedule
from background_task.settings import app_settings

OPTIONS = (
    "schedule",
    "priority",
    "queue",
    "verbose_name",
    "creator",
    "repeat",
    "repeat_until",
    "remove_existing_tasks",
)


class TaskProxy:
    """A registered task. Calling it stores a row; ``now(...)`` calls the function itself.

    Args:
        name: the registered name, stored in every row.
        task_function: the function.
        schedule, queue, remove_existing_tasks: the defaults of its calls.
        runner: what stores the rows.
        every: seconds between the runs of the one chain that the worker keeps; 0 for none.
    """

    def __init__(
        self,
        name: str,
        task_function: Callable[..., Any],
        schedule: Any,
        queue: str | None,
        remove_existing_tasks: bool,
        runner: Any,
        every: int = 0,
    ) -> None:
        self.name = name
        self.now = self.task_function = task_function
        self.runner = runner
        self.schedule = TaskSchedule.create(schedule)
        self.queue = queue
        self.remove_existing_tasks = remove_existing_tasks
        self.every = every
        functools.update_wrapper(self, task_function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Task | None:
        """Store a row and return it.

        The keywords in ``OPTIONS`` are taken off and never reach the function. None is returned
        when ``RESCHEDULE_EXISTING`` or ``CHECK_EXISTING`` found the task queued already.

        Raises:
            ArgumentTypeError, ArgumentValueError: nothing was stored, nothing removed.
        """
        options = {key: kwargs.pop(key) for key in OPTIONS if key in kwargs}
        arguments.check_signature(self.name, self.task_function, args, kwargs, OPTIONS)
        schedule = TaskSchedule.create(options.pop("schedule", None)).merge(self.schedule)
        priority = options.pop("priority", None)
        strict = app_settings.BACKGROUND_TASK_STRICT_DATETIMES
        # Here, and not only in new_task(), so that a warning points at the caller's line.
        if "repeat_until" in options:
            options["repeat_until"] = arguments.optional_moment(
                "repeat_until", options["repeat_until"], strict=strict, stacklevel=2
            )
        call = {
            "run_at": arguments.moment("schedule", schedule.run_at, strict=strict, stacklevel=2),
            "priority": schedule.priority if priority is None else priority,
            "queue": self.queue,
            **options,
        }
        remove_existing = arguments.flag(
            "remove_existing_tasks", call.pop("remove_existing_tasks", self.remove_existing_tasks)
        )
        if (module := startup.importing()) is not None:
            wanted = Task.objects.new_task(self.name, args, kwargs, **call)
            return startup.ensure_one(
                wanted,
                schedule,
                module=module,
                remove_existing=remove_existing,
                sender=type(self.runner),
            )
        return self.runner.schedule(  # type: ignore[no-any-return]
            self.name,
            args,
            kwargs,
            # By position, as the predecessor does: projects override this method.
            call["run_at"],
            call["priority"],
            schedule.action,
            call["queue"],
            call.get("verbose_name"),
            call.get("creator"),
            call.get("repeat"),
            call.get("repeat_until"),
            remove_existing,
        )

    @property
    def declared_hash(self) -> str:
        """The ``task_hash`` of the chain that ``every`` declares."""
        return arguments.fingerprint(self.name, arguments.serialize((), {}))

    def declared_task(self) -> Task:
        """Return the unsaved row of the chain that ``every`` declares."""
        task = Task.objects.new_task(
            self.name,
            run_at=self.schedule.run_at,
            priority=self.schedule.priority,
            queue=self.queue,
            repeat=self.every,
        )
        task.options = json.dumps({"declared_in": self.task_function.__module__})
        return task

    def __str__(self) -> str:
        return f"TaskProxy({self.name})"

    __repr__ = __str__


def check_every(name: str, function: Callable[..., Any], every: Any) -> int:
    """Return ``every`` in seconds, 0 for None; it needs a function that takes no arguments."""
    if every is None:
        return 0
    seconds = arguments.period("every", every)
    if seconds < 1:
        raise ArgumentValueError(f"every is {every!r}; it must be at least 1 second.")
    try:
        arguments.check_signature(name, function, (), {}, ())
    except ArgumentTypeError as error:
        raise ArgumentTypeError(
            f"every={every!r} calls {name} without arguments, which it does not accept: give its "
            f"parameters defaults. ({error})"
        ) from None
    return seconds
