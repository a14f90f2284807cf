"""Background tasks for Django, kept in the project's own database.

``from background_task import background`` is all that a ``tasks.py`` needs. Importing this package
loads no model, so it is safe wherever Django itself may be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    overload,
)

if TYPE_CHECKING:
    from background_task.api.proxy import CoroutineProxy, TaskProxy
    from background_task.api.types import RunOptions, TaskOptions
    from background_task.api.types import Task as TypedTask

P = ParamSpec("P")
R = TypeVar("R")

__version__ = "2.0.0a1"

default_app_config = "background_task.apps.BackgroundTasksAppConfig"

__all__ = ["__version__", "background", "current_task", "default_app_config", "task"]


class _Background(Protocol):
    """A decorator of functions, plain or ``async``."""

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> CoroutineProxy[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> TaskProxy[P, R]: ...


class _TakesContext(Protocol):
    """A decorator of functions, plain or ``async``, whose first argument is the context."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> TypedTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> TypedTask[P, R]: ...


class _TakesNone(Protocol):
    """A decorator of functions, plain or ``async``."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> TypedTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> TypedTask[P, R]: ...


@overload
def background(name: Callable[P, Coroutine[Any, Any, R]], /) -> CoroutineProxy[P, R]: ...
@overload
def background(name: Callable[P, R], /) -> TaskProxy[P, R]: ...
@overload
def background(
    name: str | None = None,
    schedule: Any = None,
    queue: str | None = None,
    remove_existing_tasks: bool = False,
    every: float | timedelta | None = None,
    **options: Unpack[RunOptions],
) -> _Background: ...
def background(*args: Any, **kwargs: Any) -> Any:
    """Mark a function as a background task.

    Takes the arguments of :meth:`background_task.tasks.Tasks.background`, in all its forms:
    ``@background``, ``@background()``, ``@background("my.name")``, ``@background(schedule=60)``.
    """
    from background_task.tasks import tasks

    return tasks.background(*args, **kwargs)


def current_task() -> Any:
    """Return the ``TaskContext`` of the task that runs here; None outside a task."""
    from background_task.api.context import current_task

    return current_task()


@overload
def task(function: Callable[P, Coroutine[Any, Any, R]], /) -> TypedTask[P, R]: ...
@overload
def task(function: Callable[P, R], /) -> TypedTask[P, R]: ...
@overload
def task(
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[True],
    **options: Unpack[TaskOptions],
) -> _TakesContext: ...
@overload
def task(
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[False] = ...,
    **options: Unpack[TaskOptions],
) -> _TakesNone: ...
def task(*args: Any, **kwargs: Any) -> Any:
    """Django's ``@task`` with the options of this package, on every supported version of Django.

    See :func:`background_task.api.definitions.task`. It loads no model.
    """
    from background_task.api.aliases import require_tasks

    require_tasks()
    from background_task.api.definitions import task

    return task(*args, **kwargs)
