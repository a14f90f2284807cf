"""How Django knows this app."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.autoreload import autoreload_started

from background_task import __version__


class BackgroundTasksAppConfig(AppConfig):
    """Label, table names and key type are the predecessor's or ours, never the project's."""

    name = "background_task"
    verbose_name = f"Background Tasks ({__version__})"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Connect the receivers, register the system checks, and start what is to be embedded."""
        from background_task import checks, discovery, embedded, signals  # noqa: F401
        from background_task.execution import notices

        autoreload_started.connect(discovery.watch_modules)
        signals.task_cancelled.connect(notices.tell_of_cancelled)
        embedded.start_beside_runserver()
