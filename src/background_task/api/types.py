"""What a type checker sees of tasks and results: Django's classes with what ours have beyond them.

At run time they are :class:`background_task.api.definitions.Task` and
:class:`background_task.api.results.TaskResult`; Django's own are generic for type checkers only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypedDict

Delay = float | timedelta

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import ParamSpec, TypeVar

    from django import tasks

    P = ParamSpec("P")
    R = TypeVar("R")

    class TaskResult(tasks.TaskResult[P, R]):
        def wait(self, timeout: float | None = None) -> R: ...
        async def await_(self, timeout: float | None = None) -> R: ...
        def cancel(self) -> bool: ...
        async def acancel(self) -> bool: ...

    class Task(tasks.Task[P, R]):
        def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[P, R]: ...
        async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[P, R]: ...
        def get_result(self, result_id: str) -> TaskResult[P, R]: ...
        async def aget_result(self, result_id: str) -> TaskResult[P, R]: ...
        def using(
            self,
            *,
            priority: int | None = None,
            queue_name: str | None = None,
            run_after: datetime | None = None,
            backend: str | None = None,
        ) -> Task[P, R]: ...
        def enqueue_many(
            self, calls: Iterable[tuple[Any, ...] | Mapping[str, Any]]
        ) -> list[TaskResult[P, R]]: ...
        async def aenqueue_many(
            self, calls: Iterable[tuple[Any, ...] | Mapping[str, Any]]
        ) -> list[TaskResult[P, R]]: ...


class RunOptions(TypedDict, total=False):
    """What a declaration says about the runs; see ``RunPolicy`` for what it means."""

    max_attempts: int | None
    backoff: Delay | Sequence[Delay] | Callable[[BaseException, Any], Delay | None] | None
    retry_on: type[BaseException] | Collection[type[BaseException]] | None
    give_up_on: type[BaseException] | Collection[type[BaseException]] | None
    max_losses: int | None
    on_worker_loss: Literal["retry", "fail"] | None
    timeout: Delay | None
    atomic: bool | None


class TaskOptions(RunOptions, total=False):
    """What Django's ``@task`` takes beside that."""

    on_commit: bool | None


class Using(TypedDict, total=False):
    """What ``using()`` changes."""

    priority: int | None
    queue_name: str | None
    run_after: datetime | None
    backend: str | None
