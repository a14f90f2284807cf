"""The task that Django's ``@task`` makes on our backend: Django's own, with a retry policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from background_task._compat import django_tasks, tasks_base
from background_task.api import aliases, options, registry
from background_task.exceptions import ArgumentTypeError
from background_task.policies.runs import NAMES, Backoff, Classes, RunPolicy, check_atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(tasks_base.Task):  # type: ignore[type-arg]
    """A declared task.

    Args:
        max_attempts, backoff, retry_on, give_up_on, max_losses, on_worker_loss, timeout, atomic:
            see :class:`RunPolicy`.
        on_commit: store the row when the transaction of the caller is committed, instead of in it.
        stored_name: the name that the rows carry, where it is not that of the function.
    """

    max_attempts: int | None = None
    backoff: Backoff | None = None
    retry_on: Classes | None = None
    give_up_on: Classes | None = None
    max_losses: int | None = None
    on_worker_loss: str | None = None
    timeout: float | None = None
    atomic: bool | None = None
    on_commit: bool | None = None
    stored_name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.on_commit, bool | None):
            raise ArgumentTypeError(
                f"on_commit must be True, False or None, not {self.on_commit!r:.80}."
            )
        if self.stored_name is not None and registry.proxy(self.stored_name) is None:
            raise ArgumentTypeError("'stored_name' is no option of a task.")
        checked = self.policy
        check_atomic(self.name, self.func, checked)
        for name in NAMES:
            object.__setattr__(self, name, getattr(checked, name))
        # Not super(): a class with slots is made twice, and super() knows the first.
        tasks_base.Task.__post_init__(self)

    def get_backend(self) -> Any:
        """Return the backend of the alias."""
        return aliases.backend(self.backend)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled and copied by the path of the function, on every version of Django."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        del values["func"]
        return _restored, (self.module_path, values)

    @property
    def policy(self) -> RunPolicy:
        """What the declaration says about retries."""
        return RunPolicy(**{name: getattr(self, name) for name in NAMES})

    def enqueue_many(self, calls: Iterable[tuple[Any, ...] | Mapping[str, Any]]) -> list[Any]:
        """Store many calls in one transaction; return their results in the same order.

        Args:
            calls: for each call a tuple of positional arguments or a dict of keyword arguments.
        """
        backend: Any = self.get_backend()
        return backend.enqueue_many(self._each_of(calls))  # type: ignore[no-any-return]

    async def aenqueue_many(
        self, calls: Iterable[tuple[Any, ...] | Mapping[str, Any]]
    ) -> list[Any]:
        """See :meth:`enqueue_many`."""
        backend: Any = self.get_backend()
        return await backend.aenqueue_many(self._each_of(calls))  # type: ignore[no-any-return]

    def _each_of(self, calls: Iterable[Any]) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        triples: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        for call in calls:
            if isinstance(call, Mapping):
                triples.append((self, (), dict(call)))
            elif isinstance(call, tuple | list):
                triples.append((self, tuple(call), {}))
            else:
                raise ArgumentTypeError(
                    "enqueue_many takes a tuple of positional arguments or a dict of keyword "
                    f"arguments for each call, not {type(call).__name__} ({call!r:.80})."
                )
        return triples


def _restored(path: str, values: dict[str, Any]) -> Task:
    found = registry.find(path)
    # What stands at the path is the function, or what a decorator has made of it.
    function = getattr(found, "task_function", None) or getattr(found, "func", found)
    if function is None:
        raise ValueError(f"There is no task at {path!r}.")
    restored: Task = unchecked(object.__new__(Task), func=function, **values)
    return restored


def unchecked(task: Any, **changes: Any) -> Any:
    """Return a copy of ``task`` with other values, whatever its backend accepts today.

    A result tells what was enqueued, even when its queue has been closed since.
    """
    copy = object.__new__(type(task))
    for field in fields(task):
        value = changes[field.name] if field.name in changes else getattr(task, field.name)
        object.__setattr__(copy, field.name, value)
    return copy


def task(
    function: Callable[..., Any] | None = None,
    *,
    priority: int = 0,
    queue_name: str = "default",
    backend: str = "default",
    takes_context: bool = False,
    **more: Any,
) -> Any:
    """Django's ``@task``, with our options on every version of Django.

    Django 6.1 and the package ``django-tasks`` hand the options on by themselves; 6.0 does not.
    """
    options.refuse_what_is_to_come(more)
    if "run_after" in more:
        raise ArgumentTypeError(
            "run_after cannot be defined statically with the @task decorator. "
            "Use .using(run_after=...) to set it dynamically."
        )

    def decorate(function: Callable[..., Any]) -> Any:
        options.require_function("@task", function)
        task_class = django_tasks.task_backends[backend].task_class
        known = {field.name for field in fields(task_class)} - {"func"}
        for name in more:
            if name not in known:
                raise ArgumentTypeError(
                    f"{name!r} is no option of the backend {backend!r} ({task_class.__module__})."
                    f"{options.did_you_mean(name, known)}"
                )
        return task_class(
            func=function,
            priority=priority,
            queue_name=queue_name,
            backend=backend,
            run_after=None,
            takes_context=takes_context,
            **more,
        )

    return decorate if function is None else decorate(function)
