"""The log of the attempts of a task that did not succeed."""

from __future__ import annotations

from collections.abc import Sequence

from background_task import vendors
from background_task.exceptions import WorkerLostError, class_path
from background_task.models import Attempt, Task
from background_task.storage.engine import Engine


def record(task: Task, error: BaseException, traceback: str) -> None:
    """Write down that a run failed; part of the transaction that records the failure."""
    if task.result_id is None:
        return  # a row that was run without being claimed has no name to be found by
    log = Attempt.objects.using(task.database)
    if isinstance(error, WorkerLostError) and task.losses:
        lost = log.filter(
            result_id=task.result_id, exception_class_path=class_path(WorkerLostError)
        )
        if lost.count() >= task.losses:
            return  # each loss is there: that it is not run again was no run
    log.create(
        result_id=task.result_id,
        worker_id=task.worker_id or task.locked_by or "",
        started_at=task.locked_at,
        finished_at=vendors.now(task.database),
        exception_class_path=class_path(type(error)),
        traceback=traceback,
    )


def record_losses(
    engine: Engine, keys: Sequence[int], reason: str, worker_id: str | None = None
) -> None:
    """Write down of rows, as they are before somebody else may take them, that their run was lost.

    Args:
        engine: where.
        keys: of the rows.
        reason: how it was noticed, for the place of a traceback.
        worker_id: the worker, where the rows do not tell.
    """
    sql = f"""
        INSERT INTO background_task_attempt
            (result_id, worker_id, started_at, finished_at, exception_class_path, traceback)
        SELECT result_id, COALESCE(%s, worker_id, locked_by, ''), locked_at, {engine.now}, %s, %s
        FROM background_task WHERE result_id IS NOT NULL AND id IN ({", ".join(map(str, keys))})
    """
    engine.run(sql, [worker_id, class_path(WorkerLostError), reason])
