"""Where ``CompletedTask`` was before 1.2.5; old projects still import it from here."""

from background_task.models import CompletedTask, CompletedTaskQuerySet

__all__ = ["CompletedTask", "CompletedTaskQuerySet"]
