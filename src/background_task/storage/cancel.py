"""Cancel a task, wherever it stands."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connections

from background_task import logs
from background_task.models import Task
from background_task.storage import oddities
from background_task.storage.notifications import tell_finished, tell_new
from background_task.storage.transient import HURRIED, TRANSIENT, persevere, reason

logger = logs.named("background_task.storage")


def cancel(task: Task) -> bool:
    """Cancel a task by ``task.cancel()``, and wake who waits for it if it has ended with that."""
    connection = connections[task.database]

    def verb() -> bool:
        is_done = task.cancel()
        rows = Task._base_manager.using(connection.alias)
        if is_done and not rows.filter(pk=task.pk).exists():
            tell_finished(connection, [task.result_id])
            tell_new(connection.alias)  # of the next of its chain
        return is_done

    return persevere(connection, "cancel a task", verb, HURRIED)


def cancel_all(using: str, keys: Sequence[int]) -> int:
    """Cancel rows by their keys, each by itself; return how many were."""
    count = 0
    for row in Task._base_manager.using(using).filter(pk__in=keys) if keys else ():
        try:
            count += cancel(row)
        except TRANSIENT as error:
            logger.warning("%s is to be cancelled, and cannot be yet: %s", row, reason(error))
        except Exception:  # of a project's own method, perhaps; the others are not to wait for it
            logger.exception("%s was to be cancelled, and could not be", row)
            oddities.pass_over(row.pk, row.task_name, "it was to be cancelled, and could not be")
    return count
