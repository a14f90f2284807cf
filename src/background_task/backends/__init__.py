"""Backends for Django's own ``django.tasks``. Importing them loads no model.

They store and find rows like the predecessor's door does, and leave running to the same worker.
"""

from __future__ import annotations

from background_task.api.aliases import require_tasks

require_tasks()

from background_task.backends.database import DatabaseBackend  # noqa: E402

__all__ = ["DatabaseBackend"]
