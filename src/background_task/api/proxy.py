"""What stands in for a function that was marked as a task."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack

from background_task.api import aliases, startup
from background_task.api.types import Using
from background_task.exceptions import ArgumentTypeError, ArgumentValueError
from background_task.models import Task
from background_task.policies import arguments
from background_task.policies.priorities import mirrored
from background_task.policies.runs import NAMES, RunPolicy
from background_task.policies.schedules import TaskSchedule
from background_task.settings import app_settings

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping

    from background_task.api.types import Task as TypedTask
    from background_task.api.types import TaskResult

P = ParamSpec("P")
R = TypeVar("R")

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


class TaskProxy(Generic[P, R]):
    """A registered task. Calling it stores a row; ``now(...)`` calls the function itself.

    Args:
        name: the registered name, stored in every row.
        task_function: the function.
        schedule, queue, remove_existing_tasks: the defaults of its calls.
        runner: what stores the rows.
        every: seconds between the runs of the one chain that the worker keeps; 0 for none.
        policy: what the declaration says about retries.
    """

    takes_context = False

    def __init__(
        self,
        name: str,
        task_function: Callable[P, R],
        schedule: Any,
        queue: str | None,
        remove_existing_tasks: bool,
        runner: Any,
        every: int = 0,
        policy: RunPolicy = RunPolicy(),  # noqa: B008 - frozen
    ) -> None:
        self.name = name
        self.now = self.task_function = task_function
        self.runner = runner
        self.schedule = TaskSchedule.create(schedule)
        self.queue = queue
        self.remove_existing_tasks = remove_existing_tasks
        self.every = every
        self.policy = policy
        functools.update_wrapper(self, task_function, updated=())

    def __call__(self, /, *args: Any, **kwargs: Any) -> Task | None:
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
        is_strict = app_settings.is_strict
        # Here, and not only in new_task(), so that a warning points at the caller's line.
        if "repeat_until" in options:
            options["repeat_until"] = arguments.optional_moment(
                "repeat_until", options["repeat_until"], is_strict=is_strict, stacklevel=2
            )
        call = {
            "run_at": arguments.moment(
                "schedule", schedule.run_at, is_strict=is_strict, stacklevel=2
            ),
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
    def definition(self) -> Any:
        """The function as a task of Django's, with this name and these defaults.

        Raises:
            ImproperlyConfigured: there is no ``django.tasks``.
        """
        aliases.require_tasks()
        from background_task.api import definitions

        policy = {name: getattr(self.policy, name) for name in NAMES}
        return definitions.unchecked(
            object.__new__(definitions.Task),
            func=self.task_function,
            priority=mirrored(self.schedule.priority, ascending=app_settings.is_ascending()),
            backend=aliases.own_alias(),
            queue_name=self.queue or "default",
            run_after=None if self.schedule.is_immediate else self.schedule.run_at,
            takes_context=False,
            on_commit=None,
            stored_name=self.name,
            **policy,
        )

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[P, R]:
        """Store a call through Django's door; return its ``TaskResult``.

        Every keyword but ``self``, which Django's method has for its own, is the function's: see
        :meth:`using` for the options.
        """
        result: TaskResult[P, R] = self.definition.enqueue(*args, **kwargs)
        return result

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[P, R]:
        """See :meth:`enqueue`."""
        result: TaskResult[P, R] = await self.definition.aenqueue(*args, **kwargs)
        return result

    def enqueue_many(
        self, calls: Iterable[tuple[Any, ...] | Mapping[str, Any]]
    ) -> list[TaskResult[P, R]]:
        """Store many calls in one transaction; return their results in the same order.

        Args:
            calls: for each call a tuple of positional arguments or a dict of keyword arguments.
        """
        results: list[TaskResult[P, R]] = self.definition.enqueue_many(calls)
        return results

    async def aenqueue_many(
        self, calls: Iterable[tuple[Any, ...] | Mapping[str, Any]]
    ) -> list[TaskResult[P, R]]:
        """See :meth:`enqueue_many`."""
        results: list[TaskResult[P, R]] = await self.definition.aenqueue_many(calls)
        return results

    def using(self, **options: Unpack[Using]) -> TypedTask[P, R]:
        """Return the task with other defaults: priority, queue_name, run_after, backend."""
        task: TypedTask[P, R] = self.definition.using(**options)
        return task

    def get_result(self, result_id: str) -> TaskResult[P, R]:
        """Return the result of a task of this function, called through either door."""
        result: TaskResult[P, R] = self.definition.get_result(result_id)
        return result

    async def aget_result(self, result_id: str) -> TaskResult[P, R]:
        """See :meth:`get_result`."""
        result: TaskResult[P, R] = await self.definition.aget_result(result_id)
        return result

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


if TYPE_CHECKING:

    class CoroutineProxy(TaskProxy[P, R]):
        """What a type checker sees of an ``async`` task: its result is what is awaited."""

        now: Callable[P, Coroutine[Any, Any, R]]  # type: ignore[assignment]


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


class DeclaredTask(TaskProxy[..., Any]):
    """Stands in for a function that Django's ``@task`` has declared, so that the worker runs it."""

    def __init__(self, task: Any, runner: Any) -> None:
        super().__init__(task.module_path, task.func, None, task.queue_name, False, runner)
        self.task = task
        self.takes_context = task.takes_context
        self.policy = getattr(task, "policy", RunPolicy())

    @property
    def definition(self) -> Any:
        """The task itself."""
        return self.task
