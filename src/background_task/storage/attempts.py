"""The log of the attempts of a task that did not succeed."""

from __future__ import annotations

from background_task import vendors
from background_task.exceptions import WorkerLostError
from background_task.models import Attempt, Task


def record(task: Task, error: BaseException, traceback: str) -> None:
    """Write down that a run failed; part of the transaction that records the failure."""
    if task.result_id is None:
        return  # a row that was run without being claimed has no name to be found by
    Attempt.objects.using(task.database).create(
        result_id=task.result_id,
        worker_id=task.worker_id or task.locked_by or "",
        started_at=task.locked_at,
        finished_at=vendors.now(task.database),
        exception_class_path=class_path(type(error)),
        traceback=traceback,
    )


def record_loss(task: Task) -> None:
    """Write down that the worker of ``task``, as it was before another took it over, was lost."""
    if task.result_id is None:
        return
    worker = task.worker_id or task.locked_by or ""
    Attempt.objects.using(task.database).create(
        result_id=task.result_id,
        worker_id=worker,
        started_at=task.locked_at,
        finished_at=vendors.now(task.database),
        exception_class_path=class_path(WorkerLostError),
        traceback=f"The worker {worker} has not renewed its lock since {task.locked_at}.",
    )


def class_path(error: type[BaseException]) -> str:
    """Return where the class of an error can be imported from."""
    return f"{error.__module__}.{error.__qualname__}"
