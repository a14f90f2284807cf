"""Cancel a task, wherever it stands."""

from __future__ import annotations

from django.db import connections

from background_task.models import Task
from background_task.storage.notifications import tell_finished
from background_task.storage.transient import HURRIED, persevere


def cancel(task: Task) -> bool:
    """Cancel a task by ``task.cancel()``, and wake who waits for it if it has ended with that."""
    connection = connections[task.database]

    def verb() -> bool:
        is_done = task.cancel()
        rows = Task._base_manager.using(connection.alias)
        if is_done and not rows.filter(pk=task.pk).exists():
            tell_finished(connection, [task.result_id])
        return is_done

    return persevere(connection, "cancel a task", verb, HURRIED)
