"""What taking and recording by the batch have in common for functions and coroutines."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from django.db import connections

from background_task import tasks as hooks
from background_task import vendors
from background_task.execution.attempt import Attempt
from background_task.execution.runs import runs
from background_task.models import CompletedTask, Task
from background_task.storage import claim, finish
from background_task.storage.overrides import replaced

if TYPE_CHECKING:
    from background_task.tasks import Tasks

logger = logging.getLogger("background_task.tasks")


def reason_against(tasks: Tasks) -> str | None:
    """Return why tasks have to be taken one by one, by the predecessor's steps; None if not so."""
    connection = connections[tasks.queue_database()]
    if connection.in_atomic_block or vendors.is_in_memory(connection):
        return "no other thread can see the rows"
    if tasks.elsewhere is not None:
        return "this worker runs inside of another"
    own = (
        replaced(tasks._runner, "run_next_task", "get_task_to_run", "run_task")
        or replaced(tasks, "run_next_task", "run_task")
        or replaced(Task, "lock", "params")
        or (None if tasks._bg_runner is hooks.bg_runner else "tasks._bg_runner")
    )
    return f"{own} is the project's own" if own else None


def take(
    tasks: Tasks, names: Collection[str], queue: str | None, most: int, *, suspects: int
) -> list[Task]:
    """Claim a batch, see :func:`claim.claim_batch`; none when the database is away."""
    using, worker = tasks.queue_database(), tasks._runner.worker_name
    return hooks.unless_unreachable(
        using,
        lambda: claim.claim_batch(using, names, queue, worker, most, suspects=suspects),
        otherwise=[],
    )


def record(
    succeeded: Sequence[tuple[Attempt, Task, str | None]],
) -> dict[int, CompletedTask | None]:
    """Record a batch of successes, see :func:`finish.succeed_many`; none when that fails."""
    if not succeeded or finish.is_watched():
        return {}
    for attempt, _, _ in succeeded:
        attempt.run.is_over = True
    runs.wait_for_renewal()
    recorded: dict[int, CompletedTask | None] = {}
    try:
        recorded = finish.succeed_many([(task, text) for _, task, text in succeeded])
    except Exception as error:
        logger.warning("%d successes could not be recorded at once: %s", len(succeeded), error)
    for attempt, task, _ in succeeded:
        attempt.run.is_over = task.pk in recorded  # the others wait, and have to be kept
    return recorded
