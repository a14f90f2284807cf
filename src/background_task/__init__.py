"""Background tasks for Django, kept in the project's own database.

``from background_task import background`` is all that a ``tasks.py`` needs. Importing this package
loads no model, so it is safe wherever Django itself may be imported.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from background_task.api.proxy import TaskProxy

__version__ = "2.0.0a1"

default_app_config = "background_task.apps.BackgroundTasksAppConfig"

__all__ = ["__version__", "background", "current_task", "default_app_config", "task"]


@overload
def background(name: Callable[..., Any], /) -> TaskProxy: ...
@overload
def background(
    name: str | None = None,
    schedule: Any = None,
    queue: str | None = None,
    remove_existing_tasks: bool = False,
    every: float | timedelta | None = None,
    **options: Any,
) -> Callable[[Callable[..., Any]], TaskProxy]: ...
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


def task(*args: Any, **kwargs: Any) -> Any:
    """Django's ``@task`` with the options of this package, on every supported version of Django.

    See :func:`background_task.api.definitions.task`. It loads no model.
    """
    from background_task.api.aliases import require_tasks

    require_tasks()
    from background_task.api.definitions import task

    return task(*args, **kwargs)
