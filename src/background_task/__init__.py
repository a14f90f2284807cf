"""Background tasks for Django, kept in the project's own database.

``from background_task import background`` is all that a ``tasks.py`` needs. Importing this package
loads no model, so it is safe wherever Django itself may be imported.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, overload

if TYPE_CHECKING:
    from django.tasks import Task as DjangoTask

    from background_task.api.proxy import TaskProxy

P = ParamSpec("P")
R = TypeVar("R")

__version__ = "2.0.0a1"

default_app_config = "background_task.apps.BackgroundTasksAppConfig"

__all__ = ["__version__", "background", "current_task", "default_app_config", "task"]


@overload
def background(name: Callable[P, R], /) -> TaskProxy[P, R]: ...
@overload
def background(
    name: str | None = None,
    schedule: Any = None,
    queue: str | None = None,
    remove_existing_tasks: bool = False,
    every: float | timedelta | None = None,
    **options: Any,
) -> Callable[[Callable[P, R]], TaskProxy[P, R]]: ...
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
def task(function: Callable[P, R], /) -> DjangoTask[P, R]: ...
@overload
def task(
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[True],
    **options: Any,
) -> Callable[[Callable[Concatenate[Any, P], R]], DjangoTask[P, R]]: ...
@overload
def task(
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[False] = ...,
    **options: Any,
) -> Callable[[Callable[P, R]], DjangoTask[P, R]]: ...
def task(*args: Any, **kwargs: Any) -> Any:
    """Django's ``@task`` with the options of this package, on every supported version of Django.

    See :func:`background_task.api.definitions.task`. It loads no model.
    """
    from background_task.api.aliases import require_tasks

    require_tasks()
    from background_task.api.definitions import task

    return task(*args, **kwargs)
